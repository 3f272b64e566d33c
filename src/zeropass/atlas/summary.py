"""An atlas seen from above: how telling each part of a model is, and the parameters of a layer in short. No torch."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

from zeropass.arch.spec import FF_ROLES, HEAD_ROLES, base_role, site_of
from zeropass.atlas.read import Atlas
from zeropass.atlas.schema import PARAMETERS
from zeropass.errors import BadAddress, BadOption
from zeropass.records.overviews import Cell, LayerRecord, Overview, Short, Telling
from zeropass.records.parameters import TokenScore

__all__ = ["MEASURES", "OUTSIDE_ROWS", "has_columns", "in_short", "kinds_of", "most_telling", "outside", "overview"]
__all__ += ["strengths", "subheads", "telling"]

MEASURES = {
    "strength": "|z| of the tenth token of a list's stronger pole",
    "best": "highest |z| in a list",
    "kurtosis": "kurtosis of a list's scores: 0 for normal ones, high where few tokens stand far out",
}
"""What tells how telling a list is: a column of ``parameters.parquet``, and what it is in words."""

OUTSIDE_ROWS = 200
"""Lone vectors and rows of tables at most: a table of positions may have thousands."""

BIN = 0.25
"""Width of a bin of strengths."""


def kinds_of(atlas: Atlas) -> list[tuple[str, str]]:
    """The (side, frame) of the lists that an atlas holds in its blocks: what it sees first, what it writes last."""
    order = ("read", "write"), ("token", "output", "paper")
    found = {(run.side, run.frame) for run in atlas.runs if run.layer >= 0 and run.role in (*FF_ROLES, *HEAD_ROLES)}
    return sorted(found, key=lambda kind: (order[0].index(kind[0]), order[1].index(kind[1])))


def overview(atlas: Atlas, side: str, frame: str, measure: str) -> Overview:
    """A measure of every part of every layer, over its lists of one kind; BadOption for what there is not.

    The parts of a layer are its feed-forward block and each query head; a head has the k and v columns of its group.
    """
    if measure not in MEASURES:
        raise BadOption(f"There is no measure {measure!r}; there are {', '.join(MEASURES)}.")
    if (side, frame) not in kinds_of(atlas):
        raise BadOption(f"{atlas.path} has no lists that {side} in the frame {frame}.")
    rows = atlas.query(
        f"SELECT layer, role, head, avg({measure}), max({measure}), arg_max(address, {measure}) "  # noqa: S608
        "FROM read_parquet($file) WHERE side = $side AND frame = $frame AND layer >= 0 AND list_contains($roles, role) "
        "GROUP BY ALL ORDER BY ALL",
        file=str(atlas.path / PARAMETERS),
        side=side,
        frame=frame,
        roles=[*FF_ROLES, *HEAD_ROLES],
    )
    return Overview(side, frame, measure, MEASURES[measure], tuple(_cells(atlas, rows)))


def _cells(atlas: Atlas, rows: Iterable[tuple[Any, ...]]) -> Iterable[Cell]:
    parts: dict[tuple[int, str, int], list[tuple[float, float, str]]] = defaultdict(list)
    group = atlas.model["heads"] // atlas.model["kv_heads"]
    for layer, role, head, mean, most, address in rows:
        for one in range(head, head + group) if base_role(role) in ("k", "v") else (head,):
            parts[layer, site_of(role), one].append((mean, most, address))
    for (layer, site, head), found in sorted(parts.items()):
        most = max(found, key=lambda entry: entry[1])
        part = site if head < 0 else f"{site}.{head}"
        yield Cell(layer, part, fmean(entry[0] for entry in found), most[1], most[2])


def telling(atlas: Atlas, layer: int, first: int = 0, count: int = 50) -> LayerRecord:
    """The neurons of a layer, most telling first, from the ``first`` on, each with its lists in short."""
    low, stop = atlas.layers
    if not low <= layer < stop:
        raise BadAddress(f"Layer {layer} is out of range, {atlas.path} has layers {low} to {stop - 1}.")
    of = "FROM read_parquet($file) WHERE layer = $layer AND list_contains($roles, role)"
    asked: dict[str, Any] = {"file": str(atlas.path / PARAMETERS), "layer": layer, "roles": list(FF_ROLES)}
    rows = atlas.query(
        f"SELECT address, max(strength) AS most, count(*) OVER (), list(id) {of} GROUP BY address "
        'ORDER BY most DESC, min("index") LIMIT $count OFFSET $first',
        **asked,
        count=count,
        first=first,
    )
    every = rows[0][2] if rows else atlas.query(f"SELECT count(DISTINCT address) {of}", **asked)[0][0]
    lists = _in_short(atlas, [i for *_, ids in rows for i in ids])
    return LayerRecord(layer, first, every, tuple(Telling(a, s, tuple(lists[a])) for a, s, *_ in rows))


def has_columns(atlas: Atlas, layer: int) -> bool:
    """Whether an atlas holds any columns of the heads of a layer."""
    return any(run.layer == layer and run.role in HEAD_ROLES for run in atlas.runs)


def most_telling(atlas: Atlas, layer: int, roles: Sequence[str], k: int | None = None) -> list[str]:
    """Addresses of the k parameters (all for None) of some roles of a layer with the most telling lists, best first."""
    rows = atlas.query(
        "SELECT address FROM read_parquet($file) WHERE layer = $layer AND list_contains($roles, role) "
        "GROUP BY address ORDER BY max(strength) DESC, min(id) LIMIT $k",
        file=str(atlas.path / PARAMETERS),
        layer=layer,
        roles=list(roles),
        k=len(atlas.means) if k is None else k,
    )
    return [address for (address,) in rows]


def subheads(atlas: Atlas, layer: int, head: int, most: int | None = None) -> dict[str, list[Telling]]:
    """The columns of a query head in short, by role: q and o are its own, k and v its group's; most telling first.

    ``most``: how many of a role come with their lists (None for all); the others come without.
    """
    group = atlas.model["heads"] // atlas.model["kv_heads"]
    rows = atlas.query(
        "SELECT role, address, max(strength), list(id) FROM read_parquet($file) "
        "WHERE layer = $layer AND list_contains($roles, role) "
        "AND head = CASE WHEN role IN ('k', 'v') THEN $shared ELSE $head END "
        "GROUP BY role, address ORDER BY max(strength) DESC, min(id)",
        file=str(atlas.path / PARAMETERS),
        layer=layer,
        roles=list(HEAD_ROLES),
        head=head,
        shared=head // group * group,
    )
    by_role = {kind: [row for role, *row in rows if role == kind] for kind in HEAD_ROLES}
    lists = _in_short(atlas, [i for of in by_role.values() for *_, ids in of[:most] for i in ids])
    found = {role: [Telling(a, s, tuple(lists.get(a, ()))) for a, s, _ in of] for role, of in by_role.items()}
    return {role: of for role, of in found.items() if of}


def outside(atlas: Atlas, layer: int, count: int = OUTSIDE_ROWS) -> list[Telling]:
    """What is neither neuron nor head: biases and norms' shifts of a layer, or (-1) the tables outside the blocks."""
    roles = list(dict.fromkeys(r.role for r in atlas.runs if r.layer == layer and r.role not in FF_ROLES + HEAD_ROLES))
    rows = atlas.query(
        "SELECT address, max(strength) AS most, list(id) FROM read_parquet($file) WHERE layer = $layer "
        "AND list_contains($roles, role) GROUP BY address ORDER BY most DESC, address LIMIT $count",
        file=str(atlas.path / PARAMETERS),
        layer=layer,
        roles=roles,
        count=count,
    )
    lists = _in_short(atlas, [i for *_, ids in rows for i in ids])
    return [Telling(address, strength, tuple(lists[address])) for address, strength, _ in rows]


def in_short(atlas: Atlas, addresses: Sequence[str]) -> list[Telling]:
    """Some parameters of any layers in short, in the order given; the strength is that of their best list."""
    rows = atlas.query(
        f"SELECT {_SHORT} FROM read_parquet($file) WHERE address IN (SELECT unnest($addresses)) ORDER BY id",  # noqa: S608
        file=str(atlas.path / PARAMETERS),
        addresses=list(addresses),
    )
    found = _shorts(atlas, rows)
    return [Telling(a, found[a][0], tuple(found[a][1])) for a in addresses if a in found]


def strengths(atlas: Atlas, layer: int) -> dict[tuple[str, str, str], dict[int, int]]:
    """How many lists of each (role, side, frame) of a layer are how telling: counts by bin, `BIN` wide, from 0."""
    rows = atlas.query(
        "SELECT role, side, frame, CAST(floor(strength / $bin) AS INTEGER) AS at, count(*) FROM read_parquet($file) "
        "WHERE layer = $layer AND list_contains($roles, role) AND isfinite(strength) GROUP BY ALL ORDER BY ALL",
        file=str(atlas.path / PARAMETERS),
        layer=layer,
        roles=[*FF_ROLES, *HEAD_ROLES],
        bin=BIN,
    )
    found: dict[tuple[str, str, str], dict[int, int]] = defaultdict(dict)
    for role, side, frame, at, count in rows:
        found[role, side, frame][at] = count
    order = (*FF_ROLES, *HEAD_ROLES)
    return dict(sorted(found.items(), key=lambda kind: order.index(kind[0][0])))


_SHORT = "address, layer, role, side, frame, mean, std, strength, words, words_z"


def _in_short(atlas: Atlas, ids: Sequence[int]) -> dict[str, list[Short]]:
    """Some lists in short, by the address of their parameter."""
    rows = atlas.query(
        f"SELECT {_SHORT} FROM read_parquet($file) WHERE id BETWEEN $first AND $last "  # noqa: S608
        "AND id IN (SELECT unnest($ids)) ORDER BY id",
        file=str(atlas.path / PARAMETERS),
        first=min(ids, default=0),
        last=max(ids, default=-1),
        ids=list(ids),
    )
    return {address: lists for address, (_, lists) in _shorts(atlas, rows).items()}


def _shorts(atlas: Atlas, rows: Iterable[Sequence[Any]]) -> dict[str, tuple[float, list[Short]]]:
    """For each address the strength of its best list, and all of them in short."""
    found: dict[str, tuple[float, list[Short]]] = {}
    for address, layer, role, side, frame, mean, std, strength, ids, zs in rows:
        tokens = tuple(TokenScore(i, atlas.label(i), z * std + mean, z) for i, z in zip(ids, zs, strict=True))
        evidence = atlas.verdicts.of(role, frame, layer) if atlas.verdicts else None
        pole = "−" if zs and zs[0] < 0 else "+"
        most, lists = found.get(address, (strength, []))
        lists.append(Short(role, side, frame, pole, tokens, evidence))
        found[address] = (max(most, strength), lists)
    return found
