"""Maps of which layer of B is like which layer of A, role by role.

They follow Dar et al. 2023, §4.3, with one score for each pair of layers.
"""

from collections.abc import Callable, Iterable

import numpy as np
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional

from zeropass.align.pair import Pair, View, neuron_views
from zeropass.align.results import LayerMap
from zeropass.arch.roles import SELF_ROLES, side_of
from zeropass.model.vectors import vector_set

__all__ = ["Tick", "assigned", "head_layer_map", "layer_map", "layer_views", "likeness", "raw_map"]

RAW = "raw"
_Layers = tuple[int, int]
Tick = Callable[[], None]
"""A callback that is called once for each layer of A as the work proceeds."""


def likeness(scores: Tensor) -> float:
    """Return how alike two layers are: the mean, over the vectors of both, of each one's best absolute score.

    The paper takes the mean of all absolute correlations, which is dominated by a few common directions. A function
    that two layers share shows in the best partner of each vector.

    Args:
        scores: Scores of the vectors of both layers, (n₁, n₂).
    """
    sizes = scores.abs()
    return float(sizes.amax(0).mean() + sizes.amax(1).mean()) / 2


def layer_views(pair: Pair) -> tuple[View, ...]:
    """Return every role that both models have in every frame of its side: the neurons' roles, then the heads'."""
    heads = (View((role, role), frame) for role in SELF_ROLES for frame in pair.frames(side_of(role)))
    return (*neuron_views(pair), *heads)


def layer_map(pair: Pair, view: View, null: Pair, tick: Tick = lambda: None) -> LayerMap:
    """Return the likeness of every pair of layers in one view, with the null of the assigned pairs.

    Args:
        pair: The two models.
        view: The role of each model, and the frame.
        null: The same models with shuffled tokens.
        tick: Is called once for each layer of A.
    """
    return _map(
        view.roles[0],
        view.frame,
        pair,
        lambda layers: pair.agreement(view, layers),
        lambda layers: null.agreement(view, layers),
        tick,
    )


def head_layer_map(pair: Pair, map_role: str, null: Pair, tick: Tick = lambda: None) -> LayerMap:
    """Return the layer map of a head map (``qk`` or ``vo``), from the cosines between all heads of two layers."""
    return _map(
        map_role,
        "token",
        pair,
        lambda layers: pair.head_cosines(map_role, layers),
        lambda layers: null.head_cosines(map_role, layers),
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
    assignment = assigned(scores)
    nulls = [likeness(null((a, b))) for a, b in enumerate(assignment) if b >= 0]
    return LayerMap(
        role=role,
        frame=frame,
        scores=_rows(scores),
        assigned=assignment,
        null=float(np.mean(nulls)),
        null_std=float(np.std(nulls)),
    )


def raw_map(pair: Pair, roles: tuple[str, str], tick: Tick = lambda: None) -> LayerMap:
    """Return a layer map from cosines of the stored parameters, without any embedding; the widths must be equal."""
    stored = [
        [functional.normalize(vector_set(model, layer, role).vectors, dim=1) for layer in range(model.dims.layers)]
        for model, role in zip(pair.models, roles, strict=True)
    ]
    scores = []
    for x in stored[0]:
        tick()
        scores.append([likeness(x @ y.T) for y in stored[1]])
    return LayerMap(role=roles[0], frame=RAW, scores=_rows(scores), assigned=assigned(scores))


def assigned(scores: Iterable[Iterable[float]]) -> tuple[int, ...]:
    """Assign a layer of B to each of A, with the largest sum of scores; -1 where no layer of B is left."""
    table = np.array([list(row) for row in scores])
    assignment = [-1] * len(table)
    for a, b in zip(*linear_sum_assignment(table, maximize=True), strict=True):
        assignment[a] = int(b)
    return tuple(assignment)


def _rows(scores: Iterable[Iterable[float]]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in scores)
