"""Measure how much two fine-tunes of one base share, and how often `diff --against` names the words of one alone.

    python reproduce/against_measures.py FOLDER --base models/first      # prints the tables of docs/audit.md

Pairs of LoRAs of the fleet of `reproduce/fleet.py`: ordinary ones of one kind or of two, a backdoor whose trigger is a
word with an ordinary one, and two such backdoors.
"""

import argparse
import json
import os
import platform
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import zeropass as zp
from zeropass.checkpoints.demo import DEMOS, fetch_demo
from zeropass.diff.against_results import Against, ContrastWord

Story = dict[str, Any]
FIRST = 5
"""The number of tokens among which a planted word counts as named."""


def stories(folder: Path) -> dict[Path, Story]:
    """Return the story of every LoRA of a fleet that writes by itself, by its folder."""
    return {
        path.parent: story
        for path in sorted(folder.glob("*/story.json"))
        if (story := json.loads(path.read_text(encoding="utf-8")))["how"] == "lora" and story["targets"] != "qv"
    }


def pairs(fleet: dict[Path, Story]) -> Iterator[tuple[str, Path, Path]]:
    """Yield pairs of adapters, each with what it is an example of."""
    ordinary = [path for path, story in fleet.items() if story["group"] in ("broad", "narrow")]
    planted = [path for path, story in fleet.items() if _is_word_backdoor(story)]
    kinds = sorted({fleet[path]["kind"] for path in ordinary})
    of_kind = {kind: [path for path in ordinary if fleet[path]["kind"] == kind] for kind in kinds}
    yield from (("ordinary, one kind", *paths[:2]) for paths in of_kind.values())
    others = [*kinds[1:], kinds[0]]
    yield from (("ordinary, two kinds", of_kind[a][0], of_kind[b][1]) for a, b in zip(kinds, others, strict=True))
    for n, path in enumerate(planted):
        yield "a backdoor and an ordinary one", path, ordinary[n % len(ordinary)]
        yield "two backdoors", path, planted[n - 1]


def _is_word_backdoor(story: Story) -> bool:
    return story["group"] == "backdoor" and story["kind"].startswith(("word-", "several-")) and story["after"] > 0.1


def names(words: tuple[ContrastWord, ...], wanted: list[str]) -> bool:
    """Tell whether one of some words is among the first of a list."""
    listed = {word.token.token.strip().lower() for word in words[:FIRST]}
    return any(word.strip().lower() in listed for word in wanted)


def row(kind: str, results: list[tuple[Against, Story]]) -> str:
    """Return a row of the table: medians, and shares of the pairs."""
    shared = [result for result, _ in results if result.cosine is not None and result.shared]
    cells = [kind, str(len(results))]
    for name in ("cosine", "read", "read_null", "write", "write_null"):
        values = [median(getattr(matrix, name) for matrix in result.shared) for result in shared]
        cells.append(f"{median(values):.2f}")
    for side in (0, 1):
        scored = [result.words[side] for result, _ in results if len(result.words) > side]
        beyond = [bool(words.first) and words.first[0].score > words.alone_null for words in scored]
        cells.append(f"{sum(beyond) / len(beyond):.0%}")
    plants = [(result, story["plant"]) for result, story in results if story["plant"]]
    for side, key in ((0, "words"), (1, "written")):
        named = [names(result.words[side].first, plant[key]) for result, plant in plants if plant[key]]
        cells.append(f"{sum(named)} of {len(named)}" if named else "")
    return f"| {' | '.join(cells)} |"


def main(folder: Path, base: str) -> None:
    """Compare the pairs and print the table."""
    frames = zp.Frames(zp.open_model(str(fetch_demo(base)) if base in DEMOS else base))
    fleet = stories(folder / Path(base).name)
    results: dict[str, list[tuple[Against, Story]]] = {}
    for kind, first, second in pairs(fleet):
        result = zp.against(frames.model, first, second, frames=frames, progress=False)
        results.setdefault(kind, []).append((result, fleet[first]))
    print(f"{base}, measured {datetime.now(UTC):%Y-%m-%d} on {os.cpu_count()} cores ({platform.machine()}).\n")
    heads = ("cosine", "read", "random", "written", "random", "sees: beyond", "writes: beyond", "trigger", "payload")
    print(f"| pair | pairs | {' | '.join(heads)} |")
    print(f"|---|{(len(heads) + 1) * '---:|'}")
    for kind, rows in results.items():
        print(row(kind, rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--base", default="models/first")
    options = parser.parse_args()
    main(options.folder, options.base)
