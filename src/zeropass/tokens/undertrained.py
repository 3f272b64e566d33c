"""Detection of under-trained tokens from the embedding rows and the tokenizer's merges alone.

The rows of such tokens top nearly every raw list, so lists hide them (docs/theory.md §8).
There are three signs, each judged by the table's own statistics and not by a fixed norm or cosine:

1. An intermediate step of a merge (`` strugg``) whose row is longer, and further along the mean row, than
   the rows of tokens of similar rank that are not such steps. Those tokens give the null distribution:
   empirical p-values, then Benjamini and Hochberg (1995) at a false discovery rate of 1%.
2. Rows that form a second, tight mode close to the mean row (BERT's ``[unused7]``, and characters that its
   pre-tokenizer never lets through).
3. Rows that are copies of one another up to rounding (reserved or padding rows that only drifted together).

A table in which nothing stands out, such as one of random Gaussian rows, has no under-trained tokens.
"""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["Judgement", "judge", "undertrained"]

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

FALSE_SHARE = (
    0.01  # false discovery rate of under-trained tokens: wrongly hiding a word costs more than showing a stray token
)
LOOSE_SHARE = 0.05  # that of fragments, which the merges must confirm
MOST = 0.5  # a token is a fragment if one longer token takes more than this share of its occurrences
BLOCK = 512  # rows for one local median; smaller tables are not judged, as their statistics say nothing
ROWS = 512  # rows held at a time in float64; malloc reuses memory of this size for the next block
MODE_SIGMA = 5.0  # how far a second mode must rise above the valley, in its counting error
MODE_WIDTH = 0.5  # and how tight it must be, as a fraction of the width of the main mode
COPY_SPREAD = 0.1  # copies differ by less than this fraction of the typical distance to the mean row
COPY_BITS, COPY_TRIES, COPY_TWINS = 16, 3, 2  # random hyperplanes, repeats, other copies required
PLACE_SLACK = 1.001  # factor on a radius between places, which are rounded to float32


class Table(Protocol):
    """An embedding (V, d): an array, or an object that reads one from a file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape (V, d)."""

    def __len__(self) -> int: ...

    def __getitem__(self, at: slice | npt.NDArray[np.int64], /) -> npt.NDArray[np.floating]:
        """Return the rows of a slice, or of ascending ids."""


class Judgement(NamedTuple):
    """The judgement of every token by its row: two boolean arrays of shape (V,)."""

    undertrained: Bools
    fragments: Bools
    """Tokens with an outlying row that are mostly part of one longer token; looser, and only for the view of words."""


def undertrained(embedding: Table, swallowed: npt.NDArray[np.generic]) -> Bools:
    """Return a mask (V,) of the under-trained tokens; see `judge` for the arguments."""
    return judge(embedding, swallowed).undertrained


def judge(embedding: Table, swallowed: npt.NDArray[np.generic]) -> Judgement:
    """Judge every token of an embedding.

    The table is read in blocks of rows and never held; memory is needed for some dozens of numbers a token.

    Args:
        embedding: Rows (V, d) in order of rank, as the ids of BPE tokenizers are.
        swallowed: Result of ``Vocabulary.swallowed()``, (V,): the largest share of a token's occurrences that one
            longer token takes, 0 for a token that no merge uses, NaN for one that no merge makes. A boolean array of
            merge steps works too.
    """
    none = np.zeros(len(embedding), dtype=np.bool_)
    if len(embedding) < BLOCK:
        return Judgement(none, none.copy())
    share = np.asarray(swallowed, dtype=np.float64)
    mean = _mean(embedding)
    norm, along, distance = _measures(embedding, mean)
    low = _second_mode(distance)
    steps = (share > 0) & ~low
    null = (share == 0) & ~low
    score = none.astype(np.float64)
    if null.sum() >= BLOCK and steps.any():
        score = _local_z(_safe_log(norm), null) + _local_z(along, null)
    outlying = discoveries(score, steps, null, FALSE_SHARE)
    loose = discoveries(score, steps & (share > MOST), null, LOOSE_SHARE)
    flagged = outlying | low | _copies(embedding, mean, float(np.median(distance)))
    return Judgement(flagged, flagged | loose)


def discoveries(score: Floats, candidates: Bools, null: Bools, false_share: float) -> Bools:
    """Return the candidates that score higher than the null explains, at a false discovery rate.

    Benjamini and Hochberg's step-up rule is applied to empirical p-values (1 + nulls at least as high) / (1 + nulls).

    Args:
        score: Score of every token, (V,).
        candidates: Mask (V,) of the tokens to test.
        null: Mask (V,) of the tokens whose scores are the null distribution.
        false_share: False discovery rate.
    """
    discovered = np.zeros(len(score), dtype=np.bool_)
    ids = np.flatnonzero(candidates)
    ordered = np.sort(score[null])
    above = len(ordered) - np.searchsorted(ordered, score[ids], side="left")
    p = (1 + above) / (1 + len(ordered))
    ranking = np.argsort(p, kind="stable")
    passed = np.flatnonzero(p[ranking] <= false_share * np.arange(1, len(ids) + 1) / max(len(ids), 1))
    if len(passed):
        discovered[ids[ranking[: passed[-1] + 1]]] = True
    return discovered


def _blocks(embedding: Table) -> Iterator[tuple[slice, Floats]]:
    for start in range(0, len(embedding), ROWS):
        rows = slice(start, start + ROWS)
        yield rows, np.asarray(embedding[rows], dtype=np.float64)


def _mean(embedding: Table) -> Floats:
    total = sum((block.sum(axis=0) for _, block in _blocks(embedding)), np.zeros(embedding.shape[1]))
    return np.asarray(total / len(embedding), dtype=np.float64)


def _measures(embedding: Table, mean: Floats) -> tuple[Floats, Floats, Floats]:
    """Return the norm of every row, its component along the mean row, and its distance from the mean row."""
    norm, along, distance = np.empty((3, len(embedding)))
    direction = mean / max(float(np.linalg.norm(mean)), np.finfo(np.float64).tiny)
    for rows, block in _blocks(embedding):
        norm[rows] = np.linalg.norm(block, axis=1)
        along[rows] = block @ direction
        distance[rows] = np.linalg.norm(block - mean, axis=1)
    return norm, along, distance


def _safe_log(x: Floats) -> Floats:
    """Return the logarithm, with zeros far below all other values instead of at minus infinity."""
    return np.log(np.maximum(x, 1e-6 * max(float(np.median(x)), np.finfo(np.float64).tiny)))


def _centre_width(x: Floats) -> tuple[float, float]:
    """Return the median, and the standard deviation estimated from the median absolute deviation."""
    centre = float(np.median(x))
    width = 1.4826 * float(np.median(np.abs(x - centre)))
    return centre, max(width, 1e-9 * abs(centre), 1e-30)


def _local_z(x: Floats, null: Bools) -> Floats:
    """Return the robust z of each row against the ``null`` rows of similar rank.

    The component of ordinary tokens along the mean row also grows with their rank, so a z over the entire table
    would only find the rare ones. Medians of blocks of null rows are interpolated linearly.
    """
    ids = np.flatnonzero(null)
    parts = np.array_split(ids, len(ids) // BLOCK)
    centre_ranks = [float(part.mean()) for part in parts]
    centres, widths = zip(*(_centre_width(x[part]) for part in parts), strict=True)
    rank = np.arange(len(x))
    return np.asarray((x - np.interp(rank, centre_ranks, centres)) / np.interp(rank, centre_ranks, widths))


def _second_mode(distance: Floats) -> Bools:
    """Return a mask of the rows in a tight second mode near the mean row.

    These lie below the valley of the histogram of log distances. Untrained rows differ from one another by no more
    than their initial noise, so they crowd; the tail of a single mode only thins out, whatever its shape.
    """
    x = _safe_log(distance)
    centre, width = _centre_width(x)
    z = np.clip((x - centre) / width, -20, 0)
    counts, edges = np.histogram(z, bins=np.arange(-20.0, 0.25, 0.5))
    peak = np.maximum.accumulate(counts)
    rise = (peak - counts) / np.sqrt(peak + counts + 1.0)
    last = int(np.flatnonzero(rise == rise.max())[-1])
    low = z < edges[last]
    if rise[last] < MODE_SIGMA or _centre_width(distance[low])[1] > MODE_WIDTH * _centre_width(distance)[1]:
        return np.zeros(len(distance), dtype=np.bool_)
    return np.asarray(low, dtype=np.bool_)


def _copies(embedding: Table, mean: Floats, spread: float) -> Bools:
    """Return a mask of the rows with at least COPY_TWINS others closer than COPY_SPREAD of the table's spread.

    Only rows with the same code by random hyperplanes (seeded, so the result never changes) are compared, which avoids
    a V x V table of distances. Two rows are at least as far apart as their places in the span of the hyperplanes'
    normals, so only rows with a neighbour there are read again; the distances between those are exact.
    """
    copies = np.zeros(len(embedding), dtype=np.bool_)
    if embedding.shape[1] < COPY_BITS:  # with so few dimensions, rows that are not copies are close too
        return copies
    radius = COPY_SPREAD * spread
    codes, places = _codes(embedding, mean)
    for code in codes:
        order = np.argsort(code, kind="stable")
        for group in np.split(order, np.flatnonzero(np.diff(code[order])) + 1):
            for start in range(0, len(group) if len(group) > COPY_TWINS else 0, BLOCK):
                ids = group[start : start + BLOCK]
                ids = ids[_neighbours(places[ids].astype(np.float64), PLACE_SLACK * radius) > 0]
                if len(ids) > COPY_TWINS:
                    copies[ids] |= _neighbours(embedding[ids] - mean, radius) >= COPY_TWINS
    return copies


def _codes(embedding: Table, mean: Floats) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return the codes and the place of every row.

    There are COPY_TRIES codes of COPY_BITS bits, which say on which side of random hyperplanes the row lies. The places
    (V, at most COPY_TRIES x COPY_BITS) are the rows less their mean, projected to the span of the hyperplanes' normals,
    in an orthonormal basis.
    """
    planes = np.random.default_rng(0).standard_normal((embedding.shape[1], COPY_TRIES * COPY_BITS))
    basis = np.linalg.qr(planes).Q
    codes = np.empty((COPY_TRIES, len(embedding)), dtype=np.int64)
    places = np.empty((len(embedding), basis.shape[1]), dtype=np.float32)
    for rows, block in _blocks(embedding):
        sides = (block @ planes > mean @ planes).reshape(len(block), COPY_TRIES, COPY_BITS)
        codes[:, rows] = (sides @ (1 << np.arange(COPY_BITS))).T
        places[rows] = (block - mean) @ basis
    return codes, places


def _neighbours(rows: Floats, radius: float) -> npt.NDArray[np.int64]:
    """Count, for each of the rows, the others that are closer than a radius."""
    squares = np.einsum("ij,ij->i", rows, rows)
    gaps = squares[:, None] + squares[None, :] - 2 * (rows @ rows.T)
    return np.asarray((gaps <= radius**2).sum(axis=1) - 1)
