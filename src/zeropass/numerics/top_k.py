"""Both poles of many vectors' scores, and each token's strongest vectors, without the product in float32.

A product of whole numbers, with a bound of its error, says where a score may matter; those few are computed again
exactly (design.md §3, end). What is found is what the whole product gives, for less than that takes. On a GPU it is a
product in float16 (`half`); without numba the whole product is made.

Rounding to whole numbers loses least where no coordinate stands out. So vectors x and rows y are turned first, by
matrices M and N with ``M Nᵀ = I``, which leave every score as it is:

    M = A S Q,  N = A S⁻¹ Q,  where the covariance of the rows is A S⁴ Aᵀ and Q mixes all coordinates alike

With hats for what is multiplied, and for the exact turned ones ``X = x M``, ``Y = y N``, a score is no further off than

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
from zeropass.numerics.compiled import numba_top_k
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
"""Rows multiplied at once: the products stay in a processor's cache while they are looked at."""

_VECTORS, _NUMBERS = 1024, 1 << 20
"""Vectors looked through at once, and their numbers, at most: they too stay in the cache."""

SCORES = 512
"""Vectors of which all scores are made at once in float32, where they are."""

SAMPLE = 4096
"""Rows whose scores tell about where the k-th best of all must lie."""

_GROUP = 16
"""Scores of a sample of which only the highest and the lowest are looked at."""

_CHUNK = 64
"""Numbers that are summed in a row in float32 where vectors are turned: short sums round less."""

_STRIDE = 7919
"""A prime: surveys that follow one another begin far apart."""

_ROUNDING = 1e-6
"""What computing scores and bounds in float32 changes, as a share of the norms' product, besides the sums."""


Scores = tuple[Tensor, Tensor]
"""Scores (V', n) times a number (n,) for each vector, and these numbers."""


@dataclass(frozen=True, eq=False)
class Quantized:
    """Vectors (n, d) as whole numbers, and for each (n, 3): the step that one stands for, and bounds of norms.

    The bounds are of what the whole numbers stand for, and of what that is off by (X̂ and X - X̂ above).
    """

    numbers: Tensor
    bounds: Tensor


@dataclass(frozen=True, eq=False)
class Turn:
    """A matrix (d, d) that vectors or rows are turned by, and what that may lose for every unit of their norms."""

    matrix: Tensor
    loss: float


@dataclass(frozen=True, eq=False)
class Turned:
    """Rows (V', d) turned and made whole, bounds (V', 3) of them as they are, and what turns vectors to meet them."""

    quantized: Quantized
    bounds: Tensor
    turn: Turn

    @cached_property
    def some(self) -> Tensor:
        """Places of a sample of the rows, evenly spread: a whole number of groups."""
        count = min(SAMPLE, len(self.bounds)) // _GROUP * _GROUP
        return torch.linspace(0, len(self.bounds) - 1, count).long()

    @cached_property
    def sample(self) -> Tensor:
        """The whole numbers of the sample."""
        return self.quantized.numbers[self.some]


@dataclass(frozen=True, eq=False)
class PreparedRows:
    """Rows (V', d), and the same as whole numbers, or in float16; without either the whole product is made.

    rest: called after each tile of the rows, which may be mapped from a file: their memory can be given back.
    """

    rows: Tensor
    rest: Callable[[], None]
    turned: Turned | None = None
    coarse: HalfRows | None = None

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, eq=False)
class Survey:
    """What is kept of the scores of n vectors: both poles, and the kurtosis (n,), which rounding hardly changes."""

    extremes: Extremes
    kurtosis: Tensor


def prepare_rows(
    rows: Tensor, covariance: Tensor, rest: Callable[[], None] = lambda: None, numbers: Tensor | None = None
) -> PreparedRows:
    """Rows (V', d) float32 made ready for `survey`; their covariance (d, d) need not be exact.

    numbers: a place (V', d) of `quantized_type` for the whole numbers. rest: see `PreparedRows`.
    """
    if not _sieves(rows):
        return PreparedRows(rows, rest, coarse=to_half(rows) if _rounds(rows) else None)
    turn, other, drift = _turns(covariance)
    numbers = torch.empty_like(rows, dtype=quantized_type()) if numbers is None else numbers
    quantized, norms = Quantized(numbers, rows.new_empty(len(rows), 3)), rows.new_empty(len(rows))
    longest = 0.0
    for part in blocks(len(rows), _TILE):
        made = quantize(rows[part], other)
        quantized.numbers[part], quantized.bounds[part] = made.numbers, made.bounds
        norms[part], size = torch.linalg.vector_norm(rows[part], dim=1), made.bounds[:, 1]
        longest = max(longest, float(torch.where(size > 0, norms[part] / size, 0.0).amax()))
        rest()
    # An exact score is a dot product in float32: it is off as well.
    slack = (drift + rows.shape[1] * 2.0**-24) * longest * 1.01
    return PreparedRows(rows, rest, Turned(quantized, _as_they_are(norms), replace(turn, loss=turn.loss + slack)))


def rounded_size(count: int, d: int) -> int:
    """Bytes of rows (count, d) as whole numbers; 0 where the whole product is made."""
    return count * d * quantized_type().itemsize if numba_top_k is not None else 0


def passing_size(d: int) -> int:
    """Return the bytes that `prepare_rows` and `survey` take for a while; 0 where the whole product is made."""
    each = _most(d) * (16 * _TILE + 16 * d)  # products and what is found in them; vectors turned, and as whole numbers
    return (
        40 * d**2 + 2 * torch.get_num_threads() * each if numba_top_k is not None else 0
    )  # malloc keeps some for each


def survey(
    vectors: Tensor,
    rows: PreparedRows,
    k: int,
    ids: Tensor,
    index: TokenIndex,
    first_id: int,
    made: Scores | None = None,
) -> Survey:
    """Look through the scores of (n, d) vectors and (V', d) rows, made by `prepare_rows`.

    k: scores a pole. ids: (V',) names of the rows. index: takes in the scores of the vectors ``first_id …``.
    made: the scores (V', n) times a number (n,) for each vector, and these numbers, if a product in float32 has been
    made anyway; what is kept is the same.
    """
    k = min(k, len(rows))
    if rows.coarse is not None:
        surveys: list[Survey] = []
        while len(vectors):
            part, vectors = vectors.tensor_split([half.part_size(len(rows), index.seen, vectors.device)])
            surveys.append(_rounded(part, rows, k, ids, index, first_id))
            first_id += len(part)
        return joined(surveys)
    if rows.turned is None:
        parts = blocks(len(vectors), SCORES)
        return joined([_product(vectors[part], rows, k, ids, index, first_id + part.start) for part in parts])
    with index.lock:
        index.flush()
    tiles = _tiles(len(rows), first_id)
    shares = list(_shares(len(vectors), _most(vectors.shape[1]), torch.get_num_threads()))

    def look(part: slice) -> Survey:
        own = made and (made[0][:, part], made[1][part])
        return _Survey(vectors[part], rows, k, index, first_id + part.start, own).run(ids, tiles)

    found = side_by_side(look, shares)
    with index.lock:
        index.seen += len(vectors)
    return joined(found)


def _tiles(count: int, first_id: int) -> list[slice]:
    """Tiles of the rows, from one on that the first vector of a set decides, and so not the number of threads.

    A survey that goes on beside this one begins elsewhere, and each meets tokens whose floors the other has raised.
    """
    tiles = list(blocks(count, _TILE))
    begin = first_id * _STRIDE % len(tiles)
    return tiles[begin:] + tiles[:begin]


def _shares(count: int, most: int, threads: int) -> Iterator[slice]:
    """Blocks of so many vectors, as many for each thread."""
    rounds = max(1, -(-count // (threads * most)))
    return blocks(count, max(1, -(-count // (rounds * threads))))


def _most(d: int) -> int:
    """Vectors of width d that are looked through at once."""
    return min(_VECTORS, max(1, _NUMBERS // d))


def joined(found: Sequence[Survey]) -> Survey:
    """Surveys of vectors that follow one another, as one."""
    poles = (
        torch.cat([getattr(one.extremes, name) for one in found]) for name in ("top", "top_ids", "bottom", "bottom_ids")
    )
    return Survey(Extremes(*poles), torch.cat([one.kurtosis for one in found]))


def _product(vectors: Tensor, rows: PreparedRows, k: int, ids: Tensor, index: TokenIndex, first_id: int) -> Survey:
    """The same from the whole product in float32."""
    scores = vectors @ rows.rows.T
    with index.lock:
        index.offer(scores, first_id)
    return Survey(extremes(scores, k, ids), kurtosis(scores))


def _rounded(vectors: Tensor, rows: PreparedRows, k: int, ids: Tensor, index: TokenIndex, first_id: int) -> Survey:
    """The same from the product in float16."""
    assert rows.coarse is not None
    rough = half.product(to_half(vectors), rows.coarse)
    if index.seen >= index.keys.shape[1] and half.fused(vectors.device, len(rows), k):
        with index.lock:
            poles, means = half.kept(rough, vectors, rows.rows, k, ids, index, first_id)
        return Survey(poles, _kurtosis(means.double()))
    with index.lock:
        half.tokens_of(rough, vectors, rows.rows, index, first_id)
    return Survey(half.poles_of(rough, vectors, rows.rows, k, ids), kurtosis(rough.scores))


class _Survey:
    """The running best of both poles of each vector, and the sums over what was looked at."""

    def __init__(
        self, vectors: Tensor, rows: PreparedRows, k: int, index: TokenIndex, first_id: int, made: Scores | None
    ) -> None:
        assert rows.turned is not None
        self.vectors, self.rows, self.k, self.index, self.first_id, self.made = vectors, rows, k, index, first_id, made
        self.turned = turned = rows.turned
        if made is None:
            self.quantized, self.of_rows = quantize(vectors, turned.turn), turned.quantized.bounds
        else:
            self.quantized, self.of_rows = _as_made(vectors, made[1]), turned.bounds
        # Fresh memory each time would take as long as the products.
        tile = min(_TILE, len(rows)), len(vectors)
        self.products = torch.empty(tile, dtype=torch.int32 if made is None else torch.float32)
        self.heaps = torch.full((2, len(vectors), k), EMPTY)
        self.sums = torch.zeros(4, len(vectors), dtype=torch.float64)

    def run(self, ids: Tensor, tiles: Sequence[slice]) -> Survey:
        """Look through all tiles; once more, for their poles, at vectors for which too much was expected."""
        self.look_through(tiles, self.guess())
        short = (self.heaps == EMPTY).any(2).any(0)
        if short.any():
            made = self.made and (self.made[0][:, short], self.made[1][short])
            again = _Survey(self.vectors[short], self.rows, self.k, self.index, self.first_id, made)
            again.look_through(tiles, torch.full((2, len(again.vectors)), -torch.inf), for_tokens=False)
            self.heaps[:, short] = again.heaps
        (top, bottom), at = decoded(self.heaps.sort(dim=2, descending=True).values)
        return Survey(Extremes(top, ids[at[0]], -bottom, ids[at[1]]), _kurtosis(self.sums / len(self.rows)))

    def guess(self) -> Tensor:
        """Scores (2, n) that k of each vector's are likely to reach, from a sample: else all would be looked at."""
        some = self.turned.some
        expected = self.k * len(some) / len(self.rows)
        rank, groups = math.ceil(expected + 3 * math.sqrt(expected)), len(some) // _GROUP
        if not 0 < rank <= groups:
            return torch.full((2, len(self.vectors)), -torch.inf)
        ends = torch.full((2, groups, len(self.vectors)), -torch.inf)
        for part in blocks(len(some), _TILE):
            products = self.product(some[part], self.turned.sample[part])
            numba_top_k.raise_ends(products.numpy(), self.of_rows[some[part]].numpy(), part.start, ends.numpy())
        return _highest(ends, rank) * self.quantized.bounds[:, 0]

    def product(self, at: Tensor | slice, numbers: Tensor) -> Tensor:
        """The products (t, n) of some rows: of their whole numbers, unless they have been made."""
        if self.made is None:
            return _multiplied(numbers, self.quantized.numbers, self.products)
        return self.products[: len(numbers)].copy_(self.made[0][at])

    def look_through(self, tiles: Sequence[slice], lowest: Tensor, for_tokens: bool = True) -> None:
        """Take in all scores; lowest (2, n): what the poles keep at least. The tokens take in theirs if they may."""
        most = self.products.numel()
        found, exact = np.empty((2, most), np.int32), np.empty(most, np.float32)
        of_vectors = self.quantized.bounds.T.contiguous().numpy()
        for part in tiles:
            products = self.product(part, self.turned.quantized.numbers[part])
            floors = self.floors(part, products) if for_tokens else torch.full((len(products),), torch.inf)
            count = numba_top_k.look(
                products.numpy(),
                of_vectors,
                self.of_rows[part].numpy(),
                self.vectors.numpy(),
                self.rows.rows[part].numpy(),
                part.start,
                floors.numpy(),
                lowest.numpy(),
                self.heaps.numpy(),
                self.sums.numpy(),
                found,
                exact,
            )
            with self.index.lock:
                keys, raised = self.index.keys.numpy(), self.index.threshold.numpy()
                numba_top_k.keep(found[:, :count], exact[:count], self.first_id, keys, raised)
            self.rows.rest()

    def floors(self, part: slice, products: Tensor) -> Tensor:
        """How large the scores are that some tokens keep; of those that have not met as many yet, what is sure."""
        kept, size = self.index.threshold[part].clone(), self.index.keys.shape[1]
        if self.index.seen < size <= len(self.vectors) and not bool(kept.all()):
            (step, norm, lost), bounds = self.quantized.bounds.T, self.of_rows[part, :, None]
            errors = lost * bounds[:, 1] + norm * bounds[:, 2]
            sure = (products * (bounds[:, 0] * step)).abs() - errors
            kept = _highest(sure, size).maximum(kept)
        return kept


def _sieves(rows: Tensor) -> bool:
    """Whether there is what sieves here; else the whole product is made."""
    return numba_top_k is not None and rows.device.type == "cpu"


def _rounds(rows: Tensor) -> bool:
    """Whether a product in float16 is worth its rounding."""
    return rows.device.type == "cuda"


def quantized_type() -> torch.dtype:
    """The type that whole numbers are multiplied in: what is fastest here, and the result is the same."""
    return torch.int8 if numba_top_k is not None and numba_top_k.INT8 else torch.float32


def _multiplied(rows: Tensor, vectors: Tensor, out: Tensor | None = None) -> Tensor:
    """The products (t, n) of whole numbers, int32; ``out``: a place of t rows or more for them."""
    out = torch.empty(len(rows), len(vectors), dtype=torch.int32) if out is None else out[: len(rows)]
    if rows.dtype == torch.int8 and rows.shape[1] > 1:  # of one column torch 2.13's product misreads the strides
        return torch._int_mm(rows, vectors.T, out=out)
    return out.copy_(rows.float() @ vectors.float().T)


def _highest(values: Tensor, rank: int) -> Tensor:
    """The ``rank``-th highest along the second dimension; NumPy finds it three times as fast as torch."""
    place = values.shape[1] - rank
    return torch.from_numpy(np.partition(values.numpy(), place, axis=1)[:, place])


def _turns(covariance: Tensor) -> tuple[Turn, Turn, float]:
    """M and N (float32) for vectors and rows, and a bound of ``‖M Nᵀ - I‖``: see above."""
    # On the turn depends how numbers are rounded, and so the kurtosis.
    values, axes = with_one_thread(lambda: torch.linalg.eigh(covariance.float()))
    # Where rows hardly vary they are not blown up; the turn may be any.
    shares, mixing = values.clamp_min(values.amax().clamp_min(1e-30) * 1e-6) ** 0.25, _mixing(len(values))
    turn, other = (axes * shares) @ mixing, (axes / shares) @ mixing
    drift, exact = 0.0, other.double().T
    for part in blocks(len(turn)):
        product = turn[part].double() @ exact
        product.diagonal(part.start).sub_(1.0)
        drift += float(product.square().sum())
    return turned_by(turn), turned_by(other), math.sqrt(drift) * (1 + 1e-6)


def turned_by(matrix: Tensor) -> Turn:
    """A turn (d, d), with what sums in float32 lose by it."""
    # Entry by entry a sum of so many products is off by so many times 2⁻²⁴ of the sum of their sizes.
    return Turn(matrix, (_CHUNK + len(matrix) / _CHUNK + 1) * 2.0**-24 * spectral_bound(matrix))


def _mixing(d: int) -> Tensor:
    """An orthogonal matrix (d, d) with entries of like size: the discrete cosine transform (DCT-II)."""
    at, mixing = torch.arange(d, dtype=torch.float64), torch.empty(d, d)
    for part in blocks(d):
        mixing[part] = torch.cos(torch.pi / d * (at[part, None] + 0.5) * at) * math.sqrt(2 / d)
    mixing[:, 0] *= math.sqrt(0.5)
    return mixing


def quantize(rows: Tensor, turn: Turn) -> Quantized:
    """Vectors or rows (n, d), turned, as whole numbers."""
    turned = torch.zeros_like(rows)
    spare = torch.empty_like(turned)
    for part in blocks(rows.shape[1], _CHUNK):
        turned += torch.mm(rows[:, part], turn.matrix[part], out=spare)
    norms, size = (torch.linalg.vector_norm(x, dim=1) * (1 + 1e-5) for x in (rows, turned))
    numbers, step, lost = to_int8(turned, spare, each=True)
    lost = lost * (1 + 1e-5) + norms * turn.loss + size * (_ROUNDING + rows.shape[1] * 2.0**-24) + 1e-30
    return Quantized(numbers.to(quantized_type()), torch.stack((step, size + lost, lost), 1))


def _as_made(vectors: Tensor, scale: Tensor) -> Quantized:
    """What products in float32 with (n, d) vectors times ``scale`` stand for; such a product is off by a little."""
    norms = torch.linalg.vector_norm(vectors, dim=1) * (1 + 1e-5)
    # Twice: what they are compared with are dot products in float32 as well.
    lost = norms * (2 * (vectors.shape[1] + 4) * 2.0**-24 + _ROUNDING) + 1e-30
    step = torch.where(scale > 0, 1 / scale, 0.0)
    return Quantized(vectors, torch.stack((step, norms, lost), 1))


def _as_they_are(norms: Tensor) -> Tensor:
    """Bounds (V', 3) of rows that were not rounded."""
    return torch.stack((torch.ones_like(norms), norms * (1 + 1e-5), torch.zeros_like(norms)), 1)


def _kurtosis(means: Tensor) -> Tensor:
    """`statistics.kurtosis` from the means (4, n) of the first four powers."""
    one, two, three, four = means
    variance = two - one**2
    central = four - 4 * one * three + 6 * one**2 * two - 3 * one**4
    spread = variance > 1e-5 * two  # less is rounding
    return torch.where(spread, central / variance**2 - 3, torch.zeros_like(one)).float()
