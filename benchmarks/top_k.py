"""The cost and gain of quantized products in the search for lists, on vectors of SmolLM2-135M-Instruct.

A quantized product gives a score up to a bound. The table shows the bound, in deviations of a list's scores, and how
many scores must be examined for each that a pole keeps, with vectors and rows turned (`top_k`) and as they are; the
error of the kurtosis, which comes from quantized scores; and the time of a survey relative to the full product in
float32 of the same run: for the first survey, with an empty inverted index, and for one after 100,000 random vectors.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

import zeropass as zp
from machine import called, machine
from recorded import Ratio, add_record, report
from zeropass.atlas.build import kept_tokens
from zeropass.atlas.jobs import Runner, Scored
from zeropass.atlas.plan import plan_jobs
from zeropass.numerics.statistics import kurtosis
from zeropass.numerics.token_index import TokenIndex
from zeropass.numerics.top_k import Quantized, quantize, survey, turned_by

SETS = ((2, "gate", "token"), (15, "gate", "token"), (15, "value", "output"), (20, "o", "output"), (27, "up", "output"))
SEEN = 100_000


def sets(model: zp.Model, folder: Path) -> Iterator[tuple[str, Scored, Tensor]]:
    """Yield the name and the scored vectors of each set, with the ids of the tokens."""
    options = zp.Options()
    runner = Runner(model, folder, options, plan_jobs(model, options), kept_tokens(model, options, model.judgement))
    (folder / "rows").mkdir()
    for space in ("token", "output.read", "output.write"):
        runner.spaces.write(runner.frames, space)
    for layer, role, frame in SETS:
        yield f"L{layer}.{role} {frame}", runner.scored(runner.vectors(layer, role), frame), runner.kept


def bound(vectors: Quantized, rows: Quantized) -> Tensor:
    """Return the largest possible error of each score, (n, V')."""
    size, residual = rows.bounds[:, 1], rows.bounds[:, 2]
    return vectors.bounds[:, 2, None] * size + vectors.bounds[:, 1, None] * residual


def examined(z: Tensor, error: Tensor, k: int) -> float:
    """Return how many scores could be among the k highest of a list, for each that is."""
    floor = z.topk(k, dim=1).values[:, -1:]
    return float((z + error >= floor).float().sum(1).mean()) / k


def seconds(work: Callable[[], object]) -> float:
    """Return the shortest of three times."""
    times = []
    for _ in range(3):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def token_index(tokens: int, k: int, filled: bool) -> TokenIndex:
    """Return an empty inverted index, or one as the strongest of `SEEN` normal numbers would leave it."""
    index = TokenIndex(tokens, k)
    if filled:
        floor = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(1 - k / SEEN / 2))
        index.threshold.fill_(floor)
        index.keys.copy_(index.threshold.view(torch.int32).long()[:, None] << 32)
        index.seen = SEEN
    return index


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--k", type=int, default=50)
    add_record(parser)
    arguments = parser.parse_args()
    k, ratios = arguments.k, []
    print(f"Whole numbers in the place of float32, {called(arguments.model)} ({machine()})\n")
    print("| 512 vectors | bound: plain | turned | looked at: plain | turned | kurtosis off | survey: first | later |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="zeropass-bench-") as folder:
        for name, scored, ids in sets(zp.open_model(arguments.model), Path(folder)):
            vectors, ready = scored.unit[:512].contiguous(), scored.space.prepared
            if ready.turned is None:
                raise SystemExit("There is nothing to compare without numba: pip install 'zeropass[fast]'.")
            z, identity = vectors @ ready.rows.T, turned_by(torch.eye(vectors.shape[1]))
            turned = bound(quantize(vectors, ready.turned.turn), ready.turned.quantized)
            plain = bound(quantize(vectors, identity), quantize(ready.rows, identity))
            bounds = [float(margin.median()) for margin in (plain, turned)]
            examined_counts = [examined(z, margin, k) for margin in (plain, turned)]
            errors = (survey(vectors, ready, k, ids, token_index(len(ids), k, True), 0).kurtosis - kurtosis(z)).abs()
            errors /= 1 + kurtosis(z).abs()
            del turned, plain
            product = seconds(lambda: torch.mm(vectors, ready.rows.T, out=z))  # noqa: B023
            relative_times = [
                seconds(lambda: survey(vectors, ready, k, ids, token_index(len(ids), k, filled), 0)) / product  # noqa: B023
                for filled in (False, True)
            ]
            ratios.append(Ratio(f"survey of {name}: against its product", relative_times[1], "times as long", "less"))
            print(
                f"| {name} | {bounds[0]:.2f} | {bounds[1]:.2f} | {examined_counts[0]:.1f} | {examined_counts[1]:.1f} "
                f"| {errors.median():.2%} ({errors.max():.2%}) | {relative_times[0]:.2f} | {relative_times[1]:.2f} |"
            )
    print()
    report(ratios, arguments.record)


if __name__ == "__main__":
    main()
