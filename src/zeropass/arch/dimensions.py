"""The sizes and constants of one model: frozen data, with no behaviour beyond lookups in it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from zeropass._io.short_repr import ShortRepr
from zeropass.arch.roles import OUTPUT_GATE, Site, base_role

MixerKind = Literal["delta", "convolution", "mamba2", "mamba", "rglru"]

ROPE_RULES = ("default", "linear", "llama3", "yarn", "longrope", "dynamic", "proportional")
"""The rules for scaling rotary frequencies that are known."""

ROPES_BY_LENGTH = ("longrope", "dynamic")
"""Those by which frequencies depend on the length of the text, from ``original_max_position_embeddings`` on."""


@dataclass(frozen=True)
class Rope:
    """Rotary positions: the base, and the rule that rescales the frequencies (``default`` for none).

    Attributes:
        short: What longrope divides frequencies by in a text of at most ``original_max_position_embeddings`` tokens.
        long: What it divides them by in a longer one; none where that is not known.
    """

    theta: float
    kind: str = "default"
    options: Mapping[str, float] = field(default_factory=dict)
    short: tuple[float, ...] = ()
    long: tuple[float, ...] = ()

    @property
    def known(self) -> bool:
        """True if the rule is known, with all that it needs."""
        return self.kind == "default" or (self.kind in ROPE_RULES and bool(self.options))

    @property
    def window(self) -> float | None:
        """The length of a text, in tokens, up to which frequencies do not depend on it; None for any length."""
        return self.options.get("original_max_position_embeddings") if self.kind in ROPES_BY_LENGTH else None

    @property
    def lengthening(self) -> float:
        """The factor by which the rule lengthens what is rotated."""
        return self.options.get("attention_factor", 1.0)


@dataclass(frozen=True)
class Growth:
    """The factor of queries far into a text: ``1 + rate · log(1 + ⌊(position + first) / length⌋)``.

    Attributes:
        unrotated: True if only layers without rotary positions have it.
    """

    rate: float
    length: float
    first: int = 0
    unrotated: bool = False


@dataclass(frozen=True)
class Mixer:
    """The sizes of the mixers of a model.

    Attributes:
        heads: Number of heads.
        width: Width of what a head holds for each coordinate of its state.
        groups: Number of groups of heads, each of which shares what is written to and read from the state.
        state: Number of coordinates of the state.
        kernel: Number of tokens that the convolution covers.
        rank: Number of coordinates from which the steps of a state-space model are made.
        least_step: The smallest step of a state-space model.
        scales: The factor of each part of the inputs, in the order of ``sizes`` of the projection; none where all are
            one.
        rows: Number of rows of each canonical tensor of a mixer.
    """

    heads: int
    width: int
    groups: int = 1
    state: int = 0
    kernel: int = 1
    rank: int = 0
    least_step: float = 0.0
    scales: tuple[float, ...] = ()
    rows: Mapping[str, int] = field(default_factory=dict)

    def size(self, name: str) -> int:
        """Return a size by its name in `Stored.sizes`."""
        products = {"inner": self.heads * self.width, "keys": self.groups * self.state}
        return products[name] if name in products else int(getattr(self, name))


@dataclass(frozen=True, repr=False)
class Dimensions(ShortRepr):
    """The sizes and constants of one model, whatever its configuration calls them.

    Attention logits are ``attention_scale · q·k``, capped where ``attention_cap`` is given (``c tanh(x / c)``); final
    logits likewise. Scales and caps change scores but not ranks, so records leave them out.

    Attributes:
        neurons: Neurons of a layer, of all ``experts`` and the shared one together; a token uses ``experts_used`` of
            the experts.
        shared_neurons: Neurons of the expert that every token goes through; 0 for none.
        dense: Layers without experts, which have ``dense_neurons`` neurons each.
        beyond: Number of layers behind the last that predict later tokens, as only speculative decoding uses them; not
            read.
        router_sigmoid: True if each expert is scored by itself, by a sigmoid; else all together, by a softmax.
        router_groups: Number of groups of experts; only those in the best ``router_groups_used`` groups can be chosen,
            by the sum of the ``router_group_best`` best scores of a group.
        router_jitter: Half the distance, relative to its logit, at which others count with an expert that a sparse
            mixer chooses; None for a router of another kind.
        router_scale: The factor of the weights of the chosen experts.
        shared_weight: The weight of the expert that every token goes through, where it has no gate.
        longest: Number of positions of a model that computes them; None for any number.
        head_dim: Width of a head's queries and keys.
        value_dim: Width of a head's values; 0 where it is that of its queries.
        gate_dim: Number of output gates of a head; 0 where each of its values has one.
        q_latent: Width of the latent that queries are made of; 0 where they are made of the stream itself.
        kv_latent: Width of the latent that keys and values are made of, but for the rotary part of keys; 0 for none.
        indexed_keys: Number of keys that an indexer leaves to each query; None where there is no indexer. A text that
            is no longer is read as if there were none; a longer one is not modelled.
        latent_eps: What is added to the mean square in the norms of latents.
        eps_behind: The same in the norms behind a block; 0 where it is that of all others.
        embed: Width of the rows of the embedding; where it is not d, a projection maps them to d.
        rotary: Number of coordinates of a head that positions rotate.
        unrotated: Layers in which positions rotate nothing.
        value_scale: The factor of the values of heads.
        residual_scale: The factor of what attention and MLP add to the stream.
        site_scales: Further factors of what single parts of a layer add.
        gate_scale: The factor of the gates of an MLP, before their activation.
        distance_reach: The largest distance of a key before its query or behind it that has vectors of its own; 0 for a
            model whose distances have none. The others share those of the farthest.
        distance_buckets: The number of distances on either side that are told apart, by steps that grow with them; 0 if
            all are.
        gate_limit: Bound of gates from above, and of what multiplies them from both sides; one is added to the latter.
        growth: How queries grow with their position.
        clip: Bound to which queries, keys and values are clipped, ± ``clip``.
        window: Number of tokens that the layers in ``local`` attend to.
        local: Layers that attend to a window only.
        chunked: True if windows do not slide: a text is cut into pieces of that size.
        further_ahead: True if a window that goes both ways reaches its last token ahead only.
        local_rope: RoPE of the layers in ``local``, if they have their own.
        mixer: The sizes of the mixers, and ``mixer_layers`` those that have one.
        no_attention: Layers without attention.
        no_mlp: Layers without an MLP.
        by_layer: Sizes of heads that differ between the layers, by their names here -> the value in each layer (`at`).
            The field of that name then has the one that is stated for all.
        key_valued: Layers whose values are made of what their keys are.
        kv_layers: For each layer, the one whose keys and values it attends to; empty if each has its own.
        ple: Width of the embedding that each layer has for a token; 0 for none.
        ple_vocab: Number of tokens that have one, where not all do; the others have that of token 0.
        laurel: Number of coordinates of a learned augmented residual beside attention; 0 for none.
        streams: Number of streams side by side, of which layers read the first one alone (`streams`).
        gate_sparsity: For each layer, the share of the gates of an MLP that are cut off; empty where none are.
    """

    layers: int
    d: int
    heads: int
    kv_heads: int
    head_dim: int
    neurons: int
    vocab: int
    eps: float
    activation: str
    tied: bool
    rope: Rope | None
    longest: int | None = None
    embed: int = 0
    rotary: int = 0
    experts: int = 1
    experts_used: int = 1
    attention_scale: float = 1.0
    attention_cap: float | None = None
    logit_scale: float = 1.0
    logit_cap: float | None = None
    embed_scale: float = 1.0
    value_scale: float = 1.0
    residual_scale: float = 1.0
    site_scales: Mapping[str, float] = field(default_factory=dict)
    gate_scale: float = 1.0
    router_normed: bool = False
    growth: Growth | None = None
    clip: float | None = None
    window: int | None = None
    local: tuple[int, ...] = ()
    chunked: bool = False
    further_ahead: bool = False
    local_rope: Rope | None = None
    unrotated: tuple[int, ...] = ()
    shared_neurons: int = 0
    dense: tuple[int, ...] = ()
    dense_neurons: int = 0
    beyond: int = 0
    router_sigmoid: bool = False
    router_groups: int = 1
    router_groups_used: int = 1
    router_group_best: int = 2
    router_jitter: float | None = None
    router_scale: float = 1.0
    shared_weight: float = 1.0
    distance_reach: int = 0
    distance_buckets: int = 0
    gate_limit: float | None = None
    value_dim: int = 0
    gate_dim: int = 0
    q_latent: int = 0
    kv_latent: int = 0
    latent_eps: float = 0.0
    eps_behind: float = 0.0
    indexed_keys: int | None = None
    mixer: Mixer | None = None
    mixer_layers: tuple[int, ...] = ()
    no_attention: tuple[int, ...] = ()
    no_mlp: tuple[int, ...] = ()
    by_layer: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    key_valued: tuple[int, ...] = ()
    kv_layers: tuple[int, ...] = ()
    ple: int = 0
    ple_vocab: int = 0
    laurel: int = 0
    streams: int = 1
    gate_sparsity: tuple[float, ...] = ()

    def at(self, layer: int) -> "Dimensions":
        """Return the sizes that hold in one layer."""
        return self._each[layer] if self.by_layer else self

    @cached_property
    def _each(self) -> tuple["Dimensions", ...]:
        rows = zip(*self.by_layer.values(), strict=True)
        return tuple(replace(self, by_layer={}, **dict(zip(self.by_layer, row, strict=True))) for row in rows)

    def most(self, size: str) -> int:
        """Return the largest value of a size in any layer."""
        stated: int = getattr(self, size)
        return max(self.by_layer.get(size, (stated,)))

    def kv_layer(self, layer: int) -> int:
        """Return the layer whose keys and values a layer attends to: itself, or an earlier one."""
        return self.kv_layers[layer] if self.kv_layers else layer

    def width(self, role: str) -> int:
        """Return the width of a head for a role, its bias or its map: of values for v, o and g, else of queries."""
        if role == OUTPUT_GATE and self.gate_dim:
            return self.gate_dim
        return (self.value_dim or self.head_dim) if base_role(role)[0] in ("v", "o", OUTPUT_GATE) else self.head_dim

    def eps_of(self, norm: str) -> float:
        """Return what is added to the mean square in a norm of the stream, by its canonical name."""
        return (self.eps_behind if norm.endswith("_post_norm") else 0.0) or self.eps

    @property
    def group(self) -> int:
        """The number of query heads that share one key/value head."""
        return self.heads // self.kv_heads

    @property
    def expert_neurons(self) -> int:
        """The number of neurons of one routed expert."""
        return (self.neurons - self.shared_neurons) // self.experts

    def has_site(self, site: Site, layer: int) -> bool:
        """Tell whether a layer has a part."""
        if site == "mixer":
            return layer in self.mixer_layers
        if site in ("laurel", "ple"):
            return (self.laurel if site == "laurel" else self.ple) > 0
        return layer not in (self.no_mlp if site == "ff" else self.no_attention)

    @property
    def attending(self) -> list[int]:
        """The layers with attention."""
        return [layer for layer in range(self.layers) if self.has_site("attn", layer)]

    def written_scale(self, site: Site) -> float:
        """Return the factor of what a part of a layer adds to the stream."""
        return self.residual_scale * self.site_scales.get(site, 1.0)

    def rope_at(self, layer: int) -> "Rope | None":
        """Return the rotary positions of a layer."""
        return (self.local_rope if layer in self.local else None) or self.rope

    def scale_at(self, layer: int) -> float:
        """Return the factor of a layer's attention logits, with `lengthening_at` where all of a head is rotated."""
        return self.attention_scale * (1.0 if self.rotary < self.head_dim else self.lengthening_at(layer))

    def lengthening_at(self, layer: int) -> float:
        """Return the factor of products of rotated coordinates: YaRN and longrope lengthen queries and keys."""
        rope = None if layer in self.unrotated else self.rope_at(layer)
        return 1.0 if rope is None else rope.lengthening**2

    @property
    def mlps(self) -> "Mlps":
        """The MLPs of the layers."""
        return Mlps(self.neurons, self.experts, self.shared_neurons, self.dense, self.dense_neurons)


@dataclass(frozen=True)
class Mlps:
    """The MLPs of a model's layers; attributes as in `Dimensions`.

    The neurons of a layer are numbered through its experts. The shared expert comes after the routed ones.
    """

    neurons: int
    experts: int = 1
    shared_neurons: int = 0
    dense: tuple[int, ...] = ()
    dense_neurons: int = 0

    def sizes(self, layer: int) -> tuple[int, ...]:
        """Return the number of neurons of each expert of a layer; of the only MLP in a layer without experts."""
        if layer in self.dense:
            return (self.dense_neurons,)
        each = (self.neurons - self.shared_neurons) // self.experts
        return (each,) * self.experts + ((self.shared_neurons,) if self.shared_neurons else ())

    def expert_of(self, layer: int, row: int) -> tuple[int, int]:
        """Return the expert and the number in it of a neuron; -1 for the expert in a layer without them."""
        sizes = self.sizes(layer)
        if len(sizes) == 1:
            return -1, row
        expert = min(row // sizes[0], len(sizes) - 1)  # only the last may have another size
        return expert, row - expert * sizes[0]

    def row_of(self, layer: int, expert: int, index: int) -> int:
        """Return the row of a neuron, given as by `expert_of`."""
        return max(expert, 0) * self.sizes(layer)[0] + index
