"""Encoder-decoders: two records per family, because a file holds two stacks of layers, each with its own stream."""

from dataclasses import replace
from typing import Literal

from zeropass.arch.families.encoders import GLOBAL_TOKENS
from zeropass.arch.layout import Layout, Stored, weight_and_bias
from zeropass.arch.spec import Family


def _attention(stem: str, cross: str = "") -> dict[str, Stored]:
    """Return the four matrices of one attention module of T5."""
    return {
        f"{cross}q": Stored(f"{stem}.q.weight"),
        f"{cross}k": Stored(f"{stem}.k.weight"),
        f"{cross}v": Stored(f"{stem}.v.weight"),
        f"{cross}o": Stored(f"{stem}.o.weight", transpose=True),
    }


def _copies(stack: str, other: str) -> tuple[str, ...]:
    """Return the names of the embedding that both stacks share, this stack's own name first."""
    return f"{stack}.embed_tokens.weight", "shared.weight", f"{other}.embed_tokens.weight"


def _plain(stem: str) -> dict[str, Stored]:
    return {"key": Stored(f"{stem}.wi.weight"), "value": Stored(f"{stem}.wo.weight", transpose=True)}


def _gated(stem: str) -> dict[str, Stored]:
    return {
        "gate": Stored(f"{stem}.wi_0.weight"),
        "up": Stored(f"{stem}.wi_1.weight"),
        "value": Stored(f"{stem}.wo.weight", transpose=True),
    }


_T5_CONFIG = {
    "layers": ("num_layers",),
    "d": ("d_model",),
    "heads": ("num_heads",),
    "kv_heads": ("num_heads",),
    "head_dim": ("d_kv",),
    "neurons": ("d_ff",),
    "vocab": ("vocab_size",),
    "eps": ("layer_norm_epsilon",),
    "activation": ("dense_act_fn",),
}
_T5_HARMLESS = ("is_encoder_decoder", "num_decoder_layers", "scale_decoder_outputs", "is_gated_act")
_T5_ENCODER = "encoder.block.{layer}.layer."
_T5_DECODER = "decoder.block.{layer}.layer."
_T5_PLAIN = ("relu", None)
_T5_GATED = ("gated-gelu",)

T5_ENCODER = Family(
    name="t5",
    model_types=("t5",),
    norm="rms",
    norm_place="pre",
    causal=False,
    stack="encoder",
    ff_roles=("key", "value"),
    rotary=False,
    unscaled=True,
    tied_by_default=True,
    always_tied=True,
    layouts=(
        Layout(
            format="hf",
            copies=_copies("encoder", "decoder"),
            head="lm_head.weight",
            config=_T5_CONFIG,
            tensors={
                "embedding": Stored("shared.weight"),
                "relative": Stored("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"),
                "final_norm": Stored("encoder.final_layer_norm.weight"),
                "attn_norm": Stored(_T5_ENCODER + "0.layer_norm.weight"),
                "ff_norm": Stored(_T5_ENCODER + "1.layer_norm.weight"),
                **_attention(_T5_ENCODER + "0.SelfAttention"),
                **_plain(_T5_ENCODER + "1.DenseReluDense"),
            },
            unread=(r"decoder\..*",),
            harmless=_T5_HARMLESS,
        ),
    ),
    config={"activation": "relu", "eps": 1e-6},
    when={"feed_forward_proj": _T5_PLAIN, "relative_attention_max_distance": (128, None)},
    notes=("the encoder; the decoder, with its cross attention, opens with #decoder behind the model's name",),
)
_T5_ENCODER_HF = T5_ENCODER.layouts[0]
_T5_ENCODER_REST = {name: stored for name, stored in _T5_ENCODER_HF.tensors.items() if name not in ("key", "value")}
T5_GATED_ENCODER = replace(
    T5_ENCODER,
    ff_roles=("gate", "up", "value"),
    layouts=(replace(_T5_ENCODER_HF, tensors={**_T5_ENCODER_REST, **_gated(_T5_ENCODER + "1.DenseReluDense")}),),
    config={"activation": "gelu_new", "eps": 1e-6},
    when={**T5_ENCODER.when, "feed_forward_proj": _T5_GATED},
)

T5_DECODER = replace(
    T5_ENCODER,
    causal=True,
    stack="decoder",
    logits_scaled=True,
    layouts=(
        Layout(
            format="hf",
            optional=("unembedding",),
            copies=_copies("decoder", "encoder"),
            config={
                **_T5_CONFIG,
                "layers": ("num_decoder_layers", "num_layers"),
                "logits_scaled": ("scale_decoder_outputs", "tie_word_embeddings"),
            },
            tensors={
                "embedding": Stored("shared.weight"),
                "unembedding": Stored("lm_head.weight"),
                "relative": Stored("decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"),
                "final_norm": Stored("decoder.final_layer_norm.weight"),
                "memory_norm": Stored("encoder.final_layer_norm.weight"),
                "attn_norm": Stored(_T5_DECODER + "0.layer_norm.weight"),
                "cross_norm": Stored(_T5_DECODER + "1.layer_norm.weight"),
                "ff_norm": Stored(_T5_DECODER + "2.layer_norm.weight"),
                **_attention(_T5_DECODER + "0.SelfAttention"),
                **_attention(_T5_DECODER + "1.EncDecAttention", "cross_"),
                **_plain(_T5_DECODER + "2.DenseReluDense"),
            },
            unread=(
                r"encoder\..*",
                r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",  # old files, unused
            ),
            harmless=_T5_HARMLESS,
        ),
    ),
    notes=("the decoder; its token frame leaves out what cross attention adds, which depends on the encoder's text",),
)
_T5_DECODER_HF = T5_DECODER.layouts[0]
_T5_DECODER_REST = {name: stored for name, stored in _T5_DECODER_HF.tensors.items() if name not in ("key", "value")}
T5_GATED_DECODER = replace(
    T5_DECODER,
    ff_roles=T5_GATED_ENCODER.ff_roles,
    layouts=(replace(_T5_DECODER_HF, tensors={**_T5_DECODER_REST, **_gated(_T5_DECODER + "2.DenseReluDense")}),),
    config=T5_GATED_ENCODER.config,
    when=T5_GATED_ENCODER.when,
)

MT5_ENCODER = replace(T5_ENCODER, model_types=("mt5",))
MT5_GATED_ENCODER = replace(T5_GATED_ENCODER, model_types=("mt5",))
MT5_DECODER = replace(T5_DECODER, model_types=("mt5",), logits_scaled=False)
MT5_GATED_DECODER = replace(T5_GATED_DECODER, model_types=("mt5",), logits_scaled=False)


def _umt5(record: Family, feed_forward: tuple[object, ...]) -> Family:
    """Return a record of T5 in which every layer has biases of relative positions."""
    layout = record.layouts[0]
    stem = layout.tensors["q"].name.removesuffix("q.weight")
    relative = Stored(f"{stem}relative_attention_bias.weight")
    return replace(
        record,
        name="umt5",
        model_types=("umt5",),
        layouts=(replace(layout, tensors={**layout.tensors, "relative": relative}),),
        when={**record.when, "feed_forward_proj": feed_forward},
    )


UMT5_ENCODER = _umt5(T5_ENCODER, ("relu",))
UMT5_GATED_ENCODER = _umt5(T5_GATED_ENCODER, (*_T5_GATED, None))
UMT5_DECODER = _umt5(T5_DECODER, ("relu",))
UMT5_GATED_DECODER = _umt5(T5_GATED_DECODER, (*_T5_GATED, None))


def _switch(record: Family, stack: str, layer: int, layers: str) -> Family:
    """Return a record of T5 in which some layers have experts, one for each token.

    Args:
        record: The record.
        stack: The name of the stack.
        layer: The number of the MLP among the parts of a block.
        layers: The key of the number of layers.
    """
    layout = record.layouts[0]
    mlp = f"{stack}.block.{{layer}}.layer.{layer}.mlp."
    expert, dense = _plain(mlp + "experts.expert_{expert}"), _plain(mlp.removesuffix("."))
    return replace(
        record,
        name="switch_transformers",
        model_types=("switch_transformers",),
        layouts=(
            replace(
                layout,
                config={
                    **layout.config,
                    "layers": (layers,),
                    "dense_neurons": ("d_ff",),
                    "experts": ("num_experts",),
                    "routed_every": (f"{stack}_sparse_step",),
                    "routed_count": (f"num_sparse_{stack}_layers",),
                    "logits_scaled": ("tie_word_embeddings",),
                },
                tensors={
                    **{name: stored for name, stored in layout.tensors.items() if name not in ("key", "value")},
                    **{name: replace(stored, layers="routed") for name, stored in expert.items()},
                    **{f"dense_{name}": replace(stored, layers="dense") for name, stored in dense.items()},
                    "router": Stored(f"{mlp}router.classifier.weight", layers="routed"),
                    "router_bias": Stored(f"{mlp}router.classifier.bias", layers="routed"),
                },
                optional=(*layout.optional, "router_bias"),
                switches={"router_bias": (("router_bias",), False)},
                constants={"routed_offset": 1},
                defaults={"routed_count": 3, "layers": 12, "experts": 8},
                harmless=(*_T5_HARMLESS, *_SWITCH_HARMLESS),
            ),
        ),
        always_tied=False,
        when={**record.when, "feed_forward_proj": ("relu", None), "router_dtype": ("float32", None)},
        notes=(
            *record.notes,
            "a text that sends more tokens than expert_capacity to an expert leaves the last without",
        ),
    )


_SWITCH_HARMLESS = (
    *("num_layers", "num_sparse_(encoder|decoder)_layers", "(encoder|decoder)_sparse_step"),  # of the other stack
    *("add_router_probs", "expert_capacity"),
)
SWITCH_ENCODER = _switch(T5_ENCODER, "encoder", 1, "num_layers")
SWITCH_DECODER = _switch(T5_DECODER, "decoder", 2, "num_decoder_layers")


_LONG_KEYS = ("local_radius", "global_block_size", "encoder_attention_type")


def _long(record: Family, module: str = "", kind: tuple[object, ...] = ()) -> Family:
    """Return a record of T5 as LongT5 has it: tokens of its encoder attend to a window.

    Args:
        record: The record.
        module: The name of the encoder's attention; empty for a decoder, which is T5's.
        kind: The values of ``encoder_attention_type``.
    """
    layout = replace(record.layouts[0], harmless=(*record.layouts[0].harmless, *_LONG_KEYS))
    if not module:
        return replace(record, name="longt5", model_types=("longt5",), layouts=(layout,))
    tensors = {
        name: replace(stored, name=stored.name.replace("SelfAttention", module))
        for name, stored in layout.tensors.items()
    }
    block_sums = rf"encoder\.block\.\d+\.layer\.0\.{module}\.global_\w+\.weight"
    layout = replace(
        layout,
        config={**layout.config, "window": ("local_radius",)},
        tensors=tensors,
        constants={"window_inclusive": True},
        defaults={"window": 127},
        unread=(*layout.unread, block_sums),
    )
    return replace(
        record,
        name="longt5",
        model_types=("longt5",),
        layouts=(layout,),
        when={**record.when, "encoder_attention_type": kind},
        not_run="" if None in kind else _BLOCK_SUMS,
        notes=record.notes if None in kind else (*record.notes, f"{_BLOCK_SUMS}: their norm and bias are not read"),
    )


_BLOCK_SUMS = "tokens of a text of global_block_size tokens and more also attend to the sums of its blocks"
_LOCAL, _TRANSIENT = ("LocalSelfAttention", ("local", None)), ("TransientGlobalSelfAttention", ("transient-global",))
LONGT5 = (
    *(_long(record, *kind) for record in (T5_ENCODER, T5_GATED_ENCODER) for kind in (_LOCAL, _TRANSIENT)),
    *(_long(record) for record in (T5_DECODER, T5_GATED_DECODER)),
)


def _bart_attention(stem: str, cross: str = "") -> dict[str, Stored]:
    """Return the four matrices of one attention module of BART, with their biases."""
    return {
        **weight_and_bias(f"{cross}q", f"{stem}.q_proj"),
        **weight_and_bias(f"{cross}k", f"{stem}.k_proj"),
        **weight_and_bias(f"{cross}v", f"{stem}.v_proj"),
        **weight_and_bias(f"{cross}o", f"{stem}.out_proj", transpose=True),
    }


def _bart_stack(stack: str) -> dict[str, Stored]:
    """Return the tensors that encoder and decoder have in common."""
    block = f"{stack}.layers.{{layer}}."
    return {
        "embedding": Stored("shared.weight"),
        "positions": Stored(f"{stack}.embed_positions.weight"),
        **weight_and_bias("embed_norm", f"{stack}.layernorm_embedding"),
        **weight_and_bias("attn_norm", block + "self_attn_layer_norm"),
        **weight_and_bias("ff_norm", block + "final_layer_norm"),
        **_bart_attention(block + "self_attn"),
        **weight_and_bias("key", block + "fc1"),
        **weight_and_bias("value", block + "fc2", transpose=True),
    }


def _bart_config(stack: str) -> dict[str, tuple[str, ...]]:
    return {
        "layers": (f"{stack}_layers",),
        "d": ("d_model",),
        "heads": (f"{stack}_attention_heads",),
        "kv_heads": (f"{stack}_attention_heads",),
        "neurons": (f"{stack}_ffn_dim",),
        "vocab": ("vocab_size",),
        "activation": ("activation_function",),
        "embed_scaled": ("scale_embedding",),
    }


_BART_HARMLESS = ("is_encoder_decoder", "num_hidden_layers", "(encoder|decoder)_(layers|attention_heads|ffn_dim)")
BART_ENCODER = Family(
    name="bart",
    model_types=("bart",),
    norm="layer",
    norm_place="post",
    causal=False,
    stack="encoder",
    ff_roles=("key", "value"),
    rotary=False,
    tied_by_default=True,
    layouts=(
        Layout(
            format="hf",
            prefixes=("model.", ""),
            copies=_copies("encoder", "decoder"),
            head="^lm_head.weight",
            config=_bart_config("encoder"),
            harmless=_BART_HARMLESS,
            tensors=_bart_stack("encoder"),
            unread=(r"\^final_logits_bias(\[0\])?", r"decoder\..*", r"\^(classification_head|qa_outputs)\..*"),
        ),
    ),
    config={"activation": "gelu", "eps": 1e-5},
    when={"is_encoder_decoder": (True, None)},
    first_position=2,
    notes=(
        "the encoder; the decoder, with its cross attention, opens with #decoder behind the model's name",
        "the first two rows of pos are padding: position i is pos.(i + 2)",
    ),
)
_BART_CROSS = "decoder.layers.{layer}.encoder_attn"
BART_DECODER = replace(
    BART_ENCODER,
    causal=True,
    stack="decoder",
    layouts=(
        Layout(
            format="hf",
            prefixes=("model.", ""),
            optional=("unembedding", "unembedding_bias", "head_bias"),
            copies=_copies("decoder", "encoder"),
            config=_bart_config("decoder"),
            harmless=_BART_HARMLESS,
            tensors={
                **_bart_stack("decoder"),
                "unembedding": Stored("^lm_head.weight"),
                "unembedding_bias": Stored("^final_logits_bias[0]"),  # a matrix of one row
                **weight_and_bias("cross_norm", f"{_BART_CROSS}_layer_norm"),
                **_bart_attention(_BART_CROSS, "cross_"),
                "head_bias": Stored("^classification_head.dense.bias"),
            },
            extra={
                "head": (Stored("^classification_head.dense.weight"), "read"),
                "classifier": (Stored("^classification_head.out_proj.weight"), "read"),
                "qa": (Stored("^qa_outputs.weight"), "read"),
            },
            through={"classifier": ("head", "tanh")},
            unread=(r"encoder\..*", r"\^(classification_head\.out_proj|qa_outputs)\.bias"),
        ),
    ),
    notes=(
        "the decoder; its token frame leaves out what cross attention adds, which depends on the encoder's text",
        "the first two rows of pos are padding: position i is pos.(i + 2)",
    ),
)

_PLBART = {**BART_ENCODER.config, "embed_scaled": True}
PLBART_ENCODER = replace(BART_ENCODER, name="plbart", model_types=("plbart",), config=_PLBART)
PLBART_DECODER = replace(BART_DECODER, name="plbart", model_types=("plbart",), config=_PLBART)


_LED_HARMLESS = ("max_(encoder|decoder)_position_embeddings", "attention_window")
_LED_ATTENTION = "encoder.layers.{layer}.self_attn."
_LED_HF = BART_ENCODER.layouts[0]
LED_ENCODER = replace(
    BART_ENCODER,
    name="led",
    model_types=("led",),
    layouts=(
        replace(
            _LED_HF,
            prefixes=("led.", ""),
            config={**_LED_HF.config, "window": ("attention_window",)},
            tensors={
                **_LED_HF.tensors,
                **weight_and_bias("q", _LED_ATTENTION + "longformer_self_attn.query"),
                **weight_and_bias("k", _LED_ATTENTION + "longformer_self_attn.key"),
                **weight_and_bias("v", _LED_ATTENTION + "longformer_self_attn.value"),
                **weight_and_bias("o", _LED_ATTENTION + "output", transpose=True),
            },
            unread=(
                *_LED_HF.unread,
                r"encoder\.layers\.\d+\.self_attn\.longformer_self_attn\.(query|key|value)_global\.(weight|bias)",
            ),
            constants={"window_of_both_sides": True},
            defaults={"window": 512},
            harmless=(*_BART_HARMLESS, *_LED_HARMLESS),
        ),
    ),
    first_position=0,
    notes=(*BART_ENCODER.notes[:1], GLOBAL_TOKENS),
)
LED_DECODER = replace(
    BART_DECODER,
    name="led",
    model_types=("led",),
    layouts=(
        replace(
            BART_DECODER.layouts[0],
            prefixes=("led.", ""),
            harmless=(*_BART_HARMLESS, *_LED_HARMLESS),
        ),
    ),
    first_position=0,
    notes=BART_DECODER.notes[:1],
)


def _without_prompts(record: Family) -> Family:
    """Return a record of BART as one of MVP without prompts."""
    layout = replace(record.layouts[0], harmless=(*_BART_HARMLESS, "prompt_length", "prompt_mid_dim"))
    when = {**record.when, "use_prompt": (False, None)}
    return replace(record, name="mvp", model_types=("mvp",), layouts=(layout,), when=when)


MVP_ENCODER = _without_prompts(BART_ENCODER)
MVP_DECODER = _without_prompts(BART_DECODER)


def _normed_before(record: Family, name: str, stack: str, *left_out: str) -> Family:
    """Return a record of BART with norms before its blocks and behind the last one, as mBART has them."""
    layout = record.layouts[0]
    tensors = {key: stored for key, stored in layout.tensors.items() if key not in left_out}
    tensors |= weight_and_bias("final_norm", f"{stack}.layer_norm")
    if stack == "decoder":
        tensors |= weight_and_bias("memory_norm", "encoder.layer_norm")
    return replace(
        record,
        name=name,
        model_types=(name,),
        norm_place="pre",
        layouts=(replace(layout, tensors=tensors),),
    )


MBART_ENCODER = _normed_before(BART_ENCODER, "mbart", "encoder")
MBART_DECODER = _normed_before(BART_DECODER, "mbart", "decoder")
_NO_EMBED_NORM = ("embed_norm", "embed_norm_bias")
BLENDERBOT_ENCODER = replace(
    _normed_before(BART_ENCODER, "blenderbot", "encoder", *_NO_EMBED_NORM),
    first_position=0,
    notes=BART_ENCODER.notes[:1],
)
BLENDERBOT_DECODER = replace(
    _normed_before(BART_DECODER, "blenderbot", "decoder", *_NO_EMBED_NORM),
    first_position=0,
    notes=BART_DECODER.notes[:1],
)

_EARLIER_KEYS = "add_final_layer_norm|normalize_(before|embedding)|static_position_embeddings|extra_pos_embeddings"
"""Keys of BART's earlier configuration, in which it was Marian and Pegasus as well."""


def _computed(
    record: Family,
    rule: Literal["halves", "tensor2tensor"],
    *left_out: str,
    **config: object,
) -> Family:
    """Return a record of BART's kin in which positions are computed, and maybe stored as well.

    Args:
        record: The record.
        rule: The rule of the positions.
        *left_out: Tensors that it does not have.
        **config: Values that a configuration implies where it is silent.
    """
    layout = record.layouts[0]
    tensors = {key: stored for key, stored in layout.tensors.items() if key not in ("positions", *left_out)}
    tables = [f"{stack}.embed_positions.{name}" for stack in ("encoder", "decoder") for name in ("weight", "weights")]
    return replace(
        record,
        layouts=(
            replace(
                layout,
                tensors=tensors,
                sinusoids=tuple(tables),
                harmless=(*layout.harmless, _EARLIER_KEYS, "decoder_vocab_size"),
            ),
        ),
        sinusoids=rule,
        first_position=0,
        config={**record.config, **config},
        notes=record.notes[:1],
    )


def _of_fixed_length(record: Family, name: str, **when: tuple[object, ...]) -> Family:
    """Return a record of a model that computes its positions up to a stated one, as Marian does."""
    record = _computed(record, "halves", *_NO_EMBED_NORM, embed_scaled=False, longest=1024)
    layout = record.layouts[0]
    config = {**layout.config, "longest": ("max_position_embeddings",)}
    return replace(
        record, name=name, model_types=(name,), layouts=(replace(layout, config=config),), when={**record.when, **when}
    )


_ONE_VOCABULARY = {"share_encoder_decoder_embeddings": (True, None)}
MARIAN_ENCODER = _of_fixed_length(BART_ENCODER, "marian", **_ONE_VOCABULARY)
MARIAN_DECODER = _of_fixed_length(BART_DECODER, "marian", **_ONE_VOCABULARY)
PEGASUS_ENCODER = _of_fixed_length(MBART_ENCODER, "pegasus")
PEGASUS_DECODER = _of_fixed_length(MBART_DECODER, "pegasus")


def _of_any_length(record: Family, name: str) -> Family:
    """Return a record of a model that computes its positions for as long as a text is, as fairseq's do."""
    record = _computed(record, "tensor2tensor", *_NO_EMBED_NORM, activation="relu", embed_scaled=True)
    # positions begin in the row after that of padding
    when = {**record.when, "pad_token_id": (1, None)}
    return replace(record, name=name, model_types=(name,), first_position=2, when=when)


M2M_100_ENCODER = _of_any_length(MBART_ENCODER, "m2m_100")
M2M_100_DECODER = _of_any_length(MBART_DECODER, "m2m_100")


def _of_audio(record: Family, name: str, head: str, *left_out: str) -> Family:
    """Return a record of the decoder of an encoder of audio.

    Args:
        record: The record of a decoder of text that computes the same.
        name: The name of the family.
        head: The name of its unembedding.
        *left_out: Tensors that it does not have.
    """
    layout = record.layouts[0]
    of_memory = ("cross_k", "cross_k_bias", "cross_v", "memory_norm", "memory_norm_bias", "head_bias")
    tensors = {role: s for role, s in layout.tensors.items() if role not in (*of_memory, "unembedding_bias", *left_out)}
    tables = {"embedding": Stored("decoder.embed_tokens.weight"), "unembedding": Stored(head)}
    return replace(
        record,
        name=name,
        model_types=(name,),
        stack="",
        other_memory=True,
        layouts=(
            replace(
                layout,
                optional=("unembedding",),
                copies=(),
                tensors={**tensors, **tables},
                extra={},
                through={},
                unread=(r"encoder\..*", r"decoder\.layers\.\d+\.encoder_attn\.(k_proj\..*|v_proj\.weight)"),
                harmless=(*layout.harmless, _AUDIO_KEYS),
            ),
        ),
        notes=("the decoder; its token frame leaves out what cross attention adds, which depends on the audio",),
    )


_AUDIO_KEYS = "num_mel_bins|max_(source|target)_positions|num_conv_layers|conv_(kernel_sizes|channels)"
_AUDIO_KEYS += "|input_(feat_per_channel|channels)|(use_weighted_layer_sum|classifier_proj_size|median_filter_width)"
_AUDIO_KEYS += "|apply_spec_augment|mask_(time|feature)_(prob|length|min_masks)|forced_decoder_ids|alignment_heads"
WHISPER = replace(
    _of_audio(BLENDERBOT_DECODER, "whisper", "^proj_out.weight", "k_bias"),
    when={**BART_DECODER.when, "scale_embedding": (False, None)},  # transformers ignores it
)
SPEECH_TO_TEXT = _of_audio(M2M_100_DECODER, "speech_to_text", "^lm_head.weight")


def _alone(record: Family) -> Family:
    """Return a record of a decoder by itself, which runs as a language model without an encoder."""
    layout = record.layouts[0]
    of_encoder = ("cross_", "memory_norm", "head_bias", "unembedding_bias")
    tensors = {name: stored for name, stored in layout.tensors.items() if not name.startswith(of_encoder)}
    return replace(
        record,
        stack="",
        layouts=(
            replace(
                layout,
                optional=("unembedding",),
                copies=(),
                tensors={**tensors, "embedding": Stored("decoder.embed_tokens.weight")},
                extra={},
                through={},
                unread=(r"decoder\.layers\.\d+\.encoder_attn(_layer_norm)?\..*",),
            ),
        ),
        when={**record.when, "is_encoder_decoder": (False,), "is_decoder": (True,)},
        notes=("a decoder by itself: its attention to an encoder is not read", *record.notes[1:]),
    )


ALONE = tuple(
    _alone(record)
    for record in (
        BART_DECODER,
        PLBART_DECODER,
        MBART_DECODER,
        BLENDERBOT_DECODER,
        MARIAN_DECODER,
        PEGASUS_DECODER,
    )
)

FAMILIES: tuple[Family, ...] = (
    T5_ENCODER,
    T5_GATED_ENCODER,
    T5_DECODER,
    T5_GATED_DECODER,
    MT5_ENCODER,
    MT5_GATED_ENCODER,
    MT5_DECODER,
    MT5_GATED_DECODER,
    UMT5_ENCODER,
    UMT5_GATED_ENCODER,
    UMT5_DECODER,
    UMT5_GATED_DECODER,
    SWITCH_ENCODER,
    SWITCH_DECODER,
    *LONGT5,
    BART_ENCODER,
    BART_DECODER,
    PLBART_ENCODER,
    PLBART_DECODER,
    MVP_ENCODER,
    MVP_DECODER,
    LED_ENCODER,
    LED_DECODER,
    MBART_ENCODER,
    MBART_DECODER,
    BLENDERBOT_ENCODER,
    BLENDERBOT_DECODER,
    MARIAN_ENCODER,
    MARIAN_DECODER,
    PEGASUS_ENCODER,
    PEGASUS_DECODER,
    M2M_100_ENCODER,
    M2M_100_DECODER,
    *ALONE,
    WHISPER,
    SPEECH_TO_TEXT,
)
