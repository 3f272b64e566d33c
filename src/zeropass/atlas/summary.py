"""Summaries of an atlas: how telling each part of a model is, and the parameters of a layer in short. No torch."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

from zeropass.arch.roles import HEAD_ROLES, SELF_MAPS, base_role, site_of
from zeropass.atlas.read import Atlas
from zeropass.atlas.schema import PARAMETERS, group_size
from zeropass.errors import BadAddress, BadOption
from zeropass.model.address import FEATURE
from zeropass.records.overviews import Cell, LayerRecord, Overview, Short, Telling
from zeropass.records.parameters import TokenScore, verbs_of

__all__ = ["MEASURES", "OUTSIDE_ROWS", "has_columns", "in_short", "list_types_of", "outside", "overview", "strengths"]
__all__ += ["head_addresses", "subheads", "telling"]

MEASURES = {
    "strength": "|z| of the tenth token of a list's stronger pole",
    "best": "highest |z| in a list",
    "coherence": "mean cosine of a list's ten first tokens to each other, in other rows than its own",
    "kurtosis": "kurtosis of a list's scores: 0 for normal ones, high where few tokens stand far out",
}
"""Measures of how telling a list is: each a column of ``parameters.parquet``, with its meaning in words."""

OUTSIDE_ROWS = 200
"""The largest number of lone vectors and rows of tables: a table of positions may have thousands."""

BIN = 0.25
"""The width of a bin of strengths."""


def list_types_of(atlas: Atlas) -> list[tuple[str, str]]:
    """Return the (side, frame) of the lists that an atlas holds in its blocks, ``read`` before ``write``."""
    types = {(run.side, run.frame) for run in atlas.runs if run.layer >= 0 and run.role in atlas.many_roles}
    return list(verbs_of(types))


def overview(atlas: Atlas, side: str, frame: str, measure: str) -> Overview:
    """Return a measure of every part of every layer over its lists of one type.

    The parts of a layer are its feed-forward block and each query head; a head has the k and v columns of its group.

    Args:
        atlas: The atlas.
        side: Side of the lists.
        frame: Frame of the lists.
        measure: One of `MEASURES`.

    Raises:
        BadOption: There is no such measure, or the atlas has no such lists.
    """
    if measure not in MEASURES:
        raise BadOption(f"There is no measure {measure!r}; there are {', '.join(MEASURES)}.")
    if (side, frame) not in list_types_of(atlas):
        raise BadOption(f"{atlas.path} has no lists that {side} in the frame {frame}.")
    rows = atlas.query(
        f"SELECT layer, role, head, avg({measure}), max({measure}), arg_max(address, {measure}) "  # noqa: S608
        "FROM read_parquet($file) WHERE side = $side AND frame = $frame AND layer >= 0 AND list_contains($roles, role) "
        "GROUP BY ALL ORDER BY ALL",
        file=PARAMETERS,
        side=side,
        frame=frame,
        roles=list(atlas.many_roles),
    )
    return Overview(side=side, frame=frame, measure=measure, about=MEASURES[measure], cells=tuple(_cells(atlas, rows)))


def _cells(atlas: Atlas, rows: Iterable[tuple[Any, ...]]) -> Iterable[Cell]:
    """Yield the cells of an overview from rows (layer, role, head, mean, most, address of most)."""
    parts: dict[tuple[int, str, int], list[tuple[float, float, str]]] = defaultdict(list)
    for layer, role, first, mean, most, address in rows:
        group = group_size(atlas.model, layer)
        for head in range(first, first + group) if base_role(role) in ("k", "v") else (first,):
            parts[layer, FEATURE if atlas.is_dictionary else site_of(role), head].append((mean, most, address))
    for (layer, site, head), entries in sorted(parts.items()):
        best = max(entries, key=lambda entry: entry[1])
        part = site if head < 0 else f"{site}.{head}"
        yield Cell(layer=layer, part=part, mean=fmean(entry[0] for entry in entries), most=best[1], address=best[2])


def telling(atlas: Atlas, layer: int, first: int = 0, count: int = 50) -> LayerRecord:
    """Return the neurons of a layer, or its features of a dictionary, most telling first, each with its lists in short.

    Args:
        atlas: The atlas.
        layer: The layer.
        first: Rank of the first neuron, from 0.
        count: Number of neurons.

    Raises:
        BadAddress: The atlas does not have the layer.
    """
    _check_layer(atlas, layer)
    neurons = "FROM read_parquet($file) WHERE layer = $layer AND list_contains($roles, role)"
    parameters: dict[str, Any] = {"file": PARAMETERS, "layer": layer, "roles": list(atlas.unit_roles)}
    rows = atlas.query(
        f"SELECT address, max(strength) AS most, count(*) OVER (), list(id) {neurons} GROUP BY address "
        'ORDER BY most DESC, min("index") LIMIT $count OFFSET $first',
        **parameters,
        count=count,
        first=first,
    )
    total = rows[0][2] if rows else atlas.query(f"SELECT count(DISTINCT address) {neurons}", **parameters)[0][0]
    lists = _in_short(atlas, [i for *_, ids in rows for i in ids])
    return LayerRecord(
        layer=layer, first=first, count=total, rows=tuple(Telling(a, s, tuple(lists[a])) for a, s, *_ in rows)
    )


def head_addresses(atlas: Atlas, layer: int) -> list[str]:
    """Return the addresses of the heads of a layer whose maps an atlas holds.

    Raises:
        BadAddress: The atlas does not have the layer.
    """
    _check_layer(atlas, layer)
    maps = [record for kind in SELF_MAPS for record in atlas.head_maps(layer, kind, 1)]
    return list(dict.fromkeys(record.address for record in maps))


def _check_layer(atlas: Atlas, layer: int) -> None:
    low, stop = atlas.layers
    if not low <= layer < stop:
        raise BadAddress(f"Layer {layer} is out of range, {atlas.path} has layers {low} to {stop - 1}.")


def has_columns(atlas: Atlas, layer: int) -> bool:
    """Tell whether an atlas holds any columns of the heads of a layer."""
    return any(run.layer == layer and run.role in HEAD_ROLES for run in atlas.runs)


def subheads(atlas: Atlas, layer: int, head: int, most: int | None = None) -> dict[str, list[Telling]]:
    """Return the columns of a query head in short, by role, most telling first; k and v are those of its group.

    Args:
        atlas: The atlas.
        layer: The layer.
        head: The query head.
        most: How many columns of a role come with their lists; None for all.
    """
    group = group_size(atlas.model, layer)
    rows = atlas.query(
        "SELECT role, address, max(strength), list(id) FROM read_parquet($file) "
        "WHERE layer = $layer AND list_contains($roles, role) "
        "AND head = CASE WHEN role IN ('k', 'v') THEN $shared ELSE $head END "
        "GROUP BY role, address ORDER BY max(strength) DESC, min(id)",
        file=PARAMETERS,
        layer=layer,
        roles=list(HEAD_ROLES),
        head=head,
        shared=head // group * group,
    )
    by_role = {role: [row for row_role, *row in rows if row_role == role] for role in HEAD_ROLES}
    lists = _in_short(atlas, [i for columns in by_role.values() for *_, ids in columns[:most] for i in ids])
    return {
        role: [Telling(a, s, tuple(lists.get(a, ()))) for a, s, _ in columns]
        for role, columns in by_role.items()
        if columns
    }


def outside(atlas: Atlas, layer: int, count: int = OUTSIDE_ROWS) -> list[Telling]:
    """Return what is neither neuron nor head, most telling first: biases and norm shifts of a layer, or tables.

    Args:
        atlas: The atlas.
        layer: The layer, or `OUTSIDE` for the tables.
        count: Number of vectors at most.
    """
    many = (*atlas.unit_roles, *HEAD_ROLES)
    roles = list(dict.fromkeys(run.role for run in atlas.runs if run.layer == layer and run.role not in many))
    rows = atlas.query(
        "SELECT address, max(strength) AS most, list(id) FROM read_parquet($file) WHERE layer = $layer "
        "AND list_contains($roles, role) GROUP BY address ORDER BY most DESC, address LIMIT $count",
        file=PARAMETERS,
        layer=layer,
        roles=roles,
        count=count,
    )
    lists = _in_short(atlas, [i for *_, ids in rows for i in ids])
    return [Telling(address, strength, tuple(lists[address])) for address, strength, _ in rows]


def in_short(atlas: Atlas, addresses: Sequence[str]) -> list[Telling]:
    """Return some parameters of any layers in short, in the order given, each with the strength of its best list."""
    rows = atlas.query(
        f"SELECT {_SHORT} FROM read_parquet($file) WHERE address IN (SELECT unnest($addresses)) ORDER BY id",  # noqa: S608
        file=PARAMETERS,
        addresses=list(addresses),
    )
    shorts = _shorts(atlas, rows)
    return [Telling(a, shorts[a][0], tuple(shorts[a][1])) for a in addresses if a in shorts]


def strengths(atlas: Atlas, layer: int) -> dict[tuple[str, str, str], dict[int, int]]:
    """Return the histogram of strengths of each (role, side, frame) of a layer: counts by bin, `BIN` wide, from 0."""
    rows = atlas.query(
        "SELECT role, side, frame, CAST(floor(strength / $bin) AS INTEGER) AS at, count(*) FROM read_parquet($file) "
        "WHERE layer = $layer AND list_contains($roles, role) AND isfinite(strength) GROUP BY ALL ORDER BY ALL",
        file=PARAMETERS,
        layer=layer,
        roles=list(atlas.many_roles),
        bin=BIN,
    )
    histograms: dict[tuple[str, str, str], dict[int, int]] = defaultdict(dict)
    for role, side, frame, place, count in rows:
        histograms[role, side, frame][place] = count
    return dict(sorted(histograms.items(), key=lambda item: atlas.many_roles.index(item[0][0])))


_SHORT = "address, layer, role, side, frame, mean, std, strength, words, words_z"


def _in_short(atlas: Atlas, ids: Sequence[int]) -> dict[str, list[Short]]:
    """Return some lists in short, by the address of their parameter."""
    rows = atlas.query(
        f"SELECT {_SHORT} FROM read_parquet($file) WHERE id BETWEEN $first AND $last "  # noqa: S608
        "AND id IN (SELECT unnest($ids)) ORDER BY id",
        file=PARAMETERS,
        first=min(ids, default=0),
        last=max(ids, default=-1),
        ids=list(ids),
    )
    return {address: lists for address, (_, lists) in _shorts(atlas, rows).items()}


def _shorts(atlas: Atlas, rows: Iterable[Sequence[Any]]) -> dict[str, tuple[float, list[Short]]]:
    """Return for each address the strength of its best list, and all its lists in short."""
    shorts: dict[str, tuple[float, list[Short]]] = {}
    for address, layer, role, side, frame, mean, std, strength, ids, zs in rows:
        tokens = tuple(
            TokenScore(id=i, token=atlas.label(i), score=z * std + mean, z=z) for i, z in zip(ids, zs, strict=True)
        )
        lens = atlas.lens_words(frame)
        evidence = atlas.verdicts.of(role, frame, layer, lens=lens) if atlas.verdicts else None
        pole = "−" if zs and zs[0] < 0 else "+"
        most, lists = shorts.get(address, (strength, []))
        lists.append(Short(role=role, side=side, frame=frame, pole=pole, tokens=tokens, evidence=evidence))
        shorts[address] = (max(most, strength), lists)
    return shorts
