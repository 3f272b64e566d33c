"""The weights of HQQ (https://mobiusml.github.io/hqq_blog), each stored with the facts of its own quantisation."""

from dataclasses import dataclass

import torch
from torch import Tensor

from zeropass.checkpoints.quantised_parts import Parts, parts_of_range

__all__ = ["PARTS", "Lines", "hqq"]

_FACTS = ("nbits", "group_size", "shape", "axis", "packing", "view_as_float", "quant_scale", "quant_zero")
_OF_THE_LIBRARY = ("unpack_view_dtype", "compute_dtype", "offload_meta", "encoded_state_dict", "stores_quant_config")
_OF_THE_QUANTISER = ("channel_wise", "optimize", "round_zero")
PARTS = ("W_q", "scale", "zero", *_FACTS, *_OF_THE_LIBRARY, *_OF_THE_QUANTISER)

_PACKINGS = {"8bit_u8": (8, 1), "4bit_u8": (4, 2), "3bit_32": (3, 10), "2bit_u8": (2, 4), "1bit_u8": (1, 8)}
"""The bits of a code and the codes of a stored number, by the name of the packing."""

_BITS = {"8bit_u8": (5, 6, 8), "4bit_u8": (4,), "3bit_32": (3,), "2bit_u8": (2,), "1bit_u8": (1,)}
"""The bits that a packing is used for."""

_SCALES = ("F16", "BF16", "F32")


@dataclass(frozen=True)
class Lines:
    """A weight that is reshaped to lines, of which each, or each of whose columns, is a group.

    A number is its code, less the zero point of its group, times the scale of the group.

    Attributes:
        parts: The stored tensors.
        shape: The shape of the weight.
        bits: The bits of a number.
        packing: The name of the packing: a stored number has codes of several lines, the first in its highest bits.
        length: The numbers of a line.
        by_line: True if each line is a group; False if each column is one.
    """

    parts: Parts
    shape: tuple[int, int]
    bits: int
    packing: str
    length: int
    by_line: bool

    @property
    def kind(self) -> str:
        """``INT4``, or the like of another number of bits."""
        return f"INT{self.bits}"

    def decode(self, rows: slice, columns: slice) -> Tensor:
        """Return rows and columns as float32."""
        first, last = rows.start * self.shape[1], rows.stop * self.shape[1]
        lines = parts_of_range(first, last, self.length)
        groups = (lines,) if self.by_line else ()
        zeros, scales = (self.parts.read(part, *groups).float() for part in ("zero", "scale"))
        values = ((self._codes(lines) - zeros) * scales).flatten()[first - lines.start * self.length :]
        return values[: last - first].view(-1, self.shape[1])[:, columns]

    def _codes(self, lines: slice) -> Tensor:
        """Return the codes of lines; those of one stored number are as many lines apart as there are such numbers."""
        bits, count = _PACKINGS[self.packing]
        step = self.parts.source.shape(self.parts.names["W_q"])[0]
        codes = []
        for place in range(count):
            first, last = (min(max(end - place * step, 0), step) for end in (lines.start, lines.stop))
            if first < last:
                stored = self.parts.read("W_q", slice(first, last)).int()
                codes.append((stored >> (bits * (count - 1 - place))) & ((1 << bits) - 1))
        return torch.cat(codes)


def hqq(parts: Parts) -> Lines:
    """Return a weight of HQQ; raise BadWeights if its parts do not fit each other, or for facts that are not known."""
    parts.require("shape", (2,), "I64")
    parts.require("packing", (7,), "U8")
    rows, width = (int(length) for length in parts.read("shape"))
    packing = bytes(parts.read("packing").tolist()).decode("ascii", "replace")
    bits, size, axis = (_fact(parts, part, "I32") for part in ("nbits", "group_size", "axis"))
    others = {part: _fact(parts, part, "U8") for part in ("view_as_float", "quant_scale", "quant_zero")}
    if bits not in _BITS.get(packing, ()) or axis not in (0, 1) or any(others.values()):
        stated = {"packing": packing, "nbits": bits, "axis": axis} | others
        raise parts.error(f"it is stored as {stated}, which is not read")
    if min(rows, width, size) < 1 or rows * width % size:
        raise parts.error(f"shape is {(rows, width)} with groups of {size}, which must divide it")
    lines, length = (rows * width // size, size) if axis else (size, rows * width // size)
    count = _PACKINGS[packing][1]
    parts.require("W_q", (-(-lines // count), length), "I32" if packing == "3bit_32" else "U8")
    for part in ("scale", "zero"):
        parts.require(part, (lines, 1) if axis else (1, length), *_SCALES)
    return Lines(
        parts=parts,
        shape=(rows, width),
        bits=bits,
        packing=packing,
        length=length,
        by_line=bool(axis),
    )


def _fact(parts: Parts, part: str, kind: str) -> int:
    """Return a fact that is one whole number."""
    parts.require(part, (), kind)
    return int(parts.read(part))
