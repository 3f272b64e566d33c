"""From a configuration, in whatever words a family has for it, to `Dimensions`: all is checked, nothing guessed."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from zeropass.arch.spec import Dimensions, Family, Layout, Rope
from zeropass.checkpoints.model_files import ModelFiles
from zeropass.errors import BadModel, BadWeights

__all__ = ["Names", "dimensions", "full_name", "looked_up", "prefix_of"]

Names = frozenset[str]

_SIZES = ("layers", "d", "heads", "kv_heads", "head_dim", "neurons", "vocab", "embed", "experts", "experts_used")
_FEW = 200
"""Layers that a file of few tensors may still claim: ALBERT's share theirs."""

_REQUIRED = ("layers", "d", "heads", "kv_heads")


def full_name(name: str, prefix: str) -> str:
    """A tensor's name in the file: with the prefix, unless the record says that it never has one."""
    return name[1:] if name.startswith("^") else prefix + name


def prefix_of(layout: Layout, names: Names) -> str | None:
    """Return what stands before the tensor names of this file; None if no known prefix does.

    It is told by the embedding, or, where only the head tied to it is stored, by the first block's queries.
    """
    anchors = (*(layout.copies or (layout.tensors["embedding"].name,)), layout.tensors["q"].name.format(layer=0))
    return next(
        (prefix for anchor in anchors for prefix in layout.prefixes if full_name(anchor, prefix) in names), None
    )


def looked_up(config: Mapping[str, Any], key: str) -> Any:
    """A value of the configuration; ``a.b`` looks inside an object. None if it is not there."""
    if key in config:
        return config[key]
    value: Any = config
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return value


def dimensions(files: ModelFiles, family: Family, layout: Layout, prefix: str, names: Names, tied: bool) -> Dimensions:
    """The sizes and constants of a model. Raises BadModel, with the key, for one that is missing or impossible."""
    read = _Reader(files, family, layout)
    sizes = {name: read.size(name) for name in _SIZES}
    sizes["vocab"] = sizes["vocab"] or files.source.shape(full_name(layout.tensors["embedding"].name, prefix))[0]
    for name in _REQUIRED:
        if sizes[name] is None:
            raise BadModel(f"{files.path}: the configuration lacks {read.keys(name)}.")
    known = {name: size for name, size in sizes.items() if size is not None}
    d, heads = known["d"], known["heads"]
    known.setdefault("head_dim", d // heads)
    known.setdefault("neurons", 4 * d)  # GPT-2's rule where n_inner is null
    known.setdefault("embed", d)
    known.setdefault("experts", 1)
    known.setdefault("experts_used", 1)
    known["neurons"] *= known["experts"]
    if not known["head_dim"]:
        raise BadWeights(f"{files.path}: {heads} heads do not fit into a width of {d}.")
    if heads % known["kv_heads"]:
        raise BadModel(f"{files.path}: {heads} heads cannot share {known['kv_heads']} key/value heads.")
    for name in ("layers", "experts"):
        if known[name] > max(len(names), _FEW):
            raise BadWeights(f"{files.path}: {read.keys(name)} is {known[name]}; the file has {len(names)} tensors.")
    rotary = read.rotary(known["head_dim"]) if family.rotary else 0
    local = read.local(known["layers"])
    scalar = read.number("query_scalar")
    embed_scaled = family.embed_scaled or bool(read.value("embed_scaled"))
    return Dimensions(
        **known,
        eps=_positive_number(files, read.keys("eps"), read.value("eps")),
        activation=str(read.value("activation")),
        tied=tied,
        rope=read.rope(rotary) if family.rotary else None,
        rotary=rotary,
        attention_scale=1.0 if family.unscaled else (scalar or known["head_dim"]) ** -0.5,
        attention_cap=read.number("attention_cap"),
        logit_scale=d**-0.5 if family.logits_scaled and read.value("logits_scaled") is not False else 1.0,
        logit_cap=read.number("logit_cap"),
        embed_scale=d**0.5 if embed_scaled else 1.0,
        router_normed=family.router_normed or bool(read.value("router_normed")),
        clip=read.number("clip"),
        window=read.window() if local else None,
        local=local,
        local_rope=read.local_rope() if family.rotary and local else None,
    )


class _Reader:
    """Looks values up by their canonical names: a key of the configuration, or what the layout or family always has."""

    def __init__(self, files: ModelFiles, family: Family, layout: Layout) -> None:
        self.files, self.family, self.layout = files, family, layout

    def keys(self, name: str) -> str:
        """The keys that are tried for a name, for messages."""
        return " / ".join(self.layout.config.get(name, (name,)))

    def value(self, name: str) -> Any:
        """Return the first value that is there, or what the family or its files have without one."""
        keys = self.layout.config.get(name, ())
        for key in keys:
            if (found := looked_up(self.files.config, key)) is not None:
                return found
        if name in self.layout.defaults and not any(key in self.files.config for key in keys):
            return self.layout.defaults[name]
        return self.layout.constants.get(name, self.family.config.get(name))

    def size(self, name: str) -> int | None:
        """A positive whole number, if there is one."""
        value = self.value(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise BadModel(f"{self.files.path}: {self.keys(name)} is {value!r}; it must be a positive whole number.")
        return value

    def number(self, name: str) -> float | None:
        """A positive number, if there is one."""
        value = self.value(name)
        return None if value is None else _positive_number(self.files, self.keys(name), value)

    def rotary(self, width: int) -> int:
        """Coordinates of a head that positions turn: all of them, a share, or a number."""
        share = self.number("rotary_share")
        found = self.size("rotary") or (width if share is None else int(width * share))
        if found > width or found % 2:
            raise BadModel(
                f"{self.files.path}: rotary positions turn {found} of the {width} numbers of a head; "
                "it must be an even number of them."
            )
        return found

    def local(self, layers: int) -> tuple[int, ...]:
        """The layers that attend to a window only, from a list of kinds (or flags) or from a pattern.

        ``local_every`` = n: all but every n-th; ``global_every`` = n: all but 0, n, 2n …
        """
        if self.files.format == "gguf" and not self.value("window"):  # 0 and nothing say that there is none
            return ()
        kinds = self.value("layer_kinds") or _repeated(self.files, self.value("layer_pattern"))
        if isinstance(kinds, Sequence) and not isinstance(kinds, str) and len(kinds) == layers:
            return tuple(n for n, kind in enumerate(kinds) if kind in (True, "local") or "sliding" in str(kind))
        if (every := self.size("local_every")) is not None:
            return tuple(layer for layer in range(layers) if (layer + 1) % every)
        if (every := self.size("global_every")) is not None:
            return tuple(layer for layer in range(layers) if layer % every)
        first = self.value("window_from") or 0
        if isinstance(first, bool) or not isinstance(first, int) or first < 0:
            raise BadModel(f"{self.files.path}: {self.keys('window_from')} is {first!r}; it must be a whole number.")
        return tuple(range(first, layers)) if self.value("window") is not None and self._windowed() else ()

    def window(self) -> int | None:
        """Return how many tokens a layer with a window attends to; of one that looks both ways, to either side.

        Gemma 3 writes down both sides together (transformers 5.24, ``Gemma3TextConfig.__post_init__``).
        """
        size = self.size("window")
        return size // 2 + 1 if size and self.value("window_of_both_sides") else size

    def _windowed(self) -> bool:
        """Return whether a window that is named is used: Qwen names one and switches it off."""
        return self.value("window_used") is not False

    def rope(self, rotary: int) -> Rope:
        """Base and scaling of rotary positions, from any spelling that configurations use."""
        if self.files.format == "gguf":
            return self._gguf_rope(rotary)
        options, older = (_object(self.files, key) for key in ("rope_parameters", "rope_scaling"))
        if options and older and options != older:
            raise BadModel(
                f"{self.files.path}: rope_parameters and rope_scaling differ; only one of them can be meant."
            )
        options = options or older
        return self._rope(options.get("full_attention", options), self.value("rope_theta"))

    def local_rope(self) -> Rope | None:
        """The RoPE of layers with a window, where they have their own."""
        options = _object(self.files, "rope_parameters").get("sliding_attention")
        theta = self.value("local_rope_theta")
        if options is None and theta is None:
            return None
        return self._rope(options or {}, theta)

    def _rope(self, options: object, theta: object) -> Rope:
        if not isinstance(options, Mapping):
            raise BadModel(f"{self.files.path}: the options of the rotary positions are {options!r}, not an object.")
        kind = str(options.get("rope_type") or options.get("type") or "default")
        base = options.get("rope_theta", theta)
        base = 10000.0 if base is None else _positive_number(self.files, "rope_theta", base)
        return Rope(base, kind, _rope_numbers(self.files, kind, options))

    def _gguf_rope(self, rotary: int) -> Rope:
        config, stem = self.files.config, str(self.files.config["general.architecture"])
        kind = config.get(f"{stem}.rope.scaling.type", "default")
        kind = "default" if kind == "none" else str(kind)
        if "rope_factors_long.weight" in self.files.source.names():
            kind = "longrope"  # llama.cpp's converter writes its factors, and not that they are used
        turned = config.get(f"{stem}.rope.dimension_count", rotary)
        if turned != rotary or f"{stem}.rope.scale_linear" in config:
            raise BadModel(
                f"{self.files.path}: rope.dimension_count {turned!r} beside heads of {rotary}, or rope.scale_linear: "
                "rotary positions of a kind that is not known."
            )
        options = {"factor": config.get(f"{stem}.rope.scaling.factor", 1.0)}
        theta = self.number("rope_theta")
        return Rope(10000.0 if theta is None else theta, kind, _rope_numbers(self.files, kind, options))


_ROPE_OPTIONS = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
"""What each known rule of rescaling needs; one that is not known is refused when an offset is asked for."""


def _rope_numbers(files: ModelFiles, kind: str, options: Mapping[str, Any]) -> dict[str, float]:
    needed = _ROPE_OPTIONS.get(kind, ())
    return {key: _positive_number(files, f"{key} of the {kind} RoPE", options.get(key)) for key in needed}


def _repeated(files: ModelFiles, pattern: object) -> list[object] | None:
    """Return the kinds of layers that GPT-Neo writes down as ``[[["global", "local"], 12]]``; None for no pattern."""
    if pattern is None:
        return None
    try:
        return [kind for kinds, times in pattern for _ in range(min(times, _FEW)) for kind in kinds]  # type: ignore[attr-defined]
    except (TypeError, ValueError) as error:
        raise BadModel(f"{files.path}: attention_types is {pattern!r}, not lists of kinds and how often.") from error


def _object(files: ModelFiles, key: str) -> Mapping[str, Any]:
    found = files.config.get(key) or {}
    if not isinstance(found, Mapping):
        raise BadModel(f"{files.path}: {key} must be an object, not {found!r}.")
    return found


def _positive_number(files: ModelFiles, key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise BadModel(f"{files.path}: {key} is {value!r}; it must be a positive number.")
    return float(value)
