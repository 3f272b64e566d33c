"""Models in object storage (``s3://…``, ``gs://…``, anything that fsspec knows), fetched once into the cache.

Keys and endpoints are those of the storage's own tools; each kind needs its fsspec package (s3fs, gcsfs …).
"""

import fnmatch
import hashlib
import json
from pathlib import Path
from typing import Any

import fsspec

from zeropass.disk import beside
from zeropass.errors import BadModel, NotFetched
from zeropass.sources.demo import MODEL_FORMS, cache_folder
from zeropass.sources.hub import PYTORCH, SAFETENSORS, TEXT_FILES
from zeropass.sources.tokenizers import other_vocabularies

__all__ = ["fetch_url", "is_url"]


def is_url(model: str) -> bool:
    """Whether a model's name is a place in some storage."""
    return "://" in model


def fetch_url(url: str) -> Path:
    """Folder or .gguf file of a model in storage; what the cache has unchanged is not fetched again.

    Raises NotFetched, with the storage's reason, if it cannot be reached; BadModel if there is no model.
    """
    try:
        storage, path = fsspec.core.url_to_fs(url)
        names = _names(storage, path, url)
        folder = cache_folder() / "urls" / hashlib.sha256(url.encode()).hexdigest()[:24]
        folder.mkdir(parents=True, exist_ok=True)
        for name, there in names.items():
            _fetch(storage, there, folder / name)
    except (BadModel, NotFetched):
        raise
    except Exception as error:  # each kind of storage has errors of its own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise NotFetched(f"{url} cannot be fetched: {reason}") from error
    return folder / next(iter(names)) if url.endswith(".gguf") else folder


def _names(storage: Any, path: str, url: str) -> dict[str, str]:
    """File name here -> path there, of the files that are read."""
    if url.endswith(".gguf"):
        return {Path(path).name: path}
    found = {entry.rstrip("/").rpartition("/")[2]: entry for entry in storage.ls(path, detail=False)}
    weights = SAFETENSORS if any(name.endswith(".safetensors") for name in found) else PYTORCH
    patterns = TEXT_FILES + other_vocabularies(found) + weights
    wanted = [name for name in found if any(fnmatch.fnmatch(name, p) for p in patterns)]
    if "config.json" not in wanted:
        raise BadModel(f"{url} has no config.json. {MODEL_FORMS}")
    return {name: found[name] for name in wanted}


def _fetch(storage: Any, there: str, here: Path) -> None:
    """Fetch one file whole or not at all, unless it is here as it is there."""
    mark = here.with_name(f"{here.name}.checksum")
    checksum = json.dumps([storage.size(there), str(storage.checksum(there))])
    if here.exists() and mark.exists() and mark.read_text(encoding="utf-8") == checksum:
        return
    with beside(here, NotFetched) as temporary:
        storage.get_file(there, str(temporary))
    with beside(mark, NotFetched) as temporary:
        temporary.write_text(checksum, encoding="utf-8")
