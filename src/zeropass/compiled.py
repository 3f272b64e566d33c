"""The inner loops of `sieve.survey`, compiled by numba when they are first run, and kept on disk."""

import llvmlite.binding
import numba
import numpy as np

from zeropass.hits import LOW

__all__ = ["BFLOAT16", "ROUNDING", "keep", "look"]

BFLOAT16 = any(map(llvmlite.binding.get_host_cpu_features().get, ("avx512bf16", "amx-bf16")))
"""Whether this processor multiplies bfloat16 numbers itself, which is two to three times as fast as float32.

Asked and not timed: rounding shows in the kurtosis of a list, and a build must end with the same bytes each time.
"""

_GROUP = 32
"""Scores of which it is first asked whether any may matter."""

_LANES = 64
"""Sums that run beside one another. The order of a sum is ours: left to the compiler, a process that has just compiled
these loops and one that found them on disk would round differently, and builds would not have the same bytes."""

ROUNDING = np.float32(2.0**-8)
"""Rounding to bfloat16 changes a number by half this part of it at most."""


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


@numba.njit
def _dot(x, y, lanes):
    """The dot product of two vectors, summed in lanes and then in pairs: vectors for the processor, in one order."""
    lanes[:] = 0
    whole = x.shape[0] // _LANES * _LANES
    for begin in range(0, whole, _LANES):
        for lane in range(_LANES):
            lanes[lane] += x[begin + lane] * y[begin + lane]
    for place in range(whole, x.shape[0]):
        lanes[place - whole] += x[place] * y[place]
    return _total(lanes)


@numba.njit
def _total(lanes):
    """The sum of lanes, in pairs; destroys them."""
    half = _LANES // 2
    while half:
        for lane in range(half):
            lanes[lane] += lanes[lane + half]
        half //= 2
    return lanes[0]


@numba.njit(inline="always")
def _lowered(floor):
    """What a score reaches, after it was rounded, if it reached a floor before."""
    return floor - abs(floor) * ROUNDING


@numba.njit
def _any(scores, top, bottom, reach):
    """Whether any of some scores is as high, as low or as large as asked for; no branches, so that it is vectors."""
    found = np.int32(0)
    for place in range(scores.shape[0]):
        x = scores[place]
        found |= np.int32(x >= top) | np.int32(x <= bottom) | np.int32(abs(x) >= reach[place])
    return found


@numba.njit(nogil=True, cache=True)
def look(scores, slack, vectors, rows, start, reach, floors, lowest, heaps, found, exact):
    """Look through rounded scores (n, t) of n vectors and of t rows, the first of which is the ``start``-th of all.

    vectors: (n, d), rows: (t, d); exact scores are dot products. slack: norm and lost (n, 2), the same (t, 2) of rows,
    see `sieve.Sieved`, and the most that rounding does to a vector's scores (n,). floors: (t,) how large the scores are
    that the tokens keep, reach: the same less what rounding can do. Changed: lowest (2, n), the scores that the poles
    keep, and heaps (2, n, k) of their keys. What a token may keep is written to found (2, n · t), vector and row, and
    exact (n · t); returns how many these are.
    """
    of_vectors, of_rows, most = slack
    width, count, lanes = scores.shape[1], 0, np.empty(_LANES, np.float32)
    for i in range(scores.shape[0]):
        for begin in range(0, width, _GROUP):
            end = min(begin + _GROUP, width)
            top, bottom = _lowered(lowest[0, i] - most[i]), -_lowered(lowest[1, i] - most[i])
            if not _any(scores[i, begin:end], top, bottom, reach[begin:end]):
                continue
            for j in range(begin, end):
                score, size = scores[i, j], abs(scores[i, j])
                if score < top and score > bottom and size < reach[j]:
                    continue
                error = of_vectors[i, 1] * of_rows[j, 0] + of_vectors[i, 0] * of_rows[j, 1] + size * ROUNDING
                if not (score + error >= lowest[0, i] or error - score >= lowest[1, i] or size + error >= floors[j]):
                    continue
                score = _dot(vectors[i], rows[j], lanes)
                if score >= lowest[0, i]:
                    lowest[0, i] = _put(heaps[0, i], _key(score, start + j))
                if -score >= lowest[1, i]:
                    lowest[1, i] = _put(heaps[1, i], _key(-score, start + j))
                if abs(score) >= floors[j]:
                    found[0, count], found[1, count], exact[count] = i, start + j, score
                    count += 1
    return count


@numba.njit(nogil=True, cache=True)
def keep(found, exact, first_id, keys, floors):
    """Put scores that `look` found for the tokens among the keys (tokens, size) of the best; raises their floors."""
    for at in range(exact.shape[0]):
        token, score = found[1, at], exact[at]
        low = 2 * (first_id + found[0, at]) + (1 if score < 0 else 0)
        floors[token] = max(floors[token], _put(keys[token], _key(abs(score), low)))
