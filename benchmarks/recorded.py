"""The regression guard: today's ratios next to the recorded ones (recorded.json). It marks and never fails.

Values are compared only if they are measured against a baseline of the same run, or if other work on the machine hardly
affects them (processor time). A name states everything that a value depends on, so a partial run is never compared with
a full one.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from machine import load, machine, shape, today
from zeropass._io.atomic import atomic_write
from zeropass.errors import BadOption, ZeropassError

RECORDED = Path(__file__).parent / "recorded.json"
WORSE = 1.25
"""Ratios worse by more than this factor are marked. Other work on the machine can move them further: check the load."""

Better = Literal["less", "more"]


@dataclass(frozen=True)
class Ratio:
    """A measured value: its name, its unit, and which direction is better."""

    name: str
    value: float
    unit: str
    better: Better


@dataclass(frozen=True)
class Recorded(Ratio):
    """A value as it was recorded, with its date and machine."""

    date: str
    machine: str


def add_record(parser: argparse.ArgumentParser) -> None:
    """Give a benchmark the option ``--record``."""
    parser.add_argument("--record", action="store_true", help="write today's ratios to benchmarks/recorded.json")


def report(ratios: Sequence[Ratio], record: bool = False, path: Path = RECORDED) -> None:
    """Print today's ratios next to the recorded ones, and record them on request; every benchmark ends with this.

    If the file cannot be read, the ratios are printed, the exit code is 2, and the file is never overwritten.
    """
    if not ratios:
        return
    problem, known = None, {}
    try:
        known = read(path)
    except BadOption as error:
        problem = error
    print(f"Beside what was recorded ({machine()}, load {load()})")
    print(f"Marked: worse by more than {WORSE:g} times\n")
    print(table(ratios, known))
    try:
        if problem is not None:
            raise problem
        if record:
            write(ratios, path)
            print(f"Recorded in {path.name}: {len(ratios)} values.\n")
    except ZeropassError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None


def table(ratios: Sequence[Ratio], known: dict[str, Recorded]) -> str:
    """Return the ratios as a Markdown table, each next to the value recorded under its name."""
    lines = ["| what | unit | recorded | today | today / recorded | |", "|---|---|---:|---:|---:|---|"]
    for ratio in ratios:
        old = known.get(ratio.name)
        if old is None:
            lines.append(f"| {ratio.name} | {ratio.unit} | – | {ratio.value:.3g} | – | not recorded |")
            continue
        factor = worse(ratio, old)
        mark = f"WORSE, {factor:.2f} times" if factor > WORSE else ""
        lines.append(
            f"| {ratio.name} | {ratio.unit} | {old.value:.3g} ({old.date}) | {ratio.value:.3g} "
            f"| {ratio.value / old.value:.2f} | {mark} |"
        )
    return "\n".join(lines) + "\n"


def worse(now: Ratio, then: Ratio) -> float:
    """Return how many times worse a value has become; below one if better, infinite for a speed of zero."""
    if now.better == "less":
        return now.value / then.value
    return then.value / now.value if now.value > 0 else math.inf


def read(path: Path = RECORDED) -> dict[str, Recorded]:
    """Return the recorded values by name, none if there is no file; raise BadOption if it is malformed."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        entries = [Recorded(**row) for row in rows]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise _malformed(path, str(error)) from error
    if not isinstance(rows, list):
        raise _malformed(path, "it should hold a list")
    for entry in entries:
        if not _is_sound(entry):
            raise _malformed(
                path, f"{entry.name!r} is not recorded with a positive number, a unit, a date and a machine"
            )
    if len({entry.name for entry in entries}) < len(entries):
        raise _malformed(path, "a name stands there twice")
    return {entry.name: entry for entry in entries}


def write(ratios: Sequence[Ratio], path: Path = RECORDED) -> None:
    """Record today's values in place of those with the same names, and keep the others. Write all or none.

    Raises:
        BadOption: The file, which is named, is malformed or cannot be written, or a value is not a positive number.
    """
    known, stamp = read(path), {"date": today(), "machine": shape()}
    for ratio in ratios:
        entry = Recorded(**asdict(ratio), **stamp)
        if not _is_sound(entry):
            raise BadOption(f"{ratio.name} was measured as {ratio.value}; only a positive number can be recorded.")
        known[ratio.name] = entry
    rows = [asdict(known[name]) for name in sorted(known)]
    with atomic_write(path, BadOption) as temporary:
        temporary.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def _is_sound(entry: Recorded) -> bool:
    value = entry.value
    texts = (entry.name, entry.unit, entry.date, entry.machine)
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0
    return number and all(isinstance(text, str) and text for text in texts) and entry.better in get_args(Better)


def _malformed(path: Path, reason: str) -> BadOption:
    return BadOption(f"{path} cannot be used ({reason}). Take it back from git, or delete it and run with --record.")
