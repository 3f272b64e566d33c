"""T5Gemma: Gemma's layers as the stacks of an encoder-decoder, each with a configuration and tables of its own."""

from dataclasses import replace

from zeropass.arch.families.llama import GEMMA2, GEMMA3_BOTH_WAYS
from zeropass.arch.families.parts import ATTENTION, MLP
from zeropass.arch.layout import Layout, Stored
from zeropass.arch.spec import Family

_GEMMA2_HF = GEMMA2.layouts[0]
_NORMS = {"attn": "self_attn", "cross": "cross_attn", "ff": "feedforward"}


def _norms(stem: str, *sites: str) -> dict[str, Stored]:
    """Return the norms before and behind each part of a block."""
    return {
        f"{site}{place}_norm": Stored(f"{stem}layers.{{layer}}.{where}_{_NORMS[site]}_layernorm.weight")
        for site in sites
        for place, where in (("", "pre"), ("_post", "post"))
    }


def _of(stack: str, tensors: dict[str, Stored], cross: str = "") -> dict[str, Stored]:
    """Return tensors of Gemma as those of a stack; with ``cross_`` its attention as cross attention."""
    module = f".{cross}attn." if cross else ".self_attn."
    return {
        f"{cross}{what}": replace(stored, name=f"{stack}.{stored.name.replace('.self_attn.', module)}")
        for what, stored in tensors.items()
    }


def _layout(stack: str, other: str) -> Layout:
    """Return what the layouts of both stacks have in common."""
    return replace(
        _GEMMA2_HF,
        config={**_GEMMA2_HF.config, "kv_heads": ("num_key_value_heads",)},
        stacks=(stack, other),
        tensors={
            "embedding": Stored(f"{stack}.embed_tokens.weight"),
            "final_norm": Stored(f"{stack}.norm.weight"),
            **_norms(f"{stack}.", "attn", "ff"),
            **_of(stack, {**ATTENTION, **MLP}),
        },
        defaults={
            **_GEMMA2_HF.defaults,
            **{"layers": 26, "d": 2304, "heads": 8, "kv_heads": 4, "head_dim": 256, "neurons": 9216, "eps": 1e-6},
        },
        constants={"local_every": 2},
        extra={},
        harmless=("is_encoder_decoder", "is_decoder", "cross_attention_hidden_size"),
    )


_ENCODER_HF, _DECODER_HF = _layout("encoder", "decoder"), _layout("decoder", "encoder")
_CROSS_BIASES = ("cross_q_bias", "cross_k_bias", "cross_v_bias", "cross_o_bias")
T5GEMMA_ENCODER = replace(
    GEMMA2,
    name="t5gemma",
    model_types=("t5gemma",),
    causal=False,
    stack="encoder",
    layouts=(
        replace(
            _ENCODER_HF,
            config={name: keys for name, keys in _ENCODER_HF.config.items() if name != "logit_cap"},
            defaults={name: value for name, value in _ENCODER_HF.defaults.items() if name != "logit_cap"},
            constants={"local_every": 2, "window_inclusive": True},
            optional=_GEMMA2_HF.optional[1:],
            unread=(r"decoder\..*", r"\^lm_head\.out_proj\.weight", r"\^score\.out_proj\.(weight|bias)"),
            harmless=(*_ENCODER_HF.harmless, "final_logit_softcapping"),
        ),
    ),
    when={},
    notes=("the encoder; the decoder, with its cross attention, opens with #decoder behind the model's name",),
)
T5GEMMA_DECODER = replace(
    GEMMA2,
    name="t5gemma",
    model_types=("t5gemma",),
    stack="decoder",
    layouts=(
        replace(
            _DECODER_HF,
            optional=(*_GEMMA2_HF.optional, *_CROSS_BIASES),
            tensors={
                **_DECODER_HF.tensors,
                "unembedding": Stored("^lm_head.out_proj.weight"),
                "memory_norm": Stored("encoder.norm.weight"),
                **_norms("decoder.", "cross"),
                **_of("decoder", ATTENTION, "cross_"),
            },
            switches={"attention_bias": ((*_GEMMA2_HF.switches["attention_bias"][0], *_CROSS_BIASES), False)},
            extra={"classifier": (Stored("^score.out_proj.weight"), "read")},
            unread=(r"encoder\..*", r"\^score\.out_proj\.bias"),
        ),
    ),
    when={},
    notes=("the decoder; its token frame leaves out what cross attention adds, which depends on the encoder's text",),
)

_GEMMA3_HF = GEMMA3_BOTH_WAYS.layouts[0]
T5GEMMA2_ENCODER = replace(
    GEMMA3_BOTH_WAYS,
    name="t5gemma2",
    model_types=("t5gemma2",),
    stack="encoder",
    layouts=(
        replace(
            _GEMMA3_HF,
            prefixes=("model.encoder.", "model.encoder.text_model.", "encoder.", "encoder.text_model."),
            stacks=("encoder.text_config", "decoder"),
            tensors={
                **{what: stored for what, stored in _GEMMA3_HF.tensors.items() if what != "unembedding"},
                **_norms("", "attn", "ff"),
            },
            optional=_GEMMA3_HF.optional[1:],
            config={name: keys for name, keys in _GEMMA3_HF.config.items() if name != "logit_cap"},
            constants={**_GEMMA3_HF.constants, "window_further_ahead": True},
            defaults={
                **{name: value for name, value in _GEMMA3_HF.defaults.items() if name != "logit_cap"},
                **{"layers": 26, "d": 2304, "heads": 8, "kv_heads": 4, "head_dim": 256, "neurons": 9216, "eps": 1e-6},
            },
            extra={},
            unread=(
                r"embed_tokens\.eoi_embedding",
                r"(\^(model\.)?encoder\.)?(vision_tower|multi_modal_projector)\..*",
                r"\^(model\.)?decoder\..*",
                r"\^(lm_head|score)\.out_proj\.(weight|bias)",
            ),
            harmless=(
                *_GEMMA3_HF.harmless,
                "is_encoder_decoder|is_decoder|final_logit_softcapping|eoi_token_index|image_token_index",
            ),
        ),
    ),
    when={},
    notes=(
        "the encoder, as one that was given a text without images; the decoder is not read",
        "the token that ends an image has an embedding of its own, which is not read",
    ),
)

FAMILIES: tuple[Family, ...] = (T5GEMMA_ENCODER, T5GEMMA_DECODER, T5GEMMA2_ENCODER)
