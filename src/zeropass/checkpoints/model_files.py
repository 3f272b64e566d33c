"""The parts of the model that a user names or holds: configuration, tokenizer, weights."""

import fnmatch
import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from zeropass._io.short_repr import ShortRepr
from zeropass._io.untrusted import read_json
from zeropass.checkpoints.base import TensorSource
from zeropass.checkpoints.demo import DEMOS, MODEL_FORMS, fetch_demo
from zeropass.checkpoints.gguf import GgufSource
from zeropass.checkpoints.hub import fetch_hub
from zeropass.checkpoints.object_store import fetch_url, is_url
from zeropass.checkpoints.quantised import SEPARATE, dequantised, with_settings
from zeropass.checkpoints.safetensors import SafetensorsSource
from zeropass.checkpoints.state_dict import StateDictSource
from zeropass.checkpoints.torchbin import TorchBinSource
from zeropass.checkpoints.weight_files import WeightNames, no_config, no_weights, read_index, weight_names
from zeropass.errors import BadModel
from zeropass.tokens.tokenizer_files import given_tokenizer, tokenizer_json

__all__ = ["Hashes", "ModelFiles", "files_in_memory", "fingerprint", "hashes", "open_files"]

CHUNK = 1 << 20


@dataclass(frozen=True)
class Hashes:
    """The hashes that identify some files.

    Attributes:
        fingerprint: SHA-256 (hexadecimal) over the sizes and contents of all files, in the order of their names.
        sha256: File name to the SHA-256 of its content, as ``sha256sum`` prints it.
    """

    fingerprint: str
    sha256: dict[str, str]


@dataclass(frozen=True, repr=False)
class ModelFiles(ShortRepr):
    """The opened files of one model, or their like in memory; no tensor has been read yet.

    Attributes:
        name: The user's name of the model.
        format: ``hf`` (a folder with config.json) or ``gguf`` (one file).
        path: The folder or the file; None for a model in memory.
        config: The content of config.json, or the metadata of a GGUF file without ``tokenizer.*``.
        source: The weights.
        tokenizer_json: The content of tokenizer.json (``hf``), else None.
        tokenizer_metadata: The ``tokenizer.*`` keys of a GGUF file, else empty.
        weight_files: The files that hold the weights; none for a model in memory.
        notes: Notes for the user on how these files were read, a sentence each.
        unindexed: Tensors of the shards that their index does not name, and that are therefore no part of the model.
        state: The tensors of a model in memory, under the names that they have there; None for files.
    """

    name: str
    format: Literal["hf", "gguf"]
    path: Path | None
    config: dict[str, Any]
    source: TensorSource
    tokenizer_json: bytes | None
    tokenizer_metadata: dict[str, Any]
    weight_files: tuple[Path, ...]
    notes: tuple[str, ...] = ()
    unindexed: frozenset[str] = frozenset()
    state: StateDictSource | None = None

    @property
    def place(self) -> str:
        """The folder, the file or the name of a model in memory, for messages."""
        return self.name if self.path is None else str(self.path)

    @cached_property
    def hashes(self) -> Hashes:
        """The hashes of the weight files, each read once."""
        return hashes(self.weight_files)

    @property
    def fingerprint(self) -> str:
        """The hash of the weights: of the files' contents, or of the values of a model in memory."""
        return self.hashes.fingerprint if self.state is None else self.state.fingerprint

    @property
    def size(self) -> int:
        """The size of the weights in bytes."""
        return sum(path.stat().st_size for path in self.weight_files) if self.state is None else self.state.size


def open_files(model: str) -> ModelFiles:
    """Find and open a model.

    Args:
        model: A demo name, a folder, a .gguf file, a hub id ``owner/name[@revision]``, or a URL of object storage.

    Raises:
        BadModel: If a file is missing, damaged or unsafe.
        NotFetched: If the model cannot be downloaded.
    """
    path = _locate(model)
    if path.is_dir():
        return _open_folder(model, path)
    if path.suffix.lower() == ".gguf":
        return _open_gguf(model, path)
    raise BadModel(f"{model} is not a .gguf file; of other weight files give the folder. {MODEL_FORMS}")


def files_in_memory(
    name: str, state: StateDictSource, config: dict[str, Any], tokenizer: object, notes: Sequence[str] = ()
) -> ModelFiles:
    """Return the parts of a model in memory, as if they had been opened from a folder.

    Args:
        name: The name of the model.
        state: The tensors under the names of transformers' files.
        config: The configuration as config.json has it.
        tokenizer: What `given_tokenizer` takes.
        notes: Notes for the user on how the model was read, a sentence each.

    Raises:
        BadModel: If there are no tensors, or the tokenizer cannot be read.
        BadOption: If the tokenizer is none.
    """
    return ModelFiles(
        name=name,
        format="hf",
        path=None,
        config=config,
        source=_require_tensors(state),
        tokenizer_json=given_tokenizer(tokenizer),
        tokenizer_metadata={},
        weight_files=(),
        notes=tuple(notes),
        state=state,
    )


def hashes(files: Sequence[Path]) -> Hashes:
    """Hash files, reading each once."""
    total, sha256 = hashlib.sha256(), {}
    for file in sorted(files, key=lambda file: file.name):
        digest = hashlib.sha256()
        total.update(file.stat().st_size.to_bytes(8, "little"))
        with file.open("rb") as stream:
            while chunk := stream.read(CHUNK):
                total.update(chunk)
                digest.update(chunk)
        sha256[file.name] = digest.hexdigest()
    return Hashes(total.hexdigest(), sha256)


def fingerprint(files: Sequence[Path]) -> str:
    """Return one hash of all files, which does not depend on their folder."""
    return hashes(files).fingerprint


def _locate(model: str) -> Path:
    """Return the local path of a model; a name that is no demo and no path may be a hub id."""
    if model in DEMOS:
        return fetch_demo(model)
    if is_url(model):
        return fetch_url(model)
    try:
        path = Path(model).expanduser()
        if model and path.exists():
            return path
    except (OSError, RuntimeError) as error:  # a name too long, a folder without permission, an unknown ~user
        raise BadModel(f"{model!r} cannot be looked up: {error}. {MODEL_FORMS}") from error
    repo_id, _, revision = model.partition("@")
    local = model.startswith((".", "/", "~")) or model.lower().endswith(".gguf")
    if local or repo_id.count("/") != 1:
        raise BadModel(f"There is no file or folder {model!r}{_like_demo(model)}. {MODEL_FORMS}")
    return fetch_hub(repo_id, revision if "@" in model else None)


def _open_gguf(name: str, path: Path) -> ModelFiles:
    source = GgufSource(path)
    tokenizer = {k: v for k, v in source.metadata.items() if k.startswith("tokenizer.")}
    config = {k: v for k, v in source.metadata.items() if not k.startswith(("tokenizer.", "split."))}
    return ModelFiles(
        name=name,
        format="gguf",
        path=source.files[0],
        config=config,
        source=_require_tensors(source),
        tokenizer_json=None,
        tokenizer_metadata=tokenizer,
        weight_files=source.files,
    )


def _open_folder(name: str, folder: Path) -> ModelFiles:
    names = _names(folder)
    if "config.json" not in names:
        raise _no_config(folder, names)
    separate = read_json(folder / SEPARATE) if SEPARATE in names else None
    config = with_settings(read_json(folder / "config.json"), separate)
    tokenizer = tokenizer_json(folder)
    choice = weight_names(str(folder), names, config)
    if choice is None:
        raise no_weights(str(folder), names)
    index = read_index(folder / choice.index) if choice.index else None
    files = _shards(folder, index, names) if index else tuple(folder / file for file in choice.files)
    stored = (SafetensorsSource if choice.suffix == "safetensors" else TorchBinSource)(files, index)
    source = dequantised(stored, config, str(folder)) if isinstance(stored, SafetensorsSource) else stored
    merged = stored.merged
    return ModelFiles(
        name=name,
        format="hf",
        path=folder,
        config=config,
        source=_require_tensors(source),
        tokenizer_json=tokenizer,
        tokenizer_metadata={},
        weight_files=files,
        notes=(*choice.notes, *_unnamed_shards(names, choice, files), *merged.notes),
        unindexed=merged.unindexed,
    )


def _names(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        raise BadModel(f"{folder} cannot be read: {error}.") from error


def _no_config(folder: Path, names: Collection[str]) -> BadModel:
    """Return the error for a folder without config.json, which may be that of an adapter."""
    if "adapter_config.json" in names:
        base = read_json(folder / "adapter_config.json").get("base_model_name_or_path", "its base")
        return BadModel(
            f"{folder} is an adapter and no model: give the model that it was trained on ({base}), and the adapter "
            "by --adapter."
        )
    return no_config(str(folder), names)


def _require_tensors(source: TensorSource) -> TensorSource:
    """Return the source. Raises BadModel if it holds no tensors."""
    if not source.names():
        raise BadModel(f"{source.path} holds no tensors.")
    return source


def _shards(folder: Path, index: Mapping[str, str], names: Collection[str]) -> tuple[Path, ...]:
    """Return the shards that an index names. Raises BadModel if some are missing."""
    shards = sorted(set(index.values()))
    if missing := [shard for shard in shards if shard not in names]:
        raise BadModel(f"{folder} lacks {len(missing)} of its {len(shards)} shards: {', '.join(missing[:5])}.")
    return tuple(folder / shard for shard in shards)


def _unnamed_shards(names: Collection[str], choice: WeightNames, files: Sequence[Path]) -> Iterator[str]:
    """Yield a note about the shards in the folder that the index does not name."""
    others = set(fnmatch.filter(names, f"*-of-*.{choice.suffix}")) - {file.name for file in files}
    if choice.index and others:
        yield f"Not read, since {choice.index} does not name them: {', '.join(sorted(others))}."


def _like_demo(name: str) -> str:
    """Return a question after the demo model whose name is like this one, if there is one."""
    like = get_close_matches(name.lower().removesuffix("-instruct"), DEMOS, n=1)
    return f" (did you mean {like[0]}?)" if like else ""
