"""Directions of the residual stream in files: .npy of NumPy, and tensors of .safetensors and .gguf files."""

import re
from pathlib import Path

import numpy as np

from zeropass._io.untrusted import check_file
from zeropass.checkpoints.base import Float32
from zeropass.checkpoints.gguf import GgufSource
from zeropass.checkpoints.safetensors import SafetensorsSource
from zeropass.errors import BadOption

__all__ = ["read_vectors"]

_NAMED = re.compile(r"(.*\.(?:safetensors|gguf)):(.*)", re.DOTALL)
"""A file with the name of a tensor in it."""


def read_vectors(place: str) -> Float32:
    """Read the vectors of a file; nothing is unpickled.

    Args:
        place: ``FILE.npy``, ``FILE.safetensors`` or ``FILE.gguf``, the latter with ``:name`` for one of several
            tensors, or ``:name.T`` for one whose columns are the vectors, such as ``lora_B`` of what writes. Control
            vectors (of repeng and llama.cpp) are GGUF files with a tensor ``direction.12`` for what is added to the
            output of layer 12, which enters layer 13.

    Returns:
        One vector (d,), or a table (n, d).

    Raises:
        BadModel: If the file is missing, damaged or none of these; BadWeights for numbers that are not finite.
        BadOption: If the file has another suffix, or holds several tensors and none is named, or no real numbers.
    """
    match = _NAMED.fullmatch(place)
    path, name = (Path(match[1]), match[2]) if match else (Path(place), "")
    if path.suffix == ".npy":
        return _array(path)
    if path.suffix not in (".safetensors", ".gguf"):
        raise BadOption(
            f"{path} is no file of vectors that is read: these are .npy, .safetensors[:name], .gguf[:name]."
        )
    check_file(path)
    source = SafetensorsSource([path]) if path.suffix == ".safetensors" else GgufSource(path)
    names = source.names()
    if not name and len(names) != 1:
        raise BadOption(f"{path} holds {len(names)} tensors; name one of them: {path}:{names[0] if names else 'NAME'}.")
    if name not in names and name.removesuffix(".T") in names:
        return np.ascontiguousarray(source.rows(name.removesuffix(".T")).T)
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
