"""Shares of pairs that one head takes to each other, from the factors of its map (docs/relations.md)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

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


@dataclass(frozen=True, eq=False)
class _Places:
    """The rows and columns of one set in a `PairTable`.

    Attributes:
        lefts: The row of each pair's left word, (n,).
        rights: The column of each pair's right word, (n,).
        copies: The rows and columns of left words that are a single token with a rank, (2, m).
    """

    lefts: Tensor
    rights: Tensor
    copies: Tensor


class PairTable:
    """The words of all sets, each word once, and the places of each set's words among them.

    A left word of several tokens stands for their mean: what the head would move if it attended to each alike. From
    every row the mean row of the map is subtracted, which a head adds whatever word it attends to.

    Args:
        sets: The sets.
        ranked: The ids of the tokens that have a rank, ascending, (V',); among them are all right words.
    """

    def __init__(self, sets: Sequence[TokenPairs], ranked: Tensor) -> None:
        rank = {i: at for at, i in enumerate(ranked.tolist())}
        lefts = list(dict.fromkeys(left for token_pairs in sets for left, _ in token_pairs.pairs))
        single = {left: left[0] for left in lefts if len(left) == 1 and left[0] in rank}
        rights = dict.fromkeys([right for token_pairs in sets for _, right in token_pairs.pairs] + [*single.values()])
        integers = partial(torch.tensor, dtype=torch.int64, device=ranked.device)
        row, column = ({word: at for at, word in enumerate(words)} for words in (lefts, rights))
        self._ranked = ranked
        self._columns = integers([rank[right] for right in rights])
        self._ids = integers([i for left in lefts for i in left])
        self._starts = integers([0, *(len(left) for left in lefts[:-1])]).cumsum(0)
        self._places = [
            _Places(
                lefts=integers([row[left] for left, _ in pairs]),
                rights=integers([column[right] for _, right in pairs]),
                copies=integers([(row[left], column[single[left]]) for left, _ in pairs if left in single])
                .view(-1, 2)
                .T,
            )
            for pairs in (token_pairs.pairs for token_pairs in sets)
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
        for at in self._places:
            yield HeadShares(
                reached=reached[:, at.lefts][:, :, at.rights],
                z=z[at.lefts][:, at.rights],
                copied=reached[:, at.copies[0], at.copies[1]],
            )

    def shares_of_pairs(self, product: Factored, k: int) -> list[float]:
        """Return the share of pairs of each set whose right word is among the k highest scores of the left one's row.

        Args:
            product: Any map between tokens, (V, V).
            k: The number of highest scores of a row that count.
        """
        poles = row_poles(self._chosen(product), k, self._columns)
        reached = poles.some >= poles.high[:, None]
        return [float(reached[at.lefts, at.rights].double().mean()) for at in self._places]

    def _chosen(self, product: Factored) -> Factored:
        """Return the rows of the left words, less the mean row, and the columns of the tokens with a rank."""
        left = torch.nn.functional.embedding_bag(self._ids, product.left, self._starts, mode="mean")
        return Factored(left - product.left[self._ranked].mean(0), product.right[self._ranked])
