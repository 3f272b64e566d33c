"""The rows of an atlas, written once and loaded as a build needs them: kept tokens only, centred."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from zeropass.atlas.schema import beside, safe_name
from zeropass.errors import BadAtlas
from zeropass.frames import Frames
from zeropass.sieve import Sieved, sieved
from zeropass.sources.base import Float32
from zeropass.statistics import Moments, blocks

__all__ = ["Space", "Spaces", "load_array", "save_array"]


@dataclass(frozen=True, eq=False)
class Space:
    """Rows of the kept tokens (V', d) minus the mean row, and the moments over all tokens in use."""

    rows: Tensor
    moments: Moments

    @cached_property
    def sieved(self) -> Sieved:
        """The rows made ready for `sieve.survey`."""
        return sieved(self.rows)


class Spaces:
    """Writes the rows of a model's frames to a folder, and loads them for the jobs."""

    def __init__(self, folder: Path, kept: Tensor) -> None:
        self.folder, self.kept = folder, kept
        self._loaded: dict[str, Space] = {}

    def write(self, frames: Frames, space: str) -> None:
        """Compute and write one space, unless it is there."""
        path, moments_path = self._paths(space)
        if path.exists() and moments_path.exists():
            return
        rows = frames.rows(space)
        save_array(path, rows.matrix.cpu().numpy())
        moments = torch.cat((rows.moments.mean[None], rows.moments.covariance)).cpu().numpy()
        save_array(moments_path, moments)
        frames.release(space)

    def load(self, space: str) -> Space:
        """One space, kept in memory for the jobs to come."""
        if space not in self._loaded:
            path, moments_path = self._paths(space)
            stacked = torch.from_numpy(load_array(moments_path, mapped=False)).to(self.kept.device)
            moments = Moments(stacked[0], stacked[1:], -1)
            self._loaded[space] = Space(_kept_rows(path, self.kept, moments.mean), moments)
        return self._loaded[space]

    def keep_only(self, spaces: set[str]) -> None:
        """Forget the spaces that no further job needs."""
        self._loaded = {name: space for name, space in self._loaded.items() if name in spaces}

    def _paths(self, space: str) -> tuple[Path, Path]:
        stem = safe_name(space)
        return self.folder / f"{stem}.npy", self.folder / f"{stem}.moments.npy"


def load_array(path: Path, mapped: bool = True) -> np.ndarray:
    """An array of the atlas; pickles are refused. Raises BadAtlas, naming the file, where it is damaged."""
    try:
        return np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)  # type: ignore[no-any-return]
    except (OSError, ValueError, EOFError) as error:
        raise BadAtlas(f"{path} cannot be read ({error}); rebuild the atlas.") from error


def save_array(path: Path, array: Float32) -> None:
    """Write an array whole or not at all."""
    with beside(path) as temporary, temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def _kept_rows(path: Path, kept: Tensor, mean: Tensor) -> Tensor:
    """The kept rows, read a block at a time: the file is never in memory as a whole."""
    stored = load_array(path)
    ids = kept.cpu()
    rows = torch.empty(len(ids), stored.shape[1], device=kept.device)
    shift = mean.float()
    for part in blocks(len(ids)):
        rows[part] = torch.from_numpy(stored[ids[part].numpy()]).to(kept.device) - shift
    return rows
