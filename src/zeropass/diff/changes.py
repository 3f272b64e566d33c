"""The difference of two models, one canonical matrix at a time: size, directions, and whether it is only rounding."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from zeropass.diff.rounding import moved_rows
from zeropass.diff.tensor_rows import Form, TensorRows
from zeropass.errors import BadModel
from zeropass.model.adapted import Adapted
from zeropass.model.model import Model
from zeropass.numerics.factored import Directions, Factored, close_values
from zeropass.numerics.statistics import blocks, quadratic

__all__ = ["Change", "Comparison", "inner", "leading", "values"]

EXTRA, STEPS, SEED = 8, 4, 0
"""Settings of the randomised SVD: surplus directions, power iterations, seed."""


@dataclass(frozen=True, eq=False)
class Change:
    """The change of one matrix.

    Attributes:
        layer: The layer of the matrix.
        role: The role of the matrix.
        added: What was added, (rows, d).
        before: Frobenius norm of the matrix before.
        rounding: True if the change is no more than storing the matrix in another type makes.
        inner: Inner product of the matrix before with what was added.
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
        """As few rows (m, d) as possible with the Gram matrix of the change: R rightᵀ with left = Q R for factors."""
        if isinstance(self.added, Tensor) or self.added.left.shape[0] <= self.added.left.shape[1]:
            return self.dense
        triangle: Tensor = torch.linalg.qr(self.added.left).R
        return triangle @ self.added.right.T

    @cached_property
    def norm(self) -> float:
        """The Frobenius norm of the change, computed in float64."""
        return float(self.root.double().norm())

    @cached_property
    def row_squares(self) -> Tensor:
        """The squared length of each row of the change, (rows,)."""
        if isinstance(self.added, Tensor):
            return self.added.square().sum(1)
        return quadratic(self.added.left, self.added.right.T @ self.added.right).clamp_min(0)

    @property
    def relative(self) -> float:
        """The norm of the change over that of the matrix before (0 over 0 is 0)."""
        return self.norm / self.before if self.before else 0.0

    @property
    def cosine(self) -> float:
        """The cosine of the matrix before and after, number by number: 0 for a matrix of zeros, 1 for no change."""
        if not self.norm:
            return 1.0
        after = math.sqrt(max(self.before**2 + 2 * self.inner + self.norm**2, 0.0))
        return (self.before**2 + self.inner) / (self.before * after) if self.before and after else 0.0

    @cached_property
    def rank(self) -> float:
        """The effective rank (Σσ²)²/Σσ⁴, exact, from the smaller Gram matrix; 0 for no change."""
        root = self.root.double()
        gram = root @ root.T if root.shape[0] < root.shape[1] else root.T @ root
        return float(gram.trace() ** 2 / gram.square().sum()) if self.norm else 0.0


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two models of one architecture, the second made from the first; it keeps no tensor that it reads.

    Attributes:
        base: The model before.
        tuned: The model after.

    Raises:
        BadModel: The models cannot be compared; the message names what differs.
    """

    base: Model
    tuned: Model

    def __post_init__(self) -> None:
        """Raise BadModel for a model that is not a fine-tune of the base."""
        base, tuned = self.base, self.tuned
        if base.layout.gains or tuned.layout.gains:
            raise BadModel(
                f"{base.name}: experts that have norms of their own are read with the gains of these, and a comparison "
                "could not tell what changed."
            )
        if (base.family.name, base.family.stack) != (tuned.family.name, tuned.family.stack):
            raise BadModel(f"{tuned.name} is a {_family(tuned)}, {base.name} a {_family(base)}: nothing to compare.")
        sizes = (
            *("layers", "d", "embed", "heads", "kv_heads", "head_dim", "neurons", "experts"),
            *("shared_neurons", "dense", "dense_neurons", "value_dim", "gate_dim", "q_latent", "kv_latent"),
            *("mixer", "mixer_layers", "no_attention", "no_mlp"),
            *("by_layer", "key_valued", "kv_layers", "ple", "laurel", "streams"),
        )
        for size in sizes:
            before, after = getattr(base.dims, size), getattr(tuned.dims, size)
            if before != after:
                raise BadModel(
                    f"{tuned.name} is no fine-tune of {base.name}: {size} is {after}, and {before} in the base."
                )

        if base.family.vector_roles != tuned.family.vector_roles:
            before, after = (", ".join(model.family.vector_roles) for model in (base, tuned))
            raise BadModel(
                f"{tuned.name} is no fine-tune of {base.name}: its blocks have {after}, those of it {before}."
            )

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles of the matrices of a block."""
        return self.base.family.vector_roles

    def changes(self, layer: int) -> Iterator[Change]:
        """Yield the changes of the matrices of one layer, without those that are equal."""
        for role in self.base.matrices(layer):
            change = self.change(role, layer)
            if change.norm:
                yield change

    @cached_property
    def adapted(self) -> Adapted | None:
        """The model after, if it is the base with an adapter on it, which knows what it changes."""
        tuned = self.tuned
        of_base = isinstance(tuned, Adapted) and (
            tuned.base is self.base or tuned.base.fingerprint == self.base.fingerprint
        )
        return tuned if isinstance(tuned, Adapted) and of_base else None

    def change(self, what: str, layer: int = 0, before: Tensor | None = None) -> Change:
        """Return the change of one matrix; ``before`` is the base's, if it was read already."""
        before = self.base.matrix(what, layer) if before is None else before
        length = float(before.double().norm())
        if self.adapted is not None and (what, layer) not in self.adapted.replaced:
            added = self.adapted.change(what, layer)
            added = torch.zeros_like(before) if added is None else added
            return Change(layer=layer, role=what, added=added, before=length, inner=inner(before, added))
        after = self.tuned.matrix(what, layer)
        added = after - before
        return Change(
            layer=layer,
            role=what,
            added=added,
            before=length,
            rounding=self.rounded(what, layer, before, after),
            inner=inner(before, added),
        )

    def added(self, what: str, layer: int = 0) -> Factored | Tensor:
        """Return what was added to a matrix that changed, without its size before and whether it is rounding."""
        tuned = self.tuned
        if isinstance(tuned, Adapted) and (what, layer) not in tuned.replaced:
            added = tuned.change(what, layer)
            if added is not None:
                return added
        return tuned.matrix(what, layer) - self.base.matrix(what, layer)

    def touched(self, what: str, layer: int = 0) -> bool:
        """Tell whether a tensor may differ; an adapter knows which ones it leaves alone, without reading them."""
        return self.adapted is None or self.adapted.touches(what, layer)

    def differs(self, what: str, layer: int = 0) -> bool:
        """Tell whether a matrix or a vector changed by more than rounding."""
        if not self.touched(what, layer):
            return False
        before, after = values(self.base, what, layer), values(self.tuned, what, layer)
        if before is None or after is None:
            return before is not after
        same = before.shape == after.shape and torch.equal(before, after)
        return not same and not (before.shape == after.shape and self.rounded(what, layer, before, after))

    def rounded(self, what: str, layer: int, before: Tensor, after: Tensor) -> bool:
        """Tell whether two tensors differ, but no more than if one were stored in the type of the other.

        A product does so if its factors do.
        """
        if factors := self.base.layout.factors_of(what):
            return not any(self.differs(factor, layer) for factor in factors)
        form: Form = "rows" if before.ndim == 2 else "vector"
        sides = [TensorRows(model=model, what=what, layer=layer, form=form) for model in (self.base, self.tuned)]
        old, new = (tensor.reshape(-1, tensor.shape[-1]) for tensor in (before, after))
        moved, rounded = moved_rows(sides[0], sides[1], old, new)
        return rounded and not bool(moved.any())


def inner(before: Tensor, added: Factored | Tensor) -> float:
    """Return the inner product of a matrix with what was added to it."""
    if isinstance(added, Factored):
        return float(((before @ added.right) * added.left).double().sum())
    return sum(float((before[part].double() * added[part].double()).sum()) for part in blocks(len(before)))


def _family(model: Model) -> str:
    """Return the name of the family, with that of the stack if the family has two."""
    return f"{model.family.name} {model.family.stack}".rstrip()


def values(model: Model, what: str, layer: int = 0) -> Tensor | None:
    """Return a canonical tensor, be it a matrix or a vector, or None if the model does not have it."""
    if not model.has(what):
        return None
    return model.vector(what, layer) if model.is_vector(what) else model.matrix(what, layer)


def leading(change: Change, k: int) -> tuple[Directions, float]:
    """Return the strongest directions of a change, with a bound of their error.

    The directions of a factored change are exact: QR of the factors, then the SVD of the r x r product. Those of a full
    matrix come from randomised subspace iteration (Halko, Martinsson and Tropp 2011, algorithm 4.4).

    Args:
        change: The change of a matrix.
        k: The number of directions.

    Returns:
        The directions, and the largest residual ‖Δv − σu‖ relative to the largest value: each value lies within it of a
        true one.
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
