"""Give mutated inputs to every reader, in supervised processes (`make fuzz`).

``python tests/fuzz.py [READER …] [--cases N] [--seed S] [--first N] [--workers N] [--json FILE]`` tries N cases of each
reader. ``python tests/fuzz.py READER --seed S --case N`` repeats one case and shows its traceback; ``--keep DIR`` keeps
its files.
"""

import argparse
import ctypes
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"  # a damaged file must not cause a download

import torch

from fuzzing import judge, seeds
from fuzzing.judge import LIMIT, WAIT, Case, Outcome, Workplace
from fuzzing.readers import READERS
from zeropass.numerics.factored import Factored
from zeropass.numerics.top_pairs import top_pairs

CHUNK = 200
GRACE = 3.0
"""Seconds beyond its limit after which a process whose code does not return to Python is killed."""


@dataclass
class Tally:
    """The outcomes of a reader's cases."""

    read: int = 0
    refused: int = 0
    wrong: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    slowest: float = 0.0
    most: int = 0

    @property
    def cases(self) -> int:
        return self.read + self.refused + len(self.wrong)

    def add(self, case: Case, outcome: Outcome) -> None:
        self.read += outcome.kind == "read"
        self.refused += outcome.kind == "refused"
        self.seconds += outcome.seconds
        self.slowest, self.most = max(self.slowest, outcome.seconds), max(self.most, outcome.bytes)
        if not outcome.right:
            self.wrong.append({"case": case.number, "repeat": case.command} | asdict(outcome))


class Worker:
    """A process that works through chunks of cases, and its current case."""

    def __init__(self, seeds: Path, seed: int) -> None:
        self.seeds, self.seed = seeds, seed
        self.now = multiprocessing.get_context("fork").RawArray(
            ctypes.c_double, 3
        )  # case number, and its start in wall-clock and processor time
        self.chunk: tuple[str, int, int] | None = None
        self.start()

    def start(self) -> None:
        context, self.gone = multiprocessing.get_context("fork"), False
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_work, args=(other, self.now, self.seeds, self.seed), daemon=True)
        self.process.start()
        other.close()

    def give(self, chunk: tuple[str, int, int]) -> None:
        self.chunk, self.now[0], self.now[1] = chunk, -1, time.monotonic() + 240  # time to start up
        self.pipe.send(chunk)

    def failed(self) -> Outcome | None:
        """Return what is wrong with the current case if the process died of it or hangs."""
        if self.gone:
            self.process.join()
            return Outcome("crash", f"exit code {self.process.exitcode}")
        took = time.monotonic() - self.now[1]
        if took > WAIT + GRACE or (took > LIMIT + GRACE and self._processor() - self.now[2] > LIMIT + GRACE):
            self.process.kill()
            return Outcome("hang", "in code that does not return", seconds=took)
        return None

    def _processor(self) -> float:
        """Return the seconds of processor time that the process has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _warm() -> None:
    """Load the compiled loops of the pair search, whose 60 MB would otherwise count for the first search."""
    top_pairs(Factored(torch.randn(600, 8), torch.randn(600, 8)), 50)


def _work(pipe: Any, now: Any, seeds: Path, seed: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    sys.stdin = Path(os.devnull).open()  # noqa: SIM115
    _warm()
    warmed: set[str] = set()
    with tempfile.TemporaryDirectory(dir=seeds.parent) as folder:
        workplace = Workplace(seeds, Path(folder))
        while True:
            name, first, last = pipe.recv()
            if name not in warmed:
                judge.limit_memory(False)
                # cases written by hand have no seeds: what reads an atlas would count for their first one
                workplace.clean(READERS["atlas-parquet" if name == "written" else name])
                warmed.add(name)
            judge.limit_memory(True)
            for number in range(first, last):
                now[2], now[1], now[0] = time.process_time(), time.monotonic(), number
                case = Case(name, seed, number)
                pipe.send((number, workplace.run(case)))
            now[1] = time.monotonic() + 1e9
            pipe.send(None)


def try_readers(
    folder: Path, names: list[str], cases: int, seed: int, first: int, workers: int, say: Any
) -> dict[str, Tally]:
    """Try some cases of each reader; on Ctrl-C, return the tallies so far."""
    last = {name: len(READERS[name].each) or first + cases for name in names}
    todo = [
        (name, n, min(n + CHUNK, last[name]))
        for name in names
        for n in range(first * (not READERS[name].each), last[name], CHUNK)
    ]
    tallies = {name: Tally() for name in names}
    staff = [Worker(folder, seed) for _ in range(workers)]
    todo.reverse()
    try:
        while todo or any(worker.chunk for worker in staff):
            for worker in staff:
                if worker.chunk is None and todo:
                    worker.give(todo.pop())
                elif worker.chunk is not None:
                    _collect(worker, tallies, todo, say)
            time.sleep(0.005)
    except KeyboardInterrupt:
        print("interrupted; what was done so far:", file=sys.stderr)
    finally:
        for worker in staff:
            worker.process.kill()
            worker.process.join()
    return tallies


def _collect(worker: Worker, tallies: dict[str, Tally], todo: list[tuple[str, int, int]], say: Any) -> None:
    """Add the outcomes that a worker has sent, and restart it if its case failed."""
    name, _, last = worker.chunk or ("", 0, 0)
    try:
        while worker.pipe.poll():
            message = worker.pipe.recv()
            if message is None:
                worker.chunk = None
                say(name, tallies[name])
                return
            tallies[name].add(Case(name, worker.seed, message[0]), message[1])
    except EOFError:
        worker.gone = True
    if (outcome := worker.failed()) is not None:
        number = int(worker.now[0])
        if number < 0:  # the other readers are still tried
            print(f"{name}: its seeds themselves cannot be read (see above).", file=sys.stderr)
            todo[:] = [chunk for chunk in todo if chunk[0] != name]
            last = 0
        tallies[name].add(Case(name, worker.seed, number), outcome)
        worker.chunk = None
        if number + 1 < last:
            todo.append((name, number + 1, last))
        worker.process.join()
        worker.start()


def table(tallies: dict[str, Tally]) -> str:
    """Format the counts as a Markdown table."""
    lines = ["| reader | cases | read | refused | wrong | ms a case | slowest, s | most memory, MiB |"]
    lines += ["|---|---:|---:|---:|---:|---:|---:|---:|"]
    for name, tally in tallies.items():
        each = 1000 * tally.seconds / max(tally.cases, 1)
        lines.append(
            f"| {name} | {tally.cases:,} | {tally.read:,} | {tally.refused:,} | {len(tally.wrong):,} | {each:.1f} "
            f"| {tally.slowest:.1f} | {tally.most / 2**20:.0f} |"
        )
    return "\n".join(lines)


def findings(tallies: dict[str, Tally]) -> list[str]:
    """Describe what is wrong, one case of each kind, with the command that repeats it."""
    lines = []
    for name, tally in tallies.items():
        kinds = Counter((finding["kind"], finding["where"]) for finding in tally.wrong)
        for (kind, where), count in kinds.most_common():
            first = next(finding for finding in tally.wrong if (finding["kind"], finding["where"]) == (kind, where))
            lines.append(f"{name}: {count} x {kind} {where}: {first['detail'][:200]}\n    {first['repeat']}")
    return lines


def repeat(folder: Path, case: Case, keep: Path | None) -> int:
    """Run one case again, with its traceback."""
    workplace = Workplace(folder, Path(tempfile.mkdtemp(dir=folder.parent)))
    if keep is not None:
        with workplace.changed(case, Random(f"{case.reader} {case.seed} {case.number}")) as path:
            if path.is_dir():
                shutil.copytree(path, keep, dirs_exist_ok=True)
            else:
                shutil.copy2(path, keep)
            print(f"{keep}: {(path.parent / 'changed.json').read_text()}")
    _warm()
    outcome = workplace.run(case, trace=True)
    print(outcome)
    return 0 if outcome.right else 1


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("readers", nargs="*", metavar="READER", help=", ".join(READERS))
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seeds", type=Path, help="where the seeds are, or are to be made")
    options = parser.parse_args()
    names = [name for argument in options.readers for name in argument.split(",")] or list(READERS)
    if unknown := [name for name in names if name not in READERS]:
        parser.error(f"no reader {', '.join(unknown)}; known: {', '.join(READERS)}")
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="zeropass-fuzz-", dir=memory if memory.is_dir() else None) as scratch:
        folder = options.seeds or Path(scratch) / "seeds"
        os.environ["XDG_CACHE_HOME"] = str(Path(scratch) / "cache")
        if not folder.is_dir():
            maker = multiprocessing.get_context("fork").Process(target=seeds.make, args=(folder,))
            maker.start()
            maker.join()
            if maker.exitcode:
                raise SystemExit("the seeds could not be made")
        if options.case is not None:
            return repeat(folder, Case(names[0], options.seed, options.case), options.keep)
        started = time.monotonic()

        def say(name: str, tally: Tally) -> None:
            took = time.monotonic() - started
            print(
                f"{took:6.0f} s  {name}: {tally.cases:,} cases, {len(tally.wrong)} wrong", file=sys.stderr, flush=True
            )

        tallies = try_readers(folder, names, options.cases, options.seed, options.first, options.workers, say)
        took = time.monotonic() - started
    print(table(tallies), *findings(tallies), sep="\n")
    print(f"{sum(tally.cases for tally in tallies.values()):,} cases in {took:.0f} s with {options.workers} processes.")
    if options.json is not None:
        about = {"seed": options.seed, "first": options.first, "seconds": round(took), "workers": options.workers}
        options.json.write_text(
            json.dumps(about | {"readers": {n: asdict(t) for n, t in tallies.items()}}, indent=1) + "\n"
        )
    return int(any(tally.wrong for tally in tallies.values()))


if __name__ == "__main__":
    sys.exit(main())
