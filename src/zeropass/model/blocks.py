"""The forward pass, one block at a time, from the canonical parameters of any family.

It needs nothing but the weights, so it runs whatever can be read: any family, any file format, with an adapter, and one
layer at a time where a model is larger than memory. tests/model/test_every_proof.py compares it with transformers.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from statistics import NormalDist

import torch
from torch import Tensor
from torch.nn import functional

from zeropass.arch.dimensions import Dimensions
from zeropass.arch.layout import PRODUCTS
from zeropass.arch.roles import OUTPUT_GATE, ROUTER, Site
from zeropass.errors import BadModel, BadOption, CannotRun
from zeropass.model.mixers import MixerState, mixed, mixed_with_slopes, repeated
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
from zeropass.model.streams import active, apart, corrected, joined, predicted, spread, token_weights
from zeropass.numerics.projection import apply_norm, normed, rotate
from zeropass.numerics.statistics import blocks

__all__ = [
    "ACTIVATIONS",
    "Block",
    "Cache",
    "Recorder",
    "caches",
    "embedded",
    "final_logits",
    "in_streams",
    "layer_embedding",
    "model_input",
    "require_forward",
    "require_modelled",
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

_GATES: dict[str, Callable[[Tensor], Tensor]] = {"sigmoid": torch.sigmoid, "softplus": functional.softplus}

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
    """The part of the tokens so far that a layer keeps.

    Attributes:
        keys: Their keys, rotated, (batch, heads, tokens, d_h).
        values: Their values, (batch, heads, tokens, d_h).
        mixer: The part that its mixer keeps.
    """

    keys: Tensor | None = None
    values: Tensor | None = None
    mixer: MixerState = field(default_factory=MixerState)

    @property
    def length(self) -> int:
        """The number of tokens that attention keeps."""
        return 0 if self.keys is None else self.keys.shape[2]

    def repeated(self, times: int) -> "Cache":
        """Return a cache that holds each text of the batch so many times in a row."""
        return Cache(repeated(self.keys, times), repeated(self.values, times), self.mixer.repeated(times))

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
        mixer.stream, mixer      the same of a mixer
        mixer_in, mixer.slopes   its inputs, and what it gives changes with each by (`mixers.mixed_with_slopes`)
        laurel.stream, laurel    the same of a learned augmented residual, which reads what attention does
        ple                      the stream that the gates of a per-layer embedding read, which have no norm
        v.latent                 the latent that values are made of, before its norm, in latent attention
        q, k, v                  queries, keys and values as the linear layers give them
        rotated.q, rotated.k     queries and keys as they meet
        attended, g              what heads attended to, and their output gates, where they have them
        gate, up or key          inputs of the MLP's activation function, and what multiplies its output
        router                   the weight of each expert
        laurel_in                what a learned augmented residual goes through
        ple_in                   what these gates give, before the activation function
        o.in, value.in, ple.in   inputs of the output layers, without the gain of a norm there; of a mixer, mixer_out.in
        attn.out, ff.out, ple.out  what they write, before the norm behind them if there is one; also mixer.out and
                                 laurel.out
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

    @cached_property
    def dims(self) -> Dimensions:
        """The sizes of the layer."""
        return self.model.dims.at(self.layer)

    def __post_init__(self) -> None:
        if self.dims.activation not in (*ACTIVATIONS, "xielu"):
            known = ", ".join(sorted((*ACTIVATIONS, "xielu")))
            raise BadModel(f"{self.model.files.place}: activation {self.dims.activation!r} is not one of {known}.")

    def __call__(
        self,
        x: Tensor,
        cache: Cache | None = None,
        record: Recorder | None = None,
        added: Mapping[Site, Tensor] | None = None,
        memory: Tensor | None = None,
        ids: Tensor | None = None,
    ) -> Tensor:
        """Return the stream behind the block.

        Args:
            x: The stream before it, (batch, tokens, d); several side by side (`streams`).
            cache: Keys and values of earlier tokens, which are extended. In a layer that attends to the keys and values
                of another, it is that layer's, with those of these tokens (`caches`).
            record: Receives the activations.
            added: Vectors (batch, d) that are added to what the attention or the MLP writes for the last token, before
                the norm behind it if there is one.
            memory: What a decoder's attention to its encoder reads, normed, (batch, encoder's tokens, d); without it
                this attention writes nothing.
            ids: The tokens (batch, tokens), for a layer that adds an embedding of its own.

        Returns:
            The stream, shaped like ``x``.

        Raises:
            CannotRun: If the layer needs tokens, or keys and values of another layer, that are not given.
        """
        kept = Cache() if cache is None else cache
        inner: _Mixing = {
            "attn": lambda y: self._attend(y, kept, record),
            "mixer": lambda y: self._mix(y, kept.mixer, record),
        }
        if memory is not None:
            inner = {**inner, "cross": lambda y: self._attend_across(y, memory)}
        return self._run(x, inner, record, added or {}, ids)

    def alone(
        self, x: Tensor, attended: float = 1.0, record: Recorder | None = None, ids: Tensor | None = None
    ) -> Tensor:
        """Return the stream (n, d) behind the block if every token attends to itself alone, with a given weight.

        A sink takes its share of that. A decoder's attention to its encoder is left out, since it depends on the
        encoder's text; its norm is kept.

        Args:
            x: The stream before it, (n, d).
            attended: The weight.
            record: Receives the activations.
            ids: The tokens (n,), for a layer that adds an embedding of its own.
        """
        self._require_own_keys()

        def attend(y: Tensor) -> Tensor:
            mixed = attended * self._left_by_sinks(y) * self._of_queries(self._values(y))
            return self._written(self._divided(self._let_through(mixed, y, None), "o"), "o")

        def mix(y: Tensor) -> Tensor:
            return self._mix(y[:, None], MixerState(), None)[:, 0]

        return self._run(x, {"attn": attend, "mixer": mix}, record, {}, ids)

    def _mix(self, y: Tensor, state: MixerState, record: Recorder | None) -> Tensor:
        """Return what the mixer writes for normed states (batch, tokens, d)."""
        inputs = self._linear(y, "mixer_in")
        if record is None:
            return self._written(mixed(self.model, self.layer, inputs, state), "mixer_out")
        read, slopes = mixed_with_slopes(self.model, self.layer, inputs, state)
        _record(record, **{"mixer_in": inputs, "mixer.slopes": slopes, "mixer_out.in": read})
        return self._written(read, "mixer_out")

    def _let_through(self, mixed: Tensor, y: Tensor, record: Recorder | None) -> Tensor:
        """Return what heads attended to (…, heads d_h) times their output gates, where they have them."""
        if not self.model.family.gated:
            return mixed
        gate = self._linear(y, OUTPUT_GATE)
        _record(record, attended=mixed, g=gate)
        return mixed * self.opened(self.per_value(gate))

    def opened(self, gate: Tensor) -> Tensor:
        """Return what output gates multiply what heads attended to by."""
        return _GATES[self.model.family.gate](gate)

    def per_value(self, gate: Tensor) -> Tensor:
        """Repeat output gates (…, gates), where heads have one for several values, for each, (…, heads d_h)."""
        dims = self.dims
        return gate.repeat_interleave(dims.width("o") // dims.gate_dim, -1) if dims.gate_dim else gate

    def _divided(self, x: Tensor, role: str) -> Tensor:
        """Return what goes into an output layer, divided by its length where a norm stands there."""
        return normed(x, "rms", self.model.dims.eps) if self.model.layout.inner_norm(role) else x

    def _left_by_sinks(self, y: Tensor) -> Tensor | float:
        """Return the weight (n, heads d_h) of the attention of tokens alone to themselves; one without sinks."""
        if self.vector("sinks") is None:
            return 1.0
        q, k = (self.heads(self.bounded(self._columns(y, role), role)[:, None], role) for role in "qk")
        weights = self.weights(self.turned_queries(q, 0), k, torch.zeros(1, dtype=torch.long, device=y.device))
        return weights[:, :, 0, 0].repeat_interleave(self.dims.width("o"), -1)

    def _run(
        self,
        x: Tensor,
        mixing: _Mixing,
        record: Recorder | None,
        added: Mapping[Site, Tensor],
        ids: Tensor | None,
    ) -> Tensor:
        """Return the stream behind the block, by what moves between tokens; a mixer reads and writes beside attention.

        Args:
            x: The stream before it.
            mixing: The attention and the mixer.
            record: Receives the activations.
            added: As in `__call__`.
            ids: As in `__call__`.
        """
        family = self.model.family
        parts: _Mixing = {
            **mixing,
            "laurel": lambda y: self._shortened(y, record),
            "ff": lambda y: self._feed(y, record),
            "ple": lambda y: self._embed(y, ids, record),
        }
        inner: dict[Site, Callable[[Tensor], Tensor]] = {
            site: _with(part, added.get(site))
            for site, part in parts.items()
            if site == "cross" or self.dims.has_site(site, self.layer)
        }
        if self.dims.streams > 1:
            return self._alternate(x, inner, record)
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
            if site == "attn" and family.crosses and family.stream_normed and "cross" not in inner:
                x = self._normed(x, "cross_norm")
        scalar = self.vector("layer_scalar")
        return x if scalar is None else x * scalar

    def _alternate(
        self, x: Tensor, inner: Mapping[Site, Callable[[Tensor], Tensor]], record: Recorder | None
    ) -> Tensor:
        """Return several streams (…, streams d) behind the block, which reads the active one and corrects all.

        What the layer's own embedding makes of the active one is added to the others.
        """
        streams = self._predicted(x)
        read = streams[..., 0, :]
        y = self._residual(read, inner, record) + self._added(read, "attn", inner["attn"], record)
        y = y + self._added(y, "ff", inner["ff"], record)
        streams = corrected(streams, y, self._token_weights(y), self.matrix("altup_correct"))
        written = self._added(streams[..., 0, :], "ple", inner["ple"], record)
        return torch.cat((streams[..., :1, :], streams[..., 1:, :] + written[..., None, :]), -2).flatten(-2)

    def entering(self, x: Tensor) -> Tensor:
        """Return the stream (…, d) that attention reads: of several side by side, the prediction of the active one."""
        return x if self.dims.streams == 1 else self._predicted(x)[..., 0, :]

    def _predicted(self, x: Tensor) -> Tensor:
        """Return the streams (…, streams, d) as the layer mixes them before it reads the active one."""
        weights = self._token_weights(active(x, self.dims.d))
        return predicted(apart(x, self.dims.d), weights, self.matrix("altup_predict"))

    def _token_weights(self, x: Tensor) -> Tensor:
        return token_weights(x, self.vector("altup_norm"), self.matrix("altup_router"), self.dims.eps)

    def _residual(self, x: Tensor, inner: Mapping[Site, Callable[[Tensor], Tensor]], record: Recorder | None) -> Tensor:
        """Return what attention is added to: the stream, the normed stream and a map of it through few coordinates.

        Source: LAuReL (Menghani et al. 2024, arXiv:2411.07501), as ``Gemma3nTextLaurelBlock`` of transformers has it.
        """
        kept = self.dims.written_scale("laurel") * (x + self._normed(x, "laurel_norm"))
        return kept + self._added(x, "laurel", inner["laurel"], record)

    def _shortened(self, y: Tensor, record: Recorder | None) -> Tensor:
        """Return what a learned augmented residual makes of normed states (…, d) through its few coordinates."""
        narrow = self._linear(y, "laurel_in")
        _record(record, laurel_in=narrow)
        return self._written(narrow, "laurel_out")

    def _added(self, x: Tensor, site: Site, inner: Callable[[Tensor], Tensor], record: Recorder | None) -> Tensor:
        """Return what half a block adds to the stream, read through its norm and written through its post-norm."""
        y = x if self.model.family.reads_bare(f"{site}_norm", self.layer) else self._normed(x, f"{site}_norm")
        gain = self.vector(f"{site}_gain")
        y = y if gain is None else y * gain
        _record(record, **{f"{site}.stream": x, site: y})
        written = inner(y)
        _record(record, **{f"{site}.out": written})
        behind = f"{site}_post_norm"
        scale = self.dims.written_scale(site)
        return scale * (written if self.vector(behind) is None else self._normed(written, behind))

    def _normed(self, x: Tensor, name: str) -> Tensor:
        eps = self.dims.eps_of(name)
        return apply_norm(x, self.model.family.norm, eps, self.vector(name), self.vector(f"{name}_bias"))

    # Attention

    def _attend(self, y: Tensor, cache: Cache, record: Recorder | None) -> Tensor:
        """Return what all heads write for normed states (batch, tokens, d)."""
        if self.dims.kv_layer(self.layer) != self.layer:
            return self._attend_shared(y, cache, record)
        start = cache.length
        if latent := self.model.layout.latent_of("v"):
            _record(record, **{"v.latent": self._linear(y, latent)})
        q, k, v = (self._columns(y, role) for role in "qkv")
        _record(record, q=q, k=k, v=v)
        at = torch.arange(start, start + y.shape[1], device=y.device)
        self._check_length(start, start + y.shape[1])
        queries = self.turned_queries(self.heads(self.bounded(q, "q"), "q"), at)
        keys = self.turned(self.heads(self.bounded(k, "k"), "k"), at)
        grown = growth(self.model, self.layer, at)
        queries = queries if grown is None else queries * grown
        _record(record, **{"rotated.q": _flat(queries), "rotated.k": _flat(keys)})
        keys, values = cache.extend(keys, self.heads(self._as_values(v), "v"))
        if (most := self.dims.indexed_keys) is not None and keys.shape[2] > most:
            raise CannotRun(
                f"{self.model.name}: tokens attend to {most} others that an indexer chooses, which is not "
                "modelled; in a text of that many tokens or fewer they attend to all. Give a shorter text."
            )
        return self._mixed_from(y, queries, keys, values, at, record)

    def _require_own_keys(self) -> None:
        if (other := self.dims.kv_layer(self.layer)) != self.layer:
            raise CannotRun(
                f"{self.model.name}: layer {self.layer} attends to the keys and values of layer {other}, which are not "
                "given."
            )

    def _attend_shared(self, y: Tensor, cache: Cache, record: Recorder | None) -> Tensor:
        """Return what the heads write that attend to keys and values of another layer."""
        if cache.keys is None or cache.values is None:
            self._require_own_keys()
        assert cache.keys is not None and cache.values is not None
        q = self._columns(y, "q")
        _record(record, q=q)
        at = torch.arange(cache.length - y.shape[1], cache.length, device=y.device)
        queries = self.turned_queries(self.heads(self.bounded(q, "q"), "q"), at)
        _record(record, **{"rotated.q": _flat(queries), "rotated.k": _flat(cache.keys[:, :, -y.shape[1] :])})
        return self._mixed_from(y, queries, cache.keys, cache.values, at, record)

    def _mixed_from(
        self, y: Tensor, queries: Tensor, keys: Tensor, values: Tensor, at: Tensor, record: Recorder | None
    ) -> Tensor:
        """Return what all heads write, from rotated queries and keys and from values, (batch, heads, tokens, d_h)."""
        dims = self.dims
        if dims.attention_cap is None and self.vector("sinks") is None and not self.model.has("distances"):
            keys = keys.repeat_interleave(dims.group, 1)
            # the fused form takes masks of four dimensions and of the type of its queries only
            mask = self.mask(at, keys.shape[2])[None].to(queries.dtype)
            values = values.repeat_interleave(dims.group, 1)
            mixed = functional.scaled_dot_product_attention(queries, keys, values, mask, scale=self._scale)
        else:  # a cap, sinks and vectors of distances have no fused form
            mixed = self.weights(queries, keys, at) @ values.repeat_interleave(dims.group, 1)
        mixed = self._divided(self._let_through(_flat(mixed), y, record), "o")
        _record(record, **{"o.in": mixed})
        return self._written(mixed, "o")

    def _attend_across(self, y: Tensor, memory: Tensor) -> Tensor:
        """Return what the heads that attend to an encoder write for normed states (batch, tokens, d)."""
        q = self.heads(self._linear(y, "cross_q"))
        k, v = (
            self.heads(self._linear(memory, f"cross_{role}")).repeat_interleave(self.dims.group, 1) for role in "kv"
        )
        logits = self._capped(self._scale * q @ k.transpose(-2, -1))
        return self._written(_flat(logits.softmax(-1) @ v), "cross_o")

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
        dims = self.dims
        logits = self._scale * self.products(queries, keys.repeat_interleave(dims.group, 1), at)
        return self._capped(logits) + self.mask(at, keys.shape[2])

    def _capped(self, logits: Tensor) -> Tensor:
        cap = self.dims.attention_cap
        return logits if cap is None else cap * (logits / cap).tanh()

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
        dims, family = self.dims, self.model.family
        offsets = at[:, None] - torch.arange(count, device=at.device)
        hidden = offsets < 0 if family.causal else torch.zeros_like(offsets, dtype=torch.bool)
        if self.layer in dims.local and dims.window is not None:
            if dims.chunked:
                hidden = hidden | (at[:, None] // dims.window != torch.arange(count, device=at.device) // dims.window)
            else:
                hidden = hidden | (offsets.abs() >= dims.window) | (offsets >= dims.window - dims.further_ahead)
        biases = [position_bias(self.model, head, offsets, self.layer) for head in range(dims.heads)]
        present = [bias.to(self.model.device, torch.float32) for bias in biases if bias is not None]
        bias = torch.stack(present) if present else torch.zeros(1, *offsets.shape, device=at.device)
        return bias.masked_fill(hidden, float("-inf"))

    def meeting(self, queries: Tensor, offset: int) -> Tensor:
        """Return queries (heads, tokens, d_h) as they meet keys at one distance: rotated, or with its vector added."""
        if self._distances is None:
            return self.turned(queries, offset)
        return queries + self._distances[0][:, distance_rows(self.model, torch.tensor([offset]))]

    def turned(self, x: Tensor, at: Tensor | int, reach: int | None = None) -> Tensor:
        """Rotate queries or keys (…, tokens, d_h) by their positions; return them as they are without RoPE.

        Args:
            x: The queries or keys.
            at: Their positions, (tokens,), or one for all.
            reach: The last position of the text (`positions.frequencies`); None for the last of these.
        """
        rope = self.dims.rope_at(self.layer)
        if rope is None:
            return x
        if reach is None and rope.window is not None:
            reach = int(torch.as_tensor(at).abs().max())
        return rotate(x, at, self._frequencies(reach or 0))

    def turned_queries(self, x: Tensor, at: Tensor | int, reach: int | None = None) -> Tensor:
        """Rotate queries, as `turned` does; factors of the products of both sides multiply queries alone."""
        turned = self.turned(x, at, reach)
        return turned if self._turned_gain is None else turned * self._turned_gain

    @cached_property
    def _turned_gain(self) -> Tensor | None:
        return turned_gain(self.model, self.layer)

    @property
    def _scale(self) -> float:
        return self.dims.scale_at(self.layer)

    @cached_property
    def _frequencies(self) -> Callable[[int], Tensor]:
        return lru_cache(2)(partial(frequencies, self.model, self.layer))

    def _check_length(self, start: int, stop: int) -> None:
        """Raise CannotRun where the keys of the tokens so far were turned by other frequencies than those to come."""
        rope = self.dims.rope_at(self.layer)
        if not start or rope is None or rope.window is None or stop <= rope.window:
            return
        if not torch.equal(self._frequencies(start - 1), self._frequencies(stop - 1)):
            raise CannotRun(
                f"{self.model.name}: its rotary positions ({rope.kind}) change with the length of a text of more than "
                f"{rope.window:,.0f} tokens, so such a text is run at once, not token by token."
            )

    def bounded(self, x: Tensor, role: str) -> Tensor:
        """Norm and clip queries or keys (batch, tokens, width), where the family does, before they are rotated."""
        dims, family = self.dims, self.model.family
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
        clip = self.dims.clip
        return x if clip is None else x.clamp(-clip, clip)

    def _values(self, y: Tensor) -> Tensor:
        return self._as_values(self._columns(y, "v"))

    def _as_values(self, v: Tensor) -> Tensor:
        """Clip and scale values (…, width), or norm those of each head, where the family does."""
        v = self._clipped(v) * self.dims.value_scale
        if not self.model.family.value_normed:
            return v
        heads = v.reshape(*v.shape[:-1], -1, self.dims.width("v"))
        return normed(heads, "rms", self.dims.eps).flatten(-2)

    def heads(self, x: Tensor, role: str = "q") -> Tensor:
        """Cut queries, keys or values (batch, tokens, width) into heads, (batch, heads, tokens, d_h)."""
        return x.reshape(*x.shape[:-1], -1, self.dims.width(role)).transpose(-2, -3)

    def _columns(self, y: Tensor, role: str) -> Tensor:
        """Return queries, keys or values (…, width) for normed states (…, d); through their latent if they have one."""
        latent, dims = self.model.layout.latent_of(role), self.dims
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
        dims = self.dims
        heads = values.reshape(*values.shape[:-1], dims.kv_heads, -1)
        return heads.repeat_interleave(dims.group, -2).flatten(-2)

    # The MLP

    def _feed(self, y: Tensor, record: Recorder | None) -> Tensor:
        """Return what the MLP writes for normed states (…, d)."""
        if len(self._sizes) == 1:
            active = self._divided(self._active(y, record), "value")
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
        if self.model.layout.gains:
            return self.joined(active)
        written = active @ self.matrix("value")
        return written if biases is None else written + share @ biases

    def joined(self, active: Tensor) -> Tensor:
        """Return what experts and the shared MLP write, each normed by itself, for activations (…, neurons)."""
        rows, gains = self.model.without_gains.matrix("value", self.layer), self.model.layout.gains
        first = self.dims.neurons - self.dims.shared_neurons
        parts = {"value": slice(0, first), "shared_value": slice(first, None)}
        written = [
            apply_norm(active[..., part] @ rows[part], "rms", self.dims.eps, self.vector(gains[what]), None)
            for what, part in parts.items()
        ]
        return torch.stack(written).sum(0)

    def _active(self, y: Tensor, record: Recorder | None, scale: Tensor | None = None) -> Tensor:
        """Return the activations (…, neurons), of a gated MLP with what its neurons read multiplied by ``scale``."""
        if "gate" not in self.model.family.ff_roles:
            key = self._linear(y, "key")
            _record(record, key=key)
            return self.activated(key)
        gate, up = self._linear(y, "gate"), self._linear(y, "up")
        gate, up = (gate, up) if scale is None else (scale * gate, scale * up)
        _record(record, gate=gate, up=up)
        return self.activated(self.sparse(gate)) * self.multiplier(up)

    def sparse(self, gate: Tensor) -> Tensor:
        """Return gates (…, neurons) without those of a token below its threshold, where the layer has one.

        It is the quantile of a normal distribution with the mean and the deviation of the token's gates, and is
        subtracted from the others (``Gemma3nTextMLP`` of transformers).
        """
        share = self.dims.gate_sparsity[self.layer] if self.dims.gate_sparsity else 0.0
        if not share:
            return gate
        deviation = gate.std(-1, correction=0, keepdim=True)
        return functional.relu(gate - gate.mean(-1, keepdim=True) - NormalDist().inv_cdf(share) * deviation)

    def activated(self, x: Tensor) -> Tensor:
        """Return the activation function of gates or keys, bounded where the model bounds them."""
        dims, limit = self.dims, self.dims.gate_limit
        x = x if dims.gate_scale == 1 else x * dims.gate_scale
        if dims.activation == "xielu":
            return xielu(x, *map(self.vector, XIELU))
        return ACTIVATIONS[dims.activation](x if limit is None else x.clamp(max=limit))

    def multiplier(self, up: Tensor) -> Tensor:
        """Return what the activation is multiplied by."""
        limit = self.dims.gate_limit
        return up if limit is None else up.clamp(-limit, limit) + 1

    def _embed(self, y: Tensor, ids: Tensor | None, record: Recorder | None) -> Tensor:
        """Return what the layer's own embedding of the tokens adds to the stream (…, d), through its gates."""
        if ids is None:
            raise CannotRun(
                f"{self.model.name}: layer {self.layer} adds an embedding of the tokens, which are not given."
            )
        gate = self._linear(y, "ple_in")
        active = self.activated(gate) * layer_embedding(self.model, self.layer, ids)
        _record(record, ple_in=gate, **{"ple.in": active})
        return self._written(active, "ple_out")

    @cached_property
    def _sizes(self) -> tuple[int, ...]:
        return self.dims.mlps.sizes(self.layer)

    def per_neuron(self, share: Tensor) -> Tensor:
        """Repeat the weights (…, experts) of experts for their neurons."""
        return share.repeat_interleave(torch.tensor(self._sizes, device=share.device), -1)

    def _routed(self, y: Tensor) -> Tensor:
        """Return the weight (…, experts) of each expert for each token; zero for experts that are not used."""
        dims = self.dims
        logits, of_shared = self._linear(y, ROUTER).tensor_split([dims.experts], -1)
        logits = logits / math.sqrt(dims.d) if self.model.family.router_shrunk else logits
        share = self._shares(logits) if dims.router_jitter is None else self._mixed(logits, dims.router_jitter)
        if not dims.shared_neurons:
            return share
        plain = torch.full_like(share[..., :1], dims.shared_weight)
        return torch.cat((share, of_shared.sigmoid() if of_shared.shape[-1] else plain), -1)

    def _shares(self, logits: Tensor) -> Tensor:
        """Return the weights of routed experts by their scores."""
        dims = self.dims
        scores = logits.sigmoid() if dims.router_sigmoid else logits.softmax(-1)
        experts = self._chosen(logits if self.model.family.router_by_logits else scores)
        best = scores.gather(-1, experts)
        best = best / best.sum(-1, keepdim=True) if dims.router_normed else best
        scale = self.vector("expert_scale")
        best = best if scale is None else best * scale[experts]
        return torch.zeros_like(scores).scatter(-1, experts, dims.router_scale * best)

    def _mixed(self, logits: Tensor, jitter: float) -> Tensor:
        """Return the weights of a sparse mixer (Liu et al. 2024, arXiv:2409.12136, §2.2).

        It chooses one expert after another, and weights each by a softmax over those left whose logits are near its.
        """
        share, left = torch.zeros_like(logits), logits
        for _ in range(self.dims.experts_used):
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
        dims, correction = self.dims, self.vector("router_correction")
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


def require_modelled(model: Model) -> None:
    """Raise CannotRun, with the reason, for a model that computes more for a text than is modelled."""
    if model.family.not_run:
        raise CannotRun(f"{model.name}: {model.family.not_run}, which is not modelled.")


def require_forward(model: Model) -> None:
    """Raise CannotRun, with the reason, for a model whose forward pass `Block` does not compute."""
    if model.family.crosses:
        what, advice = ("text", "; its encoder can be run") if model.family.reads_text else ("output", "")
        raise CannotRun(
            f"{model.name} is a decoder that reads an encoder's {what}, which a pass over its own tokens lacks{advice}."
        )
    require_modelled(model)
    if model.dims.rope:
        try:
            for layer in range(model.dims.layers):
                frequencies(model, layer)
        except BadOption as error:
            raise CannotRun(str(error)) from error


def caches(model: Model) -> list[Cache]:
    """Return an empty cache for each layer; layers that attend to the same keys and values share one."""
    each = [Cache() for _ in range(model.dims.layers)]
    return [each[model.dims.kv_layer(layer)] for layer in range(model.dims.layers)]


def token_rows(model: Model, ids: Tensor) -> Tensor:
    """Return the rows of the embedding for token ids of any shape, (…, embed); only what is needed is read."""
    return _rows_of(
        ids,
        model.dims.embed or model.dims.d,
        lambda first, last: model.matrix_on_cpu("embedding", 0, first, last),
        model.device,
    )


def layer_embedding(model: Model, layer: int, ids: Tensor) -> Tensor:
    """Return what a layer has for tokens of any shape beside the stream, (…, `Dimensions.ple`).

    It is the mean, but for its length, of the token's row in a table of its own, and of what a matrix makes of its row
    in the embedding (``project_per_layer_inputs`` of transformers 5.24). A token beyond that table has its first row.
    """
    dims = model.dims
    part = slice(layer * dims.ple, (layer + 1) * dims.ple)
    listed = ids if not dims.ple_vocab else torch.where(ids < dims.ple_vocab, ids, 0)
    matrix = model.matrix("ple_context", 0, part.start, part.stop)
    projected = model_input(model, token_rows(model, ids).to(matrix.dtype)) @ matrix.T
    context = apply_norm(projected / math.sqrt(dims.d), "rms", dims.eps, model.vector("ple_context_norm"), None)
    table = _rows_of(listed, dims.ple, lambda first, last: model.columns("ple_table", part, first, last), model.device)
    return (context + math.sqrt(dims.ple) * table) * math.sqrt(0.5)


def _rows_of(ids: Tensor, width: int, read: Callable[[int, int], Tensor], device: torch.device) -> Tensor:
    """Return rows (…, width) of a table for ids of any shape, from a function that reads a span of rows."""
    unique, at = torch.unique(ids.cpu(), return_inverse=True)
    rows = torch.empty(len(unique), width)
    ends = (unique.diff() > _GAP).nonzero()[:, 0] + 1
    for run, out in zip(torch.tensor_split(unique, ends), torch.tensor_split(rows, ends), strict=True):
        if len(run):
            out[:] = read(int(run[0]), int(run[-1]) + 1)[run - run[0]]
    return rows.to(device)[at.to(device)]


def embedded(model: Model, ids: Tensor, start: int = 0) -> Tensor:
    """Return the stream before block 0, with positions.

    Args:
        model: The model.
        ids: Token ids, (batch, tokens).
        start: The position of the first token.

    Returns:
        The states, (batch, tokens, d); several side by side (`streams`).
    """
    return in_streams(model, model_input(model, token_rows(model, ids), start if adds_positions(model) else None))


def in_streams(model: Model, x: Tensor) -> Tensor:
    """Return what block 0 gets for embedded tokens (…, d): themselves, or several streams made of them."""
    return x if model.dims.streams == 1 else spread(model, x)


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
    states = states if dims.streams == 1 else joined(model, states)
    gain, shift = model.vector("final_norm"), model.vector("final_norm_bias")
    x = states if family.stream_normed else apply_norm(states, family.norm, dims.eps, gain, shift)
    x = _transformed(model, x) * dims.logit_scale
    parts = [x @ model.tokens(model.logit_table, part).T for part in blocks(dims.vocab, _ROWS)]
    bias = model.vector("unembedding_bias")
    logits = torch.cat(parts, -1)
    logits = logits if bias is None else logits + bias
    return logits if dims.logit_cap is None else dims.logit_cap * (logits / dims.logit_cap).tanh()


def _transformed(model: Model, x: Tensor) -> Tensor:
    """Return what a decoder's head makes of states before the unembedding: a dense layer, a GELU and a norm."""
    gain, shift = model.vector("head_norm"), model.vector("head_norm_bias")
    if gain is None:
        return x
    x, bias = x @ model.matrix("head").T, model.vector("head_bias")
    return apply_norm(functional.gelu(x if bias is None else x + bias), model.family.norm, model.dims.eps, gain, shift)


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
