"""The inner loop of `tiles` for processors with VNNI, compiled by numba on its first run and cached on disk.

``vpdpbusd`` adds four products of an unsigned and a signed number to each of 16 sums. So 128 is added to the numbers
of the right block. This adds 128 times the sum of the left row to a product, and the same is added to its floor.
"""

from typing import Any

import llvmlite.binding
import numba
import numpy as np
import numpy.typing as npt
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from zeropass.numerics.tiles import PANEL, Found, Heights, Products, products_for

__all__ = ["fastest_products"]

_VNNI = bool(llvmlite.binding.get_host_cpu_features().get("avx512vnni"))
"""True if this processor has the instruction, 512 bits wide."""

_ROWS = 4
"""The left rows that meet a panel together: 4 x 4 vectors of 16 sums fill half of the registers."""

_LANES = 16
_VECTORS = PANEL // _LANES
_DEEP = 4
"""The number of products that the instruction adds to a sum."""

_MOST = 1 << 30
"""The size at which floors are clamped; no product reaches it."""

_WIDEST = 1 << 14
"""The largest number of columns; products of such rows fit 32 bits with room to spare."""

_ROOM = 1 << 19
"""The room for pairs that the loop may fill before it returns, unless one panel may bring more."""

Numbers = npt.NDArray[np.int8]
Panels = npt.NDArray[np.uint32]


def fastest_products(width: int, device: torch.device, most: int, area: int) -> Products:
    """Return the compiled loop where the processor supports it, else `tiles.products_for` of the same arguments."""
    if _VNNI and device.type == "cpu" and width <= _WIDEST:
        return _Compiled(most)
    return products_for(width, device, most, area)


class _Compiled:
    """Products of int8 numbers that are compared as soon as they are computed, and never stored."""

    int8 = True

    def __init__(self, most: int) -> None:
        self.pairs = np.empty((2, max(_ROOM, most * PANEL)), np.int32)

    def left(self, rows: Tensor) -> tuple[Numbers, npt.NDArray[np.int32]]:
        """Return a block (m, r), padded with zeros to full tiles, and 128 times the sums of its rows (m,)."""
        return _padded(rows, _ROWS), 128 * rows.sum(1, dtype=torch.int32).numpy()

    def right(self, rows: Tensor) -> tuple[Panels, int]:
        """Return a block (n, r) as `_panels`, and n."""
        return _panels(_padded(rows, PANEL).view(np.uint32)), len(rows)

    def reaching(self, left: Any, right: Any, heights: Heights, floors: Tensor, panel: int) -> Found:
        """Find pairs as `Products.reaching` does."""
        (numbers, sums), (panels, columns) = left, right
        count, stop = _reaching(numbers, sums, panels, columns, heights, floors.numpy(), panel, self.pairs)
        return stop, *torch.from_numpy(self.pairs[:, :count].astype(np.int64))


def _tile(_typing, _left, _stride, _panel, _steps, _floors, _masks):
    """Multiply _ROWS left rows, ``_stride`` bytes apart, with a panel; the result is not 0 if any reaches its floor.

    The products that do are marked in ``_masks``, 64 bits per row. All but ``_steps`` and ``_stride`` are addresses.
    """
    word, long = ir.IntType(32), ir.IntType(64)
    lanes = ir.VectorType(word, _LANES)

    def generate(_context, builder, _signature, arguments):
        left, stride, panel, steps, floors, masks = arguments
        multiply = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(lanes, [lanes] * 3), "llvm.x86.avx512.vpdpbusd.512"
        )

        def spread(base, place):
            """Load the number at a place into all lanes."""
            number = builder.load(builder.gep(base, [place]), align=4)
            undefined = ir.Constant(lanes, ir.Undefined)
            return builder.shuffle_vector(
                builder.insert_element(undefined, number, word(0)), undefined, ir.Constant(lanes, [0] * _LANES)
            )

        zeros = ir.Constant(lanes, [0] * _LANES)
        sums = [[cgutils.alloca_once_value(builder, zeros) for _ in range(_VECTORS)] for _ in range(_ROWS)]
        rows = [
            builder.inttoptr(builder.add(left, builder.mul(stride, long(row))), word.as_pointer())
            for row in range(_ROWS)
        ]
        columns = builder.inttoptr(panel, lanes.as_pointer())
        with cgutils.for_range(builder, steps) as loop:
            first = builder.mul(loop.index, long(_VECTORS))
            vectors = [
                builder.load(builder.gep(columns, [builder.add(first, long(at))]), align=4) for at in range(_VECTORS)
            ]
            for row, totals in zip(rows, sums, strict=True):
                numbers = spread(row, loop.index)
                for total, column in zip(totals, vectors, strict=True):
                    builder.store(builder.call(multiply, [builder.load(total), column, numbers]), total)

        least, out = (builder.inttoptr(base, type_.as_pointer()) for base, type_ in ((floors, word), (masks, long)))
        reached = long(0)
        for row, totals in enumerate(sums):
            floor, mask = spread(least, long(row)), long(0)
            for at, total in enumerate(totals):
                bits = builder.bitcast(builder.icmp_signed(">=", builder.load(total), floor), ir.IntType(_LANES))
                mask = builder.or_(mask, builder.shl(builder.zext(bits, long), long(_LANES * at)))
            builder.store(mask, builder.gep(out, [long(row)]))
            reached = builder.or_(reached, mask)
        return reached

    return types.int64(*[types.intp] * 6), generate


_tile_reaching: Any = intrinsic(_tile)


def _padded(rows: Tensor, many: int) -> Numbers:
    """Pad a block (n, r) with zeros to a multiple of ``many`` rows and of _DEEP columns."""
    n, r = rows.shape
    if n % many == 0 and r % _DEEP == 0:
        return rows.numpy()
    numbers = np.zeros((-(-n // many) * many, -(-r // _DEEP) * _DEEP), np.int8)
    numbers[:n, :r] = rows.numpy()
    return numbers


@numba.njit(nogil=True, cache=True)
def _panels(words):
    """Cut a block (n, r / 4) of words of four int8 numbers into panels (n / PANEL, r / 4, PANEL); add 128 to each."""
    panels = np.empty((words.shape[0] // PANEL, words.shape[1], PANEL), np.uint32)
    for panel in range(panels.shape[0]):
        for place in range(words.shape[1]):
            for row in range(PANEL):
                panels[panel, place, row] = words[PANEL * panel + row, place] ^ np.uint32(0x80808080)
    return panels


@numba.njit(nogil=True, cache=True)
def _reaching(numbers, sums, panels, columns, heights, floors, panel, pairs):
    """Do `tiles.Products.reaching` for prepared blocks, and write the pairs to ``pairs`` (2, places).

    Return their number and the first panel that was not searched: one that meets no row, or whose pairs may not fit.
    """
    least = np.full(numbers.shape[0], _MOST, np.int32)
    for i in range(floors.shape[0]):
        least[i] = np.int32(min(max(np.ceil(floors[i]), -_MOST), _MOST)) + sums[i]
    masks, count = np.zeros(_ROWS, np.uint64), 0
    while panel < panels.shape[0] and heights[panel] and count + PANEL * heights[panel] <= pairs.shape[1]:
        for i in range(0, heights[panel], _ROWS):
            if _tile_reaching(
                numbers[i:].ctypes.data,
                numbers.shape[1],
                panels[panel].ctypes.data,
                panels.shape[1],
                least[i:].ctypes.data,
                masks.ctypes.data,
            ):
                for row in range(i, min(i + _ROWS, heights[panel])):
                    mask, column = masks[row - i], PANEL * panel
                    while mask:
                        if mask & np.uint64(1) and column < columns:
                            pairs[0, count], pairs[1, count] = row, column
                            count += 1
                        mask >>= np.uint64(1)
                        column += 1
        panel += 1
    return count, panel
