"""Weights in memory: a state dict, read where it lies."""

import hashlib
from collections.abc import Collection, Iterator, Mapping
from functools import cached_property

import torch
from torch import Tensor, nn

from zeropass.checkpoints.base import FLOATS
from zeropass.checkpoints.torchbin import TorchTensors
from zeropass.errors import BadModel

__all__ = ["StateDictSource"]

_ROWS = 4096
"""The number of rows that are hashed at once."""


class StateDictSource(TorchTensors):
    """The tensors of a state dict, on whatever devices they are. Only the rows that are read are copied.

    Of tensors that share their memory, such as tied embeddings, the first is kept: a file holds it once, too.

    Args:
        place: The name of the model, for messages.
        state: The tensors by name.
        apart: Names that are kept although their tensors share the memory of others.

    Raises:
        BadModel: For a tensor whose numbers are not there as they are: on the meta device, sparse, of a class of a
            library that quantises or distributes it, or no tensor at all.
    """

    def __init__(self, place: str, state: Mapping[str, object], apart: Collection[str] = ()) -> None:
        tensors = {name: _plain(place, name, value) for name, value in state.items()}
        super().__init__(place, dict(_distinct(tensors, apart)))

    @cached_property
    def fingerprint(self) -> str:
        """The SHA-256 over names, shapes and values (as float32) of all tensors of numbers, in the order of names."""
        digest = hashlib.sha256()
        for name in sorted(name for name in self.names() if self.dtype(name) in FLOATS):
            shape = self.shape(name)
            digest.update(f"{name} {shape} ".encode())
            for start in range(0, shape[0] if shape else 1, _ROWS):
                digest.update(self._read(name, slice(start, start + _ROWS), slice(None)).data)
        return digest.hexdigest()

    @property
    def size(self) -> int:
        """The size of the tensors in bytes."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self._tensors.values())


def _plain(place: str, name: str, value: object) -> Tensor:
    """Return a tensor; raise BadModel, with what to do, for anything that does not hold its own numbers."""
    kind = type(value)
    if kind not in (Tensor, nn.Parameter):
        library = kind.__module__.partition(".")[0]
        raise BadModel(
            f"{place}: {name} is a {kind.__name__} of {library}, which is not read: zeropass reads plain tensors. "
            "Give the model as it was before it was quantised or distributed."
        )
    assert isinstance(value, Tensor)
    if value.is_meta:
        raise BadModel(
            f"{place}: {name} is on the meta device, so its numbers are not here: the model was not loaded, or "
            "accelerate moved it elsewhere. Load it on devices that hold it (in nnsight: dispatch=True)."
        )
    if value.layout != torch.strided:
        raise BadModel(f"{place}: {name} is stored as {value.layout}; zeropass reads dense tensors.")
    return value


def _distinct(state: Mapping[str, Tensor], apart: Collection[str]) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors without those that lie in the memory of an earlier one, in the same shape."""
    seen = set()
    for name, tensor in state.items():
        memory = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if name in apart or memory not in seen or not tensor.numel():
            yield name, tensor
        if name not in apart:
            seen.add(memory)
