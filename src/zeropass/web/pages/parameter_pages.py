"""The pages of parameters: a neuron or another vector, its neighbours, a head, its maps, columns and directions."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import zeropass as zp
from zeropass.arch.frame_names import USUAL_OFFSET
from zeropass.arch.roles import MAP_ROLES, base_role
from zeropass.atlas import distributions, neighbours, summary
from zeropass.atlas.schema import group_size, head_count, head_width
from zeropass.errors import BadAddress, BadOption
from zeropass.model.address import FEATURE, Address, parse
from zeropass.records.overviews import Telling
from zeropass.records.parameters import PairRecord, Record, Records, SvdRecord, VectorRecord
from zeropass.tokens.shown import View
from zeropass.web.context import Context, stem_of
from zeropass.web.pages import drawings
from zeropass.web.pages.model_pages import SHORT_COLUMNS, parents, short_rows
from zeropass.web.pages.page import Page, Table, at

__all__ = ["Asked", "cloud", "head_map", "is_head", "parameter", "spread", "subheads", "surroundings", "svd"]

COLUMNS = 12
"""The number of columns of a head that are shown with their words, in each role; the others are links."""

LIST_COLUMNS = ("address", "role", "side", "frame", "pole", "rank", "id", "token", "score", "z")
PAIR_COLUMNS = ("address", "role", "offset", "frame", "rank", "left id", "left", "right id", "right", "score")


@dataclass(frozen=True)
class Asked:
    """The parameters of a request for a head map.

    Attributes:
        offset: The distance from the key to the query; None for the stored one.
        left: A word for the left side.
        right: A word for the right side.
        k: The number of pairs.
    """

    offset: int | None = None
    left: str = ""
    right: str = ""
    k: int = 50


def is_head(place: Address) -> bool:
    """Tell whether an address is that of a head or head map, not of a vector."""
    return place.head >= 0 and place.role in ("", *MAP_ROLES)


def parameter(context: Context, address: str, view: View | None = None, k: int | None = None) -> Page:
    """Return the page of a parameter: the lists of a vector, or both maps of a head."""
    place = parse(address)
    records = context.atlas.explain(address, tokens=view, k=k)
    if is_head(place):
        return _head(context, place, records)
    shown = {
        "records": list(records),
        "address": records[0].address,
        "view": view or context.atlas.view,
        "matches": context.matches(records[0].address),
        "k": k or 20,
        "variant": view is not None or k is not None,
        "role": place.role,
    }
    before, after = _adjacent_paths(context, place)
    return Page(
        path=at(address),
        template="vector.html",
        title=address,
        data=records.to_json,
        shown=shown,
        table=Table(LIST_COLUMNS, partial(list_rows, records)),
        crumbs=parents(context, address),
        before=before,
        after=after,
    )


def list_rows(records: Iterable[Record]) -> list[tuple[Any, ...]]:
    """Return lists as rows of a table, one for each token."""
    return [
        (r.address, r.role, r.side, r.frame, sign, rank, t.id, t.token, t.score, t.z)
        for r in records
        if isinstance(r, VectorRecord)
        for sign, pole in (("+", r.top), ("−", r.bottom))
        for rank, t in enumerate(pole, 1)
    ]


def _pair_rows(records: Iterable[Record]) -> list[tuple[Any, ...]]:
    return [
        (r.address, r.role, r.offset, r.frame, rank, p.left.id, p.left.token, p.right.id, p.right.token, p.score)
        for r in records
        if isinstance(r, PairRecord)
        for rank, p in enumerate(r.pairs, 1)
    ]


def _adjacent_paths(context: Context, place: Address) -> tuple[str | None, str | None]:
    """Return the paths of the previous and next parameter of the same kind, as far as the sizes of the model tell."""
    model = context.atlas.model
    if is_head(place):
        field, current, count = "head", place.head, head_count(model, place.layer)
    elif place.index >= 0 and place.head >= 0:
        field, current, count = "index", place.index, head_width(model, place.role, place.layer)
    elif place.index >= 0 and place.part == "ff":
        field, current, count = "index", place.index, context.atlas.mlps.sizes(place.layer)[max(place.expert, 0)]
    elif place.part == FEATURE:
        field, current = "index", place.index
        count = max(run.count for run in context.atlas.runs if run.layer == place.layer)
    else:
        return None, None
    role = f".{place.role}" if place.part in ("ff", FEATURE) and place.role else ""
    paths: list[str | None] = []
    for position in (current - 1, current + 1):
        adjacent = replace(place, head=position) if field == "head" else replace(place, index=position)
        paths.append(at(f"{adjacent}{role}") if 0 <= position < count else None)
    return paths[0], paths[1]


# --- Heads ------------------------------------------------------------------------------------------------------------


def _head(context: Context, place: Address, records: Records) -> Page:
    address = records[0].address
    before, after = _adjacent_paths(context, replace(place, role=""))
    shown = {
        "records": list(records),
        "address": address,
        "matches": context.matches(address),
        "columns": summary.has_columns(context.atlas, place.layer),
        "does": context.head(address),
    }
    return Page(
        path=at(address) if not place.role else at(f"{address}.{base_role(place.role)}"),
        template="head.html",
        title=address,
        data=records.to_json,
        shown=shown,
        table=Table(PAIR_COLUMNS, partial(_pair_rows, records)),
        picture=drawings.pair_map(records[0]),
        crumbs=parents(context, address),
        before=before,
        after=after,
    )


def head_map(context: Context, address: str, asked: Asked = Asked()) -> Page:
    """Return the page of a head map: its stored pairs, or those at another offset or with a token, from the weights."""
    place, address = _map_place(address)
    if asked.offset is not None and not (place.role == "qk" and context.rotary):
        raise BadOption(f"{address}: only a qk map of a model with rotary positions depends on an offset.")
    stored = context.atlas.explain(address, k=int(context.atlas.options["pairs"]))[0]  # raises BadAddress if absent
    is_stored = asked.offset is None and not asked.left and not asked.right
    record = stored if is_stored else _asked(context, address, stored, asked)
    shown = {
        "record": record,
        "asked": asked,
        "computed": not is_stored,
        "rotary": context.rotary and place.role == "qk",
        "usual": stored.offset,
        "weights": context.weights is not None,
        "address": str(place),
        "map": address,
    }
    heads = _adjacent_paths(context, replace(place, role=""))
    before, after = (path and f"map/{path.removeprefix('at/')}.{base_role(place.role)}" for path in heads)
    return Page(
        path=f"map/{address}",
        template="map.html",
        title=address,
        data=record.to_json,
        shown=shown,
        table=Table(PAIR_COLUMNS, partial(_pair_rows, [record])),
        picture=drawings.pair_map(record),
        crumbs=(*parents(context, address), (str(place), at(place))),
        before=before,
        after=after,
    )


def _map_place(address: str) -> tuple[Address, str]:
    """Return the place of a head map, and its address with the role as outputs have it."""
    place = parse(address)
    if place.role not in MAP_ROLES:
        raise BadAddress(f"{address} is not a head map; one looks like L10.attn.3.qk or L10.attn.3.vo.")
    return place, f"{place}.{base_role(place.role)}"


def _asked(context: Context, address: str, stored: PairRecord, asked: Asked) -> PairRecord:
    """Return the requested pairs from the weights, in the usual frame, which the atlas may not have stored."""
    offset = stored.offset if asked.offset is None else asked.offset
    lens = context.lens()
    if not asked.left and not asked.right:
        unfiltered: PairRecord = lens.explain(address, k=asked.k, offset=offset or None)[0]
        return unfiltered
    left, right = (token_ids(context, text) if text else [] for text in (asked.left, asked.right))
    product = context.head_map(address, offset)
    filtered: PairRecord = zp.pairs_with(lens, address, product, offset, left=left, right=right, k=asked.k)
    return replace(filtered, evidence=stored.evidence if offset == stored.offset else None)


def token_ids(context: Context, text: str) -> list[int]:
    """Return the tokens that a text stands for: those of `Vocabulary.find`, or the one that `token_id` names."""
    i = token_id(text)
    return context.atlas.vocab.find(text) if i is None else [i]


def token_id(text: str) -> int | None:
    """Return the id that a text such as ``#123`` names; None for any other text."""
    return int(text[1:]) if text.startswith("#") and text[1:].isdecimal() and len(text) < 12 else None


def svd(context: Context, address: str, asked: Asked = Asked()) -> Page:
    """Return the page of the singular directions of a head map, from the weights."""
    place, address = _map_place(address)
    context.atlas.explain(address, k=1)
    record = context.lens().svd(address, offset=asked.offset)
    columns = ("direction", "share", "close", "side", "pole", "rank", "id", "token", "score", "z")
    return Page(
        path=f"svd/{address}",
        template="svd.html",
        title=f"{address}: singular directions",
        data=record.to_json,
        shown={"record": record, "address": str(place), "map": address, "usual": USUAL_OFFSET},
        table=Table(columns, partial(_direction_rows, record)),
        crumbs=(*parents(context, address), (str(place), at(place))),
    )


def _direction_rows(record: SvdRecord) -> list[tuple[Any, ...]]:
    return [
        (n, direction.share, direction.close, side, sign, rank, t.id, t.token, t.score, t.z)
        for n, direction in enumerate(record.directions, 1)
        for side, sign, pole in (
            ("left", "+", direction.left),
            ("left", "−", direction.left_bottom),
            ("right", "+", direction.right),
            ("right", "−", direction.right_bottom),
        )
        for rank, t in enumerate(pole, 1)
    ]


def subheads(context: Context, address: str) -> Page:
    """Return the page of the columns of a head, most telling first in each role."""
    place = parse(address)
    if not is_head(place) or place.role:
        raise BadAddress(f"{address} is not a head; one looks like L10.attn.3.")
    context.atlas.check_range(place)

    def rows() -> list[Telling]:
        return [row for columns in summary.subheads(context.atlas, place.layer, place.head).values() for row in columns]

    before, after = (path and path.replace("at/", "subheads/", 1) for path in _adjacent_paths(context, place))
    return Page(
        path=f"subheads/{address}",
        template="subheads.html",
        title=f"{address}: its columns",
        data=lambda: [asdict(row) for row in rows()],
        shown={
            "by_role": summary.subheads(context.atlas, place.layer, place.head, COLUMNS),
            "address": address,
            "group": _group(context, place),
            "most": COLUMNS,
        },
        table=Table(SHORT_COLUMNS, lambda: short_rows(rows())),
        crumbs=(*parents(context, address), (address, at(address))),
        before=before,
        after=after,
    )


def _group(context: Context, place: Address) -> Sequence[int]:
    """Return the query heads that share k and v with a head."""
    size = group_size(context.atlas.model, place.layer)
    first = place.head // size * size
    return range(first, first + size)


# --- What is computed from the vectors of an atlas --------------------------------------------------------------------


def surroundings(context: Context, address: str) -> Page:
    """Return the page of the neighbours of a parameter: what writes along it, reads along it and is like it."""
    record = neighbours.neighbours_of(context.atlas, address)
    columns = ("relation", "role", "frame", "rank", "address", "other role", "inner product", "cosine or correlation")
    rows: list[tuple[Any, ...]] = [
        (wiring.verb, wiring.role, "", rank, wire.address, wire.role, wire.product, wire.cosine)
        for wiring in record.wiring
        for rank, wire in enumerate(wiring.wires, 1)
    ]
    rows += [
        ("is like", alike.role, alike.frame, rank, like.address, alike.role, "", like.correlation)
        for alike in record.alike
        for rank, like in enumerate(alike.best, 1)
    ]
    return Page(
        path=f"near/{address}",
        template="near.html",
        title=f"{address}: what stands near",
        data=record.to_json,
        shown={"neighbours": record, "address": address},
        table=Table(columns, rows),
        picture=drawings.wiring(record),
        crumbs=(*parents(context, address), (address, at(address))),
    )


def spread(context: Context, address: str) -> Page:
    """Return the page that shows how the scores of each list are spread over the vocabulary."""
    records = distributions.spreads(context.atlas, address)
    rows = [
        (record.role, record.side, record.frame, record.low + n * record.step, record.step, count)
        for record in records
        for n, count in enumerate(record.counts)
    ]
    return Page(
        path=f"spread/{address}",
        template="spread.html",
        title=f"{address}: spread of its scores",
        data=[record.to_json() for record in records],
        shown={"spreads": records, "address": address},
        table=Table(("role", "side", "frame", "from z", "width", "tokens"), rows),
        picture=drawings.spreads(records),
        crumbs=(*parents(context, address), (address, at(address))),
    )


def cloud(context: Context, address: str) -> Page:
    """Return the page of the tokens of each list in a plane."""
    records = distributions.clouds(context.atlas, address)
    rows = [
        (record.role, record.side, record.frame, p.id, p.token, p.z, p.x, p.y)
        for record in records
        for p in record.points
    ]
    return Page(
        path=f"cloud/{address}",
        template="cloud.html",
        title=f"{address}: its tokens in a plane",
        data=[record.to_json() for record in records],
        shown={"clouds": records, "address": address},
        table=Table(("role", "side", "frame", "id", "token", "z", "x", "y"), rows),
        picture=drawings.clouds(records),
        crumbs=(*parents(context, address), (address, at(address))),
    )


__all__ += ["list_rows", "stem_of", "token_ids"]
