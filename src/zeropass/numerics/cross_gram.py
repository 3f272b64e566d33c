"""What two sets of rows over the same tokens have in common, in d-sized matrices (design.md §4).

Two vectors of two models, read over the vocabulary that the models share, are two columns of scores. Their correlation
needs none of the scores: with rows A (S, d₁) and B (S, d₂) of the shared tokens, each minus its mean,

    corr(A x, B y) = xᵀ AᵀB y / √(xᵀ AᵀA x · yᵀ BᵀB y)

and the inner product of two head maps ``(A p)(A r)ᵀ`` and ``(B q)(B s)ᵀ`` is ``tr((pᵀ AᵀB q)(sᵀ BᵀA r))``.
"""

import torch
from torch import Tensor

from zeropass.numerics.statistics import blocks

__all__ = ["cross_kernel", "head_products", "unit"]


def cross_kernel(first: Tensor, second: Tensor, pairs: tuple[Tensor, Tensor]) -> Tensor:
    """``AᵀB / S`` (d₁, d₂), float32, of the centred rows of S pairs of tokens (ids in the first, ids in the second).

    Sums are taken in float64 block by block: nothing as long as the vocabulary is copied.
    """
    ids, others = pairs
    total = torch.zeros(first.shape[1], second.shape[1], dtype=torch.float64, device=first.device)
    a_sum = torch.zeros(first.shape[1], dtype=torch.float64, device=first.device)
    b_sum = torch.zeros(second.shape[1], dtype=torch.float64, device=first.device)
    for part in blocks(len(ids)):
        a, b = first[ids[part]], second[others[part]]
        total += (a.T @ b).double()
        a_sum += a.double().sum(0)
        b_sum += b.double().sum(0)
    return (total / len(ids) - torch.outer(a_sum / len(ids), b_sum / len(ids))).float()


def unit(vectors: Tensor, kernel: Tensor) -> Tensor:
    """Vectors (n, d) scaled so that their scores have variance one under their own kernel (d, d); zero stays zero."""
    variance = ((vectors @ kernel) * vectors).sum(1).clamp_min(0)
    floor = torch.finfo(vectors.dtype).eps * kernel.diagonal().sum() * vectors.square().sum(1)
    return vectors * torch.where(variance > floor, variance.rsqrt(), torch.zeros_like(variance))[:, None]


def head_products(left: Tensor, right: Tensor, heads: tuple[int, int]) -> Tensor:
    """Inner products (h₁, h₂) of head maps from two blocks of kernel products.

    left: ``P K Qᵀ`` (h₁ m, h₂ n) between the first sides of all heads of one layer and all of another, heads one after
    the other; right: the same for the second sides. ``tr(L Rᵀ)`` of each head's block is the sum of ``L ⊙ R``.
    """
    first, second = heads
    product = (left * right).view(first, left.shape[0] // first, second, left.shape[1] // second)
    return product.sum((1, 3))
