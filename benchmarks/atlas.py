"""A benchmark of building the atlas of SmolLM2-135M-Instruct (Q4_1), against the bare fp32 products of its lists.

The build runs in a process of its own, and its peak resident memory is reported. The products are timed in
the same run, before and after the build, over every tenth block, and scaled to all blocks. With ``--parts`` the build
runs in this process instead, and the processor time of each part is printed.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any

import torch

import zeropass as zp
from machine import called, machine
from recorded import Ratio, add_record, report
from zeropass.atlas import build, jobs, token_rows

BLOCK = 512


def bare_products(lists: int, tokens: int, width: int, every: int = 10) -> float:
    """Return the seconds of (lists, width) x (width, tokens) in blocks into one buffer, from a sample of the blocks."""
    torch.manual_seed(0)
    rows, vectors = torch.randn(tokens, width), torch.randn(BLOCK, width)
    out = torch.empty(BLOCK, tokens)
    torch.mm(vectors, rows.T, out=out)
    blocks = max(1, lists // BLOCK // every)
    started = time.perf_counter()
    for _ in range(blocks):
        torch.mm(vectors, rows.T, out=out)
    return (time.perf_counter() - started) * lists / (blocks * BLOCK)


def timed_build(model: str, out: Path, extra: list[str]) -> tuple[float, float]:
    """Build in a child process; return the seconds and the peak resident MB."""
    command = [sys.executable, "-m", "zeropass", "build", model, "--out", str(out), "--lens", "none", *extra]
    started = time.perf_counter()
    child = os.posix_spawn(sys.executable, command, dict(os.environ))
    _, status, usage = os.wait4(child, 0)
    if status:
        sys.exit(f"the build failed with status {status}")
    return time.perf_counter() - started, usage.ru_maxrss / 1024


PARTS = (
    (token_rows.Spaces, "write", "rows of the tokens"),
    (jobs, "survey", "lists"),
    (jobs.Scored, "over_rows", "maps: scores of the columns of heads"),
    (jobs.Runner, "pair_row", "maps: search"),
    (jobs.Runner, "write", "files of the jobs"),
    (build, "_finish", "tables over all"),
)


def timed(owner: Any, name: str, spent: dict[str, float], label: str) -> None:
    """Add the processor time of a function, which runs in one thread or owns all of them, to its part."""
    function = getattr(owner, name)

    def timed_function(*arguments: Any, **options: Any) -> Any:
        clock = time.process_time if current_thread() is main_thread() else time.thread_time
        started = clock()
        result = function(*arguments, **options)
        spent[label] = spent.get(label, 0.0) + clock() - started
        return result

    setattr(owner, name, timed_function)


def print_parts(model: str, layers: str | None) -> None:
    """Build in this process, and print the processor time of each part of it."""
    first, _, stop = (layers or "").partition(":")
    options = zp.Options(layers=(int(first), int(stop)) if layers else None)
    spent: dict[str, float] = {}
    for owner, name, label in PARTS:
        timed(owner, name, spent, label)
    with tempfile.TemporaryDirectory(prefix="zeropass-bench-") as folder:
        started, before = time.perf_counter(), time.process_time()
        zp.build(zp.open_model(model), Path(folder) / "atlas", options, lens=None)
        seconds, total = time.perf_counter() - started, time.process_time() - before
    spent["all else"] = total - sum(spent.values())
    print(f"{seconds:.0f} s, {total:.0f} s of the processor\n\n| part | processor time, s | share |\n|---|---:|---:|")
    for label, seconds in spent.items():
        print(f"| {label} | {seconds:.1f} | {seconds / total:.0%} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--layers", help="only these layers, as A:B")
    parser.add_argument("--keep", type=Path, help="leave the atlas in this folder")
    parser.add_argument("--parts", action="store_true", help="print what the parts of a build take, and nothing else")
    add_record(parser)
    arguments = parser.parse_args()
    if arguments.parts:
        print_parts(arguments.model, arguments.layers)
        return
    extra = ["--layers", arguments.layers] if arguments.layers else []
    folder = Path(tempfile.mkdtemp(prefix="zeropass-bench-"))
    out = arguments.keep or folder / "atlas"
    try:
        model = zp.open_model(arguments.model)
        size = model.dims.vocab, model.dims.d
        before = bare_products(100_000, *size)
        seconds, peak = timed_build(arguments.model, out, extra)
        lists = zp.open_atlas(out).manifest["lists"]
        bare = (before + bare_products(100_000, *size)) / 2 * lists / 100_000
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"Building the atlas of {called(arguments.model)} ({machine()})\n")
    print("| lists | bare fp32 products | whole build | ratio | target | peak resident |")
    print("|---|---|---|---|---|---|")
    ratio = f"{bare:.0f} s | {seconds:.0f} s | {seconds / bare:.2f}"
    print(f"| {lists:,} | {ratio} | < 1 | {peak:,.0f} MB (target < 1,500) |\n")
    title = f"build of {arguments.model}{f', layers {arguments.layers}' if arguments.layers else ''}"
    report([Ratio(f"{title}: against bare products", seconds / bare, "times as long", "less")], arguments.record)


if __name__ == "__main__":
    main()
