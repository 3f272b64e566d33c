"""A description of the machine that a measurement depends on, and the date."""

import datetime
import os
import platform
from pathlib import Path

import torch

from zeropass.checkpoints.demo import DEMOS


def machine() -> str:
    """Return the date, processor, cores, memory and versions in one line."""
    return f"{today()}, {shape()}"


def called(model: str) -> str:
    """Return the name of a model in a table: the title of a demo model follows its short name."""
    demo = DEMOS.get(model)
    return f"{model} ({demo.title})" if demo and demo.title else model


def today() -> str:
    """Return the date in UTC, as 2026-11-25."""
    return str(datetime.datetime.now(tz=datetime.UTC).date())


def shape() -> str:
    """Describe the machine without the date: processor, cores, memory, GPU, versions."""
    names = [line for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    processor = names[0].split(":", 1)[1].strip() if names else platform.processor() or platform.machine()
    total = next((int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0)
    gpu = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    return (
        f"{processor}, {os.cpu_count()} cores, {total / 2**20:.0f} GiB, "
        f"{gpu}Python {platform.python_version()}, torch {torch.__version__} with {torch.get_num_threads()} threads"
    )


def load() -> str:
    """Return how many processes ran or waited for a core in the last minute; more than the cores distort times."""
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
