"""Means and variances of scores over the vocabulary, from d-sized statistics of the rows (docs/theory.md §6)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from zeropass.numerics.parallel import each_core

__all__ = ["Moments", "TokenRows", "blocks", "gram", "kurtosis", "moments", "quadratic", "relative_factors"]
__all__ += ["standardised"]

_BLOCK, _VECTORS = 512, 256
"""Rows, and vectors of each core, in float64 at once.

malloc keeps blocks of 16 MB (d = 4096) but returns those of 32 MB to the system each time.
"""


@dataclass(frozen=True)
class Moments:
    """The mean (d,) and covariance (d, d), in float64, of ``count`` rows of width d."""

    mean: Tensor
    covariance: Tensor
    count: int

    def of_scores(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and standard deviation, (n,) float32 each, of the scores of vectors (n, d) over all rows.

        Both are exact: mean = w · ē and variance = w Cov(E) wᵀ. A vector that gives every row the same score has
        standard deviation 0 here; `standardised` does not divide by it.
        """

        def mean_and_std(block: Tensor) -> Tensor:
            w = block.double()
            variance = ((w @ self.covariance) * w).sum(1).clamp_min(0)
            return torch.stack((w @ self.mean, variance.sqrt())).float()

        both = torch.cat(each_core(vectors.device)(mean_and_std, torch.split(vectors, _VECTORS)), 1)
        return both[0], both[1]


class TokenRows(Protocol):
    """Rows (V, d): a tensor, or an object that reads them from a file slice by slice."""

    @property
    def shape(self) -> Sequence[int]:
        """The shape (V, d)."""

    @property
    def device(self) -> torch.device:
        """The device of the rows that `__getitem__` returns."""

    def __getitem__(self, part: slice, /) -> Tensor:
        """Return the rows of a slice of tokens."""


def moments(rows: TokenRows, keep: Tensor | None = None) -> Moments:
    """Return the mean and population covariance of rows.

    Args:
        rows: Rows (V, d).
        keep: A mask (V,) of the rows that count; all for None.

    Returns:
        Their moments, in float64.

    Raises:
        ValueError: There are no rows.
    """
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
    """Return the Gram matrix ``XᵀX`` (d, d) of rows (V, d), computed in float64 block by block."""
    total = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64, device=rows.device)
    for block in _kept_blocks(rows, None):
        total += block.T @ block
    return total


def quadratic(rows: TokenRows, gram: Tensor) -> Tensor:
    """Return ``r G rᵀ`` (V,) for rows r (V, d) and a Gram matrix G (d, d), block by block."""
    parts = (rows[part] for part in blocks(rows.shape[0]))
    return torch.cat([((block @ gram) * block).sum(1) for block in parts])


def relative_factors(rows: TokenRows, vectors: Tensor) -> Tensor:
    """Return what makes the scores of rows relative to those of a set of vectors (docs/theory.md §9).

    Args:
        rows: Rows (V, d).
        vectors: The vectors of the set, (n, d), scaled so that their scores are z.

    Returns:
        One over the root mean square of each row's scores, (V,): 1/√(r G rᵀ) with G = WᵀW/n for the vectors W; zero
        for a row that all of them score zero.
    """
    squares = quadratic(rows, (gram(vectors) / len(vectors)).float())
    return torch.where(squares > 0, squares.rsqrt(), torch.zeros_like(squares))


def standardised(vectors: Tensor, std: Tensor) -> Tensor:
    """Scale vectors (n, d) so that their product with centred rows is z.

    Args:
        vectors: Vectors (n, d).
        std: Standard deviations of their scores, (n,); where one is zero, so is the scaled vector.

    Returns:
        Scaled vectors, (n, d).
    """
    return vectors * torch.where(std > 0, 1 / std, torch.zeros_like(std))[:, None]


def blocks(total: int, size: int = _BLOCK) -> Iterator[slice]:
    """Yield consecutive slices, of at most ``size``, that cover ``range(total)``."""
    return (slice(start, min(start + size, total)) for start in range(0, total, size))


def _kept_blocks(rows: TokenRows, keep: Tensor | None) -> Iterator[Tensor]:
    """Yield blocks of the kept rows in float64."""
    for part in blocks(rows.shape[0]):
        block = rows[part]
        yield (block if keep is None else block[keep[part]]).double()


def kurtosis(scores: Tensor) -> Tensor:
    """Return the excess kurtosis of each row of scores: fourth central moment over squared variance, less 3.

    It is 0 for normal scores, and large where few tokens stand far out.

    Args:
        scores: Scores (n, V) of any floating type; some rows are held in float32 at a time.

    Returns:
        Kurtosis (n,) float32, 0 for a row without spread.
    """
    kurtoses = []
    # One row and its powers fit a processor's cache, many do not; a GPU takes as long for one row as for many.
    for part in torch.split(scores, 1 if scores.device.type == "cpu" else 128):
        exact = part.float()
        squares = (exact - exact.mean(1, keepdim=True)).square_()
        variance = squares.mean(1)
        tails = squares.square_().mean(1) / variance.square() - 3
        kurtoses.append(torch.where(variance > 0, tails, 0.0))
    return torch.cat(kurtoses)
