"""Weights of 8 bits with scales: FP8 or int8 numbers, and one factor a block, a row or a tensor."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from zeropass.checkpoints.base import FLOATS
from zeropass.checkpoints.quantised_parts import Parts, parts_of_range

__all__ = ["Scaled", "scaled"]

_TYPES = {"F8_E4M3": "FP8", "I8": "INT8"}
"""The stored types that are read, and the names of the types of such weights."""

_SCALES = (*FLOATS, "F8_E8M0")
_SINGLE = ((), (1,), (1, 1))
"""The shapes of a scale for all numbers."""


@dataclass(frozen=True)
class Scaled:
    """A weight that is its stored numbers, less a zero point where there is one, times the scale of their block.

    Attributes:
        parts: The stored tensors.
        kind: ``FP8`` or ``INT8``.
        shape: The shape of the weight.
        scale: The part that holds the scales.
        block: The rows and columns of a block.
    """

    parts: Parts
    kind: str
    shape: tuple[int, int]
    scale: str
    block: tuple[int, int]

    def decode(self, rows: slice, columns: slice) -> Tensor:
        """Return rows and columns as float32."""
        numbers = self.parts.read("weight", rows, columns).float()
        if "weight_zero_point" in self.parts:
            numbers -= self._spread("weight_zero_point", rows)[:, columns]
        return numbers * self._spread(self.scale, rows)[:, columns]

    def _spread(self, part: str, rows: slice) -> Tensor:
        """Return the number of each row's blocks, repeated for all rows and columns of a block."""
        high, wide = self.block
        blocks = parts_of_range(rows.start, rows.stop, high)
        grid = self.parts.read(part)
        grid = (grid[blocks] if grid.ndim == 2 else grid.reshape(1, 1)).float()
        high_grid = grid.repeat_interleave(high, 0)[rows.start - blocks.start * high :][: rows.stop - rows.start]
        return high_grid.repeat_interleave(wide, 1)[:, : self.shape[1]]


def scaled(parts: Parts, scale: str, block: Sequence[int] | None, types: Sequence[str]) -> Scaled:
    """Return a weight with scales; raise BadWeights if its parts do not fit each other.

    Args:
        parts: The stored tensors.
        scale: The part that holds the scales.
        block: The rows and columns of a block; None if there is one scale a row or one for all.
        types: The types in which the numbers may be stored.
    """
    shape = parts.shape("weight", 2)
    parts.require("weight", shape, *types)
    rows, width = shape
    for_all = block is None and parts.source.shape(parts.names[scale]) in _SINGLE
    high, wide = shape if for_all else block or (1, width)
    high, wide = min(high, rows), min(wide, width)
    for part, usual in ((scale, _SCALES), ("weight_zero_point", ("I8",))):
        if part in parts:
            stored = parts.source.shape(parts.names[part])
            grid = stored if for_all and stored in _SINGLE else (-(-rows // high), -(-width // wide))
            parts.require(part, grid, *usual)
    return Scaled(parts, _TYPES[parts.kind("weight")], (rows, width), scale, (high, wide))
