"""Time exact top pairs of real head maps against two plain ways, in one run, and print the ratios.

    python benchmarks/pairs.py SmolLM2-135M-Instruct.Q4_1.gguf [--maps 24 | --all] [--frames token,normed,paper]

Plain ways: fp32 tiles that fit the cache with a running threshold; whole rows of scores through torch.topk.
They take the same time for every map but for noise, so a few maps of each frame are enough; ratios are to their median.
"""

import argparse
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import torch
from torch import Tensor

from zeropass.factored import Factored
from zeropass.pairs import top_pairs

FRAMES = ("token", "normed", "paper")
HEADS, GROUPS, LAYERS, WIDTH = 9, 3, 30, 64


@dataclass(frozen=True)
class Map:
    """One head map in one frame."""

    frame: str
    name: str
    product: Factored


def normed(rows: Tensor, gain: Tensor | float = 1.0) -> Tensor:
    return rows * torch.rsqrt(rows.pow(2).mean(1, keepdim=True) + 1e-5) * gain


def token_rows(embedding: Tensor, weight: Callable[[str], Tensor]) -> Tensor:
    """Return the tokens as they leave block 0 alone (design.md §2, frame ``token``)."""
    value = weight("blk.0.attn_v").view(GROUPS, WIDTH, -1).repeat_interleave(HEADS // GROUPS, 0).flatten(0, 1)
    seen = embedding + normed(embedding, weight("blk.0.attn_norm")) @ value.T @ weight("blk.0.attn_output").T
    gate, up, down = (weight(f"blk.0.ffn_{name}").T.contiguous() for name in ("gate", "up", "down"))
    blocks = []
    for block in seen.split(2048):
        read = normed(block, weight("blk.0.ffn_norm"))
        blocks.append(block + (torch.nn.functional.silu(read @ gate) * (read @ up)) @ down)
    return torch.cat(blocks)


def real_maps(path: Path, frames: list[str], count: int) -> Iterator[Map]:
    """Yield ``count`` maps of each frame, spread over layers, heads and both kinds (540 are all)."""
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}

    def weight(name: str) -> Tensor:
        tensor = tensors[f"{name}.weight"]
        return torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy())

    embedding = weight("token_embd")
    plain = {"paper": embedding, "normed": normed(embedding), "token": normed(token_rows(embedding, weight))}
    for frame in frames:
        for index in range(count):
            place = index * LAYERS * HEADS * 2 // count
            layer, head, kind = place // (HEADS * 2), place // 2 % HEADS, ("qk", "vo")[(place + index) % 2]
            # Block 0 reads the embedding itself.
            rows = plain["normed" if frame == "token" and layer == 0 else frame]
            gain = 1.0 if frame == "paper" else weight(f"blk.{layer}.attn_norm")
            written = embedding if frame == "paper" else embedding * weight("output_norm")
            own, shared = (slice(x * WIDTH, (x + 1) * WIDTH) for x in (head, head * GROUPS // HEADS))
            if kind == "qk":
                left, right = (
                    (rows * gain) @ weight(f"blk.{layer}.attn_{name}")[part].T
                    for name, part in (("q", own), ("k", shared))
                )
            else:
                left = (rows * gain) @ weight(f"blk.{layer}.attn_v")[shared].T
                right = written @ weight(f"blk.{layer}.attn_output")[:, own]
            right = right if frame == "paper" else right - right.mean(0)
            yield Map(frame, f"L{layer}.attn.{head}.{kind}", Factored(left.contiguous(), right.contiguous()))


def tiled(product: Factored, k: int, tile: int = 1024) -> float:
    """Return the k-th score by fp32 tiles with a running threshold: the honest plain way."""
    floor, best, buffer = float("-inf"), torch.empty(0), torch.empty(tile * tile)
    for a in product.left.split(tile):
        for b in product.right.split(tile):
            scores = torch.mm(a, b.T, out=buffer[: len(a) * len(b)].view(len(a), len(b)))
            if float(scores.amax()) > floor:
                best = torch.cat((best, scores[scores > floor]))
                best = best.topk(min(k, len(best))).values
                floor = float(best[-1]) if len(best) == k else floor
    return float(best[-1])


def whole_rows(product: Factored, k: int, block: int = 256) -> float:
    """Return the k-th score by topk over whole rows of scores; an eighth of the rows, scaled up by the caller."""
    best, buffer = torch.empty(0), torch.empty(block, product.shape[1])
    for a in product.left[: product.shape[0] // 8].split(block):
        top = torch.mm(a, product.right.T, out=buffer[: len(a)]).topk(k, dim=1).values
        best = torch.cat((best, top.flatten())).topk(k).values
    return float(best[-1])


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Return the shortest time of some runs."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def growth_mb(work: Callable[[], object]) -> float:
    """Return how far resident memory rises above its level before some work (Linux; elsewhere only new peaks count)."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not status.exists():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        work()
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024

    def kilobytes(field: str) -> int:
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(field))

    reset.write_text("5")  # sets the high-water mark to what is resident now
    before = kilobytes("VmRSS")
    work()
    return (kilobytes("VmHWM") - before) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--maps", type=int, default=24, help="maps of each frame")
    parser.add_argument("--all", action="store_true", help="all 540 maps of each frame")
    parser.add_argument("--frames", default=",".join(FRAMES))
    parser.add_argument("-k", type=int, default=100)
    parser.add_argument("--plain", type=int, default=2, help="maps of each frame on which the plain ways are timed")
    parser.add_argument("--verbose", action="store_true", help="a line for every map")
    options = parser.parse_args()
    count = LAYERS * HEADS * 2 if options.all else options.maps
    ours: dict[str, list[tuple[float, float]]] = {}
    plain: dict[str, list[tuple[float, float]]] = {}
    memory = 0.0
    for head_map in real_maps(options.model, options.frames.split(","), count):
        product, k = head_map.product, options.k
        memory = max(memory, growth_mb(lambda product=product, k=k: top_pairs(product, k)))
        result = top_pairs(product, k)
        took = seconds(lambda product=product, k=k: top_pairs(product, k), 3)
        ours.setdefault(head_map.frame, []).append((took, result.visited))
        if options.verbose:
            print(f"{head_map.frame} {head_map.name} {took * 1e3:.1f} ms, visited {result.visited:.2%}", flush=True)
        if len(plain.setdefault(head_map.frame, [])) < options.plain:
            start = time.perf_counter()
            kth = tiled(product, k)
            middle = time.perf_counter()
            whole_rows(product, k)
            plain[head_map.frame].append((middle - start, (time.perf_counter() - middle) * 8))
            if abs(kth - result.kth) > 1e-4 * abs(kth):
                raise SystemExit(f"{head_map.name}: the tiled way finds {kth}, top_pairs {result.kth}.")
    report(ours, plain, memory)


def report(
    ours: dict[str, list[tuple[float, float]]], plain: dict[str, list[tuple[float, float]]], memory: float
) -> None:
    print(f"\n{torch.get_num_threads()} threads; times in ms; median (worst map) of the ratios of each frame")
    print(
        "| frame | maps | plain tiles | whole rows | ours: median (worst) | visited: median (most) | x tiles | x rows |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for frame, rows in ours.items():
        times, visited = zip(*rows, strict=True)
        tiles, whole = (statistics.median(x) for x in zip(*plain[frame], strict=True))
        middle, worst = statistics.median(times), max(times)
        print(
            f"| {frame} | {len(rows)} | {tiles * 1e3:.0f} | {whole * 1e3:.0f} | {middle * 1e3:.1f} ({worst * 1e3:.1f}) "
            f"| {statistics.median(visited):.2%} ({max(visited):.2%}) | {tiles / middle:.1f} ({tiles / worst:.1f}) "
            f"| {whole / middle:.0f} ({whole / worst:.0f}) |"
        )
    print(f"Resident memory rose by at most {memory:.0f} MB during a search, above the factors (25 MB).")


if __name__ == "__main__":
    main()
