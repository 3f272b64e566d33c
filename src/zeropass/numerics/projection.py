"""Projections of residual stream vectors to scores over the vocabulary, and back.

Sources: Dar et al. 2023, §3; docs/theory.md §4 and §5.
"""

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
    "sinusoids",
    "strength",
    "unfolded",
]


_FLAT = 1e-6
"""The smallest gain that vectors are divided by."""

_BLOCK = 4096
"""The number of rows that are held in float64 at once."""


def scores(vectors: Tensor, rows: Tensor) -> Tensor:
    """Return the scores (n, V) of vectors (n, d) over rows (V, d): ``x Eᵀ`` (Dar et al. 2023, §3.1)."""
    return vectors @ rows.T


def normed(x: Tensor, norm: Literal["rms", "layer"], eps: float) -> Tensor:
    """Divide states (…, d) by their root mean square (``rms``), or centre and divide them by their deviation."""
    if norm == "layer":
        x = x - x.mean(-1, keepdim=True)
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def apply_norm(
    x: Tensor, norm: Literal["rms", "layer"], eps: float, gain: Tensor | None, shift: Tensor | None
) -> Tensor:
    """Apply a model's norm layer to states (…, d): `normed`, times the gain, plus the shift."""
    x = normed(x, norm, eps)
    x = x if gain is None else x * gain
    return x if shift is None else x + shift


def fold_read(vectors: Tensor, gain: Tensor | None, norm: Literal["rms", "layer"]) -> Tensor:
    """Fold the norm before reading vectors (n, d) into them: ``γ ⊙ w``, minus its mean for LayerNorm.

    ``w · (γ ⊙ (x − mean x)) = (γ ⊙ w − mean(γ ⊙ w)) · x``: docs/theory.md §5.
    """
    folded = vectors if gain is None else vectors * gain
    return folded - folded.mean(-1, keepdim=True) if norm == "layer" else folded


def fold_write(vectors: Tensor, gain: Tensor | None, norm: Literal["rms", "layer"]) -> Tensor:
    """Fold the norm after a block into writing vectors (n, d): centred for LayerNorm, then ``γ ⊙ v``."""
    centred = vectors - vectors.mean(-1, keepdim=True) if norm == "layer" else vectors
    return centred if gain is None else centred * gain


def rotate(x: Tensor, offset: int | Tensor, frequencies: Tensor) -> Tensor:
    """Turn queries by a rotary position, in the halves convention: ``R_Δ q`` (docs/theory.md §3, RoPE).

    Args:
        x: Queries (…, d_h), or (…, t, d_h).
        offset: One position for all queries, or a tensor (t,) with one for each of the t.
        frequencies: Radians per position, (r/2,); the first r coordinates are turned, the rest stay.

    Returns:
        The turned queries, shaped like ``x``.
    """
    half = frequencies.shape[0]
    angle = offset[:, None] * frequencies if isinstance(offset, Tensor) else offset * frequencies
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    first, second, turned = x[..., :half], x[..., half : 2 * half], x.clone()
    turned[..., :half].mul_(cos).addcmul_(second, sin, value=-1)
    turned[..., half : 2 * half].mul_(cos).addcmul_(first, sin)
    return turned


def sinusoids(rule: Literal["halves", "tensor2tensor"], start: int, stop: int, width: int) -> Tensor:
    """Return the rows of sinusoidal positions, sines in the first half and cosines in the second.

    Args:
        rule: ``halves`` for angles ``p / 10000^(2i/d)`` (Vaswani et al. 2017, §3.5); ``tensor2tensor`` for
            ``p / 10000^(i/(d/2 − 1))``, which reaches 10000 in the last of the d/2 angles (as tensor2tensor, fairseq).
        start: The first position.
        stop: The end of the positions.
        width: The width of a row, d; an even number.

    Returns:
        The rows, (stop − start, d) float32.
    """
    half = width // 2
    powers = torch.arange(half, dtype=torch.float64) / (half if rule == "halves" else half - 1)
    angles = torch.arange(start, stop, dtype=torch.float64)[:, None] * 10000.0**-powers
    return torch.cat((angles.sin(), angles.cos()), 1).float()


def restored(x: Tensor, norm: Literal["rms", "layer"], eps: float, gain: Tensor, shift: Tensor) -> Tensor:
    """Bring states (…, d) to where a norm layer puts every state; outputs of the layer itself do not change."""
    return normed(unfolded(x - shift, gain), norm, eps) * gain + shift


def unfolded(x: Tensor, gain: Tensor) -> Tensor:
    """Take a norm's gain out of vectors (…, d) again: divide by it, or by a small number where it is near zero."""
    return x / torch.where(gain.abs() < _FLAT, torch.full_like(gain, _FLAT), gain)


@dataclass(frozen=True)
class Extremes:
    """The k highest and k lowest scores of n vectors, with their ids: (n, k) each, most extreme first."""

    top: Tensor
    top_ids: Tensor
    bottom: Tensor
    bottom_ids: Tensor

    def first(self, k: int) -> "Extremes":
        """Return the k most extreme scores of each pole."""
        return Extremes(self.top[:, :k], self.top_ids[:, :k], self.bottom[:, :k], self.bottom_ids[:, :k])


def extremes(values: Tensor, k: int, ids: Tensor | None = None) -> Extremes:
    """Return the top and bottom k of scores (n, V); ``ids`` (V,) names the columns if they are a selection."""
    k = min(k, values.shape[1])
    top, top_at = values.topk(k, dim=1)
    bottom, bottom_at = values.topk(k, dim=1, largest=False)
    if ids is not None:
        top_at, bottom_at = ids[top_at], ids[bottom_at]
    return Extremes(top, top_at, bottom, bottom_at)


def strength(e: Extremes, rank: int = 10) -> Tensor:
    """Return how telling each list is, (n,): |z| of the tenth token of its stronger pole; one odd token is not enough.

    Args:
        e: The lists, with z for scores.
        rank: Rank of the token, from 1.
    """
    place = min(rank, e.top.shape[1]) - 1
    return torch.maximum(e.top[:, place].abs(), e.bottom[:, place].abs())


def pseudo_inverse(rows: Tensor) -> Tensor:
    """Return the right inverse E′ (V, d) of Eᵀ: ``E (EᵀE)⁻¹`` (Dar et al. 2023, §3.2 and app. A).

    It is computed through the d x d Gram matrix. ``x Eᵀ E′ = x`` for every state x if E has full column rank. The other
    right inverse in use, the transpose, is E itself: correct only up to the scale of EᵀE, good for short lists.
    """
    inverse = torch.linalg.pinv(gram(rows), hermitian=True)
    out = torch.empty_like(rows)
    for block, out_block in zip(torch.split(rows, _BLOCK), torch.split(out, _BLOCK), strict=True):
        out_block.copy_(block.double() @ inverse)
    return out


def keep_k(values: Tensor, k: int) -> Tensor:
    """Set all but the k scores of the largest absolute value in (n, V) to zero (Dar et al. 2023, app. A)."""
    columns = values.abs().topk(min(k, values.shape[-1]), dim=-1).indices
    return torch.zeros_like(values).scatter(-1, columns, values.gather(-1, columns))


def from_scores(values: Tensor, inverse: Tensor, k: int | None = None) -> Tensor:
    """Return hidden states (n, d) from scores (n, V) by a right inverse E′ (V, d), or from the k strongest only."""
    return (values if k is None else keep_k(values, k)) @ inverse
