"""Ablate the heads that `zeropass relation` names in the running model, beside as many others of nearby layers.

A prompt shows some pairs of a set, one a line, and the left word of another; the right word is to follow. Reported are
the share of prompts after which the right word is the most probable of all right words of the set, and its mean log
probability: as the model is, without the named heads (what they write is left out), and without as many other heads of
nearby layers. The table is in docs/relations.md::

    zeropass relation smollm2-135m --json > relations.json
    python reproduce/relations.py smollm2-135m relations.json --sets capital,plural
"""

import argparse
import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

import zeropass as zp
from zeropass.model.blocks import caches, embedded
from zeropass.model.running import Running
from zeropass.relations.pair_files import shipped_sets
from zeropass.relations.token_pairs import looked_up

AWAY = 3
"""The most layers between a named head and the one that is ablated in its place."""

Head = tuple[int, int]
"""A layer and a head."""

Outcome = tuple[float, float]
"""The share of prompts that are answered right, and the mean log probability of the right word."""


def prompts(model: zp.Model, name: str, count: int, shots: int, seed: int) -> tuple[list[list[int]], list[int]]:
    """Return prompts as token ids, and the first token of the right word of each.

    Args:
        model: The model.
        name: The name of the set.
        count: The most prompts.
        shots: The pairs that each shows.
        seed: The seed of the pairs.
    """
    draw, vocab = random.Random(seed), model.vocab
    pairs = list(shipped_sets()[name].pairs)
    usable = [pair for pair in pairs if looked_up_one(model, name, pair) is not None]
    asked = draw.sample(usable, min(count, len(usable)))
    texts = []
    for left, _ in asked:
        others = draw.sample([pair for pair in usable if left not in pair], shots)
        texts.append("".join(f"{a}: {b}\n" for a, b in others) + f"{left}:")
    return [vocab.encode(text) for text in texts], [looked_up_one(model, name, pair) or 0 for pair in asked]


def looked_up_one(model: zp.Model, name: str, pair: tuple[str, str]) -> int | None:
    """Return the first token of a pair's right word as `zeropass relation` sees it; None for a pair that it leaves."""
    shown = model.vocab.mask("default")
    token_pairs = looked_up(type(shipped_sets()[name])(name, "", "", (pair,)), model.vocab, shown).pairs
    return token_pairs[0][1] if token_pairs else None


@torch.no_grad()
def outcome(running: Running, asked: tuple[list[list[int]], list[int]], ablated: Iterable[Head] = ()) -> Outcome:
    """Return how well prompts are answered without some heads.

    Args:
        running: The running model.
        asked: The prompts, and the right token of each.
        ablated: The heads whose output is left out.
    """
    kept = {}
    for layer, head in ablated:
        block = running.blocks[layer]
        kept.setdefault(layer, block.matrix("o"))
        width = block.dims.width("o")
        changed = block.matrix("o").clone()
        changed[head * width : (head + 1) * width] = 0
        block._matrices["o"] = changed
    try:
        probabilities = torch.stack([_last(running, ids) for ids in asked[0]]).log_softmax(-1)
    finally:
        for layer, matrix in kept.items():
            running.blocks[layer]._matrices["o"] = matrix
    rights = torch.tensor(asked[1])
    among = rights.unique()
    best = among[probabilities[:, among].argmax(1)]
    return float((best == rights).double().mean()), float(probabilities[torch.arange(len(rights)), rights].mean())


def _last(running: Running, ids: Sequence[int]) -> Tensor:
    """Return the logits behind a prompt."""
    tokens = torch.tensor([list(ids)])
    x = embedded(running.model, tokens)
    for block, cache in zip(running.blocks, caches(running.model), strict=True):
        x = block(x, cache, ids=tokens)
    return running.logits(x[0, -1])


def named_heads(relations: dict[str, Any], name: str, poles: str) -> list[Head]:
    """Return the heads named at some poles for a set, from what `zeropass relation --json` printed."""
    places = [zp.parse(head["address"]) for head in relations["named"][name] if head["pole"] in poles]
    return [(place.layer, place.head) for place in places]


def others(model: zp.Model, heads: Sequence[Head], named: Sequence[Head], draw: random.Random) -> list[Head]:
    """Return as many heads that are not named, each from at most `AWAY` layers away from the head it stands for."""
    drawn: list[Head] = []
    for layer, _ in heads:
        layers = range(max(layer - AWAY, 0), min(layer + AWAY + 1, model.dims.layers))
        every = [(at, head) for at in layers for head in range(model.dims.at(at).heads)]
        drawn.append(draw.choice([head for head in every if head not in named and head not in drawn]))
    return drawn


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("relations", type=Path)
    parser.add_argument("--sets", required=True)
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--shots", type=int, default=4)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--most", type=int, default=5, help="The named heads of a set that are ablated, best first.")
    arguments = parser.parse_args()
    running = Running(zp.open_model(arguments.model))
    relations = json.loads(arguments.relations.read_text(encoding="utf-8"))
    print("| relation | heads | right: model | without them | without others | log p: model | without | others |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in arguments.sets.split(","):
        heads, named = named_heads(relations, name, "+")[: arguments.most], named_heads(relations, name, "+−")
        asked = prompts(running.model, name, arguments.prompts, arguments.shots, seed=0)
        as_is, without = outcome(running, asked), outcome(running, asked, heads)
        draws = [others(running.model, heads, named, random.Random(seed)) for seed in range(arguments.draws)]
        rest = [outcome(running, asked, drawn) for drawn in draws]
        shares, logs = zip(*rest, strict=True)
        listed = ", ".join(f"L{layer}.attn.{head}" for layer, head in heads)
        print(
            f"| {name} | {listed} | {as_is[0]:.2f} | {without[0]:.2f} | {fmean(shares):.2f} ({min(shares):.2f} to "
            f"{max(shares):.2f}) | {as_is[1]:.2f} | {without[1]:.2f} | {fmean(logs):.2f} ({min(logs):.2f} to "
            f"{max(logs):.2f}) |",
            flush=True,
        )


if __name__ == "__main__":
    main()
