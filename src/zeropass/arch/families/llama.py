"""Llama and models built like it: RMSNorm, rotary positions and gated MLPs, dense or with experts."""

from collections.abc import Mapping
from dataclasses import replace

from zeropass.arch.spec import Family, Layout, Stored, weight_and_bias

_HF = "layers.{layer}."
_BLK = "blk.{layer}."
_HEAD_BIASES, _MLP_BIASES = ("q_bias", "k_bias", "v_bias", "o_bias"), ("gate_bias", "up_bias", "value_bias")
LINEAR_BIASES = (*_HEAD_BIASES, *_MLP_BIASES)

_CONFIG: Mapping[str, tuple[str, ...]] = {
    "layers": ("num_hidden_layers",),
    "d": ("hidden_size",),
    "heads": ("num_attention_heads",),
    "kv_heads": ("num_key_value_heads", "num_attention_heads"),
    "head_dim": ("head_dim",),
    "neurons": ("intermediate_size",),
    "vocab": ("vocab_size",),
    "eps": ("rms_norm_eps",),
    "activation": ("hidden_act",),
    "rope_theta": ("rope_theta",),
}
_WINDOWS: Mapping[str, tuple[str, ...]] = {
    "window": ("sliding_window",),
    "window_used": ("use_sliding_window",),
    "window_from": ("max_window_layers",),
    "layer_kinds": ("layer_types",),
}
_OUTER = {
    "embedding": Stored("embed_tokens.weight"),
    "unembedding": Stored("^lm_head.weight"),
    "final_norm": Stored("norm.weight"),
}
_NORMS = {
    "attn_norm": Stored(_HF + "input_layernorm.weight"),
    "ff_norm": Stored(_HF + "post_attention_layernorm.weight"),
}
_ATTENTION = {
    **weight_and_bias("q", _HF + "self_attn.q_proj"),
    **weight_and_bias("k", _HF + "self_attn.k_proj"),
    **weight_and_bias("v", _HF + "self_attn.v_proj"),
    **weight_and_bias("o", _HF + "self_attn.o_proj", transpose=True),
}
_BIASED_MLP = {
    **weight_and_bias("gate", _HF + "mlp.gate_proj"),
    **weight_and_bias("up", _HF + "mlp.up_proj"),
    **weight_and_bias("value", _HF + "mlp.down_proj", transpose=True),
}
_PLAIN_ATTENTION = {role: _ATTENTION[role] for role in ("q", "k", "v", "o")}
_MLP = {role: _BIASED_MLP[role] for role in ("gate", "up", "value")}
_ATTENTION_BIAS = {"attention_bias": (_HEAD_BIASES, False)}
_QK_NORMS = {
    "q_norm": Stored(_HF + "self_attn.q_norm.weight"),
    "k_norm": Stored(_HF + "self_attn.k_norm.weight"),
}
_HF_LAYOUT = Layout(
    format="hf",
    prefixes=("model.", ""),
    optional=("unembedding", *_HEAD_BIASES),
    switches=_ATTENTION_BIAS,
    config=_CONFIG,
    tensors={**_OUTER, **_NORMS, **_ATTENTION, **_MLP},
    extra={"classifier": (Stored("^score.weight"), "read")},
    unread=(r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq",),
)
_PLAIN_HF = replace(
    _HF_LAYOUT,
    optional=("unembedding",),
    switches={},
    config={**_CONFIG, **_WINDOWS},
    tensors={**_OUTER, **_NORMS, **_PLAIN_ATTENTION, **_MLP},
)


def _gguf_config(name: str) -> Mapping[str, tuple[str, ...]]:
    """Return the keys of a GGUF file, each with the name of the architecture in front."""
    keys = {
        "layers": ("block_count",),
        "d": ("embedding_length",),
        "heads": ("attention.head_count",),
        "kv_heads": ("attention.head_count_kv", "attention.head_count"),
        "head_dim": ("attention.key_length",),
        "rotary": ("rope.dimension_count",),
        "neurons": ("feed_forward_length",),
        "vocab": ("vocab_size",),
        "eps": ("attention.layer_norm_rms_epsilon",),
        "rope_theta": ("rope.freq_base",),
        "local_rope_theta": ("rope.freq_base_swa",),
        "window": ("attention.sliding_window",),
        "layer_kinds": ("attention.sliding_window_pattern",),  # a flag for each layer, or a period
        "local_every": ("attention.sliding_window_pattern",),
        "attention_cap": ("attn_logit_softcapping",),
        "logit_cap": ("final_logit_softcapping",),
    }
    return {size: tuple(f"{name}.{key}" for key in suffixes) for size, suffixes in keys.items()}


_GGUF_TENSORS = {
    "embedding": Stored("token_embd.weight"),
    "unembedding": Stored("output.weight"),
    "final_norm": Stored("output_norm.weight"),
    "rope_factors": Stored("rope_freqs.weight"),
    "attn_norm": Stored(_BLK + "attn_norm.weight"),
    "ff_norm": Stored(_BLK + "ffn_norm.weight"),
    **weight_and_bias("q", _BLK + "attn_q"),
    **weight_and_bias("k", _BLK + "attn_k"),
    **weight_and_bias("v", _BLK + "attn_v"),
    **weight_and_bias("o", _BLK + "attn_output", transpose=True),
    **weight_and_bias("gate", _BLK + "ffn_gate"),
    **weight_and_bias("up", _BLK + "ffn_up"),
    **weight_and_bias("value", _BLK + "ffn_down", transpose=True),
}


def _gguf(name: str, **tensors: Stored) -> Layout:
    """Return the layout of llama.cpp, with some tensors in addition to the usual ones or in place of them."""
    return Layout(
        format="gguf",
        optional=("unembedding", "rope_factors", *LINEAR_BIASES),
        config=_gguf_config(name),
        tensors={**_GGUF_TENSORS, **tensors},
        unread=(r"blk\.\d+\.attn_rot_embd\.weight",),
    )


_GGUF_QK_NORMS = {"q_norm": Stored(_BLK + "attn_q_norm.weight"), "k_norm": Stored(_BLK + "attn_k_norm.weight")}

LLAMA = Family(
    name="llama",
    model_types=("llama",),
    norm="rms",
    norm_place="pre",
    ff_roles=("gate", "up", "value"),
    rotary=True,
    tied_by_default=False,
    layouts=(
        replace(
            _HF_LAYOUT,
            optional=("unembedding", *LINEAR_BIASES),
            switches={**_ATTENTION_BIAS, "mlp_bias": (_MLP_BIASES, False)},
            tensors={**_HF_LAYOUT.tensors, **_BIASED_MLP},
        ),
        _gguf(
            "llama",  # the only family whose queries and keys llama.cpp's converter reorders
            q=Stored(_BLK + "attn_q.weight", paired_rows=True),
            k=Stored(_BLK + "attn_k.weight", paired_rows=True),
            q_bias=Stored(_BLK + "attn_q.bias", paired_rows=True),
            k_bias=Stored(_BLK + "attn_k.bias", paired_rows=True),
        ),
    ),
    config={"activation": "silu"},
)

_MISTRAL_HF = replace(_PLAIN_HF, defaults={"window": 4096})
MISTRAL = replace(LLAMA, name="mistral", model_types=("mistral",), layouts=(_MISTRAL_HF,))

_QWEN = {"activation": "silu", "window_used": False, "window_from": 28}  # defaults of transformers
QWEN2 = replace(
    LLAMA,
    name="qwen2",
    model_types=("qwen2",),
    layouts=(
        replace(
            _PLAIN_HF,
            tensors={**_PLAIN_HF.tensors, **{role: _ATTENTION[role] for role in ("q_bias", "k_bias", "v_bias")}},
        ),
        _gguf("qwen2"),
    ),
    config=_QWEN,
)

QWEN3 = replace(
    LLAMA,
    name="qwen3",
    model_types=("qwen3",),
    qk_norm="head",
    layouts=(
        replace(_HF_LAYOUT, config={**_CONFIG, **_WINDOWS}, tensors={**_HF_LAYOUT.tensors, **_QK_NORMS}),
        _gguf("qwen3", **_GGUF_QK_NORMS),
    ),
    config=_QWEN,
)

_MROPE = ("M-RoPE: the tokens of a text have one position on all its axes, so that it turns as plain RoPE",)
QWEN2_VL = replace(
    QWEN2,
    model_types=("qwen2_vl_text", "qwen2_5_vl_text", "qwen2_5_omni_text"),
    layouts=QWEN2.layouts[:1],
    notes=_MROPE,
)
QWEN3_VL = replace(
    QWEN3,
    model_types=("qwen3_vl_text",),
    layouts=(replace(_HF_LAYOUT, tensors={**_HF_LAYOUT.tensors, **_QK_NORMS}),),
    config={"activation": "silu"},
    notes=_MROPE,
)

QWEN2_VL_GGUF = replace(QWEN2_VL, model_types=("qwen2vl",), layouts=(_gguf("qwen2vl"),))
QWEN3_VL_GGUF = replace(QWEN3_VL, model_types=("qwen3vl",), layouts=(_gguf("qwen3vl", **_GGUF_QK_NORMS),))

_PHI3_FUSED = {
    "q": Stored(_HF + "self_attn.qkv_proj.weight", fused="stacked"),
    "k": Stored(_HF + "self_attn.qkv_proj.weight", fused="stacked"),
    "v": Stored(_HF + "self_attn.qkv_proj.weight", fused="stacked"),
    "o": _ATTENTION["o"],
    "gate": Stored(_HF + "mlp.gate_up_proj.weight", part=(0, 2)),
    "up": Stored(_HF + "mlp.gate_up_proj.weight", part=(1, 2)),
    "value": _MLP["value"],
}
PHI3 = replace(
    LLAMA,
    name="phi3",
    model_types=("phi3",),
    layouts=(
        replace(
            _PLAIN_HF,
            config={
                **_PLAIN_HF.config,
                "rotary_share": ("rope_parameters.partial_rotary_factor", "partial_rotary_factor"),
            },
            tensors={**_OUTER, **_NORMS, **_PHI3_FUSED},
        ),
        replace(
            _gguf("phi3"),
            tensors={name: stored for name, stored in _GGUF_TENSORS.items() if name not in LINEAR_BIASES}
            | {
                "q": Stored(_BLK + "attn_qkv.weight", fused="stacked"),
                "k": Stored(_BLK + "attn_qkv.weight", fused="stacked"),
                "v": Stored(_BLK + "attn_qkv.weight", fused="stacked"),
                "gate": Stored(_BLK + "ffn_up.weight", part=(0, 2)),
                "up": Stored(_BLK + "ffn_up.weight", part=(1, 2)),
            },
            unread=(r"rope_factors_(long|short)\.weight",),
        ),
    ),
    notes=("longrope: which of its two sets of factors counts depends on the length of the text",),
)

_GEMMA_CONFIG = {name: keys for name, keys in _CONFIG.items() if name != "activation"}
_GEMMA2_CONFIG = {
    **_GEMMA_CONFIG,
    **_WINDOWS,
    "activation": ("hidden_activation",),
    "query_scalar": ("query_pre_attn_scalar",),
    "attention_cap": ("attn_logit_softcapping",),
    "logit_cap": ("final_logit_softcapping",),
    "local_every": ("sliding_window_pattern", "_sliding_window_pattern"),
    "local_rope_theta": ("rope_local_base_freq",),
}
_CAUSAL_ONLY = {"use_bidirectional_attention": (False, None)}
_GEMMA_HF = replace(_HF_LAYOUT, config=_GEMMA_CONFIG, gain_offset=1.0)
GEMMA = replace(
    LLAMA,
    name="gemma",
    model_types=("gemma",),
    tied_by_default=True,
    embed_scaled=True,
    layouts=(_GEMMA_HF,),
    config={"activation": "gelu_pytorch_tanh"},
    # The first files say "gelu" but mean its tanh approximation (transformers 5.24, GemmaConfig).
    when={
        **_CAUSAL_ONLY,
        "hidden_act": ("gelu", "gelu_pytorch_tanh", None),
        "hidden_activation": ("gelu_pytorch_tanh", None),
    },
)

_NORMS_AROUND = {
    "attn_norm": Stored(_HF + "input_layernorm.weight"),
    "attn_post_norm": Stored(_HF + "post_attention_layernorm.weight"),
    "ff_norm": Stored(_HF + "pre_feedforward_layernorm.weight"),
    "ff_post_norm": Stored(_HF + "post_feedforward_layernorm.weight"),
}
_GEMMA2_HF = replace(
    _GEMMA_HF,
    config=_GEMMA2_CONFIG,
    tensors={**_OUTER, **_NORMS_AROUND, **_ATTENTION, **_MLP},
    defaults={"window": 4096, "query_scalar": 256, "attention_cap": 50.0, "logit_cap": 30.0},
    harmless=("sliding_window_size", "hidden_act"),  # some files have these next to the keys that count
)
_GGUF_POST_NORMS = {
    "attn_post_norm": Stored(_BLK + "post_attention_norm.weight"),
    "ff_post_norm": Stored(_BLK + "post_ffw_norm.weight"),
}
_GEMMA2_GGUF = replace(_gguf("gemma2", **_GGUF_POST_NORMS), constants={"local_every": 2})
GEMMA2 = replace(
    GEMMA,
    name="gemma2",
    model_types=("gemma2",),
    layouts=(replace(_GEMMA2_HF, constants={"local_every": 2}), _GEMMA2_GGUF),
    when=_CAUSAL_ONLY,
)

_GEMMA3_HF = replace(  # its configuration has a cap for attention logits, which the model does not use
    _GEMMA2_HF,
    config={name: keys for name, keys in _GEMMA2_CONFIG.items() if name != "attention_cap"},
    tensors={**_GEMMA2_HF.tensors, **_QK_NORMS},
    constants={"local_every": 6, "local_rope_theta": 10000.0, "rope_theta": 1e6},
    defaults={"window": 4096, "query_scalar": 256},
    harmless=("attn_logit_softcapping", "hidden_act"),
)
_GEMMA3_GGUF = replace(
    _gguf("gemma3", **_GGUF_POST_NORMS, **_GGUF_QK_NORMS),
    constants={"local_every": 6, "local_rope_theta": 10000.0},
)
GEMMA3 = replace(
    GEMMA,
    name="gemma3",
    model_types=("gemma3_text", "gemma3"),
    qk_norm="head",
    layouts=(_GEMMA3_HF, _GEMMA3_GGUF),
    when=_CAUSAL_ONLY,
)
GEMMA3_BOTH_WAYS = replace(
    GEMMA3,
    causal=False,
    layouts=(replace(_GEMMA3_HF, constants={**_GEMMA3_HF.constants, "window_of_both_sides": True}),),
    when={"use_bidirectional_attention": (True,)},
)

# The 27B models divide by √(d / heads) instead of √d_h. No GGUF key says so: llama.cpp decides by the number of layers.
GEMMA2_27B = replace(
    GEMMA2,
    layouts=(replace(_GEMMA2_GGUF, constants={"local_every": 2, "query_scalar": 4608 / 32}),),
    when={"gemma2.block_count": (46,)},
)
GEMMA3_27B = replace(
    GEMMA3,
    layouts=(replace(_GEMMA3_GGUF, constants={**_GEMMA3_GGUF.constants, "query_scalar": 5376 / 32}),),
    when={"gemma3.block_count": (62,)},
)

OLMO = replace(
    LLAMA,
    name="olmo",
    model_types=("olmo",),
    norm="layer",
    layouts=(
        replace(
            _HF_LAYOUT,
            config={**_CONFIG, "clip": ("clip_qkv",)},
            tensors={"embedding": _OUTER["embedding"], "unembedding": _OUTER["unembedding"], **_ATTENTION, **_MLP},
        ),
    ),
    config={"activation": "silu", "eps": 1e-5},
)

_POST_NORMS = {role: _NORMS_AROUND[role] for role in ("attn_post_norm", "ff_post_norm")}
OLMO2 = replace(
    LLAMA,
    name="olmo2",
    model_types=("olmo2",),
    norm_place="out",
    qk_norm="whole",
    layouts=(replace(_HF_LAYOUT, tensors={**_OUTER, **_POST_NORMS, **_ATTENTION, **_MLP, **_QK_NORMS}),),
)


def _experts(stem: str, gate: str, up: str, value: str) -> dict[str, Stored]:
    """Return the tensors of a router and of experts with a gated MLP each."""
    return {
        "router": Stored(_HF + f"{stem}.gate.weight"),
        "gate": Stored(_HF + f"{stem}.experts.{{expert}}.{gate}.weight"),
        "up": Stored(_HF + f"{stem}.experts.{{expert}}.{up}.weight"),
        "value": Stored(_HF + f"{stem}.experts.{{expert}}.{value}.weight", transpose=True),
    }


_ROUTED_CONFIG = {
    **_CONFIG,
    "experts": ("num_local_experts", "num_experts"),
    "experts_used": ("num_experts_per_tok",),
    "router_normed": ("norm_topk_prob",),
}
MIXTRAL = replace(
    LLAMA,
    name="mixtral",
    model_types=("mixtral",),
    router_normed=True,
    layouts=(
        replace(
            _PLAIN_HF,
            config={**_ROUTED_CONFIG, **_WINDOWS},
            tensors={**_OUTER, **_NORMS, **_PLAIN_ATTENTION, **_experts("block_sparse_moe", "w1", "w3", "w2")},
        ),
    ),
    config={"activation": "silu", "rope_theta": 1e6, "experts_used": 2},
)

_EXPERTS = _experts("mlp", "gate_proj", "up_proj", "down_proj")
QWEN3_MOE = replace(
    LLAMA,
    name="qwen3_moe",
    model_types=("qwen3_moe",),
    qk_norm="head",
    layouts=(
        replace(
            _HF_LAYOUT,
            config={
                **_ROUTED_CONFIG,
                "neurons": ("moe_intermediate_size",),
                "window": _WINDOWS["window"],
                "window_used": _WINDOWS["window_used"],
            },
            tensors={**_OUTER, **_NORMS, **_ATTENTION, **_QK_NORMS, **_EXPERTS},
            # intermediate_size describes layers without experts, which are refused.
            harmless=("max_window_layers", "intermediate_size"),
        ),
    ),
    config={"activation": "silu", "window_used": False, "experts_used": 8},
    when={"mlp_only_layers": ([], None), "decoder_sparse_step": (1, None)},
)

OLMOE = replace(
    LLAMA,
    name="olmoe",
    model_types=("olmoe",),
    qk_norm="whole",
    layouts=(
        replace(
            _HF_LAYOUT,
            config={**_ROUTED_CONFIG, "clip": ("clip_qkv",)},
            tensors={**_OUTER, **_NORMS, **_ATTENTION, **_QK_NORMS, **_EXPERTS},
        ),
    ),
    config={"activation": "silu", "experts_used": 8},
)

FAMILIES = (
    LLAMA,
    MISTRAL,
    QWEN2,
    QWEN3,
    QWEN2_VL,
    QWEN3_VL,
    QWEN2_VL_GGUF,
    QWEN3_VL_GGUF,
    GEMMA,
    GEMMA2_27B,
    GEMMA2,
    GEMMA3_27B,
    GEMMA3,
    GEMMA3_BOTH_WAYS,
    PHI3,
    OLMO,
    OLMO2,
    MIXTRAL,
    QWEN3_MOE,
    OLMOE,
)
