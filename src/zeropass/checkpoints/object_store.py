"""Models in object storage (``s3://…``, ``gs://…``, any protocol of fsspec), fetched once into the cache.

Keys and endpoints are those of the storage's own tools; each protocol needs its fsspec package (s3fs, gcsfs …).
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import fsspec

from zeropass._io.atomic import atomic_write, write_text
from zeropass._io.untrusted import read_json
from zeropass.checkpoints.demo import cache_folder
from zeropass.checkpoints.hub import TEXT_FILES
from zeropass.checkpoints.weight_files import gguf_parts, no_config, no_weights, read_index, weight_names
from zeropass.errors import BadModel, NotFetched
from zeropass.tokens.tokenizer_files import other_vocabularies

__all__ = ["fetch_url", "is_url"]

MARK = ".checksum"
"""The suffix of a file that keeps the remote checksum of another, as it was when that file was fetched."""


def is_url(model: str) -> bool:
    """Tell whether a model's name is a URL."""
    return "://" in model


def fetch_url(url: str) -> Path:
    """Return the local folder or .gguf file of a model in object storage, fetching files that are new or changed.

    Args:
        url: The URL of a folder or of a .gguf file.

    Raises:
        NotFetched: With the storage's reason, if the files cannot be fetched.
        BadModel: If there is no model.
    """
    try:
        storage, path = fsspec.core.url_to_fs(url)
        folder = cache_folder() / "urls" / hashlib.sha256(url.encode()).hexdigest()[:24]
        folder.mkdir(parents=True, exist_ok=True)
        gguf = url.endswith(".gguf")
        names = _fetch_gguf(storage, path, folder) if gguf else _fetch_folder(storage, path, folder, url)
        for file in folder.iterdir():  # a file that the storage no longer has must not be read
            if file.name.removesuffix(MARK) not in names:
                file.unlink()
    except (BadModel, NotFetched):
        raise
    except Exception as error:  # each storage has exceptions of its own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise NotFetched(f"{url} cannot be fetched: {reason}") from error
    return folder / Path(path).name if gguf else folder


def _fetch_gguf(storage: Any, path: str, folder: Path) -> list[str]:
    """Fetch a GGUF file, or all existing parts of a split one, and return their names."""
    parent, _, name = path.rpartition("/")
    parts = gguf_parts(name)
    remote = {name: path} if len(parts) == 1 else _list_files(storage, parent)
    return _fetch_all(storage, remote, folder, parts)


def _fetch_folder(storage: Any, path: str, folder: Path, url: str) -> list[str]:
    """Fetch the files that would be read from a folder of the model's files, and return their names."""
    remote = _list_files(storage, path)
    if "config.json" not in remote:
        raise no_config(url, list(remote))
    texts = _fetch_all(storage, remote, folder, [*TEXT_FILES, *other_vocabularies(remote)])
    choice = weight_names(url, list(remote), read_json(folder / "config.json"))
    if choice is None:
        raise no_weights(url, list(remote))
    weights = _fetch_all(storage, remote, folder, [*choice.files, choice.index])
    shards = sorted(set(read_index(folder / choice.index).values())) if choice.index else []
    return texts + weights + _fetch_all(storage, remote, folder, shards)


def _fetch_all(storage: Any, remote: Mapping[str, str], folder: Path, names: Iterable[str]) -> list[str]:
    """Fetch those named files that exist, and return their names."""
    existing = [name for name in names if name in remote]
    for name in existing:
        _fetch(storage, remote[name], folder / name)
    return existing


def _list_files(storage: Any, path: str) -> dict[str, str]:
    """Map the names of a folder's files to their paths in the storage."""
    return {entry.rstrip("/").rpartition("/")[2]: entry for entry in storage.ls(path, detail=False)}


def _fetch(storage: Any, remote: str, local: Path) -> None:
    """Fetch one file atomically, unless an unchanged copy exists."""
    mark = local.with_name(local.name + MARK)
    checksum = json.dumps([storage.size(remote), str(storage.checksum(remote))])
    if local.exists() and mark.exists() and mark.read_text(encoding="utf-8") == checksum:
        return
    with atomic_write(local, NotFetched) as temporary:
        storage.get_file(remote, str(temporary))
    write_text(mark, checksum, NotFetched)
