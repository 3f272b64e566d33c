"""The records of families and their layouts: frozen data, with no behaviour beyond lookups in it.

A `Family` describes once what its blocks compute. One `Layout` for each format describes the names and the arrangement
of its tensors. A `Wrapper` describes a multimodal model around one of a family. Nothing is inferred from a shape: every
transform is named.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, get_args

from zeropass._io.short_repr import ShortRepr
from zeropass.errors import BadOption

Format = Literal["hf", "gguf"]
Site = Literal["attn", "cross", "mixer", "ff", "ple"]
Side = Literal["read", "write"]
Frame = Literal["seen", "token", "distinctive", "effect", "output", "paper"]
NeuronRole = Literal["gate", "up", "key", "value"]
MixerKind = Literal["delta", "convolution", "mamba2", "mamba"]
MapRole = Literal["qk", "vo", "ov", "cross_qk", "cross_vo", "cross_ov"]

ROUTER = "router"
"""The role of the rows that choose the experts for a token."""

READ_ROLES = ("gate", "up", "key", "q", "k", "v", "mixer_in")
WRITE_ROLES = ("value", "o", "cross_o", "mixer_out", "ple_out")
FF_ROLES = ("gate", "up", "key", "value")
SELF_ROLES = ("q", "k", "v", "o")
CROSS_ROLES = ("cross_q", "cross_k", "cross_v", "cross_o")
"""The roles of cross attention: k and v read the encoder's stream, q and o the decoder's."""

OUTPUT_GATE = "g"
"""The role of the columns that decide how much of what a head attended to goes on to its o."""

HEAD_ROLES = (*SELF_ROLES, OUTPUT_GATE, *CROSS_ROLES)
MIXER_ROLES = ("mixer_in", "mixer_out")
"""The projections into and out of a mixer: what stands in the place of attention in some layers of a hybrid, such as a
state-space model. What lies between them is no parameter of the stream."""

PLE_ROLES = ("ple_in", "ple_out")
"""The gates of a per-layer embedding, which read the stream, and the projection by which it is added to it. What a gate
multiplies is a number of the token alone, and no parameter of the stream."""

PROJECTION_ROLES = (*MIXER_ROLES, *PLE_ROLES)
"""The roles whose rows have addresses such as ``L3.mixer.in.7`` and ``L3.ple.out.7``."""

LAYER_ROLES = (*FF_ROLES, *HEAD_ROLES, *PROJECTION_ROLES)
"""The roles with many vectors in a layer: neurons, columns of heads, and projections of mixers and embeddings."""

SELF_MAPS: tuple[MapRole, ...] = ("qk", "vo")
MAP_ROLES: tuple[MapRole, ...] = (*SELF_MAPS, "cross_qk", "cross_vo")
CLASSIFIERS = ("classifier", "token_classifier")
"""Tables whose rows are labels, of an entire text or of each token."""

PRODUCTS: Mapping[str, tuple[str, str]] = {
    "q": ("q_up", "q_latent"),
    "k": ("k_up", "kv_latent"),
    "v": ("v_up", "kv_latent"),
}
"""The roles whose matrices may be products (latent attention): what maps the latent up to the heads, and the latent's
rows, (rank, d), whose RMS norm stands between the two. The rotary rows of ``k`` are ``k_rotary``, shared by all heads.
"""

INNER_NORMS: Mapping[str, str] = {"o": "o_in_norm", "value": "value_in_norm"}
"""The roles whose rows may multiply what a norm (RMS) has divided by its length, and that norm.

Its gain is folded into the rows; the length depends on all that is summed.
"""

MLP_SHARES = ("", "shared", "dense")
"""The parts that the rows of an MLP's role come from: the routed experts or the only MLP, the expert that all tokens go
through, the MLP of a layer without experts. Tensors of the last two have names such as ``shared_gate``.
"""

MIXER_INPUTS = ("mixer_in", *(f"mixer_in_{part}" for part in ("key", "value", "gate", "update", "decay")))
"""The canonical tensors that the rows of the projection into a mixer come from, in this order."""

KEYS_AS_VALUES = "kv"
"""The canonical tensor of the keys of the layers whose values are made of them: there its rows are those of ``v``."""

BY_TOKEN = ("embedding", "unembedding", "unembedding_bias")
"""Tables with a row for each token."""

FRAMES = ("token", "output", "paper")
"""The frames that need the weights alone."""

LENS_FRAMES = {"seen": "token", "distinctive": "output", "effect": "output"}
"""The frames that need a lens, each with the frame whose rows it uses; ``seen`` reads, the others write."""

RELATIVE = {"distinctive": "effect"}
"""The frames that divide each token's score in another frame by its root mean square among the layer's vectors."""

LENS_FACTS, LENS_MAPS = "lens.json", "lens.safetensors"
"""The files in the folder of a lens: the facts about it, and its maps."""

ALL_FRAMES: tuple[Frame, ...] = get_args(Frame)
"""Every frame, in the order in which lists are shown."""

FIRST = 10
"""The number of tokens of a list whose coherence counts (`numerics.coherence`)."""

USUAL_OFFSET = 16
"""The default distance from a key to its query in ``qk``, in tokens.

Attention depends on the distance, which a map of token pairs lacks. Among the distances tried on running text, this one
predicts attention best at every depth (docs/evidence.md, "Which offset").
"""

ROPE_RULES = ("default", "linear", "llama3", "yarn", "longrope", "dynamic", "proportional")
"""The rules for scaling rotary frequencies that are known."""

ROPES_BY_LENGTH = ("longrope", "dynamic")
"""Those by which frequencies depend on the length of the text, from ``original_max_position_embeddings`` on."""

OUTSIDE = -1
"""The layer number of everything outside the blocks."""

MEMORY = -2
"""The layer number of the encoder's stream after its last layer, which cross attention reads."""


@dataclass(frozen=True)
class Stored:
    """The place of one canonical tensor in a file.

    A canonical matrix is (rows, d): each row is one parameter vector of the residual stream. ``part``, ``fused`` and
    ``paired_rows`` state the rows of a fused or reordered tensor (`rows.row_index`).

    Attributes:
        name: Name of the tensor. It may contain ``{layer}`` and ``{expert}``; after ``^`` it takes no prefix. A name
            that ends in ``[{expert}]`` or ``[0]`` is a part of a tensor that stacks several along its first axis.
        transpose: True if the file holds the transpose (torch Linear layers that write to the stream, GPT-2's Conv1D
            layers that read from it).
        part: (i, n) for the i-th of n equal parts along the canonical rows.
        alternating: True if the rows of the parts take turns.
        fused: The order of q, k and v in one tensor: ``stacked`` has all rows of q, then of k, then of v; ``grouped``
            has, for each key/value head, its query heads, then its k, then its v; ``quarters`` has, in each of four
            parts, rows of q, of v and of k. Of latent attention (`PRODUCTS`), ``latent`` has the latent of keys and
            values, then the rotary key; ``expanded`` has, for each head, its k, then its v.
            ``gated`` has, for each head, its query and then its gate.
        paired_rows: True if the rotary rows of each head are neighbours (x_2i, x_2i+1) instead of halves
            (x_i, x_{i + r/2}), as in GPT-J and the output of llama.cpp's converter.
        either_way: True if some files hold it and others its transpose; the shape tells.
        rotary_last: True if the rotary rows of each head are its last ones; canonically they are the first.
        sizes: The sizes of a mixer (`Mixer.size`) that its rows add up to, in order. If it is ``grouped``, it has a
            share of each for one group of the mixer after another. If it is ``tiled``, what heads have does not stand
            group by group: the first head of every group comes first, then the second of every group.
        negative_exp: True if the file holds minus the exponential of what the canonical tensor has.
        layers: The layers that have it: all, those with experts (``routed``), and these only where there is a shared
            one (``shared``), those with an MLP but no experts (``dense``), or those with such a part (``attn``,
            ``mixer``, ``ff``); those with a window (``local``); those with keys of their own (``keyed``), and, of
            these, those whose values have a matrix of their own (``valued``) or are made of what their keys are
            (``key_valued``).
    """

    name: str
    transpose: bool = False
    part: tuple[int, int] = (0, 1)
    alternating: bool = False
    fused: Literal["", "stacked", "grouped", "tiled", "quarters", "latent", "expanded", "gated"] = ""
    paired_rows: bool = False
    either_way: bool = False
    rotary_last: bool = False
    sizes: tuple[str, ...] = ()
    negative_exp: bool = False
    layers: Literal[
        "all", "routed", "shared", "dense", "attn", "mixer", "ff", "local", "keyed", "valued", "key_valued"
    ] = "all"

    @property
    def whole(self) -> bool:
        """True if the tensor holds this canonical one and nothing else."""
        return self.part == (0, 1) and not self.fused


def weight_and_bias(
    what: str, module: str, transpose: bool = False, part: tuple[int, int] = (0, 1)
) -> dict[str, Stored]:
    """Return the weight and the bias of a norm or a linear module; ``transpose`` and ``part`` as in `Stored`."""
    return {
        what: Stored(f"{module}.weight", transpose, part=part),
        f"{what}_bias": Stored(f"{module}.bias", part=part),
    }


def modules(stem: str, **names: str) -> dict[str, Stored]:
    """Return the weights and biases of modules with names behind a stem; those that write to the stream are transposed.

    Example:
        >>> from zeropass.arch.spec import modules
        >>> [stored.name for stored in modules("h.{layer}.attn.", q="q_proj", o="out_proj").values()][:2]
        ['h.{layer}.attn.q_proj.weight', 'h.{layer}.attn.q_proj.bias']
    """
    tensors = (weight_and_bias(what, f"{stem}{name}", what in WRITE_ROLES) for what, name in names.items())
    return {what: stored for pair in tensors for what, stored in pair.items()}


def fused_qkv(module: str, how: Literal["stacked", "grouped"], transpose: bool = False) -> dict[str, Stored]:
    """Return the weights and biases of q, k and v in one module; ``how`` is ``fused`` of `Stored`."""
    weight, bias = Stored(f"{module}.weight", transpose, fused=how), Stored(f"{module}.bias", fused=how)
    return {**dict.fromkeys("qkv", weight), **dict.fromkeys(("q_bias", "k_bias", "v_bias"), bias)}


@dataclass(frozen=True, repr=False)
class Layout(ShortRepr):
    """The configuration keys and tensor names of a family in one file format.

    Attributes:
        format: Name of the format.
        config: Names of `Dimensions` (and of values they derive from) -> keys of the configuration, tried in order;
            ``a.b`` looks inside an object.
        tensors: Names of canonical tensors -> their places in the file.
        prefixes: Possible prefixes of all tensor names (of a bare model, or of one inside a task model).
        optional: Tensors that a model may lack; any other missing tensor is an error.
        switches: Keys of the configuration that turn optional tensors on: key -> the tensors, and whether a model has
            them if the key is absent.
        copies: Names of the embedding, the module's own first, if a model stores one table under several.
        head: The tensor that a model ties to its embedding, if the layout gives it no role.
        extra: Stream vectors beyond the usual roles: address stem -> (tensor, side).
        through: Entry of ``extra`` -> the entry before it and the activation between the two. Where a model
            lacks the entry before it, the entry reads the stream itself.
        unread: Regular expressions of tensors that hold no parameter of the stream.
        sinusoids: Tables of positions that the family computes; a file may have them, with the same numbers.
        gain_offset: Number added to the gain of every norm but one inside a mixer: Gemma's files hold γ − 1.
        plain_gains: Canonical names of the norms to whose gain it is not added.
        constants: Values that files of this format never state.
        defaults: Values implied if a configuration has none of the keys of a name; a null key counts as present.
        harmless: Regular expressions of keys that change nothing in this family, beyond those in `keys`; of a GGUF file
            without the name of the architecture.
        only_with: A tensor by which a file of this layout is known, where several have the same configuration.
        gains: Matrices of parts that have norms of their own, as experts beside a shared MLP may: canonical matrix ->
            the gain that each of its rows is multiplied by. The norm of what they belong to then has none.
        stacks: Keys of the configurations of an encoder-decoder's stacks, where each has one of its own: that of this
            stack first.
    """

    format: Format
    config: Mapping[str, tuple[str, ...]]
    tensors: Mapping[str, Stored]
    prefixes: tuple[str, ...] = ("",)
    optional: tuple[str, ...] = ()
    switches: Mapping[str, tuple[tuple[str, ...], bool]] = field(default_factory=dict)
    copies: tuple[str, ...] = ()
    head: str = ""
    extra: Mapping[str, tuple[Stored, Side]] = field(default_factory=dict)
    through: Mapping[str, tuple[str, Literal["tanh", "relu", "gelu"]]] = field(default_factory=dict)
    unread: tuple[str, ...] = ()
    sinusoids: tuple[str, ...] = ()
    gain_offset: float = 0.0
    plain_gains: tuple[str, ...] = ()
    constants: Mapping[str, object] = field(default_factory=dict)
    defaults: Mapping[str, object] = field(default_factory=dict)
    harmless: tuple[str, ...] = ()
    only_with: str = ""
    gains: Mapping[str, str] = field(default_factory=dict)
    stacks: tuple[str, ...] = ()

    def offset_of(self, what: str) -> float:
        """Return the number that is added to a stored vector: `gain_offset` for a gain, else none."""
        return self.gain_offset if what.endswith("_norm") and what not in self.plain_gains else 0.0

    @property
    def queries(self) -> Stored:
        """The entry of the queries; of what maps their latent up, where they are a product."""
        return self.tensors.get("q") or self.tensors[PRODUCTS["q"][0]]

    def latent_of(self, role: str) -> str:
        """Return the canonical name of the latent that a role reads through (`PRODUCTS`); empty where it has none."""
        up, latent = PRODUCTS.get(role, ("", ""))
        return latent if up in self.tensors else ""

    def inner_norm(self, role: str) -> str:
        """Return the canonical name of the norm of what the rows of a role multiply (`INNER_NORMS`); empty for none."""
        norm = INNER_NORMS.get(role, "")
        return norm if norm in self.tensors else ""

    def factors_of(self, role: str) -> tuple[str, ...]:
        """Return the canonical names of all that the matrix of a role is a product of; none where it is stored."""
        if not (latent := self.latent_of(role)):
            return ()
        return (PRODUCTS[role][0], latent, f"{latent}_norm", *(("k_rotary",) if role == "k" else ()))


@dataclass(frozen=True, repr=False)
class Family(ShortRepr):
    """The computation of a family's blocks, and the layouts in which the family is stored.

    Attributes:
        name: Name of the family.
        model_types: Names of the family in configurations.
        norm: ``rms`` or ``layer``.
        norm_place: ``pre`` (a block reads the normed stream), ``post`` (the stream itself is normed after each block)
            or ``out`` (a block reads the stream as it is; its output is normed). A pre-norm family whose layout has
            ``attn_post_norm`` norms the output of a block as well.
        ff_roles: Roles of the MLP.
        rotary: True if positions rotate queries and keys.
        tied_by_default: True if E and U are tied where the configuration does not say.
        layouts: One layout for each format.
        always_tied: True if E and U are tied whatever the configuration says, unless both are stored and differ.
        config: Values that a configuration implies where it is silent.
        when: The variant of a model type: configuration key -> the values that this record is for; None stands for an
            absent key. A configuration that fits no record is refused, with these values.
        causal: True if a token attends only to itself and earlier tokens.
        stack: The half of an encoder-decoder; a file holds both, `open_model` opens one.
        other_memory: True if cross attention reads an encoder of something other than text, such as audio: k and v,
            which read it, have no words and no role.
        bare_start: True if the first block reads the stream as it is, because the embedding is normed already.
        first_position: The row of the first position; those before it are padding.
        sinusoids: Positions are sines and cosines, computed and not stored, by this rule (`projection.sinusoids`).
        parallel: True if both halves of a block read the same stream and their outputs are added together.
        qk_norm: Queries and keys are normed, each ``head`` separately or all heads as a ``whole``.
        qk_norm_kind: ``rms`` or ``layer``: the kind of the norm of each head; that of all heads is ``rms``.
        qk_norm_behind: True if that norm stands behind their rotation, so that its gain multiplies turned coordinates.
        qk_norm_rotated: True if only layers with rotary positions norm queries and keys.
        value_normed: True if the values of each head are normed, without a gain.
        gate: The function of the output gates of heads.
        turned_back: True if positions rotate against the usual direction.
        alibi: A bias that falls with the distance is added to attention logits, after scaling (``plain``) or before.
        unscaled: True if attention logits are not divided by √d_h.
        embed_scaled: True if embeddings are multiplied by √d.
        embed_normed: True if embeddings are normed, without a gain.
        logits_scaled: True if the final state is divided by √d, unless the configuration says otherwise.
        router_normed: True if the weights of the experts in use always add up to one, without a configuration key.
        router_shrunk: True if the scores of experts are divided by √d.
        router_by_logits: True if experts are chosen by their logits and the correction, not by their scores.
        router_scales_input: True if the weight of an expert multiplies what it reads, not what it writes.
        mixer: The mixer of a hybrid (`mixers`).
        layer_types: The parts of each type of layer of a hybrid, by the name that configurations have for it. Where
            they list the layers with attention instead, the first type is that of the others, the second theirs.
            ``dense`` stands for an MLP in a layer without experts.
        not_run: What a text's forward pass computes beyond what is read, as a clause; such a model is not run.
        notes: Sentences on what is not modelled exactly, for `zeropass families`.
    """

    name: str
    model_types: tuple[str, ...]
    norm: Literal["rms", "layer"]
    norm_place: Literal["pre", "post", "out"]
    ff_roles: tuple[str, ...]
    rotary: bool
    tied_by_default: bool
    layouts: tuple[Layout, ...]
    always_tied: bool = False
    config: Mapping[str, object] = field(default_factory=dict)
    when: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    causal: bool = True
    stack: Literal["", "encoder", "decoder"] = ""
    other_memory: bool = False
    bare_start: bool = False
    first_position: int = 0
    sinusoids: Literal["", "halves", "tensor2tensor"] = ""
    parallel: bool = False
    qk_norm: Literal["", "head", "whole"] = ""
    qk_norm_kind: Literal["rms", "layer"] = "rms"
    qk_norm_behind: bool = False
    qk_norm_rotated: bool = False
    value_normed: bool = False
    gate: Literal["sigmoid", "softplus"] = "sigmoid"
    turned_back: bool = False
    alibi: Literal["", "plain", "scaled"] = ""
    unscaled: bool = False
    embed_scaled: bool = False
    embed_normed: bool = False
    logits_scaled: bool = False
    router_normed: bool = False
    router_shrunk: bool = False
    router_by_logits: bool = False
    router_scales_input: bool = False
    mixer: MixerKind | Literal[""] = ""
    layer_types: Mapping[str, tuple[Site | Literal["dense"], ...]] = field(default_factory=dict)
    not_run: str = ""
    notes: tuple[str, ...] = ()

    @property
    def reads_normed(self) -> bool:
        """True if a block norms its input."""
        return self.norm_place == "pre"

    def reads_bare(self, norm: str, layer: int) -> bool:
        """Tell whether a layer reads the stream as it is at this norm, because the norm is absent."""
        return not self.reads_normed or norm == "ple_norm" or (self.bare_start and layer == 0 and norm == "attn_norm")

    @property
    def stream_normed(self) -> bool:
        """True if the stream itself is normed after each block."""
        return self.norm_place == "post"

    @property
    def routed(self) -> bool:
        """True if the MLPs are experts, chosen by a router."""
        return any("router" in layout.tensors for layout in self.layouts)

    @property
    def crosses(self) -> bool:
        """True if some heads attend to an encoder."""
        return any("cross_q" in layout.tensors for layout in self.layouts)

    @property
    def gated(self) -> bool:
        """True if heads have a gate for their output."""
        return any(OUTPUT_GATE in layout.tensors for layout in self.layouts)

    @property
    def ple_roles(self) -> tuple[str, ...]:
        """The roles of per-layer embeddings, where the family adds one in every layer."""
        return PLE_ROLES if any("ple_in" in layout.tensors for layout in self.layouts) else ()

    @property
    def head_roles(self) -> tuple[str, ...]:
        """The roles of the columns of the heads."""
        attention = (*SELF_ROLES, *((OUTPUT_GATE,) if self.gated else ()))
        if not self.crosses:
            return attention
        return (*attention, *(role for role in CROSS_ROLES if not (self.other_memory and reads_memory(role))))

    @property
    def reads_text(self) -> bool:
        """True if some heads attend to the encoder's tokens."""
        return self.crosses and not self.other_memory

    @property
    def vector_roles(self) -> tuple[str, ...]:
        """The roles that are sets of vectors, in the order of listings; a layer of a hybrid lacks some of them."""
        mixer = MIXER_ROLES if self.mixer else ()
        return (*self.ff_roles, *((ROUTER,) if self.routed else ()), *self.head_roles, *mixer, *self.ple_roles)

    @property
    def roles(self) -> tuple[str, ...]:
        """Every role of a layer, head maps last."""
        return (*self.vector_roles, *(MAP_ROLES if self.reads_text else SELF_MAPS))

    def layout(self, kind: Format) -> Layout | None:
        """Return the layout of one format; None if the family is not known in it."""
        return next((layout for layout in self.layouts if layout.format == kind), None)


@dataclass(frozen=True, repr=False)
class Wrapper(ShortRepr):
    """A multimodal model, of which the text model is read.

    Attributes:
        model_types: Names of the wrapper in configurations.
        texts: Model types that the text model may have; the first where its configuration is silent.
        prefixes: What takes the place of ``model.`` before the text model's tensors, in each generation of files -> the
            prefix of its head, and of the tensors of a text model whose names do not begin with ``model.``.
        towers: Modules that hold no parameter of the text model: name -> description.
        config: The key of the text model's configuration; ``a.b`` looks inside an object.
        others: Keys of the configurations of other parts.
        flat: True if old files have the keys of the text model among those of the wrapper.
        text_ties: True if E and U are tied where the text model's configuration says so, whatever the wrapper's says.
        both_ways: True if its text model may be an encoder or an encoder-decoder; else no token sees what follows.
        assumed: Keys of the text model's configuration -> what an absent one means, where its type has another default.
        fixed: Keys of the text model's configuration -> the values that count inside the wrapper.
        harmless: Regular expressions of keys that change nothing for a text, beyond those in `keys`.
        notes: Sentences on what is not modelled exactly.
    """

    model_types: tuple[str, ...]
    texts: tuple[str, ...]
    prefixes: Mapping[str, str]
    towers: Mapping[str, str]
    config: str = "text_config"
    others: tuple[str, ...] = ("vision_config",)
    flat: bool = False
    text_ties: bool = False
    both_ways: bool = False
    assumed: Mapping[str, object] = field(default_factory=dict)
    fixed: Mapping[str, object] = field(default_factory=lambda: {"final_logit_softcapping": None})
    harmless: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


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
        if site in ("mixer", "ple"):
            return layer in self.mixer_layers if site == "mixer" else self.ple > 0
        return layer not in (self.no_mlp if site == "ff" else self.no_attention)

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


_CROSS = "cross_"


def side_of(role: str) -> Side:
    """Return whether vectors of this role read from the stream or write to it."""
    return "write" if role in WRITE_ROLES else "read"


def site_of(role: str) -> Site:
    """Return the part of a block that a role belongs to, or the bias or norm of such a part."""
    if role.startswith(_CROSS):
        return "cross"
    if role.startswith(("mixer_", "ple_")):
        return "mixer" if role.startswith("mixer_") else "ple"
    return "ff" if role in FF_ROLES or role == ROUTER or role.startswith("ff_") else "attn"


def base_role(role: str) -> str:
    """Return a head's role, or head map, without the prefix of cross attention."""
    return role.removeprefix(_CROSS)


def share_of(what: str) -> tuple[str, str]:
    """Return one of `MLP_SHARES` and the rest of the name of a canonical tensor."""
    share = next((share for share in MLP_SHARES if share and what.startswith(f"{share}_")), "")
    return share, what.removeprefix(f"{share}_")


def shares_of(what: str) -> tuple[str, ...]:
    """Return the names of the canonical tensors whose rows, in this order, are those of a role or its bias."""
    stem, suffix = what.removesuffix("_bias"), "_bias" if what.endswith("_bias") else ""
    if stem == "mixer_in":
        return tuple(f"{part}{suffix}" for part in MIXER_INPUTS)
    if what == "v":
        return ("v", KEYS_AS_VALUES)
    if stem not in (*FF_ROLES, ROUTER):
        return (what,)
    return tuple(f"{share}_{what}" if share else what for share in MLP_SHARES)


def role_of(what: str) -> str:
    """Return the role that the rows of a canonical tensor belong to; the tensor itself if it is no matrix of a role."""
    return {**dict.fromkeys(MIXER_INPUTS, "mixer_in"), KEYS_AS_VALUES: "v"}.get(what) or share_of(what)[1]


def sides_of(kind: str) -> tuple[str, str]:
    """Return the roles of both sides of a head map: ``cross_qk`` is made of ``cross_q`` and ``cross_k``."""
    stem = kind[: -len(base_role(kind))]
    return stem + base_role(kind)[0], stem + base_role(kind)[1]


def reads_memory(role: str) -> bool:
    """Tell whether a role of a decoder reads the encoder's stream."""
    return role in ("cross_k", "cross_v")


def norm_of(role: str) -> str:
    """Return the norm of a role: before its input if it reads, after its output if it writes."""
    return "memory_norm" if reads_memory(role) else f"{site_of(role)}_norm"


def expand(stored: Stored, dims: Dimensions) -> Iterator[str]:
    """Yield all tensor names that a record entry stands for (without prefix)."""
    for layer in range(dims.layers if "{layer}" in stored.name else 1):
        yield from names_of(stored, layer, dims)


def names_of(stored: Stored, layer: int, dims: Dimensions) -> tuple[str, ...]:
    """Return the tensor names (without prefix) of a record entry at one layer: one, one for each expert, or none."""
    if stored.layers in ("attn", "mixer", "ff"):
        present = dims.has_site(stored.layers, layer)
    elif stored.layers == "local":
        present = layer in dims.local
    elif stored.layers == "shared":
        present = dims.shared_neurons > 0 and layer not in dims.dense
    elif stored.layers in ("keyed", "valued", "key_valued"):
        own, wanted = dims.kv_layer(layer) == layer, stored.layers
        present = own and (wanted == "keyed" or (wanted == "key_valued") == (layer in dims.key_valued))
    else:
        present = stored.layers == "all" or (
            dims.has_site("ff", layer) and (stored.layers == "dense") == (layer in dims.dense)
        )
    if not present:
        return ()
    count = dims.experts if "{expert}" in stored.name else 1
    return tuple(stored.name.format(layer=layer, expert=expert) for expert in range(count))


def default_frames(side: Side) -> tuple[str, ...]:
    """Return the frames that are shown by default: token and output for what reads, output for what writes."""
    return ("token", "output") if side == "read" else ("output",)


def with_lens(frames: tuple[str, ...], role: str, side: Side, lens_frames: Collection[str]) -> tuple[str, ...]:
    """Return the frames that are shown where there is a lens.

    ``seen`` takes the place of ``token``; ``distinctive`` and ``effect`` that of ``output`` for what writes, where
    ``distinctive`` compares the many vectors of a matrix.

    Args:
        frames: The frames without it.
        role: The role of the vectors.
        side: Their side.
        lens_frames: The frames that the lens has maps for.
    """
    plain = "token" if side == "read" else "output"
    lists = [name for name in LENS_FRAMES if name in lens_frames and (name not in RELATIVE or role in WRITE_ROLES)]
    through = [name for name in lists if LENS_FRAMES[name] == plain] or [plain]
    return tuple(name for frame in frames for name in (through if frame == plain else [frame]))


def lens_map(side: Side, site: Site, layer: int, layers: int) -> str:
    """Return the name of the map of a lens for vectors of one side; an empty one where the lens changes nothing.

    What reads layer 0 meets the embedding itself. What is outside the blocks writes before layer 0, or reads behind the
    last.

    Args:
        side: The side of the vectors.
        site: The part of the block that they belong to.
        layer: Their layer, or `OUTSIDE`.
        layers: The number of layers of the model.
    """
    if side == "write":
        return "effect.start" if layer == OUTSIDE else f"effect.{layer}.{'ff' if site in ('ff', 'ple') else 'attn'}"
    state = layers if layer == OUTSIDE else layer
    return f"seen.{state}" if state > 0 else ""


def space_of(frame: str, side: Side, layer: int) -> str:
    """Return the name of the rows of a frame: layer 0 reads the embedding, later layers the output of block 0."""
    frame = LENS_FRAMES.get(frame, frame)
    if frame == "token":
        if side == "write":
            raise BadOption("The token frame is for what reads; what writes has the frames output and paper.")
        if layer == MEMORY:
            return "memory"
        return "embedded" if layer <= 0 else "token"
    check_frame(frame)
    return f"{frame}.{side}"


def judge_space(side: Side) -> str:
    """Return the rows in which the tokens of lists of a side are compared: other ones than those that made the lists.

    The source of `numerics.coherence`: ``token`` for what writes, the output's for what reads.
    """
    return "token" if side == "write" else "output.write"


def check_count(k: int) -> None:
    """Raise BadOption for a number of tokens or pairs below one."""
    if k < 1:
        raise BadOption(f"-k is {k}; it must be at least 1.")


def check_frame(frame: str | None) -> None:
    """Raise BadOption for a frame that does not exist."""
    if frame is not None and frame not in ALL_FRAMES:
        raise BadOption(f"There is no frame {frame!r}; frames are {', '.join(ALL_FRAMES)}.")
