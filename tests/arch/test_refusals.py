"""Unsupported models are refused by name, with what was found and what is known: no guesses, no tracebacks."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CONFIG_MAPPING

from tiny import edit, save
from zeropass.arch.families import FAMILIES
from zeropass.arch.families.encoders import NOT_READ
from zeropass.errors import BadModel, UnknownFamily, ZeropassError
from zeropass.model.opening import open_model
from zoo import tiny_model

Tensors = dict[str, Tensor | None]
ONE = torch.ones(1)
L0, L1 = "model.layers.0.", "model.layers.1."

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


@dataclass(frozen=True)
class Refused:
    """A checkpoint of the zoo, its changes and the message of its refusal."""

    name: str
    says: tuple[str, ...]
    config: dict[str, Any] = field(default_factory=dict)
    tensors: Tensors = field(default_factory=dict)
    error: type[ZeropassError] = UnknownFamily


def quantised(method: str, *says: str, **more: Any) -> Refused:
    """Return a refused checkpoint whose configuration names its format, with a tensor of integers."""
    config = {"quantization_config": {"quant_method": method, **more}}
    packed_weight = {f"{L0}self_attn.q_proj.weight": torch.ones(32, 24, dtype=torch.int8)}
    return Refused("llama", says, config, packed_weight, BadModel)


def packed(says: str, *names: str) -> Refused:
    """Return a refused checkpoint whose format shows in its tensors only."""
    first = f"{L0}self_attn.q_proj.{names[0]}"
    added: Tensors = {f"{L0}self_attn.q_proj.{name}": ONE.clone() for name in names}
    return Refused("llama", (says, first), tensors=added, error=BadModel)


QUANTISED = {
    "gptq": quantised("gptq", "GPTQ", bits=4),
    "awq": quantised("awq", "AWQ", bits=4),
    "bitsandbytes": quantised("bitsandbytes", "bitsandbytes", "load_in_4bit", load_in_4bit=True),
    "fp8": quantised("fp8", "FP8"),
    "compressed-tensors": quantised("compressed-tensors", "compressed-tensors"),
    "gptq by tensors": packed("GPTQ", "g_idx", "qweight", "qzeros", "scales"),
    "awq by tensors": packed("AWQ", "qweight", "qzeros", "scales"),
    "bitsandbytes by tensors": packed("bitsandbytes", "weight.absmax", "weight.quant_map"),
    "bitsandbytes 8 bit by tensors": packed("bitsandbytes", "SCB"),
    "fp8 by tensors": packed("FP8", "weight_scale_inv"),
    "fp8 by other tensors": packed("FP8", "input_scale", "weight_scale"),
    "lora inside": packed("LoRA", "lora_A.weight", "lora_B.weight"),
}

VARIANTS = {
    "opt-350m": Refused(
        "opt", ("opt", "do_layer_norm_before is False", "known: True"), {"do_layer_norm_before": False}
    ),
    "falcon": Refused(
        "falcon-rw", ("falcon", "parallel_attn is True", "known: False"), {"parallel_attn": True, "alibi": True}
    ),
    "gpt2": Refused("gpt2", ("scale_attn_by_inverse_layer_idx is True",), {"scale_attn_by_inverse_layer_idx": True}),
    "phi": Refused("phi", ("qk_layernorm is True",), {"qk_layernorm": True}),
    "marian": Refused(
        "marian-encoder",
        ("share_encoder_decoder_embeddings is False", "known: True"),
        {"share_encoder_decoder_embeddings": False},
    ),
    "m2m_100": Refused("m2m_100-encoder", ("pad_token_id is 3", "known: 1"), {"pad_token_id": 3}),
    "xglm": Refused("xglm", ("add_cross_attention is True",), {"add_cross_attention": True}),
    "mixtral": Refused("mixtral", ("mlp_only_layers is [0]",), {"mlp_only_layers": [0]}),
    "albert": Refused("albert", ("num_hidden_groups is 3", "known: 1"), {"num_hidden_groups": 3}),
    "bloom": Refused(
        "bloom",
        ("apply_residual_connection_post_layernorm is True",),
        {"apply_residual_connection_post_layernorm": True},
    ),
}

UNKNOWN = {
    "mamba": Refused(
        "llama",
        ("model_type is 'mamba'", "backbone.layers.0.mixer.A_log", "state-space", "Known:", "llama"),
        {"model_type": "mamba"},
        {"backbone.layers.0.mixer.A_log": ONE},
    ),
    "zamba2": Refused(
        "llama",
        ("'zamba2'", f"{L0}mamba.A_log", "state-space"),
        {"model_type": "zamba2"},
        {f"{L0}mamba.A_log": ONE},
    ),
    "rwkv": Refused(
        "llama",
        ("'rwkv'", "rwkv.blocks.0.attention.time_decay", "recurrent"),
        {"model_type": "rwkv"},
        {"rwkv.blocks.0.attention.time_decay": ONE},
    ),
    "axk2": Refused(
        "deepseek_v3",
        ("'axk2'", f"{L0}self_attn.indexer.wk.weight", "sparse-attention"),
        {"model_type": "axk2"},
        {f"{L0}self_attn.indexer.wk.weight": ONE},
    ),
    "longcat_flash": Refused(
        "deepseek_v3", ("'longcat_flash'", "adding-a-family", "Known:"), {"model_type": "longcat_flash"}
    ),
    "another transformer": Refused(
        "llama", ("model_type is 'internlm9'", "adding-a-family", "Known:"), {"model_type": "internlm9"}
    ),
}


@dataclass(frozen=True)
class Layout:
    """A checkpoint of the zoo with its tensors in another layout."""

    name: str
    change: Callable[[dict[str, Tensor]], Tensors]
    says: tuple[str, ...]
    config: dict[str, Any] = field(default_factory=dict)


LAYOUTS = {
    "fused where split is expected": Layout(
        "llama",
        lambda _: {f"{L0}self_attn.{r}_proj.weight": None for r in "qkv"} | {f"{L0}self_attn.qkv_proj.weight": ONE},
        (f"{L0}self_attn.qkv_proj.weight", f"{L0}self_attn.q_proj.weight"),
    ),
    "split where fused is expected": Layout(
        "phi3",
        lambda _: (
            {f"{L0}self_attn.qkv_proj.weight": None}
            | {f"{L0}self_attn.{role}_proj.weight": ONE.clone() for role in "qkv"}
        ),
        (f"{L0}self_attn.qkv_proj.weight", f"{L0}self_attn.q_proj.weight"),
    ),
    "fewer heads than it says": Layout(
        "llama", lambda t: {}, (f"{L0}self_attn.q_proj.weight", "(32, 24)", "(16, 24)"), {"num_attention_heads": 2}
    ),
    "other key/value heads": Layout(
        "llama", lambda t: {}, (f"{L0}self_attn.k_proj.weight", "(16, 24)", "(32, 24)"), {"num_key_value_heads": 4}
    ),
    "heads that share nothing": Layout(
        "llama", lambda t: {}, ("4 heads", "3 key/value heads"), {"num_key_value_heads": 3}
    ),
    "an expert missing": Layout(
        "mixtral",
        lambda t: {f"{L0}block_sparse_moe.experts.3.w2.weight": None},
        (f"{L0}block_sparse_moe.experts.3.w2.weight", "missing"),
    ),
    "an expert too many": Layout(
        "mixtral",
        lambda t: {f"{L0}block_sparse_moe.experts.5.w1.weight": t[f"{L0}block_sparse_moe.experts.4.w1.weight"]},
        ("mixtral", f"{L0}block_sparse_moe.experts.5.w1.weight"),
    ),
    "experts in a layer without them": Layout(
        "qwen3_moe-dense",
        lambda t: {f"{L1}mlp.experts.0.up_proj.weight": t[f"{L0}mlp.experts.0.up_proj.weight"]},
        ("qwen3_moe", f"{L1}mlp.experts.0.up_proj.weight"),
    ),
    "a shared expert": Layout(
        "qwen3_moe", lambda t: {f"{L0}mlp.shared_expert.gate_proj.weight": ONE}, (f"{L0}mlp.shared_expert.gate_proj",)
    ),
    "a norm of another family": Layout(
        "llama", lambda t: {f"{L0}self_attn.q_norm.weight": ONE}, ("llama", f"{L0}self_attn.q_norm.weight")
    ),
    "a sink in attention": Layout("qwen2", lambda t: {f"{L0}self_attn.sinks": ONE}, ("qwen2", f"{L0}self_attn.sinks")),
}


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that saves each checkpoint of the zoo once."""
    folder = tmp_path_factory.mktemp("refusals")
    return lambda name: folder / name if (folder / name).exists() else save(tiny_model(name), folder / name)


@pytest.fixture
def copy(originals: Callable[[str], Path], tmp_path: Path) -> Callable[..., Path]:
    """Return a function that copies a checkpoint and changes the copy."""

    def changed(name: str, config: dict[str, Any], change: Callable[[dict[str, Tensor]], Tensors]) -> Path:
        folder = Path(shutil.copytree(originals(name), tmp_path / "model"))
        return edit(folder, config, change(load_file(folder / "model.safetensors")))

    return changed


def refusal(folder: Path, error: type[ZeropassError]) -> str:
    """Return the message with which a folder is refused."""
    with pytest.raises(error) as caught:
        open_model(str(folder))
    return str(caught.value)


@pytest.mark.parametrize("case", [*QUANTISED, *VARIANTS, *UNKNOWN])
def test_a_format_or_a_variant_is_refused_by_name(case: str, copy: Callable[..., Path]) -> None:
    wrong = (QUANTISED | VARIANTS | UNKNOWN)[case]
    folder = copy(wrong.name, wrong.config, lambda _: wrong.tensors)
    message = refusal(folder, wrong.error)
    assert str(folder) in message
    for part in wrong.says:
        assert part in message


@pytest.mark.parametrize("case", LAYOUTS)
def test_another_layout_is_refused_by_tensor(case: str, copy: Callable[..., Path]) -> None:
    wrong = LAYOUTS[case]
    message = refusal(copy(wrong.name, wrong.config, wrong.change), BadModel)
    for part in wrong.says:
        assert part in message


def test_an_adapter_alone_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "a/b", "peft_type": "LORA"}))
    save_file(
        {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": ONE}, tmp_path / "adapter_model.safetensors"
    )
    message = refusal(tmp_path, BadModel)
    for part in (str(tmp_path), "adapter", "--adapter", "a/b"):
        assert part in message


@pytest.mark.parametrize("kind", NOT_READ)
def test_encoders_that_no_record_can_describe_are_refused_with_the_reason(kind: str, tmp_path: Path) -> None:
    assert kind in CONFIG_MAPPING
    assert not any(kind in family.model_types for family in FAMILIES)
    message = refusal(edit(save(tiny_model("bert"), tmp_path), {"model_type": kind}), UnknownFamily)
    assert f"model_type is '{kind}', which is not read: {NOT_READ[kind]}." in message


def test_a_part_of_a_gguf_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model-00001-of-00003.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint16("split.count", 3)
    writer.add_tensor("token_embd.weight", np.ones((4, 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    message = refusal(path, BadModel)
    for part in (str(path), "3 parts", "model-00002-of-00003.gguf, model-00003-of-00003.gguf cannot be found"):
        assert part in message


@pytest.mark.parametrize(("case", "line"), [("gptq", "info"), ("mamba", "build"), ("opt-350m", "explain")])
def test_the_command_line_prints_one_message_and_exits_with_2(case: str, line: str, copy: Callable[..., Path]) -> None:
    wrong = (QUANTISED | VARIANTS | UNKNOWN)[case]
    folder = copy(wrong.name, wrong.config, lambda _: wrong.tensors)
    more = {"info": [], "build": ["--out", str(folder / "atlas")], "explain": ["L0.ff.1"]}[line]
    done = subprocess.run(
        [sys.executable, "-m", "zeropass", line, str(folder), *more],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1
    for part in wrong.says:
        assert part in done.stderr
    assert not (folder / "atlas").exists()
