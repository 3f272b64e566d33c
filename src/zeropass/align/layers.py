"""Which layer of B is like which of A, role by role (Dar et al. 2023, §4.3, with one score a pair of layers)."""

from collections.abc import Callable, Iterable

import numpy as np
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional

from zeropass.align.pair import Pair, View, neuron_views
from zeropass.align.results import LayerMap
from zeropass.arch.spec import SELF_ROLES, default_frames, side_of
from zeropass.model.vectors import vector_set

__all__ = ["Tick", "assigned", "head_layer_map", "layer_map", "layer_views", "likeness", "raw_map"]

RAW = "raw"
_Layers = tuple[int, int]
Tick = Callable[[], None]
"""Is called once for each layer of A, as the work goes on."""


def likeness(scores: Tensor) -> float:
    """How alike two layers are, from the scores (n₁, n₂) of their vectors: the mean over both of each one's best.

    The paper takes the mean of all absolute correlations, which a few common directions rule; the best partner of each
    vector is what a shared function leaves.
    """
    size = scores.abs()
    return float(size.amax(0).mean() + size.amax(1).mean()) / 2


def layer_views(pair: Pair) -> tuple[View, ...]:
    """Every role that both models have, in every usual frame: those of neurons, then those of heads."""
    heads = (View((role, role), frame) for role in SELF_ROLES for frame in default_frames(side_of(role)))
    return (*neuron_views(*pair.models), *heads)


def layer_map(pair: Pair, view: View, null: Pair, tick: Tick = lambda: None) -> LayerMap:
    """The likeness of every pair of layers in one view; its null is that of each assigned pair, tokens shuffled."""
    return _map(
        view.roles[0],
        view.frame,
        pair,
        lambda layers: pair.agreement(view, layers),
        lambda layers: null.agreement(view, layers),
        tick,
    )


def head_layer_map(pair: Pair, kind: str, null: Pair, tick: Tick = lambda: None) -> LayerMap:
    """The same for head maps (``qk`` or ``vo``), from the cosines between all heads of two layers."""
    return _map(
        kind,
        "token",
        pair,
        lambda layers: pair.head_cosines(kind, layers),
        lambda layers: null.head_cosines(kind, layers),
        tick,
    )


def _map(
    role: str,
    frame: str,
    pair: Pair,
    real: Callable[[_Layers], Tensor],
    null: Callable[[_Layers], Tensor],
    tick: Tick,
) -> LayerMap:
    depths = [range(model.dims.layers) for model in pair.models]
    scores = []
    for a in depths[0]:
        tick()
        scores.append([likeness(real((a, b))) for b in depths[1]])
    found = assigned(scores)
    chance = [likeness(null((a, b))) for a, b in enumerate(found) if b >= 0]
    return LayerMap(role, frame, _rows(scores), found, float(np.mean(chance)), float(np.std(chance)))


def raw_map(pair: Pair, roles: tuple[str, str], tick: Tick = lambda: None) -> LayerMap:
    """The same from cosines of the parameters as stored, without any embedding; for models of one width."""
    stored = [
        [functional.normalize(vector_set(model, layer, role).vectors, dim=1) for layer in range(model.dims.layers)]
        for model, role in zip(pair.models, roles, strict=True)
    ]
    scores = []
    for x in stored[0]:
        tick()
        scores.append([likeness(x @ y.T) for y in stored[1]])
    return LayerMap(roles[0], RAW, _rows(scores), assigned(scores))


def assigned(scores: Iterable[Iterable[float]]) -> tuple[int, ...]:
    """The layer of B for each of A so that the sum of scores is the largest; -1 for those that B has no layer for."""
    table = np.array([list(line) for line in scores])
    found = [-1] * len(table)
    for a, b in zip(*linear_sum_assignment(table, maximize=True), strict=True):
        found[a] = int(b)
    return tuple(found)


def _rows(scores: Iterable[Iterable[float]]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(line) for line in scores)
