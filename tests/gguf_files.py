"""Checkpoints as GGUF files, with the names, keys and conversions of llama.cpp's convert_hf_to_gguf.py.

The code follows that script class by class, in its order of keys, and uses the writer and the table of names of the
gguf package.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.constants import MODEL_ARCH, RopeScalingType, TokenType
from safetensors.torch import load_file

from tiny import VOCAB
from zeropass.model.opening import open_model

NAMES = {
    "gemma3_text": "gemma3",
    "qwen2_vl_text": "qwen2vl",
    "qwen3_vl_text": "qwen3vl",
    "mistral": "llama",
    "mixtral": "llama",
    "qwen3_moe": "qwen3moe",
    "qwen3_vl_moe_text": "qwen3vlmoe",
    "qwen3_5_text": "qwen35",
    "qwen3_5_moe_text": "qwen35moe",
    "qwen3_next": "qwen3next",
    "lfm2_moe": "lfm2moe",
    "gemma4_text": "gemma4",
    "ministral3": "mistral3",
    "glm": "chatglm",
    "exaone_moe": "exaone-moe",
    "hunyuan_v1_moe": "hunyuan-moe",
    "nomic_bert": "nomic-bert",
    "llama4_text": "llama4",
    "glm_moe_dsa": "glm-dsa",
    "hunyuan_v1_dense": "hunyuan-dense",
    "granitemoehybrid": "granitehybrid",
    "falcon_h1": "falcon-h1",
    "qwen2_moe": "qwen2moe",
    "glm4_moe": "glm4moe",
    "deepseek_v3": "deepseek2",
    "minimax_m2": "minimax-m2",
    "ernie4_5_moe": "ernie4_5-moe",
    "granitemoeshared": "granitemoe",
    "gpt_oss": "gpt-oss",
    "modernbert": "modern-bert",
    "olmo3": "olmo2",
    "cohere": "command-r",
    "gpt_bigcode": "starcoder",
    "gpt_neox": "gptneox",
    "phi": "phi2",
    "roberta": "bert",
}
"""The model types that have another name in llama.cpp."""

Config = dict[str, Any]
Keys = Callable[[gguf.GGUFWriter, Config], None]


def _as_published(config: Config) -> Config:
    """Return a configuration with the keys of Gemma 4's layers without a window that published ones have."""
    wide = next(iter((config.get("per_layer_config") or {}).values()), {})
    names = {"global_head_dim": "head_dim", "num_global_key_value_heads": "num_key_value_heads"}
    return config | {name: wide[key] for name, key in names.items() if key in wide}


def convert(folder: Path, path: Path, architecture: str = "") -> Path:
    """Write the checkpoint of a folder as one file.

    Its tokenizer is byte-level BPE, SentencePiece or WordPiece. The architecture follows from the model type, unless it
    is given.
    """
    config = json.loads((folder / "config.json").read_text())
    config = _as_published(config | config.get("text_config", {}))
    name = architecture or NAMES.get(config["model_type"], config["model_type"])
    arch = next(arch for arch, arch_name in gguf.MODEL_ARCH_NAMES.items() if arch_name == name)
    writer = gguf.GGUFWriter(path, name)
    KEYS[arch](writer, config)
    rows = _vocabulary(
        writer, folder, config["vocab_size"], cut=arch in (MODEL_ARCH.GEMMA3, MODEL_ARCH.GEMMA_EMBEDDING)
    )
    if arch == MODEL_ARCH.APERTUS:
        _xielu(writer, folder, config["num_hidden_layers"])
    layers = _of(config, "num_hidden_layers", "n_layer", "n_layers", "num_layers") or len(config["layers_block_type"])
    names = gguf.get_tensor_name_map(arch, max(layers, config.get("num_decoder_layers") or 0))
    for hf_name, values in _with_stacked_experts(_tensors(folder, arch, config)):
        named = hf_name.startswith("rope_") or hf_name.endswith(".scale")
        gguf_name = hf_name if named else names.get_name(hf_name, (".weight", ".bias"))
        assert gguf_name, f"llama.cpp has no name for {hf_name}"
        writer.add_tensor(gguf_name, np.ascontiguousarray(values[:rows] if "embed_tokens" in hf_name else values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# Tensors, as modify_tensors and generate_extra_tensors make them


def _of(config: Config, *names: str) -> Any:
    """Return the first of several keys that a configuration has, as find_hparam does."""
    return next((config[name] for name in names if config.get(name) is not None), None)


def _heads(config: Config) -> tuple[int, int]:
    """Return the numbers of query heads and of key/value heads."""
    heads = _of(config, "num_attention_heads", "n_head")
    return heads, config.get("num_key_value_heads") or heads


PERMUTED = (MODEL_ARCH.LLAMA, MODEL_ARCH.GRANITE, MODEL_ARCH.GRANITE_MOE, MODEL_ARCH.SMOLLM3, MODEL_ARCH.ARCEE)
PERMUTED += (MODEL_ARCH.MISTRAL3,)
PERMUTED += (MODEL_ARCH.GRANITE_HYBRID, MODEL_ARCH.NEMOTRON_H, MODEL_ARCH.NEMOTRON_H_MOE)
"""LlamaModel and what is derived from it."""

RAISED = (MODEL_ARCH.GEMMA, MODEL_ARCH.GEMMA2, MODEL_ARCH.GEMMA3, MODEL_ARCH.GEMMA_EMBEDDING, MODEL_ARCH.NEMOTRON)
"""Converters that add one to the gains."""


def _tensors(folder: Path, arch: MODEL_ARCH, config: Config) -> Iterator[tuple[str, np.ndarray]]:
    for stored, tensor in load_file(folder / "model.safetensors").items():
        name, values = stored.replace("model.language_model.", "model."), tensor.numpy()
        if "visual." in name or ".act_fn." in name:  # another file, mmproj; in the header
            continue
        if arch in (MODEL_ARCH.BERT, MODEL_ARCH.NOMIC_BERT):
            name = name.removeprefix("bert.").removeprefix("roberta.").removeprefix("nomic_bert.")
            if name.startswith(("cls.predictions", "lm_head.", "pooler.")):
                continue
            if "position_embeddings" in name and config["model_type"] == "roberta":
                values = values[1 + config["pad_token_id"] :]
        if arch == MODEL_ARCH.MODERN_BERT:
            name = name.removeprefix("model.")
        if arch in (MODEL_ARCH.MODERN_BERT, MODEL_ARCH.EUROBERT) and name.startswith(("head.", "decoder.", "lm_head.")):
            continue
        if arch == MODEL_ARCH.T5ENCODER and not name.startswith(("shared.", "encoder.")):
            continue
        if arch == MODEL_ARCH.BLOOM:
            name = name.removeprefix("transformer.")
        if "q_proj" in name or "k_proj" in name:
            heads, kv_heads = _heads(config)
            if arch in PERMUTED or (arch == MODEL_ARCH.OLMO and name.endswith(".weight")):
                values = permuted(values, heads if "q_proj" in name else kv_heads)
        if "query_key_value" in name:
            heads = _heads(config)[0]
            values = stacked(values, heads, _falcon_groups(config) if arch == MODEL_ARCH.FALCON else heads)
        if arch in RAISED:
            if name == "lm_head.weight" and arch != MODEL_ARCH.NEMOTRON:
                continue
            values = values + 1 if name.endswith("norm.weight") else values
        if arch == MODEL_ARCH.GPT2 and name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")):
            values = values.T
        yield from SPLITS.get(arch, _as_they_are)(
            name.replace("e_score_correction_bias", "e_score_correction.bias").replace(
                "mlp.expert_bias", "mlp.expert_bias.bias"
            ),
            values,
            config,
        )
    rope = config.get("rope_parameters") or {}
    if arch in (MODEL_ARCH.PHI3, MODEL_ARCH.PHIMOE, MODEL_ARCH.MINICPM3) and rope.get("long_factor"):
        yield "rope_factors_long.weight", np.array(rope["long_factor"], np.float32)
        yield "rope_factors_short.weight", np.array(rope["short_factor"], np.float32)
    if arch == MODEL_ARCH.GEMMA4:
        pairs = config["global_head_dim"] // 2
        turned = int(config["global_head_dim"] * rope["full_attention"]["partial_rotary_factor"] / 2)
        yield "rope_freqs.weight", np.array([1.0] * turned + [1e30] * (pairs - turned), np.float32)


Named = Iterator[tuple[str, np.ndarray]]


def _as_they_are(name: str, values: np.ndarray, config: Config) -> Named:
    yield name, values


def _granite_moe(name: str, values: np.ndarray, config: Config) -> Named:
    """Split gates from what they multiply, as GraniteMoeModel.modify_tensors does."""
    if not name.endswith("input_linear.weight"):
        yield name, values
        return
    layer = int(name.split(".")[2])
    end = "shexp" if "shared_mlp" in name else "exps"
    for what, half in zip(("gate", "up"), np.split(values, 2, axis=-2), strict=True):
        yield f"blk.{layer}.ffn_{what}_{end}.weight", half


def _gpt_oss(name: str, values: np.ndarray, config: Config) -> Named:
    """Split and turn the experts, as GptOssModel.modify_tensors does."""
    if "sinks" in name:
        yield f"{name}.weight", values
    elif name.endswith("down_proj"):
        yield f"{name}.weight", values.swapaxes(-1, -2)
    elif name.endswith("down_proj_bias"):
        yield name.replace("down_proj_bias", "down_proj.bias"), values
    elif "gate_up_proj" in name:
        turned = values if name.endswith("_bias") else values.swapaxes(-1, -2)
        for start, what in enumerate(("gate", "up")):
            half = turned[:, start::2]
            end = "bias" if name.endswith("_bias") else "weight"
            yield f"{name.partition('gate_up')[0]}{what}_proj.{end}", half
    else:
        yield name, values


def _latent_heads(name: str, values: np.ndarray, config: Config) -> Named:
    """Split what the latent is expanded to, as DeepseekV2Model.modify_tensors does."""
    if not name.endswith("kv_b_proj.weight"):
        yield name, values
        return
    by_head = values.reshape(config["num_attention_heads"], -1, values.shape[-1])
    keys, of_values = np.split(by_head, [config["qk_nope_head_dim"]], 1)
    yield name.replace("kv_b_proj", "k_b_proj"), keys.swapaxes(1, 2)
    yield name.replace("kv_b_proj", "v_b_proj"), of_values


def _qwen3_vl_moe(name: str, values: np.ndarray, config: Config) -> Named:
    """Split the experts, as Qwen3VLMoeTextModel.modify_tensors does.

    It turns them too: those of published files are the transpose of what transformers 5 writes.
    """
    if name.endswith("experts.down_proj"):
        yield f"{name}.weight", values
    elif name.endswith("experts.gate_up_proj"):
        for what, half in zip(("gate", "up"), np.split(values, 2, axis=1), strict=True):
            yield name.replace("gate_up_proj", f"{what}_proj.weight"), half
    else:
        yield name, values


def _delta(name: str, values: np.ndarray, config: Config) -> Named:
    """Change the mixers and raise the gains, as Qwen3NextModel.modify_tensors does."""
    if name.endswith(".A_log"):
        values = -np.exp(values)
    elif name.endswith(".dt_bias"):
        name = name.replace(".dt_bias", ".dt_proj.bias")
    elif "conv1d" in name:
        values = values.squeeze()
    elif name.endswith("norm.weight") and not name.endswith("linear_attn.norm.weight"):
        values = values + 1
    if "in_proj_qkvz.weight" not in name:
        yield name, values
        return
    layer, width, groups = int(name.split(".")[2]), config["linear_key_head_dim"], config["linear_num_key_heads"]
    of_values = config["linear_num_value_heads"] // groups * config["linear_value_head_dim"]
    by_group = values.reshape(groups, -1, values.shape[1])
    parts = np.split(by_group, np.cumsum([width, width, of_values]), axis=1)
    *qkv, z = (part.reshape(-1, values.shape[1]) for part in parts)
    yield f"blk.{layer}.attn_qkv.weight", np.concatenate(qkv)
    yield f"blk.{layer}.attn_gate.weight", z


def _tiled(values: np.ndarray, axis: int, config: Config, width: int) -> np.ndarray:
    """Let the heads of values take turns over those of keys, as _reorder_v_heads does."""
    groups, heads = config["linear_num_key_heads"], config["linear_num_value_heads"]
    shape = (*values.shape[:axis], groups, heads // groups, width, *values.shape[axis + 1 :])
    return values.reshape(shape).swapaxes(axis, axis + 1).reshape(values.shape)


def _tiled_delta(name: str, values: np.ndarray, config: Config) -> Named:
    """Reorder the heads of values, as _LinearAttentionVReorderBase.modify_tensors does, then go on as `_delta`."""
    width, keys = config["linear_value_head_dim"], 2 * config["linear_key_head_dim"] * config["linear_num_key_heads"]
    if ".in_proj_qkv." in name or ".conv1d" in name:
        values = values.squeeze() if ".conv1d" in name else values
        values = np.concatenate([values[:keys], _tiled(values[keys:], 0, config, width)])
    elif ".in_proj_z." in name:
        values = _tiled(values, 0, config, width)
    elif ".in_proj_b." in name or ".in_proj_a." in name or name.endswith((".A_log", ".dt_bias")):
        values = _tiled(values, 0, config, 1)
    elif ".linear_attn.out_proj." in name:
        values = _tiled(values, 1, config, width)
    yield from _delta(name, values, config)


def _squeezed(name: str, values: np.ndarray, config: Config) -> Named:
    """Squeeze the kernels, as LFM2Model.modify_tensors does, and name the corrections of experts."""
    values = values.squeeze(1) if "conv.conv" in name else values
    yield name.replace(".expert_bias", ".expert_bias.bias"), values


def _mamba2(name: str, values: np.ndarray, config: Config) -> Named:
    """Change the mixers, as Mamba2Model.modify_tensors does."""
    if name.endswith(".dt_bias"):
        name = name.replace(".dt_bias", ".dt_proj.bias")
    elif "conv1d.weight" in name:
        values = values.squeeze()
    elif name.endswith((".A_log", ".D")):
        values = (-np.exp(values) if name.endswith(".A_log") else values)[:, None]
    elif name.endswith((".mamba.norm.weight", ".mixer.norm.weight")):
        values = values.reshape(_of(config, "mamba_n_groups", "n_groups"), -1)
    yield name, values


def _granite_hybrid(name: str, values: np.ndarray, config: Config) -> Named:
    """Split the MLPs, as GraniteHybridModel.modify_tensors does, and change the mixers."""
    dense = not config["num_local_experts"]
    if dense and "shared_mlp.output_linear" in name:
        yield f"blk.{name.split('.')[2]}.ffn_down.weight", values
    elif name.endswith("input_linear.weight"):
        for split, half in _granite_moe(name, values, config):
            yield split.replace("_shexp", "") if dense else split, half
    else:
        yield from _mamba2(name, values, config)


def _nemotron_h(name: str, values: np.ndarray, config: Config) -> Named:
    """Change the mixers and stack the experts, as NemotronHModel.modify_tensors does."""
    name = re.sub(r"^model\.", "backbone.", name)
    name = re.sub(r"^backbone\.(layers\.\d+)\.mixer\.(experts\.)", r"model.\1.mlp.\2", name)
    if name.endswith(".dt_bias"):
        name = name.replace(".dt_bias", ".dt.bias")
    yield from _mamba2(name, values, config)


def _jamba(name: str, values: np.ndarray, config: Config) -> Named:
    """Change the mixers and name the experts, as JambaModel.modify_tensors does."""
    if name.endswith(".conv1d.weight"):
        values = values.squeeze()
    elif name.endswith(".A_log"):
        values = -np.exp(values)
    yield name.replace("feed_forward.experts", "mlp.experts"), values


def _gemma4(name: str, values: np.ndarray, config: Config) -> Named:
    """Name what has no suffix, as Gemma4Model.filter_tensors and modify_tensors do."""
    block = f"blk.{name.split('.')[2]}." if ".layers." in name else ""
    if name.endswith("router.scale"):
        name = f"{block}ffn_gate_inp.scale"
    elif name.endswith("per_expert_scale"):
        name = f"{block}ffn_down_exps.scale"
    elif name.endswith("layer_scalar") or (".experts." in name and not name.endswith(".weight")):
        name += ".weight"
    yield name, values


def _suffixed(name: str, values: np.ndarray, config: Config) -> Named:
    """Name the stacked experts, as Mistral4Model.modify_tensors does, and split what the latent is expanded to."""
    yield from _latent_heads(f"{name}.weight" if name.endswith(("gate_up_proj", "down_proj")) else name, values, config)


def _llama4(name: str, values: np.ndarray, config: Config) -> Named:
    """Split and turn the experts, as Llama4Model.modify_tensors does."""
    if "gate_up_proj" in name:
        for what, half in zip(("gate", "up"), np.split(values.swapaxes(1, 2), 2, axis=1), strict=True):
            yield name.replace("gate_up_proj", f"{what}_proj.weight"), half
    elif name.endswith("down_proj"):
        yield f"{name}.weight", values.swapaxes(1, 2)
    else:
        yield name, values


SPLITS = {
    MODEL_ARCH.MISTRAL4: _suffixed,
    MODEL_ARCH.GLM_DSA: _latent_heads,
    MODEL_ARCH.LLAMA4: _llama4,
    MODEL_ARCH.GEMMA4: _gemma4,
    MODEL_ARCH.GRANITE_HYBRID: _granite_hybrid,
    MODEL_ARCH.NEMOTRON_H: _nemotron_h,
    MODEL_ARCH.NEMOTRON_H_MOE: _nemotron_h,
    MODEL_ARCH.JAMBA: _jamba,
    MODEL_ARCH.FALCON_H1: _mamba2,
    MODEL_ARCH.LFM2: _squeezed,
    MODEL_ARCH.LFM2MOE: _squeezed,
    MODEL_ARCH.QWEN3NEXT: _delta,
    MODEL_ARCH.QWEN35: _tiled_delta,
    MODEL_ARCH.QWEN35MOE: _tiled_delta,
    MODEL_ARCH.QWEN3VLMOE: _qwen3_vl_moe,
    MODEL_ARCH.DEEPSEEK2: _latent_heads,
    MODEL_ARCH.GRANITE_MOE: _granite_moe,
    MODEL_ARCH.GPT_OSS: _gpt_oss,
}
"""The functions by which converters take tensors apart."""


def _with_stacked_experts(tensors: Iterable[tuple[str, np.ndarray]]) -> Iterator[tuple[str, np.ndarray]]:
    """Stack the experts of each layer, as LlamaModel and those with ``moe_experts`` do."""
    experts: dict[str, dict[int, np.ndarray]] = {}
    for name, values in tensors:
        if match := re.fullmatch(r"(.*\.experts)\.(\d+)(\..*)", name):
            stem = match[1].replace("model.", "").replace("block_sparse_moe", "feed_forward")
            stem = stem if "feed_forward" in stem else match[1]
            experts.setdefault(stem + match[3], {})[int(match[2])] = values
        else:
            yield name, values
    for name, parts in experts.items():
        yield name, np.stack([parts[i] for i in range(len(parts))])


def _falcon_groups(config: Config) -> int:
    """Return the number of key/value heads that the published configuration of such a Falcon has."""
    return int(config["num_kv_heads"]) if config["new_decoder_architecture"] else 1


def stacked(fused: np.ndarray, heads: int, kv_heads: int) -> np.ndarray:
    """Stack all queries, keys and values, as BloomModel, GPTNeoXModel and FalconModel do."""
    grouped = fused.reshape(kv_heads, heads // kv_heads + 2, -1, *fused.shape[1:])
    parts = (grouped[:, :-2], grouped[:, [-2]], grouped[:, [-1]])
    return np.concatenate([part.reshape(-1, *fused.shape[1:]) for part in parts])


def permuted(weights: np.ndarray, heads: int) -> np.ndarray:
    """Interleave the halves of each head, as LlamaModel.permute does."""
    shape = (heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
    return weights.reshape(shape).swapaxes(1, 2).reshape(weights.shape)


# Keys, as set_gguf_parameters writes them


def _usual(writer: gguf.GGUFWriter, config: Config) -> None:
    """Write the keys of TextModel."""
    every = config.get("rope_parameters") or {}
    rope = every.get("full_attention", every)
    if rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    optional = {
        writer.add_block_count: _of(config, "n_layers", "num_hidden_layers", "n_layer"),
        writer.add_context_length: _of(config, "max_position_embeddings", "n_ctx", "n_positions"),
        writer.add_embedding_length: _of(config, "hidden_size", "n_embd"),
        writer.add_feed_forward_length: _of(config, "intermediate_size", "n_inner"),
        writer.add_head_count: _of(config, "num_attention_heads", "n_head", "n_heads"),
        writer.add_head_count_kv: config.get("num_key_value_heads"),
        writer.add_rope_freq_base: rope.get("rope_theta"),
        writer.add_rope_freq_base_swa: every.get("sliding_attention", {}).get("rope_theta"),
        writer.add_layer_norm_rms_eps: _of(config, "rms_norm_eps", "norm_eps"),
        writer.add_layer_norm_eps: _of(config, "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"),
        writer.add_key_length: config.get("head_dim"),
        writer.add_value_length: config.get("head_dim"),
    }
    optional |= {
        writer.add_expert_count: _of(config, "num_local_experts", "num_experts", "n_routed_experts"),
        writer.add_expert_used_count: config.get("num_experts_per_tok"),
        writer.add_expert_group_count: config.get("n_group"),
        writer.add_expert_group_used_count: config.get("topk_group"),
    }
    if rope.get("rope_type") == "yarn":
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        optional |= {
            writer.add_rope_scaling_yarn_beta_fast: rope.get("beta_fast"),
            writer.add_rope_scaling_yarn_beta_slow: rope.get("beta_slow"),
        }
    if config.get("scoring_func") == "sigmoid":
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    for add, value in optional.items():
        if value is not None:
            add(value)


def _llama(writer: gguf.GGUFWriter, config: Config) -> None:
    _usual(writer, config)
    writer.add_vocab_size(config["vocab_size"])
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    writer.add_rope_dimension_count(width)


def _qwen2vl(writer: gguf.GGUFWriter, config: Config) -> None:
    _usual(writer, config)
    writer.add_rope_dimension_sections([*config["rope_parameters"]["mrope_section"], 0])


def _qwen3vl(writer: gguf.GGUFWriter, config: Config) -> None:
    _qwen2vl(writer, config)
    writer.add_num_deepstack_layers(len(config["vision_config"]["deepstack_visual_indexes"]))


def _gemma2(writer: gguf.GGUFWriter, config: Config) -> None:
    _gemma(writer, config)
    writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
    writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    writer.add_sliding_window(config["sliding_window"])


def _gemma3(writer: gguf.GGUFWriter, config: Config) -> None:
    _usual(writer, config)
    writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    writer.add_sliding_window(config["sliding_window"])


def _gemma4_keys(writer: gguf.GGUFWriter, config: Config) -> None:
    layers, shared = config["num_hidden_layers"], config["num_kv_shared_layers"] or 0
    local = [kind == "sliding_attention" for kind in config["layer_types"]]
    changed: Config = {"head_dim": None, "num_experts_per_tok": config.get("top_k_experts")}
    if config.get("use_double_wide_mlp"):
        size = config["intermediate_size"]
        changed["intermediate_size"] = [size if n < layers - shared else 2 * size for n in range(layers)]
    if (heads := config.get("num_global_key_value_heads")) is not None:
        changed["num_key_value_heads"] = [config["num_key_value_heads"] if flag else heads for flag in local]
    _usual(writer, config | changed)
    writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    writer.add_sliding_window(config["sliding_window"])
    writer.add_shared_kv_layers(shared)
    writer.add_embedding_length_per_layer_input(config["hidden_size_per_layer_input"] or 0)
    writer.add_sliding_window_pattern(local)
    writer.add_key_length(config["global_head_dim"])
    writer.add_value_length(config["global_head_dim"])
    writer.add_key_length_swa(config["head_dim"])
    writer.add_value_length_swa(config["head_dim"])
    if (size := config.get("moe_intermediate_size")) is not None:
        writer.add_expert_feed_forward_length(size)
    writer.add_rope_dimension_count(config["global_head_dim"])
    writer.add_rope_dimension_count_swa(config["head_dim"])


def _gemma_embedding(writer: gguf.GGUFWriter, config: Config) -> None:
    _usual(writer, config)
    writer.add_sliding_window(config["sliding_window"])
    writer.add_pooling_type(gguf.PoolingType.MEAN)


def _chatglm(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_context_length(config["hidden_size"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"] // 2)
    writer.add_rope_freq_base(10000)


def _phi3(writer: gguf.GGUFWriter, config: Config) -> None:
    rope = config["rope_parameters"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_rope_scaling_orig_ctx_len(
        rope.get("original_max_position_embeddings") or config["original_max_position_embeddings"]
    )
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    share = rope.get("partial_rotary_factor", 1.0)
    writer.add_rope_dimension_count(int(share * config["hidden_size"]) // config["num_attention_heads"])
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_sliding_window(config.get("sliding_window") or 0)  # 0 marks Phi-4, which has no window
    if rope.get("long_factor"):
        original = rope.get("original_max_position_embeddings") or config["original_max_position_embeddings"]
        ratio = config["max_position_embeddings"] / original
        lengthening = math.sqrt(1 + math.log(ratio) / math.log(original))
        writer.add_rope_scaling_attn_factors(lengthening)


def _gpt2(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_block_count(config["n_layer"])
    writer.add_context_length(config["n_positions"])
    writer.add_embedding_length(config["n_embd"])
    writer.add_feed_forward_length(4 * config["n_embd"])
    writer.add_head_count(config["n_head"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])


def _window(writer: gguf.GGUFWriter, config: Config) -> None:
    if config.get("sliding_window") is not None:
        writer.add_sliding_window(config["sliding_window"])
        writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config["layer_types"]])


def _windowed(writer: gguf.GGUFWriter, config: Config) -> None:
    """Write the keys of Olmo2Model and Exaone4Model."""
    _usual(writer, config)
    _window(writer, config)


def _olmo(writer: gguf.GGUFWriter, config: Config) -> None:
    _usual(writer, config)
    writer.add_layer_norm_eps(1e-5)
    if config.get("clip_qkv") is not None:
        writer.add_clamp_kqv(config["clip_qkv"])


def _gemma(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])


def _qwen3vlmoe(writer: gguf.GGUFWriter, config: Config) -> None:
    _qwen3moe(writer, config)
    writer.add_rope_dimension_sections([*config["rope_parameters"]["mrope_section"], 0])
    writer.add_num_deepstack_layers(len(config["vision_config"]["deepstack_visual_indexes"]))


def _qwen3moe(writer: gguf.GGUFWriter, config: Config) -> None:
    _usual(writer, config)
    if (size := config.get("moe_intermediate_size")) is not None:
        writer.add_expert_feed_forward_length(size)


def _qwen2moe(writer: gguf.GGUFWriter, config: Config) -> None:
    _qwen3moe(writer, config)
    if (size := config.get("shared_expert_intermediate_size")) is not None:
        writer.add_expert_shared_feed_forward_length(size)


def _delta_keys(writer: gguf.GGUFWriter, config: Config) -> None:
    """Write the keys of Qwen3NextModel."""
    _qwen2moe(writer, config)
    writer.add_ssm_conv_kernel(config["linear_conv_kernel_dim"])
    writer.add_ssm_state_size(config["linear_key_head_dim"])
    writer.add_ssm_group_count(config["linear_num_key_heads"])
    writer.add_ssm_time_step_rank(config["linear_num_value_heads"])
    writer.add_ssm_inner_size(config["linear_value_head_dim"] * config["linear_num_value_heads"])
    writer.add_full_attention_interval(config.get("full_attention_interval", 4))
    writer.add_rope_dimension_count(int(config["head_dim"] * config["rope_parameters"]["partial_rotary_factor"]))


def _qwen35(writer: gguf.GGUFWriter, config: Config) -> None:
    _delta_keys(writer, config)
    writer.add_rope_dimension_sections([11, 11, 10, 0])


def _lfm2moe(writer: gguf.GGUFWriter, config: Config) -> None:
    _lfm2_usual(writer, config)
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_leading_dense_block_count(config["num_dense_layers"])
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)


def _lfm2_usual(writer: gguf.GGUFWriter, config: Config) -> None:
    heads = [config["num_key_value_heads"] if kind == "full_attention" else 0 for kind in config["layer_types"]]
    _usual(writer, config | {"num_key_value_heads": heads})
    writer.add_vocab_size(config["vocab_size"])
    writer.add_shortconv_l_cache(config["conv_L_cache"])


def _lfm2(writer: gguf.GGUFWriter, config: Config) -> None:
    size = int(config["block_ffn_dim_multiplier"] * int(2 * config["intermediate_size"] / 3))
    multiple = config["block_multiple_of"]
    _lfm2_usual(writer, config | {"intermediate_size": multiple * -(-size // multiple)})


def _mistral3(writer: gguf.GGUFWriter, config: Config) -> None:
    """Write the keys of Ministral3Model."""
    _llama(writer, config)
    writer.add_rope_scaling_yarn_log_mul(config["rope_parameters"]["mscale_all_dim"])
    writer.add_attn_temperature_scale(config["rope_parameters"]["llama_4_scaling_beta"])


def _llama4_keys(writer: gguf.GGUFWriter, config: Config) -> None:
    _llama(writer, config | {"intermediate_size": config["intermediate_size_mlp"]})
    writer.add_interleave_moe_layer_step(config["interleave_moe_layer_step"])
    writer.add_expert_feed_forward_length(config["intermediate_size"])


def _glm_dsa(writer: gguf.GGUFWriter, config: Config) -> None:
    _deepseek2(writer, config | {"first_k_dense_replace": 1})
    writer.add_nextn_predict_layers(0)
    writer.add_indexer_head_count(config["index_n_heads"])
    writer.add_indexer_key_length(config["index_head_dim"])
    writer.add_indexer_top_k(config["index_topk"])


def _exaone(writer: gguf.GGUFWriter, config: Config) -> None:
    _usual(writer, config)
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])


def _hunyuan(writer: gguf.GGUFWriter, config: Config) -> None:
    """Write the keys of HunYuanModel, with the base of the rotary positions stretched."""
    _usual(writer, config)
    rope, width = config["rope_parameters"], config["head_dim"]
    writer.add_rope_freq_base(rope["rope_theta"] * rope["alpha"] ** (width / (width - 2)))
    writer.add_rope_scaling_type(RopeScalingType.NONE)
    writer.add_rope_scaling_factor(1)


def _exaone_moe(writer: gguf.GGUFWriter, config: Config) -> None:
    _windowed(writer, config)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_expert_shared_count(config["num_shared_experts"])
    writer.add_expert_shared_feed_forward_length(config["moe_intermediate_size"] * config["num_shared_experts"])
    writer.add_expert_weights_scale(config["routed_scaling_factor"])
    writer.add_expert_weights_norm(config["norm_topk_prob"])
    writer.add_leading_dense_block_count(config["first_k_dense_replace"])
    writer.add_nextn_predict_layers(0)
    writer.add_rope_scaling_type(RopeScalingType.NONE)


def _hunyuan_moe(writer: gguf.GGUFWriter, config: Config) -> None:
    _hunyuan(writer, config)
    writer.add_expert_shared_feed_forward_length(config["intermediate_size"])
    writer.add_expert_feed_forward_length(config["intermediate_size"])
    writer.add_expert_used_count(config["moe_topk"][0])
    writer.add_expert_shared_count(1)


def _minicpm3(writer: gguf.GGUFWriter, config: Config) -> None:
    _usual(writer, {key: value for key, value in config.items() if not key.startswith("rope") and key != "head_dim"})
    writer.add_vocab_size(config["vocab_size"])
    writer.add_q_lora_rank(config["q_lora_rank"])
    writer.add_kv_lora_rank(config["kv_lora_rank"])
    writer.add_key_length(config["qk_nope_head_dim"] + config["qk_rope_head_dim"])
    writer.add_rope_dimension_count(config["qk_rope_head_dim"])


def _xielu(writer: gguf.GGUFWriter, folder: Path, layers: int) -> None:
    """List the parameters of the activation, as ApertusModel.modify_tensors does in the place of tensors."""
    tensors = load_file(folder / "model.safetensors")
    adders = {
        "alpha_n": writer.add_xielu_alpha_n,
        "alpha_p": writer.add_xielu_alpha_p,
        "beta": writer.add_xielu_beta,
        "eps": writer.add_xielu_eps,
    }
    for what, add in adders.items():
        add([tensors[f"model.layers.{n}.mlp.act_fn.{what}"].float().item() for n in range(layers)])


def _mamba_keys(writer: gguf.GGUFWriter, config: Config, inner: int) -> None:
    writer.add_ssm_conv_kernel(_of(config, "mamba_d_conv", "conv_kernel"))
    writer.add_ssm_state_size(_of(config, "mamba_d_state", "ssm_state_size"))
    writer.add_ssm_group_count(_of(config, "mamba_n_groups", "n_groups"))
    writer.add_ssm_inner_size(inner)
    writer.add_ssm_time_step_rank(_of(config, "mamba_n_heads", "mamba_num_heads"))


def _granite_hybrid_keys(writer: gguf.GGUFWriter, config: Config) -> None:
    """Write the keys of GraniteHybridModel."""
    attending = [kind in ("attention", "full_attention") for kind in config["layer_types"]]
    heads = [config["num_key_value_heads"] * flag for flag in attending]
    _granitemoe(writer, config | {"num_key_value_heads": heads})
    _mamba_keys(writer, config, config["mamba_expand"] * config["hidden_size"])
    writer.add_rope_scaling_finetuned(False)


def _nemotron_h_keys(writer: gguf.GGUFWriter, config: Config) -> None:
    """Write the keys of NemotronHModel, of a model with experts and of one without."""
    kinds, moe = config["layers_block_type"], config.get("n_routed_experts") is not None
    heads = [config["num_key_value_heads"] * (kind == "full_attention") for kind in kinds]
    size = config["moe_intermediate_size"] if moe else config["intermediate_size"]
    neurons = [size * (kind in ("moe", "mlp")) for kind in kinds]
    changed = {"num_key_value_heads": heads, "intermediate_size": neurons, "rms_norm_eps": config["layer_norm_epsilon"]}
    _usual(
        writer, config | changed | {"num_hidden_layers": len(kinds)} | ({} if moe else {"num_experts_per_tok": None})
    )
    _mamba_keys(writer, config, config["mamba_num_heads"] * config["mamba_head_dim"])
    writer.add_rope_scaling_finetuned(False)
    if not moe:
        return
    writer.add_expert_feed_forward_length(size)
    writer.add_expert_shared_feed_forward_length(config["moe_shared_expert_intermediate_size"])
    writer.add_expert_shared_count(config["n_shared_experts"])
    writer.add_expert_weights_norm(config["norm_topk_prob"])
    writer.add_expert_weights_scale(config["routed_scaling_factor"])


def _jamba_keys(writer: gguf.GGUFWriter, config: Config) -> None:
    offset, period, layers = config["attn_layer_offset"], config["attn_layer_period"], config["num_hidden_layers"]
    heads = [config["num_key_value_heads"] * (n >= offset and (n - offset) % period == 0) for n in range(layers)]
    _usual(writer, config | {"num_key_value_heads": heads})
    writer.add_ssm_conv_kernel(config["mamba_d_conv"])
    writer.add_ssm_inner_size(config["mamba_expand"] * config["hidden_size"])
    writer.add_ssm_state_size(config["mamba_d_state"])
    writer.add_ssm_time_step_rank(config["mamba_dt_rank"])


def _falcon_h1(writer: gguf.GGUFWriter, config: Config) -> None:
    _usual(writer, config)
    writer.add_vocab_size(config["vocab_size"])
    _mamba_keys(writer, config, config["mamba_d_ssm"])


def _dots1(writer: gguf.GGUFWriter, config: Config) -> None:
    _qwen2moe(writer, config)
    writer.add_leading_dense_block_count(config["first_k_dense_replace"])
    writer.add_expert_shared_count(config["n_shared_experts"])
    writer.add_expert_weights_scale(config["routed_scaling_factor"])
    writer.add_expert_weights_norm(config["norm_topk_prob"])


def _glm4moe(writer: gguf.GGUFWriter, config: Config) -> None:
    """Write the keys of Glm4MoeModel, which counts the layers that predict further tokens among the others."""
    further = config.get("num_nextn_predict_layers") or 0
    _dots1(writer, config | {"num_hidden_layers": config["num_hidden_layers"] + further})
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    writer.add_rope_dimension_count(int(width * config["rope_parameters"].get("partial_rotary_factor", 0.5)))
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    writer.add_nextn_predict_layers(further)


def _afmoe(writer: gguf.GGUFWriter, config: Config) -> None:
    _llama(writer, config)
    writer.add_expert_shared_count(config["num_shared_experts"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_leading_dense_block_count(config["num_dense_layers"])
    writer.add_expert_weights_norm(config["route_norm"])
    writer.add_expert_weights_scale(config["route_scale"])
    writer.add_sliding_window(config["sliding_window"])


def _deepseek2(writer: gguf.GGUFWriter, config: Config) -> None:
    """Write the keys of a DeepSeek-V3."""
    _latent(writer, config)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)


def _latent(writer: gguf.GGUFWriter, config: Config) -> None:
    """Write the keys of DeepseekV2Model, for which all heads share one key: the latent."""
    _dots1(
        writer, config | {"num_key_value_heads": 1, "head_dim": None, "intermediate_size": config["intermediate_size"]}
    )
    writer.add_vocab_size(config["vocab_size"])
    if config["q_lora_rank"] is not None:
        writer.add_q_lora_rank(config["q_lora_rank"])
    writer.add_kv_lora_rank(config["kv_lora_rank"])
    writer.add_key_length(config["kv_lora_rank"] + config["qk_rope_head_dim"])
    writer.add_value_length(config["kv_lora_rank"])
    writer.add_key_length_mla(config["qk_nope_head_dim"] + config["qk_rope_head_dim"])
    writer.add_value_length_mla(config["v_head_dim"])
    writer.add_rope_dimension_count(config["qk_rope_head_dim"])
    if length := (config.get("rope_parameters") or {}).get("mscale_all_dim"):
        writer.add_rope_scaling_yarn_log_mul(0.1 * length)


def _minimax_m2(writer: gguf.GGUFWriter, config: Config) -> None:
    _usual(writer, config)
    writer.add_expert_feed_forward_length(config["intermediate_size"])
    writer.add_rope_dimension_count(config["rotary_dim"])


def _ernie4_5_moe(writer: gguf.GGUFWriter, config: Config) -> None:
    _usual(writer, config)
    writer.add_expert_count(config["moe_num_experts"])
    writer.add_expert_used_count(config["moe_k"])
    writer.add_interleave_moe_layer_step(config["moe_layer_interval"])
    writer.add_leading_dense_block_count(config["moe_layer_start_index"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_expert_shared_count(config["moe_num_shared_experts"])
    writer.add_expert_shared_feed_forward_length(config["intermediate_size"] // config["num_key_value_heads"])


def _gpt_oss_keys(writer: gguf.GGUFWriter, config: Config) -> None:
    _usual(writer, config)
    writer.add_sliding_window(config["sliding_window"])
    writer.add_expert_feed_forward_length(config["intermediate_size"])


def _granitemoe(writer: gguf.GGUFWriter, config: Config) -> None:
    _granite(writer, config)
    if size := config.get("shared_intermediate_size"):
        writer.add_expert_shared_feed_forward_length(size)


def _phimoe(writer: gguf.GGUFWriter, config: Config) -> None:
    _phi3(writer, config)
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_expert_count(config["num_local_experts"])


def _granite(writer: gguf.GGUFWriter, config: Config) -> None:
    _llama(writer, config)
    writer.add_attention_scale(config["attention_multiplier"])
    writer.add_embedding_scale(config["embedding_multiplier"])
    writer.add_residual_scale(config["residual_multiplier"])
    writer.add_logit_scale(config["logits_scaling"])


def _rotary_share(config: Config) -> float:
    return float((config.get("rope_parameters") or {}).get("partial_rotary_factor", 1.0))


def _glm4(writer: gguf.GGUFWriter, config: Config) -> None:
    _usual(writer, config)
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    writer.add_rope_dimension_count(int(width * _rotary_share(config)))


def _nemotron(writer: gguf.GGUFWriter, config: Config) -> None:
    _usual(writer, config)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_layer_norm_eps(config["norm_eps"])
    writer.add_rope_dimension_count(int(_rotary_share(config) * config["hidden_size"]) // config["num_attention_heads"])
    writer.add_rope_scaling_type(RopeScalingType.NONE)


def _stablelm(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    width = config["hidden_size"] // config["num_attention_heads"]
    writer.add_rope_dimension_count(int(_rotary_share(config) * width))
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_parallel_residual(config.get("use_parallel_residual", True))
    writer.add_layer_norm_eps(config["layer_norm_eps"])


def _command_r(writer: gguf.GGUFWriter, config: Config) -> None:
    _usual(writer, config)
    writer.add_logit_scale(config["logit_scale"])
    writer.add_rope_scaling_type(RopeScalingType.NONE)


def _cohere2(writer: gguf.GGUFWriter, config: Config) -> None:
    _command_r(writer, config)
    writer.add_sliding_window(config["sliding_window"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])  # for a rotary_pct of 1


def _phi2(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(4 * config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_rope_dimension_count(int(_rotary_share(config) * config["hidden_size"]) // config["num_attention_heads"])


def _gptneox(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    width = config["hidden_size"] // config["num_attention_heads"]
    writer.add_rope_dimension_count(int(_rotary_share(config) * width))
    writer.add_head_count(config["num_attention_heads"])
    writer.add_parallel_residual(config.get("use_parallel_residual", True))
    writer.add_layer_norm_eps(config["layer_norm_eps"])


def _bloom(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_context_length(config.get("seq_length", config["hidden_size"]))
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(4 * config["hidden_size"])
    writer.add_block_count(config["n_layer"])
    writer.add_head_count(config["n_head"])
    writer.add_head_count_kv(config["n_head"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])


def _falcon(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_context_length(2048)
    writer.add_tensor_data_layout("jploski")
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(4 * config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(_falcon_groups(config))
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])


def _mpt(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_context_length(config["max_seq_len"])
    writer.add_embedding_length(config["d_model"])
    writer.add_block_count(config["n_layers"])
    writer.add_feed_forward_length(4 * config["d_model"])
    writer.add_head_count(config["n_heads"])
    writer.add_layer_norm_eps(1e-5)
    writer.add_clamp_kqv(config["attn_config"]["clip_qkv"])
    writer.add_max_alibi_bias(float(config["attn_config"]["alibi_bias_max"]))


def _starcoder(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_context_length(config["n_positions"])
    writer.add_embedding_length(config["n_embd"])
    writer.add_feed_forward_length(4 * config["n_embd"])
    writer.add_block_count(config["n_layer"])
    writer.add_head_count(config["n_head"])
    writer.add_head_count_kv(1)
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])


def _bert(writer: gguf.GGUFWriter, config: Config) -> None:
    _usual(writer, config)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.CLS)


def _eurobert(writer: gguf.GGUFWriter, config: Config) -> None:
    _usual(writer, config)
    writer.add_causal_attention(False)
    writer.add_rope_scaling_type(RopeScalingType.NONE)


def _modern_bert(writer: gguf.GGUFWriter, config: Config) -> None:
    _usual(writer, config)
    writer.add_layer_norm_eps(config["norm_eps"])
    writer.add_causal_attention(False)
    writer.add_sliding_window(config["local_attention"])
    if "global_attn_every_n_layers" in config:
        writer.add_sliding_window_pattern(config["global_attn_every_n_layers"])
    writer.add_rope_scaling_type(RopeScalingType.NONE)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_string("modern-bert.hidden_activation", config["hidden_activation"])


def _t5(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_context_length(512)
    writer.add_embedding_length(config["d_model"])
    writer.add_feed_forward_length(config["d_ff"])
    writer.add_block_count(config["num_layers"])
    if config.get("num_decoder_layers") is not None:
        writer.add_decoder_block_count(config["num_decoder_layers"])
    writer.add_head_count(config["num_heads"])
    writer.add_key_length(config["d_kv"])
    writer.add_value_length(config["d_kv"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    writer.add_relative_attn_buckets_count(config["relative_attention_num_buckets"])
    writer.add_layer_norm_rms_eps(config["layer_norm_epsilon"])


def _jais2(writer: gguf.GGUFWriter, config: Config) -> None:
    _usual(writer, config)
    writer.add_rope_dimension_count(config["head_dim"])


KEYS: dict[MODEL_ARCH, Keys] = {
    MODEL_ARCH.LLAMA: _llama,
    MODEL_ARCH.QWEN2: _usual,
    MODEL_ARCH.QWEN3: _usual,
    MODEL_ARCH.QWEN2VL: _qwen2vl,
    MODEL_ARCH.QWEN3VL: _qwen3vl,
    MODEL_ARCH.GEMMA: _gemma,
    MODEL_ARCH.GEMMA2: _gemma2,
    MODEL_ARCH.GEMMA3: _gemma3,
    MODEL_ARCH.GEMMA4: _gemma4_keys,
    MODEL_ARCH.MISTRAL3: _mistral3,
    MODEL_ARCH.MISTRAL4: _latent,
    MODEL_ARCH.LLAMA4: _llama4_keys,
    MODEL_ARCH.GLM_DSA: _glm_dsa,
    MODEL_ARCH.APERTUS: _llama,
    MODEL_ARCH.GEMMA_EMBEDDING: _gemma_embedding,
    MODEL_ARCH.CHATGLM: _chatglm,
    MODEL_ARCH.EXAONE: _exaone,
    MODEL_ARCH.EXAONE_MOE: _exaone_moe,
    MODEL_ARCH.HUNYUAN_MOE: _hunyuan_moe,
    MODEL_ARCH.MINICPM3: _minicpm3,
    MODEL_ARCH.NOMIC_BERT: _bert,
    MODEL_ARCH.HUNYUAN_DENSE: _hunyuan,
    MODEL_ARCH.PHI3: _phi3,
    MODEL_ARCH.OLMO: _olmo,
    MODEL_ARCH.OLMO2: _windowed,
    MODEL_ARCH.EXAONE4: _windowed,
    MODEL_ARCH.SEED_OSS: _usual,
    MODEL_ARCH.SMOLLM3: _llama,
    MODEL_ARCH.ARCEE: _llama,
    MODEL_ARCH.GRANITE: _granite,
    MODEL_ARCH.ERNIE4_5: _usual,
    MODEL_ARCH.GLM4: _glm4,
    MODEL_ARCH.NEMOTRON: _nemotron,
    MODEL_ARCH.STARCODER2: _usual,
    MODEL_ARCH.STABLELM: _stablelm,
    MODEL_ARCH.COMMAND_R: _command_r,
    MODEL_ARCH.COHERE2: _cohere2,
    MODEL_ARCH.GPT2: _gpt2,
    MODEL_ARCH.STARCODER: _starcoder,
    MODEL_ARCH.GPTNEOX: _gptneox,
    MODEL_ARCH.BLOOM: _bloom,
    MODEL_ARCH.FALCON: _falcon,
    MODEL_ARCH.MPT: _mpt,
    MODEL_ARCH.PHI2: _phi2,
    MODEL_ARCH.BERT: _bert,
    MODEL_ARCH.QWEN3MOE: _qwen3moe,
    MODEL_ARCH.QWEN3VLMOE: _qwen3vlmoe,
    MODEL_ARCH.QWEN3NEXT: _delta_keys,
    MODEL_ARCH.GRANITE_HYBRID: _granite_hybrid_keys,
    MODEL_ARCH.NEMOTRON_H: _nemotron_h_keys,
    MODEL_ARCH.NEMOTRON_H_MOE: _nemotron_h_keys,
    MODEL_ARCH.JAMBA: _jamba_keys,
    MODEL_ARCH.FALCON_H1: _falcon_h1,
    MODEL_ARCH.LFM2: _lfm2,
    MODEL_ARCH.LFM2MOE: _lfm2moe,
    MODEL_ARCH.QWEN35: _qwen35,
    MODEL_ARCH.QWEN35MOE: _qwen35,
    MODEL_ARCH.OLMOE: _usual,
    MODEL_ARCH.QWEN2MOE: _qwen2moe,
    MODEL_ARCH.DOTS1: _dots1,
    MODEL_ARCH.GLM4_MOE: _glm4moe,
    MODEL_ARCH.AFMOE: _afmoe,
    MODEL_ARCH.MINIMAXM2: _minimax_m2,
    MODEL_ARCH.DEEPSEEK2: _deepseek2,
    MODEL_ARCH.ERNIE4_5_MOE: _ernie4_5_moe,
    MODEL_ARCH.GRANITE_MOE: _granitemoe,
    MODEL_ARCH.PHIMOE: _phimoe,
    MODEL_ARCH.GPT_OSS: _gpt_oss_keys,
    MODEL_ARCH.EUROBERT: _eurobert,
    MODEL_ARCH.MODERN_BERT: _modern_bert,
    MODEL_ARCH.JAIS2: _jais2,
    MODEL_ARCH.T5: _t5,
    MODEL_ARCH.T5ENCODER: _t5,
}

VARIANTS = (
    *("mistral", "mixtral", "olmo3", "stablelm-parallel", "gptneox-sequential"),
    *("falcon-40b", "falcon-11b", "roberta", "granitemoe-shared", "glm4_moe-plain"),
    "deepseek_v3-direct",
    "t5-gated-encoder",
    *("granitemoehybrid-dense", "falcon_h1-normed", "gemma4-plain", "gemma4-moe", "llama4-bare"),
)
"""More checkpoints that have one of these architectures, by their names in the zoo."""


# The vocabulary, as _set_vocab_gpt2, _set_vocab_sentencepiece and BertModel.set_vocab write it


def _vocabulary(writer: gguf.GGUFWriter, folder: Path, size: int, cut: bool) -> int:
    """Write tokens and their types, name or cut off rows without a token, and return how many rows stay."""
    spec = json.loads((folder / "tokenizer.json").read_text())
    if spec["model"]["type"] == "Unigram":
        return _unigram_vocabulary(writer, spec, size)
    names = {i: token for token, i in spec["model"]["vocab"].items()}
    added = {token["id"]: token for token in spec["added_tokens"]}
    names |= {i: token["content"] for i, token in added.items()}
    size = len(names) if cut else size
    spm, pieces = bool(spec["model"].get("byte_fallback")), spec["model"]["type"] == "WordPiece"
    types = [_type(names.get(i), added.get(i), spm) for i in range(size)]
    texts = [names.get(i, f"[PAD{i}]") for i in range(size)]
    if pieces:
        texts = [_phantom(text, kind) for text, kind in zip(texts, types, strict=True)]
    gemma = spm and writer.arch == "gemma4"
    writer.add_tokenizer_model("gemma4" if gemma else "bert" if pieces else "llama" if spm else "gpt2")
    writer.add_tokenizer_pre("default" if spm else "jina-v2-en" if pieces else "gpt-2")
    writer.add_token_list(texts)
    if spm:
        writer.add_token_scores(
            [-1000.0 if kind == TokenType.USER_DEFINED else -float(i) for i, kind in enumerate(types)]
        )
        writer.add_add_space_prefix(False)
    if gemma or not (pieces or spm):
        writer.add_token_merges([" ".join(pair) for pair in spec["model"]["merges"]])
    writer.add_token_types(types)
    return size


def _unigram_vocabulary(writer: gguf.GGUFWriter, spec: dict[str, Any], size: int) -> int:
    """Write the pieces and scores of a Unigram model, as T5Model.set_vocab does."""
    vocab = spec["model"]["vocab"]
    added = {token["id"]: token for token in spec["added_tokens"]}
    rest = range(len(vocab), size)
    types = [
        TokenType.UNKNOWN if i == spec["model"]["unk_id"] else _type(piece, added.get(i), spm=False)
        for i, (piece, _) in enumerate(vocab)
    ]
    writer.add_tokenizer_model("t5")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([*(piece for piece, _ in vocab), *(f"[PAD{i}]" for i in rest)])
    writer.add_token_scores([*(score for _, score in vocab), *(-10000.0 for _ in rest)])
    writer.add_token_types([*types, *(TokenType.UNUSED for _ in rest)])
    writer.add_add_space_prefix(True)
    writer.add_remove_extra_whitespaces(True)
    return size


def _phantom(piece: str, kind: TokenType) -> str:
    """Mark the beginnings of words instead of what continues them, as BertModel.set_vocab does."""
    if kind == TokenType.CONTROL:
        return piece
    return piece[2:] if piece.startswith("##") else "▁" + piece


def _type(token: str | None, added: dict[str, Any] | None, spm: bool) -> TokenType:
    if token is None:
        return TokenType.UNUSED
    if spm and token.startswith("<0x"):
        return TokenType.BYTE
    if added is None:
        return TokenType.NORMAL
    return TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED


def rope_divisors(rope: dict[str, float], width: int) -> np.ndarray:
    """Return one divisor per frequency by the rule of Llama 3.1, as LlamaModel.generate_extra_tensors does."""
    old, factor = rope["original_max_position_embeddings"], rope["factor"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    divisors = []
    for i in range(0, width, 2):
        wavelength = 2 * np.pi * rope["rope_theta"] ** (i / width)
        smooth = (old / wavelength - low) / (high - low)
        between = 1 / ((1 - smooth) / factor + smooth)
        divisors.append(1.0 if wavelength < old / high else factor if wavelength > old / low else between)
    return np.array(divisors, np.float32)


def write_gguf(folder: Path, path: Path, kind: str = "F32") -> Path:
    """Write the checkpoint of a folder as llama.cpp's converter would, the matrices of its blocks in one type."""
    model, config = open_model(str(folder)), json.loads((folder / "config.json").read_text())
    writer, dims = gguf.GGUFWriter(path, "llama"), model.dims
    writer.add_block_count(dims.layers)
    writer.add_embedding_length(dims.d)
    writer.add_feed_forward_length(dims.neurons)
    writer.add_head_count(dims.heads)
    writer.add_head_count_kv(dims.kv_heads)
    writer.add_key_length(dims.head_dim)
    writer.add_layer_norm_rms_eps(dims.eps)
    writer.add_rope_freq_base(dims.rope.theta)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{i}" for i in range(VOCAB)])
    writer.add_token_merges([])
    writer.add_tensor("rope_freqs.weight", rope_divisors(config["rope_parameters"], dims.head_dim))
    hf = load_file(folder / "model.safetensors")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, dims.layers)
    for name, tensor in hf.items():
        values = tensor.numpy()
        if "q_proj" in name or "k_proj" in name:
            values = permuted(values, dims.heads if "q_proj" in name else dims.kv_heads)
        type_ = gguf.GGMLQuantizationType[kind if values.ndim == 2 and "layers" in name else "F32"]
        packed = gguf.quants.quantize(np.ascontiguousarray(values), type_)
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), packed, raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def unigram(size: int) -> str:
    """Return a tokenizer.json as transformers converts it from the Unigram model of T5."""
    pieces = ["▁", *(f"▁{a}{b}" for a in "bdfgl" for b in "aeio"), *(a + b for a in "mnprs" for b in "aeio"), *"abdel"]
    tokens = ["<pad>", "</s>", "<unk>", *pieces][: size - 2]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    space = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    steps = [
        {"type": "Strip", "strip_left": False, "strip_right": True},
        {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"},
    ]
    spec: dict[str, Any] = dict.fromkeys(("truncation", "padding", "post_processor"))
    spec |= {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": tokens[i]} | flags for i in range(3)],
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": space,
        "decoder": space,
        "model": {"type": "Unigram", "unk_id": 2, "byte_fallback": False}
        | {"vocab": [[token, 0.0 if i < 3 else -0.5 - i / 8] for i, token in enumerate(tokens)]},
    }
    return json.dumps(spec)


def sentencepiece(size: int) -> str:
    """Return a tokenizer.json as transformers converts it from a SentencePiece model: pieces, bytes, special tokens."""
    pieces = ["▁", *(f"▁{a}{b}" for a in "bdfgl" for b in "aeio"), *(a + b for a in "mnprs" for b in "aeio")]
    bytes_ = [f"<0x{i:02X}>" for i in range(size - 3 - len(pieces))]
    tokens = ["<pad>", "<unk>", "<bos>", *bytes_, *pieces]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    spec: dict[str, Any] = dict.fromkeys(("truncation", "padding", "pre_tokenizer", "post_processor"))
    spec |= {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": tokens[i]} | flags for i in range(3)],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "decoder": {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True}
        | {"vocab": {token: i for i, token in enumerate(tokens)}, "merges": []},
    }
    return json.dumps(spec)
