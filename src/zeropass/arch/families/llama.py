"""Llama and models built like it: RMSNorm, rotary positions and gated MLPs."""

from dataclasses import replace

from zeropass.arch.families.parts import (
    ATTENTION,
    ATTENTION_BIAS,
    BIASED_MLP,
    BLK,
    CONFIG,
    FUSED_MLP,
    GGUF_GATE_UP,
    GGUF_PAIRED,
    GGUF_POST_NORMS,
    GGUF_QK_NORMS,
    HF_LAYOUT,
    LAYER,
    LAYER_NORM_KEYS,
    LINEAR_BIASES,
    MLP,
    MLP_BIASES,
    NORMS,
    OUTER,
    PLAIN_HF,
    QK_NORMS,
    QKV_BIASED_ATTENTION,
    ROTARY_SHARE,
    WINDOWS,
    gguf,
)
from zeropass.arch.layout import Stored
from zeropass.arch.spec import Family

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
            HF_LAYOUT,
            optional=("unembedding", *LINEAR_BIASES),
            switches={**ATTENTION_BIAS, "mlp_bias": (MLP_BIASES, False)},
            tensors={**HF_LAYOUT.tensors, **BIASED_MLP},
        ),
        gguf("llama", GGUF_PAIRED),  # LlamaModel.permute of the converter
    ),
    config={"activation": "silu"},
)

_MISTRAL_HF = replace(PLAIN_HF, defaults={"window": 4096})
MISTRAL = replace(LLAMA, name="mistral", model_types=("mistral",), layouts=(_MISTRAL_HF,))

_QWEN = {"activation": "silu", "window_used": False, "window_from": 28}  # defaults of transformers
QWEN2 = replace(
    LLAMA,
    name="qwen2",
    model_types=("qwen2",),
    layouts=(
        replace(
            PLAIN_HF,
            tensors={**PLAIN_HF.tensors, **QKV_BIASED_ATTENTION},
        ),
        gguf("qwen2"),
    ),
    config=_QWEN,
)

QWEN3 = replace(
    LLAMA,
    name="qwen3",
    model_types=("qwen3",),
    qk_norm="head",
    layouts=(
        replace(HF_LAYOUT, config={**CONFIG, **WINDOWS}, tensors={**HF_LAYOUT.tensors, **QK_NORMS}),
        gguf("qwen3", GGUF_QK_NORMS),
    ),
    config=_QWEN,
)

MROPE = ("M-RoPE: the tokens of a text have one position on all its axes, so that it turns as plain RoPE",)
QWEN2_VL = replace(
    QWEN2,
    model_types=("qwen2_vl_text", "qwen2_5_vl_text", "qwen2_5_omni_text"),
    layouts=QWEN2.layouts[:1],
    notes=MROPE,
)
QWEN3_VL = replace(
    QWEN3,
    model_types=("qwen3_vl_text",),
    layouts=(replace(HF_LAYOUT, tensors={**HF_LAYOUT.tensors, **QK_NORMS}),),
    config={"activation": "silu"},
    notes=MROPE,
)

QWEN2_VL_GGUF = replace(QWEN2_VL, model_types=("qwen2vl",), layouts=(gguf("qwen2vl"),))
QWEN3_VL_GGUF = replace(QWEN3_VL, model_types=("qwen3vl",), layouts=(gguf("qwen3vl", GGUF_QK_NORMS),))

_PHI3_FUSED = {
    "q": Stored(LAYER + "self_attn.qkv_proj.weight", fused="stacked"),
    "k": Stored(LAYER + "self_attn.qkv_proj.weight", fused="stacked"),
    "v": Stored(LAYER + "self_attn.qkv_proj.weight", fused="stacked"),
    "o": ATTENTION["o"],
    **FUSED_MLP,
}
_PHI3_ROPES = {"su": "longrope", "yarn": "yarn of Phi-3"}
"""Earlier names: transformers 5.24 takes both for longrope; published code lengthens by another factor for yarn."""

PHI3 = replace(
    LLAMA,
    name="phi3",
    model_types=("phi3",),
    layouts=(
        replace(
            PLAIN_HF,
            config={
                **PLAIN_HF.config,
                **ROTARY_SHARE,
                "original_length": ("original_max_position_embeddings",),
            },
            tensors={**OUTER, **NORMS, **_PHI3_FUSED},
            constants={"rope_names": _PHI3_ROPES},
            defaults={"original_length": 4096},
        ),
        replace(
            gguf(
                "phi3",
                {**dict.fromkeys("qkv", Stored(BLK + "attn_qkv.weight", fused="stacked")), **GGUF_GATE_UP},
                without=LINEAR_BIASES,
            ),
            unread=(r"rope_factors_(long|short)\.weight",),
        ),
    ),
)

_PHI3_HF = PHI3.layouts[0]
PHI4_MULTIMODAL = replace(
    PHI3,
    model_types=("phi4_multimodal",),
    layouts=(
        replace(
            _PHI3_HF,
            config={**_PHI3_HF.config, "kv_heads": ("num_key_value_heads",)},
            unread=(*_PHI3_HF.unread, r"embed_tokens_extend\..*"),
            defaults={"kv_heads": 8},
            harmless=("vision_config", "audio_config"),
        ),
    ),
    notes=(*PHI3.notes, "its towers of images and sound, and the adapters that it puts on for these, are not read"),
)

_GEMMA_CONFIG = {name: keys for name, keys in CONFIG.items() if name != "activation"}
_GEMMA2_CONFIG = {
    **_GEMMA_CONFIG,
    **WINDOWS,
    "activation": ("hidden_activation",),
    "query_scalar": ("query_pre_attn_scalar",),
    "attention_cap": ("attn_logit_softcapping",),
    "logit_cap": ("final_logit_softcapping",),
    "local_every": ("sliding_window_pattern", "_sliding_window_pattern"),
    "local_rope_theta": ("rope_local_base_freq",),
}
_CAUSAL_ONLY = {"use_bidirectional_attention": (False, None)}
_GEMMA_HF = replace(HF_LAYOUT, config=_GEMMA_CONFIG, gain_offset=1.0)
GEMMA = replace(
    LLAMA,
    name="gemma",
    model_types=("gemma",),
    tied_by_default=True,
    embed_scaled=True,
    layouts=(_GEMMA_HF, gguf("gemma")),  # GemmaModel of the converter adds one to the gains
    config={"activation": "gelu_pytorch_tanh"},
    # The first files say "gelu" but mean its tanh approximation (transformers 5.24, GemmaConfig).
    when={
        **_CAUSAL_ONLY,
        "hidden_act": ("gelu", "gelu_pytorch_tanh", None),
        "hidden_activation": ("gelu_pytorch_tanh", None),
    },
)

_NORMS_AROUND = {
    "attn_norm": Stored(LAYER + "input_layernorm.weight"),
    "attn_post_norm": Stored(LAYER + "post_attention_layernorm.weight"),
    "ff_norm": Stored(LAYER + "pre_feedforward_layernorm.weight"),
    "ff_post_norm": Stored(LAYER + "post_feedforward_layernorm.weight"),
}
_GEMMA2_HF = replace(
    _GEMMA_HF,
    config=_GEMMA2_CONFIG,
    tensors={**OUTER, **_NORMS_AROUND, **ATTENTION, **MLP},
    defaults={"window": 4096, "query_scalar": 256, "attention_cap": 50.0, "logit_cap": 30.0},
    harmless=("sliding_window_size", "hidden_act"),  # some files have these next to the keys that count
)
_GEMMA2_GGUF = gguf("gemma2", GGUF_POST_NORMS, constants={"local_every": 2})
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
    tensors={**_GEMMA2_HF.tensors, **QK_NORMS},
    constants={"local_every": 6, "local_rope_theta": 10000.0, "rope_theta": 1e6},
    defaults={"window": 4096, "query_scalar": 256},
    harmless=("attn_logit_softcapping", "hidden_act"),
)
_GEMMA3_GGUF = gguf(
    "gemma3", {**GGUF_POST_NORMS, **GGUF_QK_NORMS}, constants={"local_every": 6, "local_rope_theta": 10000.0}
)
GEMMA3 = replace(
    GEMMA,
    name="gemma3",
    model_types=("gemma3_text", "gemma3"),
    qk_norm="head",
    layouts=(_GEMMA3_HF, _GEMMA3_GGUF),
    when={**_CAUSAL_ONLY, "general.architecture": (None, "gemma3")},
)
GEMMA3_BOTH_WAYS = replace(
    GEMMA3,
    causal=False,
    layouts=(replace(_GEMMA3_HF, constants={**_GEMMA3_HF.constants, "window_of_both_sides": True}),),
    when={"use_bidirectional_attention": (True,)},
)
GEMMA_EMBEDDING = replace(
    GEMMA3_BOTH_WAYS,
    layouts=(
        replace(
            gguf(
                "gemma-embedding",
                {**GGUF_POST_NORMS, **GGUF_QK_NORMS},
                constants={**_GEMMA3_GGUF.constants, "window_of_both_sides": True},
            ),
            unread=(r"dense_[23]\.weight",),  # of what stands for an entire text
            harmless=(r"dense_[23]_feat_(in|out)",),
        ),
    ),
    when={
        "general.architecture": ("gemma-embedding",),
        "gemma-embedding.attention.causal": (None, False),
    },
)

# The 27B models divide by √(d / heads) instead of √d_h. No GGUF key says so: llama.cpp decides by the number of layers.
GEMMA2_27B = replace(
    GEMMA2,
    layouts=(replace(_GEMMA2_GGUF, constants={**_GEMMA2_GGUF.constants, "query_scalar": 4608 / 32}),),
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
            HF_LAYOUT,
            config={**CONFIG, "clip": ("clip_qkv",)},
            tensors={"embedding": OUTER["embedding"], "unembedding": OUTER["unembedding"], **ATTENTION, **MLP},
        ),
        gguf(  # OlmoModel of the converter reorders weights, but not biases, which no published model has
            "olmo",
            {"q": GGUF_PAIRED["q"], "k": GGUF_PAIRED["k"]},
            keys={**LAYER_NORM_KEYS, "clip": ("attention.clamp_kqv",)},
            without=("attn_norm", "ff_norm", "final_norm", *LINEAR_BIASES),
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
    layouts=(
        replace(HF_LAYOUT, tensors={**OUTER, **_POST_NORMS, **ATTENTION, **MLP, **QK_NORMS}),
        gguf(  # of OLMo 3 as well, whose layers with a window are not rescaled (llama_model_olmo2 of llama.cpp)
            "olmo2",
            {**GGUF_POST_NORMS, **GGUF_QK_NORMS},
            keys={"local_rope_theta": ("rope.freq_base_swa", "rope.freq_base")},
            constants={"local_every": 4},
            without=("attn_norm", "ff_norm"),
        ),
    ),
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
    GEMMA_EMBEDDING,
    PHI3,
    PHI4_MULTIMODAL,
    OLMO,
    OLMO2,
)
