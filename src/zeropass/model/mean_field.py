"""The mean-field Jacobian of a block, in closed form from means over states (docs/theory.md §9).

`Block` passes states on; `BlockMeans` gathers what their Jacobians need: two means for each neuron, the mean slope of
every norm, the mean attention of a token to itself in each head, and the mean slopes of a mixer's inputs. A product of
means stands for a mean of products.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from zeropass.arch.layout import MIXER_INPUTS, PRODUCTS
from zeropass.arch.roles import OUTPUT_GATE, Site
from zeropass.model.blocks import Block
from zeropass.model.model import Model

__all__ = ["BlockJacobians", "BlockMeans", "final_slope", "slope"]

_FIRST = 1
"""The first position of a window that counts: models park attention on position 0, whose state is like no other."""


@dataclass
class _Mean:
    """A running mean."""

    total: Tensor | float = 0.0
    count: float = 0.0

    def add(self, total: Tensor, count: float) -> None:
        self.total, self.count = self.total + total, self.count + count

    @property
    def value(self) -> Tensor:
        return torch.as_tensor(self.total / self.count)


@dataclass
class _NormMeans:
    """The mean slope of a norm over states: E[1/σ (I − n nᵀ/d)], centred for LayerNorm (docs/theory.md §9)."""

    norm: Literal["rms", "layer"]
    eps: float
    inverse: _Mean = field(default_factory=_Mean)
    product: _Mean = field(default_factory=_Mean)

    def add(self, x: Tensor) -> None:
        """Add states, (…, d)."""
        x = x.reshape(-1, x.shape[-1])
        x = x - x.mean(-1, keepdim=True) if self.norm == "layer" else x
        inverse = torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)
        unit = x * inverse
        self.inverse.add(inverse.sum(), len(x))
        self.product.add((unit * inverse).T @ unit, len(x))

    def slope(self, gain: Tensor | None) -> Tensor:
        """Return the mean Jacobian of the norm for row vectors, (d, d)."""
        product = self.product.value
        slope = self.inverse.value * torch.eye(len(product), device=product.device) - product / len(product)
        slope = slope - slope.mean(0, keepdim=True) if self.norm == "layer" else slope
        return slope if gain is None else slope * gain


@dataclass(frozen=True)
class BlockJacobians:
    """The mean Jacobians of one block for row vectors: a change v of the stream changes what a half writes by ``v J``.

    Attributes:
        attn: Of the attention at the same position, of the mixer in its place, or of both side by side, (d, d).
        ff: Of the MLP, (d, d).
        behind: For a model that norms the stream behind each half: the slopes of these norms, by site; else empty.
        parallel: True if both halves read the same stream.
    """

    attn: Tensor
    ff: Tensor
    behind: dict[str, Tensor]
    parallel: bool

    def through(self, site: str, after: Tensor) -> Tensor:
        """Return what a vector that a half writes has become in the end.

        Args:
            site: ``attn`` or ``ff``: the half that writes it.
            after: What a change of the stream behind the block becomes, (d, d).

        Returns:
            The map, (d, d).
        """
        behind = self.behind
        if site == "ff" or self.parallel:
            return behind["ff"] @ after if behind else after
        rest = self._over("ff", after)
        return behind["attn"] @ rest if behind else rest

    def whole(self, after: Tensor) -> Tensor:
        """Return what a change of the stream before the block becomes in the end."""
        if self.parallel:
            return after + (self.attn + self.ff) @ after
        return self._over("attn", self._over("ff", after))

    def _over(self, site: str, after: Tensor) -> Tensor:
        after = self.behind[site] @ after if self.behind else after
        return after + (self.attn if site == "attn" else self.ff) @ after


@dataclass
class BlockMeans:
    """Means over the states that pass a block; hand `record` to `Block`."""

    block: Block
    _means: dict[str, _Mean] = field(default_factory=dict)
    _norms: dict[str, _NormMeans] = field(default_factory=dict)
    _window: dict[str, Tensor] = field(default_factory=dict)

    def record(self, name: str, values: Tensor) -> None:
        """Take the activations (batch, tokens, width) of one point of the block."""
        if name.endswith((".stream", ".out", ".sum")):
            model = self.block.model
            eps = model.dims.eps_of(f"{name.removesuffix('.out')}_post_norm" if name.endswith(".out") else name)
            self._norms.setdefault(name, _NormMeans(model.family.norm, eps)).add(values[:, _FIRST:])
        elif name == "v.latent":
            self._norms.setdefault(name, _NormMeans("rms", self.block.model.dims.latent_eps)).add(values[:, _FIRST:])
        elif name in ("gate", "up", "key", "router", "rotated.q", "rotated.k", "attended", "g"):
            self._window[name] = values
        elif name == "mixer.slopes":
            self._add_rows(name, values[:, _FIRST:])
        elif name == "o.in":
            self._add_attention()
        elif name == "value.in":
            self._add_mlp()

    def jacobians(self) -> BlockJacobians:
        """Return the mean Jacobians of everything that was recorded."""
        family = self.block.model.family
        sites = ("attn", "ff") if family.stream_normed else ()
        halves: dict[Site, Callable[[], Tensor]] = {
            "attn": self._of_heads,
            "mixer": self._of_channels,
            "ff": self._of_neurons,
        }
        d = self.block.model.dims.d
        zero = torch.zeros(d, d, device=self.block.model.device)
        each = {
            site: self._framed(site, of_half()) if self.block.model.dims.has_site(site, self.block.layer) else zero
            for site, of_half in halves.items()
        }
        return BlockJacobians(
            attn=each["attn"] + each["mixer"],
            ff=each["ff"],
            behind={site: self._slope(f"{site}.sum", f"{site}_norm") for site in sites},
            parallel=family.parallel,
        )

    # Norms

    def _slope(self, name: str, norm: str) -> Tensor:
        return self._norms[name].slope(self.block.vector(norm))

    def _framed(self, site: Site, inner: Tensor) -> Tensor:
        """Return the Jacobian of a half, between the norms before and behind it."""
        family = self.block.model.family
        if not family.reads_bare(f"{site}_norm", self.block.layer):
            inner = self._slope(f"{site}.stream", f"{site}_norm") @ inner
        behind = f"{site}_post_norm"
        inner = self.block.model.dims.written_scale(site) * inner
        return inner if self.block.vector(behind) is None else inner @ self._slope(f"{site}.out", behind)

    # The MLP

    def _add_mlp(self) -> None:
        block = self.block
        share = self._window.pop("router", None)
        weight = torch.ones(()) if share is None else block.per_neuron(share[:, _FIRST:])
        if "gate" in self._window:
            gate, up = (self._window.pop(name)[:, _FIRST:] for name in ("gate", "up"))
            self._add_rows("gate", weight * slope(block.activated, gate) * block.multiplier(up))
            self._add_rows("up", weight * block.activated(gate) * slope(block.multiplier, up))
        else:
            self._add_rows("key", weight * slope(block.activated, self._window.pop("key")[:, _FIRST:]))

    def _add_rows(self, role: str, values: Tensor) -> None:
        self._mean(role).add(values.flatten(0, 1).sum(0), values.shape[0] * values.shape[1])

    def _of_neurons(self) -> Tensor:
        """Return the mean Jacobian of the MLP between its norms: Σ_i E[∂f/∂(n·k_i)] k_iᵀ v_i."""
        values, d = self.block.matrix("value"), self.block.model.dims.d
        total = torch.zeros(d, d, device=values.device)
        for role in ("gate", "up", "key"):
            if role in self._means:
                total += (self.block.matrix(role).T * self._means[role].value) @ values
        return total

    # Attention

    def _add_attention(self) -> None:
        """Add each head's mean attention to the same position, times what an output gate lets through."""
        block = self.block
        q, k = (block.heads(self._window.pop(f"rotated.{role}"), role) for role in "qk")
        weights = block.weights(q, k, torch.arange(q.shape[2], device=q.device))
        diagonal = weights.diagonal(dim1=-2, dim2=-1)[..., _FIRST:]
        if block.model.family.gated:
            attended, gate = (self._window.pop(name)[:, _FIRST:] for name in ("attended", OUTPUT_GATE))
            gate = block.per_value(gate)
            self._add_rows(OUTPUT_GATE, attended * slope(block.opened, gate))
            diagonal = diagonal[..., None] * block.heads(block.opened(gate), "o")
        self._mean("diagonal").add(diagonal.sum((0, 2)), diagonal.shape[0] * diagonal.shape[2])

    def _of_heads(self) -> Tensor:
        """Return the mean Jacobian of attention at one position, through its own value: Σ_h E[α_ii] W_V W_O.

        With output gates it is W_V diag(E[α_ii σ(g)]) W_O, and through the gates W_G diag(E[σ'(g) a]) W_O, where a is
        what the head attended to. A latent that the values are made of has the mean slope of its norm (docs/theory.md
        §3).
        """
        dims, latent = self.block.dims, self.block.model.layout.latent_of("v")
        reads, o = self.block.matrix(PRODUCTS["v"][0] if latent else "v"), self.block.matrix("o")
        v, o = (rows.reshape(-1, dims.width("v"), rows.shape[1]) for rows in (reads, o))
        total = torch.zeros(v.shape[-1], dims.d, device=o.device)
        for head, weight in enumerate(self._means["diagonal"].value):
            total += (dims.value_scale * weight * v[head // dims.group].T) @ o[head]
        total = self.block.matrix(latent).T @ self._slope("v.latent", f"{latent}_norm") @ total if latent else total
        if self.block.model.family.gated:
            gates = self.block.per_value(self.block.matrix(OUTPUT_GATE).T)
            total += (gates * self._means[OUTPUT_GATE].value) @ o.flatten(0, 1)
        return total

    # Mixers

    def _of_channels(self) -> Tensor:
        """Return the mean Jacobian of a mixer at one position: Σ_i E[∂m_i/∂x_i] x_iᵀ o_i over channels i.

        The inputs of a channel are the rows of each part of the projection that is as wide as the mixer.
        """
        tensors, mixer = self.block.model.layout.tensors, self.block.model.dims.mixer
        assert mixer is not None
        rows, slopes, out = (
            self.block.matrix("mixer_in"),
            self._means["mixer.slopes"].value,
            self.block.matrix("mixer_out"),
        )
        names = [name for what in MIXER_INPUTS if what in tensors for name in tensors[what].sizes]
        sizes = [mixer.size(name) for name in names]
        total = torch.zeros(rows.shape[1], out.shape[1], device=out.device)
        for name, part, slope_of_part in zip(names, torch.split(rows, sizes), torch.split(slopes, sizes), strict=True):
            if name == "inner":
                total += (part.T * slope_of_part) @ out
        return total

    def _mean(self, name: str) -> _Mean:
        return self._means.setdefault(name, _Mean())


def final_slope(model: Model, states: Tensor) -> Tensor:
    """Return the mean slope of the final norm over states (…, d), without its gain and up to a factor, (d, d).

    The gain is in the rows of the ``output`` frame. A model that norms the stream itself has no final norm.
    """
    if model.family.stream_normed:
        return torch.eye(model.dims.d)
    means = _NormMeans(model.family.norm, model.dims.eps)
    means.add(states)
    return means.slope(None) / means.inverse.value


def slope(activation: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return the derivative of an activation function at every entry of x."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(activation(x).sum(), x)
    return gradient
