"""Render what is wired to what as text for a terminal, each number beside its null."""

from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from zeropass.circuits.results import COMPOSITION_COLUMNS, HeadPairs, composition_cells
from zeropass.render.terminal import ROLE_STYLE
from zeropass.tokens.vocabulary import shown_text

__all__ = ["render_pairs"]


def render_pairs(pairs: HeadPairs, k: int) -> RenderableType:
    """Render the pairs of heads with the strongest composition: k for each input and way.

    Args:
        pairs: All pairs.
        k: The number of pairs of each table.
    """
    parts: list[RenderableType] = []
    for table in pairs.tables:
        for into in ("q", "k", "v"):
            best = pairs.strongest(k, into=into, path=table.path)
            parts.append(Text(f"{into.upper()}-composition, {table.path}: the best of {best.compared:,}", style="bold"))
            parts.append(plain_table(COMPOSITION_COLUMNS, map(composition_cells, best.pairs)))
    return Group(*parts, *notes_below(pairs.notes))


def plain_table(columns: Sequence[str], rows: Iterable[Sequence[str]], left: int = 2) -> Table:
    """Return a table whose first columns are addresses, and whose others are numbers."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for place, name in enumerate(columns):
        table.add_column(name, no_wrap=True, justify="left" if place <= left else "right")
    for first, *rest in rows:
        table.add_row(Text(first, style=ROLE_STYLE), *map(Text, rest))
    return table


def notes_below(notes: Iterable[str]) -> list[Text]:
    """Return notes as dim lines."""
    return [Text(shown_text(note, limit=500), style="dim") for note in notes]
