"""Mixers: what stands in the place of attention in some layers of a hybrid (docs/theory.md §2).

Their projections from the stream and into it are vectors of the stream. What lies between them goes through a text one
token at a time, by the equations as published.

A gradient of what a mixer makes of a text is that of the path at one position that the mean-field lens counts
(docs/theory.md §9): through what a token itself writes to the state, and through what multiplies its channels. What
moves the state otherwise (queries, keys, steps, decay) and the lengths in norms count as fixed.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from zeropass.arch.dimensions import Mixer, MixerKind
from zeropass.errors import BadWeights
from zeropass.model.model import Model

__all__ = ["MixerState", "mixed", "mixed_with_slopes", "repeated"]


@dataclass
class MixerState:
    """The part of the tokens so far that the mixer of a layer keeps.

    Attributes:
        inputs: The last inputs of its convolution, (batch, tokens, channels); None before the first token.
        memory: Its state, (batch, heads, state, width); None before the first token.
    """

    inputs: Tensor | None = None
    memory: Tensor | None = None

    def repeated(self, times: int) -> "MixerState":
        """Return a state that holds each text of the batch so many times in a row."""
        return MixerState(repeated(self.inputs, times), repeated(self.memory, times))


def repeated(kept: Tensor | None, times: int) -> Tensor | None:
    """Return what is kept of each text of a batch so many times in a row; None if there is nothing."""
    return None if kept is None else kept.repeat_interleave(times, 0)


def mixed(model: Model, layer: int, inputs: Tensor, state: MixerState) -> Tensor:
    """Return what the mixer of a layer makes of a text.

    Args:
        model: The model.
        layer: A layer with a mixer.
        inputs: What the projection into the mixer gives for each token, (batch, tokens, rows).
        state: What is kept of earlier tokens, which is brought up to date.

    Returns:
        What its output projection reads, (batch, tokens, inner).
    """
    assert model.family.mixer  # only a layer of such a model has one
    return _INNER[model.family.mixer](_Inner(model, layer, state), inputs)


def mixed_with_slopes(model: Model, layer: int, inputs: Tensor, state: MixerState) -> tuple[Tensor, Tensor]:
    """Return `mixed`, and how it changes with each input at the same position, on the path above.

    Returns:
        What the output projection reads, (batch, tokens, inner), and the slopes, shaped like ``inputs``. An input of a
        channel changes that channel alone; all other inputs have slope 0.
    """
    with torch.enable_grad():
        inputs = inputs.detach().requires_grad_()
        read = mixed(model, layer, inputs, state)
        (gradient,) = torch.autograd.grad(read.sum(), inputs)
    return read.detach(), gradient


class _Inner:
    """The tensors inside the mixer of one layer, and what it keeps of a text."""

    def __init__(self, model: Model, layer: int, state: MixerState) -> None:
        self.model, self.layer, self.state, self.eps = model, layer, state, model.dims.eps
        assert model.dims.mixer
        self.sizes: Mixer = model.dims.mixer

    def tensor(self, what: str) -> Tensor:
        """Return a tensor, shaped as it is stored."""
        values = self.model.vector(what, self.layer)
        if values is None:
            raise BadWeights(f"{self.model.source.path}: the mixer of layer {self.layer} has no {what}.")
        return values

    def scaled(self, inputs: Tensor) -> Tensor:
        """Return the inputs (…, rows), each part times its factor."""
        if not self.sizes.scales:
            return inputs
        rows = torch.tensor([self.sizes.size(name) for name in self.model.layout.tensors["mixer_in"].sizes])
        return inputs * torch.tensor(self.sizes.scales).repeat_interleave(rows).to(inputs.device)

    def convolved(self, x: Tensor) -> Tensor:
        """Return the causal convolution of (batch, tokens, channels), channel by channel, with its bias."""
        kernels, bias = self.tensor("inner_conv"), self.model.vector("inner_conv_bias", self.layer)
        before = kernels.shape[-1] - 1
        past = x.new_zeros(len(x), before, x.shape[-1]) if self.state.inputs is None else self.state.inputs
        entire = torch.cat((past, x.detach()), 1)
        self.state.inputs = entire[:, entire.shape[1] - before :]
        convolution = functional.conv1d(entire.mT, kernels, bias, groups=x.shape[-1]).mT
        return _through(convolution, x, kernels[:, 0, -1])

    def recurrence(self, q: Tensor, k: Tensor, v: Tensor, decay: Tensor, rate: Tensor | None = None) -> Tensor:
        """Return what queries read from a state that decays and takes up the product of each key and value.

        With S_t = a_t S_{t-1} + k_tᵀ v_t it is q_t S_t. By the delta rule, which has a rate β, what is taken up in the
        place of v_t is β_t (v_t − k_t a_t S_{t-1}).

        Args:
            q: The queries, (batch, tokens, heads, state).
            k: The keys, (batch, tokens, heads, state).
            v: The values, (batch, tokens, heads, width).
            decay: The factors a of the state, (batch, tokens, heads, state) or a 1 in the place of the last.
            rate: The rates β, (batch, tokens, heads), of the delta rule.

        Returns:
            What is read, (batch, tokens, heads, width).
        """
        fixed, memory = v.detach(), self.state.memory
        memory = v.new_zeros(len(v), *k.shape[2:], v.shape[-1]) if memory is None else memory
        read = torch.empty_like(fixed)
        for t in range(v.shape[1]):
            memory = memory * decay[:, t, ..., None]
            new = fixed[:, t]
            if rate is not None:
                new = rate[:, t, :, None] * (new - (k[:, t, :, None] @ memory)[:, :, 0])
            memory = memory + k[:, t, ..., None] * new[:, :, None]
            read[:, t] = (q[:, t, :, None] @ memory)[:, :, 0]
        self.state.memory = memory
        own = (q * k).sum(-1, keepdim=True)
        return _through(read, v, own if rate is None else own * rate[..., None])

    def per_head(self, x: Tensor, width: int) -> Tensor:
        """Cut (…, groups width) into groups and repeat them for the heads that share them, (…, heads, width)."""
        each = x.reshape(*x.shape[:-1], -1, width)
        return each.repeat_interleave(self.sizes.heads // each.shape[-2], -2)

    def in_heads(self, x: Tensor) -> Tensor:
        """Cut (…, inner) into heads, (…, heads, width)."""
        return x.reshape(*x.shape[:-1], self.sizes.heads, -1)

    def step(self, x: Tensor) -> Tensor:
        """Return the steps of a state-space model, above zero."""
        return functional.softplus(x + self.tensor("inner_step")).clamp_min(self.sizes.least_step)

    def block_gate(self, x: Tensor, name: str) -> Tensor:
        """Return the gates (batch, tokens, inner) that blocks of channels make of themselves, which count as fixed."""
        blocks = self.in_heads(x.detach())[..., None, :] @ self.tensor(f"inner_{name}_gate")
        return (blocks[..., 0, :] + self.tensor(f"inner_{name}_bias")).flatten(-2).sigmoid()

    def rates(self) -> Tensor:
        """Return the rates at which a state decays, below zero."""
        return -self.tensor("inner_decay").exp()


def _delta(inner: _Inner, inputs: Tensor) -> Tensor:
    """Apply the gated delta rule (Yang et al. 2024, arXiv:2412.06464); what is read is normed and gated."""
    sizes = inner.sizes
    keys, values = sizes.size("keys"), sizes.size("inner")
    qkv, gate, update, decay = torch.split(inputs, [2 * keys + values, values, sizes.heads, sizes.heads], -1)
    q, k, v = torch.split(functional.silu(inner.convolved(qkv)), [keys, keys, values], -1)
    q, k = (_of_length_one(inner.per_head(x.detach(), sizes.state)) for x in (q, k))
    kept = (inner.rates() * inner.step(decay.detach())).exp()
    read = inner.recurrence(
        q=q * sizes.state**-0.5,
        k=k,
        v=inner.in_heads(v),
        decay=kept[..., None],
        rate=update.detach().sigmoid(),
    )
    return (_normed(read, inner.eps) * inner.tensor("inner_gain")).flatten(-2) * functional.silu(gate)


def _convolution(inner: _Inner, inputs: Tensor) -> Tensor:
    """Convolve one part of the inputs, gated before and after it by two others (``Lfm2ShortConv`` of transformers)."""
    before, behind, x = inputs.chunk(3, -1)
    return behind * inner.convolved(before * x)


def _mamba2(inner: _Inner, inputs: Tensor) -> Tensor:
    """Apply Mamba 2 (Dao & Gu 2024, arXiv:2405.21060); what is read is gated, then normed by group if it is at all."""
    sizes = inner.sizes
    keys, values = sizes.size("keys"), sizes.size("inner")
    gate, xbc, steps = torch.split(inner.scaled(inputs), [values, values + 2 * keys, sizes.heads], -1)
    x, b, c = torch.split(functional.silu(inner.convolved(xbc)), [values, keys, keys], -1)
    b, c = (inner.per_head(each.detach(), sizes.state) for each in (b, c))
    x, step = inner.in_heads(x), inner.step(steps.detach())
    read = inner.recurrence(q=c, k=step[..., None] * b, v=x, decay=(inner.rates() * step).exp()[..., None])
    read = read + inner.tensor("inner_skip")[:, None] * x
    gated = read.flatten(-2) * functional.silu(gate)
    if "inner_gain" not in inner.model.layout.tensors:
        return gated
    grouped = gated.reshape(*gated.shape[:-1], sizes.groups, -1)
    return _normed(grouped, inner.eps).flatten(-2) * inner.tensor("inner_gain")


def _mamba(inner: _Inner, inputs: Tensor) -> Tensor:
    """Apply Mamba (Gu & Dao 2023, arXiv:2312.00752), with Jamba's norms; each channel is a head of width one."""
    sizes = inner.sizes
    x, gate = inputs.chunk(2, -1)
    x = functional.silu(inner.convolved(x))
    parts = torch.split(x.detach() @ inner.tensor("inner_down").T, [sizes.rank, sizes.state, sizes.state], -1)
    step, b, c = (
        normed * inner.tensor(f"inner_{name}_gain")
        for name, normed in zip(("step", "b", "c"), (_normed(part, inner.eps) for part in parts), strict=True)
    )
    step = inner.step(step @ inner.tensor("inner_up").T)[..., None]
    read = inner.recurrence(
        q=c[..., None, :].expand(*step.shape[:-1], -1),
        k=step * b[..., None, :],
        v=x[..., None],
        decay=(step * inner.rates()).exp(),
    )
    return (read[..., 0] + inner.tensor("inner_skip") * x) * functional.silu(gate)


def _rglru(inner: _Inner, inputs: Tensor) -> Tensor:
    """Apply the real-gated linear recurrent unit (De et al. 2024, arXiv:2402.19427, §2.4), gated by other inputs.

    Each channel is a head of width one. Channels of a block share what their two gates read; the first token of a text
    is taken up in full.
    """
    x, gate = inputs.chunk(2, -1)
    x = inner.convolved(x)
    taken = inner.block_gate(x, "input")
    decay = -8 * inner.block_gate(x, "decay") * functional.softplus(inner.tensor("inner_decay"))
    share = (-torch.expm1(2 * decay)).sqrt()
    if inner.state.memory is None:
        share = torch.cat((torch.ones_like(share[:, :1]), share[:, 1:]), 1)
    k = (taken * share)[..., None]
    read = inner.recurrence(q=torch.ones_like(k), k=k, v=x[..., None], decay=decay.exp()[..., None])
    return read[..., 0] * functional.gelu(gate, approximate="tanh")


def _through(values: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Return values; a gradient reaches x with a weight, as if all else that they are made of were fixed."""
    return values.detach() + weight.detach() * (x - x.detach()) if x.requires_grad else values


def _of_length_one(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)


def _normed(x: Tensor, eps: float) -> Tensor:
    """Divide (…, width) by the root mean square, which counts as fixed."""
    return x * torch.rsqrt(x.detach().square().mean(-1, keepdim=True) + eps)


_INNER: dict[MixerKind, Callable[[_Inner, Tensor], Tensor]] = {
    "delta": _delta,
    "convolution": _convolution,
    "mamba2": _mamba2,
    "mamba": _mamba,
    "rglru": _rglru,
}
"""The functions from the inputs (batch, tokens, rows) of a text to what goes into the output projection."""
