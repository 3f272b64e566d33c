"""Short lists of tokens, and the vectors that represent them in another model (docs/alignment.md)."""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["LENGTH", "Lists", "carried", "lists_of"]

LENGTH = 10
"""Tokens of a list. Lists of 3 to 20 do about as well; with all tokens instead, a third of the matches is lost."""

ROWS = 256
"""Vectors whose scores over the vocabulary are held at a time (50 MB for 49,152 tokens)."""


@dataclass(frozen=True, eq=False)
class Lists:
    """The tokens whose scores lie farthest from the mean, for each of n vectors.

    Attributes:
        ids: Ids of the tokens, (n, k).
        z: Their standardised scores, (n, k).
    """

    ids: Tensor
    z: Tensor


def lists_of(vectors: Tensor, rows: Tensor, ids: Tensor, mean: Tensor) -> Lists:
    """Return the exact lists of vectors over some tokens.

    Args:
        vectors: Vectors (n, d), scaled to scores of variance one (`cross_gram.unit`).
        rows: Rows of all tokens, (V, d).
        ids: Ids of the tokens that a list may hold, (S,).
        mean: Mean (d,) of the rows of those tokens.
    """
    allowed = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    allowed[ids] = True
    blocks = []
    for start in range(0, len(vectors), ROWS):
        block = vectors[start : start + ROWS]
        z = block @ rows.T - (block @ mean)[:, None]
        top = z.abs().masked_fill_(~allowed, -1).topk(min(LENGTH, len(ids)), dim=1).indices
        blocks.append((top, z.gather(1, top)))
    return Lists(torch.cat([ids for ids, _ in blocks]), torch.cat([z for _, z in blocks]))


def carried(lists: Lists, rows: Tensor, mean: Tensor) -> Tensor:
    """Return the vectors of another model that represent lists of its tokens: Σ z (row - mean) / Σ z² for each list.

    The product with a vector y whose scores have variance one is a slope through zero: that of y's scores on the
    list's, over its tokens. It is 1 for the same parameter and 0 for one to which the tokens mean nothing.

    Args:
        lists: Lists with the token ids of the other model, n of them.
        rows: Rows of all its tokens, (V, d).
        mean: Mean (d,) of the rows of the shared tokens.

    Returns:
        Vectors, (n, d).
    """
    total = lists.z.square().sum(1, keepdim=True)
    weights = torch.where(total > 0, lists.z / total, torch.zeros_like(lists.z))
    return (weights[:, None] @ rows[lists.ids])[:, 0] - weights.sum(1, keepdim=True) * mean
