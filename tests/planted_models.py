"""Two tiny models for the evidence: one that reads and writes known tokens by construction, and a random one."""

import random
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

D, LAYERS, HEADS, V = 64, 3, 2, 256
FAINT = 1e-3
"""The strength of what the planted model writes: visible in its weights, too weak to disturb its stream."""


def text(characters: int, seed: int = 0) -> str:
    """Draw printable characters, the early ones more often; each is one token, and each occurs many times."""
    letters = [chr(c) for c in range(33, 127)]
    weights = [1 / (i + 10) for i in range(len(letters))]
    return "".join(random.Random(seed).choices(letters, weights, k=characters))


def planted(folder: Path) -> Path:
    """Write a model in which neuron i of every block but the first reads and writes token i, and heads copy tokens.

    Neurons read by gate and up. Block 0 writes nothing, so the stream stays close to the token's embedding in all
    layers.
    """
    hf = _llama()
    generator = torch.Generator().manual_seed(1)
    tokens = torch.nn.functional.normalize(torch.randn(V, D, generator=generator), dim=1)
    with torch.no_grad():
        hf.model.embed_tokens.weight.copy_(tokens)
        for number, block in enumerate(hf.model.layers):
            turn = torch.linalg.qr(torch.randn(D, D, generator=generator)).Q
            strength = FAINT if number else 0.0
            block.mlp.gate_proj.weight.copy_(4 * tokens)
            block.mlp.up_proj.weight.copy_(tokens)
            block.mlp.down_proj.weight.copy_(strength * tokens.T)
            block.self_attn.v_proj.weight.copy_(turn)
            block.self_attn.o_proj.weight.copy_(strength * turn.T)
            block.self_attn.k_proj.weight.copy_(turn)
            block.self_attn.q_proj.weight.copy_(turn)
    return save(hf, folder)


def at_random(folder: Path, seed: int = 0) -> Path:
    """Write a model of the same shape as transformers initialises it."""
    torch.manual_seed(seed)
    return save(_llama(), folder)


def _llama() -> Any:
    config = transformers.LlamaConfig(
        vocab_size=V,
        hidden_size=D,
        intermediate_size=V,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        tie_word_embeddings=True,
    )
    return transformers.LlamaForCausalLM(config)


def save(hf: Any, folder: Path) -> Path:
    """Write a model of 256 tokens with a tokenizer of single bytes."""
    hf.save_pretrained(folder)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
