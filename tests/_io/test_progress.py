"""Long work shows how far it is where somebody watches: on a terminal and in a notebook, and nowhere else."""

import inspect
import os
import pty
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client import KernelManager

import zeropass as zp
from commands import ENVIRONMENT
from zeropass._io.progress import callback, in_notebook, reporting, shows_progress, silent, waiting

FIRST = Path(__file__).parents[2] / "models" / "first"
CALIBRATE = f"import zeropass as zp; lens = zp.calibrate({str(FIRST)!r}, source='random', tokens=2048"
SLOW = """
import time
from zeropass._io.progress import reporting, waiting
with reporting() as report:
    report('[red]stage[/] <b>', 1, 1200)
    time.sleep(.8)
    with waiting('never shown'):
        time.sleep(.5)
"""
QUICK = "from zeropass._io.progress import waiting\nwith waiting('a moment'): pass\n"
FAILING = "from zeropass._io.progress import waiting\nimport time\nwith waiting('failing'): time.sleep(.6); 1 / 0\n"


def on_a_terminal(code: str, **streams: Any) -> tuple[str, str]:
    """Run code in a new process, and return what it writes to a terminal and to a pipe."""
    terminal, theirs = pty.openpty()
    streams = {"stdout": subprocess.PIPE, "stderr": theirs} | streams
    with subprocess.Popen([sys.executable, "-c", code], stdin=theirs, env=ENVIRONMENT, **streams) as process:
        os.close(theirs)
        written = b"".join(iter(lambda: _read(terminal), b""))
        out = process.stdout.read() if process.stdout else process.stderr.read()
    os.close(terminal)
    return written.decode(), out.decode()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # the other end was closed
        return b""


def screen(text: str) -> str:
    """Return text without the commands that colour it and move the cursor."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", text)


def test_a_terminal_shows_a_bar_while_work_is_done() -> None:
    written, out = on_a_terminal(SLOW + "print('done')")
    assert out == "done\n"
    assert "[red]stage[/] <b>" in screen(written)
    assert "1 of 1,200" in screen(written)
    assert "never shown" not in written
    assert written.rstrip().endswith(("\x1b[2K", "\x1b[?25h", "\x1b[1A\x1b[2K"))  # the bar is gone


def test_what_takes_a_moment_shows_nothing() -> None:
    assert on_a_terminal(QUICK) == ("", "")


def test_a_bar_ends_with_an_error() -> None:
    written, _ = on_a_terminal(FAILING)
    assert "failing" in screen(written)
    assert "ZeroDivisionError" in screen(written).splitlines()[-1]


@pytest.mark.parametrize("code", [f"{CALIBRATE})", f"{CALIBRATE}, progress=True)"])
def test_long_work_shows_its_stages_unasked(code: str) -> None:
    written, _ = on_a_terminal(code)
    assert "calibrating" in screen(written)
    assert " of 4" in screen(written)


def test_nothing_is_shown_where_nobody_watches_or_wants_it() -> None:
    assert on_a_terminal(f"{CALIBRATE}, progress=False)") == ("", "")
    assert on_a_terminal(SLOW, stdout=None, stderr=subprocess.PIPE)[1] == ""
    in_a_thread = (
        "import threading\ndef work():\n" + SLOW.replace("\n", "\n    ") + "\nt = threading.Thread(target=work)"
    )
    assert on_a_terminal(f"{in_a_thread}; t.start(); t.join()") == ("", "")
    hidden = "from zeropass._io.progress import show_nothing; show_nothing()"
    assert on_a_terminal(hidden + SLOW) == ("", "")


def test_a_first_question_says_what_takes_long() -> None:
    code = (
        "import time, zeropass as zp\n"
        "from zeropass.model.frames import Frames\n"
        "rows = Frames.rows\n"
        "Frames.rows = lambda *given: time.sleep(.5) or rows(*given)\n"  # a model that is larger
        f"print(zp.load({str(FIRST)!r}, lens=None)['L1.ff.3.value'])"
    )
    written, out = on_a_terminal(code)
    assert "reading the weights" in screen(written)
    assert out == "Records(L1.ff.3.value output)\n"


@pytest.fixture(scope="module")
def kernel() -> Iterator[Any]:
    manager = KernelManager()
    manager.start_kernel(env=ENVIRONMENT)
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=60)
    yield client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def cell(kernel: Any, code: str) -> list[tuple[str, Any]]:
    """Run a cell, and return the type and content of what appears below it, in order."""
    messages: list[tuple[str, Any]] = []
    kernel.execute_interactive(
        code,
        timeout=120,
        output_hook=lambda message: messages.append((message["msg_type"], message["content"])),
    )
    return [(kind, content) for kind, content in messages if kind not in ("status", "execute_input")]


def test_a_notebook_shows_a_bar_and_removes_it(kernel: Any) -> None:
    first, *updates = cell(kernel, SLOW)
    assert first[0] == "display_data"
    assert {kind for kind, _ in updates} == {"update_display_data"}
    pages = [content["data"]["text/html"] for _, content in updates]
    assert pages[0].startswith('<progress max="1200" value="1"></progress> [red]stage[/] &lt;b&gt; 1 of 1,200, ')
    assert len({re.search(r"(\d+) s$", page)[1] for page in pages[:-1]}) > 1  # time passes
    assert updates[-1][1]["data"] == {"text/html": "", "text/plain": ""}


def test_a_notebook_shows_long_work_unasked(kernel: Any) -> None:
    cell(kernel, "import zeropass as zp; zp.calibrate")  # tqdm, which others import, warns that there are no widgets
    outputs = cell(kernel, f"{CALIBRATE})")
    assert any("calibrating" in content["data"].get("text/html", "") for _, content in outputs)
    assert cell(kernel, f"{CALIBRATE}, progress=False)") == []
    assert cell(kernel, QUICK) == []
    assert cell(kernel, "print(lens.facts.words)") == [
        ("stream", {"name": "stdout", "text": "mean-field lens from 2,048 random tokens\n"})
    ]


def test_a_notebook_that_is_interrupted_shows_no_bar_any_more(kernel: Any) -> None:
    outputs = cell(kernel, "import _thread, threading\nthreading.Timer(.8, _thread.interrupt_main).start()\n" + SLOW)
    assert outputs[-1][1].get("ename") == "KeyboardInterrupt"
    drawn = [content["data"] for kind, content in outputs if kind == "update_display_data"]
    assert drawn[-1] == {"text/html": "", "text/plain": ""}


def test_what_is_given_is_called() -> None:
    steps: list[tuple[str, int, int]] = []
    with reporting(lambda *step: steps.append(step)) as report:
        report("a", 1, 2)
    with reporting(False) as report:
        assert report is silent

    @shows_progress
    def work(count: int, progress: Any = True, *, more: int = 0) -> int:
        report = callback(progress)
        report("work", count, more)
        return count

    assert work(3, lambda *step: steps.append(step), more=4) == 3
    assert work(5) == work(count=5, progress=False) == 5
    assert work.__name__ == "work"
    assert steps == [("a", 1, 2), ("work", 3, 4)]
    with pytest.raises(TypeError, match="missing"):
        work()


def test_no_thread_is_left_and_tests_are_no_notebook() -> None:
    before = threading.active_count()
    with waiting("a moment"):
        time.sleep(0.01)
    assert threading.active_count() == before
    assert not in_notebook()


LONG = ("align_models", "build", "build_change", "build_on_cluster", "calibrate", "collect_evidence", "compare")
LONG += ("catalogue_heads", "export_site", "label", "screen", "stitch_models", "transplant")


@pytest.mark.parametrize("name", LONG)
def test_every_long_call_shows_progress_unless_it_is_told_otherwise(name: str) -> None:
    assert inspect.signature(getattr(zp, name)).parameters["progress"].default is True
    source = inspect.getsource(inspect.unwrap(getattr(zp, name)))
    assert "@shows_progress" in source or name == "build_on_cluster"  # which hands it to build
