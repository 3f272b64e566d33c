"""The paper's two measures: R_k, parameters against hidden states, and Sim_k, parameters that belong together.

Dar et al. 2023, §4: R_k is the share of a state's top k tokens found among the top k of the m most active parameters of
the layer. Sim_k is the Jaccard index of the top k tokens of two parameters by absolute score.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from zeropass._io.progress import Progress
from zeropass.arch.roles import site_of
from zeropass.evidence.activations import Activations, Settings
from zeropass.evidence.compared_frames import Spaces
from zeropass.evidence.resampling import among, partner, rotation, summarised
from zeropass.evidence.results import Result
from zeropass.model.model import Model
from zeropass.numerics.projection import normed

__all__ = ["pairs", "states"]

FRAMES = ("token", "output", "paper")
BATCH = 256
NULLS = ("permuted", "rotated", "noise")


@dataclass(frozen=True, eq=False)
class _View:
    """One frame's rows (V', d) of the tokens that lists show: for states and writing vectors, and for reading vectors.

    Attributes:
        spaces: The rows of every frame.
        frame: The frame.
        writes: The rows for states and writing vectors.
        reads: The rows for reading vectors.
        turn: A random rotation of the stream, (d, d).
        k: The length of the lists.
    """

    spaces: Spaces
    frame: str
    writes: Tensor
    reads: Tensor
    turn: Tensor
    k: int

    @classmethod
    def of(cls, spaces: Spaces, frame: str, shown: Tensor, settings: Settings) -> "_View":
        # These are the rows for layer 1: the readers of layer 0 see the embedding, which is no state after a layer.
        reads = spaces.matrix(frame, "read", 1)[shown]
        same = frame in ("token", "paper") and (frame == "token" or spaces.frames.model.dims.tied)
        writes = reads if same else spaces.matrix(frame, "write", 1)[shown]
        turn = rotation(spaces.frames.model.dims.d, settings.seed)
        return cls(spaces=spaces, frame=frame, writes=writes, reads=reads, turn=turn, k=settings.k)

    def tops(self, vectors: Tensor, rows: Tensor, turned: bool = False, absolute: bool = False) -> Tensor:
        """Return the top k tokens (n, k) of vectors (n, d), as numbers among the shown tokens."""
        vectors = vectors @ self.turn if turned else vectors
        tops = []
        for part in torch.split(vectors, BATCH):
            scores = part @ rows.T
            tops.append((scores.abs() if absolute else scores).topk(min(self.k, len(rows))).indices)
        return torch.cat(tops) if tops else torch.zeros(0, min(self.k, len(rows)), dtype=torch.long)

    def as_read(self, states: Tensor) -> Tensor:
        """Return hidden states (n, d) as this frame reads them: unchanged for ``paper``, normed for the others."""
        family = self.model.family
        if self.frame == "paper" or not family.reads_normed:
            return states
        return normed(states, family.norm, self.model.dims.eps)

    def rows(self, role: str) -> Tensor:
        """Return the rows from which a role's lists are made."""
        return self.writes if role in ("value", "o") else self.reads

    def folded(self, vectors: Tensor, role: str, layer: int) -> Tensor:
        """Return vectors of a role, folded for this frame."""
        return self.spaces.folded(vectors, role, layer, self.frame)

    @property
    def model(self) -> Model:
        """The model whose parameters are read."""
        return self.spaces.frames.model


def states(spaces: Spaces, activations: Activations, shown: Tensor, settings: Settings, tell: Progress) -> list[Result]:
    """Return R_k by role, layer and frame, for the state after the same layer and the final state.

    The nulls are the active parameters of another position (``permuted``); parameters and states rotated together,
    which keeps their angles and loses only the vocabulary (``rotated``); and random vectors, of which the most active
    are chosen in the same way (``noise``).

    Args:
        spaces: The rows of every frame.
        activations: The activations on the text.
        shown: Ids of the tokens that lists may show, (V',).
        settings: The extent of the measurement.
        tell: Reports progress.
    """
    layers, results = spaces.frames.model.dims.layers, []
    for number, frame in enumerate(FRAMES):
        view = _View.of(spaces, frame, shown, settings)
        final = _state_tops(view, activations, layers - 1)
        for layer in range(1 if frame == "token" else 0, layers):
            targets = {"same layer": _state_tops(view, activations, layer)} | (
                {} if frame == "token" else {"final": final}
            )
            for role in _active_roles(spaces.frames.model.family.ff_roles, frame):
                if role not in spaces.frames.model.matrices(layer):  # as in a layer of a hybrid
                    continue
                sets = _active_tops(view, activations, layer, role, settings)
                for target, tops in targets.items():
                    values = {null: _recall(sets[null], tops[null == "rotated"]) for null in sets}
                    nulls = {null: values[null] for null in NULLS}
                    results.append(summarised("states", layer, role, frame, target, "recall", values[""], nulls))
            tell("states", number * layers + layer + 1, len(FRAMES) * layers)
    return results


def _active_roles(ff_roles: tuple[str, ...], frame: str) -> tuple[str, ...]:
    """Return the roles of R_k as in the paper: FF keys (or ``gate`` and ``up``), FF values, columns of W_V and W_O."""
    roles = (*ff_roles, "v", "o")
    return tuple(role for role in roles if frame != "token" or role not in ("value", "o"))


def _state_tops(view: _View, activations: Activations, layer: int) -> tuple[Tensor, Tensor]:
    """Return the top tokens (P, k) of the states after a layer, and those with the stream rotated."""
    stream = view.as_read(activations.kept["state", layer])
    return view.tops(stream, view.writes), view.tops(stream, view.writes, turned=True)


def _active_tops(view: _View, activations: Activations, layer: int, role: str, settings: Settings) -> dict[str, Tensor]:
    """Return the top tokens (P, m, k) of the m most active vectors at each position, by null ("" for none)."""
    vectors = view.model.matrix(role, layer)
    at, sign = _most_active(role, activations, layer, settings.active)
    rows = view.rows(role)

    def tops(matrix: Tensor, at: Tensor, sign: Tensor, turned: bool = False) -> Tensor:
        codes, back = torch.unique(2 * at + (sign < 0), return_inverse=True)
        poles = 1 - 2 * (codes % 2)
        folded = view.folded(matrix[codes // 2], role, layer) * poles[:, None]
        return view.tops(folded, rows, turned)[back]

    right = tops(vectors, at, sign)
    random, random_at, random_sign = _random_active(activations, layer, role, vectors, (at, sign), settings)
    return {
        "": right,
        "permuted": partner(right, 0),
        "rotated": tops(vectors, at, sign, turned=True),
        "noise": tops(random, random_at, random_sign),
    }


def _most_active(role: str, activations: Activations, layer: int, m: int) -> tuple[Tensor, Tensor]:
    """Return the numbers (P, m) of the vectors with the largest coefficients, and the sign with which each counts.

    The list of a key or gate is its top pole, where it fires. The sign of gate x up decides the pole of up and value.
    """
    source = {"v": "v", "o": "o.in"}.get(role, "value.in")
    coefficients = activations.kept[source, layer]
    at = coefficients.abs().topk(min(m, coefficients.shape[1])).indices
    sign = torch.ones_like(at) if role in ("gate", "key") else coefficients.gather(1, at).sign()
    return at, sign


def _random_active(
    activations: Activations,
    layer: int,
    role: str,
    vectors: Tensor,
    active: tuple[Tensor, Tensor],
    settings: Settings,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return random vectors in a role's place, with the numbers and signs of the most active.

    Writing vectors keep the coefficients of the role; reading vectors are chosen by their own.
    """
    generator = settings.generator(40_000 + layer)
    random = torch.randn(vectors.shape, generator=generator)
    if role in ("value", "o"):
        return random, *active
    coefficients = activations.kept[site_of(role), layer] @ random.T
    # A key fires on its positive side only, but columns of W_V count with either sign.
    strength = coefficients if role in ("gate", "key") else coefficients.abs()
    at = strength.topk(active[0].shape[1]).indices
    return random, at, coefficients.gather(1, at).sign()


def _recall(sets: Tensor, tops: Tensor) -> Tensor:
    """Return R_k (P,): the share of each state's top tokens, (P, k), that is in the union of its sets, (P, m, k)."""
    return among(tops, sets.flatten(1)).double().mean(1)


def pairs(spaces: Spaces, shown: Tensor, settings: Settings, tell: Progress) -> list[Result]:
    """Return Sim_k by pair of roles, layer and frame; no model runs.

    Under the nulls the partner is another one of its role (``permuted``) or rotated, or both are random (``noise``).

    Args:
        spaces: The rows of every frame.
        shown: Ids of the tokens that lists may show, (V',).
        settings: The extent of the measurement.
        tell: Reports progress.
    """
    model, results = spaces.frames.model, []
    for number, frame in enumerate(FRAMES):
        view = _View.of(spaces, frame, shown, settings)
        for layer in range(1 if frame == "token" else 0, model.dims.layers):
            tops = _pair_tops(view, layer, settings)
            for left, right in _pair_roles(model.family.ff_roles, frame):
                if not {left, right} <= {*model.matrices(layer)}:  # as in a layer of a hybrid
                    continue
                results.append(_similarity(tops, layer, left, right, frame))
            tell("pairs", number * model.dims.layers + layer + 1, len(FRAMES) * model.dims.layers)
    return results


_PARTNERS = ("up", "value", "k", "o")
"""The roles that come second in a pair."""


def _pair_roles(ff_roles: tuple[str, ...], frame: str) -> Iterator[tuple[str, str]]:
    gated = (("gate", "up"), ("gate", "value"), ("up", "value"))
    for left, right in (*(gated if "gate" in ff_roles else (("key", "value"),)), ("q", "k"), ("v", "o")):
        if frame != "token" or right not in ("value", "o"):
            yield left, right


def _pair_tops(view: _View, layer: int, settings: Settings) -> dict[tuple[str, str], Tensor]:
    """Return the top tokens (n, k) of sampled vectors by absolute score, by (role, null).

    The vectors of all roles correspond: they belong to the same neurons or to the same columns of the heads.
    """
    model, tops = view.model, {}
    roles = [
        r for r in (*model.family.ff_roles, "q", "k", "v", "o") if view.frame != "token" or r not in ("value", "o")
    ]
    count = settings.vectors // 2
    neurons = torch.randperm(model.rows("value", layer), generator=settings.generator(60_000 + layer))[:count]
    for number, role in enumerate(roles):
        if role not in model.matrices(layer):
            continue
        dims, shared = model.dims.at(layer), role in ("k", "v")
        width = dims.width(role)
        columns = torch.randperm(dims.heads * width, generator=settings.generator(70_000 + layer))[:count]
        role_columns = columns // width // dims.group * width + columns % width if shared else columns
        at = role_columns if site_of(role) == "attn" else neurons
        vectors = model.matrix(role, layer)[at]
        noise = torch.randn(vectors.shape, generator=settings.generator(80_000 + 10 * layer + number))
        folded, rows = view.folded(vectors, role, layer), view.rows(role)
        tops[role, ""] = view.tops(folded, rows, absolute=True)
        if role in _PARTNERS:
            tops[role, "rotated"] = view.tops(folded, rows, turned=True, absolute=True)
        tops[role, "noise"] = view.tops(view.folded(noise, role, layer), rows, absolute=True)
    return tops


def _similarity(tops: dict[tuple[str, str], Tensor], layer: int, left: str, right: str, frame: str) -> Result:
    """Return Sim_k of two roles."""
    left_tops, right_tops = tops[left, ""], tops[right, ""]
    values = _jaccard(left_tops, right_tops)
    nulls = {
        "permuted": _jaccard(left_tops, partner(right_tops, 0)),
        "rotated": _jaccard(left_tops, tops[right, "rotated"]),
        "noise": _jaccard(tops[left, "noise"], tops[right, "noise"]),
    }
    return summarised("pairs", layer, f"{left}-{right}", frame, "jaccard", "jaccard", values, nulls)


def _jaccard(x: Tensor, y: Tensor) -> Tensor:
    """Return the Jaccard index (n,) of the sets in the rows of two (n, k) tensors."""
    common = among(x, y).sum(1).double()
    return common / (x.shape[1] + y.shape[1] - common)
