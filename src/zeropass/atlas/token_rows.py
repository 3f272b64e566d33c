"""The rows of an atlas, written once and loaded when a build needs them: kept tokens only, centred.

Of what a build holds, only the rows that it multiplies with are as long as the vocabulary. They are held in memory
while there is room for them; otherwise they are mapped from a file, and the system reclaims their memory when it needs
some.
"""

import mmap
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from zeropass.atlas.schema import atlas_file, safe_name
from zeropass.checkpoints.base import Float32
from zeropass.errors import BadAtlas
from zeropass.model.frames import Frames
from zeropass.numerics.statistics import Moments, blocks, moments
from zeropass.numerics.top_k import PreparedRows, prepare_rows, quantized_type, rounded_size

__all__ = ["Space", "Spaces", "StoredRows", "load_array", "save_array"]


@dataclass(frozen=True, eq=False)
class Space:
    """The rows of the kept tokens in one space.

    Attributes:
        rows: Rows of the kept tokens minus the mean row, (V', d).
        moments: Moments of the rows of all tokens in use.
        mapped: The map of the file with the rows if they are not held in memory.
        numbers: The part of that map for the quantized rows.
        lock: Guards the quantization.
    """

    rows: Tensor
    moments: Moments
    mapped: mmap.mmap | None = None
    numbers: Tensor | None = None
    lock: Lock = field(default_factory=Lock)

    def rest(self) -> None:
        """Release the memory of mapped rows for now; the system keeps them in its cache if it can."""
        _rest(self.mapped)

    @property
    def prepared(self) -> PreparedRows:
        """The rows prepared for `top_k.survey`, which take a quarter of their size in addition."""
        with self.lock:
            return self._prepared

    @cached_property
    def _prepared(self) -> PreparedRows:
        # Nothing may refer to the space itself: in a reference cycle the rows would outlive it for long.
        return prepare_rows(self.rows, self.moments.covariance, partial(_rest, self.mapped), self.numbers)


def _rest(mapped: mmap.mmap | None) -> None:
    """Release the memory of a map, if there is one."""
    if mapped is not None:
        mapped.madvise(mmap.MADV_DONTNEED)


class Spaces:
    """The spaces of a build: their rows are written to a folder once, and loaded for the jobs.

    Attributes:
        folder: Folder of the rows.
        kept: Ids of the tokens that lists may show, (V',).
        room: Bytes of rows that may be held in memory at once; None for no limit.
    """

    def __init__(self, folder: Path, kept: Tensor, room: int | None = None) -> None:
        self.folder: Path = folder
        self.kept: Tensor = kept
        self.room: int | None = room
        self._loaded: dict[str, Space] = {}
        self._stored: dict[str, tuple[StoredRows | Tensor, Tensor]] = {}
        self._lock = Lock()

    def write(self, frames: Frames, space: str) -> None:
        """Compute and write one space, unless its files exist."""
        path, moments_path = self._paths(space)
        if path.exists() and moments_path.exists():
            return
        shape = frames.model.dims.vocab, frames.model.dims.d
        with atlas_file(path) as temporary, temporary.open("wb") as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for _, rows in frames.blocks(space):
                rows.cpu().numpy().tofile(file)
        row_moments = moments(StoredRows(path, self.kept.device), frames.used)
        save_array(moments_path, torch.cat((row_moments.mean[None], row_moments.covariance)).cpu().numpy())

    def load(self, space: str) -> Space:
        """Return one space, loaded into memory if there is room, and keep it for later jobs."""
        with self._lock:
            if space not in self._loaded:
                self._loaded[space] = self._read(space)
            return self._loaded[space]

    def stored(self, space: str) -> tuple["StoredRows | Tensor", Tensor]:
        """Return the rows (V, d) of a space, and their mean, (d,): in their file, or held by a GPU.

        A GPU would wait for the rows of a few tokens longer than it works on them.
        """
        with self._lock:
            if space not in self._stored:
                path, moments_path = self._paths(space)
                device = self.kept.device
                mean = torch.from_numpy(load_array(moments_path)[0].astype(np.float32)).to(device)
                rows = StoredRows(path, device)
                self._stored[space] = rows if device.type == "cpu" else rows[:], mean
            return self._stored[space]

    def keep_only(self, spaces: set[str]) -> None:
        """Forget all spaces except those that later jobs need."""
        with self._lock:
            self._loaded = {name: space for name, space in self._loaded.items() if name in spaces}

    def _read(self, space: str) -> Space:
        path, moments_path = self._paths(space)
        stacked = torch.from_numpy(load_array(moments_path, mapped=False)).to(self.kept.device)
        row_moments, stored = Moments(stacked[0], stacked[1:], -1), StoredRows(path, self.kept.device)
        return (self._in_memory if self._fits(stored.shape[1]) else self._mapped)(stored, row_moments)

    def _fits(self, d: int) -> bool:
        """Tell whether one more space of width d fits into memory."""
        count = sum(space.mapped is None for space in self._loaded.values())
        size = rows_size(len(self.kept), d) + rounded_size(len(self.kept), d)
        return self.room is None or (count + 1) * size <= self.room

    def _in_memory(self, stored: "StoredRows", row_moments: Moments) -> Space:
        rows = torch.empty(len(self.kept), stored.shape[1], device=self.kept.device)
        for part, block in self._centred(stored, row_moments):
            rows[part] = block
        return Space(rows, row_moments)

    def _mapped(self, stored: "StoredRows", row_moments: Moments) -> Space:
        """Return a space whose rows are in an unnamed file, which disappears with the process however that ends."""
        shape = len(self.kept), stored.shape[1]
        size, quantized_size = rows_size(*shape), rounded_size(*shape)
        try:
            with tempfile.TemporaryFile(dir=self.folder) as file:
                for _, block in self._centred(stored, row_moments):
                    block.numpy().tofile(file)
                # Zeros are written so that a full disk raises an error now instead of sending a signal later.
                for part in blocks(quantized_size, 1 << 20):
                    file.write(bytes(part.stop - part.start))
                file.flush()
                mapped = mmap.mmap(file.fileno(), size + quantized_size)
        except OSError as error:
            raise BadAtlas(
                f"{self.folder} has no room for rows that do not fit into --memory ({error.strerror or error})."
            ) from error
        rows = torch.frombuffer(mapped, dtype=torch.float32, count=shape[0] * shape[1]).view(shape)
        numbers = torch.frombuffer(mapped, dtype=quantized_type(), offset=size).view(shape) if quantized_size else None
        return Space(rows, row_moments, mapped, numbers)

    def _centred(self, stored: "StoredRows", row_moments: Moments) -> Iterator[tuple[slice, Tensor]]:
        """Yield the kept rows minus the mean row, in blocks, with their places."""
        shift = row_moments.mean.float()
        for part in blocks(stored.shape[0]):
            first, stop = torch.searchsorted(self.kept, torch.tensor([part.start, part.stop]).to(self.kept)).tolist()
            if first < stop:
                yield slice(first, stop), stored[part][self.kept[first:stop] - part.start] - shift

    def _paths(self, space: str) -> tuple[Path, Path]:
        stem = safe_name(space)
        return self.folder / f"{stem}.npy", self.folder / f"{stem}.moments.npy"


class StoredRows:
    """The rows (V, d) in a file of an atlas; indexing with a slice, or with ids, reads rows onto a device.

    They are read, not mapped: pages of a mapped file would count as memory of this process.

    Attributes:
        path: The file.
        device: Where the rows go.
        shape: (V, d).

    Raises:
        BadAtlas: The file is damaged.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        stored = load_array(path)
        if stored.ndim != 2 or stored.dtype != np.float32 or not isinstance(stored, np.memmap):
            raise BadAtlas(f"{path} holds {stored.dtype} {stored.shape}; rebuild the atlas.")
        self.path: Path = path
        self.device: torch.device = device
        self.shape: tuple[int, ...] = stored.shape
        self._offset = stored.offset

    def __getitem__(self, at: slice | Tensor) -> Tensor:
        """Return the rows of a slice of the tokens, or those of some ids (…), (…, d)."""
        return self._of_ids(at) if isinstance(at, Tensor) else self._of_slice(at)

    def _of_slice(self, part: slice) -> Tensor:
        start, stop, _ = part.indices(self.shape[0])
        width = self.shape[1]
        flat = np.fromfile(self.path, np.float32, (stop - start) * width, offset=self._offset + 4 * start * width)
        return torch.from_numpy(flat).view(stop - start, width).to(self.device)

    def _of_ids(self, ids: Tensor) -> Tensor:
        unique, places = torch.unique(ids.cpu(), return_inverse=True)
        rows, size = np.empty((len(unique), self.shape[1]), np.float32), 4 * self.shape[1]
        # Read one by one: the system would map sixteen pages around each that is touched.
        with self.path.open("rb", buffering=0) as file:
            for row, token in zip(rows, unique.tolist(), strict=True):
                if os.preadv(file.fileno(), [row.data], self._offset + size * token) != size:
                    raise BadAtlas(f"{self.path} ends before token {token}; rebuild the atlas.")
        return torch.from_numpy(rows).to(self.device)[places.to(self.device)]


def rows_size(count: int, d: int) -> int:
    """Return the bytes of ``count`` rows of width d."""
    return count * d * torch.float32.itemsize


def load_array(path: Path, mapped: bool = True) -> np.ndarray:
    """Load an array of the atlas; raise BadAtlas, naming the file, if it is damaged or holds pickles."""
    try:
        return np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)  # type: ignore[no-any-return]
    except (OSError, ValueError, EOFError) as error:
        raise BadAtlas(f"{path} cannot be read ({error}); rebuild the atlas.") from error


def save_array(path: Path, array: Float32) -> None:
    """Write an array atomically."""
    with atlas_file(path) as temporary, temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)
