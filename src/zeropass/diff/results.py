"""The results of a comparison, as plain data. No torch."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from zeropass._io.short_repr import ShortRepr
from zeropass._io.typed_json import json_schema
from zeropass.diff.findings import Finding, Standout
from zeropass.records.panels import AsFigure, HeatMap
from zeropass.records.parameters import Direction, Record
from zeropass.records.tabular import AsTable, Row, plain_fields
from zeropass.tokens.shown import shown_text

__all__ = ["ChangeDirection", "Constant", "Diff", "MatrixChange", "Moved", "ParameterChange", "Relation"]
__all__ += ["TensorChange", "Watched", "WatchedWord", "diff_schema"]

SCHEMA_VERSION = 2
"""The version of the JSON: 2 has `finding` and lists of words where 1 had `alarm` and lists of all tokens."""

LEVEL = 0.01
"""The share of words that a change does not concern but that are called concerned: the level of the test."""

Relation = Literal["equal", "rounded", "changed", "unrelated"]
"""The relation of two models: equal, equal but for rounding, one a change of the other, or trained apart."""


@dataclass(frozen=True, repr=False)
class ChangeDirection(Direction):
    """A singular direction of a change, with how far words stand out on its right side.

    Attributes:
        z: The largest z of a whole word, of either sign, on the right side.
        chance: The same of random sums of the rows of the base's matrix on that side, the median of the draws.
        telling: How telling it is: by how many times chance ``z`` exceeds it, times the square root of the share.
    """

    z: float = 0.0
    chance: float = 0.0
    telling: float = 0.0


@dataclass(frozen=True, repr=False)
class MatrixChange(ShortRepr):
    """The change of one matrix.

    Attributes:
        layer: The layer of the matrix.
        role: The role of the matrix.
        relative: Norm of the change over that of the matrix.
        rank: Effective rank of the change, (Σσ²)²/Σσ⁴: 1 for a single direction.
        rounding: True if the difference is no more than storing the numbers in another type makes; such a matrix counts
            as unchanged.
        directions: The leading directions, strongest first; ``left`` is what is read, ``right`` what is written.
        error: A bound of the error of the directions' values, relative to the largest; 0 if they are exact.
        cosine: Cosine of the matrix before and after.
    """

    layer: int
    role: str
    relative: float
    rank: float
    rounding: bool
    directions: tuple[ChangeDirection, ...]
    error: float
    cosine: float = 1.0


@dataclass(frozen=True, repr=False)
class Moved(ShortRepr):
    """A vector that moved: its name, its change relative to its length, and the cosine of before and after."""

    name: str
    relative: float
    cosine: float


@dataclass(frozen=True, repr=False)
class TensorChange(ShortRepr):
    """The change of a tensor that is no matrix of a block: a table, a norm's gain, a bias, a task head.

    Attributes:
        name: The name for readers.
        what: The canonical name.
        layer: The layer, None outside the blocks.
        state: ``changed``; ``rounded``, if it differs only by rounding; ``new`` or ``gone``, if only one model has it;
            or ``replaced`` by a tensor of another shape.
        rows_before: The number of rows in the base.
        rows_after: The number of rows in the other model.
        moved: The number of rows that differ by more than rounding.
        relative: Norm of the change over that of the tensor.
        cosine: Cosine of the tensor before and after.
        most: The rows that moved most, by their tokens or addresses.
        read: False for a stored tensor that has no part in anything zeropass shows.
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


@dataclass(frozen=True, repr=False)
class Constant(ShortRepr):
    """A constant of the configuration that differs, so that equal weights compute something else."""

    name: str
    before: Any
    after: Any


@dataclass(frozen=True, repr=False)
class ParameterChange(ShortRepr):
    """The change of a neuron, a head or a row outside the blocks.

    Attributes:
        address: The address of the parameter.
        relative: The size of the change over the usual length of such parameters, or over the length of the row itself
            outside the blocks; 1 for a parameter that the base does not have.
        before: The lists before, in the base's frames; empty for a parameter that the base does not have.
        after: The lists after, in the base's frames.
        label: The label of a classifier's row, from the configuration.
    """

    address: str
    relative: float
    before: tuple[Record, ...]
    after: tuple[Record, ...]
    label: str = ""


@dataclass(frozen=True, repr=False)
class Watched(ShortRepr):
    """The effect of one matrix' change on a watched word.

    Attributes:
        layer: The layer of the matrix.
        role: The role of the matrix.
        effect: The effect on the word over that on the mean token.
        above: The share of the word's peers on which the change acts less.
        word: The word.
    """

    layer: int
    role: str
    effect: float
    above: float
    word: str = ""


@dataclass(frozen=True, repr=False)
class WatchedWord(ShortRepr):
    """The verdict on whether a change concerns a word, with its evidence.

    Attributes:
        word: The word.
        pieces: The tokens that are the word, or the pieces that it is split into.
        split: True if the word is split into pieces.
        concerned: True if ``chance`` is at most ``level``; None if there are too few peers to tell.
        chance: The corrected p-value: how often a random token of similar frequency stands out as far, multiplied by
            the number of tests.
        level: The level of the test.
        peers: The number of tokens that the word is compared with.
        sees: The share of all shown tokens on whose reading the entire change acts less; None if it acts on no reading.
        writes: The same for writing.
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


@dataclass(frozen=True, repr=False)
class Diff(ShortRepr, AsTable, AsFigure):
    """A comparison of two models.

    Attributes:
        base: Name, hash and stored types of the model before, and the SHA-256 of each of its files.
        tuned: The same of the model after.
        verdict: The result in sentences.
        finding: What kind of change it is: a few words, a topic or nothing in particular; and what that rests on.
        relative: Norm of the change of all blocks over that of the blocks.
        matrices: The matrices of blocks that differ.
        vectors: The norms and biases that moved most.
        embedding: The rows of the embedding that moved most.
        added: The tokens that only the model after has.
        removed: The tokens that only the base has.
        sees: The words whose reading all changes together concern most, by their z.
        writes: The words whose writing all changes together concern most, by their excess.
        neurons: The neurons that changed most.
        heads: The attention heads that changed most.
        outside: Rows outside the blocks that changed or are new.
        watch: The matrices in which watched words stand out most.
        method: Settings of the comparison.
        relation: The relation of the two models.
        cosine: Cosine of before and after, averaged over the matrices of blocks.
        tables: Every tensor that differs and is no matrix of a block.
        unembedding: The rows of the unembedding that moved most.
        constants: Constants of the configuration that differ.
        words: A verdict on each watched word.
        compared: The number of tensors that both models have.
        sees_others: As ``sees``, of tokens that are no whole words: marks, pieces of words, layout.
        writes_others: As ``writes``, of such tokens.
        made: The day of the comparison, the versions of zeropass, torch and Python, and the command, if one made it.

    Example:
        >>> import zeropass as zp
        >>> base = zp.open_model("models/first")
        >>> difference = zp.compare(base, zp.adapt(base, "models/tunes/reviews"))
        >>> difference.relation, round(difference.relative, 2)
        ('changed', 0.19)
        >>> max(difference.matrices, key=lambda matrix: matrix.relative).role
        'k'
    """

    base: dict[str, Any]
    tuned: dict[str, Any]
    verdict: tuple[str, ...]
    finding: Finding
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
    sees_others: tuple[Standout, ...] = ()
    writes_others: tuple[Standout, ...] = ()
    made: dict[str, str] = field(default_factory=dict)

    def table_rows(self) -> Iterator[Row]:
        """Yield a row for each matrix of a block that differs."""
        yield from map(plain_fields, self.matrices)

    def panel(self) -> HeatMap:
        """Return the change of every matrix relative to its norm: layers across, roles down."""
        changes = {(matrix.role, matrix.layer): 100 * matrix.relative for matrix in self.matrices}
        roles = list(dict.fromkeys(role for role, _ in changes))
        layers = range(1 + max((layer for _, layer in changes), default=-1))
        names = " to ".join(shown_text(str(facts.get("name", ""))) for facts in (self.base, self.tuned))
        return HeatMap(
            title="Relative change",
            notes=(names,),
            x="layer",
            rows=roles,
            columns=[str(layer) for layer in layers],
            values=[[changes.get((role, layer), math.nan) for layer in layers] for role in roles],
            scale="% of the norm",
            ends=(0.0, max(changes.values(), default=0.0) or 1.0),
        )

    def _repr_words(self) -> str:
        names = " to ".join(str(facts.get("name", "")) for facts in (self.base, self.tuned))
        return f"{names}: {self.relation}, {self.relative:.2g} of the blocks, {len(self.matrices)} matrices"

    def to_json(self) -> dict[str, Any]:
        """Return a dict that `json.dumps` can write."""
        return {"schema": SCHEMA_VERSION, **asdict(self)}


def diff_schema() -> dict[str, Any]:
    """Return the JSON Schema of a comparison, as ``zeropass diff --json`` prints it (docs/diff.schema.json)."""
    schema = json_schema(Diff, f"zeropass diff --json, schema {SCHEMA_VERSION}")
    top = schema["$defs"]["Diff"]
    top["properties"] = {"schema": {"const": SCHEMA_VERSION}} | top["properties"]
    top["required"] = ["schema", *top["required"]]
    return schema
