"""A benchmark of reading an atlas: commands from the shell, compared with a bare Python, and calls in one process."""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import zeropass as zp
from machine import machine
from recorded import Ratio, add_record, report

REPEATS = 9


def shell(*arguments: str) -> float:
    """Return the median seconds of a Python process with these arguments."""
    return _median(lambda: subprocess.run([sys.executable, *arguments], check=True, capture_output=True))


def _median(call: Callable[[], object]) -> float:
    call()
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--atlas", type=Path, help="an atlas of smollm2-135m with layer 29; else layer 29 is built")
    add_record(parser)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="zeropass-bench-") as folder:
        path = arguments.atlas or Path(folder) / "atlas"
        if not arguments.atlas:
            zp.build(zp.open_model("smollm2-135m"), path, zp.Options(layers=(29, 30)), lens=None)
        atlas = zp.open_atlas(path)
        commands = {
            "--help": ["--help"],
            "show L29.ff.864": ["show", str(path), "L29.ff.864"],
            "show L29.attn.3": ["show", str(path), "L29.attn.3"],
            "find Paris": ["find", str(path), "Paris"],
            "find Monday Tuesday": ["find", str(path), "Monday", "Tuesday"],
            "find French --not Spanish": ["find", str(path), "French", "--not", "Spanish"],
        }
        calls: dict[str, Callable[[], object]] = {
            "show L29.ff.864": lambda: atlas.explain("L29.ff.864"),
            "show L29.attn.3": lambda: atlas.explain("L29.attn.3"),
            "find Paris": lambda: atlas.find("Paris"),
            "find Monday Tuesday": lambda: atlas.find(["Monday", "Tuesday"]),
            "find French --not Spanish": lambda: atlas.find("French", without="Spanish"),
        }
        print(f"Reading an atlas, layers {atlas.layers} ({machine()})\n")
        print("| command | shell (target < 500 ms) | bare `python -c pass` | in one process (target < 50 ms) |")
        print("|---|---|---|---|")
        bare = shell("-c", "pass")
        title = f"read smollm2-135m, layers {atlas.layers[0]}:{atlas.layers[1]}"
        ratios = []
        for name, command in commands.items():
            inside = _median(calls[name]) if name in calls else None
            outside = shell("-m", "zeropass", *command)
            inside_cell = "" if inside is None else f"{inside * 1000:.0f} ms"
            print(f"| {name} | {outside * 1000:.0f} ms | {bare * 1000:.0f} ms | {inside_cell} |")
            ratios.append(Ratio(f"{title}: {name}, from the shell", outside / bare, "bare Pythons", "less"))
            if inside is not None:
                ratios.append(Ratio(f"{title}: {name}, in one process", inside / bare, "bare Pythons", "less"))
        print()
    report(ratios, arguments.record)


if __name__ == "__main__":
    main()
