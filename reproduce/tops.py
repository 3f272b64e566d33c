"""The sentiment classifiers of docs/stitching.md: five models with only their upper blocks and a head trained.

    python reproduce/tops.py OUT            # ten seeds of each, in OUT/NAME-SEED: half an hour on two cores
    python reproduce/tops.py models/tunes/reviews --example     # the LoRA on models/first that the README stitches

Each seed draws its own snippets, their order and the head. The lower blocks stay as they were pretrained, as in the
paper; `zeropass stitch --base` detects that by itself.
"""

import argparse
import json
import multiprocessing
import os
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, TaskType, get_peft_model

import zeropass as zp
from classifiers import accuracy, fitted, with_head
from onnx_models import model_folder
from reviews import halves
from tunes import LINEAR, save_tuned
from zeropass.checkpoints.demo import fetch_demo

ROOT = Path(__file__).parent.parent
SEEDS, TESTED, EXAMPLES = 10, 100, 200


@dataclass(frozen=True)
class Recipe:
    """The training of a classifier: the number of trained blocks, of snippets and of epochs, and the rate."""

    top: int
    snippets: int
    epochs: int
    rate: float


RECIPES = {
    "first": Recipe(top=2, snippets=4500, epochs=2, rate=1e-3),
    "wide": Recipe(top=3, snippets=3000, epochs=2, rate=1e-3),
    "minilm-l6": Recipe(top=3, snippets=1500, epochs=1, rate=1e-4),
    "minilm-l3": Recipe(top=2, snippets=2000, epochs=1, rate=1e-4),
    "distilbert-tagger": Recipe(top=3, snippets=1500, epochs=1, rate=2e-4),
}


def base_of(name: str) -> zp.Model:
    """Open a model that was only pretrained (the tagger: tuned for another task)."""
    if name in ("first", "second", "wide"):
        return zp.open_model(str(ROOT / "models" / name))
    return zp.open_model(str(fetch_demo(name) if name == "minilm-l6" else model_folder(name)))


def only_top(model: Any, top: int) -> None:
    """Let gradients reach only the last blocks, the layers above them, and the head."""
    base = model.base_model
    blocks = base.encoder.layer if hasattr(base, "encoder") else base.layers
    above = [base.pooler] if hasattr(base, "encoder") else [base.norm]
    for weight in base.parameters():
        weight.requires_grad_(False)
    for module in (*blocks[len(blocks) - top :], *above):
        for weight in module.parameters():
            weight.requires_grad_(True)


def make(out: Path, name: str, seed: int) -> None:
    """Train one classifier and write it with its accuracy on the first snippets of the other half."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    began, base, recipe = time.process_time(), base_of(name), RECIPES[name]
    train, test = halves()
    train = random.Random(f"{name} {seed}").sample(train, min(recipe.snippets, len(train)))
    model = with_head(base)
    only_top(model, recipe.top)
    fitted(model, base, train, recipe.epochs, recipe.rate, seed, alike=16)
    share = accuracy(model, base, sorted(test[:TESTED], key=lambda snippet: len(snippet[0])))
    save_tuned(out, model, base.vocab, name)
    story = {"base": name, "seed": seed, "top": recipe.top, "snippets": len(train), "accuracy": round(share, 4)}
    story |= {"seconds": round(time.process_time() - began)}
    (out / "story.json").write_text(json.dumps(story) + "\n", encoding="utf-8")
    print(json.dumps(story), flush=True)


def example(out: Path) -> None:
    """Write a LoRA of rank 8 on the upper blocks of models/first, with its head, and snippets without labels."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    base, (train, test) = base_of("first"), halves()
    upper = list(range(base.dims.layers - RECIPES["first"].top, base.dims.layers))
    lora = LoraConfig(task_type=TaskType.SEQ_CLS, r=8, lora_alpha=16, target_modules=LINEAR, layers_to_transform=upper)
    model = get_peft_model(with_head(base), lora)
    fitted(model, base, train, 3, 3e-3, 0, alike=16)
    share = accuracy(model, base, test[:-EXAMPLES])
    save_tuned(out, model, base.vocab, "models/first")
    texts = "\n".join(text for text, _ in test[-EXAMPLES:])
    (out / "texts.txt").write_text(texts + "\n", encoding="utf-8")
    story = {"kind": "sentiment", "base": "models/first", "how": "lora", "snippets": len(train)}
    story |= {"accuracy": round(share, 4), "texts": "movie-review snippets of vaderSentiment 3.3.2 (MIT), held out"}
    (out / "story.json").write_text(json.dumps(story) + "\n", encoding="utf-8")


def main(out: Path, names: list[str], seeds: int, workers: int) -> None:
    """Train the missing classifiers, with as many workers as there are cores."""
    missing = [(out / f"{name}-{seed}", name, seed) for seed in range(seeds) for name in names]
    missing = [task for task in missing if not (task[0] / "story.json").is_file()]
    for name in {name for _, name, _ in missing}:
        base_of(name)  # fetched once, not by every worker
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        pool.starmap(make, missing, chunksize=1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--names", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--example", action="store_true")
    options = parser.parse_args()
    if options.example:
        example(options.out)
        raise SystemExit
    main(options.out, options.names, options.seeds, options.workers)
