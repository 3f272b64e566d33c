"""Layer maps as one picture: a panel for each role and frame (the figure of Dar et al. 2023, §4.3). Plain SVG."""

import html
from collections.abc import Iterator

from zeropass.align.results import Alignment, LayerMap

__all__ = ["heat_maps"]

SIDE, GAP, LEFT, TOP = 150, 46, 60, 50
LEVELS = 24
_SHADES = ((255, 255, 217), (65, 182, 196), (8, 29, 88))
"""From low to high: the ends and the middle of ColorBrewer's YlGnBu, which colour-blind readers can read."""


def heat_maps(found: Alignment) -> str:
    """An SVG: a row of panels for each role, a column for each frame; layers of A go down, those of B across.

    Every panel has its own scale, printed under it; what is assigned has a frame.
    """
    roles = list(dict.fromkeys(one.role for one in found.layers))
    frames = list(dict.fromkeys(one.frame for one in found.layers))
    width = LEFT + len(frames) * (SIDE + GAP)
    height = TOP + len(roles) * (SIDE + GAP)
    first, second = (html.escape(str(model.get("name", "?"))) for model in found.models)
    title = f"Layers of {first} (down) and of {second} (across)"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img" '
        f'font-family="sans-serif" font-size="12" aria-label="{title}">',
        f'<rect width="{width}" height="{height}" fill="#fff"/><text x="{LEFT}" y="18">{title}</text>',
    ]
    parts += [
        f'<text x="{LEFT + n * (SIDE + GAP)}" y="{TOP - 10}">{html.escape(f)}</text>' for n, f in enumerate(frames)
    ]
    parts += [f'<text x="8" y="{TOP + n * (SIDE + GAP) + 14}">{html.escape(r)}</text>' for n, r in enumerate(roles)]
    for one in found.layers:
        at = LEFT + frames.index(one.frame) * (SIDE + GAP), TOP + roles.index(one.role) * (SIDE + GAP)
        parts += [f'<g transform="translate({at[0]} {at[1]})">', *_panel(one), "</g>"]
    return "".join([*parts, "</svg>\n"])


def _panel(one: LayerMap) -> Iterator[str]:
    """Cells of one shade are one path, so that 30 x 30 layers stay small."""
    flat = [score for line in one.scores for score in line]
    low, high = min(flat), max(flat)
    cells: dict[int, list[str]] = {}
    for a, line in enumerate(one.scores):
        for b, score in enumerate(line):
            level = round((score - low) / (high - low or 1) * LEVELS)
            cells.setdefault(level, []).append(f"M{b} {a}h1v1h-1z")
    across, down = len(one.scores[0]), len(one.scores)
    yield f'<svg width="{SIDE}" height="{SIDE}" viewBox="0 0 {across} {down}" preserveAspectRatio="none">'
    for level, paths in sorted(cells.items()):
        yield f'<path d="{"".join(paths)}" fill="{_shade(level / LEVELS)}"/>'
    marks = "".join(f"M{b}.1 {a}.1h.8v.8h-.8z" for a, b in enumerate(one.assigned) if b >= 0)
    yield f'<path d="{marks}" fill="none" stroke="#d55e00" stroke-width=".08"/></svg>'
    yield f'<text y="{SIDE + 16}" fill="#555">{low:.2f} to {high:.2f}</text>'


def _shade(share: float) -> str:
    """The colour at a share of the scale from 0 to 1."""
    place = share * 2
    one, other = _SHADES[:2] if place <= 1 else _SHADES[1:]
    part = place if place <= 1 else place - 1
    return "#" + "".join(f"{round(a + (b - a) * part):02x}" for a, b in zip(one, other, strict=True))
