"""What a measurement has to be read with: the date and the shape of the machine."""

import datetime
import os
import platform
from pathlib import Path

import torch

from zeropass.checkpoints.demo import DEMOS


def machine() -> str:
    """One line: date, processor, cores, memory, versions."""
    return f"{today()}, {shape()}"


def called(model: str) -> str:
    """A model as a table names it: what a demo model is stands behind its short name."""
    demo = DEMOS.get(model)
    return f"{model} ({demo.title})" if demo and demo.title else model


def today() -> str:
    """The date in UTC, as 2026-11-25."""
    return str(datetime.datetime.now(tz=datetime.UTC).date())


def shape() -> str:
    """The machine alone: processor, cores, memory, GPU, versions."""
    names = [line for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    processor = names[0].split(":", 1)[1].strip() if names else platform.processor() or platform.machine()
    total = next((int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0)
    gpu = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    return (
        f"{processor}, {os.cpu_count()} cores, {total / 2**20:.0f} GiB, "
        f"{gpu}Python {platform.python_version()}, torch {torch.__version__} with {torch.get_num_threads()} threads"
    )


def load() -> str:
    """How many processes have been running or waiting for a core in the last minute: more than cores disturb times."""
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
