"""From an atlas back to its weights: a lens that takes rows and views from the atlas and does not compute them."""

import numpy as np
import torch

from zeropass.atlas.near import moments
from zeropass.atlas.read import Atlas
from zeropass.atlas.schema import safe_name
from zeropass.errors import BadOption
from zeropass.frames import Frames, Rows
from zeropass.lens import Lens, Shown
from zeropass.model import open_model
from zeropass.statistics import Moments
from zeropass.vocab import View

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

    def rows(self, space: str) -> Rows:
        """Rows and moments of a space."""
        path = self.atlas.path / "rows" / f"{safe_name(space)}.npy"
        if space not in self._kept and path.is_file():
            self.atlas.rows(space)  # it has the right shape, or BadAtlas
            # Copy on write: torch wants memory that may be written to, and nothing writes to it.
            matrix = torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False))
            both = torch.from_numpy(moments(self.atlas, space))
            self._kept[space] = Rows(space, matrix, Moments(both[0], both[1:], len(matrix)))
        return super().rows(space)


class _Lens(Lens):
    """A lens with the views of an atlas, which knows already which tokens were hardly trained."""

    atlas: Atlas

    def view(self, name: View) -> Shown:
        """The tokens that lists of a view may show."""
        mask = torch.from_numpy(self.atlas.mask(name).copy())
        return Shown(mask, mask.nonzero()[:, 0], self.atlas.hidden(name))
