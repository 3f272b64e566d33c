"""Text and JSON that anybody may have written, parsed or refused."""

import errno
import itertools
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zeropass.errors import BadOption

__all__ = ["holding", "load_json", "parse_json", "read_lines", "read_schema", "require_text"]

_DEEPEST, _TOO_DEEP = 100, "its objects are nested too deeply"
_DIGITS = 300
"""Digits of a whole number that a double holds; transformers writes 10**30 where it means that there is no limit."""


@contextmanager
def holding(path: Path, of: str) -> Iterator[None]:
    """What goes wrong with what a file holds is BadOption, naming the file and what it should hold."""
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise BadOption(f"{path} does not hold {of} ({type(error).__name__}: {error}).") from error


def parse_json(text: str | bytes) -> Any:
    """Parse JSON from a file that anybody may have written.

    Raises ValueError for what is not JSON, for NaN and infinities, which Python's parser lets through, for numbers that
    a double does not hold, for halves of characters, which no file can be written with, and where objects are nested
    too deeply to be walked through.
    """
    try:
        value = json.loads(text, parse_constant=_refuse, parse_float=_finite, parse_int=_short)
    except RecursionError as error:
        raise ValueError(_TOO_DEEP) from error
    _check_parts(value)
    return value


def _check_parts(value: Any) -> None:
    """Raise ValueError for text that is not Unicode and for parts below `_DEEPEST` others."""
    parts = [(value, 0)]
    while parts:
        part, depth = parts.pop()
        if depth > _DEEPEST:
            raise ValueError(_TOO_DEEP)
        if isinstance(part, str) and not part.isascii():
            part.encode()
        elif isinstance(part, dict):
            parts += ((inner, depth + 1) for inner in (*part, *part.values()))
        elif isinstance(part, list):
            parts += ((inner, depth + 1) for inner in part)


def load_json(path: Path) -> Any:
    """Parse the JSON of a file (`parse_json`). Raises OSError for a device or a pipe too: they may have no end."""
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is no regular file")
    return parse_json(path.read_text(encoding="utf-8"))


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse(text[:40])


def _short(text: str) -> int:
    if len(text) > _DIGITS:
        raise ValueError(f"the whole number {text[:20]}… has {len(text)} digits")
    return int(text)


def read_schema(path: Path, schema: int) -> dict[str, Any]:
    """The JSON of a file that says of which schema it is; BadOption for another one."""
    value = load_json(path)
    if value["schema"] != schema:
        raise BadOption(f"{path} has schema {value['schema']!r}, this version reads {schema}.")
    return dict(value)


def require_text(path: Path) -> None:
    """Raise OSError for what is no file and no pipe, such as a device without an end."""
    if path.exists() and not (path.is_file() or path.is_fifo()):
        raise OSError(errno.EINVAL, "it is no file", str(path))


def read_lines(path: Path, option: str, of: str, most: int | None = None) -> tuple[str, ...]:
    """The first ``most`` lines that hold something, of a file that an option names; BadOption if it cannot be read."""
    try:
        require_text(path)
        with path.open(encoding="utf-8-sig") as lines:
            kept = (line.strip() for line in lines if line.strip())
            return tuple(itertools.islice(kept, most))
    except (OSError, UnicodeDecodeError) as error:
        raise BadOption(
            f"{option} {path} cannot be read ({error}); it names a UTF-8 file with a {of} a line."
        ) from error
