"""Kill builds at random moments, again and again, each in a process forked from this one.

Usage: ``python killing.py MODEL FOLDER KILLS``. This process first makes an atlas itself, so that no build pays for
imports and compiled loops; it keeps no threads. The builds are ``FOLDER/0``, which is not killed, ``FOLDER/1`` and so
on, and all of them finish. For each build one line says how many files existed at every kill.
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
from zeropass.model.opening import open_model

OPTIONS = Options(k=6, pairs=5)


def started(model: str, out: Path) -> int:
    """Fork a process that builds an atlas and exits; return its id."""
    if pid := os.fork():
        return pid
    build(open_model(model), out, OPTIONS)
    os._exit(0)


def killed(pid: int, after: float | None) -> bool:
    """Wait for a build and kill it after some seconds; return False if it finished first."""
    done = os.pidfd_open(pid)
    select.select([done], [], [], after)
    os.close(done)
    os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    assert status in (0, signal.SIGKILL), status
    return status == signal.SIGKILL


def main(model: str, folder: Path, kills: int) -> None:
    """Kill builds until there were enough kills, and let every build finish."""
    torch.set_num_threads(1)
    build(open_model(model), folder / "warm", OPTIONS)
    rng, duration, number = random.Random(0), 0.0, 0
    while kills:
        out, file_counts = folder / str(number), []
        start = time.monotonic()
        while killed(started(model, out), rng.uniform(0, duration) if number and kills else None):
            file_counts.append(sum(path.is_file() for path in out.rglob("*")))
            kills -= 1
        duration = duration if file_counts else time.monotonic() - start  # the time of an undisturbed build
        print(*file_counts)
        number += 1


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
