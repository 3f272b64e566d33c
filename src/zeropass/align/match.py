"""The parameters of B that do what one parameter of A does, searched through every layer."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from zeropass._io.progress import waiting
from zeropass.align.pair import Pair, View, neuron_views
from zeropass.align.results import Match, Matches
from zeropass.align.token_lists import Lists, carried, lists_of
from zeropass.arch.frame_names import check_count
from zeropass.arch.roles import SELF_MAPS, SELF_ROLES, side_of
from zeropass.errors import BadAddress
from zeropass.model.address import Address, parse
from zeropass.model.vectors import locate, neuron_address, require_head, vector_set

__all__ = ["match"]

SHUFFLES, MAP_SHUFFLES = 64, 8
"""Shuffles behind the null of a vector (each is one product) and of a head map (each needs new kernels)."""


@dataclass(frozen=True, eq=False)
class _Candidates:
    """The scores of the candidates of one layer.

    Attributes:
        layer: The layer.
        real: Their scores, (n,).
        null: Their scores under R shuffles, (n, R).
    """

    layer: int
    real: Tensor
    null: Tensor


@waiting("comparing with all layers of the other model")
def match(pair: Pair, address: str, k: int = 10, seed: int = 0) -> Matches:
    """Return the k best matches in the second model for a neuron, a head, or a column of a head of the first.

    An address without a role is matched over all its roles together. The score of a vector is the score that the other
    vector gives its list (`token_lists.carried`). `Pair.agreement` adds the other direction, which would need the list
    of every parameter of the second model. The score of a head is the cosine of its maps. The null of every score is
    the best score of any candidate in any layer with shuffled tokens, which accounts for the size of the search.

    Args:
        pair: The two models.
        address: An address in the first model.
        k: The number of matches.
        seed: The seed of the shuffles.

    Returns:
        The matches, the best first.

    Raises:
        BadAddress: The first model does not have the address, or it names something else.

    Example:
        >>> import zeropass as zp
        >>> pair = zp.pair_of(zp.open_model("models/first"), zp.open_model("models/second"))
        >>> [match.address for match in zp.match(pair, "L2.ff.3", k=2).matches]
        ['L2.ff.210', 'L1.ff.394']
    """
    check_count(k)
    place = parse(address)
    layers = list(_search(pair, place, seed))
    null_best = torch.stack([candidates.null.amax(0) for candidates in layers]).amax(0)
    mean, std = float(null_best.mean()), float(null_best.std())
    scores = torch.cat([candidates.real for candidates in layers])
    owners = [(candidates.layer, row) for candidates in layers for row in range(len(candidates.real))]
    top = scores.topk(min(k, len(scores)))
    name = _namer(pair, place)
    return Matches(
        query=address,
        matches=tuple(
            Match(
                address=name(*owners[n]),
                score=score,
                null_mean=mean,
                null_std=std,
                effect=(score - mean) / std if std else 0.0,
            )
            for score, n in zip(top.values.tolist(), top.indices.tolist(), strict=True)
        ),
        lenses=() if _is_head(place) else pair.lens_words,
    )


def _search(pair: Pair, place: Address, seed: int) -> Iterator[_Candidates]:
    """Yield the scored candidates of every layer of the second model."""
    if place.layer >= 0 and place.part == "ff" and place.index >= 0:
        views = neuron_views(pair)
        chosen = tuple(view for view in views if place.role in ("", view.roles[0]))
        locate(pair.first.model, place.with_role(place.role or views[0].roles[0]))  # BadAddress if it does not exist
        if not chosen:
            raise BadAddress(f"{place}.{place.role}: {pair.models[1].name} has no role to compare it with.")
        yield from _vectors(pair, chosen, place.layer, place.index, seed)
    elif place.part == "attn" and place.role in SELF_ROLES and place.index >= 0:
        _, _, row = locate(pair.first.model, place)
        views = tuple(View((place.role, place.role), frame) for frame in pair.frames(side_of(place.role)))
        yield from _vectors(pair, views, place.layer, row, seed)
    elif _is_head(place):
        require_head(pair.first.model, place)
        yield from _maps(pair, (place.role,) if place.role else SELF_MAPS, place.layer, place.head, seed)
    else:
        raise BadAddress(
            f"{place} cannot be matched; a neuron, a head or a column of a head can (L3.ff.17, L3.attn.2)."
        )


def _is_head(place: Address) -> bool:
    """Tell whether an address names a head, or one of its maps, which are compared without lenses."""
    return place.part == "attn" and place.head >= 0 and place.role in ("", *SELF_MAPS)


def _vectors(pair: Pair, views: tuple[View, ...], layer: int, row: int, seed: int) -> Iterator[_Candidates]:
    """Yield the candidates for one vector: all vectors of the matching roles, layer by layer."""
    tables = [pair.shared.partners[0], *(pair.shared.shuffled(seed + n).partners[0] for n in range(SHUFFLES))]
    partners = torch.stack(tables)
    images: dict[tuple[View, str], Tensor] = {}
    for other_layer in range(pair.models[1].dims.layers):
        total, flipping = torch.zeros(()), torch.zeros(())
        for view in views:
            space, vectors = pair.second.vectors(other_layer, view.roles[1], view.frame)
            if (view, space) not in images:
                images[view, space] = _images(pair, view, layer, row, space, partners)
            scores = vectors @ images[view, space].T
            total, flipping = (total, flipping + scores) if view.flips else (total + scores, flipping)
        scores = (total + flipping.abs()) / len(views)
        yield _Candidates(other_layer, scores[:, 0], scores[:, 1:])


def _images(pair: Pair, view: View, layer: int, row: int, space: str, partners: Tensor) -> Tensor:
    """Return the vectors (1 + shuffles, d₂) that represent the list of one vector in a space of the second model."""
    first_space, x = pair.first.vectors(layer, view.roles[0], view.frame)
    lists = lists_of(x[row : row + 1], pair.first.rows(first_space), pair.first.ids, pair.first.mean(first_space))
    translated = Lists(partners[:, lists.ids[0]].to(pair.second.ids.device), lists.z.expand(len(partners), -1))
    return carried(translated, pair.second.rows(space), pair.second.mean(space))


def _maps(pair: Pair, map_roles: tuple[str, ...], layer: int, head: int, seed: int) -> Iterator[_Candidates]:
    """Yield the candidates for one head: all heads, layer by layer."""
    nulls = [pair.null(seed + n) for n in range(MAP_SHUFFLES)]
    for other_layer in range(pair.models[1].dims.layers):
        real, *shuffled = (
            torch.stack([models.head_cosines(name, (layer, other_layer))[head] for name in map_roles]).mean(0)
            for models in (pair, *nulls)
        )
        yield _Candidates(other_layer, real, torch.stack(shuffled, 1))


def _namer(pair: Pair, place: Address) -> Callable[[int, int], str]:
    """Return a function from a layer and a row to an address of the second model, with the role of the query."""
    role = f".{place.role}" if place.role else ""
    if place.part == "ff":
        ff_role = "gate" if place.role == "key" and "gate" in pair.models[1].family.ff_roles else place.role
        ff_role = "key" if place.role == "gate" and "key" in pair.models[1].family.ff_roles else ff_role
        end = f".{ff_role}" if ff_role else ""
        return lambda layer, row: f"{neuron_address(pair.models[1], layer, ff_role, row)}{end}"
    if place.role in SELF_ROLES:
        return lambda layer, row: str(vector_set(pair.models[1], layer, place.role, row, row + 1).addresses[0])
    return lambda layer, row: f"L{layer}.attn.{row}{role}"
