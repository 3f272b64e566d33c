"""Dense decoders of recent years: Llama with other norms, activations, biases, windows or positions."""

from dataclasses import replace

from zeropass.arch.families.llama import GEMMA2, LLAMA, MISTRAL, MROPE, OLMO2
from zeropass.arch.families.parts import (
    ATTENTION,
    ATTENTION_BIAS,
    BLK,
    CONFIG,
    FUSED_MLP,
    GGUF_GATE_UP,
    GGUF_LAYER_NORMS,
    GGUF_PAIRED,
    GGUF_POST_NORMS,
    GGUF_QK_NORMS,
    GGUF_TENSORS,
    GGUF_UP_DOWN,
    GRANITE_FACTORS,
    GRANITE_GGUF_FACTORS,
    GROWTH,
    HEAD_BIASES,
    HF_LAYOUT,
    LAYER,
    LAYER_NORM_KEYS,
    LINEAR_BIASES,
    MLP,
    MLP_BIASES,
    NO_GATE,
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
    UP_DOWN_BIASES,
    WINDOWS,
    gguf,
)
from zeropass.arch.layout import Stored, fused_qkv, weight_and_bias

_UP_DOWN = {
    **weight_and_bias("key", LAYER + "mlp.up_proj"),
    **weight_and_bias("value", LAYER + "mlp.down_proj", transpose=True),
}
"""An MLP without a gate."""

_ONE_NORM = dict.fromkeys(("attn_norm", "ff_norm"), NORMS["attn_norm"])
"""The one norm of a parallel block."""

_LAYER_NORM = {**CONFIG, "eps": ("layer_norm_eps",)}

MINISTRAL = replace(MISTRAL, name="ministral", model_types=("ministral",))

_MINISTRAL3_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1e6,
    "factor": 16.0,
    "original_max_position_embeddings": 16384,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}
MINISTRAL3 = replace(
    MISTRAL,
    name="ministral3",
    model_types=("ministral3",),
    layouts=(
        replace(
            PLAIN_HF,
            config={**PLAIN_HF.config, **GROWTH},
            defaults={"head_dim": 128, "rope": _MINISTRAL3_ROPE},
        ),
        gguf(
            "mistral3",
            GGUF_PAIRED,
            keys={
                "growth": ("attention.temperature_scale",),
                "growth_length": ("rope.scaling.original_context_length",),
            },
            constants={"yarn_multiplied": 1},
        ),
    ),
)

_CWM_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 1e6,
    "factor": 16.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
CWM = replace(
    LLAMA,
    name="cwm",
    model_types=("cwm",),
    layouts=(replace(PLAIN_HF, constants={"global_every": 4}, defaults={"window": 8192, "rope": _CWM_ROPE}),),
)

EMU3 = replace(
    LLAMA, model_types=("emu3_text_model",), layouts=LLAMA.layouts[:1], config={**LLAMA.config, "rope_theta": 1e6}
)
IQUESTCODER = replace(LLAMA, name="iquestcoder", model_types=("iquestcoder",), layouts=LLAMA.layouts[:1])
INTERNLM3 = replace(IQUESTCODER, name="internlm3", model_types=("internlm3",))

_EXAONE = "h.{layer}."
EXAONE = replace(
    LLAMA,
    name="exaone",
    model_types=("exaone",),
    layouts=(
        replace(
            LLAMA.layouts[0],
            prefixes=("transformer.", ""),
            config={
                **CONFIG,
                "layers": ("num_layers", "num_hidden_layers"),
                "eps": ("layer_norm_epsilon", "rms_norm_eps"),
                "activation": ("activation_function", "hidden_act"),
            },
            tensors={
                "embedding": Stored("wte.weight"),
                "unembedding": OUTER["unembedding"],
                "final_norm": Stored("ln_f.weight"),
                "attn_norm": Stored(_EXAONE + "ln_1.weight"),
                "ff_norm": Stored(_EXAONE + "ln_2.weight"),
                **weight_and_bias("q", _EXAONE + "attn.attention.q_proj"),
                **weight_and_bias("k", _EXAONE + "attn.attention.k_proj"),
                **weight_and_bias("v", _EXAONE + "attn.attention.v_proj"),
                **weight_and_bias("o", _EXAONE + "attn.attention.out_proj", transpose=True),
                **weight_and_bias("gate", _EXAONE + "mlp.c_fc_0"),
                **weight_and_bias("up", _EXAONE + "mlp.c_fc_1"),
                **weight_and_bias("value", _EXAONE + "mlp.c_proj", transpose=True),
            },
            unread=(r"h\.\d+\.attn\.attention\.rotary\.inv_freq",),
        ),
        gguf("exaone", without=LINEAR_BIASES, optional=()),
    ),
    config={"activation": "silu", "rope_theta": 500000.0},
)

_HUNYUAN_NORMS = {
    "q_norm": Stored(LAYER + "self_attn.query_layernorm.weight"),
    "k_norm": Stored(LAYER + "self_attn.key_layernorm.weight"),
}
_HUNYUAN_KEYS = (
    r"add_classification_head|class_num|dense_list|pool_type|cla_share_factor|attention_head_dim|org_vocab_size",
    r"(im_start|im_end|im_newline|text_start|text_end|pad|mask_init)_id",
)
HUNYUAN_DENSE = replace(
    LLAMA,
    name="hunyuan_v1_dense",
    model_types=("hunyuan_v1_dense",),
    qk_norm="head",
    qk_norm_behind=True,
    layouts=(
        replace(
            HF_LAYOUT,
            tensors={**HF_LAYOUT.tensors, **_HUNYUAN_NORMS},
            constants={"ntk_alpha": True},
            harmless=_HUNYUAN_KEYS,
        ),
        gguf("hunyuan-dense", GGUF_QK_NORMS),  # with the stretched base
    ),
    when={"use_qk_norm": (True, None), "use_cla": (False, None), "norm_type": ("rms", None)},
)

NANOCHAT = replace(
    LLAMA,
    name="nanochat",
    model_types=("nanochat",),
    ff_roles=("key", "value"),
    qk_norm="head",
    qk_norm_behind=True,
    turned_back=True,
    embed_normed=True,
    layouts=(
        replace(
            HF_LAYOUT,
            config={**CONFIG, "logit_cap": ("final_logit_softcapping",)},
            tensors={
                "embedding": OUTER["embedding"],
                "unembedding": OUTER["unembedding"],
                **ATTENTION,
                "key": Stored(LAYER + "mlp.fc1.weight"),
                "value": Stored(LAYER + "mlp.fc2.weight", transpose=True),
            },
            defaults={"logit_cap": 15.0},
        ),
    ),
    config={"activation": "relu2"},
)

_APERTUS_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 12e6,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_XIELU = LAYER + "mlp.act_fn."
_APERTUS_GGUF = {
    "key": GGUF_UP_DOWN["key"],
    "xielu_above": Stored(BLK + "xielu.alpha_p"),
    "xielu_below": Stored(BLK + "xielu.alpha_n"),
    "xielu_slope": Stored(BLK + "xielu.beta"),
    "xielu_bound": Stored(BLK + "xielu.eps"),
}
APERTUS = replace(
    LLAMA,
    name="apertus",
    model_types=("apertus",),
    ff_roles=("key", "value"),
    qk_norm="head",
    layouts=(
        replace(
            HF_LAYOUT,
            tensors={
                **OUTER,
                "attn_norm": Stored(LAYER + "attention_layernorm.weight"),
                "ff_norm": Stored(LAYER + "feedforward_layernorm.weight"),
                **ATTENTION,
                **QK_NORMS,
                "key": _UP_DOWN["key"],
                "value": _UP_DOWN["value"],
                "xielu_above": Stored(_XIELU + "alpha_p"),
                "xielu_below": Stored(_XIELU + "alpha_n"),
                "xielu_slope": Stored(_XIELU + "beta"),
                "xielu_bound": Stored(_XIELU + "eps"),
            },
            defaults={"rope": _APERTUS_ROPE},
        ),
        gguf("apertus", {**GGUF_QK_NORMS, **_APERTUS_GGUF}, without=(*LINEAR_BIASES, *NO_GATE), optional=()),
    ),
    config={"activation": "xielu", "rope_theta": 12e6},
    when={"hidden_act": ("xielu", None), "qk_norm": (True, None), "post_norm": (False, None)},
)

PERSIMMON = replace(
    LLAMA,
    name="persimmon",
    model_types=("persimmon",),
    norm="layer",
    ff_roles=("key", "value"),
    qk_norm="head",
    qk_norm_kind="layer",
    layouts=(
        replace(
            HF_LAYOUT,
            optional=("unembedding",),
            switches={},
            config={**_LAYER_NORM, **ROTARY_SHARE, "kv_heads": CONFIG["heads"]},
            tensors={
                **OUTER,
                **SHIFTED_NORMS,
                **weight_and_bias("final_norm", "final_layernorm"),
                **fused_qkv(LAYER + "self_attn.query_key_value", "grouped"),
                **weight_and_bias("o", LAYER + "self_attn.dense", transpose=True),
                **weight_and_bias("q_norm", LAYER + "self_attn.q_layernorm"),
                **weight_and_bias("k_norm", LAYER + "self_attn.k_layernorm"),
                **weight_and_bias("key", LAYER + "mlp.dense_h_to_4h"),
                **weight_and_bias("value", LAYER + "mlp.dense_4h_to_h", transpose=True),
            },
        ),
    ),
    config={"activation": "relu2", "rotary_share": 0.5},
    when={"qk_layernorm": (True, None)},
)

SEED_OSS = replace(
    LLAMA,
    name="seed_oss",
    model_types=("seed_oss",),
    layouts=(
        replace(
            LLAMA.layouts[0],
            switches={
                "attention_bias": (QKV_BIASES, True),
                "attention_out_bias": (("o_bias",), False),
                "mlp_bias": (MLP_BIASES, False),
            },
        ),
        gguf("seed_oss", {"ff_norm": Stored(BLK + "post_attention_norm.weight")}),
    ),
)

SMOLLM3 = replace(
    LLAMA,
    name="smollm3",
    model_types=("smollm3",),
    tied_by_default=True,
    layouts=(
        replace(
            LLAMA.layouts[0],
            config={
                **CONFIG,
                **WINDOWS,
                "rotated_layers": ("no_rope_layers",),  # a one, in spite of the name, for a layer with rotary positions
                "unrotated_every": ("no_rope_layer_interval",),
            },
            defaults={"unrotated_every": 4},
        ),
        gguf("smollm3", GGUF_PAIRED, constants={"unrotated_every": 4}),  # n_no_rope_layer_step of llama.cpp
    ),
    config={"activation": "silu", "window_used": False, "window_from": 28, "rope_theta": 2e6},
)

ERNIE4_5 = replace(
    LLAMA,
    name="ernie4_5",
    model_types=("ernie4_5",),
    tied_by_default=True,
    layouts=(
        replace(
            LLAMA.layouts[0],
            switches={"use_bias": (LINEAR_BIASES, False)},
            tensors={**LLAMA.layouts[0].tensors, **PAIRED},
        ),
        gguf("ernie4_5", GGUF_PAIRED),
    ),
    config={"activation": "silu", "rope_theta": 500000.0},
)

HELIUM = replace(
    LLAMA,
    name="helium",
    model_types=("helium",),
    layouts=(
        replace(
            HF_LAYOUT,
            switches={"attention_bias": (QKV_BIASES, False)},
            tensors={**OUTER, **NORMS, **QKV_BIASED_ATTENTION, **MLP, **PAIRED},
            optional=("unembedding", *QKV_BIASES),
        ),
    ),
    config={"activation": "silu", "rope_theta": 100000.0, "head_dim": 128},
)

VAULTGEMMA = replace(
    GEMMA2,
    name="vaultgemma",
    model_types=("vaultgemma",),
    layouts=(
        replace(
            GEMMA2.layouts[0],
            tensors={
                name: stored for name, stored in GEMMA2.layouts[0].tensors.items() if not name.endswith("_post_norm")
            },
        ),
    ),
)

OLMO3 = replace(
    OLMO2,
    name="olmo3",
    model_types=("olmo3",),
    layouts=(
        replace(
            OLMO2.layouts[0],
            config={**CONFIG, **WINDOWS, "local_rope_theta": ("rope_theta",)},  # layers with a window are not rescaled
            constants={"local_every": 4},
            defaults={"window": 4096},
        ),
    ),
    config={**OLMO2.config, "rope_theta": 500000.0, "local_rope_theta": 500000.0},
)

EXAONE4 = replace(
    LLAMA,
    name="exaone4",
    model_types=("exaone4",),
    norm_place="out",
    qk_norm="head",
    layouts=(
        replace(
            HF_LAYOUT,
            optional=("unembedding",),
            switches={},
            config={**CONFIG, **WINDOWS, "local_every": ("sliding_window_pattern",)},
            tensors={**OUTER, **NORMS_BEHIND, **PLAIN_ATTENTION, **QK_NORMS, **MLP},
            constants={"local_every": 4, "only_local_rotated": True},
            defaults={"window": 4096},
        ),
        gguf(
            "exaone4",
            {**GGUF_POST_NORMS, **GGUF_QK_NORMS},
            constants={"local_every": 4, "only_local_rotated": True},
            without=("attn_norm", "ff_norm"),
        ),
    ),
)

GLM = replace(
    LLAMA,
    name="glm",
    model_types=("glm",),
    layouts=(
        replace(
            HF_LAYOUT,
            optional=("unembedding", *QKV_BIASES),
            switches={"attention_bias": (QKV_BIASES, False)},
            config={**CONFIG, **ROTARY_SHARE},
            tensors={
                **OUTER,
                **NORMS,
                **QKV_BIASED_ATTENTION,
                **PAIRED,
                **FUSED_MLP,
            },
        ),
    ),
    config={"activation": "silu", "rotary_share": 0.5},
)
_WITHOUT_OUTER_BIASES = ("o_bias", *MLP_BIASES, "rope_factors")
CHATGLM = replace(
    GLM, layouts=(gguf("chatglm", {**GGUF_PAIRED, **GGUF_GATE_UP}, without=_WITHOUT_OUTER_BIASES, optional=QKV_BIASES),)
)
_CHATGLM_FUSED = {
    what: replace(stored, paired_rows=what in GGUF_PAIRED)
    for what, stored in fused_qkv(BLK + "attn_qkv", "stacked").items()
}
CHATGLM_FUSED = replace(  # as the converter makes them of ChatGLM's own files
    GLM,
    layouts=(
        replace(
            gguf(
                "chatglm",
                {**_CHATGLM_FUSED, **GGUF_GATE_UP},
                without=_WITHOUT_OUTER_BIASES,
                optional=QKV_BIASES,
            ),
            only_with="blk.0.attn_qkv.weight",
        ),
    ),
)
GLM4 = replace(
    GLM,
    name="glm4",
    model_types=("glm4",),
    layouts=(
        replace(
            GLM.layouts[0],
            tensors={
                **GLM.layouts[0].tensors,
                "attn_post_norm": Stored(LAYER + "post_self_attn_layernorm.weight"),
                "ff_post_norm": Stored(LAYER + "post_mlp_layernorm.weight"),
            },
        ),
        gguf("glm4", {**GGUF_PAIRED, **GGUF_GATE_UP, **GGUF_POST_NORMS}),
    ),
    when={"glm4.rope.dimension_sections": (None,)},  # then Glm4Model of the converter reorders queries and keys
)

_GLM4V_HF = replace(
    GLM4.layouts[0],
    optional=("unembedding",),
    switches={},
    config={name: keys for name, keys in GLM4.layouts[0].config.items() if name != "head_dim"},
)
GLM4V = replace(
    GLM4,
    model_types=("glm4v_text",),
    layouts=(_GLM4V_HF,),
    config={"activation": "silu"},
    when={},
    notes=MROPE,
)
GLM_OCR = replace(
    GLM4V,
    model_types=("glm_ocr_text",),
    layouts=(
        replace(
            _GLM4V_HF,
            config={**GLM4.layouts[0].config, "beyond": ("num_nextn_predict_layers",)},
            tensors={name: stored for name, stored in _GLM4V_HF.tensors.items() if name not in QKV_BIASES},
        ),
    ),
)

GRANITE = replace(
    LLAMA,
    name="granite",
    model_types=("granite",),
    layouts=(
        replace(
            LLAMA.layouts[0],
            config={**CONFIG, **GRANITE_FACTORS, "logit_divisor": ("logits_scaling",)},
        ),
        gguf(
            "granite",
            GGUF_PAIRED,
            keys=GRANITE_GGUF_FACTORS,
            constants={"attention_scale": None},  # 1/√d_h where no key says otherwise
        ),
    ),
    config={"activation": "silu", "attention_scale": 1.0},
    when={"granite.rope.scaling.finetuned": (True, None)},  # False turns the rotary positions off (llama_model_granite)
)
GRANITE_DOCLING = replace(
    GRANITE,
    model_types=("granite_docling_text",),
    tied_by_default=True,
    layouts=GRANITE.layouts[:1],
    config={
        "activation": "silu",
        "attention_scale": 0.015625,
        "embed_scale": 12.0,
        "residual_scale": 0.263,
        "logit_divisor": 4.0,
    },
    when={},
)
_HYPERCLOVAX_NORMS = {
    "attn_post_norm": Stored(LAYER + "post_norm1.weight"),
    "ff_post_norm": Stored(LAYER + "post_norm2.weight"),
}
HYPERCLOVAX = replace(
    GRANITE,
    name="hyperclovax",
    model_types=("hyperclovax",),
    layouts=(
        replace(
            GRANITE.layouts[0],
            config={**CONFIG, **GRANITE_FACTORS, "logit_scale": ("logits_scaling",)},
            optional=(*GRANITE.layouts[0].optional, *_HYPERCLOVAX_NORMS),
            switches={**GRANITE.layouts[0].switches, "use_post_norm": (tuple(_HYPERCLOVAX_NORMS), True)},
            tensors={**GRANITE.layouts[0].tensors, **_HYPERCLOVAX_NORMS},
        ),
    ),
    config={"activation": "silu"},
)

_COHERE_HF = replace(
    HF_LAYOUT,
    config={**_LAYER_NORM, "logit_scale": ("logit_scale",)},
    tensors={**OUTER, **_ONE_NORM, **ATTENTION, **PAIRED, **MLP},
    defaults={"logit_scale": 0.0625},
)
COHERE = replace(
    LLAMA,
    name="cohere",
    model_types=("cohere",),
    norm="layer",
    parallel=True,
    tied_by_default=True,
    layouts=(
        _COHERE_HF,
        gguf(
            "command-r",
            {**GGUF_PAIRED, "ff_norm": GGUF_TENSORS["attn_norm"]},
            keys={**LAYER_NORM_KEYS, "logit_scale": ("logit_scale",)},
        ),
    ),
    config={"activation": "silu", "rope_theta": 500000.0},
    when={"use_qk_norm": (False, None)},
)
COHERE2 = replace(
    COHERE,
    name="cohere2",
    model_types=("cohere2",),
    layouts=(
        replace(
            _COHERE_HF,
            config={
                **_COHERE_HF.config,
                **WINDOWS,
                "local_every": ("sliding_window_pattern", "_sliding_window_pattern"),
            },
            constants={"local_every": 4, "only_local_rotated": "always"},
            defaults={"logit_scale": 0.0625, "window": 4096},
        ),
        gguf(
            "cohere2",
            {**GGUF_PAIRED, "ff_norm": GGUF_TENSORS["attn_norm"]},
            keys={**LAYER_NORM_KEYS, "logit_scale": ("logit_scale",)},
            constants={"local_every": 4, "only_local_rotated": True},
        ),
    ),
    config={"activation": "silu"},
    when={},
)

ARCEE = replace(
    LLAMA,
    name="arcee",
    model_types=("arcee",),
    ff_roles=("key", "value"),
    layouts=(
        replace(
            HF_LAYOUT,
            optional=("unembedding", *HEAD_BIASES, *UP_DOWN_BIASES),
            switches={**ATTENTION_BIAS, "mlp_bias": (UP_DOWN_BIASES, False)},
            tensors={**OUTER, **NORMS, **ATTENTION, **_UP_DOWN},
        ),
        gguf("arcee", {**GGUF_PAIRED, **GGUF_UP_DOWN}, without=NO_GATE),
    ),
    config={"activation": "relu2"},
)

NEMOTRON = replace(
    ARCEE,
    name="nemotron",
    model_types=("nemotron",),
    norm="layer",
    layouts=(
        replace(
            ARCEE.layouts[0],
            config={**CONFIG, **ROTARY_SHARE, "eps": ("norm_eps",)},
            tensors={**OUTER, **SHIFTED_NORMS, **ATTENTION, **_UP_DOWN},
            gain_offset=1.0,
        ),
        replace(  # NemotronModel of the converter adds one to the gains
            gguf("nemotron", {**GGUF_LAYER_NORMS, **GGUF_UP_DOWN}, keys=LAYER_NORM_KEYS, without=NO_GATE),
            harmless=(r"attention\.layer_norm_rms_epsilon",),  # the same number, written for any configuration
        ),
    ),
    config={"activation": "relu2", "rotary_share": 0.5},
)

JAIS2 = replace(
    ARCEE,
    name="jais2",
    model_types=("jais2",),
    norm="layer",
    layouts=(
        replace(
            ARCEE.layouts[0],
            switches={
                "attention_bias": (HEAD_BIASES, True),
                "mlp_bias": (UP_DOWN_BIASES, True),
            },
            config=_LAYER_NORM,
            tensors={**OUTER, **SHIFTED_NORMS, **ATTENTION, **_UP_DOWN},
        ),
        gguf("jais2", {**GGUF_LAYER_NORMS, **GGUF_UP_DOWN}, keys=LAYER_NORM_KEYS, without=NO_GATE),
    ),
)

STARCODER2 = replace(
    LLAMA,
    name="starcoder2",
    model_types=("starcoder2",),
    norm="layer",
    ff_roles=("key", "value"),
    tied_by_default=True,
    layouts=(
        replace(
            HF_LAYOUT,
            optional=("unembedding", *HEAD_BIASES, *UP_DOWN_BIASES),
            switches={"use_bias": ((*HEAD_BIASES, *UP_DOWN_BIASES), True)},
            config={**CONFIG, **WINDOWS, "eps": ("norm_epsilon",)},
            tensors={
                **OUTER,
                **SHIFTED_NORMS,
                **ATTENTION,
                **weight_and_bias("key", LAYER + "mlp.c_fc"),
                **weight_and_bias("value", LAYER + "mlp.c_proj", transpose=True),
            },
        ),
        gguf("starcoder2", {**GGUF_LAYER_NORMS, **GGUF_UP_DOWN}, keys=LAYER_NORM_KEYS, without=NO_GATE),
    ),
    config={"activation": "gelu_pytorch_tanh"},
)

_STABLELM_HF = replace(
    HF_LAYOUT,
    optional=("unembedding", *QKV_BIASES),
    switches={"use_qkv_bias": (QKV_BIASES, False)},
    config={**_LAYER_NORM, **ROTARY_SHARE},
    tensors={
        **OUTER,
        **SHIFTED_NORMS,
        **QKV_BIASED_ATTENTION,
        **MLP,
    },
)
_STABLELM_GGUF = replace(
    gguf("stablelm", GGUF_LAYER_NORMS, keys=LAYER_NORM_KEYS),
    only_with="blk.0.ffn_norm.weight",
    harmless=("use_parallel_residual",),  # some files have it wrong: llama.cpp goes by the tensor
)
STABLELM = replace(
    LLAMA,
    name="stablelm",
    model_types=("stablelm",),
    norm="layer",
    layouts=(_STABLELM_HF, _STABLELM_GGUF),
    config={"activation": "silu", "rotary_share": 0.25},
    when={"use_parallel_residual": (False, None), "qk_layernorm": (False, None)},
)
STABLELM_PARALLEL = replace(
    STABLELM,
    parallel=True,
    layouts=(
        replace(
            _STABLELM_HF,
            tensors={
                **_STABLELM_HF.tensors,
                **weight_and_bias("ff_norm", LAYER + "input_layernorm"),
            },
        ),
    ),
    when={"use_parallel_residual": (True,), "qk_layernorm": (False, None)},
)
STABLELM_PARALLEL_GGUF = replace(
    STABLELM_PARALLEL,
    layouts=(
        replace(
            _STABLELM_GGUF,
            tensors={**_STABLELM_GGUF.tensors, **weight_and_bias("ff_norm", BLK + "attn_norm")},
            only_with="",
        ),
    ),
    when={},
)

EUROBERT = replace(
    LLAMA,
    name="eurobert",
    model_types=("eurobert",),
    causal=False,
    layouts=(
        replace(
            LLAMA.layouts[0],
            optional=(*LLAMA.layouts[0].optional, "unembedding_bias"),
            tensors={**LLAMA.layouts[0].tensors, **weight_and_bias("unembedding", "^lm_head")},
        ),
        gguf("eurobert", without=("unembedding",)),  # the converter leaves out the head
    ),
    when={"eurobert.attention.causal": (False, None)},
)

FAMILIES = (
    MINISTRAL,
    MINISTRAL3,
    CWM,
    EMU3,
    IQUESTCODER,
    INTERNLM3,
    EXAONE,
    HUNYUAN_DENSE,
    NANOCHAT,
    APERTUS,
    PERSIMMON,
    SEED_OSS,
    SMOLLM3,
    ERNIE4_5,
    HELIUM,
    VAULTGEMMA,
    OLMO3,
    EXAONE4,
    GLM,
    CHATGLM,
    CHATGLM_FUSED,
    GLM4,
    GLM4V,
    GLM_OCR,
    GRANITE,
    GRANITE_DOCLING,
    HYPERCLOVAX,
    COHERE,
    COHERE2,
    ARCEE,
    NEMOTRON,
    JAIS2,
    STARCODER2,
    STABLELM,
    STABLELM_PARALLEL,
    STABLELM_PARALLEL_GGUF,
    EUROBERT,
)
