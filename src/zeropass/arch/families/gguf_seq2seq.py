"""The encoders of T5 and mT5 as llama.cpp stores them: alone (``t5encoder``), or with their decoder (``t5``)."""

from dataclasses import replace

from zeropass.arch.families.parts import gguf
from zeropass.arch.families.seq2seq import T5_ENCODER, T5_GATED_ENCODER
from zeropass.arch.layout import Stored
from zeropass.arch.spec import Family

_ENC = "enc.blk.{layer}."
_TENSORS = {
    "embedding": Stored("token_embd.weight"),
    "relative": Stored("enc.blk.0.attn_rel_b.weight"),
    "final_norm": Stored("enc.output_norm.weight"),
    "attn_norm": Stored(_ENC + "attn_norm.weight"),
    "ff_norm": Stored(_ENC + "ffn_norm.weight"),
    **{role: Stored(f"{_ENC}attn_{role}.weight") for role in "qkv"},
    "o": Stored(_ENC + "attn_o.weight", transpose=True),
    "value": Stored(_ENC + "ffn_down.weight", transpose=True),
}
_PLAIN = {"key": Stored(_ENC + "ffn_up.weight")}
_GATED = {"gate": Stored(_ENC + "ffn_gate.weight"), "up": Stored(_ENC + "ffn_up.weight")}


def _encoder(family: Family, name: str, inner: dict[str, Stored], only_with: str = "") -> Family:
    """Return the record of an encoder in a file of an architecture; files do not say whether its MLPs have gates."""
    layout = replace(
        gguf(name, keys={"kv_heads": ("attention.head_count",)}),
        tensors={**_TENSORS, **inner},
        optional=(),
        head="output.weight",
        unread=(r"dec\..*",),
        # The epsilon a second time, and what the tensors show.
        harmless=(
            r"attention\.layer_norm_epsilon|attention\.relative_buckets_count|decoder_(block_count|start_token_id)",
        ),
        only_with=only_with,
    )
    return replace(family, model_types=(name,), when={}, layouts=(layout,))


FAMILIES = tuple(
    _encoder(family, name, inner, only_with)
    for name in ("t5", "t5encoder")
    for family, inner, only_with in (
        (T5_ENCODER, _PLAIN, ""),
        (T5_GATED_ENCODER, _GATED, "enc.blk.0.ffn_gate.weight"),
    )
)
