"""The layers of a model one by one, as a configuration states them: parts, experts, windows, keys and positions."""

from collections.abc import Sequence
from typing import Literal

from zeropass.arch.config_reader import LAYER_ALLOWANCE, ConfigReader
from zeropass.arch.roles import Site
from zeropass.arch.rotary import rope_of
from zeropass.checkpoints.model_files import ModelFiles
from zeropass.errors import BadModel


def dense_layers(reader: ConfigReader, layers: int) -> tuple[int, ...]:
    """Return the layers without experts: the first and the last ones, those of a list, and all but each n-th.

    A list with the kind of each layer, ``dense`` (0) or ``sparse`` (1), takes the place of all that.
    """
    if (kinds := reader.value("mlp_kinds")) is not None:
        known = {"dense": True, "0": True, "sparse": False, "1": False}
        if not isinstance(kinds, Sequence) or len(kinds) != layers or not known.keys() >= {*map(str, kinds)}:
            raise BadModel(
                f"{reader.files.place}: {reader.keys('mlp_kinds')} must have 'dense' or 'sparse', or 0 or 1, for each "
                f"of the {layers} layers; it is {str(kinds)[:60]}."
            )
        return tuple(layer for layer, kind in enumerate(kinds) if known[str(kind)])
    if router := reader.value("router_tensor"):  # in layers that have it
        names = {*reader.files.source.names()}
        return tuple(layer for layer in range(layers) if router.format(layer=layer) not in names)
    if (routed := reader.value("routed_layers")) is not None:
        return tuple(layer for layer in range(layers) if layer not in _listed_layers(reader, "routed_layers", routed))
    listed = _listed_layers(reader, "dense_layers", reader.value("dense_layers") or ())
    first, period = reader.count("dense_first"), reader.size("routed_every") or _spread(reader, layers)
    last = layers - 1 if reader.value("routed_last") in (None, -1) else reader.count("routed_last")
    offset = period - 1 if reader.value("routed_offset") is None else reader.count("routed_offset")
    return tuple(n for n in range(layers) if not first <= n <= last or n in listed or (n - offset) % period)


def _spread(reader: ConfigReader, layers: int) -> int:
    """Return the period of the layers with experts where a configuration counts these; 1 where it does not."""
    return max(layers // max(reader.count("routed_count"), 1), 1) if "routed_count" in reader.layout.config else 1


def counted_layers(reader: ConfigReader) -> int | None:
    """Return the number of layers of a hybrid whose configuration only lists their types."""
    names = None if reader.layout.config["layers"] else reader.value("layer_kinds")
    return len(names) if isinstance(names, Sequence) and names else None


def parts_of_layers(reader: ConfigReader, layers: int) -> tuple[tuple[Site | Literal["dense"], ...], ...]:
    """Return the parts of each layer of a hybrid: from a list of kinds, or from the layers with attention.

    These are listed, or each n-th one (``attention_every``), from the number ``attention_first`` on.
    """
    kinds = reader.family.layer_types
    if not kinds:
        return (("attn", "ff"),) * layers
    if len(kinds) == 1:
        return (*kinds.values(),) * layers
    names = reader.value("layer_kinds") or _repeated(reader, layers) or _types_by_heads(reader, layers)
    if names is None:
        mixing, attending, *_ = kinds
        listed, period = reader.value("attention_layers"), reader.size("attention_every")
        if listed is None and period is None:
            raise BadModel(f"{reader.files.place}: the configuration lacks {reader.keys('layer_kinds')}.")
        first = reader.value("attention_first")
        first = (period or 1) - 1 if first is None else reader.count("attention_first")
        chosen = (
            range(first, layers, period or 1) if listed is None else _listed_layers(reader, "attention_layers", listed)
        )
        names = [attending if layer in chosen else mixing for layer in range(layers)]
    if not isinstance(names, Sequence) or len(names) != layers or not {*map(str, names)} <= {*kinds}:
        stated = "first_kinds" if "first_kinds" in reader.layout.config else "layer_kinds"
        raise BadModel(
            f"{reader.files.place}: {reader.keys(stated)} must name the kind of each of the {layers} layers "
            f"({', '.join(kinds)}); it is {str(names)[:60]}."
        )
    return tuple(kinds[str(name)] for name in names)


def _repeated(reader: ConfigReader, layers: int) -> list[object] | None:
    """Return the kind of each layer from those of the first ones, which the others repeat; None for none."""
    kinds = reader.value("first_kinds")
    return [kinds[layer % len(kinds)] for layer in range(layers)] if isinstance(kinds, Sequence) and kinds else None


def _types_by_heads(reader: ConfigReader, layers: int) -> list[str] | None:
    """Return the kind of each layer from lists of numbers of heads (and of neurons), as GGUF files have them.

    A layer with heads is of the second kind, one with neurons alone of the third, any other of the first. None
    where the layout names no such list.
    """
    if "layer_heads" not in reader.layout.config:
        return None
    mixing, attending, *other = reader.family.layer_types
    heads = _of_each_layer(reader, "layer_heads", layers)
    neurons = (
        _of_each_layer(reader, "layer_neurons", layers) if "layer_neurons" in reader.layout.config else [0] * layers
    )
    return [attending if h else other[0] if n else mixing for h, n in zip(heads, neurons, strict=True)]


def _of_each_layer(reader: ConfigReader, name: str, layers: int) -> Sequence[int]:
    """Return a whole number for each layer, which a configuration states for all together or one by one.

    A list may go on with those of layers that predict further tokens.
    """
    value = reader.value(name)
    values = _listed_layers(reader, name, value if isinstance(value, list) else [value] * layers)
    if len(values) not in (layers, layers + reader.count("beyond")):
        raise BadModel(f"{reader.files.place}: {reader.keys(name)} has {len(values)} numbers for {layers} layers.")
    return values[:layers]


def _listed_layers(reader: ConfigReader, name: str, listed: object) -> Sequence[int]:
    """Return a list of layers; raise BadModel if it is none."""
    if not isinstance(listed, Sequence) or not all(type(layer) is int for layer in listed):
        raise BadModel(f"{reader.files.place}: {reader.keys(name)} is {listed!r}, not a list of layers.")
    return listed


def local_layers(reader: ConfigReader, layers: int) -> tuple[int, ...]:
    """Return the layers that attend to a window only, from a list of types (or flags) or from a pattern.

    ``local_every`` = n excludes each n-th layer, ``global_every`` = n excludes layers 0, n, 2n …
    """
    if reader.files.format == "gguf" and not reader.value("window"):  # a window of 0 means none, like an absent one
        return ()
    if not reader.value("window") and reader.value("only_rotated_local"):
        return ()
    layer_types = reader.value("layer_kinds") or _expand_pattern(reader.files, reader.value("layer_pattern"))
    if isinstance(layer_types, Sequence) and not isinstance(layer_types, str) and len(layer_types) == layers:
        local = (n for n, name in enumerate(layer_types) if name in (True, "local") or _is_local(str(name)))
        return tuple(n for n in local if n < layers - 1 or not reader.value("last_global"))
    if reader.value("kinds_required"):
        raise BadModel(f"{reader.files.place}: the configuration lacks {reader.keys('layer_kinds')}.")
    if reader.value("only_rotated_local"):
        return tuple(layer for layer in range(layers) if layer not in unrotated_layers(reader, layers, ()))
    if (period := reader.size("local_every")) is not None:
        last = layers - 1 if reader.value("last_global") else layers
        return tuple(layer for layer in range(last) if _counted(reader, layer, layers) % period)
    if (period := reader.size("global_every")) is not None:
        return tuple(layer for layer in range(layers) if layer % period)
    return (
        tuple(range(reader.count("window_from"), layers))
        if (reader.value("window") or reader.value("reach")) is not None and _windowed(reader)
        else ()
    )


def key_layers(reader: ConfigReader, layers: int, local: tuple[int, ...]) -> tuple[int, ...]:
    """Return the layer whose keys and values each layer attends to; none where each has its own.

    The last ones share those of the last layer before them that is local, or is not, as they are.
    """
    sharing = reader.count("sharing")
    if not sharing:
        return ()
    first = layers - sharing
    last = {layer in local: layer for layer in range(first)}
    if any((layer in local) not in last for layer in range(first, layers)):
        raise BadModel(
            f"{reader.files.place}: {reader.keys('sharing')} is {sharing} of {layers} layers; before these, there must "
            "be a layer of each of their kinds, whose keys and values they share."
        )
    return tuple(layer if layer < first else last[layer in local] for layer in range(layers))


def key_valued_layers(reader: ConfigReader, kv_layers: Sequence[int], local: tuple[int, ...]) -> tuple[int, ...]:
    """Return the layers whose values are made of what their keys are: those without a window, where a key says so.

    Layers that attend to the keys and values of another have none.
    """
    if tensor := reader.value("value_tensor"):  # where it is absent, llama.cpp takes keys for values
        names = {*reader.files.source.names()}
        return tuple(n for n, other in enumerate(kv_layers) if n == other and tensor.format(layer=n) not in names)
    if not reader.value("keys_are_values"):
        return ()
    return tuple(n for n, other in enumerate(kv_layers) if n == other and n not in local)


def sharing_is_wider(reader: ConfigReader, kv_layers: Sequence[int], neurons: int) -> bool:
    """Tell whether layers that share the keys and values of another have twice the neurons, by a key or a list."""
    if not kv_layers or "layer_neurons" not in reader.layout.config:
        return bool(reader.value("wider_sharing"))
    each, alike = [*_of_each_layer(reader, "layer_neurons", len(kv_layers))], [neurons] * len(kv_layers)
    wider = [neurons if layer == other else 2 * neurons for layer, other in enumerate(kv_layers)]
    if each not in (alike, wider):
        raise BadModel(
            f"{reader.files.place}: {reader.keys('layer_neurons')} is {str(each)[:60]}; it must be {neurons} for all "
            "layers, or twice that for those that share keys and values."
        )
    return each == wider


def gate_sparsity(reader: ConfigReader, layers: int) -> tuple[float, ...]:
    """Return the share of gates that are cut off in each layer; none where no layer cuts any.

    Where a configuration is silent, the first of more than so many layers do (``Gemma3nTextConfig`` of transformers).
    """
    shares, usual = reader.value("gate_sparsity"), reader.value("usual_sparsity")
    if shares is None and isinstance(usual, Sequence):
        first, share = usual
        shares = [share if layer < first < layers else 0.0 for layer in range(layers)]
    if shares is None:
        return ()
    if not isinstance(shares, Sequence) or len(shares) != layers or not all(map(_is_share, shares)):
        raise BadModel(
            f"{reader.files.place}: {reader.keys('gate_sparsity')} must have a number from 0 to below 1 for each of "
            f"the {layers} layers; it is {str(shares)[:60]}."
        )
    return tuple(map(float, shares)) if any(shares) else ()


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1


def window_size(reader: ConfigReader) -> int | None:
    """Return how many tokens a layer with a window attends to; on either side, if it attends both ways.

    Gemma 3 and ModernBERT state both sides together (transformers 5.24, ``Gemma3TextConfig.__post_init__``,
    ``ModernBertConfig.sliding_window``); ModernBERT's decoder has one of them, unless it states that itself. The
    encoder of T5Gemma leaves the token itself out of the count (``sliding_window_bidirectional_overlay``), and that
    of T5Gemma 2 counts it among the tokens behind (``sliding_window_mask_function``).
    """
    size, itself, reach = (reader.size(name) for name in ("window", "window_itself", "reach"))
    if itself or reach:
        return itself or (reach or 0) + 1  # a token reaches so many others on either side
    if size and reader.value("window_of_both_sides"):
        size = size // 2 + (not reader.family.causal)  # one more, which each side counts as its own
    return size + 1 if size and reader.value("window_inclusive") else size


def _windowed(reader: ConfigReader) -> bool:
    """Tell whether a window that is named is used: Qwen names one and switches it off."""
    return reader.value("window_used") is not False


def unrotated_layers(reader: ConfigReader, layers: int, local: tuple[int, ...]) -> tuple[int, ...]:
    """Return the layers without rotary positions, from a list of flags, a period, or as those without a window.

    ``rotated_layers`` has a zero for each of them; ``unrotated_every`` = n is each n-th layer. Where no window is
    stated, all layers rotate, unless ``only_local_rotated`` is ``always``.
    """
    if flags := reader.value("rotated_layers"):
        if not isinstance(flags, Sequence) or len(flags) != layers or any(flag not in (0, 1) for flag in flags):
            raise BadModel(
                f"{reader.files.place}: {reader.keys('rotated_layers')} must have a 0 or a 1 for each of the {layers} "
                f"layers; it is {str(flags)[:60]}."
            )
        return tuple(layer for layer, flag in enumerate(flags) if not flag)
    if thetas := reader.value("layer_thetas"):
        return _without_base(reader, thetas, layers)
    if (period := reader.size("unrotated_every")) is not None:
        return tuple(layer for layer in range(layers) if _counted(reader, layer, layers) % period == 0)
    only_local = reader.value("only_local_rotated")
    if only_local and (local or only_local == "always" or reader.value("window")):
        return tuple(layer for layer in range(layers) if layer not in local)
    return ()


def _counted(reader: ConfigReader, layer: int, layers: int) -> int:
    """Return the number of a layer, from one on; where periods are counted from the last layer back, from there."""
    return layer - layers + 1 if reader.value("counted_back") else layer + 1


def _without_base(reader: ConfigReader, thetas: object, layers: int) -> tuple[int, ...]:
    """Return the layers whose own rotary base is 0, which stands for none; the others must have that of all."""
    base = rope_of(reader, 0).theta
    if not isinstance(thetas, Sequence) or len(thetas) != layers or any(theta not in (0, base) for theta in thetas):
        raise BadModel(
            f"{reader.files.place}: {reader.keys('layer_thetas')} must be 0 or {base:g}, the base of the rotary "
            f"positions, for each of the {layers} layers; it is {str(thetas)[:60]}."
        )
    return tuple(layer for layer, theta in enumerate(thetas) if not theta)


def _is_local(layer_type: str) -> bool:
    """Tell whether a layer of this type attends to a window only."""
    return "sliding" in layer_type or "chunked" in layer_type


def _expand_pattern(files: ModelFiles, pattern: object) -> list[object] | None:
    """Return the type of each layer from GPT-Neo's notation ``[[["global", "local"], 12]]``; None for no pattern."""
    if pattern is None:
        return None
    try:
        return [name for group, times in pattern for _ in range(min(times, LAYER_ALLOWANCE)) for name in group]  # type: ignore[attr-defined]
    except (TypeError, ValueError) as error:
        raise BadModel(f"{files.place}: attention_types is {pattern!r}, not lists of kinds and how often.") from error
