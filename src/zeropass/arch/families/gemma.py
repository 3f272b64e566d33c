"""Gemma 4 and Gemma 3n: embeddings in every layer, and keys and values that layers share."""

from dataclasses import replace

from zeropass.arch.families.llama import GEMMA3
from zeropass.arch.families.parts import (
    BLK,
    GGUF_POST_NORMS,
    GGUF_QK_NORMS,
    GGUF_TENSORS,
    LAYER,
    MLP,
    OUTER,
    PLAIN_ATTENTION,
    QK_NORMS,
    gguf,
    renamed,
)
from zeropass.arch.layout import KEYS_AS_VALUES, Stored

_KEYS, _KEY_NORM = PLAIN_ATTENTION["k"], QK_NORMS["k_norm"]
_ATTENTION = {
    **PLAIN_ATTENTION,
    **QK_NORMS,
    "k": replace(_KEYS, layers="keyed"),
    "k_norm": replace(_KEY_NORM, layers="keyed"),
    "v": replace(PLAIN_ATTENTION["v"], layers="valued"),
    KEYS_AS_VALUES: replace(_KEYS, layers="key_valued"),
}
_MLPS = {  # those of layers that share keys and values may be wider
    **{role: replace(stored, layers="routed") for role, stored in MLP.items()},
    **{f"dense_{role}": replace(stored, layers="dense") for role, stored in MLP.items()},
}
_EMBEDDINGS = {
    "ple_in": Stored(LAYER + "per_layer_input_gate.weight"),
    "ple_out": Stored(LAYER + "per_layer_projection.weight", transpose=True),
    "ple_post_norm": Stored(LAYER + "post_per_layer_input_norm.weight"),
    "ple_table": Stored("embed_tokens_per_layer.weight"),
    "ple_context": Stored("per_layer_model_projection.weight"),
    "ple_context_norm": Stored("per_layer_projection_norm.weight"),
}
_HF3 = next(layout for layout in GEMMA3.layouts if layout.format == "hf")
_AROUND = ("attn_norm", "attn_post_norm", "ff_norm", "ff_post_norm")
_HF = replace(
    _HF3,
    config={
        **{name: keys for name, keys in _HF3.config.items() if name not in ("query_scalar", "local_rope_theta")},
        "kv_heads": ("num_key_value_heads",),
        "local_every": (),
        "sharing": ("num_kv_shared_layers",),
        "wider_sharing": ("use_double_wide_mlp",),
        "keys_are_values": ("attention_k_eq_v",),
        "global_head_dim": ("global_head_dim",),
        "key_valued_kv_heads": ("num_global_key_value_heads",),
        "layer_sizes": ("per_layer_config",),
    },
    tensors={
        **OUTER,
        **{norm: _HF3.tensors[norm] for norm in _AROUND},
        **_ATTENTION,
        **_MLPS,
        "layer_scalar": Stored(LAYER + "layer_scalar"),
    },
    optional=("unembedding",),
    switches={},
    gain_offset=0.0,
    # What transformers ignores: a layer that shares keys and values may have a matrix for them, but does not use it.
    unread=(*_HF3.unread, r"layers\.\d+\.self_attn\.(k_proj|v_proj|k_norm|v_norm)\.weight"),
    constants={"local_every": 6, "last_global": True},
    defaults={
        "window": 512,
        "head_dim": 256,
        "global_head_dim": 512,
        "rope": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1000000.0},
        },
    },
    harmless=("hidden_act", "vocab_size_per_layer_input"),
)
_PLAIN = {
    "attention_bias": (False, None),
    "enable_moe_block": (False, None),
    "use_bidirectional_attention": ("vision", None),  # of images; a text is read from left to right
}
GEMMA4 = replace(
    GEMMA3,
    name="gemma4",
    model_types=("gemma4_text",),
    unscaled=True,
    value_normed=True,
    layouts=(
        replace(
            _HF,
            config={**_HF.config, "ple": ("hidden_size_per_layer_input",)},
            tensors={**_HF.tensors, **_EMBEDDINGS},
            defaults={**_HF.defaults, "ple": 256},
        ),
    ),
    when=_PLAIN,
)
GEMMA4_PLAIN = replace(
    GEMMA4,
    layouts=(_HF,),
    when={**_PLAIN, "hidden_size_per_layer_input": (0,)},
)
_NORMS_OF_PARTS = {
    "ff_shared_norm": Stored(LAYER + "pre_feedforward_layernorm.weight"),
    "ff_shared_post_norm": Stored(LAYER + "post_feedforward_layernorm_1.weight"),
    "ff_routed_norm": Stored(LAYER + "pre_feedforward_layernorm_2.weight"),
    "ff_routed_post_norm": Stored(LAYER + "post_feedforward_layernorm_2.weight"),
    "ff_router_norm": Stored(LAYER + "router.scale"),
}
_EXPERTS = LAYER + "experts"
_ROUTED = {
    "router": Stored(LAYER + "router.proj.weight"),
    "expert_scale": Stored(LAYER + "router.per_expert_scale"),
    "gate": Stored(f"{_EXPERTS}.gate_up_proj[{{expert}}]", part=(0, 2)),
    "up": Stored(f"{_EXPERTS}.gate_up_proj[{{expert}}]", part=(1, 2)),
    "value": Stored(f"{_EXPERTS}.down_proj[{{expert}}]", transpose=True),
    **{f"shared_{role}": stored for role, stored in MLP.items()},
}
_ONE_MLP = ("ff_norm", *(role for role in _MLPS))
GEMMA4_MOE = replace(
    GEMMA4_PLAIN,
    router_normed=True,
    router_shrunk=True,
    layouts=(
        replace(
            _HF,
            config={
                **_HF.config,
                "neurons": ("moe_intermediate_size",),
                "shared_neurons": ("intermediate_size",),
                "experts": ("num_experts",),
                "experts_used": ("top_k_experts",),
            },
            tensors={
                **{what: stored for what, stored in _HF.tensors.items() if what not in _ONE_MLP},
                **_ROUTED,
                **_NORMS_OF_PARTS,
            },
            gains={
                **dict.fromkeys(("gate", "up"), "ff_routed_norm"),
                **dict.fromkeys(("shared_gate", "shared_up"), "ff_shared_norm"),
                "router": "ff_router_norm",
                "value": "ff_routed_post_norm",
                "shared_value": "ff_shared_post_norm",
            },
        ),
    ),
    when={
        **_PLAIN,
        "enable_moe_block": (True,),
        "hidden_size_per_layer_input": (0,),
        "num_kv_shared_layers": (0, None),
    },
    notes=("experts and the shared MLP have norms of their own, whose gains their vectors carry",),
)
GEMMA4_UNIFIED = replace(
    GEMMA4_PLAIN,
    model_types=("gemma4_unified_text",),
    layouts=(replace(_HF, defaults={**_HF.defaults, "window": 1024}),),
    when={**_PLAIN, "hidden_size_per_layer_input": (0, None)},
)

_ALTUP, _LAUREL = LAYER + "altup.", LAYER + "laurel."
_STREAMS = {
    "altup_norm": Stored(_ALTUP + "router_norm.weight"),
    "altup_router": Stored(_ALTUP + "modality_router.weight"),
    "altup_predict": Stored(_ALTUP + "prediction_coefs.weight"),
    "altup_correct": Stored(_ALTUP + "correction_coefs.weight"),
    "ple_gain": Stored(_ALTUP + "correct_output_scale"),
    **{f"stream_in_{n + 1}": Stored(f"altup_projections.{n}.weight") for n in range(3)},
    **{f"stream_out_{n + 1}": Stored(f"altup_unembed_projections.{n}.weight") for n in range(3)},
}
_RESIDUAL = {
    "laurel_norm": _HF3.tensors["attn_norm"],
    "laurel_in": Stored(_LAUREL + "linear_left.weight"),
    "laurel_out": Stored(_LAUREL + "linear_right.weight", transpose=True),
    "laurel_post_norm": Stored(_LAUREL + "post_laurel_norm.weight"),
}
_ONLY_4 = ("wider_sharing", "keys_are_values", "global_head_dim", "key_valued_kv_heads", "layer_sizes")
_CONFIG_3N = {
    **{name: keys for name, keys in _HF.config.items() if name not in _ONLY_4},
    "local_rope_theta": ("rope_local_base_freq",),
    "layer_neurons": ("intermediate_size",),
    "ple": ("hidden_size_per_layer_input",),
    "ple_vocab": ("vocab_size_per_layer_input",),
    "laurel": ("laurel_rank",),
    "streams": ("altup_num_inputs",),
    "gate_sparsity": ("activation_sparsity_pattern",),
}
_TENSORS_3N = {
    **{what: stored for what, stored in _HF.tensors.items() if what not in ("layer_scalar", KEYS_AS_VALUES)},
    **_EMBEDDINGS,
    **_STREAMS,
    **_RESIDUAL,
}
_CONSTANTS_3N = {"usual_sparsity": (10, 0.95), "attn_scale": 0.5**0.5, "laurel_scale": 0.5**0.5}
GEMMA3N = replace(
    GEMMA4,
    name="gemma3n",
    model_types=("gemma3n_text",),
    layouts=(
        replace(
            _HF,
            config=_CONFIG_3N,
            tensors=_TENSORS_3N,
            constants={"local_every": 5, "local_rope_theta": 1e4, "rope_theta": 1e6, **_CONSTANTS_3N},
            defaults={"window": 512, "head_dim": 256, "kv_heads": 2, "sharing": 15, "logit_cap": 30.0, "ple": 256}
            | {"ple_vocab": 262144, "laurel": 64, "streams": 4},
            harmless=("altup_coef_clip", "altup_lr_multiplier", "query_pre_attn_scalar"),
        ),
    ),
    when={
        **dict.fromkeys(("attention_bias", "use_bidirectional_attention"), (False, None)),
        "altup_num_inputs": (4, None),
        "altup_active_idx": (0, None),
        "altup_correct_scale": (True, None),
    },
)

_NAMES = {
    **{what: stored.name for what, stored in {**GGUF_TENSORS, **GGUF_QK_NORMS, **GGUF_POST_NORMS}.items()},
    **{f"dense_{role}": GGUF_TENSORS[role].name for role in MLP},
    KEYS_AS_VALUES: GGUF_TENSORS["k"].name,
    "ple_in": BLK + "inp_gate.weight",
    "ple_out": BLK + "proj.weight",
    "ple_post_norm": BLK + "post_norm.weight",
    "ple_table": "per_layer_token_embd.weight",
    "ple_context": "per_layer_model_proj.weight",
    "ple_context_norm": "per_layer_proj_norm.weight",
    "layer_scalar": BLK + "layer_output_scale.weight",
}
_EXPERT_NAMES = {
    "router": BLK + "ffn_gate_inp.weight",
    "ff_router_norm": BLK + "ffn_gate_inp.scale",
    "value": BLK + "ffn_down.{expert}.weight",
    "expert_scale": BLK + "ffn_down_exps.scale",
    **{f"shared_{role}": GGUF_TENSORS[role].name for role in MLP},
    "ff_shared_norm": BLK + "ffn_norm.weight",
    "ff_shared_post_norm": BLK + "post_ffw_norm_1.weight",
    "ff_routed_norm": BLK + "pre_ffw_norm_2.weight",
    "ff_routed_post_norm": BLK + "post_ffw_norm_2.weight",
}
_KEYS_OF = {  # llama.cpp states the sizes of layers without a window first, those of the others as ``_swa``
    "head_dim": ("attention.key_length_swa",),
    "global_head_dim": ("attention.key_length",),
    "each_kv_heads": ("attention.head_count_kv",),
    "rotary": ("rope.dimension_count_swa",),
    "global_rotary": ("rope.dimension_count",),
    "local_every": (),
    "sharing": ("attention.shared_kv_layers",),
    "layer_neurons": ("feed_forward_length",),
}
_GGUF = replace(
    gguf("gemma4", keys=_KEYS_OF),
    tensors={"rope_factors": GGUF_TENSORS["rope_factors"], **renamed(_HF.tensors, _NAMES)},
    optional=("unembedding",),
    unread=(r"blk\.\d+\.attn_(k|v|k_norm)\.weight",),  # as in safetensors
    constants={
        "rotary_share": 1.0,
        "local_rope_theta": 10000.0,
        "kinds_required": True,
        "keys_are_values": True,
        "value_tensor": GGUF_TENSORS["v"].name,
    },
    harmless=(r"attention\.value_length_swa",),
)
_NO_PLE = {"gemma4.embedding_length_per_layer_input": (0,)}
GEMMA4_PLAIN_GGUF = replace(GEMMA4_PLAIN, layouts=(_GGUF,), when=_NO_PLE)
GEMMA4_GGUF = replace(
    GEMMA4,
    layouts=(
        replace(
            _GGUF,
            config={**_GGUF.config, "ple": ("gemma4.embedding_length_per_layer_input",)},
            tensors={**_GGUF.tensors, **renamed(_EMBEDDINGS, _NAMES)},
            only_with="per_layer_token_embd.weight",
        ),
    ),
    when={},
)
_MOE_HF = GEMMA4_MOE.layouts[0]
_JOINT = BLK + "ffn_gate_up.{expert}.weight"
GEMMA4_MOE_GGUF = replace(
    GEMMA4_MOE,
    layouts=(
        replace(
            _GGUF,
            config={
                **_GGUF.config,
                "neurons": ("gemma4.expert_feed_forward_length",),
                "shared_neurons": ("gemma4.feed_forward_length",),
                "experts": ("gemma4.expert_count",),
                "experts_used": ("gemma4.expert_used_count",),
            },
            tensors={
                **{what: stored for what, stored in _GGUF.tensors.items() if what not in _ONE_MLP},
                **renamed(_MOE_HF.tensors, _EXPERT_NAMES),
                "gate": replace(_MOE_HF.tensors["gate"], name=_JOINT),
                "up": replace(_MOE_HF.tensors["up"], name=_JOINT),
            },
            gains=_MOE_HF.gains,
            only_with="blk.0.ffn_gate_inp.weight",
        ),
    ),
    when=_NO_PLE,
)

FAMILIES = (
    GEMMA4_PLAIN,
    GEMMA4,
    GEMMA4_MOE,
    GEMMA4_UNIFIED,
    GEMMA3N,
    GEMMA4_PLAIN_GGUF,
    GEMMA4_GGUF,
    GEMMA4_MOE_GGUF,
)
