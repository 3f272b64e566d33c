"""The scores behind a list: their distribution, its tokens in a plane, and the neighbours of a token. No torch."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from zeropass.atlas.neighbours import Row, rows_of
from zeropass.atlas.read import Atlas
from zeropass.errors import BadAtlas, BadOption
from zeropass.records.overviews import Cloud, NearestRecord, Point, Spread
from zeropass.records.parameters import Token, TokenScore, VectorRecord

__all__ = ["Neighbours", "clouds", "spreads"]

Floats = npt.NDArray[np.float32]
STEP = 0.25
"""The width of a bin, in standard deviations."""

WIDEST = 400
"""The largest number of bins: bins are wider where z runs further (in an atlas of a change, z has no bound)."""


def spreads(atlas: Atlas, address: str, marked: int = 6) -> list[Spread]:
    """Return the distribution of the scores of every list of an address.

    Args:
        atlas: The atlas.
        address: Address of vectors.
        marked: Number of tokens of each pole to mark.
    """
    records = _vector_records(atlas, address, marked)
    return [_spread(atlas, record, z) for record, z in _with_scores(atlas, records, rows_of(atlas, address))]


def _vector_records(atlas: Atlas, address: str, k: int) -> list[VectorRecord]:
    return [record for record in atlas.explain(address, k=k) if isinstance(record, VectorRecord)]


def _with_scores(
    atlas: Atlas, records: Sequence[VectorRecord], rows: Sequence[Row]
) -> list[tuple[VectorRecord, Floats]]:
    """Return each record with the z of all tokens (V,); the lists of one space share one pass over its rows."""
    by_list = {(row.run.role, row.run.frame): row for row in rows}
    record_rows = [by_list[record.role, record.frame] for record in records]
    scores: dict[int, Floats] = {}
    for space in dict.fromkeys(atlas.space(row.run) for row in record_rows):
        space_rows = [row for row in record_rows if atlas.space(row.run) == space]
        vectors = np.stack([atlas.vector(row.run, row.row) for row in space_rows])
        for row, products in zip(space_rows, vectors @ atlas.rows(space).T, strict=True):
            factors = atlas.factors(row.run)
            scores[row.id] = products if factors is None else products * factors
    return [(record, _z(scores[row.id], record)) for record, row in zip(records, record_rows, strict=True)]


def _z(scores: Floats, record: VectorRecord) -> Floats:
    return (scores - record.mean) / record.std if record.std > 0 else np.zeros_like(scores)


def _spread(atlas: Atlas, record: VectorRecord, z: Floats) -> Spread:
    shown = z[atlas.mask(record.hidden.view)].astype(np.float64)
    low, high = np.floor(shown.min() / STEP) * STEP, shown.max()
    step = STEP * max(1, int(np.ceil((high - low) / (STEP * WIDEST))))
    counts = np.bincount(((shown - low) / step).astype(np.int64))
    return Spread(
        address=record.address,
        role=record.role,
        side=record.side,
        frame=record.frame,
        low=float(low),
        step=float(step),
        counts=tuple(counts.tolist()),
        kurtosis=_kurtosis(shown),
        top=record.top,
        bottom=record.bottom,
        hidden=record.hidden,
        evidence=record.evidence,
    )


def _kurtosis(values: npt.NDArray[np.float64]) -> float:
    squares = np.square(values - values.mean())
    variance = squares.mean()
    return float(np.square(squares).mean() / variance**2 - 3) if variance > 0 else 0.0


def clouds(atlas: Atlas, address: str, tokens: int = 20) -> list[Cloud]:
    """Return the first tokens of both poles of every list of an address, in the plane of their principal components.

    Args:
        atlas: The atlas.
        address: Address of vectors.
        tokens: Number of tokens of each pole.
    """
    rows = {(row.run.role, row.run.frame): row for row in rows_of(atlas, address)}
    records = _vector_records(atlas, address, tokens)
    return [_cloud(atlas, record, rows[record.role, record.frame]) for record in records]


def _cloud(atlas: Atlas, record: VectorRecord, row: Row) -> Cloud:
    space = atlas.space(row.run)
    listed = list({token.id: token for token in (*record.top, *record.bottom)}.values())
    points = np.asarray(atlas.rows_at(space, [token.id for token in listed]), np.float64) - atlas.moments(space)[0]
    flat, shares = plane(points)
    return Cloud(
        address=record.address,
        role=record.role,
        side=record.side,
        frame=record.frame,
        points=tuple(
            Point(id=t.id, token=t.token, z=t.z, x=float(x), y=float(y)) for t, (x, y) in zip(listed, flat, strict=True)
        ),
        shares=shares,
    )


def plane(points: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], tuple[float, float]]:
    """Project points, scaled to length one, to their two leading principal components.

    The largest coordinate of each axis is positive, so that equal points give equal pictures.

    Args:
        points: Points, (n, d).

    Returns:
        The projected points, (n, 2), and the share of the variance that each component holds.
    """
    sizes = np.linalg.norm(points, axis=1, keepdims=True)
    unit = points / np.where(sizes > 0, sizes, 1)
    u, values, _ = np.linalg.svd(unit - unit.mean(0), full_matrices=False)
    flat = np.zeros((len(points), 2))
    count = min(2, len(values))
    flat[:, :count] = u[:, :count] * values[:count]
    largest = flat[np.abs(flat).argmax(0), [0, 1]]
    energy = np.square(values).sum()
    shares = [float(value**2 / energy) if energy > 0 else 0.0 for value in (*values[:2], 0.0, 0.0)[:2]]
    return flat * np.where(largest < 0, -1, 1), (shares[0], shares[1])


class Neighbours:
    """A search for neighbouring tokens in a space: the embedding that the first block reads, or the closest there is.

    Attributes:
        atlas: The atlas.
    """

    def __init__(self, atlas: Atlas) -> None:
        self.atlas = atlas

    @cached_property
    def space(self) -> str:
        """The space that tokens are compared in; BadAtlas if the atlas keeps no rows for it."""
        for space in ("embedded", "token", "paper.read", "output.write"):
            if self.atlas.has_rows(space):
                return space
        raise BadAtlas(f"{self.atlas.path} keeps no rows of its tokens; build it again.")

    @cached_property
    def _mean(self) -> Floats:
        mean: Floats = self.atlas.moments(self.space)[0].astype(np.float32)
        return mean

    @cached_property
    def _lengths(self) -> Floats:
        """Lengths of the centred rows, (V,), computed in blocks: memory may not hold a second table."""
        rows = self.atlas.rows(self.space)
        starts = range(0, len(rows), 4096)
        blocks = [np.linalg.norm(rows[start : start + 4096] - self._mean, axis=1) for start in starts]
        return np.concatenate(blocks).astype(np.float32)

    def nearest(self, token: int, k: int = 20) -> NearestRecord:
        """Return the k shown tokens whose centred rows have the highest cosines with that of a token."""
        atlas = self.atlas
        if not 0 <= token < len(atlas.vocab):
            raise BadOption(f"There is no token {token}; the vocabulary has 0 to {len(atlas.vocab) - 1}.")
        rows = atlas.rows(self.space)
        centred = rows[token] - self._mean
        sizes = self._lengths * self._lengths[token]
        with np.errstate(divide="ignore", invalid="ignore"):
            cosines = np.where(sizes > 0, (rows @ centred - self._mean @ centred) / sizes, 0)
        shown = np.flatnonzero(atlas.mask(atlas.view))
        mean, std = float(cosines[shown].mean()), float(cosines[shown].std()) or 1.0
        shown = shown[shown != token]
        best = shown[np.argsort(-cosines[shown], kind="stable")[:k]].tolist()
        scores = tuple(
            TokenScore(id=i, token=atlas.label(i), score=float(cosines[i]), z=(float(cosines[i]) - mean) / std)
            for i in best
        )
        return NearestRecord(
            token=Token(token, atlas.label(token)), space=self.space, tokens=scores, hidden=atlas.hidden(atlas.view)
        )
