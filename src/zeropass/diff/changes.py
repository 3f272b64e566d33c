"""The difference of two models, a canonical matrix at a time: told from rounding, measured, cut into directions."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from zeropass.diff.rounding import moved_rows
from zeropass.diff.tensor_rows import Form, Held
from zeropass.errors import BadModel
from zeropass.model.adapted import Adapted
from zeropass.model.model import Model
from zeropass.numerics.factored import Directions, Factored, close_values
from zeropass.numerics.statistics import blocks

__all__ = ["Change", "Comparison", "leading", "values"]

EXTRA, STEPS, SEED = 8, 4, 0
"""Of the randomised SVD: directions more than asked for, power iterations, seed."""


@dataclass(frozen=True, eq=False)
class Change:
    """What was added to one matrix (rows, d); ``rounding`` says that it is only what another type stores.

    ``before`` is the norm of the matrix, ``inner`` its inner product with what was added.
    """

    layer: int
    role: str
    added: Factored | Tensor
    before: float
    rounding: bool = False
    inner: float = 0.0

    @cached_property
    def dense(self) -> Tensor:
        """The change as a matrix (rows, d)."""
        return self.added if isinstance(self.added, Tensor) else self.added.left @ self.added.right.T

    @cached_property
    def root(self) -> Tensor:
        """Few rows (m, d) with the change's own Gram matrix: R right' of left = Q R where it has factors."""
        if isinstance(self.added, Tensor) or self.added.left.shape[0] <= self.added.left.shape[1]:
            return self.dense
        turn: Tensor = torch.linalg.qr(self.added.left).R
        return turn @ self.added.right.T

    @cached_property
    def norm(self) -> float:
        """Frobenius norm of the change, float64."""
        return float(self.dense.double().norm())

    @property
    def relative(self) -> float:
        """Norm of the change over that of the matrix before (0 over 0 is 0)."""
        return self.norm / self.before if self.before else 0.0

    @property
    def cosine(self) -> float:
        """Cosine between the matrix before and after, number by number (0 for a matrix of zeros, 1 for no change)."""
        if not self.norm:
            return 1.0
        after = math.sqrt(max(self.before**2 + 2 * self.inner + self.norm**2, 0.0))
        return (self.before**2 + self.inner) / (self.before * after) if self.before and after else 0.0

    @cached_property
    def rank(self) -> float:
        """Effective rank (Σσ²)²/Σσ⁴, exact, from the d x d Gram matrix; 0 for no change."""
        gram = self.dense.double().T @ self.dense.double()
        return float(gram.trace() ** 2 / gram.square().sum()) if self.norm else 0.0


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two models of one architecture; ``tuned`` is the base with something changed. Nothing is kept of what is read.

    Raises BadModel, naming what differs, for models that cannot be compared.
    """

    base: Model
    tuned: Model

    def __post_init__(self) -> None:
        """Refuse what is no fine-tune of the base."""
        base, tuned = self.base, self.tuned
        if (base.family.name, base.family.stack) != (tuned.family.name, tuned.family.stack):
            raise BadModel(f"{tuned.name} is a {_kind(tuned)}, {base.name} a {_kind(base)}: nothing to compare.")
        sizes = ("layers", "d", "embed", "heads", "kv_heads", "head_dim", "neurons", "experts")
        for size in sizes:
            own, other = getattr(base.dims, size), getattr(tuned.dims, size)
            if own != other:
                raise BadModel(
                    f"{tuned.name} is no fine-tune of {base.name}: {size} is {other}, and {own} in the base."
                )

        if base.family.vector_roles != tuned.family.vector_roles:
            own, other = (", ".join(model.family.vector_roles) for model in (base, tuned))
            raise BadModel(f"{tuned.name} is no fine-tune of {base.name}: its blocks have {other}, those of it {own}.")

    @property
    def roles(self) -> tuple[str, ...]:
        """The matrices of a block."""
        return self.base.family.vector_roles

    def changes(self, layer: int) -> Iterator[Change]:
        """The changes of one layer's matrices; those that are equal are left out."""
        for role in self.roles:
            found = self.change(role, layer)
            if found.norm:
                yield found

    def change(self, what: str, layer: int = 0) -> Change:
        """The change of one matrix."""
        before = self.base.matrix(what, layer)
        length = float(before.double().norm())
        if isinstance(self.tuned, Adapted) and (what, layer) not in self.tuned.replaced:
            added = self.tuned.change(what, layer)
            added = torch.zeros_like(before) if added is None else added
            return Change(layer, what, added, length, inner=_inner(before, added))
        after = self.tuned.matrix(what, layer)
        added = after - before
        return Change(layer, what, added, length, self.rounded(what, layer, before, after), _inner(before, added))

    def touched(self, what: str, layer: int = 0) -> bool:
        """Whether a tensor may differ: an adapter says which ones it leaves alone, without reading them."""
        tuned = self.tuned
        return not isinstance(tuned, Adapted) or tuned.touches(what, layer)

    def differs(self, what: str, layer: int = 0) -> bool:
        """Whether a matrix or a vector changed, by more than rounding."""
        if not self.touched(what, layer):
            return False
        before, after = values(self.base, what, layer), values(self.tuned, what, layer)
        if before is None or after is None:
            return before is not after
        same = before.shape == after.shape and torch.equal(before, after)
        return not same and not (before.shape == after.shape and self.rounded(what, layer, before, after))

    def rounded(self, what: str, layer: int, before: Tensor, after: Tensor) -> bool:
        """Whether two tensors differ, and no more than storing one of them in the other's type makes them differ."""
        form: Form = "rows" if before.ndim == 2 else "vector"
        sides = [Held(model, what, layer, form) for model in (self.base, self.tuned)]
        old, new = (values.reshape(-1, values.shape[-1]) for values in (before, after))
        moved, rounded = moved_rows(sides[0], sides[1], old, new)
        return rounded and not bool(moved.any())


def _inner(before: Tensor, added: Factored | Tensor) -> float:
    """The inner product of a matrix with what was added to it."""
    if isinstance(added, Factored):
        return float(((before @ added.right) * added.left).double().sum())
    return sum(float((before[part].double() * added[part].double()).sum()) for part in blocks(len(before)))


def _kind(model: Model) -> str:
    """The family, with the stack if it has two."""
    return f"{model.family.name} {model.family.stack}".rstrip()


def values(model: Model, what: str, layer: int = 0) -> Tensor | None:
    """A canonical matrix or vector, whichever it is; None if the model has none."""
    if not model.has(what):
        return None
    return model.vector(what, layer) if model.is_vector(what) else model.matrix(what, layer)


def leading(change: Change, k: int) -> tuple[Directions, float]:
    """The ``k`` strongest directions of a change, and how far their values may be off, relative to the largest.

    Exact for factors (QR, then the SVD of what is r x r). For a full matrix by randomised subspace iteration (Halko,
    Martinsson and Tropp 2011, algorithm 4.4), with the largest residual ‖Δv − σu‖ as its error: a value lies no farther
    from a true one than that.
    """
    if isinstance(change.added, Factored):
        return change.added.svd(k), 0.0
    matrix = change.added
    count = min(k + EXTRA, *matrix.shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        left, values, right = torch.svd_lowrank(matrix, q=count, niter=STEPS)
    residual = (matrix @ right - left * values).norm(dim=0)[:k].max()
    residual = torch.maximum(residual, (matrix.T @ left - right * values).norm(dim=0)[:k].max())
    close = close_values(values)[:k]
    error = float(residual / values[0]) if float(values[0]) > 0 else 0.0
    return Directions(values[:k], left[:, :k], right[:, :k], close), error
