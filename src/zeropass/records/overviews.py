"""Records that are drawn rather than read: overviews, neighbours of a parameter, spreads, clouds.

`atlas.summary`, `atlas.neighbours` and `atlas.distributions` make them from an atlas; `web` draws them. Nothing here
imports torch.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from zeropass._io.short_repr import ShortRepr
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
]


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
class LayerRecord(Several[Telling], AsJson):
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


@dataclass(frozen=True, repr=False)
class Cell(ShortRepr):
    """One part of a layer: the mean of a measure over its lists, and its highest value with that list's parameter."""

    layer: int
    part: str
    mean: float
    most: float
    address: str


@dataclass(frozen=True, repr=False)
class Overview(_OfLists, Several[Cell], AsJson):
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
class NeighbourRecord(AsJson):
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


@dataclass(frozen=True, repr=False)
class Spread(_OfLists, AsJson):
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


@dataclass(frozen=True, repr=False)
class Point(ShortRepr):
    """A token of a list in a plane: ``z`` is its standardised score in the list, positive at the top."""

    id: int
    token: str
    z: float
    x: float
    y: float


@dataclass(frozen=True, repr=False)
class Cloud(_OfLists, Several[Point], AsJson):
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


@dataclass(frozen=True, repr=False)
class NearestRecord(Several[TokenScore], AsJson):
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
