"""The frames that evidence compares: those of the library, and variants that it does not show (docs/evidence.md)."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from zeropass.arch.frame_names import LENS_FRAMES, space_of
from zeropass.arch.roles import Side, side_of, site_of
from zeropass.errors import BadOption
from zeropass.model.frames import Frames
from zeropass.model.vectors import is_bare
from zeropass.numerics.projection import pseudo_inverse

__all__ = ["MAP_FRAMES", "READ_FRAMES", "WRITE_FRAMES", "Spaces"]

READ_FRAMES = {
    "paper": "raw rows of E, nothing folded",
    "paper.inverse": "pseudo-inverse of the rows of E, nothing folded",
    "embedded": "rows of E, normed",
    "token": "tokens carried through block 0, normed",
    "token.mlp": "tokens carried through the MLP of block 0 alone, normed",
    "token.half": "tokens carried through block 0, its attention counted half, normed",
    "token.raw": "tokens carried through block 0, not normed",
    "token.inverse": "pseudo-inverse of the token rows",
    "output": "unembedding through the final norm, normed",
    "output.raw": "unembedding through the final norm, not normed",
    "output.inverse": "pseudo-inverse of the output rows",
}
"""The frames of reading vectors. Layer 0 reads the embedding itself in every ``token`` frame."""

WRITE_FRAMES = {
    "paper": "raw rows of E",
    "paper.inverse": "pseudo-inverse of the rows of E",
    "output": "unembedding through the final norm, centred",
    "output.inverse": "pseudo-inverse of the output rows",
    "token": "tokens carried through block 0, normed",
}
"""The frames of writing vectors."""

MAP_FRAMES = {
    "token": "output",
    "token.mlp": "output",
    "token.raw": "output",
    "token.inverse": "output",
    "embedded": "output",
    "output": "output",
    "paper": "paper",
}
"""The frames of the attended token in ``vo``, each with the frame of the promoted tokens."""

_SHARES = {"mlp": 0.0, "half": 0.5, "raw": 1.0}
"""The weight of the attention of block 0 in a variant of ``token``."""


@dataclass(frozen=True, eq=False)
class Spaces:
    """The rows of every compared frame, and the parameters folded for each.

    The rows of all tokens are computed anew each time, since a table may take a hundred megabytes. Those of the text's
    tokens are kept.

    Attributes:
        frames: The frames of the model.
        ids: Ids of the text's tokens, sorted and unique.
    """

    frames: Frames
    ids: Tensor

    @property
    def read_frames(self) -> tuple[str, ...]:
        """The frames of reading vectors that are compared: `READ_FRAMES`, and that of a lens if it has one."""
        return (*READ_FRAMES, *self._of_lens("seen"))

    @property
    def write_frames(self) -> tuple[str, ...]:
        """The frames of writing vectors that are compared: `WRITE_FRAMES`, and those of a lens if it has them."""
        return (*WRITE_FRAMES, *self._of_lens("effect"), *self._of_lens("distinctive"))

    @property
    def map_frames(self) -> dict[str, str]:
        """The frames of ``vo`` that are compared: `MAP_FRAMES`, and those of a lens if it has both."""
        return MAP_FRAMES | dict.fromkeys(self._of_lens("seen"), "effect")

    def _of_lens(self, frame: str) -> tuple[str, ...]:
        """Return a frame of a lens, if there is one that has it."""
        return (frame,) if frame in self.frames.lens_frames else ()

    @cached_property
    def _gathered(self) -> dict[tuple[str, bool], Tensor]:
        return {}

    def matrix(self, frame: str, side: Side, layer: int) -> Tensor:
        """Return the rows (V, d) of a frame for a layer; raise BadOption for a frame that is not compared."""
        known = dict.fromkeys((*self.read_frames, *self.write_frames))
        if frame not in known:
            raise BadOption(f"There is no frame {frame!r} to compare; there are {', '.join(known)}.")
        name, _, variant = LENS_FRAMES.get(frame, frame).partition(".")
        if name == "token" and layer == 0 and side == "read":
            name, variant = "embedded", variant if variant in ("raw", "inverse") else ""
        if variant == "inverse":
            return pseudo_inverse(self.matrix(name, side, layer))
        if name == "embedded":
            bare = is_bare(self.frames.model, 0, "q")  # heads of layer 0 are what a bare start is for
            rows = space_of("token", "read", 0, bare)
            return self.frames.model.embedding if variant == "raw" else self.frames.matrix(rows)
        if name == "token" and variant:
            states = self.frames.carried(_SHARES[variant])
            return states if variant == "raw" else self.frames.as_read(states)
        if name == "token":
            return self.frames.matrix("token")
        return self.frames.matrix(f"{name}.{'write' if variant == 'raw' else side}")

    def rows(self, frame: str, layer: int, ids: Tensor) -> Tensor:
        """Return the rows (n, d) of some tokens of the text, as the reading vectors of a layer meet them."""
        frame = LENS_FRAMES.get(frame, frame)  # a lens changes what is folded, not the rows
        first = layer == 0 and frame.startswith("token")
        if (frame, first) not in self._gathered:
            self._gathered[frame, first] = self.matrix(frame, "read", 0 if first else 1)[self.ids].clone()
        return self._gathered[frame, first][torch.searchsorted(self.ids, ids)]

    def vectors(self, role: str, layer: int, frame: str, at: Tensor | None = None) -> Tensor:
        """Return the vectors (n, d) of a role, or some of them, folded for a frame."""
        matrix = self.frames.model.matrix(role, layer)
        return self.folded(matrix if at is None else matrix[at], role, layer, frame)

    def folded(self, vectors: Tensor, role: str, layer: int, frame: str) -> Tensor:
        """Return canonical vectors (n, d) of a role, folded for a frame: see `Frames.fold`."""
        name = frame.partition(".")[0]
        return self.frames.fold(vectors, name, side_of(role), f"{site_of(role)}_norm", layer)
