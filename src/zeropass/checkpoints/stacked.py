"""Tensors that stack others along their first axis, such as those of all experts, shown one by one."""

import re
from collections.abc import Callable

from zeropass.checkpoints.base import Bools, Float32, TensorSource

__all__ = ["Stacked", "unstacked"]

_MOST = 10_000
"""The largest number of parts that a tensor is cut into; there are no models with more experts."""

_PART = re.compile(r"(.+)\[(\d{1,5})\]")


class Stacked:
    """A source in which the tensors of some names are ``name[0]``, ``name[1]`` …, cut along their first axis."""

    def __init__(self, source: TensorSource, names: frozenset[str]) -> None:
        self.path: str = source.path
        self._source, self._names = source, names

    def names(self) -> list[str]:
        """Return the names of all tensors, in the order of the file(s)."""
        return [part for name in self._source.names() for part in self._parts(name)]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor, rows first."""
        stack, number = self._split(name)
        return self._source.shape(stack)[0 if number is None else 1 :]

    def dtype(self, name: str) -> str:
        """Return the name of the stored type."""
        return self._source.dtype(self._split(name)[0])

    def rows(
        self,
        name: str,
        start: int = 0,
        stop: int | None = None,
        columns: slice | None = None,
        spare: Bools | None = None,
    ) -> Float32:
        """Return rows of a tensor as float32 (`TensorSource.rows`)."""
        stack, number = self._split(name)
        if number is None:
            return self._source.rows(name, start, stop, columns, spare)
        part: Float32 = self._source.rows(stack, number, number + 1)[0]
        part = part[start:stop]
        return part if columns is None else part[:, columns].copy()

    def _parts(self, name: str) -> list[str]:
        return [f"{name}[{i}]" for i in range(self._source.shape(name)[0])] if name in self._names else [name]

    def _split(self, name: str) -> tuple[str, int | None]:
        """Return the name in the file, and the number of the part; None for a tensor that is not cut."""
        match = _PART.fullmatch(name)
        return (match[1], int(match[2])) if match and match[1] in self._names else (name, None)


def unstacked(source: TensorSource, stacks: Callable[[str], bool]) -> TensorSource:
    """Return the source with the tensors cut whose names are those of stacks; the source itself if there are none."""
    names = frozenset(name for name in source.names() if stacks(name) and 0 < (*source.shape(name), 0)[0] <= _MOST)
    return Stacked(source, names) if names else source
