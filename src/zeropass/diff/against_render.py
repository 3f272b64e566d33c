"""The comparison of two changes as text for a terminal: the verdict, then tokens, then places."""

from collections.abc import Iterator, Sequence
from statistics import fmean

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from zeropass.diff.against_results import Against, Contrast, ContrastWord, MatrixOverlap
from zeropass.records.numbers import coefficient, percent, plain
from zeropass.render.terminal import Flow, token_text
from zeropass.tokens.shown import shown_text

__all__ = ["render_against"]

BARS = "▁▂▃▄▅▆▇█"
SHOWN = 8
"""Tokens of a list."""


def render_against(result: Against) -> RenderableType:
    """Return the first screen of a comparison of two changes."""
    parts: list[RenderableType] = [
        Text.assemble((f"{letter}  ", "bold"), shown_text(facts.name, limit=200))
        for letter, facts in (("A", result.first), ("B", result.second))
    ]
    parts += [Text(line) for line in result.verdict]
    if result.relation != "different":
        return Group(*parts)
    for contrast in result.words:
        parts += [Text(), *_lists(contrast)]
    if result.matrices:
        parts += [Text(), _where(result.matrices)]
    return Group(*parts)


def _lists(contrast: Contrast) -> Iterator[Flow]:
    """Yield a line for each list of one side, in which a mark stands where chance ends."""
    for name, words, null in contrast.parts():
        start = Text.assemble((f"{contrast.side:<7}", "italic"), (f"{name:<8}", "bold"))
        beyond = [_word(word, "") for word in words[:SHOWN] if word.score > null]
        within = [_word(word, "dim") for word in words[:SHOWN] if word.score <= null]
        yield Flow([start, *beyond, Text(f"| chance {plain(null)} |", style="dim"), *within], indent=0)


def _word(word: ContrastWord, style: str) -> Text:
    """Return a token with its score, and how far each change acts on it."""
    shown = token_text(word.token.token)
    shown.stylize(style)
    return shown.append(f" {plain(word.score)}", style="dim")


def _where(matrices: Sequence[MatrixOverlap]) -> Table:
    """Return a table with a row for each role: the sizes of both changes, as bars of one scale, and their overlap."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("role")
    for letter in "AB":
        table.add_column(f"{letter}: layer 0 … last", no_wrap=True)
        table.add_column("most", justify="right")
    for name in ("cosine", "read (chance)", "write (chance)"):
        table.add_column(name, justify="right")
    most = max(max(matrix.first, matrix.second) for matrix in matrices)
    layers = 1 + max(matrix.layer for matrix in matrices)
    for role in dict.fromkeys(matrix.role for matrix in matrices):
        by_layer = {matrix.layer: matrix for matrix in matrices if matrix.role == role}
        cells = []
        for side in ("first", "second"):
            sizes = [getattr(by_layer.get(layer), side, 0.0) for layer in range(layers)]
            cells += ["".join(_bar(size / most) for size in sizes), percent(max(sizes)) if max(sizes) else ""]
        table.add_row(Text(role, style="bold cyan"), *cells, *_overlaps(list(by_layer.values())))
    return table


def _overlaps(matrices: Sequence[MatrixOverlap]) -> tuple[str, str, str]:
    """Return the means over the matrices that both changes change; empty if there are none."""
    shared = [matrix for matrix in matrices if matrix.cosine is not None]
    if not shared:
        return "", "", ""
    names = ("cosine", "read", "read_null", "write", "write_null")
    cosine, *overlaps = (coefficient(fmean(getattr(matrix, name) for matrix in shared)) for name in names)
    return cosine, f"{overlaps[0]} ({overlaps[1]})", f"{overlaps[2]} ({overlaps[3]})"


def _bar(share: float) -> str:
    return BARS[min(int(share * len(BARS)), len(BARS) - 1)] if share else "·"
