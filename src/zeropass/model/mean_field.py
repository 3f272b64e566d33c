"""The mean-field Jacobian of a block, in closed form from means over states (docs/theory.md §9).

`Block` passes states on; `BlockMeans` gathers what their Jacobians need: two means for each neuron, the mean slope of
every norm, and the mean attention of a token to itself in each head. A product of means stands for a mean of products.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from zeropass.arch.spec import PRODUCTS
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
        attn: Of the attention at the same position, (d, d).
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
            self._norms.setdefault(name, _NormMeans(model.family.norm, model.dims.eps)).add(values[:, _FIRST:])
        elif name == "v.latent":
            self._norms.setdefault(name, _NormMeans("rms", self.block.model.dims.latent_eps)).add(values[:, _FIRST:])
        elif name in ("gate", "up", "key", "router", "rotated.q", "rotated.k"):
            self._window[name] = values
        elif name == "o.in":
            self._add_attention()
        elif name == "value.in":
            self._add_mlp()

    def jacobians(self) -> BlockJacobians:
        """Return the mean Jacobians of everything that was recorded."""
        family = self.block.model.family
        sites = ("attn", "ff") if family.stream_normed else ()
        return BlockJacobians(
            attn=self._framed("attn", self._of_heads()),
            ff=self._framed("ff", self._of_neurons()),
            behind={site: self._slope(f"{site}.sum", f"{site}_norm") for site in sites},
            parallel=family.parallel,
        )

    # Norms

    def _slope(self, name: str, norm: str) -> Tensor:
        return self._norms[name].slope(self.block.vector(norm))

    def _framed(self, site: str, inner: Tensor) -> Tensor:
        """Return the Jacobian of a half, between the norms before and behind it."""
        family = self.block.model.family
        if not family.reads_bare(f"{site}_norm", self.block.layer):
            inner = self._slope(f"{site}.stream", f"{site}_norm") @ inner
        behind = f"{site}_post_norm"
        inner = self.block.model.dims.residual_scale * inner
        return inner if self.block.vector(behind) is None else inner @ self._slope(f"{site}.out", behind)

    # The MLP

    def _add_mlp(self) -> None:
        block = self.block
        share = self._window.pop("router", None)
        weight = torch.ones(()) if share is None else block.per_neuron(share[:, _FIRST:])
        if "gate" in self._window:
            gate, up = (self._window.pop(name)[:, _FIRST:] for name in ("gate", "up"))
            self._add_neurons("gate", weight * slope(block.activated, gate) * block.multiplier(up))
            self._add_neurons("up", weight * block.activated(gate) * slope(block.multiplier, up))
        else:
            self._add_neurons("key", weight * slope(block.activated, self._window.pop("key")[:, _FIRST:]))

    def _add_neurons(self, role: str, values: Tensor) -> None:
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
        """Add each head's mean attention to the same position."""
        block = self.block
        q, k = (block.heads(self._window.pop(f"rotated.{role}"), role) for role in "qk")
        weights = block.weights(q, k, torch.arange(q.shape[2], device=q.device))
        diagonal = weights.diagonal(dim1=-2, dim2=-1)[..., _FIRST:]
        self._mean("diagonal").add(diagonal.sum((0, 2)), diagonal.shape[0] * diagonal.shape[2])

    def _of_heads(self) -> Tensor:
        """Return the mean Jacobian of attention at one position, through its own value: Σ_h E[α_ii] W_V W_O.

        A latent that the values are made of has the mean slope of its norm (docs/theory.md §3).
        """
        dims, latent = self.block.model.dims, self.block.model.layout.latent_of("v")
        reads, o = self.block.matrix(PRODUCTS["v"][0] if latent else "v"), self.block.matrix("o")
        v, o = (rows.reshape(-1, dims.width("v"), rows.shape[1]) for rows in (reads, o))
        total = torch.zeros(v.shape[-1], dims.d, device=o.device)
        for head, weight in enumerate(self._means["diagonal"].value.tolist()):
            total += weight * v[head // dims.group].T @ o[head]
        return self.block.matrix(latent).T @ self._slope("v.latent", f"{latent}_norm") @ total if latent else total

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
