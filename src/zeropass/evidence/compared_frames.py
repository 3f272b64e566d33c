"""The frames that are compared: those of the library, and variants of them that it does not show (docs/evidence.md)."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from zeropass.arch.spec import Side, side_of, site_of
from zeropass.errors import BadOption
from zeropass.model.frames import Frames
from zeropass.numerics.projection import normed, pseudo_inverse

__all__ = ["READ_FRAMES", "WRITE_FRAMES", "Spaces"]

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
"""Frames of what reads. Layer 0 reads the embedding itself in every ``token`` frame."""

WRITE_FRAMES = {
    "paper": "raw rows of E",
    "paper.inverse": "pseudo-inverse of the rows of E",
    "output": "unembedding through the final norm, centred",
    "output.inverse": "pseudo-inverse of the output rows",
    "token": "tokens carried through block 0, normed",
}
"""Frames of what writes."""


_SHARES = {"mlp": 0.0, "half": 0.5, "raw": 1.0}
"""How much the attention of block 0 counts in a variant of ``token``."""


@dataclass(frozen=True, eq=False)
class Spaces:
    """Rows of every frame that is compared, and parameters as each frame takes them.

    Whole tables are made anew when asked for, since each may be a hundred megabytes; the rows of the tokens ``ids``
    (sorted, unique), which the text holds, are kept.
    """

    frames: Frames
    ids: Tensor

    @cached_property
    def _gathered(self) -> dict[tuple[str, bool], Tensor]:
        return {}

    def matrix(self, frame: str, side: Side, layer: int) -> Tensor:
        """Return the rows (V, d) of a frame, as a layer has them; BadOption for a frame that is not compared."""
        if frame not in {*READ_FRAMES, *WRITE_FRAMES}:
            known = ", ".join(dict.fromkeys((*READ_FRAMES, *WRITE_FRAMES)))
            raise BadOption(f"There is no frame {frame!r} to compare; there are {known}.")
        name, _, variant = frame.partition(".")
        if name == "token" and layer == 0 and side == "read":
            name, variant = "embedded", variant if variant in ("raw", "inverse") else ""
        if variant == "inverse":
            return pseudo_inverse(self.matrix(name, side, layer))
        if name == "embedded":
            return self.frames.model.embedding if variant == "raw" else self.frames.matrix("embedded")
        if name == "token" and variant:
            states = self.frames.carried(_SHARES[variant])
            return states if variant == "raw" else self._as_read(states)
        if name == "token":
            return self.frames.matrix("token")
        return self.frames.matrix(f"{name}.{'write' if variant == 'raw' else side}")

    def rows(self, frame: str, layer: int, ids: Tensor) -> Tensor:
        """Rows (n, d) of some tokens of the text, as the reading vectors of a layer meet them."""
        first = layer == 0 and frame.startswith("token")
        if (frame, first) not in self._gathered:
            self._gathered[frame, first] = self.matrix(frame, "read", 0 if first else 1)[self.ids].clone()
        return self._gathered[frame, first][torch.searchsorted(self.ids, ids)]

    def vectors(self, role: str, layer: int, frame: str, at: Tensor | None = None) -> Tensor:
        """Vectors (n, d) of a role, or those at some rows, folded as the frame takes them."""
        matrix = self.frames.model.matrix(role, layer)
        return self.folded(matrix if at is None else matrix[at], role, layer, frame)

    def folded(self, vectors: Tensor, role: str, layer: int, frame: str) -> Tensor:
        """Canonical vectors (n, d) as a frame takes those of a role: see `Frames.fold`."""
        name = frame.partition(".")[0]
        return self.frames.fold(vectors, name, side_of(role), f"{site_of(role)}_norm", layer)

    def _as_read(self, states: Tensor) -> Tensor:
        family = self.frames.model.family
        return normed(states, family.norm, self.frames.model.dims.eps) if family.reads_normed else states
