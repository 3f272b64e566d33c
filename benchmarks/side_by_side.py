"""Peers: the same questions on the same weights and machine, answers compared before times (`make peers`).

Every way (benchmarks/peers/way_*.py) runs in a process of its own and reads SmolLM2-135M-Instruct from one folder,
float32, as transformers has it. Answers that differ by more than rounding end the run with exit code 1.
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
"""Seconds, and seconds of the processor: these hardly depend on who else is there."""

Answers = dict[str, dict[str, Any]]
"""What a way said to each question: ids and scores, seconds, processor seconds, peak memory in MB."""


@dataclass(frozen=True)
class Run:
    """One way: what it costs to import what it needs, and to give its first answer, from nothing; and its answers."""

    imported: Cost
    first: Cost | None
    answers: Answers


def run(line: list[str], model: Path, times: int) -> Run:
    """Ask a way everything, and start it some times more."""
    imported = start_up(line, times)
    answers = asked([*line, str(model)])
    first = start_up([*line, str(model), "neuron"], times) if "neuron" in answers else None
    return Run(imported, first, answers)


def asked(line: list[str]) -> Answers:
    """The answers of a process; SystemExit with the end of what it said if it fails."""
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        said = "\n".join(done.stderr.strip().splitlines()[-3:])
        raise SystemExit(f"{Path(line[1]).name} ended with status {done.returncode}:\n{said}")
    return {found["name"]: found for found in map(json.loads, done.stdout.splitlines())}


def start_up(line: list[str], times: int) -> Cost:
    """What a process costs from start to end: medians."""
    costs = []
    for _ in range(times):
        started, before = time.perf_counter(), children_busy()
        asked(line)
        costs.append((time.perf_counter() - started, children_busy() - before))
    seconds, busy = zip(*costs, strict=True)
    return statistics.median(seconds), statistics.median(busy)


def children_busy() -> float:
    """Processor seconds of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def compared(runs: dict[str, Run]) -> list[str]:
    """A line for each way and question on how far it agrees with ours; SystemExit where one does not."""
    lines, ours = [], runs[OURS].answers
    for way, name, theirs in others(runs):
        sides = [list(zip(side["ids"], side["scores"], strict=True)) for side in (ours[name], theirs)]
        try:
            lines.append(f"- {way}, {SHOWN[name].removesuffix(', a map')}: {agreement(*sides)}")
        except Differs as error:
            raise SystemExit(f"{way}, {name}: not the answer that {OURS} gives: {error}") from None
    return lines


def others(runs: dict[str, Run]) -> list[tuple[str, str, dict[str, Any]]]:
    """(way, question, answer) of all ways but ours."""
    return [(way, *answer) for way, found in runs.items() if way != OURS for answer in found.answers.items()]


def table(runs: dict[str, Run]) -> list[str]:
    """Times and memory, a row for each way."""
    lines = [
        f"| way | import | {' | '.join(SHOWN.values())} | peak MB: first answer / values / maps |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for way, found in runs.items():
        costs = (found.imported, found.first, *(cost(found.answers, name) for name in ("values", "vo", "qk")))
        shown = " | ".join("–" if one is None else f"{one[0]:.3g} ({one[1]:.3g})" for one in costs)
        peaks = (peak(found.answers, *names) for names in (("neuron",), ("values",), ("vo", "qk")))
        lines.append(f"| {way} | {shown} | {' / '.join(peaks)} |")
    return lines


def cost(answers: Answers, name: str) -> Cost | None:
    """What a question took; of head maps, a map."""
    if name not in answers:
        return None
    count = len(HEADS) if name in ("vo", "qk") else 1
    return answers[name]["seconds"] / count, answers[name]["busy"] / count


def peak(answers: Answers, *names: str) -> str:
    """The most memory of some questions, in MB."""
    found = [answers[name]["peak"] for name in names if name in answers]
    return f"{max(found):,.0f}" if found else "–"


def ratios(runs: dict[str, Run]) -> list[Ratio]:
    """How many times the processor time of ours another way takes."""
    ours = runs[OURS].answers
    return [
        Ratio(f"peers, {SHOWN[name]}: {way}", theirs["busy"] / ours[name]["busy"], "times ours", "more")
        for way, name, theirs in others(runs)
        if name != "neuron"
    ]


def versions(python: str, *packages: str) -> str:
    """Packages of an environment with their versions."""
    code = f"from importlib.metadata import version; print(*(f'{{p}} {{version(p)}}' for p in {packages}), sep=', ')"
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def write_model(folder: Path) -> None:
    """Write the demo model as transformers has it, whole or not at all."""
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
