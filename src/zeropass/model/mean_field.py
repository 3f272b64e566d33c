"""The mean-field Jacobian of a block, in closed form from means over states (docs/theory.md §10).

`Block` passes states on; `BlockMeans` gathers what their Jacobians need: two means for each neuron, the mean slope of
every norm, and the mean attention of a token to itself in each head. A product of means stands for a mean of products.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from zeropass.model.blocks import ACTIVATIONS, Block

__all__ = ["BlockJacobians", "BlockMeans", "chained", "slope"]

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
    _window: dict[str, Tensor] = field(default_factory=dict)

    def record(self, name: str, values: Tensor) -> None:
        """Take the activations (batch, tokens, width) of one point of the block."""
        if name.endswith((".stream", ".out", ".sum")):
            self._add_norm(name, values[:, _FIRST:])
        elif name in ("gate", "up", "key", "router", "rotated.q", "rotated.k"):
            self._window[name] = values
        elif name == "o.in":
            self._add_attention()
        elif name == "value.in":
            self._add_mlp()

    def jacobians(self) -> BlockJacobians:
        """Return the mean Jacobians of everything that was recorded."""
        family = self.block.model.family
        behind = {site: self._norm_slope(f"{site}.sum", f"{site}_norm") for site in ("attn", "ff")}
        return BlockJacobians(
            attn=self._framed("attn", self._of_heads()),
            ff=self._framed("ff", self._of_neurons()),
            behind=behind if family.stream_normed else {},
            parallel=family.parallel,
        )

    # Norms

    def _add_norm(self, name: str, x: Tensor) -> None:
        """Add the inverse length of states, and the products of normed states that its derivative needs."""
        model = self.block.model
        x = x.reshape(-1, model.dims.d)
        x = x - x.mean(-1, keepdim=True) if model.family.norm == "layer" else x
        inverse = torch.rsqrt(x.square().mean(-1, keepdim=True) + model.dims.eps)
        unit = x * inverse
        self._mean(f"{name}.inverse").add(inverse.sum(), len(x))
        self._mean(f"{name}.product").add((unit * inverse).T @ unit, len(x))

    def _norm_slope(self, name: str, norm: str) -> Tensor:
        """Return the mean Jacobian of a norm, E[1/σ (I − n nᵀ/d)] diag(γ), centred for LayerNorm."""
        model, d = self.block.model, self.block.model.dims.d
        if f"{name}.inverse" not in self._means:
            return torch.eye(d)
        slope = self._means[f"{name}.inverse"].value * torch.eye(d) - self._means[f"{name}.product"].value / d
        slope = slope - slope.mean(0, keepdim=True) if model.family.norm == "layer" else slope
        gain = model.vector(norm, self.block.layer)
        return slope if gain is None else slope * gain

    def _framed(self, site: str, inner: Tensor) -> Tensor:
        """Return the Jacobian of a half, between the norms before and behind it."""
        family = self.block.model.family
        if not family.reads_bare(f"{site}_norm", self.block.layer):
            inner = self._norm_slope(f"{site}.stream", f"{site}_norm") @ inner
        behind = f"{site}_post_norm"
        return inner @ self._norm_slope(f"{site}.out", behind) if self.block.model.has(behind) else inner

    # The MLP

    def _add_mlp(self) -> None:
        activation = ACTIVATIONS[self.block.model.dims.activation]
        share = self._window.pop("router", None)
        weight = torch.ones(()) if share is None else self._per_neuron(share)
        if "gate" in self._window:
            gate, up = (self._window.pop(name)[:, _FIRST:] for name in ("gate", "up"))
            self._add_neurons("gate", weight * slope(activation, gate) * up)
            self._add_neurons("up", weight * activation(gate))
        else:
            self._add_neurons("key", weight * slope(activation, self._window.pop("key")[:, _FIRST:]))

    def _per_neuron(self, share: Tensor) -> Tensor:
        return share[:, _FIRST:].repeat_interleave(self.block.model.dims.expert_neurons, -1)

    def _add_neurons(self, role: str, values: Tensor) -> None:
        self._mean(role).add(values.flatten(0, 1).sum(0), values.shape[0] * values.shape[1])

    def _of_neurons(self) -> Tensor:
        """Return the mean Jacobian of the MLP between its norms: Σ_i E[∂f/∂(n·k_i)] k_iᵀ v_i."""
        model, layer = self.block.model, self.block.layer
        values, d = model.matrix("value", layer), model.dims.d
        total = torch.zeros(d, d, device=values.device)
        for role in ("gate", "up", "key"):
            if role in self._means:
                total += (model.matrix(role, layer).T * self._means[role].value) @ values
        return total

    # Attention

    def _add_attention(self) -> None:
        """Add each head's mean attention to the same position."""
        block = self.block
        q, k = (block.heads(self._window.pop(name)) for name in ("rotated.q", "rotated.k"))
        weights = block.weights(q, k, torch.arange(q.shape[2], device=q.device))
        own = weights.diagonal(dim1=-2, dim2=-1)[..., _FIRST:]
        self._mean("own").add(own.sum((0, 2)), own.shape[0] * own.shape[2])

    def _of_heads(self) -> Tensor:
        """Return the mean Jacobian of attention at one position, through its own value: Σ_h E[α_ii] W_V W_O."""
        model, layer = self.block.model, self.block.layer
        total = torch.zeros(model.dims.d, model.dims.d, device=model.device)
        for head, own in enumerate(self._means["own"].value.tolist()):
            total += own * model.head("v", layer, head).T @ model.head("o", layer, head)
        return total

    def _mean(self, name: str) -> _Mean:
        return self._means.setdefault(name, _Mean())


def chained(jacobians: list[BlockJacobians], last: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Return what vectors that attention and MLP of each layer write have become before the final norm.

    Args:
        jacobians: Those of all layers.
        last: The slope of the final norm without its gain, or the identity, (d, d).

    Returns:
        The maps (d, d) of what attention writes, and of what the MLP writes, by layer.
    """
    attn: list[Tensor] = []
    ff: list[Tensor] = []
    after = last
    for block in reversed(jacobians):
        attn.append(block.through("attn", after))
        ff.append(block.through("ff", after))
        after = block.whole(after)
    return attn[::-1], ff[::-1]


def slope(activation: object, x: Tensor) -> Tensor:
    """Return the derivative of an activation function at every entry of x."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(activation(x).sum(), x)  # type: ignore[operator]
    return gradient
