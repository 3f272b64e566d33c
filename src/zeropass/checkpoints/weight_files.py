"""The choice of a folder's weight files by their names: those of transformers, their shards and variants."""

import fnmatch
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from zeropass._io.untrusted import read_json
from zeropass.checkpoints.demo import MODEL_FORMS
from zeropass.errors import BadModel, in_short

__all__ = ["CONTAINERS", "WeightNames", "gguf_parts", "no_config", "no_weights", "read_index", "weight_names"]

CONTAINERS = (("model", "safetensors"), ("pytorch_model", "bin"))
"""Stem and suffix of the files that transformers writes, in order of preference."""

LONE = ("pytorch_model.pt", "model.pt")

PLAIN_NAME = re.compile(r"\w[\w.-]{0,200}", re.ASCII)
"""A plain file name: no path, no hidden file, no terminal escape."""

_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.(?P<suffix>\w+)", re.ASCII | re.DOTALL)
_VARIANT = r"{stem}\.(?P<variant>\w+)(-\d{{5}}-of-\d{{5}})?\.{suffix}|{stem}\.{suffix}\.index\.(?P<indexed>\w+)\.json"

_READ = (".safetensors", ".bin", ".pt")
_PICKLED = ("bin", "pt", "pth")
_TRAINING = ("training_args*", "optimizer*", "scheduler*", "scaler*", "rng_state*")
_OTHERS = (
    ("*.gguf", "give the file itself"),
    ("adapter_model.*", "give the model that the adapter was trained on, and this folder by --adapter"),
    ("consolidated*", "that is the layout of its authors' own code; give the model in that of transformers"),
    ("tf_model*.h5", "let transformers 4 load it (from_tf=True) and save it as safetensors"),
    ("flax_model*.msgpack", "let transformers 4 load it (from_flax=True) and save it as safetensors"),
    ("*.onnx", "that is an exported graph; give the model that it was made from"),
    ("*.safetensors", "that is no usual name; if it is the whole model, call it model.safetensors"),
    *((f"*.{s}", "that is no usual name; if it is the whole model, call it pytorch_model.bin") for s in _PICKLED),
    *((f"*.{s}", "such a file is not read; save the model as safetensors") for s in ("ckpt", "h5", "msgpack", "npz")),
)
"""Patterns of weight files that are not read, with advice for each."""


@dataclass(frozen=True)
class WeightNames:
    """The names of the files that hold the weights, or of the index that names them.

    Attributes:
        suffix: ``safetensors``, ``bin`` or ``pt``.
        files: The weights; empty where an index names them.
        index: The index; empty if there is none.
        notes: Notes for the user on this choice.
    """

    suffix: str
    files: tuple[str, ...] = ()
    index: str = ""
    notes: tuple[str, ...] = ()


def weight_names(folder: str, names: Collection[str], config: Mapping[str, Any]) -> WeightNames | None:
    """Choose the weights among the files of a folder.

    The choice of transformers comes first: the file that config.json names, then the usual names. After these come
    shards without an index, then a variant (``model.fp16.safetensors``).

    Args:
        folder: The folder's name, for messages.
        names: The names of its files.
        config: The content of config.json.

    Returns:
        The weights, or None if there are none that zeropass reads.

    Raises:
        BadModel: For an incomplete set of shards without an index, for several variants, and for a config.json that
            names a missing file.
    """
    if (stated := config.get("transformers_weights")) is not None:
        return _from_config(folder, names, stated)
    return next((choice for choice in _choices(folder, names) if choice), None)


def no_config(folder: str, names: Collection[str]) -> BadModel:
    """Return the error for a folder without config.json, naming other weights in it or the forms of a model."""
    others = [name for name in names if not (name.startswith(("model", "pytorch_model")) and name.endswith(_READ))]
    return BadModel(f"{folder} has no config.json. {_other_weights(others) or MODEL_FORMS}")


def no_weights(folder: str, names: Collection[str]) -> BadModel:
    """Return the error for a folder without readable weights: what it should have, and what it has instead."""
    usual = ", ".join([*(name for container in CONTAINERS for name in _usual_names(*container)), *LONE])
    return BadModel(f"{folder} has no weights; it should have one of {usual}. {_other_weights(names)}".rstrip())


def _other_weights(names: Collection[str]) -> str:
    """Return a sentence on weight files that are not read, with advice; empty if there are none."""
    others = [name for name in sorted(names) if not any(fnmatch.fnmatchcase(name, pattern) for pattern in _TRAINING)]
    for pattern, advice in _OTHERS:
        if matches := fnmatch.filter(others, pattern):
            return f"It has {in_short(matches)}: {advice}."
    return ""


def read_index(path: Path) -> dict[str, str]:
    """Read the shard of each tensor; shards must be plain file names, so that an index cannot point out of its folder.

    Args:
        path: The index file.

    Returns:
        Tensor name to the file name of its shard.

    Raises:
        BadModel: For an index that names no tensors, or a shard by a path.
    """
    index = read_json(path).get("weight_map")
    if not isinstance(index, dict) or not index:
        raise BadModel(f"{path} has no weight_map; it should name the shard of each tensor.")
    for tensor, shard in index.items():
        if not isinstance(shard, str) or not PLAIN_NAME.fullmatch(shard):
            raise BadModel(f"{path}: tensor {tensor!r} is said to be in {shard!r}; only a plain file name is right.")
    return index


def gguf_parts(name: str) -> tuple[str, ...]:
    """Return the names of all parts of a split GGUF file in order, given one; any other name is returned alone."""
    part = _PART.fullmatch(name)
    if part is None:
        return (name,)
    count, suffix = part["count"], part["suffix"]
    names = tuple(f"{part['stem']}-{number:05d}-of-{count}.{suffix}" for number in range(1, int(count) + 1))
    return names if name in names else (name,)


def _usual_names(stem: str, suffix: str, variant: str = "") -> tuple[str, str]:
    """Return the usual name of a single weight file and that of an index."""
    return f"{stem}{variant}.{suffix}", f"{stem}.{suffix}.index{variant}.json"


def _from_config(folder: str, names: Collection[str], name: Any) -> WeightNames:
    """Return the weights, or their index, that config.json names under ``transformers_weights``."""
    if isinstance(name, str) and PLAIN_NAME.fullmatch(name) and name in names:
        if name.endswith(".safetensors"):
            return WeightNames("safetensors", (name,))
        if name.endswith(".safetensors.index.json"):
            return WeightNames("safetensors", index=name)
    raise BadModel(
        f"{folder}: transformers_weights in config.json is {name!r}; it should be the name of a .safetensors file that "
        "is there, or of an index of such files."
    )


def _choices(folder: str, names: Collection[str]) -> Iterator[WeightNames | None]:
    """Yield the possible choices in order of preference, None where a folder has no such files."""
    for container in CONTAINERS:
        yield _saved(names, *container)
    yield next((WeightNames("pt", (name,)) for name in LONE if name in names), None)
    for container in CONTAINERS:
        yield _shards(folder, names, *container)
    for container in CONTAINERS:
        yield _of_variant(folder, names, *container)


def _saved(names: Collection[str], stem: str, suffix: str, variant: str = "") -> WeightNames | None:
    """Return the files that save_pretrained writes, a single one or an index with its shards; None without them."""
    file, index = _usual_names(stem, suffix, variant)
    if file in names:
        return WeightNames(suffix, (file,))
    return WeightNames(suffix, index=index) if index in names else None


def _shards(folder: str, names: Collection[str], stem: str, suffix: str, variant: str = "") -> WeightNames | None:
    """Return a complete set of shards without an index, None if there are none. Their names state their number."""
    parts = [part for part in map(_PART.fullmatch, sorted(names)) if part]
    parts = [part for part in parts if (part["stem"], part["suffix"]) == (f"{stem}{variant}", suffix)]
    if not parts:
        return None
    if len(counts := sorted({part["count"] for part in parts})) > 1:
        raise BadModel(
            f"{folder} has shards of several models ({', '.join(f'-of-{count}' for count in counts)}) and no index, "
            f"{_usual_names(stem, suffix, variant)[1]}, to say which count."
        )
    files = tuple(part.string for part in parts)
    expected = [f"{stem}{variant}-{i:05d}-of-{counts[0]}.{suffix}" for i in range(1, int(counts[0]) + 1)]
    if missing := sorted(set(expected) - set(files)):
        raise BadModel(f"{folder} lacks {len(missing)} of its {len(expected)} shards: {', '.join(missing[:5])}.")
    if odd := sorted(set(files) - set(expected)):
        raise BadModel(f"{folder} has {odd[0]}, which is none of its {len(expected)} shards.")
    return WeightNames(suffix, files, notes=(f"No index names the shards; all {len(files)} were read.",))


def _of_variant(folder: str, names: Collection[str], stem: str, suffix: str) -> WeightNames | None:
    """Return the weights of the only variant, such as ``model.fp16.safetensors``; None if there is no variant."""
    pattern = re.compile(_VARIANT.format(stem=stem, suffix=suffix), re.ASCII)
    matches = filter(None, map(pattern.fullmatch, names))
    variants = sorted({match["variant"] or match["indexed"] for match in matches})
    if not variants:
        return None
    if len(variants) > 1:
        raise BadModel(
            f"{folder} has weights of several variants ({', '.join(variants)}) and none without; call those to be read "
            f"{_usual_names(stem, suffix)[0]}."
        )
    variant = f".{variants[0]}"
    choice = _saved(names, stem, suffix, variant) or _shards(folder, names, stem, suffix, variant)
    note = f"The weights are those of the variant {variants[0]!r}; there are no others."
    return choice and replace(choice, notes=(note, *choice.notes))
