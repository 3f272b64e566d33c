"""The forward pass, one block at a time, from the canonical parameters of any family.

It needs nothing but the weights, so it runs whatever can be read: any family, any file format, with an adapter, and one
layer at a time where a model is larger than memory. tests/model/test_blocks.py compares it with transformers.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from zeropass.arch.spec import OUTPUT_GATE, PRODUCTS, ROUTER, Site
from zeropass.errors import BadModel, BadOption, CannotRun
from zeropass.model.mixers import mixed_alone
from zeropass.model.model import Model
from zeropass.model.positions import (
    adds_positions,
    distance_rows,
    distance_vectors,
    frequencies,
    growth,
    longest_text,
    position_bias,
    position_rows,
    qk_norm_at,
    turned_gain,
)
from zeropass.numerics.projection import apply_norm, rotate
from zeropass.numerics.statistics import blocks

__all__ = [
    "ACTIVATIONS",
    "Block",
    "Cache",
    "Recorder",
    "embedded",
    "final_logits",
    "model_input",
    "require_forward",
    "token_rows",
]

Recorder = Callable[[str, Tensor], None]
"""A callback for activations (batch, tokens, width): the name, and the values; names are those of `Block`."""

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "swish": functional.silu,
    "quick_gelu": lambda x: x * (1.702 * x).sigmoid(),
    "relu": functional.relu,
    "relu2": lambda x: functional.relu(x).square(),
    "gelu": functional.gelu,
    "gelu_new": lambda x: functional.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: functional.gelu(x, approximate="tanh"),
}

XIELU = ("xielu_above", "xielu_below", "xielu_slope", "xielu_bound")
"""The canonical tensors of the numbers that a layer's xIELU has learned."""

_Mixing = Mapping[Site, Callable[[Tensor], Tensor]]

_ROWS = 4096
"""The number of rows of a table that are read at once."""

_GAP = 16
"""The number of rows between two that are read as well, since a second call takes longer."""


def xielu(x: Tensor, *numbers: Tensor | None) -> Tensor:
    """Return xIELU (Huang and Schlag 2025, arXiv:2411.13010) with a layer's numbers, in the order of `XIELU`."""
    above, below, slope, bound = (torch.as_tensor(number) for number in numbers)
    left = (torch.expm1(torch.minimum(x, bound)) - x) * (slope + functional.softplus(below))
    return torch.where(x > 0, functional.softplus(above) * x.square(), left) + slope * x


@dataclass
class Cache:
    """The keys, rotated, and the values of the tokens so far, in one layer: (batch, heads, tokens, d_h) each."""

    keys: Tensor | None = None
    values: Tensor | None = None

    @property
    def length(self) -> int:
        """The number of tokens so far."""
        return 0 if self.keys is None else self.keys.shape[2]

    def repeated(self, times: int) -> "Cache":
        """Return a cache that holds each text of the batch so many times in a row."""
        if self.keys is None or self.values is None:
            return Cache()
        return Cache(self.keys.repeat_interleave(times, 0), self.values.repeat_interleave(times, 0))

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append keys and values, and return all."""
        self.keys = keys if self.keys is None else torch.cat((self.keys, keys), 2)
        self.values = values if self.values is None else torch.cat((self.values, values), 2)
        return self.keys, self.values


@dataclass(frozen=True, eq=False)
class Block:
    """One layer of a model, with its parameters read once.

    Activations that a recorder receives, each (batch, tokens, width), in this order:

        attn.stream, ff.stream   the stream that the attention and the MLP read, before their norm
        attn, ff                 the same behind the norm, gain included
        v.latent                 the latent that values are made of, before its norm, in latent attention
        q, k, v                  queries, keys and values as the linear layers give them
        rotated.q, rotated.k     queries and keys as they meet
        gate, up or key          inputs of the MLP's activation function, and what multiplies its output
        router                   the weight of each expert
        o.in, value.in           inputs of the output layers
        attn.out, ff.out         what they write, before the norm behind them if there is one
        attn.sum, ff.sum         the stream with it, before its norm, in a model that norms the stream itself

    Attributes:
        model: The model.
        layer: The layer.

    Example:
        >>> import torch, zeropass as zp
        >>> from zeropass.model.blocks import Block, embedded
        >>> model = zp.open_model("models/first")
        >>> states = embedded(model, torch.tensor([[5, 6, 7]]))
        >>> Block(model, 0)(states).shape
        torch.Size([1, 3, 192])
    """

    model: Model
    layer: int
    _matrices: dict[str, Tensor] = field(default_factory=dict, repr=False)
    _vectors: dict[str, Tensor | None] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.model.dims.activation not in (*ACTIVATIONS, "xielu"):
            known = ", ".join(sorted((*ACTIVATIONS, "xielu")))
            raise BadModel(
                f"{self.model.files.place}: activation {self.model.dims.activation!r} is not one of {known}."
            )

    def __call__(
        self,
        x: Tensor,
        cache: Cache | None = None,
        record: Recorder | None = None,
        added: Mapping[Site, Tensor] | None = None,
    ) -> Tensor:
        """Return the stream behind the block.

        Args:
            x: The stream before it, (batch, tokens, d).
            cache: Keys and values of earlier tokens, which are extended.
            record: Receives the activations.
            added: Vectors (batch, d) that are added to what the attention or the MLP writes for the last token, before
                the norm behind it if there is one.

        Returns:
            The stream, shaped like ``x``.
        """
        inner: _Mixing = {"attn": lambda y: self._attend(y, cache or Cache(), record), "mixer": self._unknown}
        return self._run(x, inner, record, added or {})

    def alone(self, x: Tensor, attended: float = 1.0) -> Tensor:
        """Return the stream (n, d) behind the block if every token attends to itself alone, with a given weight.

        A sink takes its share of that. A decoder's attention to its encoder is left out, since it depends on the
        encoder's text; its norm is kept.
        """

        def attend(y: Tensor) -> Tensor:
            mixed = attended * self._left_by_sinks(y) * self._of_queries(self._values(y))
            return self._written(self._let_through(mixed, y), "o")

        return self._run(x, {"attn": attend, "mixer": self.mixed_alone}, None, {})

    def mixed_alone(self, y: Tensor) -> Tensor:
        """Return what the mixer writes for normed states (n, d) of tokens alone."""
        return self._written(mixed_alone(self.model, self.layer, self._linear(y, "mixer_in")), "mixer_out")

    def _unknown(self, _y: Tensor) -> Tensor:
        raise CannotRun(f"{self.model.name}: what the mixer of layer {self.layer} makes of a text is not modelled.")

    def _let_through(self, mixed: Tensor, y: Tensor) -> Tensor:
        """Return what heads attended to (…, heads d_h) times their output gates, where they have them."""
        return mixed * self._linear(y, OUTPUT_GATE).sigmoid() if self.model.family.gated else mixed

    def _left_by_sinks(self, y: Tensor) -> Tensor | float:
        """Return the weight (n, heads d_h) of the attention of tokens alone to themselves; one without sinks."""
        if self.vector("sinks") is None:
            return 1.0
        q, k = (self.heads(self.bounded(self._columns(y, role), role)[:, None], role) for role in "qk")
        weights = self.weights(self.turned_queries(q, 0), k, torch.zeros(1, dtype=torch.long, device=y.device))
        return weights[:, :, 0, 0].repeat_interleave(self.model.dims.width("o"), -1)

    def _run(
        self,
        x: Tensor,
        mixing: _Mixing,
        record: Recorder | None,
        added: Mapping[Site, Tensor],
    ) -> Tensor:
        """Return the stream behind the block, by what moves between tokens; a mixer reads and writes beside attention.

        Args:
            x: The stream before it.
            mixing: The attention and the mixer.
            record: Receives the activations.
            added: As in `__call__`.
        """
        family = self.model.family
        parts: _Mixing = {**mixing, "ff": lambda y: self._feed(y, record)}
        inner: dict[Site, Callable[[Tensor], Tensor]] = {
            site: _with(part, added.get(site))
            for site, part in parts.items()
            if self.model.dims.has_site(site, self.layer)
        }
        if family.mixer:
            x = sum((self._added(x, site, inner[site], record) for site in mixing if site in inner), x)
            return x + self._added(x, "ff", inner["ff"], record) if "ff" in inner else x
        if family.parallel:
            return x + self._added(x, "attn", inner["attn"], record) + self._added(x, "ff", inner["ff"], record)
        for site, of_site in inner.items():
            written = self._added(x, site, of_site, record)
            x = x + written
            if family.stream_normed:
                _record(record, **{f"{site}.sum": x})
                x = self._normed(x, f"{site}_norm")
            if site == "attn" and family.crosses and family.stream_normed:
                x = self._normed(x, "cross_norm")
        return x

    def _added(self, x: Tensor, site: Site, inner: Callable[[Tensor], Tensor], record: Recorder | None) -> Tensor:
        """Return what half a block adds to the stream, read through its norm and written through its post-norm."""
        y = x if self.model.family.reads_bare(f"{site}_norm", self.layer) else self._normed(x, f"{site}_norm")
        _record(record, **{f"{site}.stream": x, site: y})
        written = inner(y)
        _record(record, **{f"{site}.out": written})
        behind = f"{site}_post_norm"
        scale = self.model.dims.residual_scale
        return scale * (self._normed(written, behind) if self.model.has(behind) else written)

    def _normed(self, x: Tensor, name: str) -> Tensor:
        return apply_norm(
            x, self.model.family.norm, self.model.dims.eps, self.vector(name), self.vector(f"{name}_bias")
        )

    # Attention

    def _attend(self, y: Tensor, cache: Cache, record: Recorder | None) -> Tensor:
        """Return what all heads write for normed states (batch, tokens, d)."""
        dims, start = self.model.dims, cache.length
        if latent := self.model.layout.latent_of("v"):
            _record(record, **{"v.latent": self._linear(y, latent)})
        q, k, v = (self._columns(y, role) for role in "qkv")
        _record(record, q=q, k=k, v=v)
        at = torch.arange(start, start + y.shape[1], device=y.device)
        queries = self.turned_queries(self.heads(self.bounded(q, "q"), "q"), at)
        keys = self.turned(self.heads(self.bounded(k, "k"), "k"), at)
        grown = growth(self.model, self.layer, at)
        queries = queries if grown is None else queries * grown
        _record(record, **{"rotated.q": _flat(queries), "rotated.k": _flat(keys)})
        keys, values = cache.extend(keys, self.heads(self._clipped(v), "v"))
        if dims.attention_cap is None and self.vector("sinks") is None and not self.model.has("distances"):
            keys = keys.repeat_interleave(dims.group, 1)
            mask = self.mask(at, keys.shape[2])[None]  # the fused form takes masks of four dimensions only
            values = values.repeat_interleave(dims.group, 1)
            mixed = functional.scaled_dot_product_attention(queries, keys, values, mask, scale=self._scale)
        else:  # a cap, sinks and vectors of distances have no fused form
            mixed = self.weights(queries, keys, at) @ values.repeat_interleave(dims.group, 1)
        mixed = self._let_through(_flat(mixed), y)
        _record(record, **{"o.in": mixed})
        return self._written(mixed, "o")

    def weights(self, queries: Tensor, keys: Tensor, at: Tensor) -> Tensor:
        """Return the attention weights (batch, heads, queries, keys): the softmax of `logits`, and of a head's sink."""
        logits, sinks = self.logits(queries, keys, at), self.vector("sinks")
        if sinks is None:
            return logits.softmax(-1)
        return torch.cat((logits, sinks[:, None, None].expand(*logits.shape[:-1], 1)), -1).softmax(-1)[..., :-1]

    def logits(self, queries: Tensor, keys: Tensor, at: Tensor) -> Tensor:
        """Return the attention logits (batch, heads, queries, keys) of queries at positions ``at`` (queries,).

        Args:
            queries: Rotated queries, (batch, heads, queries, d_h).
            keys: Rotated keys of positions 0 and on, (batch, key heads, keys, d_h).
            at: The positions of the queries.

        Returns:
            The logits, scaled and capped, with the biases of positions; minus infinity where a key is hidden.
        """
        dims = self.model.dims
        logits = self._scale * self.products(queries, keys.repeat_interleave(dims.group, 1), at)
        if dims.attention_cap is not None:
            logits = dims.attention_cap * (logits / dims.attention_cap).tanh()
        return logits + self.mask(at, keys.shape[2])

    def products(self, queries: Tensor, keys: Tensor, at: Tensor) -> Tensor:
        """Return the products (…, heads, queries, keys) of rotated queries and keys, with those of their distances.

        Args:
            queries: Queries at positions ``at``, (…, heads, queries, d_h).
            keys: Keys of positions 0 and on, (…, heads, keys, d_h).
            at: The positions of the queries.
        """
        products = queries @ keys.mT
        if self._distances is None:
            return products
        rows = distance_rows(self.model, at[:, None] - torch.arange(keys.shape[-2], device=at.device))
        as_queries, as_keys = self._distances
        by_query = (queries @ as_keys.mT).gather(-1, rows.expand_as(products))
        by_key = (keys @ as_queries.mT).gather(-1, rows.T.expand_as(products.mT)).mT
        return products + by_query + by_key

    @cached_property
    def _distances(self) -> tuple[Tensor, Tensor] | None:
        """The vectors of distances that meet keys, and those that meet queries."""
        as_queries, as_keys = (distance_vectors(self.model, role, self.layer) for role in "qk")
        return None if as_queries is None or as_keys is None else (as_queries, as_keys)

    def mask(self, at: Tensor, count: int) -> Tensor:
        """Return what is added to the attention logits of queries at positions (queries,) and ``count`` keys.

        Returns:
            Biases of positions, and minus infinity for keys that are not attended to; (1 or heads, queries, keys).
        """
        dims, family = self.model.dims, self.model.family
        offsets = at[:, None] - torch.arange(count, device=at.device)
        hidden = offsets < 0 if family.causal else torch.zeros_like(offsets, dtype=torch.bool)
        if self.layer in dims.local and dims.window is not None:
            if dims.chunked:
                hidden = hidden | (at[:, None] // dims.window != torch.arange(count, device=at.device) // dims.window)
            else:
                hidden = hidden | (offsets.abs() >= dims.window)
        biases = [position_bias(self.model, head, offsets, self.layer) for head in range(dims.heads)]
        present = [bias.to(self.model.device, torch.float32) for bias in biases if bias is not None]
        bias = torch.stack(present) if present else torch.zeros(1, *offsets.shape, device=at.device)
        return bias.masked_fill(hidden, float("-inf"))

    def meeting(self, queries: Tensor, offset: int) -> Tensor:
        """Return queries (heads, tokens, d_h) as they meet keys at one distance: rotated, or with its vector added."""
        if self._distances is None:
            return self.turned(queries, offset)
        return queries + self._distances[0][:, distance_rows(self.model, torch.tensor([offset]))]

    def turned(self, x: Tensor, at: Tensor | int) -> Tensor:
        """Rotate queries or keys (…, tokens, d_h) by their positions (tokens,), or all by one; else return them."""
        return x if self._frequencies is None else rotate(x, at, self._frequencies)

    def turned_queries(self, x: Tensor, at: Tensor | int) -> Tensor:
        """Rotate queries, as `turned` does; gains behind the rotation, of both sides, multiply queries alone."""
        turned = self.turned(x, at)
        return turned if self._turned_gain is None else turned * self._turned_gain

    @cached_property
    def _turned_gain(self) -> Tensor | None:
        return turned_gain(self.model, self.layer)

    @property
    def _scale(self) -> float:
        return self.model.dims.scale_at(self.layer)

    @cached_property
    def _frequencies(self) -> Tensor | None:
        return frequencies(self.model, self.layer) if self.model.dims.rope else None

    def bounded(self, x: Tensor, role: str) -> Tensor:
        """Norm and clip queries or keys (batch, tokens, width), where the family does, before they are rotated."""
        dims, family = self.model.dims, self.model.family
        gain = None if family.qk_norm_behind else self.vector(f"{role}_norm")
        shift = self.vector(f"{role}_norm_bias")
        each = qk_norm_at(self.model, self.layer)
        if each == "head":
            heads = x.reshape(*x.shape[:-1], -1, dims.head_dim)
            x = apply_norm(heads, family.qk_norm_kind, dims.eps, gain, shift).flatten(-2)
        elif each == "whole":
            x = apply_norm(x, "rms", dims.eps, gain, shift)
        return self._clipped(x)

    def _clipped(self, x: Tensor) -> Tensor:
        clip = self.model.dims.clip
        return x if clip is None else x.clamp(-clip, clip)

    def _values(self, y: Tensor) -> Tensor:
        return self._clipped(self._columns(y, "v"))

    def heads(self, x: Tensor, role: str = "q") -> Tensor:
        """Cut queries, keys or values (batch, tokens, width) into heads, (batch, heads, tokens, d_h)."""
        return x.reshape(*x.shape[:-1], -1, self.model.dims.width(role)).transpose(-2, -3)

    def _columns(self, y: Tensor, role: str) -> Tensor:
        """Return queries, keys or values (…, width) for normed states (…, d); through their latent if they have one."""
        latent, dims = self.model.layout.latent_of(role), self.model.dims
        if not latent:
            return self._linear(y, role)
        narrow = apply_norm(self._linear(y, latent), "rms", dims.latent_eps, self.vector(f"{latent}_norm"), None)
        columns = self._linear(narrow, PRODUCTS[role][0])
        if role != "k":
            return columns
        plain = columns.reshape(*columns.shape[:-1], dims.heads, -1)
        rotary = self._linear(y, "k_rotary")[..., None, :]
        return torch.cat((rotary.expand(*plain.shape[:-1], -1), plain), -1).flatten(-2)

    def _of_queries(self, values: Tensor) -> Tensor:
        """Repeat the values (n, width) of key heads for the query heads that share them."""
        dims = self.model.dims
        heads = values.reshape(*values.shape[:-1], dims.kv_heads, -1)
        return heads.repeat_interleave(dims.group, -2).flatten(-2)

    # The MLP

    def _feed(self, y: Tensor, record: Recorder | None) -> Tensor:
        """Return what the MLP writes for normed states (…, d)."""
        if len(self._sizes) == 1:
            active = self._active(y, record)
            _record(record, **{"value.in": active})
            return self._written(active, "value")
        share, biases = self._routed(y), self.vector("value_bias")
        weights = self.per_neuron(share)
        if self.model.family.router_scales_input:
            active = self._active(y, record, weights)
        else:
            active = self._active(y, record) * weights
        _record(record, router=share)
        _record(record, **{"value.in": active})
        written = active @ self.matrix("value")
        return written if biases is None else written + share @ biases

    def _active(self, y: Tensor, record: Recorder | None, scale: Tensor | None = None) -> Tensor:
        """Return the activations (…, neurons), of a gated MLP with what its neurons read multiplied by ``scale``."""
        if "gate" not in self.model.family.ff_roles:
            key = self._linear(y, "key")
            _record(record, key=key)
            return self.activated(key)
        gate, up = self._linear(y, "gate"), self._linear(y, "up")
        gate, up = (gate, up) if scale is None else (scale * gate, scale * up)
        _record(record, gate=gate, up=up)
        return self.activated(gate) * self.multiplier(up)

    def activated(self, x: Tensor) -> Tensor:
        """Return the activation function of gates or keys, bounded where the model bounds them."""
        dims, limit = self.model.dims, self.model.dims.gate_limit
        if dims.activation == "xielu":
            return xielu(x, *map(self.vector, XIELU))
        return ACTIVATIONS[dims.activation](x if limit is None else x.clamp(max=limit))

    def multiplier(self, up: Tensor) -> Tensor:
        """Return what the activation is multiplied by."""
        limit = self.model.dims.gate_limit
        return up if limit is None else up.clamp(-limit, limit) + 1

    @cached_property
    def _sizes(self) -> tuple[int, ...]:
        return self.model.dims.mlps.sizes(self.layer)

    def per_neuron(self, share: Tensor) -> Tensor:
        """Repeat the weights (…, experts) of experts for their neurons."""
        return share.repeat_interleave(torch.tensor(self._sizes, device=share.device), -1)

    def _routed(self, y: Tensor) -> Tensor:
        """Return the weight (…, experts) of each expert for each token; zero for experts that are not used."""
        dims = self.model.dims
        logits, of_shared = self._linear(y, ROUTER).tensor_split([dims.experts], -1)
        share = self._shares(logits) if dims.router_jitter is None else self._mixed(logits, dims.router_jitter)
        if not dims.shared_neurons:
            return share
        return torch.cat((share, of_shared.sigmoid() if of_shared.shape[-1] else torch.ones_like(share[..., :1])), -1)

    def _shares(self, logits: Tensor) -> Tensor:
        """Return the weights of routed experts by their scores."""
        dims = self.model.dims
        scores = logits.sigmoid() if dims.router_sigmoid else logits.softmax(-1)
        experts = self._chosen(scores)
        best = scores.gather(-1, experts)
        best = best / best.sum(-1, keepdim=True) if dims.router_normed else best
        return torch.zeros_like(scores).scatter(-1, experts, dims.router_scale * best)

    def _mixed(self, logits: Tensor, jitter: float) -> Tensor:
        """Return the weights of a sparse mixer (Liu et al. 2024, arXiv:2409.12136, §2.2).

        It chooses one expert after another, and weights each by a softmax over those left whose logits are near its.
        """
        share, left = torch.zeros_like(logits), logits
        for _ in range(self.model.dims.experts_used):
            best, expert = left.max(-1, keepdim=True)
            far = (best - logits) / torch.maximum(logits.abs(), best) > 2 * jitter
            weights = left.masked_fill(far, float("-inf")).softmax(-1)
            share = share.scatter(-1, expert, weights.gather(-1, expert))
            left = left.scatter(-1, expert, float("-inf"))
        return share

    def _chosen(self, scores: Tensor) -> Tensor:
        """Return the experts (…, experts_used) that tokens go through, by scores (…, experts).

        A correction is added for the choice only (DeepSeek-AI 2024, arXiv:2412.19437, §2.1.2).
        """
        dims, correction = self.model.dims, self.vector("router_correction")
        scores = scores if correction is None else scores + correction
        if dims.router_groups > 1:
            groups = scores.reshape(*scores.shape[:-1], dims.router_groups, -1)
            used = groups.topk(dims.router_group_best, -1)[0].sum(-1).topk(dims.router_groups_used, -1)[1]
            hidden = torch.ones_like(groups[..., 0], dtype=torch.bool).scatter(-1, used, False)
            scores = groups.masked_fill(hidden[..., None], float("-inf")).flatten(-2)
        return scores.topk(dims.experts_used, -1)[1]

    # Parameters

    def _linear(self, x: Tensor, role: str) -> Tensor:
        y, bias = x @ self.matrix(role).T, self.vector(f"{role}_bias")
        return y if bias is None else y + bias

    def _written(self, x: Tensor, role: str) -> Tensor:
        y, bias = x @ self.matrix(role), self.vector(f"{role}_bias")
        return y if bias is None else y + bias

    def matrix(self, role: str) -> Tensor:
        """Return all vectors of a role in this layer, read once: see `Model.matrix`."""
        if role not in self._matrices:
            self._matrices[role] = self.model.matrix(role, self.layer)
        return self._matrices[role]

    def vector(self, name: str) -> Tensor | None:
        """Return a norm's gain or shift or a bias in this layer, read once: see `Model.vector`."""
        if name not in self._vectors:
            self._vectors[name] = self.model.vector(name, self.layer)
        return self._vectors[name]


def require_forward(model: Model) -> None:
    """Raise CannotRun, with the reason, for a model whose forward pass `Block` does not compute."""
    if model.family.crosses:
        what, advice = ("text", "; its encoder can be run") if model.family.reads_text else ("output", "")
        raise CannotRun(
            f"{model.name} is a decoder that reads an encoder's {what}, which a pass over its own tokens lacks{advice}."
        )
    if model.family.not_run:
        raise CannotRun(f"{model.name}: {model.family.not_run}, which is not modelled.")
    if model.dims.mixer_layers:
        raise CannotRun(
            f"{model.name}: what the mixer of layer {model.dims.mixer_layers[0]} makes of a text is not modelled, only "
            "its projections from the stream and into it are read."
        )
    if model.dims.rope:
        try:
            for layer in range(model.dims.layers):
                frequencies(model, layer)
        except BadOption as error:
            raise CannotRun(str(error)) from error


def token_rows(model: Model, ids: Tensor) -> Tensor:
    """Return the rows of the embedding for token ids of any shape, (…, embed); only what is needed is read."""
    unique, at = torch.unique(ids.cpu(), return_inverse=True)
    rows = torch.empty(len(unique), model.dims.embed or model.dims.d)
    ends = (unique.diff() > _GAP).nonzero()[:, 0] + 1
    for run, out in zip(torch.tensor_split(unique, ends), torch.tensor_split(rows, ends), strict=True):
        if len(run):
            out[:] = model.matrix_on_cpu("embedding", 0, int(run[0]), int(run[-1]) + 1)[run - run[0]]
    return rows.to(model.device)[at.to(model.device)]


def embedded(model: Model, ids: Tensor, start: int = 0) -> Tensor:
    """Return the stream before block 0, with positions.

    Args:
        model: The model.
        ids: Token ids, (batch, tokens).
        start: The position of the first token.

    Returns:
        The states, (batch, tokens, d).
    """
    return model_input(model, token_rows(model, ids), start if adds_positions(model) else None)


def model_input(model: Model, rows: Tensor, start: int | None = None) -> Tensor:
    """Return the stream before block 0 for rows of the embedding table.

    Args:
        model: The model.
        rows: Rows of the table, (…, tokens, embed).
        start: The position of the first token; None leaves positions out.

    Returns:
        The states, (…, tokens, d): scaled, with positions and the first token type, normed and projected to the
        stream's width, each where the model does it.
    """
    x = rows * model.dims.embed_scale
    if start is not None:
        longest, stop = longest_text(model), start + x.shape[-2]
        if longest is not None and stop > longest:
            raise CannotRun(f"{model.name} has {longest} positions; the text is longer.")
        x = x + position_rows(model, start, stop)
    x = x + model.matrix("types", 0, 0, 1) if model.has("types") else x
    if model.has("embed_norm") or model.family.embed_normed:
        gain, shift = model.vector("embed_norm"), model.vector("embed_norm_bias")
        x = apply_norm(x, model.family.norm, model.dims.eps, gain, shift)
    if not model.has("embed_projection"):
        return x
    bias = model.vector("embed_projection_bias")
    x = x @ model.matrix("embed_projection").T
    return x if bias is None else x + bias


def final_logits(model: Model, states: Tensor) -> Tensor:
    """Return the logits (…, V) of the stream behind the last block, (…, d); scale and cap included."""
    family, dims = model.family, model.dims
    gain, shift = model.vector("final_norm"), model.vector("final_norm_bias")
    x = states if family.stream_normed else apply_norm(states, family.norm, dims.eps, gain, shift)
    x = x * dims.logit_scale
    parts = [x @ model.tokens(model.logit_table, part).T for part in blocks(dims.vocab, _ROWS)]
    bias = model.vector("unembedding_bias")
    logits = torch.cat(parts, -1)
    logits = logits if bias is None else logits + bias
    return logits if dims.logit_cap is None else dims.logit_cap * (logits / dims.logit_cap).tanh()


def _with(inner: Callable[[Tensor], Tensor], added: Tensor | None) -> Callable[[Tensor], Tensor]:
    """Return a half of a block that also writes vectors (batch, d) for the last token."""
    if added is None:
        return inner

    def with_added(y: Tensor) -> Tensor:
        written = inner(y).clone()
        written[:, -1] += added
        return written

    return with_added


def _flat(x: Tensor) -> Tensor:
    """Join heads, (batch, heads, tokens, d_h), to (batch, tokens, width)."""
    return x.transpose(-2, -3).flatten(-2)


def _record(record: Recorder | None, **activations: Tensor) -> None:
    if record is not None:
        for name, values in activations.items():
            record(name, values)
