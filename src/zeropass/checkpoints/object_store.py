"""Models in object storage (``s3://…``, ``gs://…``, anything that fsspec knows), fetched once into the cache.

Keys and endpoints are those of the storage's own tools; each kind needs its fsspec package (s3fs, gcsfs …).
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import fsspec

from zeropass._io.atomic import atomic_write
from zeropass._io.untrusted import read_json
from zeropass.checkpoints.demo import cache_folder
from zeropass.checkpoints.hub import TEXT_FILES
from zeropass.checkpoints.weight_files import gguf_parts, no_config, no_weights, read_index, weight_names
from zeropass.errors import BadModel, NotFetched
from zeropass.tokens.tokenizer_files import other_vocabularies

__all__ = ["fetch_url", "is_url"]

MARK = ".checksum"
"""What the name of a file ends with that keeps how another was when it was fetched."""


def is_url(model: str) -> bool:
    """Whether a model's name is a place in some storage."""
    return "://" in model


def fetch_url(url: str) -> Path:
    """Folder or .gguf file of a model in storage; what the cache has unchanged is not fetched again.

    Raises NotFetched, with the storage's reason, if it cannot be reached; BadModel if there is no model.
    """
    try:
        storage, path = fsspec.core.url_to_fs(url)
        folder = cache_folder() / "urls" / hashlib.sha256(url.encode()).hexdigest()[:24]
        folder.mkdir(parents=True, exist_ok=True)
        gguf = url.endswith(".gguf")
        names = _fetch_gguf(storage, path, folder) if gguf else _fetch_folder(storage, path, folder, url)
        for kept in folder.iterdir():  # what is no longer there would be read as if it were
            if kept.name.removesuffix(MARK) not in names:
                kept.unlink()
    except (BadModel, NotFetched):
        raise
    except Exception as error:  # each kind of storage has errors of its own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise NotFetched(f"{url} cannot be fetched: {reason}") from error
    return folder / Path(path).name if gguf else folder


def _fetch_gguf(storage: Any, path: str, folder: Path) -> list[str]:
    """Fetch a GGUF file, or of a split one all parts that are there; gives their names."""
    parent, _, name = path.rpartition("/")
    parts = gguf_parts(name)
    there = {name: path} if len(parts) == 1 else _listed(storage, parent)
    return _fetch_all(storage, there, folder, parts)


def _fetch_folder(storage: Any, path: str, folder: Path, url: str) -> list[str]:
    """Fetch the files that would be read in a folder of these files; gives their names."""
    there = _listed(storage, path)
    if "config.json" not in there:
        raise no_config(url, list(there))
    texts = _fetch_all(storage, there, folder, [*TEXT_FILES, *other_vocabularies(there)])
    choice = weight_names(url, list(there), read_json(folder / "config.json"))
    if choice is None:
        raise no_weights(url, list(there))
    weights = _fetch_all(storage, there, folder, [*choice.files, choice.index])
    shards = sorted(set(read_index(folder / choice.index).values())) if choice.index else []
    return texts + weights + _fetch_all(storage, there, folder, shards)


def _fetch_all(storage: Any, there: Mapping[str, str], folder: Path, names: Iterable[str]) -> list[str]:
    """Fetch those of some files that are there; gives their names."""
    fetched = [name for name in names if name in there]
    for name in fetched:
        _fetch(storage, there[name], folder / name)
    return fetched


def _listed(storage: Any, path: str) -> dict[str, str]:
    """File name -> path there."""
    return {entry.rstrip("/").rpartition("/")[2]: entry for entry in storage.ls(path, detail=False)}


def _fetch(storage: Any, there: str, here: Path) -> None:
    """Fetch one file whole or not at all, unless it is here as it is there."""
    mark = here.with_name(here.name + MARK)
    checksum = json.dumps([storage.size(there), str(storage.checksum(there))])
    if here.exists() and mark.exists() and mark.read_text(encoding="utf-8") == checksum:
        return
    with atomic_write(here, NotFetched) as temporary:
        storage.get_file(there, str(temporary))
    with atomic_write(mark, NotFetched) as temporary:
        temporary.write_text(checksum, encoding="utf-8")
