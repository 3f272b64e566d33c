"""Render what is wired to what as text for a terminal, each number beside its null."""

import html
from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from zeropass.circuits.results import (
    COMPOSITION_COLUMNS,
    FEED_COLUMNS,
    INDUCTION_COLUMNS,
    PATH_COLUMNS,
    Feeds,
    HeadPairs,
    InductionHeads,
    WordPaths,
    composition_cells,
    feed_cells,
    induction_cells,
    path_cells,
)
from zeropass.render.heat_map import svg_file
from zeropass.render.terminal import ROLE_STYLE
from zeropass.tokens.shown import shown_text

__all__ = ["draw_paths", "render_feeds", "render_induction", "render_pairs", "render_paths"]


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


def render_paths(paths: WordPaths) -> RenderableType:
    """Render the strongest paths from one word to another, each step by its z."""
    title = Text(paths.title, style="bold")
    table = plain_table(PATH_COLUMNS, map(path_cells, paths.paths))
    return Group(title, table, *notes_below(paths.notes))


def draw_paths(paths: WordPaths) -> str:
    """Draw paths as an SVG: words at the ends, parameters in columns between, lines the wider the larger their z.

    What is within the null is pale.
    """
    firsts = list(dict.fromkeys(path.addresses[0] for path in paths))
    seconds = list(dict.fromkeys(path.addresses[1] for path in paths if len(path.addresses) > 1))
    height = 60 + LINE * max(len(firsts), len(seconds), 1)

    def spread(names: list[str], x: int) -> dict[str, tuple[float, float]]:
        return {name: (x, 50 + (height - 60) * (row + 0.5) / len(names)) for row, name in enumerate(names)}

    places = spread(firsts, 240) | {f"then {name}": place for name, place in spread(seconds, 440).items()}
    places |= spread(["read"], 60) | spread(["written"], 640)
    lines = []
    for path in paths:
        stops = ["read", path.addresses[0], *(f"then {name}" for name in path.addresses[1:]), "written"]
        for start, stop, z in zip(stops, stops[1:], path.z, strict=False):
            (x, y), (to_x, to_y) = places[start], places[stop]
            style = f'stroke="{"#0072b2" if z > 0 else "#d55e00"}" stroke-opacity="{0.8 if path.above else 0.2}"'
            width = min(abs(z) / 2, 5)
            line = f'<path d="M{x} {y:.1f}L{to_x} {to_y:.1f}" {style} stroke-width="{width:.1f}">'
            lines.append(f"{line}<title>z {z:+.1f}</title></path>")
    words = {"read": paths.word.token, "written": paths.to.token}
    texts = []
    for name, (x, y) in places.items():
        label = html.escape(shown_text(words.get(name, name.removeprefix("then "))))
        texts.append(f'<text x="{x}" y="{y - 4:.1f}" text-anchor="middle">{label}</text>')
    return svg_file(f"Paths of {shown_text(paths.model, limit=200)}", 700, height, [*lines, *texts])


LINE = 26
"""The height of a parameter in a drawing, in pixels."""


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
