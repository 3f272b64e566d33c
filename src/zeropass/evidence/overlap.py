"""The paper's two measures: R_k, parameters against hidden states, and Sim_k, parameters that belong together.

Dar et al. 2023, §4: R_k is the share of a state's top k tokens found among the top k of the m most active parameters of
the layer; Sim_k the Jaccard index of the top k tokens of two parameters by absolute score.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from zeropass._io.progress import Progress
from zeropass.arch.spec import site_of
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
    """Rows (V', d) of the tokens that lists show, in one frame: for states and what writes, and for what reads."""

    spaces: Spaces
    frame: str
    writes: Tensor
    reads: Tensor
    turn: Tensor
    k: int

    @classmethod
    def of(cls, spaces: Spaces, frame: str, shown: Tensor, settings: Settings) -> "_View":
        # Past block 0: its own readers see the embedding, which is no state after any layer.
        reads = spaces.matrix(frame, "read", 1)[shown]
        same = frame in ("token", "paper") and (frame == "token" or spaces.frames.model.dims.tied)
        writes = reads if same else spaces.matrix(frame, "write", 1)[shown]
        turn = rotation(spaces.frames.model.dims.d, settings.seed)
        return cls(spaces, frame, writes, reads, turn, settings.k)

    def tops(self, vectors: Tensor, rows: Tensor, turned: bool = False, absolute: bool = False) -> Tensor:
        """Top k tokens (n, k) of vectors (n, d), as numbers among the shown ones."""
        vectors = vectors @ self.turn if turned else vectors
        found = []
        for part in torch.split(vectors, BATCH):
            scores = part @ rows.T
            found.append((scores.abs() if absolute else scores).topk(min(self.k, len(rows))).indices)
        return torch.cat(found) if found else torch.zeros(0, min(self.k, len(rows)), dtype=torch.long)

    def as_said(self, states: Tensor) -> Tensor:
        """Hidden states (n, d) as this frame reads them: as they are for ``paper``, normed for the others."""
        family = self.model.family
        if self.frame == "paper" or not family.reads_normed:
            return states
        return normed(states, family.norm, self.model.dims.eps)

    def rows(self, role: str) -> Tensor:
        """The rows that a role's lists are made with."""
        return self.writes if role in ("value", "o") else self.reads

    def folded(self, vectors: Tensor, role: str, layer: int) -> Tensor:
        """Vectors of a role as this frame takes them."""
        return self.spaces.folded(vectors, role, layer, self.frame)

    @property
    def model(self) -> Model:
        """The parameters that were read."""
        return self.spaces.frames.model


def states(spaces: Spaces, activations: Activations, shown: Tensor, settings: Settings, tell: Progress) -> list[Result]:
    """R_k by role, layer and frame, against the state after the same layer and the final one.

    Nulls: the active parameters of another position (``permuted``); parameters and states turned together, which keeps
    how they lie to each other and only takes the vocabulary away (``rotated``); random vectors, the most active
    of them chosen the same way (``noise``).
    """
    layers, found = spaces.frames.model.dims.layers, []
    for number, frame in enumerate(FRAMES):
        view = _View.of(spaces, frame, shown, settings)
        final = _state_tops(view, activations, layers - 1)
        for layer in range(1 if frame == "token" else 0, layers):
            targets = {"same layer": _state_tops(view, activations, layer)} | (
                {} if frame == "token" else {"final": final}
            )
            for role in _active_roles(spaces.frames.model.family.ff_roles, frame):
                sets = _active_tops(view, activations, layer, role, settings)
                for target, tops in targets.items():
                    values = {null: _recall(sets[null], tops[null == "rotated"]) for null in sets}
                    nulls = {null: values[null] for null in NULLS}
                    found.append(summarised("states", layer, role, frame, target, "recall", values[""], nulls))
            tell("states", number * layers + layer + 1, len(FRAMES) * layers)
    return found


def _active_roles(ff_roles: tuple[str, ...], frame: str) -> tuple[str, ...]:
    """FF keys (``gate`` and ``up`` in a gated MLP), FF values, and the columns of W_V and W_O, as in the paper."""
    roles = (*ff_roles, "v", "o")
    return tuple(role for role in roles if frame != "token" or role not in ("value", "o"))


def _state_tops(view: _View, activations: Activations, layer: int) -> tuple[Tensor, Tensor]:
    """Top tokens (P, k) of the states after a layer, and the same with the stream turned."""
    said = view.as_said(activations.kept["state", layer])
    return view.tops(said, view.writes), view.tops(said, view.writes, turned=True)


def _active_tops(view: _View, activations: Activations, layer: int, role: str, settings: Settings) -> dict[str, Tensor]:
    """Top tokens (P, m, k) of the m most active vectors at each position: as they are, and under each null."""
    vectors = view.model.matrix(role, layer)
    at, sign = _most_active(role, activations, layer, settings.active)
    rows = view.rows(role)

    def tops(of: Tensor, at: Tensor, sign: Tensor, turned: bool = False) -> Tensor:
        codes, back = torch.unique(2 * at + (sign < 0), return_inverse=True)
        poles = 1 - 2 * (codes % 2)
        folded = view.folded(of[codes // 2], role, layer) * poles[:, None]
        return view.tops(folded, rows, turned)[back]

    right = tops(vectors, at, sign)
    random, random_at, random_sign = _random(activations, layer, role, vectors, (at, sign), settings)
    return {
        "": right,
        "permuted": partner(right, 0),
        "rotated": tops(vectors, at, sign, turned=True),
        "noise": tops(random, random_at, random_sign),
    }


def _most_active(role: str, activations: Activations, layer: int, m: int) -> tuple[Tensor, Tensor]:
    """Numbers (P, m) of the vectors with the largest coefficients, and the sign in which each counts.

    A key's or a gate's list is its top pole (it fires there); the sign of gate x up decides the pole of up and value.
    """
    source = {"v": "v", "o": "o.in"}.get(role, "value.in")
    coefficients = activations.kept[source, layer]
    at = coefficients.abs().topk(min(m, coefficients.shape[1])).indices
    sign = torch.ones_like(at) if role in ("gate", "key") else coefficients.gather(1, at).sign()
    return at, sign


def _random(
    activations: Activations,
    layer: int,
    role: str,
    vectors: Tensor,
    active: tuple[Tensor, Tensor],
    settings: Settings,
) -> tuple[Tensor, Tensor, Tensor]:
    """Random vectors in a role's place: what writes keeps its coefficients, what reads is chosen by its own."""
    generator = settings.generator(40_000 + layer)
    random = torch.randn(vectors.shape, generator=generator)
    if role in ("value", "o"):
        return random, *active
    coefficients = activations.kept[site_of(role), layer] @ random.T
    # A key fires on its positive side only; columns of W_V count with either sign.
    strength = coefficients if role in ("gate", "key") else coefficients.abs()
    at = strength.topk(active[0].shape[1]).indices
    return random, at, coefficients.gather(1, at).sign()


def _recall(sets: Tensor, tops: Tensor) -> Tensor:
    """R_k (P,): the share of each state's top k (P, k) found in the union of (P, m, k)."""
    return among(tops, sets.flatten(1)).double().mean(1)


def pairs(spaces: Spaces, shown: Tensor, settings: Settings, tell: Progress) -> list[Result]:
    """Sim_k by pair of roles, layer and frame. No model runs. Partner permuted, partner rotated, both random."""
    model, found = spaces.frames.model, []
    for number, frame in enumerate(FRAMES):
        view = _View.of(spaces, frame, shown, settings)
        for layer in range(1 if frame == "token" else 0, model.dims.layers):
            tops = _pair_tops(view, layer, settings)
            for left, right in _pair_roles(model.family.ff_roles, frame):
                found.append(_similar(tops, layer, left, right, frame))
            tell("pairs", number * model.dims.layers + layer + 1, len(FRAMES) * model.dims.layers)
    return found


_PARTNERS = ("up", "value", "k", "o")
"""Roles that stand second in a pair."""


def _pair_roles(ff_roles: tuple[str, ...], frame: str) -> Iterator[tuple[str, str]]:
    gated = (("gate", "up"), ("gate", "value"), ("up", "value"))
    for left, right in (*(gated if "gate" in ff_roles else (("key", "value"),)), ("q", "k"), ("v", "o")):
        if frame != "token" or right not in ("value", "o"):
            yield left, right


def _pair_tops(view: _View, layer: int, settings: Settings) -> dict[tuple[str, str], Tensor]:
    """Top tokens (n, k) by absolute score of sampled vectors, by (role, null); those of all roles correspond."""
    model, found = view.model, {}
    roles = [
        r for r in (*model.family.ff_roles, "q", "k", "v", "o") if view.frame != "token" or r not in ("value", "o")
    ]
    count = settings.vectors // 2
    neurons = torch.randperm(model.dims.neurons, generator=settings.generator(60_000 + layer))[:count]
    width = model.dims.head_dim
    columns = torch.randperm(model.dims.heads * width, generator=settings.generator(70_000 + layer))
    columns = columns[:count]
    for number, role in enumerate(roles):
        shared = role in ("k", "v")
        own = columns // width // model.dims.group * width + columns % width if shared else columns
        at = own if site_of(role) == "attn" else neurons
        vectors = model.matrix(role, layer)[at]
        noise = torch.randn(vectors.shape, generator=settings.generator(80_000 + 10 * layer + number))
        folded, rows = view.folded(vectors, role, layer), view.rows(role)
        found[role, ""] = view.tops(folded, rows, absolute=True)
        if role in _PARTNERS:
            found[role, "rotated"] = view.tops(folded, rows, turned=True, absolute=True)
        found[role, "noise"] = view.tops(view.folded(noise, role, layer), rows, absolute=True)
    return found


def _similar(tops: dict[tuple[str, str], Tensor], layer: int, left: str, right: str, frame: str) -> Result:
    own, other = tops[left, ""], tops[right, ""]
    nulls = {
        "permuted": _jaccard(own, partner(other, 0)),
        "rotated": _jaccard(own, tops[right, "rotated"]),
        "noise": _jaccard(tops[left, "noise"], tops[right, "noise"]),
    }
    return summarised("pairs", layer, f"{left}-{right}", frame, "jaccard", "jaccard", _jaccard(own, other), nulls)


def _jaccard(x: Tensor, y: Tensor) -> Tensor:
    """Jaccard index (n,) of the sets in the rows of two (n, k) tensors."""
    both = among(x, y).sum(1).double()
    return both / (x.shape[1] + y.shape[1] - both)
