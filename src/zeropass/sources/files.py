"""From what a user calls a model to its files: configuration, tokenizer, weights."""

import hashlib
import heapq
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from zeropass.disk import parse_json
from zeropass.errors import BadModel
from zeropass.sources.base import TensorSource
from zeropass.sources.demo import DEMOS, MODEL_FORMS, fetch_demo
from zeropass.sources.gguf import GgufSource
from zeropass.sources.hub import fetch_hub
from zeropass.sources.safetensors import SafetensorsSource
from zeropass.sources.storage import fetch_url, is_url
from zeropass.sources.torchbin import TorchBinSource

__all__ = ["ModelFiles", "fingerprint", "open_files"]

CHUNK = 1 << 20
MAX_JSON = 256 << 20
"""Largest JSON file that is read, in bytes; the largest tokenizers have some tens of millions."""

PLAIN_NAME = re.compile(r"\w[\w.-]{0,200}", re.ASCII)
"""A file name that is no path, hidden file or terminal escape."""

OpenSource = Callable[[Sequence[Path], Mapping[str, str] | None], TensorSource]

WEIGHT_FILES: tuple[tuple[str, OpenSource], ...] = (
    ("model.safetensors", SafetensorsSource),
    ("model.safetensors.index.json", SafetensorsSource),
    ("pytorch_model.bin", TorchBinSource),
    ("pytorch_model.bin.index.json", TorchBinSource),
    ("pytorch_model.pt", TorchBinSource),
    ("model.pt", TorchBinSource),
)
"""Names of weight files in a folder; the first that is there is used. An index names the shards."""


USUAL_SPECIAL_TOKENS = ["<|endoftext|>", "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
"""Special tokens of GPT-2 and BERT, whose older folders do not name them."""


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


def fingerprint(files: Sequence[Path]) -> str:
    """SHA-256 (hexadecimal) over the contents of the files, in the order of their names."""
    digest = hashlib.sha256()
    for file in sorted(files, key=lambda file: file.name):
        digest.update(file.stat().st_size.to_bytes(8, "little"))
        with file.open("rb") as stream:
            while chunk := stream.read(CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


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
    if (parts := source.metadata.get("split.count", 1)) not in (0, 1):
        raise BadModel(
            f"{path} is one of {parts} parts of a model; join them to one file first, with llama.cpp's "
            "llama-gguf-split --merge."
        )
    tokenizer = {k: v for k, v in source.metadata.items() if k.startswith("tokenizer.")}
    config = {k: v for k, v in source.metadata.items() if k not in tokenizer}
    return ModelFiles(name, "gguf", path, config, source, None, tokenizer, (path,))


def _open_folder(name: str, folder: Path) -> ModelFiles:
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            base = _read_json(folder / "adapter_config.json").get("base_model_name_or_path", "its base")
            raise BadModel(
                f"{folder} is an adapter and no model: give the model that it was trained on ({base}), and the adapter "
                "by --adapter."
            )
        ggufs = ", ".join(sorted(file.name for file in folder.glob("*.gguf")))
        hint = f" It has {ggufs}: give the file itself." if ggufs else f" {MODEL_FORMS}"
        raise BadModel(f"{folder} has no config.json.{hint}")
    config = _read_json(folder / "config.json")
    tokenizer_json = _tokenizer_json(folder)
    for file, opener in WEIGHT_FILES:
        if (folder / file).is_file():
            index = _read_index(folder / file) if file.endswith(".index.json") else None
            files = _shards(folder, index) if index is not None else (folder / file,)
            return ModelFiles(name, "hf", folder, config, opener(files, index), tokenizer_json, {}, files)
    known = ", ".join(file for file, _ in WEIGHT_FILES)
    raise BadModel(f"{folder} has no weights; it should have one of {known}.")


def _read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises BadModel for anything else."""
    try:
        content = parse_json(_read_bytes(path))
    except ValueError as error:
        raise BadModel(f"{path} is not JSON: {error}.") from error
    if not isinstance(content, dict):
        raise BadModel(f"{path} holds a JSON {type(content).__name__}; it should hold an object.")
    return content


def _read_bytes(path: Path) -> bytes:
    try:
        if (size := path.stat().st_size) > MAX_JSON:
            raise BadModel(f"{path} has {size} bytes; more than {MAX_JSON} are not read.")
        return path.read_bytes()
    except OSError as error:
        raise BadModel(f"{path} cannot be read: {error}.") from error


def _read_index(path: Path) -> dict[str, str]:
    """Tensor name to shard, each shard a plain file name: the index cannot point out of its folder."""
    index = _read_json(path).get("weight_map")
    if not isinstance(index, dict) or not index:
        raise BadModel(f"{path} has no weight_map; it should name the shard of each tensor.")
    for tensor, shard in index.items():
        if not isinstance(shard, str) or not PLAIN_NAME.fullmatch(shard):
            raise BadModel(f"{path}: tensor {tensor!r} is said to be in {shard!r}; only a plain file name is right.")
    return index


def _shards(folder: Path, index: Mapping[str, str]) -> tuple[Path, ...]:
    shards = set(index.values())
    there = {path.name for path in folder.iterdir()}  # asked once, however many shards an index names
    missing = [shard for shard in shards if shard not in there or not (folder / shard).is_file()]
    if missing:
        some = ", ".join(heapq.nsmallest(5, missing))
        raise BadModel(f"{folder} lacks {len(missing)} of its {len(shards)} shards: {some}.")
    return tuple(folder / shard for shard in sorted(shards))


def _tokenizer_json(folder: Path) -> bytes:
    """Content of tokenizer.json, or the same built from the vocabulary files of older models."""
    has = {file.name for file in folder.iterdir() if file.is_file()}
    if "tokenizer.json" in has:
        return _read_bytes(folder / "tokenizer.json")
    try:
        if {"vocab.json", "merges.txt"} <= has:
            return _with_special_tokens(_byte_level_bpe(folder), folder)
        if "vocab.txt" in has:
            return _with_special_tokens(_word_piece(folder), folder)
    except Exception as error:  # the tokenizers library raises plain Exception
        raise BadModel(f"{folder}: its vocabulary files cannot be read: {error}.") from error
    raise BadModel(f"{folder} has no tokenizer.json (nor vocab.json with merges.txt, nor vocab.txt).")


def _byte_level_bpe(folder: Path) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _word_piece(folder: Path) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece.from_file(str(folder / "vocab.txt"), unk_token="[UNK]"))  # noqa: S106
    lowercase = bool(_settings(folder, "tokenizer_config.json").get("do_lower_case", True))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _settings(folder: Path, name: str) -> dict[str, Any]:
    return _read_json(folder / name) if (folder / name).is_file() else {}


def _with_special_tokens(tokenizer: Tokenizer, folder: Path) -> bytes:
    """Mark the special tokens that the folder names and the vocabulary has; ids stay as they are."""
    named = _settings(folder, "special_tokens_map.json") | _settings(folder, "tokenizer_config.json")
    found = [named[key] for key in named if key.endswith("_token")] + USUAL_SPECIAL_TOKENS
    texts = [token.get("content") if isinstance(token, dict) else token for token in found]
    known = tokenizer.get_vocab()
    tokenizer.add_special_tokens([text for text in texts if isinstance(text, str) and text in known])
    return tokenizer.to_str().encode()
