"""BERT and its relatives: encoders that norm the stream after each block, and ModernBERT, built like a decoder."""

from collections.abc import Mapping
from dataclasses import replace

from zeropass.arch.families.parts import (
    ATTENTION_BIAS,
    BLK,
    GGUF_GATE_UP,
    GGUF_POSITIONS,
    GGUF_UP_DOWN,
    LAYER_NORM_KEYS,
    LINEAR_BIASES,
    MLP_BIASES,
    NO_GATE,
    SIZES,
    gguf,
)
from zeropass.arch.layout import Layout, Stored, fused_qkv, modules, weight_and_bias
from zeropass.arch.roles import Side
from zeropass.arch.spec import Family

_BERT = "encoder.layer.{layer}."
_QA: Mapping[str, tuple[Stored, Side]] = {"qa": (Stored("^qa_outputs.weight"), "read")}
_TASKS: Mapping[str, tuple[Stored, Side]] = {"classifier": (Stored("^classifier.weight"), "read"), **_QA}

_BERT_HF = Layout(
    format="hf",
    prefixes=("bert.", ""),
    optional=("unembedding", "pooler_bias"),
    config={**SIZES, "eps": ("layer_norm_eps",)},
    tensors={
        "embedding": Stored("embeddings.word_embeddings.weight"),
        "unembedding": Stored("^cls.predictions.decoder.weight"),
        "positions": Stored("embeddings.position_embeddings.weight"),
        "types": Stored("embeddings.token_type_embeddings.weight"),
        **weight_and_bias("embed_norm", "embeddings.LayerNorm"),
        **modules(_BERT, attn_norm="attention.output.LayerNorm", ff_norm="output.LayerNorm"),
        **modules(_BERT + "attention.", q="self.query", k="self.key", v="self.value", o="output.dense"),
        **modules(_BERT, key="intermediate.dense", value="output.dense"),
        "pooler_bias": Stored("pooler.dense.bias"),
    },
    extra={
        "pooler": (Stored("pooler.dense.weight"), "read"),
        "mlm": (Stored("^cls.predictions.transform.dense.weight"), "read"),
        "mlm_norm": (Stored("^cls.predictions.transform.LayerNorm.bias"), "write"),
        **_TASKS,
    },
    through={"classifier": ("pooler", "tanh")},
    unread=(
        r"embeddings\.position_ids",
        r"\^cls\.predictions\.(bias|decoder\.bias|transform\.dense\.bias|transform\.LayerNorm\.weight)",
        r"\^(classifier|qa_outputs)\.bias",
        r"\^cls\.seq_relationship\.(weight|bias)",  # reads the tanh of the pooler, not the stream
    ),
)
_BERT_GGUF = gguf(  # of RoBERTa and its kin as well: the converter leaves out positions of padding, pooler and head
    "bert",
    {
        "positions": GGUF_POSITIONS,
        "types": Stored("token_types.weight"),
        **weight_and_bias("embed_norm", "token_embd_norm"),
        **modules(BLK, attn_norm="attn_output_norm", ff_norm="layer_output_norm"),
        **GGUF_UP_DOWN,
    },
    keys=LAYER_NORM_KEYS,
    without=("unembedding", "final_norm", "rope_factors", *NO_GATE),
    optional=("types",),
)
BERT = Family(
    name="bert",
    model_types=("bert",),
    norm="layer",
    norm_place="post",
    causal=False,
    ff_roles=("key", "value"),
    rotary=False,
    tied_by_default=True,
    layouts=(_BERT_HF, _BERT_GGUF),
    config={"activation": "gelu", "eps": 1e-12},
    when={"is_decoder": (False, None), "bert.attention.causal": (False, None)},
)
_THROUGH_HEAD = (
    "a dense layer, a GELU and a norm stand between the final norm and the unembedding: lists of what is written "
    "take the direct path, as those of encoders do"
)


def _causal(record: Family, dense: str, norm: str, bias: str, *not_extra: str, **when: tuple[object, ...]) -> Family:
    """Return the record of an encoder as one of a decoder, whose logits the head of masked tokens makes.

    Args:
        record: The record of the encoder.
        dense: The name of the dense layer of its head.
        norm: The name of the norm of its head.
        bias: The name of the bias of its unembedding.
        *not_extra: Extra vectors of the encoder that the decoder does not have, or has as parts of its head.
        **when: Values of the configuration that the record is for, beyond those of the encoder.
    """
    layout = record.layouts[0]
    head = {
        "unembedding_bias": Stored(bias),
        "head_bias": Stored(f"{dense}.bias"),
        **weight_and_bias("head_norm", norm),
    }
    extra = {name: entry for name, entry in layout.extra.items() if name not in not_extra}
    return replace(
        record,
        causal=True,
        layouts=(
            replace(
                layout,
                optional=(*layout.optional, *head),
                tensors={**layout.tensors, **head},
                extra={**extra, "head": (Stored(f"{dense}.weight"), "read")},
                through={name: way for name, way in layout.through.items() if name not in not_extra},
            ),
        ),
        when={**record.when, "is_decoder": (True,), **when},
        notes=(*record.notes, _THROUGH_HEAD),
    )


_BERT_HEAD = "^cls.predictions.transform."
BERT_DECODER = _causal(
    BERT,
    _BERT_HEAD + "dense",
    _BERT_HEAD + "LayerNorm",
    "^cls.predictions.bias",
    "mlm",
    "mlm_norm",
    hidden_act=("gelu", None),  # the activation of the head too
)

_BODY = {name: stored for name, stored in _BERT_HF.tensors.items() if name not in ("unembedding", "pooler_bias")}

_ROBERTA_PADDING = {"pad_token_id": (1, None)}  # positions begin in the row after it
ROBERTA = replace(
    BERT,
    name="roberta",
    model_types=("roberta", "xlm-roberta", "camembert"),
    when={**BERT.when, **_ROBERTA_PADDING},
    layouts=(
        replace(
            _BERT_HF,
            prefixes=("roberta.", ""),
            optional=("unembedding", "pooler_bias", "head_bias"),
            tensors={
                **_BERT_HF.tensors,
                "unembedding": Stored("^lm_head.decoder.weight"),
                "head_bias": Stored("^classifier.dense.bias"),
            },
            extra={
                "pooler": (Stored("pooler.dense.weight"), "read"),
                "mlm": (Stored("^lm_head.dense.weight"), "read"),
                "mlm_norm": (Stored("^lm_head.layer_norm.bias"), "write"),
                "head": (Stored("^classifier.dense.weight"), "read"),
                "classifier": (Stored("^classifier.out_proj.weight"), "read"),
                "token_classifier": (Stored("^classifier.weight"), "read"),
                **_QA,
            },
            through={"classifier": ("head", "tanh")},
            unread=(
                r"embeddings\.position_ids",
                r"\^lm_head\.(bias|decoder\.bias|dense\.bias|layer_norm\.weight)",
                r"\^(classifier|classifier\.out_proj|qa_outputs)\.bias",
            ),
        ),
    ),
    first_position=2,
    notes=("the first rows of pos are padding: position i is pos.(i + 2)",),
)
ROBERTA_DECODER = _causal(
    ROBERTA, "^lm_head.dense", "^lm_head.layer_norm", "^lm_head.bias", "mlm", "mlm_norm", "classifier"
)

_DISTIL = "transformer.layer.{layer}."
DISTILBERT = replace(
    BERT,
    name="distilbert",
    model_types=("distilbert",),
    layouts=(
        replace(
            _BERT_HF,
            prefixes=("distilbert.", ""),
            optional=("unembedding",),
            config={
                "layers": ("n_layers", "num_hidden_layers"),
                "d": ("dim", "hidden_size"),
                **dict.fromkeys(("heads", "kv_heads"), ("n_heads", "num_attention_heads")),
                "neurons": ("hidden_dim",),
                "vocab": ("vocab_size",),
                "activation": ("activation",),
            },
            tensors={
                **{name: stored for name, stored in _BODY.items() if name.startswith(("embed", "positions"))},
                "unembedding": Stored("^vocab_projector.weight"),
                **modules(_DISTIL, attn_norm="sa_layer_norm", ff_norm="output_layer_norm"),
                **modules(_DISTIL + "attention.", q="q_lin", k="k_lin", v="v_lin", o="out_lin"),
                **modules(_DISTIL + "ffn.", key="lin1", value="lin2"),
            },
            extra={
                "mlm": (Stored("^vocab_transform.weight"), "read"),
                "mlm_norm": (Stored("^vocab_layer_norm.bias"), "write"),
                "pre_classifier": (Stored("^pre_classifier.weight"), "read"),
                **_TASKS,
            },
            through={"classifier": ("pre_classifier", "relu")},
            unread=(
                r"\^vocab_(projector\.bias|transform\.bias|layer_norm\.weight)",
                r"\^(pre_classifier|classifier|qa_outputs)\.bias",
            ),
        ),
    ),
    when={},
    notes=("a classifier behind its ReLU is read by the half of it that is linear",),
)

_EMBED_PROJECTION = weight_and_bias("embed_projection", "embeddings_project")
ELECTRA = replace(
    BERT,
    name="electra",
    model_types=("electra",),
    layouts=(
        replace(
            _BERT_HF,
            prefixes=("electra.", ""),
            optional=("head_bias", *_EMBED_PROJECTION),
            config={**_BERT_HF.config, "embed": ("embedding_size",)},
            tensors={**_BODY, **_EMBED_PROJECTION, "head_bias": Stored("^classifier.dense.bias")},
            extra={
                "mlm": (Stored("^generator_predictions.dense.weight"), "read"),
                "discriminator": (Stored("^discriminator_predictions.dense.weight"), "read"),
                "head": (Stored("^classifier.dense.weight"), "read"),
                "classifier": (Stored("^classifier.out_proj.weight"), "read"),
                "token_classifier": (Stored("^classifier.weight"), "read"),
                **_QA,
            },
            through={"classifier": ("head", "gelu")},
            unread=(
                r"embeddings\.position_ids",
                r"\^generator_predictions\.(dense\.bias|LayerNorm\.(weight|bias))",
                r"\^generator_lm_head\.(weight|bias)",
                r"\^discriminator_predictions\.(dense\.bias|dense_prediction\.(weight|bias))",
                r"\^(classifier|classifier\.out_proj|qa_outputs)\.bias",
            ),
        ),
    ),
    config={"activation": "gelu", "eps": 1e-12, "embed": 128},
    notes=("a generator's own head behind its transform is not read: its rows are those of the embedding",),
)

_ALBERT = "encoder.albert_layer_groups.0.albert_layers.0."
ALBERT = replace(
    BERT,
    name="albert",
    model_types=("albert",),
    layouts=(
        replace(
            _BERT_HF,
            prefixes=("albert.", ""),
            optional=("pooler_bias",),
            config={**_BERT_HF.config, "embed": ("embedding_size",)},
            tensors={
                **{name: stored for name, stored in _BODY.items() if name.startswith(("embed", "positions", "types"))},
                **weight_and_bias("embed_projection", "encoder.embedding_hidden_mapping_in"),
                **modules(_ALBERT, attn_norm="attention.LayerNorm", ff_norm="full_layer_layer_norm"),
                **modules(_ALBERT + "attention.", q="query", k="key", v="value", o="dense"),
                **modules(_ALBERT, key="ffn", value="ffn_output"),
                "pooler_bias": Stored("pooler.bias"),
            },
            extra={
                "pooler": (Stored("pooler.weight"), "read"),
                "mlm": (Stored("^predictions.dense.weight"), "read"),
                **_TASKS,
            },
            unread=(
                r"embeddings\.position_ids",
                r"\^predictions\.(bias|decoder\.(weight|bias)|dense\.bias|LayerNorm\.(weight|bias))",
                r"\^sop_classifier\.classifier\.(weight|bias)",
                r"\^(classifier|qa_outputs)\.bias",
            ),
        ),
    ),
    config={"activation": "gelu_new", "eps": 1e-12, "embed": 128},
    when={"num_hidden_groups": (1, None), "inner_group_num": (1, None)},
    notes=("all layers are one: L0 and the last have the same parameters and differ in what they read",),
)

DATA2VEC_TEXT = replace(
    ROBERTA,
    name="data2vec-text",
    model_types=("data2vec-text",),
    layouts=(replace(ROBERTA.layouts[0], prefixes=("data2vec_text.", "")),),
)

ERNIE = replace(
    BERT,
    name="ernie",
    model_types=("ernie",),
    layouts=(replace(_BERT_HF, prefixes=("ernie.", ""), harmless=("task_type_vocab_size",)),),
    when={**BERT.when, "use_task_id": (False, None)},
)

ROBERTA_PRELAYERNORM = replace(
    ROBERTA,
    name="roberta-prelayernorm",
    model_types=("roberta-prelayernorm",),
    norm_place="pre",
    layouts=(
        replace(
            ROBERTA.layouts[0],
            prefixes=("roberta_prelayernorm.", ""),
            tensors={
                **ROBERTA.layouts[0].tensors,
                **weight_and_bias("attn_norm", _BERT + "attention.LayerNorm"),
                **weight_and_bias("ff_norm", _BERT + "intermediate.LayerNorm"),
                **weight_and_bias("final_norm", "LayerNorm"),
            },
        ),
    ),
)
XLM_ROBERTA_XL = replace(
    ROBERTA_PRELAYERNORM,
    name="xlm-roberta-xl",
    model_types=("xlm-roberta-xl",),
    layouts=(
        replace(
            ROBERTA.layouts[0],
            tensors={
                **{name: s for name, s in ROBERTA.layouts[0].tensors.items() if not name.startswith("embed_norm")},
                **weight_and_bias("attn_norm", _BERT + "attention.self_attn_layer_norm"),
                **weight_and_bias("ff_norm", _BERT + "LayerNorm"),
                **weight_and_bias("final_norm", "encoder.LayerNorm"),
            },
        ),
    ),
    config={"activation": "gelu", "eps": 1e-5},
)
MEGATRON_BERT = replace(
    BERT,
    name="megatron-bert",
    model_types=("megatron-bert",),
    norm_place="pre",
    layouts=(
        replace(
            _BERT_HF,
            tensors={
                **{name: s for name, s in _BERT_HF.tensors.items() if not name.startswith("embed_norm")},
                **weight_and_bias("attn_norm", _BERT + "attention.ln"),
                **weight_and_bias("ff_norm", _BERT + "ln"),
                **weight_and_bias("final_norm", "encoder.ln"),
            },
        ),
    ),
)

MPNET = replace(
    ROBERTA,
    name="mpnet",
    model_types=("mpnet",),
    layouts=(
        replace(
            ROBERTA.layouts[0],
            prefixes=("mpnet.", ""),
            tensors={
                **{name: s for name, s in ROBERTA.layouts[0].tensors.items() if name != "types"},
                "relative": Stored("encoder.relative_attention_bias.weight"),
                **weight_and_bias("attn_norm", _BERT + "attention.LayerNorm"),
                **weight_and_bias("q", _BERT + "attention.attn.q"),
                **weight_and_bias("k", _BERT + "attention.attn.k"),
                **weight_and_bias("v", _BERT + "attention.attn.v"),
                **weight_and_bias("o", _BERT + "attention.attn.o", transpose=True),
            },
        ),
    ),
)

_MODERN = "layers.{layer}."
_MODERN_NORM_BIASES = ("embed_norm_bias", "attn_norm_bias", "ff_norm_bias", "final_norm_bias")
_MODERN_HF = Layout(
    format="hf",
    prefixes=("model.", ""),
    optional=("unembedding", "head_bias", *LINEAR_BIASES, *_MODERN_NORM_BIASES),
    config={
        **SIZES,
        "eps": ("norm_eps",),
        "activation": ("hidden_activation",),
        "rope_theta": ("global_rope_theta",),
        "local_rope_theta": ("local_rope_theta",),
        "window": ("local_attention",),
        "layer_kinds": ("layer_types",),
        "global_every": ("global_attn_every_n_layers",),
    },
    tensors={
        "embedding": Stored("embeddings.tok_embeddings.weight"),
        "unembedding": Stored("^decoder.weight"),
        **modules("", embed_norm="embeddings.norm", final_norm="final_norm"),
        **modules(_MODERN, attn_norm="attn_norm", ff_norm="mlp_norm"),
        **fused_qkv(_MODERN + "attn.Wqkv", "stacked"),
        **modules(_MODERN, o="attn.Wo"),
        **weight_and_bias("gate", _MODERN + "mlp.Wi", part=(0, 2)),
        **weight_and_bias("up", _MODERN + "mlp.Wi", part=(1, 2)),
        **modules(_MODERN, value="mlp.Wo"),
        "head_bias": Stored("^head.dense.bias"),
    },
    extra={
        "head": (Stored("^head.dense.weight"), "read"),
        **_TASKS,
    },
    through={"classifier": ("head", "gelu")},
    unread=(r"\^head\.norm\.(weight|bias)", r"\^(decoder|classifier|qa_outputs)\.bias"),
    switches={**ATTENTION_BIAS, "mlp_bias": (MLP_BIASES, False), "norm_bias": (_MODERN_NORM_BIASES, False)},
    constants={"rope_theta": 160000.0, "local_rope_theta": 10000.0, "window_of_both_sides": True},
    defaults={"global_every": 3, "window": 128},
    harmless=("layer_norm_eps",),  # norm_eps is the one that counts
)
_MODERN_GGUF = gguf(  # the converter leaves out the head
    "modern-bert",
    {
        "embed_norm": Stored("token_embd_norm.weight"),
        **dict.fromkeys("qkv", Stored(BLK + "attn_qkv.weight", fused="stacked")),
        **GGUF_GATE_UP,
    },
    keys={
        **LAYER_NORM_KEYS,
        "activation": ("hidden_activation",),
        "layer_kinds": (),
        "local_every": (),
        "global_every": ("attention.sliding_window_pattern",),
    },
    without=("unembedding", "rope_factors", *LINEAR_BIASES),
    optional=(),
    constants={"window_of_both_sides": True},
)
MODERNBERT = Family(
    name="modernbert",
    model_types=("modernbert",),
    norm="layer",
    norm_place="pre",
    causal=False,
    bare_start=True,
    ff_roles=("gate", "up", "value"),
    rotary=True,
    tied_by_default=True,
    layouts=(
        _MODERN_HF,
        replace(
            _MODERN_GGUF,
            defaults={"global_every": 3},
            harmless=(r"attention\.layer_norm_rms_epsilon",),  # the same number
        ),
    ),
    config={"activation": "gelu", "eps": 1e-5},
    when={"classifier_activation": ("gelu", None), "modern-bert.attention.causal": (False, None)},
    notes=("a classifier behind its GELU and norm is read by the part of it that is linear",),
)

_MODERN_HF = MODERNBERT.layouts[0]
MODERNBERT_DECODER = replace(
    MODERNBERT,
    name="modernbert-decoder",
    model_types=("modernbert-decoder",),
    causal=True,
    layouts=(
        replace(
            _MODERN_HF,
            optional=(*_MODERN_HF.optional, "unembedding_bias", "head_norm_bias"),
            config={**_MODERN_HF.config, "window_itself": ("sliding_window",)},
            switches={
                **_MODERN_HF.switches,
                "norm_bias": (("embed_norm_bias", "attn_norm_bias", "ff_norm_bias", "final_norm_bias"), False),
                "decoder_bias": (("unembedding_bias",), True),
                "classifier_bias": (("head_bias",), False),
            },
            tensors={
                **_MODERN_HF.tensors,
                **weight_and_bias("q", _MODERN + "attn.q_proj"),
                **weight_and_bias("k", _MODERN + "attn.k_proj"),
                **weight_and_bias("v", _MODERN + "attn.v_proj"),
                "unembedding_bias": Stored("^decoder.bias"),
                "head_bias": Stored("^lm_head.dense.bias"),
                **weight_and_bias("head_norm", "^lm_head.norm"),
            },
            extra={"head": (Stored("^lm_head.dense.weight"), "read")},
            through={},
            unread=(),
        ),
    ),
    when={"classifier_activation": ("gelu", None)},
    notes=(_THROUGH_HEAD,),
)

FAMILIES = (
    BERT,
    BERT_DECODER,
    ROBERTA,
    ROBERTA_DECODER,
    DATA2VEC_TEXT,
    ERNIE,
    ROBERTA_PRELAYERNORM,
    XLM_ROBERTA_XL,
    MEGATRON_BERT,
    MPNET,
    DISTILBERT,
    ELECTRA,
    ALBERT,
    MODERNBERT,
    MODERNBERT_DECODER,
)
