"""LoRA adapters: their factors give what PEFT computes with them."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import zeropass as zp
from adapters import ALL, made, spoiled
from zeropass.errors import BadModel, BadWeights
from zeropass.model.adapted import Adapted, adapt

CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {"target_modules": ALL},
    "stabilised": {"target_modules": ALL, "use_rslora": True},
    "dora": {"target_modules": ALL, "use_dora": True},
    "patterns": {
        "target_modules": ALL,
        "rank_pattern": {"up_proj": 2, "layers.1.mlp.gate_proj": 3},
        "alpha_pattern": {"up_proj": 5},
    },
    "tables": {"target_modules": ["embed_tokens", "lm_head", "q_proj"]},
    "whole": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm"]},
}
FUSED = {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}


pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.mark.parametrize("name", CONFIGS)
def test_an_adapter_is_what_peft_merges(name: str, tmp_path: Path) -> None:
    adapted = made("llama", tmp_path, **CONFIGS[name])
    merged = zp.open_model(str(tmp_path / "merged"))
    for layer in range(2):
        for role in ("gate", "up", "value", "q", "k", "v", "o"):
            torch.testing.assert_close(adapted.matrix(role, layer), merged.matrix(role, layer))
            torch.testing.assert_close(adapted.matrix(role, layer, 3, 9), merged.matrix(role, layer, 3, 9))
    for table in ("embedding", "unembedding"):
        torch.testing.assert_close(adapted.matrix(table), merged.matrix(table))
        torch.testing.assert_close(adapted.matrix_on_cpu(table), merged.matrix(table))
    # Tokens are judged by their rows, so the base's judgement serves wherever its rows do.
    assert (adapted.judgement is adapted.base.judgement) == (name != "tables")
    torch.testing.assert_close(adapted.vector("final_norm"), merged.vector("final_norm"))


def test_a_fused_module_is_split_into_its_parts(tmp_path: Path) -> None:
    adapted = made("gpt2", tmp_path, **FUSED)
    merged = zp.open_model(str(tmp_path / "merged"))
    for role in ("key", "value", "q", "k", "v", "o"):
        torch.testing.assert_close(adapted.matrix(role, 1), merged.matrix(role, 1))


def test_an_adapted_model_is_read_like_any_other(tmp_path: Path) -> None:
    adapted = made("llama", tmp_path, **CONFIGS["plain"])
    merged = zp.load(str(tmp_path / "merged"))
    lens = zp.Lens(adapted)
    for address in ("L1.ff.3", "L0.attn.1.vo", "L1.attn.2.qk"):
        for record, expected in zip(lens[address], merged[address], strict=True):
            entries = record.top if hasattr(record, "top") else record.pairs
            reference = expected.top if hasattr(expected, "top") else expected.pairs
            scores = [entry.score for entry in entries]
            assert scores == pytest.approx([entry.score for entry in reference], rel=1e-4)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Adapted:
    """Return a LoRA of q_proj; tests change copies of it."""
    return made("llama", tmp_path_factory.mktemp("plain"), target_modules=["q_proj"])


@pytest.fixture
def adapter(plain: Adapted, tmp_path: Path) -> Path:
    """Return a copy of the folder of `plain`."""
    return Path(shutil.copytree(plain.adapters[0].path, tmp_path / "adapter"))


Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("settings", "tensors", "error", "words"),
    [
        ({"peft_type": "PREFIX_TUNING"}, {}, BadModel, "reads LORA"),
        ({"init_lora_weights": "pissa_niter_4"}, {}, BadModel, "changes the base"),
        ({"init_lora_weights": "loftq"}, {}, BadModel, "changes the base"),
        ({"init_lora_weights": "something_new"}, {}, BadModel, "something_new.*does not know"),
        ({"use_foo": True}, {}, BadModel, r"use_foo \(True\): zeropass does not know"),
        ({"foo_config": {"a": 1}, "bar": 2}, {}, BadModel, "bar .2., foo_config"),
        ({"use_qalora": True}, {}, BadModel, "use_qalora"),
        ({"layer_replication": [[0, 1]]}, {}, BadModel, "layer_replication"),
        ({"alora_invocation_tokens": [1]}, {}, BadModel, "alora_invocation_tokens"),
        ({"kasa_config": {"beta": 1}}, {}, BadModel, "kasa_config"),
        ({"bias": "some"}, {}, BadModel, "bias is 'some'"),
        ({"use_dora": 1}, {}, BadModel, "true or false"),
        ({"modules_to_save": "norm"}, {f"{Q}.bias": torch.ones(32)}, BadModel, "list of names"),
        ({"lora_bias": True}, {}, BadWeights, "lora_bias"),
        ({"r": 5}, {}, BadWeights, "rank 4"),
        ({"lora_alpha": "six"}, {}, BadModel, "positive number"),
        ({"rank_pattern": {"(a+)+$": 4}}, {}, BadModel, "plain names"),
        ({"use_dora": True}, {}, BadWeights, "DoRA"),
        ({}, {f"{Q}.lora_A.weight": None}, BadWeights, "lacks its factor A"),
        ({}, {f"{Q}.lora_A.weight": torch.zeros(3, 24)}, BadWeights, "shapes"),
        ({}, {f"{Q}.lora_A.weight": torch.zeros(4, 7)}, BadWeights, "made for"),
        ({}, {f"{Q}.lora_C.weight": torch.zeros(4, 7)}, BadWeights, "lora_C"),
        ({}, {f"{Q[:-18]}7.self_attn.q_proj.lora_A.weight": torch.zeros(4, 24)}, BadWeights, "factor B"),
        ({}, {f"{Q}.lora_A.weight": torch.full((4, 24), torch.nan)}, BadWeights, "NaN"),
        ({}, {"base_model.model.visual.weight": torch.zeros(4)}, BadWeights, "does not have"),
    ],
)  # fmt: skip
def test_an_unreadable_adapter_is_refused_with_the_reason(
    settings: dict[str, Any],
    tensors: dict[str, Tensor | None],
    error: type[Exception],
    words: str,
    plain: Adapted,
    adapter: Path,
) -> None:
    with pytest.raises(error, match=words):
        adapt(plain.base, spoiled(adapter, settings, tensors))


@pytest.mark.parametrize("value", [None, False, "", [], {}, 0])
def test_an_unknown_key_may_be_present_but_unset(value: object, plain: Adapted, adapter: Path) -> None:
    adapted = adapt(plain.base, spoiled(adapter, {"use_foo": value}, {}))
    assert adapted.changed.keys() == plain.changed.keys()


def test_a_pickle_is_refused(plain: Adapted, adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    path.rename(path.with_name("adapter_model.bin"))
    with pytest.raises(BadModel, match=r"adapter_model\.bin is not read"):
        adapt(plain.base, adapter)
    with pytest.raises(BadModel, match="has no adapter_config"):
        adapt(plain.base, Path(plain.base.name))
