"""Shares of pairs that one head takes to each other, from the factors of its map (docs/circuits.md)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zeropass.numerics.factored import Factored
from zeropass.numerics.row_poles import row_poles
from zeropass.numerics.statistics import moments
from zeropass.relations.token_pairs import TokenPairs

__all__ = ["HeadShares", "PairTable"]


@dataclass(frozen=True, eq=False)
class HeadShares:
    """The words of one set that one head takes to each other.

    Attributes:
        reached: True where a right word is among the k highest scores of a left word's row, and among the k lowest,
            (2, n, n): lefts down, rights across; the diagonal has the pairs.
        z: The z of the right words in the rows of the left ones, (n, n).
        copied: True for left words that are among the k highest scores of their own row, and among the k lowest,
            (2, m), of those that are a single token with a rank.
    """

    reached: Tensor
    z: Tensor
    copied: Tensor


class PairTable:
    """The words of all sets, each word once, and where the words of each set are among them.

    A left word of several tokens stands for their mean: what the head would move if it attended to each alike. From
    every row the mean row of the map is subtracted, which a head adds whatever word it attends to.

    Args:
        sets: The sets.
        ranked: The ids of the tokens that have a rank, ascending, (V',).
    """

    def __init__(self, sets: Sequence[TokenPairs], ranked: Tensor) -> None:
        lefts = list(dict.fromkeys(left for pairs in sets for left, _ in pairs.pairs))
        own = {left: left[0] for left in lefts if len(left) == 1}
        rights = list(dict.fromkeys([*(right for pairs in sets for _, right in pairs.pairs), *own.values()]))
        row, column = ({word: at for at, word in enumerate(words)} for words in (lefts, rights))
        device = ranked.device
        self._ranked = ranked
        places = torch.tensor(rights, device=device)
        columns = torch.searchsorted(ranked, places).clamp_max(len(ranked) - 1)
        has_rank = ranked[columns] == places
        self._columns = torch.where(has_rank, columns, 0)
        self._ids = torch.tensor([i for left in lefts for i in left], device=device)
        self._starts = torch.tensor([0, *(len(left) for left in lefts[:-1])], device=device).cumsum(0)
        self._places = [
            (
                torch.tensor([row[left] for left, _ in pairs.pairs], device=device),
                torch.tensor([column[right] for _, right in pairs.pairs], device=device),
                [
                    (row[left], column[own[left]])
                    for left, _ in pairs.pairs
                    if left in own and bool(has_rank[column[own[left]]])
                ],
            )
            for pairs in sets
        ]

    def shares(self, product: Factored, k: int) -> Iterator[HeadShares]:
        """Yield the words of each set that a head takes to each other.

        Args:
            product: The head's map ``vo``, (V, V).
            k: The number of most extreme scores of a row that count.
        """
        chosen = self._chosen(product)
        mean, std = moments(chosen.right).of_scores(chosen.left)
        poles = row_poles(chosen, k, self._columns)
        reached = torch.stack((poles.some >= poles.high[:, None], poles.some <= poles.low[:, None]))
        z = (poles.some - mean[:, None]) / std.clamp_min(torch.finfo(std.dtype).tiny)[:, None]
        for rows, columns, own in self._places:
            copied = reached[:, [row for row, _ in own], [column for _, column in own]]
            yield HeadShares(reached[:, rows][:, :, columns], z[rows][:, columns], copied)

    def shares_of_pairs(self, product: Factored, k: int) -> list[float]:
        """Return the share of pairs of each set whose right word is among the k highest scores of the left one's row.

        Args:
            product: Any map between tokens, (V, V).
            k: The number of highest scores of a row that count.
        """
        poles = row_poles(self._chosen(product), k, self._columns)
        reached = poles.some >= poles.high[:, None]
        return [float(reached[rows, columns].double().mean()) for rows, columns, _ in self._places]

    def _chosen(self, product: Factored) -> Factored:
        """Return the rows of the left words, less the mean row, and the columns of the tokens with a rank."""
        left = torch.nn.functional.embedding_bag(self._ids, product.left, self._starts, mode="mean")
        return Factored(left - product.left[self._ranked].mean(0), product.right[self._ranked])
