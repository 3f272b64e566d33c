"""Coherence: how far the tokens of a list belong together, and how far those of random directions do.

The coherence of a list is the mean cosine of its first tokens to each other, in rows other than those that made it, so
that it is no consequence of the list itself. The null is the coherence of lists of random directions: random sums of
the vectors of the same layer and role, which have their covariance and go through the same frame (docs/theory.md §8).
"""

import torch
from torch import Tensor

from zeropass.numerics.projection import Extremes

__all__ = ["DIRECTIONS", "coherence", "percentile", "random_sums", "stronger_pole", "within"]

DIRECTIONS = 128
"""The number of random directions that make the null."""

_SHARE = 0.95


def coherence(rows: Tensor, mean: Tensor) -> Tensor:
    """Return the mean cosine of the rows of each list to each other, (n,).

    Args:
        rows: The rows of the tokens of n lists, (n, t, d).
        mean: The mean row of all tokens, (d,), which is subtracted.

    Returns:
        The means over all pairs of different tokens; 0 for lists of one token.
    """
    count = rows.shape[1]
    if count < 2:
        return rows.new_zeros(len(rows))
    centred = rows - mean
    unit = centred / centred.norm(dim=2, keepdim=True).clamp_min(1e-20)
    # The square of the sum holds all cosines twice, and that of each row with itself.
    squares = unit.sum(1).square().sum(1) - unit.square().sum((1, 2))
    mean_cosine: Tensor = squares / (count * (count - 1))
    return mean_cosine


def random_sums(vectors: Tensor, seed: int) -> Tensor:
    """Return random sums of vectors (n, d) with normal weights, which have their covariance, (`DIRECTIONS`, d)."""
    weights = torch.randn(DIRECTIONS, len(vectors), generator=torch.Generator().manual_seed(seed))
    return weights.to(vectors) @ vectors


def stronger_pole(lists: Extremes, count: int, mean: float = 0.0) -> Tensor:
    """Return the ids of the first tokens of the stronger pole of each list, (n, t): the one whose last is further out.

    Args:
        lists: The lists.
        count: The number of tokens, or fewer if the lists are shorter.
        mean: The mean score, from which both poles are measured.
    """
    last = min(count, lists.top.shape[1]) - 1
    up = lists.top[:, last] - mean >= mean - lists.bottom[:, last]
    return torch.where(up[:, None], lists.top_ids[:, : last + 1], lists.bottom_ids[:, : last + 1])


def within(lists: Extremes, mask: Tensor, count: int) -> Extremes:
    """Return the first tokens of lists that a view shows, of the lists that hold enough of them at both poles.

    Args:
        lists: The lists, which may be longer.
        mask: The tokens that the view shows, (V,).
        count: The number of tokens of each pole.

    Returns:
        The shorter lists, of which some may be missing.
    """
    shown = mask[lists.top_ids], mask[lists.bottom_ids]
    enough = (shown[0].sum(1) >= count) & (shown[1].sum(1) >= count)
    # A stable sort keeps the order of a list, and puts the tokens that the view hides behind those that it shows.
    places = [(~pole[enough]).int().sort(dim=1, stable=True).indices[:, :count] for pole in shown]
    names = ("top", "top_ids"), ("bottom", "bottom_ids")
    kept = [getattr(lists, name)[enough].gather(1, at) for at, pole in zip(places, names, strict=True) for name in pole]
    return Extremes(*kept)


def percentile(values: Tensor) -> float | None:
    """Return the coherence that 19 of 20 random directions stay below; None if no direction is left."""
    return float(values.float().cpu().quantile(_SHARE)) if len(values) else None
