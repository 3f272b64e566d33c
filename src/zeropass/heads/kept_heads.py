"""Catalogues of all heads that `zeropass heads` has kept in the cache, by the hash of the weights. No torch."""

import re
from dataclasses import asdict
from pathlib import Path

from zeropass._io.atomic import make_folder, write_json
from zeropass._io.parse import load_json
from zeropass._io.typed_json import from_json
from zeropass.checkpoints.demo import cache_folder
from zeropass.errors import BadOption
from zeropass.heads.results import HeadCatalogue

__all__ = ["keep_heads", "kept_heads"]

_SHA256 = re.compile("[0-9a-f]{64}")


def keep_heads(catalogue: HeadCatalogue) -> None:
    """Keep a catalogue in the place of an earlier one of the same weights; without a home folder, keep none."""
    if (path := _path(str(catalogue.model["fingerprint"]))) is not None:
        make_folder(path.parent, BadOption)
        write_json(path, asdict(catalogue), BadOption)


def kept_heads(fingerprint: str) -> HeadCatalogue | None:
    """Return the catalogue that is kept of some weights; None if there is none that can be read."""
    path = _path(fingerprint)
    try:
        return None if path is None else from_json(HeadCatalogue, load_json(path))
    except (OSError, ValueError):  # there is none, or it was written by another version
        return None


def _path(fingerprint: str) -> Path | None:
    try:
        return cache_folder() / "heads" / f"{fingerprint}.json" if _SHA256.fullmatch(fingerprint) else None
    except RuntimeError:  # this user has no home folder
        return None
