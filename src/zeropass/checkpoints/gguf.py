"""Weights, configuration and vocabulary of a GGUF file; rows are dequantised only on request.

The header is not read with ``gguf.GGUFReader``, which takes seconds for a large vocabulary and trusts
every length in the file. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import mmap
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize, quantize

from zeropass._io.untrusted import check_file
from zeropass.checkpoints.base import Float32
from zeropass.checkpoints.checked import CheckedSource
from zeropass.checkpoints.weight_files import gguf_parts
from zeropass.errors import BadModel, BadWeights

__all__ = ["GgufSource", "requantised"]

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_DIMS = 4
DEFAULT_ALIGNMENT = 32
ALIGNMENT_UNIT = 8
SPLIT_NUMBER, SPLIT_COUNT, SPLIT_TENSORS = "split.no", "split.count", "split.tensors.count"
PART_KEYS = (SPLIT_NUMBER, "general.alignment")
"""The keys that may differ between the parts of a split file."""

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
U64 = struct.Struct("<Q")


@dataclass(frozen=True)
class _Tensor:
    """The location of a tensor: ``offset`` and ``size`` in bytes of its file, ``size`` 0 for an unknown type."""

    file: str
    name: str
    shape: tuple[int, ...]
    type_id: int
    offset: int
    size: int

    @property
    def end(self) -> int:
        return self.offset + self.size


MAX_EXPERTS = 4096
"""The number of experts up to which a tensor is taken apart; more of them, in a hostile file, would fill the memory."""

_JOINED = 64
"""The largest number of rows that are decoded as one."""

_STACKED = re.compile(r"(blk\.\d+\.ffn_(?:gate|up|down|gate_up))_exps\.weight")
_ONE_ROW = re.compile(r"blk\.\d+\.ffn_gate_inp_shexp\.weight")
_KERNELS = re.compile(r"blk\.\d+\.(ssm_conv1d|shortconv\.conv)\.weight")
_OF_HEADS = re.compile(r"blk\.\d+\.ssm_[ad]")
_OF_GROUPS = re.compile(r"blk\.\d+\.ssm_norm\.weight")


def _shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a tensor by its name, where files differ in a dimension of 1.

    ggml does not tell (1, d) from (d,), and converters write the only row of a router and vectors of biases as either.
    Inside mixers they leave out a dimension of kernels, add one to numbers of heads, and lay gains out by groups.
    """
    if _KERNELS.fullmatch(name) and len(shape) == 2:
        return (shape[0], 1, shape[1])
    if _OF_HEADS.fullmatch(name) and len(shape) == 2 and shape[1] == 1:
        return shape[:1]
    if _OF_GROUPS.fullmatch(name):
        return (math.prod(shape),)
    if _ONE_ROW.fullmatch(name) and len(shape) == 1:
        return (1, *shape)
    if name.endswith(".bias") and len(shape) == 2 and shape[0] == 1:
        return shape[1:]
    return shape


MAX_LAYERS = 4096
"""The number of layers up to which lists of numbers are taken apart."""

_OF_LAYERS: Mapping[str, tuple[int, ...]] = {
    "xielu.alpha_p": (1,),
    "xielu.alpha_n": (1,),
    "xielu.beta": (),
    "xielu.eps": (),
}
"""Keys of the header that list parameters of an activation, a number for each layer, and the shape of each."""


def _numbers(metadata: Mapping[str, Any]) -> dict[str, Float32]:
    """Return the parameters that the header lists, each as a tensor by its layer (``blk.0.xielu.beta``)."""
    lists = {key: metadata.get(key) for key in _OF_LAYERS}
    return {
        f"blk.{layer}.{key}": np.full(_OF_LAYERS[key], number, np.float32)
        for key, values in lists.items()
        if isinstance(values, list) and len(values) <= MAX_LAYERS
        for layer, number in enumerate(values)
        if isinstance(number, float)
    }


_TURNED = re.compile(r"blk\.\d+\.attn_k_b\.weight")
_BY_HEAD = re.compile(r"blk\.\d+\.attn_[kv]_b\.weight")
"""Matrices of latent attention with an axis for heads; those of keys are turned, head by head."""


def _experts(tensor: _Tensor) -> list[_Tensor]:
    """Return the matrices of stacked experts, each with its place in the file; any other tensor as it is."""
    match = _STACKED.fullmatch(tensor.name)
    if match is None or not tensor.size or len(tensor.shape) != 3 or tensor.shape[0] > MAX_EXPERTS:
        return [tensor]
    count, *shape = tensor.shape
    size = tensor.size // count  # rows are whole blocks, so that an expert is too
    return [
        replace(tensor, name=f"{match[1]}.{i}.weight", shape=tuple(shape), offset=tensor.offset + i * size, size=size)
        for i in range(count)
    ]


class GgufSource(CheckedSource):
    """The tensors and metadata of a little-endian GGUF file, version 2 or 3, or of all parts of a split one.

    Shapes are in numpy's order (rows first), the reverse of GGUF's. Stacked experts (``blk.0.ffn_up_exps.weight``) are
    given one by one, by the names that files of 2023 have (``blk.0.ffn_up.3.weight``). Matrices with an axis for heads
    (``blk.0.attn_k_b.weight``) have the rows of all heads in a row, (heads d_h, rank), those of keys turned back.
    Parameters of an activation that the header lists are tensors like others (``blk.0.xielu.beta``).

    Args:
        path: The file, or any part of a split one; the other parts are in the same folder.

    Attributes:
        files: The parts in order.
        metadata: Every key of the header, or of the first part's: scalars, strings, and lists of them.

    Raises:
        BadModel: If a file is no GGUF file, damaged or cut short, if a part is missing, or if the parts do not fit.
    """

    def __init__(self, path: Path) -> None:
        header = _read_header(path)
        parts = {path: header}
        if header.metadata.get(SPLIT_COUNT, 0) not in (0, 1):
            files = _parts(path, header.metadata[SPLIT_COUNT])
            parts = {file: header if file == path else _read_header(file) for file in files}
            _check_parts(parts)
        self.files: tuple[Path, ...] = tuple(parts)
        self.path: str = str(self.files[0])
        self.metadata: dict[str, Any] = parts[self.files[0]].metadata
        tensors = [tensor for part in parts.values() for tensor in part.tensors.values()]
        self._tensors = {each.name: each for tensor in tensors for each in _experts(tensor)}
        self._numbers = {name: values for name, values in _numbers(self.metadata).items() if name not in self._tensors}
        if len(self._tensors) < sum(len(_experts(tensor)) for tensor in tensors):
            raise BadModel(f"{path}: it has some experts twice, stacked and one by one.")

    def names(self) -> list[str]:
        """Return the names of all tensors, in the order of the header, then those of the parameters that it lists."""
        return [*self._tensors, *self._numbers]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor in numpy's order."""
        if name in self._numbers:
            return self._numbers[name].shape
        shape = self._find(name).shape
        if len(shape) != 3 or not _BY_HEAD.fullmatch(name):
            return shape
        heads, rows, columns = shape
        return (heads * columns, rows) if _TURNED.fullmatch(name) else (heads * rows, columns)

    def dtype(self, name: str) -> str:
        """Return the name of the ggml type (``Q4_1``, ``F32`` …), or ``type 99`` for an unknown number."""
        if name in self._numbers:
            return "F32"
        return _type_name(self._find(name).type_id)

    def _file(self, name: str) -> str:
        return self.path if name in self._numbers else self._find(name).file

    def _find(self, name: str) -> _Tensor:
        if name not in self._tensors:
            raise self._missing(name)
        return self._tensors[name]

    def _read(self, name: str, rows: slice, columns: slice) -> Float32:
        if name in self._numbers:
            values = self._numbers[name]
            return values[rows].copy() if values.shape else values.copy()
        tensor = self._find(name)
        if len(tensor.shape) < 2:  # a vector may be quantised in blocks, so all of it is decoded
            values = self._decode(tensor, 0, 1).reshape(tensor.shape)
            return np.ascontiguousarray(values[rows]) if tensor.shape else values
        if len(tensor.shape) == 3 and _BY_HEAD.fullmatch(name):
            return np.ascontiguousarray(self._of_heads(tensor, rows)[:, columns])
        values = self._decode(tensor, rows.start, rows.stop)
        return np.ascontiguousarray(values.reshape(-1, *tensor.shape[1:])[:, columns])

    def _of_heads(self, tensor: _Tensor, rows: slice) -> Float32:
        """Return rows of a matrix with an axis for heads, numbered through all heads; only their heads are decoded."""
        turned = bool(_TURNED.fullmatch(tensor.name))
        width = tensor.shape[2 if turned else 1]
        first, end = rows.start // width, -(-rows.stop // width)
        heads = self._decode(tensor, first, end).reshape(-1, *tensor.shape[1:])
        joined = (heads.swapaxes(1, 2) if turned else heads).reshape(-1, tensor.shape[1 if turned else 2])
        return joined[rows.start - first * width : rows.stop - first * width]

    def _decode(self, tensor: _Tensor, start: int, stop: int) -> Float32:
        """Return rows of a tensor as float32, reading no bytes of the others."""
        if tensor.type_id not in GGML_QUANT_SIZES:
            raise self._unreadable(tensor)
        if start == stop:
            return np.empty(0, dtype=np.float32)
        row = tensor.size // tensor.shape[0] if len(tensor.shape) > 1 else tensor.size
        inner = tensor.size // math.prod(tensor.shape[:-1])  # bytes of one run along the last axis
        raw = np.fromfile(tensor.file, np.uint8, (stop - start) * row, offset=tensor.offset + start * row)
        try:
            # A damaged scale overflows to infinity; the check of the values reports it, so numpy need not warn.
            with np.errstate(all="ignore"):
                # The gguf package decodes 16 rows at a time, and rows may be joined: each is a number of blocks.
                joined = math.gcd(raw.size // inner, _JOINED)
                values = dequantize(raw.reshape(-1, inner * joined), GGMLQuantizationType(tensor.type_id))
        except NotImplementedError as error:
            raise self._unreadable(tensor) from error
        return np.asarray(values, dtype=np.float32).reshape(raw.size // inner, -1)

    def _unreadable(self, tensor: _Tensor) -> BadWeights:
        return BadWeights(
            f"{self._where(tensor.name)} is stored as {_type_name(tensor.type_id)}, which cannot be "
            "dequantised here. Use a file in another type, such as Q8_0, Q4_K or F16."
        )


class _Header:
    """The part of a file before the tensor data; each length and offset is checked against the file's size."""

    def __init__(self, data: mmap.mmap, path: str) -> None:
        self.data, self.path, self.position = data, path, 0
        self._check_magic()
        tensor_count, field_count = self._unpack("Q"), self._unpack("Q")
        self.metadata = self._metadata(field_count)
        self.tensors = self._check_extents(self._tensor_infos(tensor_count))

    def _error(self, problem: str) -> BadModel:
        return BadModel(f"{self.path}: {problem}.")

    def _take(self, count: int) -> int:
        """Skip ``count`` bytes and return the position of the first."""
        start, missing = self.position, self.position + count - len(self.data)
        if missing > 0:
            raise self._error(f"the file is damaged or cut short: its header needs {missing} bytes that are missing")
        self.position += count
        return start

    def _unpack(self, code: str) -> Any:
        return struct.unpack_from("<" + code, self.data, self._take(struct.calcsize("<" + code)))[0]

    def _bytes(self) -> bytes:
        (length,) = U64.unpack_from(self.data, self._take(8))
        start = self._take(length)
        return self.data[start : self.position]

    def _name(self) -> str:
        try:
            return self._bytes().decode()
        except UnicodeDecodeError as error:
            raise self._error("the header holds a name that is not UTF-8; the file is damaged") from error

    def _check_magic(self) -> None:
        if self.data[:4] != MAGIC:
            raise self._error(f"it is no GGUF file (it starts with {self.data[:4]!r}, not {MAGIC!r})")
        self._take(4)
        version = self._unpack("I")
        if version & 0xFFFF == 0:
            raise self._error("it is a big-endian GGUF file; only little-endian ones can be read")
        if version not in VERSIONS:
            raise self._error(f"it is GGUF version {version}; versions 2 and 3 can be read")

    def _metadata(self, count: int) -> dict[str, Any]:
        metadata: dict[str, Any] = {}
        for _ in range(count):
            key = self._name()
            if key in metadata:
                raise self._error(f"the key {key!r} is in the header twice")
            metadata[key] = self._value(key, self._unpack("I"))
        return metadata

    def _value(self, key: str, value_type: int) -> Any:
        if value_type in SCALARS:
            return self._unpack(SCALARS[value_type])
        if value_type == STRING:
            return self._bytes().decode(errors="replace")
        if value_type == ARRAY:
            return self._array(key, self._unpack("I"), self._unpack("Q"))
        raise self._error(f"the key {key!r} has a value of type {value_type}, which GGUF does not define")

    def _array(self, key: str, item_type: int, count: int) -> list[Any]:
        if item_type == STRING:
            return [self._bytes().decode(errors="replace") for _ in range(count)]
        if item_type not in SCALARS:
            raise self._error(f"the key {key!r} is a list of values of type {item_type}, which cannot be read")
        item = np.dtype("<" + SCALARS[item_type])
        values: list[Any] = np.frombuffer(self.data, item, count, self._take(count * item.itemsize)).tolist()
        return values

    def _tensor_infos(self, count: int) -> list[_Tensor]:
        """Read the tensor infos, with offsets relative to the start of the tensor data."""
        tensors = []
        for _ in range(count):
            name, dims = self._name(), self._unpack("I")
            if dims > MAX_DIMS:
                raise self._error(f"tensor {name!r} has {dims} dimensions; GGUF allows {MAX_DIMS}")
            shape = _shape(name, tuple(reversed([self._unpack("Q") for _ in range(dims)])))
            type_id, offset = self._unpack("I"), self._unpack("Q")
            tensors.append(_Tensor(self.path, name, shape, type_id, offset, self._size(name, shape, type_id)))
        return tensors

    def _size(self, name: str, shape: tuple[int, ...], type_id: int) -> int:
        """Return the size of a tensor in bytes; 0 for an unknown type, which `_decode` rejects."""
        if 0 in shape:
            raise self._error(f"tensor {name!r} has shape {shape}; a dimension of 0 holds nothing")
        if type_id not in GGML_QUANT_SIZES:
            return 0
        block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(type_id)]
        if math.prod(shape[-1:]) % block:
            raise self._error(f"tensor {name!r} of shape {shape} is not in whole blocks of {block}")
        return math.prod(shape) // block * block_bytes

    def _alignment(self) -> int:
        alignment = self.metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if type(alignment) is not int or alignment <= 0 or alignment % ALIGNMENT_UNIT:
            raise self._error(f"general.alignment is {alignment!r}; it must be a multiple of {ALIGNMENT_UNIT}")
        return alignment

    def _check_extents(self, infos: list[_Tensor]) -> dict[str, _Tensor]:
        """Make the offsets absolute. Raises BadModel unless all tensors lie within the file and do not overlap."""
        alignment = self._alignment()
        base = -(-self.position // alignment) * alignment
        for info in infos:
            if info.offset % alignment:
                raise self._error(f"tensor {info.name!r} starts at {info.offset}, not at a multiple of {alignment}")
        tensors = [replace(info, offset=base + info.offset) for info in infos]
        ordered = sorted(tensors, key=lambda tensor: tensor.offset)
        missing = max((tensor.end for tensor in tensors), default=0) - len(self.data)
        if missing > 0:
            raise self._error(
                f"the file is cut short: of its bytes {missing} are missing, {len(self.data)} are there. "
                "Download it again"
            )
        for before, after in pairwise(ordered):
            if before.end > after.offset:
                raise self._error(f"tensors {before.name!r} and {after.name!r} overlap")
        by_name = {tensor.name: tensor for tensor in tensors}
        if len(by_name) < len(tensors):
            raise self._error("a tensor is in the header twice")
        return by_name


def requantised(values: Float32, kind: str) -> Float32 | None:
    """Return a matrix after quantisation, in blocks along its rows; None where no quantiser fits.

    The reference quantisers of the gguf package are used; files that were made with an importance matrix differ.

    Args:
        values: The matrix, (rows, columns).
        kind: The name of the ggml type (``Q4_1`` …).
    """
    if kind not in GGMLQuantizationType.__members__:
        return None
    ggml_type = GGMLQuantizationType[kind]
    if values.shape[-1] % GGML_QUANT_SIZES[ggml_type][0]:
        return None
    try:
        with np.errstate(all="ignore"):
            return np.asarray(dequantize(quantize(values, ggml_type), ggml_type), dtype=np.float32)
    except NotImplementedError:
        return None


def _read_header(path: Path) -> _Header:
    check_file(path)
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Header(data, str(path))  # a mapped file counts towards our memory, so it is closed at once
    except OSError as error:
        raise BadModel(f"{path} cannot be read: {error}.") from error


def _parts(path: Path, count: Any) -> list[Path]:
    """Return all parts of a split file in order, given one of them. Raises BadModel where a part is missing."""
    files = [path.with_name(name) for name in gguf_parts(path.name)]
    if len(files) != count:
        raise BadModel(
            f"{path} is one of {count} parts of a model ({SPLIT_COUNT}); its name should say which, as in "
            "model-00001-of-00002.gguf."
        )
    if missing := [file.name for file in files if not (file.exists() or file.is_symlink())]:
        raise BadModel(f"{path} is one of {count} parts of a model, of which {', '.join(missing[:5])} cannot be found.")
    return files


def _check_parts(parts: Mapping[Path, _Header]) -> None:
    """Raise BadModel, naming the file, unless the parts belong to one model and are in order."""
    first = next(iter(parts.values()))
    file_of: dict[str, Path] = {}
    for number, (file, part) in enumerate(parts.items()):
        if (stated := part.metadata.get(SPLIT_NUMBER)) != number:
            raise BadModel(f"{file}: {SPLIT_NUMBER} is {stated!r}; by its name it should be {number}.")
        for key, value in part.metadata.items():
            if key not in PART_KEYS and first.metadata.get(key, value) != value:
                raise BadModel(f"{file}: {key} is not what {Path(first.path).name} says; they are parts of two models.")
        for name in part.tensors:
            if name in file_of:
                raise BadModel(f"{file}: tensor {name!r} is also in {file_of[name].name}; it must be in one part.")
            file_of[name] = file
    if (stated := first.metadata.get(SPLIT_TENSORS)) != len(file_of):
        raise BadModel(f"{first.path}: {SPLIT_TENSORS} is {stated!r}, but its {len(parts)} parts hold {len(file_of)}.")


def _type_name(type_id: int) -> str:
    known = type_id in GGML_QUANT_SIZES
    return GGMLQuantizationType(type_id).name if known else f"type {type_id}"
