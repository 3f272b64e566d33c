"""The best match of every neuron and every head, with its null distribution (docs/alignment.md)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import false_discovery_control
from torch import Tensor

from zeropass.align.layers import Tick
from zeropass.align.pair import Pair, View
from zeropass.align.results import Pairing
from zeropass.arch.roles import SELF_MAPS
from zeropass.model.vectors import neuron_address

__all__ = ["head_pairings", "neuron_pairings"]


@dataclass(frozen=True, eq=False)
class _Best:
    """The best column (of B) for each of n rows (of A).

    Attributes:
        names: The address of each row, n of them.
        others: The address of its best column.
        score: Its best score, (n,).
        mutual: True where the row is also the best of its column, (n,).
        null: The best scores under shuffled tokens, (n,) or (n, shuffles).
    """

    names: Sequence[str]
    others: Sequence[str]
    score: Tensor
    mutual: Tensor
    null: Tensor


def neuron_pairings(
    pair: Pair, views: tuple[View, ...], layers: Iterable[tuple[int, int]], null: Pair, tick: Tick = lambda: None
) -> list[Pairing]:
    """Pair every neuron of A with the best one in the layer of B to which its own layer is assigned.

    Args:
        pair: The two models.
        views: The lists by which neurons are compared.
        layers: The layers of A that are assigned, each with its layer of B.
        null: The pair with the tokens of one side shuffled.
        tick: Called for each layer.
    """
    best_of_layers = []
    for a, b in layers:
        tick()
        scores, shuffled = pair.neuron_scores(views, (a, b)), null.neuron_scores(views, (a, b))
        names = (
            [str(neuron_address(model, layer, "", row)) for row in range(count)]
            for model, layer, count in zip(pair.models, (a, b), scores.shape, strict=True)
        )
        best_of_layers.append(_best(scores, shuffled.amax(1), *names))
    return _pairings("neuron", best_of_layers)


def head_pairings(pair: Pair, nulls: Sequence[Pair], tick: Tick = lambda: None) -> list[Pairing]:
    """Pair every head of A, for each of its two maps, with the best of all heads of B.

    Args:
        pair: The two models.
        nulls: The pair with the tokens of one side shuffled, several times.
        tick: Called for each layer.
    """
    best_of_maps = []
    for map_role in SELF_MAPS:
        scores = _all_heads(pair, map_role, tick)
        shuffled = torch.stack([_all_heads(null, map_role, lambda: None).amax(1) for null in nulls], 1)
        names, others = (
            [
                f"L{layer}.attn.{head}.{map_role}"
                for layer in range(model.dims.layers)
                for head in range(model.dims.at(layer).heads)
            ]
            for model in pair.models
        )
        best_of_maps.append(_best(scores, shuffled, names, others))
    return _pairings("head", best_of_maps)


def _all_heads(pair: Pair, map_role: str, tick: Tick) -> Tensor:
    """Return the cosines between all head maps of A (rows) and of B (columns)."""
    depths, rows = [range(model.dims.layers) for model in pair.models], []
    for a in depths[0]:
        tick()
        rows.append(torch.cat([pair.head_cosines(map_role, (a, b)) for b in depths[1]], 1))
    return torch.cat(rows)


def _best(scores: Tensor, null: Tensor, names: Sequence[str], others: Sequence[str]) -> _Best:
    scores, null = scores.cpu(), null.cpu()  # p is computed on the CPU
    top = scores.max(1)
    mutual = scores.argmax(0)[top.indices] == torch.arange(len(scores))
    return _Best(
        names=names, others=[others[n] for n in top.indices.tolist()], score=top.values, mutual=mutual, null=null
    )


def _pairings(pairing_kind: str, groups: Sequence[_Best]) -> list[Pairing]:
    """Return the pairings of groups (layers, or head maps), with the effect size and the q of each.

    Scores are standardised by the null of their own group; p is the share of all groups' nulls that are as far out.
    """
    moments = [(float(group.null.mean()), float(group.null.std()) or 1.0) for group in groups]
    effects = [(group.score.numpy() - mean) / std for group, (mean, std) in zip(groups, moments, strict=True)]
    null_effects = np.sort(
        np.concatenate(
            [(group.null.numpy().ravel() - mean) / std for group, (mean, std) in zip(groups, moments, strict=True)]
        )
    )
    all_effects = np.concatenate(effects)
    p = (1 + len(null_effects) - np.searchsorted(null_effects, all_effects)) / (1 + len(null_effects))
    q = iter(false_discovery_control(p).tolist())
    return [
        Pairing(
            kind=pairing_kind,
            first=first,
            second=second,
            score=float(score),
            null_mean=mean,
            null_std=std,
            effect=float(effect),
            q=next(q),
            mutual=bool(mutual),
        )
        for group, (mean, std), group_effects in zip(groups, moments, effects, strict=True)
        for first, second, score, effect, mutual in zip(
            group.names, group.others, group.score.tolist(), group_effects, group.mutual.tolist(), strict=True
        )
    ]
