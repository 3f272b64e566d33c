"""The tables and the figure of docs/stitching.md, from what stitching.py measured.

python reproduce/stitching_tables.py OUT
"""

import argparse
import json
import os
import platform
from collections import defaultdict
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from alignment import between
from tops import ROOT
from zeropass.evidence.figures import svg

Run = dict[str, Any]
Pair = tuple[str, str]
SHORT = {"minilm-l6": "L6", "minilm-l3": "L3", "distilbert-tagger": "DistilBERT"}
MEASURES = ("expected", "agreement", "consensus", "confidence", "fit")
DRAWN = {"ours": "tab:blue", "paper": "tab:orange", "shuffled": "tab:gray"}
DRAWS = 2000
"""Bootstrap samples of an interval; whole runs are drawn."""


def read(out: Path) -> dict[Pair, list[Run]]:
    """Runs of each pair, by seed."""
    found: dict[Pair, list[Run]] = defaultdict(list)
    for path in sorted((out / "measured").glob("*.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        found[run["classifier"], run["onto"]].append(run)
    return {pair: found[pair] for pair in sorted(found, key=_place)}


def _place(pair: Pair) -> tuple[bool, bool, Pair]:
    return pair[0].startswith("distil"), pair[0].startswith("minilm"), pair


def name(pair: Pair) -> str:
    """``A → B``."""
    return " → ".join(SHORT.get(one, one) for one in pair)


def spread(values: Iterable[float]) -> str:
    """Median and quartiles."""
    low, middle, high = np.quantile(list(values), (0.25, 0.5, 0.75))
    return f"{middle:.3f} ({low:.3f}–{high:.3f})"


def table(head: list[str], lines: Iterable[Iterable[str]]) -> str:
    """A table in Markdown, numbers to the right."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *lines)) + "\n"


def main_table(runs: dict[Pair, list[Run]]) -> str:
    """Each pair: the classifier itself, the stitch that was chosen, the controls."""
    head = ["A → B", "seeds", "A itself", "stitched, chosen without labels", "beats its shuffled twin"]
    head += ["paper's kernel", "shuffled tokens", "random map", "no map", "seam fitted on states"]
    lines = []
    for pair, own in runs.items():
        chosen = [run["chosen"] for run in own]
        beats = sum(one["accuracy"] > one["shuffled"] for one in chosen)
        traps = [_trap(own, what) for what in ("random map", "no map", "fitted on states")]
        lines.append(
            [
                name(pair),
                str(len(own)),
                spread(run["own"] for run in own),
                f"**{spread(one['accuracy'] for one in chosen)}**",
                f"{beats} of {len(own)}",
                spread(_like(run, "paper") for run in own),
                spread(one["shuffled"] for one in chosen),
                *traps,
            ]
        )
    return table(head, lines)


def _like(run: Run, what: str) -> float:
    """A curve at the depth that was chosen."""
    return float(run["curve"][what][run["chosen"]["keep"] - 1])


def _trap(runs: list[Run], what: str) -> str:
    values = [run["traps"][what] for run in runs if what in run["traps"]]
    return f"{np.median(values):.3f}" if values else "–"


def labels_table(runs: dict[Pair, list[Run]]) -> str:
    """What the free classifier is worth in labels."""
    head = ["A → B", "stitched", "10 labels", "100 labels", "1,000 labels", "A's answers to the texts"]
    return table(
        head,
        (
            [
                name(pair),
                f"{np.median([run['chosen']['accuracy'] for run in own]):.3f}",
                *(spread(run["labels"][key] for run in own) for key in ("10", "100", "1000", "answers")),
            ]
            for pair, own in runs.items()
        ),
    )


def traps_table(runs: dict[Pair, list[Run]]) -> str:
    """Each trap of design.md §4 left alone: median difference to the whole stitch, and how many runs are worse."""
    kinds = {
        "not levelled": "ours",
        "no scale": "ours",
        "all layers kept, normed state": "all layers kept",
        "no norm at the seam": "ours",
        "embedded again": "ours",
    }
    lines = []
    for what, whole in kinds.items():
        cells = []
        for own in runs.values():
            off = [run["traps"][what] - run["traps"][whole] for run in own if what in run["traps"]]
            worse = sum(one < 0 for one in off)
            cells.append(f"{np.median(off):+.3f} ({worse}/{len(off)} worse)" if off else "–")
        lines.append([what, *cells])
    return table(["left undone", *map(name, runs)], lines)


def kernels_table(runs: dict[Pair, list[Run]]) -> str:
    """Kernel by frame: mean accuracy over all runs whose whole grid was tested, at the depth that was best there."""
    grid: dict[tuple[str, str], list[float]] = defaultdict(list)
    for own in runs.values():
        for run in own:
            for one in run.get("tries", ()):
                if one["keep"] == run["chosen"]["keep"]:
                    grid[one["kernel"], one["frame"]].append(one["accuracy"])
    kernels = list(dict.fromkeys(kernel for kernel, _ in grid))
    frames = ("both", "token", "paper")
    lines = ([kernel, *(f"{np.mean(grid[kernel, frame]):.3f}" for frame in frames)] for kernel in sorted(kernels))
    return table(["kernel", *frames], lines)


def prediction_table(runs: dict[Pair, list[Run]]) -> str:
    """How the label-free measures rank: among the seams of one run, and among the chosen ones of all runs."""
    everything = [run for own in runs.values() for run in own]
    whole = [run for run in everything if "tries" in run]
    lines = []
    for measure in MEASURES:
        inside = interval(whole, partial(_within, measure=measure))
        across = interval(everything, partial(_across, measure=measure))
        lines.append([measure, inside, across])
    head = ["measure", f"seams of one run ({len(whole)} runs)", f"chosen seams of all runs ({len(everything)})"]
    return table(head, lines)


def _within(runs: list[Run], measure: str) -> float:
    found = [ranks([one[measure] for one in run["tries"]], [one["accuracy"] for one in run["tries"]]) for run in runs]
    return float(np.nanmean(found))


def _across(runs: list[Run], measure: str) -> float:
    chosen = [run["chosen"] for run in runs]
    return ranks([one[measure] for one in chosen], [one["accuracy"] for one in chosen])


def ranks(x: list[float], y: list[float]) -> float:
    """Spearman's correlation; NaN where one side is always the same."""
    return float("nan") if min(np.ptp(x), np.ptp(y)) == 0 else float(spearmanr(x, y).statistic)


def interval(runs: list[Run], statistic: Callable[[list[Run]], float]) -> str:
    """A statistic with its 95% bootstrap interval over runs."""
    draw = np.random.default_rng(0)
    found = [statistic([runs[n] for n in draw.integers(0, len(runs), len(runs))]) for _ in range(DRAWS // 10)]
    low, high = np.nanquantile(found, (0.025, 0.975))
    return f"{statistic(runs):.2f} ({low:.2f} to {high:.2f})"


def verdicts(runs: dict[Pair, list[Run]]) -> str:
    """How far the prediction is off, and what was believed."""
    lines = []
    for pair, own in runs.items():
        chosen = [run["chosen"] for run in own]
        off = [one["expected"] - one["accuracy"] for one in chosen]
        known = [one["expected_known"] - one["accuracy"] for one in chosen]
        order = ranks([one["expected"] for one in chosen], [one["accuracy"] for one in chosen])
        lines.append(
            [
                name(pair),
                f"{np.mean(off):+.3f}",
                f"{np.mean(known):+.3f}",
                f"{np.mean(np.abs(known)):.3f}",
                f"{order:.2f}",
                f"{sum(bool(one['trusted']) for one in chosen)} of {len(chosen)}",
                f"{min(one['accuracy'] for one in chosen):.3f}",
            ]
        )
    head = ["A → B", "expected − measured", "the same, A's accuracy known", "absolute", "Spearman over seeds"]
    return table([*head, "believed", "worst accuracy"], lines)


def transplants(runs: dict[Pair, list[Run]]) -> str:
    """A's change in B's own blocks."""
    lines = []
    for pair, own in runs.items():
        moved = [run["transplant"] for run in own if "transplant" in run]
        if not moved:
            continue
        layers = {json.dumps(one["layers"]) for one in moved}
        shown = ", ".join(f"{a} → {b}" for a, b in moved[0]["layers"]) if len(layers) == 1 else "differ"
        strengths = sorted({one["strength"] for one in moved})
        lines.append(
            [
                name(pair),
                str(len(moved)),
                shown,
                ", ".join(f"{one:g}" for one in strengths),
                spread(one["accuracy"] for one in moved),
                f"{np.mean([one['expected'] for one in moved]):.3f}",
                f"{np.mean([one['null'] for one in moved]):.3f}",
                f"{sum(bool(one['trusted']) for one in moved)} of {len(moved)}",
            ]
        )
    head = ["A → B", "seeds", "layers", "strengths chosen", "accuracy", "expected", "expected, shuffled", "believed"]
    return table(head, lines)


def figure(runs: dict[Pair, list[Run]]) -> Figure:
    """The paper's figure: accuracy over how many layers of B are kept, median and quartiles over seeds."""
    drawn = Figure(figsize=(9, 5.2), layout="constrained")
    for axes, (pair, own) in zip(drawn.subplots(2, 3, sharey=True).flat, runs.items(), strict=False):
        keeps = range(1, len(own[0]["curve"]["ours"]) + 1)
        for what, colour in DRAWN.items():
            low, middle, high = np.quantile([run["curve"][what] for run in own], (0.25, 0.5, 0.75), axis=0)
            axes.fill_between(keeps, low, high, color=colour, alpha=0.2, linewidth=0)
            axes.plot(keeps, middle, color=colour, marker="o", markersize=3, label=what)
        axes.axhline(float(np.median([run["own"] for run in own])), color="black", linewidth=0.8, label="A itself")
        axes.axhline(0.5, color="black", linewidth=0.8, linestyle=":", label="chance")
        axes.set_title(name(pair), fontsize=10)
        axes.set_xticks(list(keeps))
        axes.set_xlabel("layers of B kept")
    first = drawn.axes[0]
    first.set_ylabel("accuracy")
    drawn.legend(*first.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    return drawn


def main(out: Path) -> None:
    """Write the document's tables and its figure."""
    runs = read(out)
    seconds = sum(run["seconds"] for own in runs.values() for run in own)
    stories = [json.loads(path.read_text(encoding="utf-8")) for path in (out / "tops").glob("*/story.json")]
    trained = sum(story["seconds"] for story in stories)
    said = (
        f"Measured {datetime.now(UTC):%Y-%m-%d} on {os.cpu_count()} cores ({platform.machine()}): "
        f"{len(stories)} classifiers trained in {trained / 60:.0f} minutes of one core, "
        f"{sum(map(len, runs.values()))} runs measured in {seconds / 60:.0f}.\n\n"
    )
    parts = {
        "main": said + main_table(runs),
        "labels": labels_table(runs),
        "traps": traps_table(runs),
        "kernels": kernels_table(runs),
        "prediction": prediction_table(runs),
        "verdicts": verdicts(runs),
        "transplants": transplants(runs),
    }
    path = ROOT / "docs" / "stitching.md"
    text = path.read_text(encoding="utf-8")
    for mark, new in parts.items():
        text = between(text, mark, new)
    path.write_text(text, encoding="utf-8")
    folder = ROOT / "docs" / "stitching"
    folder.mkdir(exist_ok=True)
    with style.context("default"):
        (folder / "accuracy.svg").write_text(
            svg(figure(runs), "accuracy", "Accuracy over layers kept, for six pairs of models") + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    main(parser.parse_args().out)
