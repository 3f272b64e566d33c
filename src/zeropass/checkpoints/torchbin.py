"""Weights in PyTorch's own .bin and .pt files, read without ever unpickling an object."""

import pickle
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from zeropass._io.untrusted import check_file
from zeropass.checkpoints.base import Float32
from zeropass.checkpoints.checked import CheckedSource
from zeropass.checkpoints.shards import merge_shards
from zeropass.errors import BadModel, BadWeights

__all__ = ["TorchBinSource"]

READABLE = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


class TorchBinSource(CheckedSource):
    """Named tensors of one state dict, or of the shards of one.

    Args:
        files: the file, or the shards in their order.
        index: tensor name to shard file name, as ``pytorch_model.bin.index.json`` gives it.

    ``merged`` says where each tensor is read, and what the index left out.

    Raises BadModel if a file is damaged, is no state dict, or would need unpickling.
    """

    def __init__(self, files: Sequence[Path], index: Mapping[str, str] | None = None) -> None:
        self.path = str(files[0] if len(files) == 1 else files[0].parent)
        states = {file: _load(file) for file in files}
        self.merged = merge_shards({file: list(state) for file, state in states.items()}, index)
        self._home = self.merged.home
        self._tensors = {name: states[file][name] for name, file in self._home.items()}

    def names(self) -> list[str]:
        """Names of all tensors, shard by shard."""
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return tuple(self._find(name).shape)

    def dtype(self, name: str) -> str:
        """Name of the stored type, as safetensors spells it or else PyTorch."""
        kind = self._find(name).dtype
        return READABLE.get(kind, str(kind).removeprefix("torch."))

    def _file(self, name: str) -> str:
        return str(self._home[name])

    def _find(self, name: str) -> torch.Tensor:
        if name not in self._tensors:
            raise self._missing(name)
        return self._tensors[name]

    def _read(self, name: str, rows: slice, columns: slice) -> Float32:
        tensor = self._find(name)
        if tensor.dtype not in READABLE or tensor.layout != torch.strided or tensor.is_meta:
            kinds = ", ".join(READABLE.values())
            raise BadWeights(
                f"{self._where(name)} is stored as {self.dtype(name)} ({tensor.layout} on {tensor.device}); "
                f"zeropass reads dense {kinds}."
            )
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise BadWeights(f"{self._where(name)} has shape {self.shape(name)}, more than the file stores of it.")
        part = tensor if not tensor.shape else tensor[rows]
        part = part if columns == slice(None) else part[:, columns]
        # The tensor is a view of the mapped file, so it is always copied.
        return np.array(part.detach().to(torch.float32).numpy(), dtype=np.float32, order="C")


def _load(file: Path) -> dict[str, torch.Tensor]:
    """Read a state dict; the tensors stay in the mapped file where the format allows it."""
    check_file(file)
    _refuse_compressed(file)
    try:
        # Files from before PyTorch 1.6 are not zip archives and cannot be mapped.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch says of an odd pickle is no message of ours
            state = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        raise BadModel(
            f"{file} cannot be read without unpickling objects, which can run any code; it is refused. "
            "Use a .safetensors file of this model."
        ) from error
    except Exception as error:  # damaged bytes make torch.load raise nearly anything
        raise BadModel(f"{file} is not a whole PyTorch file: {error!r}. Download it again.") from error
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    ):
        raise BadModel(f"{file} is not a state dict (a dictionary from names to tensors).")
    return state


def _refuse_compressed(file: Path) -> None:
    """Raise BadModel for an archive whose members are compressed: torch never writes one, and a small one may unpack to
    any size.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            packed = [one.filename for one in archive.infolist() if one.compress_type != zipfile.ZIP_STORED]
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return  # no archive, or a damaged one, which torch tells
    if packed:
        raise BadModel(f"{file} holds compressed members ({packed[0]!r}), which PyTorch does not write; it is refused.")
