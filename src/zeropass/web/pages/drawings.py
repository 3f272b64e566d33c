"""Where things stand in a picture: plain numbers for the SVG templates, and labels that do not cover one another."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zeropass.atlas.summary import BIN
from zeropass.records.overviews import Cloud, NeighbourRecord, Overview, Point, Spread, Wiring
from zeropass.records.parameters import SEES, FindRecord, PairRecord, TokenScore, verb_of
from zeropass.tokens.vocabulary import shown_text
from zeropass.web.pages.page import Picture, at, layer_path, token

__all__ = ["clouds", "heat_map", "hits", "pair_map", "shades", "spreads", "strengths", "wiring"]

LETTER, LINE = 6.6, 15
"""Width of a letter and height of a line of the small type, in pixels: wide enough for most fonts."""

LONGEST = 16
"""Characters of a token's label."""


@dataclass(frozen=True)
class Label:
    """A text that starts at x with its foot at y, and what it is the label of."""

    x: float
    y: float
    text: str
    path: str
    at_x: float
    at_y: float


def short(text: str) -> str:
    """A token as a picture shows it."""
    return shown_text(text, LONGEST)


def _width(text: str) -> float:
    return LETTER * sum(2 if ord(c) > 0x2E80 else 1 for c in text) + 4


# --- The map of a model -----------------------------------------------------------------------------------------------

CELL, ROW, LEFT, TOP = 24, 24, 60, 12


def heat_map(seen: Overview) -> Picture:
    """Layers across, parts down, darker where words are more telling; every cell is a link to its part."""
    layers = sorted({cell.layer for cell in seen.cells})
    parts = sorted(
        {cell.part for cell in seen.cells}, key=lambda part: (part != "ff", part.partition(".")[0], len(part), part)
    )
    low, high = shades([cell.mean for cell in seen.cells])
    cells = [
        {
            "x": LEFT + layers.index(cell.layer) * CELL,
            "y": TOP + parts.index(cell.part) * ROW,
            "shade": shade(cell.mean, low, high),
            "path": layer_path(cell.layer) if cell.part == "ff" else at(f"L{cell.layer}.{cell.part}"),
            "name": f"Layer {cell.layer} {_part(cell.part)}: {cell.mean:.2f}, most {cell.most:.2f} in {cell.address}",
        }
        for cell in seen.cells
    ]
    step = max(1, math.ceil(len(layers) / 40))
    shown = {
        "title": f"{seen.about}: mean over the lists of each part, what it {seen.verb}",
        "cells": cells,
        "across": [(LEFT + (n + 0.5) * CELL, str(layer)) for n, layer in enumerate(layers) if n % step == 0],
        "down": [(TOP + (n + 0.7) * ROW, _part(part)) for n, part in enumerate(parts)],
        "width": max(LEFT + len(layers) * CELL, 320) + 10,
        "height": TOP + len(parts) * ROW + 58,
        "foot": TOP + len(parts) * ROW + 14,
        "low": low,
        "high": high,
    }
    return Picture("map.svg", shown)


def _part(part: str) -> str:
    return "FF" if part == "ff" else part.replace("attn.", "head ").replace("cross.", "cross ")


def shades(values: Iterable[float]) -> tuple[float, float]:
    """The ends of a scale: the 2nd and 98th percentile, so that one odd cell does not make all others pale."""
    ordered = sorted(value for value in values if math.isfinite(value))
    if not ordered:
        return 0.0, 1.0
    last = len(ordered) - 1
    return ordered[round(0.02 * last)], ordered[round(0.98 * last)]


def shade(value: float, low: float, high: float) -> float:
    """How dark a value is between the ends of a scale: from .04, which can still be seen, to 1."""
    share = (value - low) / (high - low) if high > low else 0.5
    return round(0.04 + 0.96 * min(1.0, max(0.0, share if math.isfinite(share) else 0.0)), 3)


# --- Spreads of scores ------------------------------------------------------------------------------------------------

WIDE, BARS, LABEL_ROWS = 640, 90, 4


def spreads(found: Sequence[Spread]) -> Picture:
    """A panel for each list: how many tokens have which z (the height is the logarithm), the best ones marked."""
    panels, y = [], 0.0
    for one in found:
        panels.append(_spread(one) | {"y": y})
        y += panels[-1]["height"]
    return Picture(
        "spreads.svg", {"title": "Spread of scores over the vocabulary", "panels": panels, "height": y, "width": WIDE}
    )


def _spread(one: Spread) -> dict[str, Any]:
    low, high = one.low, one.low + one.step * len(one.counts)
    scale = (WIDE - 20) / (high - low)
    peak = math.log1p(max(one.counts))

    def place(z: float) -> float:
        return 10 + (z - low) * scale

    marked = [t for t in (*one.top, *one.bottom) if low <= t.z <= high]
    base = 24 + LABEL_ROWS * LINE
    bars = [
        {"x": place(low + n * one.step), "y": base + BARS * (1 - math.log1p(count) / peak), "count": count}
        for n, count in enumerate(one.counts)
        if count
    ]
    step = max(1, math.ceil((high - low) / 16))
    ticks = [(place(z), z) for z in range(math.ceil(low / step) * step, math.floor(high) + 1, step)]
    return {
        "heading": f"{one.address} {one.role} {one.verb}: kurtosis {one.kurtosis:.2f}",
        "bars": bars,
        "width": max(one.step * scale - 0.5, 0.5),
        "labels": list(_above(marked, place)),
        "ticks": ticks,
        "base": base + BARS,
        "height": base + BARS + 34,
    }


def _above(tokens: Sequence[TokenScore], place: Callable[[float], float]) -> Iterator[Label]:
    """Labels in rows above a scale, most telling first; one that fits in no row is left out."""
    taken: list[list[tuple[float, float]]] = [[] for _ in range(LABEL_ROWS)]
    for one in sorted(tokens, key=lambda t: -abs(t.z)):
        text, x = short(one.token), place(one.z)
        start = min(max(x - _width(text) / 2, 2), WIDE - _width(text) - 2)
        end = start + _width(text)
        for n, row in enumerate(taken):
            if all(end < a or start > b for a, b in row):
                row.append((start, end))
                yield Label(start, 24 + (LABEL_ROWS - n) * LINE - 4, text, token(one.id), x, 24 + LABEL_ROWS * LINE)
                break


# --- Clouds of tokens -------------------------------------------------------------------------------------------------

SIDE_X, SIDE_Y, MARGIN = 470, 330, 34


def clouds(found: Sequence[Cloud]) -> Picture:
    """A panel for each list, its tokens in the plane; labels that would cover others are left to the dots."""
    panels = [_cloud(one) | {"x": n % 2 * SIDE_X, "y": n // 2 * SIDE_Y} for n, one in enumerate(found)]
    width, height = SIDE_X * min(2, len(panels)), SIDE_Y * math.ceil(len(panels) / 2)
    return Picture("clouds.svg", {"title": "Tokens in the plane", "panels": panels, "width": width, "height": height})


def _cloud(one: Cloud) -> dict[str, Any]:
    xs, ys = [p.x for p in one.points] or [0.0], [p.y for p in one.points] or [0.0]
    wide, high = (max(xs) - min(xs)) or 1.0, (max(ys) - min(ys)) or 1.0
    spots = [
        (
            MARGIN + (p.x - min(xs)) / wide * (SIDE_X - 2 * MARGIN),
            SIDE_Y - MARGIN - (p.y - min(ys)) / high * (SIDE_Y - 2.4 * MARGIN),
            p,
        )
        for p in one.points
    ]
    shares = " and ".join(f"{share:.0%}" for share in one.shares)
    return {
        "heading": f"{one.address} {one.role} {one.verb}: axes hold {shares}",
        "dots": [{"x": x, "y": y, "point": p, "path": token(p.id)} for x, y, p in spots],
        "labels": list(_beside(spots)),
    }


def _beside(spots: Sequence[tuple[float, float, Point]]) -> Iterator[Label]:
    """Labels right, left, above or below their dots, most telling first; the first place that covers nothing."""
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y, _ in spots]
    for x, y, point in sorted(spots, key=lambda spot: -abs(spot[2].z)):
        text = short(point.token)
        wide = _width(text)
        own = (x - 4, y - 4, x + 4, y + 4)
        for left, foot in ((x + 6, y + 4), (x - 6 - wide, y + 4), (x - wide / 2, y - 7), (x - wide / 2, y + 17)):
            box = (left, foot - 11, left + wide, foot + 3)
            inside = box[0] >= 8 and box[2] <= SIDE_X - 8 and box[1] >= 24 and box[3] <= SIDE_Y - 2
            if inside and not any(_cover(box, other) for other in taken if other != own):
                taken.append(box)
                yield Label(left, foot, text, token(point.id), x, y)
                break


def _cover(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


# --- A token through the layers ---------------------------------------------------------------------------------------

STRIP = 220


def hits(found: FindRecord, layers: int) -> Picture:
    """The parameters that a token ranks high for: layers across, z up; every mark is a link."""
    kinds = list(dict.fromkeys([*SEES, *((hit.side, hit.frame) for hit in found.hits)]))
    most = max((abs(hit.z) for hit in found.hits), default=1.0) or 1.0
    step = min(CELL, 960 / (layers + 1))
    marks = []
    for hit in found.hits:
        head, _, _ = hit.address.partition(".")
        layer = int(head[1:]) if head[:1] == "L" and head[1:].isdigit() else -1
        kind = kinds.index((hit.side, hit.frame))
        marks.append(
            {
                "x": round(LEFT + (layer + 1) * step + (kind - 1) * step / 4, 1),
                "y": round(TOP + STRIP / 2 * (1 - hit.z / most), 1),
                "kind": min(kind, 3),
                "path": at(hit.address),
                "name": f"{hit.address} {hit.role} {hit.verb}, z {hit.z:+.1f}",
            }
        )
    every = max(1, math.ceil((layers + 1) / 40))
    shown = {
        "title": "Parameters of this token by layer (across) and z (up)",
        "marks": marks,
        "kinds": [(n, verb_of(*kind)) for n, kind in enumerate(kinds[:4])],
        "across": [(LEFT + (n + 1) * step, str(n)) for n in range(0, layers, every)],
        "most": most,
        "middle": TOP + STRIP / 2,
        "foot": TOP + STRIP + 16,
        "height": TOP + STRIP + 48,
        "width": max(LEFT + (layers + 1) * step, 520) + 10,
    }
    return Picture("hits.svg", shown)


# --- Small multiples --------------------------------------------------------------------------------------------------


def strengths(found: Mapping[tuple[str, str, str], Mapping[int, int]]) -> Picture | None:
    """How telling the lists of a layer are: a small panel for each role and kind, on one scale."""
    if not found:
        return None
    low = min(min(bins) for bins in found.values())
    high = max(max(bins) for bins in found.values()) + 1
    panels = []
    for n, ((role, side, frame), bins) in enumerate(found.items()):
        most, wide = max(bins.values()), 190 / max(1, high - low)
        panels.append(
            {
                "x": n % 4 * 220,
                "y": n // 4 * 96 + 8,
                "heading": f"{role} {verb_of(side, frame)}",
                "bars": [((b - low) * wide, 60 * (1 - c / most), 60 * c / most, c) for b, c in sorted(bins.items())],
                "wide": max(wide - 0.5, 0.5),
                "ends": (f"{low * BIN:.1f}", f"{high * BIN:.1f}"),
            }
        )
    rows = math.ceil(len(panels) / 4)
    title = "How telling the lists of this layer are: |z| of the tenth token"
    return Picture("strengths.svg", {"title": title, "panels": panels, "height": rows * 96 + 12, "width": 880})


def wiring(found: NeighbourRecord) -> Picture | None:
    """Where in the model that is which writes along, or reads along, each vector of a parameter."""
    panels = [_wiring(one) | {"y": n * 132} for n, one in enumerate(w for w in found.wiring if w.parts)]
    if not panels:
        return None
    title = f"{found.address}: norm of all inner products, by part of the model"
    width = max(panel["width"] for panel in panels)
    return Picture("wiring.svg", {"title": title, "panels": panels, "height": len(panels) * 132, "width": width})


def _wiring(one: Wiring) -> dict[str, Any]:
    most = max(part.norm for part in one.parts) or 1.0
    layers = sorted({part.layer for part in one.parts})
    step = min(CELL, 900 / len(layers))
    bars = []
    for part in one.parts:
        height = 84 * part.norm / most
        x = LEFT + layers.index(part.layer) * step + (0 if part.part != "ff" else step / 2)
        name = f"{'outside' if part.layer < 0 else f'L{part.layer}'} {part.part}: {part.norm:.3g}"
        bars.append({"x": x, "y": 110 - height, "height": height, "ff": part.part == "ff", "name": name})
    every = max(1, math.ceil(len(layers) / 36))
    return {
        "heading": f"{one.role} {one.verb}",
        "bars": bars,
        "wide": step / 2 - 1,
        "across": [
            (LEFT + (n + 0.5) * step, "·" if layer < 0 else str(layer))
            for n, layer in enumerate(layers)
            if n % every == 0
        ],
        "width": max(LEFT + len(layers) * step + 10, 340),
    }


MOST = 18


def pair_map(found: PairRecord) -> Picture | None:
    """The tokens of the best pairs, left ones down, right ones across; blank where a pair is not among the listed."""
    if not found.pairs:
        return None
    lefts = list(dict.fromkeys(pair.left for pair in found.pairs))[:MOST]
    rights = list(dict.fromkeys(pair.right for pair in found.pairs))[:MOST]
    kept = [pair for pair in found.pairs if pair.left in lefts and pair.right in rights]
    low, high = min(p.score for p in found.pairs), max(p.score for p in found.pairs)
    edge = max(_width(short(one.token)) for one in lefts) + 10
    head = max(_width(short(one.token)) for one in rights) * 0.72 + 16
    cells = [
        {
            "x": edge + rights.index(pair.right) * CELL,
            "y": head + lefts.index(pair.left) * ROW,
            "shade": shade(pair.score, low - (high - low) * 0.25, high),
            "name": f"{shown_text(pair.left.token)} → {shown_text(pair.right.token)}: {pair.score:.1f}",
        }
        for pair in kept
    ]
    shown = {
        "title": f"{found.address} {found.role}: the first of its pairs",
        "cells": cells,
        "lefts": [(head + (n + 0.68) * ROW, short(one.token), token(one.id)) for n, one in enumerate(lefts)],
        "rights": [(edge + (n + 0.6) * CELL, short(one.token), token(one.id)) for n, one in enumerate(rights)],
        "edge": edge - 6,
        "head": head - 6,
        "width": edge + len(rights) * CELL + head * 0.8,
        "height": head + len(lefts) * ROW + 6,
        "columns": len(rights),
        "rows": len(lefts),
    }
    return Picture("pairs.svg", shown)
