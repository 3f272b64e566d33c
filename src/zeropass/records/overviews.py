"""Records that are drawn rather than read: overviews, neighbours of a parameter, spreads, clouds.

`atlas.summary`, `atlas.neighbours` and `atlas.distributions` make them from an atlas; `web` draws them. Nothing here
imports torch.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from zeropass._io.short_repr import ShortRepr
from zeropass.records.panels import (
    AsFigure,
    AsFigures,
    Bars,
    Columns,
    Dot,
    HeatMap,
    Panel,
    Points,
    scale_of,
    token_label,
)
from zeropass.records.parameters import AsJson, Hidden, Token, TokenScore, verb_of
from zeropass.records.tabular import Row, Several, plain_fields
from zeropass.records.verdicts import Verdict

__all__ = [
    "Alike",
    "Cell",
    "Cloud",
    "LayerRecord",
    "Likeness",
    "NearestRecord",
    "NeighbourRecord",
    "Overview",
    "Part",
    "Point",
    "Short",
    "Spread",
    "Telling",
    "Wire",
    "Wiring",
    "part_name",
]

WORDS = 3
"""The number of words of a list in a figure of many."""


class _OfLists:
    """A record about lists of one side and frame."""

    side: str
    frame: str

    @property
    def verb(self) -> str:
        """The verb for what the lists say."""
        return verb_of(self.side, self.frame)


@dataclass(frozen=True, repr=False)
class Short(_OfLists, ShortRepr):
    """A list in short: the first tokens of its stronger pole (``+`` or ``−``), best first."""

    role: str
    side: str
    frame: str
    pole: str
    tokens: tuple[TokenScore, ...]
    evidence: Verdict | None = None


@dataclass(frozen=True, repr=False)
class Telling(ShortRepr):
    """A parameter with all its lists; ``strength`` is |z| of the tenth token of its most telling list."""

    address: str
    strength: float
    lists: tuple[Short, ...]


@dataclass(frozen=True, repr=False)
class LayerRecord(Several[Telling], AsJson, AsFigure):
    """Parameters of one layer, most telling first; ``rows`` are those of ``count`` that begin at the ``first``-th."""

    layer: int
    first: int
    count: int
    rows: tuple[Telling, ...]

    _ITEMS = "rows"

    def table_rows(self) -> Iterator[Row]:
        """Yield a row for each token of each list in short."""
        for parameter in self.rows:
            for short in parameter.lists:
                row = {"address": parameter.address, "strength": parameter.strength, **plain_fields(short)}
                for rank, token in enumerate(short.tokens):
                    yield {**row, "rank": rank, **plain_fields(token)}

    def panel(self) -> Bars:
        """Return the strength of each parameter, with the first words of its most telling list."""
        return Bars(
            title=f"Most telling of layer {self.layer}",
            notes=(f"{self.first + 1} to {self.first + len(self.rows)} of {self.count:,}",),
            x="|z| of the tenth token of its most telling list",
            right=[(_in_words(parameter), parameter.strength) for parameter in self.rows],
        )


@dataclass(frozen=True, repr=False)
class Cell(ShortRepr):
    """One part of a layer: the mean of a measure over its lists, and its highest value with that list's parameter."""

    layer: int
    part: str
    mean: float
    most: float
    address: str


@dataclass(frozen=True, repr=False)
class Overview(_OfLists, Several[Cell], AsJson, AsFigure):
    """An overview of how telling the words of every part of a model are; ``about`` explains ``measure`` in words."""

    side: str
    frame: str
    measure: str
    about: str
    cells: tuple[Cell, ...]

    _ITEMS = "cells"

    def table_rows(self) -> Iterator[Row]:
        """Yield a row for each part of each layer."""
        for cell in self.cells:
            yield {"side": self.side, "frame": self.frame, "measure": self.measure, **plain_fields(cell)}

    @property
    def layers(self) -> list[int]:
        """The layers, in order."""
        return sorted({cell.layer for cell in self.cells})

    @property
    def parts(self) -> list[str]:
        """The parts of the layers: the feed-forward block, then the heads by number."""
        parts = {cell.part for cell in self.cells}
        return sorted(parts, key=lambda part: (part != "ff", part.partition(".")[0], len(part), part))

    @property
    def ends(self) -> tuple[float, float]:
        """The ends of the scale of the means."""
        return scale_of(cell.mean for cell in self.cells)

    def panel(self) -> HeatMap:
        """Return the means: layers across, parts down."""
        means = {(cell.part, cell.layer): cell.mean for cell in self.cells}
        return HeatMap(
            title=f"How telling the words are: {self.verb}",
            notes=(f"mean {self.measure} of the lists of each part", f"frame {self.frame}"),
            x="layer",
            rows=[part_name(part) for part in self.parts],
            columns=[str(layer) for layer in self.layers],
            values=[[means.get((part, layer), math.nan) for layer in self.layers] for part in self.parts],
            scale=self.measure,
            ends=self.ends,
        )


@dataclass(frozen=True, repr=False)
class Wire(ShortRepr):
    """A parameter that reads what another one writes, or writes what it reads: inner product and cosine of the two."""

    address: str
    role: str
    product: float
    cosine: float


@dataclass(frozen=True, repr=False)
class Part(ShortRepr):
    """A half of a block (``ff``, ``attn``) or the part outside the blocks: the norm of its products with one vector."""

    layer: int
    part: str
    norm: float


@dataclass(frozen=True, repr=False)
class Wiring(ShortRepr):
    """The earlier parameters that write along one vector of the stream, or the later ones that read along it.

    ``side`` is that of the vector: ``read`` has earlier writers, ``write`` later readers. The largest |inner product|
    comes first.
    """

    role: str
    side: str
    wires: tuple[Wire, ...]
    parts: tuple[Part, ...]

    @property
    def verb(self) -> str:
        """The verb for what the wires do."""
        return "is written by" if self.side == "read" else "is read by"


@dataclass(frozen=True, repr=False)
class Likeness(ShortRepr):
    """A parameter and the correlation of its list with that of another one over all tokens."""

    address: str
    correlation: float


@dataclass(frozen=True, repr=False)
class Alike(_OfLists, ShortRepr):
    """The parameters whose lists of one role and frame correlate best with a list, over all tokens in use."""

    role: str
    side: str
    frame: str
    best: tuple[Likeness, ...]


@dataclass(frozen=True, repr=False)
class NeighbourRecord(AsJson, AsFigures):
    """The neighbours of a parameter: those that write to it or read from it, and those whose lists are alike.

    Products are of folded vectors, which hold the gain of the norm but not its division: they order the neighbours and
    are no activations.
    """

    address: str
    wiring: tuple[Wiring, ...]
    alike: tuple[Alike, ...]

    def table_rows(self) -> Iterator[Row]:
        """Yield a row for each neighbour; columns differ between those along the stream and lists that are alike."""
        for wiring in self.wiring:
            for wire in wiring.wires:
                row = {"address": self.address, "role": wiring.role, "relation": wiring.verb}
                yield {**row, "neighbour": wire.address, "neighbour_role": wire.role} | {
                    "product": wire.product,
                    "cosine": wire.cosine,
                }
        for alike in self.alike:
            for likeness in alike.best:
                row = {"address": self.address, "role": alike.role, "relation": "is alike", "frame": alike.frame}
                yield {**row, "neighbour": likeness.address, "correlation": likeness.correlation}

    def panels(self) -> Iterator[Panel]:
        """Yield for each vector how strongly each part of the model writes or reads along it."""
        for wiring in (wiring for wiring in self.wiring if wiring.parts):
            parts = {
                part: [(p.layer, p.norm) for p in wiring.parts if (p.part == "ff") == (part == "FF")]
                for part in ("attention", "FF")
            }
            yield Columns(
                title=f"{self.address} {wiring.role} {wiring.verb}",
                x="layer; -1 is outside the blocks" if wiring.parts[0].layer < 0 else "layer",
                y="norm of inner products",
                series=[(part, columns) for part, columns in parts.items() if columns],
                width=0.84,
            )


@dataclass(frozen=True, repr=False)
class Spread(_OfLists, AsJson, AsFigure):
    """The distribution of the scores of a list.

    Attributes:
        low: z at the lower end of the first bin.
        step: The width of a bin in z.
        counts: Shown tokens in each bin.
        kurtosis: The excess kurtosis of the scores, 0 for a normal distribution.
    """

    address: str
    role: str
    side: str
    frame: str
    low: float
    step: float
    counts: tuple[int, ...]
    kurtosis: float
    top: tuple[TokenScore, ...]
    bottom: tuple[TokenScore, ...]
    hidden: Hidden
    evidence: Verdict | None = None

    def table_rows(self) -> Iterator[Row]:
        """Yield a row for each bin: z at its lower end, and the number of shown tokens in it."""
        place = {"address": self.address, "role": self.role, "side": self.side, "frame": self.frame}
        for number, count in enumerate(self.counts):
            yield {**place, "z": self.low + number * self.step, "tokens": count}

    def panel(self) -> Columns:
        """Return the tokens by z, with the first of both poles."""
        return Columns(
            title=f"{self.address} {self.role} {self.verb}",
            notes=(f"excess kurtosis {self.kurtosis:.2f}",),
            x="z",
            y="tokens",
            series=[("", [(self.low + (n + 0.5) * self.step, count) for n, count in enumerate(self.counts)])],
            width=self.step,
            log=True,
            marked=[(token_label(token.token), token.z) for token in (*self.top, *self.bottom)],
        )


@dataclass(frozen=True, repr=False)
class Point(ShortRepr):
    """A token of a list in a plane: ``z`` is its standardised score in the list, positive at the top."""

    id: int
    token: str
    z: float
    x: float
    y: float


@dataclass(frozen=True, repr=False)
class Cloud(_OfLists, Several[Point], AsJson, AsFigure):
    """The first tokens of a list's poles in the plane of their two leading principal components.

    The components are those of the tokens' rows in the list's space, centred and of length one; ``shares`` are the
    shares of their variance on the two axes.
    """

    address: str
    role: str
    side: str
    frame: str
    points: tuple[Point, ...]
    shares: tuple[float, float]

    _ITEMS = "points"

    def table_rows(self) -> Iterator[Row]:
        """Yield a row for each token."""
        for point in self.points:
            yield {"address": self.address, "role": self.role, "frame": self.frame, **plain_fields(point)}

    def panel(self) -> Points:
        """Return the tokens in the plane."""
        first, second = (f"{share:.0%} of the variance" for share in self.shares)
        return Points(
            title=f"{self.address} {self.role} {self.verb}",
            x=first,
            y=second,
            groups=("+ pole", "− pole"),
            dots=[
                Dot(x=p.x, y=p.y, group="+ pole" if p.z > 0 else "− pole", label=token_label(p.token))
                for p in sorted(self.points, key=lambda p: -abs(p.z))
            ],
        )


@dataclass(frozen=True, repr=False)
class NearestRecord(Several[TokenScore], AsJson, AsFigure):
    """The tokens nearest to another one by the cosine of their centred rows in a space, best first.

    ``score`` is the cosine, ``z`` its distance from the mean over all shown tokens in standard deviations.
    """

    token: Token
    space: str
    tokens: tuple[TokenScore, ...]
    hidden: Hidden

    _ITEMS = "tokens"

    def table_rows(self) -> Iterator[Row]:
        """Yield a row for each token; ``score`` is the cosine."""
        for rank, token in enumerate(self.tokens):
            yield {"of": self.token.token, "space": self.space, "rank": rank, **plain_fields(token)}

    def panel(self) -> Bars:
        """Return the cosine of each token."""
        return Bars(
            title=f"Nearest to {token_label(self.token.token)}",
            notes=(f"rows of the space {self.space}",),
            x="cosine",
            right=[(token_label(token.token), token.score) for token in self.tokens],
        )


def part_name(part: str) -> str:
    """Return the name of a part of a layer in a figure: ``FF``, ``head 3``."""
    return {"ff": "FF", "sae": "features"}.get(part) or part.replace("attn.", "head ").replace("cross.", "cross ")


def _in_words(parameter: Telling) -> str:
    """Return the address of a parameter with the first words of its most telling list."""
    strongest = max(parameter.lists, key=lambda words: max((abs(t.z) for t in words.tokens), default=0.0), default=None)
    return " ".join(
        [parameter.address, *(token_label(t.token) for t in (strongest.tokens if strongest else ())[:WORDS])]
    )
