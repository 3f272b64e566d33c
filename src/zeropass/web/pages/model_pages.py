"""The overview pages: the model, its layers, what lies outside them, and all tokens."""

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

from zeropass.arch.frame_names import ALL_FRAMES
from zeropass.arch.roles import MAP_ROLES, OUTSIDE
from zeropass.atlas import summary
from zeropass.atlas.highlights import compared_frames
from zeropass.atlas.read import Atlas
from zeropass.errors import BadAddress, BadOption
from zeropass.heads.results import RARE
from zeropass.model.address import parse
from zeropass.records.overviews import LayerRecord, Overview, Short, Telling
from zeropass.records.parameters import PairRecord, VectorRecord, verbs_of
from zeropass.web.context import Context
from zeropass.web.pages import drawings
from zeropass.web.pages.page import Page, Table, at, by, count_pages, layer_path, token

__all__ = ["NEURONS", "TOKENS", "heads", "help_page", "layer", "model", "outside", "short_rows", "tokens"]

NEURONS, TOKENS, WORDS = 50, 400, 8
"""The numbers of neurons and of tokens on a page, and of words of a list on the first page."""

SHORT_COLUMNS = ("address", "strength", "role", "side", "frame", "pole", "rank", "id", "token", "score", "z")


def model(context: Context, measure: str | None = None, kind: str | None = None) -> Page:
    """Return the page of the model, with a map of its parts by how telling their words are."""
    atlas = context.atlas
    list_types = summary.list_types_of(atlas)
    if not list_types:
        return Page(path="", template="model.html", title=context.name, data=atlas.info(), shown={"map": None})
    side, frame = list_types[-1] if kind is None else _list_type(kind)
    overview = summary.overview(atlas, side, frame, measure or next(iter(summary.MEASURES)))
    shown = {
        "map": overview,
        "begin": _begin(context) if measure is None and kind is None else None,
        "measures": list(summary.MEASURES),
        "list_types": [(*list_type, verb) for list_type, verb in verbs_of(list_types).items()],
        "layers": range(*atlas.layers),
        "model": atlas.model,
        "manifest": atlas.manifest,
    }
    path = "" if measure is None and kind is None else by(overview.measure, side, frame)
    columns = ("layer", "part", f"mean {overview.measure}", f"most {overview.measure}", "address")
    rows = [(cell.layer, cell.part, cell.mean, cell.most, cell.address) for cell in overview.cells]
    title = context.name if not path else f"{context.name}: {overview.measure}, {overview.verb}"
    crumbs = () if not path else ((context.name, ""),)
    return Page(
        path=path,
        template="model.html",
        title=title,
        data=partial(_model_json, context, overview, is_first=measure is None and kind is None),
        shown=shown,
        table=Table(columns, rows),
        picture=drawings.heat_map(overview),
        crumbs=crumbs,
    )


def _model_json(context: Context, overview: Overview, *, is_first: bool) -> dict[str, Any]:
    atlas = context.atlas
    facts = {"model": atlas.model, "manifest": atlas.manifest, "proof": atlas.proof, "map": overview.to_json()}
    if not is_first:
        return facts
    highlights = context.highlights
    begin = {
        "units": {depth.words: addresses for depth, addresses in highlights.units.items()},
        "heads": {role: [record.address for record in records] for role, records in highlights.maps.items()},
        "words": highlights.words,
    }
    return facts | {"begin": begin}


def _list_type(text: str) -> tuple[str, str]:
    match = re.fullmatch(f"(read|write)-({'|'.join(ALL_FRAMES)})", text)
    if match is None:
        raise BadOption(f"There are no lists of the kind {text!r}; one looks like read-token or write-output.")
    return match[1], match[2]


def _begin(context: Context) -> dict[str, Any]:
    """Return what the first page shows before the map: telling neurons of several depths, heads, words to try."""
    atlas, highlights = context.atlas, context.highlights
    units = [(depth, [_brief(atlas, address) for address in part]) for depth, part in highlights.units.items()]
    maps = [(role, records[0].verb, records) for role, records in highlights.maps.items() if records]
    return {"units": units, "maps": maps, "words": list(highlights.words.items())}


def _brief(atlas: Atlas, address: str) -> tuple[str, list[Short]]:
    """Return a parameter with the stronger pole of each list that says something; ``up`` says little next to a gate."""
    records = [record for record in atlas.explain(address, k=WORDS) if isinstance(record, VectorRecord)]
    compared = compared_frames([record.frame for record in records])
    telling = [record for record in records if not (record.says_little or record.frame in compared)]
    gated = any(record.role == "gate" for record in telling)
    return address, [_short(record) for record in telling or records if not (gated and record.role == "up")]


def _short(record: VectorRecord) -> Short:
    """Return the stronger pole of a list."""
    top = sum(abs(token.z) for token in record.top) >= sum(abs(token.z) for token in record.bottom)
    pole, tokens = ("+", record.top) if top else ("−", record.bottom)
    return Short(
        role=record.role,
        side=record.side,
        frame=record.frame,
        pole=pole,
        tokens=tuple(tokens),
        evidence=record.evidence,
    )


def layer(context: Context, number: int, page: int = 1) -> Page:
    """Return a page of a layer: its heads, and its neurons, most telling first."""
    atlas = context.atlas
    first, stop = atlas.layers
    record = summary.telling(atlas, number, (page - 1) * NEURONS, NEURONS)
    pages = count_pages(record.count, NEURONS)
    if not 1 <= page <= pages:
        raise BadAddress(f"Layer {number} has pages 1 to {pages}.")
    heads = _heads(context, number) if page == 1 else {}
    lone = summary.outside(atlas, number) if page == 1 else []
    shown = {"layer": record, "number": page, "pages": pages, "heads": heads, "lone": lone}
    parts = {".mixer.": "Mixer, biases and norms", ".ple.": "Per-layer embedding, biases and norms"}
    titles = (title for part, title in parts.items() if any(part in row.address for row in lone))
    shown["lone_title"] = next(titles, "Biases and norms")
    return Page(
        path=layer_path(number, page),
        template="layer.html",
        title=f"Layer {number}" + (f", page {page}" if page > 1 else ""),
        data=partial(_layer_json, record, heads),
        shown=shown,
        table=Table(SHORT_COLUMNS, partial(short_rows, (*record.rows, *lone))),
        picture=drawings.strengths(summary.strengths(atlas, number)) if page == 1 else None,
        crumbs=((context.name, ""),) if page == 1 else ((context.name, ""), (f"Layer {number}", layer_path(number))),
        before=layer_path(number - 1) if number > first else None,
        after=layer_path(number + 1) if number + 1 < stop else None,
    )


def _layer_json(layer_record: LayerRecord, heads: dict[str, list[PairRecord]]) -> dict[str, Any]:
    return layer_record.to_json() | {
        "heads": {address: [record.to_json() for record in records] for address, records in heads.items()}
    }


def _heads(context: Context, number: int) -> dict[str, list[PairRecord]]:
    """Return the first pairs of the stored maps of every head of a layer."""
    maps: dict[str, list[PairRecord]] = {}
    for role in MAP_ROLES:
        for record in context.atlas.head_maps(number, role, 5):
            maps.setdefault(record.address, []).append(record)
    return maps


def short_rows(rows: Sequence[Telling]) -> list[tuple[Any, ...]]:
    """Return some parameters in short as rows of a table, one for each token."""
    return [
        (row.address, row.strength, short.role, short.side, short.frame, short.pole, rank, t.id, t.token, t.score, t.z)
        for row in rows
        for short in row.lists
        for rank, t in enumerate(short.tokens, 1)
    ]


def outside(context: Context) -> Page:
    """Return the page of what lies outside the blocks: tables, and shifts of the norms."""
    rows = summary.outside(context.atlas, OUTSIDE)
    shown = {"rows": rows, "most": summary.OUTSIDE_ROWS}
    data = [{"address": row.address, "strength": row.strength} for row in rows]
    table = Table(SHORT_COLUMNS, short_rows(rows))
    return Page(
        path="outside",
        template="outside.html",
        title="Outside the blocks",
        data=data,
        shown=shown,
        table=table,
        crumbs=((context.name, ""),),
    )


def heads(context: Context, trait: str = "") -> Page:
    """Return the page of what each attention head does, by layer or with the most of a trait first."""
    catalogue = context.heads
    if catalogue is None:
        raise BadOption(
            f"No catalogue of the heads of {context.name} is kept: `zeropass heads` with the atlas makes one."
        )
    catalogue = catalogue.sorted_by(trait) if trait else catalogue
    rows = [head.plain() for head in catalogue]
    return Page(
        path=heads_path(trait),
        template="heads.html",
        title=f"Heads: {trait}" if trait else "Heads",
        data=catalogue.to_json,
        shown={
            "catalogue": catalogue,
            "trait": trait,
            "shown_traits": [name for name in catalogue.traits if name not in ("suppression", "names")],
            "rare": RARE,
        },
        table=Table(tuple(rows[0]), [tuple(row.values()) for row in rows]),
        crumbs=((context.name, ""),),
    )


def heads_path(trait: str = "") -> str:
    """Return the path of the page of heads in the order of a trait."""
    return f"heads/{trait}" if trait else "heads"


def tokens(context: Context, page: int = 1) -> Page:
    """Return a page of the tokens by id."""
    vocab, size = context.atlas.vocab, len(context.atlas.vocab)
    pages = count_pages(size, TOKENS)
    if not 1 <= page <= pages:
        raise BadAddress(f"The tokens fill pages 1 to {pages}.")
    mask = context.atlas.mask(context.atlas.view)
    ids = range((page - 1) * TOKENS, min(page * TOKENS, size))
    rows = [(i, vocab.label(i), bool(mask[i])) for i in ids]
    return Page(
        path=tokens_path(page),
        template="tokens.html",
        title=f"Tokens {ids.start:,} to {ids.stop - 1:,}",
        data=[{"id": i, "token": text, "shown": shown} for i, text, shown in rows],
        shown={"rows": rows, "number": page, "pages": pages, "size": size},
        table=Table(("id", "token", "shown"), rows),
        crumbs=((context.name, ""),),
        before=tokens_path(page - 1) if page > 1 else None,
        after=tokens_path(page + 1) if page < pages else None,
    )


def tokens_path(page: int) -> str:
    """Return the path of a page of tokens."""
    return "tokens" if page == 1 else f"tokens/{page}"


def help_page(context: Context) -> Page:
    """Return the page that explains how to read the others."""
    verbs = list(verbs_of(summary.list_types_of(context.atlas)).values())
    return Page(
        path="help",
        template="help.html",
        title="How to read this",
        data={"kinds": verbs},
        crumbs=((context.name, ""),),
    )


def parents(context: Context, address: str) -> tuple[tuple[str, str], ...]:
    """Return the crumbs of a parameter: its model, and its layer or what lies outside."""
    place = parse(address)
    up = "Outside the blocks" if place.layer < 0 else f"Layer {place.layer}"
    return (context.name, ""), (up, layer_path(place.layer))


__all__ += ["at", "parents", "token", "tokens_path"]
