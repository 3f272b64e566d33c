"""What a comparison found: plain data. No torch."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from zeropass.disk import read_lines
from zeropass.errors import BadOption
from zeropass.views import Direction, Record, Token

__all__ = ["Diff", "MatrixChange", "Moved", "ParameterChange", "Standout", "Watched", "read_words"]

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class MatrixChange:
    """How one matrix changed. ``relative``: norm of the change over that of the matrix.

    ``rank``: effective rank of the change, (Σσ²)²/Σσ⁴: 1 for a single direction. ``rounding``: the difference is no
    more than what storing the numbers in another type does; such a matrix counts as unchanged. ``directions`` are the
    leading ones, strongest first: ``left`` what is read, ``right`` what is written. ``error``: how far the directions'
    values may be off, relative to the largest (0 where they are exact).
    """

    layer: int
    role: str
    relative: float
    rank: float
    rounding: bool
    directions: tuple[Direction, ...]
    error: float


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
    """How much a matrix' change concerns the watched words: ``effect`` in deviations of random directions.

    ``above``: the share of as many other tokens, drawn at random, that the change concerns less.
    """

    layer: int
    role: str
    effect: float
    above: float


@dataclass(frozen=True)
class Diff:
    """All of a comparison. ``sees`` and ``writes`` are the tokens that all changes together concern most.

    ``alarm``: of ``sees`` and ``writes`` those in which a token stands out more than in any neutral fine-tune that was
    measured (`delta.verdict.ALARM`). ``outside``: rows outside the blocks that changed or are new.
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

    def to_json(self) -> dict[str, Any]:
        """A dict that json.dumps takes as it is."""
        return {"schema": SCHEMA_VERSION, **asdict(self)}


def read_words(path: Path) -> tuple[str, ...]:
    """The words of a file, one a line; BadOption, naming it, if there are none."""
    words = read_lines(path, "--watch", "word")
    if not words:
        raise BadOption(f"--watch {path} holds no words; there should be one a line.")
    return words
