"""Every supported adapter method, against the model that PEFT makes of it."""

import json
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file

import tiny
import zeropass as zp
import zoo
from adapters import ALL, alike, close, save, spoiled, trained
from zeropass.checkpoints import adapter_settings
from zeropass.checkpoints.adapter_settings import COMPUTED, METHODS
from zeropass.errors import BadModel, BadWeights, ZeropassError
from zeropass.model.adapted import adapt
from zeropass.model.adapter_names import Names
from zeropass.numerics.factored import Factored

pytestmark = pytest.mark.filterwarnings("ignore")

WITH_FORMULA: dict[str, dict[str, Any]] = {
    "ADALORA": {"init_r": 4, "target_r": 2, "total_step": 10, "lora_alpha": 7},
    "IA3": {"feedforward_modules": ["down_proj", "o_proj"]},
    "LN_TUNING": {"target_modules": ["norm", "input_layernorm"]},
    "LORA": {"r": 4, "bias": "all"},
    "LORA biased": {"r": 4, "lora_alpha": 7, "lora_bias": True},
    "LORA only": {"r": 4, "bias": "lora_only", "init_lora_weights": "orthogonal"},
    "LORA mica": {"r": 4, "init_lora_weights": "mica"},
    "LORA eva": {"r": 4, "init_lora_weights": "eva"},
    "LORA gaussian": {"r": 4, "init_lora_weights": "gaussian", "modules_to_save": ["norm"]},
    "LORA random": {"r": 4, "init_lora_weights": False, "exclude_modules": ["k_proj"], "layers_to_transform": [1]},
}
WITHOUT_FORMULA: dict[str, dict[str, Any]] = {
    "VERA": {"r": 4},
    "VERA drawn again": {"r": 4, "save_projection": False},
    "LOHA": {"r": 4, "alpha": 6, "rank_pattern": {"q_proj": 3}},
    "LOKR": {"r": 2, "alpha": 6, "decompose_both": True},
    "OFT": {"oft_block_size": 4, "r": 0},
    "BOFT": {"boft_block_size": 4},
    "HRA": {"r": 4, "apply_GS": True},
    "FOURIERFT": {"n_frequency": 20},
    "C3A": {"block_size": 8},
    "RANDLORA": {"r": 4},
    "HIRA": {"r": 4},
    "MISS": {"r": 4},
    "ROAD": {"group_size": 8, "variant": "road_2"},
}


def config(name: str, settings: dict[str, Any]) -> peft.PeftConfig:
    config_type = peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(name.split()[0])]
    peft_config = config_type(**({"target_modules": list(ALL)} | settings))
    assert isinstance(peft_config, peft.PeftConfig)
    return peft_config


@pytest.mark.parametrize("name", WITH_FORMULA)
def test_a_formula_gives_what_peft_merges(name: str, tmp_path: Path) -> None:
    adapted = trained("llama-biased", tmp_path, config(name, WITH_FORMULA[name]))
    alike(adapted, zp.open_model(str(tmp_path / "merged")))
    factored = isinstance(adapted.change("q", 1), Factored)
    assert factored == (name.split()[0] in ("LORA", "ADALORA"))


@pytest.mark.parametrize("name", WITHOUT_FORMULA)
def test_peft_computes_methods_without_a_formula_here(name: str, tmp_path: Path) -> None:
    adapted = trained("llama-biased", tmp_path, config(name, WITHOUT_FORMULA[name]))
    alike(adapted, zp.open_model(str(tmp_path / "merged")))
    assert (name.split()[0] in COMPUTED) and name.split()[0] not in METHODS


def test_every_listed_method_is_tested() -> None:
    assert {name.split()[0] for name in WITHOUT_FORMULA} == set(COMPUTED)
    assert {name.split()[0] for name in WITH_FORMULA} | {"TRAINABLE_TOKENS"} == set(METHODS)


def test_every_known_key_is_a_field_of_peft() -> None:
    for method, keys in (METHODS | {name: keys for name, (_, keys) in COMPUTED.items()}).items():
        config_type = peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(method)]
        assert keys.keys() <= config_type.__dataclass_fields__.keys(), method
    assert adapter_settings._EVERYWHERE.keys() <= LoraConfig.__dataclass_fields__.keys()


def test_a_pruned_adalora_is_scaled_by_its_initial_rank(tmp_path: Path) -> None:
    adapted = trained("llama", tmp_path, config("ADALORA", WITH_FORMULA["ADALORA"]))
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors, kept_ranks = load_file(path), [True, False, True, False]
    masks = {}
    for name, tensor in tensors.items():
        part = name.rpartition(".")[2]
        tensors[name] = (tensor[:, kept_ranks] if part == "lora_B" else tensor[kept_ranks]).contiguous()
        masks[name.removeprefix("base_model.model.")] = kept_ranks
    save_file(tensors, path)
    settings = path.with_name("adapter_config.json")
    masks = {name: mask for name, mask in masks.items() if name.endswith("lora_E")}
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"rank_pattern": masks}))
    again = adapt(adapted.base, path.parent)
    weight = {part: tensors[f"base_model.model.model.layers.0.self_attn.q_proj.lora_{part}"] for part in "ABE"}
    added = weight["B"] @ (weight["A"] * weight["E"]) * 7 / (4 + 1e-5)
    close(again.matrix("q", 0) - again.base.matrix("q", 0), added, 1e-5, "q")


FUSED = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.gate.weight"]


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt_oss"])
@pytest.mark.parametrize("parameters", [FUSED, FUSED[1:2], FUSED[:1]])
def test_factors_of_stacked_experts_are_read(family: str, parameters: list[str], tmp_path: Path) -> None:
    lora = LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj"], target_parameters=parameters)
    adapted = trained(family, tmp_path, lora)
    alike(adapted, zp.open_model(str(tmp_path / "merged")))
    assert adapted.touches("gate", 1) == (FUSED[0] in parameters)


def test_factors_of_square_experts_that_lie_inputs_first_are_never_turned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, config_class, settings = zoo.ZOO["gpt_oss"]
    monkeypatch.setitem(zoo.ZOO, "square", (name, config_class, settings | {"intermediate_size": 24}))
    adapted = trained("square", tmp_path, LoraConfig(r=3, target_modules=["q_proj"], target_parameters=FUSED[:2]))
    for version in ("0.17.1", "0.21.2"):
        again = adapt(adapted.base, spoiled(tmp_path / "adapter", {"peft_version": version}, {}))
        alike(again, zp.open_model(str(tmp_path / "merged")))


def test_experts_that_another_module_stacks_are_not_taken_for_these(tmp_path: Path) -> None:
    model = zp.open_model(str(tiny.save(zoo.tiny_model("granitemoe"), tmp_path / "model")))
    names = Names(model.family, (model.layout,), model.dims)
    assert [names.experts("model.layers.0.block_sparse_moe.output_linear", what) for what in ("gate", "value")] == [
        [],
        [],
    ]


@pytest.mark.parametrize("family", ["glm4_moe", "qwen2_moe-dense"])
def test_factors_of_shared_experts_and_of_layers_without_experts_are_read(family: str, tmp_path: Path) -> None:
    modules = ["q_proj", "gate_proj", "up_proj", "down_proj"]
    adapted = trained(family, tmp_path, LoraConfig(r=3, lora_alpha=6, target_modules=modules))
    alike(adapted, zp.open_model(str(tmp_path / "merged")))
    assert adapted.touches("gate", 1)
    assert adapted.touches("value", 1)


def test_factors_of_experts_that_peft_stacked_are_read(tmp_path: Path) -> None:
    adapted = trained("mixtral", tmp_path, LoraConfig(r=3, lora_alpha=6, target_modules="all-linear"))
    alike(adapted, zp.open_model(str(tmp_path / "merged")))


def test_factors_of_separate_experts_are_read_under_the_names_of_transformers_4(tmp_path: Path) -> None:
    """PEFT 0.17 wrote them one by one; PEFT 0.21 stacks them when it loads and merges them."""
    save("mixtral", tmp_path, LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj"]))
    draw, tensors = torch.Generator().manual_seed(1), {}
    for layer in range(2):
        for expert in range(5):
            for name, rows, columns in (("w1", 40, 24), ("w3", 40, 24), ("w2", 24, 40)):
                stem = f"base_model.model.model.layers.{layer}.block_sparse_moe.experts.{expert}.{name}"
                tensors[f"{stem}.lora_A.weight"] = 0.3 * torch.randn(3, columns, generator=draw)
                tensors[f"{stem}.lora_B.weight"] = 0.3 * torch.randn(rows, 3, generator=draw)
    settings = {"target_modules": ["q_proj", "w1", "w2", "w3"]}
    adapter = spoiled(tmp_path / "adapter", settings, tensors)
    merged: Any = peft.PeftModel.from_pretrained(zoo.tiny_model("mixtral"), str(adapter)).merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    alike(adapt(zp.open_model(str(tmp_path / "base")), adapter), zp.open_model(str(tmp_path / "merged")))


def transpose_factors(folder: Path) -> None:
    """Rewrite factors of stacked experts as PEFT before 0.19.1 stores them: those of the transposed (out, in)."""
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    for name in [name for name in tensors if ".experts." in name and "lora_A" in name]:
        other = name.replace("lora_A", "lora_B")
        down, up = tensors[name], tensors[other]
        rank = down.shape[0] // 5
        # Each expert keeps its product B A. The new A (r, in) is Bᵀ with its rows ordered by expert; the columns
        # of the new B are ordered by rank.
        tensors[name] = up.reshape(-1, rank, 5).permute(2, 1, 0).reshape(rank * 5, -1).contiguous()
        tensors[other] = down.reshape(5, rank, -1).permute(2, 1, 0).reshape(-1, rank * 5).contiguous()
    save_file(tensors, path)


def test_factors_of_stacked_experts_that_an_older_peft_transposed_are_read(tmp_path: Path) -> None:
    adapted = trained("mixtral", tmp_path, LoraConfig(r=3, target_modules=["q_proj"], target_parameters=FUSED[:2]))
    transpose_factors(tmp_path / "adapter")
    again = adapt(adapted.base, tmp_path / "adapter")
    alike(again, zp.open_model(str(tmp_path / "merged")))


def test_the_version_says_how_factors_of_square_experts_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, config_class, settings = zoo.ZOO["mixtral"]
    monkeypatch.setitem(zoo.ZOO, "square", (name, config_class, settings | {"intermediate_size": 24}))
    adapted = trained("square", tmp_path, LoraConfig(r=3, target_modules=["q_proj"], target_parameters=FUSED[1:2]))
    merged = zp.open_model(str(tmp_path / "merged"))
    alike(adapted, merged)
    with pytest.raises(BadModel, match="peft_version does not say"):
        adapt(adapted.base, spoiled(tmp_path / "adapter", {"peft_version": None}, {}))
    transpose_factors(tmp_path / "adapter")
    alike(adapt(adapted.base, spoiled(tmp_path / "adapter", {"peft_version": "0.18.1"}, {})), merged)
    with pytest.raises(AssertionError):
        alike(adapt(adapted.base, spoiled(tmp_path / "adapter", {"peft_version": "0.19.1"}, {})), merged)


EXPERTS = "base_model.model.model.layers.0.mlp.experts.lora_A.weight"


@pytest.mark.parametrize(
    ("settings", "tensors", "words"),
    [
        ({"r": 4}, {}, "rank 3"),
        ({}, {EXPERTS: torch.zeros(14, 40)}, "each of the 5 experts"),
        ({}, {EXPERTS: torch.zeros(15, 41)}, "each of the 5 experts"),
        ({}, {EXPERTS.replace("lora_A", "lora_magnitude_vector"): torch.zeros(24)}, "more than the two factors"),
        ({}, {EXPERTS.replace("mlp.experts", "mlp.base.experts"): torch.zeros(15, 40)}, "does not name"),
    ],
)
def test_factors_of_stacked_experts_that_do_not_fit_are_refused(
    settings: dict[str, Any], tensors: dict[str, Any], words: str, tmp_path: Path
) -> None:
    adapted = trained("mixtral", tmp_path, LoraConfig(r=3, target_modules=["q_proj"], target_parameters=FUSED[1:2]))
    with pytest.raises(ZeropassError, match=words):
        adapt(adapted.base, spoiled(tmp_path / "adapter", settings, tensors))


def test_a_bias_that_the_base_does_not_have_is_added(tmp_path: Path) -> None:
    adapted = trained("llama", tmp_path, LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj"]))
    shift = torch.randn(32)
    bias = {"base_model.model.model.layers.1.self_attn.q_proj.lora_B.bias": shift}
    other = {"base_model.model.model.layers.0.self_attn.q_proj.lora_B.bias": torch.zeros(32)}
    again = adapt(adapted.base, spoiled(tmp_path / "adapter", {"lora_bias": True}, bias | other))
    assert again.has("q_bias")
    assert not again.base.has("q_bias")
    torch.testing.assert_close(again.vector("q_bias", 1), shift * 3)
    assert (again.rows("q_bias", 1), again.is_vector("q_bias"), again.stored_type("q_bias")) == (32, True, "F32")
    with pytest.raises(BadWeights, match="lora_bias and the biases"):
        adapt(adapted.base, spoiled(tmp_path / "adapter", {"lora_bias": False}, {}))


@pytest.mark.parametrize(
    ("name", "settings", "tensors", "words"),
    [
        ("LOHA", {"init_weights": "pissa"}, {}, "init_weights"),
        ("LOHA", {"r": 10**9}, {}, "that large"),
        ("LOHA", {"rank_pattern": {"q_proj": 10**9}}, {}, "that large"),
        ("LOHA", {"rank_pattern": {"(a+)+$": 3}}, {}, "plain names"),
        ("LOHA", {"r": 3}, {}, "PEFT .* cannot compute"),
        ("LOHA", {}, {"q_proj.hada_w1_a": None}, "hada_w1_a"),
        ("LOHA", {}, {"q_proj.hada_w9": torch.zeros(2)}, "hada_w9"),
        ("LOHA", {}, {"q_proj.hada_w1_a": torch.zeros(0)}, "is empty"),
        ("VERA", {}, {"base_model.vera_A": None}, "were not present"),
    ],
)
def test_an_adapter_that_peft_cannot_compute_is_refused(
    name: str, settings: dict[str, Any], tensors: dict[str, Any], words: str, tmp_path: Path
) -> None:
    adapted = trained("llama", tmp_path, config(name, {"r": 4, "target_modules": ["q_proj"]}))
    stem = "base_model.model.model.layers.0.self_attn."
    changed = {key if key.startswith("base") else stem + key: tensor for key, tensor in tensors.items()}
    with pytest.raises(BadModel, match=words):
        adapt(adapted.base, spoiled(tmp_path / "adapter", settings, changed)).matrix("q")


@pytest.mark.parametrize("targets", [["c_attn"], ["c_fc"]])
def test_peft_computes_plain_linear_modules_only(targets: list[str], tmp_path: Path) -> None:
    save("gpt2", tmp_path, config("FOURIERFT", {"n_frequency": 9, "target_modules": ["c_fc"]}))
    folder = tmp_path / "adapter"
    if targets == ["c_attn"]:
        path = folder / "adapter_model.safetensors"
        save_file({name.replace("mlp.c_fc", "attn.c_attn"): tensor for name, tensor in load_file(path).items()}, path)
        spoiled(folder, {"target_modules": None}, {})
    with pytest.raises(BadModel, match="plain linear modules"):
        adapt(zp.open_model(str(tmp_path / "base")), folder)


def test_without_peft_its_methods_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save("llama", tmp_path, config("LOHA", {"r": 4}))
    monkeypatch.setitem(sys.modules, "peft", None)
    monkeypatch.delitem(sys.modules, "zeropass.checkpoints.adapter_peft", raising=False)
    with pytest.raises(ZeropassError, match=r"LOHA.*zeropass\[run\]"):
        adapt(zp.open_model(str(tmp_path / "base")), tmp_path / "adapter")
