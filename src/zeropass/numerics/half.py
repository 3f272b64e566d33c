"""The top-k search of `top_k.survey` on a GPU: a product in float16, whose scores that may matter are recomputed.

A GPU multiplies float16 ten times as fast as float32. With hats for rounded vectors, the error of a score is at most

    |x·y - x̂·ŷ|  <=  ‖x - x̂‖ ‖y‖ + ‖x̂‖ ‖y - ŷ‖

plus the rounding of sums in float32 and of the product itself. bfloat16 is as fast but loses eight times as much, which
is too much for vectors of 4,096 numbers.

There are two ways to find the scores that may matter, with the same results. `kept` reads the scores twice, in Triton
(`triton_kernels`): the highest bound of each group of columns gives a floor for a vector's best scores; then all scores
that may reach it, or that a token may keep, are chosen. `poles_of` and `tokens_of` use torch and work on any device:
more scores than a pole keeps are recomputed, and where the last of them may still be among the best, so is the full
product of that vector.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from zeropass.numerics.compiled import triton_kernels
from zeropass.numerics.projection import Extremes
from zeropass.numerics.statistics import blocks
from zeropass.numerics.token_index import EMPTY, TokenIndex, decoded, encoded

__all__ = ["HalfRows", "Rough", "fused", "kept", "part_size", "poles_of", "product", "to_half", "tokens_of"]

_LONGEST = 128.0
"""The largest norm of scaled vectors and rows: their products stay below 65,504, the largest float16 number."""

_SUMMING = 2.0**-23
"""The largest relative loss of a product of float16 numbers per summed number.

Tensor cores sum at least four numbers at a time and cut off the bits that do not fit.
"""

_ROUNDING = 2.0**-10
"""The largest relative change of a product by rounding to float16; for tiny numbers `_TINY` adds to it."""

_TINY = 2.0**-24

_LOST = 2.0**-11
"""The largest change of a vector by rounding to float16, relative to its norm, unless its numbers are tiny."""

_FLOAT32 = 1e-5
"""The relative slack of bounds that are themselves computed in float32."""

_GATHERED = 1 << 26
"""The number of coordinates of rows that are gathered at once: 256 MB."""

_FULL = 128
"""The number of vectors whose full products are held at once in float32."""

_SHARE = 32
"""A full product takes no longer than single scores if these are more than one in so many."""

_FIRST = 2048
"""The number of vectors searched at once while the tokens have met no more: their thresholds are still low."""

_MEMORY = 16
"""The scores of a part take at most one in so many bytes of the GPU's memory."""


@dataclass(frozen=True, eq=False)
class HalfRows:
    """Vectors or rows in float16, with bounds: a product is off by at most the error of either times the other's size.

    Attributes:
        numbers: Vectors (n, d) float16; each number stands for ``unit`` times itself.
        unit: A power of two.
        sizes: Upper bounds of the norms, (n,), in units.
        errors: Errors of the vectors, (n,), in units, with an allowance for rounding the other side and for sums.
    """

    numbers: Tensor
    unit: float
    sizes: Tensor
    errors: Tensor


@dataclass(frozen=True, eq=False)
class Rough:
    """Rounded scores, with bounds of their errors.

    The error of the score ``s`` of vector i and row j is at most ``errors[i] * sizes[j] + |s| * _ROUNDING + _TINY``.

    Attributes:
        scores: Scores (n, V') float16, in units.
        errors: Errors of the vectors, (n,), which allow for those of the rows.
        sizes: Sizes of the rows, (V',).
        unit: The score that 1.0 stands for.
    """

    scores: Tensor
    errors: Tensor
    sizes: Tensor
    unit: float


def part_size(tokens: int, seen: int, device: torch.device) -> int:
    """Return how many vectors to search at once, given the number that the tokens have met."""
    if device.type != "cuda":
        return _FIRST
    memory = torch.cuda.get_device_properties(device).total_memory
    return max(1, min(max(_FIRST, seen), memory // (_MEMORY * 2 * tokens)))


def to_half(rows: Tensor) -> HalfRows:
    """Round vectors or rows (n, d) float32 to float16."""
    norms, d = torch.linalg.vector_norm(rows, dim=1), rows.shape[1]
    longest = float(norms.amax())
    unit = 2.0 ** math.ceil(math.log2(longest / _LONGEST)) if longest > 0 else 1.0
    numbers = torch.empty_like(rows, dtype=torch.float16)
    sizes, lost = norms / unit, torch.empty_like(norms)
    for part in blocks(len(rows), max(1, _GATHERED // d)):
        exact = rows[part] / unit
        numbers[part] = exact
        rounded = numbers[part].float()
        lost[part] = torch.linalg.vector_norm(exact - rounded, dim=1) * (1 + _FLOAT32)
        sizes[part] = sizes[part].maximum(torch.linalg.vector_norm(rounded, dim=1)) * (1 + _FLOAT32)
    # A side must not lose more than `_LOST` of its size.
    sizes = sizes.maximum(lost / _LOST)
    # The exact scores are sums in float32 as well.
    errors = lost + sizes * (_LOST + d * (_SUMMING + 2.0**-24))
    return HalfRows(numbers, unit, sizes, errors * (1 + _FLOAT32))


def product(vectors: HalfRows, rows: HalfRows) -> Rough:
    """Return the rounded scores of all vectors and rows."""
    with _summed_in_float32():
        scores = vectors.numbers @ rows.numbers.T
    return Rough(scores, vectors.errors, rows.sizes, vectors.unit * rows.unit)


# --- In Triton --------------------------------------------------------------------------------------------


def fused(device: torch.device, tokens: int, k: int) -> bool:
    """Tell whether `kept` can be used: kernels work on the device, and groups outnumber the scores of a pole."""
    return triton_kernels is not None and tokens >= 4 * k * triton_kernels.GROUP and triton_kernels.works(device)


def kept(
    rough: Rough, vectors: Tensor, rows: Tensor, k: int, ids: Tensor, index: TokenIndex, first_id: int
) -> tuple[Extremes, Tensor]:
    """Return both poles of vectors from their `product`, and put the scores that tokens keep into the index.

    Args:
        rough: The rounded scores (n, V').
        vectors: The vectors (n, d) float32.
        rows: The rows (V', d) float32.
        k: Scores of each pole.
        ids: Token ids of the rows, (V',).
        index: Takes in the scores.
        first_id: The id of the first vector.

    Returns:
        The poles, and the means (4, n) of the first four powers of the rounded scores.
    """
    index.flush_if_much()
    columns, filled, overflowing, sums = _candidates(rough, k, index)
    z = triton_kernels.dots(vectors, rows, columns, filled)
    chosen = torch.arange(columns.shape[1], device=z.device) < filled[:, None]
    columns = torch.where(chosen, columns, 0)
    poles = [values for sign in (1, -1) for values in _best(sign * z, columns, chosen, k)]
    if bool(overflowing.any()):
        _search_all(vectors, rows, overflowing.nonzero()[:, 0], poles, index, first_id)
        chosen &= ~overflowing[:, None]
    row, place = (chosen & (z.abs() >= index.threshold[columns])).nonzero(as_tuple=True)
    index.take(columns[row, place].long(), first_id + row, z[row, place])
    index.seen += len(vectors)
    top, top_columns, bottom, bottom_columns = poles
    return Extremes(top, ids[top_columns], -bottom, ids[bottom_columns]), sums / len(rows)


def _candidates(rough: Rough, k: int, index: TokenIndex) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Choose the scores that may matter.

    Returns:
        Their columns (n, m), how many of these are set (n,), which vectors have more (n,), and sums of powers (4, n).
    """
    bounds = rough.errors, rough.sizes
    high, low, sums = triton_kernels.ends(rough.scores, *bounds, _ROUNDING, _TINY)
    floors = torch.stack((high.topk(k).values[:, -1], low.topk(k, largest=False).values[:, -1]))
    limits = index.threshold * ((1 - _FLOAT32) / rough.unit)
    # Of random vectors a token keeps the share size / seen; allow half as many again, and some for the poles.
    count = len(rough.sizes)
    most = min(count, 8 * k + 128 + int(1.5 * count * index.keys.shape[1] / max(1, index.seen)))
    columns, filled = triton_kernels.chosen(rough.scores, *bounds, floors, limits, _ROUNDING, _TINY, most)
    return columns[:, : int(filled.amax())].contiguous(), filled, filled > most, sums


def _search_all(
    vectors: Tensor, rows: Tensor, places: Tensor, poles: Sequence[Tensor], index: TokenIndex, first_id: int
) -> None:
    """Replace the poles of the vectors at some places by those of their full products, which the index takes in."""
    for part in torch.split(places, _FULL):
        scores = vectors[part] @ rows.T
        exact = [values for sign in (1, -1) for values in _best_of_all(sign * scores, poles[0].shape[1])]
        for pole, values in zip(poles, exact, strict=True):
            pole[part] = values
        row, token = (scores.abs() >= index.threshold).nonzero(as_tuple=True)
        index.take(token, first_id + part[row], scores[row, token])


def _best(scores: Tensor, columns: Tensor, chosen: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k best of the chosen scores of each row, and their columns; of equal scores the first columns."""
    keys = torch.where(chosen, encoded(scores, columns), EMPTY)
    best, columns = decoded(keys.topk(k, dim=1).values)
    return best, columns


# --- In torch ---------------------------------------------------------------------------------------------


def poles_of(rough: Rough, vectors: Tensor, rows: Tensor, k: int, ids: Tensor) -> Extremes:
    """Return both poles of vectors from their `product`; of equal scores the first rows.

    Args:
        rough: The rounded scores (n, V').
        vectors: The vectors (n, d) float32.
        rows: The rows (V', d) float32.
        k: Scores of each pole.
        ids: Token ids of the rows, (V',).
    """
    count, poles = min(2 * k + 32, len(rows)), []
    errors = rough.errors * rough.sizes.amax() + _TINY
    for sign in (1, -1):
        candidates, columns = rough.scores.topk(count, dim=1, largest=sign > 0)
        best, columns = _first(sign * _dots(vectors, rows, columns), columns, k)
        rest = sign * candidates[:, -1].float()
        unsure = best[:, -1] / rough.unit <= rest + rest.abs() * _ROUNDING + errors
        if count < len(rows) and bool(unsure.any()):
            for part in torch.split(unsure.nonzero()[:, 0], _FULL):
                best[part], columns[part] = _best_of_all(sign * (vectors[part] @ rows.T), k)
        poles += [sign * best, ids[columns]]
    return Extremes(*poles)


def tokens_of(rough: Rough, vectors: Tensor, rows: Tensor, index: TokenIndex, first_id: int) -> None:
    """Put the scores that tokens keep into the index.

    Args:
        rough: The rounded scores (n, V').
        vectors: The vectors (n, d) float32.
        rows: The rows (V', d) float32.
        index: Takes in the scores.
        first_id: The id of the first vector.
    """
    index.flush()
    error = (rough.errors.amax() * rough.sizes.amax() + _TINY) * (1 + _FLOAT32)
    enough = (index.threshold / rough.unit - error) * (1 - _ROUNDING) ** 2
    eligible = rough.scores.abs() >= enough.half()
    if int(eligible.sum()) * _SHARE > eligible.numel():
        for part in blocks(len(vectors), _FULL):
            index.offer(vectors[part] @ rows.T, first_id + part.start)
        return
    vector, token = eligible.nonzero(as_tuple=True)
    for part in blocks(len(vector), max(1, _GATHERED // rows.shape[1])):
        z = _dots(vectors[vector[part]], rows, token[part, None])[:, 0]
        index.take(token[part], first_id + vector[part], z)
    index.seen += len(vectors)


def _dots(vectors: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return the scores of n vectors at their columns (n, m), the places of m rows for each vector."""
    scores = rows.new_empty(columns.shape)
    for part in blocks(len(columns), max(1, _GATHERED // (rows.shape[1] * columns.shape[1]))):
        scores[part] = torch.bmm(rows[columns[part]], vectors[part, :, None])[:, :, 0]
    return scores


def _best_of_all(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k best scores of each row of a full product, and their columns."""
    return _first(scores, torch.arange(scores.shape[1], device=scores.device).expand_as(scores), k)


def _first(scores: Tensor, columns: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k best scores of each row, and their columns; of equal scores the first columns."""
    columns, order = columns.sort(dim=1)
    best, places = scores.gather(1, order).sort(dim=1, descending=True, stable=True)
    return best[:, :k], columns.gather(1, places[:, :k])


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
