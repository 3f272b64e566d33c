"""A model and its twin: the same function, with neurons, heads and the insides of heads permuted, the stream rotated.

Norm gains are folded into what reads first, so that the norm commutes with the rotation. What moved where is known, so
every match can be checked.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from zeropass.model.model import Model


@dataclass(frozen=True)
class Moved:
    """For each layer: neuron and query head of the twin -> that of the model."""

    neurons: tuple[Tensor, ...]
    heads: tuple[Tensor, ...]


def plain(model: Model, layers: int, folder: Path) -> Path:
    """The first layers of a llama, as a folder of its own."""
    tensors = {"model.embed_tokens.weight": model.embedding, "model.norm.weight": _gain(model, "final_norm", 0)}
    if not model.dims.tied:
        tensors["lm_head.weight"] = model.unembedding
    for layer in range(layers):
        weights = {role: model.matrix(role, layer) for role in _NAMES}
        tensors |= _block(layer, weights, _gain(model, "attn_norm", layer), _gain(model, "ff_norm", layer))
    return _save(model, layers, tensors, model.dims.tied, folder)


def twin(model: Model, layers: int, folder: Path, seed: int = 7, noise: float = 0.0) -> tuple[Path, Moved]:
    """The same layers, moved; ``noise`` (in units of each matrix' deviation) blurs what the blocks hold."""
    draw = torch.Generator().manual_seed(seed)
    turn, ones = _rotation(model.dims.d, draw), torch.ones(model.dims.d)
    head = model.unembedding * _gain(model, "final_norm", 0)
    tensors = {"model.embed_tokens.weight": model.embedding @ turn, "model.norm.weight": ones}
    tensors["lm_head.weight"] = head @ turn
    neurons, heads = [], []
    for layer in range(layers):
        weights = {role: model.matrix(role, layer) * _folded(model, role, layer) @ turn for role in _NAMES}
        moved, head_order = _move_heads(model, weights, draw)
        order = torch.randperm(model.dims.neurons, generator=draw)
        sign = torch.randint(2, (model.dims.neurons, 1), generator=draw) * 2.0 - 1
        moved |= {"gate": weights["gate"][order], "up": sign * weights["up"][order]}
        moved["value"] = sign * weights["value"][order]
        blurred = {r: w + noise * w.std() * torch.randn(w.shape, generator=draw) for r, w in moved.items()}
        tensors |= _block(layer, blurred, ones, ones)
        neurons.append(order)
        heads.append(head_order)
    return _save(model, layers, tensors, False, folder), Moved(tuple(neurons), tuple(heads))


_NAMES = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "value": "mlp.down_proj",
}


def _move_heads(model: Model, weights: dict[str, Tensor], draw: torch.Generator) -> tuple[dict[str, Tensor], Tensor]:
    """Groups of heads permuted, heads inside them too, and the inside of each v-o pair rotated."""
    dims = model.dims
    groups = torch.randperm(dims.kv_heads, generator=draw)
    heads = torch.cat([g * dims.group + torch.randperm(dims.group, generator=draw) for g in groups])
    cut = {role: weights[role].view(-1, dims.head_dim, dims.d) for role in ("q", "k", "v", "o")}
    q, o, k, v = cut["q"][heads], cut["o"][heads], cut["k"][groups], cut["v"][groups]
    for group in range(dims.kv_heads):
        inside = _rotation(dims.head_dim, draw)
        own = slice(group * dims.group, (group + 1) * dims.group)
        v[group], o[own] = inside @ v[group], inside @ o[own]
    moved = {role: part.reshape(-1, dims.d) for role, part in (("q", q), ("k", k), ("v", v), ("o", o))}
    return moved, heads


def _folded(model: Model, role: str, layer: int) -> Tensor:
    if role in ("o", "value"):
        return torch.ones(model.dims.d)
    return _gain(model, "ff_norm" if role in ("gate", "up") else "attn_norm", layer)


def _gain(model: Model, what: str, layer: int) -> Tensor:
    gain = model.vector(what, layer)
    assert gain is not None
    return gain


def _rotation(size: int, draw: torch.Generator) -> Tensor:
    return torch.linalg.qr(torch.randn(size, size, generator=draw, dtype=torch.float64))[0].float()


def _block(layer: int, weights: dict[str, Tensor], attn_norm: Tensor, ff_norm: Tensor) -> dict[str, Tensor]:
    stem = f"model.layers.{layer}."
    found = {f"{stem}{_NAMES[role]}.weight": w.T if role in ("o", "value") else w for role, w in weights.items()}
    return found | {stem + "input_layernorm.weight": attn_norm, stem + "post_attention_layernorm.weight": ff_norm}


def _save(model: Model, layers: int, tensors: dict[str, Tensor], tied: bool, folder: Path) -> Path:
    dims = model.dims
    folder.mkdir(parents=True)
    save_file({name: t.clone().contiguous() for name, t in tensors.items()}, folder / "model.safetensors")
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": dims.d,
        "intermediate_size": dims.neurons,
        "num_hidden_layers": layers,
        "num_attention_heads": dims.heads,
        "num_key_value_heads": dims.kv_heads,
        "head_dim": dims.head_dim,
        "vocab_size": dims.vocab,
        "rms_norm_eps": dims.eps,
        "hidden_act": "silu",
        "rope_theta": dims.rope.theta if dims.rope else 10000.0,
        "tie_word_embeddings": tied,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "tokenizer.json").write_text(model.vocab.to_tokenizer_json(), encoding="utf-8")
    return folder
