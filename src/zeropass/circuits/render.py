"""Render what is wired to what as text for a terminal, each number beside its null."""

from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from zeropass.circuits.results import (
    COMPOSITION_COLUMNS,
    FEED_COLUMNS,
    INDUCTION_COLUMNS,
    Feeds,
    HeadPairs,
    InductionHeads,
    composition_cells,
    feed_cells,
    induction_cells,
)
from zeropass.render.terminal import ROLE_STYLE
from zeropass.tokens.vocabulary import shown_text

__all__ = ["render_feeds", "render_induction", "render_pairs"]


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


def render_feeds(feeds: Feeds) -> RenderableType:
    """Render the wiring of one parameter: what feeds it first, then what it feeds."""
    parts: list[RenderableType] = []
    for table in sorted(feeds.tables, key=lambda table: table.relation == "feeds"):
        parts.append(Text(table.title, style="bold"))
        if table.feeds:
            parts.append(plain_table(FEED_COLUMNS, map(feed_cells, table.feeds)))
    return Group(*parts, *notes_below(feeds.notes))


def render_induction(heads: InductionHeads, k: int) -> RenderableType:
    """Render the first k heads by how likely they do induction."""
    title = Text(f"Induction heads, from weights: the best of {len(heads):,}", style="bold")
    rows = map(induction_cells, heads.heads[:k])
    return Group(title, plain_table(INDUCTION_COLUMNS, rows, left=1), *notes_below(heads.notes))


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
