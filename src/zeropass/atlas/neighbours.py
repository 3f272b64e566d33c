"""What stands near a parameter: what writes along it before, reads along it after, and has lists like it. No torch.

Everything comes from the folded vectors that an atlas keeps: inner products of vectors, and correlations of lists over
the vocabulary, ``x C y / (std_x std_y)`` with the covariance C of the rows (design.md §2, z).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from zeropass.arch.spec import MAP_ROLES, OUTSIDE, site_of
from zeropass.atlas.folder import Run
from zeropass.atlas.read import Atlas
from zeropass.atlas.schema import PARAMETERS, of_address, safe_name
from zeropass.errors import BadAddress, BadAtlas
from zeropass.model.address import Address, parse, with_roles
from zeropass.records.overviews import Alike, Likeness, NeighbourRecord, Part, Wire, Wiring

__all__ = ["Row", "moments", "neighbours_of", "rows_of"]

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Row:
    """One list of an address: the run that it belongs to, and its place in it."""

    run: Run
    row: int

    @property
    def id(self) -> int:
        """Its list id."""
        return self.run.first + self.row


def rows_of(atlas: Atlas, address: str) -> list[Row]:
    """The lists that an address of vectors has in an atlas; BadAddress for a head map, or an address that is not there.

    A k or v column stands under the first head of its group.
    """
    place = parse(address)
    if place.role in MAP_ROLES or (place.head >= 0 and not place.role):
        raise BadAddress(f"{address} is a head map; its columns are vectors, such as {place}.v.0.")
    found = [row for one in with_roles(place, atlas.model["ff_roles"]) for row in _rows_of(atlas, one)]
    if not found:
        atlas.explain(address, k=1)  # says why not
        raise BadAddress(f"{address}: {atlas.path} holds no vector of it.")
    return found


def _rows_of(atlas: Atlas, place: Address) -> list[Row]:
    stem, _, stored = atlas.stored_name(place)
    path = atlas.path / "lists" / f"{stem}.parquet"
    if not path.is_file():
        return []
    ids = sorted(i for (i,) in atlas.rows_of(path, of_address(stored), ["id"]))
    runs = [next((run for run in atlas.runs if run.first <= i < run.first + run.count), None) for i in ids]
    return [Row(run, i - run.first) for run, i in zip(runs, ids, strict=True) if run is not None]


def neighbours_of(atlas: Atlas, address: str, k: int = 12) -> NeighbourRecord:
    """What writes along, reads along and is like the vectors of an address, the k best of each."""
    rows = rows_of(atlas, address)
    return NeighbourRecord(
        str(parse(address)),
        tuple(_wiring(atlas, row, k) for row in _one_a_role(rows)),
        tuple(_alike(atlas, row, k) for row in rows),
    )


def _one_a_role(rows: Sequence[Row]) -> list[Row]:
    """One row for each role: frames share their vectors, but ``paper`` has others and comes last."""
    best: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: row.run.frame == "paper"):
        best.setdefault(row.run.role, row)
    return list(best.values())


def _wiring(atlas: Atlas, own: Row, k: int) -> Wiring:
    vector = np.asarray(atlas.vectors(own.run)[own.row])
    runs = _others(atlas, own.run)
    products = [atlas.vectors(run) @ vector for run in runs]
    parts: dict[tuple[int, str], float] = {}
    for run, product in zip(runs, products, strict=True):
        key = (run.layer, _part(run))
        parts[key] = parts.get(key, 0.0) + float(product @ product)
    wires = []
    for run, row in _best(runs, products, k):
        there = atlas.vectors(run)[row]
        product = float(there @ vector)
        size = float(np.linalg.norm(there) * np.linalg.norm(vector))
        wires.append((run.first + row, run.role, product, product / size if size else 0.0))
    names = _addresses(atlas, [wire[0] for wire in wires])
    return Wiring(
        own.run.role,
        own.run.side,
        tuple(Wire(names[i], role, product, cosine) for i, role, product, cosine in wires),
        tuple(Part(layer, part, total**0.5) for (layer, part), total in sorted(parts.items())),
    )


def _others(atlas: Atlas, own: Run) -> list[Run]:
    """Runs of the other side that stand before what reads, or after what writes; one for each layer and role."""
    found: dict[tuple[int, str], Run] = {}
    for run in sorted(atlas.runs, key=lambda run: run.frame == "paper"):
        before = _depth(atlas, run) < _depth(atlas, own)
        if run.side != own.side and before == (own.side == "read") and _depth(atlas, run) != _depth(atlas, own):
            found.setdefault((run.layer, run.role), run)
    return sorted(found.values(), key=lambda run: (run.layer, run.first))


def _depth(atlas: Atlas, run: Run) -> tuple[int, int]:
    """Where in the stream a run stands: attention before the feed-forward block of its layer, tables at the ends.

    In a model whose blocks are parallel, both halves read the same stream, so they stand at one place.
    """
    if run.layer == OUTSIDE:
        return (OUTSIDE if run.side == "write" else atlas.model["layers"], 0)
    return run.layer, 0 if atlas.model.get("parallel") else ("attn", "cross", "ff").index(_part(run))


def _part(run: Run) -> str:
    if run.layer == OUTSIDE:
        return run.role
    return "ff" if run.role.startswith("ff") else site_of(run.role)


def _alike(atlas: Atlas, own: Row, k: int) -> Alike:
    space = atlas.space(own.run)
    runs = [r for r in atlas.runs if (r.role, r.frame) == (own.run.role, own.run.frame) and atlas.space(r) == space]
    vector = np.asarray(atlas.vectors(own.run)[own.row])
    image = (moments(atlas, space)[1:] @ vector).astype(np.float32)
    correlations = [_correlations(atlas, run, image, own) for run in runs]
    best = [(run.first + row, float(c[row])) for (run, row), c in _with_values(runs, correlations, k, own)]
    names = _addresses(atlas, [i for i, _ in best])
    return Alike(own.run.role, own.run.side, own.run.frame, tuple(Likeness(names[i], value) for i, value in best))


def _correlations(atlas: Atlas, run: Run, image: Floats, own: Row) -> Floats:
    """Correlations (n,) of a run's lists with the list of ``own``, whose vector times the covariance is ``image``."""
    deviations = atlas.stds * atlas.spreads
    size = deviations[run.first : run.first + run.count] * deviations[own.id]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(size > 0, (atlas.vectors(run) @ image) / size, 0).astype(np.float32)


def _with_values(
    runs: Sequence[Run], values: Sequence[Floats], k: int, own: Row
) -> list[tuple[tuple[Run, int], Floats]]:
    """The k best other lists, each with the values of its run."""
    of = dict(zip((run.first for run in runs), values, strict=True))
    best = [place for place in _best(runs, values, k + 1) if place[0].first + place[1] != own.id]
    return [(place, of[place[0].first]) for place in best[:k]]


def _best(runs: Sequence[Run], values: Sequence[Floats], k: int) -> list[tuple[Run, int]]:
    """The k places of largest absolute value over all runs, best first; of equal ones the first."""
    if not runs:
        return []
    sizes = np.abs(np.concatenate(values))
    k = min(k, len(sizes))
    least = np.partition(sizes, len(sizes) - k)[len(sizes) - k]
    chosen = np.flatnonzero(sizes >= least)
    chosen = chosen[np.argsort(-sizes[chosen], kind="stable")[:k]]
    starts = np.cumsum([0, *(len(value) for value in values)])
    which = np.searchsorted(starts, chosen, side="right") - 1
    return [(runs[n], int(i - starts[n])) for n, i in zip(which.tolist(), chosen.tolist(), strict=True)]


def _addresses(atlas: Atlas, ids: Sequence[int]) -> dict[int, str]:
    rows = atlas.query(
        "SELECT id, address FROM read_parquet($file) WHERE list_contains($ids, id)",
        file=str(atlas.path / PARAMETERS),
        ids=list(ids),
    )
    return dict(rows)


def moments(atlas: Atlas, space: str) -> npt.NDArray[np.float64]:
    """The mean row of a space and under it the covariance, (1 + d, d); BadAtlas if the file is damaged."""
    path = atlas.path / "rows" / f"{safe_name(space)}.moments.npy"
    d = atlas.model["d"]
    try:
        found = np.load(path, allow_pickle=False)
    except Exception as error:  # numpy raises nearly anything for a damaged header
        raise BadAtlas(f"{path} cannot be read ({error}); delete the folder and build it again.") from error
    if found.shape != (d + 1, d) or found.dtype != np.float64:
        raise BadAtlas(f"{path} holds {found.dtype} {found.shape}; delete the folder and build it again.")
    return found  # type: ignore[no-any-return]
