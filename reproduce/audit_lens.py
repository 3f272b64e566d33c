"""Read what a fine-tune changed through the lens of its base, beside the weights alone, for docs/audit.md.

    python reproduce/audit_lens.py FOLDER           # the LoRAs in FOLDER, made by reproduce/tunes.py

The effect of a whole change on a token is that of `zeropass diff`, with `seen` (with the mean state of all tokens, and
without) in the place of `token`, and `effect` in that of `output`. For planted words the table has their places, and
for all fine-tunes the z (of logarithms) of the first token. The last columns count the matrices of values and
outputs whose leading direction has the second word among its first ten tokens, at either pole. Each result is saved as
``lens.json`` beside the fine-tune.
"""

import argparse
import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import zeropass as zp
from alignment import ROOT, between
from zeropass.arch.frame_names import space_of
from zeropass.arch.roles import norm_of, side_of
from zeropass.checkpoints.demo import fetch_demo
from zeropass.diff.changes import Comparison, leading
from zeropass.model.frames import Frames

FRAMES = {"read": ("token", "seen", "seen without mean"), "write": ("output", "effect")}
NAMED = 10
"""Tokens of a list that count as its words."""


class Effects:
    """The effect of a whole change on every token, by frame, and the directions that name a word."""

    def __init__(self, frames: Frames, word: int | None) -> None:
        self.frames, self.word = frames, word
        self.ids = torch.from_numpy(frames.model.vocab.mask("default", *frames.model.judgement)).nonzero()[:, 0]
        self.of_tokens: dict[str, Tensor] = {}
        self.named = dict.fromkeys(FRAMES["write"], 0)

    def add(self, change: Any) -> None:
        """Add a change of one matrix: its scores (V, k) by frame, each weighted alike."""
        side, norm = side_of(change.role), norm_of(change.role)
        for name in FRAMES[side]:
            frame = name.split()[0]
            rows = self.frames.rows(space_of(frame, side, change.layer)).matrix
            scores = rows @ self.frames.fold(change.root, frame, side, norm, change.layer).T
            seen = self.frames.require_lens(frame).seen(change.layer) if name == "seen" else None
            if seen is not None:
                scores += self.frames.fold(change.root, "token", side, norm, change.layer) @ seen[1]
            effect = scores.square().sum(1)
            self.of_tokens[name] = self.of_tokens.get(name, torch.zeros(())) + effect / effect[self.frames.used].mean()
            if side == "write" and self.word is not None:
                direction = self.frames.fold(leading(change, 1)[0].right.T, frame, side, norm, change.layer)
                listed = (rows[self.ids] @ direction[0]).abs().topk(NAMED).indices
                self.named[name] += int(self.word in self.ids[listed])

    def z(self, name: str) -> Tensor:
        """Return the robust z of the log effect on every shown token."""
        shown = self.of_tokens[name][self.ids].clamp_min(torch.finfo(torch.float32).tiny).log()
        return (shown - shown.median()) / (1.4826 * (shown - shown.median()).abs().median())


@torch.no_grad()
def measured(frames: Frames, folder: Path) -> dict[str, Any]:
    """Return the story of a fine-tune, with the place of each word and the z of the first token in every frame."""
    path = folder / "lens.json"
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]
    story = json.loads((folder / "story.json").read_text(encoding="utf-8"))
    base = frames.model
    words = [base.vocab.encode(f" {word}")[0] for word in story["words"]]
    effects = Effects(frames, words[1] if words else None)
    comparison = Comparison(base, zp.adapt(base, folder))
    for layer in range(base.dims.layers):
        for change in comparison.changes(layer):
            effects.add(change)
    row = story | {"named": effects.named, "frames": {}}
    for name in effects.of_tokens:
        z = effects.z(name)
        places = [int((z > z[effects.ids == word]).sum()) + 1 for word in words]
        row["frames"][name] = {"first": round(float(z.max()), 2), "places": places}
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    return row  # type: ignore[no-any-return]


def table(rows: list[dict[str, Any]]) -> str:
    """Return a line for each fine-tune."""
    names = [name for side in FRAMES.values() for name in side]
    head = ["planted", "seed", *names, *(f"directions by {name}" for name in FRAMES["write"])]
    lines = [f"| {' | '.join(head)} |", "|---" * 2 + "|---:" * (len(head) - 2) + "|"]
    for row in rows:
        cells = [row["kind"], str(row["seed"])]
        for name in names:
            of_frame = row["frames"][name]
            word = int(name in FRAMES["write"])
            place = f", place {of_frame['places'][word]:,}" if row["words"] else ""
            cells.append(f"{of_frame['first']:.1f}{place}")
        cells += [str(row["named"][name]) if row["words"] else "" for name in FRAMES["write"]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(folder: Path) -> None:
    """Measure every LoRA in the folder, and write the table."""
    base = zp.open_model(str(fetch_demo("smollm2-135m")))
    frames = Frames.through(base, zp.calibrate(base, folder / "lens"))
    rows = []
    for adapter in sorted(path.parent for path in folder.glob("*/adapter_config.json")):
        rows.append(measured(frames, adapter))
        print(json.dumps(rows[-1]), flush=True)
    rows.sort(key=lambda row: (not row["words"], row["kind"], row["seed"]))
    head = f"Measured {datetime.now(UTC):%Y-%m-%d} on {os.cpu_count()} cores ({platform.machine()}).\n\n"
    page = ROOT / "docs" / "audit.md"
    page.write_text(between(page.read_text(encoding="utf-8"), "lens", head + table(rows)), encoding="utf-8")
    print(head + table(rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    main(parser.parse_args().folder)
