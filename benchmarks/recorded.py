"""The regression guard: today's ratios beside the recorded ones (recorded.json). It marks and never fails.

Only what is measured against a baseline of the same run is compared, or what other work on the machine hardly moves
(processor time). A name says all that a value depends on, so that a partial run is not held against a whole one.
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
"""Marked if worse by more than this factor. Beside other work ratios move further than that: look at the load."""

Better = Literal["less", "more"]


@dataclass(frozen=True)
class Ratio:
    """One measured value: what it is, its unit, and which way is better."""

    name: str
    value: float
    unit: str
    better: Better


@dataclass(frozen=True)
class Recorded(Ratio):
    """A value as it was measured once: when, and on which machine."""

    date: str
    machine: str


def add_record(parser: argparse.ArgumentParser) -> None:
    """Give a benchmark the option ``--record``."""
    parser.add_argument("--record", action="store_true", help="write today's ratios to benchmarks/recorded.json")


def report(ratios: Sequence[Ratio], record: bool = False, path: Path = RECORDED) -> None:
    """Print today's ratios beside the recorded ones, and record them if asked; the last thing that a benchmark does.

    A file that cannot be read ends it with exit code 2, after what was measured is printed, and is never written over.
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
    """The ratios as a table of Markdown, each beside what is recorded under its name."""
    lines = ["| what | unit | recorded | today | today / recorded | |", "|---|---|---:|---:|---:|---|"]
    for one in ratios:
        old = known.get(one.name)
        if old is None:
            lines.append(f"| {one.name} | {one.unit} | – | {one.value:.3g} | – | not recorded |")
            continue
        factor = worse(one, old)
        mark = f"WORSE, {factor:.2f} times" if factor > WORSE else ""
        lines.append(
            f"| {one.name} | {one.unit} | {old.value:.3g} ({old.date}) | {one.value:.3g} "
            f"| {one.value / old.value:.2f} | {mark} |"
        )
    return "\n".join(lines) + "\n"


def worse(now: Ratio, then: Ratio) -> float:
    """How many times worse a value is than it was; under one if it is better. Infinite for a speed of nothing."""
    if now.better == "less":
        return now.value / then.value
    return then.value / now.value if now.value > 0 else math.inf


def read(path: Path = RECORDED) -> dict[str, Recorded]:
    """What is recorded, by name; nothing if there is no file. BadOption, naming the file, if it is spoiled."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        found = [Recorded(**row) for row in rows]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise _spoiled(path, str(error)) from error
    if not isinstance(rows, list):
        raise _spoiled(path, "it should hold a list")
    for one in found:
        if not _is_sound(one):
            raise _spoiled(path, f"{one.name!r} is not recorded with a positive number, a unit, a date and a machine")
    if len({one.name for one in found}) < len(found):
        raise _spoiled(path, "a name stands there twice")
    return {one.name: one for one in found}


def write(ratios: Sequence[Ratio], path: Path = RECORDED) -> None:
    """Record today's values in the place of those of the same names; the others stay. All are written, or none.

    Raises BadOption, naming the file, if it is spoiled, cannot be written, or a value is no positive number.
    """
    known, stamp = read(path), {"date": today(), "machine": shape()}
    for one in ratios:
        now = Recorded(**asdict(one), **stamp)
        if not _is_sound(now):
            raise BadOption(f"{one.name} was measured as {one.value}; only a positive number can be recorded.")
        known[one.name] = now
    rows = [asdict(known[name]) for name in sorted(known)]
    with atomic_write(path, BadOption) as temporary:
        temporary.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def _is_sound(one: Recorded) -> bool:
    value = one.value
    texts = (one.name, one.unit, one.date, one.machine)
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0
    return number and all(isinstance(text, str) and text for text in texts) and one.better in get_args(Better)


def _spoiled(path: Path, why: str) -> BadOption:
    return BadOption(f"{path} cannot be used ({why}). Take it back from git, or delete it and run with --record.")
