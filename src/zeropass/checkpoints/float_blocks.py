"""Weights of 4-bit floats (E2M1) in blocks along their rows: MXFP4 and NVFP4.

MXFP4 is that of the OCP Microscaling Formats (MX) Specification 1.0: blocks of 32 with powers of two as scales. NVFP4
has blocks of 16 with scales in E4M3, and one more factor for all of them.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from zeropass.checkpoints.quantised_parts import Packed, Parts, Turned, parts_of_range

__all__ = ["E2M1", "FloatBlocks", "mxfp4", "nvfp4", "stacked"]

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""The numbers that the lower three bits stand for; the fourth is the sign."""

_MX_BLOCK, _NV_BLOCK = 32, 16


@dataclass(frozen=True)
class FloatBlocks:
    """A weight whose numbers are those of its codes, the lower four bits first, times the scale of their block.

    Attributes:
        parts: The stored tensors.
        kind: ``MXFP4`` or ``NVFP4``.
        shape: The shape of the weight.
        block: The numbers of a block.
        codes: The part that holds the codes: bytes of rows or, of an expert, of blocks.
        scales: The part that holds the scales of the blocks.
        expert: The number of an expert, where a part stacks those of all; else None.
        factor: The part that holds the factor of all scales, if there is one.
        divides: True if scales are divided by that number.
    """

    parts: Parts
    kind: str
    shape: tuple[int, int]
    block: int
    codes: str
    scales: str
    expert: int | None = None
    factor: str = ""
    divides: bool = False

    def decode(self, rows: slice, columns: slice) -> Tensor:
        """Return rows and columns as float32."""
        groups = parts_of_range(columns.start, columns.stop, self.block)
        scales = _wide(self.parts.read(self.scales, *self._expert, rows, groups))
        if self.factor:
            scales = scales / self._number if self.divides else scales * self._number
        scales = scales.view(rows.stop - rows.start, groups.stop - groups.start, 1)
        numbers = _pairs().index_select(0, self._bytes(rows, groups).flatten().int()).view(*scales.shape[:2], -1)
        first = columns.start - groups.start * self.block
        return (numbers * scales).flatten(1)[:, first : first + columns.stop - columns.start]

    @property
    def _number(self) -> float:
        """The factor of all scales; BadWeights if it is none."""
        number = float(self.parts.read(self.factor))
        if not 0 < number < float("inf"):
            raise self.parts.error(f"{self.factor} is {number}; it must be positive")
        return number

    @property
    def _expert(self) -> tuple[slice, ...]:
        return () if self.expert is None else (slice(self.expert, self.expert + 1),)

    def _bytes(self, rows: slice, groups: slice) -> Tensor:
        """Return the codes of some blocks."""
        if self.expert is not None:
            return self.parts.read(self.codes, *self._expert, rows, groups)
        return self.parts.read(self.codes, rows, slice(groups.start * self.block // 2, groups.stop * self.block // 2))


def stacked(parts: Parts) -> tuple[Packed, ...]:
    """Return the weights of all experts in the layout of gpt-oss; raise BadWeights if the parts do not fit.

    The blocks are those of (outputs, inputs), and the model stores the transpose
    (``transformers.integrations.mxfp4.convert_moe_packed_tensors``).
    """
    codes, scales = f"{parts.weight}_blocks", f"{parts.weight}_scales"
    experts, outputs, blocks, _ = parts.shape(codes, 4)
    parts.require(codes, (experts, outputs, blocks, _MX_BLOCK // 2), "U8")
    parts.require(scales, (experts, outputs, blocks), "U8")
    shape = (outputs, blocks * _MX_BLOCK)
    return tuple(
        Turned(
            FloatBlocks(
                parts=parts,
                kind="MXFP4",
                shape=shape,
                block=_MX_BLOCK,
                codes=codes,
                scales=scales,
                expert=expert,
            )
        )
        for expert in range(experts)
    )


def mxfp4(parts: Parts, codes: str) -> FloatBlocks:
    """Return a weight of rows of MXFP4, with its scales in ``weight_scale``; raise BadWeights if its parts do not fit.

    Args:
        parts: The stored tensors.
        codes: The part that holds the codes, two a byte.
    """
    return _rows(parts, codes, "MXFP4", _MX_BLOCK, "U8", "F8_E8M0")


def nvfp4(parts: Parts, codes: str, factor: str, divides: bool) -> FloatBlocks:
    """Return a weight of rows of NVFP4, with its scales in ``weight_scale``; raise BadWeights if its parts do not fit.

    Args:
        parts: The stored tensors.
        codes: The part that holds the codes, two a byte.
        factor: The part that holds the factor of all scales.
        divides: True if scales are divided by that number.
    """
    if factor not in parts or parts.source.shape(parts.names[factor]) not in ((), (1,)) or parts.kind(factor) != "F32":
        raise parts.error(f"{factor} must be one number in F32")
    return replace(_rows(parts, codes, "NVFP4", _NV_BLOCK, "F8_E4M3"), factor=factor, divides=divides)


def _rows(parts: Parts, codes: str, kind: str, block: int, *scale_types: str) -> FloatBlocks:
    rows, size = parts.shape(codes, 2)
    if size * 2 % block:
        raise parts.error(f"{codes} has rows of {size * 2} numbers, which are no blocks of {block}")
    parts.require(codes, (rows, size), "U8")
    parts.require("weight_scale", (rows, size * 2 // block), *scale_types)
    return FloatBlocks(
        parts=parts,
        kind=kind,
        shape=(rows, size * 2),
        block=block,
        codes=codes,
        scales="weight_scale",
    )


def _wide(scales: Tensor) -> Tensor:
    """Return scales as float32; bytes are exponents of two, of which the largest stands for NaN."""
    return (scales.view(torch.float8_e8m0fnu) if scales.dtype == torch.uint8 else scales).float()


@lru_cache
def _pairs() -> Tensor:
    """Return the two numbers that each byte stands for, (256, 2)."""
    table = torch.tensor([*E2M1, *(-number for number in E2M1)])
    byte = torch.arange(256)
    return torch.stack((table[byte & 15], table[byte >> 4]), 1)
