"""Real files and GGUF: canonical parameters equal those that transformers makes of the same file."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BertModel
from transformers.utils import logging

from gguf_files import write_gguf
from tiny import error, make, run, save
from zeropass.arch.layout import Stored
from zeropass.model.frames import Frames
from zeropass.model.model import Model
from zeropass.model.opening import open_model

ROUNDING = 1e-6

LLAMA_ROLES = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "value": "mlp.down_proj",
}
LLAMA_NORMS = {"attn_norm": "input_layernorm", "ff_norm": "post_attention_layernorm"}
BERT_ROLES = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "o": "attention.output.dense",
    "key": "intermediate.dense",
    "value": "output.dense",
}
WRITES = ("o", "value")


@pytest.fixture(scope="module")
def smollm2(smollm2_path: Path) -> Iterator[tuple[Model, nn.Module]]:
    """Yield the GGUF file as opened by zeropass, and by transformers in float32."""
    logging.disable_progress_bar()
    hf = AutoModelForCausalLM.from_pretrained(
        str(smollm2_path.parent), gguf_file=smollm2_path.name, dtype=torch.float32
    )
    yield open_model(str(smollm2_path)), hf
    logging.enable_progress_bar()


def weight(module: nn.Module, role: str) -> Tensor:
    """Return a torch Linear layer as (rows, d); written rows are its columns."""
    matrix = module.weight.detach()
    return matrix.T if role in WRITES else matrix


def test_every_matrix_of_smollm2_is_that_of_transformers(smollm2: tuple[Model, nn.Module]):
    model, hf = smollm2
    for layer, block in enumerate(hf.model.layers):
        for role, name in LLAMA_ROLES.items():
            expected = weight(block.get_submodule(name), role)
            assert error(model.matrix(role, layer), expected) < ROUNDING, f"L{layer} {role}"
        for norm, name in LLAMA_NORMS.items():
            assert error(model.vector(norm, layer), block.get_submodule(name).weight.detach()) < ROUNDING
    assert layer == model.dims.layers - 1


def test_smollm2_outside_the_blocks_is_that_of_transformers(smollm2: tuple[Model, nn.Module]):
    model, hf = smollm2
    assert model.dims.tied
    assert error(model.embedding, hf.model.embed_tokens.weight.detach()) < ROUNDING
    assert error(model.unembedding, hf.lm_head.weight.detach()) < ROUNDING
    assert error(model.vector("final_norm"), hf.model.norm.weight.detach()) < ROUNDING
    assert error(Frames(model).frequencies(), hf.model.rotary_emb.inv_freq) < ROUNDING
    config = hf.config
    assert (model.dims.heads, model.dims.kv_heads, model.dims.head_dim) == (9, 3, 64)
    assert model.dims.eps == pytest.approx(config.rms_norm_eps)
    assert model.dims.rope.theta == pytest.approx(config.rope_parameters["rope_theta"])


def test_parts_of_the_matrices_of_smollm2_equal_the_full_ones(smollm2: tuple[Model, nn.Module]):
    """Rows start:stop are those of the full matrix, also where a role is unpaired or transposed."""
    model, _ = smollm2
    for role in (*LLAMA_ROLES, "embedding"):
        full = model.embedding if role == "embedding" else model.matrix(role, 7)
        assert torch.equal(model.matrix(role, 7, 65, 130), full[65:130]), role
    assert torch.equal(model.head("k", 7, 5), model.matrix("k", 7)[64:128])


def test_rows_of_smollm2_that_stay_paired_are_caught(smollm2: tuple[Model, nn.Module]):
    model, hf = smollm2
    tensors = {**model.layout.tensors, "q": Stored("blk.{layer}.attn_q.weight")}
    wrong = replace(model, layout=replace(model.layout, tensors=tensors))
    assert error(wrong.matrix("q", 3), hf.model.layers[3].self_attn.q_proj.weight.detach()) > 0.1


def test_parameters_of_minilm_are_those_of_transformers_and_of_a_forward_pass(minilm_path: Path):
    model, layer = open_model(str(minilm_path)), 3
    logging.disable_progress_bar()
    hf = BertModel.from_pretrained(minilm_path, dtype=torch.float32, attn_implementation="eager").eval()
    logging.enable_progress_bar()
    block = hf.encoder.layer[layer]
    for role, name in BERT_ROLES.items():
        module = block.get_submodule(name)
        assert torch.equal(model.matrix(role, layer), weight(module, role)), role
        assert torch.equal(model.vector(f"{role}_bias", layer), module.bias), role
    for norm, name in (("attn_norm", "attention.output.LayerNorm"), ("ff_norm", "output.LayerNorm")):
        assert torch.equal(model.vector(norm, layer), block.get_submodule(name).weight)
        assert torch.equal(model.vector(f"{norm}_bias", layer), block.get_submodule(name).bias)

    text = run(hf, torch.tensor([model.vocab.encode("The capital of France is Paris.")]))
    stream = text.reads(layer, "ff")
    keys = stream @ model.matrix("key", layer).T + model.vector("key_bias", layer)
    written = nn.functional.gelu(keys) @ model.matrix("value", layer) + model.vector("value_bias", layer)
    assert error(written, text.linear(layer, "value")[1]) < 1e-4


# A tiny GGUF file as llama.cpp's converter writes it, with features that the real file lacks


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Model]:
    """Return one checkpoint (untied, GQA, biased, Llama 3.1's RoPE) as a folder and as a GGUF file."""
    folder = tmp_path_factory.mktemp("twins")
    save(make("llama-rope3"), folder)
    return open_model(str(folder)), open_model(str(write_gguf(folder, folder / "model.gguf")))


def test_gguf_and_folder_give_the_same_model(twins: tuple[Model, Model]):
    folder, file = twins
    assert replace(file.dims, eps=folder.dims.eps, rope=folder.dims.rope) == folder.dims
    assert torch.equal(file.embedding, folder.embedding)
    assert torch.equal(file.unembedding, folder.unembedding)
    for layer in range(folder.dims.layers):
        for role in LLAMA_ROLES:
            assert torch.equal(file.matrix(role, layer), folder.matrix(role, layer)), role
        for name in (*LLAMA_NORMS, "q_bias", "k_bias", "v_bias", "o_bias"):
            assert torch.equal(file.vector(name, layer), folder.vector(name, layer)), name


def test_gguf_frequencies_and_head_maps_at_an_offset_are_those_of_the_folder(twins: tuple[Model, Model]):
    folder, file = (Frames(model) for model in twins)
    assert error(file.frequencies(), folder.frequencies()) < ROUNDING
    # The tokenizers use different tokens, so the means over keys differ: centre both maps in the same way.
    products = [frames.head_map(1, 3, "qk", offset=50) for frames in (folder, file)]
    centred = [m.left @ (m.right - m.right.mean(0)).T for m in products]
    assert error(centred[1], centred[0]) < 1e-4
