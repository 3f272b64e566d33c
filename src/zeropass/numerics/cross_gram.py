"""Cross-Gram matrices of two sets of rows over the same tokens: comparisons of scores in d-sized matrices.

Two vectors of two models, read over the shared tokens, are two columns of scores. Their correlation can be computed
without the scores. With rows A (S, d₁) and B (S, d₂) of the shared tokens, each minus its mean,

    corr(A x, B y) = xᵀ AᵀB y / √(xᵀ AᵀA x · yᵀ BᵀB y)

The inner product of two head maps ``(A p)(A r)ᵀ`` and ``(B q)(B s)ᵀ`` is ``tr((pᵀ AᵀB q)(sᵀ BᵀA r))``
(docs/theory.md §3).
"""

import torch
from torch import Tensor

from zeropass.numerics.statistics import blocks

__all__ = ["cross_kernel", "head_products", "unit"]


def cross_kernel(first: Tensor, second: Tensor, pairs: tuple[Tensor, Tensor]) -> Tensor:
    """Return ``AᵀB / S`` of the centred rows of S pairs of tokens.

    Sums are taken in float64, block by block, so nothing as long as the vocabulary is copied.

    Args:
        first: Rows of the first model, (V₁, d₁).
        second: Rows of the second model, (V₂, d₂).
        pairs: Token ids (S,) in the first model, and those of the same tokens in the second.

    Returns:
        The kernel, (d₁, d₂) float32.
    """
    first_ids, second_ids = pairs
    total = torch.zeros(first.shape[1], second.shape[1], dtype=torch.float64, device=first.device)
    first_sum = torch.zeros(first.shape[1], dtype=torch.float64, device=first.device)
    second_sum = torch.zeros(second.shape[1], dtype=torch.float64, device=first.device)
    for part in blocks(len(first_ids)):
        a, b = first[first_ids[part]], second[second_ids[part]]
        total += (a.T @ b).double()
        first_sum += a.double().sum(0)
        second_sum += b.double().sum(0)
    return (total / len(first_ids) - torch.outer(first_sum / len(first_ids), second_sum / len(first_ids))).float()


def unit(vectors: Tensor, kernel: Tensor) -> Tensor:
    """Scale vectors (n, d) so that their scores have variance one under the kernel (d, d); zero stays zero."""
    variance = ((vectors @ kernel) * vectors).sum(1).clamp_min(0)
    floor = torch.finfo(vectors.dtype).eps * kernel.diagonal().sum() * vectors.square().sum(1)
    return vectors * torch.where(variance > floor, variance.rsqrt(), torch.zeros_like(variance))[:, None]


def head_products(left: Tensor, right: Tensor, heads: tuple[int, int]) -> Tensor:
    """Return the inner products of head maps from two blocks of kernel products.

    ``tr(L Rᵀ)`` of the block of each pair of heads is the sum of ``L ⊙ R``.

    Args:
        left: ``P K Qᵀ``, (h₁ m, h₂ n), of the first sides of all heads of one layer and of another, head by head.
        right: The same for the second sides.
        heads: The numbers of heads, h₁ and h₂.

    Returns:
        Inner products, (h₁, h₂).
    """
    first, second = heads
    product = (left * right).view(first, left.shape[0] // first, second, left.shape[1] // second)
    return product.sum((1, 3))
