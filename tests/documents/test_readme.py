"""Every command and every Python block of the README and of some pages of docs/ runs, on real weights."""

import re
import shlex
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from commands import Run

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in ("atlas", "audit", "stitching")))
MAKE_TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))


def blocks(language: str) -> list[tuple[str, str]]:
    """(page, text) of all fenced blocks of a language."""
    fence = re.compile(rf"^```{language}\n(.*?)^```", re.M | re.S)
    return [(page.name, found) for page in PAGES for found in fence.findall(page.read_text(encoding="utf-8"))]


LINES = [line for _, text in blocks("console") for line in text.splitlines()]
COMMANDS = list(dict.fromkeys(line[2:] for line in LINES if line.startswith("$ ")))
# What a longer line begins with is done by it, too: `zeropass diff …` by `zeropass diff … --build`.
TRIED = [one for one in COMMANDS if not any(other.startswith(f"{one} --") for other in COMMANDS)]


@pytest.fixture(scope="module")
def folder(real_atlas: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder in which the README's paths exist; the atlas covers the layers that its examples use."""
    path = tmp_path_factory.mktemp("readme")
    (path / "demo").mkdir()
    (path / "demo" / "smollm2-135m").symlink_to(real_atlas)
    (path / "models").symlink_to(ROOT / "models")
    return path


def test_the_pages_have_commands() -> None:
    assert sum(command.startswith("zeropass ") for command in COMMANDS) >= 5
    assert {"make demo", "make test"} <= set(COMMANDS)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make ")])
def test_make_targets_exist(command: str) -> None:
    assert command.split()[1] in MAKE_TARGETS


@pytest.mark.real
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("command", [c for c in TRIED if c.startswith("zeropass ") and " build " not in c])
def test_commands_run(command: str, folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    arguments = shlex.split(command)[1:]
    if arguments[0] == "serve":
        serve(arguments)
        return
    code, said, told = run(*arguments)
    assert code == 0, told
    assert said.strip()


@pytest.mark.real
def test_the_lists_in_the_readme_are_what_is_printed(
    folder: Path,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    command, shown = re.findall(r"^\$ zeropass (show [^\n]*)\n```\n\n```text\n(.*?)^```", text, re.M | re.S)[0]
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "104")
    said = run(*shlex.split(command))[1]
    assert [line.rstrip() for line in said.splitlines()] == shown.splitlines()


def serve(arguments: list[str]) -> None:
    """Start a server, which serves until it is told to end; ask for its first page, and end it."""
    line = [sys.executable, "-m", "zeropass", *arguments, "--port", "0"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        with urllib.request.urlopen(server.stdout.readline().split()[0], timeout=60) as page:
            assert b"zeropass" in page.read()
        server.terminate()
        server.wait(60)


@pytest.mark.real
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("code", [text for _, text in blocks("python")])
def test_python_runs(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    exec(compile(code, "a page", "exec"), {"__name__": "__main__"})
