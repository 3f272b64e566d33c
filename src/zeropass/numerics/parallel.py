"""Work on all cores: many items at once, each on its own core, or one step in the background of another."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol, TypeVar

import torch

__all__ = ["Each", "ahead", "behind", "each_core", "in_turn", "side_by_side", "with_one_thread"]

Item = TypeVar("Item")
Result = TypeVar("Result")


class Each(Protocol):
    """The common signature of `in_turn` and `side_by_side`."""

    def __call__(self, work: Callable[[Item], Result], items: Sequence[Item], /) -> list[Result]:
        """Return the results of ``work`` on the items, in their order."""


def in_turn(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Return the results of ``work`` on the items, computed one after the other with all of torch's threads."""
    return [work(item) for item in items]


def each_core(device: torch.device) -> Each:
    """Return `side_by_side` for a processor and `in_turn` for a GPU, which does one piece of work at a time."""
    return side_by_side if device.type == "cpu" else in_turn


def side_by_side(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Return the results of ``work`` on the items, in their order, computed in as many threads as torch may use.

    In each of them torch has one thread. The work should release Python's lock, as torch and numba's ``nogil`` loops
    do. One thread per item is faster than two that share each product and wait for each other after it.
    """
    workers = min(torch.get_num_threads(), len(items))
    if workers <= 1:
        return in_turn(work, items)
    with _pool(workers) as pool:
        return list(pool.map(work, items))


def with_one_thread(work: Callable[[], Result]) -> Result:
    """Return the result of ``work`` with one torch thread: the bits of LAPACK's results depend on their number."""
    if torch.get_num_threads() == 1:
        return work()
    with _pool(1) as pool:
        return pool.submit(work).result()


@contextmanager
def behind() -> Iterator[Callable[[Callable[[], None]], None]]:
    """Yield a function that starts work in a background thread while the caller goes on.

    Before the function starts another piece of work, and at the end of the context, it waits for the previous one and
    raises the exception that this one raised.
    """
    with _pool(1) as pool:
        running: Future[None] = pool.submit(lambda: None)

        def take(work: Callable[[], None]) -> None:
            nonlocal running
            running.result()
            running = pool.submit(work)

        yield take
        running.result()


def ahead(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield the results of ``work`` on the items, in their order; a thread computes the next while the caller works."""
    with _pool(1) as pool:
        current: Future[Result] | None = None
        for item in items:
            following = pool.submit(work, item)
            if current is not None:
                yield current.result()
            current = following
        if current is not None:
            yield current.result()


@contextmanager
def _pool(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of workers in each of which torch has one thread."""
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)  # the number is kept per thread; this one is for threads that start later
