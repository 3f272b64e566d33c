"""Weights of whole numbers packed in int32, with a scale and a zero point for each group of inputs.

The formats are those of GPTQ (https://arxiv.org/abs/2210.17323) as AutoGPTQ and GPTQModel write it, of AWQ
(https://arxiv.org/abs/2306.00978) in its layout ``gemm``, and ``pack-quantized`` of compressed-tensors.
"""

from dataclasses import dataclass

from torch import Tensor

from zeropass.checkpoints.quantised_parts import ALL, Parts, groups_of, parts_of_range, unpacked

__all__ = ["AWQ", "GPTQ", "PACKED", "InputsFirst", "RowsPacked", "awq", "gptq", "row_packed"]

GPTQ = ("qweight", "qzeros", "scales", "g_idx")
AWQ = ("qweight", "qzeros", "scales")
PACKED = ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx")

_HALF = ("F16", "BF16", "F32")

_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""The place in its word of each of eight numbers."""


@dataclass(frozen=True)
class InputsFirst:
    """A weight that is stored transposed, inputs first: (number − zero point) · scale of the input's group.

    Attributes:
        parts: The stored tensors.
        shape: The shape of the weight, outputs first.
        bits: The bits of a number.
        size: The inputs of a group.
        shift: The number to add to stored zero points.
        along_rows: True if numbers are packed along inputs (GPTQ); False for outputs, in the order of AWQ.
    """

    parts: Parts
    shape: tuple[int, int]
    bits: int
    size: int
    shift: int
    along_rows: bool

    @property
    def kind(self) -> str:
        """``INT4``, or the like of another number of bits."""
        return f"INT{self.bits}"

    def decode(self, rows: slice, columns: slice) -> Tensor:
        """Return rows and columns as float32."""
        if self.along_rows:
            numbers = unpacked(self.parts.read("qweight", ALL, rows), self.bits, 0)
        else:
            numbers = self._outputs("qweight", rows)
        scales = self.parts.read("scales", ALL, rows).float()
        zeros = (self._outputs("qzeros", rows) + self.shift) & ((1 << self.bits) - 1)
        groups = groups_of(self.parts, "g_idx", self.shape[1], len(scales), self.size)
        return ((numbers - zeros[groups]) * scales[groups]).T[:, columns]

    def _outputs(self, part: str, outputs: slice) -> Tensor:
        """Return the numbers of some outputs, which are packed along the columns."""
        per_word = 32 // self.bits
        words = parts_of_range(outputs.start, outputs.stop, per_word)
        numbers = unpacked(self.parts.read(part, ALL, words), self.bits, 1)
        if not self.along_rows:
            numbers = numbers.view(len(numbers), -1, per_word)[..., list(_AWQ_ORDER)].flatten(1)
        return numbers[:, outputs.start - words.start * per_word :][:, : outputs.stop - outputs.start]


@dataclass(frozen=True)
class RowsPacked:
    """A weight whose rows are packed: (number − 2^(bits−1) − zero point) · scale of the input's group.

    Attributes:
        parts: The stored tensors.
        shape: The shape of the weight.
        bits: The bits of a number.
        size: The inputs of a group.
    """

    parts: Parts
    shape: tuple[int, int]
    bits: int
    size: int

    @property
    def kind(self) -> str:
        """``INT4``, or the like of another number of bits."""
        return f"INT{self.bits}"

    def decode(self, rows: slice, columns: slice) -> Tensor:
        """Return rows and columns as float32."""
        half = 1 << (self.bits - 1)
        numbers = unpacked(self.parts.read("weight_packed", rows), self.bits, 1)[:, : self.shape[1]] - half
        scales = self.parts.read("weight_scale", rows).float()
        groups = groups_of(self.parts, "weight_g_idx", self.shape[1], scales.shape[1], self.size)
        if "weight_zero_point" in self.parts:
            per_word = 32 // self.bits
            words = parts_of_range(rows.start, rows.stop, per_word)
            zeros = unpacked(self.parts.read("weight_zero_point", words), self.bits, 0) - half
            numbers -= zeros[rows.start - words.start * per_word :][: rows.stop - rows.start][:, groups]
        return (numbers * scales[:, groups])[:, columns]


def gptq(parts: Parts, bits: int, size: int, shift: int) -> InputsFirst:
    """Return a weight of GPTQ; raise BadWeights if its parts do not fit each other.

    Args:
        parts: The stored tensors.
        bits: The bits of a number.
        size: The inputs of a group; -1 for one group.
        shift: The number to add to stored zero points.
    """
    words, outputs = parts.shape("qweight", 2)
    return _inputs_first(parts, (outputs, words * 32 // bits), bits, size, shift, along_rows=True)


def awq(parts: Parts, size: int) -> InputsFirst:
    """Return a weight of AWQ, of 4 bits; raise BadWeights if its parts do not fit each other."""
    inputs, words = parts.shape("qweight", 2)
    return _inputs_first(parts, (words * 8, inputs), 4, size, 0, along_rows=False)


def _inputs_first(
    parts: Parts, shape: tuple[int, int], bits: int, size: int, shift: int, along_rows: bool
) -> InputsFirst:
    outputs, inputs = shape
    size = inputs if size == -1 else size
    groups, per_word = -(-inputs // size), 32 // bits
    stored = (inputs // per_word, outputs) if along_rows else (inputs, outputs // per_word)
    parts.require("qweight", stored, "I32")
    parts.require("qzeros", (groups, -(-outputs // per_word)), "I32")
    parts.require("scales", (groups, outputs), *_HALF)
    if along_rows:
        parts.require("g_idx", (inputs,), "I32")
    return InputsFirst(parts, shape, bits, size, shift, along_rows)


def row_packed(parts: Parts, bits: int, size: int | None, symmetric: bool) -> RowsPacked:
    """Return a weight of ``pack-quantized``; raise BadWeights if its parts do not fit each other.

    Args:
        parts: The stored tensors.
        bits: The bits of a number.
        size: The inputs of a group; None for one group.
        symmetric: True if no zero points are stored.
    """
    parts.require("weight_shape", (2,), "I64", "I32")
    rows, inputs = (int(length) for length in parts.read("weight_shape"))
    if rows < 1 or inputs < 1:
        raise parts.error(f"weight_shape is {(rows, inputs)}; both must be positive")
    size = inputs if size is None else size
    groups, per_word = -(-inputs // size), 32 // bits
    parts.require("weight_packed", (rows, -(-inputs // per_word)), "I32")
    parts.require("weight_scale", (rows, groups), *_HALF)
    if symmetric == ("weight_zero_point" in parts):
        stored = "has" if symmetric else "lacks"
        raise parts.error(f"symmetric is {str(symmetric).lower()}, but it {stored} weight_zero_point")
    if not symmetric:
        parts.require("weight_zero_point", (-(-rows // per_word), groups), "I32")
    if "weight_g_idx" in parts:
        parts.require("weight_g_idx", (inputs,), "I32")
    return RowsPacked(parts, (rows, inputs), bits, size)
