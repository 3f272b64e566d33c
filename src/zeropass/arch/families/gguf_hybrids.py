"""Hybrids as llama.cpp stores them: their layers and sizes are those of their safetensors, under other names."""

from collections.abc import Mapping
from dataclasses import replace

from zeropass.arch.families.hybrids import (
    FALCON_H1,
    FALCON_H1_NORMED,
    GRANITE_HYBRID,
    GRANITE_HYBRID_DENSE,
    JAMBA,
    LFM2,
    LFM2_MOE,
    NEMOTRON_H,
    NEMOTRON_H_MOE,
    QWEN3_5,
    QWEN3_5_MOE,
    QWEN3_NEXT,
)
from zeropass.arch.families.parts import (
    BLK,
    GGUF_QK_NORMS,
    GGUF_TENSORS,
    GGUF_UP_DOWN,
    GRANITE_GGUF_FACTORS,
    HEAD_BIASES,
    gguf,
    renamed,
)
from zeropass.arch.layout import Layout, Stored
from zeropass.arch.roles import Site
from zeropass.arch.spec import Family

_SSM = BLK + "ssm_"
_NAMES = {
    **{what: stored.name for what, stored in {**GGUF_TENSORS, **GGUF_QK_NORMS, **GGUF_UP_DOWN}.items()},
    "mixer_norm": BLK + "attn_norm.weight",
    "mixer_in": _SSM + "in.weight",
    "mixer_out": _SSM + "out.weight",
    "inner_conv": _SSM + "conv1d.weight",
    "inner_conv_bias": _SSM + "conv1d.bias",
    "inner_skip": _SSM + "d",
    "inner_gain": _SSM + "norm.weight",
    "inner_step": _SSM + "dt.bias",
    "inner_decay": _SSM + "a",
}
_EXPERT_NAMES = {
    "router": BLK + "ffn_gate_inp.weight",
    "router_correction": BLK + "exp_probs_b.bias",
    "gate": BLK + "ffn_gate.{expert}.weight",
    "up": BLK + "ffn_up.{expert}.weight",
    "value": BLK + "ffn_down.{expert}.weight",
    "shared_router": BLK + "ffn_gate_inp_shexp.weight",
    "shared_gate": BLK + "ffn_gate_shexp.weight",
    "shared_up": BLK + "ffn_up_shexp.weight",
    "shared_value": BLK + "ffn_down_shexp.weight",
    **{f"dense_{role}": _NAMES[role] for role in ("gate", "up", "value")},
}
_PLAIN_EXPERT_NAMES = {
    **{name: _EXPERT_NAMES[name] for name in ("router", "router_correction", "value")},
    "key": _EXPERT_NAMES["up"],
    "shared_key": _EXPERT_NAMES["shared_up"],
    "shared_value": _EXPERT_NAMES["shared_value"],
}
_NO_WINDOW = {"window": (), "layer_kinds": (), "local_every": (), "local_rope_theta": ()}
_ATTENDING = {**_NO_WINDOW, "layer_heads": ("attention.head_count_kv",)}
"""A list has the number of key/value heads of each layer, and a zero for a layer with a mixer."""


def _renamed(family: Family, names: Mapping[str, str], biases: tuple[str, ...] = ()) -> dict[str, Stored]:
    """Return the tensors of a family's safetensors under the names of llama.cpp; those without one are left out.

    The converter writes minus the exponential of ``A_log``, and takes gates from what they multiply.

    Args:
        family: The family.
        names: The name of each canonical tensor.
        biases: The biases that llama.cpp knows of.
    """
    kept = {what: name for what, name in names.items() if what in biases or not what.endswith("_bias")}
    return {
        what: replace(stored, negative_exp=what == "inner_decay")
        for what, stored in renamed(family.layouts[0].tensors, kept).items()
    }


def _layout(
    name: str,
    tensors: Mapping[str, Stored],
    keys: Mapping[str, tuple[str, ...]],
    constants: Mapping[str, object] | None = None,
    harmless: tuple[str, ...] = (),
    only_with: str = "",
) -> Layout:
    """Return the layout of a hybrid; arguments as in `gguf` and `Layout`, but `tensors` are all that it has."""
    optional = tuple(what for what in tensors if what.endswith("_bias"))
    return replace(
        gguf(name, keys={**_NO_WINDOW, **keys}, optional=optional, constants=constants),
        tensors={**tensors, "rope_factors": GGUF_TENSORS["rope_factors"]},
        harmless=harmless,
        only_with=only_with,
    )


_DELTA = {
    **_NAMES,
    "ff_norm": BLK + "post_attention_norm.weight",
    "g": BLK + "attn_q.weight",
    "mixer_in": BLK + "attn_qkv.weight",
    "mixer_in_gate": BLK + "attn_gate.weight",
    "mixer_in_update": _SSM + "beta.weight",
    "mixer_in_decay": _SSM + "alpha.weight",
}
_MIXER_KEYS = {
    "mixer_heads": ("ssm.time_step_rank",),
    "mixer_groups": ("ssm.group_count",),
    "mixer_state": ("ssm.state_size",),
    "mixer_inner": ("ssm.inner_size",),
    "mixer_kernel": ("ssm.conv_kernel",),
}
_DELTA_KEYS = {
    **_MIXER_KEYS,
    "attention_every": ("full_attention_interval",),
    "beyond": ("nextn_predict_layers",),
}
_DELTA_CONSTANTS = {"mixer_width": "auto", "beyond_counted": True}
_EXPERT_KEYS = {
    "experts": ("expert_count",),
    "experts_used": ("expert_used_count",),
    "neurons": ("expert_feed_forward_length",),
}
_SHARED_KEYS = {**_EXPERT_KEYS, "shared_neurons": ("expert_shared_feed_forward_length",)}


def _tiled(tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """Return tensors in which the heads of values take turns over the groups (_LinearAttentionVReorderBase)."""
    return {
        what: replace(stored, fused="tiled") if {"inner", "heads"} & {*stored.sizes} else stored
        for what, stored in tensors.items()
    }


QWEN35 = replace(
    QWEN3_5,
    layouts=(_layout("qwen35", _tiled(_renamed(QWEN3_5, _DELTA)), _DELTA_KEYS, _DELTA_CONSTANTS),),
    when={},
)
QWEN35_MOE = replace(
    QWEN3_5_MOE,
    layouts=(
        _layout(
            "qwen35moe",
            _tiled(_renamed(QWEN3_5_MOE, {**_DELTA, **_EXPERT_NAMES})),
            {**_DELTA_KEYS, **_SHARED_KEYS},
            _DELTA_CONSTANTS,
            harmless=("feed_forward_length",),  # of layers without experts, of which there are none
        ),
    ),
    when={},
)

_CONV = BLK + "shortconv."
_CONV_NAMES = {
    **_NAMES,
    "final_norm": "token_embd_norm.weight",
    "mixer_in": _CONV + "in_proj.weight",
    "mixer_out": _CONV + "out_proj.weight",
    "inner_conv": _CONV + "conv.weight",
}
_CONV_KEYS = {**_ATTENDING, "mixer_width": ("embedding_length",), "mixer_kernel": ("shortconv.l_cache",)}
_CONV_CONSTANTS = {"neurons_adjusted": False}
LFM2_GGUF = replace(
    LFM2,
    layouts=(_layout("lfm2", _renamed(LFM2, _CONV_NAMES), _CONV_KEYS, _CONV_CONSTANTS),),
    when={"lfm2.attention.causal": (None, True)},
)
LFM2_MOE_GGUF = replace(
    LFM2_MOE,
    layouts=(
        _layout(
            "lfm2moe",
            _renamed(LFM2_MOE, {**_CONV_NAMES, **_EXPERT_NAMES}),
            {
                **_CONV_KEYS,
                **_EXPERT_KEYS,
                "dense_neurons": ("feed_forward_length",),
                "dense_first": ("leading_dense_block_count",),
            },
            {**_CONV_CONSTANTS, "dense_first": 0, "router_normed": True},  # llama.cpp knows no other
        ),
    ),
    when={"lfm2moe.expert_gating_func": (2,)},  # a sigmoid
)

_NEXT_NAMES = {**_DELTA, **_EXPERT_NAMES, "mixer_in": _SSM + "in.weight", "mixer_in_update": _SSM + "ba.weight"}
_NEXT = {  # every layer has experts
    what: replace(stored, layers="all") if stored.layers == "routed" else stored
    for what, stored in _renamed(QWEN3_NEXT, _NEXT_NAMES).items()
    if stored.layers != "dense"
}
_APART = {what: _renamed(QWEN3_5, _DELTA)[what] for what in ("mixer_in", "mixer_in_gate")}
_QWEN3_NEXT = _layout(
    "qwen3next",
    {**_NEXT, **_APART},  # the converter takes the groups of the inputs apart, but not those of ``ba``
    {**_DELTA_KEYS, **_SHARED_KEYS},
    _DELTA_CONSTANTS,
    harmless=("feed_forward_length",),
)
QWEN3_NEXT_GGUF = replace(QWEN3_NEXT, router_normed=True, layouts=(_QWEN3_NEXT,), when={})
QWEN3_NEXT_FIRST = replace(  # of converters before December 2025, which left them as they were
    QWEN3_NEXT_GGUF,
    layouts=(replace(_QWEN3_NEXT, tensors=_NEXT, only_with="blk.0.ssm_in.weight"),),
)


def _permuted(tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """Return tensors with queries and keys whose rows LlamaModel.permute of the converter has reordered."""
    reordered = ("q", "k", "q_bias", "k_bias")
    return {what: replace(stored, paired_rows=what in reordered) for what, stored in tensors.items()}


_MAMBA_BIASES = (*HEAD_BIASES, "inner_conv_bias")
_GRANITE_KEYS = {**_MIXER_KEYS, **_ATTENDING, **GRANITE_GGUF_FACTORS}
_GRANITE_SCALE = {"attention_scale": None}  # 1/√d_h where no key says otherwise
_UNTURNED = {"granitehybrid.rope.scaling.finetuned": (False,)}  # with positions, Bamba's rows are those of no order
GRANITE_HYBRID_GGUF = replace(
    GRANITE_HYBRID,
    layouts=(
        _layout(
            "granitehybrid",
            _permuted(_renamed(GRANITE_HYBRID, {**_NAMES, **_EXPERT_NAMES}, _MAMBA_BIASES)),
            {**_GRANITE_KEYS, **_SHARED_KEYS, "neurons": ("feed_forward_length",)},
            _GRANITE_SCALE,
            only_with="blk.0.ffn_gate_inp.weight",
        ),
    ),
    when=_UNTURNED,
)
GRANITE_HYBRID_DENSE_GGUF = replace(
    GRANITE_HYBRID_DENSE,
    layouts=(
        _layout(
            "granitehybrid",
            _permuted(_renamed(GRANITE_HYBRID_DENSE, _NAMES, _MAMBA_BIASES)),
            _GRANITE_KEYS,
            _GRANITE_SCALE,
            harmless=("expert_used_count|expert_shared_feed_forward_length",),
        ),
    ),
    when={**_UNTURNED, "granitehybrid.expert_count": (None, 0)},
)

_NEMOTRON_LAYERS: Mapping[str, tuple[Site, ...]] = {"mixer": ("mixer",), "attention": ("attn",), "mlp": ("ff",)}
_NEMOTRON_NAMES = {**_NAMES, "ff_norm": BLK + "attn_norm.weight"}
_NEMOTRON_KEYS = {**_MIXER_KEYS, **_ATTENDING, "layer_neurons": ("feed_forward_length",)}
_NO_LEAST_STEP = {"mixer_least_step": None}  # llama.cpp bounds no steps
_OTHER_EPS = r"attention\.layer_norm_epsilon"
NEMOTRON_H_GGUF = replace(
    NEMOTRON_H,
    layer_types=_NEMOTRON_LAYERS,
    layouts=(
        _layout(
            "nemotron_h",
            _permuted(_renamed(NEMOTRON_H, _NEMOTRON_NAMES, ("inner_conv_bias",))),
            _NEMOTRON_KEYS,
            _NO_LEAST_STEP,
            harmless=(_OTHER_EPS,),
        ),
    ),
    when={"general.architecture": ("nemotron_h",)},
)
NEMOTRON_H_MOE_GGUF = replace(
    NEMOTRON_H_MOE,
    layer_types=_NEMOTRON_LAYERS,
    layouts=(
        _layout(
            "nemotron_h_moe",
            _permuted(_renamed(NEMOTRON_H_MOE, {**_NEMOTRON_NAMES, **_PLAIN_EXPERT_NAMES}, ("inner_conv_bias",))),
            {
                **_NEMOTRON_KEYS,
                **_SHARED_KEYS,
                "router_normed": ("expert_weights_norm",),
                "router_scale": ("expert_weights_scale",),
                "router_groups": ("expert_group_count",),
                "router_groups_used": ("expert_group_used_count",),
                "beyond": ("nextn_predict_layers",),
            },
            {**_NO_LEAST_STEP, "router_normed": False, "beyond_counted": True},
            harmless=(_OTHER_EPS, "expert_shared_count"),
        ),
    ),
    when={"general.architecture": ("nemotron_h_moe",)},
)

_JAMBA_NAMES = {
    **_NAMES,
    **_EXPERT_NAMES,
    "inner_down": _SSM + "x.weight",
    "inner_up": _SSM + "dt.weight",
    "inner_step_gain": _SSM + "dt_norm.weight",
    "inner_b_gain": _SSM + "b_norm.weight",
    "inner_c_gain": _SSM + "c_norm.weight",
}
JAMBA_GGUF = replace(
    JAMBA,
    layouts=(
        _layout(
            "jamba",
            _renamed(JAMBA, _JAMBA_NAMES, ("inner_conv_bias",)),
            {
                **{what: keys for what, keys in _MIXER_KEYS.items() if what not in ("mixer_heads", "mixer_groups")},
                **_ATTENDING,
                **_EXPERT_KEYS,
                "mixer_rank": ("ssm.time_step_rank",),
                "neurons": ("feed_forward_length",),
                "dense_neurons": ("feed_forward_length",),
            },
            {"router_tensor": BLK + "ffn_gate_inp.weight"},  # by which llama.cpp knows the layers with experts
        ),
    ),
    when={},
)


def _falcon(family: Family, only_with: str = "") -> Family:
    """Return a record of Falcon-H1, whose tensors the converter multiplies by its multipliers."""
    tensors = _renamed(family, {**_NAMES, "ff_norm": BLK + "ffn_norm"}, ("inner_conv_bias",))
    layout = _layout("falcon-h1", tensors, _MIXER_KEYS, {"mixer_scales": None}, only_with=only_with)
    return replace(family, layouts=(layout,), when={})


def _joined(family: Family) -> Family:
    """Return the record of files whose experts have gates and what they multiply in one tensor."""
    layout = family.layouts[0]
    joint = BLK + "ffn_gate_up.{expert}.weight"
    parts = {what: replace(layout.tensors[what], name=joint, part=(i, 2)) for i, what in enumerate(("gate", "up"))}
    return replace(
        family,
        layouts=(replace(layout, tensors={**layout.tensors, **parts}, only_with="blk.0.ffn_gate_up.0.weight"),),
    )


FAMILIES = (
    QWEN35,
    QWEN35_MOE,
    _joined(QWEN35_MOE),
    QWEN3_NEXT_GGUF,
    QWEN3_NEXT_FIRST,
    _joined(QWEN3_NEXT_GGUF),
    LFM2_GGUF,
    LFM2_MOE_GGUF,
    GRANITE_HYBRID_GGUF,
    GRANITE_HYBRID_DENSE_GGUF,
    NEMOTRON_H_GGUF,
    NEMOTRON_H_MOE_GGUF,
    JAMBA_GGUF,
    _falcon(FALCON_H1_NORMED, only_with="blk.0.ssm_norm.weight"),
    _falcon(FALCON_H1),
)
