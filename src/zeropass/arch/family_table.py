"""The table of families in words: the features of each, and what is not modelled exactly. No torch, no weights."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from zeropass.arch.dimensions import ROPE_RULES, ROPES_BY_LENGTH, Dimensions, MixerKind
from zeropass.arch.families import FAMILIES
from zeropass.arch.families.multimodal import WRAPPERS
from zeropass.arch.layout import INNER_NORMS, KEYS_AS_VALUES, Layout
from zeropass.arch.spec import Family

__all__ = ["attention_of", "family_rows", "mlp_of", "norm_of", "notes_of", "positions_of", "type_rows"]

_FORMATS = {"hf": "safetensors", "gguf": "GGUF"}
MIXERS: dict[MixerKind, str] = {
    "delta": "gated delta rule",
    "convolution": "convolution",
    "mamba2": "Mamba 2",
    "mamba": "Mamba",
    "rglru": "gated linear recurrence",
}
"""Each kind of mixer in words."""

_PLACES = {"pre": "before", "post": "post", "out": "after"}


def family_rows() -> list[dict[str, Any]]:
    """Return one row for each family, JSON-ready; the records of its variants share a row.

    ``inside`` are the multimodal models whose text model may be of the family.
    """
    names = dict.fromkeys(family.name for family in FAMILIES)
    return [_row([family for family in FAMILIES if family.name == name]) for name in names]


def _row(records: list[Family]) -> dict[str, Any]:
    described = [family for family in records if family.layout("hf")] or records
    formats = {layout.format for family in records for layout in family.layouts}
    model_types = _unique(name for family in records for name in family.model_types)
    return {
        "family": records[0].name,
        "model_types": model_types,
        "formats": [label for name, label in _FORMATS.items() if name in formats],
        "norm": " or ".join(_unique(map(norm_of, described))),
        "positions": " or ".join(_unique(map(positions_of, described))),
        "attention": " or ".join(_unique(map(attention_of, described))),
        "mlp": " or ".join(_unique(map(mlp_of, described))),
        "notes": _unique(note for family in described for note in notes_of(family)),
        "inside": [
            name for wrapper in WRAPPERS for name in wrapper.model_types if set(wrapper.texts) & set(model_types)
        ],
    }


def type_rows() -> list[dict[str, Any]]:
    """Return one row for each model type that is read, JSON-ready, in the order of their names.

    ``reads`` is what of a model is read; ``only`` has the keys of a configuration whose other values are refused.
    """
    of_type: dict[str, list[Family]] = {}
    for family in FAMILIES:
        for name in family.model_types:
            of_type.setdefault(name, []).append(family)
    inside = {name: wrapper.texts for wrapper in WRAPPERS for name in wrapper.model_types}
    return [
        _type_row(name, of_type.get(name, []), inside.get(name, ()))
        for name in sorted({*of_type, *inside}, key=str.lower)
    ]


def _type_row(name: str, records: list[Family], texts: Sequence[str]) -> dict[str, Any]:
    formats = {layout.format for family in records for layout in family.layouts} | ({"hf"} if texts else set())
    stacks = _unique(family.stack or ("decoder" if family.causal else "encoder") for family in records)
    known = [family for family in FAMILIES if set(texts) & set(family.model_types)] if texts else records
    return {
        "model_type": name,
        "formats": [label for key, label in _FORMATS.items() if key in formats],
        "reads": "text model" if texts else " or ".join(sorted(stacks)),
        "families": _unique(family.name for family in known),
        "only": {} if texts else _only([family for family in records if family.layout("hf")]),
    }


def _only(records: list[Family]) -> dict[str, list[object]]:
    """Return the keys that every record of a model type restricts, with the values that some record is for."""
    architectures = {
        key.partition(".")[0]
        for family in FAMILIES
        if (layout := family.layout("gguf"))
        for key in layout.config["layers"]
    }
    keys = set(records[0].when).intersection(*(family.when for family in records)) if records else set()
    allowed = {key: [value for family in records for value in family.when[key]] for key in sorted(keys)}
    return {
        key: [value for n, value in enumerate(values) if value not in values[:n]]
        for key, values in allowed.items()
        if key.partition(".")[0] not in architectures and not all(flag in values for flag in (True, False))
    }


def _unique(words: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(words))


def norm_of(family: Family) -> str:
    """Return the norm of a family, and whether it stands before a block, after it, or after it in the stream."""
    norm = "RMSNorm" if family.norm == "rms" else "LayerNorm"
    around = family.reads_normed and "attn_post_norm" in _main_layout(family).tensors
    return f"{norm} {'around' if around else _PLACES[family.norm_place]}"


def positions_of(family: Family) -> str:
    """Return how a family represents the position of a token."""
    layout = _main_layout(family)
    partial = bool({"rotary", "rotary_share"} & (layout.config.keys() | layout.constants.keys()))
    encodings = {
        "learned": "positions" in layout.tensors,
        "sinusoidal": bool(family.sinusoids),
        "partial rotary" if partial else "rotary": family.rotary,
        "ALiBi": bool(family.alibi),
        "relative": "relative" in layout.tensors,
        "disentangled": "distances" in layout.tensors,
    }
    return " and ".join(name for name, present in encodings.items() if present) or "none"


def attention_of(family: Family) -> str:
    """Return how the heads of a family share keys and values, and what modifies their attention."""
    layout = _main_layout(family)
    query_keys, kv_keys = (layout.config.get(name, ()) for name in ("heads", "kv_heads"))
    heads = "multi-query" if layout.constants.get("kv_heads") == 1 else "heads" if query_keys == kv_keys else "GQA"
    heads = "latent" if layout.latent_of("k") else heads
    indexer = "indexer" if "indexed_keys" in layout.config else ""
    norm = "QK-norm" if family.qk_norm else ""
    sinks = "sinks" if "sinks" in layout.tensors else ""
    window = "window" if {"window", "reach"} & layout.config.keys() else ""
    direction = "" if family.causal else "both ways"
    cross = "cross" if family.crosses else ""
    gates = "output gates" if family.gated else ""
    mixer = f"or {MIXERS[family.mixer]}" if family.mixer else ""
    shared = "shared by layers" if "sharing" in layout.config else ""
    residual = "augmented residual" if family.laurel_roles else ""
    streams = "several streams" if family.streamed else ""
    uneven = "uneven" if _are_uneven(layout) else ""
    parts = (heads, uneven, indexer, norm, sinks, window, shared, direction, cross, gates, mixer, residual, streams)
    return ", ".join(part for part in parts if part)


def _are_uneven(layout: Layout) -> bool:
    """Tell whether layers may have heads in numbers or of sizes of their own."""
    sizes = ("heads", "kv_heads", "head_dim", "value_dim")
    stated = {f"{layers}_{size}" for layers in ("each", "local", "global") for size in sizes}
    return not stated.isdisjoint(layout.config)


def mlp_of(family: Family) -> str:
    """Return the type of a family's MLPs, and whether they run parallel to attention instead of after it."""
    parts = (
        "gated" if "gate" in family.ff_roles else "plain",
        family.routed and "experts",
        family.parallel and "parallel",
        family.ple_roles and "per-layer embeddings",
        "gate_sparsity" in _main_layout(family).config and "sparse gates",
    )
    return ", ".join(part for part in parts if part)


def notes_of(family: Family, dims: Dimensions | None = None) -> tuple[str, ...]:
    """Return what is not modelled exactly: the notes of the record, then those implied by its features.

    Args:
        family: The record.
        dims: The sizes of one model, to leave out notes that do not apply to it.
    """
    return (*family.notes, *_implied_notes(family, dims))


_STREAM_NOTES = (
    "several streams (AltUp): layers read the first one, so frames are its own; the token frame has it as it leaves "
    "block 0, without what each layer mixes into it from the others by weights of the token",
    "several streams (AltUp): what a layer writes goes to all, by weights of the token; the output frame has the way "
    "through the first one, a part of the last state, and not those through the others, which reach the unembedding "
    "through matrices of their own (stream_out)",
    "several streams (AltUp): what per-layer embeddings write goes to the others alone, so that it has no lists; the "
    "matrices and weights that mix streams are read for the forward pass only",
)


def _implied_notes(family: Family, dims: Dimensions | None) -> Iterator[str]:
    layout = _main_layout(family)
    keys = layout.config.keys()
    if family.qk_norm:
        yield "QK-norm: maps of heads have it, lists of single q and k columns leave it out"
    if family.value_normed:
        yield "values are normed, head by head: maps of heads have it, lists of single v columns leave it out"
    if family.qk_norm_behind and "q_norm" in layout.tensors:
        yield "QK-norm behind RoPE: attention depends on both positions; maps of heads have the key at position 0"
    if "growth" in keys and (dims is None or dims.growth):
        yield "queries far into a text grow: a factor that maps leave out, since it changes scores, not ranks"
    if layout.latent_of("k"):
        yield "latents: maps of heads divide each token by the length of its latent, lists of q, k and v leave it out"
        yield "latents: the rotary columns of a head come first, and those of k are the same in every head"
    if "indexed_keys" in keys:
        yield (
            "an indexer, which is not read, chooses the keys that a query attends to (index_topk of them): a text no "
            "longer than that is computed as it is, a longer one is refused"
        )
    if "clip" in keys and (dims is None or dims.clip):
        yield "clip_qkv: qk maps have it, vo maps and lists leave it out"
    if {"attention_cap", "logit_cap"} & keys and (dims is None or dims.attention_cap or dims.logit_cap):
        yield "soft-caps of logits are stated and not applied: they change scores, not ranks"
    if {"window", "reach"} & keys and (dims is None or dims.window):
        yield "windows of attention are stated and not applied: a map of a head has pairs at any distance"
    if {"rotated_layers", "layer_thetas", "only_local_rotated", "unrotated_every"} & (
        keys | layout.constants.keys()
    ) and (dims is None or dims.unrotated):
        yield "some layers have no positions: their maps do not depend on the offset"
    if family.sinusoids:
        yield "positions are sines and cosines by a formula, not parameters: they have no addresses"
    if family.other_memory:
        yield "cross attention: q and o have lists; k and v read the encoder's states, which no tokens stand for"
    if family.alibi or "relative" in layout.tensors:
        yield "what is added to attention by distance alone is left out of maps: it is the same for all tokens"
    if "distances" in layout.tensors:
        yield "disentangled attention: what a query adds by distance is left out of maps; what a key adds is in them"
    if family.rotary and (dims is None or (dims.rope and not dims.rope.known)):
        yield f"RoPE scalings other than {', '.join(ROPE_RULES[1:])}: qk is read at offset 0 only"
    if family.rotary and (dims is None or (dims.rope and dims.rope.window)):
        yield (
            f"RoPE scaled by the length of a text ({', '.join(ROPES_BY_LENGTH)}): qk at an offset is that of the "
            "shortest text with such a distance; a text beyond the original length turns all its pairs otherwise"
        )
    if "sinks" in layout.tensors:
        yield "sinks take a share of each head's attention, by a number that no token changes: maps leave them out"
    if family.stream_normed or {"attn_post_norm", "ff_post_norm"} & layout.tensors.keys():
        yield "writes are folded with the gain of the norm behind them; its division by length depends on the text"
    if "layer_scalar" in layout.tensors:
        yield "the stream is multiplied by a factor behind each layer: writes are folded with those that they pass"
    if _are_uneven(layout) and (dims is None or dims.by_layer):
        yield "uneven heads: layers have them in numbers, or of sizes, of their own (by_layer of `zeropass info`)"
    if "sharing" in keys and (dims is None or dims.kv_layers):
        yield "layers that attend to the keys and values of an earlier one: their maps meet its stream on that side"
    if KEYS_AS_VALUES in layout.tensors and (dims is None or dims.key_valued):
        yield "layers whose keys are their values: k and v are the same vectors there"
    if any(map(layout.inner_norm, INNER_NORMS)):
        yield (
            "norms inside attention and MLP: o and value are folded with their gain; the division by length depends on "
            "the text"
        )
    if family.ple_roles:
        written = ", and what they write (ple.out) are read" if "ple_out" in family.ple_roles else " are read"
        yield (
            f"per-layer embeddings: their gates (ple.in), which read the stream without a norm{written}; what a gate "
            "multiplies is a number of the token, and no vector of the stream"
        )
    if family.laurel_roles:
        yield (
            "augmented residual (LAuReL): its projections into a few coordinates (laurel.in) and out of them "
            "(laurel.out) are read; that a layer also adds the normed stream itself is left out of what is written"
        )
    if family.streamed:
        yield from _STREAM_NOTES
    if family.mixer:
        yield (
            f"layers with a {MIXERS[family.mixer]}: its projections from the stream and into it are read; what lies "
            "between depends on the tokens before and has no words"
        )
    if family.gated:
        yield "output gates of heads: their columns are read (g); maps leave them out"
    if family.routed:
        yield "experts: each is read as if a token went through it"
    if "beyond" in keys and (dims is None or dims.beyond):
        yield "layers behind the last, which predict later tokens for speculative decoding, are not read"
    if "shared_value" in layout.tensors:
        yield "the shared expert, which every token goes through, is numbered behind the others"


def _main_layout(family: Family) -> Layout:
    """Return the most telling layout of a family: that of its Hugging Face files, if it has one."""
    return family.layout("hf") or family.layouts[0]
