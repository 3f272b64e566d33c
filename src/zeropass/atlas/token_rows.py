"""The rows of an atlas, written once and loaded as a build needs them: kept tokens only, centred.

Nothing here is as long as the vocabulary but the rows that a build multiplies with. Those are held in memory while
there is room for them; else they lie in a file that is mapped, and the system takes their memory when it is short.
"""

import mmap
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
    """Rows of the kept tokens (V', d) minus the mean row, and the moments over all tokens in use.

    ``mapped`` is the map of the file behind the rows where they are not held in memory, and ``numbers`` the part of it
    where they are kept as whole numbers.
    """

    rows: Tensor
    moments: Moments
    mapped: mmap.mmap | None = None
    numbers: Tensor | None = None
    lock: Lock = field(default_factory=Lock)

    def rest(self) -> None:
        """Give the memory of mapped rows back for now; the system keeps them in its cache if it can."""
        _rest(self.mapped)

    @property
    def prepared(self) -> PreparedRows:
        """The rows made ready for `top_k.survey`: a quarter as large once more."""
        with self.lock:
            return self._prepared

    @cached_property
    def _prepared(self) -> PreparedRows:
        # Of the space itself nothing: in a circle of references the rows would outlive it for long.
        return prepare_rows(self.rows, self.moments.covariance, partial(_rest, self.mapped), self.numbers)


def _rest(mapped: mmap.mmap | None) -> None:
    if mapped is not None:
        mapped.madvise(mmap.MADV_DONTNEED)


class Spaces:
    """Writes the rows of a model's frames to a folder, and loads them for the jobs.

    ``kept`` are the ids of the tokens that lists may show; ``room`` is how many bytes of rows may be held in memory at
    once, all that are asked for if None.
    """

    def __init__(self, folder: Path, kept: Tensor, room: int | None = None) -> None:
        self.folder, self.kept, self.room = folder, kept, room
        self._loaded: dict[str, Space] = {}
        self._lock = Lock()

    def write(self, frames: Frames, space: str) -> None:
        """Compute and write one space, unless it is there."""
        path, moments_path = self._paths(space)
        if path.exists() and moments_path.exists():
            return
        shape = frames.model.dims.vocab, frames.model.dims.d
        with atlas_file(path) as temporary, temporary.open("wb") as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for _, rows in frames.blocks(space):
                rows.cpu().numpy().tofile(file)
        found = moments(StoredRows(path, self.kept.device), frames.used)
        save_array(moments_path, torch.cat((found.mean[None], found.covariance)).cpu().numpy())

    def load(self, space: str) -> Space:
        """One space, kept for the jobs to come: in memory if there is room."""
        with self._lock:
            if space not in self._loaded:
                self._loaded[space] = self._read(space)
            return self._loaded[space]

    def keep_only(self, spaces: set[str]) -> None:
        """Forget the spaces that no further job needs."""
        with self._lock:
            self._loaded = {name: space for name, space in self._loaded.items() if name in spaces}

    def _read(self, space: str) -> Space:
        path, moments_path = self._paths(space)
        stacked = torch.from_numpy(load_array(moments_path, mapped=False)).to(self.kept.device)
        found, stored = Moments(stacked[0], stacked[1:], -1), StoredRows(path, self.kept.device)
        return (self._held if self._fits(stored.shape[1]) else self._mapped)(stored, found)

    def _fits(self, d: int) -> bool:
        held = sum(space.mapped is None for space in self._loaded.values())
        each = rows_size(len(self.kept), d) + rounded_size(len(self.kept), d)
        return self.room is None or (held + 1) * each <= self.room

    def _held(self, stored: "StoredRows", found: Moments) -> Space:
        rows = torch.empty(len(self.kept), stored.shape[1], device=self.kept.device)
        for part, block in self._centred(stored, found):
            rows[part] = block
        return Space(rows, found)

    def _mapped(self, stored: "StoredRows", found: Moments) -> Space:
        """A space whose rows lie in a file without a name, which goes with the process whatever ends it."""
        shape = len(self.kept), stored.shape[1]
        size, more = rows_size(*shape), rounded_size(*shape)
        try:
            with tempfile.TemporaryFile(dir=self.folder) as file:
                for _, block in self._centred(stored, found):
                    block.numpy().tofile(file)
                for part in blocks(more, 1 << 20):  # written, so that a full disk is told now and not by a signal later
                    file.write(bytes(part.stop - part.start))
                file.flush()
                mapped = mmap.mmap(file.fileno(), size + more)
        except OSError as error:
            raise BadAtlas(
                f"{self.folder} has no room for rows that do not fit into --memory ({error.strerror or error})."
            ) from error
        rows = torch.frombuffer(mapped, dtype=torch.float32, count=shape[0] * shape[1]).view(shape)
        numbers = torch.frombuffer(mapped, dtype=quantized_type(), offset=size).view(shape) if more else None
        return Space(rows, found, mapped, numbers)

    def _centred(self, stored: "StoredRows", found: Moments) -> Iterator[tuple[slice, Tensor]]:
        """The kept rows less the mean row, block by block, with their places."""
        shift = found.mean.float()
        for part in blocks(stored.shape[0]):
            first, stop = torch.searchsorted(self.kept, torch.tensor([part.start, part.stop]).to(self.kept)).tolist()
            if first < stop:
                yield slice(first, stop), stored[part][self.kept[first:stop] - part.start] - shift

    def _paths(self, space: str) -> tuple[Path, Path]:
        stem = safe_name(space)
        return self.folder / f"{stem}.npy", self.folder / f"{stem}.moments.npy"


class StoredRows:
    """Rows (V, d) in a file of an atlas; only those of the slice that is asked for are read, onto ``device``.

    They are read and not mapped: pages of a mapped file that were read count as ours. Raises BadAtlas where the file is
    damaged.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        stored = load_array(path)
        if stored.ndim != 2 or stored.dtype != np.float32 or not isinstance(stored, np.memmap):
            raise BadAtlas(f"{path} holds {stored.dtype} {stored.shape}; rebuild the atlas.")
        self.path, self.device, self.shape, self._offset = path, device, stored.shape, stored.offset

    def __getitem__(self, part: slice) -> Tensor:
        start, stop, _ = part.indices(self.shape[0])
        width = self.shape[1]
        found = np.fromfile(self.path, np.float32, (stop - start) * width, offset=self._offset + 4 * start * width)
        return torch.from_numpy(found).view(stop - start, width).to(self.device)


def rows_size(count: int, d: int) -> int:
    """Bytes of some rows."""
    return count * d * torch.float32.itemsize


def load_array(path: Path, mapped: bool = True) -> np.ndarray:
    """An array of the atlas; pickles are refused. Raises BadAtlas, naming the file, where it is damaged."""
    try:
        return np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)  # type: ignore[no-any-return]
    except (OSError, ValueError, EOFError) as error:
        raise BadAtlas(f"{path} cannot be read ({error}); rebuild the atlas.") from error


def save_array(path: Path, array: Float32) -> None:
    """Write an array whole or not at all."""
    with atlas_file(path) as temporary, temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)
