"""Atomic writing of files (to a temporary file that is then renamed), and saved parts of long work."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import get_ident
from typing import Any

from zeropass._io.parse import load_json
from zeropass.errors import BadOption, ZeropassError

__all__ = ["Parts", "atomic_write", "claim_folder", "key_of", "make_folder", "write_json", "write_text"]


@contextmanager
def atomic_write(
    path: Path, failure: type[ZeropassError], advice: str = "Make room or choose another place."
) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path``, which is renamed to ``path`` at the end.

    On any failure nothing is left behind. Threads and processes may write the same path at the same time: each has a
    temporary file of its own, and the last to end wins.

    Raises:
        ZeropassError: A ``failure`` that names the file, if the disk is full or cannot be written to.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{get_ident()}.part")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise failure(f"{path} could not be written ({error.strerror or error}). {advice}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str, failure: type[ZeropassError] = BadOption) -> None:
    """Write a text file completely or not at all; raise ``failure``, naming the file, if that is not possible."""
    with atomic_write(path, failure) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any, failure: type[ZeropassError] = BadOption) -> None:
    """Write a JSON-ready value in one line, completely or not at all."""
    write_text(path, json.dumps(value, allow_nan=False) + "\n", failure)


def make_folder(folder: Path, failure: type[ZeropassError]) -> None:
    """Make a folder unless it exists; raise a ``failure`` that names it if that is impossible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise failure(f"{folder} could not be made ({error.strerror or error}).") from error


def claim_folder(folder: Path, what: str, marks: Sequence[str], failure: type[ZeropassError] = BadOption) -> None:
    """Raise ``failure`` for a folder that holds something other than what is to be written there.

    Args:
        folder: The folder; one that is missing or empty is free.
        what: What is to be written, with its article, for the message.
        marks: Names of files and folders of which any shows that the folder holds it, finished or begun.
        failure: The error to raise.
    """
    if not folder.exists():
        return
    begun = [f".{mark}.*.part" for mark in marks]
    names = {path.name for path in folder.iterdir() if not any(map(path.match, begun))} if folder.is_dir() else {""}
    if names and names.isdisjoint(marks):
        raise failure(f"{folder} exists and does not hold {what}; give another --out.")


def key_of(*parts: Any) -> str:
    """Return a key of JSON-ready values: what depends on the same values has the same key."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@dataclass(frozen=True)
class Parts:
    """The finished parts of long work, with which a repeated call continues.

    Attributes:
        folder: The folder of the work; a part is saved as ``folder/parts/NAME.json``.
        key: A text that stands for everything that a part depends on; parts with another key are ignored.
        failure: The class of the errors to raise.
    """

    folder: Path
    key: str
    failure: type[ZeropassError]

    def load(self, name: str) -> Any:
        """Return the value saved under a name, or None if there is none, it is damaged, or its key differs."""
        try:
            record = load_json(self._path(name))
            return record["value"] if record["key"] == self.key else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def save(self, name: str, value: Any) -> None:
        """Save a JSON-ready value under a name; raise a ``failure`` that names the file if it cannot be written."""
        path = self._path(name)
        make_folder(path.parent, self.failure)
        with atomic_write(path, self.failure) as temporary:
            temporary.write_text(json.dumps({"key": self.key, "value": value}, allow_nan=False), encoding="utf-8")

    def _path(self, name: str) -> Path:
        return self.folder / "parts" / f"{name}.json"
