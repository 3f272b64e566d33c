"""The cache: what zeropass keeps in the user's cache folder, how large it is, and how it is removed."""

import shutil
from pathlib import Path
from typing import Any

from zeropass.checkpoints.demo import cache_folder
from zeropass.errors import BadOption

__all__ = ["CONTENTS", "cache_facts", "clear_cache"]

CONTENTS = {
    "rows": "rows and judgements of tokens, which are computed again when they are missing",
    "lenses": "lenses, which zeropass calibrate makes",
    "evidence": "verdicts, which zeropass evidence makes",
    "proofs": "proofs, which zeropass prove makes",
    "thresholds": "what benign changes of a model reach, which zeropass screen --benign keeps",
    "labels": "sentences that zeropass label had another program write",
    "heads": "what each head of a model does, which zeropass heads finds",
    "demo": "demo models",
    "text": "texts that evidence is measured on",
    "atlases": "parts of atlases on the hub",
    "onnx": "models converted from ONNX files",
}
"""The folders of the cache, and what each holds."""


def cache_facts() -> dict[str, Any]:
    """Return where the cache is and the bytes of each of its folders, JSON-ready.

    Raises:
        BadOption: If the user has no home folder, and no other place is set.
    """
    folder = _folder()
    return {"folder": str(folder), "bytes": {name: _size(folder / name) for name in CONTENTS}}


def clear_cache(name: str) -> int:
    """Remove a folder of the cache, and return its size in bytes.

    Raises:
        BadOption: If the cache has no folder of this name, or if it cannot be removed.
    """
    if name not in CONTENTS:
        raise BadOption(f"The cache has no {name!r}; it has {', '.join(CONTENTS)}.")
    folder = _folder() / name
    size = _size(folder)
    try:
        if folder.exists():
            shutil.rmtree(folder)
    except OSError as error:
        raise BadOption(f"{folder} cannot be removed: {error.strerror or error}.") from error
    return size


def _folder() -> Path:
    try:
        return cache_folder()
    except RuntimeError as error:
        raise BadOption("There is no cache, since this user has no home folder; $ZEROPASS_CACHE names one.") from error


def _size(folder: Path) -> int:
    return sum(file.lstat().st_size for file in folder.rglob("*") if not file.is_dir())
