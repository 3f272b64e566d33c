"""The records of families and of the multimodal models around them: frozen data, with nothing but lookups in it.

A `Family` describes once what its blocks compute; one `Layout` for each format describes its tensors. A `Wrapper`
describes a multimodal model around one of a family.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from zeropass._io.short_repr import ShortRepr
from zeropass.arch.dimensions import MixerKind
from zeropass.arch.layout import Format, Layout
from zeropass.arch.roles import (
    CROSS_ROLES,
    LAUREL_ROLES,
    MAP_ROLES,
    MIXER_ROLES,
    OUTPUT_GATE,
    PLE_ROLES,
    ROUTER,
    SELF_MAPS,
    SELF_ROLES,
    Site,
    reads_memory,
    side_of,
)


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
        """The roles of per-layer embeddings, where the family adds one in every layer.

        Where there are several streams, what it writes reaches those alone that no layer reads and that have no words.
        """
        present = any("ple_in" in layout.tensors for layout in self.layouts)
        return tuple(role for role in PLE_ROLES if present and not (self.streamed and side_of(role) == "write"))

    @property
    def streamed(self) -> bool:
        """True if there are several streams side by side."""
        return any("altup_router" in layout.tensors for layout in self.layouts)

    @property
    def laurel_roles(self) -> tuple[str, ...]:
        """The roles of a learned augmented residual, where the family has one in every layer."""
        return LAUREL_ROLES if any("laurel_in" in layout.tensors for layout in self.layouts) else ()

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
        router = (ROUTER,) if self.routed else ()
        return (*self.ff_roles, *router, *self.head_roles, *mixer, *self.laurel_roles, *self.ple_roles)

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
