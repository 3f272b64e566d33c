"""Canonical parameters against the models themselves, on tiny random checkpoints: cases beyond test_every_family.py.

These are variants of a family (one key/value head, scaled RoPE, other ties and activations), full head maps, tables
and addresses. Every check is a function that returns the error of a canonical model, so that the controls at the end
can run it on wrong records.
"""

import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.activations import ACT2FN

import tiny
from canonical import bias_of, read, split, with_tensors
from tiny import Run, error, make, run, save
from zeropass.arch.layout import Stored
from zeropass.arch.roles import FF_ROLES, OUTSIDE, side_of
from zeropass.model.address import parse
from zeropass.model.blocks import ACTIVATIONS
from zeropass.model.frames import Frames
from zeropass.model.model import Model
from zeropass.model.opening import open_model
from zeropass.model.vectors import bias_roles, count_of, locate, table_roles, vector_set
from zeropass.numerics.projection import apply_norm, normed, rotate

pytestmark = pytest.mark.usefixtures("one_thread")

TOLERANCE = 1e-4
WRONG = 1e-2
"""A check on a wrong record must be off by more than this."""

POSITIONS = torch.tensor([0, 1, 5, 40, 400])
VARIANTS = sorted(tiny.MAKERS)
IN_THE_ZOO = {"llama", "llama-biased", "gpt2"}
"""Variants that test_every_family.py puts through more checks of the same kind."""
LLAMAS = [v for v in VARIANTS if v.startswith("llama")]


@dataclass(frozen=True, eq=False)
class Case:
    """A checkpoint opened by transformers and by zeropass, with a run on text."""

    hf: PreTrainedModel
    model: Model
    text: Run
    ids: Tensor

    def alone(self, position: int = 0) -> Run:
        """Run every token of the vocabulary as a text of its own, without position embeddings."""
        hf = self.hf
        tables = [p for n, p in hf.named_parameters() if "wpe" in n or "position_embeddings" in n]
        originals = [p.detach().clone() for p in tables]
        with torch.no_grad():
            for p in tables:
                p.zero_()
        try:
            return run(hf, torch.arange(tiny.VOCAB)[:, None], torch.tensor([position]) if not tables else None)
        finally:
            with torch.no_grad():
                for p, original in zip(tables, originals, strict=True):
                    p.copy_(original)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="module")
def cases(folder: Path):
    @cache
    def case(variant: str) -> Case:
        hf = make(variant)
        model = open_model(str(save(hf, folder / variant)))
        ids = torch.randint(tiny.TOKENS, (3, len(POSITIONS)), generator=torch.Generator().manual_seed(1))
        text = run(hf, ids, POSITIONS if model.dims.rope else None)
        return Case(hf, model, text, ids)

    return case


@pytest.fixture(params=VARIANTS)
def case(request: pytest.FixtureRequest, cases) -> Case:
    return cases(request.param)


# Roles


def ff_reads_error(case: Case, model: Model, layer: int = 1) -> float:
    """Compare the pre-activations of the MLP."""
    stream = case.text.reads(layer, "ff")
    roles = [role for role in model.family.ff_roles if side_of(role) == "read"]
    return max(error(read(model, role, layer, stream), case.text.linear(layer, role)[1]) for role in roles)


def values_error(case: Case, model: Model, layer: int = 1) -> float:
    """Compare Σ activation x value + bias with the output of the MLP."""
    activation, written = case.text.linear(layer, "value")
    output = activation @ vector_set(model, layer, "value").vectors + bias_of(model, "ff_bias", layer)
    return error(output, written)


def logits_error(case: Case, model: Model, layer: int = 1) -> float:
    """Compare attention logits before softmax at the true offsets, from the two sides of a head map."""
    frames, stream = Frames(model), case.text.reads(layer, "attn")
    x = normed(stream, model.family.norm, model.dims.eps) if model.family.norm_place == "pre" else stream
    keys = split(read(model, "k", layer, stream), model)
    q, k, _ = case.text.qkv[layer]
    true = q @ k.repeat_interleave(model.dims.group, 1).mT
    worst = 0.0
    for head in range(model.dims.heads):
        folded = frames.fold(model.head("q", layer, head), "token", "read", "attn_norm", layer)
        queries = frames.as_query(x @ folded.T, layer, head, "token", 0)
        logits = torch.empty_like(true[:, head])
        for i, at in enumerate(POSITIONS.tolist()):
            for j, key_at in enumerate(POSITIONS.tolist()):
                offset = at - key_at if model.dims.rope else 0
                query = rotate(queries[:, i], offset, frames.frequencies()) if offset else queries[:, i]
                logits[:, i, j] = (query * keys[:, j, model.kv_head("k", head, layer)]).sum(-1)
        worst = max(worst, error(logits, true[:, head]))
    return worst


def heads_error(case: Case, model: Model, layer: int = 1) -> float:
    """Compare Σ over heads of weight x (v through o), + b_v W_O of each head, + bias with the attention output."""
    bare = read(model, "v", layer, case.text.reads(layer, "attn"))
    bias = model.vector("v_bias", layer)
    values = split(bare if bias is None else bare - bias, model)
    output = torch.zeros_like(case.text.linear(layer, "o")[1]) + bias_of(model, "attn_bias", layer)
    for head in range(model.dims.heads):
        mixed = case.text.weights[layer][:, head] @ values[:, :, model.kv_head("v", head, layer)]
        output += mixed @ model.head("o", layer, head)
    return error(output + bias_of(model, "v_bias", layer), case.text.linear(layer, "o")[1])


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("check", [ff_reads_error, values_error, logits_error, heads_error])
@pytest.mark.parametrize("variant", sorted({*VARIANTS} - IN_THE_ZOO))
def test_parameters_compute_what_the_model_computes(variant: str, layer: int, check, cases):
    assert check(cases(variant), cases(variant).model, layer) < TOLERANCE


def test_block_0_reads_the_embedded_tokens(case: Case):
    model, stream = case.model, case.alone().reads(0, "attn")[:, 0]
    pre = model.family.norm_place == "pre"
    expected = normed(stream, model.family.norm, model.dims.eps) if pre else stream
    assert error(Frames(model).rows("embedded").matrix, expected) < TOLERANCE


# Head maps, and vectors that write


@pytest.mark.parametrize("layer", [0, 1])
def test_a_qk_map_holds_the_logits_of_two_tokens(case: Case, layer: int):
    """Layers 0 and 1 read a lone token exactly as the token frame has it, so the map holds logits."""
    frames, used = Frames(case.model), torch.from_numpy(case.model.vocab.used)
    for offset in (0, 1, 7, -3) if case.model.dims.rope else (0,):
        q = case.alone(max(offset, 0)).qkv[layer][0][:, :, 0]
        k = case.alone(max(-offset, 0)).qkv[layer][1][:, :, 0]
        for head in range(case.model.dims.heads):
            logits = q[:, head] @ k[:, case.model.kv_head("k", head, layer)].T
            product = frames.head_map(layer, head, "qk", offset=offset)
            expected = logits - logits[:, used].mean(1, keepdim=True)
            assert error(product.left @ product.right.T, expected) < TOLERANCE


@pytest.mark.parametrize("layer", [0, 1])
def test_vo_maps_add_up_to_the_output_of_attention(case: Case, layer: int):
    """A lone token attends to itself: Σ over heads of vo, plus constants, is its output read by U."""
    model, frames = case.model, Frames(case.model)
    written = case.alone().linear(layer, "o")[1][:, 0]
    expected = frames.fold(written, "output", "write", "attn_norm", layer) @ frames.rows("output.write").matrix.T
    maps = [frames.head_map(layer, head, "vo") for head in range(model.dims.heads)]
    total = sum(m.left @ m.right.T for m in maps)
    constant = bias_of(model, "attn_bias", layer) + bias_of(model, "v_bias", layer)
    shift = model.vector("attn_norm_bias", layer) if model.family.norm_place == "pre" else None
    if shift is not None:
        values = split(model.matrix("v", layer) @ shift, model)
        constant = constant + sum(values[h] @ model.head("o", layer, h) for h in range(model.dims.heads))
    if isinstance(constant, Tensor):
        folded = frames.fold(constant[None], "output", "write", "attn_norm", layer)
        total = total + folded @ frames.rows("output.write").matrix.T
    assert error(total, expected) < TOLERANCE


def test_written_vectors_pass_the_norm_after_a_post_norm_block(cases):
    """Post-norm: the folded parts of stream, values and bias, over one deviation, plus the shift, are the output."""
    case = cases("bert")
    model, frames, layer = case.model, Frames(case.model), 1
    activation, written = case.text.linear(layer, "value")
    before = case.text.reads(layer, "ff")
    values = vector_set(model, layer, "value").vectors
    parts = before, activation @ values, vector_set(model, layer, "ff_bias").vectors.expand_as(before)
    folded = sum(frames.fold(part, "output", "write", "ff_norm", layer) for part in parts)
    std = ((before + written).var(-1, correction=0, keepdim=True) + model.dims.eps).sqrt()
    shift = vector_set(model, layer, "ff_norm").vectors
    assert error(folded / std + shift, case.text.result.hidden_states[layer + 1]) < TOLERANCE


def test_the_query_bias_is_the_part_of_the_logits_that_ignores_the_query(cases):
    """``b_q W_Kᵀ`` times a state is the bias times what the key vectors read from that state."""
    for variant in ("llama-biased", "llama-one-kv", "gpt2", "bert"):
        case = cases(variant)
        model, stream = case.model, case.text.reads(1, "attn")
        x = normed(stream, model.family.norm, model.dims.eps) if model.family.norm_place == "pre" else stream
        biases = vector_set(model, 1, "q_bias")
        bias = split(model.vector("q_bias", 1), model)
        keys = vector_set(model, 1, "k").vectors
        reads = split(x @ Frames(model).fold(keys, "token", "read", "attn_norm", 1).T, model)
        expected = torch.stack([reads[..., model.kv_head("k", h, 1), :] @ bias[h] for h in range(model.dims.heads)], -1)
        folded = Frames(model).fold(biases.vectors, "token", biases.side, biases.norm, 1)
        assert error(x @ folded.T, expected) < TOLERANCE


# Frequencies, activations, tables, addresses


@pytest.mark.parametrize("variant", LLAMAS)
def test_frequencies_are_those_of_the_model(variant: str, cases):
    case = cases(variant)
    assert error(Frames(case.model).frequencies(), case.hf.model.rotary_emb.inv_freq) < 1e-6


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activations_are_those_of_transformers(name: str):
    x = torch.linspace(-6, 6, 401)
    assert error(ACTIVATIONS[name](x), ACT2FN[name](x)) < 1e-6


def test_tables_outside_the_blocks_are_those_of_the_model(cases):
    """Every table is the tensor of the model, and each row has its address."""
    expected = {
        "gpt2": {"pos": "transformer.wpe.weight"},
        "bert": {
            "pos": "embeddings.position_embeddings.weight",
            "type": "embeddings.token_type_embeddings.weight",
            "pooler": "pooler.dense.weight",
        },
        "bert-untied": {
            "mlm": "cls.predictions.transform.dense.weight",
            "mlm_norm": "cls.predictions.transform.LayerNorm.bias",
        },
    }
    for variant, tables in expected.items():
        case = cases(variant)
        for stem, name in tables.items():
            true = case.hf.state_dict()[name]
            table = vector_set(case.model, OUTSIDE, stem)
            torch.testing.assert_close(table.vectors, true if true.ndim == 2 else true[None])
            assert len(table.addresses) == count_of(case.model, OUTSIDE, stem)


def test_every_address_leads_back_to_its_vector(case: Case):
    """The addresses of each set of vectors, written out and parsed again, lead to their own rows."""
    model = case.model
    roles = (*model.family.vector_roles, *bias_roles(model))
    sets = [(1, role) for role in roles] + [(OUTSIDE, role) for role in table_roles(model)]
    for layer, role in sets:
        vectors = vector_set(model, layer, role)
        assert len(vectors.addresses) == len(vectors.vectors) == count_of(model, layer, role)
        for row, address in enumerate(vectors.addresses):
            text = f"{address}.{role}" if role in FF_ROLES else str(address)
            assert locate(model, parse(text)) == (layer, role, row), text
        last = len(vectors.addresses) - 1
        part = vector_set(model, layer, role, last, last + 1)
        assert part.addresses == vectors.addresses[last:]
        assert torch.equal(part.vectors, vectors.vectors[last:])


def test_every_query_head_of_a_group_names_its_key_vectors(cases):
    model = cases("llama").model
    for head in range(4):
        assert locate(model, parse(f"L1.attn.{head}.k.3")) == (1, "k", head // 2 * 8 + 3)
        assert locate(model, parse(f"L1.attn.{head}.o.3")) == (1, "o", head * 8 + 3)


def test_the_norm_of_the_embedding_is_applied_in_full(cases):
    """In BERT the word, the first type and the norm with its shift make the input of block 0."""
    case = cases("bert-mlm")
    model = case.model
    entering = model.embedding + model.matrix("types", 0, 0, 1)
    expected = apply_norm(
        entering, "layer", model.dims.eps, model.vector("embed_norm"), model.vector("embed_norm_bias")
    )
    assert torch.equal(Frames(model).rows("embedded").matrix, expected)


# Controls: a wrong record must not pass


WRONG_RECORDS = {
    "q of another layer": (
        "llama",
        logits_error,
        lambda m: with_tensors(m, q=Stored("layers.0.self_attn.q_proj.weight")),
    ),
    "wrong part of a bias": (
        "gpt2",
        logits_error,
        lambda m: with_tensors(m, q_bias=replace(m.layout.tensors["q_bias"], fused="grouped")),
    ),
    "not transposed": (
        "gpt2",
        heads_error,
        lambda m: with_tensors(m, o=replace(m.layout.tensors["o"], transpose=True)),
    ),
    "no RoPE scaling": (
        "llama-rope3",
        logits_error,
        lambda m: replace(m, dims=replace(m.dims, rope=replace(m.dims.rope, kind="default"))),
    ),
    "no linear scaling": (
        "llama-linear",
        logits_error,
        lambda m: replace(m, dims=replace(m.dims, rope=replace(m.dims.rope, kind="default"))),
    ),
}
"""Corruptions that test_every_family.py does not try."""


@pytest.mark.parametrize("name", sorted(WRONG_RECORDS))
def test_a_wrong_record_is_caught(name: str, cases):
    variant, check, spoil = WRONG_RECORDS[name]
    case = cases(variant)
    assert check(case, case.model) < TOLERANCE
    assert check(case, spoil(case.model)) > WRONG


def test_paired_rows_show_only_at_an_offset(cases):
    """Logits are checked at offsets because reordering q and k alike changes nothing at offset 0."""
    case = cases("llama")
    wrong = with_tensors(case.model, **{r: replace(case.model.layout.tensors[r], paired_rows=True) for r in "qk"})
    entries = {
        (name, offset): (lambda m: m.left @ m.right.T)(Frames(model).head_map(1, 3, "qk", offset=offset))
        for name, model in (("right", case.model), ("wrong", wrong))
        for offset in (0, 3)
    }
    assert error(entries["wrong", 0], entries["right", 0]) < TOLERANCE
    assert error(entries["wrong", 3], entries["right", 3]) > WRONG


def test_the_names_of_the_first_bert_are_read(cases, tmp_path: Path):
    """bert-base-uncased names its weight and bias gamma and beta."""
    case = cases("bert")
    folder = save(case.hf, tmp_path / "old")
    tensors = load_file(folder / "model.safetensors")
    names = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    old = {re.sub("|".join(names), lambda m: names[m[0]], name): tensor for name, tensor in tensors.items()}
    save_file(old, folder / "model.safetensors")
    model = open_model(str(folder))
    for name in ("embed_norm", "attn_norm_bias", "ff_norm"):
        assert torch.equal(model.vector(name, 0), case.model.vector(name, 0))
    assert "LayerNorm" not in str(model.info()["tensors_unread"])
