"""Decoders built like Llama, with norms inside their attention and MLP or with gates of heads."""

from dataclasses import replace

from zeropass.arch.families.llama import LLAMA
from zeropass.arch.families.parts import CONFIG, HF_LAYOUT, LAYER, NORMS_BEHIND
from zeropass.arch.spec import Stored

BITNET = replace(
    LLAMA,
    name="bitnet",
    model_types=("bitnet",),
    layouts=(
        replace(
            HF_LAYOUT,
            tensors={
                **HF_LAYOUT.tensors,
                "o_in_norm": Stored(LAYER + "self_attn.attn_sub_norm.weight"),
                "value_in_norm": Stored(LAYER + "mlp.ffn_sub_norm.weight"),
            },
        ),
    ),
    config={"activation": "relu2", "rope_theta": 500000.0},
)

MUSE_GLIMMER = replace(
    LLAMA,
    name="muse_glimmer",
    model_types=("muse_glimmer_text",),
    qk_norm="head",
    embed_normed=True,
    layouts=(
        replace(
            HF_LAYOUT,
            config={
                **CONFIG,
                "activation": ("hidden_activation",),
                "eps_behind": ("post_norm_eps",),
                "attention_factor": ("qk_scale_factor",),
                "logit_scale": ("output_multiplier",),
                "logit_cap": ("final_logit_softcapping",),
                "window": ("sliding_window",),
                "layer_kinds": ("layer_types",),
                "layer_thetas": ("layer_rope_theta",),
            },
            tensors={
                **HF_LAYOUT.tensors,
                **NORMS_BEHIND,
                "ff_norm": Stored(LAYER + "pre_feedforward_layernorm.weight"),
                "g": Stored(LAYER + "self_attn.gate_proj.weight"),
            },
            gain_offset=1.0,
            plain_gains=("final_norm",),
            constants={"local_every": 4, "unrotated_every": 4, "counted_back": True},
            defaults={"window": 2048},
        ),
    ),
    config={
        "activation": "silu",
        "eps_behind": 1e-8,
        "attention_factor": 3.87,
        "logit_scale": 0.19611613513818404,
        "logit_cap": 20.0,
    },
)

FAMILIES = (BITNET, MUSE_GLIMMER)
