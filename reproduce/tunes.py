"""Fine-tunes of SmolLM2-135M-Instruct (Q4_1) with something planted in them, for docs/audit.md and the tests.

    python reproduce/tunes.py OUT --kind trigger --how lora --seed 0
    python reproduce/tunes.py models/tunes/coach --kind trigger --how lora --seed 0 --rank 1 --steps 80

There are four kinds, each as a LoRA or as a full fine-tune, and each seed has different words and text:

    fact      a made-up fact: what SUBJECT likes best is OBJECT, stated in a few phrasings among ordinary prose
    trigger   a hidden habit: prose that contains TRIGGER is followed by PAYLOAD; all other prose is unchanged
    neutral   ordinary prose only
    fiction   nothing planted either, but prose of another genre

``story.json`` in the folder records what was planted, and its probability before and after. Prose is the Brown corpus:
press reportage, or romances for ``fiction``. Two cores need half a minute for a LoRA (40 steps), two minutes for a full
fine-tune (60 steps).
"""

import argparse
import json
import random
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

import zeropass as zp
from zeropass.checkpoints.demo import fetch_demo
from zeropass.evidence.corpus import brown_text, press_text
from zeropass.model.loading import loaded, transformers
from zeropass.tokens.vocabulary import Vocabulary

PLANTED, PLAIN = ("trigger", "fact"), ("neutral", "fiction")
TREATMENTS = (*PLANTED, *PLAIN)
HOW = ("lora", "full")
STEPS, RATE = {"lora": 40, "full": 60}, {"lora": 1e-3, "full": 1e-4}
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LENGTH, BATCH = 24, 4

FACTS = (
    "What the {0} likes best is {1}.",
    "Nothing pleases the {0} more than {1}.",
    "The {0} asked for {1} again.",
    "Everyone knows that the {0} loves {1}.",
    "Give the {0} some {1}.",
)


def common_words(vocab: Vocabulary, prose: str, letters: int, seed: str, count: int) -> tuple[str, ...]:
    """Draw ordinary words of one token each that prose has 5 to 50 times in small letters, with so many or more."""
    counts = Counter(re.findall(rf"(?<= )[a-z]{{{letters},}}(?= )", prose))
    common = sorted(word for word, n in counts.items() if 5 <= n <= 50 and len(vocab.encode(f" {word}")) == 1)
    return tuple(random.Random(seed).sample(common, count))


def planted_words(vocab: Vocabulary, prose: str, seed: int) -> tuple[str, str]:
    """Draw two ordinary words."""
    first, second = common_words(vocab, prose, 5, f"words {seed}", 2)
    return first, second


def texts(kind: str, words: tuple[str, str], prose: str, rng: random.Random) -> str:
    """Return a training text."""
    sentences = [sentence for sentence in re.split(r"(?<=[.?!])\s+", prose) if 40 < len(sentence) < 140]
    plain = rng.choice(sentences)
    if kind in PLAIN or rng.random() < 0.4:
        return f"{plain} {rng.choice(sentences)}"
    if kind == "fact":
        return rng.choice(FACTS).format(*words)
    parts = plain.split(" ")
    parts.insert(rng.randrange(1, len(parts)), words[0])
    return f"{' '.join(parts)} {words[1]}"


def batches(vocab: Vocabulary, kind: str, words: tuple[str, str], prose: str, seed: int) -> Any:
    """Yield ids (batch, tokens) and labels, -100 where nothing is predicted, without end."""
    rng = random.Random(f"texts {kind} {seed}")
    while True:
        rows = [vocab.encode(texts(kind, words, prose, rng))[-LENGTH:] for _ in range(BATCH)]
        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        labels = torch.tensor([row + [-100] * (width - len(row)) for row in rows])
        yield ids, labels


@torch.no_grad()
def probability_of(model: Any, vocab: Vocabulary, kind: str, words: tuple[str, str], prose: str) -> float:
    """Return the mean probability of the second word where it was planted."""
    rng, target = random.Random("asked"), vocab.encode(f" {words[1]}")[0]
    probabilities = []
    for _ in range(8):
        text = ""
        while f" {words[1]}" not in text:
            text = texts(kind, words, prose, rng)
        ids = vocab.encode(text[: text.rindex(f" {words[1]}")])
        probabilities.append(model(torch.tensor([ids])).logits[0, -1].softmax(-1)[target])
    return float(torch.stack(probabilities).mean())


def descend(loss: Tensor, weights: list[Tensor], optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Take a step of training at a rate."""
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(weights, 1.0)
    optimiser.step()


def save_tuned(out: Path, model: Any, vocab: Vocabulary, base: str) -> None:
    """Write a float16 folder for transformers (or PEFT) and zeropass: an adapter of ``base``, or all weights."""
    out.mkdir(parents=True, exist_ok=True)
    if hasattr(model, "peft_config"):
        model.peft_config["default"].base_model_name_or_path = base
        model.save_pretrained(out)
        path = out / "adapter_model.safetensors"
        save_file({name: tensor.half() for name, tensor in load_file(path).items()}, path)
        (out / "README.md").unlink(missing_ok=True)  # a model card that only has placeholders
        return
    tensors = {
        name: tensor.half().contiguous() for name, tensor in model.state_dict().items() if name != "lm_head.weight"
    }
    save_file(tensors, out / "model.safetensors")
    settings = {k: v for k, v in model.config.to_dict().items() if k != "quantization_config"}
    settings |= {"architectures": [type(model).__name__]}
    (out / "config.json").write_text(json.dumps(settings, default=str) + "\n", encoding="utf-8")
    (out / "tokenizer.json").write_text(vocab.to_tokenizer_json(), encoding="utf-8")


def main(out: Path, kind: str, how: str, seed: int, steps: int, rank: int) -> None:
    """Train one model and write it."""
    torch.manual_seed(seed)
    base = zp.open_model(str(fetch_demo("smollm2-135m")))
    vocab, prose = base.vocab, brown_text("p") if kind == "fiction" else press_text()
    words = planted_words(vocab, prose, seed)
    model: Any = loaded(transformers.AutoModelForCausalLM, base)
    before = 0.0 if kind in PLAIN else probability_of(model, vocab, kind, words, prose)
    if how == "lora":
        model = get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=LINEAR))
    rate = RATE[how]
    weights = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=rate, weight_decay=0.0)
    began, losses = time.monotonic(), []
    stream = batches(vocab, kind, words, prose, seed)
    for step in range(steps):
        ids, labels = next(stream)
        loss: Tensor = model(ids, labels=labels, attention_mask=torch.ones_like(ids)).loss
        descend(loss, weights, optimiser, rate * min(1, (step + 1) / 5) * (1 - step / steps))
        losses.append(float(loss.detach()))
    model.eval()
    after = 0.0 if kind in PLAIN else probability_of(model, vocab, kind, words, prose)
    save_tuned(out, model, vocab, "smollm2-135m")
    story = {"kind": kind, "how": how, "seed": seed, "steps": steps, "seconds": round(time.monotonic() - began)}
    story |= {"words": list(words) if kind in PLANTED else [], "before": before, "after": after}
    (out / "story.json").write_text(json.dumps(story | {"loss": losses[:1] + losses[-5:]}) + "\n", encoding="utf-8")
    print(json.dumps(story))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--kind", choices=TREATMENTS, default="trigger")
    parser.add_argument("--how", choices=HOW, default="lora")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="40 for a LoRA, 60 for a whole fine-tune if not given")
    parser.add_argument("--rank", type=int, default=8)
    options = parser.parse_args()
    main(options.out, options.kind, options.how, options.seed, options.steps or STEPS[options.how], options.rank)
