"""Search for the products of two blocks of rows that reach a floor; torch multiplies, then the scores are compared.

The rows of the right block come in panels of `PANEL`. Each panel meets only the first rows of the left block; its
height is their number, and heights fall. `numba_kernels` does the same, and compares products as soon as they are made.
"""

import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["PANEL", "Found", "Heights", "Products", "Ways", "products_for"]

PANEL = 64
"""The number of rows of the right block that share a height."""

Heights = npt.NDArray[np.int64]
Found = tuple[int, Tensor, Tensor]
"""The first panel that was not searched, and the places (m,) of the pairs in the left and in the right block."""

_LIKE, _FEW = 0.9, 64
"""Rows are multiplied together if each meets this share of the panels of the first one, or if they are few."""


class Products(Protocol):
    """A way to multiply blocks of rows.

    Attributes:
        int8: True if it takes int8 numbers, False if float32.
    """

    int8: bool

    def left(self, rows: Tensor) -> Any:
        """Prepare a block (m, r) as the left one of `reaching`."""

    def right(self, rows: Tensor) -> Any:
        """Prepare a block (n, r) as the right one of `reaching`."""

    def reaching(self, left: Any, right: Any, heights: Heights, floors: Tensor, panel: int) -> Found:
        """Find the pairs whose product reaches the floor of their left row.

        Args:
            left: A block that `left` prepared, of m rows.
            right: A block that `right` prepared.
            heights: Rows of the left block that each panel meets; pairs of some more rows may be found.
            floors: The floor of each left row, (m,) float64.
            panel: The panel to begin with; at least this one is searched.

        Returns:
            The first panel that was not searched, and the places of the pairs.
        """


Ways = Callable[[int, torch.device, int, int], Products]
"""A function that chooses a way to multiply, like `products_for`."""


def products_for(width: int, device: torch.device, most: int, area: int) -> Products:
    """Return torch's fastest way to multiply blocks.

    Args:
        width: Columns of the rows.
        device: Where the rows are.
        most: Rows of the largest left block.
        area: Products that are held at once.

    Returns:
        A way to multiply int8 or float32 numbers.
    """
    # The int8 product of torch 2.13 misreads the strides of a single column; narrow rows gain nothing anyway.
    int8 = width >= 8 and _int8_pays(device)
    return _Torch(torch.empty(max(area, most * PANEL), dtype=torch.int32 if int8 else torch.float32, device=device))


class _Torch:
    """Products by torch: as many as fit the buffer are multiplied, then compared with the floors."""

    def __init__(self, buffer: Tensor) -> None:
        self.buffer, self.int8 = buffer, buffer.dtype == torch.int32

    def left(self, rows: Tensor) -> Tensor:
        return rows

    right = left

    def reaching(self, left: Tensor, right: Tensor, heights: Heights, floors: Tensor, panel: int) -> Found:
        right, remaining, row = right[panel * PANEL :], heights[panel:], 0
        pairs: list[tuple[Tensor, Tensor]] = []
        while row < remaining[0]:
            panels = int(np.searchsorted(-remaining, -row))  # the panels that meet this row
            right_part = right[: panels * PANEL]
            alike = max(int(remaining[int(_LIKE * (panels - 1))]), row + _FEW)
            part = slice(row, min(alike, int(remaining[0]), row + max(1, len(self.buffer) // len(right_part))))
            rows, columns = self.multiplied(left[part], right_part, floors[part])
            pairs.append((row + rows, panel * PANEL + columns))
            row = part.stop
        rows, columns = (torch.cat(places) for places in zip(*pairs, strict=True))
        return len(heights), rows, columns

    def multiplied(self, left: Tensor, right: Tensor, floors: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows and columns of the products that reach the floors."""
        scores = self.buffer[: len(left) * len(right)].view(len(left), len(right))
        (torch._int_mm if self.int8 else torch.mm)(left, right.T, out=scores)
        rows = (scores.amax(1) >= floors).nonzero()[:, 0]
        places = (scores[rows] >= floors[rows, None]).nonzero()
        return rows[places[:, 0]], places[:, 1]


@lru_cache
def _int8_pays(device: torch.device) -> bool:
    """Tell whether int8 products are correct and faster than float32 ones here, by trying (a few milliseconds).

    Some processors saturate or emulate them. The answer changes the speed of a search, never its result.
    """
    if device.type != "cpu":
        return False  # on a GPU float32 is so fast that set-up dominates, and int8 shapes are restricted
    rows = torch.full((512, 64), 127, dtype=torch.int8)
    try:
        correct = bool((torch._int_mm(rows, -rows.T) == -64 * 127 * 127).all())
    except RuntimeError:
        return False
    return correct and _seconds(torch._int_mm, rows) < _seconds(torch.mm, rows.float())


def _seconds(multiply: Callable[[Tensor, Tensor], Tensor], rows: Tensor) -> float:
    """Return the shortest time of five of ``rows @ rows.T``."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        multiply(rows, rows.T)
        times.append(time.perf_counter() - start)
    return min(times)
