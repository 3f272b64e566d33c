"""Adapters on tiny models, as PEFT makes, runs and merges them."""

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

import tiny
import zeropass as zp
import zoo
from zeropass.arch.layout import role_of
from zeropass.arch.rows import canonical_shape
from zeropass.model.adapted import Adapted, adapt

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
IDS = torch.arange(30)[None]


def base_model(variant: str) -> PreTrainedModel:
    """Return a tiny model of `tiny` or of the zoo."""
    return tiny.make(variant) if variant in tiny.MAKERS else zoo.tiny_model(variant)


def made(variant: str, folder: Path, **settings: Any) -> Adapted:
    """Save a tiny base, a random LoRA and the model that PEFT merges them into; return the adapted model."""
    return trained(variant, folder, LoraConfig(r=settings.pop("r", 4), lora_alpha=6, **settings))


def trained(variant: str, folder: Path, config: PeftConfig, stack: str = "") -> Adapted:
    """Save a tiny base, a random adapter and the model that PEFT merges them into; return the adapted model."""
    save(variant, folder, config)
    return adapt(zp.open_model(f"{folder / 'base'}{stack}"), folder / "adapter")


def save(variant: str, folder: Path, config: PeftConfig) -> None:
    """Write ``base``, ``adapter`` and ``merged``, which computes what PEFT's model of the other two computes."""
    tiny.save(base_model(variant), folder / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hf: Any = get_peft_model(base_model(variant), config)
        randomise(hf)
        hf.save_pretrained(folder / "adapter")
        merged_model = merged(variant, folder / "adapter")
        tiny.save(merged_model, folder / "merged")
        # GPT-2's configuration omits whether the tables are tied.
        tiny.edit(folder / "merged", {"tie_word_embeddings": merged_model.config.tie_word_embeddings})


def randomise(hf: Any) -> None:
    """Draw every trained number at random; parameters that start as ones, lengths or copies only get noise added."""
    draw, seen = torch.Generator().manual_seed(3), set()
    with torch.no_grad():
        for name, parameter in hf.named_parameters(remove_duplicate=False):
            if not parameter.requires_grad or parameter.data_ptr() in seen:
                continue
            seen.add(parameter.data_ptr())
            noise = 0.3 * torch.randn(parameter.shape, generator=draw)
            drawn = any(part in name for part in ("lora_A", "lora_B", "lora_embedding", "modules_to_save.default.w"))
            parameter.copy_(noise if drawn else parameter + noise)


def merged(variant: str, adapter: Path) -> PreTrainedModel:
    """Return a plain model that computes what PEFT's model with an adapter computes.

    PEFT merges a change of a tied table into both tables. Embedding and unembedding are therefore taken from the
    outputs of its unmerged modules, and the logits of the result are compared with PEFT's.
    """
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        running = PeftModel.from_pretrained(base_model(variant), str(adapter)).eval()
        inner: Any = running.get_base_model()
        pair = bool(inner.config.is_encoder_decoder)
        inputs = {"input_ids": IDS} | ({"decoder_input_ids": IDS} if pair else {})
        theirs = running(**inputs)[0]
        head = inner.get_output_embeddings()
        tables = None if head is None or pair else (_embedding(inner), _unembedding(head))
        result: Any = running.merge_and_unload()
        if tables is not None:
            _set_tables(result, *tables)
        ours = result.eval()(**inputs)[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    return result


def _set_tables(hf: Any, embedding: Tensor, unembedding: Tensor) -> None:
    """Give a model these tables, tied if they are equal."""
    hf.config.tie_word_embeddings = bool(torch.allclose(embedding, unembedding, atol=1e-6))
    for module, table in ((hf.get_input_embeddings(), embedding), (hf.get_output_embeddings(), unembedding)):
        module.weight = torch.nn.Parameter(table)
    if hf.config.tie_word_embeddings:
        hf.get_output_embeddings().weight = hf.get_input_embeddings().weight


def _embedding(inner: Any) -> Tensor:
    module = inner.get_input_embeddings()
    rows: Tensor = module(torch.arange(module.weight.shape[0])[None])[0]
    scale = getattr(module, "embed_scale", None)
    return rows if scale is None else rows / scale


def _unembedding(head: Any) -> Tensor:
    width = head.weight.shape[1]
    return (head(torch.eye(width)) - head(torch.zeros(1, width))).T.contiguous()


def spoiled(folder: Path, settings: dict[str, Any], tensors: dict[str, Tensor | None]) -> Path:
    """Change settings and tensors in an adapter's folder; None removes a tensor."""
    config = folder / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | settings))
    path = folder / "adapter_model.safetensors"
    tensors_left = load_file(path) | tensors
    save_file({name: tensor.contiguous() for name, tensor in tensors_left.items() if tensor is not None}, path)
    return folder


def alike(model: zp.Model, merged: zp.Model, atol: float = 1e-4) -> None:
    """Check that two models have the same canonical matrices and vectors, and the same tables to read states with."""
    layers = model.dims.layers
    for layer in range(layers):
        for role in model.matrices(layer):
            close(model.matrix(role, layer), merged.matrix(role, layer), atol, role)
            close(model.matrix(role, layer, 2, 5), merged.matrix(role, layer, 2, 5), atol, role)
    layout = model.family.layout("hf")
    assert layout is not None
    for name, stored in layout.tensors.items():
        if role_of(name) in model.family.vector_roles or name in ("embedding", "unembedding", "relative"):
            continue
        for layer in range(layers if "{layer}" in stored.name else 1):
            assert model.has(name) == merged.has(name), name
            if name in ("positions", "types", "embed_projection"):
                if not model.has(name):
                    continue
                close(model.matrix(name), merged.matrix(name), atol, name)
                continue
            mine, theirs = model.vector(name, layer), merged.vector(name, layer)
            assert (mine is None) == (theirs is None), name
            if mine is not None and theirs is not None:
                close(mine, theirs, atol, name)
    close(model.embedding, merged.embedding, atol, "embedding")
    if model.family.causal or model.has("unembedding"):
        close(model.unembedding, merged.unembedding, atol, "unembedding")
        close(model.matrix(model.logit_table, 0, 3, 9), merged.unembedding[3:9], atol, "some of the unembedding")
        assert model.dims.tied == merged.dims.tied
    if "relative" in layout.tensors:
        for layer in range(model.dims.layers):
            close(model.relative(layer), merged.relative(layer), atol, "relative")
    for stem, (name, _, rows) in merged.tables().items():
        assert model.tables()[stem][2] == rows == model.rows(name)
    assert canonical_shape("embedding", model.dims) == tuple(model.matrix("embedding").shape)


def close(mine: Tensor, theirs: Tensor, atol: float, what: str) -> None:
    """Check that two tensors agree."""
    torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=atol, msg=lambda text: f"{what}: {text}")
