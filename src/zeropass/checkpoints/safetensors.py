"""Weights in one or several .safetensors files, read through the safetensors library."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from zeropass._io.untrusted import check_file
from zeropass.checkpoints.base import FLOATS, Float32
from zeropass.checkpoints.checked import CheckedSource
from zeropass.checkpoints.shards import merge_shards
from zeropass.errors import BadModel, BadWeights

__all__ = ["SafetensorsSource"]


class SafetensorsSource(CheckedSource):
    """Named tensors of one file, or of the shards of one model.

    Args:
        files: the file, or the shards in their order.
        index: tensor name to shard file name, as ``model.safetensors.index.json`` gives it.

    ``merged`` says where each tensor is read, and what the index left out.

    Raises BadModel if a file is damaged or a tensor is in two shards without an index, BadWeights if a tensor that the
    index names is not in its shard.
    """

    def __init__(self, files: Sequence[Path], index: Mapping[str, str] | None = None) -> None:
        self.path = str(files[0] if len(files) == 1 else files[0].parent)
        headers = {file: _header(file) for file in files}
        self.merged = merge_shards({file: list(header) for file, header in headers.items()}, index)
        self._home = self.merged.home
        self._headers = {name: headers[file][name] for name, file in self._home.items()}

    def names(self) -> list[str]:
        """Names of all tensors, shard by shard."""
        return list(self._home)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self._header(name)[0]

    def dtype(self, name: str) -> str:
        """Name of the stored type, as safetensors spells it (``F32``, ``BF16`` …)."""
        return self._header(name)[1]

    def _file(self, name: str) -> str:
        return str(self._home[name])

    def _header(self, name: str) -> tuple[tuple[int, ...], str]:
        if name not in self._headers:
            raise self._missing(name)
        return self._headers[name]

    def _read(self, name: str, rows: slice, columns: slice) -> Float32:
        shape, kind = self._header(name)
        if kind not in FLOATS:
            raise BadWeights(
                f"{self._where(name)} is stored as {kind}; zeropass reads {', '.join(FLOATS)}. "
                "A quantised model has to be converted first (or used as GGUF)."
            )
        # Opened for every read: as long as a file stays mapped, all pages that were ever read count as ours.
        try:
            with _open(self._home[name]) as file:
                if not shape:
                    return _to_float32(file.get_tensor(name))
                lazy = file.get_slice(name)
                return _to_float32(lazy[rows] if columns == slice(None) else lazy[rows, columns])
        except SafetensorError as error:
            raise BadWeights(f"{self._where(name)} is no longer there: the file changed ({error}).") from error


def _header(file: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and stored type of every tensor of a file."""
    check_file(file)
    with _open(file) as handle:
        slices = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118 - a handle is no dict
        return {name: (tuple(one.get_shape()), str(one.get_dtype())) for name, one in slices.items()}


def _open(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except SafetensorError as error:
        size = file.stat().st_size
        raise BadModel(f"{file} is not a whole safetensors file ({size} bytes; {error}). Download it again.") from error
    except OSError as error:
        raise BadModel(f"{file} cannot be read: {error}.") from error


def _to_float32(tensor: torch.Tensor) -> Float32:
    # A tensor of safetensors may be a view of the mapped file, so it is always copied, and once is enough.
    return tensor.to(torch.float32, memory_format=torch.contiguous_format, copy=True).numpy()
