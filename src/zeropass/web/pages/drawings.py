"""The layout of pictures: plain numbers for the SVG templates, and labels that do not cover one another."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zeropass.atlas.summary import BIN
from zeropass.records.label_places import free_places
from zeropass.records.numbers import plain
from zeropass.records.overviews import Cloud, NeighbourRecord, Overview, Point, Spread, Wiring, part_name
from zeropass.records.panels import token_label
from zeropass.records.parameters import MOST_TOKENS, VERBS, PairRecord, TokenScore, verb_of
from zeropass.records.search import FindRecord
from zeropass.render.heat_map import shade
from zeropass.tokens.shown import shown_text
from zeropass.web.pages.page import Picture, at, layer_path, token

__all__ = ["clouds", "heat_map", "pair_map", "parameter_marks", "spreads", "strengths", "wiring"]

LETTER, LINE = 6.6, 15
"""The width of a letter and the height of a line in the small type, in pixels: wide enough for most fonts."""


@dataclass(frozen=True)
class Label:
    """A label in a picture.

    Attributes:
        x: The start of the text.
        y: Its baseline.
        text: The text.
        path: The path of the page that it links.
        at_x: The x of what it labels.
    """

    x: float
    y: float
    text: str
    path: str
    at_x: float


def _width(text: str) -> float:
    return LETTER * sum(2 if ord(c) > 0x2E80 else 1 for c in text) + 4


# --- The map of a model -----------------------------------------------------------------------------------------------

CELL, ROW, LEFT, TOP = 24, 24, 60, 12


def heat_map(overview: Overview) -> Picture:
    """Draw layers across and parts down, darker where words are more telling. Every cell is a link to its part."""
    layers, parts, (low, high) = overview.layers, overview.parts, overview.ends
    cells = [
        {
            "x": LEFT + layers.index(cell.layer) * CELL,
            "y": TOP + parts.index(cell.part) * ROW,
            "shade": shade(cell.mean, low, high),
            "path": layer_path(cell.layer) if "." not in cell.part else at(f"L{cell.layer}.{cell.part}"),
            "name": f"Layer {cell.layer} {part_name(cell.part)}: "
            f"{cell.mean:.2f}, most {cell.most:.2f} in {cell.address}",
        }
        for cell in overview.cells
    ]
    step = max(1, math.ceil(len(layers) / 40))
    shown = {
        "title": f"{overview.about}: mean over the lists of each part, what it {overview.verb}",
        "cells": cells,
        "across": [(LEFT + (n + 0.5) * CELL, str(layer)) for n, layer in enumerate(layers) if n % step == 0],
        "down": [(TOP + (n + 0.7) * ROW, part_name(part)) for n, part in enumerate(parts)],
        "width": max(LEFT + len(layers) * CELL, 320) + 10,
        "height": TOP + len(parts) * ROW + 58,
        "foot": TOP + len(parts) * ROW + 14,
        "low": low,
        "high": high,
    }
    return Picture("map.svg", shown)


# --- Spreads of scores ------------------------------------------------------------------------------------------------

WIDE, BARS, LABEL_ROWS = 640, 90, 4


def spreads(records: Sequence[Spread]) -> Picture:
    """Draw a panel for each list: how many tokens have which z (the height is the logarithm), the best ones marked."""
    panels, y = [], 0.0
    for record in records:
        panels.append(_spread(record) | {"y": y})
        y += panels[-1]["height"]
    return Picture(
        "spreads.svg", {"title": "Spread of scores over the vocabulary", "panels": panels, "height": y, "width": WIDE}
    )


def _spread(record: Spread) -> dict[str, Any]:
    low, high = record.low, record.low + record.step * len(record.counts)
    scale = (WIDE - 20) / (high - low)
    peak = math.log1p(max(record.counts))

    def place(z: float) -> float:
        return 10 + (z - low) * scale

    marked = [t for t in (*record.top, *record.bottom) if low <= t.z <= high]
    base = 24 + LABEL_ROWS * LINE
    bars = [
        {"x": place(low + n * record.step), "y": base + BARS * (1 - math.log1p(count) / peak), "count": count}
        for n, count in enumerate(record.counts)
        if count
    ]
    step = max(1, math.ceil((high - low) / 16))
    ticks = [(place(z), z) for z in range(math.ceil(low / step) * step, math.floor(high) + 1, step)]
    return {
        "heading": f"{record.address} {record.role} {record.verb}: kurtosis {record.kurtosis:.2f}",
        "bars": bars,
        "width": max(record.step * scale - 0.5, 0.5),
        "labels": list(_above(marked, place)),
        "ticks": ticks,
        "base": base + BARS,
        "height": base + BARS + 34,
    }


def _above(tokens: Sequence[TokenScore], place: Callable[[float], float]) -> Iterator[Label]:
    """Yield labels in rows above a scale, most telling first. A label that fits in no row is left out."""
    taken: list[list[tuple[float, float]]] = [[] for _ in range(LABEL_ROWS)]
    for item in sorted(tokens, key=lambda t: -abs(t.z)):
        text, x = token_label(item.token), place(item.z)
        start = min(max(x - _width(text) / 2, 2), WIDE - _width(text) - 2)
        end = start + _width(text)
        for n, row in enumerate(taken):
            if all(end < a or start > b for a, b in row):
                row.append((start, end))
                yield Label(x=start, y=24 + (LABEL_ROWS - n) * LINE - 4, text=text, path=token(item.id), at_x=x)
                break


# --- Clouds of tokens -------------------------------------------------------------------------------------------------

SIDE_X, SIDE_Y, MARGIN, LABEL = 470, 330, 34, 14


def clouds(records: Sequence[Cloud]) -> Picture:
    """Draw a panel for each list, with its tokens in the plane. Labels that would cover others are left out."""
    panels = [_cloud(record) | {"x": n % 2 * SIDE_X, "y": n // 2 * SIDE_Y} for n, record in enumerate(records)]
    width, height = SIDE_X * min(2, len(panels)), SIDE_Y * math.ceil(len(panels) / 2)
    return Picture("clouds.svg", {"title": "Tokens in the plane", "panels": panels, "width": width, "height": height})


def _cloud(record: Cloud) -> dict[str, Any]:
    xs, ys = [p.x for p in record.points] or [0.0], [p.y for p in record.points] or [0.0]
    wide, high = (max(xs) - min(xs)) or 1.0, (max(ys) - min(ys)) or 1.0
    spots = [
        (
            MARGIN + (p.x - min(xs)) / wide * (SIDE_X - 2 * MARGIN),
            SIDE_Y - MARGIN - (p.y - min(ys)) / high * (SIDE_Y - 2.4 * MARGIN),
            p,
        )
        for p in record.points
    ]
    shares = " and ".join(f"{share:.0%}" for share in record.shares)
    return {
        "heading": f"{record.address} {record.role} {record.verb}: axes hold {shares}",
        "dots": [{"x": x, "y": y, "point": p, "path": token(p.id)} for x, y, p in spots],
        "labels": list(_dot_labels(spots)),
    }


def _dot_labels(spots: Sequence[tuple[float, float, Point]]) -> Iterator[Label]:
    """Yield labels beside their dots, most telling first, each at the first of four places where it covers nothing."""
    ordered = sorted(spots, key=lambda spot: -abs(spot[2].z))
    sizes = [(_width(token_label(point.token)), LABEL) for _, _, point in ordered]
    for number, box in free_places([(x, y) for x, y, _ in ordered], sizes, (8, 24, SIDE_X - 8, SIDE_Y - 2)):
        x, _, point = ordered[number]
        yield Label(x=box[0], y=box[3] - 3, text=token_label(point.token), path=token(point.id), at_x=x)


# --- A token through the layers ---------------------------------------------------------------------------------------

STRIP = 220


def parameter_marks(record: FindRecord, layers: int) -> Picture:
    """Draw the parameters that rank a token high: layers across, z up. Every mark is a link."""
    verbs = list(dict.fromkeys([*VERBS.values(), *(row.verb for row in record.hits)]))
    present = {row.verb for row in record.hits}
    most = max((abs(row.z) for row in record.hits), default=1.0) or 1.0
    step = min(CELL, 960 / (layers + 1))
    marks = []
    for row in record.hits:
        type_index = verbs.index(row.verb)
        marks.append(
            {
                "x": round(LEFT + (row.layer + 1) * step + (type_index - 1) * step / 4, 1),
                "y": round(TOP + STRIP / 2 * (1 - row.z / most), 1),
                "kind": min(type_index, 3),
                "path": at(row.address),
                "name": f"{row.address} {row.role} {row.verb}, z {plain(row.z, '+')}",
            }
        )
    interval = max(1, math.ceil((layers + 1) / 40))
    shown = {
        "title": "Parameters of this token by layer (across) and z (up)",
        "marks": marks,
        "legend": [(kind, verb) for kind, verb in enumerate(verbs[:4]) if verb in present],
        "across": [(LEFT + (n + 1) * step, str(n)) for n in range(0, layers, interval)],
        "most": most,
        "middle": TOP + STRIP / 2,
        "foot": TOP + STRIP + 16,
        "height": TOP + STRIP + 48,
        "width": max(LEFT + (layers + 1) * step, 520) + 10,
    }
    return Picture("parameter_marks.svg", shown)


# --- Small multiples --------------------------------------------------------------------------------------------------


def strengths(histograms: Mapping[tuple[str, str, str], Mapping[int, int]]) -> Picture | None:
    """Draw how telling the lists of a layer are: a small panel for each role and kind of list, on one scale."""
    if not histograms:
        return None
    low = min(min(bins) for bins in histograms.values())
    high = max(max(bins) for bins in histograms.values()) + 1
    panels = []
    for n, ((role, side, frame), bins) in enumerate(histograms.items()):
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


def wiring(record: NeighbourRecord) -> Picture | None:
    """Draw which parts of the model write along, or read along, each vector of a parameter."""
    panels = [
        _wiring(vector) | {"y": n * 132} for n, vector in enumerate(vector for vector in record.wiring if vector.parts)
    ]
    if not panels:
        return None
    title = f"{record.address}: norm of all inner products, by part of the model"
    width = max(panel["width"] for panel in panels)
    return Picture("wiring.svg", {"title": title, "panels": panels, "height": len(panels) * 132, "width": width})


def _wiring(vector: Wiring) -> dict[str, Any]:
    most = max(part.norm for part in vector.parts) or 1.0
    layers = sorted({part.layer for part in vector.parts})
    step = min(CELL, 900 / len(layers))
    bars = []
    for part in vector.parts:
        height = 84 * part.norm / most
        x = LEFT + layers.index(part.layer) * step + (0 if part.part != "ff" else step / 2)
        name = f"{'outside' if part.layer < 0 else f'L{part.layer}'} {part.part}: {part.norm:.3g}"
        bars.append({"x": x, "y": 110 - height, "height": height, "ff": part.part == "ff", "name": name})
    interval = max(1, math.ceil(len(layers) / 36))
    return {
        "heading": f"{vector.role} {vector.verb}",
        "bars": bars,
        "wide": step / 2 - 1,
        "across": [
            (LEFT + (n + 0.5) * step, "·" if layer < 0 else str(layer))
            for n, layer in enumerate(layers)
            if n % interval == 0
        ],
        "width": max(LEFT + len(layers) * step + 10, 340),
    }


def pair_map(record: PairRecord) -> Picture | None:
    """Draw the tokens of the best pairs, left ones down, right ones across; blank where a pair is not listed."""
    if not record.pairs:
        return None
    pairs = record.within(MOST_TOKENS).pairs
    lefts, rights = list(dict.fromkeys(p.left for p in pairs)), list(dict.fromkeys(p.right for p in pairs))
    low, high = min(p.score for p in pairs), max(p.score for p in pairs)
    edge = max(_width(token_label(item.token)) for item in lefts) + 10
    head = max(_width(token_label(item.token)) for item in rights) * 0.72 + 16
    cells = [
        {
            "x": edge + rights.index(pair.right) * CELL,
            "y": head + lefts.index(pair.left) * ROW,
            "shade": shade(pair.score, low - (high - low) * 0.25, high),
            "name": f"{shown_text(pair.left.token)} → {shown_text(pair.right.token)}: {plain(pair.score)}",
        }
        for pair in pairs
    ]
    shown = {
        "title": f"{record.address} {record.role}: the first of its pairs",
        "cells": cells,
        "lefts": [(head + (n + 0.68) * ROW, token_label(item.token), token(item.id)) for n, item in enumerate(lefts)],
        "rights": [(edge + (n + 0.6) * CELL, token_label(item.token), token(item.id)) for n, item in enumerate(rights)],
        "edge": edge - 6,
        "head": head - 6,
        "width": edge + len(rights) * CELL + head * 0.8,
        "height": head + len(lefts) * ROW + 6,
        "columns": len(rights),
        "rows": len(lefts),
    }
    return Picture("pairs.svg", shown)
