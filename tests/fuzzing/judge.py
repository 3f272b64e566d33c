"""Run one case: give a changed file to a reader, and judge whether it was read or properly refused."""

import contextlib
import gc
import io
import json
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import zeropass
from fuzzing.mutate import mutated
from fuzzing.readers import READERS, UNNAMED, Reader, Use
from fuzzing.written import HARMLESS, WRITTEN
from zeropass.cli.main import main
from zeropass.errors import ZeropassError

__all__ = ["ALLOWANCE", "LIMIT", "WAIT", "Case", "Outcome", "Workplace", "limit_memory"]

LIMIT = 5.0
"""Seconds of processor time that a case may take; a busy machine is not a bug."""

WAIT = 60.0
"""Seconds of wall-clock time that a case may take, whatever it waits for."""

WARMING = 1.0
"""Seconds of processor time after which a reader is warm; a few of its draws load all that it needs."""

ALLOWANCE = 64 << 20
"""Bytes that a case may take beyond ten times the size of its files, for what libraries load at first use."""

HARD = 2 << 30
"""Bytes that a process may allocate beyond what it has at its start; this protects the machine."""


@dataclass(frozen=True)
class Case:
    """A case, which its reader, seed and number determine completely."""

    reader: str
    seed: int
    number: int

    @property
    def command(self) -> str:
        """The command that repeats the case."""
        return f"python tests/fuzz.py {self.reader} --seed {self.seed} --case {self.number}"


@dataclass(frozen=True)
class Outcome:
    """The outcome of a case: ``read``, ``refused``, or what went wrong, and where."""

    kind: str
    where: str = ""
    detail: str = ""
    seconds: float = 0.0
    bytes: int = 0

    @property
    def right(self) -> bool:
        """True if the case ended as promised."""
        return self.kind in ("read", "refused")


class TimeUp(BaseException):
    """An interruption of a case that took too long."""


class Workplace:
    """Copies of the seeds that one process changes and restores, case by case."""

    def __init__(self, seeds: Path, folder: Path) -> None:
        self.seeds, self.folder = seeds, folder
        self._files: dict[str, list[tuple[Path, list[Path]]]] = {}

    def places(self, reader: Reader) -> list[tuple[Path, list[Path]]]:
        """Return the folders of a reader, each with the files that may be changed in it."""
        if reader.name not in self._files:
            places = []
            for seed in sorted(path for pattern in reader.seeds for path in self.seeds.glob(pattern)):
                folder = self.folder / reader.name / seed.name / "it"
                shutil.copytree(seed, folder)
                files = [file for pattern in reader.files for file in sorted(folder.glob(pattern))]
                places.append((folder, files))
            self._files[reader.name] = places
        return self._files[reader.name]

    @contextlib.contextmanager
    def changed(self, case: Case, draw: Random) -> Iterator[Path]:
        """Yield the folder of a case, in which one or two files are changed while the context lasts."""
        folder, files = draw.choice(self.places(READERS[case.reader]))
        chosen = draw.sample(files, min(len(files), 1 + (draw.random() < 0.1))) if files else []
        before = {file: file.read_bytes() for file in chosen}
        entries = set(folder.rglob("*"))
        try:
            for file, content in before.items():
                file.write_bytes(mutated(file.name, content, draw))
            (folder.parent / "changed.json").write_text(json.dumps([file.name for file in chosen]))
            yield folder
        finally:
            for file, content in before.items():
                file.write_bytes(content)
            for path in sorted(set(folder.rglob("*")) - entries, reverse=True):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def run(self, case: Case, trace: bool = False) -> Outcome:
        """Run a case and return its outcome."""
        draw, reader = Random(f"{case.reader} {case.seed} {case.number}"), READERS[case.reader]
        with self.changed(case, draw) as folder:
            started, before = time.process_time(), _reset_peak()
            if case.number % reader.rarely == reader.rarely - 1:
                outcome = _judged_command(
                    [str(argument) for argument in reader.command(folder, self.seeds, draw)], reader, folder, trace
                )
            else:
                outcome = _judged_use(reader.used(case.number), reader, folder, self.seeds, draw, trace)
            took, grown = time.process_time() - started, _peak() - before
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        if outcome.kind == "read" and reader.each and (name := list(WRITTEN)[case.number]) not in HARMLESS:
            return Outcome("accepted", name, "it should be refused", took, grown)
        if outcome.right and took > LIMIT:
            return Outcome("hang", "", f"{took:.1f} s", took, grown)
        if outcome.right and grown > 10 * size + ALLOWANCE:
            return Outcome("memory", "", f"{grown >> 20} MiB for files of {size} bytes", took, grown)
        return Outcome(outcome.kind, outcome.where, outcome.detail, took, grown)

    def clean(self, reader: Reader) -> None:
        """Read the unchanged seeds, so that libraries load what they need; raise if a seed is refused.

        There are 60 draws of what a reader does, shared among its seeds, or as many as fit into a time; but five of
        each seed at least.
        """
        places, end = self.places(reader), time.process_time() + WARMING
        for number in range(max(60 // max(len(places), 1), 5)):
            if number >= 5 and time.process_time() > end:
                break
            draw = Random(number)
            for folder, _ in places:
                (folder.parent / "changed.json").write_text(json.dumps([path.name for path in folder.glob("*.gguf")]))
                with contextlib.suppress(*(() if reader.named else (ZeropassError,))):
                    reader.use(folder, self.seeds, draw)


def _judged_use(use: Use, reader: Reader, folder: Path, seeds: Path, draw: Random, trace: bool) -> Outcome:
    try:
        with _limited():
            use(folder, seeds, draw)
    except ZeropassError as error:
        return _judged_message(str(error), reader, folder)
    except TimeUp as error:
        return Outcome("hang", _where(error), f"more than {LIMIT:g} s")
    except BaseException as error:
        if trace:
            traceback.print_exc()
        return Outcome(type(error).__name__, _where(error), str(error)[:300])
    return Outcome("read")


def _judged_message(message: str, reader: Reader, folder: Path) -> Outcome:
    if not message.strip():
        return Outcome("no message")
    if (
        reader.named
        and str(folder) not in message
        and not message.startswith(UNNAMED)
        and not (reader.unnamed and re.search(reader.unnamed, message))
    ):
        return Outcome("unnamed", re.sub(r"[\d'\"].*", "…", message)[:60], message[:300])
    return Outcome("refused", detail=message[:300])


def _judged_command(arguments: list[str], reader: Reader, folder: Path, trace: bool) -> Outcome:
    """Judge a command in this process: it works, or ends with exit code 2, one message and nothing on stdout."""
    out, err = io.StringIO(), io.StringIO()
    argv, code = sys.argv, 0
    sys.argv = ["zeropass", *arguments]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _limited():
            main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(bool(end.code))
    except TimeUp:
        return Outcome("hang", f"command {arguments[0]}", f"more than {LIMIT:g} s")
    except BaseException as error:
        if trace:
            traceback.print_exc()
        return Outcome(type(error).__name__, _where(error), str(error)[:300])
    finally:
        sys.argv = argv
    return judged_end(code, out.getvalue(), err.getvalue(), arguments, reader, folder)


def judged_end(code: int, out: str, err: str, arguments: list[str], reader: Reader, folder: Path) -> Outcome:
    """Judge how a command ended, by its exit code and output."""
    where = f"command {arguments[0]}"
    if code == 0:
        return Outcome("read") if not err else Outcome("stderr", where, err[:300])
    if code != 2:
        return Outcome(f"exit code {code}", where, err[:300])
    if out:
        return Outcome("stdout", where, out[:300])
    if reader.named and (not err.startswith("error: ") or err.count("\n") != 1):
        return Outcome("message", where, err[:300])
    return _judged_message(err, reader, folder)


def in_shell(workplace: Workplace, case: Case) -> Outcome:
    """Run a case through the real command line."""
    draw, reader = Random(f"{case.reader} {case.seed} {case.number}"), READERS[case.reader]
    with workplace.changed(case, draw) as folder:
        arguments = [str(argument) for argument in reader.command(folder, workplace.seeds, draw)]
        line = [sys.executable, "-m", "zeropass", *arguments]
        done = subprocess.run(line, capture_output=True, text=True, timeout=60)
        return judged_end(done.returncode, done.stdout, done.stderr, arguments, reader, folder)


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    def ring(*_: Any) -> None:
        raise TimeUp

    before = {name: signal.signal(name, ring) for name in (signal.SIGPROF, signal.SIGALRM)}
    signal.setitimer(signal.ITIMER_PROF, LIMIT)
    signal.setitimer(signal.ITIMER_REAL, WAIT)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            yield
    finally:
        for timer in (signal.ITIMER_PROF, signal.ITIMER_REAL):
            signal.setitimer(timer, 0)
        for name, handler in before.items():
            signal.signal(name, handler)


PACKAGE = str(Path(zeropass.__file__).parent)


def _where(error: BaseException) -> str:
    """Return the last place in zeropass that an error passed through."""
    frames = traceback.extract_tb(error.__traceback__)
    frames = [frame for frame in frames if frame.filename.startswith(PACKAGE)]
    return f"{Path(frames[-1].filename).relative_to(PACKAGE)}:{frames[-1].lineno}" if frames else ""


def limit_memory(limited: bool) -> None:
    """Limit what this process may allocate beyond what it has, or lift the limit."""
    gc.collect()
    most = _status("VmData") + HARD if limited else resource.RLIM_INFINITY
    resource.setrlimit(resource.RLIMIT_DATA, (most, resource.RLIM_INFINITY))


def _reset_peak() -> int:
    """Start to measure peak memory, and return the memory in use now."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def _status(name: str) -> int:
    text = Path("/proc/self/status").read_text()
    return int(text[text.index(name + ":") :].split(None, 2)[1]) << 10
