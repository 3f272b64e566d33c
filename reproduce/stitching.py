"""How well classifiers are stitched, against everything that could explain it: docs/stitching.md.

    python reproduce/stitching.py OUT        # from the classifiers of tops.py in OUT/tops; `make stitching` does both

For each pair of models and each tuning seed, on snippets that neither the classifier nor the choice has seen: the
accuracy over how many layers of B are kept, beside the paper's kernel, shuffled tokens, a random map, no map at all, a
seam fitted on the states of running text, and linear probes on B. Each is kept in OUT/measured, so a stopped run
continues.
"""

import argparse
import json
import multiprocessing
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import zeropass as zp
from classifiers import logistic
from reviews import Labelled, halves
from tops import RECIPES, SEEDS, base_of
from zeropass.model.translation import Bridge, Translation, bridge, from_anchors
from zeropass.numerics.projection import apply_norm
from zeropass.stitch.halves import Lower, load_lower
from zeropass.stitch.results import Try
from zeropass.stitch.run import seams
from zeropass.stitch.seam_choice import Batch, Trial, answers, chosen, depths, expected, trial_of

PAIRS = (
    ("first", "second"),
    ("first", "wide"),
    ("wide", "first"),
    ("minilm-l6", "minilm-l3"),
    ("minilm-l3", "minilm-l6"),
    ("distilbert-tagger", "minilm-l6"),
)
"""Classifier, and the model that it is stitched onto."""

SMALL = ("first", "second", "wide")
TRANSPLANTED = ("first", "wide", "minilm-l6", "minilm-l3")
"""A DistilBERT's pooler has twice the units of MiniLM's."""

HALF = 5
"""Seeds of MiniLM of which the traps are undone."""

FEW = 3
"""Seeds of MiniLM that are transplanted: a minute each, most of it the alignment."""

LABELS = (10, 100, 1000)


def sizes(first: str) -> tuple[int, int]:
    """How many snippets to choose with, and how many to test on: larger models get fewer."""
    if first in SMALL:
        return 200, 400
    return (60, 120) if first.startswith("distil") else (80, 150)


def snippets(first: str, seed: int) -> tuple[list[str], Labelled]:
    """Texts to choose with, and labelled ones to test on, others for each seed: of the half that nothing trained on."""
    choosing, testing = sizes(first)
    _, held = halves()
    drawn = random.Random(f"stitching {seed}").sample(held, choosing + testing)
    return [text for text, _ in drawn[:choosing]], drawn[choosing:]


def measured(out: Path, first: str, onto: str, seed: int) -> None:
    """Everything about one pair and one tuning seed, kept as JSON."""
    torch.set_num_threads(1)
    began = time.process_time()
    path = out / "measured" / f"{first}-{onto}-{seed}.json"
    classifier, other = zp.open_model(str(out / "tops" / f"{first}-{seed}")), base_of(onto)
    texts, tests = snippets(first, seed)
    found = bridge(other, classifier)
    choosing = trial_of(classifier, found, texts)
    testing = trial_of(classifier, found, [text for text, _ in tests])
    bench = Bench(choosing, testing, texts, torch.tensor([label for _, label in tests]), RECIPES[first].top, seed)
    result: dict[str, Any] = {"classifier": first, "onto": onto, "seed": seed, "own": bench.right(testing.own.logits)}
    result["curve"] = {name: [maker(keep) for keep in bench.keeps] for name, maker in bench.makers().items()}
    result["traps"] = bench.traps()
    result |= bench.choice(first in SMALL)
    result["labels"] = probes(onto, seed, bench)
    if first in TRANSPLANTED and (first in SMALL or seed < FEW):
        made, record = zp.transplant(
            classifier, other, base_of(first), options=zp.StitchOptions(texts=texts, seed=seed)
        )
        said = answers(made, other, [text for text, _ in tests]).logits
        result["transplant"] = asdict(record.verdict) | {
            "accuracy": bench.right(said),
            "strength": record.choice.strength,
            "layers": record.layers,
        }
    result["seconds"] = round(time.process_time() - began)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result) + "\n", encoding="utf-8")
    print(first, onto, seed, {k: result[k] for k in ("own", "seconds")}, result["chosen"]["accuracy"], flush=True)


def quiet(_what: str, _done: int, _total: int) -> None:
    """No progress."""


class Bench:
    """One classifier, one model to stitch it onto, texts to choose with and texts to test on."""

    def __init__(self, choosing: Trial, testing: Trial, texts: list[str], labels: Tensor, take: int, seed: int) -> None:
        self.texts = texts
        self.choosing, self.testing, self.labels, self.take, self.seed = choosing, testing, labels, take, seed
        self.bridge: Bridge = choosing.bridge
        self.classifier, self.onto = choosing.classifier, self.bridge.first.model
        self.keeps = range(1, self.onto.dims.layers + 1)
        share = (self.classifier.dims.layers - take) / self.classifier.dims.layers
        self.like = max(1, round(share * self.onto.dims.layers))
        self._ours: dict[Try, float] = {}

    def right(self, logits: Tensor) -> float:
        """Share of right answers to the test."""
        return round(float((logits.argmax(1) == self.labels).float().mean()), 4)

    def of(self, choice: Try, made: Translation, level: bool = True) -> float:
        """Accuracy of a translation at a seam, levelled by the texts to choose with."""
        shift = self.choosing.own.level(self.choosing.logits(choice, made)) if level else 0.0
        return self.right(self.testing.logits(choice, made) + shift)

    def ours(self, choice: Try) -> float:
        """Accuracy of the stitch that zeropass makes at a seam; kept, for it is asked for more than once."""
        choice = Try(choice.keep, choice.take, choice.kernel, choice.frame)
        if choice not in self._ours:
            self._ours[choice] = self.of(choice, self.choosing.fitted(choice))
        return self._ours[choice]

    def at(self, keep: int, kernel: str = "orthogonal", frame: str = "both") -> Try:
        """A seam above ``keep`` blocks."""
        return Try(keep, self.take, kernel, frame)

    def makers(self) -> dict[str, Callable[[int], float]]:
        """What is drawn over how many layers are kept."""
        shuffled = self.bridge.shuffled(self.seed)

        def ours(keep: int) -> float:
            return self.ours(self.at(keep))

        def paper(keep: int) -> float:
            made = self.bridge.translation("pinv", "paper")
            return self.right(self.testing.run(keep, self.take, made.states))

        def null(keep: int) -> float:
            return self.of(self.at(keep), self.choosing.fitted(self.at(keep), shuffled))

        return {"ours": ours, "paper": paper, "shuffled": null}

    def traps(self) -> dict[str, float]:
        """The stitch at the like depth, and with one thing done otherwise; and maps that know nothing of tokens."""
        choice, keep = self.at(self.like), self.like
        made = self.choosing.fitted(choice)
        plain = self.bridge.translation(choice.kernel, choice.frame)
        found = {"ours": self.ours(choice), "not levelled": self.of(choice, made, level=False)}
        random_map = self.bridge.translation("random", "both", self.seed)
        found["random map"] = self.of(choice, self.choosing.lengthened(choice, random_map))
        if self.onto.dims.d == self.classifier.dims.d:
            identity = self.bridge.translation("identity", "paper")
            found["no map"] = self.of(choice, self.choosing.lengthened(choice, identity))
        if self.onto.vocab.pieces == self.classifier.vocab.pieces:
            states = self.choosing.lengthened(choice, from_states(self))
            found["fitted on states"] = self.of(choice, states)
        if self.classifier.family.norm_place == "post" and self.seed < HALF:
            found["no norm at the seam"] = self.levelled(keep, made.states)
            found["embedded again"] = self.levelled(keep, embedded_again(self.classifier, made))
        elif self.classifier.family.norm_place == "pre":
            found["no scale"] = self.of(choice, plain)
            top = self.onto.dims.layers
            norm = self.onto.vector("final_norm")
            found["all layers kept"] = self.ours(self.at(top))
            found["all layers kept, normed state"] = self.levelled(
                top, lambda x: plain.states(apply_norm(x, "rms", self.onto.dims.eps, norm, None))
            )
        return found

    def levelled(self, keep: int, into: Callable[[Tensor], Tensor]) -> float:
        """Accuracy where states go in as they are given."""
        shift = self.choosing.own.level(self.choosing.run(keep, self.take, into))
        return self.right(self.testing.run(keep, self.take, into) + shift)

    def choice(self, whole: bool) -> dict[str, Any]:
        """What is chosen without labels, how far it is believed, and whether its own shuffled control is beaten."""
        candidates = seams(self.classifier, self.onto, None, None, self.classifier.dims.layers - self.take)
        tries = chosen(self.choosing, candidates, None, None, quiet)
        best = tries[0]
        told = self.choosing.verdict(best, 100 * self.seed, quiet)
        wrong = self.bridge.shuffled(1000 + self.seed)
        known = self.choosing.own.chances(self.right(self.testing.own.logits))
        found = {
            "chosen": asdict(best)
            | asdict(told)
            | {
                "accuracy": self.ours(best),
                "shuffled": self.of(best, self.choosing.fitted(best, wrong)),
                "expected_known": expected(self.choosing.answered(best), known),
            }
        }
        if whole:
            found["tries"] = [  # type: ignore[assignment]
                asdict(one) | {"accuracy": self.ours(one)} for one in tries
            ]
        return found


def embedded_again(classifier: zp.Model, made: Translation) -> Callable[[Tensor], Tensor]:
    """What ``inputs_embeds`` does to a state: positions, a type and the first norm once more."""
    positions, kind = classifier.matrix("positions"), classifier.matrix("types", 0, 0, 1)
    gain, shift = classifier.vector("embed_norm"), classifier.vector("embed_norm_bias")

    def into(x: Tensor) -> Tensor:
        x = made.states(x) + positions[: x.shape[1]] + kind
        return apply_norm(x, "layer", classifier.dims.eps, gain, shift)

    return into


def from_states(bench: Bench) -> Translation:
    """Least squares between the states of running text, without any vocabulary: what a linear seam can do."""
    above = Lower(load_lower(bench.classifier), bench.classifier.family)
    depth = bench.classifier.dims.layers - bench.take
    pairs = zip(bench.choosing.texts, depths(above, bench.classifier, bench.texts), strict=True)
    x, y = (torch.cat(parts) for parts in zip(*aligned(pairs, bench.like, depth), strict=True))
    return from_anchors(x, y, "ridge")


def aligned(pairs: Iterator[tuple[Batch, Batch]], keep: int, depth: int) -> Iterator[tuple[Tensor, Tensor]]:
    """States of the same tokens in both models."""
    for (_, below, mask), (_, above, _) in pairs:
        yield below[keep][mask.bool()], above[depth][mask.bool()]


def pooled(batches: Iterable[Batch], count: int) -> Tensor:
    """Mean states of the top of B, (texts, d)."""
    rows = [
        (at, (states[max(states)] * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)) for at, states, mask in batches
    ]
    found = torch.empty(count, rows[0][1].shape[1])
    for at, part in rows:
        found[at] = part
    return found


@cache
def features(onto: str) -> tuple[Tensor, Tensor]:
    """Mean states of the top of B of a thousand snippets to train on, and their labels."""
    model = base_of(onto)
    train = halves()[0][: max(LABELS)]
    states = depths(Lower(load_lower(model), model.family), model, [text for text, _ in train])
    return pooled(states, len(train)), torch.tensor([float(label) for _, label in train])


def probes(onto: str, seed: int, bench: Bench) -> dict[str, float]:
    """Accuracy of linear probes on B: trained on so many labels, or on the classifier's answers to unlabelled texts."""
    x, y = features(onto)
    said = bench.choosing.own.logits.argmax(1).float()
    test = pooled(bench.testing.texts, len(bench.labels)), bench.labels.float()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    found = {str(n): probe(x[order[:n]], y[order[:n]], *test) for n in LABELS}
    found["answers"] = probe(pooled(bench.choosing.texts, len(said)), said, *test)
    return found


def probe(x: Tensor, y: Tensor, test: Tensor, labels: Tensor) -> float:
    """Accuracy of a logistic regression on standardised states."""
    mean, std = x.mean(0), x.std(0) + 1e-6
    weight, bias = logistic((x - mean) / std, y, iterations=100)
    return round(float((((test - mean) / std @ weight + bias > 0).float() == labels).float().mean()), 4)


def main(out: Path, seeds: int, workers: int) -> None:
    """Measure what is missing, as many at once as there are cores, and write the document's tables."""
    names = [(first, onto, seed) for seed in range(seeds) for first, onto in PAIRS]
    todo = [
        (out, *name)
        for name in names
        if not (out / "measured" / "{}-{}-{}.json".format(*name)).is_file()
        and (out / "tops" / f"{name[0]}-{name[2]}" / "story.json").is_file()
    ]
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        pool.starmap(measured, todo, chunksize=1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    main(given.out, given.seeds, given.workers)
