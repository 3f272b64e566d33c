"""Records that are drawn rather than read: overviews, neighbours of a parameter, spreads, clouds.

`atlas.summary`, `atlas.neighbours` and `atlas.distributions` make them from an atlas; `web` draws them. Nothing here
imports torch.
"""

from dataclasses import dataclass

from zeropass.records.parameters import AsJson, Hidden, Token, TokenScore, verb_of
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


@dataclass(frozen=True)
class Short(_OfLists):
    """A list in short: the first tokens of its stronger pole (``+`` or ``−``), best first."""

    role: str
    side: str
    frame: str
    pole: str
    tokens: tuple[TokenScore, ...]
    evidence: Verdict | None = None


@dataclass(frozen=True)
class Telling:
    """A parameter with all its lists; ``strength`` is |z| of the tenth token of its most telling list."""

    address: str
    strength: float
    lists: tuple[Short, ...]


@dataclass(frozen=True)
class LayerRecord(AsJson):
    """Parameters of one layer, most telling first; ``rows`` are those of ``count`` that begin at the ``first``-th."""

    layer: int
    first: int
    count: int
    rows: tuple[Telling, ...]


@dataclass(frozen=True)
class Cell:
    """One part of a layer: the mean of a measure over its lists, and its highest value with that list's parameter."""

    layer: int
    part: str
    mean: float
    most: float
    address: str


@dataclass(frozen=True)
class Overview(_OfLists, AsJson):
    """An overview of how telling the words of every part of a model are; ``about`` explains ``measure`` in words."""

    side: str
    frame: str
    measure: str
    about: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Wire:
    """A parameter that reads what another one writes, or writes what it reads: inner product and cosine of the two."""

    address: str
    role: str
    product: float
    cosine: float


@dataclass(frozen=True)
class Part:
    """A half of a block (``ff``, ``attn``) or the part outside the blocks: the norm of its products with one vector."""

    layer: int
    part: str
    norm: float


@dataclass(frozen=True)
class Wiring:
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


@dataclass(frozen=True)
class Likeness:
    """A parameter and the correlation of its list with that of another one over all tokens."""

    address: str
    correlation: float


@dataclass(frozen=True)
class Alike(_OfLists):
    """The parameters whose lists of one role and frame correlate best with a list, over all tokens in use."""

    role: str
    side: str
    frame: str
    best: tuple[Likeness, ...]


@dataclass(frozen=True)
class NeighbourRecord(AsJson):
    """The neighbours of a parameter: those that write to it or read from it, and those whose lists are alike.

    Products are of folded vectors, which hold the gain of the norm but not its division: they order the neighbours and
    are no activations.
    """

    address: str
    wiring: tuple[Wiring, ...]
    alike: tuple[Alike, ...]


@dataclass(frozen=True)
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


@dataclass(frozen=True)
class Point:
    """A token of a list in a plane: ``z`` is its standardised score in the list, positive at the top."""

    id: int
    token: str
    z: float
    x: float
    y: float


@dataclass(frozen=True)
class Cloud(_OfLists, AsJson):
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


@dataclass(frozen=True)
class NearestRecord(AsJson):
    """The tokens nearest to another one by the cosine of their centred rows in a space, best first.

    ``score`` is the cosine, ``z`` its distance from the mean over all shown tokens in standard deviations.
    """

    token: Token
    space: str
    tokens: tuple[TokenScore, ...]
    hidden: Hidden
