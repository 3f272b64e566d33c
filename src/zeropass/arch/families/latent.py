"""Decoders with latent attention: keys and values, and mostly queries, are made of a narrow latent of the stream."""

from collections.abc import Mapping
from dataclasses import replace

from zeropass.arch.families.experts import CORRECTED, SIGMOID_CONFIG, STACKED_EXPERTS, routed
from zeropass.arch.families.llama import LLAMA
from zeropass.arch.families.parts import ATTENTION, CONFIG, GROWTH, HF_LAYOUT, LAYER, MLP, NORMS, OUTER, ROTARY_SHARE
from zeropass.arch.layout import Stored
from zeropass.arch.spec import Family

_SELF = LAYER + "self_attn"
_CONFIG = {
    "kv_heads": ("num_key_value_heads",),
    "head_dim": ("head_dim",),  # where it is stated, it is the width of the rotary part
    "plain": ("qk_nope_head_dim",),
    "rotary": ("qk_rope_head_dim",),
    "value_dim": ("v_head_dim",),
    "q_latent": ("q_lora_rank",),
    "kv_latent": ("kv_lora_rank",),
}


def _attention(paired: bool) -> dict[str, Stored]:
    """Return the tensors of latent attention; ``paired`` as ``paired_rows`` of `Stored`."""
    joint = Stored(f"{_SELF}.kv_a_proj_with_mqa.weight", fused="latent")
    expanded = Stored(f"{_SELF}.kv_b_proj.weight", fused="expanded")
    return {
        "q_up": Stored(f"{_SELF}.q_b_proj.weight", paired_rows=paired, rotary_last=True),
        "q_latent": Stored(f"{_SELF}.q_a_proj.weight"),
        "q_latent_norm": Stored(f"{_SELF}.q_a_layernorm.weight"),
        "kv_latent": joint,
        "kv_latent_norm": Stored(f"{_SELF}.kv_a_layernorm.weight"),
        "k_rotary": replace(joint, paired_rows=paired),
        "k_up": expanded,
        "v_up": expanded,
        "o": ATTENTION["o"],
    }


def _both(family: Family) -> tuple[Family, Family]:
    """Return the record of models whose queries are made of the stream itself, and that of those with a latent."""
    (layout,) = family.layouts
    tensors = {what: stored for what, stored in layout.tensors.items() if not what.startswith("q_")}
    direct = replace(layout.tensors["q_up"], name=f"{_SELF}.q_proj.weight")
    return (
        replace(
            family,
            layouts=(replace(layout, tensors={**tensors, "q": direct}),),
            when={**family.when, "q_lora_rank": (None,)},
        ),
        family,
    )


_WHEN: Mapping[str, tuple[object, ...]] = {"attention_bias": (False, None), "rope_interleave": (True, None)}
_HF = replace(
    HF_LAYOUT,
    optional=("unembedding",),
    switches={},
    config={**CONFIG, **_CONFIG},
    tensors={**OUTER, **NORMS, **_attention(paired=True), **MLP},
    defaults={"q_latent": 1536},
    constants={"latent_eps": 1e-6},  # transformers and the models' own code leave it at that, whatever rms_norm_eps is
    harmless=("qk_head_dim",),
)
_EXPERTS_CONFIG = {**SIGMOID_CONFIG, **_CONFIG}
DEEPSEEK_V3 = replace(
    LLAMA,
    name="deepseek_v3",
    model_types=("deepseek_v3", "kimi_k2"),  # transformers reads the latter as the former (Kimi_K25Config)
    layouts=(
        replace(
            _HF,
            config=_EXPERTS_CONFIG,
            tensors={**OUTER, **NORMS, **_attention(paired=True), **CORRECTED},
            harmless=(*_HF.harmless, "ep_size|seq_aux"),
        ),
    ),
    config={
        "activation": "silu",
        "router_sigmoid": True,
        "dense_first": 3,
        "beyond": 1,
        "shared_experts": 1,
        "router_normed": True,
        "router_scale": 2.5,
        "router_groups": 8,
        "router_groups_used": 4,
        "experts_used": 8,
    },
    when={
        **_WHEN,
        "scoring_func": ("sigmoid", None),
        "topk_method": ("noaux_tc", None),
        "moe_layer_freq": (1, None),
    },
)

_V2_CONFIG = {
    name: keys for name, keys in SIGMOID_CONFIG.items() if not name.startswith("router_") or name == "router_scale"
}
DEEPSEEK_V2 = replace(
    LLAMA,
    name="deepseek_v2",
    model_types=("deepseek_v2",),
    layouts=(
        replace(
            _HF,
            config={**_V2_CONFIG, **_CONFIG, "kv_heads": CONFIG["kv_heads"]},
            tensors={
                what: stored for what, stored in DEEPSEEK_V3.layouts[0].tensors.items() if what != "router_correction"
            },
            harmless=(*_HF.harmless, "ep_size|seq_aux|n_group|topk_group"),
        ),
    ),
    config={"activation": "silu", "shared_experts": 2},
    when={
        "attention_bias": (False, None),
        "mlp_bias": (False, None),
        "scoring_func": ("softmax", None),
        "topk_method": ("greedy", None),
        "norm_topk_prob": (False, None),
        "moe_layer_freq": (1, None),
    },
)
DEEPSEEK_V2_GROUPS = replace(
    DEEPSEEK_V2,
    layouts=(
        replace(
            DEEPSEEK_V2.layouts[0],
            config={
                **DEEPSEEK_V2.layouts[0].config,
                "router_groups": ("n_group",),
                "router_groups_used": ("topk_group",),
            },
            harmless=(*_HF.harmless, "ep_size|seq_aux"),
            constants={**_HF.constants, "router_group_best": 1},
        ),
    ),
    when={**DEEPSEEK_V2.when, "topk_method": ("group_limited_greedy",)},
)

GLM4_MOE_LITE = replace(
    DEEPSEEK_V3,
    name="glm4_moe_lite",
    model_types=("glm4_moe_lite",),
    layouts=(
        replace(
            DEEPSEEK_V3.layouts[0],
            config={
                **{name: keys for name, keys in SIGMOID_CONFIG.items() if name != "dense_first"},
                **_CONFIG,
                "mlp_kinds": ("mlp_layer_types",),
            },
            defaults={"q_latent": 768},
        ),
    ),
    config={**DEEPSEEK_V3.config, "dense_first": 1, "router_scale": 1.8, "experts_used": 4}
    | {"router_groups": 1, "router_groups_used": 1, "beyond": 0},
    when={**DEEPSEEK_V3.when, "first_k_dense_replace": (1, None)},  # which transformers takes it for
)

_SARVAM = DEEPSEEK_V3.layouts[0]
SARVAM_MLA = replace(
    DEEPSEEK_V3,
    name="sarvam_mla",
    model_types=("sarvam_mla",),
    layouts=(
        replace(
            _SARVAM,
            config={
                **{name: keys for name, keys in _EXPERTS_CONFIG.items() if name != "head_dim"},
                "experts": ("n_routed_experts", "num_experts"),
                "shared_experts": ("n_shared_experts", "num_shared_experts"),
                "beyond": ("num_nextn_predict_layers", "num_mtp_layers"),
            },
            defaults={},
            harmless=(*_SARVAM.harmless, "q_head_dim", "head_dim"),  # transformers replaces them by what follows
        ),
    ),
    config={**DEEPSEEK_V3.config, "dense_first": 1, "beyond": 0, "router_groups": 1, "router_groups_used": 1},
)

AXK1 = replace(
    DEEPSEEK_V3,
    name="axk1",
    model_types=("axk1",),
    layouts=(
        replace(
            DEEPSEEK_V3.layouts[0],
            optional=("unembedding", "router_correction"),
            config={**_EXPERTS_CONFIG, "mlp_kinds": ("mlp_layer_types",)},
            tensors={
                **DEEPSEEK_V3.layouts[0].tensors,
                "ff_post_norm": Stored(LAYER + "post_mlp_layernorm.weight", layers="routed"),
            },
            unread=(*_HF.unread, r"layers\.\d+\.post_mlp_layernorm\.weight"),  # layers without experts do not use it
        ),
    ),
    config={**DEEPSEEK_V3.config, "dense_first": 1, "beyond": 0},
)

_INDEXER = r"layers\.\d+\.self_attn\.indexer\.((wq_b|wk|weights_proj)\.weight|k_norm\.(weight|bias))"
DEEPSEEK_V32 = replace(
    DEEPSEEK_V3,
    name="deepseek_v32",
    model_types=("deepseek_v32",),
    layouts=(
        replace(
            DEEPSEEK_V3.layouts[0],
            config={
                **_EXPERTS_CONFIG,
                "experts": ("num_experts", "n_routed_experts"),
                "mlp_kinds": ("mlp_layer_types",),
                "indexed_keys": ("index_topk",),
            },
            unread=(*_HF.unread, _INDEXER),
            harmless=(*DEEPSEEK_V3.layouts[0].harmless, "index_n_heads|index_head_dim|layer_types"),  # of the indexer
        ),
    ),
    config={**DEEPSEEK_V3.config, "beyond": 0, "indexed_keys": 2048},
    when={**DEEPSEEK_V3.when, "mlp_bias": (False, None)},
)
_DSA = DEEPSEEK_V32.layouts[0]
GLM_MOE_DSA = replace(
    DEEPSEEK_V32,
    name="glm_moe_dsa",
    model_types=("glm_moe_dsa",),
    layouts=(
        replace(
            _DSA,
            defaults={"q_latent": 2048},
            # which layers choose keys of their own, and how
            harmless=(
                *_DSA.harmless,
                r"indexer_(types|rope_interleave)|index_(topk_freq|skip_topk_offset|topk_pattern)",
            ),
        ),
    ),
    config={**DEEPSEEK_V32.config, "router_groups": 1, "router_groups_used": 1},
)

_MISTRAL4_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 128.0,
    "original_max_position_embeddings": 8192,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}
MISTRAL4 = replace(
    LLAMA,
    name="mistral4",
    model_types=("mistral4",),
    layouts=(
        replace(
            _HF,
            config={
                **{name: keys for name, keys in _EXPERTS_CONFIG.items() if name not in ("head_dim", "beyond")},
                **GROWTH,
                "rotary_share": ROTARY_SHARE["rotary_share"][:1],
            },
            tensors={
                **{
                    what: stored
                    for what, stored in DEEPSEEK_V3.layouts[0].tensors.items()
                    if what != "router_correction"
                },
                **routed(STACKED_EXPERTS),
            },
            defaults={"q_latent": 1024, "rope": _MISTRAL4_ROPE},
            harmless=(*_HF.harmless, "head_dim"),  # transformers replaces it by what follows
        ),
    ),
    config={"activation": "silu", "router_normed": True, "shared_experts": 1, "experts_used": 4},
    when=_WHEN,
)

MINICPM3 = replace(
    LLAMA,
    name="minicpm3",
    model_types=("minicpm3",),
    tied_by_default=True,
    layouts=(
        replace(
            _HF,
            config={
                **_HF.config,
                "embed_scale": ("scale_emb",),
                "residual_depth": ("scale_depth",),
                "logit_width": ("dim_model_base",),
            },
            tensors={**_HF.tensors, **_attention(paired=False)},
            constants={**_HF.constants, "values_fill_d": True},  # unless v_head_dim is stated
            defaults={"q_latent": 768, "embed_scale": 12, "residual_depth": 1.4, "logit_width": 256},
        ),
    ),
    when={"attention_bias": (False, None), "mlp_bias": (False, None)},
)

YOUTU = replace(
    LLAMA,
    name="youtu",
    model_types=("youtu",),
    tied_by_default=True,
    layouts=(replace(_HF, harmless=(*_HF.harmless, "embedding_initializer_range")),),
    when=_WHEN,
)

FAMILIES = (
    *(
        family
        for both in (DEEPSEEK_V2, DEEPSEEK_V2_GROUPS, DEEPSEEK_V3, GLM4_MOE_LITE, SARVAM_MLA, MISTRAL4, MINICPM3, YOUTU)
        for family in _both(both)
    ),
    AXK1,
    DEEPSEEK_V32,
    GLM_MOE_DSA,
)
