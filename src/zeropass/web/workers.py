"""Worker processes for jobs. A single Python process would use only one core for pages and for requests together."""

import os
import queue
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from zeropass._io.progress import show_nothing
from zeropass.errors import ZeropassError

__all__ = ["forked"]

Work = Callable[[Any], Any]


@contextmanager
def forked(count: int, queues: int, work: Work, prepare: Callable[[], None]) -> Iterator[list[Work]]:
    """Run ``count`` child processes that do ``work`` while the context lasts. Fork before threads are started.

    A child does one job of each queue at a time, so that long jobs do not hold up short ones. Children end with their
    parent, however it ends.

    Args:
        count: The number of children.
        queues: The number of queues.
        work: Does a job.
        prepare: Called first in each child.

    Yields:
        A list with a function for each queue. The function hands a job to a child that has none of that queue, waiting
        for one if need be, and returns the result of the job or raises its error.
    """
    pipes = [[Pipe() for _ in range(queues)] for _ in range(count)]
    children = []
    for number in range(count):
        child = os.fork()
        if child == 0:
            _close(pipes, except_for=number)
            _child([theirs for _, theirs in pipes[number]], work, prepare)
        children.append(child)
    for pairs in pipes:
        for _, theirs in pairs:
            theirs.close()
    try:
        yield [_dispatcher([pairs[place][0] for pairs in pipes], work) for place in range(queues)]
    finally:
        for child in children:
            os.kill(child, signal.SIGTERM)
            os.waitpid(child, 0)


def _close(pipes: list[list[tuple[Connection, Connection]]], except_for: int) -> None:
    """Close in a child the ends that belong to others: a pipe ends only when all copies of an end are closed."""
    for number, pairs in enumerate(pipes):
        for ours, theirs in pairs:
            ours.close()
            if number != except_for:
                theirs.close()


def _child(connections: list[Connection], work: Work, prepare: Callable[[], None]) -> None:
    """Run a child process to its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the parent, and that ends the child
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    show_nothing()  # nobody who looks at the terminal has asked for this work
    try:
        prepare()
        for connection in connections[1:]:
            threading.Thread(target=_work, args=(connection, work), daemon=True).start()
        _work(connections[0], work)
    finally:
        os._exit(0)


def _work(connection: Connection, work: Work) -> None:
    """Do the jobs that arrive, until the parent is gone."""
    while True:
        try:
            job = connection.recv()
        except (EOFError, OSError):
            return
        try:
            answer = True, work(job)
        except Exception as error:
            answer = False, _sendable(error)
        try:
            connection.send(answer)
        except OSError:
            return


def _sendable(error: Exception) -> Exception:
    """Return an error in a form that can be sent. A note holds its traceback, which would stay behind."""
    sendable = error if isinstance(error, ZeropassError) else RuntimeError(*traceback.format_exception_only(error))
    sendable.add_note(traceback.format_exc())
    return sendable


def _dispatcher(connections: list[Connection], work: Work) -> Work:
    """Return the function that hands a job to one of some children."""
    idle: queue.SimpleQueue[Connection | None] = queue.SimpleQueue()
    for connection in connections:
        idle.put(connection)

    def dispatch(job: Any) -> Any:
        connection = idle.get()
        try:
            try:
                if connection is not None:
                    connection.send(job)
            except OSError:  # that child is gone: this process does its jobs from now on
                connection = None
            if connection is None:
                return work(job)
            try:
                succeeded, answer = connection.recv()
            except (EOFError, OSError) as error:  # the child died during this job, perhaps because of it
                connection = None
                raise RuntimeError("a process that makes pages was ended (for want of memory?)") from error
        finally:
            idle.put(connection)
        if succeeded:
            return answer
        raise answer

    return dispatch
