"""Pages that look from above: the model, its layers, what lies outside them, and all tokens."""

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

from zeropass.arch.spec import MAP_ROLES, OUTSIDE
from zeropass.atlas import summary
from zeropass.errors import BadAddress, BadOption
from zeropass.model.address import parse
from zeropass.records.overviews import LayerRecord, Overview, Telling
from zeropass.records.parameters import PairRecord, verb_of
from zeropass.web.context import Context
from zeropass.web.pages import drawings
from zeropass.web.pages.page import Page, Table, at, by, count_pages, layer_path, token

__all__ = ["NEURONS", "TOKENS", "help_page", "layer", "model", "outside", "short_rows", "tokens"]

NEURONS, TOKENS, STARTS = 50, 400, 10
"""Neurons and tokens a page, and parameters to begin with on the first."""

SHORT_COLUMNS = ("address", "strength", "role", "side", "frame", "pole", "rank", "id", "token", "score", "z")


def model(context: Context, measure: str | None = None, kind: str | None = None) -> Page:
    """What the model is, and a map of its parts by how telling their words are."""
    atlas = context.atlas
    kinds = summary.kinds_of(atlas)
    if not kinds:
        return Page("", "model.html", context.name, atlas.info(), {"map": None, "starts": []})
    side, frame = kinds[-1] if kind is None else _kind(kind)
    seen = summary.overview(atlas, side, frame, measure or next(iter(summary.MEASURES)))
    starts = summary.in_short(atlas, [cell.address for cell in _starts(seen)])
    shown = {
        "map": seen,
        "starts": starts,
        "measures": list(summary.MEASURES),
        "kinds": [(*one, verb_of(*one)) for one in kinds],
        "layers": range(*atlas.layers),
        "model": atlas.model,
        "manifest": atlas.manifest,
    }
    path = "" if measure is None and kind is None else by(seen.measure, side, frame)
    columns = ("layer", "part", f"mean {seen.measure}", f"most {seen.measure}", "address")
    rows = [(c.layer, c.part, c.mean, c.most, c.address) for c in seen.cells]
    title = context.name if not path else f"{context.name}: {seen.measure}, {seen.verb}"
    crumbs = () if not path else ((context.name, ""),)
    return Page(
        path,
        "model.html",
        title,
        partial(_model_json, context, seen),
        shown,
        Table(columns, rows),
        drawings.heat_map(seen),
        crumbs,
    )


def _model_json(context: Context, seen: Overview) -> dict[str, Any]:
    return {"model": context.atlas.model, "manifest": context.atlas.manifest, "map": seen.to_json()}


def _kind(kind: str) -> tuple[str, str]:
    found = re.fullmatch("(read|write)-(token|output|paper)", kind)
    if found is None:
        raise BadOption(f"There are no lists of the kind {kind!r}; one looks like read-token or write-output.")
    return found[1], found[2]


def _starts(seen: Overview) -> list[Any]:
    """The most telling parameters, one a layer, so that a stroll begins at several depths."""
    best: dict[int, Any] = {}
    for cell in sorted(seen.cells, key=lambda cell: -cell.most):
        best.setdefault(cell.layer, cell)
    return list(best.values())[:STARTS]


def layer(context: Context, number: int, page: int = 1) -> Page:
    """The heads of a layer, and its neurons, most telling first."""
    atlas = context.atlas
    first, stop = atlas.layers
    found = summary.telling(atlas, number, (page - 1) * NEURONS, NEURONS)
    pages = count_pages(found.count, NEURONS)
    if not 1 <= page <= pages:
        raise BadAddress(f"Layer {number} has pages 1 to {pages}.")
    heads = _heads(context, number) if page == 1 else {}
    lone = summary.outside(atlas, number) if page == 1 else []
    shown = {"layer": found, "number": page, "pages": pages, "heads": heads, "lone": lone}
    return Page(
        layer_path(number, page),
        "layer.html",
        f"Layer {number}" + (f", page {page}" if page > 1 else ""),
        partial(_layer_json, found, heads),
        shown,
        Table(SHORT_COLUMNS, partial(short_rows, (*found.rows, *lone))),
        drawings.strengths(summary.strengths(atlas, number)) if page == 1 else None,
        ((context.name, ""),) if page == 1 else ((context.name, ""), (f"Layer {number}", layer_path(number))),
        layer_path(number - 1) if number > first else None,
        layer_path(number + 1) if number + 1 < stop else None,
    )


def _layer_json(found: LayerRecord, heads: dict[str, list[PairRecord]]) -> dict[str, Any]:
    return found.to_json() | {"heads": {a: [r.to_json() for r in rs] for a, rs in heads.items()}}


def _heads(context: Context, number: int) -> dict[str, list[PairRecord]]:
    """The stored maps of every head of a layer, some pairs each."""
    found: dict[str, list[PairRecord]] = {}
    for kind in MAP_ROLES:
        for record in context.atlas.head_maps(number, kind, 5):
            found.setdefault(record.address, []).append(record)
    return found


def short_rows(rows: Sequence[Telling]) -> list[tuple[Any, ...]]:
    """Parameters in short as rows of a table, one a token."""
    return [
        (row.address, row.strength, one.role, one.side, one.frame, one.pole, rank, t.id, t.token, t.score, t.z)
        for row in rows
        for one in row.lists
        for rank, t in enumerate(one.tokens, 1)
    ]


def outside(context: Context) -> Page:
    """What lies outside the blocks: tables, and shifts of the norms."""
    rows = summary.outside(context.atlas, OUTSIDE)
    shown = {"rows": rows, "most": summary.OUTSIDE_ROWS}
    data = [{"address": row.address, "strength": row.strength} for row in rows]
    table = Table(SHORT_COLUMNS, short_rows(rows))
    return Page("outside", "outside.html", "Outside the blocks", data, shown, table, None, ((context.name, ""),))


def tokens(context: Context, page: int = 1) -> Page:
    """All tokens by id, so many a page."""
    vocab, size = context.atlas.vocab, len(context.atlas.vocab)
    pages = count_pages(size, TOKENS)
    if not 1 <= page <= pages:
        raise BadAddress(f"The tokens fill pages 1 to {pages}.")
    mask = context.atlas.mask(context.atlas.view)
    ids = range((page - 1) * TOKENS, min(page * TOKENS, size))
    rows = [(i, vocab.label(i), bool(mask[i])) for i in ids]
    return Page(
        tokens_path(page),
        "tokens.html",
        f"Tokens {ids.start:,} to {ids.stop - 1:,}",
        [{"id": i, "token": text, "shown": shown} for i, text, shown in rows],
        {"rows": rows, "number": page, "pages": pages, "size": size},
        Table(("id", "token", "shown"), rows),
        None,
        ((context.name, ""),),
        tokens_path(page - 1) if page > 1 else None,
        tokens_path(page + 1) if page < pages else None,
    )


def tokens_path(page: int) -> str:
    """Path of a page of tokens."""
    return "tokens" if page == 1 else f"tokens/{page}"


def help_page(context: Context) -> Page:
    """How to read all this."""
    kinds = [verb_of(*kind) for kind in summary.kinds_of(context.atlas)]
    return Page("help", "help.html", "How to read this", {"kinds": kinds}, {}, None, None, ((context.name, ""),))


def parents(context: Context, address: str) -> tuple[tuple[str, str], ...]:
    """The crumbs of a parameter: its model, and its layer or what lies outside."""
    place = parse(address)
    up = "Outside the blocks" if place.layer < 0 else f"Layer {place.layer}"
    return (context.name, ""), (up, layer_path(place.layer))


__all__ += ["at", "parents", "token", "tokens_path"]
