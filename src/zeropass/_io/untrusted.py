"""Reading of the files of a model's folder, up to a size limit; a stand-in for the right file is named in the error."""

from pathlib import Path
from typing import Any

from zeropass._io.parse import parse_json
from zeropass.errors import BadModel

__all__ = ["check_file", "read_bytes", "read_json"]

MAX_JSON = 256 << 20
"""The size limit of a JSON file in bytes; the largest tokenizers have some tens of millions."""

_CONSTANTS = {"Infinity": {"__float__": "Infinity"}}
"""The objects that transformers 5 writes into a configuration for numbers that it wrote as bare words before."""

_HEAD = 256
_LFS = b"version https://git-lfs.github.com/spec/"
_HTML = (b"<!doctype html", b"<html")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; raise BadModel for anything else."""
    try:
        content = parse_json(read_bytes(path), _CONSTANTS)
    except ValueError as error:
        raise BadModel(f"{path} is not JSON: {error}.") from error
    if not isinstance(content, dict):
        raise BadModel(f"{path} holds a JSON {type(content).__name__}; it should hold an object.")
    return content


def read_bytes(path: Path) -> bytes:
    """Read all bytes of a file; raise BadModel for one that is too large or cannot be read."""
    check_file(path)
    try:
        if (size := path.stat().st_size) > MAX_JSON:
            raise BadModel(f"{path} has {size} bytes; more than {MAX_JSON} are not read.")
        return path.read_bytes()
    except OSError as error:
        raise BadModel(f"{path} cannot be read: {error}.") from error


def check_file(path: Path) -> None:
    """Check the first bytes of a file before it is read.

    Raises:
        BadModel: For a folder, a broken link, an unreadable or empty file, a Git LFS pointer or an HTML page, which the
            message names.
    """
    try:
        if path.is_symlink() and not path.exists():
            raise BadModel(f"{path} is a link to {path.readlink()}, which is not there. Download it again.")
        if path.exists() and not path.is_file():  # opening a pipe would wait for its writer
            raise BadModel(f"{path} is a {'folder' if path.is_dir() else 'device or pipe'}; it should be a file.")
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        raise BadModel(f"{path} cannot be read: {error}.") from error
    if reason := _stand_in(head):
        raise BadModel(f"{path} {reason}")


def _stand_in(head: bytes) -> str | None:
    """Say what a file with these first bytes is if it cannot hold a model; return None if it may hold one."""
    if not head:
        return "is empty (0 bytes). Download it again."
    if head.startswith(_LFS):
        return "is a pointer of Git LFS and not the file itself: run git lfs pull in its folder."
    if head.lstrip().lower().startswith(_HTML):
        return "is a page of HTML, such as a site sends in place of a file. Download it again."
    return None
