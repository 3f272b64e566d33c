"""The accuracy of stitched classifiers, compared with all its possible explanations, for docs/stitching.md.

    python reproduce/stitching.py OUT        # from the classifiers of tops.py in OUT/tops; `make stitching` does both

For each pair of models and each tuning seed, on snippets that neither the classifier nor the choice has seen: the
accuracy over how many layers of B are kept, next to that of the paper's kernel, shuffled tokens, a random map, no map
at all, a seam fitted on the states of running text, and linear probes on B. Each result is saved in OUT/measured, so a
stopped run continues.
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
"""Pairs of a classifier and the model that it is stitched onto."""

SMALL = ("first", "second", "wide")
TRANSPLANTED = ("first", "wide", "minilm-l6", "minilm-l3")
"""The classifiers that are transplanted. A DistilBERT is not: its pooler has twice the units of MiniLM's."""

HALF = 5
"""The number of seeds of MiniLM for which the norms at the seam are varied."""

FEW = 3
"""The number of seeds of MiniLM that are transplanted: a minute each, most of it the alignment."""

LABELS = (10, 100, 1000)


def sizes(first: str) -> tuple[int, int]:
    """Return the numbers of snippets to choose with and to test on: larger models get fewer."""
    if first in SMALL:
        return 200, 400
    return (60, 120) if first.startswith("distil") else (80, 150)


def snippets(first: str, seed: int) -> tuple[list[str], Labelled]:
    """Return texts to choose with and labelled texts to test on, drawn by seed from the half that is not trained on."""
    choosing, testing = sizes(first)
    _, held = halves()
    drawn = random.Random(f"stitching {seed}").sample(held, choosing + testing)
    return [text for text, _ in drawn[:choosing]], drawn[choosing:]


def measured(out: Path, first: str, onto: str, seed: int) -> None:
    """Measure a pair of models with a tuning seed, and save the results as JSON."""
    torch.set_num_threads(1)
    began = time.process_time()
    path = out / "measured" / f"{first}-{onto}-{seed}.json"
    classifier, other = zp.open_model(str(out / "tops" / f"{first}-{seed}")), base_of(onto)
    texts, tests = snippets(first, seed)
    translations = bridge(other, classifier)
    choosing = trial_of(classifier, translations, texts)
    testing = trial_of(classifier, translations, [text for text, _ in tests])
    bench = Bench(choosing, testing, texts, torch.tensor([label for _, label in tests]), RECIPES[first].top, seed)
    result: dict[str, Any] = {"classifier": first, "onto": onto, "seed": seed, "own": bench.right(testing.own.logits)}
    result["curve"] = {name: [maker(keep) for keep in bench.keeps] for name, maker in bench.makers().items()}
    result["traps"] = bench.traps()
    result |= bench.choice(first in SMALL)
    result["labels"] = probes(onto, seed, bench)
    if first in TRANSPLANTED and (first in SMALL or seed < FEW):
        transplanted, record = zp.transplant(
            classifier, other, base_of(first), options=zp.StitchOptions(texts=texts, seed=seed)
        )
        logits = answers(transplanted, other, [text for text, _ in tests]).logits
        result["transplant"] = asdict(record.verdict) | {
            "accuracy": bench.right(logits),
            "strength": record.choice.strength,
            "layers": record.layers,
        }
    result["seconds"] = round(time.process_time() - began)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result) + "\n", encoding="utf-8")
    print(first, onto, seed, {k: result[k] for k in ("own", "seconds")}, result["chosen"]["accuracy"], flush=True)


def quiet(_what: str, _done: int, _total: int) -> None:
    """Show no progress."""


class Bench:
    """A classifier, a model to stitch it onto, texts to choose with, and texts to test on."""

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
        """Return the share of right answers to the test."""
        return round(float((logits.argmax(1) == self.labels).float().mean()), 4)

    def of(self, choice: Try, translation: Translation, level: bool = True) -> float:
        """Return the accuracy of a translation at a seam, levelled by the texts to choose with."""
        shift = self.choosing.own.level(self.choosing.logits(choice, translation)) if level else 0.0
        return self.right(self.testing.logits(choice, translation) + shift)

    def ours(self, choice: Try) -> float:
        """Return the accuracy of the stitch that zeropass makes at a seam; it is cached for later calls."""
        choice = Try(choice.keep, choice.take, choice.kernel, choice.frame)
        if choice not in self._ours:
            self._ours[choice] = self.of(choice, self.choosing.fitted(choice))
        return self._ours[choice]

    def at(self, keep: int, kernel: str = "orthogonal", frame: str = "both") -> Try:
        """Return the seam above ``keep`` blocks."""
        return Try(keep, self.take, kernel, frame)

    def makers(self) -> dict[str, Callable[[int], float]]:
        """Return the curves of the figure, as functions of the number of layers kept."""
        shuffled = self.bridge.shuffled(self.seed)

        def ours(keep: int) -> float:
            return self.ours(self.at(keep))

        def paper(keep: int) -> float:
            translation = self.bridge.translation("pinv", "paper")
            return self.right(self.testing.run(keep, self.take, translation.states))

        def null(keep: int) -> float:
            return self.of(self.at(keep), self.choosing.fitted(self.at(keep), shuffled))

        return {"ours": ours, "paper": paper, "shuffled": null}

    def traps(self) -> dict[str, float]:
        """Measure the stitch at the like depth, with one step changed at a time, and with maps that ignore tokens."""
        choice, keep = self.at(self.like), self.like
        translation = self.choosing.fitted(choice)
        plain = self.bridge.translation(choice.kernel, choice.frame)
        accuracies = {"ours": self.ours(choice), "not levelled": self.of(choice, translation, level=False)}
        random_map = self.bridge.translation("random", "both", self.seed)
        accuracies["random map"] = self.of(choice, self.choosing.lengthened(choice, random_map))
        if self.onto.dims.d == self.classifier.dims.d:
            identity = self.bridge.translation("identity", "paper")
            accuracies["no map"] = self.of(choice, self.choosing.lengthened(choice, identity))
        if self.onto.vocab.pieces == self.classifier.vocab.pieces:
            states = self.choosing.lengthened(choice, from_states(self))
            accuracies["fitted on states"] = self.of(choice, states)
        if self.classifier.family.norm_place == "post" and self.seed < HALF:
            accuracies["no norm at the seam"] = self.levelled(keep, translation.states)
            accuracies["embedded again"] = self.levelled(keep, embedded_again(self.classifier, translation))
        elif self.classifier.family.norm_place == "pre":
            accuracies["no scale"] = self.of(choice, plain)
            top = self.onto.dims.layers
            norm = self.onto.vector("final_norm")
            accuracies["all layers kept"] = self.ours(self.at(top))
            accuracies["all layers kept, normed state"] = self.levelled(
                top, lambda x: plain.states(apply_norm(x, "rms", self.onto.dims.eps, norm, None))
            )
        return accuracies

    def levelled(self, keep: int, into: Callable[[Tensor], Tensor]) -> float:
        """Return the accuracy with states passed through ``into`` at the seam."""
        shift = self.choosing.own.level(self.choosing.run(keep, self.take, into))
        return self.right(self.testing.run(keep, self.take, into) + shift)

    def choice(self, with_tries: bool) -> dict[str, Any]:
        """Measure the seam that is chosen without labels, its verdict, and its own shuffled control."""
        candidates = seams(self.classifier, self.onto, None, None, self.classifier.dims.layers - self.take)
        tries = chosen(self.choosing, candidates, None, None, quiet)
        best = tries[0]
        verdict = self.choosing.verdict(best, 100 * self.seed, quiet)
        shuffled = self.bridge.shuffled(1000 + self.seed)
        known_chances = self.choosing.own.chances(self.right(self.testing.own.logits))
        result = {
            "chosen": asdict(best)
            | asdict(verdict)
            | {
                "accuracy": self.ours(best),
                "shuffled": self.of(best, self.choosing.fitted(best, shuffled)),
                "expected_known": expected(self.choosing.answered(best), known_chances),
            }
        }
        if with_tries:
            result["tries"] = [  # type: ignore[assignment]
                asdict(seam) | {"accuracy": self.ours(seam)} for seam in tries
            ]
        return result


def embedded_again(classifier: zp.Model, translation: Translation) -> Callable[[Tensor], Tensor]:
    """Return what ``inputs_embeds`` does to a state: it adds positions and a type, and applies the first norm again."""
    positions, token_type = classifier.matrix("positions"), classifier.matrix("types", 0, 0, 1)
    gain, shift = classifier.vector("embed_norm"), classifier.vector("embed_norm_bias")

    def into(x: Tensor) -> Tensor:
        x = translation.states(x) + positions[: x.shape[1]] + token_type
        return apply_norm(x, "layer", classifier.dims.eps, gain, shift)

    return into


def from_states(bench: Bench) -> Translation:
    """Fit least squares between the states of running text, without any vocabulary: the limit of a linear seam."""
    above = Lower(load_lower(bench.classifier), bench.classifier.family)
    depth = bench.classifier.dims.layers - bench.take
    pairs = zip(bench.choosing.texts, depths(above, bench.classifier, bench.texts), strict=True)
    x, y = (torch.cat(parts) for parts in zip(*aligned(pairs, bench.like, depth), strict=True))
    return from_anchors(x, y, "ridge")


def aligned(pairs: Iterator[tuple[Batch, Batch]], keep: int, depth: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the states of the same tokens in both models."""
    for (_, below, mask), (_, above, _) in pairs:
        yield below[keep][mask.bool()], above[depth][mask.bool()]


def pooled(batches: Iterable[Batch], count: int) -> Tensor:
    """Return the mean states at the top of B, (texts, d)."""
    rows = [
        (places, (states[max(states)] * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))
        for places, states, mask in batches
    ]
    means = torch.empty(count, rows[0][1].shape[1])
    for places, part in rows:
        means[places] = part
    return means


@cache
def features(onto: str) -> tuple[Tensor, Tensor]:
    """Return the mean states at the top of B for a thousand snippets to train on, and their labels."""
    model = base_of(onto)
    train = halves()[0][: max(LABELS)]
    states = depths(Lower(load_lower(model), model.family), model, [text for text, _ in train])
    return pooled(states, len(train)), torch.tensor([float(label) for _, label in train])


def probes(onto: str, seed: int, bench: Bench) -> dict[str, float]:
    """Return the accuracy of linear probes on B, trained on labels or on the classifier's answers to texts."""
    x, y = features(onto)
    pseudo_labels = bench.choosing.own.logits.argmax(1).float()
    test = pooled(bench.testing.texts, len(bench.labels)), bench.labels.float()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    accuracies = {str(n): probe(x[order[:n]], y[order[:n]], *test) for n in LABELS}
    accuracies["answers"] = probe(pooled(bench.choosing.texts, len(pseudo_labels)), pseudo_labels, *test)
    return accuracies


def probe(x: Tensor, y: Tensor, test: Tensor, labels: Tensor) -> float:
    """Return the accuracy of a logistic regression on standardised states."""
    mean, std = x.mean(0), x.std(0) + 1e-6
    weight, bias = logistic((x - mean) / std, y, iterations=100)
    return round(float((((test - mean) / std @ weight + bias > 0).float() == labels).float().mean()), 4)


def main(out: Path, seeds: int, workers: int) -> None:
    """Measure all missing pairs and seeds, with as many workers as there are cores."""
    names = [(first, onto, seed) for seed in range(seeds) for first, onto in PAIRS]
    missing = [
        (out, *name)
        for name in names
        if not (out / "measured" / "{}-{}-{}.json".format(*name)).is_file()
        and (out / "tops" / f"{name[0]}-{name[2]}" / "story.json").is_file()
    ]
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        pool.starmap(measured, missing, chunksize=1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    main(options.out, options.seeds, options.workers)
