"""Decoders built like Llama or Granite, with norms inside their attention and MLP, gates of heads, or sinks."""

from dataclasses import replace

from zeropass.arch.families.dense import GRANITE
from zeropass.arch.families.experts import GPT_OSS, GRANITEMOE, GRANITEMOE_SHARED
from zeropass.arch.families.llama import LLAMA
from zeropass.arch.families.parts import CONFIG, HF_LAYOUT, LAYER, NORMS_BEHIND, PAIRED, WINDOWS
from zeropass.arch.layout import Stored

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

_GRANITE_HF, _GRANITE_MOE_HF = GRANITE.layouts[0], GRANITEMOE_SHARED.layouts[0]
_SINKS = {"sinks": Stored(LAYER + "self_attn.sinks")}
_GRANITE_WINDOWS = {
    "window": ("sliding_window",),
    "layer_kinds": ("layer_types",),
    "layer_thetas": ("layer_rope_theta",),
}
GRANITE_SWA = replace(
    GRANITE,
    name="granite_swa",
    model_types=("granite_swa",),
    tied_by_default=True,
    layouts=(
        replace(
            _GRANITE_HF,
            config={**_GRANITE_HF.config, **_GRANITE_WINDOWS},
            tensors={**_GRANITE_HF.tensors, **_SINKS},
            constants={"global_every": 4},
            defaults={"window": 128},
        ),
    ),
    when={},
)
_STACKED = f"{LAYER}block_sparse_moe.experts"
_GRANITE_MOE_SWA_HF = replace(
    _GRANITE_MOE_HF,
    config={**_GRANITE_MOE_HF.config, **_GRANITE_WINDOWS},
    tensors={
        **_GRANITE_MOE_HF.tensors,
        **_SINKS,
        "router": Stored(f"{LAYER}block_sparse_moe.router.weight"),
        "gate": Stored(f"{_STACKED}.gate_up_proj[{{expert}}]", part=(0, 2)),
        "up": Stored(f"{_STACKED}.gate_up_proj[{{expert}}]", part=(1, 2)),
        "value": Stored(f"{_STACKED}.down_proj[{{expert}}]", transpose=True),
    },
    constants={"global_every": 4},
    defaults={"window": 128},
)
GRANITEMOE_SWA_SHARED = replace(
    GRANITEMOE_SHARED, name="granitemoe_swa", model_types=("granitemoe_swa",), layouts=(_GRANITE_MOE_SWA_HF,)
)
GRANITEMOE_SWA = replace(
    GRANITEMOE_SWA_SHARED,
    layouts=(
        replace(
            _GRANITE_MOE_SWA_HF,
            tensors={
                what: stored for what, stored in _GRANITE_MOE_SWA_HF.tensors.items() if not what.startswith("shared_")
            },
        ),
    ),
    when=GRANITEMOE.when,
)

_OSS_HF = GPT_OSS.layouts[0]
PRIVACY_FILTER = replace(  # the factor of its router's weights is undone behind the experts
    GPT_OSS,
    name="openai_privacy_filter",
    model_types=("openai_privacy_filter",),
    causal=False,
    layouts=(
        replace(
            _OSS_HF,
            config={name: keys for name, keys in _OSS_HF.config.items() if name not in WINDOWS}
            | {"reach": ("sliding_window",)},
            tensors={
                **{name: replace(stored, alternating=False) for name, stored in _OSS_HF.tensors.items()},
                **PAIRED,
            },
            constants={},
            defaults={"reach": 128, "rope": _OSS_HF.defaults["rope"]},
            extra={"token_classifier": (Stored("^score.weight"), "read")},
            unread=(r"\^score\.bias",),
            harmless=("classifier_dropout",),
        ),
    ),
)

FAMILIES = (BITNET, MUSE_GLIMMER, GRANITE_SWA, GRANITEMOE_SWA, GRANITEMOE_SWA_SHARED, PRIVACY_FILTER)
