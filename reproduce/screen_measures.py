"""Measure what `zeropass screen` says of the fleet of `reproduce/fleet.py`. Tables for docs/audit.md.

    python reproduce/screen_measures.py FOLDER --base models/first --base models/wide --out OUT   # screens what is new

Which fine-tunes are called alike, and what thresholds from benign changes alter: those of the even-numbered ordinary
fine-tunes judge the odd-numbered ones.
"""

import argparse
import json
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import zeropass as zp
from fleet_measures import ORDINARY, PLANTED, group_of
from zeropass.diff.findings import judged
from zeropass.diff.random_changes import DRAWS
from zeropass.diff.screen_results import Screened

Rows = dict[str, tuple[Screened, dict[str, Any]]]
"""The changes that are screened, each with its story, by name."""


def screened(base: str, folder: Path, out: Path) -> Rows:
    """Screen the fine-tunes of a base, and return those that write, if only through values."""
    fleet = folder / Path(base).name
    screening = zp.screen(base, fleet, out=out / Path(base).name, thresholds=None, progress=False)
    rows = {row.name: row for row in screening if row.nearest}
    return {
        name: (row, json.loads((fleet / Path(name).name / "story.json").read_text(encoding="utf-8")))
        for name, row in rows.items()
    }


def alike(base: str, rows: Rows) -> str:
    """Return the line of a base: whether the nearest other fine-tune is made by the same recipe, and called alike."""
    recipes = {name: (story["group"], story["kind"]) for name, (_, story) in rows.items()}
    nearest = [(row.nearest[0], recipes[name] == recipes[row.nearest[0].name]) for name, (row, _) in rows.items()]
    same, others = ([near for near, is_same in nearest if is_same == wanted] for wanted in (True, False))
    cells = [
        Path(base).name,
        str(len(rows)),
        f"{median(row.usual or 0.0 for row, _ in rows.values()):.2f}",
        *(f"{len(group)}, {sum(bool(near.alike) for near in group)}" for group in (same, others)),
    ]
    return f"| {' | '.join(cells)} |"


def benign(base: str, rows: Rows) -> Iterator[str]:
    """Yield the lines of a base: what is said of odd-numbered fine-tunes by random changes, and by benign ones."""
    ordinary = [row for row, story in rows.values() if group_of(story) in ORDINARY and story["number"] % 2 == 0]
    limits = zp.thresholds_of(zp.Screening(base={"sha256": ""}, rows=tuple(ordinary), method={}))
    for title, groups in (("planted words", PLANTED), ("ordinary", ORDINARY)):
        odd = [row for row, story in rows.values() if group_of(story) in groups and story["number"] % 2]
        first = odd[0].finding
        again = [
            replace(
                row,
                finding=judged(
                    [row.finding.excess, *[row.finding.excess - row.finding.lead] * 9],
                    row.finding.chance,
                    DRAWS,
                    limits,
                ),
            )
            for row in odd
        ]
        cells = [
            Path(base).name,
            f"{title}, {len(odd)}",
            f"{first.threshold:.1f}, {first.lead_threshold:.1f}",
            _answers(odd),
            f"{limits.excess:.1f}, {limits.lead:.1f}",
            _answers(again),
        ]
        yield f"| {' | '.join(cells)} |"


def _answers(rows: Sequence[Screened]) -> str:
    """Return how many fine-tunes got each answer."""
    answers = [row.answer for row in rows]
    return ", ".join(f"{answers.count(name)} {name}" for name in ("narrow", "topic", "nothing"))


def main(folder: Path, bases: Sequence[str], out: Path) -> None:
    """Screen the fine-tunes that are new, and print the tables."""
    each = {base: screened(base, folder, out) for base in bases}
    print(f"Measured {datetime.now(UTC):%Y-%m-%d} on {os.cpu_count()} cores ({platform.machine()}).\n")
    print("| base | fine-tunes | usual similarity | nearest of one recipe, alike | of another, alike |")
    print("|---|---:|---:|---:|---:|")
    print("\n".join(alike(base, rows) for base, rows in each.items()))
    print("\n| base | odd-numbered | thresholds: excess, lead | answers | from benign changes | answers |")
    print("|---|---|---|---|---|---|")
    print("\n".join(line for base, rows in each.items() for line in benign(base, rows)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--base", action="append", help="a base; give it again for more")
    parser.add_argument("--out", type=Path, required=True, help="the folder for the screenings")
    options = parser.parse_args()
    main(options.folder, options.base or ["models/first"], options.out)
