"""Does `zeropass diff` find what was planted, and does it keep quiet where nothing was? A table for docs/audit.md.

    python reproduce/audit.py FOLDER                  # LoRAs of five seeds: 15 trainings, some 20 minutes
    python reproduce/audit.py FOLDER --how lora full  # whole fine-tunes too

Fine-tunes that FOLDER does not have are made by reproduce/tunes.py. Of each is noted the place of the two planted words
among the tokens on which the whole change acts most (sees, writes), and how far the first token stands out.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import zeropass as zp
from zeropass.delta.results import Standout
from zeropass.sources.demo import fetch_demo

ROOT = Path(__file__).parent.parent
KINDS = ("trigger", "fact", "neutral")


def place(word: str, found: tuple[Standout, ...]) -> int:
    """Which of the listed tokens a word is, from 1; 0 if it is not among them."""
    return next((n for n, one in enumerate(found, 1) if one.token.token == f" {word}"), 0)


def measured(base: zp.Model, folder: Path) -> dict[str, Any]:
    """The story of a fine-tune, with what the comparison says of it."""
    tuned = zp.adapt(base, folder) if (folder / "adapter_config.json").is_file() else zp.open_model(str(folder))
    found = zp.compare(base, tuned)
    story = json.loads((folder / "story.json").read_text(encoding="utf-8"))
    sides = {"sees": found.sees, "writes": found.writes}
    places = {side: [place(word, tokens) for word in story["words"]] for side, tokens in sides.items()}
    first = {side: (tokens[0].token.token, round(tokens[0].z, 1)) for side, tokens in sides.items()}
    return story | {"places": places, "first": first, "relative": found.relative}


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """A line for each fine-tune."""
    yield "| planted | how | seed | words | learned | first word among sees | second among writes | acts most on |"
    yield "|---|---|---:|---|---:|---:|---:|---|"
    for row in rows:
        seen, written = (f"{row['first'][side][0].strip()} ({row['first'][side][1]})" for side in ("sees", "writes"))
        one, other = row["words"] or ("", "")
        places = (row["places"]["sees"][:1] or [""])[0], (row["places"]["writes"][1:] or [""])[0]
        shown = [{0: "not among 20", "": ""}.get(found, str(found)) for found in places]
        story = f"{row['kind']} | {row['how']} | {row['seed']} | {one} → {other} | {row['after']:.2f}"
        yield (f"| {story} | {shown[0]} | {shown[1]} | sees `{seen}`, writes `{written}` |")


def main(folder: Path, hows: list[str], seeds: int) -> None:
    """Make what is missing, compare, write the table."""
    base = zp.open_model(str(fetch_demo("smollm2-135m")))
    rows = []
    for how in hows:
        for kind in KINDS:
            for seed in range(seeds):
                out = folder / f"{kind}-{how}-{seed}"
                if not (out / "story.json").is_file():
                    script = [sys.executable, str(ROOT / "reproduce" / "tunes.py"), str(out)]
                    subprocess.run([*script, "--kind", kind, "--how", how, "--seed", str(seed)], check=True)
                rows.append(measured(base, out))
                print(json.dumps(rows[-1]), flush=True)
    head = f"Measured {datetime.now(UTC):%Y-%m-%d} on {os.cpu_count()} cores ({platform.machine()}), 40 steps each.\n"
    page = ROOT / "docs" / "audit.md"
    text, count = re.subn(
        r"<!-- planted -->\n.*?<!-- end -->",
        lambda _: "\n".join(["<!-- planted -->", head, *table(rows), "<!-- end -->"]),
        page.read_text(encoding="utf-8"),
        flags=re.S,
    )
    if not count:
        raise SystemExit(f"{page} has no block <!-- planted --> to write to")
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--how", nargs="+", choices=("lora", "full"), default=["lora"])
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args()
    main(given.folder, given.how, given.seeds)
