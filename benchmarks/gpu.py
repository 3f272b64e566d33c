"""GPU times in the shape of Llama-3.1-8B: lists of all feed-forward vectors, top pairs of all head maps, and a build.

    python benchmarks/gpu.py [--device cuda] [--layers N] [--maps N] [--build N] [--small]

Weights are random and made where they are used, so the first two tables time the numerics, not the reading. For each
role, the vectors of the first layer and of N later ones are surveyed: gate, up and value with both poles and the
inverted index of the tokens. The other layers are assumed to take as long as the last one, because the tokens keep less
of every further layer. N head maps are searched. The bfloat16 products of the same vectors are timed in the same run,
and some lists are compared with full products. With ``--build``, a model of N layers is written to a temporary folder,
a lens is calibrated on it, and it is built without the lens and through it.
"""

import argparse
import shutil
import sys
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
    """The dimensions of a model."""

    layers: int
    d: int
    neurons: int
    vocab: int
    heads: int
    head_dim: int


LLAMA = Shape(32, 4096, 14_336, 128_256, 32, 128)
SMALL = Shape(3, 64, 96, 3000, 2, 16)


def random(rows: int, columns: int, device: torch.device) -> Tensor:
    """Draw random rows whose norms differ by a third, as those of embeddings do."""
    directions = torch.randn(rows, columns, device=device)
    return directions * (0.3 * torch.randn(rows, 1, device=device)).exp()


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return how long some work takes, until the device is done."""
    _wait(device)
    started = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Lists:
    """The rows of one frame, and the inverted index of its tokens so far."""

    def __init__(self, shape: Shape, device: torch.device) -> None:
        rows = random(shape.vocab, shape.d, device)
        self.moments = moments(rows)
        self.rows: PreparedRows = prepare_rows(rows - self.moments.mean.float(), self.moments.covariance)
        self.index, self.ids = TokenIndex(shape.vocab, POLE, device), torch.arange(shape.vocab, device=device)
        self.shape, self.device, self.next = shape, device, 0

    def vectors(self) -> Tensor:
        """Draw the standardised vectors of a layer."""
        drawn = torch.randn(self.shape.neurons, self.shape.d, device=self.device)
        return standardised(drawn, self.moments.of_scores(drawn)[1])

    def update(self, vectors: Tensor) -> None:
        """Find the lists of all vectors, and update the inverted index."""
        self.lists = survey(vectors, self.rows, POLE, self.ids, self.index, self.next)
        self.next += len(vectors)

    def check(self, vectors: Tensor) -> float:
        """Return the share of places in the first lists that agree with the full product."""
        expected = (vectors[:64] @ self.rows.rows.T).sort(dim=1, descending=True, stable=True).indices[:, :POLE]
        return float((self.lists.extremes.top_ids[:64] == expected).float().mean())


def products(vectors: Tensor, rows: Tensor) -> None:
    """Multiply vectors with rows, block by block into one buffer."""
    out = vectors.new_empty(BLOCK, len(rows))
    for part in torch.split(vectors, BLOCK):
        torch.mm(part, rows.T, out=out[: len(part)])


def lists(shape: Shape, layers: int, device: torch.device) -> list[Ratio]:
    """Time the lists of some layers, and print how long all would take."""
    warm_up = Lists(replace(shape, vocab=shape.vocab // 4, neurons=min(shape.neurons, 2 * BLOCK)), device)
    warm_up.update(warm_up.vectors())  # compile the kernels before anything is timed
    frame, times, bare_times = Lists(shape, device), [], []
    rows16 = frame.rows.rows.bfloat16()
    for _ in range(layers + 1):
        sets = [frame.vectors() for _ in ROLES]
        halves = [vectors.bfloat16() for vectors in sets]
        bare_times.append(seconds(lambda: [products(vectors, rows16) for vectors in halves], device))  # noqa: B023
        times.append(seconds(lambda: [frame.update(vectors) for vectors in sets], device))  # noqa: B023
    agreement = frame.check(sets[-1])
    bare_total, later = min(bare_times) * shape.layers, times[-1]
    total = sum(times) + later * (shape.layers - 1 - layers)
    backend = "Triton" if half.fused(device, shape.vocab, POLE) else "torch"
    print(f"In {backend}. Same ids at the same places as in the whole products: {agreement:.2%}.\n")
    print("| lists | bf16 products | first layer | last layer | all layers | ratio (target < 2) | up alone (10 s) |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    count = f"{shape.layers * shape.neurons * len(ROLES):,}"
    print(
        f"| {count} | {bare_total:.2f} s | {times[0]:.2f} s | {later:.3f} s | {total:.1f} s | {total / bare_total:.2f} "
        f"| {total / len(ROLES):.1f} s |\n"
    )
    return [Ratio("gpu, lists of all neurons: against bf16 products", total / bare_total, "times as long", "less")]


def maps(shape: Shape, count: int, device: torch.device) -> list[Ratio]:
    """Time the top pairs of some head maps, and print how long all would take."""
    decay = 1 / torch.arange(1, shape.head_dim + 1, device=device)
    times, visited = [], []
    for _ in range(count + 1):  # the first is a warm-up
        factors = [random(shape.vocab, shape.head_dim, device) * decay for _ in range(2)]
        results: list[zp.TopPairs] = []
        times.append(seconds(lambda: results.append(zp.top_pairs(zp.Factored(*factors), PAIRS)), device))  # noqa: B023
        visited.append(results[0].visited)
    map_count = 2 * shape.layers * shape.heads
    mean, most = sum(times[1:]) / count, max(times[1:])
    print("| maps | a map: mean (most) | visited | all | target |")
    print("|---:|---:|---:|---:|---:|")
    print(
        f"| {map_count:,} | {mean * 1e3:.1f} ms ({most * 1e3:.1f}) | {sum(visited[1:]) / count:.2%} "
        f"| {mean * map_count:.1f} s | 60 s |\n"
    )
    return [Ratio("gpu, top pairs of all maps", mean * map_count, "s", "less")]


class Marks:
    """The seconds at which the steps of some long work were reported, first and last."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.starts: dict[str, float] = {}
        self.latest: dict[str, float] = {}

    def note(self, label: str, *_: int) -> None:
        """Note when a step is reported; this is a function that reports progress."""
        self.latest[label] = self.now()
        self.starts.setdefault(label, self.latest[label])

    def now(self) -> float:
        """Return the seconds since the start."""
        return time.perf_counter() - self.started

    def first(self, prefix: str) -> float:
        """Return when the first step with this prefix began."""
        return next(at for label, at in self.starts.items() if label.startswith(prefix))

    def __str__(self) -> str:
        return ", ".join(f"{label} {at:.1f} s" for label, at in self.starts.items())


def whole(shape: Shape, layers: int, device: torch.device) -> list[Ratio]:
    """Time the calibration and the builds of a model of some layers, and print how long all layers would take."""
    sizes = shape.d, shape.neurons, shape.vocab, shape.heads, max(1, shape.heads // 4), shape.head_dim
    with tempfile.TemporaryDirectory(prefix="zeropass-gpu-") as name:
        model, atlas = Path(name) / "model", Path(name) / "atlas"
        size = memory.write_model(memory.Shape("llama", layers, *sizes), model, device=device)
        print(f"A file of {size / 1e9:.1f} GB with {layers} layers.\n")
        lens, ratio = calibration(shape, model, device)
        print("| atlas | size | until the rows | rows | a layer | tables | all layers | target |")
        print("|---|---:|---:|---:|---:|---:|---:|---:|")
        ratios = [
            build(shape, model, atlas, device, *case)
            for case in (("by the weights alone", None), ("through a lens", lens))
        ]
    print()
    return [ratio, *ratios]


def calibration(shape: Shape, model: Path, device: torch.device) -> tuple[zp.LensMaps, Ratio]:
    """Time the calibration of a lens on text that the model writes; first its tokens are judged, as for a build."""
    marks, opened = Marks(), zp.open_model(str(model), device=device)
    _ = opened.judgement  # kept
    judged = marks.now()
    lens = zp.calibrate(opened, progress=marks.note)
    written, ended = marks.latest["writing text"], marks.now()
    every = judged + (ended - judged) / lens.facts.layers * shape.layers
    print("| calibration | judgement of tokens | text | layers | all layers |")
    print("|---|---:|---:|---:|---:|")
    print(
        f"| {lens.facts.tokens:,} tokens | {judged:.1f} s | {written - judged:.1f} s | {ended - written:.1f} s "
        f"| {every:.0f} s |\n"
    )
    return lens, Ratio("gpu, calibration of all layers", every, "s", "less")


def build(shape: Shape, model: Path, atlas: Path, device: torch.device, words: str, lens: zp.LensMaps | None) -> Ratio:
    """Time a build; its steps go to standard error."""
    marks = Marks()
    zp.build(zp.open_model(str(model), device=device), atlas, zp.Options(), marks.note, lens=lens)
    ended = marks.now()
    first, last = zp.open_atlas(atlas).layers
    size = sum(file.stat().st_size for file in atlas.rglob("*") if file.is_file())
    shutil.rmtree(atlas)
    rows, jobs, tables = map(marks.first, ("rows", "L0.", "tables"))
    each, once = (tables - jobs) / (last - first + 1), ended - tables + jobs
    every = once + each * shape.layers
    print(f"{words}: {marks}", file=sys.stderr)
    print(
        f"| {words} | {size / 1e9:.1f} GB | {rows:.1f} s | {jobs - rows:.1f} s | {each:.1f} s "
        f"| {ended - tables:.1f} s | {every:.0f} s | 900 s |"
    )
    return Ratio("gpu, build of all layers" + (f" {words}" if lens else ""), every, "s", "less")


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
    options = parser.parse_args()
    try:
        device = usable_device(options.device)
    except BadOption as error:
        parser.error(str(error))
    shape = SMALL if options.small else LLAMA
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    print(f"{shape} on {name} ({machine()})\n")
    torch.manual_seed(0)
    ratios = [*lists(shape, options.layers, device), *maps(shape, options.maps, device)]
    if options.build:
        ratios += whole(shape, options.build, device)
    if not options.small:
        report(ratios, options.record)


if __name__ == "__main__":
    main()
