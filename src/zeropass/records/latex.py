r"""Tables of LaTeX, from tokens that may hold any character.

A table needs the package booktabs and a LaTeX of 2020 or later, with which ``\textquotesingle`` and
``\textasciigrave`` need no package of their own. Letters that the fonts of pdfLaTeX lack need XeLaTeX or LuaLaTeX.
"""

from collections.abc import Iterable, Sequence

from zeropass.records.numbers import plain
from zeropass.tokens.shown import escape, shown_text

__all__ = ["escaped", "number", "tabular", "token", "tokens"]

_ESCAPES = {sign: f"\\{sign}" for sign in "{}$&#%_ "} | {
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\char34{}",  # babel gives the sign a meaning in some languages
    "'": r"\textquotesingle{}",
    "`": r"\textasciigrave{}",
    "-": "-{}",  # two of them would become a dash
    ",": ",{}",  # two of them would become a quotation mark
    "␣": r"\textvisiblespace{}",
    "…": r"\textellipsis{}",
}


def escaped(text: str) -> str:
    r"""Return a printable text so that LaTeX shows each of its characters, as they are in typewriter type.

    Example:
        >>> print(escaped("50%_{x}"))
        50\%\_\{x\}
    """
    return "".join(_ESCAPES.get(character, character) for character in text)


def token(text: str) -> str:
    """Return a token in typewriter type, its outer spaces visible."""
    return rf"\texttt{{{escaped(shown_text(text))}}}"


def tokens(texts: Iterable[str]) -> str:
    """Return tokens with a space between two."""
    return " ".join(map(token, texts))


def number(value: float) -> str:
    """Return a number as mathematics, with the decimals that the terminal shows."""
    return f"${plain(value)}$"


def tabular(
    columns: str, heading: str, notes: Sequence[str], names: Sequence[str], rows: Iterable[Sequence[str]]
) -> str:
    """Return a table with the rules of booktabs.

    Args:
        columns: The alignment of each column, such as ``lr``.
        heading: The heading, which runs over all columns; plain text.
        notes: What a caption may have to say, as comments; plain text.
        names: The names of the columns, in LaTeX.
        rows: The cells of each row, in LaTeX.
    """
    comments = [f"% {escape(note)}" for note in (r"\usepackage{booktabs}", *notes)]
    title = " ".join(map(escaped, shown_text(heading, limit=100).split()))
    head = rf"\multicolumn{{{len(columns)}}}{{l}}{{{title}}} \\"
    cells = [rf"{' & '.join(row)} \\" for row in rows]
    begin, end = rf"\begin{{tabular}}{{{columns}}}", r"\end{tabular}"
    lines = [*comments, begin, r"\toprule", head, r"\midrule", rf"{' & '.join(names)} \\", r"\midrule", *cells]
    return "\n".join([*lines, r"\bottomrule", end]) + "\n"
