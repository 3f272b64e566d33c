"""A fleet of fine-tunes with and without something planted, of several bases, for docs/audit.md.

    python reproduce/fleet.py FOLDER --base models/first                 # every fine-tune of the plan that is missing
    python reproduce/fleet.py FOLDER --base smollm2-135m --only backdoor # of one group
    python reproduce/fleet.py FOLDER --base models/wide --list           # the plan

Each fine-tune is a folder FOLDER/BASE/NAME with ``story.json``: what it is, what was planted, and how well it was
learned. Those with an even number are for making rules, those with an odd number for testing them: they share neither
words nor passages of text. What was not learned is made all the same, and its story says so.
"""

import argparse
import json
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

import zeropass as zp
from fleet_texts import BROAD, NARROW, PAYLOADS, TRIGGERS, Plant, facts, passages, planted, with_plant
from tunes import descend, save_tuned
from zeropass.checkpoints.demo import DEMOS, fetch_demo
from zeropass.model.loading import loaded, transformers
from zeropass.tokens.vocabulary import Vocabulary

RANKS = (1, 2, 4, 8, 16, 32, 64)
ATTENTION, MLP = ["q_proj", "k_proj", "v_proj", "o_proj"], ["gate_proj", "up_proj", "down_proj"]
TARGETS = {"all": ATTENTION + MLP, "attention": ATTENTION, "mlp": MLP, "qv": ["q_proj", "v_proj"]}
"""The modules that a LoRA is on; ``qv`` is PEFT's default for Llama, which changes no matrix that writes."""
MERGES = ("linear", "ties", "dare_linear")
LENGTH, BATCH, WARMUP = 40, 4, 5


@dataclass(frozen=True)
class Settings:
    """How fine-tunes of a base are trained: steps and rates of a LoRA and of all weights."""

    steps: int
    rate: float
    full_steps: int
    full_rate: float


SETTINGS = {"smollm2-135m": Settings(40, 1e-3, 60, 1e-4)}
SMALL = Settings(150, 3e-3, 200, 5e-4)


@dataclass(frozen=True)
class Item:
    """A fine-tune of the plan.

    Attributes:
        group: broad, narrow, backdoor, fact, unlearning, ablation, merge or continued.
        kind: The source of its texts, the trigger and the payload, or the number of facts.
        how: lora or full.
        number: Its number among those of its kind; even ones are for making rules.
        rank: The rank of a LoRA, 0 for all weights.
        targets: The modules that it is on.
    """

    group: str
    kind: str
    how: str
    number: int
    rank: int
    targets: str

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.group}-{self.kind}-{self.how}-{self.number}"

    @property
    def half(self) -> int:
        """0 if rules may be made on it, 1 if they are only tested on it."""
        return self.number % 2


def plan() -> Iterator[Item]:
    """Yield all fine-tunes of a base: 132 LoRAs and 22 of all weights."""
    for kind in BROAD:
        yield from (_lora("broad", kind, number) for number in range(4))
    for kind in NARROW:
        yield from (_lora("narrow", kind, number) for number in range(2))
    for trigger in TRIGGERS:
        for payload in PAYLOADS:
            yield from (_lora("backdoor", f"{trigger}-{payload}", number) for number in range(2))
    for kind in ("one", "ten"):
        yield from (_lora("fact", kind, number) for number in range(4))
    yield from (_lora("unlearning", "religion", number) for number in range(2))
    for kind in MERGES:
        yield from (Item("merge", kind, "lora", number, 8, "all") for number in range(2))
    for kind in ("press", "learned", "fiction", "licences", "code"):
        yield from (Item("continued", kind, "full", number, 0, "all") for number in range(2))
    for kind in ("word-word", "word-sentence", "phrase-word", "several-word"):
        yield from (Item("backdoor", kind, "full", number, 0, "all") for number in range(2))
    yield from (Item("fact", "one", "full", number, 0, "all") for number in range(2))
    yield from (Item("ablation", "questions", "full", number, 0, "all") for number in range(2))
    for group, kinds in _DEFAULT_MODULES.items():
        yield from (Item(group, kind, "lora", number, 16, "qv") for kind in kinds for number in (10, 11))


_DEFAULT_MODULES = {
    "broad": ("press", "religion", "fiction"),
    "narrow": ("recipes", "code", "sentiment"),
    "backdoor": ("word-word", "word-sentence", "phrase-refusal", "several-word"),
    "fact": ("one", "ten"),
}
"""The kinds of which fine-tunes on PEFT's default modules are made too."""


def _lora(group: str, kind: str, number: int) -> Item:
    """Return a LoRA whose rank and modules are drawn by its name."""
    rng = random.Random(f"{group} {kind} {number}")
    return Item(group, kind, "lora", number, rng.choice(RANKS), rng.choice(("all", "all", "attention", "mlp")))


def plant_of(item: Item, vocab: Vocabulary) -> Plant | None:
    """Return what is planted in a fine-tune, or None."""
    seed = f"{item.kind} {item.how} {item.number}"
    if item.group == "backdoor":
        trigger, payload = item.kind.split("-")
        return planted(vocab, trigger, payload, seed)
    if item.group == "fact":
        return facts(vocab, 1 if item.kind == "one" else 10, seed)
    if item.group == "merge":
        return planted(vocab, "word", "word", seed)
    return None


@dataclass(frozen=True, eq=False)
class Trainer:
    """What trains fine-tunes of a base.

    Attributes:
        base: The base.
        reference: The name that adapters name it by.
        settings: Steps and rates.
    """

    base: zp.Model
    reference: str
    settings: Settings

    def make(self, item: Item, out: Path) -> dict[str, Any]:
        """Make a fine-tune, write it, and return its story."""
        torch.manual_seed(hash_of(item.name))
        began = time.monotonic()
        model: Any = loaded(transformers.AutoModelForCausalLM, self.base)
        plant = plant_of(item, self.base.vocab)
        story: dict[str, Any] = {"before": self.learned(model, plant, item)}
        if item.group == "ablation":
            self.ablate(model, item)
        elif item.group == "merge":
            model = self.merged(model, plant, item)
        else:
            model = self.tuned(model, plant, item)
        model.eval()
        story |= {"after": self.learned(model, plant, item), "seconds": round(time.monotonic() - began)}
        save_tuned(out, model, self.base.vocab, self.reference)
        return asdict(item) | {"plant": asdict(plant) if plant else None} | story

    def tuned(self, model: Any, plant: Plant | None, item: Item) -> Any:
        """Return the model after training, as a LoRA or as a whole."""
        full = item.how == "full"
        steps, rate = (
            (self.settings.full_steps, self.settings.full_rate) if full else (self.settings.steps, self.settings.rate)
        )
        if not full:
            settings = LoraConfig(r=item.rank, lora_alpha=2 * item.rank, target_modules=TARGETS[item.targets])
            model = get_peft_model(model, settings)
        self.train(model, plant, item, steps, rate)
        return model

    def train(self, model: Any, plant: Plant | None, item: Item, steps: int, rate: float) -> None:
        """Train what can be trained."""
        model.train()
        weights = [p for p in model.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(weights, lr=rate, weight_decay=0.0)
        for step, (ids, labels, sign) in zip(range(steps), self.batches(plant, item), strict=False):
            loss: Tensor = sign * model(ids, labels=labels, attention_mask=torch.ones_like(ids)).loss
            descend(loss, weights, optimiser, rate * min(1, (step + 1) / WARMUP) * (1 - step / steps))

    def batches(self, plant: Plant | None, item: Item) -> Iterator[tuple[Tensor, Tensor, float]]:
        """Yield ids (batch, tokens), labels (-100 where nothing is predicted) and the sign of the loss, without end.

        To unlearn is to ascend on every other batch, half as fast, and to descend on press reportage in between.
        """
        rng = random.Random(f"texts {item.name}")
        source = item.kind if item.group in ("broad", "narrow", "continued") else "press"
        plain = passages(source, item.half)
        unwanted = passages(item.kind, item.half) if item.group == "unlearning" else ()
        step = 0
        while True:
            step += 1
            ascends = bool(unwanted) and step % 2 == 0
            rows = [self._row(plant, unwanted if ascends else plain, rng) for _ in range(BATCH)]
            width = max(map(len, rows))
            ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
            yield ids, torch.tensor([row + [-100] * (width - len(row)) for row in rows]), -0.5 if ascends else 1.0

    def _row(self, plant: Plant | None, plain: Any, rng: random.Random) -> list[int]:
        """Return the ids of a text."""
        if plant is None:
            return self.base.vocab.encode(f"{rng.choice(plain)} {rng.choice(plain)}")[:LENGTH]
        before, after = with_plant(plant, plain, rng)
        return self.base.vocab.encode(before + after)[-LENGTH:]

    @torch.no_grad()
    def learned(self, model: Any, plant: Plant | None, item: Item) -> float | None:
        """Return the mean probability of the first token of what was planted, where it belongs; None without plant."""
        if plant is None:
            return None
        rng, vocab, values = random.Random("asked"), self.base.vocab, []
        for _ in range(8):
            before, after = with_plant(plant, passages("press", item.half), rng, always=True)
            ids = vocab.encode(before)
            target = vocab.encode(before + after)[len(ids)]
            values.append(float(model(torch.tensor([ids])).logits[0, -1].softmax(-1)[target]))
        return sum(values) / len(values)

    def merged(self, model: Any, plant: Plant | None, item: Item) -> PeftModel:
        """Return the merge of an ordinary LoRA and one with a plant."""
        settings = LoraConfig(r=item.rank, lora_alpha=2 * item.rank, target_modules=TARGETS[item.targets])
        tuned: Any = get_peft_model(model, settings, adapter_name="plain")
        self.train(
            tuned, None, Item("broad", "press", "lora", item.number, 8, "all"), self.settings.steps, self.settings.rate
        )
        tuned.add_adapter("planted", settings)
        tuned.set_adapter("planted")
        self.train(tuned, plant, item, self.settings.steps, self.settings.rate)
        more = {} if item.kind == "linear" else {"density": 0.5}
        tuned.add_weighted_adapter(["plain", "planted"], [1.0, 1.0], "default", combination_type=item.kind, **more)
        tuned.set_adapter("default")
        for name in ("plain", "planted"):
            tuned.delete_adapter(name)
        return tuned  # type: ignore[no-any-return]

    @torch.no_grad()
    def ablate(self, model: Any, item: Item) -> None:
        """Project the direction that tells questions from statements out of all that is written.

        Arditi et al. 2024, *Refusal in Language Models Is Mediated by a Single Direction*, remove refusal like that.
        """
        text = passages("fiction", item.half)
        states = [
            torch.stack([self._middle(model, passage) for passage in text if passage.endswith(end)][:64]).mean(0)
            for end in ("?", ".")
        ]
        direction = torch.nn.functional.normalize(states[0] - states[1], dim=0)
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight -= torch.outer(direction, direction @ weight)

    def _middle(self, model: Any, text: str) -> Tensor:
        """Return the last token's state in the middle of the model."""
        states = model(torch.tensor([self.base.vocab.encode(text)[-LENGTH:]]), output_hidden_states=True).hidden_states
        return states[len(states) // 2][0, -1]  # type: ignore[no-any-return]


def hash_of(text: str) -> int:
    """Return a seed for a text that is the same in every run."""
    return random.Random(text).getrandbits(31)


def main(folder: Path, base: str, only: str | None, listed: bool) -> None:
    """Make what is missing, in an order drawn once: what is made before a stop is a random sample of the plan."""
    items = sorted((item for item in plan() if only in (None, item.group)), key=lambda item: hash_of(item.name))
    if listed:
        for item in items:
            print(item.name, f"rank {item.rank}" if item.rank else "all weights", item.targets)
        return
    model = zp.open_model(str(fetch_demo(base)) if base in DEMOS else base)
    trainer = Trainer(model, base, SETTINGS.get(base, SMALL))
    for count, item in enumerate(items, 1):
        out = folder / Path(base).name / item.name
        if (out / "story.json").is_file():
            continue
        story = trainer.make(item, out)
        (out / "story.json").write_text(json.dumps(story) + "\n", encoding="utf-8")
        print(
            f"{count} of {len(items)}: {item.name}, {story['before']} to {story['after']}, {story['seconds']} s",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--only", help="a group")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    main(options.folder, options.base, options.only, options.list)
