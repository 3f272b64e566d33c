"""The weights of torchao in safetensors: the metadata of the file say what tensor each one is, as JSON."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from zeropass._io.parse import parse_json
from zeropass.checkpoints.base import FLOATS, QUANTISED
from zeropass.checkpoints.quantised_parts import Packed, Parts, parts_of_range
from zeropass.checkpoints.scaled_weights import scaled

__all__ = ["PARTS", "Nibbles", "torchao"]

_DATA, _SCALE, _ZERO = "_weight_qdata", "_weight_scale", "_weight_zero_point"
_ACTIVATIONS = ("_weight_act_quant_scale", "_weight_act_quant_zero_point")
PARTS = (_DATA, _SCALE, _ZERO, *_ACTIVATIONS)

_STORED = {"Float8Tensor": "F8_E4M3", "Int8Tensor": "I8", "IntxUnpackedToInt8Tensor": "I8"}
"""The types of tensors whose numbers are stored one by one, and the stored types."""

_LONGEST = 10_000
"""The largest number of characters of the facts of a weight."""


@dataclass(frozen=True)
class Nibbles:
    """A weight of numbers from -8 to 7, times the scale of their group of inputs, plus its zero point (Int4Tensor).

    Two numbers fill a byte, the first in the lower bits. Scales and zero points are (groups, outputs).

    Attributes:
        parts: The stored tensors.
        shape: The shape of the weight.
        size: The inputs of a group.
    """

    parts: Parts
    shape: tuple[int, int]
    size: int
    kind: str = "INT4"

    def decode(self, rows: slice, columns: slice) -> Tensor:
        """Return rows and columns as float32."""
        pairs = parts_of_range(columns.start, columns.stop, 2)
        stored = self.parts.read(_DATA, rows, pairs).view(torch.uint8).int()
        numbers = (torch.stack((stored & 15, stored >> 4), 2) ^ 8).flatten(1) - 8
        groups = parts_of_range(columns.start, columns.stop, self.size)
        which = torch.arange(columns.start, columns.stop) // self.size - groups.start
        scales, zeros = (self.parts.read(part, groups, rows).float().T[:, which] for part in (_SCALE, _ZERO))
        return numbers[:, columns.start - pairs.start * 2 :][:, : len(which)] * scales + zeros


def torchao(parts: Parts) -> Packed:
    """Return a weight; raise BadWeights if its parts do not fit each other, or for a type that is not read."""
    tensor_type, facts = _facts(parts)
    block = facts.get("block_size")
    if not isinstance(block, list) or len(block) != 2 or not all(type(size) is int and size > 0 for size in block):
        raise parts.error(f"its block_size is {block}; two positive numbers are right")
    if tensor_type == "Int4Tensor":
        return _nibbles(parts, block)
    if tensor_type not in _STORED:
        known = ", ".join((*_STORED, "Int4Tensor"))
        raise parts.error(
            f"torchao keeps it as {tensor_type}, which is laid out for one kind of device; {known} are read. Quantise "
            "the model again in one of these forms, or use it as it was before"
        )
    names = {"weight": _DATA, "weight_scale": _SCALE, "weight_zero_point": _ZERO}
    usual = replace(parts, names={name: parts.names[part] for name, part in names.items() if part in parts})
    usual.shape("weight_scale", 2)
    weight = scaled(usual, "weight_scale", block, (_STORED[tensor_type],))
    if tensor_type != "IntxUnpackedToInt8Tensor":
        return weight
    target = facts.get("target_dtype")
    kind = str(target.get("_data")).upper() if isinstance(target, Mapping) else ""
    if kind not in QUANTISED or not kind.startswith("INT"):
        raise parts.error(f"its target_dtype is {target}; the types of whole numbers are read")
    return replace(weight, kind=kind)


def _nibbles(parts: Parts, block: list[int]) -> Nibbles:
    rows, size = parts.shape(_DATA, 2)
    parts.require(_DATA, (rows, size), "I8", "U8")
    if block[0] != 1 or size * 2 % block[1]:
        raise parts.error(f"its block_size is {block}, which does not divide rows of {size * 2} numbers")
    for part in (_SCALE, _ZERO):
        parts.require(part, (size * 2 // block[1], rows), *FLOATS)
    return Nibbles(parts, (rows, size * 2), block[1])


def _facts(parts: Parts) -> tuple[str, Mapping[str, Any]]:
    """Return the type of tensor that a weight is, and its attributes."""
    text = parts.source.metadata(parts.names[_DATA]).get(parts.stem + parts.weight, "")
    try:
        facts = parse_json(text[:_LONGEST].encode())
    except ValueError as error:
        raise parts.error(f"the metadata of its file do not say what tensor of torchao it is ({error})") from error
    if not isinstance(facts, Mapping) or not isinstance(facts.get("_data"), Mapping):
        raise parts.error(f"the metadata of its file say {text[:100]} of it; an object with _type and _data is right")
    return str(facts.get("_type"))[:100], facts["_data"]
