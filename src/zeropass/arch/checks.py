"""Check that a file is as its record says: no tensor missing, none left over, every shape as expected."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from zeropass.arch.config_reader import looked_up
from zeropass.arch.dimensions import Dimensions
from zeropass.arch.families.encoders import NOT_READ
from zeropass.arch.layout import Format, Layout, Names, Stored, expand, full_name, names_of
from zeropass.arch.roles import side_of
from zeropass.arch.rows import expected_shape
from zeropass.arch.spec import Family
from zeropass.checkpoints.base import FLOATS, QUANTISED
from zeropass.checkpoints.model_files import ModelFiles
from zeropass.errors import BadModel, BadOption, BadWeights, UnknownFamily, in_short
from zeropass.numerics.projection import sinusoids

_GUIDE = "(docs/adding-a-family.md)"

__all__ = ["LLAMA_CPP_NAMES", "check", "chosen", "oriented", "records", "refuse_quantised"]

LLAMA_CPP_NAMES = {
    "chatglm": "glm",
    "command-r": "cohere",
    "ernie4_5-moe": "ernie4_5_moe",
    "exaone-moe": "exaone_moe",
    "falcon-h1": "falcon_h1",
    "gemma-embedding": "gemma3_text",
    "gemma4": "gemma4_text",
    "glm-dsa": "glm_moe_dsa",
    "glm4moe": "glm4_moe",
    "gpt-oss": "gpt_oss",
    "gptneox": "gpt_neox",
    "granitehybrid": "granitemoehybrid",
    "hunyuan-dense": "hunyuan_v1_dense",
    "hunyuan-moe": "hunyuan_v1_moe",
    "lfm2moe": "lfm2_moe",
    "llama4": "llama4_text",
    "minimax-m2": "minimax_m2",
    "mistral3": "ministral3",
    "modern-bert": "modernbert",
    "nemotron_h_moe": "nemotron_h",
    "nomic-bert": "nomic_bert",
    "phi2": "phi",
    "qwen2moe": "qwen2_moe",
    "qwen35": "qwen3_5_text",
    "qwen35moe": "qwen3_5_moe_text",
    "qwen3moe": "qwen3_moe",
    "qwen3next": "qwen3_next",
    "qwen3vlmoe": "qwen3_vl_moe_text",
    "starcoder": "gpt_bigcode",
}
"""The names of llama.cpp (``general.architecture``) that differ from transformers' ``model_type``."""


def chosen(files: ModelFiles, families: Iterable[Family], stack: str = "") -> tuple[Family, Layout]:
    """Return the record and layout for a file, by its model type, its stack and the features of its variant.

    Raises:
        UnknownFamily: There is none; the message says what the file claims to be and what is known.
        BadOption: A stack is given, but the model has only one.
    """
    families = tuple(families)
    key = "general.architecture" if files.format == "gguf" else "model_type"
    claim = files.config.get(key)
    name = LLAMA_CPP_NAMES.get(claim, claim) if files.format == "gguf" and isinstance(claim, str) else claim
    if isinstance(name, str) and name in NOT_READ:
        raise UnknownFamily(f"{files.place}: {key} is {claim!r}, which is not read: {NOT_READ[name]}.")
    named = [family for family in families if name in family.model_types]
    if named and stack and not any(family.stack for family in named):
        raise BadOption(f"{files.place}: a {claim} has one stack of layers; open it without #{stack}.")
    of_stack = [family for family in named if family.stack in ("", stack or "encoder")]
    if named and not of_stack:
        raise UnknownFamily(f"{files.place}: of a {claim} the {stack} is not read; open it without #{stack}.")
    named = of_stack
    stored = [family for family in named if family.layout(files.format) is not None]
    if not named:
        known = sorted({family.name for family in families})
        raise UnknownFamily(
            f"{files.place}: {key} is {claim!r}, which is not in the table of families; {_needs(files.source.names())} "
            f"Known: {', '.join(known)}."
        )
    if not stored:
        formats: set[Format] = {layout.format for family in named for layout in family.layouts}
        raise UnknownFamily(
            f"{files.place}: {key} is {claim!r}; the family {named[0].name} is known, but not as a "
            f"{_FORMATS[files.format]}. Give the model as a {' or '.join(_FORMATS[name] for name in sorted(formats))}."
        )
    names = files.source.names()
    layouts = [(family, layout) for family in stored if (layout := family.layout(files.format))]
    for family, layout in sorted(layouts, key=lambda pair: not pair[1].only_with):
        if layout.only_with in ("", *names) and not _differences(files.config, family):
            return family, layout
    differences = min((_differences(files.config, family) for family in stored), key=len)
    raise UnknownFamily(
        f"{files.place}: this is a variant of {claim} that is not known: {'; '.join(differences)}. "
        f"Reading it would need a record of its own {_GUIDE}."
    )


_FORMATS: dict[Format, str] = {"hf": "folder or hub id of safetensors", "gguf": "GGUF file"}
"""The files that a user gives as a model, by format."""

_WITHOUT_ROLES = (
    (r"\.(A_log|ssm_a|x_proj|dt_proj|conv1d)\b", "a state-space"),
    (r"\.(time_decay|time_mix\w*|recurrent_gate\w*|rg_lru)\b", "a recurrent"),
    (r"\.self_attn\.indexer\.", "a sparse-attention"),
)
"""Tensor names that reveal blocks other than MLPs and attention to all tokens or a window."""


def _needs(names: Iterable[str]) -> str:
    """Return what reading a model with these tensors would take, as a clause of a message."""
    ordered = sorted(names)
    for pattern, block in _WITHOUT_ROLES:
        if match := next((name for name in ordered if re.search(pattern, name)), None):
            return (
                f"its tensor {match!r} belongs to {block} block, which zeropass has no roles for: it reads MLPs, and "
                "attention to all tokens or to a window, whose queries, keys and values are linear in what it reads."
            )
    return f"reading it would need a record of its tensors there {_GUIDE}."


def _differences(config: Mapping[str, Any], family: Family) -> list[str]:
    """Return the differences of a configuration from those that a record is for, in words."""
    differences = []
    for key, allowed in family.when.items():
        value = looked_up(config, key)
        if not any(value is known or (value == known and type(value) is type(known)) for known in allowed):
            choices = " or ".join("nothing" if known is None else repr(known) for known in allowed)
            shown = "an object" if isinstance(value, Mapping) else repr(value)
            differences.append(f"{key} is {shown} (known: {choices})")
    return differences


def check(files: ModelFiles, family: Family, layout: Layout, dims: Dimensions, prefix: str, names: Names) -> None:
    """Raise BadWeights for a tensor that is missing or misshapen, UnknownFamily for one that the record lacks."""
    _check_untied(files, layout, dims, prefix, names)
    _check_switches(files, layout, dims, prefix, names)
    _check_extras(files, layout, dims, prefix, names)
    _check_shapes(files, family, layout, dims, prefix, names)
    _check_turned(files, family, layout, dims, prefix, names)
    _check_qk_norms(files, family, layout, dims, prefix, names)
    _check_sinusoids(files, family, layout, dims, prefix, names)
    _check_leftovers(files, family, layout, dims, prefix, names)


def oriented(files: ModelFiles, layout: Layout, dims: Dimensions, prefix: str, names: Names) -> Layout:
    """Return the layout as the files have it: of tensors that stand either way, the shape tells which.

    Raises:
        BadWeights: One of them is square, so that its shape does not tell.
    """
    turned = {}
    for what, stored in layout.tensors.items():
        stems = (full_name(name, prefix) for name in expand(stored, dims)) if stored.either_way else ()
        name = next((name for name in stems if name in names), "")
        shape = files.source.shape(name) if name else ()
        if shape and len(set(shape)) == 1:
            raise BadWeights(
                f"{files.source.path}: tensor {name} has shape {shape}: files have it either way, and a square "
                "one does not tell which."
            )
        transposed = replace(stored, transpose=not stored.transpose)
        if shape and _fits(shape, expected_shape(transposed, what, dims)):
            turned[what] = transposed
    return replace(layout, tensors={**layout.tensors, **turned})


def _check_untied(files: ModelFiles, layout: Layout, dims: Dimensions, prefix: str, names: Names) -> None:
    """Raise BadWeights if an untied model lacks its unembedding, unless it is bare or has the head of a task."""
    stored = layout.tensors.get("unembedding")
    if dims.tied or stored is None or full_name(stored.name, prefix) in names:
        return
    bare = len(layout.prefixes) > 1 and prefix != layout.prefixes[0]
    if not bare and not any(full_name(head.name, prefix) in names for head, _ in layout.extra.values()):
        raise BadWeights(
            f"{files.source.path}: the configuration says the unembedding is not tied, but "
            f"{full_name(stored.name, prefix)} is missing."
        )


def _check_switches(files: ModelFiles, layout: Layout, dims: Dimensions, prefix: str, names: Names) -> None:
    """Raise BadWeights for tensors that the configuration switches off, or that it switches on but are missing."""
    for key, (switched, default) in layout.switches.items():
        value = looked_up(files.config, key)
        on = default if value is None else value
        if not isinstance(on, bool):
            raise BadModel(f"{files.place}: {key} is {value!r}; it must be true or false.")
        tensors = [full_name(name, prefix) for what in switched for name in expand(layout.tensors[what], dims)]
        present = [name for name in tensors if name in names]
        if present and not on:
            raise BadWeights(
                f"{files.source.path}: it has {in_short(map(repr, present))}, but {key} is not true: the model would "
                "not use them."
            )
        if on and tensors and not present:
            raise BadWeights(f"{files.source.path}: {key} is true, but {in_short(map(repr, tensors))} are missing.")


def _check_turned(
    files: ModelFiles, family: Family, layout: Layout, dims: Dimensions, prefix: str, names: Names
) -> None:
    """Raise BadWeights for quantised weights of a Conv1D: what quantises it turns it, as it makes a linear layer.

    The shape of a square one does not show that.
    """
    for what, stored in layout.tensors.items():
        if what not in family.roles or stored.transpose == (side_of(what) == "write") or stored.name.endswith("]"):
            continue  # Methods that quantise stacks of experts say how these lie.
        for name in names.intersection(full_name(plain, prefix) for plain in expand(stored, dims)):
            if (kind := files.source.dtype(name)) in QUANTISED:
                raise BadWeights(
                    f"{files.source.path}: tensor {name} is quantised as {kind}; a {family.name} stores it transposed, "
                    "and what quantises it may turn it. Use the model as it was before, or a GGUF file of it."
                )


def _check_shapes(
    files: ModelFiles, family: Family, layout: Layout, dims: Dimensions, prefix: str, names: Names
) -> None:
    # Required tensors come first: they stop the check at the first missing layer, however many layers are claimed.
    for what, stored in sorted(layout.tensors.items(), key=lambda item: item[0] in layout.optional):
        if what in layout.optional and not any(full_name(plain, prefix) in names for plain in expand(stored, dims)):
            continue
        for layer, name in _placed(stored, dims, prefix):
            expected = expected_shape(stored, what, dims.at(layer) if "{layer}" in stored.name else dims)
            if family.bare_start and what in ("attn_norm", "attn_norm_bias") and layer == 0:
                continue
            if name not in names:
                unnamed = _leftovers(layout, dims, prefix, names)
                others = (
                    f"; there is {in_short(map(repr, unnamed))}, which the {family.name} record does not name"
                    if unnamed
                    else ""
                )
                raise BadWeights(f"{files.source.path}: tensor {name} is missing{others}.")
            shape = files.source.shape(name)
            if not _fits(shape, expected):
                sizes = tuple("any" if size is None else size for size in expected)
                raise BadWeights(
                    f"{files.source.path}: tensor {name} has shape {shape}; the configuration asks for {sizes}."
                )


def _placed(stored: Stored, dims: Dimensions, prefix: str) -> Iterator[tuple[int, str]]:
    """Yield the layer and the name in the file of all tensors that a record entry stands for."""
    for layer in range(dims.layers if "{layer}" in stored.name else 1):
        yield from ((layer, full_name(plain, prefix)) for plain in names_of(stored, layer, dims))


def _fits(shape: tuple[int, ...], expected: tuple[int | None, ...]) -> bool:
    return len(shape) == len(expected) and all(e is None or e == s for e, s in zip(expected, shape, strict=True))


def _check_extras(files: ModelFiles, layout: Layout, dims: Dimensions, prefix: str, names: Names) -> None:
    """Raise BadWeights for vectors outside the usual roles that are not as wide as the stream."""
    for stored, _ in layout.extra.values():
        name = full_name(stored.name, prefix)
        if name not in names:
            continue
        shape = files.source.shape(name)
        width = shape[0] if stored.transpose and len(shape) == 2 else shape[-1] if shape else 0
        if len(shape) not in (1, 2) or width != dims.d:
            raise BadWeights(
                f"{files.source.path}: tensor {name} has shape {shape}; the configuration asks for vectors of {dims.d}."
            )


def _check_qk_norms(
    files: ModelFiles, family: Family, layout: Layout, dims: Dimensions, prefix: str, names: Names
) -> None:
    """Raise BadWeights for gains of queries and keys that are not as long as one head, or as all of them."""
    heads_of = {"q": dims.heads, "k": dims.kv_heads}
    for what, heads in ((f"{role}_{part}", heads_of[role]) for role in "qk" for part in ("norm", "norm_bias")):
        stored = layout.tensors.get(what)
        if stored is None:
            continue
        for layer, name in _placed(stored, dims, prefix):
            size = dims.at(layer).head_dim * (heads if family.qk_norm == "whole" else 1)
            if name in names and files.source.shape(name) != (size,):
                raise BadWeights(
                    f"{files.source.path}: tensor {name} has shape {files.source.shape(name)}; a {family.name} of "
                    f"these sizes has {(size,)}."
                )


_ROUNDING = {"BF16": 2**-8}
"""The largest difference of a stored sine to a computed one, where it is not that of angles in float32."""


def _check_sinusoids(
    files: ModelFiles, family: Family, layout: Layout, dims: Dimensions, prefix: str, names: Names
) -> None:
    """Raise BadWeights for a stored table of positions that is not the one that the family computes."""
    if not family.sinusoids:
        return
    for name in names.intersection(full_name(plain, prefix) for plain in layout.sinusoids):
        shape, first = files.source.shape(name), family.first_position
        if not _fits(shape, (dims.longest, dims.d)) or shape[0] <= first:
            size = "any" if dims.longest is None else dims.longest
            raise BadWeights(
                f"{files.source.path}: tensor {name} has shape {shape}; the configuration asks for {(size, dims.d)}."
            )
        stored = torch.from_numpy(files.source.rows(name))[first:]
        away = (stored - sinusoids(family.sinusoids, first, shape[0], dims.d)).abs().max()
        if not away <= _ROUNDING.get(files.source.dtype(name), 1e-3):  # a NaN is not
            raise BadWeights(
                f"{files.source.path}: tensor {name} is up to {away:.1g} away from the sines and cosines that a "
                f"{family.name} computes; positions that were trained would need a record of its own {_GUIDE}."
            )


_QUANTISED = (
    (r"\.g_idx$", "GPTQ"),
    (r"\.q?biases$", "MLX"),
    (r"\.W_q$", "HQQ"),
    (r"\._weight_qdata$", "torchao"),
    (r"\.(qweight|qzeros|scales)$", "AWQ or GPTQ"),
    (r"\.(absmax|quant_map|nested_absmax|nested_quant_map|SCB)$|\.quant_state\.", "bitsandbytes"),
    (r"(_scale_inv|\.weight_scale|\.input_scale)$", "FP8 with scales"),
    (r"_proj_(blocks|scales)$", "MXFP4"),
    (r"(\.lora_[AB]\.|\.lora_(down|up)\.)", "a LoRA that is not merged: give the base, and the adapter by --adapter"),
)
"""Patterns of tensor names that reveal formats in which the stored numbers are not the weights. Those of quantised
weights are seen only where `dequantised` does not know how to read them."""

_METHODS = {
    "gptq": "GPTQ",
    "awq": "AWQ",
    "fp8": "FP8",
    "fbgemm_fp8": "FP8",
    "mxfp4": "MXFP4",
    "metal": "MLX",
    "mlx": "MLX",
    "modelopt": "ModelOpt",
    "bitnet": "BitNet",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors",
    "torchao": "torchao",
    "hqq": "HQQ",
    "quanto": "Quanto",
    "eetq": "EETQ",
    "auto-round": "AutoRound",
}
"""Methods whose tensors or types differ from those of the original model."""

_ROUNDED_WHEN_USED = ("bitnet",)
"""Methods whose plain numbers are not those that a model computes with."""


def refuse_quantised(files: ModelFiles, names: Names) -> tuple[str, ...]:
    """Return notes on a configuration that quantises weights stored as plain numbers.

    Raises:
        BadModel: The weights are quantised in a way that is not read; the message names the format.
    """
    settings = files.config.get("quantization_config")
    for pattern, method in _QUANTISED:
        if matches := sorted(name for name in names if re.search(pattern, name)):
            stated = str(settings)[:100] if settings else "absent"
            raise BadModel(
                f"{files.source.path}: tensor {matches[0]!r} belongs to a format that is not read here ({method}). "
                "Use the model as it was before, or a GGUF file of it. Quantised weights are read from safetensors "
                f"whose quantization_config says how they are stored; it is {stated}."
            )
    if not settings:
        return ()
    if not isinstance(settings, Mapping):
        raise BadModel(f"{files.place}: quantization_config is {settings!r}; it must be an object.")
    method = str(settings.get("quant_method", "unknown"))
    flags = [key for key, value in settings.items() if value is True and key.startswith("load_in_")]
    named = ", ".join([_METHODS.get(method, method), *flags])
    types = sorted({files.source.dtype(name) for name in names})
    plain = set(types) <= set(FLOATS)
    if method not in _METHODS or not set(types) <= {*FLOATS, *QUANTISED} or (plain and method in _ROUNDED_WHEN_USED):
        raise BadModel(
            f"{files.place}: the weights are quantised as {named} (quantization_config, stored as {', '.join(types)}), "
            "which is not read. Use the model as it was before, or a GGUF file of it."
        )
    if not plain:
        return ()
    return (
        f"The configuration says that the weights are quantised as {named}; they are stored as {', '.join(types)} and "
        "read as they are. What loads them may quantise them.",
    )


def _check_leftovers(
    files: ModelFiles, family: Family, layout: Layout, dims: Dimensions, prefix: str, names: Names
) -> None:
    """Raise UnknownFamily for a tensor that the record does not name: the layout is an unknown one; never guess."""
    if unnamed := _leftovers(layout, dims, prefix, names):
        raise UnknownFamily(
            f"{files.source.path}: this is not the {family.name} layout that zeropass knows: the "
            f"record does not name {in_short(map(repr, unnamed))}. Reading it would need a record of its own {_GUIDE}."
        )


def _leftovers(layout: Layout, dims: Dimensions, prefix: str, names: Names) -> list[str]:
    """Return the tensors that a record neither reads nor names as unread, in order."""
    known = {full_name(name, prefix) for stored in records(layout) for name in expand(stored, dims)}
    known |= {full_name(name, prefix) for name in (*layout.copies, layout.head, *layout.sinusoids) if name}
    unread = [
        re.compile(re.escape(prefix) + pattern if not pattern.startswith(r"\^") else pattern[2:])
        for pattern in layout.unread
    ]
    stem = full_name(layout.queries.name.partition("{layer}")[0], prefix)
    beyond = tuple(f"{stem}{dims.layers + n}." for n in range(dims.beyond))
    left = (name for name in names - known if not name.startswith(beyond))
    return sorted(name for name in left if not any(pattern.fullmatch(name) for pattern in unread))


def records(layout: Layout) -> list[Stored]:
    """Return all entries that a layout reads."""
    return [*layout.tensors.values(), *(stored for stored, _ in layout.extra.values())]
