"""One parameter of A: which of B's does the same, searched through every layer."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from zeropass.align.pair import Pair, View, neuron_views
from zeropass.align.results import Match, Matches
from zeropass.align.token_lists import Lists, carried, lists_of
from zeropass.arch.spec import SELF_MAPS, SELF_ROLES, check_count, default_frames, side_of
from zeropass.errors import BadAddress
from zeropass.model.address import Address, parse
from zeropass.model.vectors import locate, require_head, vector_set

__all__ = ["match"]

SHUFFLES, MAP_SHUFFLES = 64, 8
"""Shuffles behind the null of a vector (each is one product) and of a head map (each needs its kernels anew)."""


@dataclass(frozen=True, eq=False)
class _Scored:
    """Scores (n,) of one layer's candidates, and (n, R) the same under R shuffles."""

    layer: int
    real: Tensor
    null: Tensor


def match(pair: Pair, address: str, k: int = 10, seed: int = 0) -> Matches:
    """The k best matches in the second model for a neuron, a head, or a column of a head of the first.

    An address without a role is matched over all its roles together. A vector's score is how high the other scores its
    list (`lists.carried`), without the way back that `Pair.agreement` adds: that would need the list of every parameter
    of the second model. A head's is the cosine of its maps. Every score stands beside the best score that
    any candidate of any layer gets when the shared tokens are shuffled: what searching that much finds by chance.
    Raises BadAddress for an address that the first model does not have, or that names something else.
    """
    check_count(k)
    place = parse(address)
    found = list(_search(pair, place, seed))
    best = torch.stack([one.null.amax(0) for one in found]).amax(0)
    mean, std = float(best.mean()), float(best.std())
    scores = torch.cat([one.real for one in found])
    owners = [(one.layer, row) for one in found for row in range(len(one.real))]
    top = scores.topk(min(k, len(scores)))
    name = _namer(pair, place)
    return Matches(
        address,
        tuple(
            Match(name(*owners[at]), score, mean, std, (score - mean) / std if std else 0.0)
            for score, at in zip(top.values.tolist(), top.indices.tolist(), strict=True)
        ),
    )


def _search(pair: Pair, place: Address, seed: int) -> Iterator[_Scored]:
    """Every layer of the second model, its candidates scored."""
    if place.layer >= 0 and place.part == "ff" and place.index >= 0:
        views = neuron_views(*pair.models)
        wanted = tuple(view for view in views if place.role in ("", view.roles[0]))
        locate(pair.first.model, place.with_role(place.role or views[0].roles[0]))  # it exists, or BadAddress
        if not wanted:
            raise BadAddress(f"{place}.{place.role}: {pair.models[1].name} has no role to compare it with.")
        yield from _vectors(pair, wanted, place.layer, place.index, seed)
    elif place.part == "attn" and place.role in SELF_ROLES and place.index >= 0:
        _, _, row = locate(pair.first.model, place)
        views = tuple(View((place.role, place.role), frame) for frame in default_frames(side_of(place.role)))
        yield from _vectors(pair, views, place.layer, row, seed)
    elif place.part == "attn" and place.head >= 0 and place.role in ("", *SELF_MAPS):
        require_head(pair.first.model, place)
        yield from _maps(pair, (place.role,) if place.role else SELF_MAPS, place.layer, place.head, seed)
    else:
        raise BadAddress(
            f"{place} cannot be matched; a neuron, a head or a column of a head can (L3.ff.17, L3.attn.2)."
        )


def _vectors(pair: Pair, views: tuple[View, ...], layer: int, row: int, seed: int) -> Iterator[_Scored]:
    tables = [pair.shared.partners[0], *(pair.shared.shuffled(seed + n).partners[0] for n in range(SHUFFLES))]
    partners = torch.stack(tables)
    images: dict[tuple[View, str], Tensor] = {}
    for other in range(pair.models[1].dims.layers):
        total, flipping = torch.zeros(()), torch.zeros(())
        for view in views:
            space, vectors = pair.second.vectors(other, view.roles[1], view.frame)
            if (view, space) not in images:
                images[view, space] = _images(pair, view, layer, row, space, partners)
            scores = vectors @ images[view, space].T
            total, flipping = (total, flipping + scores) if view.flips else (total + scores, flipping)
        scores = (total + flipping.abs()) / len(views)
        yield _Scored(other, scores[:, 0], scores[:, 1:])


def _images(pair: Pair, view: View, layer: int, row: int, space: str, partners: Tensor) -> Tensor:
    """What stands in a space of the second model for the list of one vector, (1 + shuffles, d₂)."""
    own, x = pair.first.vectors(layer, view.roles[0], view.frame)
    found = lists_of(x[row : row + 1], pair.first.rows(own), pair.first.ids, pair.first.mean(own))
    here = Lists(partners[:, found.ids[0]].to(pair.second.ids.device), found.z.expand(len(partners), -1))
    return carried(here, pair.second.rows(space), pair.second.mean(space))


def _maps(pair: Pair, kinds: tuple[str, ...], layer: int, head: int, seed: int) -> Iterator[_Scored]:
    nulls = [pair.null(seed + n) for n in range(MAP_SHUFFLES)]
    for other in range(pair.models[1].dims.layers):
        real, *shuffled = (
            torch.stack([one.head_cosines(kind, (layer, other))[head] for kind in kinds]).mean(0)
            for one in (pair, *nulls)
        )
        yield _Scored(other, real, torch.stack(shuffled, 1))


def _namer(pair: Pair, place: Address) -> Callable[[int, int], str]:
    """From a layer and a row to an address of the second model, with the role that was asked for."""
    role = f".{place.role}" if place.role else ""
    if place.part == "ff":
        other = "gate" if place.role == "key" and "gate" in pair.models[1].family.ff_roles else place.role
        other = "key" if place.role == "gate" and "key" in pair.models[1].family.ff_roles else other
        return lambda layer, row: f"L{layer}.ff.{row}" + (f".{other}" if other else "")
    if place.role in SELF_ROLES:
        return lambda layer, row: str(vector_set(pair.models[1], layer, place.role, row, row + 1).addresses[0])
    return lambda layer, row: f"L{layer}.attn.{row}{role}"
