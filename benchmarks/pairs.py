"""A benchmark of exact top pairs of real head maps against two simple methods, timed in one run.

    python benchmarks/pairs.py [MODEL] [--maps 24 | --all] [--frames token,output,paper]

The simple methods are fp32 tiles that fit the cache with a running threshold, and full rows of scores through
torch.topk. Their time hardly depends on the map, so a few maps of each frame are enough; ratios are to their median.
"""

import argparse
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

import zeropass as zp
from machine import machine
from recorded import Ratio, add_record, report
from zeropass.numerics.factored import Factored
from zeropass.numerics.top_pairs import top_pairs

FRAMES = ("token", "output", "paper")


@dataclass(frozen=True)
class Map:
    """One head map in one frame."""

    frame: str
    name: str
    product: Factored


def real_maps(model: str, frames: list[str], count: int | None) -> Iterator[Map]:
    """Yield ``count`` maps of each frame (all if None), spread over layers, heads and both circuits."""
    lens = zp.load(model, lens=None)
    dims = lens.model.dims
    places = [
        (layer, head, circuit) for layer in range(dims.layers) for head in range(dims.heads) for circuit in ("qk", "vo")
    ]
    chosen = places if count is None else [places[i * len(places) // count + i % 2] for i in range(count)]
    for frame in frames:
        for layer, head, circuit in chosen:
            name = f"L{layer}.attn.{head}.{circuit}"
            yield Map(frame, name, lens.head_map(name, frame=frame))


def tiled(product: Factored, k: int, tile: int = 1024) -> float:
    """Return the k-th score by fp32 tiles with a running threshold, the best simple method."""
    floor, best, buffer = float("-inf"), torch.empty(0), torch.empty(tile * tile)
    for a in product.left.split(tile):
        for b in product.right.split(tile):
            scores = torch.mm(a, b.T, out=buffer[: len(a) * len(b)].view(len(a), len(b)))
            if float(scores.amax()) > floor:
                best = torch.cat((best, scores[scores > floor]))
                best = best.topk(min(k, len(best))).values
                floor = float(best[-1]) if len(best) == k else floor
    return float(best[-1])


def full_rows(product: Factored, k: int, block: int = 256) -> float:
    """Return the k-th score by topk over full rows, for an eighth of the rows; the caller scales the time up."""
    best, buffer = torch.empty(0), torch.empty(block, product.shape[1])
    for a in product.left[: product.shape[0] // 8].split(block):
        top = torch.mm(a, product.right.T, out=buffer[: len(a)]).topk(k, dim=1).values
        best = torch.cat((best, top.flatten())).topk(k).values
    return float(best[-1])


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Return the shortest time of several runs."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def growth_mb(work: Callable[[], object]) -> float:
    """Return how far resident memory rises during some work (only new peaks count where there is no Linux)."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not status.exists():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        work()
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024

    def kilobytes(field: str) -> int:
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(field))

    reset.write_text("5")  # reset the high-water mark to the present size
    before = kilobytes("VmRSS")
    work()
    return (kilobytes("VmHWM") - before) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--maps", type=int, default=24, help="maps of each frame")
    parser.add_argument("--all", action="store_true", help="all 540 maps of each frame")
    parser.add_argument("--frames", default=",".join(FRAMES))
    parser.add_argument("-k", type=int, default=100)
    parser.add_argument("--plain", type=int, default=2, help="maps of each frame on which the plain ways are timed")
    parser.add_argument("--verbose", action="store_true", help="a line for every map")
    add_record(parser)
    options = parser.parse_args()
    ours: dict[str, list[tuple[float, float]]] = {}
    simple: dict[str, list[tuple[float, float]]] = {}
    memory = 0.0
    for head_map in real_maps(options.model, options.frames.split(","), None if options.all else options.maps):
        product, k = head_map.product, options.k
        if len(ours.get(head_map.frame, ())) < 3:
            memory = max(memory, growth_mb(lambda product=product, k=k: top_pairs(product, k)))
        result = top_pairs(product, k)
        duration = seconds(lambda product=product, k=k: top_pairs(product, k), 1 if options.all else 3)
        ours.setdefault(head_map.frame, []).append((duration, result.visited))
        if options.verbose:
            print(f"{head_map.frame} {head_map.name} {duration * 1e3:.1f} ms, visited {result.visited:.2%}", flush=True)
        if len(simple.setdefault(head_map.frame, [])) < options.plain:
            start = time.perf_counter()
            kth = tiled(product, k)
            middle = time.perf_counter()
            full_rows(product, k)
            simple[head_map.frame].append((middle - start, (time.perf_counter() - middle) * 8))
            if abs(kth - result.kth) > 1e-4 * abs(kth):
                raise SystemExit(f"{head_map.name}: the tiled way finds {kth}, top_pairs {result.kth}.")
    ratios = print_table(f"top {options.k} pairs of {options.model}", ours, simple, memory)
    report(ratios, options.record)


def print_table(
    title: str, ours: dict[str, list[tuple[float, float]]], simple: dict[str, list[tuple[float, float]]], memory: float
) -> list[Ratio]:
    """Print the measurements, and return the ratios of the median map."""
    ratios = []
    print(f"Exact top pairs of head maps ({machine()})\n")
    print("Times in ms; ratios of the median map (of the worst map). Targets: 12x tiles, 150x rows.\n")
    print(
        "| frame | maps | plain tiles | whole rows | ours: median (worst) | visited: median (most) | x tiles | x rows |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for frame, rows in ours.items():
        times, visited = zip(*rows, strict=True)
        tiles, full = (statistics.median(x) for x in zip(*simple[frame], strict=True))
        middle, worst = statistics.median(times), max(times)
        print(
            f"| {frame} | {len(rows)} | {tiles * 1e3:.0f} | {full * 1e3:.0f} | {middle * 1e3:.1f} ({worst * 1e3:.1f}) "
            f"| {statistics.median(visited):.2%} ({max(visited):.2%}) | {tiles / middle:.1f} ({tiles / worst:.1f}) "
            f"| {full / middle:.0f} ({full / worst:.0f}) |"
        )
        for method, duration in (("tiles", tiles), ("whole rows", full)):
            name = f"{title}, {frame}, median of {len(rows)} maps: against {method}"
            ratios.append(Ratio(name, duration / middle, "times as fast", "more"))
    print(f"Resident memory rose by at most {memory:.0f} MB during a search, above the factors (25 MB).\n")
    return ratios


if __name__ == "__main__":
    main()
