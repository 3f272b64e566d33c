"""Composition of linear maps of the stream by their rows: how much of what one writes another reads, and nulls.

For a map that writes with rows A (w, d) and one that reads with rows B (w′, d) the *composition* is
``‖A Bᵀ‖ / (‖A‖ ‖B‖)`` (Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"); its square, here the
*share*, is what has a null in closed form. With orthonormal rows the same product is the projection kernel, the sum of
the squared cosines of the principal angles of two subspaces.
"""

import torch
from torch import Tensor

__all__ = ["basis", "concentration", "shares", "under_covariance", "under_rotation", "unit"]

_ABSENT = 1e-6
"""The squared singular value, relative to the largest, below which a direction counts as absent."""


def unit(rows: Tensor) -> Tensor:
    """Scale each map (…, w, d) to a Frobenius norm of one; one that is zero stays zero."""
    sizes = torch.linalg.matrix_norm(rows)[..., None, None]
    return rows / torch.where(sizes > 0, sizes, torch.ones_like(sizes))


def basis(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return orthonormal rows that span those of each map, and the dimension of that span.

    Args:
        rows: The rows, (…, w, d).

    Returns:
        The basis, (…, w, d), with zero rows where the span has fewer dimensions than rows; and the dimensions, (…).
    """
    wide = rows.double()
    values, vectors = torch.linalg.eigh(wide @ wide.mT)
    present = (values > _ABSENT * values[..., -1:]) & (values > 0)
    scale = torch.where(present, values.clamp_min(0).rsqrt(), torch.zeros_like(values))
    return ((vectors * scale[..., None, :]).mT @ wide).to(rows.dtype), present.sum(-1)


def concentration(rows: Tensor) -> Tensor:
    """Return how much each unit map (…, w, d) is one direction, tr((AᵀA)²): from 1/w for equal directions to 1."""
    return (rows @ rows.mT).square().sum((-1, -2))


def shares(writes: Tensor, reads: Tensor) -> Tensor:
    """Return ``‖A Bᵀ‖²`` for all pairs of unit maps A of (n, w, d) and B of (…, w′, d): (n, …)."""
    products = writes.flatten(0, 1) @ reads.flatten(0, -2).T
    return products.reshape(*writes.shape[:2], *reads.shape[:-1]).square().sum((1, -1))


def under_rotation(first: Tensor, second: Tensor, d: int) -> tuple[float, Tensor]:
    """Return mean and standard deviation of the share of two unit maps if one is turned at random in d dimensions.

    Over the orthogonal group ``tr(P R Q Rᵀ)`` has the mean ``tr P tr Q / d`` and the variance
    ``2 (d tr P² − tr² P) (d tr Q² − tr² Q) / (d² (d − 1) (d + 2))``, as its invariant tensors of fourth order give them
    (Collins and Śniady 2006); here ``tr P = tr Q = 1``.

    Args:
        first: The `concentration` of one map.
        second: That of the other; the two broadcast.
        d: The number of dimensions.
    """
    variance = 2 * (d * first - 1).clamp_min(0) * (d * second - 1).clamp_min(0) / (d**2 * (d - 1) * (d + 2))
    return 1 / d, variance.sqrt()


def under_covariance(products: Tensor, concentrations: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of shares if a map's rows are random ones with the covariance of others.

    With normal rows of covariance C and singular values s of its own, a map has ``Σ s_i² ‖B g_i‖²`` with a map B:
    the mean ``tr(B C Bᵀ)`` and the variance ``2 Σ s_i⁴ tr((B C Bᵀ)²)``.

    Args:
        products: ``B Sᵀ`` (m, w′, rows) for each map B that reads and rows S with ``SᵀS = C``.
        concentrations: `concentration` of the map, ().

    Returns:
        Means and standard deviations, (m,).
    """
    spread = products @ products.mT
    deviation = (2 * concentrations * spread.square().sum((-1, -2))).sqrt()
    return spread.diagonal(dim1=-2, dim2=-1).sum(-1), deviation
