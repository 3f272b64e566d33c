"""Mixers: what stands in the place of attention in some layers of a hybrid (docs/theory.md §2).

Their projections from the stream and into it are vectors of the stream. What lies between depends on the tokens before.
Only for a token alone, whose state was empty, it is computed here: the rows of the ``token`` frame need it.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from zeropass.arch.spec import Mixer, MixerKind
from zeropass.errors import BadWeights
from zeropass.model.model import Model
from zeropass.numerics.projection import normed

__all__ = ["mixed_alone"]


def mixed_alone(model: Model, layer: int, inputs: Tensor) -> Tensor:
    """Return what the mixer of a layer makes of tokens alone, each without any before it.

    Args:
        model: The model.
        layer: A layer with a mixer.
        inputs: What the projection into the mixer gives for each token, (n, rows).

    Returns:
        What its output projection reads, (n, inner).
    """
    assert model.family.mixer  # only a layer of such a model has one
    return _INNER[model.family.mixer](_Inner(model, layer), inputs)


class _Inner:
    """The tensors inside the mixer of one layer."""

    def __init__(self, model: Model, layer: int) -> None:
        self.model, self.layer, self.eps = model, layer, model.dims.eps
        assert model.dims.mixer
        self.sizes: Mixer = model.dims.mixer

    def tensor(self, what: str) -> Tensor:
        """Return a tensor, shaped as it is stored."""
        values = self.model.vector(what, self.layer)
        if values is None:
            raise BadWeights(f"{self.model.source.path}: the mixer of layer {self.layer} has no {what}.")
        return values

    def convolved(self, x: Tensor) -> Tensor:
        """Return the convolution of a token (n, channels) with none before it: the last tap of each kernel, a bias."""
        x = x * self.tensor("inner_conv")[:, 0, -1]
        bias = self.model.vector("inner_conv_bias", self.layer)
        return x if bias is None else x + bias

    def per_head(self, x: Tensor, width: int) -> Tensor:
        """Cut (n, groups width) into groups and repeat them for the heads that share them, (n, heads, width)."""
        each = x.reshape(*x.shape[:-1], -1, width)
        return each.repeat_interleave(self.sizes.heads // each.shape[-2], -2)


def _delta(inner: _Inner, inputs: Tensor) -> Tensor:
    """Apply the gated delta rule (Yang et al. 2024, arXiv:2412.06464) to an empty state: β (q·k) v, normed, gated."""
    sizes = inner.sizes
    keys, values = sizes.size("keys"), sizes.size("inner")
    mixed, gate, update, _decay = torch.split(inputs, [2 * keys + values, values, sizes.heads, sizes.heads], -1)
    q, k, v = torch.split(functional.silu(inner.convolved(mixed)), [keys, keys, values], -1)
    q, k = (inner.per_head(_unit(x.reshape(len(x), -1, sizes.state)).flatten(1), sizes.state) for x in (q, k))
    weight = update.sigmoid() * (q * k).sum(-1) * sizes.state**-0.5
    out = normed(weight[..., None] * v.reshape(len(v), sizes.heads, -1), "rms", inner.eps) * inner.tensor("inner_gain")
    return out.flatten(1) * functional.silu(gate)


def _convolution(inner: _Inner, inputs: Tensor) -> Tensor:
    """Convolve one part of the inputs, gated before and after it by two others (``Lfm2ShortConv`` of transformers)."""
    before, behind, x = inputs.chunk(3, -1)
    return behind * inner.convolved(before * x)


def _mamba2(inner: _Inner, inputs: Tensor) -> Tensor:
    """Apply Mamba 2 (Dao & Gu 2024, arXiv:2405.21060) to an empty state: (Δ B·C + D) x, gated and normed by group."""
    sizes = inner.sizes
    keys, values = sizes.size("keys"), sizes.size("inner")
    gate, mixed, steps = torch.split(inputs, [values, values + 2 * keys, sizes.heads], -1)
    x, b, c = torch.split(functional.silu(inner.convolved(mixed)), [values, keys, keys], -1)
    b, c = (inner.per_head(each, sizes.state) for each in (b, c))
    step = functional.softplus(steps + inner.tensor("inner_step")).clamp_min(sizes.least_step)
    weight = step * (b * c).sum(-1) + inner.tensor("inner_skip")
    out = (weight[..., None] * x.reshape(len(x), sizes.heads, -1)).flatten(1) * functional.silu(gate)
    return normed(out.reshape(len(x), sizes.groups, -1), "rms", inner.eps).flatten(1) * inner.tensor("inner_gain")


def _mamba(inner: _Inner, inputs: Tensor) -> Tensor:
    """Apply Mamba (Gu & Dao 2023, arXiv:2312.00752), with Jamba's norms, to an empty state: (Δ B·C + D) x, gated."""
    sizes = inner.sizes
    x, gate = inputs.chunk(2, -1)
    x = functional.silu(inner.convolved(x))
    parts = torch.split(x @ inner.tensor("inner_down").T, [sizes.rank, sizes.state, sizes.state], -1)
    step, b, c = (
        normed(part, "rms", inner.eps) * inner.tensor(f"inner_{name}_gain")
        for name, part in zip(("step", "b", "c"), parts, strict=True)
    )
    step = functional.softplus(step @ inner.tensor("inner_up").T + inner.tensor("inner_step"))
    return (step * (b * c).sum(-1, keepdim=True) + inner.tensor("inner_skip")) * x * functional.silu(gate)


def _unit(x: Tensor) -> Tensor:
    """Return vectors of length one."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)


_INNER: dict[MixerKind, Callable[[_Inner, Tensor], Tensor]] = {
    "delta": _delta,
    "convolution": _convolution,
    "mamba2": _mamba2,
    "mamba": _mamba,
}
"""The functions from the inputs (n, rows) of tokens alone to what goes into the output projection, (n, inner)."""
