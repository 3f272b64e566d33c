"""Untrusted text as it may be shown, and the names of the views of tokens. No library is needed for it."""

from typing import Literal, get_args

__all__ = ["LONGEST", "SPACE", "VIEWS", "View", "escape", "shown_text"]

View = Literal["default", "words", "ascii", "all"]
"""A choice of tokens: without under-trained and non-text ones; words alone; ASCII alone; all."""

VIEWS: tuple[View, ...] = get_args(View)

LONGEST = 40
"""Characters of a token that are shown."""

SPACE = "␣"
"""The sign of an outer space."""


def escape(text: str) -> str:
    r"""Escape all characters that do not print: controls, ANSI escapes, bidi marks, line separators.

    Letters, marks, digits, punctuation, symbols and the plain space stay; the rest becomes ``\n``, ``\x1b``,
    ``\u202e``, … (Python's spelling).
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def shown_text(text: str, limit: int = LONGEST) -> str:
    """Return a text on one terminal-safe line: outer spaces visible, the unprintable escaped, cut at ``limit``."""
    left, right = len(text) - len(text.lstrip(" ")), len(text) - len(text.rstrip(" "))
    core = text.strip(" ")
    safe = escape(SPACE * left + core + SPACE * (right if core else 0))
    return safe if len(safe) <= limit else safe[: limit - 1] + "…"
