"""Read `Dimensions` from a configuration, whatever names its family uses; check every value, guess none."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from zeropass.arch.spec import ROPE_RULES, Dimensions, Family, Growth, Layout, Mixer, Rope, Site
from zeropass.checkpoints.model_files import ModelFiles
from zeropass.errors import BadModel, BadWeights, UnknownFamily

__all__ = ["Names", "dimensions", "full_name", "looked_up", "of_stack", "prefix_of"]

Names = frozenset[str]

_SIZES = (
    *("layers", "d", "heads", "kv_heads", "head_dim", "neurons", "vocab", "embed", "experts", "experts_used"),
    *("dense_neurons", "router_groups", "router_groups_used", "router_group_best"),
    *("value_dim", "q_latent", "kv_latent"),
)
_LAYER_ALLOWANCE = 200
"""The number of layers that a file with few tensors may still claim: ALBERT's layers share theirs."""

_COUNT_ALLOWANCE = 10**6
"""The largest number of layers that a configuration may count."""

_SCALES = {"mlp_scales": 2, "mixer_scales": 5}
"""Lists of factors: of the gates of an MLP and of what it writes, and of the parts of the inputs of Mamba 2."""

_REQUIRED = ("layers", "d", "heads", "kv_heads")


def full_name(name: str, prefix: str) -> str:
    """Return the name of a tensor in the file: with the prefix, unless the record marks it with ``^``."""
    return name[1:] if name.startswith("^") else prefix + name


def prefix_of(layout: Layout, names: Names) -> str | None:
    """Return the prefix of the tensor names in this file; None if it is not a known one.

    The embedding tells which it is or, where only the head tied to it is stored, the queries of the first block.
    """
    anchors = (*(layout.copies or (layout.tensors["embedding"].name,)), layout.queries.name.format(layer=0))
    return next(
        (prefix for anchor in anchors for prefix in layout.prefixes if full_name(anchor, prefix) in names), None
    )


def looked_up(config: Mapping[str, Any], key: str) -> Any:
    """Return a value of the configuration, None if it is absent; ``a.b`` looks inside an object."""
    if key in config:
        return config[key]
    value: Any = config
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return value


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
        sizes = [_Reader(replace(files, config={**stack}), family, layout).size(name) for stack in stacks]
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
    reader = _Reader(files, family, layout)
    stated = {name: reader.size(name) for name in _SIZES}
    stated["layers"] = stated["layers"] or reader.counted_layers()
    if stated["layers"] and reader.value("beyond_counted"):
        stated["layers"] -= reader.count("beyond")
    stated["vocab"] = stated["vocab"] or files.source.shape(full_name(layout.tensors["embedding"].name, prefix))[0]
    for name in _REQUIRED:
        if stated[name] is None:
            raise BadModel(f"{files.place}: the configuration lacks {reader.keys(name)}.")
    sizes = {name: size for name, size in stated.items() if size is not None}
    d, heads = sizes["d"], sizes["heads"]
    if "kv_latent" in layout.config:
        sizes |= _latent_sizes(reader, stated)
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
        if sizes[name] > max(len(names), _LAYER_ALLOWANCE):
            raise BadWeights(f"{files.place}: {reader.keys(name)} is {sizes[name]}; the file has {len(names)} tensors.")
    parts = reader.parts(sizes["layers"])
    dense = reader.dense(sizes["layers"]) or tuple(layer for layer, sites in enumerate(parts) if "dense" in sites)
    if not dense:
        sizes.pop("dense_neurons", None)
    elif "dense_neurons" not in sizes:
        raise BadModel(f"{files.place}: the configuration lacks {reader.keys('dense_neurons')}.")
    _check_router(reader, sizes)
    rotary = reader.rotary(sizes["head_dim"]) if family.rotary else 0
    rope = reader.rope(rotary) if family.rotary else None
    if family.sinusoids and (d % 2 or d < 4):
        raise BadModel(f"{files.place}: sinusoidal positions of a width of {d} are not known; it must be even.")
    local = reader.local(sizes["layers"])
    kv_layers = reader.kv_layers(sizes["layers"], local)
    by_layer = reader.by_layer(local, sizes, rotary)
    local_rope = reader.local_rope(by_layer, rotary, local) if family.rotary and local else None
    if reader.wider_sharing(kv_layers, sizes["neurons"]):
        dense = tuple(layer for layer, other in enumerate(kv_layers) if other != layer)
        sizes["dense_neurons"] = 2 * sizes["neurons"] if dense else 0
    unrotated = reader.unrotated(sizes["layers"], local) if family.rotary else ()
    averaged = 0.5 if sizes["shared_neurons"] and reader.value("sharing_of_experts") == "average" else 1.0
    embed_scaled = family.embed_scaled or bool(reader.value("embed_scaled"))
    dims = Dimensions(
        **sizes,
        eps=_positive_number(files, reader.keys("eps"), reader.value("eps")),
        activation=str(reader.value("activation")),
        tied=tied,
        rope=rope,
        rotary=rotary,
        longest=reader.size("longest") if family.sinusoids else None,
        attention_scale=_attention_scale(reader, family, sizes["head_dim"]) * reader.lengthened(rope),
        attention_cap=reader.number("attention_cap"),
        logit_scale=_logit_scale(reader, family, d),
        logit_cap=reader.number("logit_cap"),
        embed_scale=d**0.5 if embed_scaled else reader.number("embed_scale") or 1.0,
        value_scale=reader.number("value_scale") or 1.0,
        residual_scale=_residual_scale(reader, sizes["layers"]),
        site_scales=_site_scales(reader),
        gate_scale=(reader.numbers("mlp_scales") or (1.0,))[0],
        router_normed=family.router_normed or bool(reader.value("router_normed")),
        growth=reader.growth(),
        clip=reader.number("clip"),
        window=reader.window() if local else None,
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
        gate_dim=reader.gate_dim(),
        mixer=_mixer(reader, d) if family.mixer else None,
        mixer_layers=tuple(layer for layer, sites in enumerate(parts) if "mixer" in sites),
        no_attention=tuple(layer for layer, sites in enumerate(parts) if "attn" not in sites),
        no_mlp=tuple(layer for layer, sites in enumerate(parts) if not {"ff", "dense"} & {*sites}),
        kv_layers=kv_layers,
        key_valued=reader.key_valued(kv_layers or range(sizes["layers"]), local),
        ple=reader.count("ple"),
        by_layer=by_layer,
    )
    _check_ropes(reader, dims)
    return dims


def _check_ropes(reader: "_Reader", dims: Dimensions) -> None:
    """Raise UnknownFamily for an unknown rule in a layer where positions rotate a part of each head only."""
    for layer in range(dims.layers):
        at, rope = dims.at(layer), dims.rope_at(layer)
        if rope and at.rotary < at.head_dim and not rope.known:
            raise UnknownFamily(
                f"{reader.files.place}: RoPE scaling {rope.kind!r} is not known ({', '.join(ROPE_RULES)}); it may "
                f"lengthen the {at.rotary} numbers of a head that are rotated against the other "
                f"{at.head_dim - at.rotary}."
            )


def _adjusted(reader: "_Reader", neurons: int) -> int:
    """Return the neurons of an MLP, where stated ones are taken for those of an MLP without a gate: two thirds of them.

    They are multiplied by a factor and rounded up to a multiple (``Lfm2MLP`` of transformers 5.24).
    """
    if not reader.value("neurons_adjusted"):
        return neurons
    factor, multiple = reader.number("neurons_factor") or 1.0, reader.size("neurons_multiple") or 1
    return -(-int(factor * int(2 * neurons / 3)) // multiple) * multiple


def _mixer(reader: "_Reader", d: int) -> Mixer:
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


def _latent_sizes(reader: "_Reader", stated: Mapping[str, int | None]) -> dict[str, int]:
    """Return the sizes of the heads of latent attention; raise BadModel where they are missing or do not fit."""
    place, plain, rotary = reader.files.place, reader.size("plain"), reader.size("rotary")
    if joint := reader.size("joint"):  # what positions rotate and what they do not, together
        plain = max(joint - (rotary or 0), 0)
    value = stated["value_dim"]
    if value is None and reader.value("values_fill_d") and stated["d"] and stated["heads"]:
        value = stated["d"] // stated["heads"]
    required = {"kv_latent": stated["kv_latent"], "plain": plain, "rotary": rotary, "value_dim": value}
    for name, size in required.items():
        if not size:
            raise BadModel(f"{place}: the configuration lacks {reader.keys(name)}.")
    if ("q_latent" in reader.layout.tensors) != (stated["q_latent"] is not None):
        raise BadModel(
            f"{place}: {reader.keys('q_latent')} is absent, which stands for {stated['q_latent']}; state it, or null "
            "where queries are made of the stream itself."
        )
    if stated["kv_heads"] != stated["heads"]:
        raise BadModel(
            f"{place}: {reader.keys('kv_heads')} is {stated['kv_heads']} for {stated['heads']} heads; in latent "
            "attention each head has keys and values of its own."
        )
    if stated["head_dim"] not in (None, rotary):
        raise BadModel(
            f"{place}: {reader.keys('head_dim')} is {stated['head_dim']}; it must be {reader.keys('rotary')}, {rotary}."
        )
    width = (plain or 0) + (rotary or 0)
    if (share := reader.number("rotary_share")) is not None and int(share * width) != rotary:
        raise BadModel(f"{place}: {reader.keys('rotary_share')} is {share:g} of {width}; it must be {rotary}.")
    return {"head_dim": width, "value_dim": value or 0}


def _check_router(reader: "_Reader", sizes: Mapping[str, int]) -> None:
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


def _shared_neurons(reader: "_Reader", neurons: int) -> int:
    """Return the neurons of the expert that every token goes through: stated, or so many times those of another."""
    return reader.count("shared_neurons") or neurons * reader.count("shared_experts")


def _attention_scale(reader: "_Reader", family: Family, head_dim: int) -> float:
    """Return the factor of attention logits: a stated one, or one over the root of a stated width or of a head's.

    Where several products are added to one logit, the width counts for each. A further factor multiplies all that.
    """
    if family.unscaled:
        return 1.0
    terms, factor = reader.number("attention_terms") or 1.0, reader.number("attention_factor") or 1.0
    return factor * (reader.number("attention_scale") or (terms * (reader.number("query_scalar") or head_dim)) ** -0.5)


def _residual_scale(reader: "_Reader", layers: int) -> float:
    """Return the factor of what blocks write: a stated one, or a depth over the root of the number of layers."""
    depth = reader.number("residual_depth")
    return reader.number("residual_scale") or (1.0 if depth is None else depth * float(layers**-0.5))


def _site_scales(reader: "_Reader") -> dict[str, float]:
    """Return the stated factors of what single parts of a layer write; an MLP states that of its gates before it."""
    stated = {site: reader.number(f"{site}_scale") for site in ("attn", "mixer")}
    stated["ff"] = next(iter(reader.numbers("mlp_scales")[1:]), None)
    return {site: scale for site, scale in stated.items() if scale not in (None, 1.0)}


def _logit_scale(reader: "_Reader", family: Family, d: int) -> float:
    """Return the factor of logits: stated as it is, as a divisor or as a width over d, or √d as a divisor."""
    if family.logits_scaled and reader.value("logits_scaled") is not False:
        return float(d**-0.5)
    if width := reader.number("logit_width"):
        return width / d
    return reader.number("logit_scale") or 1 / (reader.number("logit_divisor") or 1.0)


class _Reader:
    """A reader of values by canonical names: from the configuration, or as the layout or the family fixes them."""

    def __init__(self, files: ModelFiles, family: Family, layout: Layout) -> None:
        rope = layout.defaults.get("rope")
        if rope and not any(files.config.get(key) for key in ("rope_parameters", "rope_scaling")):
            files = replace(files, config={**files.config, "rope_parameters": rope})
        self.files, self.family, self.layout = files, family, layout

    def keys(self, name: str) -> str:
        """Return the keys that are tried for a name, for messages."""
        return " / ".join(self.layout.config.get(name, (name,)))

    def value(self, name: str) -> Any:
        """Return the first value that the configuration has, or the one that the layout or the family implies."""
        keys = self.layout.config.get(name, ())
        for key in keys:
            if (value := looked_up(self.files.config, key)) is not None:
                return value
        if name in self.layout.defaults and not any(key in self.files.config for key in keys):
            return self.layout.defaults[name]
        return self.layout.constants.get(name, self.family.config.get(name))

    def size(self, name: str) -> int | None:
        """Return a positive whole number; None if there is none."""
        value = self.value(name)
        if value is None:
            return None
        if isinstance(value, list):
            value = self._of_each(name, value)
        return self._positive(name, value)

    def _positive(self, name: str, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise BadModel(f"{self.files.place}: {self.keys(name)} is {value!r}; it must be a positive whole number.")
        return value

    def _of_each(self, name: str, values: list[Any]) -> Any:
        """Return the size that a list states for all layers; the list where they differ.

        Of a hybrid a zero stands for a layer without such a part. Layers that share keys and values may have wider MLPs
        (`wider_sharing`).
        """
        if f"each_{name}" in self.layout.config:  # `by_layer` reads them one by one
            values = values[:1]
        elif name == "neurons" and "sharing" in self.layout.config:
            values = values[: len(values) - self.count("sharing")]
        values = [value for value in values if value or not self.family.layer_types]
        return values[0] if values and values == values[:1] * len(values) else values

    def unless_minus_one(self, name: str) -> int | None:
        """Return a positive whole number; None if there is none, which -1 also stands for."""
        return None if self.value(name) == -1 else self.size(name)

    def number(self, name: str) -> float | None:
        """Return a positive number; None if there is none."""
        value = self.value(name)
        return None if value is None else _positive_number(self.files, self.keys(name), value)

    def numbers(self, name: str) -> tuple[float, ...]:
        """Return a list of positive numbers, as many as `_SCALES` says; an empty one if there is none."""
        values = self.value(name)
        if values is None:
            return ()
        if not isinstance(values, Sequence) or len(values) != _SCALES[name]:
            raise BadModel(
                f"{self.files.place}: {self.keys(name)} is {values!r}; it must have {_SCALES[name]} numbers."
            )
        return tuple(_positive_number(self.files, self.keys(name), value) for value in values)

    def count(self, name: str) -> int:
        """Return a whole number that is not negative; 0 if there is none."""
        value = self.value(name) or 0
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _COUNT_ALLOWANCE:
            raise BadModel(f"{self.files.place}: {self.keys(name)} is {value!r}; it must be a whole number.")
        return value

    def dense(self, layers: int) -> tuple[int, ...]:
        """Return the layers without experts: the first and the last ones, those of a list, and all but each n-th.

        A list with the kind of each layer, ``dense`` (0) or ``sparse`` (1), takes the place of all that.
        """
        if (kinds := self.value("mlp_kinds")) is not None:
            known = {"dense": True, "0": True, "sparse": False, "1": False}
            if not isinstance(kinds, Sequence) or len(kinds) != layers or not known.keys() >= {*map(str, kinds)}:
                raise BadModel(
                    f"{self.files.place}: {self.keys('mlp_kinds')} must have 'dense' or 'sparse', or 0 or 1, for each "
                    f"of the {layers} layers; it is {str(kinds)[:60]}."
                )
            return tuple(layer for layer, kind in enumerate(kinds) if known[str(kind)])
        if router := self.value("router_tensor"):  # in layers that have it
            names = {*self.files.source.names()}
            return tuple(layer for layer in range(layers) if router.format(layer=layer) not in names)
        if (routed := self.value("routed_layers")) is not None:
            return tuple(layer for layer in range(layers) if layer not in self._numbers("routed_layers", routed))
        listed = self._numbers("dense_layers", self.value("dense_layers") or ())
        first, period = self.count("dense_first"), self.size("routed_every") or self._spread(layers)
        last = layers - 1 if self.value("routed_last") in (None, -1) else self.count("routed_last")
        offset = period - 1 if self.value("routed_offset") is None else self.count("routed_offset")
        return tuple(n for n in range(layers) if not first <= n <= last or n in listed or (n - offset) % period)

    def _spread(self, layers: int) -> int:
        """Return the period of the layers with experts where a configuration counts these; 1 where it does not."""
        return max(layers // max(self.count("routed_count"), 1), 1) if "routed_count" in self.layout.config else 1

    def counted_layers(self) -> int | None:
        """Return the number of layers of a hybrid whose configuration only lists their types."""
        names = None if self.layout.config["layers"] else self.value("layer_kinds")
        return len(names) if isinstance(names, Sequence) and names else None

    def parts(self, layers: int) -> tuple[tuple[Site | Literal["dense"], ...], ...]:
        """Return the parts of each layer of a hybrid: from a list of kinds, or from the layers with attention.

        These are listed, or each n-th one (``attention_every``), from the number ``attention_first`` on.
        """
        kinds = self.family.layer_types
        if not kinds:
            return (("attn", "ff"),) * layers
        if len(kinds) == 1:
            return (*kinds.values(),) * layers
        names = self.value("layer_kinds") or self._types_by_heads(layers)
        if names is None:
            mixing, attending, *_ = kinds
            listed, period = self.value("attention_layers"), self.size("attention_every")
            if listed is None and period is None:
                raise BadModel(f"{self.files.place}: the configuration lacks {self.keys('layer_kinds')}.")
            first = self.value("attention_first")
            first = (period or 1) - 1 if first is None else self.count("attention_first")
            chosen = range(first, layers, period or 1) if listed is None else self._numbers("attention_layers", listed)
            names = [attending if layer in chosen else mixing for layer in range(layers)]
        if not isinstance(names, Sequence) or len(names) != layers or not {*map(str, names)} <= {*kinds}:
            raise BadModel(
                f"{self.files.place}: {self.keys('layer_kinds')} must name the kind of each of the {layers} layers "
                f"({', '.join(kinds)}); it is {str(names)[:60]}."
            )
        return tuple(kinds[str(name)] for name in names)

    def _types_by_heads(self, layers: int) -> list[str] | None:
        """Return the kind of each layer from lists of numbers of heads (and of neurons), as GGUF files have them.

        A layer with heads is of the second kind, one with neurons alone of the third, any other of the first. None
        where the layout names no such list.
        """
        if "layer_heads" not in self.layout.config:
            return None
        mixing, attending, *other = self.family.layer_types
        heads = self._per_layer("layer_heads", layers)
        neurons = self._per_layer("layer_neurons", layers) if "layer_neurons" in self.layout.config else [0] * layers
        return [attending if h else other[0] if n else mixing for h, n in zip(heads, neurons, strict=True)]

    def _per_layer(self, name: str, layers: int) -> Sequence[int]:
        """Return a whole number for each layer, which a configuration states for all together or one by one.

        A list may go on with those of layers that predict further tokens.
        """
        value = self.value(name)
        values = self._numbers(name, value if isinstance(value, list) else [value] * layers)
        if len(values) not in (layers, layers + self.count("beyond")):
            raise BadModel(f"{self.files.place}: {self.keys(name)} has {len(values)} numbers for {layers} layers.")
        return values[:layers]

    def _numbers(self, name: str, listed: object) -> Sequence[int]:
        """Return a list of layers; raise BadModel if it is none."""
        if not isinstance(listed, Sequence) or not all(type(layer) is int for layer in listed):
            raise BadModel(f"{self.files.place}: {self.keys(name)} is {listed!r}, not a list of layers.")
        return listed

    def rotary(self, width: int, share_name: str = "rotary_share", stated: str = "rotary") -> int:
        """Return how many coordinates of a head positions rotate: all of them, a share, or a stated number."""
        share = self.number(share_name if share_name in self.layout.config else "rotary_share")
        count = self.size(stated) or self.size("rotary") or (width if share is None else int(width * share))
        if count > width or count % 2:
            raise BadModel(
                f"{self.files.place}: rotary positions turn {count} of the {width} numbers of a head; "
                "it must be an even number of them."
            )
        return count

    def local(self, layers: int) -> tuple[int, ...]:
        """Return the layers that attend to a window only, from a list of types (or flags) or from a pattern.

        ``local_every`` = n excludes each n-th layer, ``global_every`` = n excludes layers 0, n, 2n …
        """
        if self.files.format == "gguf" and not self.value("window"):  # a window of 0 means none, like an absent one
            return ()
        if not self.value("window") and self.value("only_rotated_local"):
            return ()
        layer_types = self.value("layer_kinds") or _expand_pattern(self.files, self.value("layer_pattern"))
        if isinstance(layer_types, Sequence) and not isinstance(layer_types, str) and len(layer_types) == layers:
            local = (n for n, name in enumerate(layer_types) if name in (True, "local") or _is_local(str(name)))
            return tuple(n for n in local if n < layers - 1 or not self.value("last_global"))
        if self.value("kinds_required"):
            raise BadModel(f"{self.files.place}: the configuration lacks {self.keys('layer_kinds')}.")
        if self.value("only_rotated_local"):
            return tuple(layer for layer in range(layers) if layer not in self.unrotated(layers, ()))
        if (period := self.size("local_every")) is not None:
            last = layers - 1 if self.value("last_global") else layers
            return tuple(layer for layer in range(last) if self._counted(layer, layers) % period)
        if (period := self.size("global_every")) is not None:
            return tuple(layer for layer in range(layers) if layer % period)
        return (
            tuple(range(self.count("window_from"), layers))
            if (self.value("window") or self.value("reach")) is not None and self._windowed()
            else ()
        )

    def kv_layers(self, layers: int, local: tuple[int, ...]) -> tuple[int, ...]:
        """Return the layer whose keys and values each layer attends to; none where each has its own.

        The last ones share those of the last layer before them that is local, or is not, as they are.
        """
        sharing = self.count("sharing")
        if not sharing:
            return ()
        first = layers - sharing
        last = {layer in local: layer for layer in range(first)}
        if any((layer in local) not in last for layer in range(first, layers)):
            raise BadModel(
                f"{self.files.place}: {self.keys('sharing')} is {sharing} of {layers} layers; before these, there must "
                "be a layer of each of their kinds, whose keys and values they share."
            )
        return tuple(layer if layer < first else last[layer in local] for layer in range(layers))

    def key_valued(self, kv_layers: Sequence[int], local: tuple[int, ...]) -> tuple[int, ...]:
        """Return the layers whose values are made of what their keys are: those without a window, where a key says so.

        Layers that attend to the keys and values of another have none.
        """
        if tensor := self.value("value_tensor"):  # where it is absent, llama.cpp takes keys for values
            names = {*self.files.source.names()}
            return tuple(n for n, other in enumerate(kv_layers) if n == other and tensor.format(layer=n) not in names)
        if not self.value("keys_are_values"):
            return ()
        return tuple(n for n, other in enumerate(kv_layers) if n == other and n not in local)

    def wider_sharing(self, kv_layers: Sequence[int], neurons: int) -> bool:
        """Tell whether layers that share the keys and values of another have twice the neurons, by a key or a list."""
        if not kv_layers or "layer_neurons" not in self.layout.config:
            return bool(self.value("wider_sharing"))
        each, alike = [*self._per_layer("layer_neurons", len(kv_layers))], [neurons] * len(kv_layers)
        wider = [neurons if layer == other else 2 * neurons for layer, other in enumerate(kv_layers)]
        if each not in (alike, wider):
            raise BadModel(
                f"{self.files.place}: {self.keys('layer_neurons')} is {str(each)[:60]}; it must be {neurons} for all "
                "layers, or twice that for those that share keys and values."
            )
        return each == wider

    def by_layer(self, local: tuple[int, ...], sizes: Mapping[str, int], rotary: int) -> dict[str, tuple[int, ...]]:
        """Return the sizes of heads that differ between the layers, by their names: the value in each layer.

        Configurations state them for all layers with a window (``local_heads``) or without one (``global_heads``), as a
        list (``each_heads``), or for one layer after another by their numbers, as ``per_layer_config`` of transformers
        5.24 does, which then takes the place of the others.
        """
        sizes = {"value_dim": 0, "rotary": rotary, **sizes}
        changed, layers = self._layer_sizes(sizes["layers"]), range(sizes["layers"])
        each = {
            name: [
                changed[n].get(key, sizes[name]) if changed else self._size_at(name, n, local, sizes) for n in layers
            ]
            for key, name in _HEAD_SIZES.items()
        }
        widths = each["head_dim"]
        each["rotary"] = [self._rotary_at(width, n in local) if rotary else 0 for n, width in enumerate(widths)]
        for layer, (heads, kv_heads) in enumerate(zip(each["heads"], each["kv_heads"], strict=True)):
            if heads % kv_heads:
                raise BadModel(
                    f"{self.files.place}: {heads} heads cannot share {kv_heads} key/value heads, in layer {layer}."
                )
        if len({*widths}) > 1 and not self.family.unscaled:
            raise UnknownFamily(
                f"{self.files.place}: heads are {' and '.join(map(str, sorted({*widths})))} wide; how their attention "
                "logits are scaled is not known."
            )
        return {name: tuple(values) for name, values in each.items() if {*values} != {sizes[name]}}

    def _rotary_at(self, width: int, local: bool) -> int:
        names = ("local_rotary_share", "rotary") if local else ("rotary_share", "global_rotary")
        return self.rotary(width, *names)

    def _size_at(self, name: str, layer: int, local: tuple[int, ...], sizes: Mapping[str, int]) -> int:
        """Return a size of the heads of a layer: its own, that of layers with or without a window, or that of all."""
        listed = self.value(f"each_{name}")
        if listed is None:
            place = "local" if layer in local else "global"
            key_valued = (
                self.size(f"key_valued_{name}") if place == "global" and self.value("keys_are_values") else None
            )
            stated = key_valued or self.size(f"{place}_{name}")
            return stated or sizes[name] * (self.size(f"{place}_{name}_factor") or 1)
        if type(listed) is int:
            return self._positive(f"each_{name}", listed)
        if not isinstance(listed, Sequence) or len(listed) != sizes["layers"]:
            raise BadModel(
                f"{self.files.place}: {self.keys(f'each_{name}')} is {str(listed)[:60]}; it must have a number for "
                f"each of the {sizes['layers']} layers."
            )
        return self._positive(f"each_{name}", listed[layer])

    def _layer_sizes(self, layers: int) -> list[dict[str, int]]:
        """Return the sizes that single layers state, by key, for each layer; an empty list where none are stated."""
        stated = self.value("layer_sizes")
        if not isinstance(stated, Mapping):
            return []
        each: list[dict[str, int]] = [{} for _ in range(layers)]
        for number, changed in stated.items():
            if not isinstance(changed, Mapping) or not {*changed} <= {*_HEAD_SIZES}:
                raise BadModel(
                    f"{self.files.place}: {self.keys('layer_sizes')} has {str(number)!r}: {str(changed)[:60]}; only "
                    f"{', '.join(_HEAD_SIZES)} of single layers are known."
                )
            if not str(number).isdecimal() or int(number) >= layers:
                raise BadModel(
                    f"{self.files.place}: {self.keys('layer_sizes')} has sizes of layer {str(number)!r}; there are "
                    f"layers 0 to {layers - 1}."
                )
            each[int(number)] = {key: self._positive("layer_sizes", value) for key, value in changed.items()}
        return each

    def gate_dim(self) -> int:
        """Return the number of output gates of a head; 0 where each value has one, or where there are none."""
        if (gates := self.value("gates")) not in (None, True, "per-head", "per-element"):
            raise BadModel(
                f"{self.files.place}: {self.keys('gates')} is {gates!r}; true, 'per-head' and 'per-element' are known."
            )
        return int(gates in (True, "per-head"))

    def window(self) -> int | None:
        """Return how many tokens a layer with a window attends to; on either side, if it attends both ways.

        Gemma 3 and ModernBERT state both sides together (transformers 5.24, ``Gemma3TextConfig.__post_init__``,
        ``ModernBertConfig.sliding_window``); ModernBERT's decoder has one of them, unless it states that itself. The
        encoder of T5Gemma leaves the token itself out of the count (``sliding_window_bidirectional_overlay``), and that
        of T5Gemma 2 counts it among the tokens behind (``sliding_window_mask_function``).
        """
        size, itself, reach = (self.size(name) for name in ("window", "window_itself", "reach"))
        if itself or reach:
            return itself or (reach or 0) + 1  # a token reaches so many others on either side
        if size and self.value("window_of_both_sides"):
            size = size // 2 + (not self.family.causal)  # one more, which each side counts as its own
        return size + 1 if size and self.value("window_inclusive") else size

    def _windowed(self) -> bool:
        """Tell whether a window that is named is used: Qwen names one and switches it off."""
        return self.value("window_used") is not False

    def unrotated(self, layers: int, local: tuple[int, ...]) -> tuple[int, ...]:
        """Return the layers without rotary positions, from a list of flags, a period, or as those without a window.

        ``rotated_layers`` has a zero for each of them; ``unrotated_every`` = n is each n-th layer. Where no window is
        stated, all layers rotate, unless ``only_local_rotated`` is ``always``.
        """
        if flags := self.value("rotated_layers"):
            if not isinstance(flags, Sequence) or len(flags) != layers or any(flag not in (0, 1) for flag in flags):
                raise BadModel(
                    f"{self.files.place}: {self.keys('rotated_layers')} must have a 0 or a 1 for each of the {layers} "
                    f"layers; it is {str(flags)[:60]}."
                )
            return tuple(layer for layer, flag in enumerate(flags) if not flag)
        if thetas := self.value("layer_thetas"):
            return self._without_base(thetas, layers)
        if (period := self.size("unrotated_every")) is not None:
            return tuple(layer for layer in range(layers) if self._counted(layer, layers) % period == 0)
        only_local = self.value("only_local_rotated")
        if only_local and (local or only_local == "always" or self.value("window")):
            return tuple(layer for layer in range(layers) if layer not in local)
        return ()

    def _counted(self, layer: int, layers: int) -> int:
        """Return the number of a layer, from one on; where periods are counted from the last layer back, from there."""
        return layer - layers + 1 if self.value("counted_back") else layer + 1

    def _without_base(self, thetas: object, layers: int) -> tuple[int, ...]:
        """Return the layers whose own rotary base is 0, which stands for none; the others must have that of all."""
        base = self.rope(0).theta
        if not isinstance(thetas, Sequence) or len(thetas) != layers or any(theta not in (0, base) for theta in thetas):
            raise BadModel(
                f"{self.files.place}: {self.keys('layer_thetas')} must be 0 or {base:g}, the base of the rotary "
                f"positions, for each of the {layers} layers; it is {str(thetas)[:60]}."
            )
        return tuple(layer for layer, theta in enumerate(thetas) if not theta)

    def growth(self) -> Growth | None:
        """Return how queries grow with their position; None where they do not."""
        rate, length = self.number("growth"), self.number("growth_length")
        if rate is None or length is None or self.value("grows") is False:
            return None
        return Growth(rate, length, self.count("growth_first"), bool(self.value("only_unrotated_grow")))

    def rope(self, rotary: int) -> Rope:
        """Return the base and scaling of rotary positions, in any spelling that configurations use."""
        if self.files.format == "gguf":
            return self._gguf_rope(rotary)
        options, scaling = (_object(self.files, key) for key in ("rope_parameters", "rope_scaling"))
        if options and scaling and options != scaling:
            raise BadModel(
                f"{self.files.place}: rope_parameters and rope_scaling differ; only one of them can be meant."
            )
        stated = options or scaling
        return self._rope(stated.get("full_attention", stated), self.value("rope_theta"), rotary)

    def lengthened(self, rope: Rope | None) -> float:
        """Return the factor by which a scaling of positions lengthens attention logits of both parts of a head.

        DeepSeek-V2 multiplies the softmax scale by it (transformers 5.24, ``yarn_apply_mscale``).
        """
        if rope is None or rope.kind == "default" or "kv_latent" not in self.layout.config:
            return 1.0
        if self.files.format == "gguf":
            stated: Mapping[str, Any] = self._gguf_options()
        else:
            stated = _object(self.files, "rope_parameters") or _object(self.files, "rope_scaling")
        if not (length := stated.get("mscale_all_dim")):
            return 1.0
        length = _positive_number(self.files, "mscale_all_dim of the rotary positions", length)
        factor = _positive_number(self.files, "factor of the rotary positions", stated.get("factor"))
        return _yarn_length(factor, length) ** 2

    def local_rope(self, by_layer: Mapping[str, Sequence[int]], rotary: int, local: tuple[int, ...]) -> Rope | None:
        """Return the RoPE of layers with a window; None where they share that of the other layers."""
        options = _object(self.files, "rope_parameters").get("sliding_attention")
        theta = self.value("local_rope_theta")
        if options is None and theta is None:
            return None
        return self._rope(options or {}, theta, by_layer["rotary"][local[0]] if "rotary" in by_layer else rotary)

    def _rope(self, options: object, theta: object, rotary: int) -> Rope:
        if not isinstance(options, Mapping):
            raise BadModel(f"{self.files.place}: the options of the rotary positions are {options!r}, not an object.")
        rope_type = str(options.get("rope_type") or options.get("type") or "default")
        rope_type = {**_OTHER_NAMES, **(self.value("rope_names") or {})}.get(rope_type, rope_type)
        base = options.get("rope_theta", theta)
        base = 10000.0 if base is None else _positive_number(self.files, "rope_theta", base)
        if rope_type == "dynamic" and self.value("ntk_alpha") and options.get("alpha"):
            return Rope(self._stretched(base, options["alpha"]))
        if rope_type == "yarn" and base <= 1:
            raise BadModel(f"{self.files.place}: rope_theta is {base}; YaRN needs a base above 1.")
        if rope_type == "longrope":
            return self._longrope(base, options, rotary)
        if rope_type == "dynamic" and rotary < 4:
            raise BadModel(
                f"{self.files.place}: the dynamic RoPE rotates {rotary} numbers of a head; it needs 4 or more."
            )
        if rope_type == "proportional" and "rotary_share" in self.layout.config:
            return Rope(base, rope_type)  # the share would count twice; not known
        return Rope(base, rope_type, _rope_numbers(self.files, rope_type, options))

    def _longrope(self, base: float, options: Mapping[str, Any], rotary: int) -> Rope:
        """Return the positions of longrope (Ding et al. 2024, arXiv:2402.13753), as transformers reads its options."""
        short, long = (
            _divisors(self.files, f"{key} of the longrope RoPE", options.get(key), rotary // 2)
            for key in ("short_factor", "long_factor")
        )
        numbers = _longrope_numbers(self.files, options, self.value("original_length"))
        if "longrope_lengthening" in self.layout.config:
            # transformers 5.24 takes the short divisors for long texts of PhiMoE too, its authors take the long ones.
            key, long = self.keys("longrope_lengthening"), ()
            numbers["attention_factor"] = _positive_number(self.files, key, self.value("longrope_lengthening"))
        return Rope(base, "longrope", numbers, short, long)

    def _stretched(self, base: float, alpha: object) -> float:
        """Return the base of rotary positions that a fixed factor (NTK-aware) stretches, whatever the text."""
        width = self.size("head_dim")
        if width is None or width < 4:
            raise BadModel(f"{self.files.place}: {self.keys('head_dim')} is {width}; a stretched RoPE needs 4 or more.")
        return float(base * _positive_number(self.files, "alpha of the dynamic RoPE", alpha) ** (width / (width - 2)))

    def _gguf_rope(self, rotary: int) -> Rope:
        config, architecture = self.files.config, str(self.files.config["general.architecture"])
        scaling = f"{architecture}.rope.scaling."
        rope_type = config.get(f"{scaling}type", "linear" if f"{scaling}factor" in config else "default")
        rope_type = "default" if rope_type == "none" else str(rope_type)
        rotated = config.get(f"{architecture}.rope.dimension_count", rotary)
        if rotated != (self.size("global_rotary") or rotary) or f"{architecture}.rope.scale_linear" in config:
            raise BadModel(
                f"{self.files.place}: rope.dimension_count {rotated!r} beside heads of {rotary}, or rope.scale_linear: "
                "rotary positions of a kind that is not known."
            )
        options = self._gguf_options()
        factors = {*_GGUF_YARN_FACTORS} - ({"yarn_log_multiplier"} if "mscale_all_dim" in options else set[str]())
        if any(key.startswith(scaling) and key.removeprefix(scaling) in factors for key in config):
            rope_type = f"{rope_type} with factors of its own" if rope_type == "yarn" else rope_type
        stated = self.number("rope_theta")
        theta = 10000.0 if stated is None else stated
        if rope_type == "longrope" or not {*_GGUF_DIVISORS}.isdisjoint(self.files.source.names()):
            return self._gguf_longrope(theta, rope_type, options, rotary)
        return Rope(theta, rope_type, _rope_numbers(self.files, rope_type, options) | self._gguf_lengthening())

    def _gguf_longrope(self, theta: float, rope_type: str, options: Mapping[str, Any], rotary: int) -> Rope:
        """Return the positions of a file with two sets of divisors, of which llama.cpp takes one by its context size.

        The converter of Phi-3 writes the divisors, but not that they are used.
        """
        if rope_type not in ("default", "linear", "longrope") or options["factor"] != 1:
            return Rope(theta, f"longrope with {rope_type}, factor {options['factor']!r}")
        if not {*_GGUF_DIVISORS} <= {*self.files.source.names()}:
            return Rope(theta, "longrope without two sets of divisors")
        sets = (self.files.source.rows(name).tolist() for name in _GGUF_DIVISORS)
        short, long = (_divisors(self.files, *named, rotary // 2) for named in zip(_GGUF_DIVISORS, sets, strict=True))
        key = "original_max_position_embeddings"
        length = _positive_number(self.files, key, options[key] or self.files.config.get(_longest_key(self.files)))
        numbers = {key: length, "attention_factor": 1.0, **self._gguf_lengthening()}
        return Rope(theta, "longrope", numbers, short, long)

    def _gguf_lengthening(self) -> dict[str, float]:
        """Return what llama.cpp lengthens rotated queries and keys by, whatever the rule, if the file states it."""
        key = f"{self.files.config['general.architecture']}.rope.scaling.attn_factor"
        value = self.files.config.get(key)
        return {} if value is None else {"attention_factor": _positive_number(self.files, key, value)}

    def _gguf_options(self) -> dict[str, Any]:
        """Return the options of rotary positions as a GGUF file has them.

        In latent attention the multiplier is a tenth of ``mscale_all_dim``, and llama.cpp knows no other ``mscale``. In
        other models that count it, it is ``mscale_all_dim`` (``yarn_multiplied``), beside an ``mscale`` of one.
        """
        scaling = f"{self.files.config['general.architecture']}.rope.scaling."
        options = {
            name: self.files.config.get(scaling + key, assumed) for name, (key, assumed) in _GGUF_ROPE_OPTIONS.items()
        }
        multiplier = self.files.config.get(f"{scaling}yarn_log_multiplier")
        latent = "kv_latent" in self.layout.config
        factor = 10 if latent else self.value("yarn_multiplied")
        if multiplier is None or factor is None:
            return options
        length = factor * _positive_number(self.files, f"{scaling}yarn_log_multiplier", multiplier)
        return options | {"mscale": length if latent else 1.0, "mscale_all_dim": length}


_ROPE_OPTIONS = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "proportional": ("factor", "partial_rotary_factor"),
}
"""The options that each known rule of rescaling needs; an unknown rule is refused when an offset is asked for."""

_ROPE_ASSUMED = {"proportional": {"factor": 1.0, "partial_rotary_factor": 1.0}}
"""The values of options that a rule does without."""

_HEAD_SIZES = {
    **{"num_attention_heads": "heads", "num_key_value_heads": "kv_heads"},
    **{"head_dim": "head_dim", "v_head_dim": "value_dim"},
}
"""The sizes that single layers may state, by their keys."""


_GGUF_ROPE_OPTIONS: Mapping[str, tuple[str, float | None]] = {
    "factor": ("factor", 1.0),
    "original_max_position_embeddings": ("original_context_length", None),
    "beta_fast": ("yarn_beta_fast", None),
    "beta_slow": ("yarn_beta_slow", None),
}
"""Options as llama.cpp stores them -> the key, and what an absent one means. Its YaRN always truncates, and lengthens
what is rotated by the usual factor (ggml_rope_yarn_corr_dims and rope_yarn in ggml/src/ggml-cpu/ops.cpp)."""

_GGUF_DIVISORS = ("rope_factors_short.weight", "rope_factors_long.weight")
"""The tensors with the divisors of longrope."""

_GGUF_YARN_FACTORS = ("attn_factor", "yarn_attn_factor", "yarn_ext_factor", "yarn_log_multiplier")
"""Keys that change the factors of YaRN: the rule with them is not known."""

_OTHER_NAMES = {"mrope": "default", "deepseek_yarn": "yarn"}
"""Rules by another name. M-RoPE makes a difference for images only: it turns a token of a text by one position on all
its axes."""


def _rope_numbers(files: ModelFiles, rope_type: str, options: Mapping[str, Any]) -> dict[str, float]:
    if rope_type == "yarn":
        return _yarn_numbers(files, options)
    if rope_type == "dynamic":  # transformers 5.24 takes the longest text for the one that the model was trained with
        longest = files.config.get(_longest_key(files))
        factor = _positive_number(files, "factor of the dynamic RoPE", options.get("factor"))
        length = _positive_number(files, f"{_longest_key(files)}, which the dynamic RoPE needs,", longest)
        return {"factor": factor, "original_max_position_embeddings": length}
    keys = _ROPE_OPTIONS.get(rope_type, ())
    options = {**_ROPE_ASSUMED.get(rope_type, {}), **options}
    return {key: _positive_number(files, f"{key} of the {rope_type} RoPE", options.get(key)) for key in keys}


_LONGEST = {"hf": "max_position_embeddings", "gguf": "{}.context_length"}
"""The key of how long a text may be, by format."""


def _longest_key(files: ModelFiles) -> str:
    return _LONGEST[files.format].format(files.config.get("general.architecture"))


def _longrope_numbers(files: ModelFiles, options: Mapping[str, Any], outside: Any) -> dict[str, float]:
    """Return the length up to which longrope takes its short divisors, and what it lengthens rotated vectors by.

    Args:
        files: The files.
        options: The options of the rotary positions.
        outside: That length, as the configuration states or implies it outside of the options, or None.
    """
    key, longest = "original_max_position_embeddings", files.config.get(_longest_key(files))
    outside = files.config.get(key) if outside is None else outside
    length = options.get(key) if outside is None else outside  # as in transformers
    length = _positive_number(files, f"{key} of the longrope RoPE", length)
    factor, stated = options.get("factor"), options.get("attention_factor")
    if stated is not None:
        return {
            key: length,
            "attention_factor": _positive_number(files, "attention_factor of the longrope RoPE", stated),
        }
    factor = longest / length if factor is None and type(longest) is int else factor
    factor = _positive_number(files, "factor of the longrope RoPE", factor)
    if factor > 1 and length <= 1:
        raise BadModel(f"{files.place}: {key} is {length:g}; the longrope RoPE needs more than 1.")
    return {key: length, "attention_factor": math.sqrt(1 + math.log(factor) / math.log(length)) if factor > 1 else 1.0}


def _divisors(files: ModelFiles, name: str, values: object, count: int) -> tuple[float, ...]:
    """Return what frequencies are divided by; raise BadModel where it is no list with a number for each of them."""
    if not isinstance(values, list) or len(values) != count:
        size = f"{len(values)} numbers" if isinstance(values, list) else repr(values)
        raise BadModel(f"{files.place}: {name} is {size}; it must be {count} numbers, one for each rotary frequency.")
    return tuple(_positive_number(files, f"{name}, number {i},", value) for i, value in enumerate(values))


def _yarn_numbers(files: ModelFiles, options: Mapping[str, Any]) -> dict[str, float]:
    """Return the options of YaRN, with what transformers assumes for those that are absent."""

    def number(key: str, assumed: Any) -> float:
        value = options.get(key)
        return _positive_number(files, f"{key} of the yarn RoPE", assumed if value is None else value)

    longest = files.config.get(_longest_key(files))
    outside = {"original_max_position_embeddings": files.config.get("original_max_position_embeddings")}
    options = {**options, **{key: value for key, value in outside.items() if value is not None}}  # as in transformers
    length = number("original_max_position_embeddings", longest)
    factor = number("factor", longest / length if type(longest) is int else None)
    longer = None
    if options.get("mscale") and options.get("mscale_all_dim"):
        above, below = (_yarn_length(factor, number(key, None)) for key in ("mscale", "mscale_all_dim"))
        longer = above / below
    return {
        "factor": factor,
        "original_max_position_embeddings": length,
        "beta_fast": number("beta_fast", 32.0),
        "beta_slow": number("beta_slow", 1.0),
        "attention_factor": number("attention_factor", longer or _yarn_length(factor)),
        "truncate": float(options.get("truncate", True) is not False),
    }


def _yarn_length(factor: float, mscale: float = 1.0) -> float:
    """Return the factor by which YaRN lengthens what is rotated (Peng et al. 2023, §3.4)."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _is_local(layer_type: str) -> bool:
    """Tell whether a layer of this type attends to a window only."""
    return "sliding" in layer_type or "chunked" in layer_type


def _expand_pattern(files: ModelFiles, pattern: object) -> list[object] | None:
    """Return the type of each layer from GPT-Neo's notation ``[[["global", "local"], 12]]``; None for no pattern."""
    if pattern is None:
        return None
    try:
        return [name for group, times in pattern for _ in range(min(times, _LAYER_ALLOWANCE)) for name in group]  # type: ignore[attr-defined]
    except (TypeError, ValueError) as error:
        raise BadModel(f"{files.place}: attention_types is {pattern!r}, not lists of kinds and how often.") from error


def _object(files: ModelFiles, key: str) -> Mapping[str, Any]:
    value = files.config.get(key) or {}
    if not isinstance(value, Mapping):
        raise BadModel(f"{files.place}: {key} must be an object, not {value!r}.")
    return value


def _positive_number(files: ModelFiles, key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise BadModel(f"{files.place}: {key} is {value!r}; it must be a positive number.")
    return float(value)
