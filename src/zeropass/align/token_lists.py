"""Short lists of tokens, and what stands for them in another model (docs/alignment.md)."""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["LENGTH", "Lists", "carried", "lists_of"]

LENGTH = 10
"""Tokens of a list. Lists of 3 to 20 do about as well; with all tokens instead, a third of what is found is lost."""

ROWS = 256
"""Vectors whose scores over the vocabulary are held at a time (50 MB for 49,152 tokens)."""


@dataclass(frozen=True, eq=False)
class Lists:
    """For each of n vectors the tokens whose scores lie farthest from the mean: ids (n, k) and their z (n, k)."""

    ids: Tensor
    z: Tensor


def lists_of(vectors: Tensor, rows: Tensor, ids: Tensor, mean: Tensor) -> Lists:
    """The lists of vectors (n, d) over the tokens ids (S,) of rows (V, d); exact.

    Vectors are scaled to scores of variance one (`cross_gram.unit`); mean (d,) is that of the rows of those tokens.
    """
    ours = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    ours[ids] = True
    found = []
    for start in range(0, len(vectors), ROWS):
        part = vectors[start : start + ROWS]
        z = part @ rows.T - (part @ mean)[:, None]
        top = z.abs().masked_fill_(~ours, -1).topk(min(LENGTH, len(ids)), dim=1).indices
        found.append((top, z.gather(1, top)))
    return Lists(torch.cat([one for one, _ in found]), torch.cat([one for _, one in found]))


def carried(lists: Lists, rows: Tensor, mean: Tensor) -> Tensor:
    """Vectors (n, d) of another model for lists of its tokens: Σ z (row - mean) / Σ z², one for each list.

    The product with a vector y whose scores have variance one is the slope, through zero, of y's scores on those that
    made the list, over its tokens: 1 for the same parameter, 0 for one that does not care about them.
    """
    total = lists.z.square().sum(1, keepdim=True)
    weights = torch.where(total > 0, lists.z / total, torch.zeros_like(lists.z))
    return (weights[:, None] @ rows[lists.ids])[:, 0] - weights.sum(1, keepdim=True) * mean
