"""From what a user calls a model to its files: configuration, tokenizer, weights."""

import fnmatch
import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from zeropass._io.untrusted import read_json
from zeropass.checkpoints.base import TensorSource
from zeropass.checkpoints.demo import DEMOS, MODEL_FORMS, fetch_demo
from zeropass.checkpoints.gguf import GgufSource
from zeropass.checkpoints.hub import fetch_hub
from zeropass.checkpoints.object_store import fetch_url, is_url
from zeropass.checkpoints.safetensors import SafetensorsSource
from zeropass.checkpoints.torchbin import TorchBinSource
from zeropass.checkpoints.weight_files import WeightNames, no_config, no_weights, read_index, weight_names
from zeropass.errors import BadModel
from zeropass.tokens.tokenizer_files import tokenizer_json

__all__ = ["Hashes", "ModelFiles", "fingerprint", "hashes", "open_files"]

CHUNK = 1 << 20


@dataclass(frozen=True)
class Hashes:
    """What tells files apart from all others.

    Attributes:
        fingerprint: SHA-256 (hexadecimal) over the sizes and contents of all files, in the order of their names.
        sha256: file name to the SHA-256 of its content, as ``sha256sum`` prints it.
    """

    fingerprint: str
    sha256: dict[str, str]


@dataclass(frozen=True)
class ModelFiles:
    """The opened files of one model; no tensor has been read yet.

    Attributes:
        name: what the user called it.
        format: ``hf`` (a folder with config.json) or ``gguf`` (one file).
        path: the folder or the file.
        config: config.json, or the metadata of a GGUF file without ``tokenizer.*``.
        source: the weights.
        tokenizer_json: content of tokenizer.json (``hf``), else None.
        tokenizer_metadata: the ``tokenizer.*`` keys of a GGUF file, else empty.
        weight_files: the files that hold the weights.
        notes: what a user should know of how these files were read, a sentence each.
        unindexed: tensors that lie in the shards and not in their index, so that they are no part of the model.
    """

    name: str
    format: Literal["hf", "gguf"]
    path: Path
    config: dict[str, Any]
    source: TensorSource
    tokenizer_json: bytes | None
    tokenizer_metadata: dict[str, Any]
    weight_files: tuple[Path, ...]
    notes: tuple[str, ...] = ()
    unindexed: frozenset[str] = frozenset()

    @cached_property
    def hashes(self) -> Hashes:
        """The hashes of the weight files, which are read once for it."""
        return hashes(self.weight_files)


def open_files(model: str) -> ModelFiles:
    """Find and open a model: a demo name, a folder, a .gguf file, or a hub id ``owner/name[@revision]``.

    Raises BadModel if a file is missing, damaged or unsafe, NotFetched if a model cannot be downloaded.
    """
    path = _locate(model)
    if path.is_dir():
        return _open_folder(model, path)
    if path.suffix.lower() == ".gguf":
        return _open_gguf(model, path)
    raise BadModel(f"{model} is not a .gguf file; of other weight files give the folder. {MODEL_FORMS}")


def hashes(files: Sequence[Path]) -> Hashes:
    """Hash files, reading each once."""
    together, each = hashlib.sha256(), {}
    for file in sorted(files, key=lambda file: file.name):
        alone = hashlib.sha256()
        together.update(file.stat().st_size.to_bytes(8, "little"))
        with file.open("rb") as stream:
            while chunk := stream.read(CHUNK):
                together.update(chunk)
                alone.update(chunk)
        each[file.name] = alone.hexdigest()
    return Hashes(together.hexdigest(), each)


def fingerprint(files: Sequence[Path]) -> str:
    """One hash of all files, which does not depend on where they lie."""
    return hashes(files).fingerprint


def _locate(model: str) -> Path:
    """Local path of a model; what is neither a demo nor there is taken for a hub id if it looks like one."""
    if model in DEMOS:
        return fetch_demo(model)
    if is_url(model):
        return fetch_url(model)
    try:
        path = Path(model).expanduser()
        if model and path.exists():
            return path
    except (OSError, RuntimeError) as error:  # a name too long, a folder closed to us, an unknown ~user
        raise BadModel(f"{model!r} cannot be looked up: {error}. {MODEL_FORMS}") from error
    repo_id, _, revision = model.partition("@")
    local = model.startswith((".", "/", "~")) or model.lower().endswith(".gguf")
    if local or repo_id.count("/") != 1:
        raise BadModel(f"There is no file or folder {model!r}. {MODEL_FORMS}")
    return fetch_hub(repo_id, revision if "@" in model else None)


def _open_gguf(name: str, path: Path) -> ModelFiles:
    source = GgufSource(path)
    tokenizer = {k: v for k, v in source.metadata.items() if k.startswith("tokenizer.")}
    config = {k: v for k, v in source.metadata.items() if not k.startswith(("tokenizer.", "split."))}
    return ModelFiles(name, "gguf", source.files[0], config, _holding(source), None, tokenizer, source.files)


def _open_folder(name: str, folder: Path) -> ModelFiles:
    names = _names(folder)
    if "config.json" not in names:
        raise _no_config(folder, names)
    config = read_json(folder / "config.json")
    tokenizer = tokenizer_json(folder)
    choice = weight_names(str(folder), names, config)
    if choice is None:
        raise no_weights(str(folder), names)
    index = read_index(folder / choice.index) if choice.index else None
    files = _shards(folder, index, names) if index else tuple(folder / file for file in choice.files)
    source = (SafetensorsSource if choice.suffix == "safetensors" else TorchBinSource)(files, index)
    merged = source.merged
    return ModelFiles(
        name=name,
        format="hf",
        path=folder,
        config=config,
        source=_holding(source),
        tokenizer_json=tokenizer,
        tokenizer_metadata={},
        weight_files=files,
        notes=(*choice.notes, *_not_named(names, choice, files), *merged.notes),
        unindexed=merged.unindexed,
    )


def _names(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        raise BadModel(f"{folder} cannot be read: {error}.") from error


def _no_config(folder: Path, names: Collection[str]) -> BadModel:
    if "adapter_config.json" in names:
        base = read_json(folder / "adapter_config.json").get("base_model_name_or_path", "its base")
        return BadModel(
            f"{folder} is an adapter and no model: give the model that it was trained on ({base}), and the adapter "
            "by --adapter."
        )
    return no_config(str(folder), names)


def _holding(source: TensorSource) -> TensorSource:
    """The source, if it has a tensor at all."""
    if not source.names():
        raise BadModel(f"{source.path} holds no tensors.")
    return source


def _shards(folder: Path, index: Mapping[str, str], names: Collection[str]) -> tuple[Path, ...]:
    shards = sorted(set(index.values()))
    if missing := [shard for shard in shards if shard not in names]:
        raise BadModel(f"{folder} lacks {len(missing)} of its {len(shards)} shards: {', '.join(missing[:5])}.")
    return tuple(folder / shard for shard in shards)


def _not_named(names: Collection[str], choice: WeightNames, files: Sequence[Path]) -> Iterator[str]:
    """A note of the shards that lie there and that the index does not name."""
    others = set(fnmatch.filter(names, f"*-of-*.{choice.suffix}")) - {file.name for file in files}
    if choice.index and others:
        yield f"Not read, since {choice.index} does not name them: {', '.join(sorted(others))}."
