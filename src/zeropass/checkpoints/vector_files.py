"""Directions of the residual stream in files: .npy of NumPy, and tensors of .safetensors files."""

from pathlib import Path

import numpy as np

from zeropass._io.untrusted import check_file
from zeropass.checkpoints.base import Float32
from zeropass.checkpoints.safetensors import SafetensorsSource
from zeropass.errors import BadOption

__all__ = ["read_vectors"]

_SAFETENSORS = ".safetensors"


def read_vectors(place: str) -> Float32:
    """Read the vectors of a file; nothing is unpickled.

    Args:
        place: ``FILE.npy``, ``FILE.safetensors``, or ``FILE.safetensors:name`` for one of several tensors.

    Returns:
        One vector (d,), or a table (n, d).

    Raises:
        BadModel: If the file is missing, damaged or none of these; BadWeights for numbers that are not finite.
        BadOption: If the file has another suffix, or holds several tensors and none is named, or no real numbers.
    """
    file, mark, name = place.rpartition(f"{_SAFETENSORS}:")
    path, name = (Path(file + _SAFETENSORS), name) if mark else (Path(place), "")
    if path.suffix == ".npy":
        return _array(path)
    if path.suffix != _SAFETENSORS:
        raise BadOption(f"{path} is no file of vectors that is read: these are .npy and .safetensors[:name].")
    check_file(path)
    source = SafetensorsSource([path])
    names = source.names()
    if not name and len(names) != 1:
        raise BadOption(f"{path} holds {len(names)} tensors; name one of them: {path}:{names[0] if names else 'NAME'}.")
    return source.rows(name or names[0])


def _array(path: Path) -> Float32:
    """Return the array of a .npy file."""
    check_file(path)
    try:
        array = np.load(path, allow_pickle=False)
    except Exception as error:  # NumPy raises nearly any error for a damaged header
        raise BadOption(f"{path} cannot be read as an array: {error}") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
        raise BadOption(f"{path} holds {getattr(array, 'dtype', 'several arrays')}; vectors are real numbers.")
    return np.ascontiguousarray(array, np.float32)
