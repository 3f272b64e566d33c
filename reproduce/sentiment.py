"""A test whether a sentiment classifier's head, and the training changes of its values, read as sentiment words.

    python reproduce/sentiment.py FOLDER          # FOLDER/* from reproduce/classifiers.py; some minutes

The measure uses the words of the VADER lexicon that are one token, with |score| ≥ 1: the probability that a positive
word stands above a negative one in a list (AUC, 0.5 by chance). For directions whose sign is arbitrary it is the larger
of AUC and 1 − AUC, and random directions, read through the same rows, give its null distribution. The results go to the
tables of docs/audit.md.
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
from alignment import ROOT, between
from reviews import sentiment_words
from zeropass.arch.frame_names import space_of
from zeropass.arch.roles import OUTSIDE
from zeropass.checkpoints.demo import fetch_demo
from zeropass.diff.changes import Comparison, leading
from zeropass.model.frames import Frames
from zeropass.model.vectors import VectorSet, vector_set
from zeropass.tokens.shown import shown_text

RANDOM, NEURONS, BEST = 1000, 100, 20
CLEAR = 1.0


def words_of(model: zp.Model) -> tuple[Tensor, Tensor]:
    """Return the ids of the lexicon's clear words that are one token, and whether each is positive."""
    piece = (lambda word: word) if model.family.name == "bert" else (lambda word: f" {word}")
    ids = {model.vocab.label(i): i for i in range(model.dims.vocab)}
    positive_by_id = {
        ids[piece(word)]: score > 0
        for word, score in sentiment_words().items()
        if abs(score) >= CLEAR and piece(word) in ids
    }
    return torch.tensor(list(positive_by_id)), torch.tensor(list(positive_by_id.values()))


def auc(scores: Tensor, positive: Tensor) -> Tensor:
    """Return the AUC of each row of (n, words) scores: P(a positive word stands above a negative one)."""
    ranks = scores.argsort(dim=1).argsort(dim=1).double() + 1
    pos, neg = int(positive.sum()), int((~positive).sum())
    return (ranks[:, positive].sum(1) - pos * (pos + 1) / 2) / (pos * neg)


def unsigned(values: Tensor) -> Tensor:
    """Return the larger of a value and one minus it."""
    return torch.maximum(values, 1 - values)


class Reader:
    """The scores of the lexicon's words in the base's frames."""

    def __init__(self, base: zp.Model) -> None:
        self.frames = Frames(base)
        self.ids, self.positive = words_of(base)

    def auc(self, vectors: Tensor, source: VectorSet, frame: str) -> Tensor:
        """Return the AUC of each of (n, d) vectors of a set."""
        folded = self.frames.fold(vectors, frame, source.side, source.norm, source.layer)
        rows = self.frames.rows(space_of(frame, source.side, source.reads_at)).matrix
        return auc(folded @ rows[self.ids].T, self.positive)

    def null(self, source: VectorSet, frame: str) -> tuple[float, float]:
        """Return the mean and the 95% quantile of the unsigned AUC of random directions."""
        directions = torch.randn(RANDOM, source.vectors.shape[1], generator=torch.Generator().manual_seed(0))
        values = unsigned(self.auc(directions, source, frame))
        return float(values.mean()), float(values.quantile(0.95))


def head(reader: Reader, tuned: zp.Model) -> Iterator[dict[str, Any]]:
    """Yield the AUC, and the words at both ends, of the classifier's row for positive minus the mean of both rows."""
    source = vector_set(tuned, OUTSIDE, "classifier")
    lens = zp.Lens.over(reader.frames.of(tuned))
    lexicon = sentiment_words()
    for frame in ("token", "output", "paper"):
        mean, high = reader.null(source, frame)
        record = lens.explain("classifier.1", frame=frame, tokens="words", k=BEST)[0]
        signs = [
            (lexicon.get(entry.token.strip().lower()), sign)
            for pole, sign in ((record.top, 1), (record.bottom, -1))
            for entry in pole
        ]
        rated = [(score, sign) for score, sign in signs if score is not None]
        yield {
            "frame": frame,
            "auc": float(reader.auc(source.vectors[1:2], source, frame)[0]),
            "chance": mean,
            "high": high,
            "rated": len(rated),
            "right": sum(score * sign > 0 for score, sign in rated),
            "top": [entry.token.strip() for entry in record.top[:10]],
            "bottom": [entry.token.strip() for entry in record.bottom[:10]],
        }


def changes(reader: Reader, pair: Comparison) -> Iterator[dict[str, Any]]:
    """Yield, by layer, the sentiment of what training added to keys (or ups) and values."""
    reading_role = "key" if "key" in pair.base.family.ff_roles else "up"
    for role, frame in ((reading_role, "token"), ("value", "output")):
        for layer in range(pair.base.dims.layers):
            source = vector_set(pair.base, layer, role)
            change = pair.change(role, layer)
            if change.rounding or not change.norm:
                continue
            directions, _ = leading(change, 1)
            most_changed = change.dense.norm(dim=1).topk(NEURONS).indices
            original, _ = leading(replace(change, added=source.vectors), 1)
            mean, high = reader.null(source, frame)
            yield {
                "role": role,
                "layer": layer,
                "direction": float(unsigned(reader.auc(directions.right.T, source, frame))[0]),
                "before": float(unsigned(reader.auc(original.right.T, source, frame))[0]),
                "neurons": float(unsigned(reader.auc(change.dense[most_changed], source, frame)).mean()),
                "same": float(unsigned(reader.auc(source.vectors[most_changed], source, frame)).mean()),
                "chance": mean,
                "high": high,
            }


def acted_on(reader: Reader, base: zp.Model, tuned: zp.Model) -> dict[str, Any]:
    """Count the clear sentiment words among the 20 tokens on which the whole change acts most."""
    comparison = zp.compare(base, tuned, frames=reader.frames)
    clear_words = {word for word, score in sentiment_words().items() if abs(score) >= CLEAR}
    shown = base.vocab.size - comparison.method["hidden"]
    names = [base.vocab.label(i).strip().lower() for i in range(base.vocab.size)]
    sides = {"sees": comparison.sees, "writes": comparison.writes}
    return {
        "sees": [shown_text(standout.token.token).strip("␣") for standout in comparison.sees],
        "rated": {
            side: sum(entry.token.token.strip().lower() in clear_words for entry in standouts)
            for side, standouts in sides.items()
        },
        "share": sum(name in clear_words for name in names) / shown,
        "answer": comparison.finding.answer,
    }


def measured(folder: Path) -> dict[str, Any]:
    """Return all measurements of a classifier."""
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
    """Yield a line for each classifier and frame."""
    yield "| classifier | seed | accuracy | frame | AUC | random (95%) | of rated words among 20 + 20, right sign |"
    yield "|---|---:|---:|---|---:|---:|---:|"
    for row in rows:
        for result in row["head"]:
            name = f"{row['base']}, {row['how']} | {row['seed']} | {row['accuracy']:.3f}"
            right = f"{result['right']} of {result['rated']}"
            yield f"| {name} | {result['frame']} | {result['auc']:.2f} | {result['high']:.2f} | {right} |"


def acted_table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield a line for each classifier whose blocks changed."""
    yield "| classifier | seed | acts most where it sees | sentiment words among 20: sees | writes | by chance |"
    yield "|---|---:|---|---:|---:|---:|"
    for row in rows:
        result = row["acted"]
        if result["sees"]:
            words = " ".join(f"`{word}`" for word in result["sees"][:10])
            counts = f"{result['rated']['sees']} | {result['rated']['writes']} | {20 * result['share']:.1f}"
            yield f"| {row['base']}, {row['how']} | {row['seed']} | {words} | {counts} |"


def changes_table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield a line for each classifier, role and third of the layers."""
    yield (
        "| classifier | seed | role | layers | leading direction of the change | of the matrix before | "
        "change of the 100 neurons changed most | the same neurons before | random (95%) |"
    )
    yield "|---|---:|---|---|---:|---:|---:|---:|---:|"
    for row in rows:
        for role in dict.fromkeys(change["role"] for change in row["changes"]):
            changes_of_role = [change for change in row["changes"] if change["role"] == role]
            size = -(-len(changes_of_role) // 3)
            for start in range(0, len(changes_of_role), size):
                third = changes_of_role[start : start + size]
                cells = [
                    f"{sum(change[key] for change in third) / len(third):.2f}"
                    for key in ("direction", "before", "neurons", "same", "chance", "high")
                ]
                name = f"{row['base']}, {row['how']} | {row['seed']} | {role}"
                span = f"{third[0]['layer']}–{third[-1]['layer']}"
                yield f"| {name} | {span} | {' | '.join(cells[:4])} | {cells[4]} ({cells[5]}) |"


def main(folder: Path) -> None:
    """Measure the classifiers that are there, and write the tables."""
    rows = []
    for path in sorted(folder.iterdir()):
        if (path / "story.json").is_file():
            rows.append(measured(path))
            print(json.dumps(rows[-1]), flush=True)
    if not rows:
        raise SystemExit(f"{folder} has no classifiers; reproduce/classifiers.py makes them")
    head_line = f"Measured {datetime.now(UTC):%Y-%m-%d} on {os.cpu_count()} cores ({platform.machine()}).\n"
    page = ROOT / "docs" / "audit.md"
    text = page.read_text(encoding="utf-8")
    for mark, table in (("heads", heads_table), ("values", changes_table), ("acted", acted_table)):
        text = between(text, mark, "\n".join([head_line, *table(rows)]) + "\n")
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    main(parser.parse_args().folder)
