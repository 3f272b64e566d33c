"""Pages of two models, from what `align` and `diff` stored: which parameters match, and what a fine-tune changed."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from markupsafe import Markup

from zeropass._io.parse import holding, read_schema
from zeropass._io.typed_json import from_json
from zeropass.align.render import draw_layer_maps
from zeropass.align.results import Alignment, Pairing
from zeropass.atlas import summary
from zeropass.atlas.read import Atlas
from zeropass.diff.results import SCHEMA_VERSION, Diff
from zeropass.errors import BadAddress, ZeropassError
from zeropass.records.overviews import Telling
from zeropass.records.parameters import PairRecord
from zeropass.web.context import Context, stem_of
from zeropass.web.pages.page import Page, Picture, Table, count_pages

__all__ = ["MATCHES", "align_layers", "alignment", "difference", "read_diff"]

MATCHES = 50
"""Pairs a page."""

PAIRING_COLUMNS = tuple(field.name for field in fields(Pairing))


def alignment(context: Context) -> Page:
    """Two models side by side: how their layers go together, and how many neurons and heads have a match."""
    found = _alignment(context)
    counts = found.summary()["matches"]
    rows = [asdict(one) | {"mean": _assigned_mean(one.scores, one.assigned)} for one in found.layers]
    table = [
        (one.role, one.frame, a, b, one.scores[a][b] if b >= 0 else "", one.null)
        for one in found.layers
        for a, b in enumerate(one.assigned)
    ]
    return Page(
        "align",
        "align.html",
        f"{found.models[0].get('name', 'A')} beside {found.models[1].get('name', 'B')}",
        found.summary,
        {"alignment": found, "counts": counts, "rows": rows, "layers": align_layers(found)},
        Table(("role", "frame", "layer of A", "layer of B", "score", "chance"), table),
        Picture("drawn.svg", {"drawn": Markup(draw_layer_maps(found))}),  # noqa: S704 - made and escaped by us
        ((context.name, ""),),
    )


def _alignment(context: Context) -> Alignment:
    if context.alignment is None:
        raise BadAddress("There is no alignment here: zeropass serve DIR --alignment FOLDER, made by zeropass align.")
    return context.alignment


def _assigned_mean(scores: Sequence[Sequence[float]], assigned: Sequence[int]) -> float:
    own = [scores[a][b] for a, b in enumerate(assigned) if b >= 0]
    return sum(own) / len(own) if own else 0.0


def align_layers(found: Alignment) -> list[int]:
    """The layers of the first model that have pairings."""
    return sorted({layer for one in found.pairings if (layer := _layer(one.first)) is not None})


def _layer(address: str) -> int | None:
    head, _, _ = address.partition(".")
    return int(head[1:]) if head[:1] == "L" and head[1:].isdecimal() else None


def align_layer(context: Context, number: int, page: int = 1) -> Page:
    """The heads and neurons of a layer beside their best matches in the second model, farthest from chance first."""
    found = _alignment(context)
    layers = align_layers(found)
    own = sorted((one for one in found.pairings if _layer(one.first) == number), key=lambda one: -one.effect)
    pages = count_pages(len(own), MATCHES)
    if not layers:
        raise BadAddress("The alignment has no matches.")
    if not own or not 1 <= page <= pages:
        raise BadAddress(f"The alignment has layers {layers[0]} to {layers[-1]}; this one has pages 1 to {pages}.")
    part = own[(page - 1) * MATCHES : page * MATCHES]
    first = _words(context.atlas, [one.first for one in part])
    second = _words(context.other.atlas, [one.second for one in part]) if context.other else {}
    at = layers.index(number)
    return Page(
        f"align/{number}" if page == 1 else f"align/{number}/{page}",
        "align_layer.html",
        f"Layer {number}: matches",
        [asdict(one) for one in part],
        {
            "rows": [(one, first.get(one.first, ()), second.get(one.second, ())) for one in part],
            "alignment": found,
            "layer": number,
            "number": page,
            "pages": pages,
            "count": len(own),
        },
        Table(PAIRING_COLUMNS, [tuple(asdict(one).values()) for one in part]),
        None,
        ((context.name, ""), ("Alignment", "align")),
        f"align/{layers[at - 1]}" if at else None,
        f"align/{layers[at + 1]}" if at + 1 < len(layers) else None,
    )


def _words(atlas: Atlas, addresses: Sequence[str]) -> dict[str, Any]:
    """The lists in short, or the first pairs, of addresses as far as an atlas has them."""
    maps = [one for one in addresses if one.endswith((".qk", ".vo"))]
    vectors = [one for one in addresses if one not in maps]
    stems = {one: stem_of(one) for one in vectors}
    short: dict[str, Telling] = {
        row.address: row for row in summary.in_short(atlas, list(dict.fromkeys(stems.values())))
    }
    found: dict[str, Any] = {one: short[stem].lists for one, stem in stems.items() if stem in short}
    for one in maps:
        try:
            found[one] = [r for r in atlas.explain(one, k=4) if isinstance(r, PairRecord)]
        except ZeropassError:  # an atlas of some layers or roles does not have it
            continue
    return found


# --- Differences ------------------------------------------------------------------------------------------------------


def read_diff(folder: Path) -> dict[str, Any]:
    """What `zeropass diff --out` wrote; BadOption, naming the file, if it is not that."""
    path = folder / "diff.json"
    with holding(path, "a difference"):
        value = read_schema(path, SCHEMA_VERSION)
        found = from_json(Diff, {name: part for name, part in value.items() if name != "schema"})
        # What a page says of a difference is the same whether it comes from the file or from `zeropass diff --json`.
        return dict(json.loads(json.dumps(found.to_json())))


def difference(context: Context) -> Page:
    """What a fine-tune changed: where, and what it says."""
    found = context.diff
    if found is None:
        raise BadAddress("There is no difference here: zeropass serve DIR --diff FOLDER, made by zeropass diff --out.")
    columns = ("layer", "role", "relative", "rank", "rounding")
    rows = [tuple(one.get(name) for name in columns) for one in found["matrices"]]
    return Page(
        "diff",
        "diff.html",
        f"{found['base'].get('name', '?')} → {found['tuned'].get('name', '?')}",
        found,
        {"diff": found, "strongest": _strongest(found["matrices"])},
        Table(columns, rows),
        _where(found),
        ((context.name, ""),),
    )


def _strongest(matrices: Iterable[dict[str, Any]], count: int = 24) -> list[dict[str, Any]]:
    return sorted((one for one in matrices if one["directions"]), key=lambda one: -one["relative"])[:count]


def _where(found: dict[str, Any]) -> Picture | None:
    """Roles down, layers across, darker where more changed."""
    matrices = found["matrices"]
    if not matrices:
        return None
    roles = list(dict.fromkeys(str(one["role"]) for one in matrices))
    most = max(float(one["relative"]) for one in matrices) or 1.0
    cells = [
        {
            "x": 60 + int(one["layer"]) * 18,
            "y": 12 + roles.index(str(one["role"])) * 18,
            "shade": round(0.04 + 0.96 * min(1.0, max(0.0, float(one["relative"]) / most)), 3),
            "name": f"L{int(one['layer'])} {one['role']}: {float(one['relative']):.3%}, rank {float(one['rank']):.1f}",
        }
        for one in matrices
    ]
    layers = 1 + max(int(one["layer"]) for one in matrices)
    shown = {
        "title": f"Relative change by layer (across) and role (down); darkest is {most:.2%}",
        "cells": cells,
        "roles": [(12 + n * 18 + 13, role) for n, role in enumerate(roles)],
        "across": [(60 + n * 18 + 9, str(n)) for n in range(0, layers, 5)],
        "foot": 12 + len(roles) * 18 + 14,
        "width": max(60 + layers * 18 + 10, 340),
        "height": 12 + len(roles) * 18 + 24,
    }
    return Picture("where.svg", shown)
