"""The stored tensors that make one quantised weight: their checks, and reading of a part of each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from zeropass.checkpoints.safetensors import SafetensorsSource
from zeropass.errors import BadWeights

__all__ = ["ALL", "Packed", "Parts", "Turned", "groups_of", "parts_of_range", "unpacked"]

ALL = slice(None)


class Packed(Protocol):
    """One weight, a matrix whose rows are decoded when they are asked for."""

    @property
    def kind(self) -> str:
        """The name of the stored type, such as ``NF4``."""
        ...

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the weight, rows first."""
        ...

    def decode(self, rows: slice, columns: slice) -> Tensor:
        """Return rows and columns, of which there is at least one each, as float32; both slices have two ends."""
        ...


@dataclass(frozen=True)
class Turned:
    """A weight that is the transpose of what is stored."""

    packed: Packed

    @property
    def kind(self) -> str:
        """The name of the stored type."""
        return self.packed.kind

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the weight."""
        rows, columns = self.packed.shape
        return columns, rows

    def decode(self, rows: slice, columns: slice) -> Tensor:
        """Return rows and columns as float32."""
        return self.packed.decode(columns, rows).T


@dataclass(frozen=True)
class Parts:
    """The stored tensors of one quantised weight.

    Attributes:
        source: The tensors of the file(s).
        stem: The beginning of their names, with its full stop.
        names: The name of each part (``weight``, ``qweight``, ``weight.absmax`` …) that is there.
        settings: The object ``quantization_config`` of the configuration.
        weight: The end of the name of the weight that they make.
    """

    source: SafetensorsSource
    stem: str
    names: Mapping[str, str]
    settings: Mapping[str, Any]
    weight: str = "weight"

    def __contains__(self, part: str) -> bool:
        return part in self.names

    def shape(self, part: str, dimensions: int) -> tuple[int, ...]:
        """Return the shape of a part; raise BadWeights if it is missing or has another number of dimensions."""
        if part not in self.names:
            raise self.error(f"it is quantised, but {self.stem}{part} is missing")
        shape = self.source.shape(self.names[part])
        if len(shape) != dimensions or 0 in shape:
            raise self.error(f"{part} has shape {shape}; it must have {dimensions} dimensions and some numbers")
        return shape

    def require(self, part: str, shape: Sequence[int], *types: str) -> None:
        """Raise BadWeights if a part is missing, or has another shape or type."""
        self.shape(part, len(shape))
        stored, kind = self.source.shape(self.names[part]), self.kind(part)
        if stored != tuple(shape) or kind not in types:
            raise self.error(f"{part} is {kind} of shape {stored}; {' or '.join(types)} of {tuple(shape)} is right")

    def kind(self, part: str) -> str:
        """Return the name of the type in which a part is stored."""
        return self.source.dtype(self.names[part])

    def read(self, part: str, *index: slice) -> Tensor:
        """Return a part as it is stored, or of each of its first dimensions what a slice says."""
        return self.source.stored(self.names[part], *index)

    def error(self, problem: str) -> BadWeights:
        """Return the error that says what is wrong with this weight."""
        return BadWeights(f"{self.source.path}: tensor {self.stem + self.weight!r}: {problem}.")


def parts_of_range(start: int, stop: int, size: int) -> slice:
    """Return the blocks of ``size`` numbers that hold the numbers ``start:stop``."""
    return slice(start // size, -(-stop // size))


def unpacked(words: Tensor, bits: int, dim: int) -> Tensor:
    """Return the whole numbers that are packed in int32, the lowest bits first, as int32.

    Args:
        words: The packed numbers, (n, m).
        bits: The number of bits of each. Along the columns it may be no divisor of 32: numbers then run over the ends
            of words, and 32 numbers fill that many words.
        dim: The dimension along which they are packed, which becomes 32 / bits times as long.
    """
    if 32 % bits:
        return _unpacked_runs(words, bits)
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    mask = (1 << bits) - 1
    if dim == 0:
        return (words[:, None, :] >> shifts[None, :, None]).bitwise_and_(mask).flatten(0, 1)
    return (words[:, :, None] >> shifts).bitwise_and_(mask).flatten(1)


def _unpacked_runs(words: Tensor, bits: int) -> Tensor:
    """Return the numbers of words, (n, m), where each 32 numbers fill as many words as a number has bits."""
    runs = words.view(len(words), -1, bits)
    numbers = torch.empty((len(words), runs.shape[1], 32), dtype=torch.int32)
    for place in range(32):
        word, start = divmod(place * bits, 32)
        number = runs[..., word] >> start
        if start + bits > 32:  # the rest of it is in the next word
            number = number & ((1 << (32 - start)) - 1) | (runs[..., word + 1] << (32 - start))
        numbers[..., place] = number & ((1 << bits) - 1)
    return numbers.flatten(1)


def groups_of(parts: Parts, part: str, width: int, count: int, size: int) -> Tensor:
    """Return the group of each input of a weight, (width,), whose scale is that of the input.

    Args:
        parts: The stored tensors.
        part: The part that holds the groups, if there is one; otherwise inputs are in groups of ``size``.
        width: The number of inputs.
        count: The number of groups.
        size: The number of inputs of a group.

    Raises:
        BadWeights: For a group that does not exist.
    """
    if part not in parts:
        return torch.arange(width) // size
    groups = parts.read(part).long()
    if int(groups.min()) < 0 or int(groups.max()) >= count:
        raise parts.error(f"{part} names the groups {int(groups.min())} to {int(groups.max())}; there are {count}")
    return groups
