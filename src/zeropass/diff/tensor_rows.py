"""One canonical tensor of one model: how many rows it has, in which type it is stored, its rows block by block."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from zeropass.model.adapted import Adapted
from zeropass.model.model import Model

__all__ = ["BLOCK", "Form", "Held", "gathered", "held"]

BLOCK = 4096
"""Rows that are read at once."""

Form = Literal["rows", "vector", "column"]
"""A table; a vector, which is one row; a vector with a number for each token, which is a column."""


@dataclass(frozen=True, eq=False)
class Held:
    """A canonical tensor by the name under which the model holds it."""

    model: Model
    what: str
    layer: int
    form: Form = "rows"

    @property
    def rows(self) -> int:
        """How many rows it has."""
        return 1 if self.form == "vector" else self.model.rows(self.what, self.layer)

    def read(self, start: int, stop: int) -> Tensor:
        """Rows ``start:stop``, (n, width); no more of a table is read."""
        if self.form == "rows":
            return self.model.matrix(self.what, self.layer, start, stop)
        vector = self.model.vector(self.what, self.layer)
        assert vector is not None
        return vector[None][start:stop] if self.form == "vector" else vector[start:stop, None]

    @property
    def width(self) -> int:
        """Numbers of a row."""
        return self.read(0, 1).shape[1]

    @property
    def turned(self) -> bool:
        """Whether the file keeps a matrix the other way round."""
        stored = self.model.layout.tensors.get(self.what)
        return stored is not None and stored.transpose and self.form == "rows"

    @property
    def kind(self) -> str:
        """The type that it is stored in, as the file names it; what an adapter brings whole counts as float32."""
        model = self.model
        brought = isinstance(model, Adapted) and (self.what, self.layer) in model.replaced
        return "F32" if brought else model.stored_type(self.what, self.layer)

    def as_stored(self, rows: Tensor) -> Tensor | None:
        """What rows (n, m), as they lie in the file, become when they are stored in its type; None if not known."""
        if self.kind in ("F32", "F64"):
            return rows
        if self.form == "rows":
            stored = self.model.as_stored(self.what, self.layer, rows.T if self.turned else rows)
            return stored if stored is None or not self.turned else stored.T
        shift = self.model.layout.gain_offset if self.what.endswith("_norm") else 0.0
        stored = self.model.as_stored(self.what, self.layer, rows.flatten() - shift)
        return None if stored is None else stored.reshape(rows.shape) + shift


def held(model: Model, what: str, layer: int) -> Held | None:
    """A canonical tensor that is no matrix of a block, or None if the model has none of this name at this layer.

    The unembedding of a tied model is its embedding.
    """
    if what == "unembedding" and model.says == "embedding":
        what = "embedding"
    if model.has(what) and not model.is_vector(what):
        return Held(model, what, layer)
    if model.vector(what, layer) is None:
        return None
    return Held(model, what, layer, "column" if what == "unembedding_bias" else "vector")


def gathered(tensor: Held, ids: Tensor) -> Tensor:
    """Rows (n, width) of any ids (n,), read from one block of the table after the other."""
    rows = torch.empty(len(ids), tensor.width, device=tensor.model.device)
    for block in sorted(set((ids // BLOCK).tolist())):
        places = (ids // BLOCK == block).nonzero()[:, 0]
        first, last = int(ids[places].min()), int(ids[places].max())
        rows[places.to(rows.device)] = tensor.read(first, last + 1)[(ids[places] - first).to(rows.device)]
    return rows
