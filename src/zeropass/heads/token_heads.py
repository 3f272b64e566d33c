"""The heads of a layer as they meet rows of tokens: queries, keys, values, and scores of what they write."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from zeropass.arch.frame_names import space_of
from zeropass.arch.roles import norm_of
from zeropass.model.blocks import Block
from zeropass.model.frames import Frames

__all__ = ["TokenHeads"]


@dataclass(frozen=True, eq=False)
class TokenHeads:
    """All heads of a layer in a frame.

    Attributes:
        frames: The frames of the model.
        layer: The layer.
        frame: The frame of what is read: ``token``, or ``seen`` with a lens.
    """

    frames: Frames
    layer: int
    frame: str

    @cached_property
    def block(self) -> Block:
        """The layer."""
        return Block(self.frames.model, self.layer)

    def queries(self, ids: Tensor) -> Tensor:
        """Return the queries of tokens (n,) before they are rotated, (heads, n, d_h)."""
        return self.met("q", self._rows(self.layer, ids))

    def keys(self, ids: Tensor) -> Tensor:
        """Return the keys of tokens (n,) before they are rotated, (key heads, n, d_h)."""
        return self.met("k", self._rows(self.frames.model.layer_of("k", self.layer), ids))

    def values(self, ids: Tensor) -> Tensor:
        """Return the values of tokens (n,), (heads, n, width); biases, the same for every token, are left out."""
        frames, layer, block = self.frames, self.frames.model.layer_of("v", self.layer), self.block
        rows = self._rows(layer, ids)
        lengths = frames.lengths(layer, "v", rows, rows.new_zeros(rows.shape[1]), frame=self.frame)
        heads = block.heads(self._columns("v", layer, rows), "v").repeat_interleave(block.dims.group, 0)
        return torch.stack([frames.as_value(x, layer, head, self.frame, lengths) for head, x in enumerate(heads)])

    def written(self, ids: Tensor) -> Tensor:
        """Return the scores of tokens (n,) in what each row of a head's ``o`` writes, (heads, n, width)."""
        frames, frame = self.frames, self.frames.right_frame("vo", self.frame)
        folded = frames.fold(frames.model.matrix("o", self.layer), frame, "write", norm_of("o"), self.layer)
        return self.block.heads(frames.rows(space_of(frame, "write", self.layer)).matrix[ids] @ folded.T, "o")

    def met(self, role: str, rows: Tensor) -> Tensor:
        """Return the queries or keys of rows (n, d), with their constants, normed and clipped as the model does it.

        Args:
            role: ``q`` or ``k``.
            rows: Rows in the space that the layer reads, of tokens or other states.
        """
        frames, layer = self.frames, self.frames.model.layer_of(role, self.layer)
        block = self.block if layer == self.layer else Block(frames.model, layer)
        x, constant = self._columns(role, layer, rows), frames.constant(layer, role, frame=self.frame)
        heads = block.heads(block.bounded(x if constant is None else x + constant, role), role)
        if not frames.model.layout.latent_of(role):
            return heads
        lengths = frames.lengths(layer, role, rows, rows.new_zeros(rows.shape[1]), frame=self.frame)
        return heads if lengths is None else frames.per_latent(heads, role, lengths.each)

    def _rows(self, layer: int, ids: Tensor) -> Tensor:
        """Return the rows of tokens as a layer reads them, (n, d)."""
        return self.frames.rows(space_of(self.frame, "read", layer)).matrix[ids]

    def _columns(self, role: str, layer: int, rows: Tensor) -> Tensor:
        """Return the products of rows with all columns of a role, (n, width)."""
        matrix = self.frames.model.matrix(role, layer)
        return rows @ self.frames.fold(matrix, self.frame, "read", norm_of(role), layer).T
