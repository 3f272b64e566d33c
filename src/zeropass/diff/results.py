"""What a comparison found: plain data. No torch."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from zeropass._io.parse import read_lines
from zeropass.errors import BadOption
from zeropass.records.parameters import Direction, Record, Token

__all__ = ["Constant", "Diff", "MatrixChange", "Moved", "ParameterChange", "Relation", "Standout", "TensorChange"]
__all__ += ["Watched", "WatchedWord", "read_words"]

SCHEMA_VERSION = 1

LEVEL = 0.01
"""How often a watched word that a change does not concern is said to be concerned."""

Relation = Literal["equal", "rounded", "changed", "unrelated"]
"""What two models are to each other: the same; the same but for rounding; one a change of the other; neither."""


@dataclass(frozen=True)
class MatrixChange:
    """How one matrix changed. ``relative``: norm of the change over that of the matrix.

    ``rank``: effective rank of the change, (Σσ²)²/Σσ⁴: 1 for a single direction. ``rounding``: the difference is no
    more than what storing the numbers in another type does; such a matrix counts as unchanged. ``directions`` are the
    leading ones, strongest first: ``left`` what is read, ``right`` what is written. ``error``: how far the directions'
    values may be off, relative to the largest (0 where they are exact). ``cosine``: of the matrix before and after.
    """

    layer: int
    role: str
    relative: float
    rank: float
    rounding: bool
    directions: tuple[Direction, ...]
    error: float
    cosine: float = 1.0


@dataclass(frozen=True)
class Standout:
    """A token that a change concerns more than others: robust z, over the shown tokens, of the log of its effect."""

    token: Token
    z: float


@dataclass(frozen=True)
class Moved:
    """A vector that moved, by what it is called: its change over its length, and the cosine of before and after."""

    name: str
    relative: float
    cosine: float


@dataclass(frozen=True)
class TensorChange:
    """How a tensor that is no matrix of a block differs: a table, a norm's gain, a bias, a head.

    ``name`` is what a reader calls it, ``what`` its canonical name, ``layer`` None outside the blocks. ``state``: it
    ``changed``, by no more than rounding (``rounded``), is ``new`` or ``gone``, or was ``replaced`` by one of another
    shape. ``moved``: how many of its rows differ by more than rounding; ``relative``: the change over its length;
    ``most``: the rows that moved most, by their tokens or addresses. ``read`` is false for a stored tensor that has no
    part in anything zeropass shows.
    """

    name: str
    what: str
    layer: int | None
    state: str
    rows_before: int
    rows_after: int
    moved: int
    relative: float = 0.0
    cosine: float = 0.0
    most: tuple[Moved, ...] = ()
    read: bool = True


@dataclass(frozen=True)
class Constant:
    """A constant of the configuration that differs: what the models do with their numbers is not the same."""

    name: str
    before: Any
    after: Any


@dataclass(frozen=True)
class ParameterChange:
    """A neuron, a head or a row outside the blocks, and its lists before and after in the base model's frames.

    ``before`` is empty, and ``relative`` 1, for what the base does not have. ``label``: what a classifier's row stands
    for, as the configuration has it.
    """

    address: str
    relative: float
    before: tuple[Record, ...]
    after: tuple[Record, ...]
    label: str = ""


@dataclass(frozen=True)
class Watched:
    """How much one matrix' change concerns a watched word.

    ``effect``: how many times as much it acts on the word as on the mean token; ``above``: the share of the tokens that
    the word is compared with on which it acts less.
    """

    layer: int
    role: str
    effect: float
    above: float
    word: str = ""


@dataclass(frozen=True)
class WatchedWord:
    """Whether a change concerns a word, and on what that rests.

    ``pieces``: the tokens that the word is, or the pieces that it is ``split`` into. ``concerned``: whether ``chance``
    is at most ``level``; None if there are too few tokens to compare it with (``peers``) to tell. ``chance``: how often
    a token of like frequency drawn at random stands out as far, times all that was looked at. ``sees`` and ``writes``:
    the share of all shown tokens on which the whole change acts less; None where it does not act on that side.
    """

    word: str
    pieces: tuple[str, ...]
    split: bool
    concerned: bool | None
    chance: float
    level: float
    peers: int
    sees: float | None
    writes: float | None


@dataclass(frozen=True)
class Diff:
    """All of a comparison. ``sees`` and ``writes`` are the tokens that all changes together concern most.

    ``alarm``: of ``sees`` and ``writes`` those in which a token stands out more than in any neutral fine-tune that was
    measured (`diff.verdict.ALARM`). ``outside``: rows outside the blocks that changed or are new. ``tables``: every
    tensor that differs and is no matrix of a block; ``vectors``, ``embedding`` and ``unembedding`` are what moved most
    of norms and biases, and of the rows of these tables. ``cosine``: mean over the matrices of blocks of the cosine
    before and after. ``compared``: how many tensors both models have. ``words``: a verdict on each watched word,
    ``watch`` the matrices in which they stand out most.
    """

    base: dict[str, Any]
    tuned: dict[str, Any]
    verdict: tuple[str, ...]
    alarm: tuple[str, ...]
    relative: float
    matrices: tuple[MatrixChange, ...]
    vectors: tuple[Moved, ...]
    embedding: tuple[Moved, ...]
    added: tuple[str, ...]
    removed: tuple[str, ...]
    sees: tuple[Standout, ...]
    writes: tuple[Standout, ...]
    neurons: tuple[ParameterChange, ...]
    heads: tuple[ParameterChange, ...]
    outside: tuple[ParameterChange, ...]
    watch: tuple[Watched, ...]
    method: dict[str, Any]
    relation: Relation = "changed"
    cosine: float = 1.0
    tables: tuple[TensorChange, ...] = ()
    unembedding: tuple[Moved, ...] = ()
    constants: tuple[Constant, ...] = ()
    words: tuple[WatchedWord, ...] = ()
    compared: int = 0

    def to_json(self) -> dict[str, Any]:
        """A dict that json.dumps takes as it is."""
        return {"schema": SCHEMA_VERSION, **asdict(self)}


def read_words(path: Path) -> tuple[str, ...]:
    """The words of a file, one a line; BadOption, naming it, if there are none."""
    words = read_lines(path, "--watch", "word")
    if not words:
        raise BadOption(f"--watch {path} holds no words; there should be one a line.")
    return words
