"""Means and variances of scores over the vocabulary, from d-sized statistics of the rows (design.md §2, z)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from zeropass.numerics.parallel import each_core

__all__ = ["Moments", "TokenRows", "blocks", "gram", "kurtosis", "moments", "standardised"]

_BLOCK, _VECTORS = 512, 256
"""Rows, and vectors of a core, in float64 at once: malloc keeps 16 MB (d = 4096) and gives 32 MB back each time."""


@dataclass(frozen=True)
class Moments:
    """Mean (d,) and covariance (d, d), in float64, of ``count`` rows of width d."""

    mean: Tensor
    covariance: Tensor
    count: int

    def of_scores(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, (n,) float32 each, of the scores that (n, d) vectors give all rows.

        Exact: mean = w · ē and variance = w Cov(E) wᵀ. A vector that gives every row the same score has
        standard deviation 0 here; `standardised` keeps such a one from dividing by it.
        """

        def of(some: Tensor) -> Tensor:
            w = some.double()
            variance = ((w @ self.covariance) * w).sum(1).clamp_min(0)
            return torch.stack((w @ self.mean, variance.sqrt())).float()

        found = torch.cat(each_core(vectors.device)(of, torch.split(vectors, _VECTORS)), 1)
        return found[0], found[1]


class TokenRows(Protocol):
    """Rows (V, d): a tensor, or what reads them from a file, a slice at a time."""

    @property
    def shape(self) -> Sequence[int]:
        """(V, d)."""

    @property
    def device(self) -> torch.device:
        """Where the rows that were read are."""

    def __getitem__(self, part: slice, /) -> Tensor:
        """The rows of a slice of tokens."""


def moments(rows: TokenRows, keep: Tensor | None = None) -> Moments:
    """Mean and population covariance of (V, d) rows, or of those that the (V,) mask keeps; ValueError if none."""
    count, d = int(keep.sum()) if keep is not None else rows.shape[0], rows.shape[1]
    if count == 0:
        raise ValueError("moments of no rows")
    total = torch.zeros(d, dtype=torch.float64, device=rows.device)
    for block in _kept_blocks(rows, keep):
        total += block.sum(0)
    mean = total / count
    covariance = torch.zeros(d, d, dtype=torch.float64, device=rows.device)
    for block in _kept_blocks(rows, keep):
        centred = block - mean
        covariance.addmm_(centred.T, centred)
    return Moments(mean, covariance / count, count)


def gram(rows: Tensor) -> Tensor:
    """``XᵀX`` (d, d) in float64 of (V, d) rows, block by block."""
    total = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64, device=rows.device)
    for block in _kept_blocks(rows, None):
        total += block.T @ block
    return total


def standardised(vectors: Tensor, std: Tensor) -> Tensor:
    """(n, d) vectors scaled so that their product with centred rows is z itself; a constant one becomes zero."""
    return vectors * torch.where(std > 0, 1 / std, torch.zeros_like(std))[:, None]


def blocks(total: int, size: int = _BLOCK) -> Iterator[slice]:
    """Consecutive slices that cover ``range(total)``."""
    return (slice(start, min(start + size, total)) for start in range(0, total, size))


def _kept_blocks(rows: TokenRows, keep: Tensor | None) -> Iterator[Tensor]:
    for part in blocks(rows.shape[0]):
        block = rows[part]
        yield (block if keep is None else block[keep[part]]).double()


def kurtosis(scores: Tensor) -> Tensor:
    """How heavy the tails of each row of scores (n, V) are, (n,): fourth central moment over squared variance, less 3.

    Scores of any floating type, some rows of which are held in float32 at a time.
    0 for normal scores; large where few tokens stand far out. A row without spread has 0.
    """
    found = []
    # A row fits a processor's cache, powers of many would not; a GPU takes as long for one as for many.
    for part in torch.split(scores, 1 if scores.device.type == "cpu" else 128):
        exact = part.float()
        squares = (exact - exact.mean(1, keepdim=True)).square_()
        variance = squares.mean(1)
        tails = squares.square_().mean(1) / variance.square() - 3
        found.append(torch.where(variance > 0, tails, 0.0))
    return torch.cat(found)
