"""The pieces of the layouts of Llama and of the models built like it, by the names that their files use."""

from collections.abc import Collection, Mapping
from dataclasses import replace

from zeropass.arch.layout import Layout, Stored, weight_and_bias

LAYER = "layers.{layer}."
BLK = "blk.{layer}."
QKV_BIASES = ("q_bias", "k_bias", "v_bias")
HEAD_BIASES = (*QKV_BIASES, "o_bias")
MLP_BIASES, UP_DOWN_BIASES = ("gate_bias", "up_bias", "value_bias"), ("key_bias", "value_bias")
LINEAR_BIASES = (*HEAD_BIASES, *MLP_BIASES)

SIZES: Mapping[str, tuple[str, ...]] = {
    "layers": ("num_hidden_layers",),
    "d": ("hidden_size",),
    "heads": ("num_attention_heads",),
    "kv_heads": ("num_attention_heads",),
    "neurons": ("intermediate_size",),
    "vocab": ("vocab_size",),
    "activation": ("hidden_act",),
}
"""The usual names where every head has keys and values of its own."""

CONFIG: Mapping[str, tuple[str, ...]] = {
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
WINDOWS: Mapping[str, tuple[str, ...]] = {
    "window": ("sliding_window",),
    "window_used": ("use_sliding_window",),
    "window_from": ("max_window_layers",),
    "layer_kinds": ("layer_types",),
}
_ROPES = ("rope_parameters", "rope_scaling")
GROWTH = {
    "growth": tuple(f"{rope}.llama_4_scaling_beta" for rope in _ROPES),
    "growth_length": tuple(f"{rope}.original_max_position_embeddings" for rope in _ROPES),
}
"""The growth of the queries of Mistral's models with their position."""

ROTARY_SHARE = {"rotary_share": ("rope_parameters.partial_rotary_factor", "partial_rotary_factor")}
GRANITE_FACTORS = {
    "attention_scale": ("attention_multiplier",),
    "embed_scale": ("embedding_multiplier",),
    "residual_scale": ("residual_multiplier",),
}
OUTER = {
    "embedding": Stored("embed_tokens.weight"),
    "unembedding": Stored("^lm_head.weight"),
    "final_norm": Stored("norm.weight"),
}
NORMS = {
    "attn_norm": Stored(LAYER + "input_layernorm.weight"),
    "ff_norm": Stored(LAYER + "post_attention_layernorm.weight"),
}
SHIFTED_NORMS = {
    **weight_and_bias("attn_norm", LAYER + "input_layernorm"),
    **weight_and_bias("ff_norm", LAYER + "post_attention_layernorm"),
    **weight_and_bias("final_norm", "norm"),
}
NORMS_BEHIND = {
    "attn_post_norm": Stored(LAYER + "post_attention_layernorm.weight"),
    "ff_post_norm": Stored(LAYER + "post_feedforward_layernorm.weight"),
}
ATTENTION = {
    **weight_and_bias("q", LAYER + "self_attn.q_proj"),
    **weight_and_bias("k", LAYER + "self_attn.k_proj"),
    **weight_and_bias("v", LAYER + "self_attn.v_proj"),
    **weight_and_bias("o", LAYER + "self_attn.o_proj", transpose=True),
}
QKV_BIASED_ATTENTION = {role: stored for role, stored in ATTENTION.items() if role != "o_bias"}
PAIRED = {role: replace(ATTENTION[role], paired_rows=True) for role in ("q", "k", "q_bias", "k_bias")}
"""Queries and keys whose rotary rows are neighbours."""

BIASED_MLP = {
    **weight_and_bias("gate", LAYER + "mlp.gate_proj"),
    **weight_and_bias("up", LAYER + "mlp.up_proj"),
    **weight_and_bias("value", LAYER + "mlp.down_proj", transpose=True),
}
PLAIN_ATTENTION = {role: ATTENTION[role] for role in ("q", "k", "v", "o")}
MLP = {role: BIASED_MLP[role] for role in ("gate", "up", "value")}
FUSED_MLP = {
    "gate": Stored(LAYER + "mlp.gate_up_proj.weight", part=(0, 2)),
    "up": Stored(LAYER + "mlp.gate_up_proj.weight", part=(1, 2)),
    "value": MLP["value"],
}
"""A gate and what it multiplies, as one tensor."""

ATTENTION_BIAS = {"attention_bias": (HEAD_BIASES, False)}
QK_NORMS = {
    "q_norm": Stored(LAYER + "self_attn.q_norm.weight"),
    "k_norm": Stored(LAYER + "self_attn.k_norm.weight"),
}
HF_LAYOUT = Layout(
    format="hf",
    prefixes=("model.", ""),
    optional=("unembedding", *HEAD_BIASES),
    switches=ATTENTION_BIAS,
    config=CONFIG,
    tensors={**OUTER, **NORMS, **ATTENTION, **MLP},
    extra={"classifier": (Stored("^score.weight"), "read")},
    unread=(r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq",),
)
PLAIN_HF = replace(
    HF_LAYOUT,
    optional=("unembedding",),
    switches={},
    config={**CONFIG, **WINDOWS},
    tensors={**OUTER, **NORMS, **PLAIN_ATTENTION, **MLP},
)


def _gguf_config(name: str, keys: Mapping[str, tuple[str, ...]]) -> Mapping[str, tuple[str, ...]]:
    """Return the keys of a GGUF file, each with the name of the architecture in front."""
    usual = {
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
    return {size: tuple(f"{name}.{key}" for key in suffixes) for size, suffixes in {**usual, **keys}.items()}


GGUF_TENSORS = {
    "embedding": Stored("token_embd.weight"),
    "unembedding": Stored("output.weight"),
    "final_norm": Stored("output_norm.weight"),
    "rope_factors": Stored("rope_freqs.weight"),
    "attn_norm": Stored(BLK + "attn_norm.weight"),
    "ff_norm": Stored(BLK + "ffn_norm.weight"),
    **weight_and_bias("q", BLK + "attn_q"),
    **weight_and_bias("k", BLK + "attn_k"),
    **weight_and_bias("v", BLK + "attn_v"),
    **weight_and_bias("o", BLK + "attn_output", transpose=True),
    **weight_and_bias("gate", BLK + "ffn_gate"),
    **weight_and_bias("up", BLK + "ffn_up"),
    **weight_and_bias("value", BLK + "ffn_down", transpose=True),
}
GGUF_PAIRED = {name: replace(GGUF_TENSORS[name], paired_rows=True) for name in ("q", "k", "q_bias", "k_bias")}
"""Queries and keys whose rotary rows are neighbours (LLAMA_ROPE_TYPE_NORM in llama_model_rope_type of llama.cpp)."""

GGUF_LAYER_NORMS = {
    **weight_and_bias("attn_norm", BLK + "attn_norm"),
    **weight_and_bias("ff_norm", BLK + "ffn_norm"),
    **weight_and_bias("final_norm", "output_norm"),
}
GGUF_UP_DOWN = {
    **weight_and_bias("key", BLK + "ffn_up"),
    **weight_and_bias("value", BLK + "ffn_down", transpose=True),
}
"""An MLP without a gate."""

GGUF_GATE_UP = {
    "gate": Stored(BLK + "ffn_up.weight", part=(0, 2)),
    "up": Stored(BLK + "ffn_up.weight", part=(1, 2)),
}
"""A gate and what it multiplies, as one tensor."""

GRANITE_GGUF_FACTORS = {
    "attention_scale": ("attention.scale",),
    "embed_scale": ("embedding_scale",),
    "residual_scale": ("residual_scale",),
    "logit_divisor": ("logit_scale",),  # llama.cpp divides by it
}
LAYER_NORM_KEYS = {"eps": ("attention.layer_norm_epsilon",)}


_GGUF_DEFAULTS = {"rotary_share": 1.0, "rope_theta": 10000.0}
"""The rotary positions of llama.cpp where no key says otherwise."""


def gguf(
    name: str,
    tensors: Mapping[str, Stored] | None = None,
    keys: Mapping[str, tuple[str, ...]] | None = None,
    without: Collection[str] = (),
    optional: tuple[str, ...] = LINEAR_BIASES,
    constants: Mapping[str, object] | None = None,
) -> Layout:
    """Return the layout of llama.cpp.

    Args:
        name: Its name of the architecture.
        tensors: Tensors in addition to the usual ones or in place of them.
        keys: Keys in addition to the usual ones or in place of them, without the name in front.
        without: The usual tensors that it lacks.
        optional: Tensors that a file may lack, in addition to those that every file may lack.
        constants: Values that no key states.
    """
    usual = {role: stored for role, stored in GGUF_TENSORS.items() if role not in without}
    return Layout(
        format="gguf",
        optional=("unembedding", "rope_factors", *optional),
        config=_gguf_config(name, keys or {}),
        tensors={**usual, **(tensors or {})},
        unread=(r"blk\.\d+\.attn_rot_embd\.weight",),
        constants={**_GGUF_DEFAULTS, **(constants or {})},
    )


def renamed(tensors: Mapping[str, Stored], names: Mapping[str, str]) -> dict[str, Stored]:
    """Return tensors under other names, each by itself; those without one are left out."""
    return {what: replace(stored, name=names[what], part=(0, 1)) for what, stored in tensors.items() if what in names}


GGUF_QK_NORMS = {"q_norm": Stored(BLK + "attn_q_norm.weight"), "k_norm": Stored(BLK + "attn_k_norm.weight")}
GGUF_POST_NORMS = {
    "attn_post_norm": Stored(BLK + "post_attention_norm.weight"),
    "ff_post_norm": Stored(BLK + "post_ffw_norm.weight"),
}
GGUF_POSITIONS = Stored("position_embd.weight")
NO_GATE = ("gate", "up", "gate_bias", "up_bias")
"""The usual tensors that an MLP without a gate lacks."""
