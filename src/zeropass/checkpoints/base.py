"""Where bytes come from: the one protocol that every kind of weight file answers to."""

from typing import Protocol

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

FLOATS = ("F64", "F32", "F16", "BF16")
"""Types that hold plain numbers, as files name them; all others are quantised, or no numbers to read."""


class TensorSource(Protocol):
    """Named tensors that are read lazily, a block of rows at a time, as float32."""

    path: str
    """What a message calls this source: the file or folder it reads."""

    def names(self) -> list[str]:
        """Names of all tensors, in the order of the file(s)."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, as a reader of rows sees it (rows first). Raises BadWeights if there is none."""
        ...

    def dtype(self, name: str) -> str:
        """Name of the stored type, such as ``F32``, ``BF16`` or ``Q4_1``."""
        ...

    def rows(
        self,
        name: str,
        start: int = 0,
        stop: int | None = None,
        columns: slice | None = None,
        spare: Bools | None = None,
    ) -> Float32:
        """Rows ``start:stop`` (and, of a matrix, ``columns``) of a tensor as a fresh C-ordered float32 array.

        Only what is asked for is read, as far as the format allows (a quantised row is decoded whole).
        Of the rows that are asked for, ``spare`` marks those that nothing depends on: one of them that is not
        finite comes as zeros. Raises BadWeights, naming the file and the tensor, for a tensor that is missing, that
        does not have these rows, or whose other values are NaN or infinite (with their number).
        """
        ...
