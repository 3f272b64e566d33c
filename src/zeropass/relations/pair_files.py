"""Pairs of words: the sets that ship with the package, and files of a user's own. No torch."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from zeropass._io.parse import require_text
from zeropass._io.short_repr import ShortRepr
from zeropass.errors import BadOption
from zeropass.tokens.shown import shown_text

__all__ = ["MOST", "PairSet", "read_pairs", "shipped_sets"]

MOST = 2000
"""The most pairs of a set: a head's scores of every left with every right word are held at once."""

_LARGEST = 1 << 20
"""The most bytes of a file of pairs."""

_COMMENT = "# "
_FOLDER = Path(__file__).parent / "sets"


@dataclass(frozen=True, repr=False)
class PairSet(ShortRepr):
    """Pairs of words that stand in one relation.

    Attributes:
        name: The name of the set.
        about: The meaning of the two words of a pair.
        source: The origin of the pairs, and their licence.
        pairs: The pairs: left word, right word.
    """

    name: str
    about: str
    source: str
    pairs: tuple[tuple[str, str], ...]


@cache
def shipped_sets() -> dict[str, PairSet]:
    """Return the sets that ship with the package, by name."""
    return {path.stem: read_pairs(path) for path in sorted(_FOLDER.glob("*.txt"))}


def read_pairs(path: Path) -> PairSet:
    """Return the pairs of a UTF-8 file: two words a line, with a tab between them, or a space if each is one word.

    Blank lines are skipped. Of the lines that begin with ``#`` and a space, the first says what the pairs are, and
    ``# Source:`` and ``# Licence:`` say where they come from.

    Args:
        path: The file.

    Raises:
        BadOption: The file cannot be read, is too large, is not text, has no or too many pairs, or a line has no pair.
    """
    comments: list[str] = []
    pairs: list[tuple[str, str]] = []
    for number, line in enumerate(_text(path).splitlines(), start=1):
        if line.startswith(_COMMENT):
            comments.append(line.removeprefix(_COMMENT).strip())
        elif line.strip():
            pairs.append(_pair(line, path, number))
    if not pairs:
        raise BadOption(f"{path} has no pairs; a line has two words, with a tab between them.")
    if len(pairs) > MOST:
        raise BadOption(f"{path} has {len(pairs):,} pairs; a set has {MOST:,} at most, so split it.")
    about = [comment for comment in comments if not comment.startswith(("Source:", "Licence:"))]
    source = [comment for comment in comments if comment not in about]
    return PairSet(path.stem, next(iter(about), ""), "; ".join(source), tuple(dict.fromkeys(pairs)))


def _text(path: Path) -> str:
    try:
        require_text(path)
        with path.open("rb") as file:
            data = file.read(_LARGEST + 1)
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise BadOption(f"{path} cannot be read ({error.strerror or error}); it should be a file of pairs.") from error
    except UnicodeDecodeError as error:
        raise BadOption(f"{path} is not UTF-8 text (byte {error.start}); it should have two words a line.") from error
    if len(data) > _LARGEST:
        raise BadOption(f"{path} is larger than {_LARGEST >> 20} MB; a file of pairs has {MOST:,} lines at most.")
    if "\0" in text:
        raise BadOption(f"{path} is not text: it has zero bytes; it should have two words a line.")
    return text


def _pair(line: str, path: Path, number: int) -> tuple[str, str]:
    """Return the two words of a line; a space before a word stays if a tab separates them."""
    words = line.split("\t") if "\t" in line else line.split()
    if len(words) != 2 or not all(word.strip() for word in words):
        raise BadOption(
            f"{path}, line {number}: {shown_text(line)} is no pair; a line has two words, with a tab between them "
            "if one of them has a space in it."
        )
    return words[0].rstrip(), words[1].rstrip()
