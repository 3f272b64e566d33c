"""The effect of a change on every token, and how much of it needs a cause.

The effect of a change ΔW on a token is ‖ΔW r‖² for the row r that stands for the token, each matrix divided by its mean
over all tokens, summed over matrices. How far a token stands out is the robust z of the root of its effect, a length.

A matrix acts on some tokens more than on others, and any change of it does so too. So a token also has an *excess*: the
robust z of its length divided by the length that the base's own matrices, those that changed, give to it. How high that
gets without a cause is measured on random changes of the base (`random_changes`). docs/audit.md says how well the
excess of what is written tells what was planted from ordinary training.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from zeropass.arch.frame_names import space_of
from zeropass.arch.roles import norm_of, side_of
from zeropass.diff.changes import Change
from zeropass.model.frames import Frames, Rows
from zeropass.model.vectors import is_bare, reads_at
from zeropass.numerics.statistics import quadratic
from zeropass.tokens.vocabulary import Vocabulary

__all__ = ["SIDES", "Effects", "Sum", "excess_of", "robust_z", "word_mask"]

SIDES = {"read": "sees", "write": "writes"}
"""The names of the sides of matrices."""

_TINY = torch.finfo(torch.float32).tiny


@dataclass(eq=False)
class Sum:
    """The effect of some matrices on every token: a Gram matrix for each space, and a total (V,) for each side."""

    grams: dict[str, Tensor] = field(default_factory=dict)
    totals: dict[str, Tensor] = field(default_factory=dict)

    def add(self, rows: Rows, folded: Tensor) -> float:
        """Add a matrix, folded so that the rows meet it, (n, d); return its mean effect on all tokens."""
        square = folded.T @ folded
        wide, mean = square.double(), rows.moments.mean
        usual = float((wide * rows.moments.covariance).sum() + mean @ wide @ mean)
        if usual > 0:
            total = self.grams.setdefault(rows.space, torch.zeros_like(square))
            total += square / usual
        return usual

    def close(self, rows: Rows) -> None:
        """Turn the Gram matrix of a space into effects on its tokens."""
        square = self.grams.pop(rows.space, None)
        if square is not None:
            side = "writes" if rows.space.startswith("output") else "sees"
            # rounding may take the effect of a single direction below zero, where it has no root
            self.totals[side] = quadratic(rows.matrix, square).clamp_min(0) + self.totals.get(side, 0.0)


@dataclass(eq=False)
class Effects:
    """The running effects of a change, and of the base's own matrices that it changes.

    Attributes:
        frames: The frames of the base.
        sides: The sides on which the base's own matrices count, so that there is an excess.
        change: The effect of the change.
        base: The effect of the base's own matrices that changed.
        through: The role of the base's matrices that the change writes through; empty if it writes itself.
    """

    frames: Frames
    sides: tuple[str, ...] = ("writes",)
    change: Sum = field(default_factory=Sum)
    base: Sum = field(default_factory=Sum)
    through: str = ""

    def add(self, change: Change, before: Tensor | None = None) -> tuple[Rows, Tensor, float]:
        """Add the change of a matrix.

        Args:
            change: The change.
            before: The base's own matrix, which is added as well if its side counts.

        Returns:
            The rows that stand for tokens; what was added, folded so that they meet it, (n, d); and its mean effect on
            all tokens.
        """
        rows, folded = self.rows(change.role, change.layer), self.folded(change.root, change.role, change.layer)
        if before is not None and SIDES[side_of(change.role)] in self.sides:
            self.add_base(change.role, change.layer, before)
        return rows, folded, self.change.add(rows, folded)

    def add_base(self, role: str, layer: int, matrix: Tensor) -> Rows:
        """Add a matrix of the base to those that changed; return the rows that stand for tokens."""
        rows = self.rows(role, layer)
        self.base.add(rows, self.folded(matrix, role, layer))
        return rows

    def rows(self, role: str, layer: int) -> Rows:
        """Return the rows that stand for tokens where a role reads or writes."""
        return self.frames.rows(self.space(role, layer))

    def some_rows(self, role: str, layer: int, ids: Tensor) -> Tensor:
        """Return the rows of some tokens where a role reads or writes, (n, d), also of a space that was released."""
        return self.frames.some_rows(self.space(role, layer), ids)

    def folded(self, vectors: Tensor, role: str, layer: int) -> Tensor:
        """Return vectors of a role, folded so that the rows of its space meet them."""
        return self.frames.fold(vectors, _frame(role), side_of(role), norm_of(role), layer)

    def close(self, *spaces: str) -> None:
        """Turn what was gathered for some spaces, or for all, into effects; no more may be added to them."""
        for space in spaces or tuple({**self.change.grams, **self.base.grams}):
            for part in (self.change, self.base):
                part.close(self.frames.rows(space))

    def z(self, side: str, ids: Tensor) -> Tensor:
        """Return how far some tokens stand out on a side that the change acts on, (n,)."""
        return robust_z(self.change.totals[side][ids].sqrt())

    def excess(self, ids: Tensor, side: str = "writes") -> Tensor:
        """Return the excess of some tokens on a side that the change acts on and that counts, (n,)."""
        return excess_of(self.change.totals[side][ids], self.base.totals[side][ids])

    def space(self, role: str, layer: int) -> str:
        """Return the space of the rows that stand for tokens where a role reads or writes."""
        model, side = self.frames.model, side_of(role)
        bare = side == "read" and is_bare(model, layer, role)
        return space_of(_frame(role), side, reads_at(model, layer, role), bare)


def excess_of(effects: Tensor, base: Tensor) -> Tensor:
    """Return the robust z of lengths relative to those that the base's own matrices give, (n,), from both effects."""
    return robust_z((effects / base.clamp_min(_TINY)).sqrt())


def robust_z(values: Tensor) -> Tensor:
    """Return the robust z of values in their rows, (…, n): in deviations as the median absolute one estimates them.

    The factor 1.4826 makes it the standard deviation of a normal distribution. All are 0 if most values of a row are
    equal.
    """
    distances = values - values.median(-1, keepdim=True).values
    spread = 1.4826 * distances.abs().median(-1, keepdim=True).values
    return torch.where(spread > 0, distances / spread, torch.zeros_like(distances))


def word_mask(vocab: Vocabulary, ids: Tensor) -> Tensor:
    """Return which of some tokens are whole words of letters, (n,); all of them where the vocabulary has none.

    Single letters count only in scripts without case, such as Chinese.
    """
    texts = (vocab.text(i).strip() for i in ids.tolist())
    spelled = torch.tensor([text.isalpha() and (len(text) > 1 or text.lower() == text.upper()) for text in texts])
    flags = spelled & torch.from_numpy(vocab.words)[ids.cpu()]
    return (flags if bool(flags.any()) else torch.ones_like(flags)).to(ids.device)


def _frame(role: str) -> str:
    """Return the frame in which a role is read."""
    return "token" if side_of(role) == "read" else "output"
