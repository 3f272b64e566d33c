"""The types of change that an adapter makes to one parameter, as operations on rows, independent of any model.

A matrix has shape (rows, columns), which for a linear module is (out, in). An embedding has shape (tokens, d), a vector
(rows,).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

__all__ = ["Added", "Change", "Computed", "LowRank", "OfExperts", "Rows", "Scaled"]


class Change(Protocol):
    """A change of one parameter."""

    @property
    def rowwise(self) -> bool:
        """True if each row after the change depends only on the same row before it."""
        ...

    @property
    def shape(self) -> tuple[int | None, ...]:
        """The shape of the parameter that is changed, with None where any size fits."""
        ...

    def applied(self, before: Tensor, start: int = 0) -> Tensor:
        """Return rows after the change.

        Args:
            before: The same rows before the change; all rows, unless the change is `rowwise`.
            start: The index of the first row.
        """
        ...

    def picked(self, index: Tensor) -> "Change":
        """Return the change of the rows ``index`` alone."""
        ...

    def turned(self) -> "Change":
        """Return the change of the transposed matrix."""
        ...


@dataclass(frozen=True, eq=False)
class LowRank:
    """The addition of ``scale · up @ down``.

    Attributes:
        up: The factor (rows, r).
        down: The factor (r, columns).
        scale: The number that multiplies the product.
        magnitude: DoRA's length of each row (``axis`` 0) or column (1) after the change; None without DoRA.
        axis: The axis of ``magnitude``.
    """

    up: Tensor
    down: Tensor
    scale: float
    magnitude: Tensor | None = None
    axis: int = 0

    @property
    def rowwise(self) -> bool:
        """True unless DoRA sets the lengths of columns (`Change.rowwise`)."""
        return self.magnitude is None or self.axis == 0

    @property
    def shape(self) -> tuple[int | None, ...]:
        """The shape of the parameter (`Change.shape`)."""
        return self.up.shape[0], self.down.shape[1]

    def applied(self, before: Tensor, start: int = 0) -> Tensor:
        """Return rows after the change (`Change.applied`)."""
        rows = slice(start, start + before.shape[0])
        added = before + self.up[rows].to(before.device) @ self.down.to(before.device) * self.scale
        if self.magnitude is None:
            return added
        magnitude = (self.magnitude[rows] if self.axis == 0 else self.magnitude).to(before.device)
        lengths: Tensor = added.norm(dim=1 - self.axis)
        return added * (magnitude / lengths).unsqueeze(1 - self.axis)

    def picked(self, index: Tensor) -> "LowRank":
        """Return the change of some rows (`Change.picked`)."""
        lengths = self.magnitude[index] if self.magnitude is not None and self.axis == 0 else self.magnitude
        return replace(self, up=self.up[index], magnitude=lengths)

    def turned(self) -> "LowRank":
        """Return the change of the transposed matrix (`Change.turned`)."""
        return replace(self, up=self.down.T, down=self.up.T, axis=1 - self.axis)


@dataclass(frozen=True, eq=False)
class Scaled:
    """A multiplication of each row (``axis`` 0) or column (1) of a matrix, or each entry of a vector, by a factor."""

    factor: Tensor
    axis: int = 0
    vector: bool = False

    @property
    def rowwise(self) -> bool:
        """Always true (`Change.rowwise`)."""
        return True

    @property
    def shape(self) -> tuple[int | None, ...]:
        """The shape of the parameter (`Change.shape`)."""
        if self.vector:
            return (len(self.factor),)
        return (len(self.factor), None) if self.axis == 0 else (None, len(self.factor))

    def applied(self, before: Tensor, start: int = 0) -> Tensor:
        """Return rows after the change (`Change.applied`)."""
        factor = self.factor.to(before.device)
        if self.axis == 1:
            return before * factor
        factor = factor[start : start + before.shape[0]]
        return before * (factor if self.vector else factor[:, None])

    def picked(self, index: Tensor) -> "Scaled":
        """Return the change of some rows (`Change.picked`)."""
        return replace(self, factor=self.factor[index]) if self.axis == 0 else self

    def turned(self) -> "Scaled":
        """Return the change of the transposed matrix (`Change.turned`)."""
        return replace(self, axis=1 - self.axis)


@dataclass(frozen=True, eq=False)
class Added:
    """The addition of a vector to a vector."""

    shift: Tensor

    @property
    def rowwise(self) -> bool:
        """Always true (`Change.rowwise`)."""
        return True

    @property
    def shape(self) -> tuple[int | None, ...]:
        """The shape of the parameter (`Change.shape`)."""
        return (len(self.shift),)

    def applied(self, before: Tensor, start: int = 0) -> Tensor:
        """Return rows after the change (`Change.applied`)."""
        return before + self.shift[start : start + len(before)].to(before.device)

    def picked(self, index: Tensor) -> "Added":
        """Return the change of some rows (`Change.picked`)."""
        return Added(self.shift[index])

    def turned(self) -> "Added":
        """Return the same change: a vector has no transpose."""
        return self


@dataclass(frozen=True, eq=False)
class Rows:
    """New rows of a table: ``values`` (k, columns) at ``ids`` (k,), each id once."""

    ids: Tensor
    values: Tensor

    @property
    def rowwise(self) -> bool:
        """Always true (`Change.rowwise`)."""
        return True

    @property
    def shape(self) -> tuple[int | None, ...]:
        """The shape of the parameter (`Change.shape`)."""
        return None, self.values.shape[1]

    def applied(self, before: Tensor, start: int = 0) -> Tensor:
        """Return rows after the change (`Change.applied`)."""
        inside = (self.ids >= start) & (self.ids < start + before.shape[0])
        after = before.clone()
        after[(self.ids[inside] - start).to(before.device)] = self.values[inside].to(before.device)
        return after

    def picked(self, index: Tensor) -> "Rows":
        """Raise NotImplementedError: the rows of a table of tokens are never picked."""
        raise NotImplementedError

    def turned(self) -> "Rows":
        """Raise NotImplementedError: a table of tokens is never transposed."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Computed:
    """A new matrix that a function computes from the entire old one."""

    function: Callable[[Tensor], Tensor]
    shape: tuple[int | None, ...]

    @property
    def rowwise(self) -> bool:
        """Always false (`Change.rowwise`)."""
        return False

    def applied(self, before: Tensor, start: int = 0) -> Tensor:  # noqa: ARG002 - `before` holds all rows
        """Return rows after the change (`Change.applied`)."""
        return self.function(before)

    def picked(self, index: Tensor) -> "Computed":
        """Raise NotImplementedError: one part of a fused module does not determine the new matrix."""
        raise NotImplementedError

    def turned(self) -> "Computed":
        """Return the change of the transposed matrix (`Change.turned`)."""
        return Computed(lambda before: self.function(before.T).T, self.shape[::-1])


@dataclass(frozen=True, eq=False)
class OfExperts:
    """Changes of some experts (``parts``) in a parameter that stacks the rows of all.

    Attributes:
        parts: The changes by expert.
        rows: The rows of an expert, by its number.
    """

    parts: Mapping[int, Change]
    rows: Callable[[int], slice]

    @property
    def rowwise(self) -> bool:
        """Always false (`Change.rowwise`)."""
        return False

    @property
    def shape(self) -> tuple[int | None, ...]:
        """Any shape: the change of each expert was checked by itself."""
        return None, None

    def applied(self, before: Tensor, start: int = 0) -> Tensor:  # noqa: ARG002 - `before` holds all rows
        """Return rows after the change (`Change.applied`)."""
        after = before.clone()
        for expert, part in self.parts.items():
            rows = self.rows(expert)
            after[rows] = part.applied(before[rows])
        return after

    def picked(self, index: Tensor) -> "OfExperts":
        """Raise NotImplementedError: experts are never fused with other modules."""
        raise NotImplementedError

    def turned(self) -> "OfExperts":
        """Raise NotImplementedError: the parts are transposed before they are stacked."""
        raise NotImplementedError
