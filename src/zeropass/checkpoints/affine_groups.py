"""Weights of whole numbers in groups along their rows, each with a factor and a shift: those of MLX."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from zeropass.checkpoints.quantised_parts import Parts, parts_of_range, unpacked

__all__ = ["BITS", "SIZES", "AffineGroups", "affine"]

BITS = (2, 3, 4, 5, 6, 8)
SIZES = (32, 64, 128)
"""The numbers of bits, and the sizes of groups, that MLX has kernels for."""

_SCALES = ("F16", "BF16", "F32")


@dataclass(frozen=True)
class AffineGroups:
    """A weight that is its numbers times the scale of their group, plus the shift of the group.

    Attributes:
        parts: The stored tensors.
        shape: The shape of the weight.
        bits: The bits of a number; numbers run through the words of a row, from the lowest bits on.
        size: The numbers of a group.
        shift: The part that holds the shifts.
    """

    parts: Parts
    shape: tuple[int, int]
    bits: int
    size: int
    shift: str

    @property
    def kind(self) -> str:
        """``INT4``, or the like of another number of bits."""
        return f"INT{self.bits}"

    def decode(self, rows: slice, columns: slice) -> Tensor:
        """Return rows and columns as float32."""
        groups = parts_of_range(columns.start, columns.stop, self.size)
        words = self.size * self.bits // 32  # a group fills entire words
        stored = self.parts.read("weight", rows, slice(groups.start * words, groups.stop * words))
        numbers = unpacked(stored.view(torch.int32), self.bits, 1).view(len(stored), -1, self.size)
        scales, shifts = (self.parts.read(part, rows, groups).float()[..., None] for part in ("scales", self.shift))
        first = columns.start - groups.start * self.size
        return (numbers * scales).add_(shifts).flatten(1)[:, first : first + columns.stop - columns.start]


def affine(parts: Parts, shift: str) -> AffineGroups:
    """Return a weight; raise BadWeights if its parts do not fit each other, or the settings of its module.

    Args:
        parts: The stored tensors. Their settings may have others for a module, by its name.
        shift: The part that holds the shifts.
    """
    settings = parts.settings.get(parts.stem.removesuffix("."), parts.settings)
    if not isinstance(settings, Mapping) or settings.get("mode", "affine") != "affine":
        raise parts.error(f"the settings of its module are {settings}; bits, group_size and the mode affine are read")
    bits, size = settings.get("bits"), settings.get("group_size")
    if bits not in BITS or size not in SIZES:
        raise parts.error(f"its module has {bits} bits in groups of {size}; {BITS} bits in groups of {SIZES} are read")
    rows, words = parts.shape("weight", 2)
    parts.require("weight", (rows, words), "U32")
    width = words * 32 // bits
    if words % bits or width % size:
        raise parts.error(f"weight has rows of {words} words, which are no groups of {size} numbers of {bits} bits")
    for part in ("scales", shift):
        parts.require(part, (rows, width // size), *_SCALES)
    return AffineGroups(parts, (rows, width), bits, size, shift)
