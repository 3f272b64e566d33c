"""Which products of two blocks of rows reach a floor: multiplied by torch, and then looked through.

The rows of the right block come in panels of `PANEL`; each meets the first rows of the left block only, as many as its
height says, and heights fall. Torch is here; `numba_tiles` compares products as soon as they are made.
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
"""Rows of the right block that meet as many rows of the left one."""

Heights = npt.NDArray[np.int64]
Found = tuple[int, Tensor, Tensor]
"""The first panel that was not looked at, and the places (m,) in the left and in the right block of what was found."""

_LIKE, _FEW = 0.9, 64
"""Rows that meet so large a share of the panels that the first of them meets, or few enough, are multiplied at once."""


class Products(Protocol):
    """A way to multiply. int8: it takes int8 numbers, else float32."""

    int8: bool

    def left(self, rows: Tensor) -> Any:
        """A block (m, r) as the left of `reaching` takes it."""

    def right(self, rows: Tensor) -> Any:
        """A block (n, r) as the right of `reaching` takes it."""

    def reaching(self, left: Any, right: Any, heights: Heights, floors: Tensor, panel: int) -> Found:
        """Find pairs whose product is ``floors`` (m,), float64, of its left row or more, from a panel on.

        heights: rows of the left block that each panel meets; some more may be found. At least one panel is looked at.
        """


Ways = Callable[[int, torch.device, int, int], Products]
"""`products_for`, or what else chooses a way to multiply."""


def products_for(width: int, device: torch.device, most: int, area: int) -> Products:
    """How torch multiplies rows of so many columns; most: rows of a left block. area: products held at once."""
    # Of one column torch 2.13's int8 product misreads the strides; narrow rows gain nothing anyway.
    whole = width >= 8 and _int8_pays(device)
    return _Torch(torch.empty(max(area, most * PANEL), dtype=torch.int32 if whole else torch.float32, device=device))


class _Torch:
    """Products by torch, as many as fit the buffer, which are looked through afterwards."""

    def __init__(self, buffer: Tensor) -> None:
        self.buffer, self.int8 = buffer, buffer.dtype == torch.int32

    def left(self, rows: Tensor) -> Tensor:
        return rows

    right = left

    def reaching(self, left: Tensor, right: Tensor, heights: Heights, floors: Tensor, panel: int) -> Found:
        right, met, row = right[panel * PANEL :], heights[panel:], 0
        found: list[tuple[Tensor, Tensor]] = []
        while row < met[0]:
            panels = int(np.searchsorted(-met, -row))  # that meet this row
            some = right[: panels * PANEL]
            alike = max(int(met[int(_LIKE * (panels - 1))]), row + _FEW)
            part = slice(row, min(alike, int(met[0]), row + max(1, len(self.buffer) // len(some))))
            rows, columns = self.multiplied(left[part], some, floors[part])
            found.append((row + rows, panel * PANEL + columns))
            row = part.stop
        rows, columns = (torch.cat(places) for places in zip(*found, strict=True))
        return len(heights), rows, columns

    def multiplied(self, left: Tensor, right: Tensor, floors: Tensor) -> tuple[Tensor, Tensor]:
        """Places of what reaches the floors in the whole product."""
        scores = self.buffer[: len(left) * len(right)].view(len(left), len(right))
        (torch._int_mm if self.int8 else torch.mm)(left, right.T, out=scores)
        rows = (scores.amax(1) >= floors).nonzero()[:, 0]
        found = (scores[rows] >= floors[rows, None]).nonzero()
        return rows[found[:, 0]], found[:, 1]


@lru_cache
def _int8_pays(device: torch.device) -> bool:
    """Tell whether int8 products are right and faster than float32 ones here, by trying (a few milliseconds).

    Some processors saturate or emulate them; the answer changes how fast a search is and never what it finds.
    """
    if device.type != "cpu":
        return False  # there float32 is fast enough that set-up dominates, and int8 shapes are restricted
    rows = torch.full((512, 64), 127, dtype=torch.int8)
    try:
        right = bool((torch._int_mm(rows, -rows.T) == -64 * 127 * 127).all())
    except RuntimeError:
        return False
    return right and _seconds(torch._int_mm, rows) < _seconds(torch.mm, rows.float())


def _seconds(multiply: Callable[[Tensor, Tensor], Tensor], rows: Tensor) -> float:
    """Return the best of five times of ``rows @ rows.T``."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        multiply(rows, rows.T)
        times.append(time.perf_counter() - start)
    return min(times)
