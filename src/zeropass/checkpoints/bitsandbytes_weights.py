"""The weights of bitsandbytes: 4 bits a number with a scale a block (NF4, FP4), or 8 bits with a scale a row.

The 4-bit types are those of QLoRA (https://arxiv.org/abs/2305.14314), the 8-bit type that of LLM.int8()
(https://arxiv.org/abs/2208.07339).
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from zeropass._io.parse import parse_json
from zeropass._io.typed_json import from_json
from zeropass.checkpoints.quantised_parts import Parts, parts_of_range

__all__ = ["EIGHT_BITS", "FOUR_BITS", "STATE", "TABLES", "EightBits", "FourBits", "eight_bits", "four_bits", "nearest"]

STATE = "weight.quant_state.bitsandbytes__"
"""The beginning of the part that holds the facts of a 4-bit weight, as JSON."""

FOUR_BITS = (
    *("weight", "weight.absmax", "weight.quant_map", "weight.nested_absmax", "weight.nested_quant_map"),
    *(f"{STATE}nf4", f"{STATE}fp4"),
)
EIGHT_BITS = ("weight", "SCB", "weight_format")

_NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634),
    *(0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
_FP4 = tuple(number / 12 for number in (0, 0.0625, 8, 12, 4, 6, 2, 3, 0, -0.0625, -8, -12, -4, -6, -2, -3))

TABLES: dict[str, tuple[float, ...]] = {"nf4": _NF4, "fp4": _FP4}
"""The number that each code stands for; the kernels of bitsandbytes hold them, so a file may not bring others."""

_BLOCKS = tuple(1 << n for n in range(5, 13))
_LONGEST = 10_000
"""The largest number of bytes of the facts of a weight."""


@dataclass(frozen=True)
class _State:
    """The facts of a 4-bit weight, as bitsandbytes writes them; the type ``dtype`` is that of its products."""

    quant_type: Literal["nf4", "fp4"]
    blocksize: int
    dtype: str
    shape: tuple[int, int]
    nested_blocksize: int | None = None
    nested_dtype: Literal["float32"] | None = None
    nested_offset: float | None = None


@dataclass(frozen=True)
class FourBits:
    """A weight of 4-bit codes in blocks that run through all rows; a number is its code's times its block's scale.

    Attributes:
        parts: The stored tensors.
        kind: ``NF4`` or ``FP4``.
        shape: The shape of the weight.
        block: The numbers of a block.
        size: The bytes of a number in which codes are stored (``bnb_4bit_quant_storage``).
        nested: The scales of a block of scales, where these are quantised themselves; else 0.
        offset: The number that is added to quantised scales.
    """

    parts: Parts
    kind: str
    shape: tuple[int, int]
    block: int
    size: int
    nested: int
    offset: float

    def decode(self, rows: slice, columns: slice) -> Tensor:
        """Return rows and columns as float32."""
        width = self.shape[1]
        first, last = rows.start * width, rows.stop * width
        numbers = _pairs(self.kind.lower()).index_select(0, self._bytes(first // 2, -(-last // 2)).int()).flatten()
        numbers = numbers[first % 2 :][: last - first]
        blocks = parts_of_range(first, last, self.block)
        scales = self._scales(blocks).repeat_interleave(self.block)[first - blocks.start * self.block :]
        return (numbers * scales[: len(numbers)]).view(-1, width)[:, columns]

    def _bytes(self, first: int, last: int) -> Tensor:
        """Return bytes of the codes."""
        numbers = parts_of_range(first, last, self.size)
        stored = self.parts.read("weight", numbers).contiguous().view(torch.uint8).flatten()
        return stored[first - numbers.start * self.size :][: last - first]

    def _scales(self, blocks: slice) -> Tensor:
        scales = self.parts.read("weight.absmax", blocks)
        if not self.nested:
            return scales
        outer = parts_of_range(blocks.start, blocks.stop, self.nested)
        of_scales = self.parts.read("weight.nested_absmax", outer).repeat_interleave(self.nested)
        of_scales = of_scales[blocks.start - outer.start * self.nested :][: len(scales)]
        return self.parts.read("weight.nested_quant_map")[scales.long()] * of_scales + self.offset


@dataclass(frozen=True)
class EightBits:
    """A weight of 8-bit numbers with the largest of each row (``SCB``), for which 127 stands."""

    parts: Parts
    shape: tuple[int, int]
    kind: str = "INT8"

    def decode(self, rows: slice, columns: slice) -> Tensor:
        """Return rows and columns as float32."""
        return self.parts.read("weight", rows, columns).float() * (self.parts.read("SCB", rows) / 127)[:, None]


def four_bits(parts: Parts) -> FourBits:
    """Return a 4-bit weight; raise BadWeights if its parts do not fit each other."""
    if all(f"{STATE}{name}" in parts for name in TABLES):
        raise parts.error("its file calls it both nf4 and fp4")
    name = "nf4" if f"{STATE}nf4" in parts else "fp4"
    state = _state(parts, STATE + name)
    count = math.prod(state.shape)
    blocks = -(-count // state.blocksize)
    stored = parts.shape("weight", 2)
    size = parts.read("weight", slice(0, 0)).element_size()
    if stored[1] != 1 or stored[0] * size != -(-count // 2):
        raise parts.error(f"weight has shape {stored}, which does not hold 4 bits for each number of {state.shape}")
    parts.require("weight.quant_map", (16,), "F32")
    if not torch.allclose(parts.read("weight.quant_map"), torch.tensor(TABLES[name]), rtol=0, atol=1e-6):
        raise parts.error(f"weight.quant_map holds other numbers than {name}, which bitsandbytes would not use")
    nested = state.nested_blocksize or 0
    if nested:
        parts.require("weight.nested_absmax", (-(-blocks // nested),), "F32")
        parts.require("weight.nested_quant_map", (256,), "F32")
    parts.require("weight.absmax", (blocks,), "U8" if nested else "F32")
    return FourBits(parts, name.upper(), state.shape, state.blocksize, size, nested, state.nested_offset or 0.0)


def eight_bits(parts: Parts) -> EightBits:
    """Return an 8-bit weight; raise BadWeights if its parts do not fit each other."""
    rows, width = parts.shape("weight", 2)
    parts.require("weight", (rows, width), "I8")
    parts.require("SCB", (rows,), "F32")
    if "weight_format" in parts:
        parts.require("weight_format", (), "U8")
        if layout := int(parts.read("weight_format")):
            raise parts.error(f"weight_format is {layout}; only rows in their order (0) are read")
    return EightBits(parts, (rows, width))


def nearest(values: Tensor, name: str) -> Tensor:
    """Return the numbers of a 4-bit type that are nearest to values between -1 and 1."""
    table = torch.tensor(sorted(TABLES[name]))
    return table[torch.bucketize(values.contiguous(), (table[1:] + table[:-1]) / 2)]


@lru_cache
def _pairs(name: str) -> Tensor:
    """Return the two numbers that each byte stands for, (256, 2): the high four bits come first."""
    table = torch.tensor(TABLES[name])
    byte = torch.arange(256)
    return torch.stack((table[byte >> 4], table[byte & 15]), 1)


def _state(parts: Parts, part: str) -> _State:
    """Return the facts of a 4-bit weight."""
    (length,) = parts.shape(part, 1)
    parts.require(part, (length,), "U8")
    if length > _LONGEST:
        raise parts.error(f"{part} has {length} bytes; it should be a short JSON object")
    try:
        state = from_json(_State, parse_json(bytes(parts.read(part).tolist())), part)
    except ValueError as error:
        raise parts.error(str(error)) from error
    nested = (state.nested_blocksize, state.nested_dtype, state.nested_offset)
    blocks = (state.blocksize, state.nested_blocksize or state.blocksize)
    if not part.endswith(state.quant_type) or min(state.shape) < 1 or not all(block in _BLOCKS for block in blocks):
        raise parts.error(f"{part} is {state}; its own type, positive sizes and the blocks of bitsandbytes are right")
    if any(fact is None for fact in nested) != all(fact is None for fact in nested):
        raise parts.error(f"{part} is {state}; of quantised scales it must name block, type and offset")
    return state
