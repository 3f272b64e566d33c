"""The explorer under load: the time of pages for several clients at once, each asking as soon as it is answered."""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import zeropass as zp
from machine import machine
from recorded import Ratio, add_record, report
from zeropass.atlas.summary import list_types_of

Timings = dict[str, list[float]]
WORDS = ("Paris", "Monday", "Tuesday", "become", "water", "music", "king", "doctor", "red", "seven", "law", "snow")


def questions(atlas: zp.Atlas, group: str, seed: int) -> Iterator[tuple[str, str]]:
    """Yield (page type, address) endlessly and at random, so that hardly any page is requested twice."""
    rng, model, (first, stop) = random.Random(seed), atlas.model, atlas.layers
    list_types = list_types_of(atlas)
    while True:
        layer, head, neuron = (
            rng.randrange(first, stop),
            rng.randrange(model["heads"]),
            rng.randrange(model["neurons"]),
        )
        token, column = rng.randrange(model["vocabulary"]), rng.randrange(model["head_dim"])
        side, frame = rng.choice(list_types)
        stored = {
            "model": f"/by/{rng.choice(('strength', 'best', 'kurtosis'))}/{side}-{frame}",
            "layer": f"/layer/{layer}",
            "layer, further pages": f"/layer/{layer}/{rng.randrange(2, 30)}",
            "neuron": f"/at/L{layer}.ff.{neuron}",
            "neuron as JSON": f"/at/L{layer}.ff.{neuron}.json",
            "column": f"/at/L{layer}.attn.{head}.q.{column}",
            "head": f"/at/L{layer}.attn.{head}",
            "head map": f"/map/L{layer}.attn.{head}.{rng.choice(('qk', 'vo'))}",
            "columns of a head": f"/subheads/L{layer}.attn.{head}",
            "token": f"/token/{token}",
            "tokens": f"/tokens/{rng.randrange(2, 100)}",
        }
        computed = {
            "near": f"/near/L{layer}.ff.{neuron}",
            "spread": f"/spread/L{layer}.ff.{neuron}",
            "cloud": f"/cloud/L{layer}.ff.{neuron}",
            "another view": f"/at/L{layer}.ff.{neuron}?tokens=words",
            "nearest tokens": f"/nearest/{token}",
            "concept": f"/find?q={quote(' '.join(rng.sample(WORDS, 3)))}",
            "another offset": f"/map/L{layer}.attn.{head}.qk?offset={rng.randrange(1, 64)}",
            "filter": f"/map/L{layer}.attn.{head}.vo?left={rng.choice(WORDS)}",
            "singular directions": f"/svd/L{layer}.attn.{head}.vo",
        }
        pages = stored if group == "stored" else computed
        name = rng.choice(list(pages))
        yield name, pages[name]


def client(
    address: str, pages: Iterator[tuple[str, str]], seconds: float, timings: Timings, failures: list[str]
) -> None:
    """Request one page after the other until the time is up."""
    end = time.perf_counter() + seconds
    for name, path in pages:
        started = time.perf_counter()
        if started > end:
            return
        try:
            with urllib.request.urlopen(address + path, timeout=60) as response:
                response.read()
        except OSError as error:
            failures.append(f"{path}: {error}")
        else:
            timings[name].append(time.perf_counter() - started)


def load(address: str, atlas: zp.Atlas, group: str, clients: int, seconds: float) -> Timings:
    """Return the seconds of every page, by page type."""
    timings: Timings = defaultdict(list)
    failures: list[str] = []
    threads = [
        threading.Thread(target=client, args=(address, questions(atlas, group, seed), seconds, timings, failures))
        for seed in range(clients)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise SystemExit(f"{len(failures)} pages failed, such as {failures[0]}")
    return timings


@contextmanager
def serving(path: Path) -> Iterator[tuple[str, float, int]]:
    """Run a server in its own process; yield its address, the seconds until its first answer, and its process id."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "zeropass", "serve", str(path), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        address = server.stdout.readline().split()[0].rstrip("/")
        with urllib.request.urlopen(f"{address}/", timeout=60) as response:
            response.read()
        start_up = time.perf_counter() - started
        try:
            yield address, start_up, server.pid
        finally:
            server.terminate()


def busy(process: int) -> float:
    """Return the processor seconds of a process and its children, which do not depend on other work."""
    folder = Path(f"/proc/{process}")
    children = (folder / "task" / str(process) / "children").read_text(encoding="utf-8").split()
    fields = (folder / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return seconds + sum(busy(int(child)) for child in children)


def p95(times: Sequence[float]) -> float:
    """Return the 95th percentile."""
    return statistics.quantiles(times, n=20)[-1] if len(times) > 1 else times[0]


def table(timings: Timings, target: str) -> None:
    """Print the page types, slowest last, and all of them together."""
    print(f"| page | asked | median | p95 ({target}) |")
    print("|---|---|---|---|")
    rows = sorted(timings.items(), key=lambda row: p95(row[1]))
    rows.append(("all", [seconds for _, times in rows for seconds in times]))
    for name, times in rows:
        print(f"| {name} | {len(times)} | {statistics.median(times) * 1000:.0f} ms | {p95(times) * 1000:.0f} ms |")
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--atlas", type=Path, help="an atlas of smollm2-135m; else demo/smollm2-135m")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--json", type=Path, help="also write all times to this file")
    add_record(parser)
    arguments = parser.parse_args()
    path = arguments.atlas or Path("demo/smollm2-135m")
    atlas = zp.open_atlas(path)
    title = f"pages of {atlas.model['name']}, layers {atlas.layers[0]}:{atlas.layers[1]}"
    ratios = []
    with serving(path) as (address, start_up, process):
        print(f"The explorer, {arguments.clients} clients at once, layers {atlas.layers} ({machine()})\n")
        print(f"From the command to the first page: {start_up:.2f} s\n")
        load(address, atlas, "computed", 1, 5)  # opens the weights, which happens only once
        timings = {}
        for group, target in (("stored", "target < 100 ms"), ("computed", "target < 1 s")):
            before = busy(process)
            timings[group] = load(address, atlas, group, arguments.clients, arguments.seconds)
            page_seconds = (busy(process) - before) / sum(map(len, timings[group].values()))
            print(f"Pages that are {group}:\n")
            table(timings[group], target)
            print(f"The server took {page_seconds * 1000:.0f} ms of processor time a page.\n")
            ratios.append(Ratio(f"{title}: {group}", page_seconds * 1000, "ms of processor time", "less"))
    if arguments.json:
        arguments.json.write_text(json.dumps(timings), encoding="utf-8")
    report(ratios, arguments.record)


if __name__ == "__main__":
    main()
