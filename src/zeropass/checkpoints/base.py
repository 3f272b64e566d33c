"""The protocol of a source of tensors, which the reader of every weight format implements."""

from typing import Protocol

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

FLOATS = ("F64", "F32", "F16", "BF16")
"""The stored types of plain numbers, as files name them; all others are quantised or cannot be read as floats."""

QUANTISED = ("NF4", "FP4", "MXFP4", "NVFP4", "FP8", "INT1", "INT2", "INT3", "INT4", "INT5", "INT6", "INT8")
"""The types of quantised weights in safetensors files, each made of several stored tensors."""


class TensorSource(Protocol):
    """A source of named tensors, read lazily as float32, a block of rows at a time."""

    path: str
    """The file or folder that is read, for messages."""

    def names(self) -> list[str]:
        """Return the names of all tensors, in the order of the file(s)."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor, rows first. Raises BadWeights if there is no such tensor."""
        ...

    def dtype(self, name: str) -> str:
        """Return the name of the stored type, such as ``F32``, ``BF16`` or ``Q4_1``."""
        ...

    def rows(
        self,
        name: str,
        start: int = 0,
        stop: int | None = None,
        columns: slice | None = None,
        spare: Bools | None = None,
    ) -> Float32:
        """Return rows of a tensor as a new C-ordered float32 array.

        Only these rows and columns are read, as far as the format allows; a quantised row is decoded entirely.

        Args:
            name: The name of the tensor.
            start: The first row.
            stop: The row after the last one; None for all that follow.
            columns: The columns of a matrix; None for all.
            spare: A mask over these rows: a marked row with values that are not finite is returned as zeros.

        Raises:
            BadWeights: Naming the file and the tensor, if it is missing, lacks these rows or columns, has a type that
                cannot be read, or holds other values that are NaN or infinite.
        """
        ...
