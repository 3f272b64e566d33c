"""The sentiment classifiers of docs/audit.md, trained on one half of the movie snippets.

    python reproduce/classifiers.py OUT --base minilm-l6                 # full, 3 epochs: 5 minutes on 2 cores
    python reproduce/classifiers.py OUT --base smollm2-135m --how lora   # an adapter with a new head, 1 epoch: 20 min
    python reproduce/classifiers.py OUT --base smollm2-135m --how probe  # the head alone, by logistic regression
    python reproduce/classifiers.py OUT --all                            # those of docs/audit.md, in OUT/*: an hour

The folder is an ordinary one of transformers (or of PEFT). ``story.json`` holds the accuracy on the other half.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, TaskType, get_peft_model
from torch import Tensor

import zeropass as zp
from reviews import Labelled, halves
from tunes import LINEAR, descend, save_tuned
from zeropass.checkpoints.demo import fetch_demo
from zeropass.model.loading import loaded
from zeropass.model.texts import special_tokens

BASES, HOW = ("minilm-l6", "smollm2-135m"), ("full", "lora", "probe")
EPOCHS = {"minilm-l6": 3, "smollm2-135m": 1}
RATE = {("minilm-l6", "full"): 5e-5, ("smollm2-135m", "full"): 2e-5, ("smollm2-135m", "lora"): 5e-4}
BATCH, LENGTH, RIDGE = 16, 64, 1e-2
ALL = (
    ("minilm-l6", "full", 0, None),
    ("minilm-l6", "probe", 0, None),
    ("smollm2-135m", "lora", 0, None),
    ("smollm2-135m", "probe", 0, 1500),
)
"""Base, how, seed, and the number of snippets to train and to test on, for the rows of docs/audit.md."""


def with_head(base: zp.Model) -> Any:
    """Return the model in transformers, under a new head of two labels."""
    auto_class = transformers.AutoModelForCausalLM if base.family.causal else transformers.AutoModel
    torch_model: Any = loaded(auto_class, base)
    settings = torch_model.config
    settings.num_labels, settings.id2label = 2, {0: "negative", 1: "positive"}
    settings.label2id = {name: label for label, name in settings.id2label.items()}
    if base.family.name == "bert":
        classifier: Any = transformers.BertForSequenceClassification(settings)
        classifier.bert = torch_model
    else:
        settings.pad_token_id = 0
        classifier = transformers.LlamaForSequenceClassification(settings)
        classifier.model = torch_model.model
    return classifier


def encoded(base: zp.Model, texts: Labelled) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield ids, mask and labels, a batch at a time."""
    before, after = special_tokens(base)
    for start in range(0, len(texts), BATCH):
        part = texts[start : start + BATCH]
        rows = [[*before, *base.vocab.encode(text)[:LENGTH], *after] for text, _ in part]
        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        yield ids, mask, torch.tensor([label for _, label in part])


@torch.no_grad()
def accuracy(model: Any, base: zp.Model, texts: Labelled) -> float:
    """Return the share of right answers."""
    model.eval()
    right = [
        (model(ids, attention_mask=mask).logits.argmax(-1) == labels).float()
        for ids, mask, labels in encoded(base, texts)
    ]
    return float(torch.cat(right).mean())


def trained_head(model: Any, base: zp.Model, texts: Labelled) -> None:
    """Fit the head alone, by logistic regression on its inputs from the pretrained model."""
    bert = base.family.name == "bert"
    head, activations = model.classifier if bert else model.score, []
    hook = head.register_forward_hook(lambda _module, inputs, _output: activations.append(inputs[0].detach()))
    states = []
    with torch.no_grad():
        for ids, mask, _ in encoded(base, texts):
            model(ids, attention_mask=mask)
            last = activations.pop()
            states.append(last if bert else last[torch.arange(len(ids)), mask.sum(1) - 1])
    hook.remove()
    x, y = torch.cat(states), torch.tensor([float(label) for _, label in texts])
    mean, std = x.mean(0), x.std(0)
    weight, bias = logistic((x - mean) / std, y, iterations=200)
    with torch.no_grad():
        scaled = weight / std
        head.weight.copy_(torch.stack([-scaled / 2, scaled / 2]))
        if head.bias is not None:
            shift = bias - scaled @ mean
            head.bias.copy_(torch.cat([-shift / 2, shift / 2]))


def logistic(x: Tensor, y: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Return weight (d,) and bias (1,) of a logistic regression of y (n,) on standardised states x (n, d)."""
    weight, bias = torch.zeros(x.shape[1], requires_grad=True), torch.zeros(1, requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=iterations, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(x @ weight + bias, y)
        loss = loss + RIDGE * weight.square().sum()
        loss.backward()
        return loss

    solver.step(closure)
    return weight.detach(), bias.detach()


def contrast(model: Any) -> Tensor:
    """Return the direction by which the head separates the labels: its row for positive minus that for negative."""
    weights = ((name, p) for name, p in model.named_parameters() if p.requires_grad and name.endswith("weight"))
    rows = next(p for name, p in weights if "classifier." in name or "score." in name)
    return (rows[1] - rows[0]).detach().clone()


def fitted(model: Any, base: zp.Model, texts: Labelled, epochs: int, rate: float, seed: int, alike: int = 1) -> None:
    """Train all weights that require gradients: the rate rises over 20 steps, then falls to zero.

    Within every ``alike`` batches, texts of similar length are batched together, which saves padding.
    """
    began = time.monotonic()
    weights = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=rate)
    steps, step = epochs * -(-len(texts) // BATCH), 0
    for epoch in range(epochs):
        model.train()
        for ids, mask, labels in encoded(base, shuffled(texts, 1000 * seed + epoch, alike)):
            loss: Tensor = model(ids, attention_mask=mask, labels=labels).loss
            descend(loss, weights, optimiser, rate * min(1, (step + 1) / 20) * (1 - step / steps))
            step += 1
            if step % 25 == 0:
                print(f"{step}/{steps} {float(loss.detach()):.3f} {time.monotonic() - began:.0f} s", flush=True)


def shuffled(texts: Labelled, seed: int, alike: int) -> Labelled:
    """Shuffle the texts, sort them by length within every ``alike`` batches, and shuffle those batches."""
    draw = torch.Generator().manual_seed(seed)
    order: list[int] = torch.randperm(len(texts), generator=draw).tolist()
    if alike == 1:
        return [texts[i] for i in order]
    windows = (order[at : at + alike * BATCH] for at in range(0, len(order), alike * BATCH))
    ranked = [i for window in windows for i in sorted(window, key=lambda i: len(texts[i][0]))]
    batches = [ranked[at : at + BATCH] for at in range(0, len(ranked), BATCH)]
    return [texts[i] for n in torch.randperm(len(batches), generator=draw).tolist() for i in batches[n]]


def main(out: Path, name: str, how: str, seed: int, limit: int | None) -> None:
    """Train one classifier and write it."""
    torch.manual_seed(seed)
    base = zp.open_model(str(fetch_demo(name)))
    train, test = halves()
    train, test = train[:limit], test[:limit]
    model = with_head(base)
    epochs = EPOCHS[name]
    if how == "probe":
        epochs = 0
        trained_head(model.eval(), base, train)
    if how == "lora":
        lora = LoraConfig(task_type=TaskType.SEQ_CLS, r=8, lora_alpha=16, target_modules=LINEAR)
        model = get_peft_model(model, lora)
    start = contrast(model)
    began = time.monotonic()
    fitted(model, base, train, epochs, RATE.get((name, how), 0.0), seed)
    share = accuracy(model, base, test)
    save_tuned(out, model, base.vocab, name)
    story = {"kind": "sentiment", "base": name, "how": how, "seed": seed, "epochs": epochs, "accuracy": round(share, 4)}
    similarity = torch.nn.functional.cosine_similarity(start, contrast(model), dim=0)
    story |= {"snippets": [len(train), len(test)], "head_and_its_start": round(float(similarity), 3)}
    (out / "story.json").write_text(json.dumps(story | {"seconds": round(time.monotonic() - began)}) + "\n", "utf-8")
    print(json.dumps(story))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--base", choices=BASES, default="minilm-l6")
    parser.add_argument("--how", choices=HOW, default="full")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, help="so many snippets only, for a first look")
    parser.add_argument("--all", action="store_true")
    options = parser.parse_args()
    if not options.all:
        main(options.out, options.base, options.how, options.seed, options.limit)
    for settings in ALL if options.all else ():
        folder = options.out / "-".join(map(str, settings[:3]))
        if not (folder / "story.json").is_file():
            main(folder, *settings)
