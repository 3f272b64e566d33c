"""Checkpoints of the zoo, as folders and as GGUF files."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from gguf.constants import MODEL_ARCH_NAMES

from gguf_files import convert, sentencepiece, unigram
from tiny import edit, save
from zeropass.model.model import Model
from zeropass.model.opening import open_model
from zoo import ZOO, tiny_model

_NO_BIAS = {"attention_bias": False}
_INTERVAL = {"full_attention_interval": 2} | _NO_BIAS
_STEPS = {"time_step_min": 1e-9, "use_bias": False}
_ONES = dict.fromkeys(("embedding_multiplier", "lm_head_multiplier", "key_multiplier", "attention_out_multiplier"), 1.0)
_ONES |= {
    "ssm_in_multiplier": 1.0,
    "ssm_out_multiplier": 1.0,
    "ssm_multipliers": [1.0] * 5,
    "mlp_multipliers": [1.0] * 2,
}
_ONES |= {"projectors_bias": False, "mlp_bias": False, "attention_bias": False, "head_dim": 6}
_LLAMA4 = {"num_hidden_layers": 4, "no_rope_layers": None, "moe_layers": None, "interleave_moe_layer_step": 2}
_LLAMA4 |= {"attention_chunk_size": 8192, "floor_scale": 8192, "attn_scale": 0.1}
_ONE_YARN = ZOO["mistral4"][2]["rope_parameters"] | {"truncate": True, "mscale": 1.0, "mscale_all_dim": 1.0}
_TEN_THOUSAND = ZOO["minicpm3"][2]["rope_parameters"] | {"rope_theta": 10000.0}
_FOUR = {"num_hidden_layers": 4}
_WIDE_FALCON = {"bias": False, "ffn_hidden_size": 96, "tie_word_embeddings": True}
CHANGED: dict[str, dict[str, Any]] = {
    "gpt2": {"n_inner": None},  # the converter writes four times the width, whatever the configuration says
    "starcoder": {"n_inner": None},
    "phi2": {"intermediate_size": 96, "num_key_value_heads": 4},
    "falcon": _WIDE_FALCON,
    "falcon-40b": _WIDE_FALCON,
    "falcon-11b": _WIDE_FALCON,
    "gptneox-sequential": {"attention_bias": True},  # llama.cpp has no other
    "mpt": {"layer_norm_epsilon": 1e-5},  # the only one that it writes
    "gemma3": {"sliding_window_pattern": 6, "num_hidden_layers": 7},  # the pattern itself is not written
    "cohere2": _FOUR | _NO_BIAS | {"layer_types": None, "head_dim": 6, "tie_word_embeddings": True},
    "smollm3": _FOUR | {"no_rope_layers": None},
    "exaone4": _FOUR | {"layer_types": None},
    "olmo": _NO_BIAS,
    "olmoe": {"clip_qkv": None, "rms_norm_eps": 1e-5},
    "mixtral": {"sliding_window": None},
    "mistral": {"sliding_window": None},  # no window is written
    "starcoder2": {"sliding_window": None},
    "qwen3vlmoe": {  # no layer without experts is written
        "text_config": ZOO["qwen3_moe-vision"][2]["text_config"] | {"mlp_only_layers": []},
    },
    "qwen3next": _INTERVAL,
    "mistral3": {"sliding_window": None, "rope_parameters": _ONE_YARN},
    "mistral4": {"rope_parameters": {k: v for k, v in _ONE_YARN.items() if "llama_4" not in k}},  # it is not written
    "llama4": _LLAMA4 | {"num_local_experts": 16},
    "llama4-bare": _LLAMA4 | {"num_local_experts": 128},
    "glm-dsa": {"mlp_layer_types": ["dense", "sparse"], "scoring_func": "sigmoid"},
    "apertus": _NO_BIAS | {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    "gemma-embedding": {"sliding_window_pattern": 6, "num_hidden_layers": 7, "use_bidirectional_attention": True}
    | {"final_logit_softcapping": None, "sliding_window": 6},
    "chatglm": {"num_attention_heads": 3, "num_key_value_heads": 1, "rms_norm_eps": 1e-5},  # written whatever they are
    "exaone-moe": {"scoring_func": "sigmoid", "first_k_dense_replace": 1},
    "hunyuan-moe": {"head_dim": 6},
    "minicpm3": {"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 256, "v_head_dim": 6}
    | {"original_max_position_embeddings": 512, "rope_parameters": _TEN_THOUSAND},  # of which llama.cpp knows no other
    "exaone": _NO_BIAS | {"mlp_bias": False, "head_dim": 6},
    "granitehybrid": {"mamba_proj_bias": False},
    "granitemoehybrid-dense": {
        "mamba_proj_bias": False,
        "shared_intermediate_size": 40,
        "position_embedding_type": "nope",
    },
    "nemotron_h": _STEPS | {"layers_block_type": ["linear_attention", "mlp", "full_attention"]},
    "nemotron_h_moe": _STEPS | {"layers_block_type": ["linear_attention", "moe", "full_attention"]},
    "jamba": {"mamba_proj_bias": False},
    "falcon-h1": _ONES,  # the converter multiplies the tensors instead
    "falcon_h1-normed": _ONES,
    "lfm2": {"conv_bias": False},
    "lfm2moe": {"routed_scaling_factor": 1.0, "tie_word_embeddings": True},  # llama.cpp knows no other
    "qwen35": _INTERVAL,
    "qwen35moe": _INTERVAL,
    "dots1": {"first_k_dense_replace": 1, "scoring_func": "sigmoid"},
    # always truncated; two scales that the file does not tell apart
    "deepseek_v3-direct": {"rope_parameters": ZOO["deepseek_v3-direct"][2]["rope_parameters"] | {"truncate": True}},
    "minimax-m2": {"scoring_func": "sigmoid"},
    "ernie4_5-moe": {"moe_layer_end_index": -1},  # no last layer with experts is written
    "eurobert": {"tie_word_embeddings": True, "mlp_bias": False},  # the head is left out
    "gpt-oss": {"swiglu_limit": 7.0, "rope_parameters": ZOO["gpt_oss"][2]["rope_parameters"] | {"truncate": True}},
    "phimoe": {"original_max_position_embeddings": 64, "router_jitter_noise": 0.01}
    | {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},  # llama.cpp lengthens longrope otherwise
    "nemotron": {"head_dim": 6, "partial_rotary_factor": 2 / 3},
}
"""Settings that turn a checkpoint of the zoo into one that llama.cpp can hold."""

_OF_EXPERTS = (
    *("n_routed_experts", "num_experts_per_tok", "moe_intermediate_size", "moe_shared_expert_intermediate_size"),
    *("n_group", "topk_group", "routed_scaling_factor", "norm_topk_prob", "n_shared_experts", "moe_latent_size"),
    "moe_shared_expert_overlap",
)
LEFT_OUT = {"nemotron_h": _OF_EXPERTS}
"""Keys that published configurations do without, and transformers writes."""

IN_ZOO = {
    "qwen2vl": "qwen2-vl",
    "qwen3vl": "qwen3-vl",
    "command-r": "cohere",
    "starcoder": "gpt_bigcode",
    "gptneox": "gpt_neox",
    "gptneox-sequential": "gpt_neox-sequential",
    "phi2": "phi",
    "falcon": "falcon-7b",
    "qwen3moe": "qwen3_moe-normed",
    "qwen2moe": "qwen2_moe",
    "qwen3vlmoe": "qwen3_moe-vision",
    "qwen3next": "qwen3_next",
    "granitehybrid": "granitemoehybrid",
    "mistral3": "ministral3",
    "gemma-embedding": "gemma3",
    "chatglm": "glm",
    "exaone-moe": "exaone_moe",
    "hunyuan-moe": "hunyuan_v1_moe",
    "nomic-bert": "nomic_bert",
    "glm-dsa": "glm_moe_dsa",
    "hunyuan-dense": "hunyuan_v1_dense",
    "nemotron_h_moe": "nemotron_h",
    "falcon-h1": "falcon_h1",
    "lfm2moe": "lfm2_moe",
    "qwen35": "qwen3_5",
    "qwen35moe": "qwen3_5_moe",
    "glm4moe": "glm4_moe",
    "deepseek2": "deepseek_v3",
    "minimax-m2": "minimax_m2",
    "ernie4_5-moe": "ernie4_5_moe",
    "gpt-oss": "gpt_oss",
    "modern-bert": "modernbert",
    "t5": "t5-encoder",
    "t5encoder": "t5-encoder",
}
"""The names in the zoo of what llama.cpp calls otherwise."""

SPM = ("llama", "gemma2", "gemma3", "gemma-embedding", "phi3", "gemma4", "gemma4-plain", "gemma4-moe")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that saves a checkpoint of the zoo, with its configuration changed as asked."""
    root = tmp_path_factory.mktemp("gguf")

    def make(name: str, key: str = "", **settings: Any) -> Path:
        in_zoo = IN_ZOO.get(name, name)
        model, config, defaults = ZOO[in_zoo]
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(ZOO, in_zoo, (model, config, defaults | CHANGED.get(name, {}) | settings))
            path = save(tiny_model(in_zoo), root / f"{name}{key}")
        if name in LEFT_OUT:
            edit(path, dict.fromkeys(LEFT_OUT[name]))
        if name in SPM:
            (path / "tokenizer.json").write_text(sentencepiece(58))
        if in_zoo.startswith("t5-"):
            (path / "tokenizer.json").write_text(unigram(58))
        return path

    return make


@pytest.fixture(scope="module")
def twins(folder: Callable[..., Path]) -> Callable[..., tuple[Model, Model]]:
    """Return a function that opens one checkpoint as a file and as a folder."""

    @cache
    def opened(name: str) -> tuple[Model, Model]:
        path = folder(name)
        architecture = name if name in MODEL_ARCH_NAMES.values() else ""
        return open_model(str(convert(path, path / "model.gguf", architecture))), open_model(str(path))

    return opened
