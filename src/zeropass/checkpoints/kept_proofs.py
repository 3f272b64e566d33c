"""Proofs of models that `zeropass prove` has kept in the cache, by the size and hash of their weights. No torch."""

import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from zeropass._io.atomic import make_folder, write_json
from zeropass._io.parse import load_json
from zeropass.checkpoints.demo import cache_folder
from zeropass.errors import BadOption

__all__ = ["UNPROVEN", "keep_proof", "known_proof", "proof_facts"]

UNPROVEN = "not proven (zeropass prove MODEL)"
"""The words for a model of which no proof is kept."""

_NAME = re.compile(r"([0-9]{1,18})-([0-9a-f]{64})-([0-9a-f]{16})\.json")


def keep_proof(size: int, fingerprint: str, record: str, value: dict[str, Any]) -> Path:
    """Keep the JSON of a proof of weights as one record reads them, and return its file."""
    path = cache_folder() / "proofs" / f"{size}-{fingerprint}-{record[:16]}.json"
    make_folder(path.parent, BadOption)
    write_json(path, value)
    return path


def known_proof(fingerprint: Callable[[], str], record: str, size: int | None = None) -> dict[str, Any] | None:
    """Return the JSON of the proof that is kept of some weights; None if there is none that can be read.

    Args:
        fingerprint: Returns the hash of the weights. It is called only if there is a proof of weights of this size.
        record: The key of the record that reads them (`Model.record_key`): a file may hold two halves.
        size: Their size in bytes; None where it is not known.
    """
    try:
        names = [name for path in (cache_folder() / "proofs").glob("*.json") if (name := _NAME.fullmatch(path.name))]
    except RuntimeError:  # this user has no home folder
        return None
    sized = [name for name in names if size in (None, int(name[1])) and record[:16] == name[3]]
    of_weights = fingerprint() if sized else ""
    for name in (name for name in sized if name[2] == of_weights):
        with suppress(OSError, ValueError, KeyError, TypeError):
            value = load_json(cache_folder() / "proofs" / name[0])
            if type(value["proven"]) is bool and type(value["words"]) is str:
                return dict(value)
    return None


def proof_facts(fingerprint: Callable[[], str], record: str, size: int | None = None) -> dict[str, Any]:
    """Return what `info` says: ``proven``, which is None where no proof is known (as in `known_proof`), and words."""
    proof = known_proof(fingerprint, record, size)
    return {"proven": proof and proof["proven"], "words": proof["words"] if proof else UNPROVEN}
