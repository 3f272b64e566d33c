"""Weights in PyTorch's .bin and .pt files, read without unpickling arbitrary objects."""

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
from zeropass.checkpoints.shards import Merged, merge_shards
from zeropass.errors import BadModel, BadWeights

__all__ = ["TorchBinSource", "TorchTensors", "read_torch"]

READABLE = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


class TorchTensors(CheckedSource):
    """Named tensors: of a file that `read_torch` has read, or in memory.

    Args:
        path: The file or the name of the model, for messages.
        tensors: The tensors.
    """

    def __init__(self, path: str, tensors: Mapping[str, torch.Tensor]) -> None:
        self.path: str = path
        self._tensors = tensors

    def names(self) -> list[str]:
        """Return the names of all tensors, in the order of the file(s)."""
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return tuple(self._find(name).shape)

    def dtype(self, name: str) -> str:
        """Return the name of the stored type, as safetensors spells it, or else PyTorch."""
        dtype = self._find(name).dtype
        return READABLE.get(dtype, str(dtype).removeprefix("torch."))

    def _values(self, name: str) -> torch.Tensor:
        """Return the tensor whose numbers are read."""
        return self._find(name)

    def _find(self, name: str) -> torch.Tensor:
        if name not in self._tensors:
            raise self._missing(name)
        return self._tensors[name]

    def _read(self, name: str, rows: slice, columns: slice) -> Float32:
        tensor = self._values(name)
        if tensor.dtype not in READABLE or tensor.layout != torch.strided or tensor.is_meta:
            readable = ", ".join(READABLE.values())
            raise BadWeights(
                f"{self._where(name)} is stored as {self.dtype(name)} ({tensor.layout} on {tensor.device}); "
                f"zeropass reads dense {readable}."
            )
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise BadWeights(f"{self._where(name)} has shape {self.shape(name)}, more than is stored of it.")
        part = tensor if not tensor.shape else tensor[rows]
        part = part if columns == slice(None) else part[:, columns]
        # The tensor is a view of the mapped file or of the model in memory, so it is always copied.
        return np.array(part.detach().cpu().to(torch.float32).numpy(), dtype=np.float32, order="C")


class TorchBinSource(TorchTensors):
    """The tensors of one state dict, or of the shards of one.

    Args:
        files: The file, or the shards in their order.
        index: Tensor name to shard file name, as in ``pytorch_model.bin.index.json``.

    Attributes:
        merged: The file of each tensor, and the tensors that the index omits.

    Raises:
        BadModel: If a file is damaged, is no state dict, or would need unpickling, or if a tensor is in two shards
            without an index.
        BadWeights: If a tensor that the index names is not in its shard.
    """

    def __init__(self, files: Sequence[Path], index: Mapping[str, str] | None = None) -> None:
        states = {file: _state_dict(file) for file in files}
        self.merged: Merged = merge_shards({file: list(state) for file, state in states.items()}, index)
        tensors = {name: states[file][name] for name, file in self.merged.home.items()}
        super().__init__(str(files[0] if len(files) == 1 else files[0].parent), tensors)

    def _file(self, name: str) -> str:
        return str(self.merged.home[name])


def _state_dict(file: Path) -> dict[str, torch.Tensor]:
    """Read a dictionary from names to tensors; raise BadModel for anything else (`read_torch`)."""
    state = read_torch(file)
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    ):
        raise BadModel(f"{file} is not a state dict (a dictionary from names to tensors).")
    return state


def read_torch(file: Path) -> object:
    """Read what torch.save wrote, leaving tensors in the mapped file where the format allows it.

    Raises:
        BadModel: If the file is damaged, or would need unpickling.
    """
    check_file(file)
    _refuse_compressed(file)
    try:
        # Files from before PyTorch 1.6 are not zip archives and cannot be mapped.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's warnings about unusual pickles do not help our users
            return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        raise BadModel(
            f"{file} cannot be read without unpickling objects, which can run any code; it is refused. "
            "Of a model, use a .safetensors file."
        ) from error
    except Exception as error:  # damaged bytes make torch.load raise nearly anything
        raise BadModel(f"{file} is not a whole PyTorch file: {error!r}. Download it again.") from error


def _refuse_compressed(file: Path) -> None:
    """Raise BadModel for compressed members: torch never writes them, and small ones may unpack to any size."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = [info.filename for info in archive.infolist() if info.compress_type != zipfile.ZIP_STORED]
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return  # no archive, or a damaged one, which torch.load reports
    if names:
        raise BadModel(f"{file} holds compressed members ({names[0]!r}), which PyTorch does not write; it is refused.")
