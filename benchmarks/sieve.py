"""What rounding to whole numbers costs and saves where lists are looked for, on vectors of SmolLM2-135M-Instruct.

A product of whole numbers tells a score up to a bound. The bound, in deviations of a list's scores, and how many
scores must be looked at for each that a pole keeps, with vectors and rows turned (`top_k`) and as they are;
how far the kurtosis is off, which comes from rounded scores; and the time of a survey against the whole product in
float32, timed in this run: the first of all, when no token has met a vector, and one after 100,000 random vectors.
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
MET = 100_000


def sets(model: zp.Model, folder: Path) -> Iterator[tuple[str, Scored, Tensor]]:
    """The sets, ready to be multiplied, with the ids of the tokens."""
    options = zp.Options()
    runner = Runner(model, folder, options, plan_jobs(model, options), kept_tokens(model, options, model.judgement))
    (folder / "rows").mkdir()
    for space in ("token", "output.read", "output.write"):
        runner.spaces.write(runner.frames, space)
    for layer, role, frame in SETS:
        yield f"L{layer}.{role} {frame}", runner.scored(runner.vectors(layer, role), frame), runner.kept


def bound(vectors: Quantized, rows: Quantized) -> Tensor:
    """The most that each score (n, V') can be off."""
    size, lost = rows.bounds[:, 1], rows.bounds[:, 2]
    return vectors.bounds[:, 2, None] * size + vectors.bounds[:, 1, None] * lost


def looked_at(z: Tensor, error: Tensor, k: int) -> float:
    """Scores that may be among the k highest of a list, for each that is."""
    floor = z.topk(k, dim=1).values[:, -1:]
    return float((z + error >= floor).float().sum(1).mean()) / k


def seconds(work: Callable[[], object]) -> float:
    """The best of three times."""
    times = []
    for _ in range(3):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def hits(tokens: int, k: int, met: bool) -> TokenIndex:
    """An empty list of each token, or one with what the strongest of so many normal numbers would leave."""
    found = TokenIndex(tokens, k)
    if met:
        floor = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(1 - k / MET / 2))
        found.threshold.fill_(floor)
        found.keys.copy_(found.threshold.view(torch.int32).long()[:, None] << 32)
        found.seen = MET
    return found


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
            unit, ready = scored.unit[:512].contiguous(), scored.space.prepared
            if ready.turned is None:
                raise SystemExit("There is nothing to compare without numba: pip install 'zeropass[fast]'.")
            z, plain = unit @ ready.rows.T, turned_by(torch.eye(unit.shape[1]))
            turned = bound(quantize(unit, ready.turned.turn), ready.turned.quantized)
            untouched = bound(quantize(unit, plain), quantize(ready.rows, plain))
            bounds = [float(one.median()) for one in (untouched, turned)]
            wide = [looked_at(z, one, k) for one in (untouched, turned)]
            off = (survey(unit, ready, k, ids, hits(len(ids), k, True), 0).kurtosis - kurtosis(z)).abs()
            off /= 1 + kurtosis(z).abs()
            del turned, untouched
            product = seconds(lambda: torch.mm(unit, ready.rows.T, out=z))  # noqa: B023
            took = [
                seconds(lambda: survey(unit, ready, k, ids, hits(len(ids), k, met), 0)) / product  # noqa: B023
                for met in (False, True)
            ]
            ratios.append(Ratio(f"survey of {name}: against its product", took[1], "times as long", "less"))
            print(
                f"| {name} | {bounds[0]:.2f} | {bounds[1]:.2f} | {wide[0]:.1f} | {wide[1]:.1f} "
                f"| {off.median():.2%} ({off.max():.2%}) | {took[0]:.2f} | {took[1]:.2f} |"
            )
    print()
    report(ratios, arguments.record)


if __name__ == "__main__":
    main()
