"""A copy of a model as a folder that transformers reads: config.json, model.safetensors, tokenizer.json."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

import zeropass as zp
from zeropass.arch.layout import full_name


def write_folder(
    model: zp.Model,
    folder: Path,
    dtype: torch.dtype = torch.float32,
    change: Callable[[Tensor], Tensor] = lambda values: values,
) -> Path:
    """Write a Llama-like model to a new folder; ``change`` is applied to the matrices of its blocks."""
    folder.mkdir(parents=True)
    layout = next(layout for layout in model.family.layouts if layout.format == "hf")
    tensors = {}
    for role, stored in layout.tensors.items():
        for layer in range(model.dims.layers if "{layer}" in stored.name else 1):
            if not model.has(role):
                continue
            values = model.vector(role, layer) if model.is_vector(role) else model.matrix(role, layer)
            if "{layer}" in stored.name and values.ndim == 2:
                values = change(values)
            name = full_name(stored.name.format(layer=layer), "model.")
            tensors[name] = (values.T if stored.transpose else values).to(dtype).contiguous()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    dims = model.dims
    settings = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": dims.layers,
        "hidden_size": dims.d,
        "num_attention_heads": dims.heads,
        "num_key_value_heads": dims.kv_heads,
        "head_dim": dims.head_dim,
        "intermediate_size": dims.neurons,
        "vocab_size": dims.vocab,
        "rms_norm_eps": dims.eps,
        "hidden_act": dims.activation,
        "tie_word_embeddings": dims.tied,
        "rope_theta": dims.rope.theta if dims.rope else 10000.0,
    }
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "tokenizer.json").write_text(model.vocab.to_tokenizer_json(), encoding="utf-8")
    return folder
