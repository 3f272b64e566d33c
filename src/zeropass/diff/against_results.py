"""The results of comparing two changes of one model, as plain data. No torch."""

import html
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, Literal

from zeropass._io.short_repr import ShortRepr
from zeropass.records.numbers import coefficient, percent, plain
from zeropass.records.panels import AsFigure, HeatMap, token_label
from zeropass.records.parameters import Token, html_token
from zeropass.records.tabular import AsTable, Row, plain_fields
from zeropass.tokens.shown import shown_text

__all__ = ["Against", "ChangeFacts", "Contrast", "ContrastWord", "MatrixOverlap", "TensorOverlap"]

SCHEMA_VERSION = 1

NAMED = 5
"""The number of words that a sentence names."""

ChangeRelation = Literal["equal", "rounded", "different", "unrelated"]
"""The relation of two changes: equal, equal but for rounding, different; or one of them is no change of the base."""


@dataclass(frozen=True, repr=False)
class ChangeFacts(ShortRepr):
    """One of the two changes.

    Attributes:
        name: The name of the model after the change.
        sha256: The hash of its weights.
        relative: Norm of the change of all blocks over that of the blocks.
        matrices: The number of matrices of blocks that it changes.
        cosine: Cosine of the base's matrices and the model's, averaged.
    """

    name: str
    sha256: str
    relative: float
    matrices: int
    cosine: float


@dataclass(frozen=True, repr=False)
class MatrixOverlap(ShortRepr):
    """Two changes of one matrix, each by its size and its leading directions.

    Attributes:
        layer: The layer of the matrix.
        role: The role of the matrix.
        first: Norm of the first change over that of the matrix; 0 if it leaves the matrix as it is.
        second: The same of the second change.
        cosine: Cosine of the two changes as vectors; None, as all that follows, unless both change the matrix.
        cosine_null: The standard deviation of that cosine for changes that are turned at random.
        read: Overlap of what the two read: the mean squared cosine of the principal angles of the leading directions.
        read_null: The mean overlap of random subspaces of these dimensions.
        write: Overlap of what the two write.
        write_null: The mean overlap of random subspaces of these dimensions.
        first_directions: The number of leading directions of the first change: its effective rank, at most 16.
        second_directions: The same of the second.
    """

    layer: int
    role: str
    first: float
    second: float
    cosine: float | None = None
    cosine_null: float | None = None
    read: float | None = None
    read_null: float | None = None
    write: float | None = None
    write_null: float | None = None
    first_directions: int | None = None
    second_directions: int | None = None


@dataclass(frozen=True, repr=False)
class TensorOverlap(ShortRepr):
    """Two changes of a tensor that is no matrix of a block.

    Attributes:
        name: The name for readers.
        first: Norm of the first change over that of the tensor; 0 for none, 1 for a new tensor.
        second: The same of the second change.
        cosine: Cosine of the two changes as vectors; None unless both change a tensor that keeps its rows.
    """

    name: str
    first: float
    second: float
    cosine: float | None = None


@dataclass(frozen=True, repr=False)
class ContrastWord(ShortRepr):
    """A word on which two changes act differently, or both.

    Attributes:
        token: The token.
        score: How far it stands out.
        first: Its excess in the first change.
        second: Its excess in the second change.
    """

    token: Token
    score: float
    first: float
    second: float


@dataclass(frozen=True, repr=False)
class Contrast(ShortRepr):
    """The words on one side, ``sees`` or ``writes``, by which of two changes acts on them, from their excesses e.

    Attributes:
        side: The side.
        first: Words on which the first change acts, and the second does not: e₁ − max(e₂, 0).
        second: Words on which the second acts, and the first does not: e₂ − max(e₁, 0).
        both: Words on which both act: min(e₁, e₂).
        alone_null: The score of ``first`` that the best word of one pair of random changes in twenty reaches.
        both_null: The same for ``both``.
    """

    side: str
    first: tuple[ContrastWord, ...]
    second: tuple[ContrastWord, ...]
    both: tuple[ContrastWord, ...]
    alone_null: float
    both_null: float

    def parts(self) -> Iterator[tuple[str, tuple[ContrastWord, ...], float]]:
        """Yield the name of each list, the list, and what chance reaches."""
        yield "A alone", self.first, self.alone_null
        yield "B alone", self.second, self.alone_null
        yield "both", self.both, self.both_null


@dataclass(frozen=True, repr=False)
class Against(ShortRepr, AsTable, AsFigure):
    """A comparison of two changes of one model: what one taught and the other did not.

    Attributes:
        base: The name and the hash of the model before.
        first: The first change, A.
        second: The second change, B.
        relation: The relation of the two changes.
        cosine: Cosine of the two changes as vectors, over all blocks; None if either changes none.
        cosine_null: The standard deviation of that cosine if every change were turned at random.
        matrices: The matrices of blocks that either changes.
        tensors: The other tensors that either changes.
        words: The words on which they act, by side; none if they are equal or unrelated.
        method: Settings of the comparison.

    Example:
        >>> import zeropass as zp
        >>> base = zp.open_model("models/first")
        >>> reviews = zp.adapt(base, "models/tunes/reviews")
        >>> zp.against(base, reviews, reviews).relation
        'equal'
    """

    base: dict[str, Any]
    first: ChangeFacts
    second: ChangeFacts
    relation: ChangeRelation
    cosine: float | None
    cosine_null: float | None
    matrices: tuple[MatrixOverlap, ...]
    tensors: tuple[TensorOverlap, ...]
    words: tuple[Contrast, ...]
    method: dict[str, Any]

    @property
    def shared(self) -> tuple[MatrixOverlap, ...]:
        """The matrices that both change."""
        return tuple(matrix for matrix in self.matrices if matrix.cosine is not None)

    @property
    def verdict(self) -> tuple[str, ...]:
        """The result in sentences; A is the first change and B the second."""
        return tuple(_verdict(self))

    def table_rows(self) -> Iterator[Row]:
        """Yield a row for each matrix of a block that either changes."""
        yield from map(plain_fields, self.matrices)

    def panel(self) -> HeatMap:
        """Return the cosine of the two changes of every matrix that both change: layers across, roles down."""
        cosines = {(matrix.role, matrix.layer): matrix.cosine for matrix in self.shared}
        roles = list(dict.fromkeys(role for role, _ in cosines))
        layers = range(1 + max((layer for _, layer in cosines), default=-1))
        return HeatMap(
            title="Cosine of two changes",
            notes=tuple(f"{letter}: {shown_text(facts.name)}" for letter, facts in _lettered(self)),
            x="layer",
            rows=roles,
            columns=[str(layer) for layer in layers],
            values=[[_number(cosines.get((role, layer))) for layer in layers] for role in roles],
            scale="cosine",
            ends=(0.0, 1.0),
        )

    def _repr_words(self) -> str:
        names = " and ".join(facts.name for _, facts in _lettered(self))
        shared = "" if self.cosine is None else f", cosine {coefficient(self.cosine)}"
        return f"{names}: {self.relation}{shared}, {len(self.shared)} matrices changed by both"

    def _repr_html_(self) -> str:
        lines = "".join(f"<p>{html.escape(shown_text(line, limit=1000))}</p>" for line in self.verdict)
        rows = "".join(
            f"<tr><td>{contrast.side}</td><td>{name}</td><td>{_words_html(words)}</td><td>{plain(null)}</td></tr>"
            for contrast in self.words
            for name, words, null in contrast.parts()
        )
        head = "<tr><th></th><th></th><th>tokens</th><th>chance</th></tr>" if rows else ""
        names = "; ".join(f"{letter}: {html.escape(shown_text(facts.name))}" for letter, facts in _lettered(self))
        return f"<table><caption>{names}</caption>{head}{rows}</table>{lines}"

    def to_json(self) -> dict[str, Any]:
        """Return a dict that `json.dumps` can write."""
        return {"schema": SCHEMA_VERSION, "verdict": list(self.verdict), **asdict(self)}


def _lettered(result: Against) -> tuple[tuple[str, ChangeFacts], tuple[str, ChangeFacts]]:
    return ("A", result.first), ("B", result.second)


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _words_html(words: Sequence[ContrastWord]) -> str:
    return ", ".join(html_token(word.token.token, word.score) for word in words[:10])


def _verdict(result: Against) -> Iterator[str]:
    """Yield the sentences: what the changes have in common, and the words of the differences."""
    if result.relation == "unrelated":
        least = min((facts.cosine, letter) for letter, facts in _lettered(result))
        yield (
            f"{least[1]} is no change of the base: its matrices are no more alike than those of models trained apart "
            f"(mean cosine {coefficient(least[0])}). Nothing is read from it."
        )
        return
    if result.relation != "different":
        yield f"A and B are equal{' but for rounding' if result.relation == 'rounded' else ''}: they make one change."
        return
    yield _sizes(result)
    if result.shared:
        yield from _overlaps(result)
    yield from _tensors(result)
    words = [line for contrast in result.words for line in _contrast(contrast)]
    yield from words or ["No word tells them apart, or is common to both, more than random changes reach."]


def _sizes(result: Against) -> str:
    parts = [
        f"{letter} changes {percent(facts.relative)} of the blocks, in {facts.matrices} matrices"
        if facts.matrices
        else f"{letter} changes no matrix of a block"
        for letter, facts in _lettered(result)
    ]
    return f"{parts[0]}; {parts[1]}. {len(result.shared)} are changed by both."


def _overlaps(result: Against) -> Iterator[str]:
    if result.cosine is not None and result.cosine_null is not None:
        yield (
            f"As vectors the changes have cosine {coefficient(result.cosine)} "
            f"(turned at random: 0 ± {plain(result.cosine_null)})."
        )
    means = [_mean(result.shared, name) for name in ("read", "read_null", "write", "write_null")]
    read, read_null, write, write_null = map(coefficient, means)
    yield (
        f"Their leading directions overlap by {read} in what they read (random ones: {read_null}) "
        f"and by {write} in what they write ({write_null}); 1 is the same subspace."
    )


def _mean(matrices: Sequence[MatrixOverlap], name: str) -> float:
    return fmean(getattr(matrix, name) for matrix in matrices)


def _tensors(result: Against) -> Iterator[str]:
    """Yield a sentence on the tensors outside the matrices of blocks."""
    groups = [
        [tensor.name for tensor in result.tensors if (tensor.first > 0, tensor.second > 0) == changed]
        for changed in ((True, False), (False, True), (True, True))
    ]
    parts = [
        f"{who} {', '.join(names[:NAMED])}{f' and {len(names) - NAMED} more' if len(names) > NAMED else ''}"
        for who, names in zip(("A alone changes", "B alone changes", "both change"), groups, strict=True)
        if names
    ]
    if parts:
        yield f"Outside these matrices {'; '.join(parts)}."


def _contrast(contrast: Contrast) -> Iterator[str]:
    """Yield a sentence for each list of one side in which tokens stand out beyond chance."""
    where = "where it sees" if contrast.side == "sees" else "on writing"
    texts = {
        "A alone": f"A acts {where}, and B does not:",
        "B alone": f"B acts {where}, and A does not:",
        "both": f"Both act {where.replace('it sees', 'they see')}:",
    }
    for name, words, null in contrast.parts():
        tokens = [token_label(word.token.token) for word in words if word.score > null]
        if tokens:
            yield f"{texts[name]} {' '.join(tokens[:NAMED])}"
