"""Work on all cores: the same on many things at once, each on a core of its own, or one thing behind another."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol, TypeVar

import torch

__all__ = ["Each", "ahead", "behind", "each_core", "in_turn", "side_by_side", "with_one_thread"]

Item = TypeVar("Item")
Found = TypeVar("Found")


class Each(Protocol):
    """`in_turn` or `side_by_side`."""

    def __call__(self, work: Callable[[Item], Found], items: Sequence[Item], /) -> list[Found]:
        """What ``work`` makes of each item, in their order."""


def in_turn(work: Callable[[Item], Found], items: Sequence[Item]) -> list[Found]:
    """What ``work`` makes of each item, one after the other, with all of torch's threads."""
    return [work(item) for item in items]


def each_core(device: torch.device) -> Each:
    """`side_by_side` where the work is the processor's; a GPU has one thing to do at a time."""
    return side_by_side if device.type == "cpu" else in_turn


def side_by_side(work: Callable[[Item], Found], items: Sequence[Item]) -> list[Found]:
    """What ``work`` makes of each item, in their order; as many at once as torch may have threads, each with one.

    For work that lets go of Python's lock: torch, and what numba compiled without it. One thread a piece of work does
    more than two that meet after every product, and wait.
    """
    workers = min(torch.get_num_threads(), len(items))
    if workers <= 1:
        return in_turn(work, items)
    with _pool(workers) as pool:
        return list(pool.map(work, items))


def with_one_thread(work: Callable[[], Found]) -> Found:
    """What ``work`` makes with one thread of torch: the bits of LAPACK's results depend on how many there are."""
    if torch.get_num_threads() == 1:
        return work()
    with _pool(1) as pool:
        return pool.submit(work).result()


@contextmanager
def behind() -> Iterator[Callable[[Callable[[], None]], None]]:
    """Gives a function that takes work, which is done in a thread of its own while the caller goes on.

    It waits for the last piece of work before it takes another, and so does the end; what that raised is raised then.
    """
    with _pool(1) as pool:
        waiting: Future[None] = pool.submit(lambda: None)

        def take(work: Callable[[], None]) -> None:
            nonlocal waiting
            waiting.result()
            waiting = pool.submit(work)

        yield take
        waiting.result()


def ahead(work: Callable[[Item], Found], items: Iterable[Item]) -> Iterator[Found]:
    """What ``work`` makes of each item, in their order: of the next in a thread, while the caller is at this one."""
    with _pool(1) as pool:
        made: Future[Found] | None = None
        for item in items:
            coming = pool.submit(work, item)
            if made is not None:
                yield made.result()
            made = coming
        if made is not None:
            yield made.result()


@contextmanager
def _pool(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Threads in which torch has one thread."""
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)  # each thread has its number; this is for threads that begin later
