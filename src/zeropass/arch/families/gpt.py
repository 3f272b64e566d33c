"""GPT-2 and its successors: LayerNorm, biases, plain MLPs; learned positions, rotary positions or ALiBi."""

from collections.abc import Mapping
from dataclasses import replace

from zeropass.arch.families.parts import (
    BLK,
    GGUF_LAYER_NORMS,
    GGUF_POSITIONS,
    GGUF_TENSORS,
    GGUF_UP_DOWN,
    LAYER_NORM_KEYS,
    NO_GATE,
    ROTARY_SHARE,
    SIZES,
    gguf,
)
from zeropass.arch.layout import Layout, Stored, fused_qkv, modules, weight_and_bias
from zeropass.arch.roles import Side
from zeropass.arch.spec import Family

_CLASSIFIER: Mapping[str, tuple[Stored, Side]] = {"classifier": (Stored("^score.weight"), "read")}
_H = "h.{layer}."
_FUSED = fused_qkv(BLK + "attn_qkv", "stacked")


def _gguf_gpt(name: str, tensors: Mapping[str, Stored] | None = None, **keys: tuple[str, ...]) -> Layout:
    """Return a layout of llama.cpp with LayerNorm, queries, keys and values in one tensor, and no gate."""
    return gguf(
        name,
        {**GGUF_LAYER_NORMS, **_FUSED, **GGUF_UP_DOWN, **(tensors or {})},
        keys={**LAYER_NORM_KEYS, **keys},
        without=(*NO_GATE, "rope_factors"),
        optional=(),
    )


def _without_biases(layout: Layout, *kept: str) -> Layout:
    """Return a layout without its biases, but some."""
    tensors = {name: s for name, s in layout.tensors.items() if not name.endswith("_bias") or name in kept}
    return replace(layout, tensors=tensors)


_GPT_SIZES = {
    "layers": ("n_layer", "num_hidden_layers"),
    **dict.fromkeys(("heads", "kv_heads"), ("n_head", "num_attention_heads")),
    "vocab": ("vocab_size",),
    "eps": ("layer_norm_epsilon",),
}
GPT2 = Family(
    name="gpt2",
    model_types=("gpt2",),
    norm="layer",
    norm_place="pre",
    ff_roles=("key", "value"),
    rotary=False,
    tied_by_default=True,
    layouts=(
        Layout(
            format="hf",
            prefixes=("transformer.", ""),
            optional=("unembedding",),
            config={
                **_GPT_SIZES,
                "d": ("n_embd", "hidden_size"),
                "neurons": ("n_inner",),
                "activation": ("activation_function",),
            },
            tensors={
                "embedding": Stored("wte.weight"),
                "unembedding": Stored("^lm_head.weight"),
                "positions": Stored("wpe.weight"),
                **modules("", final_norm="ln_f"),
                **modules(_H, attn_norm="ln_1", ff_norm="ln_2"),
                **fused_qkv(_H + "attn.c_attn", "stacked", transpose=True),
                **weight_and_bias("o", _H + "attn.c_proj"),
                **weight_and_bias("key", _H + "mlp.c_fc", transpose=True),
                **weight_and_bias("value", _H + "mlp.c_proj"),
            },
            extra=_CLASSIFIER,
            unread=(r"h\.\d+\.attn\.(masked_)?bias",),
        ),
        _gguf_gpt("gpt2", {"positions": GGUF_POSITIONS}),
    ),
    config={"activation": "gelu_new", "eps": 1e-5},
    when={"scale_attn_weights": (True, None), "scale_attn_by_inverse_layer_idx": (False, None)},
)

_GPT2_HF = GPT2.layouts[0]

GPT_BIGCODE = replace(
    GPT2,
    name="gpt_bigcode",
    model_types=("gpt_bigcode",),
    layouts=(
        replace(
            _GPT2_HF,
            config={**_GPT2_HF.config, "kv_heads": ("num_key_value_heads",)},
            tensors={
                **_GPT2_HF.tensors,
                **fused_qkv(_H + "attn.c_attn", "stacked"),
                **weight_and_bias("o", _H + "attn.c_proj", transpose=True),
                **weight_and_bias("key", _H + "mlp.c_fc"),
                **weight_and_bias("value", _H + "mlp.c_proj", transpose=True),
            },
            harmless=(
                "scale_attention_softmax_in_fp32",
                "inference_runner",
                "validate_runner_input",
                "pre_allocate_kv_cache",
            ),
        ),
        _gguf_gpt("starcoder", {"positions": GGUF_POSITIONS}),
    ),
    config={"activation": "gelu_pytorch_tanh", "eps": 1e-5, "kv_heads": 1},
    when={"multi_query": (True, None), "scale_attn_weights": (True, None)},
)

OPENAI_GPT = replace(
    GPT2,
    name="openai-gpt",
    model_types=("openai-gpt",),
    norm_place="post",
    layouts=(
        replace(
            _GPT2_HF,
            config={name: keys for name, keys in _GPT2_HF.config.items() if name not in ("activation", "neurons")},
            tensors={
                **{name: s for name, s in _GPT2_HF.tensors.items() if not name.startswith("final_norm")},
                "embedding": Stored("tokens_embed.weight"),
                "positions": Stored("positions_embed.weight"),
            },
            unread=(*_GPT2_HF.unread, r"position_ids"),
        ),
    ),
    when={"afn": ("gelu", None)},  # which means its tanh approximation there
)

_MPT = "blocks.{layer}."
_MPT_ATTENTION: Mapping[str, tuple[object, ...]] = {
    "qk_ln": (False, None),
    "prefix_lm": (False, None),
    "softmax_scale": (None,),
    "attn_type": ("multihead_attention", None),
    "alibi": (True, None),
    "alibi_bias_max": (8, None),
    "attn_uses_sequence_id": (False, None),
}
MPT = replace(
    GPT2,
    name="mpt",
    model_types=("mpt",),
    alibi="plain",
    layouts=(
        replace(
            _GPT2_HF,
            config={
                **_GPT_SIZES,
                "layers": ("n_layers", "num_hidden_layers"),
                "d": ("d_model", "hidden_size"),
                **dict.fromkeys(("heads", "kv_heads"), ("n_heads", "num_attention_heads")),
                "clip": ("attn_config.clip_qkv",),
            },
            tensors={
                "embedding": Stored("wte.weight"),
                "unembedding": Stored("^lm_head.weight"),
                "final_norm": Stored("norm_f.weight"),
                "attn_norm": Stored(_MPT + "norm_1.weight"),
                "ff_norm": Stored(_MPT + "norm_2.weight"),
                **dict.fromkeys("qkv", Stored(_MPT + "attn.Wqkv.weight", fused="stacked")),
                "o": Stored(_MPT + "attn.out_proj.weight", transpose=True),
                "key": Stored(_MPT + "ffn.up_proj.weight"),
                "value": Stored(_MPT + "ffn.down_proj.weight", transpose=True),
            },
            unread=(),
            harmless=(
                "init_config|verbose|emb_pdrop|max_seq_len|norm_type|learned_pos_emb|no_bias|embedding_fraction",
            ),
        ),
        _without_biases(_gguf_gpt("mpt", clip=("attention.clamp_kqv",))),
    ),
    config={"activation": "gelu", "eps": 1e-5},
    when={
        "expansion_ratio": (4, None),
        **{f"attn_config.{key}": values for key, values in _MPT_ATTENTION.items()},
        "mpt.attention.max_alibi_bias": (8.0, None),
    },
)

_LAYER = "layers.{layer}."
_FAIRSEQ = {
    **modules(_LAYER, attn_norm="self_attn_layer_norm", ff_norm="final_layer_norm"),
    **modules(_LAYER + "self_attn.", q="q_proj", k="k_proj", v="v_proj", o="out_proj"),
    **modules(_LAYER, key="fc1", value="fc2"),
}
"""The tensors of a layer in models that were trained by fairseq."""

BIOGPT = replace(
    GPT2,
    name="biogpt",
    model_types=("biogpt",),
    layouts=(
        Layout(
            format="hf",
            prefixes=("biogpt.", ""),
            optional=("unembedding",),
            config={**SIZES, "embed_scaled": ("scale_embedding",)},
            tensors={
                "embedding": Stored("embed_tokens.weight"),
                "unembedding": Stored("^output_projection.weight"),
                "positions": Stored("embed_positions.weight"),
                **modules("", final_norm="layer_norm"),
                **_FAIRSEQ,
            },
            extra=_CLASSIFIER,
            harmless=("layer_norm_eps",),  # the model's norms take torch's own, 1e-5
        ),
    ),
    config={"activation": "gelu", "eps": 1e-5, "embed_scaled": True},
    when={},
    first_position=2,
    notes=("the first two rows of pos are padding: position i is pos.(i + 2)",),
)

_BIO_HF = BIOGPT.layouts[0]
XGLM = replace(
    BIOGPT,
    name="xglm",
    model_types=("xglm",),
    sinusoids="tensor2tensor",
    layouts=(
        replace(
            _BIO_HF,
            prefixes=("model.", ""),
            config={
                **_BIO_HF.config,
                "layers": ("num_layers",),
                "d": ("d_model",),
                "heads": ("attention_heads",),
                "kv_heads": ("attention_heads",),
                "neurons": ("ffn_dim",),
                "activation": ("activation_function",),
            },
            tensors={
                **{name: stored for name, stored in _BIO_HF.tensors.items() if name != "positions"},
                "unembedding": Stored("^lm_head.weight"),
            },
            sinusoids=("embed_positions.weights",),
            harmless=(),
        ),
    ),
    when={"pad_token_id": (1, None)},  # the row of another padding token would have no position
    notes=(),
)

GPT_NEO = replace(
    GPT2,
    name="gpt_neo",
    model_types=("gpt_neo",),
    unscaled=True,
    layouts=(
        replace(
            _GPT2_HF,
            config={
                "layers": ("num_layers",),
                "d": ("hidden_size",),
                "heads": ("num_heads",),
                "kv_heads": ("num_heads",),
                "neurons": ("intermediate_size",),
                "vocab": ("vocab_size",),
                "eps": ("layer_norm_epsilon",),
                "activation": ("activation_function",),
                "window": ("window_size",),
                "layer_kinds": ("attention_layers",),
                "layer_pattern": ("attention_types",),
            },
            tensors={
                **{
                    name: stored
                    for name, stored in _GPT2_HF.tensors.items()
                    if name not in ("q_bias", "k_bias", "v_bias")
                },
                "q": Stored(_H + "attn.attention.q_proj.weight"),
                "k": Stored(_H + "attn.attention.k_proj.weight"),
                "v": Stored(_H + "attn.attention.v_proj.weight"),
                **weight_and_bias("o", _H + "attn.attention.out_proj", transpose=True),
                "key": Stored(_H + "mlp.c_fc.weight"),
                "value": Stored(_H + "mlp.c_proj.weight", transpose=True),
            },
            unread=(r"h\.\d+\.attn\.attention\.(masked_)?bias",),
            defaults={"window": 256},
        ),
    ),
    when={},
)

GPTJ = Family(
    name="gptj",
    model_types=("gptj",),
    norm="layer",
    norm_place="pre",
    ff_roles=("key", "value"),
    rotary=True,
    parallel=True,
    tied_by_default=False,
    layouts=(
        Layout(
            format="hf",
            prefixes=("transformer.", ""),
            optional=("unembedding", "unembedding_bias"),
            config={**_GPT2_HF.config, "rotary": ("rotary_dim",)},
            tensors={
                "embedding": Stored("wte.weight"),
                **weight_and_bias("unembedding", "^lm_head"),
                **weight_and_bias("final_norm", "ln_f"),
                **weight_and_bias("attn_norm", _H + "ln_1"),
                **weight_and_bias("ff_norm", _H + "ln_1"),
                "q": Stored(_H + "attn.q_proj.weight", paired_rows=True),
                "k": Stored(_H + "attn.k_proj.weight", paired_rows=True),
                "v": Stored(_H + "attn.v_proj.weight"),
                "o": Stored(_H + "attn.out_proj.weight", transpose=True),
                **weight_and_bias("key", _H + "mlp.fc_in"),
                **weight_and_bias("value", _H + "mlp.fc_out", transpose=True),
            },
            extra=_CLASSIFIER,
            unread=(r"h\.\d+\.attn\.(masked_)?bias", r"\^score\.bias"),
            defaults={"rotary": 64},
        ),
    ),
    config={"activation": "gelu_new", "eps": 1e-5},
)

_CODEGEN_QKV = Stored(_H + "attn.qkv_proj.weight", fused="quarters")
CODEGEN = replace(
    GPTJ,
    name="codegen",
    model_types=("codegen",),
    layouts=(
        replace(
            GPTJ.layouts[0],
            tensors={
                **GPTJ.layouts[0].tensors,
                **dict.fromkeys("qk", replace(_CODEGEN_QKV, paired_rows=True)),
                "v": _CODEGEN_QKV,
            },
            unread=(r"h\.\d+\.attn\.causal_mask",),
        ),
    ),
)

_NEOX = _LAYER + "attention."
GPT_NEOX = replace(
    GPTJ,
    name="gpt_neox",
    model_types=("gpt_neox",),
    layouts=(
        Layout(
            format="hf",
            prefixes=("gpt_neox.", ""),
            optional=("unembedding", "q_bias", "k_bias", "v_bias", "o_bias"),
            switches={"attention_bias": (("q_bias", "k_bias", "v_bias", "o_bias"), True)},
            config={
                **SIZES,
                "eps": ("layer_norm_eps",),
                "rope_theta": ("rotary_emb_base", "rope_theta"),
                "rotary_share": ("rope_parameters.partial_rotary_factor", "rotary_pct"),
            },
            tensors={
                "embedding": Stored("embed_in.weight"),
                "unembedding": Stored("^embed_out.weight"),
                **modules("", final_norm="final_layer_norm"),
                **modules(_LAYER, attn_norm="input_layernorm", ff_norm="post_attention_layernorm"),
                **fused_qkv(_NEOX + "query_key_value", "grouped"),
                **modules(_NEOX, o="dense"),
                **modules(_LAYER + "mlp.", key="dense_h_to_4h", value="dense_4h_to_h"),
            },
            extra=_CLASSIFIER,
            unread=(r"layers\.\d+\.attention\.(masked_bias|bias|rotary_emb\.inv_freq)",),
            defaults={"rotary_share": 0.25},
            harmless=("is_decoder",),
        ),
        _gguf_gpt("gptneox"),  # GPTNeoXModel of the converter stacks queries, keys and values
    ),
    config={"activation": "gelu", "eps": 1e-5},
    when={"use_parallel_residual": (True, None), "gptneox.use_parallel_residual": (True, None)},
)
GPT_NEOX_SEQUENTIAL = replace(
    GPT_NEOX, parallel=False, layouts=GPT_NEOX.layouts[:1], when={"use_parallel_residual": (False,)}
)
GPT_NEOX_SEQUENTIAL_GGUF = replace(
    GPT_NEOX_SEQUENTIAL, layouts=GPT_NEOX.layouts[1:], when={"gptneox.use_parallel_residual": (False,)}
)

OPT = replace(
    GPT2,
    name="opt",
    model_types=("opt",),
    layouts=(
        Layout(
            format="hf",
            prefixes=("model.decoder.", "decoder.", ""),
            optional=("unembedding",),
            config={**SIZES, "neurons": ("ffn_dim",), "activation": ("activation_function",)},
            tensors={
                "embedding": Stored("embed_tokens.weight"),
                "unembedding": Stored("^lm_head.weight"),
                "positions": Stored("embed_positions.weight"),
                **modules("", final_norm="final_layer_norm"),
                **_FAIRSEQ,
            },
            extra=_CLASSIFIER,
        ),
    ),
    config={"activation": "relu", "eps": 1e-5},
    when={
        "do_layer_norm_before": (True, None),
        "_remove_final_layer_norm": (False, None),
        "enable_bias": (True, None),
        "layer_norm_elementwise_affine": (True, None),
    },
    first_position=2,
    notes=("the first two rows of pos are padding: position i is pos.(i + 2)", "OPT-350m (post-norm) is refused"),
)

_SELF = "h.{layer}.self_attention."
BLOOM = replace(
    GPT2,
    name="bloom",
    model_types=("bloom",),
    alibi="plain",
    layouts=(
        Layout(
            format="hf",
            prefixes=("transformer.", ""),
            optional=("unembedding",),
            config={**_GPT_SIZES, "d": ("hidden_size", "n_embed")},
            tensors={
                "embedding": Stored("word_embeddings.weight"),
                "unembedding": Stored("^lm_head.weight"),
                **modules("", embed_norm="word_embeddings_layernorm", final_norm="ln_f"),
                **modules(_H, attn_norm="input_layernorm", ff_norm="post_attention_layernorm"),
                **fused_qkv(_SELF + "query_key_value", "grouped"),
                **modules(_SELF, o="dense"),
                **modules(_H + "mlp.", key="dense_h_to_4h", value="dense_4h_to_h"),
            },
            extra=_CLASSIFIER,
        ),
        # BloomModel of the converter stacks queries, keys and values.
        _gguf_gpt("bloom", weight_and_bias("embed_norm", "token_embd_norm")),
    ),
    config={"activation": "gelu_new", "eps": 1e-5},
    when={"apply_residual_connection_post_layernorm": (False, None)},
)

_FALCON_BIASES = ("q_bias", "k_bias", "v_bias", "o_bias", "key_bias", "value_bias")
_FALCON_TENSORS = {
    name: stored for name, stored in BLOOM.layouts[0].tensors.items() if not name.startswith("embed_norm")
}
_FALCON_RW_HF = replace(
    BLOOM.layouts[0],
    optional=("unembedding", *_FALCON_BIASES),
    switches={"bias": (_FALCON_BIASES, False)},
    harmless=("ff_factor", "num_kv_heads"),  # multi_query alone determines the number of key/value heads
    config={
        **BLOOM.layouts[0].config,
        "neurons": ("ffn_hidden_size",),
        "activation": ("activation",),
        "rope_theta": ("rope_theta",),
    },
    tensors=_FALCON_TENSORS,
)
_ONE_NORM = {"ff_norm": _FALCON_TENSORS["attn_norm"], "ff_norm_bias": _FALCON_TENSORS["attn_norm_bias"]}
_TWO_NORMS = {
    **weight_and_bias("attn_norm", _H + "ln_attn"),
    **weight_and_bias("ff_norm", _H + "ln_mlp"),
}
FALCON_RW = replace(
    BLOOM,
    name="falcon",
    model_types=("falcon",),
    alibi="scaled",
    layouts=(_FALCON_RW_HF,),
    config={"activation": "gelu", "eps": 1e-5},
    when={
        "alibi": (True,),
        "multi_query": (False,),
        "parallel_attn": (False,),
        "new_decoder_architecture": (False, None),
    },
)
_NORM_BIASES = ("attn_norm_bias", "ff_norm_bias", "final_norm_bias")
_FALCON_GGUF = _without_biases(  # FalconModel of the converter stacks queries, keys and values, but no biases of them
    _gguf_gpt("falcon", weight_and_bias("ff_norm", BLK + "attn_norm")), *_NORM_BIASES
)
FALCON_7B = replace(
    FALCON_RW,
    alibi="",
    rotary=True,
    parallel=True,
    layouts=(
        replace(
            _FALCON_RW_HF,
            constants={"kv_heads": 1},
            config={name: keys for name, keys in _FALCON_RW_HF.config.items() if name != "kv_heads"},
            tensors={**_FALCON_TENSORS, **_ONE_NORM},
        ),
        _FALCON_GGUF,
    ),
    when={
        "alibi": (False, None),
        "multi_query": (True, None),
        "parallel_attn": (True, None),
        "new_decoder_architecture": (False, None),
    },
)
_FALCON_40B_HF = replace(
    _FALCON_RW_HF,
    config={**_FALCON_RW_HF.config, "kv_heads": ("num_kv_heads", "n_head_kv")},
    tensors={**_FALCON_TENSORS, **_TWO_NORMS},
    harmless=("ff_factor", "multi_query"),
)
_FALCON_NEW = {"alibi": (False, None), "parallel_attn": (True, None), "new_decoder_architecture": (True,)}
FALCON_40B = replace(
    FALCON_7B,
    layouts=(_FALCON_40B_HF,),
    when={**_FALCON_NEW, "num_ln_in_parallel_attn": (2, None)},
)
FALCON_11B = replace(
    FALCON_40B,
    layouts=(replace(_FALCON_40B_HF, tensors={**_FALCON_TENSORS, **_ONE_NORM}),),
    when={**_FALCON_NEW, "num_ln_in_parallel_attn": (1,)},
)
FALCON_40B_GGUF = replace(
    FALCON_40B,
    layouts=(
        replace(
            _FALCON_GGUF,
            tensors={**_FALCON_GGUF.tensors, **weight_and_bias("attn_norm", BLK + "attn_norm_2")},
            only_with="blk.0.attn_norm_2.weight",
        ),
    ),
    when={},
)

_PHI_FUSED = _gguf_gpt("phi2", weight_and_bias("unembedding", "output") | weight_and_bias("ff_norm", BLK + "attn_norm"))
_PHI_GGUF = replace(_PHI_FUSED, tensors={**_PHI_FUSED.tensors, **{name: GGUF_TENSORS[name] for name in _FUSED}})
PHI = Family(
    name="phi",
    model_types=("phi",),
    norm="layer",
    norm_place="pre",
    ff_roles=("key", "value"),
    rotary=True,
    parallel=True,
    tied_by_default=False,
    layouts=(
        Layout(
            format="hf",
            prefixes=("model.", ""),
            optional=("unembedding", "unembedding_bias"),
            config={
                **SIZES,
                "kv_heads": ("num_key_value_heads", "num_attention_heads"),
                "eps": ("layer_norm_eps",),
                "rope_theta": ("rope_theta",),
                **ROTARY_SHARE,
            },
            tensors={
                "embedding": Stored("embed_tokens.weight"),
                **modules("", unembedding="^lm_head", final_norm="final_layernorm"),
                **modules(_LAYER, attn_norm="input_layernorm", ff_norm="input_layernorm"),
                **modules(_LAYER + "self_attn.", q="q_proj", k="k_proj", v="v_proj", o="dense"),
                **modules(_LAYER + "mlp.", key="fc1", value="fc2"),
            },
            extra=_CLASSIFIER,
        ),
        _PHI_GGUF,
    ),
    config={"activation": "gelu_new", "eps": 1e-5, "rotary_share": 0.5},
    when={"qk_layernorm": (False, None)},
)
# Converters of 2023 kept queries, keys and values in one tensor.
PHI_FUSED_GGUF = replace(PHI, layouts=(replace(_PHI_FUSED, only_with="blk.0.attn_qkv.weight"),), when={})

FAMILIES = (
    GPT2,
    GPT_BIGCODE,
    OPENAI_GPT,
    MPT,
    BIOGPT,
    XGLM,
    GPT_NEO,
    GPTJ,
    CODEGEN,
    GPT_NEOX,
    GPT_NEOX_SEQUENTIAL,
    GPT_NEOX_SEQUENTIAL_GGUF,
    OPT,
    BLOOM,
    FALCON_RW,
    FALCON_40B_GGUF,
    FALCON_7B,
    FALCON_40B,
    FALCON_11B,
    PHI_FUSED_GGUF,
    PHI,
)
