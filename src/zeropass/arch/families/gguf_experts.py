"""Models with experts as llama.cpp stores them: a file stacks the experts, and its reader gives them one by one."""

from collections.abc import Collection, Mapping
from dataclasses import replace

from zeropass.arch.families.experts import (
    DOTS1,
    ERNIE4_5_MOE,
    GLM4_MOE,
    GLM4_MOE_QK,
    GPT_OSS,
    GRANITEMOE,
    GRANITEMOE_SHARED,
    HUNYUAN_MOE,
    MINIMAX_M2,
    MIXTRAL,
    OLMOE,
    PHIMOE,
    QWEN2_MOE,
    QWEN3_MOE,
    QWEN3_VL_MOE,
    routed,
    share,
)
from zeropass.arch.families.latent import DEEPSEEK_V3, GLM_MOE_DSA, MINICPM3, MISTRAL4
from zeropass.arch.families.llama import LLAMA, PHI3
from zeropass.arch.families.parts import (
    BLK,
    GGUF_LAYER_NORMS,
    GGUF_PAIRED,
    GGUF_POST_NORMS,
    GGUF_QK_NORMS,
    GGUF_TENSORS,
    GRANITE_GGUF_FACTORS,
    gguf,
)
from zeropass.arch.families.sigmoid_experts import AFMOE, EXAONE_MOE, LLAMA4, LLAMA4_BARE
from zeropass.arch.layout import Layout, Stored, weight_and_bias
from zeropass.arch.spec import Family

_GATED = {role: GGUF_TENSORS[role] for role in ("gate", "up", "value")}
_ROUTER = {"router": Stored(BLK + "ffn_gate_inp.weight")}
_EXPERTS = {
    **_ROUTER,
    "gate": Stored(BLK + "ffn_gate.{expert}.weight"),
    "up": Stored(BLK + "ffn_up.{expert}.weight"),
    "value": Stored(BLK + "ffn_down.{expert}.weight", transpose=True),
}
_SHARED = {
    "gate": Stored(BLK + "ffn_gate_shexp.weight"),
    "up": Stored(BLK + "ffn_up_shexp.weight"),
    "value": Stored(BLK + "ffn_down_shexp.weight", transpose=True),
}
_CORRECTION = {"router_correction": Stored(BLK + "exp_probs_b.bias")}
_SOME_DENSE = {**routed({**_EXPERTS, **_CORRECTION}), **share("dense", _GATED), **share("shared", _SHARED)}
"""Layers with experts, one of them shared, and layers without."""

_KEYS = {"experts": ("expert_count",), "experts_used": ("expert_used_count",)}
_OWN_SIZE = {**_KEYS, "neurons": ("expert_feed_forward_length",)}
"""The keys where experts are smaller than the MLP of a layer without them, whose size is ``feed_forward_length``."""

_SIGMOID_KEYS = {
    **_OWN_SIZE,
    "dense_neurons": ("feed_forward_length",),
    "dense_first": ("leading_dense_block_count",),
    "shared_experts": ("expert_shared_count",),
    "router_normed": ("expert_weights_norm",),
    "router_scale": ("expert_weights_scale",),
    "router_groups": ("expert_group_count",),
    "router_groups_used": ("expert_group_used_count",),
}
_NO_BIASES = ("gate_bias", "up_bias", "value_bias")
_SIGMOID, _SOFTMAX = 2, 1
"""The functions of a router's logits, as llama.cpp numbers them."""


def _layout(
    name: str,
    tensors: Mapping[str, Stored],
    keys: Mapping[str, tuple[str, ...]],
    constants: Mapping[str, object] | None = None,
    harmless: tuple[str, ...] = (),
    only_with: str = "",
    without: Collection[str] = (),
) -> Layout:
    """Return the layout of a model with experts; arguments as in `gguf`, `harmless` and `only_with` as in `Layout`."""
    return replace(
        gguf(name, tensors, keys, without=(*_NO_BIASES, *without), constants=constants),
        harmless=harmless,
        only_with=only_with,
    )


MIXTRAL_GGUF = replace(
    MIXTRAL,
    model_types=("llama",),
    layouts=(_layout("llama", {**GGUF_PAIRED, **_EXPERTS}, _KEYS, only_with="blk.0.ffn_gate_inp.weight"),),
)
_DENSE_SIZE = ("feed_forward_length",)
"""The size of the MLP of layers without experts, of which these files have none."""

QWEN3_MOE_GGUF = replace(
    QWEN3_MOE,
    layouts=(
        _layout(
            "qwen3moe",
            {**GGUF_QK_NORMS, **_EXPERTS},
            _OWN_SIZE,
            constants={"router_normed": True},  # llama.cpp knows no other
            harmless=_DENSE_SIZE,
        ),
    ),
)
QWEN3_VL_MOE_GGUF = replace(
    QWEN3_VL_MOE,
    layouts=(_layout("qwen3vlmoe", {**GGUF_QK_NORMS, **_EXPERTS}, _OWN_SIZE, harmless=_DENSE_SIZE),),
)
QWEN2_MOE_GGUF = replace(
    QWEN2_MOE,
    when={},
    layouts=(
        _layout(
            "qwen2moe",
            {
                **_EXPERTS,
                **share("shared", _SHARED),
                "shared_router": Stored(BLK + "ffn_gate_inp_shexp.weight", layers="routed"),
            },
            {**_OWN_SIZE, "shared_neurons": ("expert_shared_feed_forward_length",)},
            constants={"router_normed": False},  # llama.cpp knows no other
            harmless=_DENSE_SIZE,
        ),
    ),
)
OLMOE_GGUF = replace(OLMOE, layouts=(_layout("olmoe", {**GGUF_QK_NORMS, **_EXPERTS}, _KEYS),))

DOTS1_GGUF = replace(
    DOTS1,
    when={"dots1.expert_gating_func": (_SIGMOID,)},
    layouts=(_layout("dots1", {**GGUF_QK_NORMS, **_SOME_DENSE}, _SIGMOID_KEYS),),
)

_GLM4_MOE = _layout(
    "glm4moe",
    {**_SOME_DENSE, "ff_norm": Stored(BLK + "post_attention_norm.weight")},
    {**_SIGMOID_KEYS, "beyond": ("nextn_predict_layers",)},
    constants={"beyond_counted": True, "beyond": 0},
)
GLM4_MOE_GGUF = replace(GLM4_MOE, when={"glm4moe.expert_gating_func": (_SIGMOID,)}, layouts=(_GLM4_MOE,))
GLM4_MOE_QK_GGUF = replace(
    GLM4_MOE_QK,
    when=GLM4_MOE_GGUF.when,
    layouts=(
        replace(
            _GLM4_MOE,
            tensors={**_GLM4_MOE.tensors, **GGUF_QK_NORMS},
            only_with="blk.0.attn_q_norm.weight",
        ),
    ),
)

MINIMAX_M2_GGUF = replace(
    MINIMAX_M2,
    when={"minimax-m2.expert_gating_func": (_SIGMOID,)},
    layouts=(
        _layout(
            "minimax-m2",
            {**GGUF_QK_NORMS, **_EXPERTS, **_CORRECTION},
            _OWN_SIZE,
            harmless=_DENSE_SIZE,
        ),
    ),
)
ERNIE4_5_MOE_GGUF = replace(
    ERNIE4_5_MOE,
    when={},
    layouts=(
        _layout(
            "ernie4_5-moe",
            {**GGUF_PAIRED, **_SOME_DENSE},
            {**_SIGMOID_KEYS, "routed_every": ("interleave_moe_layer_step",)},
            # The size of the shared expert is stated as a quotient of other sizes; the tensors show it.
            harmless=("expert_shared_feed_forward_length",),
        ),
    ),
)

_NO_SCALE = {"attention_scale": None}  # then it is the usual one
_GRANITE = _layout("granitemoe", {**GGUF_PAIRED, **_EXPERTS}, {**_KEYS, **GRANITE_GGUF_FACTORS}, _NO_SCALE)
GRANITEMOE_GGUF = replace(
    GRANITEMOE,
    when={"granitemoe.expert_shared_feed_forward_length": (None,), "granitemoe.rope.scaling.finetuned": (None, True)},
    layouts=(_GRANITE,),
)
GRANITEMOE_SHARED_GGUF = replace(
    GRANITEMOE_SHARED,
    model_types=("granitemoe",),
    when={"granitemoe.rope.scaling.finetuned": (None, True)},
    layouts=(
        _layout(
            "granitemoe",
            {**GGUF_PAIRED, **_EXPERTS, **share("shared", _SHARED)},
            {**_KEYS, **GRANITE_GGUF_FACTORS, "shared_neurons": ("expert_shared_feed_forward_length",)},
            _NO_SCALE,
            only_with="blk.0.ffn_up_shexp.weight",
        ),
    ),
)

PHIMOE_GGUF = replace(
    PHIMOE,
    layouts=(
        replace(
            _layout("phimoe", {**GGUF_LAYER_NORMS, **_EXPERTS, **weight_and_bias("unembedding", "output")}, _KEYS),
            unread=PHI3.layouts[1].unread,
        ),
    ),
)
GPT_OSS_GGUF = replace(
    GPT_OSS,
    when={},
    layouts=(
        replace(
            _layout(
                "gpt-oss",
                {
                    **weight_and_bias("router", BLK + "ffn_gate_inp"),
                    **_EXPERTS,
                    "gate_bias": Stored(BLK + "ffn_gate_exps.bias[{expert}]"),
                    "up_bias": Stored(BLK + "ffn_up_exps.bias[{expert}]"),
                    "value_bias": Stored(BLK + "ffn_down_exps.bias[{expert}]"),
                    "ff_norm": Stored(BLK + "post_attention_norm.weight"),
                    "sinks": Stored(BLK + "attn_sinks.weight"),
                },
                _OWN_SIZE,
                constants={"local_every": 2},
                harmless=_DENSE_SIZE,
            ),
            optional=("unembedding", "rope_factors"),
        ),
    ),
)

AFMOE_GGUF = replace(
    AFMOE,
    when={"afmoe.expert_gating_func": (_SIGMOID, None)},
    layouts=(
        _layout(
            "afmoe",
            {**GGUF_QK_NORMS, **GGUF_POST_NORMS, **_SOME_DENSE, "g": Stored(BLK + "attn_gate.weight")},
            {**_SIGMOID_KEYS, "unrotated_every": ("attention.sliding_window_pattern",)},
            # llama.cpp always scales the embedding, and takes each fourth layer for one without window and rotation
            constants={"embed_scaled": True, "local_every": 4, "unrotated_every": 4, "router_normed": False},
        ),
    ),
)

EXAONE_MOE_GGUF = replace(
    EXAONE_MOE,
    when={"exaone-moe.expert_gating_func": (_SIGMOID,)},
    layouts=(
        _layout(
            "exaone-moe",
            {**GGUF_QK_NORMS, **_SOME_DENSE},
            {**_SIGMOID_KEYS, "beyond": ("nextn_predict_layers",)},
            constants={"beyond_counted": True, "kinds_required": True, "only_local_rotated": "always"},
            harmless=("expert_shared_feed_forward_length",),
        ),
    ),
)
HUNYUAN_MOE_GGUF = replace(
    HUNYUAN_MOE,
    when={},
    layouts=(
        _layout(
            "hunyuan-moe",
            {**GGUF_QK_NORMS, **_EXPERTS, **share("shared", _SHARED)},
            {**_OWN_SIZE, "shared_neurons": ("expert_shared_feed_forward_length",)},
            harmless=(*_DENSE_SIZE, "expert_shared_count"),
        ),
    ),
)

_LATENT_KEYS = {
    **_SIGMOID_KEYS,
    "kv_heads": ("attention.head_count",),  # files count the one latent that all heads share
    "head_dim": (),
    "joint": ("attention.key_length_mla",),
    "value_dim": ("attention.value_length_mla",),
    "q_latent": ("attention.q_lora_rank",),
    "kv_latent": ("attention.kv_lora_rank",),
}
_DIRECT_QUERIES = {"q": Stored(BLK + "attn_q.weight", paired_rows=True, rotary_last=True)}
_LATENT_QUERIES = {
    "q_up": Stored(BLK + "attn_q_b.weight", paired_rows=True, rotary_last=True),
    "q_latent": Stored(BLK + "attn_q_a.weight"),
    "q_latent_norm": Stored(BLK + "attn_q_a_norm.weight"),
}
_LATENT_KV = {
    "kv_latent": Stored(BLK + "attn_kv_a_mqa.weight", fused="latent"),
    "kv_latent_norm": Stored(BLK + "attn_kv_a_norm.weight"),
    "k_rotary": Stored(BLK + "attn_kv_a_mqa.weight", fused="latent", paired_rows=True),
    "k_up": Stored(BLK + "attn_k_b.weight"),
    "v_up": Stored(BLK + "attn_v_b.weight"),
}


_NOT_LATENT = ("q", "k", "v", "q_bias", "k_bias", "v_bias", "o_bias")
_LATENT_CONSTANTS = {"latent_eps": 1e-6, "router_normed": False, "rotary_share": None}
_OF_ONE_LATENT = r"attention\.(head_count_kv|key_length)"


def _deepseek2(queries: Mapping[str, Stored], only_with: str = "") -> Family:
    """Return the record of files of DeepSeek-V3 and of models built like it."""
    layout = _layout(
        "deepseek2",
        {**queries, **_LATENT_KV, **_SOME_DENSE},
        _LATENT_KEYS,
        constants=_LATENT_CONSTANTS,
        harmless=(_OF_ONE_LATENT,),
        only_with=only_with,
        without=_NOT_LATENT,
    )
    # what a silent configuration of Hugging Face stands for, a silent file does not
    values = {"activation": "silu", "router_sigmoid": True}
    when = {"deepseek2.expert_gating_func": (_SIGMOID,)}
    return replace(DEEPSEEK_V3, model_types=("deepseek2",), layouts=(layout,), config=values, when=when)


DEEPSEEK2 = _deepseek2(_LATENT_QUERIES, only_with="blk.0.attn_q_a.weight")
DEEPSEEK2_DIRECT = _deepseek2(_DIRECT_QUERIES)

GLM_DSA = replace(
    GLM_MOE_DSA,
    layouts=(
        replace(
            _layout(
                "glm-dsa",
                {**_LATENT_QUERIES, **_LATENT_KV, **_SOME_DENSE},
                {**_LATENT_KEYS, "beyond": ("nextn_predict_layers",), "indexed_keys": ("attention.indexer.top_k",)},
                constants={**_LATENT_CONSTANTS, "beyond_counted": True},
                harmless=(
                    _OF_ONE_LATENT,
                    r"attention\.indexer\.(head_count|key_length|types|top_k_frequency|skip_top_k_offset)",
                ),
                without=_NOT_LATENT,
            ),
            unread=(
                *DEEPSEEK2.layouts[0].unread,
                r"blk\.\d+\.indexer\.((proj|attn_k|attn_q_b)\.weight|k_norm\.(weight|bias))",
            ),
        ),
    ),
    config={"activation": "silu", "router_sigmoid": True},
    when={"glm-dsa.expert_gating_func": (_SIGMOID,)},
)

_JOINT = Stored(BLK + "ffn_gate_up.{expert}.weight", layers="routed")
_TENTH = 0.10000000149011612
"""A tenth as a float of 32 bits: for another ``mscale_all_dim`` than one, llama.cpp computes something of its own."""

MISTRAL4_GGUF = replace(
    MISTRAL4,
    layouts=(
        _layout(
            "mistral4",
            {
                **_LATENT_QUERIES,
                **_LATENT_KV,
                **{what: stored for what, stored in _SOME_DENSE.items() if what != "router_correction"},
                "gate": replace(_JOINT, part=(0, 2)),
                "up": replace(_JOINT, part=(1, 2)),
            },
            _LATENT_KEYS,
            constants=_LATENT_CONSTANTS,
            harmless=(_OF_ONE_LATENT,),
            without=_NOT_LATENT,
        ),
    ),
    config={"activation": "silu"},
    when={
        "mistral4.expert_gating_func": (_SOFTMAX, None),
        "mistral4.rope.scaling.type": ("yarn",),
        "mistral4.rope.scaling.yarn_log_multiplier": (_TENTH,),
    },
)

_EXPANDED = Stored(BLK + "attn_kv_b.weight", fused="expanded")
MINICPM3_GGUF = replace(
    MINICPM3,
    layouts=(
        replace(
            gguf(
                "minicpm3",
                {
                    **{what: replace(stored, paired_rows=False) for what, stored in _LATENT_QUERIES.items()},
                    **{what: replace(stored, paired_rows=False) for what, stored in _LATENT_KV.items()},
                    "k_up": _EXPANDED,
                    "v_up": _EXPANDED,
                },
                {
                    "head_dim": (),
                    "joint": ("attention.key_length",),
                    "q_latent": _LATENT_KEYS["q_latent"],
                    "kv_latent": _LATENT_KEYS["kv_latent"],
                },
                without=(*_NOT_LATENT, *_NO_BIASES),
                optional=(),
                # no key has these: llama.cpp knows one model
                constants={"values_fill_d": True, "latent_eps": 1e-6, "rotary_share": None}
                | {"embed_scale": 12, "residual_depth": 1.4, "logit_width": 256},
            ),
            unread=PHI3.layouts[1].unread,
        ),
    ),
    when={},
)

_LLAMA4 = _layout(
    "llama4",
    {**GGUF_PAIRED, **routed(_EXPERTS), **share("shared", _SHARED), **share("dense", _GATED)},
    {
        **_OWN_SIZE,
        **dict.fromkeys(("window", "layer_kinds", "local_every"), ()),
        "dense_neurons": ("feed_forward_length",),
        "shared_neurons": ("expert_feed_forward_length",),
        "routed_every": ("interleave_moe_layer_step",),
    },
    constants={  # all that llama.cpp knows (llama_model_llama4::load_arch_hparams)
        **{"window": 8192, "chunked": True, "only_rotated_local": True, "unrotated_every": 4},
        **{"growth": 0.1, "growth_length": 8192, "growth_first": 1, "only_unrotated_grow": True},
    },
)
_WINDOWED = {"llama4.attention.sliding_window": (None,), "llama4.attention.sliding_window_pattern": (None, 4)}
LLAMA4_GGUF = replace(
    LLAMA4,
    layouts=(_LLAMA4,),
    config={**LLAMA.config, "router_sigmoid": True},
    when={**_WINDOWED, "llama4.expert_count": (16,)},
)
LLAMA4_BARE_GGUF = replace(
    LLAMA4_BARE,
    layouts=(_LLAMA4,),
    config={**LLAMA.config, "router_sigmoid": True},
    when={**_WINDOWED, "llama4.expert_count": (128,)},
)

FAMILIES = (
    DEEPSEEK2,
    DEEPSEEK2_DIRECT,
    MIXTRAL_GGUF,
    QWEN3_MOE_GGUF,
    QWEN3_VL_MOE_GGUF,
    QWEN2_MOE_GGUF,
    OLMOE_GGUF,
    DOTS1_GGUF,
    GLM4_MOE_GGUF,
    GLM4_MOE_QK_GGUF,
    MINIMAX_M2_GGUF,
    ERNIE4_5_MOE_GGUF,
    GRANITEMOE_GGUF,
    GRANITEMOE_SHARED_GGUF,
    PHIMOE_GGUF,
    GPT_OSS_GGUF,
    AFMOE_GGUF,
    EXAONE_MOE_GGUF,
    HUNYUAN_MOE_GGUF,
    MINICPM3_GGUF,
    GLM_DSA,
    MISTRAL4_GGUF,
    LLAMA4_GGUF,
    LLAMA4_BARE_GGUF,
)
