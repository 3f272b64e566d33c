"""Weights of 4-bit floats (E2M1) in blocks along their rows: MXFP4 and NVFP4.

MXFP4 is that of the OCP Microscaling Formats (MX) Specification 1.0: blocks of 32 with powers of two as scales. NVFP4
has blocks of 16 with scales in E4M3, and one more factor for all of them.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from zeropass.checkpoints.quantised_parts import Packed, Parts, Turned, parts_of_range

__all__ = ["E2M1", "FloatBlocks", "stacked"]

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""The numbers that the lower three bits stand for; the fourth is the sign."""

_MX_BLOCK = 32


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
        factor: The factor of all scales.
    """

    parts: Parts
    kind: str
    shape: tuple[int, int]
    block: int
    codes: str
    scales: str
    expert: int | None = None
    factor: float = 1.0

    def decode(self, rows: slice, columns: slice) -> Tensor:
        """Return rows and columns as float32."""
        groups = parts_of_range(columns.start, columns.stop, self.block)
        scales = _wide(self.parts.read(self.scales, *self._expert, rows, groups)) * self.factor
        scales = scales.view(rows.stop - rows.start, groups.stop - groups.start, 1)
        numbers = _pairs().index_select(0, self._bytes(rows, groups).flatten().int()).view(*scales.shape[:2], -1)
        first = columns.start - groups.start * self.block
        return (numbers * scales).flatten(1)[:, first : first + columns.stop - columns.start]

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
        Turned(FloatBlocks(parts, "MXFP4", shape, _MX_BLOCK, codes, scales, expert)) for expert in range(experts)
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
