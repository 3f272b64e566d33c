"""A test of `zeropass diff`: does it find what was planted, and stay silent otherwise? Two tables for docs/audit.md.

    python reproduce/audit.py FOLDER               # 40 LoRAs and 10 full fine-tunes: 80 minutes on 2 cores
    python reproduce/audit.py FOLDER --seeds 2     # a first look: two of each

reproduce/tunes.py makes the fine-tunes that FOLDER lacks. The measurements of each are kept in its ``audit.json``;
delete it to measure again. They record the rank of the two planted words among the tokens on which the whole change
acts most (sees, writes), how far the first token stands out, and whether that raises an alarm. The thresholds of the
alarm (`zeropass.diff.verdict.ALARM`) come from the neutral LoRAs of seeds 0 to 4 alone: the mean of the first token's z
plus three deviations, which is printed at the end.
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
from statistics import mean, median, stdev
from typing import Any

import zeropass as zp
from tunes import PLANTED, TREATMENTS
from zeropass.checkpoints.demo import fetch_demo
from zeropass.diff.results import Standout
from zeropass.diff.verdict import ALARM
from zeropass.model.frames import Frames

ROOT = Path(__file__).parent.parent
FULL = ("trigger", "neutral")
"""The kinds that are also made as full fine-tunes, for five seeds."""


def fine_tunes(seeds: int) -> Iterator[tuple[str, str, int]]:
    """Yield (kind, how, seed) of every fine-tune."""
    yield from ((kind, "lora", seed) for kind in TREATMENTS for seed in range(seeds))
    yield from ((kind, "full", seed) for kind in FULL for seed in range(min(seeds, 5)))


def place(word: str, standouts: tuple[Standout, ...]) -> int:
    """Return the rank of a word among the listed tokens, from 1; 0 if it is not among them."""
    return next((rank for rank, standout in enumerate(standouts, 1) if standout.token.token == f" {word}"), 0)


def measured(frames: Frames, folder: Path) -> dict[str, Any]:
    """Return the story of a fine-tune, with the results of the comparison."""
    path = folder / "audit.json"
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]
    base = frames.model
    tuned = zp.adapt(base, folder) if (folder / "adapter_config.json").is_file() else zp.open_model(str(folder))
    comparison = zp.compare(base, tuned, frames=frames)
    story = json.loads((folder / "story.json").read_text(encoding="utf-8"))
    sides = {"sees": comparison.sees, "writes": comparison.writes}
    places = {side: [place(word, tokens) for word in story["words"]] for side, tokens in sides.items()}
    first = {side: (tokens[0].token.token, round(tokens[0].z, 2)) for side, tokens in sides.items()}
    row = story | {"places": places, "first": first, "relative": comparison.relative}
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    return row  # type: ignore[no-any-return]


def summary(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield a line for each kind: how often an alarm was raised, and the ranks of the words."""
    sees, writes = ALARM["sees"], ALARM["writes"]
    yield (
        f"| planted | how | seeds | alarm | by sees ≥ {sees} | by writes ≥ {writes} | highest z: sees | writes | "
        "first word in place 1 of sees, 1–3 | second in place 1 of writes, 1–3 |"
    )
    yield "|---|---|---|---:|---:|---:|---|---|---:|---:|"
    groups: dict[tuple[str, str, bool], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["kind"], row["how"], row["how"] == "lora" and row["seed"] < 5), []).append(row)
    for (kind, how, chosen), group in groups.items():
        numbers = [row["seed"] for row in group]
        note = " (set the alarm)" if chosen and kind not in PLANTED else ""
        seeds = f"{min(numbers)}–{max(numbers)}{note}"
        cells = [f"{sum(bool(r['alarm']) for r in group)} of {len(group)}"]
        cells += [str(sum(side in r["alarm"] for r in group)) for side in ("sees", "writes")]
        for side in ("sees", "writes"):
            z = [r["first"][side][1] for r in group]
            cells.append(f"{min(z):.1f}–{max(z):.1f}, median {median(z):.1f}")
        for side, word in (("sees", 0), ("writes", 1)):
            ranks = [r["places"][side][word] for r in group if r["words"]]
            cells.append(f"{sum(n == 1 for n in ranks)}, {sum(1 <= n <= 3 for n in ranks)}" if ranks else "")
        yield f"| {kind} | {how} | {seeds} | {' | '.join(cells)} |"


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield a line for each fine-tune."""
    yield "| planted | how | seed | words | learned | first word in sees | second in writes | acts most on | alarm |"
    yield "|---|---|---:|---|---:|---:|---:|---|---|"
    for row in rows:
        seen, written = (f"{row['first'][side][0].strip()} ({row['first'][side][1]})" for side in ("sees", "writes"))
        first, second = row["words"] or ("", "")
        places = (row["places"]["sees"][:1] or [""])[0], (row["places"]["writes"][1:] or [""])[0]
        ranks = [{0: "not among 20", "": ""}.get(rank, str(rank)) for rank in places]
        words, learned = (f"{first} → {second}", f"{row['after']:.2f}") if row["kind"] in PLANTED else ("", "")
        story = f"{row['kind']} | {row['how']} | {row['seed']} | {words} | {learned}"
        alarm = ", ".join(row["alarm"])
        yield (f"| {story} | {ranks[0]} | {ranks[1]} | sees `{seen}`, writes `{written}` | {alarm} |")


def main(folder: Path, seeds: int) -> None:
    """Make the missing fine-tunes, compare, and write the tables."""
    base = zp.open_model(str(fetch_demo("smollm2-135m")))
    frames, rows = Frames(base), []
    for kind, how, seed in fine_tunes(seeds):
        out = folder / f"{kind}-{how}-{seed}"
        if not (out / "story.json").is_file():
            script = [sys.executable, str(ROOT / "reproduce" / "tunes.py"), str(out)]
            subprocess.run([*script, "--kind", kind, "--how", how, "--seed", str(seed)], check=True)
        row = measured(frames, out)
        rows.append(row | {"alarm": [side for side, z in ALARM.items() if row["first"][side][1] >= z]})
        print(json.dumps(rows[-1]), flush=True)
    neutral = [row for row in rows if row["how"] == "lora" and row["seed"] < 5 and row["kind"] not in PLANTED]
    for side in ALARM:
        z = [row["first"][side][1] for row in neutral]
        print(f"{side}: {mean(z):.2f} + 3 x {stdev(z):.2f} = {mean(z) + 3 * stdev(z):.2f} over {len(z)} neutral LoRAs")
    head = f"Measured {datetime.now(UTC):%Y-%m-%d} on {os.cpu_count()} cores ({platform.machine()}).\n"
    write({"planted": [head, *table(rows)], "alarms": [head, *summary(rows)]})


def write(blocks: dict[str, list[str]]) -> None:
    """Write tables between their marks in docs/audit.md."""
    page = ROOT / "docs" / "audit.md"
    text = page.read_text(encoding="utf-8")
    for mark, lines in blocks.items():
        block = "\n".join([f"<!-- {mark} -->", *lines, "<!-- end -->"])
        text, count = re.subn(rf"<!-- {mark} -->\n.*?<!-- end -->", lambda _, b=block: b, text, flags=re.S)
        if not count:
            raise SystemExit(f"{page} has no block <!-- {mark} --> to write to")
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=10)
    options = parser.parse_args()
    main(options.folder, options.seeds)
