"""From vectors of the residual stream to scores over the vocabulary, and back (Dar et al. 2023, §3; design.md §2)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from zeropass.numerics.statistics import gram

__all__ = [
    "Extremes",
    "apply_norm",
    "extremes",
    "fold_read",
    "fold_write",
    "from_scores",
    "keep_k",
    "normed",
    "pseudo_inverse",
    "restored",
    "rotate",
    "scores",
    "unfolded",
]


_FLAT = 1e-6
"""A smaller gain is taken as this where it is divided by."""

_BLOCK = 4096
"""Rows that are held in float64 at once."""


def scores(vectors: Tensor, rows: Tensor) -> Tensor:
    """Scores (n, V) that (n, d) vectors give to (V, d) rows: ``x Eᵀ`` (Dar et al. 2023, §3.1)."""
    return vectors @ rows.T


def normed(x: Tensor, norm: Literal["rms", "layer"], eps: float) -> Tensor:
    """(…, d) states divided by their root mean square (``rms``), or centred and divided by their deviation."""
    if norm == "layer":
        x = x - x.mean(-1, keepdim=True)
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def apply_norm(
    x: Tensor, norm: Literal["rms", "layer"], eps: float, gain: Tensor | None, shift: Tensor | None
) -> Tensor:
    """The whole norm layer of a model: `normed`, times the gain, plus the shift."""
    x = normed(x, norm, eps)
    x = x if gain is None else x * gain
    return x if shift is None else x + shift


def fold_read(vectors: Tensor, gain: Tensor | None, norm: Literal["rms", "layer"]) -> Tensor:
    """Reading vectors (n, d) with the norm before them folded in: ``γ ⊙ w``, minus its mean for LayerNorm.

    ``w · (γ ⊙ (x − mean x)) = (γ ⊙ w − mean(γ ⊙ w)) · x``: design.md §2, norm folding.
    """
    folded = vectors if gain is None else vectors * gain
    return folded - folded.mean(-1, keepdim=True) if norm == "layer" else folded


def fold_write(vectors: Tensor, gain: Tensor | None, norm: Literal["rms", "layer"]) -> Tensor:
    """Writing vectors (n, d) as a norm after the block passes them on: centred for LayerNorm, then ``γ ⊙ v``."""
    centred = vectors - vectors.mean(-1, keepdim=True) if norm == "layer" else vectors
    return centred if gain is None else centred * gain


def rotate(x: Tensor, offset: int | Tensor, frequencies: Tensor) -> Tensor:
    """(…, d_h) queries turned by rotary position ``offset``, halves convention: ``R_Δ q`` (design.md §2, RoPE).

    ``frequencies`` (r/2,) in radians a position turn the first r coordinates; the rest stay. ``offset`` is one
    position for all, or a tensor (t,) of one for each of (…, t, d_h).
    """
    half = frequencies.shape[0]
    angle = offset[:, None] * frequencies if isinstance(offset, Tensor) else offset * frequencies
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    first, second, turned = x[..., :half], x[..., half : 2 * half], x.clone()
    turned[..., :half].mul_(cos).addcmul_(second, sin, value=-1)
    turned[..., half : 2 * half].mul_(cos).addcmul_(first, sin)
    return turned


def restored(x: Tensor, norm: Literal["rms", "layer"], eps: float, gain: Tensor, shift: Tensor) -> Tensor:
    """(…, d) states brought to where a norm layer puts every state; what it has put out itself stays as it is."""
    return normed(unfolded(x - shift, gain), norm, eps) * gain + shift


def unfolded(x: Tensor, gain: Tensor) -> Tensor:
    """(…, d) vectors with a norm's gain taken out again: divided by it, or by a little where it is nothing."""
    return x / torch.where(gain.abs() < _FLAT, torch.full_like(gain, _FLAT), gain)


@dataclass(frozen=True)
class Extremes:
    """The k highest and k lowest scores of n vectors: (n, k) each, best first."""

    top: Tensor
    top_ids: Tensor
    bottom: Tensor
    bottom_ids: Tensor


def extremes(values: Tensor, k: int, ids: Tensor | None = None) -> Extremes:
    """Top and bottom k of (n, V) scores; ``ids`` (V,) names the columns if they are a selection."""
    k = min(k, values.shape[1])
    top, top_at = values.topk(k, dim=1)
    bottom, bottom_at = values.topk(k, dim=1, largest=False)
    if ids is not None:
        top_at, bottom_at = ids[top_at], ids[bottom_at]
    return Extremes(top, top_at, bottom, bottom_at)


def pseudo_inverse(rows: Tensor) -> Tensor:
    """Right inverse E′ (V, d) of Eᵀ: ``E (EᵀE)⁻¹``, through the d x d Gram matrix (Dar et al. 2023, §3.2 and app. A).

    ``x Eᵀ E′ = x`` for every state x if E has full column rank. The other right inverse in use, the transpose,
    is E itself: right only up to the scale of EᵀE, good for reading short lists.
    """
    inverse = torch.linalg.pinv(gram(rows), hermitian=True)
    out = torch.empty_like(rows)
    for whole, part in zip(torch.split(rows, _BLOCK), torch.split(out, _BLOCK), strict=True):
        part.copy_(whole.double() @ inverse)
    return out


def keep_k(values: Tensor, k: int) -> Tensor:
    """Scores (n, V) with all but the k largest in absolute value set to zero (Dar et al. 2023, app. A)."""
    at = values.abs().topk(min(k, values.shape[-1]), dim=-1).indices
    return torch.zeros_like(values).scatter(-1, at, values.gather(-1, at))


def from_scores(values: Tensor, inverse: Tensor, k: int | None = None) -> Tensor:
    """Hidden states (n, d) from scores (n, V) by a right inverse E′ (V, d); of the k strongest alone if given."""
    return (values if k is None else keep_k(values, k)) @ inverse
