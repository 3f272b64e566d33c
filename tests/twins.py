"""A model and its twin, which computes the same function with permuted neurons and heads and a rotated stream.

The insides of the heads are rotated too. Norm gains are first folded into the reading weights, so that the norm
commutes with the rotation. The permutations are returned, so every match can be checked.
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
    """The neuron and the query head of the model for each of the twin, by layer."""

    neurons: tuple[Tensor, ...]
    heads: tuple[Tensor, ...]


def plain(model: Model, layers: int, folder: Path) -> Path:
    """Write the first layers of a Llama to a new folder."""
    tensors = {"model.embed_tokens.weight": model.embedding, "model.norm.weight": _gain(model, "final_norm", 0)}
    if not model.dims.tied:
        tensors["lm_head.weight"] = model.unembedding
    for layer in range(layers):
        weights = {role: model.matrix(role, layer) for role in _NAMES}
        tensors |= _block(layer, weights, _gain(model, "attn_norm", layer), _gain(model, "ff_norm", layer))
    return _save(model, layers, tensors, model.dims.tied, folder)


def twin(model: Model, layers: int, folder: Path, seed: int = 7, noise: float = 0.0) -> tuple[Path, Moved]:
    """Write the twin of the same layers; ``noise`` (in units of each matrix's deviation) blurs its blocks."""
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
    """Permute groups of heads and the heads inside them, and rotate the inside of each v-o pair."""
    dims = model.dims
    groups = torch.randperm(dims.kv_heads, generator=draw)
    heads = torch.cat([g * dims.group + torch.randperm(dims.group, generator=draw) for g in groups])
    cut = {role: weights[role].view(-1, dims.head_dim, dims.d) for role in ("q", "k", "v", "o")}
    q, o, k, v = cut["q"][heads], cut["o"][heads], cut["k"][groups], cut["v"][groups]
    for group in range(dims.kv_heads):
        inside = _rotation(dims.head_dim, draw)
        members = slice(group * dims.group, (group + 1) * dims.group)
        v[group], o[members] = inside @ v[group], inside @ o[members]
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
    tensors = {f"{stem}{_NAMES[role]}.weight": w.T if role in ("o", "value") else w for role, w in weights.items()}
    return tensors | {stem + "input_layernorm.weight": attn_norm, stem + "post_attention_layernorm.weight": ff_norm}


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
