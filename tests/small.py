"""Small seeded checkpoints of three families for tests of the atlas, built in milliseconds without transformers.

The vocabulary has words with and without a leading space, special and unused tokens, pieces of characters and,
on request, tokens that try to do harm.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

import zeropass as zp
from zeropass.arch.frame_names import ALL_FRAMES

V, D, LAYERS, NEURONS, HEADS, KV_HEADS = 600, 32, 3, 48, 4, 2
HOSTILE = (
    "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07",
    "line\nbreak\r\n",
    "\u202eabc\u202c",
    "[bold red]loud[/]",
    "[/]",
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "\x00null",
    "\x9b31m",
    "x" * 10_000,
    "{0} %s {{",
)
"""Texts of tokens that must not reach a terminal or a notebook unescaped."""


def words(count: int) -> list[str]:
    """Return distinct lower-case words."""
    parts = ("ba", "de", "fi", "go", "lu", "mo", "na", "pe", "ri", "so", "tu", "ve")
    return [a + b + c for a in parts for b in parts for c in parts][:count]


def tokenizer_json(texts: Sequence[str], hostile: Sequence[str] = (), special: int = 2) -> str:
    """Return a byte-level tokenizer: 256 bytes, the texts, then hostile texts and special tokens as added ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = alphabet + ["Ġ" + text[1:] if text.startswith(" ") else text for text in texts]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    spec = json.loads(tokenizer.to_str())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    contents = [*((text, False) for text in hostile), *((f"<|special{i}|>", True) for i in range(special))]
    spec["added_tokens"] = [
        {"id": len(pieces) + i, "content": content, "special": is_special, **flags}
        for i, (content, is_special) in enumerate(contents)
    ]
    return json.dumps(spec)


def _texts(hostile: Sequence[str]) -> list[str]:
    both = words(100)
    count = V - 256 - len(hostile) - 2 - 8  # the last 8 rows have no token
    return ([" " + w for w in both] + both + [" " + w for w in words(400)[100:]])[:count]


def _wordpiece_json() -> str:
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words(400), *("##" + w for w in words(180))]
    tokenizer = Tokenizer(models.WordPiece({n: i for i, n in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    tokenizer.add_special_tokens(names[:5])
    return tokenizer.to_str()


class _Draw:
    """Random tensors from one seed; the gains of norms are around one."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.tensors: dict[str, Tensor] = {}

    def add(self, name: str, *shape: int, gain: bool = False) -> None:
        noise = 0.3 * torch.randn(*shape, generator=self.generator)
        self.tensors[name] = 1 + noise if gain else noise

    def norm(self, name: str) -> None:
        self.add(f"{name}.weight", D, gain=True)
        self.add(f"{name}.bias", D)

    def linear(self, name: str, rows: int, columns: int, bias: int) -> None:
        self.add(f"{name}.weight", rows, columns)
        self.add(f"{name}.bias", bias)


def _write(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor], tokenizer: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(tokenizer)
    save_file(tensors, folder / "model.safetensors")
    return folder


def llama(folder: Path, seed: int = 0, hostile: Sequence[str] = (), biases: bool = False, layers: int = LAYERS) -> Path:
    """Write a Llama with grouped queries and an untied unembedding; ``biases`` adds biases to attention."""
    config = {
        "model_type": "llama",
        "num_hidden_layers": layers,
        "hidden_size": D,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "intermediate_size": NEURONS,
        "vocab_size": V,
        "rms_norm_eps": 1e-3,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "rope_theta": 100.0,
        "attention_bias": biases,
    }
    draw = _Draw(seed)
    draw.add("model.embed_tokens.weight", V, D)
    draw.add("lm_head.weight", V, D)
    draw.add("model.norm.weight", D, gain=True)
    kv = D // HEADS * KV_HEADS
    for layer in range(layers):
        block = f"model.layers.{layer}."
        draw.add(block + "input_layernorm.weight", D, gain=True)
        draw.add(block + "post_attention_layernorm.weight", D, gain=True)
        for name, rows in (("q_proj", D), ("k_proj", kv), ("v_proj", kv), ("o_proj", D)):
            draw.add(f"{block}self_attn.{name}.weight", rows, D)
            if biases:
                draw.add(f"{block}self_attn.{name}.bias", rows)
        draw.add(block + "mlp.gate_proj.weight", NEURONS, D)
        draw.add(block + "mlp.up_proj.weight", NEURONS, D)
        draw.add(block + "mlp.down_proj.weight", D, NEURONS)
    return _write(folder, config, draw.tensors, tokenizer_json(_texts(hostile), hostile))


def tuned(model: Path, folder: Path, seed: int = 1) -> Path:
    """Write a copy of a model in which every tensor is slightly different."""
    shutil.copytree(model, folder)
    draw = torch.Generator().manual_seed(seed)
    tensors = load_file(folder / "model.safetensors")
    moved = {name: tensor + 0.1 * torch.randn(tensor.shape, generator=draw) for name, tensor in tensors.items()}
    save_file(moved, folder / "model.safetensors")
    return folder


def gpt2(folder: Path, seed: int = 0) -> Path:
    """Write a GPT-2: fused and transposed matrices, biases, positions, tied embeddings."""
    config = {"model_type": "gpt2", "n_layer": LAYERS, "n_embd": D, "n_head": HEADS, "vocab_size": V}
    draw = _Draw(seed)
    draw.add("transformer.wte.weight", V, D)
    draw.add("transformer.wpe.weight", 20, D)
    draw.norm("transformer.ln_f")
    for layer in range(LAYERS):
        block = f"transformer.h.{layer}."
        draw.norm(block + "ln_1")
        draw.norm(block + "ln_2")
        draw.linear(block + "attn.c_attn", D, 3 * D, 3 * D)
        draw.linear(block + "attn.c_proj", D, D, D)
        draw.linear(block + "mlp.c_fc", D, 4 * D, 4 * D)
        draw.linear(block + "mlp.c_proj", 4 * D, D, D)
    return _write(folder, config, draw.tensors, tokenizer_json(_texts(())))


def bert(folder: Path, seed: int = 0) -> Path:
    """Write a BERT with its pooler: post-norm, WordPiece."""
    config = {
        "model_type": "bert",
        "num_hidden_layers": LAYERS,
        "hidden_size": D,
        "num_attention_heads": HEADS,
        "intermediate_size": NEURONS,
        "vocab_size": V,
        "layer_norm_eps": 1e-3,
        "hidden_act": "gelu",
    }
    draw = _Draw(seed)
    for name, rows in (("word", V), ("position", 20), ("token_type", 2)):
        draw.add(f"embeddings.{name}_embeddings.weight", rows, D)
    draw.norm("embeddings.LayerNorm")
    draw.linear("pooler.dense", D, D, D)
    for layer in range(LAYERS):
        block = f"encoder.layer.{layer}."
        for name in ("query", "key", "value"):
            draw.linear(f"{block}attention.self.{name}", D, D, D)
        draw.linear(block + "attention.output.dense", D, D, D)
        draw.norm(block + "attention.output.LayerNorm")
        draw.linear(block + "intermediate.dense", NEURONS, D, NEURONS)
        draw.linear(block + "output.dense", D, NEURONS, D)
        draw.norm(block + "output.LayerNorm")
    return _write(folder, config, draw.tensors, _wordpiece_json())


@dataclass(frozen=True)
class Built:
    """A small model, a lens on it and its atlas."""

    folder: Path
    lens: zp.Lens
    atlas: zp.Atlas


OPTIONS = zp.Options(k=15, pairs=30, frames=("token", "output", "paper"))
LENS_OPTIONS = zp.Options(k=15, pairs=30, frames=ALL_FRAMES)
_BUILT: dict[str, Built] = {}


@contextmanager
def one_thread() -> Iterator[None]:
    """Give torch one thread: small products on busy cores are slower with several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def build(model: Path, out: Path, options: zp.Options = OPTIONS, lens: zp.LensMaps | None = None) -> zp.Atlas:
    """Build the atlas of a small model."""
    with one_thread():
        zp.build(zp.open_model(str(model)), out, options, lens=lens)
    return zp.open_atlas(out)


def built(kind: str, factory: pytest.TempPathFactory) -> Built:
    """Return the atlas of a variant that all test files share; tests must not change it.

    Args:
        kind: One of `VARIANTS`; with ``+lens`` its lists are made in all frames, those of a lens included.
        factory: Makes the folder.
    """
    if kind not in _BUILT:
        folder = factory.mktemp(f"small-{kind}")
        name, _, has_lens = kind.partition("+")
        model = VARIANTS[name](folder / "model")
        maps = calibrated(model, folder / "lens") if has_lens else None
        atlas = build(model, folder / "atlas", LENS_OPTIONS if has_lens else OPTIONS, maps)
        _BUILT[kind] = Built(model, zp.load(str(model), lens=maps), atlas)
    return _BUILT[kind]


def calibrated(model: Path, folder: Path) -> zp.LensMaps:
    """Make a lens of a small model from a few random tokens."""
    with one_thread():
        return zp.calibrate(zp.open_model(str(model)), folder, source="random", tokens=512)


VARIANTS: dict[str, Callable[[Path], Path]] = {
    "llama": partial(llama, biases=True),
    "gpt2": gpt2,
    "bert": bert,
    "hostile": partial(llama, hostile=HOSTILE, layers=1),
}


def zero(model: Path, name: str) -> None:
    """Set a tensor of a model to zero."""
    tensors = load_file(model / "model.safetensors")
    save_file(tensors | {name: torch.zeros_like(tensors[name])}, model / "model.safetensors")


def spoil(model: Path, name: str, value: float) -> None:
    """Write one bad number into a tensor of a model."""
    tensors = load_file(model / "model.safetensors")
    tensors[name][1, 2] = value
    save_file(tensors, model / "model.safetensors")
