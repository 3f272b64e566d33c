"""The arrays of a .npz file of NumPy; nothing is unpickled."""

import zipfile
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from zeropass._io.untrusted import check_file
from zeropass.checkpoints.base import Float32
from zeropass.checkpoints.checked import CheckedSource
from zeropass.errors import BadModel, BadWeights

__all__ = ["NpzSource"]

_TYPES = {"float64": "F64", "float32": "F32", "float16": "F16"}


class NpzSource(CheckedSource):
    """The arrays of one file; the last array that was read is kept, since none can be read in parts.

    Args:
        file: The file.

    Raises:
        BadModel: If the file is damaged or no archive of arrays.
    """

    def __init__(self, file: Path) -> None:
        check_file(file)
        self.path: str = str(file)
        self._array = lru_cache(1)(self._loaded)
        _ = self._headers

    def names(self) -> list[str]:
        """Return the names of all arrays."""
        return list(self._headers)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of an array."""
        return self._header(name)[0]

    def dtype(self, name: str) -> str:
        """Return the name of the stored type: ``F32``, or NumPy's name of a type that is not read."""
        return self._header(name)[1]

    def _header(self, name: str) -> tuple[tuple[int, ...], str]:
        if name not in self._headers:
            raise self._missing(name)
        return self._headers[name]

    @cached_property
    def _headers(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """The shape and the stored type of each array, whose numbers are not read."""
        try:
            with zipfile.ZipFile(self.path) as archive:
                return {name.removesuffix(".npy"): _header_of(archive, name) for name in archive.namelist()}
        except Exception as error:  # zipfile and NumPy raise nearly any error for a damaged header
            raise BadModel(f"{self.path} cannot be read as an archive of arrays (.npz): {error}") from error

    def _read(self, name: str, rows: slice, columns: slice) -> Float32:
        array = self._array(name)
        part = array[rows] if array.ndim else array
        return np.array(part if columns == slice(None) else part[:, columns], dtype=np.float32, order="C")

    def _loaded(self, name: str) -> npt.NDArray[np.floating]:
        if self.dtype(name) not in _TYPES.values():
            raise BadWeights(f"{self._where(name)} is stored as {self.dtype(name)}; vectors are real numbers.")
        try:
            with np.load(self.path, allow_pickle=False) as archive:
                array: npt.NDArray[np.floating] = archive[name]
        except Exception as error:  # NumPy and zipfile raise nearly any error for damaged bytes
            raise BadWeights(f"{self._where(name)} cannot be read: {error}") from error
        return array


def _header_of(archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], str]:
    """Return the shape and the stored type of one array of an archive."""
    with archive.open(name) as file:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{name} has a header of version {version}")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    return shape, _TYPES.get(str(dtype), str(dtype))
