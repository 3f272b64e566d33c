"""Peers: the same questions on the same weights and machine, with answers compared before times (`make peers`).

Every tool (benchmarks/peers/way_*.py) runs in a process of its own and reads SmolLM2-135M-Instruct in float32 from one
folder, as transformers has it. If answers differ by more than rounding, the run ends with exit code 1.
"""

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zeropass as zp
from copies import write_folder
from machine import called, machine
from peers.agreement import Differs, agreement
from peers.questions import HEADS, LAYERS, NEURON, PAIRS, TOKENS
from recorded import Ratio, add_record, report

MODEL = "smollm2-135m"
OURS, LENS = "zeropass", "TransformerLens"
WAYS = {
    OURS: "way_zeropass.py",
    "zeropass build": "way_atlas.py",
    LENS: "way_lens.py",
    "transformers + torch": "way_torch.py",
    "whole matrices": "way_whole.py",
}
SHOWN = {"neuron": "first answer", "values": "values", "vo": "vo, a map", "qk": "qk, a map"}
NOTE = f"""first answer: the {TOKENS} tokens that L{NEURON[0]}.ff.{NEURON[1]} writes for most, import included
values: the same for all neurons of layers {LAYERS.start} to {LAYERS.stop - 1}
vo, qk: the top {PAIRS} pairs of {", ".join(f"L{layer}.attn.{head}" for layer, head in HEADS)}
"""

Cost = tuple[float, float]
"""Seconds, and processor seconds, which hardly depend on other work."""

Answers = dict[str, dict[str, Any]]
"""The answers of a tool by question: ids and scores, seconds, processor seconds, peak memory in MB."""


@dataclass(frozen=True)
class Run:
    """The run of a tool: the costs of its imports and of its first answer, both from a cold start, and its answers."""

    imported: Cost
    first: Cost | None
    answers: Answers


def run(line: list[str], model: Path, times: int) -> Run:
    """Ask a tool all questions, and start it several more times."""
    imports = start_up(line, times)
    answers = answers_of([*line, str(model)])
    first = start_up([*line, str(model), "neuron"], times) if "neuron" in answers else None
    return Run(imports, first, answers)


def answers_of(line: list[str]) -> Answers:
    """Return the answers of a process; raise SystemExit with the end of its error output if it fails."""
    process = subprocess.run(line, capture_output=True, text=True, check=False)
    if process.returncode:
        message = "\n".join(process.stderr.strip().splitlines()[-3:])
        raise SystemExit(f"{Path(line[1]).name} ended with status {process.returncode}:\n{message}")
    return {answer["name"]: answer for answer in map(json.loads, process.stdout.splitlines())}


def start_up(line: list[str], times: int) -> Cost:
    """Return the median cost of a process from start to end."""
    costs = []
    for _ in range(times):
        started, before = time.perf_counter(), children_busy()
        answers_of(line)
        costs.append((time.perf_counter() - started, children_busy() - before))
    seconds, busy = zip(*costs, strict=True)
    return statistics.median(seconds), statistics.median(busy)


def children_busy() -> float:
    """Return the processor seconds of all child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def compared(runs: dict[str, Run]) -> list[str]:
    """Return a line on how far each tool agrees with ours on each question; raise SystemExit if one does not."""
    lines, ours = [], runs[OURS].answers
    for way, name, theirs in others(runs):
        sides = [list(zip(side["ids"], side["scores"], strict=True)) for side in (ours[name], theirs)]
        try:
            lines.append(f"- {way}, {SHOWN[name].removesuffix(', a map')}: {agreement(*sides)}")
        except Differs as error:
            raise SystemExit(f"{way}, {name}: not the answer that {OURS} gives: {error}") from None
    return lines


def others(runs: dict[str, Run]) -> list[tuple[str, str, dict[str, Any]]]:
    """Return (way, question, answer) for all tools but ours."""
    return [(way, *item) for way, tool_run in runs.items() if way != OURS for item in tool_run.answers.items()]


def table(runs: dict[str, Run]) -> list[str]:
    """Return the times and memory, in one row for each tool."""
    lines = [
        f"| way | import | {' | '.join(SHOWN.values())} | peak MB: first answer / values / maps |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for way, tool_run in runs.items():
        costs = (tool_run.imported, tool_run.first, *(cost(tool_run.answers, name) for name in ("values", "vo", "qk")))
        cells = " | ".join("–" if pair is None else f"{pair[0]:.3g} ({pair[1]:.3g})" for pair in costs)
        peaks = (peak(tool_run.answers, *names) for names in (("neuron",), ("values",), ("vo", "qk")))
        lines.append(f"| {way} | {cells} | {' / '.join(peaks)} |")
    return lines


def cost(answers: Answers, name: str) -> Cost | None:
    """Return the cost of a question; for head maps, the cost of one map."""
    if name not in answers:
        return None
    count = len(HEADS) if name in ("vo", "qk") else 1
    return answers[name]["seconds"] / count, answers[name]["busy"] / count


def peak(answers: Answers, *names: str) -> str:
    """Return the peak memory of some questions, in MB."""
    peaks = [answers[name]["peak"] for name in names if name in answers]
    return f"{max(peaks):,.0f}" if peaks else "–"


def ratios(runs: dict[str, Run]) -> list[Ratio]:
    """Return the processor time of the other tools in units of ours."""
    ours = runs[OURS].answers
    return [
        Ratio(f"peers, {SHOWN[name]}: {way}", theirs["busy"] / ours[name]["busy"], "times ours", "more")
        for way, name, theirs in others(runs)
        if name != "neuron"
    ]


def versions(python: str, *packages: str) -> str:
    """Return packages of an environment with their versions."""
    code = f"from importlib.metadata import version; print(*(f'{{p}} {{version(p)}}' for p in {packages}), sep=', ')"
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def write_model(folder: Path) -> None:
    """Write the demo model as transformers has it, completely or not at all."""
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    write_folder(zp.open_model(MODEL), part).rename(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(".peers"), help="where `make peers` puts things")
    parser.add_argument("--times", type=int, default=3, help="how often each way is started; medians are told")
    parser.add_argument("--only", choices=list(WAYS)[1:], action="append", help="beside ours only this (repeatable)")
    add_record(parser)
    options = parser.parse_args()
    lens, model = options.folder / "venv" / "bin" / "python", options.folder / MODEL
    chosen = [OURS, *(options.only or list(WAYS)[1:])]
    if LENS in chosen and not lens.exists():
        raise SystemExit(f"There is no {lens}: `make peers` makes it.")
    if not model.exists():
        write_model(model)
    print(f"Peers on {called(MODEL)} ({machine()})\n")
    print(f"{OURS}, transformers: {versions(sys.executable, 'zeropass', 'transformers', 'torch')}")
    if LENS in chosen:
        print(f"{LENS}: {versions(str(lens), 'transformer-lens', 'transformers', 'torch')}")
    print(f"\n{NOTE}", flush=True)
    runs = {}
    for way in chosen:
        python = str(lens) if way == LENS else sys.executable
        runs[way] = run([python, str(Path(__file__).parent / "peers" / WAYS[way])], model, options.times)
        print(f"{way} has answered.", flush=True)
    print("\n".join([f"\nAnswers beside those of {OURS}:\n", *compared(runs), ""]))
    print("\n".join(["Seconds, in brackets those of the processor:\n", *table(runs), ""]))
    report(ratios(runs), options.record)


if __name__ == "__main__":
    main()
