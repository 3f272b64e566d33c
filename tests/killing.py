"""Builds that are killed at random moments, again and again, each in a process forked from this one.

``python killing.py MODEL FOLDER KILLS``: this process makes one atlas itself, so that no build pays for imports and
compiled loops, and keeps no thread. The builds are ``FOLDER/0``, undisturbed, ``FOLDER/1`` …, all ended; a line for
each says how many files stood in it when it was killed.
"""

import os
import random
import select
import signal
import sys
import time
from pathlib import Path

import torch

from zeropass.atlas.build import build
from zeropass.atlas.schema import Options
from zeropass.model.model import open_model

OPTIONS = Options(k=6, pairs=5)


def started(model: str, out: Path) -> int:
    """Id of a process that builds an atlas and ends."""
    if pid := os.fork():
        return pid
    build(open_model(model), out, OPTIONS)
    os._exit(0)


def killed(pid: int, after: float | None) -> bool:
    """Wait for a build, and kill it after so many seconds; False if it was done before."""
    done = os.pidfd_open(pid)
    select.select([done], [], [], after)
    os.close(done)
    os.kill(pid, signal.SIGKILL)
    how = os.waitpid(pid, 0)[1]
    assert how in (0, signal.SIGKILL), how
    return how == signal.SIGKILL


def main(model: str, folder: Path, kills: int) -> None:
    """Kill until it was done often enough, and let every build end."""
    torch.set_num_threads(1)
    build(open_model(model), folder / "warm", OPTIONS)
    chance, takes, number = random.Random(0), 0.0, 0
    while kills:
        out, found = folder / str(number), []
        begun = time.monotonic()
        while killed(started(model, out), chance.uniform(0, takes) if number and kills else None):
            found.append(sum(path.is_file() for path in out.rglob("*")))
            kills -= 1
        takes = takes if found else time.monotonic() - begun  # of a build that was left in peace
        print(*found)
        number += 1


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
