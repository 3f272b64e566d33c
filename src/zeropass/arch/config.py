"""Read `Dimensions` from a configuration, whatever names its family uses; check every value, guess none."""

from collections.abc import Mapping
from dataclasses import replace

import torch

from zeropass.arch.config_reader import LAYER_ALLOWANCE, ConfigReader, looked_up, positive_number
from zeropass.arch.dimensions import ROPE_RULES, Dimensions, Growth, Mixer
from zeropass.arch.head_sizes import gates_of_head, latent_sizes, sizes_by_layer
from zeropass.arch.layer_types import (
    counted_layers,
    dense_layers,
    gate_sparsity,
    key_layers,
    key_valued_layers,
    local_layers,
    parts_of_layers,
    sharing_is_wider,
    unrotated_layers,
    window_size,
)
from zeropass.arch.layout import Layout, Names, full_name
from zeropass.arch.rotary import lengthened, local_rope_of, rope_of, rotated_width
from zeropass.arch.spec import Family
from zeropass.checkpoints.model_files import ModelFiles
from zeropass.errors import BadModel, BadWeights, UnknownFamily

__all__ = ["dimensions", "of_stack"]

_SIZES = (
    *("layers", "d", "heads", "kv_heads", "head_dim", "neurons", "vocab", "embed", "experts", "experts_used"),
    *("dense_neurons", "router_groups", "router_groups_used", "router_group_best"),
    *("value_dim", "q_latent", "kv_latent"),
)

_REQUIRED = ("layers", "d", "heads", "kv_heads")

_OF_BOTH = ("model_type", "tie_word_embeddings", "quantization_config", "id2label", "problem_type", "_name_or_path")
"""Keys of an encoder-decoder that are about each of its stacks; those of a stack's own do not count."""


def of_stack(files: ModelFiles, family: Family, layout: Layout) -> tuple[ModelFiles, ...]:
    """Return the files with the configuration of one stack and, where it is one of several, with that of all.

    Raises:
        BadModel: A stack has no configuration.
        UnknownFamily: The stacks differ in the width of their streams or in their vocabularies.
    """
    if not layout.stacks:
        return (files,)
    stacks = [looked_up(files.config, key) for key in layout.stacks]
    for key, stack in zip(layout.stacks, stacks, strict=True):
        if not isinstance(stack, Mapping):
            raise BadModel(f"{files.place}: {key} must be an object, the configuration of a stack, not {stack!r}.")
    for name in ("d", "vocab"):
        sizes = [ConfigReader(replace(files, config={**stack}), family, layout).size(name) for stack in stacks]
        if len({*sizes}) > 1:
            stated = " and ".join(f"{key}: {size}" for key, size in zip(layout.stacks, sizes, strict=True))
            raise UnknownFamily(
                f"{files.place}: {layout.config[name][0]} differs between the stacks ({stated}); only those that "
                "share a vocabulary, and whose streams are of one width, are read."
            )
    roots = {key.partition(".")[0] for key in layout.stacks}
    shared = {key: value for key, value in files.config.items() if key in roots or key in _OF_BOTH}
    own = {key: value for key, value in stacks[0].items() if key not in _OF_BOTH}
    return replace(files, config={**own, **shared}), files


def dimensions(files: ModelFiles, family: Family, layout: Layout, prefix: str, names: Names, tied: bool) -> Dimensions:
    """Return the sizes and constants of a model.

    Raises:
        BadModel: A value is missing or impossible; the message names its key.
        BadWeights: The sizes do not fit each other or the number of tensors.
    """
    reader = ConfigReader(files, family, layout)
    stated = {name: reader.size(name) for name in _SIZES}
    stated["layers"] = stated["layers"] or counted_layers(reader)
    if stated["layers"] and reader.value("beyond_counted"):
        stated["layers"] -= reader.count("beyond")
    stated["vocab"] = stated["vocab"] or files.source.shape(full_name(layout.tensors["embedding"].name, prefix))[0]
    for name in _REQUIRED:
        if stated[name] is None:
            raise BadModel(f"{files.place}: the configuration lacks {reader.keys(name)}.")
    sizes = {name: size for name, size in stated.items() if size is not None}
    d, heads = sizes["d"], sizes["heads"]
    if "kv_latent" in layout.config:
        sizes |= latent_sizes(reader, stated)
    sizes.setdefault("head_dim", d // heads)
    sizes["neurons"] = _adjusted(reader, sizes.get("neurons", 4 * d))  # GPT-2's rule where n_inner is null
    sizes.setdefault("embed", d)
    sizes.setdefault("experts", 1)
    sizes.setdefault("experts_used", 1)
    sizes["shared_neurons"] = _shared_neurons(reader, sizes["neurons"])
    sizes["neurons"] = sizes["neurons"] * sizes["experts"] + sizes["shared_neurons"]
    if not sizes["head_dim"]:
        raise BadWeights(f"{files.place}: {heads} heads do not fit into a width of {d}.")
    for name in ("layers", "experts"):
        if sizes[name] > max(len(names), LAYER_ALLOWANCE):
            raise BadWeights(f"{files.place}: {reader.keys(name)} is {sizes[name]}; the file has {len(names)} tensors.")
    parts = parts_of_layers(reader, sizes["layers"])
    dense = dense_layers(reader, sizes["layers"]) or tuple(
        layer for layer, sites in enumerate(parts) if "dense" in sites
    )
    if not dense:
        sizes.pop("dense_neurons", None)
    elif "dense_neurons" not in sizes:
        raise BadModel(f"{files.place}: the configuration lacks {reader.keys('dense_neurons')}.")
    _check_router(reader, sizes)
    rotary = rotated_width(reader, sizes["head_dim"]) if family.rotary else 0
    rope = rope_of(reader, rotary) if family.rotary else None
    if family.sinusoids and (d % 2 or d < 4):
        raise BadModel(f"{files.place}: sinusoidal positions of a width of {d} are not known; it must be even.")
    local = local_layers(reader, sizes["layers"])
    kv_layers = key_layers(reader, sizes["layers"], local)
    by_layer = sizes_by_layer(reader, local, sizes, rotary)
    local_rope = local_rope_of(reader, by_layer, rotary, local) if family.rotary and local else None
    if sharing_is_wider(reader, kv_layers, sizes["neurons"]):
        dense = tuple(layer for layer, other in enumerate(kv_layers) if other != layer)
        sizes["dense_neurons"] = 2 * sizes["neurons"] if dense else 0
    unrotated = unrotated_layers(reader, sizes["layers"], local) if family.rotary else ()
    averaged = 0.5 if sizes["shared_neurons"] and reader.value("sharing_of_experts") == "average" else 1.0
    dims = Dimensions(
        **sizes,
        eps=positive_number(files, reader.keys("eps"), reader.value("eps")),
        activation=str(reader.value("activation")),
        tied=tied,
        rope=rope,
        rotary=rotary,
        longest=reader.size("longest") if family.sinusoids else None,
        attention_scale=_attention_scale(reader, family, sizes["head_dim"]) * lengthened(reader, rope),
        attention_cap=reader.number("attention_cap"),
        logit_scale=_logit_scale(reader, family, d),
        logit_cap=reader.number("logit_cap"),
        embed_scale=_embed_scale(reader, family, d),
        value_scale=reader.number("value_scale") or 1.0,
        residual_scale=_residual_scale(reader, sizes["layers"]),
        site_scales=_site_scales(reader),
        gate_scale=(reader.numbers("mlp_scales") or (1.0,))[0],
        router_normed=family.router_normed or bool(reader.value("router_normed")),
        growth=_growth(reader),
        clip=reader.number("clip"),
        window=window_size(reader) if local else None,
        further_ahead=bool(local and reader.value("window_further_ahead") and (reader.size("window") or 1) % 2 == 0),
        local=local,
        chunked=bool(local and reader.value("chunked")),
        local_rope=local_rope,
        unrotated=tuple(layer for layer in unrotated if not (layer in dense and reader.value("dense_rotated") == 1)),
        dense=dense,
        beyond=reader.count("beyond"),
        router_sigmoid=reader.value("router_sigmoid") in (True, "sigmoid"),
        router_jitter=reader.number("router_jitter"),
        router_scale=(reader.number("router_scale") or 1.0) * averaged,
        shared_weight=averaged,
        distance_reach=reader.unless_minus_one("distance_reach") or reader.size("longest_text") or 0,
        distance_buckets=reader.unless_minus_one("distance_buckets") or 0,
        gate_limit=reader.number("gate_limit"),
        latent_eps=reader.number("latent_eps") or 0.0,
        eps_behind=reader.number("eps_behind") or 0.0,
        indexed_keys=reader.size("indexed_keys"),
        gate_dim=gates_of_head(reader),
        mixer=_mixer(reader, d) if family.mixer else None,
        mixer_layers=tuple(layer for layer, sites in enumerate(parts) if "mixer" in sites),
        no_attention=tuple(layer for layer, sites in enumerate(parts) if "attn" not in sites),
        no_mlp=tuple(layer for layer, sites in enumerate(parts) if not {"ff", "dense"} & {*sites}),
        kv_layers=kv_layers,
        key_valued=key_valued_layers(reader, kv_layers or range(sizes["layers"]), local),
        ple=reader.count("ple"),
        ple_vocab=reader.count("ple_vocab"),
        laurel=reader.count("laurel"),
        streams=reader.size("streams") or 1,
        gate_sparsity=gate_sparsity(reader, sizes["layers"]),
        by_layer=by_layer,
    )
    _check_ropes(reader, dims)
    return dims


def _check_ropes(reader: ConfigReader, dims: Dimensions) -> None:
    """Raise UnknownFamily for an unknown rule in a layer where positions rotate a part of each head only."""
    for layer in range(dims.layers):
        at, rope = dims.at(layer), dims.rope_at(layer)
        if rope and at.rotary < at.head_dim and not rope.known:
            raise UnknownFamily(
                f"{reader.files.place}: RoPE scaling {rope.kind!r} is not known ({', '.join(ROPE_RULES)}); it may "
                f"lengthen the {at.rotary} numbers of a head that are rotated against the other "
                f"{at.head_dim - at.rotary}."
            )


def _adjusted(reader: ConfigReader, neurons: int) -> int:
    """Return the neurons of an MLP, where stated ones are taken for those of an MLP without a gate: two thirds of them.

    They are multiplied by a factor and rounded up to a multiple (``Lfm2MLP`` of transformers 5.24). Where stated ones
    are those of gate and up together, it is half of them.
    """
    if reader.value("neurons_of_both"):
        return neurons // 2
    if not reader.value("neurons_adjusted"):
        return neurons
    factor, multiple = reader.number("neurons_factor") or 1.0, reader.size("neurons_multiple") or 1
    return -(-int(factor * int(2 * neurons / 3)) // multiple) * multiple


def _mixer(reader: ConfigReader, d: int) -> Mixer:
    """Return the sizes of the mixers; raise BadModel for groups that cannot be."""
    heads, groups = reader.size("mixer_heads") or 1, reader.size("mixer_groups") or 1
    inner = reader.size("mixer_inner") or (reader.size("mixer_expansion") or 1) * d
    automatic = reader.value("mixer_width") in (None, "auto")
    width = inner // heads if automatic else reader.size("mixer_width") or 0
    if heads % groups or not width:
        raise BadModel(f"{reader.files.place}: {groups} groups of {heads} heads of {width} of the mixers cannot be.")
    if "mixer_inner" in reader.layout.config and heads * width != inner:
        raise BadModel(
            f"{reader.files.place}: {reader.keys('mixer_inner')} is {inner}; it must be {heads} heads of {width}."
        )
    scales = tuple((reader.number("mixer_in_scale") or 1.0) * scale for scale in reader.numbers("mixer_scales"))
    mixer = Mixer(
        heads=heads,
        width=width,
        groups=groups,
        state=reader.size("mixer_state") or 0,
        kernel=reader.size("mixer_kernel") or 1,
        rank=-(-d // 16) if reader.value("mixer_rank") == "auto" else reader.size("mixer_rank") or 0,
        least_step=reader.number("mixer_least_step") or 0.0,
        scales=() if {*scales} == {1.0} else scales,
    )
    rows = {what: sum(map(mixer.size, stored.sizes)) for what, stored in reader.layout.tensors.items() if stored.sizes}
    return replace(mixer, rows=rows)


def _check_router(reader: ConfigReader, sizes: Mapping[str, int]) -> None:
    """Raise BadModel for more experts in use than there are, or for groups that cannot be."""
    experts, groups = sizes["experts"], sizes.get("router_groups", 1)
    used = min(sizes.get("router_groups_used", 1), groups)
    if experts % groups or (groups > 1 and experts < 2 * groups):
        raise BadModel(f"{reader.files.place}: {reader.keys('router_groups')} is {groups}, for {experts} experts.")
    if sizes["experts_used"] > experts // groups * used:
        raise BadModel(
            f"{reader.files.place}: {reader.keys('experts_used')} is {sizes['experts_used']}; there are "
            f"{experts // groups * used} experts to choose from."
        )


def _shared_neurons(reader: ConfigReader, neurons: int) -> int:
    """Return the neurons of the expert that every token goes through: stated, or so many times those of another."""
    return reader.count("shared_neurons") or neurons * reader.count("shared_experts")


def _attention_scale(reader: ConfigReader, family: Family, head_dim: int) -> float:
    """Return the factor of attention logits: a stated one, or one over the root of a stated width or of a head's.

    Where several products are added to one logit, the width counts for each. A further factor multiplies all that.
    """
    if family.unscaled:
        return 1.0
    terms, factor = reader.number("attention_terms") or 1.0, reader.number("attention_factor") or 1.0
    return factor * (reader.number("attention_scale") or (terms * (reader.number("query_scalar") or head_dim)) ** -0.5)


def _embed_scale(reader: ConfigReader, family: Family, d: int) -> float:
    """Return the factor of embeddings: √d, in some models as bfloat16 has it, or a stated one."""
    if not (family.embed_scaled or reader.value("embed_scaled")):
        return reader.number("embed_scale") or 1.0
    scale = torch.tensor(d**0.5, dtype=torch.float64)
    return float(scale.bfloat16() if reader.value("embed_scale_narrow") else scale)


def _residual_scale(reader: ConfigReader, layers: int) -> float:
    """Return the factor of what blocks write: a stated one, or a depth over the root of the number of layers."""
    depth = reader.number("residual_depth")
    return reader.number("residual_scale") or (1.0 if depth is None else depth * float(layers**-0.5))


def _site_scales(reader: ConfigReader) -> dict[str, float]:
    """Return the stated factors of what single parts of a layer write; an MLP states that of its gates before it."""
    stated = {site: reader.number(f"{site}_scale") for site in ("attn", "mixer", "laurel")}
    stated["ff"] = next(iter(reader.numbers("mlp_scales")[1:]), None)
    return {site: scale for site, scale in stated.items() if scale not in (None, 1.0)}


def _logit_scale(reader: ConfigReader, family: Family, d: int) -> float:
    """Return the factor of logits: stated as it is, as a divisor or as a width over d, or √d as a divisor."""
    if family.logits_scaled and reader.value("logits_scaled") is not False:
        return float(d**-0.5)
    if width := reader.number("logit_width"):
        return width / d
    return reader.number("logit_scale") or 1 / (reader.number("logit_divisor") or 1.0)


def _growth(reader: ConfigReader) -> Growth | None:
    """Return how queries grow with their position; None where they do not."""
    rate, length = reader.number("growth"), reader.number("growth_length")
    if rate is None or length is None or reader.value("grows") is False:
        return None
    return Growth(rate, length, reader.count("growth_first"), bool(reader.value("only_unrotated_grow")))
