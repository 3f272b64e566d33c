"""A head's maps at the token itself: copying and suppression in ``vo``, attention to the same token in ``qk``.

A map is given by its factors over n tokens, ``left @ right.T`` for each head. Nothing here is n x n but `own_ranks`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Shares", "entries_z", "own_ranks", "shares", "turns"]


def turns(count: int, width: int, seed: int) -> Tensor:
    """Return random orthogonal matrices (count, width, width), uniformly distributed.

    Between the factors of a map they make a random map that reads the same subspace, writes the same subspace and sees
    each token as strongly on both sides; only what belongs to what is random.
    """
    generator = torch.Generator().manual_seed(seed)
    q, r = torch.linalg.qr(torch.randn(count, width, width, generator=generator, dtype=torch.float64))
    signed: Tensor = q * r.diagonal(dim1=1, dim2=2).sign()[:, None]
    return signed.float()


def entries_z(left: Tensor, right: Tensor, every: Tensor) -> Tensor:
    """Return the z of the entry of each pair of rows among the entries that the left one has with all right ones.

    Args:
        left: Left rows of the pairs, (…, m, r).
        right: Right rows of the pairs, (…, m, r).
        every: The rows of all tokens on the right side, (…, n, r).

    Returns:
        z, (…, m): 0 where a row has no spread.
    """
    mean = every.mean(-2, keepdim=True)
    centred = every - mean
    covariance = centred.mT @ centred / every.shape[-2]
    spread = ((left @ covariance) * left).sum(-1).clamp_min(0).sqrt()
    entries = (left * (right - mean)).sum(-1)
    return torch.where(spread > 0, entries / spread, torch.zeros_like(entries))


def own_ranks(left: Tensor, right: Tensor) -> Tensor:
    """Return the mean share of its row that each token's own entry exceeds, for factors (heads, n, r): (heads,).

    It is one half by chance, 1 for a head in which every token has itself first, and 0 where it has itself last.
    """
    return torch.stack([_own_rank(*factors) for factors in zip(left, right, strict=True)])


def _own_rank(left: Tensor, right: Tensor) -> Tensor:
    entries = left @ right.T
    own = entries.diagonal()[:, None]
    others = max(len(entries) - 1, 1)
    ties = ((entries == own).sum(1) - 1).clamp_min(0)
    return (((entries < own).sum(1) + ties / 2) / others).mean()


@dataclass(frozen=True)
class Shares:
    """Shares of the squared Frobenius norm of maps, (heads,) each.

    Attributes:
        alike: Of the mean row: what the head does whatever the left token is.
        own: Of what is symmetric and positive in the rest, less what is symmetric and negative: 1 for a map that gives
            each token to itself and to tokens like it, 0 on average for a random one, -1 for the negative of the first.
    """

    alike: Tensor
    own: Tensor


def shares(left: Tensor, right: Tensor) -> Shares:
    """Return the shares of maps with the factors left and right, (heads, n, r) each, by Gram matrices alone.

    The columns of the map are centred over the right tokens. Then ``M = 1 m + N`` with the mean row m, and N is
    orthogonal to the first part. The symmetric half of N, ``(L Rᵀ + R Lᵀ) / 2``, has the eigenvalues of
    ``J BᵀB / 2`` with ``B = [L R]``, where J swaps the two.

    Args:
        left: Left factors.
        right: Right factors.
    """
    left, right = left.double(), right.double()
    right = right - right.mean(1, keepdim=True)
    mean = left.mean(1, keepdim=True)
    inner = left - mean
    gram = right.mT @ right
    alike = left.shape[1] * (mean @ gram * mean).sum((1, 2))
    rest = ((inner.mT @ inner) * gram).sum((1, 2))
    total = (alike + rest).clamp_min(torch.finfo(torch.float64).tiny)
    values = _symmetric_values(inner, right)
    own = (values * values.abs()).sum(1)
    return Shares(alike=(alike / total).float(), own=(own / total).float())


def _symmetric_values(left: Tensor, right: Tensor) -> Tensor:
    """Return the eigenvalues, but for zeros, of the symmetric half of ``left @ right.T``, (heads, 2 r)."""
    both = torch.cat((left, right), 2)
    sizes, vectors = torch.linalg.eigh(both.mT @ both)
    root = vectors * sizes.clamp_min(0).sqrt()[:, None] @ vectors.mT
    swapped = torch.cat(root.tensor_split(2, 1)[::-1], 1)  # J root
    values: Tensor = torch.linalg.eigvalsh(root @ swapped) / 2
    return values
