"""The sizes of attention heads: of latent attention, and those that differ between the layers."""

from collections.abc import Mapping, Sequence

from zeropass.arch.config_reader import ConfigReader
from zeropass.arch.rotary import rotated_width
from zeropass.errors import BadModel, UnknownFamily

_HEAD_SIZES = {
    **{"num_attention_heads": "heads", "num_key_value_heads": "kv_heads"},
    **{"head_dim": "head_dim", "v_head_dim": "value_dim"},
}
"""The sizes that single layers may state, by their keys."""


def latent_sizes(reader: ConfigReader, stated: Mapping[str, int | None]) -> dict[str, int]:
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


def sizes_by_layer(
    reader: ConfigReader, local: tuple[int, ...], sizes: Mapping[str, int], rotary: int
) -> dict[str, tuple[int, ...]]:
    """Return the sizes of heads that differ between the layers, by their names: the value in each layer.

    Configurations state them for all layers with a window (``local_heads``) or without one (``global_heads``), as a
    list (``each_heads``), or for one layer after another by their numbers, as ``per_layer_config`` of transformers
    5.24 does, which then takes the place of the others.
    """
    sizes = {"value_dim": 0, "rotary": rotary, **sizes}
    changed, layers = _layer_sizes(reader, sizes["layers"]), range(sizes["layers"])
    each = {
        name: [changed[n].get(key, sizes[name]) if changed else _size_at(reader, name, n, local, sizes) for n in layers]
        for key, name in _HEAD_SIZES.items()
    }
    widths = each["head_dim"]
    each["rotary"] = [_rotary_at(reader, width, n in local) if rotary else 0 for n, width in enumerate(widths)]
    for layer, (heads, kv_heads) in enumerate(zip(each["heads"], each["kv_heads"], strict=True)):
        if heads % kv_heads:
            raise BadModel(
                f"{reader.files.place}: {heads} heads cannot share {kv_heads} key/value heads, in layer {layer}."
            )
    if len({*widths}) > 1 and not reader.family.unscaled:
        raise UnknownFamily(
            f"{reader.files.place}: heads are {' and '.join(map(str, sorted({*widths})))} wide; how their attention "
            "logits are scaled is not known."
        )
    return {name: tuple(values) for name, values in each.items() if {*values} != {sizes[name]}}


def _rotary_at(reader: ConfigReader, width: int, local: bool) -> int:
    names = ("local_rotary_share", "rotary") if local else ("rotary_share", "global_rotary")
    return rotated_width(reader, width, *names)


def _size_at(reader: ConfigReader, name: str, layer: int, local: tuple[int, ...], sizes: Mapping[str, int]) -> int:
    """Return a size of the heads of a layer: its own, that of layers with or without a window, or that of all."""
    listed = reader.value(f"each_{name}")
    if listed is None:
        place = "local" if layer in local else "global"
        key_valued = (
            reader.size(f"key_valued_{name}") if place == "global" and reader.value("keys_are_values") else None
        )
        stated = key_valued or reader.size(f"{place}_{name}")
        return stated or sizes[name] * (reader.size(f"{place}_{name}_factor") or 1)
    if type(listed) is int:
        return reader.positive(f"each_{name}", listed)
    if not isinstance(listed, Sequence) or len(listed) != sizes["layers"]:
        raise BadModel(
            f"{reader.files.place}: {reader.keys(f'each_{name}')} is {str(listed)[:60]}; it must have a number for "
            f"each of the {sizes['layers']} layers."
        )
    return reader.positive(f"each_{name}", listed[layer])


def _layer_sizes(reader: ConfigReader, layers: int) -> list[dict[str, int]]:
    """Return the sizes that single layers state, by key, for each layer; an empty list where none are stated."""
    stated = reader.value("layer_sizes")
    if not isinstance(stated, Mapping):
        return []
    each: list[dict[str, int]] = [{} for _ in range(layers)]
    for number, changed in stated.items():
        if not isinstance(changed, Mapping) or not {*changed} <= {*_HEAD_SIZES}:
            raise BadModel(
                f"{reader.files.place}: {reader.keys('layer_sizes')} has {str(number)!r}: {str(changed)[:60]}; only "
                f"{', '.join(_HEAD_SIZES)} of single layers are known."
            )
        if not str(number).isdecimal() or int(number) >= layers:
            raise BadModel(
                f"{reader.files.place}: {reader.keys('layer_sizes')} has sizes of layer {str(number)!r}; there are "
                f"layers 0 to {layers - 1}."
            )
        each[int(number)] = {key: reader.positive("layer_sizes", value) for key, value in changed.items()}
    return each


def gates_of_head(reader: ConfigReader) -> int:
    """Return the number of output gates of a head; 0 where each value has one, or where there are none."""
    if (gates := reader.value("gates")) not in (None, True, "per-head", "per-element"):
        raise BadModel(
            f"{reader.files.place}: {reader.keys('gates')} is {gates!r}; true, 'per-head' and 'per-element' are known."
        )
    return int(gates in (True, "per-head"))
