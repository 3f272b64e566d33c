"""JSON files of a model's folder, read within a limit and refused by name."""

from pathlib import Path
from typing import Any

from zeropass.disk import parse_json
from zeropass.errors import BadModel
from zeropass.sources.contents import check_file

__all__ = ["read_bytes", "read_json"]

MAX_JSON = 256 << 20
"""Largest JSON file that is read, in bytes; the largest tokenizers have some tens of millions."""


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises BadModel for anything else."""
    try:
        content = parse_json(read_bytes(path))
    except ValueError as error:
        raise BadModel(f"{path} is not JSON: {error}.") from error
    if not isinstance(content, dict):
        raise BadModel(f"{path} holds a JSON {type(content).__name__}; it should hold an object.")
    return content


def read_bytes(path: Path) -> bytes:
    """Read a file whole. Raises BadModel for one that is too large or cannot be read."""
    check_file(path)
    try:
        if (size := path.stat().st_size) > MAX_JSON:
            raise BadModel(f"{path} has {size} bytes; more than {MAX_JSON} are not read.")
        return path.read_bytes()
    except OSError as error:
        raise BadModel(f"{path} cannot be read: {error}.") from error
