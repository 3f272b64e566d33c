"""The display of progress: a bar of rich on a terminal, or of HTML in a notebook. It is drawn by a thread of its own.

So it shows that time passes even while nothing is reported. The bar of rich in notebooks needs widgets; this one does
not, and works wherever a notebook shows HTML.
"""

import html
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field
from importlib import import_module

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from zeropass._io.progress import Progress, in_notebook

__all__ = ["display"]

DELAY, PAUSE = 0.3, 0.2
"""Seconds before anything is shown, and between two drawings."""

Draw = Callable[["_State"], None]


@dataclass
class _State:
    """The last report, and the time when the work began."""

    what: str = "working"
    done: int = 0
    total: int = 0
    started: float = field(default_factory=time.monotonic)

    @property
    def count(self) -> str:
        """The number of steps that are done, of all; empty if that is not known."""
        return f"{self.done:,} of {self.total:,}" if self.total else ""


@contextmanager
def display() -> Iterator[Progress]:
    """Yield the callback whose latest report is shown until the context ends, if that takes more than a moment."""
    state, ended = _State(), threading.Event()

    def report(what: str, done: int, total: int) -> None:
        state.what, state.done, state.total = what, done, total

    # The context tells a notebook which cell an output belongs to.
    place = _cell if in_notebook() else _terminal
    thread = threading.Thread(target=copy_context().run, args=(_draw, place, state, ended), daemon=True)
    thread.start()
    try:
        yield report
    finally:
        ended.set()
        thread.join()


def _draw(place: Callable[[], AbstractContextManager[Draw]], state: _State, ended: threading.Event) -> None:
    """Draw the state until the end, but for a moment at the beginning."""
    if ended.wait(DELAY):
        return
    with place() as draw:
        draw(state)
        while not ended.wait(PAUSE):
            draw(state)


@contextmanager
def _terminal() -> Iterator[Draw]:
    """Yield what draws on stderr, and remove it at the end."""
    columns = (
        TextColumn("{task.description:<16}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[count]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None, count="")

        def draw(state: _State) -> None:
            bar.update(task, description=state.what, completed=state.done, total=state.total or None, count=state.count)

        yield draw


@contextmanager
def _cell() -> Iterator[Draw]:
    """Yield what draws below a cell, and leave an empty output there at the end."""
    output = import_module("IPython.display").display({"text/plain": ""}, raw=True, display_id=True)

    def draw(state: _State) -> None:
        bar = f'<progress max="{state.total}" value="{state.done}"></progress> ' if state.total else ""
        words = f"{state.what} {state.count}".strip() + f", {time.monotonic() - state.started:.0f} s"
        output.update({"text/html": f"{bar}{html.escape(words)}", "text/plain": words}, raw=True)

    yield draw
    output.update({"text/html": "", "text/plain": ""}, raw=True)
