"""A model that notes what is read of it, and that can give its numbers in float64, or one of them altered."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

from zeropass.arch.layout import shares_of
from zeropass.arch.roles import BY_TOKEN
from zeropass.model.model import Model

__all__ = ["Observed", "Reading", "observed"]

Reading = tuple[str, int]
"""The canonical name of a tensor, and the layer for which it is read; 0 for what all layers share."""

Read = TypeVar("Read", Tensor, Tensor | None)

_ROWWISE = (*BY_TOKEN, "positions")
"""The tables of which a text needs some rows only, so that they are not kept."""


@dataclass(frozen=True, eq=False, repr=False)
class Observed(Model):
    """A model whose tensors are kept once they are read, with a note of each.

    Attributes:
        of: The model.
        dtype: The type of its numbers.
        altered: What is altered: of a matrix the columns move by one, of a norm the gain is 1, any other vector is 0.
        kept: The tensors that were read, as they are.
        read: What was read, in order.
    """

    of: Model = field(kw_only=True)
    dtype: torch.dtype = field(kw_only=True, default=torch.float32)
    altered: Reading | None = field(kw_only=True, default=None)
    kept: dict[Reading, Tensor | None] = field(kw_only=True, default_factory=dict)
    read: dict[Reading, None] = field(kw_only=True, default_factory=dict)

    def plain_matrix(self, what: str, layer: int = 0, start: int = 0, stop: int | None = None) -> Tensor:
        """Return `Model.plain_matrix`, noted; `matrix` is made of it."""
        if what in _ROWWISE:
            self.read[what, layer] = None
            rows = self.of.plain_matrix(what, layer, start, stop)
        elif not self.layout.gains.keys().isdisjoint(shares_of(what)):  # gains in the rows are read, and altered, here
            self.read[what, layer] = None
            rows = super().plain_matrix(what, layer, start, stop)
        else:
            rows = self._once((what, layer), lambda: self.of.plain_matrix(what, layer))[start:stop]
        rows = rows.to(self.dtype)
        return rows.roll(1, -1) if (what, layer) == self.altered else rows

    def matrix_on_cpu(self, what: str, layer: int = 0, start: int = 0, stop: int | None = None) -> Tensor:
        """Return `matrix` on the CPU."""
        return self.matrix(what, layer, start, stop).cpu()

    def columns(self, what: str, part: slice, start: int, stop: int) -> Tensor:
        """Return `Model.columns`, noted."""
        self.read[what, 0] = None
        rows = self.of.columns(what, part, start, stop).to(self.dtype)
        return rows.roll(1, -1) if (what, 0) == self.altered else rows

    @cached_property
    def without_gains(self) -> "Observed":
        """`Model.without_gains`, with a note in the same place of what is read."""
        bare = self.of.without_gains
        return self if bare is self.of else replace(self, of=bare, layout=bare.layout, kept={})

    def vector(self, what: str, layer: int = 0) -> Tensor | None:
        """Return `Model.vector`, noted."""
        values = self._once((what, layer), lambda: self.of.vector(what, layer))
        if values is None:
            return None
        values = values.to(self.dtype)
        if (what, layer) != self.altered:
            return values
        return torch.ones_like(values) if what.endswith("_norm") else torch.zeros_like(values)

    def relative(self, layer: int = 0) -> Tensor:
        """Return `Model.relative`, noted."""
        table = self._once(("relative", layer), lambda: self.of.relative(layer)).to(self.dtype)
        return torch.zeros_like(table) if ("relative", layer) == self.altered else table

    def has(self, what: str) -> bool:
        """Return `Model.has`."""
        return self.of.has(what)

    def rows(self, what: str, layer: int = 0) -> int:
        """Return `Model.rows`."""
        return self.of.rows(what, layer)

    def in_float64(self) -> "Observed":
        """Return the model with its numbers in float64, which shares what is kept."""
        return replace(self, dtype=torch.float64)

    def with_altered(self, reading: Reading) -> "Observed":
        """Return the model with one tensor altered, which shares what is kept."""
        return replace(self, altered=reading, read={})

    def _once(self, reading: Reading, read: Callable[[], Read]) -> Read:
        """Return what is kept of a tensor, read if it is not, and note that it was read unless it is absent."""
        if reading not in self.kept:
            self.kept[reading] = read()
        values = self.kept[reading]
        if values is not None:
            self.read[reading] = None
        return values  # type: ignore[return-value]


def observed(model: Model) -> Observed:
    """Return a model that notes what is read of it."""
    return Observed(**{f.name: getattr(model, f.name) for f in fields(Model)}, of=model)
