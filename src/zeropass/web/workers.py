"""Processes that do one job after the other: Python makes pages on one core at a time, and answers while it does."""

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

from zeropass.errors import ZeropassError

__all__ = ["forked"]

Work = Callable[[Any], Any]


@contextmanager
def forked(count: int, lanes: int, work: Work, prepare: Callable[[], None]) -> Iterator[list[Work]]:
    """While the context lasts, ``count`` children that do ``work``; fork before threads are started.

    Gives ``lanes`` functions. Each hands a job to a child that has none of that lane, waits for one if need be, and
    returns or raises what came of it: a child does one job of each lane at a time, so that long ones have a lane of
    their own. ``prepare`` is what a child does first. Children end with their parent, however it ends.
    """
    pipes = [[Pipe() for _ in range(lanes)] for _ in range(count)]
    children = []
    for number in range(count):
        child = os.fork()
        if child == 0:
            _close(pipes, but=number)
            _child([theirs for _, theirs in pipes[number]], work, prepare)
        children.append(child)
    for pairs in pipes:
        for _, theirs in pairs:
            theirs.close()
    try:
        yield [_lane([pairs[lane][0] for pairs in pipes], work) for lane in range(lanes)]
    finally:
        for child in children:
            os.kill(child, signal.SIGTERM)
            os.waitpid(child, 0)


def _close(pipes: list[list[tuple[Connection, Connection]]], but: int) -> None:
    """Close in a child what belongs to its parent and to other children: an end that is held elsewhere never ends."""
    for number, pairs in enumerate(pipes):
        for ours, theirs in pairs:
            ours.close()
            if number != but:
                theirs.close()


def _child(lanes: list[Connection], work: Work, prepare: Callable[[], None]) -> None:
    """The whole life of a child."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, whose end is ours
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        prepare()
        for lane in lanes[1:]:
            threading.Thread(target=_work, args=(lane, work), daemon=True).start()
        _work(lanes[0], work)
    finally:
        os._exit(0)


def _work(lane: Connection, work: Work) -> None:
    """Do what comes, until the parent is gone."""
    while True:
        try:
            job = lane.recv()
        except (EOFError, OSError):
            return
        try:
            answer = True, work(job)
        except Exception as error:
            answer = False, _sendable(error)
        try:
            lane.send(answer)
        except OSError:
            return


def _sendable(error: Exception) -> Exception:
    """An error as it can be sent; where it was raised is said in a note, for tracebacks stay behind."""
    sent = error if isinstance(error, ZeropassError) else RuntimeError(*traceback.format_exception_only(error))
    sent.add_note(traceback.format_exc())
    return sent


def _lane(ends: list[Connection], work: Work) -> Work:
    """What hands a job to one of some children."""
    idle: queue.SimpleQueue[Connection | None] = queue.SimpleQueue()
    for end in ends:
        idle.put(end)

    def hand(job: Any) -> Any:
        end = idle.get()
        try:
            try:
                if end is not None:
                    end.send(job)
            except OSError:  # that child is gone: its jobs are done here from now on
                end = None
            if end is None:
                return work(job)
            try:
                good, answer = end.recv()
            except (EOFError, OSError) as error:  # it went in the middle of this job, and perhaps because of it
                end = None
                raise RuntimeError("a process that makes pages was ended (for want of memory?)") from error
        finally:
            idle.put(end)
        if good:
            return answer
        raise answer

    return hand
