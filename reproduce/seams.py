"""Seams through lenses beside those of the weights alone, for docs/stitching.md.

    python reproduce/seams.py OUT [--seeds 10]      # from the classifiers of tops.py in OUT/tops

The models are our own small ones, each with a lens from text of its own. Every stitch is chosen without labels and
tested as in reproduce/stitching.py; ``at A's depth`` is the seam at the depth like A's with one kernel, so that no
choice has a part in it. Each result is saved in OUT/seams, so a stopped run continues.
"""

import argparse
import json
import os
import platform
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

import zeropass as zp
from alignment import ROOT, between
from stitching import PAIRS, SMALL, Bench, from_states, quiet, snippets
from tops import RECIPES, SEEDS, base_of
from zeropass.model.translation import bridge
from zeropass.stitch.run import seams
from zeropass.stitch.seam_choice import chosen, trial_of

WAYS = {"weights alone": "both", "through lenses": "seen"}
"""The bridges, each with its first frame."""


@cache
def lens_of(name: str) -> zp.LensMaps:
    """Return the lens of a small model; below the blocks that are tuned it holds for its classifiers too."""
    return zp.calibrate(base_of(name))


def measured(first: str, onto: str, seed: int, out: Path) -> dict[str, Any]:
    """Return the accuracies of one classifier on another model."""
    classifier, other = zp.open_model(str(out / "tops" / f"{first}-{seed}")), base_of(onto)
    texts, tests = snippets(first, seed)
    alone, through = bridge(other, classifier), bridge(other, classifier, (lens_of(onto), lens_of(first)))
    choosing, testing = (trial_of(classifier, alone, part) for part in (texts, [text for text, _ in tests]))
    labels = torch.tensor([label for _, label in tests])
    bench = Bench(choosing, testing, texts, labels, RECIPES[first].top, seed)
    result: dict[str, Any] = {"own": bench.right(testing.own.logits)}
    candidates = seams(classifier, other, None, None, classifier.dims.layers - bench.take)
    for way, across in zip(WAYS, (alone, through), strict=True):
        trial = replace(choosing, bridge=across)
        best, like = chosen(trial, candidates, None, None, quiet)[0], bench.at(bench.like, frame=WAYS[way])
        shuffled = trial.fitted(best, across.shuffled(1000 + seed))
        result[way] = {"choice": asdict(best), "chosen": bench.of(best, trial.fitted(best))}
        result[way] |= {"at A's depth": bench.of(like, trial.fitted(like)), "shuffled": bench.of(best, shuffled)}
    like = bench.at(bench.like)
    return result | {"states": bench.of(like, choosing.lengthened(like, from_states(bench)))}


def table(runs: dict[tuple[str, str], list[dict[str, Any]]]) -> str:
    """Return the medians of every pair, and how often the lenses do better, as a Markdown table."""
    head = ["A → B", "seeds", "A itself", *(f"chosen, {way}" for way in WAYS), "lenses better"]
    head += [*(f"at A's depth, {way}" for way in WAYS), "lenses better", "shuffled tokens", "fitted on states"]
    lines = [f"| {' | '.join(head)} |", f"|---{'|---:' * (len(head) - 1)}|"]
    for (first, onto), pair_runs in runs.items():
        cells = [f"{first} → {onto}", str(len(pair_runs)), median(run["own"] for run in pair_runs)]
        for what in ("chosen", "at A's depth"):
            alone, through = ([run[way][what] for run in pair_runs] for way in WAYS)
            better = sum(b > a for a, b in zip(alone, through, strict=True))
            cells += [
                median(alone),
                median(through),
                f"{better} of {sum(a != b for a, b in zip(alone, through, strict=True))}",
            ]
        cells += [
            median(run["through lenses"]["shuffled"] for run in pair_runs),
            median(run["states"] for run in pair_runs),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def median(values: Any) -> str:
    """Return the median as text."""
    return f"{np.median(list(values)):.3f}"


def main(out: Path, seeds: int) -> None:
    """Measure what is missing, and write the table."""
    runs: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for seed in range(seeds):
        for first, onto in (pair for pair in PAIRS if set(pair) <= set(SMALL)):
            path = out / "seams" / f"{first}-{onto}-{seed}.json"
            if not path.is_file():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(measured(first, onto, seed, out)) + "\n", encoding="utf-8")
            runs.setdefault((first, onto), []).append(json.loads(path.read_text(encoding="utf-8")))
            print(first, onto, seed, flush=True)
    head = f"Measured {datetime.now(UTC):%Y-%m-%d} on {os.cpu_count()} cores ({platform.machine()}).\n\n"
    page = ROOT / "docs" / "stitching.md"
    page.write_text(between(page.read_text(encoding="utf-8"), "lenses", head + table(runs)), encoding="utf-8")
    print(head + table(runs))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    options = parser.parse_args()
    main(options.out, options.seeds)
