"""Compare two changes of one model: how far they do the same, and on which tokens one acts and the other does not.

Words are told apart by their excess, and chance is what pairs of random changes of the base reach, as in the verdict on
one change (`effects`, `random_changes`).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from zeropass._io.progress import Progress, callback, shows_progress
from zeropass.arch.roles import BY_TOKEN, side_of
from zeropass.diff.against_results import (
    Against,
    ChangeFacts,
    ChangeRelation,
    Contrast,
    ContrastWord,
    MatrixOverlap,
    TensorOverlap,
)
from zeropass.diff.changes import Change, Comparison, inner, leading
from zeropass.diff.effects import SIDES, Effects, word_mask
from zeropass.diff.random_changes import DRAWS, RandomChanges
from zeropass.diff.relations import UNRELATED
from zeropass.diff.results import TensorChange
from zeropass.diff.tensor_rows import BLOCK, rows_of
from zeropass.diff.tensors import constants, tensor_changes, unread_changes
from zeropass.lens import Lens
from zeropass.model.adapted import Adapted
from zeropass.model.frames import Frames
from zeropass.model.kept_rows import KeptFrames
from zeropass.model.model import Model
from zeropass.model.opening import ModelLike, open_model, open_tuned
from zeropass.numerics.statistics import blocks
from zeropass.records.parameters import Token

__all__ = ["against", "contrast", "overlap"]

DIRECTIONS, TOKENS = 16, 20
"""Limits: leading directions of a change, words of a list."""

NOISE = 1e-5
"""The distance of two changes, relative to the larger, that the order of sums in float32 can make."""

SMALLEST = 1e-6
"""A singular value below this share of the largest is rounding."""


@shows_progress
def against(
    base: ModelLike,
    first: ModelLike,
    second: ModelLike,
    *,
    frames: Frames | None = None,
    progress: Progress | bool = True,
) -> Against:
    """Return what one change of a model taught and another did not.

    Args:
        base: The model before, or its name.
        first: The model after the first change, its name, or the folder of an adapter of the base.
        second: The same of the second change.
        frames: The frames of the base, if they exist already.
        progress: True for a bar in a notebook or on a terminal, False for none; or a function that is called with the
            stage, the step and the number of steps.

    Returns:
        The comparison. With the changes exchanged it is the same, mirrored.

    Raises:
        BadModel: The models cannot be compared.

    Example:
        >>> import zeropass as zp
        >>> result = zp.against("models/first", "models/tunes/reviews", "models/first")
        >>> result.first.matrices, result.second.matrices, result.cosine
        (14, 0, None)
    """
    report = callback(progress)
    base = open_model(base)
    work = _Work(
        base=base, first=open_tuned(base, first), second=open_tuned(base, second), frames=frames or KeptFrames(base)
    )
    for layer in range(base.dims.layers):
        report("comparing", layer, base.dims.layers + 1)
        work.add_layer(layer)
    report("summing up", base.dims.layers, base.dims.layers + 1)
    return work.finish()


def overlap(first: Tensor, second: Tensor) -> tuple[float, float]:
    """Return the overlap of two subspaces, and the mean overlap of random ones of their dimensions.

    Args:
        first: An orthonormal basis, (n, j).
        second: Another, (n, k).

    Returns:
        The mean squared cosine of the min(j, k) principal angles, and max(j, k)/n, its mean where either subspace is
        turned at random.
    """
    n, (j, k) = first.shape[0], (first.shape[1], second.shape[1])
    squares = float((first.double().T @ second.double()).square().sum())
    return min(squares / min(j, k), 1.0), max(j, k) / n


@dataclass(frozen=True, eq=False)
class Contrasted:
    """Scores of words (n,) by which of two changes acts on them, with what chance reaches.

    Attributes:
        first: The excess of the first change, (n,).
        second: That of the second, (n,).
        alone: Scores of the words of the first change alone, of the second alone, and of both.
        alone_null: The score that the best word of one pair of random changes in twenty reaches by one of them alone.
        both_null: The same by both.
    """

    first: Tensor
    second: Tensor
    alone: tuple[Tensor, Tensor, Tensor]
    alone_null: float
    both_null: float


def contrast(first: Tensor, second: Tensor, random: Tensor) -> Contrasted:
    """Return the words on which one of two changes acts and the other does not, and those on which both act.

    Args:
        first: The excess of words in the first change, (n,).
        second: That in the second, (n,).
        random: That in each random change, (draws, n), of which all pairs are chance.
    """
    count = len(random)
    pairs = [_scores(random[a], random[b]) for a in range(count) for b in range(count) if a != b]
    best = torch.tensor([[float(alone.max()), float(both.max())] for alone, _, both in pairs])
    alone_null, both_null = best.quantile(0.95, dim=0).tolist()
    scores = _scores(first, second)
    return Contrasted(first=first, second=second, alone=scores, alone_null=alone_null, both_null=both_null)


def _scores(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the scores of words of the first change alone, of the second alone, and of both."""
    return first - second.clamp_min(0), second - first.clamp_min(0), torch.minimum(first, second)


@dataclass(eq=False)
class _Work:
    """The running results of one comparison."""

    base: Model
    first: Model
    second: Model
    frames: Frames
    matrices: list[MatrixOverlap] = field(default_factory=list)
    states: set[str] = field(default_factory=set)
    before: float = 0.0
    squares: list[float] = field(default_factory=lambda: [0.0, 0.0])
    counts: list[int] = field(default_factory=lambda: [0, 0])
    cosines: list[list[float]] = field(default_factory=lambda: [[], []])
    product: float = 0.0
    variance: float = 0.0

    def __post_init__(self) -> None:
        self.pairs = Comparison(self.base, self.first), Comparison(self.base, self.second)
        self.between = Comparison(self.first, self.second)
        self.ids = Lens.over(self.frames, with_coherence=False).view("default").ids
        self.words = word_mask(self.base.vocab, self.ids)
        self.effects = Effects(self.frames, (*SIDES.values(),)), Effects(self.frames, (*SIDES.values(),))

    def add_layer(self, layer: int) -> None:
        """Compare the changes of the matrices of one layer."""
        for role in self.base.matrices(layer):
            before = self.base.matrix(role, layer)
            changes = tuple(pair.change(role, layer, before) for pair in self.pairs)
            self.before += changes[0].before ** 2
            for n, change in enumerate(changes):
                self.cosines[n].append(change.cosine)
                if _is_real(change):
                    self.squares[n] += change.norm**2
                    self.counts[n] += 1
                    self.effects[n].add(change, before)
            if any(change.norm for change in changes):
                self._compare(*changes)
        if layer == 0:  # no later layer reads the embedding itself
            for effects in self.effects:
                effects.close("embedded")
            self.frames.release("embedded")
        elif layer == 1:  # the rows that later layers need exist by now
            self.base.forget()

    def _compare(self, first: Change, second: Change) -> None:
        """Add two changes of one matrix, of which at least one is no zero."""
        self.states.add(self._state(first, second))
        if not (_is_real(first) or _is_real(second)):
            return
        matrix = MatrixOverlap(
            layer=first.layer,
            role=first.role,
            first=first.relative if _is_real(first) else 0.0,
            second=second.relative if _is_real(second) else 0.0,
        )
        if _is_real(first) and _is_real(second):
            product, sizes, numbers = inner(first.dense, second.dense), first.norm * second.norm, first.dense.numel()
            self.product += product
            self.variance += sizes**2 / numbers
            matrix = replace(
                _with_subspaces(matrix, first, second), cosine=product / sizes, cosine_null=1 / math.sqrt(numbers)
            )
        self.matrices.append(matrix)

    def _state(self, first: Change, second: Change) -> str:
        """Tell whether two changes of a matrix are equal, equal but for rounding, or different."""
        distance = float((first.dense - second.dense).norm())
        if not distance:
            return "equal"
        if distance <= NOISE * max(first.norm, second.norm):
            return "rounded"
        if isinstance(self.first, Adapted) and isinstance(self.second, Adapted):
            return "changed"
        what, layer = first.role, first.layer
        after = (model.matrix(what, layer) for model in (self.first, self.second))
        return "rounded" if self.between.rounded(what, layer, *after) else "changed"

    def finish(self) -> Against:
        """Return the comparison."""
        for effects in self.effects:
            effects.close()
        tensors = tuple(self._tensors())
        lengths = math.sqrt(self.squares[0] * self.squares[1])
        facts = [self._facts(n, model) for n, model in enumerate((self.first, self.second))]
        relation = self._relation(facts)
        return Against(
            base={"name": self.base.name, "sha256": self.base.fingerprint},
            first=facts[0],
            second=facts[1],
            relation=relation,
            cosine=self.product / lengths if lengths else None,
            cosine_null=math.sqrt(self.variance) / lengths if lengths else None,
            matrices=tuple(self.matrices),
            tensors=tensors,
            words=tuple(self._contrasts()) if relation == "different" else (),
            method={"directions": DIRECTIONS, "draws": DRAWS, "words": int(self.words.sum())},
        )

    def _facts(self, n: int, model: Model) -> ChangeFacts:
        return ChangeFacts(
            name=model.name,
            sha256=model.fingerprint,
            relative=math.sqrt(self.squares[n] / self.before) if self.before else 0.0,
            matrices=self.counts[n],
            cosine=sum(self.cosines[n]) / len(self.cosines[n]),
        )

    def _relation(self, facts: list[ChangeFacts]) -> ChangeRelation:
        """Return the relation of the two changes; an adapter is a change of its base, however large."""
        models = self.first, self.second
        if any(f.cosine < UNRELATED and not isinstance(m, Adapted) for f, m in zip(facts, models, strict=True)):
            return "unrelated"
        differing = (*tensor_changes(self.between)[0], *unread_changes(self.between))
        states = self.states | {t.state for t in differing if t.read or t.state in ("changed", "replaced")}
        same_tokens = self.first.vocab.pieces == self.second.vocab.pieces
        if states - {"equal", "rounded"} or any(constants(self.between)) or not same_tokens:
            return "different"
        return "rounded" if "rounded" in states else "equal"

    def _tensors(self) -> Iterator[TensorOverlap]:
        """Yield the tensors outside the matrices of blocks that either change changes."""
        sides = [
            {t.name: t for t in (*tensor_changes(pair)[0], *unread_changes(pair)) if t.state != "rounded"}
            for pair in self.pairs
        ]
        for name in dict.fromkeys((*sides[0], *sides[1])):
            first, second = (side.get(name) for side in sides)
            yield TensorOverlap(
                name=name,
                first=first.relative if first else 0.0,
                second=second.relative if second else 0.0,
                cosine=self._tensor_cosine(first, second) if first and second else None,
            )

    def _tensor_cosine(self, first: TensorChange, second: TensorChange) -> float | None:
        """Return the cosine of two changes of a tensor whose rows stand for the same in all three models."""
        if not (first.read and first.state == second.state == "changed"):
            return None
        models = self.base, self.first, self.second
        tables = [table for model in models if (table := rows_of(model, first.what, first.layer or 0)) is not None]
        by_token = first.what in BY_TOKEN and len({tuple(model.vocab.pieces) for model in models}) > 1
        if by_token or len(tables) < len(models) or len({(table.rows, table.width) for table in tables}) > 1:
            return None
        sums = torch.zeros(3, dtype=torch.float64)
        for part in blocks(tables[0].rows, BLOCK):
            before, *after = (table.read(part.start, part.stop).double() for table in tables)
            a, b = (rows - before for rows in after)
            sums += torch.stack([(a * b).sum(), a.square().sum(), b.square().sum()]).cpu()
        lengths = float((sums[1] * sums[2]).sqrt())
        return float(sums[0]) / lengths if lengths else None

    def _contrasts(self) -> Iterator[Contrast]:
        """Yield the words of each side on which either change acts."""
        for side in SIDES.values():
            acting = [side in effects.change.totals for effects in self.effects]
            if any(acting):
                first, second = (
                    effects.excess(self.ids, side)[self.words] if acts else torch.zeros(int(self.words.sum()))
                    for effects, acts in zip(self.effects, acting, strict=True)
                )
                random = RandomChanges(frames=self.frames, ids=self.ids, words=self.words, side=side).excess[
                    :, self.words
                ]
                yield self._contrast(side, contrast(first, second.to(first), random))

    def _contrast(self, side: str, scores: Contrasted) -> Contrast:
        first, second, both = (tuple(self._words(scores, alone)) for alone in scores.alone)
        return Contrast(
            side=side,
            first=first,
            second=second,
            both=both,
            alone_null=scores.alone_null,
            both_null=scores.both_null,
        )

    def _words(self, scores: Contrasted, alone: Tensor) -> Iterator[ContrastWord]:
        """Yield the words with the highest of some scores, if they are above zero."""
        best, ids = alone.topk(min(TOKENS, len(alone))), self.ids[self.words]
        for value, place in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            if value <= 0:
                return
            number = int(ids[place])
            yield ContrastWord(
                token=Token(number, self.base.vocab.label(number)),
                score=value,
                first=float(scores.first[place]),
                second=float(scores.second[place]),
            )


def _is_real(change: Change) -> bool:
    """Tell whether a matrix changed by more than rounding."""
    return bool(change.norm) and not change.rounding


def _with_subspaces(matrix: MatrixOverlap, first: Change, second: Change) -> MatrixOverlap:
    """Add the overlaps of the leading directions of two changes, on both sides of the matrix."""
    bases = [_leading(change) for change in (first, second)]
    inside, stream = (overlap(*sides) for sides in zip(*bases, strict=True))
    read, write = (stream, inside) if side_of(first.role) == "read" else (inside, stream)
    return replace(
        matrix,
        read=read[0],
        read_null=read[1],
        write=write[0],
        write_null=write[1],
        first_directions=bases[0][0].shape[1],
        second_directions=bases[1][0].shape[1],
    )


def _leading(change: Change) -> tuple[Tensor, Tensor]:
    """Return orthonormal bases (rows, k) and (d, k) of the leading directions; k is the effective rank."""
    directions, _ = leading(change, DIRECTIONS)
    real = int((directions.values > SMALLEST * directions.values[0]).sum())
    k = max(1, min(round(change.rank), real))
    return directions.left[:, :k], directions.right[:, :k]
