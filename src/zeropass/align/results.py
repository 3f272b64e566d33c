"""The results of an alignment: plain data, without torch."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from zeropass._io.short_repr import ShortRepr
from zeropass.records.panels import AsFigure, AsFigures, Bars, HeatMap, Panel
from zeropass.records.tabular import AsTable, Row, Several, plain_fields
from zeropass.tokens.shown import shown_text

__all__ = ["Alignment", "LayerMap", "Match", "Matches", "Pairing", "through"]

SCHEMA_VERSION = 1

FALSE_DISCOVERIES = 0.05
"""The false discovery rate: of the matches that count as above chance, this share may be due to chance."""


@dataclass(frozen=True, repr=False)
class LayerMap(ShortRepr, AsFigure):
    """The likeness of the layers of two models in one role.

    Attributes:
        role: The role in the first model, or the head map (``qk``, ``vo``).
        frame: The frame; ``raw`` for cosines without any embedding, the baseline.
        scores: ``scores[a][b]`` for layer a of A and layer b of B.
        assigned: The layer of B for each layer of A, -1 for one that is left over.
        null: The mean score of the assigned layers with shuffled tokens; None for ``raw``.
        null_std: The standard deviation of these scores.
    """

    role: str
    frame: str
    scores: tuple[tuple[float, ...], ...]
    assigned: tuple[int, ...]
    null: float | None = None
    null_std: float | None = None

    def panel(self) -> HeatMap:
        """Return the scores: layers of A down, of B across, the assigned ones marked."""
        return HeatMap(
            title=f"{self.role}, {self.frame}",
            x="layer of B",
            y="layer of A",
            rows=[str(layer) for layer in range(len(self.scores))],
            columns=[str(layer) for layer in range(len(self.scores[0]))],
            values=self.scores,
            marked=self.assigned,
            scale="score",
        )


@dataclass(frozen=True, repr=False)
class Match(ShortRepr):
    """A parameter of B that matches one of A.

    Attributes:
        address: Its address in B.
        score: Its score.
        null_mean: The mean, over shuffles of the tokens, of the best score of any candidate.
        null_std: The standard deviation of these best scores.
        effect: The distance of the score from that mean, in standard deviations.
    """

    address: str
    score: float
    null_mean: float
    null_std: float
    effect: float


@dataclass(frozen=True, repr=False)
class Matches(Several[Match], ShortRepr, AsTable, AsFigure):
    """The best matches for one address: a sequence of them.

    Attributes:
        query: The address.
        matches: The matches, the best first.
        lenses: The lenses that it was compared through, in words; none for the weights alone.
    """

    query: str
    matches: tuple[Match, ...]
    lenses: tuple[str, ...] = ()

    _ITEMS = "matches"

    def table_rows(self) -> Iterator[Row]:
        """Yield a row for each match."""
        for rank, match in enumerate(self.matches):
            yield {"query": self.query, "rank": rank, **plain_fields(match)}

    def panel(self) -> Bars:
        """Return the score of each match beside that of the best with shuffled tokens."""
        null = self.matches[0] if self.matches else None
        return Bars(
            title=f"Matches of {self.query}",
            notes=("grey: the best with shuffled tokens, mean ± standard deviation",),
            x="score",
            right=[(match.address, match.score) for match in self.matches],
            band=(null.null_mean - null.null_std, null.null_mean + null.null_std) if null else None,
        )

    def to_json(self) -> dict[str, Any]:
        """Return a dict that json.dumps takes as it is."""
        return asdict(self)


@dataclass(frozen=True, repr=False)
class Pairing(ShortRepr):
    """The best match of one neuron or head of A.

    Attributes:
        kind: ``neuron`` or ``head``.
        first: The address in A (``L3.ff.17``, ``L3.attn.2.vo``).
        second: The address of its best match in B.
        score: Their score.
        null_mean: The mean score of best matches with shuffled tokens.
        null_std: The standard deviation of these scores.
        effect: The distance of the score from that mean, in standard deviations.
        q: The smallest false discovery rate at which it counts, among all of its kind (Benjamini and Hochberg).
        mutual: True if A's parameter is also the best match of B's.
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


@dataclass(frozen=True, repr=False)
class Alignment(Several[Pairing], ShortRepr, AsTable, AsFigures):
    """The complete result of aligning two models: a sequence of its pairings.

    Attributes:
        models: Facts about each model.
        method: The settings, and the tokens that were used.
        layers: The layer maps.
        pairings: The best match of every neuron and head.
    """

    models: tuple[dict[str, Any], dict[str, Any]]
    method: dict[str, Any]
    layers: tuple[LayerMap, ...]
    pairings: tuple[Pairing, ...]

    _ITEMS = "pairings"

    def table_rows(self) -> Iterator[Row]:
        """Yield a row for each pairing."""
        yield from map(plain_fields, self.pairings)

    def panels(self) -> Iterator[Panel]:
        """Yield the layer maps."""
        for layer_map in self.layers:
            yield layer_map.panel()

    @property
    def lenses(self) -> tuple[str, ...]:
        """The lenses that the models were compared through, in words; none for the weights alone."""
        return tuple(self.method.get("lenses", ()))

    def layer_map(self, role: str, frame: str) -> LayerMap:
        """Return the layer map of a role and frame; raise KeyError if there is none."""
        for layer_map in self.layers:
            if (layer_map.role, layer_map.frame) == (role, frame):
                return layer_map
        raise KeyError((role, frame))

    def summary(self) -> dict[str, Any]:
        """Return a JSON-ready summary: the assigned layers of each map, and counts of each kind of match."""
        neurons_and_heads = {pairing.kind: None for pairing in self.pairings}
        return {
            "models": list(self.models),
            "method": self.method,
            "layers": {f"{layer_map.role} {layer_map.frame}": list(layer_map.assigned) for layer_map in self.layers},
            "matches": {pairing_kind: self._counts(pairing_kind) for pairing_kind in neurons_and_heads},
        }

    def _counts(self, pairing_kind: str) -> dict[str, Any]:
        pairings = [pairing for pairing in self.pairings if pairing.kind == pairing_kind]
        return {
            "all": len(pairings),
            "above_chance": sum(pairing.q <= FALSE_DISCOVERIES for pairing in pairings),
            "mutual": sum(pairing.mutual for pairing in pairings),
            "mean_score": fmean(pairing.score for pairing in pairings),
            "mean_chance": fmean(pairing.null_mean for pairing in pairings),
        }


def through(what: str, lenses: tuple[str, ...]) -> str:
    """Return the sentence on what of two models was read through which lenses, in words; empty for no lenses."""
    if not lenses:
        return ""
    first, second = (shown_text(words, limit=200) for words in lenses)
    if first == second:
        return f"{what} of both are read through a {first}."
    return f"{what} of A are read through a {first}, those of B through a {second}."
