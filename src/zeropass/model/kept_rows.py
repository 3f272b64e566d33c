"""Rows, moments and judgements of models that were read before, kept in the cache by the hash of the weights.

They take most of the time of a first question to a model, and never change. What is kept is what would be computed,
bit for bit; what cannot be read, or written, is computed.
"""

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from zeropass._io.atomic import atomic_write, key_of, make_folder, write_json
from zeropass._io.parse import load_json
from zeropass.checkpoints.demo import cache_folder
from zeropass.errors import BadOption
from zeropass.model.adapted import Adapted
from zeropass.model.frames import Frames, Rows
from zeropass.model.lens_maps import LensMaps, chosen_lens
from zeropass.model.model import Model
from zeropass.numerics.statistics import Moments
from zeropass.tokens.undertrained import Judgement

__all__ = ["MOST", "KeptFrames", "kept_frames", "rows_folder"]

MOST = 4 << 30
"""The bytes of rows that are kept, of all models together; those of models used longest ago are removed."""

_LEAST = 16 << 20
"""The bytes of a table of rows that is worth keeping: a smaller one is computed as fast."""

_SPACES = 3
"""The number of tables that reading a model needs."""

_SCHEMA = 1
"""The version of what is kept; a change of what a space, a moment or a judgement means raises it."""


Kept = TypeVar("Kept")


def rows_folder() -> Path:
    """Return the folder in the cache that holds the rows of all models; raise RuntimeError if there is no home."""
    return cache_folder() / "rows"


def kept_frames(model: Model, lens: str | Path | LensMaps | None) -> "KeptFrames":
    """Return frames that keep what they compute, with the lens that a user asks for (`chosen_lens`)."""
    return KeptFrames(model, chosen_lens(model, lens))


@dataclass(frozen=True, eq=False, repr=False)
class KeptFrames(Frames):
    """Frames that take rows, moments, the judgement and numbers from the cache, and keep there what they compute."""

    def _computed(self, space: str) -> Rows:
        compute = super()._computed
        return self._kept_or(lambda: compute(space), partial(self._read_rows, space=space), _write_rows)

    @cached_property
    def judgement(self) -> Judgement:
        """The under-trained tokens: `Model.judgement`."""

        def read(folder: Path) -> Judgement | None:
            kept = _array(folder / "judgement.npy", (2, self.model.dims.vocab), np.bool_)
            return None if kept is None else Judgement(*kept)

        def write(folder: Path, judgement: Judgement) -> None:
            _write_array(folder / "judgement.npy", np.stack(judgement))

        return self._kept_or(lambda: self.model.judgement, read, write)

    def _relative_factors(self, layer: int, role: str, frame: str) -> Tensor:
        compute, name = super()._relative_factors, f"{self._lens_key}.L{layer}.{role}.{frame}.npy"

        def read(folder: Path) -> Tensor | None:
            kept = _array(folder / name, (self.model.dims.vocab,), np.float32)
            return None if kept is None else torch.from_numpy(kept).to(self.model.device)

        def write(folder: Path, factors: Tensor) -> None:
            _write_array(folder / name, factors.cpu().numpy())

        return self._kept_or(lambda: compute(layer, role, frame), read, write)

    def remembered(self, name: str, compute: Callable[[], float | None]) -> float | None:
        """Return a number that depends on the model and the lens alone, computed unless it is kept."""
        if name not in self._numbers:
            self._numbers[name] = compute()
            self._keep(lambda folder: write_json(folder / self._numbers_file, self._numbers))
        return self._numbers[name]

    @cached_property
    def _numbers(self) -> dict[str, float | None]:
        """The numbers that are known, by name."""
        if self._folder is None:
            return {}
        with suppress(OSError, ValueError):
            numbers = load_json(self._folder / self._numbers_file)
            if isinstance(numbers, dict) and all(value is None or type(value) is float for value in numbers.values()):
                return numbers
        return {}

    @property
    def _numbers_file(self) -> str:
        return f"{self._lens_key}.numbers.json"

    @property
    def _lens_key(self) -> str:
        return key_of(None if self.lens is None else self.lens.facts.identity)[:16]

    @cached_property
    def _folder(self) -> Path | None:
        """The folder of what is kept of this model; None for one that is in memory, adapted, too small or too large."""
        model = self.model
        size = model.dims.vocab * model.dims.d * torch.float32.itemsize
        if isinstance(model, Adapted) or model.files.path is None or not _LEAST <= size <= MOST // _SPACES:
            return None
        try:
            folder = rows_folder() / f"{_SCHEMA}-{model.size}-{model.fingerprint}"
        except RuntimeError:  # this user has no home folder
            return None
        with suppress(OSError):
            os.utime(folder)  # it is in use now; one that is missing is made when it is written to
        return folder

    def _kept_or(
        self,
        compute: Callable[[], Kept],
        read: Callable[[Path], Kept | None],
        write: Callable[[Path, Kept], None],
    ) -> Kept:
        """Return what is kept; compute it, and keep it, if it is not or cannot be read."""
        if self._folder is not None and (kept := read(self._folder)) is not None:
            return kept
        value = compute()
        self._keep(lambda folder: write(folder, value))
        return value

    def _keep(self, write: Callable[[Path], None]) -> None:
        """Write something into the folder, and remove what was used longest ago; a cache that is full is no error."""
        if self._folder is None:
            return
        with suppress(BadOption, OSError):
            make_folder(self._folder, BadOption)
            write(self._folder)
            _remove_oldest(self._folder)

    def _read_rows(self, folder: Path, space: str) -> Rows | None:
        path, moments_path = _paths(folder, space)
        v, d = self.model.dims.vocab, self.model.dims.d
        matrix = _array(path, (v, d), np.float32, mapped=True)
        stacked = _array(moments_path, (d + 1, d), np.float64)
        if matrix is None or stacked is None:
            return None
        device = self.model.device
        moments = torch.from_numpy(stacked).to(device)
        count = int(self.used.sum())
        return Rows(space, torch.from_numpy(matrix).to(device), Moments(moments[0], moments[1:], count))


def _paths(folder: Path, space: str) -> tuple[Path, Path]:
    return folder / f"{space}.npy", folder / f"{space}.moments.npy"


def _write_rows(folder: Path, rows: Rows) -> None:
    path, moments_path = _paths(folder, rows.space)
    _write_array(moments_path, torch.cat((rows.moments.mean[None], rows.moments.covariance)).cpu().numpy())
    _write_array(path, rows.matrix.cpu().numpy())


def _write_array(path: Path, array: np.ndarray) -> None:
    with atomic_write(path, BadOption) as temporary, temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def _array(path: Path, shape: tuple[int, ...], dtype: type[np.generic], mapped: bool = False) -> np.ndarray | None:
    """Return an array of the cache, mapped copy-on-write or read; None if it is missing, damaged or another one."""
    try:
        array = np.load(path, mmap_mode="c" if mapped else None, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return array if array.shape == shape and array.dtype == dtype else None


def _remove_oldest(kept: Path) -> None:
    """Remove the folders of the models that were used longest ago, until the others are small enough."""
    others = [path for path in kept.parent.iterdir() if path.is_dir() and path != kept]
    folders = sorted(others, key=lambda path: -path.stat().st_mtime)
    room = MOST - _size(kept)
    for folder in folders:
        room -= _size(folder)
        if room < 0:
            shutil.rmtree(folder, ignore_errors=True)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())
