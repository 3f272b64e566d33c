"""Records that one would rather look at than read: overviews, what stands near a parameter, spreads, clouds. No torch.

They are made from an atlas by `atlas.overview`, `atlas.near` and `atlas.scores`, and drawn by `web`.
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
    """What is of lists of one side and frame."""

    side: str
    frame: str

    @property
    def verb(self) -> str:
        """What they say, in words."""
        return verb_of(self.side, self.frame)


@dataclass(frozen=True)
class Short(_OfLists):
    """A list in a part of a line: the first tokens of its stronger pole (``+`` or ``−``), best first."""

    role: str
    side: str
    frame: str
    pole: str
    tokens: tuple[TokenScore, ...]
    evidence: Verdict | None = None


@dataclass(frozen=True)
class Telling:
    """A parameter among others: how telling its best list is (|z| of that list's tenth token), and all its lists."""

    address: str
    strength: float
    lists: tuple[Short, ...]


@dataclass(frozen=True)
class LayerRecord(AsJson):
    """Parameters of one layer, most telling first: ``rows`` are the ``first``-th to the last shown of ``count``."""

    layer: int
    first: int
    count: int
    rows: tuple[Telling, ...]


@dataclass(frozen=True)
class Cell:
    """One part of a layer: the mean of a measure over its lists, and the parameter whose list has most of it."""

    layer: int
    part: str
    mean: float
    most: float
    address: str


@dataclass(frozen=True)
class Overview(_OfLists, AsJson):
    """How telling the words of every part of a model are. ``about`` says in words what ``measure`` is."""

    side: str
    frame: str
    measure: str
    about: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Wire:
    """Another parameter that reads what one writes, or writes what it reads: inner product and cosine of the two."""

    address: str
    role: str
    product: float
    cosine: float


@dataclass(frozen=True)
class Part:
    """A half of a block (``ff``, ``attn``) or what lies outside, and the norm of all its products with one vector."""

    layer: int
    part: str
    norm: float


@dataclass(frozen=True)
class Wiring:
    """For one vector of the stream: the earlier parameters that write along it, or the later ones that read along it.

    ``side`` is the vector's own: ``read`` has earlier writers, ``write`` later readers. Best |inner product| first.
    """

    role: str
    side: str
    wires: tuple[Wire, ...]
    parts: tuple[Part, ...]

    @property
    def verb(self) -> str:
        """What the wires do, in words."""
        return "is written by" if self.side == "read" else "is read by"


@dataclass(frozen=True)
class Likeness:
    """Another parameter, and how its list correlates with one over all tokens."""

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
    """What stands near a parameter: before it, after it, and beside it.

    Products are of folded vectors, the norm's gain in them and its division not: they order what is there, and are no
    activations.
    """

    address: str
    wiring: tuple[Wiring, ...]
    alike: tuple[Alike, ...]


@dataclass(frozen=True)
class Spread(_OfLists, AsJson):
    """How the scores of a list are spread: ``counts`` of shown tokens in bins of z from ``low``, ``step`` wide.

    ``kurtosis``: of these scores, 0 for normal ones.
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
    """A token of a list in a plane: ``z`` is its place in the list, positive at the top and negative at the bottom."""

    id: int
    token: str
    z: float
    x: float
    y: float


@dataclass(frozen=True)
class Cloud(_OfLists, AsJson):
    """The first tokens of a list's poles in the plane of their two leading principal components.

    Rows of the list's space, centred and of length one; ``shares``: of their variance that the two axes hold.
    """

    address: str
    role: str
    side: str
    frame: str
    points: tuple[Point, ...]
    shares: tuple[float, float]


@dataclass(frozen=True)
class NearestRecord(AsJson):
    """The tokens nearest to one, by the cosine of their centred rows in a space; best first. ``score`` is the cosine.

    ``z``: that score's distance from the mean over all shown tokens, in standard deviations.
    """

    token: Token
    space: str
    tokens: tuple[TokenScore, ...]
    hidden: Hidden
