"""The record of one family's layout: frozen data, no behaviour beyond looking things up in it.

A family is described once (what its blocks compute) and once for every kind of file it is stored in
(what its tensors are called and how they lie). Nothing is inferred from a shape: a transform is named.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from zeropass.errors import BadOption

Format = Literal["hf", "gguf"]
Site = Literal["attn", "cross", "ff"]
Side = Literal["read", "write"]

ROUTER = "router"
"""The role whose rows read what sends a token to an expert."""

READ_ROLES = ("gate", "up", "key", "q", "k", "v")
WRITE_ROLES = ("value", "o", "cross_o")
FF_ROLES = ("gate", "up", "key", "value")
SELF_ROLES = ("q", "k", "v", "o")
CROSS_ROLES = ("cross_q", "cross_k", "cross_v", "cross_o")
"""Of a decoder's heads that attend to an encoder: k and v read the encoder's stream, q and o are the decoder's."""

HEAD_ROLES = (*SELF_ROLES, *CROSS_ROLES)
SELF_MAPS = ("qk", "vo")
MAP_ROLES = (*SELF_MAPS, "cross_qk", "cross_vo")
CLASSIFIERS = ("classifier", "token_classifier")
"""Tables whose rows are labels: of a whole text, or of each token."""

BY_TOKEN = ("embedding", "unembedding", "unembedding_bias")
"""Tables with a row for each token."""

FRAMES = ("token", "output", "paper")


USUAL_OFFSET = 16
"""How far a query stands after its key in ``qk`` unless asked otherwise.

Attention depends on the distance, which a map of token pairs does not have. Of the distances tried on running text this
one predicts attention best, at every depth (docs/evidence.md, "Which offset").
"""

OUTSIDE = -1
"""The layer of what lies outside the blocks."""

MEMORY = -2
"""Where cross attention reads: the encoder's stream after its last layer."""


@dataclass(frozen=True)
class Stored:
    """How one canonical tensor lies in a file.

    ``name`` may hold ``{layer}`` and ``{expert}``; one that begins with ``^`` never takes the layout's prefix. A
    canonical matrix is (rows, d): one parameter vector of the residual stream a row. ``transpose`` is for files that
    keep it the other way round (torch Linear layers that write to the stream, GPT-2's Conv1D layers that read from it).
    What of a fused tensor is meant, and in which order, is said in one of these ways (`rows.row_index`):

    - ``part`` = (i, n) takes the i-th of n equal parts, cut along the canonical rows.
    - ``fused`` is for q, k and v in one tensor: ``stacked`` has all rows of q, then of k, then of v; ``grouped`` has,
      for each key/value head, its query heads, then its k, then its v.
    - ``paired_rows``: the rotary rows of each head lie as neighbours (x_2i, x_2i+1) instead of halves
      (x_i, x_{i + r/2}), as llama.cpp's converter and GPT-J have them.
    """

    name: str
    transpose: bool = False
    part: tuple[int, int] = (0, 1)
    fused: Literal["", "stacked", "grouped"] = ""
    paired_rows: bool = False

    @property
    def whole(self) -> bool:
        """Whether the tensor holds this canonical one and nothing else."""
        return self.part == (0, 1) and not self.fused


def weight_and_bias(
    what: str, module: str, transpose: bool = False, part: tuple[int, int] = (0, 1)
) -> dict[str, Stored]:
    """The weight and the bias of a module, a norm or a linear one; ``transpose`` and ``part`` as in `Stored`."""
    return {
        what: Stored(f"{module}.weight", transpose, part=part),
        f"{what}_bias": Stored(f"{module}.bias", part=part),
    }


def fused_qkv(module: str, how: Literal["stacked", "grouped"], transpose: bool = False) -> dict[str, Stored]:
    """The weights and biases of q, k and v in one module; ``transpose`` as in `Stored`."""
    weight, bias = Stored(f"{module}.weight", transpose, fused=how), Stored(f"{module}.bias", fused=how)
    return {**dict.fromkeys("qkv", weight), **dict.fromkeys(("q_bias", "k_bias", "v_bias"), bias)}


@dataclass(frozen=True)
class Layout:
    """Names of one kind of file: configuration keys and tensors.

    ``config`` maps the names of `Dimensions` (and of what they are made from) to keys of the configuration, tried in
    order; ``a.b`` looks inside an object.
    ``prefixes`` are what may stand before every tensor name (a bare model, or one inside a task model).
    ``optional`` are the tensors that a model may lack; any other that is missing is an error.
    ``copies`` are the names under which the embedding may lie, the module's own first, where a model has several that
    are one. ``head`` is the tensor that a model ties to its embedding, where no role of the layout is it.
    ``switches`` are keys of the configuration that say whether a model has some of these: key -> the tensors, and
    whether it has them where the key is not there.
    ``extra`` are stream vectors beyond the usual roles: address stem -> (tensor, side).
    ``through`` names, for one of these, the one that stands before it and the activation between them. A model that
    lacks it reads the stream itself.
    ``unread`` are regular expressions of tensors that hold no parameter of the stream.
    ``gain_offset`` is added to the gain of every norm: Gemma's files hold γ − 1.
    ``constants`` are values that files of this kind never write down. ``defaults`` are those that a configuration means
    by having none of the keys of a name; a key that is null has been said.
    ``harmless`` are regular expressions of keys that change nothing in this family, beside those of `keys`.
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
    gain_offset: float = 0.0
    constants: Mapping[str, object] = field(default_factory=dict)
    defaults: Mapping[str, object] = field(default_factory=dict)
    harmless: tuple[str, ...] = ()


@dataclass(frozen=True)
class Family:
    """What the blocks of a family compute, and the layouts it is stored in.

    ``when`` tells variants of one model type apart: configuration key -> the values this record is for, where None
    stands for a key that is not there. A configuration that no record is for is refused with these values.
    ``norm`` is ``rms`` or ``layer``. ``norm_place`` is ``pre`` (a block reads the normed stream), ``post`` (the stream
    itself is normed after each block) or ``out`` (a block reads the stream as it is; what it writes is normed).
    A pre-norm family whose layout has ``attn_post_norm`` norms what a block writes as well.
    ``bare_start``: the first block reads the stream as it is, for the embedding is normed already.
    ``parallel``: both halves of a block read the same stream and are added together.
    ``qk_norm``: queries and keys are RMS-normed, each ``head`` by itself or all heads as a ``whole``.
    ``alibi``: a bias that falls with the distance is added to attention logits, after the scale (``plain``) or before.
    ``unscaled``: attention logits are not divided by √d_h. ``embed_scaled``: embeddings are multiplied by √d.
    ``logits_scaled``: the final state is divided by √d, unless the configuration says that it is not.
    ``tied_by_default`` is what a configuration means that does not say whether E and U are tied. ``always_tied``: they
    are, whatever it says, unless both are stored and differ.
    ``stack``: which half of an encoder-decoder this is; a file holds both, `open_model` opens one.
    ``router_normed``: the weights of the experts that are used add up to one: always, or by a configuration key.
    ``ff_roles`` and ``activation`` describe the MLP.
    ``config`` gives values that this family has without a configuration key.
    ``notes`` say what is not modelled exactly, in words for `zeropass families`.
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
    bare_start: bool = False
    parallel: bool = False
    qk_norm: Literal["", "head", "whole"] = ""
    alibi: Literal["", "plain", "scaled"] = ""
    unscaled: bool = False
    embed_scaled: bool = False
    logits_scaled: bool = False
    router_normed: bool = False
    notes: tuple[str, ...] = ()

    @property
    def reads_normed(self) -> bool:
        """Whether a block norms what it reads."""
        return self.norm_place == "pre"

    def reads_bare(self, norm: str, layer: int) -> bool:
        """Whether what reads at this norm of a layer meets the stream as it is, for the norm is not there."""
        return not self.reads_normed or (self.bare_start and layer == 0 and norm == "attn_norm")

    @property
    def stream_normed(self) -> bool:
        """Whether the stream itself is normed after each block."""
        return self.norm_place == "post"

    @property
    def routed(self) -> bool:
        """Whether its MLPs are experts, chosen by a router."""
        return any("router" in layout.tensors for layout in self.layouts)

    @property
    def crosses(self) -> bool:
        """Whether it has heads that attend to an encoder."""
        return any("cross_q" in layout.tensors for layout in self.layouts)

    @property
    def head_roles(self) -> tuple[str, ...]:
        """The roles of its heads' columns."""
        return HEAD_ROLES if self.crosses else SELF_ROLES

    @property
    def vector_roles(self) -> tuple[str, ...]:
        """The roles of a layer that are sets of vectors, in the order in which they are listed."""
        return (*self.ff_roles, *((ROUTER,) if self.routed else ()), *self.head_roles)

    @property
    def roles(self) -> tuple[str, ...]:
        """Every role of a layer, head maps last."""
        return (*self.vector_roles, *(MAP_ROLES if self.crosses else SELF_MAPS))

    def layout(self, kind: Format) -> Layout | None:
        """The layout of one kind of file; None if the family is not known in it."""
        return next((one for one in self.layouts if one.format == kind), None)


@dataclass(frozen=True)
class Rope:
    """Rotary positions: base, and the rule that rescales the frequencies (``default`` for none)."""

    theta: float
    kind: str = "default"
    options: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Dimensions:
    """The sizes and constants of one model, whatever its configuration calls them.

    ``neurons`` are those of a layer, of all ``experts`` together, of which a token goes through ``experts_used``.
    ``embed`` is the width of the embedding's own rows where they are carried to d by a projection. ``rotary`` are the
    coordinates of a head that positions turn. ``local`` names the layers that attend to a ``window`` of tokens only;
    they may have a RoPE of their own. Queries, keys and values are cut off at ± ``clip``.
    Logits are ``attention_scale · q·k``, capped where ``attention_cap`` is given (``c tanh(x / c)``); final logits
    likewise. Scales and caps change scores and no ranks: records leave them out.
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
    embed: int = 0
    rotary: int = 0
    experts: int = 1
    experts_used: int = 1
    attention_scale: float = 1.0
    attention_cap: float | None = None
    logit_scale: float = 1.0
    logit_cap: float | None = None
    embed_scale: float = 1.0
    router_normed: bool = False
    clip: float | None = None
    window: int | None = None
    local: tuple[int, ...] = ()
    local_rope: Rope | None = None

    @property
    def group(self) -> int:
        """How many query heads share one key/value head."""
        return self.heads // self.kv_heads

    @property
    def expert_neurons(self) -> int:
        """Neurons of one expert."""
        return self.neurons // self.experts


_CROSS = "cross_"


def side_of(role: str) -> Side:
    """Whether vectors of this role read from the stream or write to it."""
    return "write" if role in WRITE_ROLES else "read"


def site_of(role: str) -> Site:
    """Which part of a block a role belongs to."""
    if role.startswith(_CROSS):
        return "cross"
    return "ff" if role in FF_ROLES or role == ROUTER else "attn"


def base_role(role: str) -> str:
    """A role of a head, or a head map, without saying whether it attends to its own stream or to an encoder."""
    return role.removeprefix(_CROSS)


def sides_of(kind: str) -> tuple[str, str]:
    """The roles of both sides of a head map: ``cross_qk`` is made of ``cross_q`` and ``cross_k``."""
    stem = kind[: -len(base_role(kind))]
    return stem + base_role(kind)[0], stem + base_role(kind)[1]


def reads_memory(role: str) -> bool:
    """Whether a role reads an encoder's stream from within a decoder."""
    return role in ("cross_k", "cross_v")


def norm_of(role: str) -> str:
    """The norm that a role meets: before what reads, behind what writes."""
    return "memory_norm" if reads_memory(role) else f"{site_of(role)}_norm"


def expand(stored: Stored, dims: Dimensions) -> Iterator[str]:
    """All tensor names that a record entry stands for (without prefix)."""
    for layer in range(dims.layers if "{layer}" in stored.name else 1):
        yield from names_of(stored, layer, dims)


def names_of(stored: Stored, layer: int, dims: Dimensions) -> tuple[str, ...]:
    """The tensors (without prefix) that hold a record entry at one layer: one, or one for each expert."""
    count = dims.experts if "{expert}" in stored.name else 1
    return tuple(stored.name.format(layer=layer, expert=expert) for expert in range(count))


def default_frames(side: Side) -> tuple[str, ...]:
    """The frames of a side that are shown unasked: what it sees and is about to say, or what it writes."""
    return ("token", "output") if side == "read" else ("output",)


def space_of(frame: str, side: Side, layer: int) -> str:
    """Name of the rows that a frame uses: layer 0 reads the embedding itself, later ones what block 0 made of it."""
    if frame == "token":
        if side == "write":
            raise BadOption("The token frame is for what reads; what writes has the frames output and paper.")
        if layer == MEMORY:
            return "memory"
        return "embedded" if layer <= 0 else "token"
    check_frame(frame)
    return f"{frame}.{side}"


def check_count(k: int) -> None:
    """Raise BadOption for a number of tokens or pairs below one."""
    if k < 1:
        raise BadOption(f"-k is {k}; it must be at least 1.")


def check_frame(frame: str | None) -> None:
    """Raise BadOption for a frame that does not exist."""
    if frame is not None and frame not in FRAMES:
        raise BadOption(f"There is no frame {frame!r}; frames are {', '.join(FRAMES)}.")
