"""From an atlas back to its weights: a lens that takes rows and views from the atlas and does not compute them."""

from collections.abc import Callable
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor

from zeropass.atlas.neighbours import moments
from zeropass.atlas.read import Atlas
from zeropass.atlas.schema import safe_name
from zeropass.errors import BadOption
from zeropass.lens import Lens, Shown
from zeropass.model.frames import Frames, Rows
from zeropass.model.model import open_model
from zeropass.numerics.factored import Factored
from zeropass.numerics.statistics import Moments
from zeropass.tokens.vocabulary import View

__all__ = ["lens_of"]


def lens_of(atlas: Atlas, model: str) -> Lens:
    """A lens on the model that an atlas was built from, named as `open_model` takes it; ready at once.

    Raises BadOption if the weights are not those of the atlas, and what `open_model` raises.
    """
    if atlas.is_change:
        raise BadOption(f"{atlas.path} is an atlas of a change: what it holds is in no one model's weights.")
    found = open_model(model)
    if found.fingerprint != atlas.manifest.get("weights_sha256"):
        raise BadOption(f"{model} has other weights than those that {atlas.path} was built from.")
    frames, lens = _Frames(found), _Lens(found, verdicts=atlas.verdicts)
    lens.__dict__["frames"] = frames
    for one in (frames, lens):
        one.__dict__["atlas"] = atlas
    return lens


class _Frames(Frames):
    """Frames that take the rows of an atlas where it has them."""

    atlas: Atlas

    def _computed(self, space: str) -> Rows:
        path = self.atlas.path / "rows" / f"{safe_name(space)}.npy"
        if not path.is_file():
            return super()._computed(space)
        self.atlas.rows(space)  # it has the right shape, or BadAtlas
        # Copy on write: torch wants memory that may be written to, and nothing writes to it.
        matrix = torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False))
        both = torch.from_numpy(moments(self.atlas, space))
        return Rows(space, matrix, Moments(both[0], both[1:], len(matrix)))

    def _head_scores(self, layer: int, head: int, role: str, frame: str) -> tuple[Tensor, Tensor]:
        return self._recent(layer, head, role, frame)

    @cached_property
    def _recent(self) -> Callable[[int, int, str, str], tuple[Tensor, Tensor]]:
        """The scores of the last few sides of heads (13 MB each for SmolLM2): another offset only turns them."""
        return lru_cache(8)(super()._head_scores)


class _Map(Factored):
    """A head map whose singular directions come from Gram matrices: to six digits, and several times as fast."""

    def _svd(self) -> tuple[Tensor, Tensor, Tensor]:
        turned = self.reduced()
        left, right = turned.left.double(), turned.right.double()
        values = left.square().sum(0)
        root = values.sqrt().clamp_min(torch.finfo(torch.float64).tiny)
        return left / root, values, right / root


class _Lens(Lens):
    """A lens with the views of an atlas, which knows already which tokens were hardly trained."""

    atlas: Atlas

    def head_map(self, address: str, *, frame: str = "token", offset: int | None = None) -> Factored:
        """A head map as its two factors."""
        product = super().head_map(address, frame=frame, offset=offset)
        return _Map(product.left, product.right)

    def view(self, name: View) -> Shown:
        """The tokens that lists of a view may show."""
        mask = torch.from_numpy(self.atlas.mask(name).copy())
        return Shown(mask, mask.nonzero()[:, 0], self.atlas.hidden(name))
