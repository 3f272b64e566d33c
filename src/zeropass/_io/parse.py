"""Strict parsing of untrusted text and JSON."""

import errno
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from zeropass.errors import BadOption, ZeropassError

__all__ = ["holding", "load_json", "parse_json", "read_lines", "read_schema", "read_text", "read_words"]
__all__ += ["require_text"]

_DEEPEST, _TOO_DEEP = 100, "its objects are nested too deeply"
_DIGITS = 300
"""The most digits of an integer; a double holds such numbers. transformers writes 10**30 where it means no limit."""


@contextmanager
def holding(path: Path, of: str) -> Iterator[None]:
    """Turn errors about the content of a file into BadOption, naming the file and what it should hold."""
    try:
        yield
    except ZeropassError:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise BadOption(f"{path} does not hold {of} ({type(error).__name__}: {error}).") from error


def parse_json(text: str | bytes, constants: Mapping[str, object] | None = None) -> Any:
    """Parse the JSON of an untrusted file.

    Args:
        text: The text.
        constants: What stands for numbers that JSON does not have, by their names; others are refused.

    Raises:
        ValueError: For text that is not JSON, NaN and infinities (which Python's parser accepts), numbers beyond the
            range of a double, lone surrogates (which cannot be written to a file), and objects nested too deeply.
    """
    try:
        value = json.loads(
            text, parse_constant=partial(_constant, constants or {}), parse_float=_finite, parse_int=_short
        )
    except RecursionError as error:
        raise ValueError(_TOO_DEEP) from error
    _check_parts(value)
    return value


def _check_parts(value: Any) -> None:
    """Raise ValueError for text that is not Unicode and for parts nested deeper than `_DEEPEST`."""
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
    """Parse the JSON of a file (`parse_json`); raise OSError for devices and pipes too, which may be endless."""
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is no regular file")
    return parse_json(path.read_text(encoding="utf-8"))


def _constant(constants: Mapping[str, object], name: str) -> object:
    return constants[name] if name in constants else _refuse(name)


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
    """Return the JSON object of a file that states its schema; raise BadOption for a schema other than ``schema``."""
    value = load_json(path)
    if value["schema"] != schema:
        raise BadOption(f"{path} has schema {value['schema']!r}, this version reads {schema}.")
    return dict(value)


def require_text(path: Path) -> None:
    """Raise OSError for a path that is neither a file nor a pipe, such as an endless device."""
    if path.exists() and not (path.is_file() or path.is_fifo()):
        raise OSError(errno.EINVAL, "it is no file", str(path))


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file; raise BadOption, naming the file, if it is missing, not UTF-8 or blank."""
    try:
        require_text(path)
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise BadOption(f"{path} cannot be read ({error.strerror or error}); --text names a text file.") from error
    except UnicodeDecodeError as error:
        raise BadOption(f"{path} is not UTF-8 text (byte {error.start}); convert it first.") from error
    if not text.strip():
        raise BadOption(f"{path} holds no text; --text names a file with some thousand words.")
    return text


def read_lines(path: Path, option: str, of: str, most: int | None = None) -> tuple[str, ...]:
    """Return the non-blank lines, at most ``most``, of the file that an option names; raise BadOption if unreadable."""
    try:
        require_text(path)
        with path.open(encoding="utf-8-sig") as lines:
            non_blank = (line.strip() for line in lines if line.strip())
            return tuple(itertools.islice(non_blank, most))
    except (OSError, UnicodeDecodeError) as error:
        raise BadOption(
            f"{option} {path} cannot be read ({error}); it names a UTF-8 file with a {of} a line."
        ) from error


def read_words(path: Path, option: str) -> tuple[str, ...]:
    """Return the words, one a line, of the file that an option names; raise BadOption, naming it, if it has none."""
    words = read_lines(path, option, "word")
    if not words:
        raise BadOption(f"{option} {path} holds no words; there should be one a line.")
    return words
