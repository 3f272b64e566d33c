"""The k-th highest and lowest score of each row of a product, and the scores of some of its columns."""

from dataclasses import dataclass

import torch
from torch import Tensor

from zeropass.numerics.factored import Factored
from zeropass.numerics.statistics import blocks

__all__ = ["RowPoles", "row_poles"]

_ROWS = 64
"""The number of rows multiplied at once."""

_GROUP = 64
"""The number of scores of which first only the most extreme is looked at."""


@dataclass(frozen=True)
class RowPoles:
    """Scores of some columns, beside what they must reach to be among the k most extreme of their row.

    Attributes:
        some: The scores of the columns asked for, (m, c).
        high: The k-th highest score of each row over all columns, (m,).
        low: The k-th lowest, (m,).
    """

    some: Tensor
    high: Tensor
    low: Tensor


def row_poles(product: Factored, k: int, columns: Tensor) -> RowPoles:
    """Return the scores of some columns of a product, and the k-th highest and lowest score of each row.

    All come from the same products in float32, so a score that is the k-th is exactly equal to it.

    Args:
        product: The product (m, n), of which `_ROWS` rows are held at once.
        k: The rank, from 1 to n.
        columns: The columns whose scores are returned, (c,).

    Raises:
        ValueError: There are fewer than k columns.
    """
    rows, count = product.shape
    if not 1 <= k <= count:
        raise ValueError(f"k is {k}, and the product has {count} columns")
    some = product.left.new_empty(rows, len(columns))
    high, low = product.left.new_empty(rows), product.left.new_empty(rows)
    held = product.left.new_empty(min(_ROWS, rows), count)
    for part in blocks(rows, _ROWS):
        scores = held[: part.stop - part.start]
        torch.mm(product.left[part], product.right.T, out=scores)
        some[part] = scores[:, columns]
        high[part] = _kth(scores, k, largest=True)
        low[part] = _kth(scores, k, largest=False)
    return RowPoles(some, high, low)


def _kth(scores: Tensor, k: int, largest: bool) -> Tensor:
    """Return the k-th highest or lowest score of each row.

    The k best scores lie in the k groups with the best best score, or in the rest that fills no group.
    """
    width = scores.shape[1] // _GROUP * _GROUP
    if width // _GROUP > k:
        groups = scores[:, :width].view(len(scores), -1, _GROUP)
        best = (groups.amax(-1) if largest else groups.amin(-1)).topk(k, 1, largest).indices
        scores = torch.cat((groups.take_along_dim(best[..., None], 1).flatten(1), scores[:, width:]), 1)
    return scores.topk(k, 1, largest).values[:, -1]
