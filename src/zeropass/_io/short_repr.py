"""Reprs of one short line, for what holds too much to be printed whole."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

__all__ = ["LONGEST", "ShortRepr", "one_line"]

LONGEST = 199
"""The number of characters of the longest repr."""

_VALUE = 40
_PLAIN = (str, int, float, bool, type(None), Path)
"""The types whose values are shown; of everything else only the size."""


class ShortRepr:
    """A dataclass (with ``repr=False``) whose repr is one line: its plain fields, and the sizes of the others.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(repr=False)
        ... class Table(ShortRepr):
        ...     name: str
        ...     rows: list[int]
        >>> Table("squares", [n * n for n in range(1000)])
        Table(name='squares', rows=<1000>)
    """

    def _repr_words(self) -> str:
        """Return what stands between the brackets."""
        shown = ((f.name, getattr(self, f.name)) for f in fields(self) if f.repr)  # type: ignore[arg-type]
        return ", ".join(f"{name}={_short(value)}" for name, value in shown if not _is_empty(value))

    def __repr__(self) -> str:
        return one_line(f"{type(self).__name__.lstrip('_')}({self._repr_words()})")


def one_line(text: str) -> str:
    """Return a text on one line, cut to `LONGEST` characters."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 2]}…{line[-1]}"


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str | tuple | list | Mapping) and not len(value))


def _short(value: Any) -> str:
    """Return the repr of a plain value, cut, and that of a short tuple of such; of anything else its size or class."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Path):
        return repr(str(value))
    if isinstance(value, _PLAIN):
        text = repr(value)
        return text if len(text) <= _VALUE else f"{text[:_VALUE]}…"
    if isinstance(value, tuple) and all(isinstance(part, _PLAIN) for part in value) and len(repr(value)) <= _VALUE:
        return repr(value)
    if isinstance(value, tuple | list | set | frozenset | Mapping):
        return f"<{len(value)}>"
    return f"<{type(value).__name__}>"
