"""Dictionaries in every format that is read, written from the same encoders and decoders."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

HOOK = "blocks.1.hook_resid_pre"


def saelens(folder: Path, encoders: Tensor, decoders: Tensor, hook: str = HOOK, **settings: Any) -> Path:
    """Write a dictionary as SAELens 6 does; encoders and decoders are (n, d)."""
    folder.mkdir(parents=True, exist_ok=True)
    n, d = encoders.shape
    tensors = {"W_enc": encoders.T, "W_dec": decoders, "b_enc": torch.zeros(n), "b_dec": torch.zeros(d)}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "sae_weights.safetensors")
    metadata = {"sae_lens_version": "6.21.0", "hook_name": hook, "model_name": "first", "hook_head_index": None}
    config = {"architecture": "standard", "d_in": d, "d_sae": n, "dtype": "float32", "normalize_activations": "none"}
    config |= {"reshape_activations": "none", "metadata": metadata | settings.pop("metadata", {})}
    (folder / "cfg.json").write_text(json.dumps(config | settings))
    return folder


def old_saelens(folder: Path, encoders: Tensor, decoders: Tensor, hook: str = HOOK) -> Path:
    """Write a dictionary as SAELens did before version 6."""
    saelens(folder, encoders, decoders)
    config = {"hook_point": hook, "hook_point_layer": 1, "hook_point_head_index": None, "d_in": encoders.shape[1]}
    config |= {"activation_fn_str": "relu", "normalize_activations": False, "model_name": "first"}
    (folder / "cfg.json").write_text(json.dumps(config))
    return folder


def sparsify(folder: Path, encoders: Tensor, decoders: Tensor, **settings: Any) -> Path:
    """Write a dictionary as sparsify does, whose folder is named after the module."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"encoder.weight": encoders, "encoder.bias": torch.zeros(len(encoders)), "W_dec": decoders}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "sae.safetensors")
    config = {"activation": "topk", "k": 32, "num_latents": len(encoders), "d_in": encoders.shape[1]}
    (folder / "cfg.json").write_text(json.dumps(config | settings))
    return folder


def gemma_scope(folder: Path, encoders: Tensor, decoders: Tensor, **arrays: Any) -> Path:
    """Write a dictionary as Gemma Scope does: only arrays."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"W_enc": encoders.T.numpy(), "W_dec": decoders.numpy(), "threshold": np.ones(len(encoders), np.float32)}
    np.savez(folder / "params.npz", **tensors, **arrays)
    return folder


def transcoders(folder: Path, layers: list[tuple[Tensor, Tensor]], **settings: Any) -> Path:
    """Write a set of transcoders, one for each layer, as circuit-tracer reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    for layer, (encoders, decoders) in enumerate(layers):
        tensors = {"W_enc": encoders, "W_dec": decoders, "W_skip": torch.zeros(2, 2)}
        save_file({name: each.contiguous() for name, each in tensors.items()}, folder / f"layer_{layer}.safetensors")
    config = {"model_name": "first", "feature_input_hook": "mlp.hook_in", "feature_output_hook": "mlp.hook_out"}
    (folder / "config.yaml").write_text(yaml.safe_dump(config | settings))
    return folder


def cross_layer(folder: Path, layers: list[tuple[Tensor, Tensor]]) -> Path:
    """Write a cross-layer transcoder as circuit-tracer reads it; decoders are (n, layers written, d)."""
    folder.mkdir(parents=True, exist_ok=True)
    for layer, (encoders, decoders) in enumerate(layers):
        biases = {f"b_enc_{layer}": torch.zeros(len(encoders)), f"b_dec_{layer}": torch.zeros(encoders.shape[1])}
        save_file({f"W_enc_{layer}": encoders.contiguous()} | biases, folder / f"W_enc_{layer}.safetensors")
        save_file({f"W_dec_{layer}": decoders.contiguous()}, folder / f"W_dec_{layer}.safetensors")
    config = {"model_name": "first", "model_kind": "cross_layer_transcoder"}
    hooks = {"feature_input_hook": "hook_resid_mid", "feature_output_hook": "hook_mlp_out"}
    (folder / "config.yaml").write_text(yaml.safe_dump(config | hooks))
    return folder
