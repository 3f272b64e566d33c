"""A planted truth in real weights: SmolLM2-135M-Instruct against a transformed copy of itself with growing noise.

    python reproduce/planted.py               # `make alignment`
    python reproduce/planted.py --whole       # all 30 x 30 layers by `align`, without noise: some 15 minutes

The copy computes the same function: norm gains folded, stream rotated, neurons, heads and the insides of heads permuted
(tests/twins.py; a test shows it). Then its blocks get noise, in units of each matrix's standard deviation. The table
shows how many neurons (within their layer) and heads (among all) are still found, by weights alone.
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
from zeropass.arch.roles import SELF_MAPS
from zeropass.checkpoints.demo import fetch_demo

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "reproduce"), str(ROOT / "tests")]

import twins  # noqa: E402
from alignment import between, methods  # noqa: E402

NOISE = (0.0, 0.5, 1.0, 2.0, 4.0)
HEADS = tuple(f"heads by {circuit}" for circuit in SELF_MAPS)


def matched_shares(pair: Pair, moved: twins.Moved, layers: tuple[int, ...]) -> dict[str, float]:
    """Return the share of neurons, by every method, and of heads of some layers that are found first."""
    shares: dict[str, list[Tensor]] = {}
    for layer in layers:
        for name, score in methods(pair):
            best = moved.neurons[layer][score((layer, layer)).argmax(1)]
            shares.setdefault(name, []).append(best == torch.arange(len(best)))
        for name, circuit in zip(HEADS, SELF_MAPS, strict=True):
            depth, heads = pair.models[1].dims.layers, pair.models[1].dims.heads
            best = torch.cat([pair.head_cosines(circuit, (layer, other)) for other in range(depth)], 1).argmax(1)
            right = (best // heads == layer) & (moved.heads[layer][best % heads] == torch.arange(len(best)))
            shares.setdefault(name, []).append(right)
    return {name: float(torch.cat(results).float().mean()) for name, results in shares.items()}


def align_all(out: Path) -> None:
    """Align all layers, neurons and heads as the command does, and write the results into docs/alignment.md."""
    model = zp.open_model(str(fetch_demo("smollm2-135m")))
    with tempfile.TemporaryDirectory() as scratch:
        path, moved = twins.twin(model, model.dims.layers, Path(scratch) / "twin")
        began = time.monotonic()
        alignment = zp.align_models(model, zp.open_model(str(path)), out, lenses=(None, None))
        seconds = time.monotonic() - began
    right: dict[str, list[bool]] = {}
    for pairing in alignment.pairings:
        first, second = zp.parse(pairing.first), zp.parse(pairing.second)
        permutation, first_index, second_index = (
            (moved.neurons, first.index, second.index)
            if pairing.kind == "neuron"
            else (moved.heads, first.head, second.head)
        )
        same = first.layer == second.layer and int(permutation[second.layer][second_index]) == first_index
        right.setdefault(pairing.kind, []).append(same and pairing.mutual)
    depth = tuple(range(model.dims.layers))
    by_tokens = [layer_map for layer_map in alignment.layers if layer_map.frame != "raw"]
    identical = sum(layer_map.assigned == depth for layer_map in by_tokens)
    raw = [layer_map for layer_map in alignment.layers if layer_map.frame == "raw"]
    fixed = [sum(a == b for a, b in enumerate(layer_map.assigned)) for layer_map in raw]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    shares = ", ".join(f"{sum(matches):,} of {len(matches):,} {kind}s" for kind, matches in right.items())
    summary = (
        f"Measured {datetime.now(UTC):%Y-%m-%d} on {os.cpu_count()} cores ({platform.machine()}): all "
        f"{len(depth)} x {len(depth)} layers in {seconds / 60:.0f} minutes, {peak:.1f} GiB at most.\n"
        f"Found, each the other's best: {shares} (a head counts for each of its two maps).\n"
        f"{identical} of {len(by_tokens)} layer maps are the identity; of the {len(raw)} "
        f"in raw space the best has {max(fixed)} of {len(depth)} layers in place.\n"
    )
    doc = ROOT / "docs" / "alignment.md"
    doc.write_text(between(doc.read_text(encoding="utf-8"), "whole", summary), "utf-8")
    print(summary)


def main(layers: tuple[int, ...]) -> None:
    """Measure, and write the table of docs/alignment.md."""
    began = time.monotonic()
    model = zp.open_model(str(fetch_demo("smollm2-135m")))
    lines: list[str] = []
    for noise in NOISE:
        with tempfile.TemporaryDirectory() as scratch:
            path, moved = twins.twin(model, model.dims.layers, Path(scratch) / "twin", noise=noise)
            pair = zp.pair_of(model, zp.open_model(str(path)), (None, None))
            shares = matched_shares(pair, moved, layers)
        if not lines:
            lines = ["| noise | " + " | ".join(shares) + " |", "|---:|" + "---:|" * len(shares)]
        lines.append(f"| {noise:g} | " + " | ".join(f"{share:.4f}" for share in shares.values()) + " |")
        print(lines[-1], f"{time.monotonic() - began:.0f} s", flush=True)
    summary = (
        f"Measured {datetime.now(UTC):%Y-%m-%d} on {os.cpu_count()} cores ({platform.machine()}) in "
        f"{time.monotonic() - began:.0f} s; layers {', '.join(map(str, layers))}, "
        f"{len(layers) * model.dims.neurons:,} neurons and {len(layers) * model.dims.heads} heads.\n\n"
    )
    path = ROOT / "docs" / "alignment.md"
    path.write_text(between(path.read_text(encoding="utf-8"), "planted", summary + "\n".join(lines) + "\n"), "utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=(0, 7, 15, 22, 29))
    parser.add_argument("--whole", action="store_true", help="align everything, without noise")
    parser.add_argument("--out", type=Path, default=Path("alignment/planted"), help="where --whole writes")
    options = parser.parse_args()
    if options.whole:
        align_all(options.out)
    else:
        main(tuple(options.layers))
