"""An inverted index: the vectors with the highest |z| for each token, gathered block by block from their scores."""

from collections.abc import Iterator
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from zeropass.numerics.statistics import blocks

__all__ = ["EMPTY", "LOW", "TokenIndex", "decoded", "encoded"]

_SLOTS = 32
_ROWS, _WARM_ROWS = 128, 512
LOW = 0xFFFFFFFF
"""The mask of the lower half of a key, which holds the complement of a number."""

EMPTY = (-0x7F800000 - 1) << 32
"""The key of minus infinity."""


class TokenIndex:
    """The ``size`` vectors of the highest |z| for each of ``tokens`` columns, exact for any order of the blocks.

    An entry is one int64 key: the bits of |z|, which sort like the number, since it is positive, then the complement
    of 2·id + (z < 0). So a plain top-k of keys does not depend on the order of the offers. Only scores that reach a
    token's threshold are examined further: each token has ``_SLOTS`` waiting places for them, merged when full.

    Attributes:
        keys: A heap for each token, (tokens, size): places 2p + 1 and 2p + 2 hold nothing lower than place p.
        threshold: The running ``size``-th best |z| of each token, (tokens,).
        seen: The number of vectors offered so far.
        lock: To be held by threads that change the keys concurrently.
    """

    def __init__(self, tokens: int, size: int, device: torch.device | str = "cpu") -> None:
        self.keys: Tensor = torch.zeros(tokens, size, dtype=torch.int64, device=device)
        self._waiting: Tensor | None = None
        self._filled = torch.zeros(tokens, dtype=torch.int64, device=device)
        self.threshold: Tensor = torch.zeros(tokens, device=device)
        self.seen: int = 0
        self.lock: Lock = Lock()

    def offer(self, z: Tensor, first_id: int) -> None:
        """Take in the scores z (n, tokens) of the vectors ``first_id …``."""
        for start in range(0, z.shape[0], _ROWS):
            self._offer(z[start : start + _ROWS], first_id + start)

    def _offer(self, z: Tensor, first_id: int) -> None:
        """Take in the scores of a block of at most _ROWS vectors."""
        if self.seen < _WARM_ROWS:  # thresholds are still too low to be of use
            self._merge(_keys(z.T, torch.arange(first_id, first_id + z.shape[0], device=z.device)))
            self.seen += z.shape[0]
            return
        row, token = (z.abs() >= self.threshold).nonzero(as_tuple=True)
        self._wait(token, _keys(z[row, token], first_id + row))

    def add(self, tokens: Tensor, keys: Tensor) -> None:
        """Take in entries that an earlier run gathered, as `entries` yielded them."""
        self._wait(tokens.to(self.keys.device), keys.to(self.keys.device))
        self.seen = max(self.seen, _WARM_ROWS)

    def take(self, tokens: Tensor, ids: Tensor, z: Tensor) -> None:
        """Take in single scores, which `seen` does not count.

        Args:
            tokens: The column of each score, (m,).
            ids: The vector of each score, (m,).
            z: The scores, (m,).
        """
        strong = z.abs() >= self.threshold[tokens]
        self._wait(tokens[strong], _keys(z[strong], ids[strong]))

    def ranked(self, part: slice = slice(None)) -> tuple[Tensor, Tensor, Tensor]:
        """Return the entries of some tokens, the best of each token first.

        Args:
            part: The tokens; all by default.

        Returns:
            Which places are taken, the ids of the vectors there, and z: (tokens, size) each.
        """
        self.flush()
        keys = self.keys[part].sort(dim=1, descending=True).values
        return keys > 0, *decode(keys)

    def entries(self, first_id: int, stop_id: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield tokens and keys (m,) of all entries so far of the vectors ``first_id:stop_id``, some tokens at a time.

        Both lie on the processor.
        """
        with self.lock:
            self.flush()
        size = self.keys.shape[1]
        for part in blocks(len(self.keys), 2048):  # so few that temporaries stay in the cache
            with self.lock:
                keys = self.keys[part].flatten().cpu().numpy()
            # The lower half falls from 2³² - 1 by 2 with every id, and is 0 in empty places.
            behind = keys.astype(np.uint32) - np.uint32((LOW + 1 - 2 * stop_id) & LOW)
            places = np.flatnonzero(behind < 2 * (stop_id - first_id))
            yield torch.from_numpy(part.start + places // size), torch.from_numpy(keys[places])

    def flush(self) -> None:
        """Merge the waiting entries and raise the thresholds."""
        if self._waiting is not None:
            self._merge(self._waiting)
            self._waiting = None
            self._filled.zero_()

    def flush_if_much(self) -> None:
        """Merge the waiting entries if they fill a quarter of the places: fewer would hardly raise the thresholds."""
        if self._waiting is not None and int(self._filled.sum()) > len(self.keys) * _SLOTS // 4:
            self.flush()

    def _merge(self, keys: Tensor) -> None:
        """Keep the best of the present keys and those of each token, (tokens, m), and raise the thresholds."""
        # A block stays in a processor's cache; a GPU takes as long for few tokens as for many.
        for part in blocks(len(self.keys)) if self.keys.device.type == "cpu" else (slice(None),):
            best = torch.cat((self.keys[part], keys[part]), 1).topk(self.keys.shape[1], dim=1).values
            self.keys[part] = best.flip(1)  # a sorted array is a heap
        self.threshold = decoded(self.keys[:, 0])[0].contiguous()

    def _wait(self, token: Tensor, keys: Tensor) -> None:
        """Put entries into the waiting places of their tokens, and merge whenever these overflow."""
        order = token.argsort(stable=True)
        token, keys = token[order], keys[order]
        while token.numel():
            if self._waiting is None:
                self._waiting = keys.new_zeros(len(self.keys), _SLOTS)
            place = self._filled[token] + _rank_in_run(token)
            fits = place < _SLOTS
            self._waiting[token[fits], place[fits]] = keys[fits]
            self._filled.index_add_(0, token[fits], torch.ones_like(token[fits]))
            token, keys = token[~fits], keys[~fits]
            if token.numel():
                self.flush()


def encoded(scores: Tensor, numbers: Tensor) -> Tensor:
    """Return keys that sort by rising score, then by falling number; ``0.0`` and ``-0.0`` count as equal."""
    bits = (scores + 0.0).view(torch.int32)
    return ((bits ^ ((bits >> 31) & 0x7FFFFFFF)).long() << 32) | (LOW - numbers.long())


def decoded(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scores and numbers of keys that `encoded` made."""
    bits = (keys >> 32).to(torch.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(torch.float32), LOW - (keys & LOW)


def decode(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Return the ids and signed z of the keys of a `TokenIndex`; the key 0 stands for an empty place."""
    size, low = decoded(keys)
    return low >> 1, torch.where((low & 1).bool(), -size, size)


def _keys(z: Tensor, ids: Tensor) -> Tensor:
    """Return the keys of the scores z of the vectors ``ids``."""
    return encoded(z.abs(), 2 * ids + (z < 0))


def _rank_in_run(sorted_values: Tensor) -> Tensor:
    """Return the position of each entry of a sorted vector in its run of equal entries."""
    places = torch.arange(sorted_values.numel(), device=sorted_values.device)
    starts = torch.ones_like(sorted_values, dtype=torch.bool)
    starts[1:] = sorted_values[1:] != sorted_values[:-1]
    return places - torch.where(starts, places, torch.zeros_like(places)).cummax(0).values
