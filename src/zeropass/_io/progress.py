"""Progress of long work: the callback that reports it, and the display where somebody watches."""

import inspect
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from importlib import import_module
from typing import ParamSpec, TypeVar

__all__ = [
    "Progress",
    "callback",
    "in_notebook",
    "is_watched",
    "reporting",
    "show_nothing",
    "shows_progress",
    "silent",
    "waiting",
]

Progress = Callable[[str, int, int], None]
"""Is called with what is being done, how many steps of it are done, and how many there are; 0 if that is not known."""

P = ParamSpec("P")
R = TypeVar("R")

_shown = threading.Lock()
"""Is held while something is shown: what long work calls shows nothing of its own."""


def silent(_what: str, _done: int, _total: int) -> None:
    """Report nothing."""


@contextmanager
def reporting(progress: Progress | bool = True) -> Iterator[Progress]:
    """Yield the callback that long work reports to.

    Args:
        progress: A function, which is yielded; True for a bar where somebody watches, in a notebook or on a terminal;
            False for nothing. The bar appears after a moment, and is gone when the work is done.
    """
    if callable(progress):
        yield progress
    elif progress and is_watched() and _shown.acquire(blocking=False):
        try:
            with import_module("zeropass._io.progress_display").display() as report:
                yield report
        finally:
            _shown.release()
    else:
        yield silent


def shows_progress(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function show a bar while it runs if its argument ``progress`` is True, as `reporting` does."""
    parameters = inspect.signature(function)

    @wraps(function)
    def showing(*positional: P.args, **named: P.kwargs) -> R:
        given = parameters.bind(*positional, **named)
        given.apply_defaults()
        with reporting(given.arguments["progress"]) as report:
            given.arguments["progress"] = report
            return function(*given.args, **given.kwargs)

    return showing


def callback(progress: Progress | bool) -> Progress:
    """Return the function to call in one that `shows_progress`, where True and False have been replaced."""
    return progress if callable(progress) else silent


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Show, where somebody watches, that something is being done whose end is not known."""
    with reporting() as report:
        report(what, 0, 0)
        yield


def show_nothing() -> None:
    """Show no display in this process from now on."""
    _shown.acquire(blocking=False)


def in_notebook() -> bool:
    """Tell whether this is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return "ZMQInteractiveShell" in {kind.__name__ for kind in type(shell).__mro__}


def is_watched() -> bool:
    """Tell whether this is the main thread, which a person called, of a notebook or a process with a terminal."""
    if threading.current_thread() is not threading.main_thread():
        return False
    return in_notebook() or (sys.stderr is not None and sys.stderr.isatty())
