"""The checks that the readers of all weight formats share."""

from abc import ABC, abstractmethod

import numpy as np

from zeropass.checkpoints.base import Bools, Float32
from zeropass.errors import BadWeights

__all__ = ["CheckedSource"]


class CheckedSource(ABC):
    """A `TensorSource` whose ``rows`` checks the request and the values; each format implements the reading."""

    path: str

    @abstractmethod
    def names(self) -> list[str]:
        """Return the names of all tensors, in the order of the file(s)."""

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor, rows first. Raises BadWeights if there is no such tensor."""

    @abstractmethod
    def dtype(self, name: str) -> str:
        """Return the name of the stored type. Raises BadWeights if there is no such tensor."""

    @abstractmethod
    def _read(self, name: str, rows: slice, columns: slice) -> Float32:
        """Read a checked part of a tensor as a new C-ordered array; only a matrix has ``columns`` other than all."""

    def _file(self, name: str) -> str:  # noqa: ARG002 - a source of several files overrides this
        """Return the path of the file that holds a tensor, for messages."""
        return self.path

    def _where(self, name: str) -> str:
        return f"{self._file(name)}: tensor {name!r}"

    def _missing(self, name: str) -> BadWeights:
        names = self.names()
        examples = ", ".join(map(repr, names[:3]))
        return BadWeights(f"{self.path}: there is no tensor {name!r} among its {len(names)} ({examples} …).")

    def rows(
        self,
        name: str,
        start: int = 0,
        stop: int | None = None,
        columns: slice | None = None,
        spare: Bools | None = None,
    ) -> Float32:
        """Return rows of a tensor, checked (`TensorSource.rows`)."""
        shape = self.shape(name)
        length = shape[0] if shape else 1
        end = length if stop is None else stop
        if not 0 <= start <= end <= length:
            raise BadWeights(f"{self._where(name)} has rows 0 to {length}; rows {start}:{end} were asked for.")
        if spare is not None and spare.shape != (end - start,):
            raise BadWeights(f"{self._where(name)}: the mask for the rows {start}:{end} has the shape {spare.shape}.")
        values = self._read(name, slice(start, end), self._columns(name, shape, columns))
        return self._finite(name, values, spare)

    def _columns(self, name: str, shape: tuple[int, ...], columns: slice | None) -> slice:
        if columns is None:
            return slice(None)
        if len(shape) != 2:
            raise BadWeights(f"{self._where(name)} has shape {shape}; only a matrix has columns to pick.")
        start = 0 if columns.start is None else columns.start
        stop = shape[1] if columns.stop is None else columns.stop
        if columns.step not in (None, 1) or not 0 <= start <= stop <= shape[1]:
            raise BadWeights(f"{self._where(name)} has columns 0 to {shape[1]}; {columns} was asked for.")
        return slice(start, stop)

    def _finite(self, name: str, values: Float32, spare: Bools | None) -> Float32:
        bad = values.size - int(np.count_nonzero(np.isfinite(values)))
        if bad and spare is not None:
            spared = spare & ~np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
            values[spared] = 0
            bad = values.size - int(np.count_nonzero(np.isfinite(values)))
        if bad:
            raise BadWeights(f"{self._where(name)} holds {bad} values that are NaN or infinite (among {values.size}).")
        return values
