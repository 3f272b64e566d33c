"""The difference of two models, a canonical matrix at a time: told from rounding, measured, cut into directions."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from zeropass.adapted import Adapted
from zeropass.delta.verdict import FAR_LESS
from zeropass.errors import BadModel
from zeropass.factored import Directions, Factored, close_values
from zeropass.model import Model
from zeropass.sources.gguf import storing_error

__all__ = ["Change", "Comparison", "leading", "values"]

ALL_ROUNDED = 0.999
"""A matrix is a rounded copy if at least so many of its numbers are what rounding the other's gives."""

SOME = slice(0, 16)
"""Rows, as they lie in the file, that are looked at first."""

EXTRA, STEPS, SEED = 8, 4, 0
"""Of the randomised SVD: directions more than asked for, power iterations, seed."""


@dataclass(frozen=True, eq=False)
class Change:
    """What was added to one matrix (rows, d); ``rounding`` says that it is only what another type stores."""

    layer: int
    role: str
    added: Factored | Tensor
    before: float
    rounding: bool = False

    @cached_property
    def dense(self) -> Tensor:
        """The change as a matrix (rows, d)."""
        return self.added if isinstance(self.added, Tensor) else self.added.left @ self.added.right.T

    @cached_property
    def norm(self) -> float:
        """Frobenius norm of the change, float64."""
        return float(self.dense.double().norm())

    @property
    def relative(self) -> float:
        """Norm of the change over that of the matrix before (0 over 0 is 0)."""
        return self.norm / self.before if self.before else 0.0

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
        sizes = ("layers", "d", "heads", "kv_heads", "head_dim", "neurons", "experts")
        for size in sizes:
            own, other = getattr(base.dims, size), getattr(tuned.dims, size)
            if own != other:
                raise BadModel(
                    f"{tuned.name} is no fine-tune of {base.name}: {size} is {other}, and {own} in the base."
                )

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
            return Change(layer, what, torch.zeros_like(before) if added is None else added, length)
        after = self.tuned.matrix(what, layer)
        return Change(layer, what, after - before, length, self.rounded(what, layer, before, after))

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
        return not same and not self.rounded(what, layer, before, after)

    def rounded(self, what: str, layer: int, before: Tensor, after: Tensor) -> bool:
        """Whether one of two tensors is what storing the other in its own type gives."""
        return any(
            _is_rounded(model, what, layer, narrow, wide)
            for model, narrow, wide in ((self.tuned, after, before), (self.base, before, after))
        )


def _kind(model: Model) -> str:
    """The family, with the stack if it has two."""
    return f"{model.family.name} {model.family.stack}".rstrip()


def _is_rounded(model: Model, what: str, layer: int, narrow: Tensor, wide: Tensor) -> bool:
    if torch.equal(narrow, wide):
        return False
    usual = storing_error(model.stored_type(what, layer))
    if usual is not None and float((narrow - wide).norm()) < FAR_LESS * usual * float(wide.norm()):
        return False  # the other began from this very file: what moved is too small to be seen once it is stored again
    record = model.layout.tensors.get(what)
    across = record is not None and record.transpose
    for part in (SOME, slice(None)):  # some first: quantising anew takes longer than all else
        some, other = (one[:, part] if across and one.ndim == 2 else one[part] for one in (narrow, wide))
        stored = model.as_stored(what, layer, other)
        if stored is None or float((stored == some).float().mean()) < ALL_ROUNDED:
            return False
    return True


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
