"""Measures whether a sentiment classifier's head, and what training changed in its values, read as sentiment words.

    python reproduce/sentiment.py FOLDER          # FOLDER/*: what reproduce/classifiers.py made; some minutes

Measured by the words of the VADER lexicon that are one token, |score| ≥ 1: the probability that a positive word stands
above a negative one in a list (AUC, 0.5 by chance). For directions whose sign has no meaning the larger of AUC and
1 − AUC; what that comes to by chance is told by random directions read through the same rows. The tables of
docs/audit.md are written from it.
"""

import argparse
import json
import os
import platform
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import zeropass as zp
from audit import write
from reviews import sentiment_words
from zeropass.arch.spec import OUTSIDE, space_of
from zeropass.checkpoints.demo import fetch_demo
from zeropass.diff.changes import Comparison, leading
from zeropass.model.frames import Frames
from zeropass.model.vectors import VectorSet, vector_set
from zeropass.tokens.vocabulary import shown_text

RANDOM, NEURONS, BEST = 1000, 100, 20
CLEAR = 1.0


def words_of(model: zp.Model) -> tuple[Tensor, Tensor]:
    """Ids of the lexicon's clear words that are one token, and whether each is positive."""
    piece = (lambda word: word) if model.family.name == "bert" else (lambda word: f" {word}")
    known = {model.vocab.label(i): i for i in range(model.dims.vocab)}
    found = {
        known[piece(w)]: score > 0
        for w, score in sentiment_words().items()
        if abs(score) >= CLEAR and piece(w) in known
    }
    return torch.tensor(list(found)), torch.tensor(list(found.values()))


def auc(scores: Tensor, positive: Tensor) -> Tensor:
    """For each row of (n, words) scores the chance that a positive word stands above a negative one."""
    ranks = scores.argsort(dim=1).argsort(dim=1).double() + 1
    pos, neg = int(positive.sum()), int((~positive).sum())
    return (ranks[:, positive].sum(1) - pos * (pos + 1) / 2) / (pos * neg)


def unsigned(values: Tensor) -> Tensor:
    """The larger of a value and one minus it."""
    return torch.maximum(values, 1 - values)


class Reader:
    """Scores of the lexicon's words in the base's frames."""

    def __init__(self, base: zp.Model) -> None:
        self.frames = Frames(base)
        self.ids, self.positive = words_of(base)

    def auc(self, vectors: Tensor, found: VectorSet, frame: str) -> Tensor:
        """AUC of each of (n, d) vectors of a set."""
        folded = self.frames.fold(vectors, frame, found.side, found.norm, found.layer)
        rows = self.frames.rows(space_of(frame, found.side, found.reads_at)).matrix
        return auc(folded @ rows[self.ids].T, self.positive)

    def chance(self, found: VectorSet, frame: str) -> tuple[float, float]:
        """Mean and 95% quantile of the unsigned AUC of random directions."""
        draw = torch.randn(RANDOM, found.vectors.shape[1], generator=torch.Generator().manual_seed(0))
        values = unsigned(self.auc(draw, found, frame))
        return float(values.mean()), float(values.quantile(0.95))


def head(reader: Reader, tuned: zp.Model) -> Iterator[dict[str, Any]]:
    """The classifier's row for positive, minus their mean: AUC, and the words at both ends."""
    found = vector_set(tuned, OUTSIDE, "classifier")
    lens = zp.Lens.over(reader.frames.of(tuned))
    lexicon = sentiment_words()
    for frame in ("token", "output", "paper"):
        mean, high = reader.chance(found, frame)
        record = lens.explain("classifier.1", frame=frame, tokens="words", k=BEST)[0]
        signs = [
            (lexicon.get(one.token.strip().lower()), sign)
            for pole, sign in ((record.top, 1), (record.bottom, -1))
            for one in pole
        ]
        rated = [(score, sign) for score, sign in signs if score is not None]
        yield {
            "frame": frame,
            "auc": float(reader.auc(found.vectors[1:2], found, frame)[0]),
            "chance": mean,
            "high": high,
            "rated": len(rated),
            "right": sum(score * sign > 0 for score, sign in rated),
            "top": [one.token.strip() for one in record.top[:10]],
            "bottom": [one.token.strip() for one in record.bottom[:10]],
        }


def changes(reader: Reader, pair: Comparison) -> Iterator[dict[str, Any]]:
    """What training added to keys (or ups) and values of each layer: leading direction, and neurons changed most."""
    reads = "key" if "key" in pair.base.family.ff_roles else "up"
    for role, frame in ((reads, "token"), ("value", "output")):
        for layer in range(pair.base.dims.layers):
            found = vector_set(pair.base, layer, role)
            change = pair.change(role, layer)
            if change.rounding or not change.norm:
                continue
            directions, _ = leading(change, 1)
            most = change.dense.norm(dim=1).topk(NEURONS).indices
            own, _ = leading(replace(change, added=found.vectors), 1)
            mean, high = reader.chance(found, frame)
            yield {
                "role": role,
                "layer": layer,
                "direction": float(unsigned(reader.auc(directions.right.T, found, frame))[0]),
                "before": float(unsigned(reader.auc(own.right.T, found, frame))[0]),
                "neurons": float(unsigned(reader.auc(change.dense[most], found, frame)).mean()),
                "same": float(unsigned(reader.auc(found.vectors[most], found, frame)).mean()),
                "chance": mean,
                "high": high,
            }


def acted_on(reader: Reader, base: zp.Model, tuned: zp.Model) -> dict[str, Any]:
    """How many of the 20 tokens on which the whole change acts most are clear sentiment words."""
    found = zp.compare(base, tuned, frames=reader.frames)
    clear = {word for word, score in sentiment_words().items() if abs(score) >= CLEAR}
    shown = base.vocab.size - found.method["hidden"]
    names = [base.vocab.label(i).strip().lower() for i in range(base.vocab.size)]
    sides = {"sees": found.sees, "writes": found.writes}
    return {
        "sees": [shown_text(one.token.token).strip("␣") for one in found.sees],
        "rated": {side: sum(one.token.token.strip().lower() in clear for one in own) for side, own in sides.items()},
        "share": sum(name in clear for name in names) / shown,
        "alarm": list(found.alarm),
    }


def measured(folder: Path) -> dict[str, Any]:
    """Everything about one classifier."""
    story = json.loads((folder / "story.json").read_text(encoding="utf-8"))
    base = zp.open_model(str(fetch_demo(story["base"])))
    tuned = zp.adapt(base, folder) if story["how"] == "lora" else zp.open_model(str(folder))
    reader = Reader(base)
    result = story | {"words": [int(reader.positive.sum()), int((~reader.positive).sum())]}
    return result | {
        "head": list(head(reader, tuned)),
        "changes": list(changes(reader, Comparison(base, tuned))),
        "acted": acted_on(reader, base, tuned),
    }


def heads_table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """A line for each classifier and frame."""
    yield "| classifier | seed | accuracy | frame | AUC | random (95%) | of rated words among 20 + 20, right sign |"
    yield "|---|---:|---:|---|---:|---:|---:|"
    for row in rows:
        for one in row["head"]:
            name = f"{row['base']}, {row['how']} | {row['seed']} | {row['accuracy']:.3f}"
            right = f"{one['right']} of {one['rated']}"
            yield f"| {name} | {one['frame']} | {one['auc']:.2f} | {one['high']:.2f} | {right} |"


def acted_table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """A line for each classifier whose blocks changed."""
    yield "| classifier | seed | acts most where it sees | sentiment words among 20: sees | writes | by chance |"
    yield "|---|---:|---|---:|---:|---:|"
    for row in rows:
        one = row["acted"]
        if one["sees"]:
            words = " ".join(f"`{word}`" for word in one["sees"][:10])
            counts = f"{one['rated']['sees']} | {one['rated']['writes']} | {20 * one['share']:.1f}"
            yield f"| {row['base']}, {row['how']} | {row['seed']} | {words} | {counts} |"


def changes_table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """A line for each classifier, role and third of the layers."""
    yield (
        "| classifier | seed | role | layers | leading direction of the change | of the matrix before | "
        "change of the 100 neurons changed most | the same neurons before | random (95%) |"
    )
    yield "|---|---:|---|---|---:|---:|---:|---:|---:|"
    for row in rows:
        for role in dict.fromkeys(one["role"] for one in row["changes"]):
            every = [one for one in row["changes"] if one["role"] == role]
            size = -(-len(every) // 3)
            for start in range(0, len(every), size):
                part = every[start : start + size]
                cells = [
                    f"{sum(one[key] for one in part) / len(part):.2f}"
                    for key in ("direction", "before", "neurons", "same", "chance", "high")
                ]
                name = f"{row['base']}, {row['how']} | {row['seed']} | {role}"
                span = f"{part[0]['layer']}–{part[-1]['layer']}"
                yield f"| {name} | {span} | {' | '.join(cells[:4])} | {cells[4]} ({cells[5]}) |"


def main(folder: Path) -> None:
    """Measure what is there, and write the tables."""
    rows = []
    for one in sorted(folder.iterdir()):
        if (one / "story.json").is_file():
            rows.append(measured(one))
            print(json.dumps(rows[-1]), flush=True)
    if not rows:
        raise SystemExit(f"{folder} has no classifiers; reproduce/classifiers.py makes them")
    head_line = f"Measured {datetime.now(UTC):%Y-%m-%d} on {os.cpu_count()} cores ({platform.machine()}).\n"
    write(
        {
            "heads": [head_line, *heads_table(rows)],
            "values": [head_line, *changes_table(rows)],
            "acted": [head_line, *acted_table(rows)],
        }
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    main(parser.parse_args().folder)
