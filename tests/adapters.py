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
from zeropass.arch.rows import canonical_shape
from zeropass.model.adapted import Adapted, adapt

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
IDS = torch.arange(30)[None]


def base_model(variant: str) -> PreTrainedModel:
    """A tiny model of `tiny` or of the zoo."""
    return tiny.make(variant) if variant in tiny.MAKERS else zoo.tiny_model(variant)


def made(variant: str, folder: Path, **settings: Any) -> Adapted:
    """A tiny base with a random LoRA on it, and beside it the model that PEFT makes of them."""
    return trained(variant, folder, LoraConfig(r=settings.pop("r", 4), lora_alpha=6, **settings))


def trained(variant: str, folder: Path, config: PeftConfig, stack: str = "") -> Adapted:
    """A tiny base with a random adapter of any kind on it, and beside it the model that PEFT makes of them."""
    save(variant, folder, config)
    return adapt(zp.open_model(f"{folder / 'base'}{stack}"), folder / "adapter")


def save(variant: str, folder: Path, config: PeftConfig) -> None:
    """Write ``base``, ``adapter`` and ``merged``, which computes what PEFT's own model of the two computes."""
    tiny.save(base_model(variant), folder / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hf: Any = get_peft_model(base_model(variant), config)
        randomise(hf)
        hf.save_pretrained(folder / "adapter")
        whole = merged(variant, folder / "adapter")
        tiny.save(whole, folder / "merged")
        tiny.edit(folder / "merged", {"tie_word_embeddings": whole.config.tie_word_embeddings})  # gpt2 does not say it


def randomise(hf: Any) -> None:
    """Draw every trained number at random; what begins as ones, lengths or copies keeps what it is, and noise."""
    draw, seen = torch.Generator().manual_seed(3), set()
    with torch.no_grad():
        for name, parameter in hf.named_parameters(remove_duplicate=False):
            if not parameter.requires_grad or parameter.data_ptr() in seen:
                continue
            seen.add(parameter.data_ptr())
            noise = 0.3 * torch.randn(parameter.shape, generator=draw)
            kept = not any(part in name for part in ("lora_A", "lora_B", "lora_embedding", "modules_to_save.default.w"))
            parameter.copy_(parameter + noise if kept else noise)


def merged(variant: str, adapter: Path) -> PreTrainedModel:
    """The model that computes what PEFT's own does with an adapter.

    PEFT merges a change of a tied table into both tables. So embedding and unembedding are taken from what its modules
    put out, unmerged, and the logits of the result are held against PEFT's.
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
        whole: Any = running.merge_and_unload()
        if tables is not None:
            _set_tables(whole, *tables)
        ours = whole.eval()(**inputs)[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    return whole


def _set_tables(hf: Any, embedding: Tensor, unembedding: Tensor) -> None:
    """Give a model these tables; one where they are equal."""
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
    """Change settings and tensors of an adapter's folder; None takes a tensor away."""
    config = folder / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | settings))
    path = folder / "adapter_model.safetensors"
    kept = load_file(path) | tensors
    save_file({name: tensor.contiguous() for name, tensor in kept.items() if tensor is not None}, path)
    return folder


def alike(found: zp.Model, merged: zp.Model, atol: float = 1e-4) -> None:
    """Every canonical matrix and vector of two models is the same, and so are the tables that states are read with."""
    layers = found.dims.layers
    for role in found.family.vector_roles:
        for layer in range(layers):
            close(found.matrix(role, layer), merged.matrix(role, layer), atol, role)
        close(found.matrix(role, layers - 1, 2, 5), merged.matrix(role, layers - 1, 2, 5), atol, role)
    layout = found.family.layout("hf")
    assert layout is not None
    for what, stored in layout.tensors.items():
        if what in found.family.vector_roles or what in ("embedding", "unembedding", "relative"):
            continue
        for layer in range(layers if "{layer}" in stored.name else 1):
            assert found.has(what) == merged.has(what), what
            if what in ("positions", "types", "embed_projection"):
                if not found.has(what):
                    continue
                close(found.matrix(what), merged.matrix(what), atol, what)
                continue
            mine, theirs = found.vector(what, layer), merged.vector(what, layer)
            assert (mine is None) == (theirs is None), what
            if mine is not None and theirs is not None:
                close(mine, theirs, atol, what)
    close(found.embedding, merged.embedding, atol, "embedding")
    if found.family.causal or found.has("unembedding"):
        close(found.unembedding, merged.unembedding, atol, "unembedding")
        close(found.matrix(found.says, 0, 3, 9), merged.unembedding[3:9], atol, "some of the unembedding")
        assert found.dims.tied == merged.dims.tied
    if "relative" in layout.tensors:
        close(found.relative, merged.relative, atol, "relative")
    for stem, (what, _, rows) in merged.tables().items():
        assert found.tables()[stem][2] == rows == found.rows(what)
    assert canonical_shape("embedding", found.dims) == tuple(found.matrix("embedding").shape)


def close(mine: Tensor, theirs: Tensor, atol: float, what: str) -> None:
    """Two tensors agree."""
    torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=atol, msg=lambda text: f"{what}: {text}")
