"""Models with experts as llama.cpp stores them: a file stacks the experts, and its reader gives them one by one."""

from dataclasses import replace

from zeropass.arch.families.experts import MIXTRAL, OLMOE, QWEN3_MOE
from zeropass.arch.families.parts import BLK, GGUF_PAIRED, GGUF_QK_NORMS, gguf
from zeropass.arch.spec import Stored

_EXPERTS = {
    "router": Stored(BLK + "ffn_gate_inp.weight"),
    "gate": Stored(BLK + "ffn_gate.{expert}.weight"),
    "up": Stored(BLK + "ffn_up.{expert}.weight"),
    "value": Stored(BLK + "ffn_down.{expert}.weight", transpose=True),
}
_KEYS = {"experts": ("expert_count",), "experts_used": ("expert_used_count",)}
_NO_BIASES = ("gate_bias", "up_bias", "value_bias")

MIXTRAL_GGUF = replace(
    MIXTRAL,
    model_types=("llama",),
    layouts=(
        replace(
            gguf("llama", {**GGUF_PAIRED, **_EXPERTS}, keys=_KEYS, without=_NO_BIASES),
            only_with="blk.0.ffn_gate_inp.weight",
        ),
    ),
)
QWEN3_MOE_GGUF = replace(
    QWEN3_MOE,
    layouts=(
        replace(
            gguf(
                "qwen3moe",
                {**GGUF_QK_NORMS, **_EXPERTS},
                keys={**_KEYS, "neurons": ("expert_feed_forward_length",)},
                without=_NO_BIASES,
                constants={"router_normed": True},  # llama.cpp knows no other
            ),
            harmless=("feed_forward_length",),  # of layers without experts
        ),
    ),
)
OLMOE_GGUF = replace(
    OLMOE,
    layouts=(gguf("olmoe", {**GGUF_QK_NORMS, **_EXPERTS}, keys=_KEYS, without=_NO_BIASES),),
)

FAMILIES = (MIXTRAL_GGUF, QWEN3_MOE_GGUF, OLMOE_GGUF)
