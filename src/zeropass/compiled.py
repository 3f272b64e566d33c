"""The inner loops of `sieve.survey`, compiled by numba when they are first run, and kept on disk."""

from typing import Any

import llvmlite.binding
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from zeropass.hits import LOW

__all__ = ["INT8", "keep", "look", "raise_ends"]

INT8 = any(map(llvmlite.binding.get_host_cpu_features().get, ("avx512vnni", "avxvnni", "amx-int8")))
"""Whether this processor multiplies int8 numbers itself, which is four to six times as fast as float32."""

_LANES = 64
"""Sums that run beside one another. The order of a sum is ours: left to the compiler, a process that has just compiled
these loops and one that found them on disk would round differently, and builds would not have the same bytes."""

_WORD = 8
"""Marks of vectors that are looked at as one number."""


@numba.njit(inline="always")
def _key(score, low):
    """A number that sorts by rising score, then by falling ``low``: the bits of floats sort like the floats."""
    bits = np.int64(np.float32(score + np.float32(0.0)).view(np.int32))
    if bits < 0:
        bits ^= 0x7FFFFFFF
    return (bits << 32) | (LOW - low)


@numba.njit(inline="always")
def _score(key):
    bits = key >> 32
    if bits < 0:
        bits ^= 0x7FFFFFFF
    return np.int32(bits).view(np.float32)


@numba.njit
def _put(heap, key):
    """Put a key in the place of the lowest, if it is higher; returns the score of the lowest that is left.

    Of a heap the lowest is the first, and places 2p + 1 and 2p + 2 hold nothing lower than place p.
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


def _dot_in_lanes(_typing, _x, _y, _blocks):
    """The dot product of float32 numbers at two addresses, ``_blocks`` times _LANES: in lanes, then in pairs.

    Said in the compiler's own language: of a loop it makes something that is far slower.
    """

    def generate(_context, builder, _signature, arguments):
        number = ir.FloatType()
        lanes = ir.VectorType(number, _LANES)
        bases = [builder.inttoptr(address, number.as_pointer()) for address in arguments[:2]]
        zeros = ir.Constant(lanes, [0.0] * _LANES)
        total = cgutils.alloca_once_value(builder, zeros)
        with cgutils.for_range(builder, arguments[2]) as loop:
            begin = builder.mul(loop.index, ir.Constant(loop.index.type, _LANES))
            places = (builder.bitcast(builder.gep(base, [begin]), lanes.as_pointer()) for base in bases)
            left, right = (builder.load(place, align=4) for place in places)
            builder.store(builder.fadd(builder.load(total), builder.fmul(left, right)), total)
        found = builder.load(total)
        while found.type.count > 1:
            half, none = found.type.count // 2, ir.Constant(found.type, ir.Undefined)
            places = ir.VectorType(ir.IntType(32), half)
            masks = (ir.Constant(places, [*range(first, first + half)]) for first in (0, half))
            found = builder.fadd(*(builder.shuffle_vector(found, none, mask) for mask in masks))
        return builder.extract_element(found, ir.Constant(ir.IntType(32), 0))

    return types.float32(types.intp, types.intp, types.intp), generate


_lanes_dot: Any = intrinsic(_dot_in_lanes)


@numba.njit
def _dot(x, y):
    """The dot product of two vectors."""
    blocks = x.shape[0] // _LANES
    total = _lanes_dot(x.ctypes.data, y.ctypes.data, blocks)
    for place in range(blocks * _LANES, x.shape[0]):
        total += x[place] * y[place]
    return total


@numba.njit
def _add_powers(products, step, sums):
    """Add the first four powers of a row's scores to the sums (4, n) of the vectors. No branches: it is vectors."""
    ones, twos, threes, fours = sums[0], sums[1], sums[2], sums[3]
    for i in range(products.shape[0]):
        x = np.float32(products[i]) * step
        square = x * x
        ones[i] += x
        twos[i] += square
        threes[i] += square * x
        fours[i] += square * square


@numba.njit
def _mark(products, row, floor, high, low, size, lost, scale, marks):
    """Mark the vectors to which a row's score may matter, for a pole or for the row; no branches either."""
    for i in range(products.shape[0]):
        x = np.float32(products[i]) * row[0]
        error = lost[i] * row[1] + size[i] * row[2]
        pole = np.uint8(x + error >= high[i]) | np.uint8(error - x >= low[i])
        marks[i] = pole | np.uint8(abs(x) + error >= floor * scale[i])


@numba.njit
def _chosen(marks, words, places):
    """Write the places of the marks that are set, which ``words`` holds too; returns how many."""
    count = 0
    for word in range(words.shape[0]):
        if words[word]:
            for i in range(_WORD * word, _WORD * (word + 1)):
                places[count] = i
                count += marks[i]
    return count


@numba.njit(nogil=True, cache=True)
def raise_ends(products, of_rows, start, ends):
    """Keep the highest score of a group of rows, and minus the lowest, in ends (2, groups, n), in vectors' steps.

    products (t, n) and of_rows: as for `look`; the first row is the ``start``-th of all, which are dealt to the groups.
    """
    for j in range(products.shape[0]):
        high, low = ends[0, (start + j) % ends.shape[1]], ends[1, (start + j) % ends.shape[1]]
        for i in range(products.shape[1]):
            x = np.float32(products[j, i]) * of_rows[j, 0]
            high[i], low[i] = max(high[i], x), max(low[i], -x)


@numba.njit(nogil=True, cache=True)
def look(products, of_vectors, of_rows, vectors, rows, start, floors, lowest, heaps, sums, found, exact):
    """Look through products (t, n) of whole numbers that stand for t rows, the first the ``start``-th, and n vectors.

    of_vectors (3, n), of_rows (t, 3): see `sieve.Whole`. vectors: (n, d), rows: (t, d); exact scores are dot products.
    floors: (t,) how large the scores are that the tokens keep. Changed: lowest (2, n), the scores that the poles keep,
    heaps (2, n, k) of their keys, and sums (4, n) of powers of the scores. What a token may keep is written to found
    (2, t · n), vector and row, and exact (t · n); returns how many these are.
    """
    n, count = products.shape[1], 0
    scale = np.float32(1) / of_vectors[0]  # all is compared in units of the vector's step
    size, lost = of_vectors[1] * scale, of_vectors[2] * scale
    high, low = lowest[0] * scale, lowest[1] * scale
    powers = np.zeros((4, n), np.float32)
    marks = np.zeros(-(-n // _WORD) * _WORD, np.uint8)
    words, places, scores = marks.view(np.uint64), np.empty(len(marks) + 1, np.int64), np.empty(n, np.float32)
    for j in range(products.shape[0]):
        _add_powers(products[j], of_rows[j, 0], powers)
        _mark(products[j], of_rows[j], floors[j], high, low, size, lost, scale, marks)
        chosen = _chosen(marks, words, places)
        for at in range(chosen):  # without a branch between them, one product begins before the last one is done
            scores[at] = _dot(vectors[places[at]], rows[j])
        for at in range(chosen):
            i, score = places[at], scores[at]
            if score >= lowest[0, i]:
                lowest[0, i] = max(lowest[0, i], _put(heaps[0, i], _key(score, start + j)))
                high[i] = lowest[0, i] * scale[i]
            if -score >= lowest[1, i]:
                lowest[1, i] = max(lowest[1, i], _put(heaps[1, i], _key(-score, start + j)))
                low[i] = lowest[1, i] * scale[i]
            if abs(score) >= floors[j]:
                found[0, count], found[1, count], exact[count] = i, start + j, score
                count += 1
    unit = np.ones(n)
    for power in range(4):
        unit *= of_vectors[0]
        sums[power] += powers[power] * unit
    return count


@numba.njit(nogil=True, cache=True)
def keep(found, exact, first_id, keys, floors):
    """Put scores that `look` found for the tokens among the keys (tokens, size) of the best; raises their floors."""
    for at in range(exact.shape[0]):
        token, score = found[1, at], exact[at]
        low = 2 * (first_id + found[0, at]) + (1 if score < 0 else 0)
        floors[token] = max(floors[token], _put(keys[token], _key(abs(score), low)))
