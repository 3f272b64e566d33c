"""The rows of one canonical tensor of one model, read block by block, and the type that stores them."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from zeropass.model.adapted import Adapted
from zeropass.model.model import Model

__all__ = ["BLOCK", "Form", "TensorRows", "gathered", "rows_of"]

BLOCK = 4096
"""The number of rows that are read at once."""

Form = Literal["rows", "vector", "column"]
"""The rows of a tensor: those of a table; a vector as one row, or as a column with one number per token."""


@dataclass(frozen=True, eq=False)
class TensorRows:
    """A canonical tensor as rows, read when they are needed.

    Attributes:
        model: The model that has the tensor.
        what: The canonical name.
        layer: The layer, 0 outside the blocks.
        form: The way in which the tensor is cut into rows.
    """

    model: Model
    what: str
    layer: int
    form: Form = "rows"

    @property
    def rows(self) -> int:
        """The number of rows."""
        return 1 if self.form == "vector" else self.model.rows(self.what, self.layer)

    def read(self, start: int, stop: int) -> Tensor:
        """Read the rows ``start:stop``, (n, width), and no others of a table."""
        if self.form == "rows":
            return self.model.matrix(self.what, self.layer, start, stop)
        vector = self.model.vector(self.what, self.layer)
        assert vector is not None
        return vector.reshape(1, -1)[start:stop] if self.form == "vector" else vector[start:stop, None]

    @property
    def width(self) -> int:
        """The number of columns."""
        return self.read(0, 1).shape[1]

    @property
    def turned(self) -> bool:
        """True if the file stores the matrix transposed."""
        stored = self.model.layout.tensors.get(self.what)
        return stored is not None and stored.transpose and self.form == "rows"

    @property
    def kind(self) -> str:
        """The stored type, as the file names it; a tensor that an adapter replaces counts as float32."""
        model = self.model
        replaced = isinstance(model, Adapted) and (self.what, self.layer) in model.replaced
        return "F32" if replaced else model.stored_type(self.what, self.layer)

    def as_stored(self, rows: Tensor) -> Tensor | None:
        """Return rows (n, m), laid out as in the file, after storing them in its type, or None if that is unknown."""
        if self.kind in ("F32", "F64"):
            return rows
        if self.form == "rows":
            stored = self.model.as_stored(self.what, self.layer, rows.T if self.turned else rows)
            return stored if stored is None or not self.turned else stored.T
        shift = self.model.layout.offset_of(self.what)
        stored = self.model.as_stored(self.what, self.layer, rows.flatten() - shift)
        return None if stored is None else stored.reshape(rows.shape) + shift


def rows_of(model: Model, what: str, layer: int) -> TensorRows | None:
    """Return the rows of a canonical tensor other than a matrix of a block, or None if the model does not have it.

    The unembedding of a tied model is its embedding.
    """
    if what == "unembedding" and model.logit_table == "embedding":
        what = "embedding"
    if model.has(what) and not model.is_vector(what):
        return TensorRows(model, what, layer)
    if model.vector(what, layer) is None:
        return None
    return TensorRows(model=model, what=what, layer=layer, form="column" if what == "unembedding_bias" else "vector")


def gathered(tensor: TensorRows, ids: Tensor) -> Tensor:
    """Return the rows (n, width) of any ids (n,), read block by block."""
    rows = torch.empty(len(ids), tensor.width, device=tensor.model.device)
    for block in sorted(set((ids // BLOCK).tolist())):
        places = (ids // BLOCK == block).nonzero()[:, 0]
        first, last = int(ids[places].min()), int(ids[places].max())
        rows[places.to(rows.device)] = tensor.read(first, last + 1)[(ids[places] - first).to(rows.device)]
    return rows
