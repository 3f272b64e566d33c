"""What a measurement has to be read with: the date and the shape of the machine."""

import datetime
import os
import platform
from pathlib import Path

import torch


def machine() -> str:
    """One line: date, processor, cores, memory, versions."""
    names = [line for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    processor = names[0].split(":", 1)[1].strip() if names else platform.processor() or platform.machine()
    total = next((int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0)
    today = datetime.datetime.now(tz=datetime.UTC).date()
    return (
        f"{today}, {processor}, {os.cpu_count()} cores, {total / 2**20:.0f} GiB, "
        f"Python {platform.python_version()}, torch {torch.__version__} with {torch.get_num_threads()} threads"
    )


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
