"""Triton kernels of `half`: they bound and choose the scores that may matter, and compute their dot products.

Scores come as they were multiplied, (n, V) in float16. A score ``s`` of vector i and row j differs from the exact one
by at most ``errors[i] * sizes[j] + |s| * ROUNDING + TINY`` (see `half`).
"""

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["GROUP", "chosen", "dots", "ends", "works"]

GROUP = 128
"""The number of columns of a group, of which `ends` bounds the highest and the lowest score."""

_WIDE = 4096
_TILE, _DEPTH = 16, 256


@lru_cache
def works(device: torch.device) -> bool:
    """Tell whether kernels can be compiled for a device, by trying: Triton needs a C compiler, which may be missing."""
    try:
        scores = torch.zeros(1, 1, dtype=torch.float16, device=device)
        ends(scores, scores.float()[0], scores.float()[0], 0.0, 0.0)
    except Exception:  # a missing compiler raises different exceptions in different releases
        return False
    return True


def ends(scores: Tensor, errors: Tensor, sizes: Tensor, rounding: float, tiny: float) -> tuple[Tensor, Tensor, Tensor]:
    """Bound the highest and lowest scores of groups of columns, and sum powers of the scores.

    Args:
        scores: Scores (n, V) float16.
        errors: Errors of the vectors, (n,) float32; see the module.
        sizes: Sizes of the rows, (V,) float32; see the module.
        rounding: ROUNDING in the module's bound.
        tiny: TINY in the module's bound.

    Returns:
        A lower bound of the highest exact score of each group (n, G), an upper bound of the lowest (n, G), and sums of
        the first four powers of the scores (4, n).
    """
    n, count = scores.shape
    groups = -(-count // GROUP)
    high, low = scores.new_empty(2, n, groups, dtype=torch.float32)
    sums = scores.new_empty(4, n, dtype=torch.float32)
    _ends[(n,)](scores, errors, sizes, high, low, sums, n, count, groups, rounding, tiny, GROUP=GROUP, WIDE=_WIDE)
    return high, low, sums


@triton.jit
def _ends(
    scores, errors, sizes, high, low, sums, n, count, groups, rounding, tiny, GROUP: tl.constexpr, WIDE: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    error = tl.load(errors + row)
    sum1 = tl.zeros((WIDE,), tl.float32)
    sum2 = tl.zeros((WIDE,), tl.float32)
    sum3 = tl.zeros((WIDE,), tl.float32)
    sum4 = tl.zeros((WIDE,), tl.float32)
    for start in range(0, count, WIDE):
        at = start + tl.arange(0, WIDE)
        inside = at < count
        score = tl.load(scores + row * count + at, mask=inside, other=0.0).to(tl.float32)
        off = error * tl.load(sizes + at, mask=inside, other=0.0) + tl.abs(score) * rounding + tiny
        square = score * score
        sum1 += score
        sum2 += square
        sum3 += square * score
        sum4 += square * square
        highest = tl.where(inside, score - off, -float("inf"))
        lowest = tl.where(inside, score + off, float("inf"))
        group = start // GROUP + tl.arange(0, WIDE // GROUP)
        place = row * groups + group
        tl.store(high + place, tl.max(tl.reshape(highest, (WIDE // GROUP, GROUP)), 1), mask=group < groups)
        tl.store(low + place, tl.min(tl.reshape(lowest, (WIDE // GROUP, GROUP)), 1), mask=group < groups)
    tl.store(sums + row, tl.sum(sum1))
    tl.store(sums + n + row, tl.sum(sum2))
    tl.store(sums + 2 * n + row, tl.sum(sum3))
    tl.store(sums + 3 * n + row, tl.sum(sum4))


def chosen(
    scores: Tensor,
    errors: Tensor,
    sizes: Tensor,
    floors: Tensor,
    limits: Tensor,
    rounding: float,
    tiny: float,
    most: int,
) -> tuple[Tensor, Tensor]:
    """Choose the scores of each vector that may be among its best or among those of a token.

    Args:
        scores: Scores (n, V) float16.
        errors: Errors of the vectors, (n,) float32; see the module.
        sizes: Sizes of the rows, (V,) float32; see the module.
        floors: The least exact scores of the upper poles and the greatest of the lower poles, (2, n) float32.
        limits: The least size of an exact score that each token keeps, (V,) float32.
        rounding: ROUNDING in the module's bound.
        tiny: TINY in the module's bound.
        most: The number of columns that are recorded for a vector.

    Returns:
        Columns (n, most) int32 in no particular order, and the number chosen for each vector, (n,) int32. If this
        exceeds ``most``, the columns beyond are not recorded.
    """
    n, count = scores.shape
    places = torch.empty(n, most, dtype=torch.int32, device=scores.device)
    filled = torch.zeros(n, dtype=torch.int32, device=scores.device)
    _chosen[(n,)](scores, errors, sizes, floors, limits, places, filled, n, count, most, rounding, tiny, WIDE=_WIDE)
    return places, filled


@triton.jit
def _chosen(scores, errors, sizes, floors, limits, places, filled, n, count, most, rounding, tiny, WIDE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    error = tl.load(errors + row)
    top = tl.load(floors + row)
    bottom = tl.load(floors + n + row)
    for start in range(0, count, WIDE):
        at = start + tl.arange(0, WIDE)
        inside = at < count
        score = tl.load(scores + row * count + at, mask=inside, other=0.0).to(tl.float32)
        off = error * tl.load(sizes + at, mask=inside, other=0.0) + tl.abs(score) * rounding + tiny
        limit = tl.load(limits + at, mask=inside, other=float("inf"))
        eligible = ((score + off >= top) | (score - off <= bottom) | (tl.abs(score) + off >= limit)) & inside
        slot = tl.atomic_add(filled + row + tl.zeros((WIDE,), tl.int64), 1, mask=eligible)
        tl.store(places + row * most + slot, at, mask=eligible & (slot < most))


def dots(vectors: Tensor, rows: Tensor, places: Tensor, filled: Tensor) -> Tensor:
    """Multiply each vector with the rows that were chosen for it.

    Args:
        vectors: Vectors (n, d) float32, contiguous.
        rows: Rows (V, d) float32, contiguous.
        places: Columns that `chosen` recorded, (n, m) int32.
        filled: How many of them are set, (n,) int32.

    Returns:
        Dot products (n, m) float32, set where the places are.
    """
    (n, most), d = places.shape, vectors.shape[1]
    products = vectors.new_empty(n, most)
    _dots[(n, -(-most // _TILE))](vectors, rows, places, filled, products, most, d, TILE=_TILE, DEPTH=_DEPTH)
    return products


@triton.jit
def _dots(vectors, rows, places, filled, products, most, d, TILE: tl.constexpr, DEPTH: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * TILE
    count = tl.minimum(tl.load(filled + row), most)
    if first < count:
        slot = first + tl.arange(0, TILE)
        inside = slot < count
        at = tl.load(places + row * most + slot, mask=inside, other=0).to(tl.int64)
        total = tl.zeros((TILE, DEPTH), tl.float32)
        for start in range(0, d, DEPTH):
            part = start + tl.arange(0, DEPTH)
            within = part < d
            vector = tl.load(vectors + row * d + part, mask=within, other=0.0)
            mask = inside[:, None] & within[None, :]
            total += tl.load(rows + at[:, None] * d + part[None, :], mask=mask, other=0.0) * vector[None, :]
        tl.store(products + row * most + slot, tl.sum(total, 1), mask=inside)
