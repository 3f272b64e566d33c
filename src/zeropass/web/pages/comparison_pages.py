"""The pages about two models, from the results of `align` and `diff`: matches, and effects of fine-tuning."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from markupsafe import Markup

from zeropass._io.parse import holding, read_schema
from zeropass._io.typed_json import from_json
from zeropass.align.render import draw_layer_maps
from zeropass.align.results import Alignment, Pairing, through
from zeropass.atlas import summary
from zeropass.atlas.read import Atlas
from zeropass.diff.render import draw_changes
from zeropass.diff.results import SCHEMA_VERSION, Diff, MatrixChange
from zeropass.diff.telling import exchange, telling
from zeropass.diff.verdict import figure, meaning, none_telling, sides, telling_basis, watched_basis, where
from zeropass.errors import BadAddress, ZeropassError
from zeropass.records.overviews import Telling
from zeropass.records.parameters import PairRecord
from zeropass.web.context import Context, stem_of
from zeropass.web.pages.page import Page, Picture, Table, count_pages

__all__ = ["MATCHES", "align_layers", "alignment", "difference", "read_diff"]

MATCHES = 50
"""The number of matches on a page."""

DIRECTIONS = 6
"""The number of telling directions on a page."""

PAIRING_COLUMNS = tuple(field.name for field in fields(Pairing))


def alignment(context: Context) -> Page:
    """Return the page of an alignment: the layer maps, and the numbers of neurons and heads that have a match."""
    aligned = _alignment(context)
    counts = aligned.summary()["matches"]
    rows = [
        asdict(layer_map) | {"mean": _assigned_mean(layer_map.scores, layer_map.assigned)}
        for layer_map in aligned.layers
    ]
    table = [
        (layer_map.role, layer_map.frame, a, b, layer_map.scores[a][b] if b >= 0 else "", layer_map.null)
        for layer_map in aligned.layers
        for a, b in enumerate(layer_map.assigned)
    ]
    return Page(
        path="align",
        template="align.html",
        title=f"{aligned.models[0].get('name', 'A')} beside {aligned.models[1].get('name', 'B')}",
        data=aligned.summary,
        shown={
            "alignment": aligned,
            "through": through("Lists", aligned.lenses),
            "counts": counts,
            "rows": rows,
            "layers": align_layers(aligned),
        },
        table=Table(("role", "frame", "layer of A", "layer of B", "score", "chance"), table),
        picture=_drawn(draw_layer_maps(aligned)),
        crumbs=((context.name, ""),),
    )


def _drawn(svg: str) -> Picture:
    return Picture("drawn.svg", {"drawn": Markup(svg)})  # noqa: S704 - made and escaped by us


def _alignment(context: Context) -> Alignment:
    if context.alignment is None:
        raise BadAddress("There is no alignment here: zeropass serve DIR --alignment FOLDER, made by zeropass align.")
    return context.alignment


def _assigned_mean(scores: Sequence[Sequence[float]], assigned: Sequence[int]) -> float:
    assigned_scores = [scores[a][b] for a, b in enumerate(assigned) if b >= 0]
    return sum(assigned_scores) / len(assigned_scores) if assigned_scores else 0.0


def align_layers(aligned: Alignment) -> list[int]:
    """Return the layers of the first model that have pairings."""
    return sorted({layer for pairing in aligned.pairings if (layer := _layer(pairing.first)) is not None})


def _layer(address: str) -> int | None:
    head, _, _ = address.partition(".")
    return int(head[1:]) if head[:1] == "L" and head[1:].isdecimal() else None


def align_layer(context: Context, number: int, page: int = 1) -> Page:
    """Return a page of matches of a layer's heads and neurons in the second model, largest effect first."""
    aligned = _alignment(context)
    layers = align_layers(aligned)
    pairings = sorted(
        (pairing for pairing in aligned.pairings if _layer(pairing.first) == number),
        key=lambda pairing: -pairing.effect,
    )
    pages = count_pages(len(pairings), MATCHES)
    if not layers:
        raise BadAddress("The alignment has no matches.")
    if not pairings or not 1 <= page <= pages:
        raise BadAddress(f"The alignment has layers {layers[0]} to {layers[-1]}; this one has pages 1 to {pages}.")
    page_pairings = pairings[(page - 1) * MATCHES : page * MATCHES]
    first = _words(context.atlas, [pairing.first for pairing in page_pairings])
    second = _words(context.other.atlas, [pairing.second for pairing in page_pairings]) if context.other else {}
    place = layers.index(number)
    return Page(
        path=f"align/{number}" if page == 1 else f"align/{number}/{page}",
        template="align_layer.html",
        title=f"Layer {number}: matches",
        data=[asdict(pairing) for pairing in page_pairings],
        shown={
            "rows": [
                (pairing, first.get(pairing.first, ()), second.get(pairing.second, ())) for pairing in page_pairings
            ],
            "alignment": aligned,
            "layer": number,
            "number": page,
            "pages": pages,
            "count": len(pairings),
        },
        table=Table(PAIRING_COLUMNS, [tuple(asdict(pairing).values()) for pairing in page_pairings]),
        crumbs=((context.name, ""), ("Alignment", "align")),
        before=f"align/{layers[place - 1]}" if place else None,
        after=f"align/{layers[place + 1]}" if place + 1 < len(layers) else None,
    )


def _words(atlas: Atlas, addresses: Sequence[str]) -> dict[str, Any]:
    """Return the short lists, or the first pairs, of those addresses that an atlas has."""
    maps = [address for address in addresses if address.endswith((".qk", ".vo"))]
    vectors = [address for address in addresses if address not in maps]
    stems = {address: stem_of(address) for address in vectors}
    short: dict[str, Telling] = {
        row.address: row for row in summary.in_short(atlas, list(dict.fromkeys(stems.values())))
    }
    words: dict[str, Any] = {address: short[stem].lists for address, stem in stems.items() if stem in short}
    for address in maps:
        try:
            words[address] = [r for r in atlas.explain(address, k=4) if isinstance(r, PairRecord)]
        except ZeropassError:  # the atlas may lack this layer or role
            continue
    return words


# --- Differences ------------------------------------------------------------------------------------------------------


def read_diff(folder: Path) -> dict[str, Any]:
    """Return what `zeropass diff --out` wrote. Raise BadOption, naming the file, if the folder holds something else."""
    path = folder / "diff.json"
    with holding(path, "a difference"):
        value = read_schema(path, SCHEMA_VERSION)
        # A page shows the same, whether the difference comes from the file or from `zeropass diff --json`.
        return dict(json.loads(json.dumps(_comparison(value).to_json())))


def difference(context: Context) -> Page:
    """Return the page of a fine-tune: where it changed the model, and what the change says."""
    diff = context.diff
    if diff is None:
        raise BadAddress("There is no difference here: zeropass serve DIR --diff FOLDER, made by zeropass diff --out.")
    comparison = _comparison(diff)
    changes = (*comparison.neurons, *comparison.heads)
    columns = ("layer", "role", "relative", "rank", "rounding")
    rows = [tuple(matrix.get(name) for name in columns) for matrix in diff["matrices"]]
    return Page(
        path="diff",
        template="diff.html",
        title=f"{diff['base'].get('name', '?')} → {diff['tuned'].get('name', '?')}",
        data=diff,
        shown={
            "diff": comparison,
            "meaning": meaning(comparison),
            "watched_basis": watched_basis(),
            "sides": sides(comparison),
            "figure": figure,
            "where": where,
            "directions": telling(comparison)[:DIRECTIONS],
            "telling_basis": telling_basis(comparison),
            "none_telling": none_telling(comparison) if any(m.directions for m in comparison.matrices) else "",
            "exchanges": [(change, words) for change in changes if (words := exchange(change)) is not None],
            "strongest": _strongest(comparison.matrices),
        },
        table=Table(columns, rows),
        picture=_drawn(draw_changes([row[:4] for row in rows])) if rows else None,
        crumbs=((context.name, ""),),
    )


def _comparison(value: dict[str, Any]) -> Diff:
    """Return a comparison from its JSON."""
    return from_json(Diff, {name: part for name, part in value.items() if name != "schema"})


def _strongest(matrices: Iterable[MatrixChange], count: int = 24) -> list[MatrixChange]:
    return sorted((matrix for matrix in matrices if matrix.directions), key=lambda matrix: -matrix.relative)[:count]
