"""The tables and the figure of docs/stitching.md, from the results of stitching.py.

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
"""The number of bootstrap samples of an interval; the samples are of runs."""


def read(out: Path) -> dict[Pair, list[Run]]:
    """Return the runs of each pair, by seed."""
    runs: dict[Pair, list[Run]] = defaultdict(list)
    for path in sorted((out / "measured").glob("*.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        runs[run["classifier"], run["onto"]].append(run)
    return {pair: runs[pair] for pair in sorted(runs, key=_place)}


def _place(pair: Pair) -> tuple[bool, bool, Pair]:
    return pair[0].startswith("distil"), pair[0].startswith("minilm"), pair


def name(pair: Pair) -> str:
    """Return ``A → B``."""
    return " → ".join(SHORT.get(model, model) for model in pair)


def spread(values: Iterable[float]) -> str:
    """Return the median and quartiles."""
    low, middle, high = np.quantile(list(values), (0.25, 0.5, 0.75))
    return f"{middle:.3f} ({low:.3f}–{high:.3f})"


def table(head: list[str], lines: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table with numbers to the right."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *lines)) + "\n"


def main_table(runs: dict[Pair, list[Run]]) -> str:
    """Return the accuracy of the classifier itself, the chosen stitch and the controls, for each pair."""
    head = ["A → B", "seeds", "A itself", "stitched, chosen without labels", "beats its shuffled twin"]
    head += ["paper's kernel", "shuffled tokens", "random map", "no map", "seam fitted on states"]
    lines = []
    for pair, pair_runs in runs.items():
        chosen = [run["chosen"] for run in pair_runs]
        beats = sum(choice["accuracy"] > choice["shuffled"] for choice in chosen)
        trap_cells = [_trap(pair_runs, trap) for trap in ("random map", "no map", "fitted on states")]
        lines.append(
            [
                name(pair),
                str(len(pair_runs)),
                spread(run["own"] for run in pair_runs),
                f"**{spread(choice['accuracy'] for choice in chosen)}**",
                f"{beats} of {len(pair_runs)}",
                spread(_like(run, "paper") for run in pair_runs),
                spread(choice["shuffled"] for choice in chosen),
                *trap_cells,
            ]
        )
    return table(head, lines)


def _like(run: Run, curve: str) -> float:
    """Return the value of a curve at the depth that was chosen."""
    return float(run["curve"][curve][run["chosen"]["keep"] - 1])


def _trap(runs: list[Run], trap: str) -> str:
    values = [run["traps"][trap] for run in runs if trap in run["traps"]]
    return f"{np.median(values):.3f}" if values else "–"


def labels_table(runs: dict[Pair, list[Run]]) -> str:
    """Return the worth of the free classifier in labels."""
    head = ["A → B", "stitched", "10 labels", "100 labels", "1,000 labels", "A's answers to the texts"]
    return table(
        head,
        (
            [
                name(pair),
                f"{np.median([run['chosen']['accuracy'] for run in pair_runs]):.3f}",
                *(spread(run["labels"][key] for run in pair_runs) for key in ("10", "100", "1000", "answers")),
            ]
            for pair, pair_runs in runs.items()
        ),
    )


def traps_table(runs: dict[Pair, list[Run]]) -> str:
    """Return the effect of each trap (docs/stitching.md): median difference to the full stitch, runs that are worse."""
    baselines = {
        "not levelled": "ours",
        "no scale": "ours",
        "all layers kept, normed state": "all layers kept",
        "no norm at the seam": "ours",
        "embedded again": "ours",
    }
    lines = []
    for trap, baseline in baselines.items():
        cells = []
        for pair_runs in runs.values():
            differences = [run["traps"][trap] - run["traps"][baseline] for run in pair_runs if trap in run["traps"]]
            worse = sum(difference < 0 for difference in differences)
            cells.append(f"{np.median(differences):+.3f} ({worse}/{len(differences)} worse)" if differences else "–")
        lines.append([trap, *cells])
    return table(["left undone", *map(name, runs)], lines)


def kernels_table(runs: dict[Pair, list[Run]]) -> str:
    """Return mean accuracies by kernel and frame over all runs with a full grid, at the depth that was best there."""
    grid: dict[tuple[str, str], list[float]] = defaultdict(list)
    for pair_runs in runs.values():
        for run in pair_runs:
            for seam in run.get("tries", ()):
                if seam["keep"] == run["chosen"]["keep"]:
                    grid[seam["kernel"], seam["frame"]].append(seam["accuracy"])
    kernels = list(dict.fromkeys(kernel for kernel, _ in grid))
    frames = ("both", "token", "paper")
    lines = ([kernel, *(f"{np.mean(grid[kernel, frame]):.3f}" for frame in frames)] for kernel in sorted(kernels))
    return table(["kernel", *frames], lines)


def prediction_table(runs: dict[Pair, list[Run]]) -> str:
    """Return how the label-free measures rank the seams of one run and the chosen seams of all runs."""
    all_runs = [run for pair_runs in runs.values() for run in pair_runs]
    full_runs = [run for run in all_runs if "tries" in run]
    lines = []
    for measure in MEASURES:
        inside = interval(full_runs, partial(_within, measure=measure))
        across = interval(all_runs, partial(_across, measure=measure))
        lines.append([measure, inside, across])
    head = ["measure", f"seams of one run ({len(full_runs)} runs)", f"chosen seams of all runs ({len(all_runs)})"]
    return table(head, lines)


def _within(runs: list[Run], measure: str) -> float:
    correlations = [
        ranks([seam[measure] for seam in run["tries"]], [seam["accuracy"] for seam in run["tries"]]) for run in runs
    ]
    return float(np.nanmean(correlations))


def _across(runs: list[Run], measure: str) -> float:
    chosen = [run["chosen"] for run in runs]
    return ranks([choice[measure] for choice in chosen], [choice["accuracy"] for choice in chosen])


def ranks(x: list[float], y: list[float]) -> float:
    """Return Spearman's correlation; NaN where one side is constant."""
    return float("nan") if min(np.ptp(x), np.ptp(y)) == 0 else float(spearmanr(x, y).statistic)


def interval(runs: list[Run], statistic: Callable[[list[Run]], float]) -> str:
    """Return a statistic with its 95% bootstrap interval over runs."""
    rng = np.random.default_rng(0)
    samples = [statistic([runs[n] for n in rng.integers(0, len(runs), len(runs))]) for _ in range(DRAWS // 10)]
    low, high = np.nanquantile(samples, (0.025, 0.975))
    return f"{statistic(runs):.2f} ({low:.2f} to {high:.2f})"


def verdicts(runs: dict[Pair, list[Run]]) -> str:
    """Return the error of the predicted accuracy, and the number of verdicts that are trusted."""
    lines = []
    for pair, pair_runs in runs.items():
        chosen = [run["chosen"] for run in pair_runs]
        errors = [choice["expected"] - choice["accuracy"] for choice in chosen]
        known_errors = [choice["expected_known"] - choice["accuracy"] for choice in chosen]
        correlation = ranks([choice["expected"] for choice in chosen], [choice["accuracy"] for choice in chosen])
        lines.append(
            [
                name(pair),
                f"{np.mean(errors):+.3f}",
                f"{np.mean(known_errors):+.3f}",
                f"{np.mean(np.abs(known_errors)):.3f}",
                f"{correlation:.2f}",
                f"{sum(bool(choice['trusted']) for choice in chosen)} of {len(chosen)}",
                f"{min(choice['accuracy'] for choice in chosen):.3f}",
            ]
        )
    head = ["A → B", "expected − measured", "the same, A's accuracy known", "absolute", "Spearman over seeds"]
    return table([*head, "believed", "worst accuracy"], lines)


def transplants(runs: dict[Pair, list[Run]]) -> str:
    """Return the accuracy of A's change in B's own blocks."""
    lines = []
    for pair, pair_runs in runs.items():
        moved = [run["transplant"] for run in pair_runs if "transplant" in run]
        if not moved:
            continue
        layers = {json.dumps(transplant["layers"]) for transplant in moved}
        shown = ", ".join(f"{a} → {b}" for a, b in moved[0]["layers"]) if len(layers) == 1 else "differ"
        strengths = sorted({transplant["strength"] for transplant in moved})
        lines.append(
            [
                name(pair),
                str(len(moved)),
                shown,
                ", ".join(f"{strength:g}" for strength in strengths),
                spread(transplant["accuracy"] for transplant in moved),
                f"{np.mean([transplant['expected'] for transplant in moved]):.3f}",
                f"{np.mean([transplant['null'] for transplant in moved]):.3f}",
                f"{sum(bool(transplant['trusted']) for transplant in moved)} of {len(moved)}",
            ]
        )
    head = ["A → B", "seeds", "layers", "strengths chosen", "accuracy", "expected", "expected, shuffled", "believed"]
    return table(head, lines)


def figure(runs: dict[Pair, list[Run]]) -> Figure:
    """Draw the paper's figure: accuracy over how many layers of B are kept, median and quartiles over seeds."""
    drawing = Figure(figsize=(9, 5.2), layout="constrained")
    for axes, (pair, pair_runs) in zip(drawing.subplots(2, 3, sharey=True).flat, runs.items(), strict=False):
        keeps = range(1, len(pair_runs[0]["curve"]["ours"]) + 1)
        for curve, colour in DRAWN.items():
            low, median, high = np.quantile([run["curve"][curve] for run in pair_runs], (0.25, 0.5, 0.75), axis=0)
            axes.fill_between(keeps, low, high, color=colour, alpha=0.2, linewidth=0)
            axes.plot(keeps, median, color=colour, marker="o", markersize=3, label=curve)
        axes.axhline(
            float(np.median([run["own"] for run in pair_runs])), color="black", linewidth=0.8, label="A itself"
        )
        axes.axhline(0.5, color="black", linewidth=0.8, linestyle=":", label="chance")
        axes.set_title(name(pair), fontsize=10)
        axes.set_xticks(list(keeps))
        axes.set_xlabel("layers of B kept")
    first = drawing.axes[0]
    first.set_ylabel("accuracy")
    drawing.legend(*first.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    return drawing


def main(out: Path) -> None:
    """Write the document's tables and its figure."""
    runs = read(out)
    seconds = sum(run["seconds"] for pair_runs in runs.values() for run in pair_runs)
    stories = [json.loads(path.read_text(encoding="utf-8")) for path in (out / "tops").glob("*/story.json")]
    trained = sum(story["seconds"] for story in stories)
    summary = (
        f"Measured {datetime.now(UTC):%Y-%m-%d} on {os.cpu_count()} cores ({platform.machine()}): "
        f"{len(stories)} classifiers trained in {trained / 60:.0f} minutes of one core, "
        f"{sum(map(len, runs.values()))} runs measured in {seconds / 60:.0f}.\n\n"
    )
    parts = {
        "main": summary + main_table(runs),
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
