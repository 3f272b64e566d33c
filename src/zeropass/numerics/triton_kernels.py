"""Triton kernels of `half`: one look at the scores for what may matter, and the dot products of what does.

Scores lie as they were multiplied, (n, V) in float16. A score ``s`` of vector i and row j is no further from the exact
one than ``errors[i] * sizes[j] + |s| * ROUNDING + TINY`` (see `half`).
"""

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["GROUP", "chosen", "dots", "ends", "works"]

GROUP = 128
"""Scores of which `ends` keeps the highest and the lowest."""

_WIDE = 4096
_TILE, _DEPTH = 16, 256


@lru_cache
def works(device: torch.device) -> bool:
    """Tell whether kernels can be compiled for a device, by trying: Triton needs a C compiler, which may be missing."""
    try:
        scores = torch.zeros(1, 1, dtype=torch.float16, device=device)
        ends(scores, scores.float()[0], scores.float()[0], 0.0, 0.0)
    except Exception:  # what a missing compiler raises differs from release to release
        return False
    return True


def ends(scores: Tensor, errors: Tensor, sizes: Tensor, rounding: float, tiny: float) -> tuple[Tensor, Tensor, Tensor]:
    """Bound the highest and lowest scores of groups of columns, and sum powers.

    Args:
        scores: (n, V) float16.
        errors: (n,) float32, see the module.
        sizes: (V,) float32, likewise.
        rounding: ROUNDING there.
        tiny: TINY there.

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
    one = tl.zeros((WIDE,), tl.float32)
    two = tl.zeros((WIDE,), tl.float32)
    three = tl.zeros((WIDE,), tl.float32)
    four = tl.zeros((WIDE,), tl.float32)
    for start in range(0, count, WIDE):
        at = start + tl.arange(0, WIDE)
        inside = at < count
        score = tl.load(scores + row * count + at, mask=inside, other=0.0).to(tl.float32)
        off = error * tl.load(sizes + at, mask=inside, other=0.0) + tl.abs(score) * rounding + tiny
        square = score * score
        one += score
        two += square
        three += square * score
        four += square * square
        highest = tl.where(inside, score - off, -float("inf"))
        lowest = tl.where(inside, score + off, float("inf"))
        group = start // GROUP + tl.arange(0, WIDE // GROUP)
        place = row * groups + group
        tl.store(high + place, tl.max(tl.reshape(highest, (WIDE // GROUP, GROUP)), 1), mask=group < groups)
        tl.store(low + place, tl.min(tl.reshape(lowest, (WIDE // GROUP, GROUP)), 1), mask=group < groups)
    tl.store(sums + row, tl.sum(one))
    tl.store(sums + n + row, tl.sum(two))
    tl.store(sums + 2 * n + row, tl.sum(three))
    tl.store(sums + 3 * n + row, tl.sum(four))


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
        scores: (n, V) float16.
        errors: (n,) float32, see the module.
        sizes: (V,) float32, likewise.
        floors: (2, n) float32, what the exact scores of the upper pole are at least, and those of the lower at most.
        limits: (V,) float32, what the size of an exact score is at least that a token may keep.
        rounding: ROUNDING in the module.
        tiny: TINY there.
        most: how many of a vector are noted.

    Returns:
        Columns (n, most) int32, in no order, of which the first so many (n,) int32 are set. Where that is more than
        ``most``, there are others.
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
        may = ((score + off >= top) | (score - off <= bottom) | (tl.abs(score) + off >= limit)) & inside
        slot = tl.atomic_add(filled + row + tl.zeros((WIDE,), tl.int64), 1, mask=may)
        tl.store(places + row * most + slot, at, mask=may & (slot < most))


def dots(vectors: Tensor, rows: Tensor, places: Tensor, filled: Tensor) -> Tensor:
    """Multiply each vector with the rows of its own that were chosen.

    Args:
        vectors: (n, d) float32, contiguous.
        rows: (V, d) float32, contiguous.
        places: (n, m) int32, columns that `chosen` noted.
        filled: (n,) int32, how many of them are set.

    Returns:
        (n, m) float32, set where the places are.
    """
    (n, most), d = places.shape, vectors.shape[1]
    found = vectors.new_empty(n, most)
    _dots[(n, -(-most // _TILE))](vectors, rows, places, filled, found, most, d, TILE=_TILE, DEPTH=_DEPTH)
    return found


@triton.jit
def _dots(vectors, rows, places, filled, found, most, d, TILE: tl.constexpr, DEPTH: tl.constexpr):
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
            own = inside[:, None] & within[None, :]
            total += tl.load(rows + at[:, None] * d + part[None, :], mask=own, other=0.0) * vector[None, :]
        tl.store(found + row * most + slot, tl.sum(total, 1), mask=inside)
