"""Which files of a folder hold a model's weights, told by their names: transformers' own, their shards and variants."""

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
"""Stem and suffix of the files that transformers writes; the first kind goes before the second."""

LONE = ("pytorch_model.pt", "model.pt")

PLAIN_NAME = re.compile(r"\w[\w.-]{0,200}", re.ASCII)
"""A file name that is no path, hidden file or terminal escape."""

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
"""Patterns of weight files that are not read, and the way from there."""


@dataclass(frozen=True)
class WeightNames:
    """The names of the files that hold the weights, or of the index that names them.

    Attributes:
        suffix: ``safetensors``, ``bin`` or ``pt``.
        files: the weights; empty where an index names them.
        index: the index; empty if there is none.
        notes: what a user should know of this choice.
    """

    suffix: str
    files: tuple[str, ...] = ()
    index: str = ""
    notes: tuple[str, ...] = ()


def weight_names(folder: str, names: Collection[str], config: Mapping[str, Any]) -> WeightNames | None:
    """Choose the weights among the names of a folder, None if it has none that are read.

    What transformers reads comes first, as it chooses: what config.json itself names, then files of the usual names.
    Only where there is none of that: shards without an index, then files of a variant (``model.fp16.safetensors``).

    Raises BadModel, naming ``folder``, for shards without an index that are not all there, for several variants, and
    where config.json names what is not there.
    """
    if (stated := config.get("transformers_weights")) is not None:
        return _stated(folder, names, stated)
    return next((choice for choice in _choices(folder, names) if choice), None)


def no_config(folder: str, names: Collection[str]) -> BadModel:
    """Say that a folder has no config.json, and what is there of another kind, or else what a model may be."""
    others = [name for name in names if not (name.startswith(("model", "pytorch_model")) and name.endswith(_READ))]
    return BadModel(f"{folder} has no config.json. {_other_weights(others) or MODEL_FORMS}")


def no_weights(folder: str, names: Collection[str]) -> BadModel:
    """Say that a folder has no weights that are read, what it should have, and what it has instead."""
    usual = ", ".join([*(name for container in CONTAINERS for name in _usual(*container)), *LONE])
    return BadModel(f"{folder} has no weights; it should have one of {usual}. {_other_weights(names)}".rstrip())


def _other_weights(names: Collection[str]) -> str:
    """Name the weight files that are not read, with the way from there; empty where there are none."""
    plain = [name for name in sorted(names) if not any(fnmatch.fnmatchcase(name, pattern) for pattern in _TRAINING)]
    for pattern, way in _OTHERS:
        if others := fnmatch.filter(plain, pattern):
            return f"It has {in_short(others)}: {way}."
    return ""


def read_index(path: Path) -> dict[str, str]:
    """Read tensor name to shard, each shard a plain file name: an index cannot point out of its folder.

    Raises BadModel for an index that names no tensors or a shard that is a path.
    """
    index = read_json(path).get("weight_map")
    if not isinstance(index, dict) or not index:
        raise BadModel(f"{path} has no weight_map; it should name the shard of each tensor.")
    for tensor, shard in index.items():
        if not isinstance(shard, str) or not PLAIN_NAME.fullmatch(shard):
            raise BadModel(f"{path}: tensor {tensor!r} is said to be in {shard!r}; only a plain file name is right.")
    return index


def gguf_parts(name: str) -> tuple[str, ...]:
    """Names of all parts of a split GGUF file, in order, by the name of one; of any other file its name alone."""
    part = _PART.fullmatch(name)
    if part is None:
        return (name,)
    count, suffix = part["count"], part["suffix"]
    names = tuple(f"{part['stem']}-{number:05d}-of-{count}.{suffix}" for number in range(1, int(count) + 1))
    return names if name in names else (name,)


def _usual(stem: str, suffix: str, variant: str = "") -> tuple[str, str]:
    """The name of the one file and that of the index."""
    return f"{stem}{variant}.{suffix}", f"{stem}.{suffix}.index{variant}.json"


def _stated(folder: str, names: Collection[str], name: Any) -> WeightNames:
    """The weights, or their index, that config.json names under ``transformers_weights``."""
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
    for container in CONTAINERS:
        yield _written(names, *container)
    yield next((WeightNames("pt", (name,)) for name in LONE if name in names), None)
    for container in CONTAINERS:
        yield _shards(folder, names, *container)
    for container in CONTAINERS:
        yield _of_variant(folder, names, *container)


def _written(names: Collection[str], stem: str, suffix: str, variant: str = "") -> WeightNames | None:
    """What save_pretrained writes: one file, or an index with its shards."""
    whole, index = _usual(stem, suffix, variant)
    if whole in names:
        return WeightNames(suffix, (whole,))
    return WeightNames(suffix, index=index) if index in names else None


def _shards(folder: str, names: Collection[str], stem: str, suffix: str, variant: str = "") -> WeightNames | None:
    """Shards whose index is not there, all of them: their names say how many they should be."""
    parts = [part for part in map(_PART.fullmatch, sorted(names)) if part]
    parts = [part for part in parts if (part["stem"], part["suffix"]) == (f"{stem}{variant}", suffix)]
    if not parts:
        return None
    if len(counts := sorted({part["count"] for part in parts})) > 1:
        raise BadModel(
            f"{folder} has shards of several models ({', '.join(f'-of-{count}' for count in counts)}) and no index, "
            f"{_usual(stem, suffix, variant)[1]}, to say which count."
        )
    files = tuple(part.string for part in parts)
    wanted = [f"{stem}{variant}-{i:05d}-of-{counts[0]}.{suffix}" for i in range(1, int(counts[0]) + 1)]
    if missing := sorted(set(wanted) - set(files)):
        raise BadModel(f"{folder} lacks {len(missing)} of its {len(wanted)} shards: {', '.join(missing[:5])}.")
    if odd := sorted(set(files) - set(wanted)):
        raise BadModel(f"{folder} has {odd[0]}, which is none of its {len(wanted)} shards.")
    return WeightNames(suffix, files, notes=(f"No index names the shards; all {len(files)} were read.",))


def _of_variant(folder: str, names: Collection[str], stem: str, suffix: str) -> WeightNames | None:
    """Weights that only a variant has, such as ``model.fp16.safetensors``."""
    pattern = re.compile(_VARIANT.format(stem=stem, suffix=suffix), re.ASCII)
    found = filter(None, map(pattern.fullmatch, names))
    variants = sorted({part["variant"] or part["indexed"] for part in found})
    if not variants:
        return None
    if len(variants) > 1:
        raise BadModel(
            f"{folder} has weights of several variants ({', '.join(variants)}) and none without; call those to be read "
            f"{_usual(stem, suffix)[0]}."
        )
    variant = f".{variants[0]}"
    choice = _written(names, stem, suffix, variant) or _shards(folder, names, stem, suffix, variant)
    note = f"The weights are those of the variant {variants[0]!r}; there are no others."
    return choice and replace(choice, notes=(note, *choice.notes))
