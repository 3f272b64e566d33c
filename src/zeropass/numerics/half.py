"""What `top_k.survey` keeps, on a GPU: a product in float16, and its few scores that may matter computed again.

There float16 is multiplied ten times as fast as float32. With hats for what is rounded, a score is no further off than

    |x·y - x̂·ŷ|  <=  ‖x - x̂‖ ‖y‖ + ‖x̂‖ ‖y - ŷ‖

and what sums in float32, and the rounding of the product itself, add. bfloat16, as fast, loses eight times as much:
with 4,096 numbers a vector, too much.

There are two ways to find what may matter. `kept` looks at the scores twice, in Triton (`triton_kernels`): the highest
bound of each group of columns tells what a vector's best are at least, and then all scores that may reach that, or what
a token keeps, are chosen. `poles_of` and `tokens_of` are torch's, right on any device, and find the same: of each pole
more scores than it keeps are computed again; where the last of them could still be among the best, so is that vector's
whole product.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zeropass.numerics.compiled import triton_kernels
from zeropass.numerics.projection import Extremes
from zeropass.numerics.statistics import blocks
from zeropass.numerics.token_index import EMPTY, TokenIndex, decoded, encoded

__all__ = ["HalfRows", "Rough", "fused", "kept", "part_size", "poles_of", "product", "to_half", "tokens_of"]

_LONGEST = 128.0
"""Norm that vectors and rows are brought to, at most: a product is then within what float16 holds, 65,504."""

_SUMMING = 2.0**-23
"""What a product of float16 numbers loses, at most, for each number that is summed. Tensor cores sum at least four in
one go, and cut off what does not fit."""

_ROUNDING = 2.0**-10
"""Largest relative change of a product by rounding to float16; where numbers are tiny, `_TINY` adds to it."""

_TINY = 2.0**-24

_LOST = 2.0**-11
"""Change of a vector by rounding to float16, relative to its norm, unless its numbers are tiny."""

_FLOAT32 = 1e-5
"""Relative slack for bounds that are themselves computed in float32."""

_GATHERED = 1 << 26
"""Numbers of rows that are gathered at once: 256 MB."""

_WHOLE = 128
"""Vectors of which all scores are held in float32."""

_SHARE = 32
"""A whole product takes no longer than scores one by one, if those are more than one in so many."""

_FIRST = 2048
"""Vectors looked through at once while tokens have met no more: what they keep is still low."""

_MEMORY = 16
"""The scores of a part take no more than one in so many bytes of the GPU."""


@dataclass(frozen=True, eq=False)
class HalfRows:
    """Vectors or rows (n, d) in float16, each number standing for ``unit`` times itself.

    In these units, sizes (n,), no less than the norms, and errors (n,): a product of two vectors is no further off than
    the error of either times the size of the other.
    """

    numbers: Tensor
    unit: float
    sizes: Tensor
    errors: Tensor


@dataclass(frozen=True, eq=False)
class Rough:
    """Scores (n, V') in float16 and in units.

    The score of vector i and row j is off by no more than ``errors[i] * sizes[j]``, `_TINY`, and `_ROUNDING` of it.
    """

    scores: Tensor
    errors: Tensor
    sizes: Tensor
    unit: float


def part_size(tokens: int, seen: int, device: torch.device) -> int:
    """Return how many vectors to look through at once, given how many the tokens have met."""
    if device.type != "cuda":
        return _FIRST
    memory = torch.cuda.get_device_properties(device).total_memory
    return max(1, min(max(_FIRST, seen), memory // (_MEMORY * 2 * tokens)))


def to_half(rows: Tensor) -> HalfRows:
    """Vectors or rows (n, d) float32, rounded."""
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
    # So that what the other side loses is no more than `_LOST` of its size.
    sizes = sizes.maximum(lost / _LOST)
    # The exact scores are sums in float32 as well.
    errors = lost + sizes * (_LOST + d * (_SUMMING + 2.0**-24))
    return HalfRows(numbers, unit, sizes, errors * (1 + _FLOAT32))


def product(vectors: HalfRows, rows: HalfRows) -> Rough:
    """All scores, roughly."""
    with _summed_in_float32():
        scores = vectors.numbers @ rows.numbers.T
    return Rough(scores, vectors.errors, rows.sizes, vectors.unit * rows.unit)


# --- In Triton --------------------------------------------------------------------------------------------


def fused(device: torch.device, tokens: int, k: int) -> bool:
    """Tell whether `kept` can be used: kernels work on the device, and there are more groups than a pole keeps."""
    return triton_kernels is not None and tokens >= 4 * k * triton_kernels.GROUP and triton_kernels.works(device)


def kept(
    rough: Rough, vectors: Tensor, rows: Tensor, k: int, ids: Tensor, index: TokenIndex, first_id: int
) -> tuple[Extremes, Tensor]:
    """Both poles of vectors whose `product` was made; the tokens are given what they may keep.

    Returns:
        The poles, and the means (4, n) of the first four powers of the rough scores.
    """
    index.flush_if_much()
    bounds = rough.errors, rough.sizes
    high, low, sums = triton_kernels.ends(rough.scores, *bounds, _ROUNDING, _TINY)
    floors = torch.stack((high.topk(k).values[:, -1], low.topk(k, largest=False).values[:, -1]))
    limits = index.threshold * ((1 - _FLOAT32) / rough.unit)
    # Of random vectors a token keeps as large a share as it has places; half as many again, and some for the poles.
    most = min(len(rows), 8 * k + 128 + int(1.5 * len(rows) * index.keys.shape[1] / max(1, index.seen)))
    places, filled = triton_kernels.chosen(rough.scores, *bounds, floors, limits, _ROUNDING, _TINY, most)
    places = places[:, : int(filled.amax())].contiguous()
    z = triton_kernels.dots(vectors, rows, places, filled)
    noted = torch.arange(places.shape[1], device=z.device) < filled[:, None]
    places = torch.where(noted, places, 0)
    poles: list[Any] = [values for sign in (1, -1) for values in _best(sign * z, places, noted, k)]
    if bool((over := filled > most).any()):
        for some in torch.split(over.nonzero()[:, 0], _WHOLE):
            whole = vectors[some] @ rows.T
            exact = [values for sign in (1, -1) for values in _best_of_all(sign * whole, k)]
            for pole, values in zip(poles, exact, strict=True):
                pole[some] = values
            row, token = (whole.abs() >= index.threshold).nonzero(as_tuple=True)
            index.take(token, first_id + some[row], whole[row, token])
        noted &= ~over[:, None]
    row, place = (noted & (z.abs() >= index.threshold[places])).nonzero(as_tuple=True)
    index.take(places[row, place].long(), first_id + row, z[row, place])
    index.seen += len(vectors)
    top, at_top, bottom, at_bottom = poles
    return Extremes(top, ids[at_top], -bottom, ids[at_bottom]), sums / len(rows)


def _best(scores: Tensor, at: Tensor, noted: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best of each row's noted scores, and where they are; of equal ones those that come first."""
    keys = torch.where(noted, encoded(scores, at), EMPTY)
    best, at = decoded(keys.topk(k, dim=1).values)
    return best, at


# --- In torch ---------------------------------------------------------------------------------------------


def poles_of(rough: Rough, vectors: Tensor, rows: Tensor, k: int, ids: Tensor) -> Extremes:
    """Both poles of vectors whose `product` was made; of equal scores the first rows."""
    wide, found = min(2 * k + 32, len(rows)), []
    errors = rough.errors * rough.sizes.amax() + _TINY
    for sign in (1, -1):
        near, at = rough.scores.topk(wide, dim=1, largest=sign > 0)
        best, at = _first(sign * _dots(vectors, rows, at), at, k)
        rest = sign * near[:, -1].float()
        unsure = best[:, -1] / rough.unit <= rest + rest.abs() * _ROUNDING + errors
        if wide < len(rows) and bool(unsure.any()):
            for some in torch.split(unsure.nonzero()[:, 0], _WHOLE):
                best[some], at[some] = _best_of_all(sign * (vectors[some] @ rows.T), k)
        found += [sign * best, ids[at]]
    return Extremes(*found)


def tokens_of(rough: Rough, vectors: Tensor, rows: Tensor, index: TokenIndex, first_id: int) -> None:
    """Give the tokens what they may keep of the scores whose `product` was made."""
    index.flush()
    error = (rough.errors.amax() * rough.sizes.amax() + _TINY) * (1 + _FLOAT32)
    enough = (index.threshold / rough.unit - error) * (1 - _ROUNDING) ** 2
    may = rough.scores.abs() >= enough.half()
    if int(may.sum()) * _SHARE > may.numel():
        for part in blocks(len(vectors), _WHOLE):
            index.offer(vectors[part] @ rows.T, first_id + part.start)
        return
    at, token = may.nonzero(as_tuple=True)
    for part in blocks(len(at), max(1, _GATHERED // rows.shape[1])):
        z = _dots(vectors[at[part]], rows, token[part, None])[:, 0]
        index.take(token[part], first_id + at[part], z)
    index.seen += len(vectors)


def _dots(vectors: Tensor, rows: Tensor, at: Tensor) -> Tensor:
    """Scores (n, m) of n vectors, each with m rows of its own."""
    found = rows.new_empty(at.shape)
    for part in blocks(len(at), max(1, _GATHERED // (rows.shape[1] * at.shape[1]))):
        found[part] = torch.bmm(rows[at[part]], vectors[part, :, None])[:, :, 0]
    return found


def _best_of_all(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best of each row's scores, of which there are all, and where they are."""
    return _first(scores, torch.arange(scores.shape[1], device=scores.device).expand_as(scores), k)


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
