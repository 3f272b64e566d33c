"""Encoders built like BERT with parts of other families: rotary positions, gated MLPs, embeddings of their own."""

from dataclasses import replace

from zeropass.arch.families.bert import BERT, ROBERTA
from zeropass.arch.spec import Family, Stored, fused_qkv, weight_and_bias

_BERT_HF, _ROBERTA_HF = BERT.layouts[0], ROBERTA.layouts[0]
_WORDS = {name: _BERT_HF.tensors[name] for name in ("embedding", "types")}
_POOLER_BIAS = {"pooler_bias": _BERT_HF.tensors["pooler_bias"]}

_NOMIC = "encoder.layers.{layer}."
NOMIC_BERT = replace(
    BERT,
    name="nomic_bert",
    model_types=("nomic_bert",),
    ff_roles=("gate", "up", "value"),
    rotary=True,
    layouts=(
        replace(
            _BERT_HF,
            prefixes=("nomic_bert.", "bert.", ""),
            config={**_BERT_HF.config, "head_dim": ("head_dim",), "rope_theta": ("rope_theta",)},
            tensors={
                **_WORDS,
                "unembedding": Stored("^cls.predictions.decoder.weight"),
                **weight_and_bias("embed_norm", "emb_ln"),
                **weight_and_bias("attn_norm", _NOMIC + "norm1"),
                **weight_and_bias("ff_norm", _NOMIC + "norm2"),
                **{role: Stored(_NOMIC + "attn.Wqkv.weight", fused="stacked") for role in "qkv"},
                "o": Stored(_NOMIC + "attn.out_proj.weight", transpose=True),
                "gate": Stored(_NOMIC + "mlp.fc12.weight"),
                "up": Stored(_NOMIC + "mlp.fc11.weight"),
                "value": Stored(_NOMIC + "mlp.fc2.weight", transpose=True),
                **_POOLER_BIAS,
            },
            extra={
                **_BERT_HF.extra,
                "mlm_norm": (Stored("^cls.predictions.transform.layer_norm.bias"), "write"),
            },
            unread=(*_BERT_HF.unread, r"\^cls\.predictions\.transform\.layer_norm\.weight"),
            defaults={"rope_theta": 1000.0},
        ),
    ),
    config={"activation": "silu", "eps": 1e-12},
    when={"n_embd": (None,)},
)
# As the model's own code, and with it the published files, spell the configuration.
NOMIC_BERT_PUBLISHED = replace(
    NOMIC_BERT,
    layouts=(
        replace(
            NOMIC_BERT.layouts[0],
            config={
                "layers": ("n_layer",),
                "d": ("n_embd",),
                "heads": ("n_head",),
                "kv_heads": ("n_head",),
                "neurons": ("n_inner",),
                "vocab": ("vocab_size",),
                "eps": ("layer_norm_epsilon",),
                "rope_theta": ("rotary_emb_base",),
            },
            harmless=(
                *("dense_seq_output", "fused_bias_fc", "fused_dropout_add_ln", "use_xentropy"),
                *("max_trained_positions", "pad_vocab_size_multiple"),
            ),
        ),
    ),
    when={
        "activation_function": ("swiglu",),
        "rotary_emb_fraction": (1, 1.0),
        **{key: (False,) for key in ("qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias", "prenorm", "causal")},
    },
)

_GTE = "encoder.layer.{layer}."
GTE = replace(
    NOMIC_BERT,
    name="gte",
    model_types=("gte",),
    layouts=(
        replace(
            _ROBERTA_HF,
            prefixes=("gte.", "new.", ""),
            optional=(*_ROBERTA_HF.optional, "types"),
            config={**_BERT_HF.config, "head_dim": ("head_dim",), "rope_theta": ("rope_theta",)},
            tensors={
                **_WORDS,
                "unembedding": Stored("^lm_head.decoder.weight"),
                **weight_and_bias("embed_norm", "embeddings.LayerNorm"),
                **weight_and_bias("attn_norm", _GTE + "attn_ln"),
                **weight_and_bias("ff_norm", _GTE + "mlp_ln"),
                **fused_qkv(_GTE + "attention.qkv_proj", "stacked"),
                **weight_and_bias("o", _GTE + "attention.o_proj", transpose=True),
                "gate": Stored(_GTE + "mlp.up_gate_proj.weight", part=(1, 2)),
                "up": Stored(_GTE + "mlp.up_gate_proj.weight", part=(0, 2)),
                **weight_and_bias("value", _GTE + "mlp.down_proj", transpose=True),
                **_POOLER_BIAS,
            },
            extra={
                **_BERT_HF.extra,
                "mlm": (Stored("^lm_head.dense.weight"), "read"),
                "mlm_norm": (Stored("^lm_head.norm.bias"), "write"),
            },
            through=_BERT_HF.through,
            unread=(r"\^lm_head\.(decoder\.bias|dense\.bias|norm\.weight)", r"\^classifier\.bias"),
            defaults={"rope_theta": 160000.0},
        ),
    ),
    config={"activation": "gelu", "eps": 1e-12},
    when={},
)

_JINA = "encoder.layers.{layer}."
JINA_EMBEDDINGS_V3 = replace(
    ROBERTA,
    name="jina_embeddings_v3",
    model_types=("jina_embeddings_v3",),
    rotary=True,
    first_position=0,
    layouts=(
        replace(
            _ROBERTA_HF,
            config={**_BERT_HF.config, "head_dim": ("head_dim",), "rope_theta": ("rope_theta",)},
            tensors={
                **_WORDS,
                **{name: _ROBERTA_HF.tensors[name] for name in ("unembedding", "head_bias", "pooler_bias")},
                **weight_and_bias("embed_norm", "emb_ln"),
                **weight_and_bias("attn_norm", _JINA + "norm1"),
                **weight_and_bias("ff_norm", _JINA + "norm2"),
                **fused_qkv(_JINA + "mixer.Wqkv", "stacked"),
                **weight_and_bias("o", _JINA + "mixer.out_proj", transpose=True),
                **weight_and_bias("key", _JINA + "mlp.fc1"),
                **weight_and_bias("value", _JINA + "mlp.fc2", transpose=True),
            },
            defaults={"rope_theta": 20000.0},
        ),
    ),
    config={"activation": "gelu", "eps": 1e-5},
    when={},
    notes=(),
)

FAMILIES: tuple[Family, ...] = (
    NOMIC_BERT,
    NOMIC_BERT_PUBLISHED,
    GTE,
    JINA_EMBEDDINGS_V3,
)
