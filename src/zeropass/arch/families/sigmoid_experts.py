"""Decoders with experts that are scored each by itself, as those of DeepSeek-V3 are."""

from dataclasses import replace

from zeropass.arch.families.dense import COHERE2
from zeropass.arch.families.experts import DOTS1, GLM4_MOE, GLM4_MOE_QK, gated, share
from zeropass.arch.families.llama import LLAMA
from zeropass.arch.families.parts import (
    ATTENTION,
    CONFIG,
    HF_LAYOUT,
    LAYER,
    NORMS,
    OUTER,
    PAIRED,
    PLAIN_ATTENTION,
    QK_NORMS,
    WINDOWS,
)
from zeropass.arch.layout import Stored

_DOTS1_HF, _GLM_HF = DOTS1.layouts[0], GLM4_MOE.layouts[0]
_EXPERTS = {name: stored for name, stored in _DOTS1_HF.tensors.items() if ".mlp." in stored.name}
_CORRECTION = "router_correction"

EXAONE_MOE = replace(
    DOTS1,
    name="exaone_moe",
    model_types=("exaone_moe",),
    layouts=(
        replace(
            _DOTS1_HF,
            optional=("unembedding",),
            switches={},
            config={
                **_DOTS1_HF.config,
                "experts": ("num_experts",),
                "shared_experts": ("num_shared_experts",),
                "mlp_kinds": ("mlp_layer_types",),
                "local_every": ("sliding_window_pattern",),
            },
            tensors={
                **OUTER,
                **NORMS,
                **PLAIN_ATTENTION,
                **QK_NORMS,
                **_EXPERTS,
                _CORRECTION: Stored(LAYER + "mlp.e_score_correction_bias", layers="routed"),
            },
            constants={"local_every": 4, "only_local_rotated": True},
            defaults={"window": 4096},
            unread=(r"\^mtp\..*",),
        ),
    ),
    config={
        "activation": "silu",
        "router_sigmoid": True,
        "router_normed": True,
        "router_scale": 2.5,
        "dense_first": 1,
        "shared_experts": 1,
        "experts_used": 8,
    },
)

SOLAR_OPEN = replace(
    GLM4_MOE,
    name="solar_open",
    model_types=("solar_open",),
    layouts=(
        replace(
            _GLM_HF,
            config={name: keys for name, keys in _GLM_HF.config.items() if name != "dense_first"},
            tensors={name: stored for name, stored in _GLM_HF.tensors.items() if not name.startswith("dense_")},
        ),
    ),
    config={
        "activation": "silu",
        "router_sigmoid": True,
        "router_normed": True,
        "shared_experts": 1,
        "experts_used": 8,
        "rope_theta": 1e6,
    },
    when={"use_qk_norm": (False, None), "first_k_dense_replace": (0, None)},
)

_SARVAM = LAYER + "attention."
SARVAM_MOE = replace(
    GLM4_MOE_QK,
    name="sarvam_moe",
    model_types=("sarvam_moe",),
    layouts=(
        replace(
            _GLM_HF,
            optional=("unembedding",),
            switches={},
            config={
                **_GLM_HF.config,
                "experts": ("n_routed_experts", "num_experts"),
                "shared_experts": ("n_shared_experts", "num_shared_experts"),
                "beyond": ("num_nextn_predict_layers", "num_mtp_layers"),
            },
            tensors={
                **OUTER,
                **NORMS,
                "embedding": Stored("word_embeddings.weight"),
                **dict.fromkeys("qkv", Stored(_SARVAM + "query_key_value.weight", fused="stacked")),
                "o": Stored(_SARVAM + "dense.weight", transpose=True),
                "q_norm": Stored(_SARVAM + "query_layernorm.weight"),
                "k_norm": Stored(_SARVAM + "key_layernorm.weight"),
                **_EXPERTS,
                _CORRECTION: Stored(LAYER + "mlp.gate.expert_bias", layers="routed"),
            },
        ),
    ),
    config={
        "activation": "silu",
        "router_sigmoid": True,
        "router_normed": True,
        "router_scale": 2.5,
        "dense_first": 1,
        "shared_experts": 1,
        "experts_used": 6,
        "rope_theta": 8e6,
    },
    when={"use_qk_norm": (True, None)},
)

HY_V3 = replace(
    DOTS1,
    name="hy_v3",
    model_types=("hy_v3",),
    router_normed=True,
    layouts=(
        replace(
            _DOTS1_HF,
            config={
                **{
                    name: keys for name, keys in _GLM_HF.config.items() if "router" not in name and "rotary" not in name
                },
                "experts": ("num_experts", "num_local_experts"),
                "shared_experts": ("num_shared_experts",),
                "mlp_kinds": ("mlp_layer_types",),
                "router_scale": ("router_scaling_factor",),
            },
            tensors={
                **_DOTS1_HF.tensors,
                **{
                    name: replace(stored, name=stored.name.replace("shared_experts", "shared_mlp"))
                    for name, stored in _EXPERTS.items()
                },
                "router": Stored(LAYER + "mlp.router.gate.weight", layers="routed"),
                _CORRECTION: Stored(LAYER + "mlp.expert_bias", layers="routed"),
            },
            harmless=("enable_moe_fp32_combine",),
        ),
    ),
    config={
        "activation": "silu",
        "router_sigmoid": True,
        "router_scale": 2.826,
        "dense_first": 1,
        "shared_experts": 1,
        "experts_used": 8,
        "rope_theta": 11158840.0,
    },
)

_LLAMA4_MLP = LAYER + "feed_forward"
_LLAMA4_JOINT = _LLAMA4_MLP + ".experts.gate_up_proj[{expert}]"

_LLAMA4_CONFIG = {
    **CONFIG,
    "dense_neurons": ("intermediate_size_mlp",),
    "shared_neurons": ("intermediate_size",),
    "experts": ("num_local_experts",),
    "experts_used": ("num_experts_per_tok",),
    "routed_layers": ("moe_layers",),
    "routed_every": ("interleave_moe_layer_step",),
    "rotated_layers": ("no_rope_layers",),
    "unrotated_every": ("no_rope_layer_interval",),
    "window": ("attention_chunk_size",),
    "layer_kinds": ("layer_types",),
    "grows": ("attn_temperature_tuning",),
    "growth": ("attn_scale",),
    "growth_length": ("floor_scale",),
}
_LLAMA4_TENSORS = {
    **OUTER,
    **NORMS,
    **ATTENTION,
    **PAIRED,
    "router": Stored(_LLAMA4_MLP + ".router.weight", layers="routed"),
    "gate": Stored(_LLAMA4_JOINT, transpose=True, part=(0, 2), layers="routed"),
    "up": Stored(_LLAMA4_JOINT, transpose=True, part=(1, 2), layers="routed"),
    "value": Stored(_LLAMA4_MLP + ".experts.down_proj[{expert}]", layers="routed"),
    **share("shared", gated(f"{_LLAMA4_MLP}.shared_expert")),
    **share("dense", gated(_LLAMA4_MLP)),
}
LLAMA4 = replace(
    LLAMA,
    name="llama4",
    model_types=("llama4_text",),
    qk_norm="head",
    qk_norm_behind=True,
    qk_norm_rotated=True,
    router_scales_input=True,
    layouts=(
        replace(
            HF_LAYOUT,
            config=_LLAMA4_CONFIG,
            tensors=_LLAMA4_TENSORS,
            constants={"chunked": True, "only_rotated_local": True, "growth_first": 1, "only_unrotated_grow": True},
            defaults={"window": 8192},
            harmless=("for_llm_compressor",),
        ),
    ),
    config={
        "activation": "silu",
        "router_sigmoid": True,
        "unrotated_every": 4,
        "growth": 0.1,
        "growth_length": 8192,
        "rope_theta": 500000.0,
    },
    when={"use_qk_norm": (True, None)},
    notes=("a router multiplies what its experts read: an expert is read as if that factor were one",),
)
LLAMA4_BARE = replace(LLAMA4, qk_norm="", qk_norm_behind=False, qk_norm_rotated=False, when={"use_qk_norm": (False,)})

_AFMOE_CONFIG = {
    **{what: keys for what, keys in EXAONE_MOE.layouts[0].config.items() if "groups" not in what and what != "beyond"},
    "dense_first": ("num_dense_layers",),
    "router_scale": ("route_scale",),
    "local_every": ("global_attn_every_n_layers",),
    "embed_scaled": ("mup_enabled",),
}
AFMOE = replace(
    EXAONE_MOE,
    name="afmoe",
    model_types=("afmoe",),
    layouts=(
        replace(
            HF_LAYOUT,
            config=_AFMOE_CONFIG,
            tensors={
                **OUTER,
                **NORMS,
                **ATTENTION,
                **QK_NORMS,
                "g": Stored(LAYER + "self_attn.gate_proj.weight"),
                "attn_post_norm": Stored(LAYER + "post_attention_layernorm.weight"),
                "ff_norm": Stored(LAYER + "pre_mlp_layernorm.weight"),
                "ff_post_norm": Stored(LAYER + "post_mlp_layernorm.weight"),
                **_EXPERTS,
                "router": Stored(LAYER + "mlp.router.gate.weight", layers="routed"),
                _CORRECTION: Stored(LAYER + "mlp.expert_bias", layers="routed"),
            },
            constants={"local_every": 4, "only_local_rotated": "always"},
            defaults={"window": 1024},
            harmless=("use_grouped_mm", "load_balance_coeff"),
        ),
    ),
    config={**EXAONE_MOE.config, "router_scale": 1.0, "shared_experts": 2, "experts": 64, "experts_used": 6},
    when={
        "route_norm": (True, None),
        "score_func": ("sigmoid", None),
        **dict.fromkeys(("n_group", "topk_group", "num_expert_groups", "num_limited_groups"), (1, None)),
    },
)

_OWN_SHARED = {
    **CONFIG,
    **WINDOWS,
    "neurons": ("moe_intermediate_size",),
    "shared_neurons": ("shared_expert_intermediate_size",),
    "experts_used": ("num_experts_per_tok",),
    "router_normed": ("norm_topk_prob",),
}
FLINT = replace(
    LLAMA,
    name="flint",
    model_types=("flint",),
    qk_norm="head",
    layouts=(
        replace(
            HF_LAYOUT,
            config={
                **_OWN_SHARED,
                "experts": ("num_experts",),
                "dense_neurons": ("intermediate_size",),
                "dense_layers": ("mlp_only_layers",),
                "routed_every": ("decoder_sparse_step",),
            },
            tensors={
                **OUTER,
                **NORMS,
                **ATTENTION,
                **QK_NORMS,
                "sinks": Stored(LAYER + "self_attn.softmax_offset"),
                **{
                    name: replace(stored, name=stored.name.replace("shared_experts", "shared_expert"))
                    for name, stored in _EXPERTS.items()
                    if name != _CORRECTION
                },
            },
            constants={"only_local_rotated": "always", "kinds_required": True},
            defaults={"window": 513},
        ),
    ),
    config={
        **{"activation": "silu", "router_sigmoid": True, "router_normed": True, "dense_layers": (0, 1)},
        **{"shared_neurons": 1024, "experts": 256, "experts_used": 6},
    },
)
KOLIBRI1 = replace(
    LLAMA,
    name="kolibri1",
    model_types=("kolibri1",),
    qk_norm="head",
    router_by_logits=True,
    layouts=(
        replace(
            HF_LAYOUT,
            optional=("unembedding",),
            switches={},
            config={**_OWN_SHARED, "experts": ("num_local_experts", "num_experts")},
            tensors={
                **OUTER,
                **NORMS,
                **PLAIN_ATTENTION,
                **QK_NORMS,
                "attn_post_norm": Stored(LAYER + "post_attn_norm.weight"),
                "ff_post_norm": Stored(LAYER + "post_ffn_norm.weight"),
                **{name: stored for name, stored in _EXPERTS.items() if not name.startswith("dense_")},
                _CORRECTION: Stored(LAYER + "moe.router.expert_bias"),
            },
            constants={"local_every": 5, "only_local_rotated": True},
            defaults={"window": 513},
        ),
    ),
    config={
        **{"activation": "silu", "router_sigmoid": True, "router_normed": False},
        **{"shared_neurons": 512, "experts": 384, "experts_used": 6},
    },
)

_COHERE_HF = COHERE2.layouts[0]
_COHERE_CONFIG = {
    **_COHERE_HF.config,
    "dense_neurons": ("prefix_dense_intermediate_size", "intermediate_size"),
    "dense_rotated": ("prefix_dense_sliding_window_pattern",),
    "mlp_kinds": ("mlp_layer_types",),
    "dense_first": ("first_k_dense_replace",),
    "experts": ("num_experts",),
    "experts_used": ("num_experts_per_tok",),
    "shared_experts": ("num_shared_experts",),
    "sharing_of_experts": ("shared_expert_combination_strategy",),
    "router_sigmoid": ("expert_selection_fn",),
}
COHERE2_MOE = replace(
    COHERE2,
    name="cohere2_moe",
    model_types=("cohere2_moe",),
    router_normed=True,
    layouts=(
        replace(
            _COHERE_HF,
            config=_COHERE_CONFIG,
            tensors={
                **{name: stored for name, stored in _COHERE_HF.tensors.items() if ".mlp." not in stored.name},
                **{
                    name: replace(stored, layers="shared") if name.startswith("shared_") else stored
                    for name, stored in _EXPERTS.items()
                    if name != _CORRECTION
                },
            },
            constants={**_COHERE_HF.constants, "kinds_required": True},
        ),
    ),
    config={
        "activation": "silu",
        "experts": 8,
        "experts_used": 2,
        "dense_rotated": 1,
        "head_dim": 128,
        "sharing_of_experts": "average",
    },
    when={
        "rms_norm_eps": (None,),
        "expert_selection_fn": ("softmax", "sigmoid", None),
        "shared_expert_combination_strategy": ("average", "sum", None),
        "norm_topk_prob": (True, None),
    },
)
COHERE2_MOE_RMS = replace(
    COHERE2_MOE,
    norm="rms",
    layouts=(
        replace(
            COHERE2_MOE.layouts[0],
            config={**_COHERE_CONFIG, "eps": ("rms_norm_eps",)},
            harmless=("layer_norm_eps",),
        ),
    ),
    when={key: values for key, values in COHERE2_MOE.when.items() if key != "rms_norm_eps"},
)

FAMILIES = (
    COHERE2_MOE,
    COHERE2_MOE_RMS,
    EXAONE_MOE,
    SOLAR_OPEN,
    SARVAM_MOE,
    HY_V3,
    LLAMA4,
    LLAMA4_BARE,
    AFMOE,
    FLINT,
    KOLIBRI1,
)
