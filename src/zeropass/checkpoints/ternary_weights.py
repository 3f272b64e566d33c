"""Weights of BitNet: numbers -1, 0 and 1, of which four rows share one row of bytes, and one scale for all."""

from dataclasses import dataclass

import torch
from torch import Tensor

from zeropass.checkpoints.base import FLOATS
from zeropass.checkpoints.quantised_parts import Parts

__all__ = ["PARTS", "Ternary", "ternary"]

PARTS = ("weight", "weight_scale")

_PER_BYTE = 4


@dataclass(frozen=True)
class Ternary:
    """A weight of numbers of two bits, less one: the rows of each quarter follow each other, from the lowest bits on.

    Attributes:
        parts: The stored tensors.
        shape: The shape of the weight.
        divides: True if the numbers are divided by the scale, as the module ``BitLinear`` does it.
    """

    parts: Parts
    shape: tuple[int, int]
    divides: bool
    kind: str = "INT2"

    def decode(self, rows: slice, columns: slice) -> Tensor:
        """Return rows and columns as float32."""
        quarter, count = self.shape[0] // _PER_BYTE, torch.arange(rows.start, rows.stop)
        at = count % quarter
        first = int(at.min())
        stored = self.parts.read("weight", slice(first, int(at.max()) + 1), columns)[at - first].int()
        numbers = ((stored >> (2 * (count // quarter))[:, None]) & 3).float() - 1
        scale = self.parts.read("weight_scale").float()
        return numbers / scale if self.divides else numbers * scale


def ternary(parts: Parts) -> Ternary:
    """Return a weight of BitNet; raise BadWeights if its parts do not fit each other."""
    rows, width = parts.shape("weight", 2)
    parts.require("weight", (rows, width), "U8")
    parts.require("weight_scale", (1,), *FLOATS)
    divides = parts.settings.get("linear_class", "bitlinear") == "bitlinear"
    return Ternary(parts, (rows * _PER_BYTE, width), divides)
