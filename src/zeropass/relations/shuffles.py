"""The null of relations: right words exchanged within their set, the same for all heads (docs/relations.md)."""

from typing import Any

import torch
from torch import Tensor

__all__ = ["Shuffles", "shuffled_share"]


def shuffled_share(count: Any, total: Any, pairs: int) -> Any:
    """Return the share of right words that are among the best of a left word to which they do not belong.

    Args:
        count: The number of the n pairs whose right word is among the best of its left word.
        total: The number of all left and right words of the set, n² in all, of which that is true.
        pairs: The number of pairs, n.

    Returns:
        The share among the n (n − 1) wrong pairs: what all orders of the right words give on average.
    """
    return (total - count) / (pairs * (pairs - 1))


class Shuffles:
    """Random orders of the right words of a set, and the largest gain of any head in each.

    A gain is the share of right pairs less that of wrong ones.

    The maximum over heads and poles accounts for the size of the search (Westfall and Young 1993): by chance alone,
    some head of a model reaches p ≤ .05 in one set of twenty. Every order is as likely as the true one, so the test is
    exact for any set and any heads, those that write every word of a category included.

    Attributes:
        orders: The orders, (R, n).
        most: The largest gain so far in each of them, (R,) float64.
    """

    def __init__(self, pairs: int, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.orders: Tensor = torch.stack([torch.randperm(pairs, generator=generator) for _ in range(count)])
        self.most: Tensor = torch.zeros(count, dtype=torch.float64)

    def add(self, reached: Tensor) -> None:
        """Take account of one head at one pole.

        Args:
            reached: True where a right word is among the best of a left word, (n, n): lefts down, rights across.
        """
        if not reached.any():
            return  # no order has a gain
        pairs = len(reached)
        counts = reached.flatten()[torch.arange(pairs) * pairs + self.orders].sum(1)
        gains = counts.double() / pairs - shuffled_share(counts.double(), int(reached.sum()), pairs)
        self.most = torch.maximum(self.most, gains)

    def p(self, value: float) -> float:
        """Return the share of orders in which some head has at least this gain, the true order counted among them."""
        return (1 + int((self.most >= value).sum())) / (1 + len(self.most))
