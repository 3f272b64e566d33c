"""Pictures as plain SVG files: heat maps in rows and columns of panels, each with its own scale."""

import html
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

__all__ = ["Panel", "heat_maps", "shade", "svg_file"]

SIDE, GAP, LEFT, TOP = 150, 46, 60, 50
LEVELS = 24
_SHADES = ((255, 255, 217), (65, 182, 196), (8, 29, 88))
"""The colours from low to high: the ends and the middle of ColorBrewer's YlGnBu, which is safe for the colour-blind."""


@dataclass(frozen=True)
class Panel:
    """One heat map.

    Attributes:
        row: The label of its row in the grid of panels.
        column: The label of its column in the grid of panels.
        values: ``values[a][b]``, with a downwards and b to the right.
        marked: The marked column of each row of values; -1 without a mark.
    """

    row: str
    column: str
    values: Sequence[Sequence[float]]
    marked: Sequence[int]


def heat_maps(title: str, panels: Sequence[Panel]) -> str:
    """Draw panels in a grid by their labels, each with its scale below.

    Args:
        title: The title as plain text; it is escaped here.
        panels: The panels, in the order in which their rows and columns appear.

    Returns:
        A complete SVG file as text.
    """
    rows = list(dict.fromkeys(panel.row for panel in panels))
    columns = list(dict.fromkeys(panel.column for panel in panels))
    width = LEFT + len(columns) * (SIDE + GAP)
    height = TOP + len(rows) * (SIDE + GAP)
    parts = [
        f'<text x="{LEFT + n * (SIDE + GAP)}" y="{TOP - 10}">{html.escape(c)}</text>' for n, c in enumerate(columns)
    ]
    parts += [f'<text x="8" y="{TOP + n * (SIDE + GAP) + 14}">{html.escape(r)}</text>' for n, r in enumerate(rows)]
    for panel in panels:
        x, y = LEFT + columns.index(panel.column) * (SIDE + GAP), TOP + rows.index(panel.row) * (SIDE + GAP)
        parts += [f'<g transform="translate({x} {y})">', *_cells(panel), "</g>"]
    return svg_file(title, width, height, parts)


def shade(value: float, low: float, high: float) -> float:
    """Return how dark a value is between the ends of a scale: from .04, which can still be seen, to 1."""
    share = (value - low) / (high - low) if high > low else 0.5
    return round(0.04 + 0.96 * min(1.0, max(0.0, share if math.isfinite(share) else 0.0)), 3)


def svg_file(title: str, width: int, height: int, parts: Iterable[str]) -> str:
    """Return a picture with its title as a complete SVG file.

    Its colours are attributes, so it can stand alone; on a page of the explorer the style sheet overrides them.

    Args:
        title: The title as plain text; it is escaped here.
        width: The width in pixels.
        height: The height in pixels, with the uppermost 30 for the title.
        parts: The elements of the picture.
    """
    title = html.escape(title)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="picture" viewBox="0 0 {width} {height}" width="{width}" '
        f'role="img" font-family="sans-serif" font-size="12" aria-label="{title}">'
        f'<rect class="paper" width="{width}" height="{height}" fill="#fff"/><text x="8" y="18">{title}</text>'
    )
    return "".join([head, *parts, "</svg>\n"])


def _cells(panel: Panel) -> Iterator[str]:
    """Yield the elements of a panel; cells of one shade share one path, which keeps 30 x 30 layers small."""
    flat = [value for line in panel.values for value in line]
    low, high = min(flat), max(flat)
    cells: dict[int, list[str]] = {}
    for a, line in enumerate(panel.values):
        for b, value in enumerate(line):
            level = round((value - low) / (high - low or 1) * LEVELS)
            cells.setdefault(level, []).append(f"M{b} {a}h1v1h-1z")
    across, down = len(panel.values[0]), len(panel.values)
    yield f'<svg width="{SIDE}" height="{SIDE}" viewBox="0 0 {across} {down}" preserveAspectRatio="none">'
    for level, paths in sorted(cells.items()):
        yield f'<path d="{"".join(paths)}" fill="{_shade(level / LEVELS)}"/>'
    marks = "".join(f"M{b}.1 {a}.1h.8v.8h-.8z" for a, b in enumerate(panel.marked) if b >= 0)
    yield f'<path d="{marks}" fill="none" stroke="#d55e00" stroke-width=".08"/></svg>'
    yield f'<text y="{SIDE + 16}" fill="#555">{low:.2f} to {high:.2f}</text>'


def _shade(share: float) -> str:
    """Return the colour at a share of the scale from 0 to 1."""
    position = share * 2
    lower, upper = _SHADES[:2] if position <= 1 else _SHADES[1:]
    part = position if position <= 1 else position - 1
    return "#" + "".join(f"{round(a + (b - a) * part):02x}" for a, b in zip(lower, upper, strict=True))
