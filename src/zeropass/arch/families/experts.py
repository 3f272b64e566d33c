"""Decoders with experts: a router sends each token through some of the MLPs of a layer."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from zeropass.arch.families.dense import ERNIE4_5, HUNYUAN_DENSE
from zeropass.arch.families.llama import LLAMA, MROPE
from zeropass.arch.families.parts import (
    ATTENTION,
    ATTENTION_BIAS,
    CONFIG,
    GRANITE_FACTORS,
    HEAD_BIASES,
    HF_LAYOUT,
    LAYER,
    NORMS,
    NORMS_BEHIND,
    OUTER,
    PAIRED,
    PLAIN_ATTENTION,
    PLAIN_HF,
    QK_NORMS,
    QKV_BIASED_ATTENTION,
    QKV_BIASES,
    ROTARY_SHARE,
    SHIFTED_NORMS,
    WINDOWS,
)
from zeropass.arch.layout import Stored, weight_and_bias


def gated(stem: str, gate: str = "gate_proj", up: str = "up_proj", value: str = "down_proj") -> dict[str, Stored]:
    """Return the tensors of a gated MLP."""
    return {
        "gate": Stored(f"{stem}.{gate}.weight"),
        "up": Stored(f"{stem}.{up}.weight"),
        "value": Stored(f"{stem}.{value}.weight", transpose=True),
    }


def share(share: str, tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """Return tensors as those of the shared experts, or of the layers without experts."""
    layers: Literal["dense", "routed"] = "dense" if share == "dense" else "routed"
    return {f"{share}_{what}": replace(stored, layers=layers) for what, stored in tensors.items()}


def routed(tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """Return tensors as those of the layers with experts."""
    return {what: replace(stored, layers="routed") for what, stored in tensors.items()}


_MLP = LAYER + "mlp"
_ROUTED_CONFIG = {
    **CONFIG,
    "experts": ("num_local_experts", "num_experts"),
    "experts_used": ("num_experts_per_tok",),
    "router_normed": ("norm_topk_prob",),
}
_MIXTRAL = LAYER + "block_sparse_moe"
MIXTRAL = replace(
    LLAMA,
    name="mixtral",
    model_types=("mixtral",),
    router_normed=True,
    layouts=(
        replace(
            PLAIN_HF,
            config={**_ROUTED_CONFIG, **WINDOWS},
            tensors={
                **OUTER,
                **NORMS,
                **PLAIN_ATTENTION,
                "router": Stored(f"{_MIXTRAL}.gate.weight"),
                **gated(f"{_MIXTRAL}.experts.{{expert}}", "w1", "w3", "w2"),
            },
        ),
    ),
    config={"activation": "silu", "rope_theta": 1e6, "experts_used": 2},
)

_EXPERTS = {"router": Stored(f"{_MLP}.gate.weight"), **gated(f"{_MLP}.experts.{{expert}}")}
STACKED_EXPERTS = {
    "gate": Stored(f"{_MLP}.experts.gate_up_proj[{{expert}}]", part=(0, 2)),
    "up": Stored(f"{_MLP}.experts.gate_up_proj[{{expert}}]", part=(1, 2)),
    "value": Stored(f"{_MLP}.experts.down_proj[{{expert}}]", transpose=True),
}
"""Experts of a layer as transformers keeps them: in one tensor, gates and what they multiply joined."""

_SOME_DENSE = {**routed(_EXPERTS), **share("dense", gated(_MLP))}
"""The tensors of layers with experts, and of those without."""

_QWEN_CONFIG = {
    **_ROUTED_CONFIG,
    "neurons": ("moe_intermediate_size",),
    "dense_neurons": ("intermediate_size",),
    "dense_layers": ("mlp_only_layers",),
    "routed_every": ("decoder_sparse_step",),
    "window": WINDOWS["window"],
    "window_used": WINDOWS["window_used"],
}
QWEN3_MOE = replace(
    LLAMA,
    name="qwen3_moe",
    model_types=("qwen3_moe",),
    qk_norm="head",
    layouts=(
        replace(
            HF_LAYOUT,
            config=_QWEN_CONFIG,
            tensors={**OUTER, **NORMS, **ATTENTION, **QK_NORMS, **_SOME_DENSE},
            harmless=("max_window_layers",),
        ),
    ),
    config={"activation": "silu", "window_used": False, "experts_used": 8},
)

QWEN3_OMNI_MOE = replace(
    QWEN3_MOE,
    model_types=("qwen3_omni_moe_text",),
    layouts=(
        replace(
            QWEN3_MOE.layouts[0],
            config={name: keys for name, keys in _QWEN_CONFIG.items() if name not in WINDOWS},
            harmless=("sliding_window", "max_window_layers", "use_sliding_window"),  # it has no windows
        ),
    ),
    config={"activation": "silu", "experts_used": 8, "router_normed": True, "rope_theta": 1e6},
    notes=MROPE,
)
HUNYUAN_MOE = replace(
    HUNYUAN_DENSE,
    name="hunyuan_v1_moe",
    model_types=("hunyuan_v1_moe",),
    router_normed=True,
    layouts=(
        replace(
            HUNYUAN_DENSE.layouts[0],
            config={
                **_ROUTED_CONFIG,
                "experts": ("num_experts",),
                "experts_used": ("moe_topk",),
                "shared_neurons": ("intermediate_size",),
            },
            tensors={
                **{name: s for name, s in HUNYUAN_DENSE.layouts[0].tensors.items() if ".mlp." not in s.name},
                "router": Stored(f"{_MLP}.gate.wg.weight"),
                **{name: _EXPERTS[name] for name in ("gate", "up", "value")},
                **{f"shared_{name}": stored for name, stored in gated(f"{_MLP}.shared_mlp").items()},
            },
            # what the tensors themselves show, or what transformers leaves out
            harmless=(
                *HUNYUAN_DENSE.layouts[0].harmless,
                r"moe_intermediate_size|num_shared_expert|use_mixed_mlp_moe|capacity_factor|moe_drop_tokens",
                r"moe_random_routing_dropped_token|norm_topk_prob|router_aux\w*",
            ),
        ),
    ),
    when={
        **HUNYUAN_DENSE.when,
        "moe_layer_num_skipped": (0, None),
        "routed_scaling_factor": (1.0, None),
        "group_limited_greedy": (False, None),
    },
)

MELLUM = replace(
    QWEN3_MOE,
    name="mellum",
    model_types=("mellum",),
    layouts=(
        replace(
            HF_LAYOUT,
            config={
                **_ROUTED_CONFIG,
                **WINDOWS,
                "neurons": ("moe_intermediate_size",),
                "dense_neurons": ("intermediate_size",),
                "mlp_kinds": ("mlp_layer_types",),
                "beyond": ("num_nextn_predict_layers", "num_mtp_layers"),
            },
            tensors=QWEN3_MOE.layouts[0].tensors,
            defaults={"window": 1024},
            unread=(r"\^mtp\..*",),
            harmless=("mtp_layer_types", "mtp_mlp_layer_types"),
        ),
    ),
    config={
        "activation": "silu",
        "window_used": False,  # where no list says which layers have one
        "experts_used": 8,
        "router_normed": True,
        "rope_theta": 500000.0,
        "local_rope_theta": 10000.0,
    },
    when={f"rope_parameters.{kind}_attention.partial_rotary_factor": (1.0, None) for kind in ("full", "sliding")},
)

OLMOE = replace(
    LLAMA,
    name="olmoe",
    model_types=("olmoe",),
    qk_norm="whole",
    layouts=(
        replace(
            HF_LAYOUT,
            config={**_ROUTED_CONFIG, "clip": ("clip_qkv",)},
            tensors={**OUTER, **NORMS, **ATTENTION, **QK_NORMS, **_EXPERTS},
        ),
    ),
    config={"activation": "silu", "experts_used": 8},
)

QWEN2_MOE = replace(
    LLAMA,
    name="qwen2_moe",
    model_types=("qwen2_moe",),
    layouts=(
        replace(
            HF_LAYOUT,
            optional=("unembedding", *QKV_BIASES),
            switches={"qkv_bias": (QKV_BIASES, True)},
            config={
                **{name: keys for name, keys in _QWEN_CONFIG.items() if name not in WINDOWS},
                "shared_neurons": ("shared_expert_intermediate_size",),
            },
            tensors={
                **OUTER,
                **NORMS,
                **QKV_BIASED_ATTENTION,
                **_SOME_DENSE,
                **share("shared", gated(f"{_MLP}.shared_expert")),
                **share("shared", {"router": Stored(f"{_MLP}.shared_expert_gate.weight")}),
            },
            harmless=("sliding_window", "max_window_layers", "layer_types"),  # which count with windows only
        ),
    ),
    config={"activation": "silu", "experts_used": 4},
    when={"use_sliding_window": (False, None)},
)

_STACKED_EXPERTS = f"{_MLP}.experts.gate_up_proj[{{expert}}]"
QWEN3_VL_MOE = replace(
    QWEN3_MOE,
    model_types=("qwen3_vl_moe_text",),
    router_normed=True,
    layouts=(
        replace(
            HF_LAYOUT,
            config={name: keys for name, keys in _QWEN_CONFIG.items() if name not in WINDOWS},
            tensors={
                **QWEN3_MOE.layouts[0].tensors,
                # published files have the transpose of what transformers 5 writes
                "gate": Stored(_STACKED_EXPERTS, transpose=True, part=(0, 2), either_way=True, layers="routed"),
                "up": Stored(_STACKED_EXPERTS, transpose=True, part=(1, 2), either_way=True, layers="routed"),
                "value": Stored(f"{_MLP}.experts.down_proj[{{expert}}]", either_way=True, layers="routed"),
            },
            harmless=("norm_topk_prob",),
        ),
    ),
    config={"activation": "silu", "experts_used": 4, "rope_theta": 500000.0},
    notes=MROPE,
)

_ARIA_JOINT = f"{_MLP}.experts.fc1.weight[{{expert}}]"
ARIA = replace(
    LLAMA,
    name="aria",
    model_types=("aria_text",),
    router_normed=True,  # its softmax is over the logits of the chosen experts
    layouts=(
        replace(
            HF_LAYOUT,
            config={
                **CONFIG,
                "experts": ("moe_num_experts",),
                "experts_used": ("moe_topk",),
                "shared_experts": ("moe_num_shared_experts",),
            },
            tensors={
                **OUTER,
                **NORMS,
                **ATTENTION,
                "router": Stored(f"{_MLP}.router.weight"),
                "gate": Stored(_ARIA_JOINT, transpose=True, part=(0, 2)),
                "up": Stored(_ARIA_JOINT, transpose=True, part=(1, 2)),
                "value": Stored(f"{_MLP}.experts.fc2.weight[{{expert}}]"),
                **{f"shared_{name}": stored for name, stored in gated(f"{_MLP}.shared_experts").items()},
            },
            harmless=(r"moe_(aux_loss|z_loss)_coeff",),
        ),
    ),
    config={"activation": "silu", "experts": 8, "experts_used": 2, "shared_experts": 2},
    when={"hidden_act": ("silu", None)},  # of the shared expert alone, where it differs
)

SIGMOID_CONFIG: Mapping[str, tuple[str, ...]] = {
    **_ROUTED_CONFIG,
    "neurons": ("moe_intermediate_size",),
    "dense_neurons": ("intermediate_size",),
    "dense_first": ("first_k_dense_replace",),
    "experts": ("n_routed_experts",),
    "shared_experts": ("n_shared_experts",),
    "router_groups": ("n_group",),
    "router_groups_used": ("topk_group",),
    "router_scale": ("routed_scaling_factor",),
    "beyond": ("num_nextn_predict_layers",),
}
CORRECTED = {
    **_SOME_DENSE,
    **share("shared", gated(f"{_MLP}.shared_experts")),
    "router_correction": Stored(f"{_MLP}.gate.e_score_correction_bias", layers="routed"),
}
"""The experts of DeepSeek-V3: a shared one, and a correction of the scores by which the others are chosen."""

DOTS1 = replace(
    LLAMA,
    name="dots1",
    model_types=("dots1",),
    qk_norm="head",
    layouts=(
        replace(
            HF_LAYOUT,
            config={**SIGMOID_CONFIG, **WINDOWS},
            tensors={**OUTER, **NORMS, **ATTENTION, **QK_NORMS, **CORRECTED},
            harmless=("scoring_func", "topk_method", "moe_layer_freq"),
        ),
    ),
    config={"activation": "silu", "router_sigmoid": True, "window_from": 62},
)

_GLM_HF = replace(
    HF_LAYOUT,
    optional=("unembedding", *QKV_BIASES),
    switches={"attention_bias": (QKV_BIASES, False)},
    config={**SIGMOID_CONFIG, **ROTARY_SHARE},
    tensors={
        **OUTER,
        **NORMS,
        **QKV_BIASED_ATTENTION,
        **CORRECTED,
    },
)
GLM4_MOE = replace(
    LLAMA,
    name="glm4_moe",
    model_types=("glm4_moe",),
    layouts=(_GLM_HF,),
    config={
        "activation": "silu",
        "router_sigmoid": True,
        "rotary_share": 0.5,
        "dense_first": 1,
        "beyond": 1,
        "shared_experts": 1,
        "router_normed": True,
        "experts_used": 8,
    },
    when={"use_qk_norm": (False, None)},
)
GLM4_MOE_QK = replace(
    GLM4_MOE,
    qk_norm="head",
    layouts=(replace(_GLM_HF, tensors={**_GLM_HF.tensors, **QK_NORMS}),),
    when={"use_qk_norm": (True,)},
)

GLM4V_MOE = replace(
    GLM4_MOE,
    model_types=("glm4v_moe_text",),
    layouts=(replace(_GLM_HF, switches={"attention_bias": (QKV_BIASES, True)}),),
    config={name: value for name, value in GLM4_MOE.config.items() if name != "beyond"},
    when={},
    notes=MROPE,
)

_GRANITE_CONFIG = {
    **_ROUTED_CONFIG,
    **GRANITE_FACTORS,
    "logit_divisor": ("logits_scaling",),
    "shared_neurons": ("shared_intermediate_size",),
}
_GRANITE_TENSORS = {
    **OUTER,
    **NORMS,
    **ATTENTION,
    "router": Stored(f"{_MIXTRAL}.router.layer.weight"),
    "gate": Stored(f"{_MIXTRAL}.input_linear.weight[{{expert}}]", part=(0, 2)),
    "up": Stored(f"{_MIXTRAL}.input_linear.weight[{{expert}}]", part=(1, 2)),
    "value": Stored(f"{_MIXTRAL}.output_linear.weight[{{expert}}]", transpose=True),
}
GRANITEMOE = replace(
    LLAMA,
    name="granitemoe",
    model_types=("granitemoe", "granitemoeshared"),
    router_normed=True,  # its softmax is over the logits of the chosen experts
    layouts=(replace(HF_LAYOUT, config=_GRANITE_CONFIG, tensors=_GRANITE_TENSORS),),
    config={"activation": "silu", "attention_scale": 1.0, "experts": 8, "experts_used": 2},
    when={"shared_intermediate_size": (None, 0)},
)
GRANITEMOE_SHARED = replace(
    GRANITEMOE,
    model_types=("granitemoeshared",),
    layouts=(
        replace(
            GRANITEMOE.layouts[0],
            tensors={
                **_GRANITE_TENSORS,
                "shared_gate": Stored(LAYER + "shared_mlp.input_linear.weight", part=(0, 2)),
                "shared_up": Stored(LAYER + "shared_mlp.input_linear.weight", part=(1, 2)),
                "shared_value": Stored(LAYER + "shared_mlp.output_linear.weight", transpose=True),
            },
        ),
    ),
    when={},
)

_OSS_ROPE = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
_OSS = f"{_MLP}.experts.gate_up_proj"
GPT_OSS = replace(
    LLAMA,
    name="gpt_oss",
    model_types=("gpt_oss",),
    router_normed=True,
    layouts=(
        replace(
            HF_LAYOUT,
            switches={"attention_bias": (HEAD_BIASES, True)},
            config={
                **{name: keys for name, keys in _ROUTED_CONFIG.items() if name != "activation"},
                **WINDOWS,
                "gate_limit": ("swiglu_limit",),
            },
            tensors={
                **OUTER,
                **NORMS,
                **ATTENTION,
                "sinks": Stored(LAYER + "self_attn.sinks"),
                **weight_and_bias("router", f"{_MLP}.router"),
                "gate": Stored(f"{_OSS}[{{expert}}]", transpose=True, part=(0, 2), alternating=True),
                "up": Stored(f"{_OSS}[{{expert}}]", transpose=True, part=(1, 2), alternating=True),
                "gate_bias": Stored(f"{_OSS}_bias[{{expert}}]", part=(0, 2), alternating=True),
                "up_bias": Stored(f"{_OSS}_bias[{{expert}}]", part=(1, 2), alternating=True),
                "value": Stored(f"{_MLP}.experts.down_proj[{{expert}}]"),
                "value_bias": Stored(f"{_MLP}.experts.down_proj_bias[{{expert}}]"),
            },
            constants={"local_every": 2},
            defaults={"window": 128, "rope": _OSS_ROPE},
            # Its gates have a function of their own; the other keys are older names.
            harmless=("hidden_act", "experts_per_token", "initial_context_length"),
        ),
    ),
    config={"activation": "quick_gelu", "gate_limit": 7.0, "rope_theta": 150000.0, "experts": 128, "experts_used": 4},
    when={"swiglu_alpha": (1.702, None)},
)

MINIMAX_M2 = replace(
    LLAMA,
    name="minimax_m2",
    model_types=("minimax_m2",),
    qk_norm="whole",
    router_normed=True,
    layouts=(
        replace(
            HF_LAYOUT,
            optional=("unembedding",),
            switches={},
            config={
                **_ROUTED_CONFIG,
                "rotary": ("rotary_dim",),
                **ROTARY_SHARE,
            },
            tensors={
                **OUTER,
                **NORMS,
                **PLAIN_ATTENTION,
                **QK_NORMS,
                "router": Stored(f"{_MIXTRAL}.gate.weight"),
                "router_correction": Stored(f"{_MIXTRAL}.e_score_correction_bias"),
                **gated(f"{_MIXTRAL}.experts.{{expert}}", "w1", "w3", "w2"),
            },
            # what the tensors themselves show, or what transformers leaves out
            harmless=(
                r"attn_type_list|qk_norm_type|use_qk_norm|use_routing_bias|shared_moe_mode",
                r"layernorm_\w+|mlp_intermediate_size|max_model_len|use_mtp|num_mtp_modules|mtp_transformer_layers",
            ),
        ),
    ),
    config={"activation": "silu", "router_sigmoid": True, "rope_theta": 5e6, "experts": 256, "experts_used": 8},
    when={"scoring_func": ("sigmoid", None)},
)

FLEX_OLMO = replace(
    OLMOE,
    name="flex_olmo",
    model_types=("flex_olmo",),
    norm_place="out",
    layouts=(
        replace(
            HF_LAYOUT,
            config=_ROUTED_CONFIG,
            tensors={**OUTER, **NORMS_BEHIND, **ATTENTION, **QK_NORMS, **_EXPERTS},
        ),
    ),
    config={"activation": "silu", "rope_theta": 500000.0, "experts": 7, "experts_used": 5},
)

ERNIE4_5_MOE = replace(
    ERNIE4_5,
    name="ernie4_5_moe",
    model_types=("ernie4_5_moe",),
    router_normed=True,
    layouts=(
        replace(
            HF_LAYOUT,
            optional=("unembedding",),
            switches={},
            config={
                **_ROUTED_CONFIG,
                "neurons": ("moe_intermediate_size",),
                "dense_neurons": ("intermediate_size",),
                "dense_first": ("moe_layer_start_index",),
                "routed_last": ("moe_layer_end_index",),
                "routed_every": ("moe_layer_interval",),
                "experts": ("moe_num_experts",),
                "experts_used": ("moe_k",),
                "shared_experts": ("moe_num_shared_experts",),
                "beyond": ("num_nextn_predict_layers",),
            },
            tensors={
                **OUTER,
                **NORMS,
                **PLAIN_ATTENTION,
                **{role: PAIRED[role] for role in "qk"},
                **_SOME_DENSE,
                **share("shared", gated(f"{_MLP}.shared_experts")),
                "router_correction": Stored(f"{_MLP}.moe_statics.e_score_correction_bias[0]", layers="routed"),
            },
            harmless=("moe_capacity", "moe_use_aux_free", "moe_gate"),
        ),
    ),
    config={**ERNIE4_5.config, "dense_first": 1, "experts": 64, "experts_used": 6, "shared_experts": 2},
    when={"use_bias": (False, None), "moe_norm_min": (1e-12, None)},
)

PHIMOE = replace(
    MIXTRAL,
    name="phimoe",
    model_types=("phimoe",),
    norm="layer",
    router_normed=False,
    layouts=(
        replace(
            MIXTRAL.layouts[0],
            optional=("unembedding", "unembedding_bias", *HEAD_BIASES),
            switches={**ATTENTION_BIAS, "lm_head_bias": (("unembedding_bias",), False)},
            config={
                **MIXTRAL.layouts[0].config,
                "router_jitter": ("router_jitter_noise",),
                "longrope_lengthening": ("rope_parameters.short_mscale", "rope_scaling.short_mscale"),
            },
            tensors={
                **MIXTRAL.layouts[0].tensors,
                **ATTENTION,
                **weight_and_bias("unembedding", "^lm_head"),
                **SHIFTED_NORMS,
            },
            harmless=("input_jitter_noise",),
        ),
    ),
    config={"activation": "silu", "rope_theta": 1e6, "experts": 16, "experts_used": 2, "router_jitter": 0.01},
)

FAMILIES = (
    MIXTRAL,
    QWEN3_MOE,
    QWEN3_VL_MOE,
    QWEN3_OMNI_MOE,
    HUNYUAN_MOE,
    MELLUM,
    ARIA,
    OLMOE,
    QWEN2_MOE,
    DOTS1,
    GLM4_MOE,
    GLM4_MOE_QK,
    GLM4V_MOE,
    GRANITEMOE,
    GRANITEMOE_SHARED,
    GPT_OSS,
    MINIMAX_M2,
    FLEX_OLMO,
    ERNIE4_5_MOE,
    PHIMOE,
)
