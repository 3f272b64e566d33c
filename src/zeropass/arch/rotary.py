"""The rotary positions of a model, in any spelling that configurations and GGUF files use."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from zeropass.arch.config_reader import ConfigReader, object_at, positive_number
from zeropass.arch.dimensions import Rope
from zeropass.checkpoints.model_files import ModelFiles
from zeropass.errors import BadModel

_ROPE_OPTIONS = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "proportional": ("factor", "partial_rotary_factor"),
}
"""The options that each known rule of rescaling needs; an unknown rule is refused when an offset is asked for."""

_ROPE_ASSUMED = {"proportional": {"factor": 1.0, "partial_rotary_factor": 1.0}}
"""The values of options that a rule does without."""

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

_LONGEST = {"hf": "max_position_embeddings", "gguf": "{}.context_length"}
"""The key of how long a text may be, by format."""


def rotated_width(reader: ConfigReader, width: int, share_name: str = "rotary_share", stated: str = "rotary") -> int:
    """Return how many coordinates of a head positions rotate: all of them, a share, or a stated number."""
    share = reader.number(share_name if share_name in reader.layout.config else "rotary_share")
    count = reader.size(stated) or reader.size("rotary") or (width if share is None else int(width * share))
    if count > width or count % 2:
        raise BadModel(
            f"{reader.files.place}: rotary positions turn {count} of the {width} numbers of a head; "
            "it must be an even number of them."
        )
    return count


def rope_of(reader: ConfigReader, rotary: int) -> Rope:
    """Return the base and scaling of rotary positions, in any spelling that configurations use."""
    if reader.files.format == "gguf":
        return _gguf_rope(reader, rotary)
    options, scaling = (object_at(reader.files, key) for key in ("rope_parameters", "rope_scaling"))
    if options and scaling and options != scaling:
        raise BadModel(f"{reader.files.place}: rope_parameters and rope_scaling differ; only one of them can be meant.")
    stated = options or scaling
    return _rope_from(reader, stated.get("full_attention", stated), reader.value("rope_theta"), rotary)


def lengthened(reader: ConfigReader, rope: Rope | None) -> float:
    """Return the factor by which a scaling of positions lengthens attention logits of both parts of a head.

    DeepSeek-V2 multiplies the softmax scale by it (transformers 5.24, ``yarn_apply_mscale``).
    """
    if rope is None or rope.kind == "default" or "kv_latent" not in reader.layout.config:
        return 1.0
    if reader.files.format == "gguf":
        stated: Mapping[str, Any] = _gguf_options(reader)
    else:
        stated = object_at(reader.files, "rope_parameters") or object_at(reader.files, "rope_scaling")
    if not (length := stated.get("mscale_all_dim")):
        return 1.0
    length = positive_number(reader.files, "mscale_all_dim of the rotary positions", length)
    factor = positive_number(reader.files, "factor of the rotary positions", stated.get("factor"))
    return _yarn_length(factor, length) ** 2


def local_rope_of(
    reader: ConfigReader, by_layer: Mapping[str, Sequence[int]], rotary: int, local: tuple[int, ...]
) -> Rope | None:
    """Return the RoPE of layers with a window; None where they share that of the other layers."""
    options = object_at(reader.files, "rope_parameters").get("sliding_attention")
    theta = reader.value("local_rope_theta")
    if options is None and theta is None:
        return None
    return _rope_from(reader, options or {}, theta, by_layer["rotary"][local[0]] if "rotary" in by_layer else rotary)


def _rope_from(reader: ConfigReader, options: object, theta: object, rotary: int) -> Rope:
    if not isinstance(options, Mapping):
        raise BadModel(f"{reader.files.place}: the options of the rotary positions are {options!r}, not an object.")
    rope_type = str(options.get("rope_type") or options.get("type") or "default")
    rope_type = {**_OTHER_NAMES, **(reader.value("rope_names") or {})}.get(rope_type, rope_type)
    base = options.get("rope_theta", theta)
    base = 10000.0 if base is None else positive_number(reader.files, "rope_theta", base)
    if rope_type == "dynamic" and reader.value("ntk_alpha") and options.get("alpha"):
        return Rope(_stretched(reader, base, options["alpha"]))
    if rope_type == "yarn" and base <= 1:
        raise BadModel(f"{reader.files.place}: rope_theta is {base}; YaRN needs a base above 1.")
    if rope_type == "longrope":
        return _longrope(reader, base, options, rotary)
    if rope_type == "dynamic" and rotary < 4:
        raise BadModel(
            f"{reader.files.place}: the dynamic RoPE rotates {rotary} numbers of a head; it needs 4 or more."
        )
    if rope_type == "proportional" and "rotary_share" in reader.layout.config:
        return Rope(base, rope_type)  # the share would count twice; not known
    return Rope(base, rope_type, _rope_numbers(reader.files, rope_type, options))


def _longrope(reader: ConfigReader, base: float, options: Mapping[str, Any], rotary: int) -> Rope:
    """Return the positions of longrope (Ding et al. 2024, arXiv:2402.13753), as transformers reads its options."""
    short, long = (
        _divisors(reader.files, f"{key} of the longrope RoPE", options.get(key), rotary // 2)
        for key in ("short_factor", "long_factor")
    )
    numbers = _longrope_numbers(reader.files, options, reader.value("original_length"))
    if "longrope_lengthening" in reader.layout.config:
        # transformers 5.24 takes the short divisors for long texts of PhiMoE too, its authors take the long ones.
        key, long = reader.keys("longrope_lengthening"), ()
        numbers["attention_factor"] = positive_number(reader.files, key, reader.value("longrope_lengthening"))
    return Rope(base, "longrope", numbers, short, long)


def _stretched(reader: ConfigReader, base: float, alpha: object) -> float:
    """Return the base of rotary positions that a fixed factor (NTK-aware) stretches, whatever the text."""
    width = reader.size("head_dim")
    if width is None or width < 4:
        raise BadModel(f"{reader.files.place}: {reader.keys('head_dim')} is {width}; a stretched RoPE needs 4 or more.")
    return float(base * positive_number(reader.files, "alpha of the dynamic RoPE", alpha) ** (width / (width - 2)))


def _gguf_rope(reader: ConfigReader, rotary: int) -> Rope:
    config, architecture = reader.files.config, str(reader.files.config["general.architecture"])
    scaling = f"{architecture}.rope.scaling."
    rope_type = config.get(f"{scaling}type", "linear" if f"{scaling}factor" in config else "default")
    rope_type = "default" if rope_type == "none" else str(rope_type)
    rotated = config.get(f"{architecture}.rope.dimension_count", rotary)
    if rotated != (reader.size("global_rotary") or rotary) or f"{architecture}.rope.scale_linear" in config:
        raise BadModel(
            f"{reader.files.place}: rope.dimension_count {rotated!r} beside heads of {rotary}, or rope.scale_linear: "
            "rotary positions of a kind that is not known."
        )
    options = _gguf_options(reader)
    factors = {*_GGUF_YARN_FACTORS} - ({"yarn_log_multiplier"} if "mscale_all_dim" in options else set[str]())
    if any(key.startswith(scaling) and key.removeprefix(scaling) in factors for key in config):
        rope_type = f"{rope_type} with factors of its own" if rope_type == "yarn" else rope_type
    stated = reader.number("rope_theta")
    theta = 10000.0 if stated is None else stated
    if rope_type == "longrope" or not {*_GGUF_DIVISORS}.isdisjoint(reader.files.source.names()):
        return _gguf_longrope(reader, theta, rope_type, options, rotary)
    return Rope(theta, rope_type, _rope_numbers(reader.files, rope_type, options) | _gguf_lengthening(reader))


def _gguf_longrope(reader: ConfigReader, theta: float, rope_type: str, options: Mapping[str, Any], rotary: int) -> Rope:
    """Return the positions of a file with two sets of divisors, of which llama.cpp takes one by its context size.

    The converter of Phi-3 writes the divisors, but not that they are used.
    """
    if rope_type not in ("default", "linear", "longrope") or options["factor"] != 1:
        return Rope(theta, f"longrope with {rope_type}, factor {options['factor']!r}")
    if not {*_GGUF_DIVISORS} <= {*reader.files.source.names()}:
        return Rope(theta, "longrope without two sets of divisors")
    sets = (reader.files.source.rows(name).tolist() for name in _GGUF_DIVISORS)
    short, long = (_divisors(reader.files, *named, rotary // 2) for named in zip(_GGUF_DIVISORS, sets, strict=True))
    key = "original_max_position_embeddings"
    length = positive_number(reader.files, key, options[key] or reader.files.config.get(_longest_key(reader.files)))
    numbers = {key: length, "attention_factor": 1.0, **_gguf_lengthening(reader)}
    return Rope(theta, "longrope", numbers, short, long)


def _gguf_lengthening(reader: ConfigReader) -> dict[str, float]:
    """Return what llama.cpp lengthens rotated queries and keys by, whatever the rule, if the file states it."""
    key = f"{reader.files.config['general.architecture']}.rope.scaling.attn_factor"
    value = reader.files.config.get(key)
    return {} if value is None else {"attention_factor": positive_number(reader.files, key, value)}


def _gguf_options(reader: ConfigReader) -> dict[str, Any]:
    """Return the options of rotary positions as a GGUF file has them.

    In latent attention the multiplier is a tenth of ``mscale_all_dim``, and llama.cpp knows no other ``mscale``. In
    other models that count it, it is ``mscale_all_dim`` (``yarn_multiplied``), beside an ``mscale`` of one.
    """
    scaling = f"{reader.files.config['general.architecture']}.rope.scaling."
    options = {
        name: reader.files.config.get(scaling + key, assumed) for name, (key, assumed) in _GGUF_ROPE_OPTIONS.items()
    }
    multiplier = reader.files.config.get(f"{scaling}yarn_log_multiplier")
    latent = "kv_latent" in reader.layout.config
    factor = 10 if latent else reader.value("yarn_multiplied")
    if multiplier is None or factor is None:
        return options
    length = factor * positive_number(reader.files, f"{scaling}yarn_log_multiplier", multiplier)
    return options | {"mscale": length if latent else 1.0, "mscale_all_dim": length}


def _rope_numbers(files: ModelFiles, rope_type: str, options: Mapping[str, Any]) -> dict[str, float]:
    if rope_type == "yarn":
        return _yarn_numbers(files, options)
    if rope_type == "dynamic":  # transformers 5.24 takes the longest text for the one that the model was trained with
        longest = files.config.get(_longest_key(files))
        factor = positive_number(files, "factor of the dynamic RoPE", options.get("factor"))
        length = positive_number(files, f"{_longest_key(files)}, which the dynamic RoPE needs,", longest)
        return {"factor": factor, "original_max_position_embeddings": length}
    keys = _ROPE_OPTIONS.get(rope_type, ())
    options = {**_ROPE_ASSUMED.get(rope_type, {}), **options}
    return {key: positive_number(files, f"{key} of the {rope_type} RoPE", options.get(key)) for key in keys}


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
    length = positive_number(files, f"{key} of the longrope RoPE", length)
    factor, stated = options.get("factor"), options.get("attention_factor")
    if stated is not None:
        return {
            key: length,
            "attention_factor": positive_number(files, "attention_factor of the longrope RoPE", stated),
        }
    factor = longest / length if factor is None and type(longest) is int else factor
    factor = positive_number(files, "factor of the longrope RoPE", factor)
    if factor > 1 and length <= 1:
        raise BadModel(f"{files.place}: {key} is {length:g}; the longrope RoPE needs more than 1.")
    return {key: length, "attention_factor": math.sqrt(1 + math.log(factor) / math.log(length)) if factor > 1 else 1.0}


def _divisors(files: ModelFiles, name: str, values: object, count: int) -> tuple[float, ...]:
    """Return what frequencies are divided by; raise BadModel where it is no list with a number for each of them."""
    if not isinstance(values, list) or len(values) != count:
        size = f"{len(values)} numbers" if isinstance(values, list) else repr(values)
        raise BadModel(f"{files.place}: {name} is {size}; it must be {count} numbers, one for each rotary frequency.")
    return tuple(positive_number(files, f"{name}, number {i},", value) for i, value in enumerate(values))


def _yarn_numbers(files: ModelFiles, options: Mapping[str, Any]) -> dict[str, float]:
    """Return the options of YaRN, with what transformers assumes for those that are absent."""

    def number(key: str, assumed: Any) -> float:
        value = options.get(key)
        return positive_number(files, f"{key} of the yarn RoPE", assumed if value is None else value)

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
