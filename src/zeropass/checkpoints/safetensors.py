"""Weights in one or several .safetensors files, read through the safetensors library."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open

from zeropass._io.untrusted import check_file
from zeropass.checkpoints.base import FLOATS, Float32
from zeropass.checkpoints.checked import CheckedSource
from zeropass.checkpoints.shards import Merged, merge_shards
from zeropass.errors import BadModel, BadWeights

__all__ = ["SafetensorsSource"]

Part = TypeVar("Part")
"""A copy of a part of a tensor, as torch or numpy has it."""


class SafetensorsSource(CheckedSource):
    """The tensors of one file, or of the shards of one model.

    Args:
        files: The file, or the shards in their order.
        index: Tensor name to shard file name, as in ``model.safetensors.index.json``.

    Attributes:
        merged: The file of each tensor, and the tensors that the index omits.

    Raises:
        BadModel: If a file is damaged, or a tensor is in two shards without an index.
        BadWeights: If a tensor that the index names is not in its shard.
    """

    def __init__(self, files: Sequence[Path], index: Mapping[str, str] | None = None) -> None:
        self.path: str = str(files[0] if len(files) == 1 else files[0].parent)
        read = {file: _header(file) for file in files}
        headers = {file: tensors for file, (tensors, _) in read.items()}
        self._metadata = {file: metadata for file, (_, metadata) in read.items()}
        self.merged: Merged = merge_shards({file: list(header) for file, header in headers.items()}, index)
        self._file_of = self.merged.home
        self._headers = {name: headers[file][name] for name, file in self._file_of.items()}

    def names(self) -> list[str]:
        """Return the names of all tensors, shard by shard."""
        return list(self._file_of)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return self._header(name)[0]

    def dtype(self, name: str) -> str:
        """Return the name of the stored type, as safetensors spells it (``F32``, ``BF16`` …)."""
        return self._header(name)[1]

    def metadata(self, name: str) -> Mapping[str, str]:
        """Return the metadata of the file that holds a tensor."""
        return self._metadata[self._file_of[name]]

    def _file(self, name: str) -> str:
        return str(self._file_of[name])

    def _header(self, name: str) -> tuple[tuple[int, ...], str]:
        if name not in self._headers:
            raise self._missing(name)
        return self._headers[name]

    def _read(self, name: str, rows: slice, columns: slice) -> Float32:
        stored_type = self.dtype(name)
        if stored_type not in FLOATS:
            raise BadWeights(
                f"{self._where(name)} is stored as {stored_type}; zeropass reads {', '.join(FLOATS)}. "
                "A quantised model has to be converted first (or used as GGUF)."
            )
        return self._part(name, (rows,) if columns == slice(None) else (rows, columns), _to_float32)

    def stored(self, name: str, *index: slice) -> torch.Tensor:
        """Return a tensor as it is stored, or of each of its first dimensions what a slice says, in its own memory."""
        return self._part(name, index, torch.clone)

    def _part(self, name: str, index: tuple[slice, ...], copied: Callable[[torch.Tensor], Part]) -> Part:
        """Return a copy of a part of a tensor."""
        # The file is opened for every read: while it stays mapped, all pages ever read count towards our memory.
        try:
            with _open(self._file_of[name]) as file:
                if not index or not self._header(name)[0]:
                    return copied(file.get_tensor(name))
                return copied(file.get_slice(name)[index])
        except SafetensorError as error:
            raise BadWeights(f"{self._where(name)} is no longer there: the file changed ({error}).") from error


def _header(file: Path) -> tuple[dict[str, tuple[tuple[int, ...], str]], dict[str, str]]:
    """Read the shape and the stored type of every tensor of a file, and the metadata of the file."""
    check_file(file)
    with _open(file) as handle:
        slices = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118 - a handle is no dict
        tensors = {name: (tuple(tensor.get_shape()), str(tensor.get_dtype())) for name, tensor in slices.items()}
        return tensors, dict(handle.metadata() or {})


def _open(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except SafetensorError as error:
        size = file.stat().st_size
        raise BadModel(f"{file} is not a whole safetensors file ({size} bytes; {error}). Download it again.") from error
    except OSError as error:
        raise BadModel(f"{file} cannot be read: {error}.") from error


def _to_float32(tensor: torch.Tensor) -> Float32:
    # The tensor may be a view of the mapped file, so it is always copied, and only once.
    return tensor.to(torch.float32, memory_format=torch.contiguous_format, copy=True).numpy()
