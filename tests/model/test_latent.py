"""Latent attention: products of two stored tensors, read lazily, with adapters on them; head maps and refusals."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import adapters
import quantised_files
import small
import tiny
import zeropass as zp
from canonical import read
from tiny import error, save
from zeropass.checkpoints.safetensors import SafetensorsSource
from zeropass.diff.run import compare
from zeropass.errors import BadAddress, BadModel, BadOption, BadWeights, CannotRun, UnknownFamily, ZeropassError
from zeropass.model.frames import Frames
from zeropass.model.opening import open_model
from zeropass.model.running import Running
from zoo import ZOO, drawn, tiny_model

NAMES = sorted(name for name in ZOO if "kv_lora_rank" in ZOO[name][2])
LATENTS = ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj"]

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning"),
    pytest.mark.usefixtures("one_thread"),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("latent")
    return cache(lambda name: save(tiny_model(name), root / name))


def products(weights: dict[str, Tensor], model: zp.Model, layer: int) -> dict[str, Tensor]:
    """Multiply the stored tensors of a layer out, head by head: q, k and v with rotary rows last and neighbours."""
    stem, dims = f"model.layers.{layer}.self_attn.", model.dims

    def of(name: str) -> Tensor:
        return weights[f"{stem}{name}.weight"]

    latent, rotary = of("kv_a_proj_with_mqa").split([dims.kv_latent, dims.rotary])
    plain = of("kv_b_proj") @ (of("kv_a_layernorm")[:, None] * latent)
    k, v = plain.unflatten(0, (dims.heads, -1)).split([dims.head_dim - dims.rotary, dims.width("v")], 1)
    k = torch.cat((k, rotary.expand(dims.heads, -1, -1)), 1).flatten(0, 1)
    direct = f"{stem}q_proj.weight" in weights
    q = of("q_proj") if direct else of("q_b_proj") @ (of("q_a_layernorm")[:, None] * of("q_a_proj"))
    return {"q": q, "k": k, "v": v.flatten(0, 1)}


def rotary_first(rows: Tensor, model: zp.Model) -> Tensor:
    """Bring the rows of heads to the canonical order: rotary ones first, in halves."""
    plain = model.dims.head_dim - model.dims.rotary
    turned = torch.arange(plain, model.dims.head_dim)
    turned = turned if model.family.name == "minicpm3" else torch.cat((turned[::2], turned[1::2]))
    heads = rows.unflatten(0, (model.dims.heads, -1))
    return heads[:, torch.cat((turned, torch.arange(plain)))].flatten(0, 1)


@pytest.mark.parametrize("name", NAMES)
def test_the_matrices_of_heads_are_the_products_of_the_stored_tensors(
    name: str, folders: Callable[[str], Path]
) -> None:
    model, weights = open_model(str(folders(name))), load_file(folders(name) / "model.safetensors")
    assert (model.dims.head_dim, model.dims.rotary, model.dims.value_dim) == (10, 4, 5)
    for layer in range(2):
        true = products(weights, model, layer)
        for role in "qkv":
            expected = true[role] if role == "v" else rotary_first(true[role], model)
            rows = model.matrix(role, layer)
            torch.testing.assert_close(rows, expected)
            assert model.rows(role, layer) == len(rows)
            for start, stop in ((0, 1), (3, 9), (7, 23), (5, 5), (len(rows) - 3, len(rows))):
                torch.testing.assert_close(model.matrix(role, layer, start, stop), rows[start:stop])
            torch.testing.assert_close(model.head(role, layer, 2), rows.unflatten(0, (4, -1))[2])


def test_a_head_reads_its_own_rows_and_the_latents_once(
    folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, numbers = open_model(str(folders("deepseek_v3"))), dict[str, int]()
    plain = SafetensorsSource.rows

    def counted(self: SafetensorsSource, name: str, *args: Any, **more: Any) -> Any:
        rows = plain(self, name, *args, **more)
        numbers[name.split(".")[-2]] = numbers.get(name.split(".")[-2], 0) + rows.size
        return rows

    monkeypatch.setattr(SafetensorsSource, "rows", counted)
    for head in range(4):
        model.head("q", 1, head)
        model.head("v", 1, head)
    dims = model.dims
    assert numbers["q_a_proj"] == dims.q_latent * dims.d
    assert numbers["kv_a_proj_with_mqa"] == dims.kv_latent * dims.d
    assert numbers["q_b_proj"] == dims.heads * dims.head_dim * dims.q_latent
    assert numbers["kv_b_proj"] == dims.heads * dims.value_dim * dims.kv_latent


@pytest.mark.parametrize("name", ["deepseek_v2", "deepseek_v3", "minicpm3"])
def test_vo_maps_add_up_to_the_output_of_attention(name: str, folders: Callable[[str], Path]) -> None:
    """A lone token attends to itself: Σ over heads of vo is what attention writes, read by U."""
    hf, model = tiny_model(name), open_model(str(folders(name)))
    frames, written = Frames(model), list[Tensor]()
    hf.get_submodule("model.layers.1.self_attn.o_proj").register_forward_hook(lambda *call: written.append(call[2]))
    with torch.no_grad():
        hf(torch.arange(model.dims.vocab)[:, None])
    expected = frames.fold(written[0][:, 0], "output", "write", "attn_norm", 1) @ frames.rows("output.write").matrix.T
    maps = [frames.head_map(1, head, "vo") for head in range(model.dims.heads)]
    assert error(sum(m.left @ m.right.T for m in maps), expected) < 1e-4
    paper = frames.head_map(1, 2, "vo", "paper")
    raw = model.embedding @ model.head("v", 1, 2).T @ model.head("o", 1, 2) @ model.unembedding.T
    assert error(paper.left @ paper.right.T, raw) < 1e-5


@pytest.mark.parametrize("kind", ["qk", "vo"])
def test_the_top_pairs_of_a_head_are_those_of_its_entire_map(kind: str, folders: Callable[[str], Path]) -> None:
    lens = zp.Lens(open_model(str(folders("deepseek_v3"))), tokens="all")
    product = lens.head_map(f"L1.attn.3.{kind}")
    entries = product.left @ product.right.T
    pairs = zp.top_pairs(product, 10)
    torch.testing.assert_close(torch.as_tensor(pairs.scores), entries.flatten().topk(10).values, check_dtype=False)


def test_only_the_rotary_part_of_a_head_depends_on_the_offset(folders: Callable[[str], Path]) -> None:
    frames = Frames(open_model(str(folders("deepseek_v3"))))
    near, far = (frames.head_map(1, 0, "qk", offset=offset).left for offset in (0, 7))
    assert error(near[:, 4:], far[:, 4:]) < 1e-6 < error(near[:, :4], far[:, :4])


def test_addresses_have_the_width_of_their_role(folders: Callable[[str], Path]) -> None:
    lens = zp.load(str(folders("deepseek_v3")))
    for address in ("L1.attn.3.q.9", "L1.attn.3.v.4"):
        assert {record.address for record in lens[address]} == {address}
    for address in ("L1.attn.3.v.5", "L1.attn.3.o.5", "L1.attn.3.k.10"):
        with pytest.raises(BadAddress, match="a head has columns 0 to"):
            lens[address]


# Adapters


@pytest.mark.parametrize("modules", [*([name] for name in LATENTS), [*LATENTS, "o_proj"]])
def test_an_adapter_on_latents_is_what_peft_merges(modules: list[str], tmp_path: Path) -> None:
    model = adapters.made("deepseek_v3", tmp_path, target_modules=modules, layers_to_transform=[1])
    merged = open_model(str(tmp_path / "merged"))
    touched = {"q": {"q_a_proj", "q_b_proj"}, "k": {"kv_a_proj_with_mqa", "kv_b_proj"}, "o": {"o_proj"}}
    touched["v"] = touched["k"]
    for layer in range(2):
        for role in "qkvo":
            torch.testing.assert_close(model.matrix(role, layer), merged.matrix(role, layer), atol=1e-4, rtol=1e-4)
            changes = bool(touched[role] & {*modules}) and layer == 1
            assert model.touches(role, layer) == changes
            assert (model.change(role, layer) is not None) == changes
    states = torch.randn(3, 24, generator=torch.Generator().manual_seed(1))
    for role in "qkv":
        assert error(read(model, role, 1, states), read(merged, role, 1, states)) < 1e-4
    difference = compare(str(tmp_path / "base"), model, frames=Frames(model.base))
    assert {matrix.role for matrix in difference.matrices} == {role for role in "qkvo" if touched[role] & {*modules}}


def test_a_norm_of_latents_that_an_adapter_trains_is_in_the_product(tmp_path: Path) -> None:
    model = adapters.trained(
        "deepseek_v3",
        tmp_path,
        LoraConfig(r=2, target_modules=["q_b_proj"], modules_to_save=["kv_a_layernorm"]),
    )
    merged = open_model(str(tmp_path / "merged"))
    assert model.touches("k", 0)
    for role in "qkv":
        torch.testing.assert_close(model.matrix(role, 0), merged.matrix(role, 0), atol=1e-4, rtol=1e-4)


# Two models


def test_a_copy_in_a_narrower_type_is_rounded_and_not_changed(folders: Callable[[str], Path], tmp_path: Path) -> None:
    copy = save(tiny_model("youtu").bfloat16(), tmp_path / "copy")
    difference = compare(str(folders("youtu")), str(copy))
    assert difference.relation == "rounded"


def test_a_latent_of_another_length_is_a_change_though_the_products_are_equal(
    folders: Callable[[str], Path], tmp_path: Path
) -> None:
    hf = tiny_model("youtu")
    attention = hf.get_submodule("model.layers.1.self_attn")
    with torch.no_grad():
        attention.get_parameter("q_a_proj.weight").mul_(4)
        attention.get_parameter("q_b_proj.weight").div_(4)
    difference = compare(str(folders("youtu")), str(save(hf, tmp_path / "other")))
    assert [table.name for table in difference.tables] == ["L1 q_latent"]


def test_an_atlas_of_a_change_has_the_columns_but_refuses_the_maps(tmp_path: Path) -> None:
    model = adapters.made("youtu", tmp_path, target_modules=LATENTS)
    base = open_model(str(tmp_path / "base"))
    for kind in ("qk", "vo"):
        with pytest.raises(BadOption, match=f"norms the latents of its attention, so the change of a {kind} map"):
            zp.build_change(base, model, tmp_path / kind, zp.Options(k=5, roles=(kind,)))
    assert zp.build_change(base, model, tmp_path / "columns", zp.Options(k=5, roles=("q", "v")))


# Files


@pytest.mark.parametrize("method", ["fp8", "fp8-tensor", "nf4"])
def test_quantised_factors_are_read_as_what_they_stand_for(
    method: str, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    folder, values = quantised_files.quantised(folders("youtu"), tmp_path / "q", method)
    model = open_model(str(folder))
    for layer in range(2):
        true = products(values, model, layer)
        for role in "qkv":
            expected = true[role] if role == "v" else rotary_first(true[role], model)
            torch.testing.assert_close(model.matrix(role, layer), expected, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(
                model.head(role, layer, 1), expected.unflatten(0, (4, -1))[1], atol=1e-4, rtol=1e-4
            )


REFUSED: dict[str, tuple[str, dict[str, Any], type[ZeropassError], str]] = {
    "biases": ("deepseek_v3", {"attention_bias": True}, UnknownFamily, "attention_bias is True"),
    "halves": ("deepseek_v3", {"rope_interleave": False}, UnknownFamily, "rope_interleave is False"),
    "another choice": ("deepseek_v2", {"topk_method": "noaux_tc"}, UnknownFamily, "topk_method is 'noaux_tc'"),
    "normed weights": ("deepseek_v2", {"norm_topk_prob": True}, UnknownFamily, "norm_topk_prob is True"),
    "shared keys": ("deepseek_v3", {"num_key_value_heads": 2}, BadModel, "2 for 4 heads.*keys and values of its own"),
    "another width": ("deepseek_v3", {"head_dim": 10}, BadModel, "head_dim is 10; it must be qk_rope_head_dim, 4"),
    "no rank": ("deepseek_v3", {"kv_lora_rank": None}, BadModel, "lacks kv_lora_rank"),
    "another rank": ("deepseek_v3", {"kv_lora_rank": 13}, BadWeights, r"kv_a_proj_with_mqa.*\(18, 24\).*\(17, 24\)"),
    "layers": ("glm4_moe_lite", {"mlp_layer_types": ["sparse", "hybrid"]}, BadModel, "'dense' or 'sparse'"),
    "too few layers": ("glm4_moe_lite", {"mlp_layer_types": ["sparse"]}, BadModel, "for each of the 2 layers"),
    "first layers": ("glm4_moe_lite", {"first_k_dense_replace": 2}, UnknownFamily, "first_k_dense_replace is 2"),
    "no width of values": ("deepseek_v3", {"v_head_dim": None}, BadModel, "lacks v_head_dim"),
    "another share": (
        "mistral4",
        {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.6}},
        BadModel,
        "partial_rotary_factor is 0.6 of 10; it must be 4",
    ),
}


def test_the_values_of_minicpm3_fill_the_stream_where_no_width_is_stated(tmp_path: Path) -> None:
    settings = ZOO["minicpm3"][2] | {"v_head_dim": None}
    hf = drawn("MiniCPM3ForCausalLM", "MiniCPM3Config", settings)
    folder = save(hf, tmp_path / "minicpm3")
    text = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({k: v for k, v in text.items() if k != "v_head_dim"}))
    assert open_model(str(folder)).dims.value_dim == hf.config.v_head_dim == 6


@pytest.mark.parametrize("name", ["deepseek_v32", "glm_moe_dsa"])
@torch.no_grad()
def test_a_text_with_more_tokens_than_an_indexer_leaves_keys_is_refused(
    name: str, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    hf, running = tiny_model(name), Running(open_model(str(folders(name))))
    keys = running.model.dims.indexed_keys
    assert keys == 16
    ids = torch.arange(4, 4 + keys + 8)[None]
    plain, short = hf(ids).logits, ids[:, :keys]
    assert error(running.logits(running.run(short)), hf(short).logits) < 1e-4
    with pytest.raises(CannotRun, match="16 others that an indexer chooses"):
        running.run(ids)
    unlimited = replace(running.model, dims=replace(running.model.dims, indexed_keys=None))
    assert error(Running(unlimited).logits(Running(unlimited).run(ids)), plain) > 0.01  # so that it matters
    assert zp.calibrate(running.model, tokens=300).facts.window == keys
    assert any(".indexer.wk.weight" in name for name in running.model.info()["tensors_unread"])


def test_the_first_configurations_of_sarvam_are_read(tmp_path: Path) -> None:
    folder = save(tiny_model("sarvam_mla"), tmp_path / "sarvam")
    config = json.loads((folder / "config.json").read_text())
    yarn = {"type": "deepseek_yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    others = {"rope_parameters": None, "rope_theta": 500.0, "head_dim": 18, "q_head_dim": 10, "num_mtp_layers": 0}
    scaling = {"rope_scaling": yarn | {"mscale": 0.7, "mscale_all_dim": 0.7}}
    names = {"num_experts": config.pop("n_routed_experts"), "num_shared_experts": config.pop("n_shared_experts")}
    (folder / "config.json").write_text(json.dumps({**config, **others, **scaling, **names}))
    hf = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    model, ids = open_model(str(folder)), torch.arange(tiny.TOKENS)[None]
    running = Running(model)
    assert model.dims.rope is not None
    assert model.dims.rope.kind == "yarn"
    with torch.no_grad():
        assert error(running.logits(running.run(ids)), hf(ids).logits) < 1e-4


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_a_variant_that_is_not_known_is_refused(case: str, tmp_path: Path) -> None:
    name, settings, kind, words = REFUSED[case]
    folder = save(tiny_model(name), tmp_path / name)
    tiny.edit(folder, settings)
    with pytest.raises(kind, match=words):
        open_model(str(folder))


def test_an_absent_rank_of_queries_is_refused_with_what_it_stands_for(tmp_path: Path) -> None:
    folder = save(tiny_model("deepseek_v3-direct"), tmp_path / "v3")
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(re.sub(r'\s*"q_lora_rank": null,', "", text))
    with pytest.raises(BadModel, match="q_lora_rank is absent, which stands for 1536"):
        open_model(str(folder))
    folder = save(tiny_model("deepseek_v3"), tmp_path / "latent")
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"q_lora_rank": 11', '"q_lora_rank": null'))
    with pytest.raises(BadWeights, match=r"self_attn\.q_proj\.weight is missing; there is .*q_a_layernorm"):
        open_model(str(folder))


# The lens, and what is built on it


def test_the_maps_of_a_lens_are_divided_as_the_model_does_it(folders: Callable[[str], Path]) -> None:
    """Rows of ``seen`` are states of a layer; with the identity for a lens, its maps are those of these states."""
    model = open_model(str(folders("deepseek_v3")))
    plain = Frames(model)
    lens = zp.calibrate(model, tokens=300)
    frames = Frames(model, lens)
    rows = frames.rows("token").matrix
    matrix, mean = lens.seen(1)
    states = rows @ matrix + mean
    for role in "qkv":
        columns = plain.fold(model.head(role, 1, 1), "token", "read", "attn_norm", 1)
        lengths = plain.lengths(1, role, states, torch.zeros(model.dims.d))
        through = frames.lengths(1, role, rows, rows.mean(0), frame="seen")
        assert lengths is not None
        assert through is not None
        assert error(through.each, lengths.each) < 1e-4, role
        assert columns.shape[0] == model.dims.width(role)


def test_an_atlas_is_what_the_lens_says(folders: Callable[[str], Path], tmp_path: Path) -> None:
    atlas = small.build(folders("minicpm3"), tmp_path / "atlas", zp.Options(k=7, pairs=8, tokens="all"))
    lens = zp.Lens(open_model(str(folders("minicpm3"))), tokens="all")
    for address in ("L1.attn.2.v.4", "L0.attn.3.q.9", "L1.attn.0.k.0", "L1.attn.1.o.3"):
        ours, theirs = atlas.explain(address), lens.explain(address)
        assert [[entry.id for entry in record.top[:5]] for record in ours] == [
            [entry.id for entry in record.top[:5]] for record in theirs
        ]
    with pytest.raises(BadAddress, match="subhead 5 is out of range, the model has subheads 0 to 4"):
        atlas.explain("L1.attn.2.v.5")
