"""The inner loops of `top_k.survey` and of `tiles`, compiled by numba on their first run and cached on disk.

Two loops are written in the compiler's own language (LLVM IR), through numba's extension interface: dot products with
a fixed order of summation, and a tile of int8 products with VNNI. numba cannot say the second, and turns the first
into slower code: without them lists take 1.3 to 1.7 times as long, and pairs 1.2 to 1.4 times (`docs/benchmarks.md`).
They stand here, and not in a file of their own, because numba looks only at the time of this file when it decides
whether what it has cached is out of date. Without numba torch does the same (`compiled`).

``vpdpbusd`` adds four products of an unsigned and a signed number to each of 16 sums. So 128 is added to the numbers
of the right block of a tile. This adds 128 times the sum of the left row to a product, and the same is added to its
floor.
"""

from collections.abc import Callable
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
from zeropass.numerics.token_index import LOW

__all__ = ["INT8", "fastest_products", "keep", "look", "raise_ends"]

_FEATURES = llvmlite.binding.get_host_cpu_features()
"""The instruction sets of this processor, by LLVM's names."""

_LANES = 64
"""The number of partial sums of a dot product.

The order of the summation is fixed here. If the compiler chose it, a process that has just compiled these loops would
round differently from one that loads them from disk, and builds would not have the same bytes.
"""

_TOGETHER = 4 if _FEATURES.get("avx512f") else 1
"""The vectors that meet a row together, so that its numbers are loaded only once: as many as fit the registers."""

_WORD = 8
"""The number of vectors whose marks, a byte each, are read as one integer."""

_TILE_ROWS = 4
"""The left rows that meet a panel together: 4 x 4 vectors of 16 sums fill half of the registers."""

_TILE_LANES = 16
_TILE_VECTORS = PANEL // _TILE_LANES
_TILE_DEPTH = 4
"""The number of products that the instruction adds to a sum."""


def _dots_in_lanes(_typing, _bases, _row, _blocks, _dots):
    """Compute the dot products of _TOGETHER vectors with a row of ``_blocks`` times _LANES numbers.

    Each product is summed in _LANES partial sums, which are then added in pairs. ``_bases`` is the address of the
    addresses of the vectors, ``_row`` that of the row, and ``_dots`` that of the results. This is written as
    intermediate code because the compiler turns an ordinary loop into far slower code.
    """

    def generate(_context, builder, _signature, arguments):
        number, long = ir.FloatType(), ir.IntType(64)
        lanes = ir.VectorType(number, _LANES)
        bases, row, blocks, dots = arguments
        table, out = builder.inttoptr(bases, long.as_pointer()), builder.inttoptr(dots, number.as_pointer())
        vectors = [builder.load(builder.gep(table, [long(at)])) for at in range(_TOGETHER)]
        zeros = ir.Constant(lanes, [0.0] * _LANES)
        totals = [cgutils.alloca_once_value(builder, zeros) for _ in vectors]
        with cgutils.for_range(builder, blocks) as loop:
            shift = builder.mul(loop.index, long(_LANES * 4))
            row_part, *parts = (
                builder.load(builder.inttoptr(builder.add(base, shift), lanes.as_pointer()), align=4)
                for base in (row, *vectors)
            )
            for total, part in zip(totals, parts, strict=True):
                builder.store(builder.fadd(builder.load(total), builder.fmul(part, row_part)), total)
        for at, total in enumerate(totals):
            builder.store(_in_pairs(builder, builder.load(total)), builder.gep(out, [long(at)]))
        return long(0)

    return types.int64(*[types.intp] * 4), generate


def _in_pairs(builder, numbers):
    """Return the sum of a vector's numbers: its halves are added, then the halves of the result, and so on."""
    word = ir.IntType(32)
    while numbers.type.count > 1:
        half, undefined = numbers.type.count // 2, ir.Constant(numbers.type, ir.Undefined)
        masks = (ir.Constant(ir.VectorType(word, half), [*range(first, first + half)]) for first in (0, half))
        numbers = builder.fadd(*(builder.shuffle_vector(numbers, undefined, mask) for mask in masks))
    return builder.extract_element(numbers, word(0))


dots_in_lanes: Any = intrinsic(_dots_in_lanes)


def _tile(_typing, _left, _stride, _panel, _steps, _floors, _masks):
    """Multiply some left rows, ``_stride`` bytes apart, with a panel; the result is not 0 if any reaches its floor.

    The products that do are marked in ``_masks``, 64 bits per row. All but ``_steps`` and ``_stride`` are addresses.
    """
    word, long = ir.IntType(32), ir.IntType(64)
    lanes = ir.VectorType(word, _TILE_LANES)

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
                builder.insert_element(undefined, number, word(0)), undefined, ir.Constant(lanes, [0] * _TILE_LANES)
            )

        zeros = ir.Constant(lanes, [0] * _TILE_LANES)
        sums = [[cgutils.alloca_once_value(builder, zeros) for _ in range(_TILE_VECTORS)] for _ in range(_TILE_ROWS)]
        rows = [
            builder.inttoptr(builder.add(left, builder.mul(stride, long(row))), word.as_pointer())
            for row in range(_TILE_ROWS)
        ]
        columns = builder.inttoptr(panel, lanes.as_pointer())
        with cgutils.for_range(builder, steps) as loop:
            first = builder.mul(loop.index, long(_TILE_VECTORS))
            vectors = [
                builder.load(builder.gep(columns, [builder.add(first, long(at))]), align=4)
                for at in range(_TILE_VECTORS)
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
                bits = builder.bitcast(builder.icmp_signed(">=", builder.load(total), floor), ir.IntType(_TILE_LANES))
                mask = builder.or_(mask, builder.shl(builder.zext(bits, long), long(_TILE_LANES * at)))
            builder.store(mask, builder.gep(out, [long(row)]))
            reached = builder.or_(reached, mask)
        return reached

    return types.int64(*[types.intp] * 6), generate


tile_reaching: Any = intrinsic(_tile)

# --- Loops of top_k.survey ----------------------------------------------------------------------------------

INT8 = any(map(_FEATURES.get, ("avx512vnni", "avxvnni", "amx-int8")))
"""True if this processor has instructions for int8 products, which are four to six times as fast as float32."""


@numba.njit(inline="always")
def _key(score, low):
    """Return a key that sorts by rising score, then by falling ``low``: the bits of floats sort like the floats."""
    bits = np.int64(np.float32(score + np.float32(0.0)).view(np.int32))
    if bits < 0:
        bits ^= 0x7FFFFFFF
    return (bits << 32) | (LOW - low)


@numba.njit(inline="always")
def _score(key):
    """Return the score of a key."""
    bits = key >> 32
    if bits < 0:
        bits ^= 0x7FFFFFFF
    return np.int32(bits).view(np.float32)


@numba.njit
def _put(heap, key):
    """Replace the lowest key of a heap if the new one is higher, and return the score of the lowest that remains.

    The lowest key is the first, and places 2p + 1 and 2p + 2 hold nothing lower than place p.
    """
    if key > heap[0]:
        place, size = 0, heap.shape[0]
        while 2 * place + 1 < size:
            below = 2 * place + 1
            if below + 1 < size and heap[below + 1] < heap[below]:
                below += 1
            if heap[below] >= key:
                break
            heap[place] = heap[below]
            place = below
        heap[place] = key
    return _score(heap[0])


@numba.njit
def _dots(vectors, places, count, row, scores, bases):
    """Write the dot products of a row with ``count`` of the vectors, and up to _TOGETHER - 1 more, to ``scores``."""
    blocks = row.shape[0] // _LANES
    for at in range(0, count, _TOGETHER):
        for lane in range(_TOGETHER):
            bases[lane] = vectors.ctypes.data + places[min(at + lane, count - 1)] * vectors.strides[0]
        dots_in_lanes(bases.ctypes.data, row.ctypes.data, blocks, scores[at:].ctypes.data)
    for place in range(blocks * _LANES, row.shape[0]):
        for at in range(count):
            scores[at] += vectors[places[at], place] * row[place]


@numba.njit
def _add_powers(products, of_rows, first, sums):
    """Add the first four powers of the scores of four rows to the sums (4, n) of the vectors.

    With four rows at a time, the sums are loaded once for all of them; missing rows count as zeros. There are no
    branches in the loop, so the compiler vectorises it.
    """
    rows, steps = np.empty(4, np.int64), np.zeros(4, np.float32)
    for offset in range(4):
        rows[offset] = min(first + offset, products.shape[0] - 1)
        steps[offset] = of_rows[first + offset, 0] if first + offset < products.shape[0] else 0.0
    p, q, r, s = products[rows[0]], products[rows[1]], products[rows[2]], products[rows[3]]
    ones, twos, threes, fours = sums[0], sums[1], sums[2], sums[3]
    for i in range(products.shape[1]):
        x, y = np.float32(p[i]) * steps[0], np.float32(q[i]) * steps[1]
        z, w = np.float32(r[i]) * steps[2], np.float32(s[i]) * steps[3]
        xx, yy, zz, ww = x * x, y * y, z * z, w * w
        ones[i] = ones[i] + x + y + z + w
        twos[i] = twos[i] + xx + yy + zz + ww
        threes[i] = threes[i] + xx * x + yy * y + zz * z + ww * w
        fours[i] = fours[i] + xx * xx + yy * yy + zz * zz + ww * ww


@numba.njit
def _mark(products, row, floor, high, low, size, lost, scale, marks):
    """Mark the vectors whose score with a row may enter a pole or the row's entries, again without branches."""
    for i in range(products.shape[0]):
        x = np.float32(products[i]) * row[0]
        error = lost[i] * row[1] + size[i] * row[2]
        pole = np.uint8(x + error >= high[i]) | np.uint8(error - x >= low[i])
        marks[i] = pole | np.uint8(abs(x) + error >= floor * scale[i])


@numba.njit
def _chosen(marks, places):
    """Write the places of the marks that are set, and return their number; marks come in full words.

    Few are set, so most words are skipped with one comparison.
    """
    count, words = 0, marks.view(np.uint64)
    for word in range(words.shape[0]):
        if words[word]:
            for place in range(_WORD * word, _WORD * word + _WORD):
                if marks[place]:
                    places[count] = place
                    count += 1
    return count


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a loop that Python calls, compiled when it is first called; numba alone would leave it without a type."""
    loop: Callable[..., Any] = numba.njit(nogil=True, cache=True)(function)
    return loop


@_compiled
def raise_ends(products, of_rows, start, ends):
    """Raise the ends of groups of rows, to which all rows are dealt in turn.

    Args:
        products: Products (t, n) as for `look`.
        of_rows: Steps and bounds of the t rows, (t, 3).
        start: The place of the first row among all.
        ends: The highest score of each group and minus the lowest, (2, groups, n), in the vectors' steps; changed.
    """
    for j in range(products.shape[0]):
        high, low = ends[0, (start + j) % ends.shape[1]], ends[1, (start + j) % ends.shape[1]]
        for i in range(products.shape[1]):
            x = np.float32(products[j, i]) * of_rows[j, 0]
            high[i], low[i] = max(high[i], x), max(low[i], -x)


@_compiled
def look(products, of_vectors, of_rows, vectors, rows, start, floors, lowest, heaps, sums, pairs, exact):
    """Search the products of quantized vectors and rows, and compute exactly the scores that may matter.

    Args:
        products: Products of t rows and n vectors, (t, n).
        of_vectors: Steps and bounds of the vectors, (3, n); see `top_k.Quantized`.
        of_rows: Steps and bounds of the rows, (t, 3).
        vectors: The vectors (n, d), whose dot products with the rows are the exact scores.
        rows: The rows (t, d).
        start: The place of the first row among all.
        floors: The least |score| that each row, a token, keeps, (t,).
        lowest: The least scores that the poles keep, (2, n); changed.
        heaps: The keys of the poles, (2, n, k); changed.
        sums: Sums of the first four powers of the scores, (4, n); changed.
        pairs: Vector and row of each score that a token may keep, (2, t · n); written.
        exact: These scores, (t · n); written.

    Returns:
        The number of scores in ``pairs`` and ``exact``.
    """
    n, count = products.shape[1], 0
    scale = np.float32(1) / of_vectors[0]  # scores are compared in units of the vector's step
    size, lost = of_vectors[1] * scale, of_vectors[2] * scale
    high, low = lowest[0] * scale, lowest[1] * scale
    powers = np.zeros((4, n), np.float32)
    marks = np.zeros(-(-n // _WORD) * _WORD, np.uint8)
    places, scores = np.empty(n, np.int64), np.empty(n + _TOGETHER, np.float32)
    bases = np.empty(_TOGETHER, np.int64)
    for j in range(products.shape[0]):
        if j % 4 == 0:
            _add_powers(products, of_rows, j, powers)
        _mark(products[j], of_rows[j], floors[j], high, low, size, lost, scale, marks)
        chosen = _chosen(marks, places)
        _dots(vectors, places, chosen, rows[j], scores, bases)
        for at in range(chosen):
            i, score = places[at], scores[at]
            if score >= lowest[0, i]:
                lowest[0, i] = max(lowest[0, i], _put(heaps[0, i], _key(score, start + j)))
                high[i] = lowest[0, i] * scale[i]
            if -score >= lowest[1, i]:
                lowest[1, i] = max(lowest[1, i], _put(heaps[1, i], _key(-score, start + j)))
                low[i] = lowest[1, i] * scale[i]
            if abs(score) >= floors[j]:
                pairs[0, count], pairs[1, count], exact[count] = i, start + j, score
                count += 1
    unit = np.ones(n)
    for power in range(4):
        unit *= of_vectors[0]
        sums[power] += powers[power] * unit
    return count


@_compiled
def keep(pairs, exact, first_id, keys, floors):
    """Put the scores that `look` wrote for the tokens into their heaps, and raise their floors.

    Args:
        pairs: Vector and row of each score, (2, m).
        exact: The scores, (m,).
        first_id: The id of the first vector.
        keys: The heaps of a `TokenIndex`, (tokens, size); changed.
        floors: Its thresholds, (tokens,); changed.
    """
    for at in range(exact.shape[0]):
        token, score = pairs[1, at], exact[at]
        low = 2 * (first_id + pairs[0, at]) + (1 if score < 0 else 0)
        floors[token] = max(floors[token], _put(keys[token], _key(abs(score), low)))


# --- Loops of tiles -----------------------------------------------------------------------------------------

_VNNI = bool(_FEATURES.get("avx512vnni"))
"""True if this processor has the instruction, 512 bits wide."""

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
        return _padded(rows, _TILE_ROWS), 128 * rows.sum(1, dtype=torch.int32).numpy()

    def right(self, rows: Tensor) -> tuple[Panels, int]:
        """Return a block (n, r) as `_panels`, and n."""
        return _panels(_padded(rows, PANEL).view(np.uint32)), len(rows)

    def reaching(self, left: Any, right: Any, heights: Heights, floors: Tensor, panel: int) -> Found:
        """Find pairs as `Products.reaching` does."""
        (numbers, sums), (panels, columns) = left, right
        count, stop = _reaching(numbers, sums, panels, columns, heights, floors.numpy(), panel, self.pairs)
        return stop, *torch.from_numpy(self.pairs[:, :count].astype(np.int64))


def _padded(rows: Tensor, many: int) -> Numbers:
    """Pad a block (n, r) with zeros to a multiple of ``many`` rows and of _TILE_DEPTH columns."""
    n, r = rows.shape
    if n % many == 0 and r % _TILE_DEPTH == 0:
        return rows.numpy()
    numbers = np.zeros((-(-n // many) * many, -(-r // _TILE_DEPTH) * _TILE_DEPTH), np.int8)
    numbers[:n, :r] = rows.numpy()
    return numbers


@_compiled
def _panels(words):
    """Cut a block (n, r / 4) of words of four int8 numbers into panels (n / PANEL, r / 4, PANEL); add 128 to each."""
    panels = np.empty((words.shape[0] // PANEL, words.shape[1], PANEL), np.uint32)
    for panel in range(panels.shape[0]):
        for place in range(words.shape[1]):
            for row in range(PANEL):
                panels[panel, place, row] = words[PANEL * panel + row, place] ^ np.uint32(0x80808080)
    return panels


@_compiled
def _reaching(numbers, sums, panels, columns, heights, floors, panel, pairs):
    """Do `tiles.Products.reaching` for prepared blocks, and write the pairs to ``pairs`` (2, places).

    Return their number and the first panel that was not searched: one that meets no row, or whose pairs may not fit.
    """
    least = np.full(numbers.shape[0], _MOST, np.int32)
    for i in range(floors.shape[0]):
        least[i] = np.int32(min(max(np.ceil(floors[i]), -_MOST), _MOST)) + sums[i]
    masks, count = np.zeros(_TILE_ROWS, np.uint64), 0
    while panel < panels.shape[0] and heights[panel] and count + PANEL * heights[panel] <= pairs.shape[1]:
        for i in range(0, heights[panel], _TILE_ROWS):
            if tile_reaching(
                numbers[i:].ctypes.data,
                numbers.shape[1],
                panels[panel].ctypes.data,
                panels.shape[1],
                least[i:].ctypes.data,
                masks.ctypes.data,
            ):
                for row in range(i, min(i + _TILE_ROWS, heights[panel])):
                    mask, column = masks[row - i], PANEL * panel
                    while mask:
                        if mask & np.uint64(1) and column < columns:
                            pairs[0, count], pairs[1, count] = row, column
                            count += 1
                        mask >>= np.uint64(1)
                        column += 1
        panel += 1
    return count, panel
