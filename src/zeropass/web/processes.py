"""A server in several processes: they share one socket, for Python makes pages on one core at a time."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["forked"]


@contextmanager
def forked(count: int, work: Callable[[], None]) -> Iterator[None]:
    """While the context lasts, ``count`` children do the same work; fork before threads are started.

    A child ends with its parent, however that ends: it waits for the closing of a pipe that only the parent holds.
    """
    theirs, ours = os.pipe()
    children = []
    for _ in range(count):
        child = os.fork()
        if child == 0:
            os.close(ours)
            threading.Thread(target=_outlived, args=(theirs,), daemon=True).start()
            try:
                work()
            finally:
                os._exit(0)
        children.append(child)
    os.close(theirs)
    try:
        yield
    finally:
        os.close(ours)
        for child in children:
            os.waitpid(child, 0)


def _outlived(pipe: int) -> None:
    os.read(pipe, 1)  # nothing is ever written: it returns when the parent is gone
    os.kill(os.getpid(), signal.SIGTERM)
