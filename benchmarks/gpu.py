"""On a GPU, in the shape of Llama-3.1-8B: lists of all feed-forward vectors, top pairs of all head maps, and a build.

    python benchmarks/gpu.py [--device cuda] [--layers N] [--maps N] [--build N] [--small]

Weights are random, made where they are used: the first two tables time the numerics, not the reading. Of each kind of
vectors N layers are looked through after the first, gate, up and value with both poles and the hits of each token. The
rest is taken to be like the last of them (tokens keep less of every layer). Of the maps N are searched. The products of
the same vectors in bfloat16 are timed in this run. Answers are compared with whole products before times. With
``--build`` a model of N layers is written to a temporary folder and built whole.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

import memory
import zeropass as zp
from machine import machine
from recorded import Ratio, add_record, report
from zeropass.errors import BadOption
from zeropass.model.model import usable_device
from zeropass.numerics import half
from zeropass.numerics.statistics import moments, standardised
from zeropass.numerics.token_index import TokenIndex
from zeropass.numerics.top_k import PreparedRows, prepare_rows, survey

ROLES, POLE, PAIRS = ("gate", "up", "value"), 50, 100
BLOCK = 2048


@dataclass(frozen=True)
class Shape:
    """The sizes of a model."""

    layers: int
    d: int
    neurons: int
    vocab: int
    heads: int
    head_dim: int


LLAMA = Shape(32, 4096, 14_336, 128_256, 32, 128)
SMALL = Shape(3, 64, 96, 3000, 2, 16)


def random(rows: int, columns: int, device: torch.device) -> Tensor:
    """Random rows whose norms differ by a third, as those of embeddings do."""
    made = torch.randn(rows, columns, device=device)
    return made * (0.3 * torch.randn(rows, 1, device=device)).exp()


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """How long something takes, until the device is done."""
    _wait(device)
    started = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Lists:
    """The rows of one frame, and the running hits."""

    def __init__(self, shape: Shape, device: torch.device) -> None:
        rows = random(shape.vocab, shape.d, device)
        self.moments = moments(rows)
        self.rows: PreparedRows = prepare_rows(rows - self.moments.mean.float(), self.moments.covariance)
        self.hits, self.ids = TokenIndex(shape.vocab, POLE, device), torch.arange(shape.vocab, device=device)
        self.shape, self.device, self.next = shape, device, 0

    def vectors(self) -> Tensor:
        """Vectors of a layer, ready to be multiplied."""
        made = torch.randn(self.shape.neurons, self.shape.d, device=self.device)
        return standardised(made, self.moments.of_scores(made)[1])

    def look(self, vectors: Tensor) -> None:
        """The lists of all vectors, and what the tokens keep."""
        self.found = survey(vectors, self.rows, POLE, self.ids, self.hits, self.next)
        self.next += len(vectors)

    def check(self, vectors: Tensor) -> float:
        """Share of the places of the first lists that hold what the whole product has there."""
        whole = (vectors[:64] @ self.rows.rows.T).sort(dim=1, descending=True, stable=True).indices[:, :POLE]
        return float((self.found.extremes.top_ids[:64] == whole).float().mean())


def products(vectors: Tensor, rows: Tensor) -> None:
    """The products of vectors and rows, some at a time into one place."""
    out = vectors.new_empty(BLOCK, len(rows))
    for part in torch.split(vectors, BLOCK):
        torch.mm(part, rows.T, out=out[: len(part)])


def lists(shape: Shape, layers: int, device: torch.device) -> list[Ratio]:
    """Time the lists of some layers, and print what all would take."""
    warm = Lists(replace(shape, vocab=shape.vocab // 4, neurons=min(shape.neurons, 2 * BLOCK)), device)
    warm.look(warm.vectors())  # kernels are compiled once
    kind, found, plain = Lists(shape, device), [], []
    rows16 = kind.rows.rows.bfloat16()
    for _ in range(layers + 1):
        sets = [kind.vectors() for _ in ROLES]
        halves = [one.bfloat16() for one in sets]
        plain.append(seconds(lambda: [products(one, rows16) for one in halves], device))  # noqa: B023
        found.append(seconds(lambda: [kind.look(one) for one in sets], device))  # noqa: B023
    same = kind.check(sets[-1])
    bare, later = min(plain) * shape.layers, found[-1]
    whole = sum(found) + later * (shape.layers - 1 - layers)
    way = "Triton" if half.fused(device, shape.vocab, POLE) else "torch"
    print(f"In {way}. Same ids at the same places as in the whole products: {same:.2%}.\n")
    print("| lists | bf16 products | first layer | last layer | all layers | ratio (target < 2) | up alone (10 s) |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    count = f"{shape.layers * shape.neurons * len(ROLES):,}"
    print(
        f"| {count} | {bare:.2f} s | {found[0]:.2f} s | {later:.3f} s | {whole:.1f} s | {whole / bare:.2f} "
        f"| {whole / len(ROLES):.1f} s |\n"
    )
    return [Ratio("gpu, lists of all neurons: against bf16 products", whole / bare, "times as long", "less")]


def maps(shape: Shape, count: int, device: torch.device) -> list[Ratio]:
    """Time the top pairs of some head maps, and print what all would take."""
    fall = 1 / torch.arange(1, shape.head_dim + 1, device=device)
    taken, visited = [], []
    for _ in range(count + 1):  # the first is not counted
        factors = [random(shape.vocab, shape.head_dim, device) * fall for _ in range(2)]
        found: list[zp.TopPairs] = []
        taken.append(seconds(lambda: found.append(zp.top_pairs(zp.Factored(*factors), PAIRS)), device))  # noqa: B023
        visited.append(found[0].visited)
    every = 2 * shape.layers * shape.heads
    mean, most = sum(taken[1:]) / count, max(taken[1:])
    print("| maps | a map: mean (most) | visited | all | target |")
    print("|---:|---:|---:|---:|---:|")
    print(
        f"| {every:,} | {mean * 1e3:.1f} ms ({most * 1e3:.1f}) | {sum(visited[1:]) / count:.2%} "
        f"| {mean * every:.1f} s | 60 s |\n"
    )
    return [Ratio("gpu, top pairs of all maps", mean * every, "s", "less")]


def build(shape: Shape, layers: int, device: torch.device) -> list[Ratio]:
    """Time the whole build of a model of some layers, and print what all layers would take."""
    sizes = shape.d, shape.neurons, shape.vocab, shape.heads, max(1, shape.heads // 4), shape.head_dim
    marks: list[tuple[float, str]] = []

    def note(what: str, _step: int, _steps: int) -> None:
        marks.append((time.perf_counter(), what))

    with tempfile.TemporaryDirectory(prefix="zeropass-gpu-") as name:
        folder = Path(name)
        size = memory.write_model(memory.Shape("llama", layers, *sizes), folder / "model", device=device)
        started = time.perf_counter()
        zp.build(zp.open_model(str(folder / "model"), device), folder / "atlas", zp.Options(), note)
        ended = time.perf_counter()
        atlas = sum(file.stat().st_size for file in (folder / "atlas").rglob("*") if file.is_file())
    jobs, tables = (next(at for at, what in marks if what.startswith(begin)) for begin in ("L0.", "tables"))
    each, once = (tables - jobs) / layers, ended - tables + jobs - started
    print("| file, layers | atlas | before the layers | a layer | tables | all layers | target |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    print(
        f"| {size / 1e9:.1f} GB, {layers} | {atlas / 1e9:.1f} GB | {jobs - started:.1f} s | {each:.1f} s "
        f"| {ended - tables:.1f} s | {once + each * shape.layers:.0f} s | 900 s |\n"
    )
    return [Ratio("gpu, build of all layers", once + each * shape.layers, "s", "less")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--layers", type=int, default=2, help="later layers whose vectors are looked through")
    parser.add_argument("--maps", type=int, default=8, help="head maps that are searched")
    parser.add_argument(
        "--build", type=int, default=0, help="layers of a model that is built whole; its file is written"
    )
    parser.add_argument("--small", action="store_true", help="a small shape, to see that it runs")
    add_record(parser)
    asked = parser.parse_args()
    try:
        device = usable_device(asked.device)
    except BadOption as error:
        parser.error(str(error))
    shape = SMALL if asked.small else LLAMA
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    print(f"{shape} on {name} ({machine()})\n")
    torch.manual_seed(0)
    ratios = [*lists(shape, asked.layers, device), *maps(shape, asked.maps, device)]
    if asked.build:
        ratios += build(shape, asked.build, device)
    if not asked.small:
        report(ratios, asked.record)


if __name__ == "__main__":
    main()
