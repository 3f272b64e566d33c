"""What `sieve.survey` keeps, on a GPU: a product in float16, and its few scores that may matter computed again.

There float16 is multiplied ten times as fast as float32. With hats for what is rounded, a score is no further off than

    |x·y - x̂·ŷ|  <=  ‖x - x̂‖ ‖y‖ + ‖x̂‖ ‖y - ŷ‖

and what sums in float32, and the rounding of the product itself, add. Of each pole more scores than it keeps are
computed again; where the last of them could still be among the best, so is that vector's whole product. All of it is
torch's, and right on any device. bfloat16, as fast, loses eight times as much: with 4,096 numbers a vector, too much.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from zeropass.hits import HitList
from zeropass.projection import Extremes
from zeropass.statistics import blocks

__all__ = ["Coarse", "Rough", "made_coarse", "poles_of", "product", "tokens_of"]

_LONGEST = 128.0
"""Norm that vectors and rows are brought to, at most: a product is then within what float16 holds, 65,504."""

_SUMMING = 2.0**-23
"""What a product of float16 numbers loses, at most, for each number that is summed. Tensor cores sum at least four in
one go, and cut off what does not fit."""

_ROUNDING = 2.0**-10
"""What rounding to float16 changes, at most, as a share; and beside it, where numbers are tiny, `_TINY`."""

_TINY = 2.0**-24

_GATHERED = 1 << 26
"""Numbers of rows that are gathered at once: 256 MB."""

_WHOLE = 128
"""Vectors of which all scores are held in float32."""

_SHARE = 32
"""A whole product takes no longer than scores one by one, if those are more than one in so many."""


@dataclass(frozen=True, eq=False)
class Coarse:
    """Vectors or rows (n, d) in float16, each number standing for ``unit`` times itself.

    In these units, bounds (n,) of norms, as they are and rounded, and of what is lost.
    """

    numbers: Tensor
    unit: float
    norm: Tensor
    size: Tensor
    lost: Tensor


@dataclass(frozen=True, eq=False)
class Rough:
    """Scores (n, V') in float16 and in units; those of each vector are off by its error (n,) and `_ROUNDING`."""

    scores: Tensor
    errors: Tensor
    unit: float


def made_coarse(rows: Tensor) -> Coarse:
    """Vectors or rows (n, d) float32, rounded."""
    norms = torch.linalg.vector_norm(rows, dim=1)
    longest = float(norms.amax())
    unit = 2.0 ** math.ceil(math.log2(longest / _LONGEST)) if longest > 0 else 1.0
    numbers = torch.empty_like(rows, dtype=torch.float16)
    size, lost = rows.new_empty(2, len(rows))
    for part in blocks(len(rows), max(1, _GATHERED // rows.shape[1])):
        exact = rows[part] / unit
        numbers[part] = exact
        rounded = numbers[part].float()
        size[part] = torch.linalg.vector_norm(rounded, dim=1)
        lost[part] = torch.linalg.vector_norm(exact - rounded, dim=1)
    return Coarse(numbers, unit, *(bound * (1 + 1e-5) for bound in (norms / unit, size, lost)))


def product(vectors: Coarse, rows: Coarse) -> Rough:
    """All scores, roughly."""
    d = vectors.numbers.shape[1]
    errors = vectors.lost * rows.norm.amax() + vectors.size * rows.lost.amax()
    # The exact scores are sums in float32 as well.
    errors += d * (_SUMMING * vectors.size * rows.size.amax() + 2.0**-24 * vectors.norm * rows.norm.amax())
    with _summed_in_float32():
        return Rough(vectors.numbers @ rows.numbers.T, errors * (1 + 1e-5) + _TINY, vectors.unit * rows.unit)


def poles_of(rough: Rough, vectors: Tensor, rows: Tensor, k: int, ids: Tensor) -> Extremes:
    """Both poles of vectors whose `product` was made; of equal scores the first rows."""
    wide, found = min(2 * k + 32, len(rows)), []
    for sign in (1, -1):
        near, at = rough.scores.topk(wide, dim=1, largest=sign > 0)
        best, at = _first(sign * _dots(vectors, rows, at), at, k)
        rest = sign * near[:, -1].float()
        unsure = best[:, -1] / rough.unit <= rest + rest.abs() * _ROUNDING + rough.errors
        if wide < len(rows) and bool(unsure.any()):
            for some in torch.split(unsure.nonzero()[:, 0], _WHOLE):
                whole = sign * (vectors[some] @ rows.T)
                best[some], at[some] = _first(whole, torch.arange(len(rows), device=at.device).expand_as(whole), k)
        found += [sign * best, ids[at]]
    return Extremes(*found)


def tokens_of(rough: Rough, vectors: Tensor, rows: Tensor, hits: HitList, first_id: int) -> None:
    """Give the tokens what they may keep of the scores whose `product` was made."""
    hits.flush()
    enough = (hits.threshold / rough.unit - rough.errors.amax()) * (1 - _ROUNDING) ** 2
    may = rough.scores.abs() >= enough.half()
    if int(may.sum()) * _SHARE > may.numel():
        for part in blocks(len(vectors), _WHOLE):
            hits.offer(vectors[part] @ rows.T, first_id + part.start)
        return
    at, token = may.nonzero(as_tuple=True)
    for part in blocks(len(at), max(1, _GATHERED // rows.shape[1])):
        z = _dots(vectors[at[part]], rows, token[part, None])[:, 0]
        hits.take(token[part], first_id + at[part], z)
    hits.seen += len(vectors)


def _dots(vectors: Tensor, rows: Tensor, at: Tensor) -> Tensor:
    """Scores (n, m) of n vectors, each with m rows of its own."""
    found = rows.new_empty(at.shape)
    for part in blocks(len(at), max(1, _GATHERED // (rows.shape[1] * at.shape[1]))):
        found[part] = torch.bmm(rows[at[part]], vectors[part, :, None])[:, :, 0]
    return found


def _first(scores: Tensor, at: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best of each row's scores, and where they are; of equal ones those that come first."""
    at, order = at.sort(dim=1)
    best, places = scores.gather(1, order).sort(dim=1, descending=True, stable=True)
    return best[:, :k], at.gather(1, places[:, :k])


@contextmanager
def _summed_in_float32() -> Iterator[None]:
    """Keep cuBLAS from summing parts of a product in float16, which the bound does not allow for."""
    settings = torch.backends.cuda.matmul
    before = settings.allow_fp16_reduced_precision_reduction
    settings.allow_fp16_reduced_precision_reduction = False
    try:
        yield
    finally:
        settings.allow_fp16_reduced_precision_reduction = before
