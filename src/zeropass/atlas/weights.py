"""A lens on the weights of an atlas that takes rows and views from the atlas and does not compute them."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from zeropass.arch.frame_names import Frame
from zeropass.atlas.read import Atlas
from zeropass.atlas.schema import LENS, safe_name
from zeropass.errors import BadOption
from zeropass.lens import Lens, Shown
from zeropass.model.address import Address
from zeropass.model.frames import Frames, Rows
from zeropass.model.lens_maps import read_lens
from zeropass.model.opening import ModelLike, open_model
from zeropass.numerics.factored import Factored
from zeropass.numerics.statistics import Moments
from zeropass.tokens.shown import View

__all__ = ["lens_of"]


def lens_of(atlas: Atlas, model: ModelLike) -> Lens:
    """Return a lens on the model that an atlas was built from; it need not compute the rows that the atlas holds.

    Args:
        atlas: An atlas of a model, not of a change.
        model: The model, or its name.

    Raises:
        BadOption: The weights are not those of the atlas; other errors are those of `open_model`.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> import zeropass as zp
        >>> options = zp.Options(layers=(1, 2), roles=("gate",))
        >>> with TemporaryDirectory() as folder:
        ...     built = zp.build(zp.open_model("models/first"), Path(folder), options)
        ...     lens = zp.lens_of(zp.open_atlas(folder), "models/first")
        ...     record = lens.svd("L1.attn.0.vo", k=4)
        >>> record.address, len(record.directions)
        ('L1.attn.0', 4)
    """
    if atlas.is_change:
        raise BadOption(f"{atlas.path} is an atlas of a change: what it holds is in no one model's weights.")
    source = open_model(model)
    if source.fingerprint != atlas.manifest.get("weights_sha256"):
        raise BadOption(f"{source.name} has other weights than those that {atlas.path} was built from.")
    lens = read_lens(Path(atlas.path / LENS), source) if atlas.lens else None
    return _Lens(source, verdicts=atlas.verdicts, frames=_Frames(source, lens, atlas=atlas), atlas=atlas)


@dataclass(frozen=True, eq=False, repr=False)
class _Frames(Frames):
    """Frames that take the rows of an atlas where it has them."""

    atlas: Atlas = field(kw_only=True, repr=False)

    def _computed(self, space: str) -> Rows:
        if not self.atlas.has_rows(space):
            return super()._computed(space)
        self.atlas.rows(space)  # raises BadAtlas if the file has another shape
        # torch warns of memory that cannot be written to, so the file is mapped copy-on-write; nothing writes to it.
        path = self.atlas.path / f"rows/{safe_name(space)}.npy"
        matrix = torch.from_numpy(np.load(os.fspath(path), mmap_mode="c", allow_pickle=False))
        mean_and_covariance = torch.from_numpy(self.atlas.moments(space))
        return Rows(space, matrix, Moments(mean_and_covariance[0], mean_and_covariance[1:], len(matrix)))

    def _head_scores(self, layer: int, head: int, role: str, frame: str) -> tuple[Tensor, Tensor]:
        return self._cached_head_scores(layer, head, role, frame)

    @cached_property
    def _cached_head_scores(self) -> Callable[[int, int, str, str], tuple[Tensor, Tensor]]:
        """`Frames._head_scores`, cached for the last eight sides of heads (13 MB each for SmolLM2).

        Another offset only rotates them.
        """
        return lru_cache(8)(super()._head_scores)


class _Map(Factored):
    """A head map whose singular directions come from Gram matrices: to six digits, and several times faster."""

    def _svd(self) -> tuple[Tensor, Tensor, Tensor]:
        reduced = self.reduced()
        left, right = reduced.left.double(), reduced.right.double()
        values = left.square().sum(0)
        root = values.sqrt().clamp_min(torch.finfo(torch.float64).tiny)
        return left / root, values, right / root


@dataclass(frozen=True, eq=False, repr=False)
class _Lens(Lens):
    """A lens with the views of an atlas, which already knows the under-trained tokens."""

    atlas: Atlas = field(kw_only=True, repr=False)

    def head_map(self, address: str | Address, *, frame: Frame | None = None, offset: int | None = None) -> Factored:
        """Return a head map as its two factors."""
        product = super().head_map(address, frame=frame, offset=offset)
        return _Map(product.left, product.right)

    def view(self, name: View) -> Shown:
        """Return the tokens that lists of a view may show."""
        mask = torch.from_numpy(self.atlas.mask(name).copy())
        return Shown(mask, mask.nonzero()[:, 0], self.atlas.hidden(name))
