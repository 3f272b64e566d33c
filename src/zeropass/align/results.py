"""What an alignment found: plain data. No torch."""

from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

__all__ = ["Alignment", "LayerMap", "Match", "Matches", "Pairing"]

SCHEMA_VERSION = 1

FALSE_DISCOVERIES = 0.05
"""The share of matches that may be chance among those that count as above it."""


@dataclass(frozen=True)
class LayerMap:
    """How alike two models' layers are in one role: ``scores[a][b]``, and the layer of B assigned to each of A.

    ``frame`` is ``raw`` for cosines without any embedding, the baseline. ``null`` and ``null_std`` are what shuffled
    tokens give (of ``raw``: None), ``assigned`` is -1 for a layer of A that is left over.
    """

    role: str
    frame: str
    scores: tuple[tuple[float, ...], ...]
    assigned: tuple[int, ...]
    null: float | None = None
    null_std: float | None = None


@dataclass(frozen=True)
class Match:
    """A parameter of B for one of A. ``null_mean`` and ``null_std``: of the best score among shuffled tokens.

    ``effect`` is the score's distance from that mean in units of that deviation.
    """

    address: str
    score: float
    null_mean: float
    null_std: float
    effect: float


@dataclass(frozen=True)
class Matches:
    """The best matches for one address."""

    query: str
    matches: tuple[Match, ...]

    def to_json(self) -> dict[str, Any]:
        """A dict that json.dumps takes as it is."""
        return asdict(self)


@dataclass(frozen=True)
class Pairing:
    """The best match of one neuron or head of A, in address form (``L3.ff.17``, ``L3.attn.2.vo``).

    ``q``: the false discovery rate at which it counts, among all of its kind (Benjamini and Hochberg). ``mutual``:
    whether A's parameter is the best match of B's too.
    """

    kind: str
    first: str
    second: str
    score: float
    null_mean: float
    null_std: float
    effect: float
    q: float
    mutual: bool


@dataclass(frozen=True)
class Alignment:
    """Everything that one alignment found. ``models`` and ``method`` say of what and how."""

    models: tuple[dict[str, Any], dict[str, Any]]
    method: dict[str, Any]
    layers: tuple[LayerMap, ...]
    pairings: tuple[Pairing, ...]

    def layer_map(self, role: str, frame: str) -> LayerMap:
        """The layer map of a role and frame; KeyError if there is none."""
        for found in self.layers:
            if (found.role, found.frame) == (role, frame):
                return found
        raise KeyError((role, frame))

    def summary(self) -> dict[str, Any]:
        """What a person wants first, JSON-ready: the assigned layers of each map, and what of each kind was found."""
        kinds = {pairing.kind: None for pairing in self.pairings}
        return {
            "models": list(self.models),
            "method": self.method,
            "layers": {f"{found.role} {found.frame}": list(found.assigned) for found in self.layers},
            "matches": {kind: self._counts(kind) for kind in kinds},
        }

    def _counts(self, kind: str) -> dict[str, Any]:
        own = [pairing for pairing in self.pairings if pairing.kind == kind]
        return {
            "all": len(own),
            "above_chance": sum(pairing.q <= FALSE_DISCOVERIES for pairing in own),
            "mutual": sum(pairing.mutual for pairing in own),
            "mean_score": fmean(pairing.score for pairing in own),
            "mean_chance": fmean(pairing.null_mean for pairing in own),
        }
