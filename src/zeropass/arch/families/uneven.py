"""Decoders whose layers differ in the number of their heads: those with a window have others than those without one."""

from collections.abc import Mapping
from dataclasses import replace

from zeropass.arch.families.experts import CORRECTED, SIGMOID_CONFIG
from zeropass.arch.families.llama import LLAMA
from zeropass.arch.families.parts import (
    ATTENTION,
    HF_LAYOUT,
    LAYER,
    NORMS,
    OUTER,
    QK_NORMS,
    QKV_BIASED_ATTENTION,
    QKV_BIASES,
    WINDOWS,
)
from zeropass.arch.layout import Stored

_OF_SIGMOID = ("neurons", "dense_neurons", "experts_used")
_CONFIG: Mapping[str, tuple[str, ...]] = {
    **HF_LAYOUT.config,
    **{name: SIGMOID_CONFIG[name] for name in _OF_SIGMOID},
    **{name: WINDOWS[name] for name in ("window", "layer_kinds")},
    "mlp_kinds": ("mlp_layer_types",),
    "rotary_share": ("rope_parameters.full_attention.partial_rotary_factor",),
    "local_rotary_share": ("rope_parameters.sliding_attention.partial_rotary_factor",),
}
_ONE_SHARED = {
    name: replace(stored, name=stored.name.replace("shared_experts", "shared_expert"))
    for name, stored in CORRECTED.items()
}
_LAGUNA_ROPES = {
    "full_attention": {"rope_type": "default", "rope_theta": 500000.0, "partial_rotary_factor": 0.5},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0},
}
LAGUNA = replace(
    LLAMA,
    name="laguna",
    model_types=("laguna",),
    qk_norm="head",
    gate="softplus",
    router_normed=True,
    layouts=(
        replace(
            HF_LAYOUT,
            config={
                **_CONFIG,
                "each_heads": ("num_attention_heads_per_layer",),
                "experts": ("num_experts",),
                "shared_neurons": ("shared_expert_intermediate_size",),
                "router_scale": ("moe_routed_scaling_factor",),
                "gates": ("gating",),
            },
            tensors={
                **OUTER,
                **NORMS,
                **ATTENTION,
                **QK_NORMS,
                "g": Stored(LAYER + "self_attn.g_proj.weight"),
                **_ONE_SHARED,
                "router_correction": Stored(LAYER + "mlp.experts.e_score_correction_bias", layers="routed"),
            },
            constants={"local_every": 1},  # no layer has a window where the configuration names no kinds
            defaults={"window": 512, "rope": _LAGUNA_ROPES},
        ),
    ),
    config={
        **{"activation": "silu", "eps": 1e-6, "router_sigmoid": True, "dense_first": 1, "gates": True},
        **{"head_dim": 128, "kv_heads": 8, "experts": 256, "experts_used": 8, "shared_neurons": 512},
    },
    when={
        "moe_apply_router_weight_on_input": (False, None),
        "moe_router_logit_softcapping": (0.0, None),
    },
)

_MIMO_CONFIG = {
    **_CONFIG,
    **{name: keys for name, keys in SIGMOID_CONFIG.items() if name.startswith("router")},
    "eps": ("rms_norm_eps", "layernorm_epsilon"),
    "experts": ("n_routed_experts",),
    "value_dim": ("v_head_dim",),
    "value_scale": ("attention_value_scale",),
    "reach": ("sliding_window_size",),
    "layer_kinds": ("layer_types", "hybrid_layer_pattern"),
    "mlp_kinds": ("mlp_layer_types", "moe_layer_freq"),
    "rotary_share": (*_CONFIG["rotary_share"], "partial_rotary_factor"),
    "local_rotary_share": (*_CONFIG["local_rotary_share"], "partial_rotary_factor"),
    "local_rope_theta": ("swa_rope_theta",),
    "local_heads": ("swa_num_attention_heads",),
    "local_kv_heads": ("swa_num_key_value_heads",),
    "local_head_dim": ("swa_head_dim",),
    "local_value_dim": ("swa_v_head_dim",),
}
"""Published configurations have names of their own, which transformers 5.24 replaces by its defaults for them."""

MIMO_V2_FLASH = replace(
    LLAMA,
    name="mimo_v2_flash",
    model_types=("mimo_v2_flash",),
    layouts=(
        replace(
            HF_LAYOUT,
            optional=("unembedding", *QKV_BIASES),
            switches={"attention_bias": (QKV_BIASES, False)},
            config=_MIMO_CONFIG,
            tensors={
                **{what: stored for what, stored in CORRECTED.items() if not what.startswith("shared_")},
                **OUTER,
                **NORMS,
                **QKV_BIASED_ATTENTION,
                "sinks": Stored(LAYER + "self_attn.attention_sink_bias", layers="local"),
            },
            constants={"kinds_required": True, "local_kv_heads_factor": 2},
            defaults={"window": 129, "value_scale": 0.707},
            unread=(*HF_LAYOUT.unread, r"mtp\..*"),
            harmless=("attention_chunk_size",),
        ),
    ),
    config={
        **{"activation": "silu", "eps": 1e-5, "router_sigmoid": True, "router_normed": True, "dense_first": 1},
        **{"head_dim": 192, "value_dim": 128, "kv_heads": 4, "experts": 256, "experts_used": 8},
        **{"rotary_share": 0.334, "local_rotary_share": 0.334, "rope_theta": 5e6, "local_rope_theta": 10000.0},
    },
    when={
        "add_swa_attention_sink_bias": (True, None),
        "add_full_attention_sink_bias": (False, None),
        "scoring_func": ("sigmoid", None),
        "topk_method": ("noaux_tc", None),
    },
)

FAMILIES = (LAGUNA, MIMO_V2_FLASH)
