"""The neighbours of a parameter: what writes along it before, reads along it after, and has similar lists. No torch.

Everything comes from the folded vectors that an atlas holds: inner products of vectors, and correlations of lists over
the vocabulary, ``x C y / (std_x std_y)`` with the covariance C of the rows (docs/theory.md §6).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from zeropass.arch.frame_names import RELATIVE
from zeropass.arch.roles import MAP_ROLES, OUTSIDE, site_of
from zeropass.atlas.folder import Run
from zeropass.atlas.read import Atlas
from zeropass.atlas.schema import PARAMETERS, lists_file, of_address
from zeropass.errors import BadAddress
from zeropass.model.address import Address, parse
from zeropass.records.overviews import Alike, Likeness, NeighbourRecord, Part, Wire, Wiring

__all__ = ["Row", "neighbours_of", "rows_of"]

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Row:
    """One list of an address.

    Attributes:
        run: The run that the list belongs to.
        row: Place of the list in the run.
    """

    run: Run
    row: int

    @property
    def id(self) -> int:
        """The id of the list."""
        return self.run.first + self.row


def rows_of(atlas: Atlas, address: str) -> list[Row]:
    """Return the lists that an address of vectors has in an atlas; a k or v column has those of its group's first head.

    Raises:
        BadAddress: The address is that of a head map, or the atlas does not have it.
    """
    place = parse(address)
    if place.role in MAP_ROLES or (place.head >= 0 and not place.role):
        raise BadAddress(f"{address} is a head map; its columns are vectors, such as {place}.v.0.")
    rows = [row for role_place in atlas.with_roles(place) for row in _role_rows(atlas, role_place)]
    if not rows:
        atlas.explain(address, k=1)  # Raises the error that says why.
        raise BadAddress(f"{address}: {atlas.path} holds no vector of it.")
    return rows


def _role_rows(atlas: Atlas, place: Address) -> list[Row]:
    """Return the lists of an address with a role."""
    stem, _, stored = atlas.stored_name(place)
    file = lists_file(stem)
    if not (atlas.path / file).is_file():
        return []
    ids = sorted(i for (i,) in atlas.rows_of(file, of_address(stored), ["id"]))
    runs = [next((run for run in atlas.runs if run.first <= i < run.first + run.count), None) for i in ids]
    return [Row(run, i - run.first) for run, i in zip(runs, ids, strict=True) if run is not None]


def neighbours_of(atlas: Atlas, address: str, k: int = 12) -> NeighbourRecord:
    """Return the k best parameters that write along, read along and resemble the vectors of an address."""
    rows = rows_of(atlas, address)
    return NeighbourRecord(
        str(parse(address)),
        tuple(_wiring(atlas, row, k) for row in _one_per_role(rows)),
        tuple(_alike(atlas, row, k) for row in rows if row.run.frame not in RELATIVE),
    )


def _one_per_role(rows: Sequence[Row]) -> list[Row]:
    """Return one row for each role, from a frame other than ``paper`` if there is one: these share their vectors."""
    by_role: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: row.run.frame == "paper"):
        by_role.setdefault(row.run.role, row)
    return list(by_role.values())


def _wiring(atlas: Atlas, query: Row, k: int) -> Wiring:
    """Return the vectors of other blocks with the largest inner products, and the norm of all products by block."""
    vector = np.asarray(atlas.vectors(query.run)[query.row])
    runs = _opposite_runs(atlas, query.run)
    atlas.fetch_vectors(runs)
    products = [atlas.vectors(run) @ vector for run in runs]
    parts: dict[tuple[int, str], float] = {}
    for run, product in zip(runs, products, strict=True):
        key = (run.layer, _part(run))
        parts[key] = parts.get(key, 0.0) + float(product @ product)
    wires = []
    for run, row in _best(runs, products, k):
        other = atlas.vectors(run)[row]
        product = float(other @ vector)
        size = float(np.linalg.norm(other) * np.linalg.norm(vector))
        wires.append((run.first + row, run.role, product, product / size if size else 0.0))
    names = _addresses(atlas, [wire[0] for wire in wires])
    return Wiring(
        role=query.run.role,
        side=query.run.side,
        wires=tuple(
            Wire(address=names[i], role=role, product=product, cosine=cosine) for i, role, product, cosine in wires
        ),
        parts=tuple(Part(layer, part, total**0.5) for (layer, part), total in sorted(parts.items())),
    )


def _opposite_runs(atlas: Atlas, query: Run) -> list[Run]:
    """Return the runs that write before a run that reads, or read after one that writes: one per layer and role."""
    runs: dict[tuple[int, str], Run] = {}
    depth = _depth(atlas, query)
    for run in sorted(atlas.runs, key=lambda run: run.frame == "paper"):
        before = _depth(atlas, run) < depth
        if run.side != query.side and before == (query.side == "read") and _depth(atlas, run) != depth:
            runs.setdefault((run.layer, run.role), run)
    return sorted(runs.values(), key=lambda run: (run.layer, run.first))


_ORDER = {"attn": 0, "mixer": 0, "laurel": 0, "cross": 1, "ff": 2, "ple": 3}
"""The order in which the parts of a block run."""


def _depth(atlas: Atlas, run: Run) -> tuple[int, int]:
    """Return the place of a run in the stream: attention before feed-forward in a layer, tables at the ends.

    In a model with parallel blocks both halves of a layer read the same stream, so they have the same place.
    """
    if run.layer == OUTSIDE:
        return (OUTSIDE if run.side == "write" else atlas.model["layers"], 0)
    return run.layer, 0 if atlas.model.get("parallel") else _ORDER[_part(run)]


def _part(run: Run) -> str:
    """Return the part of a layer that a run belongs to; outside the blocks, its role."""
    if run.layer == OUTSIDE:
        return run.role
    return site_of(run.role)


def _alike(atlas: Atlas, query: Row, k: int) -> Alike:
    """Return the lists of the same role and frame that correlate most with a list."""
    query_run, space = query.run, atlas.space(query.run)
    runs = [r for r in atlas.runs if (r.role, r.frame) == (query_run.role, query_run.frame) and atlas.space(r) == space]
    vector = atlas.vector(query_run, query.row)
    image = (atlas.moments(space)[1:] @ vector).astype(np.float32)
    correlations = [_correlations(atlas, run, image, query) for run in runs]
    best = [(run.first + row, float(c[row])) for (run, row), c in _with_values(runs, correlations, k, query)]
    names = _addresses(atlas, [i for i, _ in best])
    return Alike(
        role=query_run.role,
        side=query_run.side,
        frame=query_run.frame,
        best=tuple(Likeness(names[i], value) for i, value in best),
    )


def _correlations(atlas: Atlas, run: Run, image: Floats, query: Row) -> Floats:
    """Return the correlations of a run's lists with one list, (n,).

    Args:
        atlas: The atlas.
        run: The run of n lists.
        image: The covariance of the rows times the vector of the one list, (d,).
        query: The one list.
    """
    deviations = atlas.stds * atlas.spreads
    size = deviations[run.first : run.first + run.count] * deviations[query.id]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(size > 0, atlas.products(run, image) / size, 0).astype(np.float32)


def _with_values(
    runs: Sequence[Run], values: Sequence[Floats], k: int, query: Row
) -> list[tuple[tuple[Run, int], Floats]]:
    """Return the k best lists other than ``query``, each with the values of its run."""
    by_first = dict(zip((run.first for run in runs), values, strict=True))
    best = [place for place in _best(runs, values, k + 1) if place[0].first + place[1] != query.id]
    return [(place, by_first[place[0].first]) for place in best[:k]]


def _best(runs: Sequence[Run], values: Sequence[Floats], k: int) -> list[tuple[Run, int]]:
    """Return the k places of largest absolute value over all runs, best first; equal values in order of their ids."""
    if not runs:
        return []
    sizes = np.abs(np.concatenate(values))
    k = min(k, len(sizes))
    least = np.partition(sizes, len(sizes) - k)[len(sizes) - k]
    chosen = np.flatnonzero(sizes >= least)
    chosen = chosen[np.argsort(-sizes[chosen], kind="stable")[:k]]
    starts = np.cumsum([0, *(len(value) for value in values)])
    owners = np.searchsorted(starts, chosen, side="right") - 1
    return [(runs[n], int(i - starts[n])) for n, i in zip(owners.tolist(), chosen.tolist(), strict=True)]


def _addresses(atlas: Atlas, ids: Sequence[int]) -> dict[int, str]:
    """Return the addresses of lists, by list id."""
    rows = atlas.query(
        "SELECT id, address FROM read_parquet($file) WHERE list_contains($ids, id)",
        file=PARAMETERS,
        ids=list(ids),
    )
    return dict(rows)
