"""The parameters that one feeds, and those that feed it: products with all vectors that read later or write earlier.

The null is the parameter's own layer: up to `SIBLINGS` other vectors of its role take its place, or for a head random
rows with the covariance of the other heads. So neither what all of a layer feeds nor what everything feeds stands out.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from zeropass.arch.roles import OUTSIDE, ROUTER, Side, Site, side_of, site_of
from zeropass.circuits.composition import concentration, under_covariance, unit
from zeropass.circuits.flow import Flow, Station, station_of, stations
from zeropass.circuits.head_factors import layer_heads
from zeropass.circuits.head_pairs import centred
from zeropass.circuits.results import INPUTS, Feed, FeedTable
from zeropass.errors import BadAddress
from zeropass.model.address import Address, with_roles
from zeropass.model.dictionaries import Dictionary, feature_address
from zeropass.model.directions import Where
from zeropass.model.frames import Frames
from zeropass.model.model import Model
from zeropass.model.vectors import VectorSet, count_of, locate, require_head, vector_set
from zeropass.records.parameters import threshold_of

__all__ = ["SIBLINGS", "feed_tables"]

SIBLINGS = 512
"""The most vectors of the same layer and role that take the place of one."""

_FEWEST = 2
"""The fewest others of a layer that are compared with."""

VECTORS, HEADS = "vectors", "heads"


@dataclass(frozen=True, eq=False)
class _Source:
    """A parameter and those that take its place, as rows on the stream.

    Attributes:
        address: The address.
        role: Its role: that of its vector, or the input of a head, or ``vo`` for what it writes.
        station: The station where it stands.
        side: Whether it reads the stream or writes to it.
        rows: The rows of the parameter, then of each that takes its place, (1 + n, w, d); w is 1 for a vector.
    """

    address: Address
    role: str
    station: int
    side: Side
    rows: Tensor

    def compared(self, rows: Tensor, targets: Tensor) -> Tensor:
        """Return scores, the mean scores under the null, and z, of maps that the parameter may be wired to.

        Args:
            rows: The rows as they meet the maps, (1 + n, w, d).
            targets: Unit maps, (m, w′, d).

        Returns:
            Cosines of two vectors or, if either is a head, compositions; (3, m).
        """
        rows = unit(rows)
        products = rows.flatten(0, 1) @ targets.flatten(0, 1).T
        if rows.shape[1] == targets.shape[1] == 1:
            return torch.stack((products[0], *_standing(products)))
        shares = products.reshape(*rows.shape[:2], *targets.shape[:2]).square().sum((1, 3))
        if rows.shape[1] == 1:
            scores = shares.sqrt()  # which are nearer to normal than their squares
            return torch.stack((scores[0], *_standing(scores)))
        others = rows[1:].flatten(0, 1) / (len(rows) - 1) ** 0.5
        mean, deviation = under_covariance(targets @ others.T, concentration(rows[0]))
        return torch.stack((shares[0].sqrt(), mean.sqrt(), _z_of_ratio(shares[0], mean, deviation, len(rows) - 1)))


def _standing(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the means (m,) of all but the first row of values, and the z of the first among them."""
    mean = values[1:].mean(0)
    return mean, _z(values[0] - mean, values[1:].std(0))


def _z_of_ratio(shares: Tensor, mean: Tensor, deviation: Tensor, count: int) -> Tensor:
    """Return the z of shares whose mean was estimated from so many others, by the F distribution of their ratio.

    A share is a sum of squares with ``2 mean² / deviation²`` degrees of freedom; the cube root of a ratio of two such
    is nearly normal (Paulson 1942).
    """
    ratio = torch.where(mean > 0, shares / mean, torch.ones_like(mean))
    own = 1 / (9 * (mean / deviation).square())  # 2 / (9 n) for n degrees of freedom
    other = own / count
    z = ((1 - other) * ratio ** (1 / 3) - (1 - own)) / (other * ratio ** (2 / 3) + own).sqrt()
    return torch.where((mean > 0) & (deviation > 0), z, torch.zeros_like(z))


def _z(distance: Tensor, deviation: Tensor) -> Tensor:
    return torch.where(deviation > 0, distance / deviation, torch.zeros_like(distance))


def feed_tables(
    frames: Frames, address: Address, paths: Sequence[Flow], k: int, features: Dictionary | None = None
) -> Iterator[FeedTable]:
    """Yield for each role and way the vectors and the heads that a parameter or a feature feeds, or that feed it.

    Args:
        frames: The frames.
        address: The address.
        paths: The ways.
        k: The number of parameters of each table.
        features: The dictionary, if the address is that of a feature.

    Raises:
        BadAddress: If the address is out of range, or names what has no others of its kind in its layer.
    """
    for source in _sources(frames, address) if features is None else _features(frames, features, address):
        for flow in paths:
            collected: dict[str, _Collected] = {VECTORS: _Collected(), HEADS: _Collected()}
            for station, rows in _met(frames, source, flow):
                for kind, names, targets in _targets(frames, station, source.side):
                    collected[kind].add(names, source.compared(rows, targets))
            for kind, table in collected.items():
                yield table.best(source, flow.name, kind, k)


def _met(frames: Frames, source: _Source, flow: Flow) -> Iterator[tuple[Station, Tensor]]:
    """Yield the stations behind a parameter that writes, or before one that reads, with its rows as they meet them."""
    every, rows = stations(frames.model), source.rows
    if source.side == "write":
        for station in every[source.station + 1 :]:
            yield station, centred(frames, rows)
            rows = flow.passed({0: rows}, station)[0]
        return
    for station in reversed(every[: source.station]):
        yield station, rows
        jacobian = flow.jacobian(station)
        rows = rows if jacobian is None else rows + rows @ jacobian.T


def _targets(frames: Frames, station: Station, side: Side) -> Iterator[tuple[str, "_Names", Tensor]]:
    """Yield what reads at a station, for a parameter that writes, or writes there, for one that reads: as unit maps."""
    (layer, sites), model = station, frames.model
    for role in _roles(model, layer, sites, "read" if side == "write" else "write"):
        vectors = vector_set(model, layer, role)
        folded = frames.folded(vectors, "token" if vectors.side == "read" else "output")
        folded = centred(frames, folded) if vectors.side == "write" else folded
        yield VECTORS, partial(_vector_name, vectors), unit(folded[:, None])
    if "attn" in sites and model.dims.has_site("attn", layer):
        heads = layer_heads(frames, layer)
        reads = [*zip(INPUTS, heads.reads, strict=True)] if side == "write" else [("vo", centred(frames, heads.writes))]
        for role, maps in reads:
            yield HEADS, partial(_head_name, layer, role), unit(maps)


_Names = Callable[[int], tuple[str, str]]
"""A function from the number of a map to its address and role."""


def _vector_name(vectors: VectorSet, row: int) -> tuple[str, str]:
    return str(vectors.addresses[row]), vectors.role


def _head_name(layer: int, role: str, head: int) -> tuple[str, str]:
    return f"L{layer}.attn.{head}", role


def _roles(model: Model, layer: int, sites: Sequence[str], side: Side) -> list[str]:
    """Return the roles of a layer that read or write in some of its halves; a mixer stands where attention does."""
    halves = {"mixer": "attn"}
    roles = [role for role in model.matrices(layer) if role != ROUTER and side_of(role) == side]
    return [role for role in roles if halves.get(site_of(role), site_of(role)) in sites]


@dataclass
class _Collected:
    """Scores, nulls and z of all maps of one kind, with the names of their sets."""

    names: list[_Names] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)

    def add(self, names: _Names, values: Tensor) -> None:
        self.names.append(names)
        self.values.append(values)

    def best(self, source: _Source, path: str, kind: str, k: int) -> FeedTable:
        """Return the k that stand out most, the best first."""
        values = torch.cat(self.values, 1) if self.values else torch.empty(3, 0)
        sizes = values[2].abs() if kind == VECTORS and source.rows.shape[1] == 1 else values[2]
        threshold = threshold_of(len(sizes))
        threshold = _student(threshold, len(source.rows) - 1) if source.rows.shape[1] == 1 else threshold
        starts = torch.tensor([0, *(part.shape[1] for part in self.values)]).cumsum(0)
        feeds = []
        for at in sizes.argsort(descending=True, stable=True)[:k].tolist():
            owner = int(torch.searchsorted(starts, at, right=True)) - 1
            address, role = self.names[owner](at - int(starts[owner]))
            score, null, z = values[:, at].tolist()
            feeds.append(
                Feed(address=address, role=role, score=score, null=null, z=z, above=float(sizes[at]) >= threshold)
            )
        return FeedTable(
            address=str(source.address),
            role=source.role,
            relation="feeds" if source.side == "write" else "is fed by",
            path=path,
            kind=kind,
            compared=len(sizes),
            threshold=threshold,
            feeds=tuple(feeds),
        )


def _student(z: float, count: int) -> float:
    """Return the distance that is as rare as a normal z, in standard deviations that so many others show.

    It is a quantile of Student's t by its expansion in 1/n (Fisher and Cornish 1960), for a further draw.
    """
    n = max(count - 1, 1)
    quantile = z + (z**3 + z) / (4 * n) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
    return quantile * math.sqrt(1 + 1 / count)


def _sources(frames: Frames, place: Address) -> Iterator[_Source]:
    """Yield the rows of an address by role."""
    model = frames.model
    if place.part == "attn" and place.head >= 0 and place.index < 0 and place.role in ("", "qk", "vo"):
        yield from _head(frames, place)
        return
    for parameter in with_roles(place, model.family.ff_roles):
        layer, role, row = locate(model, parameter)
        if layer == OUTSIDE or role not in model.matrices(layer) or role == ROUTER:
            raise BadAddress(
                f"{parameter}: what is wired is a neuron, a head, or a row or column of one; {role} is none."
            )
        count = count_of(model, layer, role)
        step = max(1, (count - 1) // SIBLINGS)
        others = [other for other in range(0, count, step) if other != row][:SIBLINGS]
        vectors = vector_set(model, layer, role)
        folded = frames.folded(vectors, "token" if vectors.side == "read" else "output")[[row, *others]]
        _require_others(parameter, len(others))
        station = station_of(model, layer, site_of(role))
        yield _Source(parameter, role, station, vectors.side, folded[:, None])


def _head(frames: Frames, place: Address) -> Iterator[_Source]:
    """Yield the inputs of a head and what it writes, or those of one of its maps.

    An input that all heads of the layer share has no others to be compared with, and is left out.
    """
    model = frames.model
    require_head(model, place)
    heads, station = layer_heads(frames, place.layer), station_of(model, place.layer, "attn")
    rows, count = dict(zip(INPUTS, heads.reads, strict=True)) | {"vo": heads.writes}, 0
    for role in {"": rows, "qk": ("q", "k"), "vo": ("v", "vo")}[place.role]:
        group = role in ("k", "v")
        others = [
            head
            for head in range(len(heads.q))
            if head != place.head
            and not (group and model.kv_head(role, head, place.layer) == model.kv_head(role, place.head, place.layer))
        ]
        if len(others) < _FEWEST:
            continue
        side: Side = "write" if role == "vo" else "read"
        yield _Source(place.with_role(""), role, station, side, rows[role][[place.head, *others]])
        count += 1
    _require_others(place, _FEWEST * count)


def _features(frames: Frames, features: Dictionary, place: Address) -> Iterator[_Source]:
    """Yield the vectors of a feature; its neighbours in the dictionary, whose order says nothing, take its place."""
    for role, vector in features.sets(feature_address(place)).items():
        layer, side, at = features.place(place.layer, role)
        first = max(0, min(place.index - SIBLINGS // 2, features.count(place.layer) - SIBLINGS - 1))
        block = features.set(place.layer, role, first, min(first + SIBLINGS + 1, features.count(place.layer)))
        frame = "token" if side == "read" else "output"
        folded, row = frames.folded(block, frame), place.index - first
        _require_others(place, len(folded) - 1)
        yield _Source(
            address=place.with_role(""),
            role=role,
            station=_stream_station(frames.model, layer, side, at),
            side=side,
            rows=torch.cat((frames.folded(vector, frame), folded[:row], folded[row + 1 :]))[:, None],
        )


def _stream_station(model: Model, layer: int, side: Side, at: Where) -> int:
    """Return the station of a direction that reads or writes at a place of a layer.

    What is added to the stream that enters a layer is written behind the station before it.
    """
    if at == "block":
        entered = len(stations(model)) if layer == model.dims.layers else station_of(model, layer, "attn")
        return entered if side == "read" else entered - 1
    site: Site = "ff" if at == "ff" or (at == "mid" and side == "read") else "attn"
    return station_of(model, layer, site)


def _require_others(place: Address, count: int) -> None:
    if count < _FEWEST:
        raise BadAddress(f"{place}: its layer has no others like it, whose wiring would be the null.")
