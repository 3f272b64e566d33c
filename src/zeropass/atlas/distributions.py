"""The scores behind a list: how they are spread, its tokens in a plane, and which tokens lie near one. No torch."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from zeropass.atlas.neighbours import Row, moments, rows_of
from zeropass.atlas.read import Atlas
from zeropass.errors import BadAtlas, BadOption
from zeropass.records.overviews import Cloud, NearestRecord, Point, Spread
from zeropass.records.parameters import Token, TokenScore, VectorRecord

__all__ = ["Neighbours", "clouds", "spreads"]

Floats = npt.NDArray[np.float32]
STEP = 0.25
"""Width of a bin, in standard deviations."""

WIDEST = 400
"""Bins at most: where z runs further (an atlas of a change has no bound), bins are wider."""


def spreads(atlas: Atlas, address: str, marked: int = 6) -> list[Spread]:
    """The spread of the scores of every list of an address, with the first ``marked`` tokens of its poles."""
    records = _vector_records(atlas, address, marked)
    return [_spread(atlas, record, z) for record, z in _with_scores(atlas, records, rows_of(atlas, address))]


def _vector_records(atlas: Atlas, address: str, k: int) -> list[VectorRecord]:
    return [record for record in atlas.explain(address, k=k) if isinstance(record, VectorRecord)]


def _with_scores(
    atlas: Atlas, records: Sequence[VectorRecord], rows: Sequence[Row]
) -> list[tuple[VectorRecord, Floats]]:
    """Each record with z of all tokens (V,); lists of one space share one pass over its rows."""
    own = {(row.run.role, row.run.frame): row for row in rows}
    chosen = [own[record.role, record.frame] for record in records]
    scores: dict[int, Floats] = {}
    for space in dict.fromkeys(atlas.space(row.run) for row in chosen):
        here = [row for row in chosen if atlas.space(row.run) == space]
        vectors = np.stack([atlas.vectors(row.run)[row.row] for row in here])
        scores |= zip([row.id for row in here], vectors @ atlas.rows(space).T, strict=True)
    return [(record, _z(scores[row.id], record)) for record, row in zip(records, chosen, strict=True)]


def _z(scores: Floats, record: VectorRecord) -> Floats:
    return (scores - record.mean) / record.std if record.std > 0 else np.zeros_like(scores)


def _spread(atlas: Atlas, record: VectorRecord, z: Floats) -> Spread:
    shown = z[atlas.mask(record.hidden.view)].astype(np.float64)
    low, high = np.floor(shown.min() / STEP) * STEP, shown.max()
    step = STEP * max(1, int(np.ceil((high - low) / (STEP * WIDEST))))
    counts = np.bincount(((shown - low) / step).astype(np.int64))
    return Spread(
        record.address,
        record.role,
        record.side,
        record.frame,
        float(low),
        float(step),
        tuple(counts.tolist()),
        _kurtosis(shown),
        record.top,
        record.bottom,
        record.hidden,
        record.evidence,
    )


def _kurtosis(values: npt.NDArray[np.float64]) -> float:
    squares = np.square(values - values.mean())
    variance = squares.mean()
    return float(np.square(squares).mean() / variance**2 - 3) if variance > 0 else 0.0


def clouds(atlas: Atlas, address: str, tokens: int = 20) -> list[Cloud]:
    """The first tokens of both poles of every list of an address, in the plane of their principal components."""
    rows = {(row.run.role, row.run.frame): row for row in rows_of(atlas, address)}
    records = _vector_records(atlas, address, tokens)
    return [_cloud(atlas, record, rows[record.role, record.frame]) for record in records]


def _cloud(atlas: Atlas, record: VectorRecord, row: Row) -> Cloud:
    space = atlas.space(row.run)
    listed = list({token.id: token for token in (*record.top, *record.bottom)}.values())
    points = np.asarray(atlas.rows(space)[[token.id for token in listed]], np.float64) - moments(atlas, space)[0]
    flat, shares = plane(points)
    return Cloud(
        record.address,
        record.role,
        record.side,
        record.frame,
        tuple(Point(t.id, t.token, t.z, float(x), float(y)) for t, (x, y) in zip(listed, flat, strict=True)),
        shares,
    )


def plane(points: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], tuple[float, float]]:
    """Points (n, d) scaled to length one, in their two leading principal components (n, 2), and the variance they hold.

    The largest coordinate of each axis is positive, so that equal points give equal pictures.
    """
    sizes = np.linalg.norm(points, axis=1, keepdims=True)
    unit = points / np.where(sizes > 0, sizes, 1)
    u, values, _ = np.linalg.svd(unit - unit.mean(0), full_matrices=False)
    flat = np.zeros((len(points), 2))
    kept = min(2, len(values))
    flat[:, :kept] = u[:, :kept] * values[:kept]
    largest = flat[np.abs(flat).argmax(0), [0, 1]]
    energy = np.square(values).sum()
    shares = [float(value**2 / energy) if energy > 0 else 0.0 for value in (*values[:2], 0.0, 0.0)[:2]]
    return flat * np.where(largest < 0, -1, 1), (shares[0], shares[1])


class Neighbours:
    """Finds tokens near one another in a space: the embedding as the first block meets it, or what is there of it."""

    def __init__(self, atlas: Atlas) -> None:
        self.atlas = atlas

    @cached_property
    def space(self) -> str:
        """The space that tokens are compared in; BadAtlas if the atlas keeps no rows of what tokens are."""
        for space in ("embedded", "token", "paper.read", "output.write"):
            if (self.atlas.path / "rows" / f"{space.replace('.', '-')}.npy").is_file():
                return space
        raise BadAtlas(f"{self.atlas.path} keeps no rows of its tokens; build it again.")

    @cached_property
    def _mean(self) -> Floats:
        mean: Floats = moments(self.atlas, self.space)[0].astype(np.float32)
        return mean

    @cached_property
    def _lengths(self) -> Floats:
        """Lengths (V,) of the centred rows, block by block: a second table would not fit beside the first."""
        rows = self.atlas.rows(self.space)
        parts = [np.linalg.norm(rows[at : at + 4096] - self._mean, axis=1) for at in range(0, len(rows), 4096)]
        return np.concatenate(parts).astype(np.float32)

    def nearest(self, token: int, k: int = 20) -> NearestRecord:
        """The k shown tokens whose centred rows have the highest cosine with that of a token."""
        atlas = self.atlas
        if not 0 <= token < len(atlas.vocab):
            raise BadOption(f"There is no token {token}; the vocabulary has 0 to {len(atlas.vocab) - 1}.")
        rows = atlas.rows(self.space)
        own = rows[token] - self._mean
        sizes = self._lengths * self._lengths[token]
        with np.errstate(divide="ignore", invalid="ignore"):
            cosines = np.where(sizes > 0, (rows @ own - self._mean @ own) / sizes, 0)
        shown = np.flatnonzero(atlas.mask(atlas.view))
        mean, std = float(cosines[shown].mean()), float(cosines[shown].std()) or 1.0
        shown = shown[shown != token]
        best = shown[np.argsort(-cosines[shown], kind="stable")[:k]].tolist()
        found = tuple(TokenScore(i, atlas.label(i), float(cosines[i]), (float(cosines[i]) - mean) / std) for i in best)
        return NearestRecord(Token(token, atlas.label(token)), self.space, found, atlas.hidden(atlas.view))
