"""The best match of every neuron and every head, with what chance would give (design.md §4)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import false_discovery_control
from torch import Tensor

from zeropass.align.layers import Tick
from zeropass.align.pair import Pair, View
from zeropass.align.results import Pairing
from zeropass.arch.spec import SELF_MAPS

__all__ = ["head_pairings", "neuron_pairings"]


@dataclass(frozen=True, eq=False)
class _Best:
    """For each row of A its best column of B: score, where, whether mutual; and the best under shuffled tokens."""

    names: Sequence[str]
    others: Sequence[str]
    score: Tensor
    mutual: Tensor
    null: Tensor


def neuron_pairings(
    pair: Pair, views: tuple[View, ...], layers: Iterable[tuple[int, int]], null: Pair, tick: Tick = lambda: None
) -> list[Pairing]:
    """Every neuron of A with the best of the layer of B that its own layer is assigned to."""
    found = []
    for a, b in layers:
        tick()
        scores, shuffled = pair.neuron_scores(views, (a, b)), null.neuron_scores(views, (a, b))
        names = [f"L{a}.ff.{n}" for n in range(scores.shape[0])]
        found.append(_best(scores, shuffled.amax(1), names, [f"L{b}.ff.{n}" for n in range(scores.shape[1])]))
    return _pairings("neuron", found)


def head_pairings(pair: Pair, nulls: Sequence[Pair], tick: Tick = lambda: None) -> list[Pairing]:
    """Every head of A, for each of its two maps, with the best of all heads of B."""
    found = []
    for kind in SELF_MAPS:
        scores = _all_heads(pair, kind, tick)
        shuffled = torch.stack([_all_heads(null, kind, lambda: None).amax(1) for null in nulls], 1)
        own, other = (
            [f"L{layer}.attn.{head}.{kind}" for layer in range(model.dims.layers) for head in range(model.dims.heads)]
            for model in pair.models
        )
        found.append(_best(scores, shuffled, own, other))
    return _pairings("head", found)


def _all_heads(pair: Pair, kind: str, tick: Tick) -> Tensor:
    """Cosines between all head maps of A (rows) and of B."""
    depths, rows = [range(model.dims.layers) for model in pair.models], []
    for a in depths[0]:
        tick()
        rows.append(torch.cat([pair.head_cosines(kind, (a, b)) for b in depths[1]], 1))
    return torch.cat(rows)


def _best(scores: Tensor, null: Tensor, names: Sequence[str], others: Sequence[str]) -> _Best:
    scores, null = scores.cpu(), null.cpu()  # where the chances are reckoned
    top = scores.max(1)
    mutual = scores.argmax(0)[top.indices] == torch.arange(len(scores))
    return _Best(names, [others[n] for n in top.indices.tolist()], top.values, mutual, null)


def _pairings(kind: str, found: Sequence[_Best]) -> list[Pairing]:
    """Scores in units of their own layer's (or map's) null; the share of nulls of all layers as far out is p."""
    moments = [(float(one.null.mean()), float(one.null.std()) or 1.0) for one in found]
    effects = [(one.score.numpy() - mean) / std for one, (mean, std) in zip(found, moments, strict=True)]
    chance = np.sort(
        np.concatenate(
            [(one.null.numpy().ravel() - mean) / std for one, (mean, std) in zip(found, moments, strict=True)]
        )
    )
    every = np.concatenate(effects)
    p = (1 + len(chance) - np.searchsorted(chance, every)) / (1 + len(chance))
    q = iter(false_discovery_control(p).tolist())
    return [
        Pairing(kind, first, second, float(score), mean, std, float(effect), next(q), bool(mutual))
        for one, (mean, std), own in zip(found, moments, effects, strict=True)
        for first, second, score, effect, mutual in zip(
            one.names, one.others, one.score.tolist(), own, one.mutual.tolist(), strict=True
        )
    ]
