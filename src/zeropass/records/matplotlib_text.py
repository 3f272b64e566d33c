"""Text in matplotlib as it is: no mathematics in it, and a font for each of its letters.

A token is any text. matplotlib reads ``$x$`` as mathematics, LaTeX if its user says so, and warns of letters that the
font lacks.
"""

from functools import cache
from operator import attrgetter

from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from matplotlib.text import Text

from zeropass.records.panels import LONGEST
from zeropass.tokens.shown import escape

__all__ = ["set_plain"]


def set_plain(artist: Text, text: str) -> None:
    r"""Show a text in an artist as it is.

    A letter that the artist's font lacks is drawn in the first installed font that has it; where none has, by its
    escape, such as ``\u6211``. A text that this makes longer than a token's label is cut.

    Args:
        artist: The artist.
        text: The text; what does not print is escaped, but for the ends of lines.
    """
    text = "\n".join(map(escape, text.split("\n")))
    artist.set_parse_math(False)
    artist.set_usetex(False)
    base = findfont(artist.get_fontproperties())
    families = {letter: _family(letter) for letter in dict.fromkeys(text) if not _has(base, letter) and letter != "\n"}
    artist.set_fontfamily(list(dict.fromkeys([*artist.get_fontfamily(), *filter(None, families.values())])))
    shown = "".join(_escaped(letter) if families.get(letter) == "" else letter for letter in text)
    longest = max(len(text), LONGEST)
    artist.set_text(shown if len(shown) <= longest else shown[: longest - 1] + "…")


@cache
def _has(path: str, letter: str) -> bool:
    """Tell whether the font in a file has a letter."""
    try:
        return bool(get_font(path).get_char_index(ord(letter)))
    except RuntimeError:  # a font that matplotlib cannot draw with, such as one of coloured bitmaps
        return False


@cache
def _family(letter: str) -> str:
    """Return the family of the first installed upright font that has a letter; empty if there is none."""
    upright = (font for font in fontManager.ttflist if font.style == "normal" and "Last Resort" not in font.name)
    for font in sorted(upright, key=attrgetter("name", "fname")):
        # Families are found by name again, which may lead to another of their files.
        if _has(font.fname, letter) and _has(findfont(FontProperties(family=[font.name])), letter):
            return str(font.name)
    return ""


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")
