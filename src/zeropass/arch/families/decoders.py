"""Decoders built like Llama, with norms inside their attention and MLP or with gates of heads."""

from dataclasses import replace

from zeropass.arch.families.llama import LLAMA
from zeropass.arch.families.parts import HF_LAYOUT, LAYER
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

FAMILIES = (BITNET,)
