"""A truth planted in real weights: SmolLM2-135M-Instruct against a copy of itself, moved and blurred by growing noise.

    python reproduce/planted.py               # `make alignment`
    python reproduce/planted.py --whole       # all 30 x 30 layers by `align`, without noise: some 15 minutes

The copy computes the same function: norm gains folded, stream rotated, neurons, heads and the insides of heads permuted
(tests/twins.py; a test shows it). Then its blocks get noise, in units of each matrix' standard deviation. How many
neurons (within their layer) and heads (among all) are still found, by weights alone?
"""

import argparse
import os
import platform
import resource
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor

import zeropass as zp
from zeropass.align.pair import Pair
from zeropass.arch.spec import SELF_MAPS
from zeropass.checkpoints.demo import fetch_demo

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "reproduce"), str(ROOT / "tests")]

import twins  # noqa: E402
from alignment import between, methods  # noqa: E402

NOISE = (0.0, 0.5, 1.0, 2.0, 4.0)
HEADS = tuple(f"heads by {kind}" for kind in SELF_MAPS)


def found(pair: Pair, moved: twins.Moved, layers: tuple[int, ...]) -> dict[str, float]:
    """The share of neurons, by every method, and of heads of some layers that are found first."""
    shares: dict[str, list[Tensor]] = {}
    for layer in layers:
        for name, score in methods(pair):
            best = moved.neurons[layer][score((layer, layer)).argmax(1)]
            shares.setdefault(name, []).append(best == torch.arange(len(best)))
        for name, kind in zip(HEADS, SELF_MAPS, strict=True):
            depth, heads = pair.models[1].dims.layers, pair.models[1].dims.heads
            best = torch.cat([pair.head_cosines(kind, (layer, other)) for other in range(depth)], 1).argmax(1)
            right = (best // heads == layer) & (moved.heads[layer][best % heads] == torch.arange(len(best)))
            shares.setdefault(name, []).append(right)
    return {name: float(torch.cat(parts).float().mean()) for name, parts in shares.items()}


def whole(out: Path) -> None:
    """Align all layers, neurons and heads as the command does, and write what was found into docs/alignment.md."""
    model = zp.open_model(str(fetch_demo("smollm2-135m")))
    with tempfile.TemporaryDirectory() as scratch:
        path, moved = twins.twin(model, model.dims.layers, Path(scratch) / "twin")
        began = time.monotonic()
        alignment = zp.align_models(model, zp.open_model(str(path)), out)
        took = time.monotonic() - began
    right: dict[str, list[bool]] = {}
    for one in alignment.pairings:
        first, second = zp.parse(one.first), zp.parse(one.second)
        order, own, other = (
            (moved.neurons, first.index, second.index)
            if one.kind == "neuron"
            else (moved.heads, first.head, second.head)
        )
        same = first.layer == second.layer and int(order[second.layer][other]) == own
        right.setdefault(one.kind, []).append(same and one.mutual)
    depth = tuple(range(model.dims.layers))
    read = [one for one in alignment.layers if one.frame != "raw"]
    raw = [one for one in alignment.layers if one.frame == "raw"]
    fixed = [sum(a == b for a, b in enumerate(one.assigned)) for one in raw]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    shares = ", ".join(f"{sum(own):,} of {len(own):,} {kind}s" for kind, own in right.items())
    said = (
        f"Measured {datetime.now(UTC):%Y-%m-%d} on {os.cpu_count()} cores ({platform.machine()}): all "
        f"{len(depth)} x {len(depth)} layers in {took / 60:.0f} minutes, {peak:.1f} GiB at most.\n"
        f"Found, each the other's best: {shares} (a head counts for each of its two maps).\n"
        f"{sum(one.assigned == depth for one in read)} of {len(read)} layer maps are the identity; of the {len(raw)} "
        f"in raw space the best has {max(fixed)} of {len(depth)} layers in place.\n"
    )
    doc = ROOT / "docs" / "alignment.md"
    doc.write_text(between(doc.read_text(encoding="utf-8"), "whole", said), "utf-8")
    print(said)


def main(layers: tuple[int, ...]) -> None:
    """Measure, and write the table of docs/alignment.md."""
    began = time.monotonic()
    model = zp.open_model(str(fetch_demo("smollm2-135m")))
    lines: list[str] = []
    for noise in NOISE:
        with tempfile.TemporaryDirectory() as scratch:
            path, moved = twins.twin(model, model.dims.layers, Path(scratch) / "twin", noise=noise)
            pair = zp.pair_of(model, zp.open_model(str(path)))
            shares = found(pair, moved, layers)
        if not lines:
            lines = ["| noise | " + " | ".join(shares) + " |", "|---:|" + "---:|" * len(shares)]
        lines.append(f"| {noise:g} | " + " | ".join(f"{share:.4f}" for share in shares.values()) + " |")
        print(lines[-1], f"{time.monotonic() - began:.0f} s", flush=True)
    said = (
        f"Measured {datetime.now(UTC):%Y-%m-%d} on {os.cpu_count()} cores ({platform.machine()}) in "
        f"{time.monotonic() - began:.0f} s; layers {', '.join(map(str, layers))}, "
        f"{len(layers) * model.dims.neurons:,} neurons and {len(layers) * model.dims.heads} heads.\n\n"
    )
    path = ROOT / "docs" / "alignment.md"
    path.write_text(between(path.read_text(encoding="utf-8"), "planted", said + "\n".join(lines) + "\n"), "utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=(0, 7, 15, 22, 29))
    parser.add_argument("--whole", action="store_true", help="align everything, without noise")
    parser.add_argument("--out", type=Path, default=Path("alignment/planted"), help="where --whole writes")
    given = parser.parse_args()
    if given.whole:
        whole(given.out)
    else:
        main(tuple(given.layers))
