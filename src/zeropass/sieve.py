"""Both poles of many vectors' scores, and each token's strongest vectors, without the product in float32.

A product of rounded numbers, with a bound of its error, says where a score may matter; those few are computed again
exactly (design.md §3, end). What is found is what the whole product gives, for less than that takes. Without numba,
or on another device than the processor, the whole product is what is made.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zeropass.hits import EMPTY, HitList, decoded
from zeropass.projection import Extremes, extremes
from zeropass.statistics import blocks, kurtosis

try:
    from zeropass import compiled
except (ImportError, RuntimeError):  # numba is an extra; it says RuntimeError if it may write what it compiles nowhere
    compiled = None  # type: ignore[assignment]

__all__ = ["Sieved", "Survey", "rounded_size", "sieved", "survey"]

_TILE = 4096
"""Rows multiplied at once: with 512 vectors the scores stay in a processor's cache while they are looked at."""

_GROUP = 16
"""Scores of which the highest and the lowest tell where the best of all must lie."""


@dataclass(frozen=True, eq=False)
class Sieved:
    """Rows (V', d), the same rounded, and bounds (V', 2) of what that does: see `_rounded`.

    rest: called after each tile of the rows, which may be mapped from a file: their memory can be given back.
    """

    rows: Tensor
    rough: Tensor
    bounds: Tensor
    rest: Callable[[], None]

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, eq=False)
class Survey:
    """What is kept of the scores of n vectors: both poles, and the kurtosis (n,), which rounding hardly changes."""

    extremes: Extremes
    kurtosis: Tensor


def sieved(rows: Tensor, rest: Callable[[], None] = lambda: None) -> Sieved:
    """Rows (V', d) float32 made ready for `survey`."""
    if not _sieves(rows):
        return Sieved(rows, rows, rows[:, :0], rest)
    rough, bounds = torch.empty_like(rows, dtype=_rough_type()), rows.new_empty(len(rows), 2)
    for part in blocks(len(rows), _TILE):
        rough[part], bounds[part] = _rounded(rows[part])
        rest()
    return Sieved(rows, rough, bounds, rest)


def rounded_size(count: int, d: int) -> int:
    """Bytes that `sieved` takes besides rows (count, d); 0 where the whole product is made."""
    return count * d * _rough_type().itemsize if compiled is not None else 0


def survey(vectors: Tensor, rows: Sieved, k: int, ids: Tensor, hits: HitList, first_id: int) -> Survey:
    """Look through the scores of (n, d) vectors and (V', d) rows, made by `sieved`.

    k: scores a pole. ids: (V',) names of the rows. hits: takes in the scores of the vectors ``first_id …``.
    """
    k = min(k, len(rows))
    if not _sieves(vectors):
        scores = vectors @ rows.rows.T
        hits.offer(scores, first_id)
        return Survey(extremes(scores, k, ids), kurtosis(scores))
    found, threads = _Survey(vectors, rows, k, hits, first_id), torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:
        return found.run(pool, threads, ids)


@dataclass(frozen=True, eq=False)
class _Tile:
    """Rounded scores (n, t) of some rows, where these are, their bounds (t, 2), and what rounding does at most.

    most: (n,), to any score of a vector; slack: (t,), to any score of a row.
    """

    scores: Tensor
    part: slice
    bounds: Tensor
    most: Tensor
    slack: Tensor


class _Survey:
    """The running best of both poles of each vector, and the sums over what was looked at."""

    def __init__(self, vectors: Tensor, rows: Sieved, k: int, hits: HitList, first_id: int) -> None:
        self.vectors, self.rows, self.k, self.hits, self.first_id = vectors, rows, k, hits, first_id
        self.rough, self.bounds = _rounded(vectors)
        norm, lost = self.bounds.T
        self.longest, self.rate = norm.amax(), torch.where(norm > 0, lost / norm, 0.0).amax()
        self.heaps = torch.full((2, len(vectors), k), EMPTY)
        self.lowest = torch.full((2, len(vectors)), -torch.inf)
        self.sums = torch.zeros(4, len(vectors), dtype=torch.float64)
        self.spare = torch.empty(2, len(vectors), min(_TILE, len(rows)))

    def run(self, pool: ThreadPoolExecutor, threads: int, ids: Tensor) -> Survey:
        """Look through all tiles, each thread through the scores of its share of the vectors."""
        self.hits.flush()
        shares = list(blocks(len(self.vectors), -(-len(self.vectors) // threads)))
        for part in blocks(len(self.rows), _TILE):
            tile = self.tile(part)
            self.add_powers(tile.scores)
            if part.start == 0:
                self.set_floors(tile)
            self.set_thresholds(tile)
            floors = self.hits.threshold[part].clone()  # the shares must not depend on one another
            for own, found in pool.map(lambda own: (own, self.look(own, tile, floors)), shares):  # noqa: B023
                compiled.keep(*found, self.first_id + own.start, self.hits.keys.numpy(), self.hits.threshold.numpy())
            self.rows.rest()
        self.hits.seen += len(self.vectors)
        (top, bottom), at = decoded(self.heaps.sort(dim=2, descending=True).values)
        return Survey(Extremes(top, ids[at[0]], -bottom, ids[at[1]]), _kurtosis(self.sums / len(self.rows)))

    def tile(self, part: slice) -> _Tile:
        """The rounded scores of some rows."""
        bounds, (norm, lost) = self.rows.bounds[part], self.bounds.T
        most = norm * bounds[:, 1].amax() + lost * bounds[:, 0].amax()
        slack = self.longest * (bounds[:, 1] + self.rate * bounds[:, 0])
        scores = torch.mm(self.rough, self.rows.rough[part].T).float()
        return _Tile(scores, part, bounds, most, slack)

    def add_powers(self, scores: Tensor) -> None:
        """Add the first four powers of each vector's scores to the sums."""
        squares, cubes = self.spare[:, :, : scores.shape[1]]  # fresh memory would take longer than the products
        torch.mul(scores, scores, out=squares)
        torch.mul(squares, scores, out=cubes)
        self.sums[:3] += torch.stack((scores.sum(1), squares.sum(1), cubes.sum(1)))
        self.sums[3] += squares.square_().sum(1)

    def set_floors(self, tile: _Tile) -> None:
        """Of k groups' highest scores the lowest is one that k scores reach: without it all would be looked at."""
        groups = tile.scores.shape[1] // _GROUP
        if groups >= self.k:
            grouped = tile.scores[:, : groups * _GROUP].reshape(-1, _GROUP, groups)
            for lowest, ends in zip(self.lowest, (grouped.amax(1), -grouped.amin(1)), strict=True):
                lowest.copy_(_lowered(ends.topk(self.k).values[:, -1] - tile.most))

    def set_thresholds(self, tile: _Tile) -> None:
        """The same for tokens that have not met as many vectors yet as they keep."""
        size = self.hits.keys.shape[1]
        if self.hits.seen < size <= len(self.vectors):
            sure = (tile.scores.abs() - tile.slack).T.contiguous().topk(size).values[:, -1]
            self.hits.threshold[tile.part] = _lowered(sure).maximum(self.hits.threshold[tile.part])

    def look(self, own: slice, tile: _Tile, floors: Tensor) -> tuple[Any, Any]:
        """Take in the scores of some vectors; returns what the tokens may keep, as `compiled.keep` takes it."""
        n, t = own.stop - own.start, tile.scores.shape[1]
        found, exact = np.empty((2, n * t), np.int32), np.empty(n * t, np.float32)
        count = compiled.look(
            tile.scores[own].numpy(),
            (self.bounds[own].numpy(), tile.bounds.numpy(), tile.most[own].numpy()),
            self.vectors[own].numpy(),
            self.rows.rows[tile.part].numpy(),
            tile.part.start,
            (_lowered(floors) - tile.slack).numpy(),
            floors.numpy(),
            self.lowest[:, own].numpy(),
            self.heaps[:, own].numpy(),
            found,
            exact,
        )
        return found[:, :count], exact[:count]


def _sieves(rows: Tensor) -> bool:
    """Whether there is what sieves here; else the whole product is made."""
    return compiled is not None and rows.device.type == "cpu"


def _rough_type() -> torch.dtype:
    """The type whose products are fastest here."""
    return torch.bfloat16 if compiled is not None and compiled.BFLOAT16 else torch.float32


def _rounded(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (n, d) of the type that is multiplied fastest here, and bounds (n, 2) of what that does to a product.

    The bounds are norm and lost: a product of rounded x and y is off by at most
    ``lost(x) · norm(y) + norm(x) · lost(y)``, and then rounded once more.
    """
    rough = rows.to(_rough_type())
    kept = torch.linalg.vector_norm(rough, dim=1, dtype=torch.float32)
    norm = torch.maximum(torch.linalg.vector_norm(rows, dim=1), kept) * (1 + 1e-5)
    lost = torch.linalg.vector_norm(rows - rough, dim=1) * (1 + 1e-5)
    # A float32 sum of d products is off by d · 2⁻²⁴ of the norms at most: once here, once on the other side, so
    # that it covers the rounded product's sum and the exact one's.
    return rough, torch.stack((norm, lost + norm * rows.shape[1] * 2.0**-23 + 1e-30), 1)


def _lowered(floor: Tensor) -> Tensor:
    """What a score reaches, after it was rounded to bfloat16, if it reached a floor before."""
    return floor - floor.abs() * float(compiled.ROUNDING)


def _kurtosis(means: Tensor) -> Tensor:
    """`statistics.kurtosis` from the means (4, n) of the first four powers."""
    one, two, three, four = means
    variance = two - one**2
    central = four - 4 * one * three + 6 * one**2 * two - 3 * one**4
    return torch.where(variance > 0, central / variance**2 - 3, torch.zeros_like(one)).float()
