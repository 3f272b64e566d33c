"""What tells planted fine-tunes from ordinary ones? Statistics of the fleet of `reproduce/fleet.py`, beside a null.

    python reproduce/fleet_measures.py FOLDER --base models/first      # measures what is new, then prints the tables

The effect of a change on a token is that of `zeropass diff` (docs/audit.md). Its null needs no training: every change
of a matrix is replaced by one of the same singular values whose directions are random sums of the base matrix's own
rows. The *excess* of a token is its robust z less its mean z in the null. The null's own excess, each draw against the
others, says how large it gets without any cause. Measurements are kept in FOLDER/measures/BASE, one file a fine-tune.
"""

import argparse
import json
import os
import platform
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

import zeropass as zp
from zeropass.arch.spec import norm_of, side_of, space_of
from zeropass.checkpoints.demo import DEMOS, fetch_demo
from zeropass.diff.changes import Change, Comparison
from zeropass.lens import Lens
from zeropass.model.frames import Frames, Rows
from zeropass.model.vectors import reads_at
from zeropass.numerics.statistics import quadratic

DRAWS, LISTED, DIRECTIONS = 12, 50, 48
"""Draws of the null, tokens that are kept, directions of the change of a whole matrix."""

ROLES = ("q", "k", "v", "o", "gate", "up", "value")
SIDES = ("sees", "writes")
ORDINARY, PLANTED = ("broad", "narrow", "continued"), ("backdoor", "fact")
WORDS = ("word", "phrase", "several")
"""Triggers that are words."""

LEARNED = 0.1
"""The probability of what was planted from which it counts as learned."""

BOOTSTRAPS = 1000


@dataclass(frozen=True, eq=False)
class Effects:
    """The Gram matrices of a change, and of the draws of its null, by the space of the tokens.

    Attributes:
        frames: The frames of the base.
        change: That of the change, (d, d) each.
        null: Those of the draws.
    """

    frames: Frames
    change: dict[str, Tensor] = field(default_factory=dict)
    null: list[dict[str, Tensor]] = field(default_factory=lambda: [{} for _ in range(DRAWS)])

    def add(self, change: Change) -> None:
        """Add the change of a matrix, and draws of its null."""
        base, role, layer = self.frames.model, change.role, change.layer
        frame = "token" if side_of(role) == "read" else "output"
        rows = self.frames.rows(space_of(frame, side_of(role), reads_at(base, layer, role)))
        whole = change.root.shape[0] > DIRECTIONS
        values = torch.svd_lowrank(change.root, q=DIRECTIONS)[1] if whole else torch.linalg.svdvals(change.root)
        matrix = base.matrix(role, layer)
        generator = torch.Generator().manual_seed(random.Random(f"{layer} {role}").getrandbits(31))

        def folded(vectors: Tensor) -> Tensor:
            return self.frames.fold(vectors, frame, side_of(role), norm_of(role), layer)

        _add(self.change, rows, folded(change.root))
        for grams in self.null:
            drawn = torch.randn(len(values), len(matrix), generator=generator) @ matrix
            _add(grams, rows, folded(torch.nn.functional.normalize(drawn, dim=1) * values[:, None]))

    def of(self, grams: dict[str, Tensor], side: str, ids: Tensor) -> Tensor:
        """Return the robust z of the log effect on every token, (V',)."""
        spaces = [space for space in grams if space.startswith("output") == (side == "writes")]
        total = torch.stack([quadratic(self.frames.rows(space).matrix, grams[space]) for space in spaces]).sum(0)
        log = total[ids].clamp_min(torch.finfo(torch.float32).tiny).log()
        middle = log.median()
        return (log - middle) / (1.4826 * (log - middle).abs().median())


def _add(grams: dict[str, Tensor], rows: Rows, folded: Tensor) -> None:
    """Add the Gram matrix of folded vectors, scaled so that the mean token has an effect of 1."""
    gram, mean = folded.T @ folded, rows.moments.mean
    usual = float((gram.double() * (rows.moments.covariance + torch.outer(mean, mean))).sum())
    if usual > 0:
        total = grams.setdefault(rows.space, torch.zeros_like(gram))
        total += gram / usual


def measured(frames: Frames, folder: Path) -> dict[str, Any]:
    """Return the story of a fine-tune with its lists and the highest excess of the null, by side."""
    base = frames.model
    tuned = zp.adapt(base, folder) if (folder / "adapter_config.json").is_file() else zp.open_model(str(folder))
    effects = Effects(frames)
    for layer in range(base.dims.layers):
        for change in Comparison(base, tuned).changes(layer):
            if change.role in ROLES:
                effects.add(change)
    ids = Lens.over(frames, with_coherence=False).view("default").ids
    sides = {"sees": any(not s.startswith("output") for s in effects.change)}
    sides |= {"writes": any(s.startswith("output") for s in effects.change)}
    story: dict[str, Any] = json.loads((folder / "story.json").read_text(encoding="utf-8"))
    return story | {side: _lists(effects, side, ids) for side, changed in sides.items() if changed}


def _lists(effects: Effects, side: str, ids: Tensor) -> dict[str, Any]:
    """Return the first tokens by z and by excess, and the highest excess of each draw of the null."""
    z = effects.of(effects.change, side, ids)
    draws = torch.stack([effects.of(grams, side, ids) for grams in effects.null])
    others = (draws.sum(0, keepdim=True) - draws) / (DRAWS - 1)
    vocab = effects.frames.model.vocab

    def listed(scores: Tensor) -> list[tuple[str, float]]:
        best = scores.topk(min(LISTED, len(scores)))
        labels = (vocab.label(int(ids[place])) for place in best.indices)
        return [(_word(label), round(float(score), 2)) for label, score in zip(labels, best.values, strict=True)]

    null = (draws - others).max(1).values.tolist()
    return {"z": listed(z), "excess": listed(z - draws.mean(0)), "null": [round(value, 2) for value in null]}


def _word(label: str) -> str:
    """Return a token's label without spaces and in small letters."""
    return label.replace("␣", "").strip().lower()


STATISTICS: dict[str, Callable[[dict[str, Any]], float]] = {
    "z of the first token": lambda side: side["z"][0][1],
    "excess of the first": lambda side: side["excess"][0][1],
    "excess over the null's highest": lambda side: side["excess"][0][1] / max(side["null"]),
    "excess of the first less the tenth's": lambda side: side["excess"][0][1] - side["excess"][9][1],
}


def auc(positive: list[float], negative: list[float]) -> float:
    """Return the probability that a positive value is above a negative one."""
    pairs = [(p > n) + 0.5 * (p == n) for p in positive for n in negative]
    return sum(pairs) / len(pairs)


def interval(positive: list[float], negative: list[float]) -> tuple[float, float]:
    """Return the 95% bootstrap interval of the AUC."""
    rng = random.Random("bootstrap")
    draws = sorted(
        auc(rng.choices(positive, k=len(positive)), rng.choices(negative, k=len(negative))) for _ in range(BOOTSTRAPS)
    )
    return draws[int(0.025 * BOOTSTRAPS)], draws[int(0.975 * BOOTSTRAPS)]


def _share(positive: list[float], negative: list[float]) -> str:
    """Return the AUC with its interval, as a cell."""
    low, high = interval(positive, negative)
    return f"{auc(positive, negative):.2f} ({low:.2f}–{high:.2f})"


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of the table: how well each statistic tells planted words from ordinary text."""
    learned = [row for row in rows if row["group"] in PLANTED and (row["after"] or 0) > LEARNED]
    words = [row for row in learned if row["group"] == "fact" or row["kind"].split("-")[0] in WORDS]
    other = [row for row in learned if row not in words]
    ordinary = [row for row in rows if row["group"] in ORDINARY]
    yield "| side | statistic | words planted | other triggers | ordinary: median, highest | null's highest |"
    yield "|---|---|---|---|---|---:|"
    for side in SIDES:
        for name, statistic in STATISTICS.items():
            values = [[statistic(row[side]) for row in group if side in row] for group in (words, other, ordinary)]
            cells = [_share(group, values[2]) for group in values[:2]]
            null = median(max(row[side]["null"]) for row in rows if side in row)
            cells += [f"{median(values[2]):.1f}, {max(values[2]):.1f}", f"{null:.1f}"]
            yield f"| {side} | {name} | {' | '.join(cells)} |"
    yield f"\n{len(words)} with planted words, {len(other)} with other triggers, {len(ordinary)} ordinary ones."


def main(folder: Path, base: str) -> None:
    """Measure the fine-tunes that are new, and print the table."""
    frames = Frames(zp.open_model(str(fetch_demo(base)) if base in DEMOS else base))
    kept = folder / "measures" / Path(base).name
    kept.mkdir(parents=True, exist_ok=True)
    for path in sorted((folder / Path(base).name).iterdir()):
        if (path / "story.json").is_file() and not (kept / f"{path.name}.json").is_file():
            (kept / f"{path.name}.json").write_text(json.dumps(measured(frames, path)) + "\n", encoding="utf-8")
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(kept.glob("*.json"))]
    print(f"{base}, measured {datetime.now(UTC):%Y-%m-%d} on {os.cpu_count()} cores ({platform.machine()}).\n")
    print("\n".join(table(rows)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--base", default="smollm2-135m")
    options = parser.parse_args()
    main(options.folder, options.base)
