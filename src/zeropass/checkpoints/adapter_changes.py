"""The kinds of change that an adapter makes to one parameter, as operations on rows; nothing here knows a model.

A matrix is taken as (rows, columns), as a linear module has it: (out, in). An embedding is (tokens, d). A vector is
(rows,).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

__all__ = ["Added", "Change", "Computed", "LowRank", "OfExperts", "Rows", "Scaled"]


class Change(Protocol):
    """What is done to one parameter."""

    @property
    def rowwise(self) -> bool:
        """Whether a row after the change depends on the same row before it, and on no other."""
        ...

    @property
    def shape(self) -> tuple[int | None, ...]:
        """Shape of the parameter that it is for, None where any size will do."""
        ...

    def applied(self, before: Tensor, start: int = 0) -> Tensor:
        """Return the rows ``start, start + 1 …`` after the change; all of them, unless it is `rowwise`."""
        ...

    def picked(self, index: Tensor) -> "Change":
        """Return the change of these rows alone."""
        ...

    def turned(self) -> "Change":
        """Return the change of the transposed matrix."""
        ...


@dataclass(frozen=True, eq=False)
class LowRank:
    """``scale · up @ down`` is added, up (rows, r), down (r, columns).

    ``magnitude`` is DoRA's: the length that each row (``axis`` 0) or column (1) has afterwards.
    """

    up: Tensor
    down: Tensor
    scale: float
    magnitude: Tensor | None = None
    axis: int = 0

    @property
    def rowwise(self) -> bool:
        """As `Change.rowwise`."""
        return self.magnitude is None or self.axis == 0

    @property
    def shape(self) -> tuple[int | None, ...]:
        """As `Change.shape`."""
        return self.up.shape[0], self.down.shape[1]

    def applied(self, before: Tensor, start: int = 0) -> Tensor:
        """As `Change.applied`."""
        rows = slice(start, start + before.shape[0])
        added = before + self.up[rows].to(before.device) @ self.down.to(before.device) * self.scale
        if self.magnitude is None:
            return added
        magnitude = (self.magnitude[rows] if self.axis == 0 else self.magnitude).to(before.device)
        lengths: Tensor = added.norm(dim=1 - self.axis)
        return added * (magnitude / lengths).unsqueeze(1 - self.axis)

    def picked(self, index: Tensor) -> "LowRank":
        """As `Change.picked`."""
        lengths = self.magnitude[index] if self.magnitude is not None and self.axis == 0 else self.magnitude
        return replace(self, up=self.up[index], magnitude=lengths)

    def turned(self) -> "LowRank":
        """As `Change.turned`."""
        return replace(self, up=self.down.T, down=self.up.T, axis=1 - self.axis)


@dataclass(frozen=True, eq=False)
class Scaled:
    """Each row (``axis`` 0) or column (1) of a matrix, or each number of a vector, is multiplied by one of its own."""

    factor: Tensor
    axis: int = 0
    vector: bool = False

    @property
    def rowwise(self) -> bool:
        """As `Change.rowwise`."""
        return True

    @property
    def shape(self) -> tuple[int | None, ...]:
        """As `Change.shape`."""
        if self.vector:
            return (len(self.factor),)
        return (len(self.factor), None) if self.axis == 0 else (None, len(self.factor))

    def applied(self, before: Tensor, start: int = 0) -> Tensor:
        """As `Change.applied`."""
        factor = self.factor.to(before.device)
        if self.axis == 1:
            return before * factor
        factor = factor[start : start + before.shape[0]]
        return before * (factor if self.vector else factor[:, None])

    def picked(self, index: Tensor) -> "Scaled":
        """As `Change.picked`."""
        return replace(self, factor=self.factor[index]) if self.axis == 0 else self

    def turned(self) -> "Scaled":
        """As `Change.turned`."""
        return replace(self, axis=1 - self.axis)


@dataclass(frozen=True, eq=False)
class Added:
    """A vector is added to a vector."""

    shift: Tensor

    @property
    def rowwise(self) -> bool:
        """As `Change.rowwise`."""
        return True

    @property
    def shape(self) -> tuple[int | None, ...]:
        """As `Change.shape`."""
        return (len(self.shift),)

    def applied(self, before: Tensor, start: int = 0) -> Tensor:
        """As `Change.applied`."""
        return before + self.shift[start : start + len(before)].to(before.device)

    def picked(self, index: Tensor) -> "Added":
        """As `Change.picked`."""
        return Added(self.shift[index])

    def turned(self) -> "Added":
        """As `Change.turned`; a vector stays as it is."""
        return self


@dataclass(frozen=True, eq=False)
class Rows:
    """Some rows of a table are others: ``values`` (k, columns) at ``ids`` (k,), each id once."""

    ids: Tensor
    values: Tensor

    @property
    def rowwise(self) -> bool:
        """As `Change.rowwise`."""
        return True

    @property
    def shape(self) -> tuple[int | None, ...]:
        """As `Change.shape`."""
        return None, self.values.shape[1]

    def applied(self, before: Tensor, start: int = 0) -> Tensor:
        """As `Change.applied`."""
        own = (self.ids >= start) & (self.ids < start + before.shape[0])
        after = before.clone()
        after[(self.ids[own] - start).to(before.device)] = self.values[own].to(before.device)
        return after

    def picked(self, index: Tensor) -> "Rows":
        """As `Change.picked`; the rows of a table of tokens are never picked."""
        raise NotImplementedError

    def turned(self) -> "Rows":
        """As `Change.turned`; a table of tokens is never transposed."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Computed:
    """The whole matrix becomes another, which a function computes from it."""

    function: Callable[[Tensor], Tensor]
    shape: tuple[int | None, ...]

    @property
    def rowwise(self) -> bool:
        """As `Change.rowwise`."""
        return False

    def applied(self, before: Tensor, start: int = 0) -> Tensor:  # noqa: ARG002 - all rows are given
        """As `Change.applied`."""
        return self.function(before)

    def picked(self, index: Tensor) -> "Computed":
        """As `Change.picked`; one part of a fused module does not say what the whole becomes."""
        raise NotImplementedError

    def turned(self) -> "Computed":
        """As `Change.turned`."""
        return Computed(lambda before: self.function(before.T).T, self.shape[::-1])


@dataclass(frozen=True, eq=False)
class OfExperts:
    """The rows of experts follow each other, ``size`` of each; some experts are changed."""

    parts: Mapping[int, Change]
    size: int

    @property
    def rowwise(self) -> bool:
        """As `Change.rowwise`."""
        return False

    @property
    def shape(self) -> tuple[int | None, ...]:
        """As `Change.shape`; that of each expert was checked by itself."""
        return None, None

    def applied(self, before: Tensor, start: int = 0) -> Tensor:  # noqa: ARG002 - all rows are given
        """As `Change.applied`."""
        after = before.clone()
        for expert, part in self.parts.items():
            rows = slice(expert * self.size, (expert + 1) * self.size)
            after[rows] = part.applied(before[rows])
        return after

    def picked(self, index: Tensor) -> "OfExperts":
        """As `Change.picked`; experts are never fused with anything."""
        raise NotImplementedError

    def turned(self) -> "OfExperts":
        """As `Change.turned`; the parts are turned before they are put together."""
        raise NotImplementedError
