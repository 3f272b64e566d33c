"""The same work on many things, on all cores: each thread does one at a time, on a core of its own."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

__all__ = ["one_by_one", "side_by_side"]

Item = TypeVar("Item")
Found = TypeVar("Found")


def one_by_one(work: Callable[[Item], Found], items: Sequence[Item]) -> list[Found]:
    """What ``work`` makes of each item, one after the other, with all of torch's threads."""
    return [work(item) for item in items]


def side_by_side(work: Callable[[Item], Found], items: Sequence[Item]) -> list[Found]:
    """What ``work`` makes of each item, in their order; as many at once as torch may have threads, each with one.

    For work that lets go of Python's lock: torch, and what numba compiled without it. One thread a piece of work does
    more than two that meet after every product, and wait.
    """
    threads = torch.get_num_threads()
    if min(threads, len(items)) == 1:
        return one_by_one(work, items)
    try:
        with ThreadPoolExecutor(min(threads, len(items)), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(work, items))
    finally:
        torch.set_num_threads(threads)  # each thread has its number; this is for threads that begin later
