"""An atlas on the hub: the bytes and requests that a question takes, from a local stand-in for the hub."""

import argparse
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zeropass as zp
from machine import machine

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from hubs import Hub, serving_hub

QUESTIONS: dict[str, Callable[[zp.Atlas], Any]] = {
    "the tables, which every question needs": lambda atlas: (atlas.runs, atlas.vocab, atlas.random_coherence),
    "`show L26.ff.1189`": lambda atlas: atlas.explain("L26.ff.1189", k=12),
    "`show L23.attn.4.vo`": lambda atlas: atlas.explain("L23.attn.4.vo", k=12),
    "`find himself`": lambda atlas: atlas.find("himself", k=10),
    "`find Paris`": lambda atlas: atlas.find("Paris", k=10),
    "`find money`": lambda atlas: atlas.find("money", k=10),
    "`find Monday Tuesday`": lambda atlas: atlas.find(["Monday", "Tuesday"], k=10),
    "`show L26.ff.1189` again": lambda atlas: atlas.explain("L26.ff.1189", k=12),
    "`show L26.ff.1189 --tokens words`": lambda atlas: atlas.explain("L26.ff.1189", tokens="words", k=12),
    "`find king`": lambda atlas: atlas.find("king", k=10),
}


def measure(hub: Hub, atlas: zp.Atlas, ask: Callable[[zp.Atlas], Any]) -> tuple[int, int]:
    """Return the bytes of files and the number of answers that a question takes."""
    sent, gets = hub.sent, len(hub.gets)
    ask(atlas)
    return hub.sent - sent, len(hub.gets) - gets


def main() -> None:
    """Print the table of docs/atlas.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--atlas", type=Path, default=Path("demo/smollm2-135m"))
    folder = parser.parse_args().atlas
    warnings.simplefilter("ignore")  # of the hub's client
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["ZEROPASS_CACHE"] = f"{scratch}/cache"
        with serving_hub({}, Path(scratch) / "hub") as hub:
            push = zp.push_atlas(folder, "owner/atlas")
            atlas = zp.open_atlas(push.address)
            print(f"{folder}: {push.files} files, {push.bytes / 1e6:,.0f} MB; {machine()}\n")
            print("| question | MB | requests | share of the atlas |\n| --- | ---: | ---: | ---: |")
            for name, ask in QUESTIONS.items():
                size, requests = measure(hub, atlas, ask)
                print(f"| {name} | {size / 1e6:,.1f} | {requests} | {size / push.bytes:.1%} |", flush=True)


if __name__ == "__main__":
    main()
