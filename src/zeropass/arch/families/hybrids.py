"""Hybrids: decoders in which some layers have a mixer, such as linear attention, in the place of attention."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from zeropass.arch.families.experts import (
    GRANITEMOE_SHARED,
    QWEN2_MOE,
    QWEN3_MOE,
    SIGMOID_CONFIG,
    STACKED_EXPERTS,
    gated,
    routed,
    share,
)
from zeropass.arch.families.llama import LLAMA
from zeropass.arch.families.parts import (
    ATTENTION,
    ATTENTION_BIAS,
    BIASED_MLP,
    CONFIG,
    HEAD_BIASES,
    HF_LAYOUT,
    LAYER,
    MLP,
    MLP_BIASES,
    NORMS,
    OUTER,
    PLAIN_ATTENTION,
    QK_NORMS,
    QKV_BIASES,
    ROTARY_SHARE,
)
from zeropass.arch.layout import Stored, modules
from zeropass.arch.roles import Site


def _of(site: Site, tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """Return tensors as those of the layers with such a part."""
    assert site != "cross" and site != "laurel" and site != "ple"
    return {what: replace(stored, layers=site) for what, stored in tensors.items()}


def _norms(before: str, behind: str) -> dict[str, Stored]:
    """Return the norms of a hybrid: one before the attention or the mixer, one before the MLP."""
    first = Stored(f"{LAYER}{before}.weight")
    return {
        **_of("attn", {"attn_norm": first}),
        **_of("mixer", {"mixer_norm": first}),
        **_of("ff", {"ff_norm": Stored(f"{LAYER}{behind}.weight")}),
    }


def _in(name: str, *sizes: str, grouped: bool = False) -> Stored:
    """Return a projection into a mixer, whose rows add up to some of its sizes."""
    return Stored(f"{name}.weight", sizes=sizes, fused="grouped" if grouped else "")


def _projections(module: str, conv: str, rows: tuple[str, ...], convolved: tuple[str, ...]) -> dict[str, Stored]:
    """Return the projections into and out of a mixer and its convolution, with their biases."""
    return {
        "mixer_in": Stored(f"{module}.in_proj.weight", sizes=rows),
        "mixer_in_bias": Stored(f"{module}.in_proj.bias", sizes=rows),
        "mixer_out": Stored(f"{module}.out_proj.weight", transpose=True, sizes=("inner",)),
        "mixer_out_bias": Stored(f"{module}.out_proj.bias"),
        "inner_conv": Stored(f"{module}.{conv}.weight", sizes=convolved),
        "inner_conv_bias": Stored(f"{module}.{conv}.bias", sizes=convolved),
    }


_CONV_BIASES = ("mixer_in_bias", "mixer_out_bias", "inner_conv_bias")

_DELTA = LAYER + "linear_attn"
_DELTA_CONFIG = {
    "mixer_heads": ("linear_num_value_heads",),
    "mixer_width": ("linear_value_head_dim",),
    "mixer_groups": ("linear_num_key_heads",),
    "mixer_state": ("linear_key_head_dim",),
    "mixer_kernel": ("linear_conv_kernel_dim",),
}
_DELTA_INNER = {
    "mixer_out": Stored(f"{_DELTA}.out_proj.weight", transpose=True, sizes=("inner",)),
    "inner_conv": Stored(f"{_DELTA}.conv1d.weight", sizes=("keys", "keys", "inner")),
    "inner_gain": Stored(f"{_DELTA}.norm.weight", sizes=("width",)),
    "inner_step": Stored(f"{_DELTA}.dt_bias", sizes=("heads",)),
    "inner_decay": Stored(f"{_DELTA}.A_log", sizes=("heads",)),
}
_GATED_QUERIES = {
    **ATTENTION,
    "q": replace(ATTENTION["q"], fused="gated"),
    "q_bias": replace(ATTENTION["q_bias"], fused="gated"),
    "g": replace(ATTENTION["q"], fused="gated"),
    "g_bias": replace(ATTENTION["q_bias"], fused="gated"),
}
_QWEN_CONFIG = {
    **ROTARY_SHARE,
    **_DELTA_CONFIG,
    "layer_kinds": ("layer_types",),
    "attention_every": ("full_attention_interval",),
}
_QWEN_BIASES = (*HEAD_BIASES, "g_bias")
_QWEN_TENSORS = {
    **OUTER,
    **_norms("input_layernorm", "post_attention_layernorm"),
    **_of("attn", {**_GATED_QUERIES, **QK_NORMS}),
}
_QWEN_HF = replace(
    HF_LAYOUT,
    optional=("unembedding", *_QWEN_BIASES),
    switches={"attention_bias": (_QWEN_BIASES, False)},
    config={**CONFIG, **_QWEN_CONFIG},
    gain_offset=1.0,
    # The layers behind the last, which predict later tokens for speculative decoding.
    unread=(*HF_LAYOUT.unread, r"\^mtp\..*"),
    harmless=("mamba_ssm_dtype", "mtp_num_hidden_layers"),
)
_QWEN_VALUES = {
    "activation": "silu",
    "rotary_share": 0.25,
    "attention_every": 4,
    "mixer_heads": 32,
    "mixer_width": 128,
    "mixer_groups": 16,
    "mixer_state": 128,
    "mixer_kernel": 4,
}
_QWEN_LAYERS: Mapping[str, tuple[Site, ...]] = {
    "linear_attention": ("mixer", "ff"),
    "full_attention": ("attn", "ff"),
}
_SPLIT_INPUTS = {
    "mixer_in": _in(f"{_DELTA}.in_proj_qkv", "keys", "keys", "inner"),
    "mixer_in_gate": _in(f"{_DELTA}.in_proj_z", "inner"),
    "mixer_in_update": _in(f"{_DELTA}.in_proj_b", "heads"),
    "mixer_in_decay": _in(f"{_DELTA}.in_proj_a", "heads"),
}
QWEN3_5 = replace(
    LLAMA,
    name="qwen3_5",
    model_types=("qwen3_5_text",),
    qk_norm="head",
    mixer="delta",
    layer_types=_QWEN_LAYERS,
    layouts=(
        replace(
            _QWEN_HF,
            tensors={**_QWEN_TENSORS, **_of("mixer", {**_DELTA_INNER, **_SPLIT_INPUTS}), **MLP},
        ),
    ),
    config=_QWEN_VALUES,
    when={"attn_output_gate": (True, None)},
    notes=("M-RoPE: the tokens of a text have one position on all its axes, so that it turns as plain RoPE",),
)

_QWEN_MOE = QWEN2_MOE.layouts[0]
_QWEN_MOE_TENSORS = {
    what: stored for what, stored in _QWEN_MOE.tensors.items() if what not in {**OUTER, **NORMS, **ATTENTION}
}
QWEN3_NEXT = replace(
    QWEN3_5,
    name="qwen3_next",
    model_types=("qwen3_next",),
    layouts=(
        replace(
            _QWEN_HF,
            config={**{name: keys for name, keys in _QWEN_MOE.config.items() if name != "window_used"}, **_QWEN_CONFIG},
            tensors={
                **_QWEN_TENSORS,
                **_of("mixer", _DELTA_INNER),
                **_of(
                    "mixer",
                    {
                        "mixer_in": _in(f"{_DELTA}.in_proj_qkvz", "keys", "keys", "inner", "inner", grouped=True),
                        "mixer_in_update": _in(f"{_DELTA}.in_proj_ba", "heads", "heads", grouped=True),
                    },
                ),
                **_QWEN_MOE_TENSORS,
            },
        ),
    ),
    config={**_QWEN_VALUES, "experts": 512, "experts_used": 10, "router_normed": True},
    notes=(),
)


_QWEN3_5_MOE_HF = replace(
    QWEN3_NEXT.layouts[0],
    config={
        what: keys
        for what, keys in QWEN3_NEXT.layouts[0].config.items()
        if "dense" not in what and what != "routed_every"
    },
    tensors={
        **_QWEN_TENSORS,
        **_of("mixer", {**_DELTA_INNER, **_SPLIT_INPUTS}),
        **{what: replace(s, layers="all") for what, s in _QWEN_MOE_TENSORS.items() if "dense" not in what},
    },
)
QWEN3_5_MOE = replace(
    QWEN3_5,
    name="qwen3_5_moe",
    model_types=("qwen3_5_moe_text",),
    router_normed=True,
    layouts=(_QWEN3_5_MOE_HF,),
    config={**_QWEN_VALUES, "experts": 256, "experts_used": 8},
)
QWEN3_5_MOE_STACKED = replace(  # as published; transformers 5 writes a tensor for each expert
    QWEN3_5_MOE,
    layouts=(
        replace(
            _QWEN3_5_MOE_HF,
            tensors={**_QWEN3_5_MOE_HF.tensors, **STACKED_EXPERTS},
            only_with="model.language_model.layers.0.mlp.experts.gate_up_proj",
        ),
    ),
)

_LFM2 = LAYER + "conv"
_LFM2_CONFIG = {
    "neurons": ("block_ff_dim", "intermediate_size"),
    "neurons_adjusted": ("block_auto_adjust_ff_dim",),
    "neurons_factor": ("block_ffn_dim_multiplier",),
    "neurons_multiple": ("block_multiple_of",),
    "eps": ("norm_eps",),
    "layer_kinds": ("layer_types",),
    "attention_layers": ("full_attn_idxs",),
    "mixer_width": ("hidden_size",),
    "mixer_kernel": ("conv_L_cache",),
}
_LFM2_VALUES = {
    "activation": "silu",
    "rope_theta": 1e6,
    "neurons_adjusted": True,
    "neurons_factor": 1.0,
    "neurons_multiple": 256,
    "mixer_kernel": 3,
}
LFM2 = replace(
    LLAMA,
    name="lfm2",
    model_types=("lfm2",),
    qk_norm="head",
    tied_by_default=True,
    mixer="convolution",
    layer_types={"conv": ("mixer", "ff"), "full_attention": ("attn", "ff")},
    layouts=(
        replace(
            HF_LAYOUT,
            optional=("unembedding", *_CONV_BIASES),
            switches={"conv_bias": (_CONV_BIASES, False)},
            config={**CONFIG, **_LFM2_CONFIG},
            tensors={
                "embedding": OUTER["embedding"],
                "unembedding": OUTER["unembedding"],
                "final_norm": Stored("embedding_norm.weight"),
                **_norms("operator_norm", "ffn_norm"),
                **_of("attn", {role: ATTENTION[role] for role in "qkv"}),
                **_of("attn", {"o": Stored(f"{LAYER}self_attn.out_proj.weight", transpose=True)}),
                **_of("attn", {f"{role}_norm": Stored(f"{LAYER}self_attn.{role}_layernorm.weight") for role in "qk"}),
                **_of("mixer", _projections(_LFM2, "conv", ("inner",) * 3, ("inner",))),
                "gate": Stored(f"{LAYER}feed_forward.w1.weight"),
                "up": Stored(f"{LAYER}feed_forward.w3.weight"),
                "value": Stored(f"{LAYER}feed_forward.w2.weight", transpose=True),
            },
            harmless=(
                r"block_(dim|norm_eps|use_swiglu|use_xavier_init|mlp_init_scale|out_init_scale)|num_heads|theta",
                r"conv_(dim|dim_out|use_xavier_init)|use_pos_enc",  # older names, and how it was trained
            ),
        ),
    ),
    config=_LFM2_VALUES,
    when={"tie_embedding": (None, True)},
)

_LFM2_MLP = f"{LAYER}feed_forward"
LFM2_MOE = replace(
    LFM2,
    name="lfm2_moe",
    model_types=("lfm2_moe",),
    layouts=(
        replace(
            LFM2.layouts[0],
            optional=(*LFM2.layouts[0].optional, "router_correction"),
            switches={**LFM2.layouts[0].switches, "use_expert_bias": (("router_correction",), True)},
            config={
                **{what: keys for what, keys in LFM2.layouts[0].config.items() if not what.startswith("neurons")},
                "neurons": ("moe_intermediate_size",),
                "dense_neurons": ("intermediate_size",),
                "experts": ("num_experts",),
                "experts_used": ("num_experts_per_tok",),
                "router_normed": ("norm_topk_prob",),
                "router_scale": ("routed_scaling_factor",),
                "dense_first": ("num_dense_layers",),
            },
            tensors={
                **LFM2.layouts[0].tensors,
                **routed(
                    {
                        "router": Stored(f"{_LFM2_MLP}.gate.weight"),
                        "router_correction": Stored(f"{_LFM2_MLP}.expert_bias"),
                        **gated(f"{_LFM2_MLP}.experts.{{expert}}", "w1", "w3", "w2"),
                    }
                ),
                **share("dense", gated(_LFM2_MLP, "w1", "w3", "w2")),
            },
        ),
    ),
    config={
        **{"activation": "silu", "rope_theta": 1e6, "mixer_kernel": 3, "dense_first": 2},
        **{"router_sigmoid": True, "router_normed": True, "experts": 32, "experts_used": 4},
    },
)

_BLOCK = LAYER + "temporal_block"
_RGLRU = {
    "mixer_in": _in(f"{_BLOCK}.linear_x", "inner"),
    "mixer_in_bias": Stored(f"{_BLOCK}.linear_x.bias", sizes=("inner",)),
    "mixer_in_gate": _in(f"{_BLOCK}.linear_y", "inner"),
    "mixer_in_gate_bias": Stored(f"{_BLOCK}.linear_y.bias", sizes=("inner",)),
    "mixer_out": Stored(f"{_BLOCK}.linear_out.weight", transpose=True, sizes=("inner",)),
    "mixer_out_bias": Stored(f"{_BLOCK}.linear_out.bias"),
    "inner_conv": Stored(f"{_BLOCK}.conv_1d.weight", sizes=("inner",)),
    "inner_conv_bias": Stored(f"{_BLOCK}.conv_1d.bias", sizes=("inner",)),
    "inner_decay": Stored(f"{_BLOCK}.rg_lru.recurrent_param", sizes=("inner",)),
    **{
        f"inner_{gate}_{what}": Stored(f"{_BLOCK}.rg_lru.{name}_gate_{kind}", sizes=("heads",))
        for gate, name in (("input", "input"), ("decay", "recurrent"))
        for what, kind in (("gate", "weight"), ("bias", "bias"))
    },
}
_GRIFFIN_ATTENTION = {
    what: replace(stored, name=stored.name.replace("self_attn", "temporal_block")) for what, stored in ATTENTION.items()
}
_GRIFFIN_MLP = modules(LAYER + "mlp_block.", gate="gate_proj", up="up_proj", value="down_proj")
RECURRENT_GEMMA = replace(
    LLAMA,
    name="recurrent_gemma",
    model_types=("recurrent_gemma",),
    tied_by_default=True,
    embed_scaled=True,
    mixer="rglru",
    layer_types={"recurrent": ("mixer", "ff"), "attention": ("attn", "ff")},
    layouts=(
        replace(
            HF_LAYOUT,
            optional=("unembedding", *QKV_BIASES),
            switches={"attention_bias": (QKV_BIASES, False)},
            config={
                **{
                    **CONFIG,
                    **ROTARY_SHARE,
                    "activation": ("hidden_activation",),
                    "window": ("attention_window_size",),
                },
                **{"logit_cap": ("logits_soft_cap",), "first_kinds": ("block_types", "_block_types")},
                **{"mixer_heads": ("num_attention_heads",), "mixer_kernel": ("conv1d_width",)},
                "mixer_inner": ("lru_width", "hidden_size"),
            },
            tensors={
                **{**OUTER, "final_norm": Stored("final_norm.weight")},
                **_norms("temporal_pre_norm", "channel_pre_norm"),
                **{**_of("attn", _GRIFFIN_ATTENTION), **_of("mixer", _RGLRU), **_GRIFFIN_MLP},
            },
            gain_offset=1.0,
            constants={"neurons_of_both": True, "embed_scale_narrow": True, "activation": "gelu_pytorch_tanh"},
            defaults={"window": 2048, "logit_cap": 30.0, "rotary_share": 0.5, "mixer_kernel": 4}
            | {"first_kinds": ("recurrent", "recurrent", "attention")},
            harmless=(r"(final_)?w_init_variance_scale", "layers_block_type"),
        ),
    ),
    when={"hidden_activation": ("gelu_pytorch_tanh", None), "embeddings_scale_by_sqrt_dim": (True, None)},
)

_MAMBA2_SIZES = ("inner", "inner", "keys", "keys", "heads")


def _mamba2(module: str) -> dict[str, Stored]:
    """Return the tensors of Mamba 2."""
    inner = {
        "inner_gain": Stored(f"{module}.norm.weight", sizes=("inner",)),
        "inner_step": Stored(f"{module}.dt_bias", sizes=("heads",)),
        "inner_skip": Stored(f"{module}.D", sizes=("heads",)),
        "inner_decay": Stored(f"{module}.A_log", sizes=("heads",)),
    }
    return _of("mixer", {**_projections(module, "conv1d", _MAMBA2_SIZES, _MAMBA2_SIZES[1:4]), **inner})


_MAMBA_CONFIG = {
    "mixer_heads": ("mamba_n_heads",),
    "mixer_width": ("mamba_d_head",),
    "mixer_groups": ("mamba_n_groups",),
    "mixer_state": ("mamba_d_state",),
    "mixer_kernel": ("mamba_d_conv",),
    "mixer_expansion": ("mamba_expand",),
}
_MAMBA_SWITCHES = {
    "mamba_conv_bias": (_CONV_BIASES[-1:], True),
    "mamba_proj_bias": (_CONV_BIASES[:-1], False),
}
_MAMBA_VALUES = {
    "mixer_heads": 128,
    "mixer_width": "auto",
    "mixer_groups": 1,
    "mixer_state": 256,
    "mixer_kernel": 4,
    "mixer_expansion": 2,
}
_NO_STEP_LIMIT = ([0.0, {"__float__": "Infinity"}], None)
_MAMBA_LAYERS: Mapping[str, tuple[Site, ...]] = {
    "linear_attention": ("mixer", "ff"),
    "full_attention": ("attn", "ff"),
    "mamba": ("mixer", "ff"),
    "attention": ("attn", "ff"),
}
BAMBA = replace(
    LLAMA,
    name="bamba",
    model_types=("bamba",),
    mixer="mamba2",
    layer_types=_MAMBA_LAYERS,
    layouts=(
        replace(
            HF_LAYOUT,
            optional=("unembedding", *HEAD_BIASES, *MLP_BIASES, *_CONV_BIASES),
            switches={**ATTENTION_BIAS, **_MAMBA_SWITCHES, "mlp_bias": (MLP_BIASES, False)},
            config={**CONFIG, **_MAMBA_CONFIG, "attention_layers": ("attn_layer_indices",)},
            tensors={
                **OUTER,
                "final_norm": Stored("final_layernorm.weight"),
                **_norms("input_layernorm", "pre_ff_layernorm"),
                **_of("attn", ATTENTION),
                **_mamba2(f"{LAYER}mamba"),
                **{
                    what: replace(stored, name=stored.name.replace("mlp", "feed_forward"))
                    for what, stored in BIASED_MLP.items()
                },
            },
            constants={"rotary_share": 0.5},
            harmless=("mamba_chunk_size", "num_logits_to_keep", "partial_rotary_factor"),
        ),
    ),
    config={"activation": "silu", "attention_layers": (), **_MAMBA_VALUES},
    when={"hidden_act": ("silu", None), "time_step_limit": _NO_STEP_LIMIT},
)

_FALCON_MULTIPLIERS = {
    "embed_scale": ("embedding_multiplier",),
    "logit_scale": ("lm_head_multiplier",),
    "attention_factor": ("key_multiplier",),
    "attn_scale": ("attention_out_multiplier",),
    "mixer_scale": ("ssm_out_multiplier",),
    "mixer_in_scale": ("ssm_in_multiplier",),
    "mixer_scales": ("ssm_multipliers",),
    "mlp_scales": ("mlp_multipliers",),
}
_FALCON_BIASES = {
    "projectors_bias": (("mixer_out_bias",), False),
    "mamba_conv_bias": (("inner_conv_bias",), True),
}
FALCON_H1_NORMED = replace(  # with a norm inside the mixers
    BAMBA,
    name="falcon_h1",
    model_types=("falcon_h1",),
    layer_types={"hybrid": ("attn", "mixer", "ff")},
    layouts=(
        replace(
            BAMBA.layouts[0],
            switches={**ATTENTION_BIAS, **_FALCON_BIASES, "mlp_bias": (MLP_BIASES, False)},
            config={**CONFIG, **_MAMBA_CONFIG, **_FALCON_MULTIPLIERS, "mixer_inner": ("mamba_d_ssm",)},
            tensors={what: stored for what, stored in BAMBA.layouts[0].tensors.items() if what != "mixer_in_bias"},
            constants={},
            defaults={"mixer_inner": 1024},
            harmless=(
                r"mamba_(chunk_size|use_mlp)|num_logits_to_keep|mlp_expansion_factor|rescale_prenorm_residual",
                r"time_step_(floor|max|min|rank)|attn_layer_indices",
            ),
        ),
    ),
    config={"activation": "silu", **_MAMBA_VALUES, "mixer_scales": [1.0] * 5},
    when={
        **BAMBA.when,
        "attention_in_multiplier": (1.0, None),
        "mamba_proj_bias": (False, None),
        "mamba_rms_norm": (True,),
        "mamba_norm_before_gate": (False,),
    },
)
_FALCON_HF = FALCON_H1_NORMED.layouts[0]
FALCON_H1 = replace(
    FALCON_H1_NORMED,
    layouts=(
        replace(
            _FALCON_HF,
            tensors={what: stored for what, stored in _FALCON_HF.tensors.items() if what != "inner_gain"},
            harmless=(*_FALCON_HF.harmless, "mamba_norm_before_gate"),
        ),
    ),
    when={
        **{key: values for key, values in FALCON_H1_NORMED.when.items() if key != "mamba_norm_before_gate"},
        "mamba_rms_norm": (False, None),
    },
)

_JAMBA = f"{LAYER}mamba"
_JAMBA_MIXER = {
    **_projections(_JAMBA, "conv1d", ("inner", "inner"), ("inner",)),
    "inner_down": Stored(f"{_JAMBA}.x_proj.weight", sizes=("rank", "keys", "keys")),
    "inner_up": Stored(f"{_JAMBA}.dt_proj.weight", sizes=("inner",)),
    "inner_step": Stored(f"{_JAMBA}.dt_proj.bias", sizes=("inner",)),
    "inner_skip": Stored(f"{_JAMBA}.D", sizes=("inner",)),
    "inner_decay": Stored(f"{_JAMBA}.A_log", sizes=("inner",)),
    "inner_step_gain": Stored(f"{_JAMBA}.dt_layernorm.weight", sizes=("rank",)),
    "inner_b_gain": Stored(f"{_JAMBA}.b_layernorm.weight", sizes=("keys",)),
    "inner_c_gain": Stored(f"{_JAMBA}.c_layernorm.weight", sizes=("keys",)),
}
_JAMBA_EXPERTS = {
    what: replace(stored, name=stored.name.replace("mlp.gate.", "mlp.router.").replace("mlp", "feed_forward"))
    for what, stored in QWEN3_MOE.layouts[0].tensors.items()
    if what.removeprefix("dense_") in ("router", "gate", "up", "value")
}
_JAMBA_CONFIG = {
    **{what: keys for what, keys in _MAMBA_CONFIG.items() if what in ("mixer_state", "mixer_kernel")},
    "mixer_expansion": ("mamba_expand",),
    "mixer_rank": ("mamba_dt_rank",),
    "attention_every": ("attn_layer_period",),
    "attention_first": ("attn_layer_offset",),
    "dense_neurons": ("intermediate_size",),
    "experts": ("num_experts", "num_local_experts"),
    "experts_used": ("num_experts_per_tok",),
    "routed_every": ("expert_layer_period",),
    "routed_offset": ("expert_layer_offset",),
}
JAMBA = replace(
    LLAMA,
    name="jamba",
    model_types=("jamba",),
    rotary=False,
    mixer="mamba",
    layer_types=_MAMBA_LAYERS,
    layouts=(
        replace(
            HF_LAYOUT,
            optional=("unembedding", *_CONV_BIASES),
            switches=_MAMBA_SWITCHES,
            config={**CONFIG, **_JAMBA_CONFIG},
            tensors={
                **OUTER,
                "final_norm": Stored("final_layernorm.weight"),
                **_norms("input_layernorm", "pre_ff_layernorm"),
                **_of("attn", PLAIN_ATTENTION),
                **_of("mixer", _JAMBA_MIXER),
                **_JAMBA_EXPERTS,
            },
            harmless=("use_mamba_kernels", "use_mambapy", "use_associative_scan", "num_logits_to_keep"),
        ),
    ),
    config={
        **{"activation": "silu", "attention_every": 8, "attention_first": 4, "routed_every": 2, "routed_offset": 1},
        **{"experts": 16, "experts_used": 2, "mixer_state": 16, "mixer_kernel": 4, "mixer_expansion": 2},
        "mixer_rank": "auto",
    },
    when={"hidden_act": ("silu", None)},
)

_GRANITE = GRANITEMOE_SHARED.layouts[0]
_GRANITE_TENSORS = {
    **_GRANITE.tensors,
    **_norms("input_layernorm", "post_attention_layernorm"),
    **_of("attn", ATTENTION),
    **_mamba2(f"{LAYER}mamba"),
}
_GRANITE_HF = replace(
    _GRANITE,
    optional=("unembedding", *HEAD_BIASES, *_CONV_BIASES),
    switches={**ATTENTION_BIAS, **_MAMBA_SWITCHES},
    config={**_GRANITE.config, **_MAMBA_CONFIG, "layer_kinds": ("layer_types", "layers_block_type")},
    tensors=_GRANITE_TENSORS,
    harmless=("mamba_chunk_size", "rope_theta", "init_method", "normalization_function", "mlp_hidden_act"),
)
_GRANITE_WHEN = {"hidden_act": ("silu", None), "time_step_limit": _NO_STEP_LIMIT}
GRANITE_HYBRID = replace(
    GRANITEMOE_SHARED,
    name="granitemoehybrid",
    model_types=("granitemoehybrid",),
    rotary=False,
    mixer="mamba2",
    layer_types=_MAMBA_LAYERS,
    layouts=(_GRANITE_HF,),
    config={**GRANITEMOE_SHARED.config, **_MAMBA_VALUES},
    when={**_GRANITE_WHEN, "position_embedding_type": (None, "nope")},
)
_GRANITE_DENSE_HF = replace(
    _GRANITE_HF,
    config={
        **{what: keys for what, keys in _GRANITE_HF.config.items() if "expert" not in what and "router" not in what},
        "neurons": ("shared_intermediate_size",),
        "shared_neurons": (),
    },
    tensors={
        what.removeprefix("shared_"): stored
        for what, stored in _GRANITE_TENSORS.items()
        if what not in ("router", "gate", "up", "value")
    },
    harmless=(*_GRANITE_HF.harmless, "num_experts_per_tok", "intermediate_size"),
)
GRANITE_HYBRID_DENSE = replace(
    GRANITE_HYBRID,
    router_normed=False,
    layouts=(_GRANITE_DENSE_HF,),
    config={"activation": "silu", "attention_scale": 1.0, **_MAMBA_VALUES},
    when={**GRANITE_HYBRID.when, "num_local_experts": (0,)},
)
_TURNED = {"position_embedding_type": ("rope",)}
GRANITE_HYBRIDS = (
    GRANITE_HYBRID_DENSE,
    replace(GRANITE_HYBRID_DENSE, rotary=True, when={**GRANITE_HYBRID_DENSE.when, **_TURNED}),
    GRANITE_HYBRID,
    replace(GRANITE_HYBRID, rotary=True, when={**GRANITE_HYBRID.when, **_TURNED}),
)

_SIGMOID_CONFIG = {
    what: keys
    for what, keys in SIGMOID_CONFIG.items()
    if what not in {**CONFIG, **dict.fromkeys(("beyond", "dense_first", "shared_experts"))}
}
_MIXER = f"{LAYER}mixer"
_ONE_NORM = Stored(f"{LAYER}norm.weight")
_NEMOTRON_ATTENTION = {
    role: replace(ATTENTION[role], name=ATTENTION[role].name.replace("self_attn", "mixer")) for role in "qkvo"
}


def _plain(stem: str) -> dict[str, Stored]:
    """Return the tensors of an MLP without a gate."""
    return {"key": Stored(f"{stem}.up_proj.weight"), "value": Stored(f"{stem}.down_proj.weight", transpose=True)}


_NEMOTRON_TENSORS = {
    "embedding": Stored("embeddings.weight"),
    "unembedding": OUTER["unembedding"],
    "final_norm": Stored("norm_f.weight"),
    **_of("attn", {"attn_norm": _ONE_NORM, **_NEMOTRON_ATTENTION}),
    **_of("mixer", {"mixer_norm": _ONE_NORM}),
    **_of("ff", {"ff_norm": _ONE_NORM}),
    **_mamba2(_MIXER),
}
_NEMOTRON_HF = replace(
    HF_LAYOUT,
    prefixes=("backbone.", "model.", ""),
    optional=("unembedding", *_CONV_BIASES),
    switches={"use_bias": (_CONV_BIASES[:-1], False), "use_conv_bias": (_CONV_BIASES[-1:], True)},
    config={
        **CONFIG,
        "layers": (),  # transformers counts their types
        "eps": ("layer_norm_epsilon",),
        "activation": ("mlp_hidden_act",),
        "layer_kinds": ("layers_block_type", "hybrid_override_pattern"),
        "mixer_heads": ("mamba_num_heads",),
        "mixer_width": ("mamba_head_dim",),
        "mixer_groups": ("n_groups", "mamba_n_groups"),
        "mixer_state": ("ssm_state_size",),
        "mixer_kernel": ("conv_kernel", "mamba_d_conv"),
        "mixer_least_step": ("time_step_min", "mamba_dt_min"),
    },
    tensors={**_NEMOTRON_TENSORS, **_of("ff", _plain(_MIXER))},
    unread=(*HF_LAYOUT.unread, r"\^mtp\..*"),
    harmless=(
        r"(mamba_)?(chunk_size|expand|dt_max|dt_limit|dt_init_floor|ssm_cache_dtype)|time_step_(max|floor|limit)",
        r"num_logits_to_keep|use_mamba_kernels|rescale_prenorm_residual|residual_in_fp32|mamba_proj_bias|attn_layer\w*",
        r"num_hidden_layers|mtp_(layers_block_type|hybrid_override_pattern)|num_nextn_predict_layers|rms_norm_eps|hidden_act",
    ),
)
_NEMOTRON_LAYERS: Mapping[str, tuple[Site | Literal["dense"], ...]] = {
    **dict.fromkeys(("M", "mamba", "linear_attention"), ("mixer",)),
    **dict.fromkeys(("*", "attention", "full_attention"), ("attn",)),
}
NEMOTRON_H = replace(
    LLAMA,
    name="nemotron_h",
    model_types=("nemotron_h",),
    ff_roles=("key", "value"),
    rotary=False,
    mixer="mamba2",
    layer_types={**_NEMOTRON_LAYERS, "-": ("ff",), "mlp": ("ff",)},
    layouts=(_NEMOTRON_HF,),
    config={"activation": "relu2", "eps": 1e-5, "mixer_least_step": 0.001},
    when={"n_routed_experts": (None,), "mamba_hidden_act": ("silu", None), "sliding_window": (None,)},
)


NEMOTRON_H_MOE = replace(
    NEMOTRON_H,
    layer_types={**_NEMOTRON_LAYERS, **dict.fromkeys("-", ("dense",)), "mlp": ("dense",), "E": ("ff",), "moe": ("ff",)},
    layouts=(
        replace(
            _NEMOTRON_HF,
            config={
                **_NEMOTRON_HF.config,
                **_SIGMOID_CONFIG,
                "neurons": ("moe_intermediate_size",),
                "dense_neurons": ("intermediate_size",),
                "shared_neurons": ("moe_shared_expert_intermediate_size",),
            },
            tensors={
                **_NEMOTRON_TENSORS,
                **routed(
                    {
                        "router": Stored(f"{_MIXER}.gate.weight"),
                        "router_correction": Stored(f"{_MIXER}.gate.e_score_correction_bias"),
                        **_plain(f"{_MIXER}.experts.{{expert}}"),
                    }
                ),
                **share("shared", _plain(f"{_MIXER}.shared_experts")),
                **share("dense", _plain(_MIXER)),
            },
            harmless=(*_NEMOTRON_HF.harmless, "n_shared_experts", "moe_shared_expert_overlap"),
        ),
    ),
    config={**NEMOTRON_H.config, "router_sigmoid": True, "router_normed": True, "experts_used": 2},
    when={
        "moe_latent_size": (None,),
        "mamba_hidden_act": ("silu", None),
        "sliding_window": (None,),
    },
)

FAMILIES = (
    QWEN3_5,
    QWEN3_NEXT,
    QWEN3_5_MOE_STACKED,
    QWEN3_5_MOE,
    LFM2,
    LFM2_MOE,
    RECURRENT_GEMMA,
    BAMBA,
    FALCON_H1,
    FALCON_H1_NORMED,
    JAMBA,
    *GRANITE_HYBRIDS,
    NEMOTRON_H,
    NEMOTRON_H_MOE,
)
