"""Both poles of the scores of many vectors, and the strongest vectors of each token, without a product in float32.

A product of quantized vectors and rows, with a bound of its error, shows which scores may matter; these few are
recomputed exactly (docs/atlas.md). The results are those of the full product, in less time. On a GPU the product is in
float16 (`half`); without numba the full product is computed.

Rounding to whole numbers loses least where no coordinate stands out. So vectors x and rows y are first turned by
matrices M and N with ``M Nᵀ = I``, which leave every score unchanged:

    M = A S Q,  N = A S⁻¹ Q,  where the covariance of the rows is A S⁴ Aᵀ and Q mixes all coordinates alike

With ``X = x M`` and ``Y = y N``, and hats for the rounded vectors that are multiplied, the error of a score is at most

    |x·y - X̂·Ŷ|  <=  ‖X - X̂‖ ‖Y‖ + ‖X̂‖ ‖Y - Ŷ‖ + ‖M Nᵀ - I‖ ‖x‖ ‖y‖
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from zeropass.numerics import half
from zeropass.numerics.compiled import numba_kernels
from zeropass.numerics.half import HalfRows, to_half
from zeropass.numerics.parallel import side_by_side, with_one_thread
from zeropass.numerics.projection import Extremes, extremes
from zeropass.numerics.quantize import spectral_bound, to_int8
from zeropass.numerics.statistics import blocks, kurtosis
from zeropass.numerics.token_index import EMPTY, TokenIndex, decoded

__all__ = [
    "SAMPLE",
    "SCORES",
    "PreparedRows",
    "Quantized",
    "Scores",
    "Survey",
    "Turn",
    "Turned",
    "joined",
    "passing_size",
    "prepare_rows",
    "quantize",
    "quantized_type",
    "rounded_size",
    "survey",
    "turned_by",
]

_TILE = 512
"""The number of rows multiplied at once: their products stay in a processor's cache while they are searched."""

_VECTORS, _NUMBERS = 1024, 1 << 20
"""The largest number of vectors searched at once, and of their coordinates: they too stay in the cache."""

SCORES = 512
"""The number of vectors whose full products in float32 are computed at once, where they are."""

SAMPLE = 4096
"""The number of rows whose scores give an estimate of the k-th best of all."""

_GROUP = 16
"""The number of scores of a sample of which only the highest and the lowest are used."""

_CHUNK = 64
"""The number of terms summed in sequence in float32 when vectors are turned: short sums round less."""

_STRIDE = 7919
"""A prime, so that consecutive surveys begin far apart."""

_ROUNDING = 1e-6
"""The error of scores and bounds in float32 apart from the sums, relative to the product of the norms."""


Scores = tuple[Tensor, Tensor]
"""Scores (V', n), multiplied by one factor for each vector, and these factors (n,)."""


@dataclass(frozen=True, eq=False)
class Quantized:
    """Vectors as whole numbers, with bounds.

    Attributes:
        numbers: Whole numbers (n, d) of `quantized_type`.
        bounds: The step that 1 stands for, and bounds of the norms of X̂ and of X - X̂ above, (n, 3).
    """

    numbers: Tensor
    bounds: Tensor


@dataclass(frozen=True, eq=False)
class Turn:
    """A matrix (d, d) that turns vectors or rows, and the largest rounding of the result relative to their norms."""

    matrix: Tensor
    loss: float


@dataclass(frozen=True, eq=False)
class Turned:
    """Turned and quantized rows.

    Attributes:
        quantized: The turned rows (V', d), quantized.
        bounds: Bounds (V', 3) of the rows as they were, not rounded.
        turn: The turn of the vectors that are multiplied with them.
    """

    quantized: Quantized
    bounds: Tensor
    turn: Turn

    @cached_property
    def some(self) -> Tensor:
        """The places of an evenly spread sample of the rows, a multiple of _GROUP."""
        count = min(SAMPLE, len(self.bounds)) // _GROUP * _GROUP
        return torch.linspace(0, len(self.bounds) - 1, count).long()

    @cached_property
    def sample(self) -> Tensor:
        """The quantized rows of the sample."""
        return self.quantized.numbers[self.some]


@dataclass(frozen=True, eq=False)
class PreparedRows:
    """Rows prepared for `survey`: quantized or in float16; if neither, the full product is computed.

    Attributes:
        rows: The rows (V', d) float32.
        rest: Called after each tile of the rows; if they are mapped from a file, it can release their memory.
        turned: The rows, turned and quantized.
        coarse: The rows in float16.
        factors: What each row is multiplied by, (V',), if not yet done in ``rows``: see `scaled`.
    """

    rows: Tensor
    rest: Callable[[], None]
    turned: Turned | None = None
    coarse: HalfRows | None = None
    factors: Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def part(self, part: slice) -> Tensor:
        """Return some rows (t, d), multiplied by their factors."""
        return self.rows[part] if self.factors is None else self.rows[part] * self.factors[part, None]

    def scaled(self, factors: Tensor) -> "PreparedRows":
        """Return the same rows, each multiplied by a factor of zero or more, (V',); quantized rows stay as they are."""
        if self.turned is None:
            rows = self.rows * factors[:, None]
            return PreparedRows(rows, self.rest, coarse=None if self.coarse is None else to_half(rows))
        # What quantized rows stand for, and how far they are off, grows with them; 1e-6 is for rounding these bounds.
        column, grown = factors[:, None], torch.tensor([1.0, 1 + 1e-6, 1 + 1e-6])
        quantized = replace(self.turned.quantized, bounds=self.turned.quantized.bounds * column * grown)
        turned = replace(self.turned, quantized=quantized, bounds=self.turned.bounds * column * grown)
        return replace(self, turned=turned, factors=factors)


@dataclass(frozen=True, eq=False)
class Survey:
    """Both poles of the scores of n vectors, and their kurtosis (n,), which rounding hardly changes."""

    extremes: Extremes
    kurtosis: Tensor


def prepare_rows(
    rows: Tensor, covariance: Tensor, rest: Callable[[], None] = lambda: None, numbers: Tensor | None = None
) -> PreparedRows:
    """Prepare rows for `survey`.

    Args:
        rows: Rows (V', d) float32.
        covariance: Their covariance (d, d), which need not be exact.
        rest: Called after each tile of the rows, see `PreparedRows`.
        numbers: Memory for the quantized rows, (V', d) of `quantized_type`.

    Returns:
        The prepared rows.
    """
    if not _quantizes(rows):
        return PreparedRows(rows, rest, coarse=to_half(rows) if _rounds(rows) else None)
    turn, other, drift = _turns(covariance)
    numbers = torch.empty_like(rows, dtype=quantized_type()) if numbers is None else numbers
    quantized, norms = Quantized(numbers, rows.new_empty(len(rows), 3)), rows.new_empty(len(rows))
    longest = 0.0
    for part in blocks(len(rows), _TILE):
        block = quantize(rows[part], other)
        quantized.numbers[part], quantized.bounds[part] = block.numbers, block.bounds
        norms[part], size = torch.linalg.vector_norm(rows[part], dim=1), block.bounds[:, 1]
        longest = max(longest, float(torch.where(size > 0, norms[part] / size, 0.0).amax()))
        rest()
    # An exact score is a dot product in float32, which is rounded too, as is the factor of a row.
    slack = (drift + (rows.shape[1] + 1) * 2.0**-24) * longest * 1.01
    return PreparedRows(rows, rest, Turned(quantized, _bounds_of_exact(norms), replace(turn, loss=turn.loss + slack)))


def rounded_size(count: int, d: int) -> int:
    """Return the bytes of quantized rows (count, d); 0 where the full product is computed."""
    return count * d * quantized_type().itemsize if numba_kernels is not None else 0


def passing_size(d: int) -> int:
    """Return the temporary memory of `prepare_rows` and `survey` in bytes; 0 where the full product is computed."""
    each = _most(d) * (16 * _TILE + 16 * d)  # products and their chosen scores; vectors, turned and quantized
    # Twice for each thread: malloc keeps some memory of each.
    return 40 * d**2 + 2 * torch.get_num_threads() * each if numba_kernels is not None else 0


def survey(
    vectors: Tensor,
    rows: PreparedRows,
    k: int,
    ids: Tensor,
    index: TokenIndex | None,
    first_id: int,
    made: Scores | None = None,
) -> Survey:
    """Find both poles of the scores of vectors, and put the scores that tokens keep into an index.

    Args:
        vectors: Vectors (n, d) float32.
        rows: Rows (V', d) that `prepare_rows` prepared.
        k: Scores of each pole.
        ids: Token ids of the rows, (V',).
        index: Takes in the scores; None if only the poles are wanted.
        first_id: The id of the first vector in the index.
        made: The product in float32, if it has been computed anyway; the results are the same.

    Returns:
        The poles and the kurtosis of each vector.
    """
    k = min(k, len(rows))
    if rows.coarse is not None:
        surveys: list[Survey] = []
        while len(vectors):
            seen = 0 if index is None else index.seen
            part, vectors = vectors.tensor_split([half.part_size(len(rows), seen, vectors.device)])
            surveys.append(_rounded(part, rows, k, ids, index, first_id))
            first_id += len(part)
        return joined(surveys)
    if rows.turned is None:
        parts = blocks(len(vectors), SCORES)
        return joined([_product(vectors[part], rows, k, ids, index, first_id + part.start) for part in parts])
    if index is not None:
        with index.lock:
            index.flush()
    tiles = _tiles(len(rows), first_id)
    shares = list(_shares(len(vectors), _most(vectors.shape[1]), torch.get_num_threads()))

    def survey_share(part: slice) -> Survey:
        scores = made and (made[0][:, part], made[1][part])
        return _Survey(vectors[part], rows, k, index, first_id + part.start, scores).run(ids, tiles)

    surveys = side_by_side(survey_share, shares)
    if index is not None:
        with index.lock:
            index.seen += len(vectors)
    return joined(surveys)


def _tiles(count: int, first_id: int) -> list[slice]:
    """Return the tiles of the rows, beginning with one that depends on the id of a set's first vector.

    So it does not depend on the number of threads. Concurrent surveys begin at different tiles, and each meets tokens
    whose floors the others have raised.
    """
    tiles = list(blocks(count, _TILE))
    begin = first_id * _STRIDE % len(tiles)
    return tiles[begin:] + tiles[:begin]


def _shares(count: int, most: int, threads: int) -> Iterator[slice]:
    """Yield blocks of at most ``most`` vectors, about as many for each thread."""
    rounds = max(1, -(-count // (threads * most)))
    return blocks(count, max(1, -(-count // (rounds * threads))))


def _most(d: int) -> int:
    """Return the largest number of vectors of width d that are searched at once."""
    return min(_VECTORS, max(1, _NUMBERS // d))


def joined(surveys: Sequence[Survey]) -> Survey:
    """Return the surveys of consecutive vectors as one."""
    names = "top", "top_ids", "bottom", "bottom_ids"
    poles = (torch.cat([getattr(part.extremes, name) for part in surveys]) for name in names)
    return Survey(Extremes(*poles), torch.cat([part.kurtosis for part in surveys]))


def _product(
    vectors: Tensor, rows: PreparedRows, k: int, ids: Tensor, index: TokenIndex | None, first_id: int
) -> Survey:
    """Survey the vectors from their full product in float32."""
    scores = vectors @ rows.rows.T
    if index is not None:
        with index.lock:
            index.offer(scores, first_id)
    return Survey(extremes(scores, k, ids), kurtosis(scores))


def _rounded(
    vectors: Tensor, rows: PreparedRows, k: int, ids: Tensor, index: TokenIndex | None, first_id: int
) -> Survey:
    """Survey the vectors from their product in float16."""
    assert rows.coarse is not None
    rough = half.product(to_half(vectors), rows.coarse)
    if index is None:
        return Survey(half.poles_of(rough, vectors, rows.rows, k, ids), kurtosis(rough.scores))
    if index.seen >= index.keys.shape[1] and half.fused(vectors.device, len(rows), k):
        with index.lock:
            poles, means = half.kept(rough, vectors, rows.rows, k, ids, index, first_id)
        return Survey(poles, _kurtosis(means.double()))
    with index.lock:
        half.tokens_of(rough, vectors, rows.rows, index, first_id)
    return Survey(half.poles_of(rough, vectors, rows.rows, k, ids), kurtosis(rough.scores))


class _Survey:
    """The running best scores of both poles of each vector, and the sums of powers over all scores."""

    def __init__(
        self,
        vectors: Tensor,
        rows: PreparedRows,
        k: int,
        index: TokenIndex | None,
        first_id: int,
        scores: Scores | None,
    ) -> None:
        assert rows.turned is not None
        self.vectors, self.rows, self.k, self.index = vectors, rows, k, index
        self.first_id, self.scores = first_id, scores
        self.turned = turned = rows.turned
        if scores is None:
            self.quantized, self.of_rows = quantize(vectors, turned.turn), turned.quantized.bounds
        else:
            self.quantized, self.of_rows = _unquantized(vectors, scores[1]), turned.bounds
        # Allocating memory for each tile would take as long as the products.
        tile = min(_TILE, len(rows)), len(vectors)
        self.products = torch.empty(tile, dtype=torch.int32 if scores is None else torch.float32)
        self.heaps = torch.full((2, len(vectors), k), EMPTY)
        self.sums = torch.zeros(4, len(vectors), dtype=torch.float64)

    def run(self, ids: Tensor, tiles: Sequence[slice]) -> Survey:
        """Search all tiles; then once more for the poles of vectors whose guessed floors were too high."""
        self.look_through(tiles, self.guess())
        short = (self.heaps == EMPTY).any(2).any(0)
        if short.any():
            scores = self.scores and (self.scores[0][:, short], self.scores[1][short])
            again = _Survey(self.vectors[short], self.rows, self.k, self.index, self.first_id, scores)
            again.look_through(tiles, torch.full((2, len(again.vectors)), -torch.inf), for_tokens=False)
            self.heaps[:, short] = again.heaps
        (top, bottom), places = decoded(self.heaps.sort(dim=2, descending=True).values)
        return Survey(Extremes(top, ids[places[0]], -bottom, ids[places[1]]), _kurtosis(self.sums / len(self.rows)))

    def guess(self) -> Tensor:
        """Guess floors (2, n) that k scores of each vector reach, from a sample; without them all are recomputed."""
        sample = self.turned.some
        expected = self.k * len(sample) / len(self.rows)
        rank, groups = math.ceil(expected + 3 * math.sqrt(expected)), len(sample) // _GROUP
        if not 0 < rank <= groups:
            return torch.full((2, len(self.vectors)), -torch.inf)
        ends = torch.full((2, groups, len(self.vectors)), -torch.inf)
        for part in blocks(len(sample), _TILE):
            products = self.product(sample[part], self.turned.sample[part])
            numba_kernels.raise_ends(products.numpy(), self.of_rows[sample[part]].numpy(), part.start, ends.numpy())
        return _highest(ends, rank) * self.quantized.bounds[:, 0]

    def product(self, places: Tensor | slice, numbers: Tensor) -> Tensor:
        """Return the products (t, n) of some rows: those of their whole numbers, or the given ones."""
        if self.scores is None:
            return _multiplied(numbers, self.quantized.numbers, self.products)
        return self.products[: len(numbers)].copy_(self.scores[0][places])

    def look_through(self, tiles: Sequence[slice], lowest: Tensor, for_tokens: bool = True) -> None:
        """Search the scores of all tiles from the floors ``lowest`` (2, n) of the poles; fill the index if asked."""
        most = self.products.numel()
        pairs, exact = np.empty((2, most), np.int32), np.empty(most, np.float32)
        of_vectors = self.quantized.bounds.T.contiguous().numpy()
        for part in tiles:
            products = self.product(part, self.turned.quantized.numbers[part])
            index = self.index if for_tokens else None
            floors = torch.full((len(products),), torch.inf) if index is None else self.floors(index, part, products)
            count = numba_kernels.look(
                products.numpy(),
                of_vectors,
                self.of_rows[part].numpy(),
                self.vectors.numpy(),
                self.rows.part(part).numpy(),
                part.start,
                floors.numpy(),
                lowest.numpy(),
                self.heaps.numpy(),
                self.sums.numpy(),
                pairs,
                exact,
            )
            if index is not None:
                with index.lock:
                    keys, raised = index.keys.numpy(), index.threshold.numpy()
                    numba_kernels.keep(pairs[:, :count], exact[:count], self.first_id, keys, raised)
            self.rows.rest()

    def floors(self, index: TokenIndex, part: slice, products: Tensor) -> Tensor:
        """Return the least |score| that some tokens keep; where they have met too few, a lower bound of it."""
        floors, size = index.threshold[part].clone(), index.keys.shape[1]
        if index.seen < size <= len(self.vectors) and not bool(floors.all()):
            (step, norm, lost), bounds = self.quantized.bounds.T, self.of_rows[part, :, None]
            errors = lost * bounds[:, 1] + norm * bounds[:, 2]
            certain = (products * (bounds[:, 0] * step)).abs() - errors
            floors = _highest(certain, size).maximum(floors)
        return floors


def _quantizes(rows: Tensor) -> bool:
    """Tell whether products of quantized rows are possible here; otherwise the full product is computed."""
    return numba_kernels is not None and rows.device.type == "cpu"


def _rounds(rows: Tensor) -> bool:
    """Tell whether a product in float16 is worth its rounding."""
    return rows.device.type == "cuda"


def quantized_type() -> torch.dtype:
    """Return the type in which whole numbers are multiplied: the fastest here; the result is the same in any."""
    return torch.int8 if numba_kernels is not None and numba_kernels.INT8 else torch.float32


def _multiplied(rows: Tensor, vectors: Tensor, out: Tensor | None = None) -> Tensor:
    """Return the products (t, n) of whole numbers as int32, in ``out`` if it is given (t rows or more)."""
    out = torch.empty(len(rows), len(vectors), dtype=torch.int32) if out is None else out[: len(rows)]
    if rows.dtype == torch.int8 and rows.shape[1] > 1:  # torch 2.13 misreads the strides of a single column
        return torch._int_mm(rows, vectors.T, out=out)
    return out.copy_(rows.float() @ vectors.float().T)


def _highest(values: Tensor, rank: int) -> Tensor:
    """Return the ``rank``-th highest value along dimension 1; NumPy is three times as fast as torch."""
    place = values.shape[1] - rank
    return torch.from_numpy(np.partition(values.numpy(), place, axis=1)[:, place])


def _turns(covariance: Tensor) -> tuple[Turn, Turn, float]:
    """Return M and N (float32) for vectors and rows, and a bound of ``‖M Nᵀ - I‖``: see the module."""
    # The turn decides how numbers are rounded, and so the bits of the kurtosis.
    values, axes = with_one_thread(lambda: torch.linalg.eigh(covariance.float()))
    # Directions in which rows hardly vary are not blown up; any turn is correct.
    shares, mixing = values.clamp_min(values.amax().clamp_min(1e-30) * 1e-6) ** 0.25, _mixing(len(values))
    turn, other = (axes * shares) @ mixing, (axes / shares) @ mixing
    drift, exact = 0.0, other.double().T
    for part in blocks(len(turn)):
        product = turn[part].double() @ exact
        product.diagonal(part.start).sub_(1.0)
        drift += float(product.square().sum())
    return turned_by(turn), turned_by(other), math.sqrt(drift) * (1 + 1e-6)


def turned_by(matrix: Tensor) -> Turn:
    """Return the turn by a matrix (d, d), with its loss to rounding in float32."""
    # The error of an entry, a sum of m products, is at most m · 2⁻²⁴ times the sum of their sizes.
    return Turn(matrix, (_CHUNK + len(matrix) / _CHUNK + 1) * 2.0**-24 * spectral_bound(matrix))


def _mixing(d: int) -> Tensor:
    """Return an orthogonal matrix (d, d) with entries of similar size: the discrete cosine transform (DCT-II)."""
    places, mixing = torch.arange(d, dtype=torch.float64), torch.empty(d, d)
    for part in blocks(d):
        mixing[part] = torch.cos(torch.pi / d * (places[part, None] + 0.5) * places) * math.sqrt(2 / d)
    mixing[:, 0] *= math.sqrt(0.5)
    return mixing


def quantize(rows: Tensor, turn: Turn) -> Quantized:
    """Turn and quantize vectors or rows (n, d)."""
    turned = torch.zeros_like(rows)
    spare = torch.empty_like(turned)
    for part in blocks(rows.shape[1], _CHUNK):
        turned += torch.mm(rows[:, part], turn.matrix[part], out=spare)
    norms, size = (torch.linalg.vector_norm(x, dim=1) * (1 + 1e-5) for x in (rows, turned))
    numbers, step, lost = to_int8(turned, spare, each=True)
    lost = lost * (1 + 1e-5) + norms * turn.loss + size * (_ROUNDING + rows.shape[1] * 2.0**-24) + 1e-30
    return Quantized(numbers.to(quantized_type()), torch.stack((step, size + lost, lost), 1))


def _unquantized(vectors: Tensor, scale: Tensor) -> Quantized:
    """Return vectors (n, d) with the bounds of products in float32 of the vectors times ``scale`` (n,)."""
    norms = torch.linalg.vector_norm(vectors, dim=1) * (1 + 1e-5)
    # Twice: the exact scores that they are compared with are dot products in float32 too.
    lost = norms * (2 * (vectors.shape[1] + 4) * 2.0**-24 + _ROUNDING) + 1e-30
    step = torch.where(scale > 0, 1 / scale, 0.0)
    return Quantized(vectors, torch.stack((step, norms, lost), 1))


def _bounds_of_exact(norms: Tensor) -> Tensor:
    """Return the bounds (V', 3) of rows that were not rounded."""
    return torch.stack((torch.ones_like(norms), norms * (1 + 1e-5), torch.zeros_like(norms)), 1)


def _kurtosis(means: Tensor) -> Tensor:
    """Compute `statistics.kurtosis` from the means (4, n) of the first four powers."""
    m1, m2, m3, m4 = means
    variance = m2 - m1**2
    central = m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4
    spread = variance > 1e-5 * m2  # less is rounding
    return torch.where(spread, central / variance**2 - 3, torch.zeros_like(m1)).float()
