"""The explorer under load: how long pages take with several clients at once, each asking as soon as it is answered."""

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

Timings = dict[str, list[float]]
WORDS = ("Paris", "Monday", "Tuesday", "become", "water", "music", "king", "doctor", "red", "seven", "law", "snow")


def questions(atlas: zp.Atlas, kind: str, seed: int) -> Iterator[tuple[str, str]]:
    """Endless (name of the kind of page, address), drawn at random: hardly any page is asked for twice."""
    draw, model, (first, stop) = random.Random(seed), atlas.model, atlas.layers
    while True:
        layer, head, neuron = (
            draw.randrange(first, stop),
            draw.randrange(model["heads"]),
            draw.randrange(model["neurons"]),
        )
        token, column = draw.randrange(model["vocabulary"]), draw.randrange(model["head_dim"])
        side = draw.choice(("read-token", "read-output", "write-output"))
        stored = {
            "model": f"/by/{draw.choice(('strength', 'best', 'kurtosis'))}/{side}",
            "layer": f"/layer/{layer}",
            "layer, further pages": f"/layer/{layer}/{draw.randrange(2, 30)}",
            "neuron": f"/at/L{layer}.ff.{neuron}",
            "neuron as JSON": f"/at/L{layer}.ff.{neuron}.json",
            "column": f"/at/L{layer}.attn.{head}.q.{column}",
            "head": f"/at/L{layer}.attn.{head}",
            "head map": f"/map/L{layer}.attn.{head}.{draw.choice(('qk', 'vo'))}",
            "columns of a head": f"/subheads/L{layer}.attn.{head}",
            "token": f"/token/{token}",
            "tokens": f"/tokens/{draw.randrange(2, 100)}",
        }
        computed = {
            "near": f"/near/L{layer}.ff.{neuron}",
            "spread": f"/spread/L{layer}.ff.{neuron}",
            "cloud": f"/cloud/L{layer}.ff.{neuron}",
            "another view": f"/at/L{layer}.ff.{neuron}?tokens=words",
            "nearest tokens": f"/nearest/{token}",
            "concept": f"/find?q={quote(' '.join(draw.sample(WORDS, 3)))}",
            "another offset": f"/map/L{layer}.attn.{head}.qk?offset={draw.randrange(1, 64)}",
            "filter": f"/map/L{layer}.attn.{head}.vo?left={draw.choice(WORDS)}",
            "singular directions": f"/svd/L{layer}.attn.{head}.vo",
        }
        pages = stored if kind == "stored" else computed
        name = draw.choice(list(pages))
        yield name, pages[name]


def client(address: str, pages: Iterator[tuple[str, str]], seconds: float, found: Timings, failed: list[str]) -> None:
    """Ask for one page after the other until the time is over."""
    until = time.perf_counter() + seconds
    for name, path in pages:
        started = time.perf_counter()
        if started > until:
            return
        try:
            with urllib.request.urlopen(address + path, timeout=60) as answer:
                answer.read()
        except OSError as error:
            failed.append(f"{path}: {error}")
        else:
            found[name].append(time.perf_counter() - started)


def load(address: str, atlas: zp.Atlas, kind: str, clients: int, seconds: float) -> Timings:
    """Seconds that each page took, by kind of page."""
    found: Timings = defaultdict(list)
    failed: list[str] = []
    threads = [
        threading.Thread(target=client, args=(address, questions(atlas, kind, seed), seconds, found, failed))
        for seed in range(clients)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise SystemExit(f"{len(failed)} pages failed, such as {failed[0]}")
    return found


@contextmanager
def serving(path: Path) -> Iterator[tuple[str, float, int]]:
    """A server in a process of its own: its address, how long it took to answer for the first time, and its id."""
    started = time.perf_counter()
    line = [sys.executable, "-m", "zeropass", "serve", str(path), "--port", "0"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        address = server.stdout.readline().split()[0].rstrip("/")
        with urllib.request.urlopen(f"{address}/", timeout=60) as answer:
            answer.read()
        took = time.perf_counter() - started
        try:
            yield address, took, server.pid
        finally:
            server.terminate()


def busy(process: int) -> float:
    """Seconds of processor time that a process and its children have used: they do not depend on who else is there."""
    own = Path(f"/proc/{process}")
    children = (own / "task" / str(process) / "children").read_text(encoding="utf-8").split()
    fields = (own / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    spent = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return spent + sum(busy(int(child)) for child in children)


def p95(times: Sequence[float]) -> float:
    return statistics.quantiles(times, n=20)[-1] if len(times) > 1 else times[0]


def table(found: Timings, target: str) -> None:
    """Print the pages, slowest last, and all of them together."""
    print(f"| page | asked | median | p95 ({target}) |")
    print("|---|---|---|---|")
    rows = sorted(found.items(), key=lambda row: p95(row[1]))
    rows.append(("all", [one for _, times in rows for one in times]))
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
    what = f"pages of {atlas.model['name']}, layers {atlas.layers[0]}:{atlas.layers[1]}"
    ratios = []
    with serving(path) as (address, took, process):
        print(f"The explorer, {arguments.clients} clients at once, layers {atlas.layers} ({machine()})\n")
        print(f"From the command to the first page: {took:.2f} s\n")
        load(address, atlas, "computed", 1, 5)  # opens the weights, which is done once
        every = {}
        for kind, target in (("stored", "target < 100 ms"), ("computed", "target < 1 s")):
            before = busy(process)
            every[kind] = load(address, atlas, kind, arguments.clients, arguments.seconds)
            used = (busy(process) - before) / sum(map(len, every[kind].values()))
            print(f"Pages that are {kind}:\n")
            table(every[kind], target)
            print(f"The server took {used * 1000:.0f} ms of processor time a page.\n")
            ratios.append(Ratio(f"{what}: {kind}", used * 1000, "ms of processor time", "less"))
    if arguments.json:
        arguments.json.write_text(json.dumps(every), encoding="utf-8")
    report(ratios, arguments.record)


if __name__ == "__main__":
    main()
