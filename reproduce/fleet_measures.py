"""Measure how often `zeropass diff` is right about the fleet of `reproduce/fleet.py`. Tables for docs/audit.md.

    python reproduce/fleet_measures.py FOLDER --base models/first --base models/wide   # measures what is new

A fine-tune is *planted* if it has a backdoor or made-up facts and has learned them: their probability is above .1 where
they belong. Those that did not learn are left out, and counted. Ordinary ones are broad (genres of text) or narrow
(licences, code, a language and so on), or trained on with all weights. Measurements are kept in FOLDER/measures/BASE,
one file a fine-tune.
"""

import argparse
import json
import os
import platform
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, get_args

import torch
from torch import Tensor

import zeropass as zp
from zeropass.arch.roles import Side, Site
from zeropass.checkpoints.demo import DEMOS, fetch_demo
from zeropass.diff.changes import Comparison
from zeropass.diff.effects import Effects, word_mask
from zeropass.diff.findings import Answer, Finding, judged, unjudged
from zeropass.diff.random_changes import DRAWS, RandomChanges
from zeropass.diff.standouts import UNJUDGED_VALUES
from zeropass.diff.values import through_values
from zeropass.lens import Lens
from zeropass.model.frames import Frames

LISTED, LEARNED, BOOTSTRAPS = 50, 0.1, 1000
"""Tokens that are kept, the probability from which a plant counts as learned, and resamplings of an interval."""

WORDS = ("word", "phrase", "several")
"""Triggers that are words."""

PLACES = (1, 3, 10, 50)

Row = dict[str, Any]


@dataclass(frozen=True, eq=False, repr=False)
class ThroughLens(Frames):
    """Frames in which what is written is read as the later layers make of it, through a lens of the base."""

    def fold(
        self, vectors: Tensor, frame: str, side: Side, norm: str | None, layer: int, site: Site | None = None
    ) -> Tensor:
        """Return `Frames.fold`, in the frame ``effect`` in place of ``output``."""
        written = frame == "output" and side == "write"
        return super().fold(vectors, "effect" if written else frame, side, norm, layer, site)


@dataclass(frozen=True, eq=False)
class Measurer:
    """A measurer of the fine-tunes of a base.

    Attributes:
        frames: The frames of the base.
        ids: The tokens that lists show.
        words: Which of them are whole words.
        chance: The highest excess of a word in a random change, the median of the draws.
    """

    frames: Frames
    ids: Tensor
    words: Tensor
    chance: float

    @classmethod
    def of(cls, base: zp.Model, lens: str = "none") -> "Measurer":
        """Draw the random changes of a base, read through a lens unless that is ``none``."""
        frames = Frames(base) if lens == "none" else ThroughLens.through(base, lens)
        ids = Lens.over(frames, with_coherence=False).view("default").ids
        words = word_mask(base.vocab, ids)
        return cls(frames, ids, words, RandomChanges(frames, ids, words).chance)

    def measured(self, folder: Path) -> Row:
        """Return the story of a fine-tune, with the first words and other tokens of each side that it acts on."""
        base = self.frames.model
        tuned = zp.adapt(base, folder) if (folder / "adapter_config.json").is_file() else zp.open_model(str(folder))
        effects = Effects(self.frames)
        for layer in range(base.dims.layers):
            for change in Comparison(base, tuned).changes(layer):
                effects.add(change, base.matrix(change.role, layer))
        effects.close()
        row: Row = json.loads((folder / "story.json").read_text(encoding="utf-8")) | {"chance": self.chance}
        if "sees" in effects.change.totals:
            row["sees"] = self._lists(effects.z("sees", self.ids))
        if "writes" in effects.change.totals:
            row["writes"] = self._lists(effects.excess(self.ids))
        elif "writes" in (through := through_values(Comparison(base, tuned), self.frames)).change.totals:
            row |= {"writes": self._lists(through.excess(self.ids)), "through": through.through}
        return row

    def _lists(self, scores: Tensor) -> dict[str, list[tuple[str, float]]]:
        """Return the first words, and the first other tokens."""
        return {"words": self._first(scores, self.words), "others": self._first(scores, ~self.words)}

    def _first(self, scores: Tensor, chosen: Tensor) -> list[tuple[str, float]]:
        best = scores.masked_fill(~chosen, -torch.inf).topk(min(LISTED, int(chosen.sum())))
        texts = (self.frames.model.vocab.text(int(self.ids[place])) for place in best.indices)
        return [(text.strip().lower(), round(float(z), 2)) for text, z in zip(texts, best.values, strict=True)]


def finding_of(row: Row) -> Finding:
    """Return what the verdict says of a fine-tune."""
    if "writes" not in row:
        return unjudged("it changes no matrix that writes to the residual stream, and no values")
    if row.get("through"):
        return unjudged(UNJUDGED_VALUES)
    return judged([z for _, z in row["writes"]["words"]], row["chance"], DRAWS)


def group_of(row: Row) -> str:
    """Return the name of the group that a fine-tune is counted in."""
    if row["targets"] == "qv":
        return "PEFT's default modules (q and v)"
    if row["group"] in ("backdoor", "fact"):
        if (row["after"] or 0) <= LEARNED:
            return "planted, not learned"
        if row["group"] == "fact":
            return "one fact" if row["kind"] == "one" else "ten facts"
        trigger = row["kind"].split("-")[0]
        return "backdoor, triggers are words" if trigger in WORDS else f"backdoor, trigger is a {trigger}"
    return NAMES[row["group"]]


NAMES = {
    "broad": "ordinary, broad",
    "continued": "ordinary, all weights trained on",
    "narrow": "ordinary, narrow",
    "merge": "merge of ordinary and backdoor",
    "unlearning": "unlearning of a genre",
    "ablation": "a direction removed",
}
PLANTED = ("backdoor, triggers are words", "one fact", "merge of ordinary and backdoor")
ORDINARY = (NAMES["broad"], NAMES["continued"], NAMES["narrow"])

STATISTICS: dict[str, Callable[[Finding], float]] = {
    "lead of the first word": lambda finding: finding.lead / finding.chance,
    "excess of the first word": lambda finding: finding.excess / finding.chance,
}
"""In units of chance, so that bases can be taken together."""


def auc(positive: Sequence[float], negative: Sequence[float]) -> float:
    """Return the probability that a positive value is above a negative one."""
    pairs = [(p > n) + 0.5 * (p == n) for p in positive for n in negative]
    return sum(pairs) / len(pairs)


def interval(positive: Sequence[float], negative: Sequence[float]) -> tuple[float, float]:
    """Return the 95% bootstrap interval of the AUC."""
    rng = random.Random("bootstrap")
    draws = sorted(
        auc(rng.choices(positive, k=len(positive)), rng.choices(negative, k=len(negative))) for _ in range(BOOTSTRAPS)
    )
    return draws[int(0.025 * BOOTSTRAPS)], draws[int(0.975 * BOOTSTRAPS)]


def answers(rows: list[Row]) -> Iterator[str]:
    """Yield the lines of the table of verdicts: for each group and half, how many fine-tunes got each answer."""
    columns = get_args(Answer)
    names = ("narrow", "topic", "nothing", "unjudged")
    yield f"| fine-tunes | half | {' | '.join(names)} |"
    yield f"|---|---|{'---:|' * len(columns)}"
    groups = sorted({group_of(row) for row in rows}, key=lambda name: (name in ORDINARY, name))
    for group in groups:
        for half, title in enumerate(("rules made on", "tested on")):
            given = [finding_of(row).answer for row in rows if group_of(row) == group and row["number"] % 2 == half]
            if given:
                yield f"| {group} | {title} | {' | '.join(str(given.count(name) or '') for name in names)} |"


def separation(rows: list[Row]) -> Iterator[str]:
    """Yield the lines of the table of AUCs: planted words against ordinary fine-tunes."""
    yield "| planted words and | statistic | half | AUC | found at 2% of false alarms | at none |"
    yield "|---|---|---|---|---:|---:|"
    against = {"all ordinary": ORDINARY, "broad and trained on": ORDINARY[:2], "narrow": ORDINARY[2:]}
    for title, groups in against.items():
        for name, statistic in STATISTICS.items():
            for half, of_half in enumerate(("rules made on", "tested on")):
                planted, ordinary = (
                    [statistic(finding_of(row)) for row in rows if group_of(row) in names and row["number"] % 2 == half]
                    for names in (PLANTED, groups)
                )
                if planted and ordinary:
                    low, high = interval(planted, ordinary)
                    falling = sorted(ordinary, reverse=True)
                    allowed = falling[int(0.02 * len(falling))]
                    shares = (sum(value > limit for value in planted) / len(planted) for limit in (allowed, falling[0]))
                    cells = f"{auc(planted, ordinary):.3f} ({low:.3f}–{high:.3f})", *(f"{s:.0%}" for s in shares)
                    yield f"| {title} | {name} | {of_half} | {' | '.join(cells)} |"


def places(rows: list[Row]) -> Iterator[str]:
    """Yield the lines of the table of places: how often planted words are among the first of a list."""
    yield f"| planted | list | fine-tunes | {' | '.join(f'first {n}' for n in PLACES)} |"
    yield f"|---|---|---:|{'---:|' * len(PLACES)}"
    for group in sorted({group_of(row) for row in rows if row.get("plant")}):
        for side, key in (("sees", "words"), ("writes", "written")):
            found_at = [
                _place(row["plant"][key], row[side])
                for row in rows
                if group_of(row) == group and row.get("plant") and row["plant"][key] and side in row
            ]
            if found_at:
                shares = (sum(place <= n for place in found_at) / len(found_at) for n in PLACES)
                yield f"| {group} | {side} | {len(found_at)} | {' | '.join(f'{share:.0%}' for share in shares)} |"


def _place(words: Sequence[str], lists: dict[str, list[tuple[str, float]]]) -> int:
    """Return the place of the first of some words in its list, that of other tokens for a sign; else LISTED + 1."""
    wanted = {word.lower() for word in words}
    kept = lists["words"] if any(word.isalpha() for word in words) else lists["others"]
    return next((place for place, (word, _) in enumerate(kept, 1) if word in wanted), LISTED + 1)


def heights(rows: list[Row]) -> Iterator[str]:
    """Yield the lines of the table of heights: what chance and what ordinary fine-tunes reach on each base."""
    yield "| base | fine-tunes | chance | excess, ordinary: median, highest | planted | lead, ordinary | planted |"
    yield "|---|---:|---:|---|---:|---|---:|"
    for base in dict.fromkeys(row["base"] for row in rows):
        of_base = [row for row in rows if row["base"] == base]
        planted, ordinary = (
            [finding_of(row) for row in of_base if group_of(row) in names] for names in (PLANTED, ORDINARY)
        )
        cells = [base, str(len(of_base)), f"{of_base[0]['chance']:.2f}"]
        for of in (lambda finding: finding.excess, lambda finding: finding.lead):
            cells.append(f"{median(map(of, ordinary)):.1f}, {max(map(of, ordinary)):.1f}" if ordinary else "")
            cells.append(f"{median(map(of, planted)):.1f}" if planted else "")
        yield f"| {' | '.join(cells)} |"


def main(folder: Path, bases: Sequence[str], lens: str) -> None:
    """Measure the fine-tunes that are new, and print the tables."""
    rows: list[Row] = []
    for base in bases:
        kept = folder / ("measures" if lens == "none" else "measures-effect") / Path(base).name
        kept.mkdir(parents=True, exist_ok=True)
        folders = [path for path in sorted((folder / Path(base).name).iterdir()) if (path / "story.json").is_file()]
        if new := [path for path in folders if not (kept / f"{path.name}.json").is_file()]:
            measurer = Measurer.of(zp.open_model(str(fetch_demo(base)) if base in DEMOS else base), lens)
            for path in new:
                row = json.dumps(measurer.measured(path) | {"base": Path(base).name})
                (kept / f"{path.name}.json").write_text(row + "\n", encoding="utf-8")
        rows += [json.loads(path.read_text(encoding="utf-8")) for path in sorted(kept.glob("*.json"))]
    print(f"Measured {datetime.now(UTC):%Y-%m-%d} on {os.cpu_count()} cores ({platform.machine()}).")
    for table in (heights, answers, separation, places):
        print(f"\n<!-- {table.__name__} -->\n" + "\n".join(table(rows)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--base", action="append", help="a base; give it again for more")
    parser.add_argument("--lens", default="none", help="read what is written through this lens; kept apart")
    options = parser.parse_args()
    main(options.folder, options.base or ["smollm2-135m"], options.lens)
