"""Tokens that training hardly touched, told from the embedding rows and the tokenizer's merges alone.

design.md section 2 ("Hardly trained tokens"). Such rows top nearly every raw list, so lists hide them.
Three signs are looked for, each against the table's own statistics, none against a fixed norm or cosine:

1. A step on the way of a merge (`` strugg``) whose row is longer, and further along the mean row, than
   the rows of tokens of similar rank that are no step. Those whole tokens are the null distribution:
   empirical p-values, then Benjamini and Hochberg (1995) at a false discovery rate of 1%.
2. Rows that form a second, tight mode close to the mean row (BERT's ``[unused7]`` and characters its
   pre-tokenizer never lets through).
3. Rows that are copies of one another up to rounding (reserved or padding rows that only drifted together).

A table in which nothing stands out, such as random Gaussian rows, has none.
"""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["Judgement", "hardly_trained", "judge"]

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

FALSE_SHARE = 0.01  # false discovery rate of "hardly trained": a wrongly hidden word costs more than a stray
LOOSE_SHARE = 0.05  # of "a fragment", where the merges must say so too
MOST = 0.5  # a token is a fragment if one longer token takes more than this share of its occurrences
BLOCK = 512  # rows for one local median; smaller tables are not judged, their statistics say nothing
ROWS = 512  # rows held at a time in float64; malloc keeps memory of this size from block to block
MODE_SIGMA = 5.0  # how far a second mode must rise above the valley, in its counting error
MODE_WIDTH = 0.5  # and how tight it must be, as a fraction of the width of the main mode
COPY_SPREAD = 0.1  # copies differ by less than this fraction of the typical distance to the mean row
COPY_BITS, COPY_TRIES, COPY_TWINS = 16, 3, 2  # random hyperplanes, repeats, other copies asked for
PLACE_SLACK = 1.001  # on a radius between places, which are kept in float32


class Table(Protocol):
    """An embedding (V, d): an array, or what reads one from a file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(V, d)."""

    def __len__(self) -> int: ...

    def __getitem__(self, at: slice | npt.NDArray[np.int64], /) -> npt.NDArray[np.floating]:
        """Rows of a slice, or of rising ids."""


class Judgement(NamedTuple):
    """What the rows say about each token: two boolean arrays of shape (V,)."""

    hardly_trained: Bools
    fragments: Bools
    """Looser and only for the view of whole words: an outlying row and mostly part of one longer token."""


def hardly_trained(embedding: Table, swallowed: npt.NDArray[np.generic]) -> Bools:
    """Which tokens training hardly touched, shape (V,); see `judge` for the arguments."""
    return judge(embedding, swallowed).hardly_trained


def judge(embedding: Table, swallowed: npt.NDArray[np.generic]) -> Judgement:
    """Judge every token of an embedding of shape (V, d), rows in order of rank (ids of BPE tokenizers are).

    The table is read in blocks of rows and never held: beside it there are some dozens of numbers a token.

    ``swallowed`` of shape (V,) is ``Vocabulary.swallowed()``: the largest share of a token's occurrences
    that one longer token takes, 0 for a whole token that no merge uses, NaN for one that no merge makes. A
    boolean array of merge steps works too.
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
    hardly = outlying | low | _copies(embedding, mean, float(np.median(distance)))
    return Judgement(hardly, hardly | loose)


def discoveries(score: Floats, asked: Bools, null: Bools, false_share: float) -> Bools:
    """Which of ``asked`` score higher than ``null`` explains, at a false discovery rate.

    Benjamini and Hochberg's step-up rule on empirical p-values (1 + nulls at least as high) / (1 + nulls).
    """
    found = np.zeros(len(score), dtype=np.bool_)
    ids = np.flatnonzero(asked)
    ordered = np.sort(score[null])
    above = len(ordered) - np.searchsorted(ordered, score[ids], side="left")
    p = (1 + above) / (1 + len(ordered))
    best = np.argsort(p, kind="stable")
    passed = np.flatnonzero(p[best] <= false_share * np.arange(1, len(ids) + 1) / max(len(ids), 1))
    if len(passed):
        found[ids[best[: passed[-1] + 1]]] = True
    return found


def _blocks(embedding: Table) -> Iterator[tuple[slice, Floats]]:
    for start in range(0, len(embedding), ROWS):
        rows = slice(start, start + ROWS)
        yield rows, np.asarray(embedding[rows], dtype=np.float64)


def _mean(embedding: Table) -> Floats:
    total = sum((block.sum(axis=0) for _, block in _blocks(embedding)), np.zeros(embedding.shape[1]))
    return np.asarray(total / len(embedding), dtype=np.float64)


def _measures(embedding: Table, mean: Floats) -> tuple[Floats, Floats, Floats]:
    """Of every row: its norm, its component along the mean row, its distance from the mean row."""
    norm, along, distance = np.empty((3, len(embedding)))
    direction = mean / max(float(np.linalg.norm(mean)), np.finfo(np.float64).tiny)
    for rows, block in _blocks(embedding):
        norm[rows] = np.linalg.norm(block, axis=1)
        along[rows] = block @ direction
        distance[rows] = np.linalg.norm(block - mean, axis=1)
    return norm, along, distance


def _safe_log(x: Floats) -> Floats:
    """Take the logarithm, zeros being put far below everything else instead of at minus infinity."""
    return np.log(np.maximum(x, 1e-6 * max(float(np.median(x)), np.finfo(np.float64).tiny)))


def _centre_width(x: Floats) -> tuple[float, float]:
    """Median, and the standard deviation that the median absolute deviation stands for."""
    centre = float(np.median(x))
    width = 1.4826 * float(np.median(np.abs(x - centre)))
    return centre, max(width, 1e-9 * abs(centre), 1e-30)


def _local_z(x: Floats, null: Bools) -> Floats:
    """Robust z of each row against the ``null`` rows of similar rank.

    Ordinary tokens too grow along the mean row with their rank, so a z over the whole table would
    only find the rare ones. Medians of blocks of null rows are joined by straight lines.
    """
    ids = np.flatnonzero(null)
    parts = np.array_split(ids, len(ids) // BLOCK)
    at = [float(part.mean()) for part in parts]
    centres, widths = zip(*(_centre_width(x[part]) for part in parts), strict=True)
    rank = np.arange(len(x))
    return np.asarray((x - np.interp(rank, at, centres)) / np.interp(rank, at, widths))


def _second_mode(distance: Floats) -> Bools:
    """Rows in a tight second mode near the mean row, below the valley of the histogram of log distances.

    Untrained rows differ from one another by no more than their initial noise, so they crowd; the tail of
    a single mode only thins out, whatever its shape.
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
    """Rows with at least COPY_TWINS others closer than COPY_SPREAD of the table's spread.

    Candidates share a code of random hyperplanes (seeded: the answer never changes), so that no V x V table of
    distances is made. Two rows are at least as far apart as their places in the span of the hyperplanes' normals,
    so only rows with a neighbour there are read again; the distances between those are exact.
    """
    found = np.zeros(len(embedding), dtype=np.bool_)
    if embedding.shape[1] < COPY_BITS:  # with so few dimensions rows are close by chance
        return found
    radius = COPY_SPREAD * spread
    codes, places = _codes(embedding, mean)
    for code in codes:
        order = np.argsort(code, kind="stable")
        for group in np.split(order, np.flatnonzero(np.diff(code[order])) + 1):
            for start in range(0, len(group) if len(group) > COPY_TWINS else 0, BLOCK):
                ids = group[start : start + BLOCK]
                ids = ids[_neighbours(places[ids].astype(np.float64), PLACE_SLACK * radius) > 0]
                if len(ids) > COPY_TWINS:
                    found[ids] |= _neighbours(embedding[ids] - mean, radius) >= COPY_TWINS
    return found


def _codes(embedding: Table, mean: Floats) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """COPY_TRIES codes of COPY_BITS bits for every row: on which side of random hyperplanes it lies.

    With them each row's place (V, at most COPY_TRIES x COPY_BITS): its part in the span of their normals, less the
    mean's, in an orthonormal basis.
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
    """How many others of the rows are closer to each than a radius."""
    squares = np.einsum("ij,ij->i", rows, rows)
    gaps = squares[:, None] + squares[None, :] - 2 * (rows @ rows.T)
    return np.asarray((gaps <= radius**2).sum(axis=1) - 1)
