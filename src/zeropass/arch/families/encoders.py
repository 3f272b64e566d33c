"""Encoders built like BERT with parts of other families: rotary positions, gated MLPs, embeddings of their own."""

from collections.abc import Mapping
from dataclasses import replace

from zeropass.arch.families.bert import BERT, ROBERTA
from zeropass.arch.families.parts import BLK, LAYER_NORM_KEYS, LINEAR_BIASES, gguf
from zeropass.arch.layout import Layout, Stored, fused_qkv, modules, weight_and_bias
from zeropass.arch.spec import Family

_BERT_HF, _ROBERTA_HF = BERT.layouts[0], ROBERTA.layouts[0]
_WORDS = {name: _BERT_HF.tensors[name] for name in ("embedding", "types")}
_POOLER_BIAS = {"pooler_bias": _BERT_HF.tensors["pooler_bias"]}

_UNLIKE_BERT = ("unembedding", "positions", "pooler_bias")
_NOT_DEBERTA = (*_UNLIKE_BERT, "types", "k_bias")
_XLM_HARMLESS = (
    r"n_langs|use_lang_emb|lang_id|(id2lang|lang2id)",  # a model with an embedding of languages is refused by its name
    r"sinusoidal_embeddings|embed_init_std|n_words|(bos|eos|pad|unk|mask)_index|(start|end)_n_top",
)

_NOMIC_GGUF = gguf(
    "nomic-bert",
    {
        "types": Stored("token_types.weight"),
        **weight_and_bias("embed_norm", "token_embd_norm"),
        **modules(BLK, attn_norm="attn_output_norm", ff_norm="layer_output_norm"),
        **dict.fromkeys("qkv", Stored(BLK + "attn_qkv.weight", fused="stacked")),
    },
    keys=LAYER_NORM_KEYS,
    without=("unembedding", "final_norm", "rope_factors", *LINEAR_BIASES),
    optional=("types",),
)
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
        _NOMIC_GGUF,
    ),
    config={"activation": "silu", "eps": 1e-12},
    when={"n_embd": (None,), "nomic-bert.attention.causal": (False, None)},
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
        **dict.fromkeys(("qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias", "prenorm", "causal"), (False,)),
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

_ROFORMER_PROJECTION = weight_and_bias("embed_projection", "embeddings_project")
ROFORMER = replace(
    BERT,
    name="roformer",
    model_types=("roformer",),
    rotary=True,
    layouts=(
        replace(
            _BERT_HF,
            prefixes=("roformer.", ""),
            optional=("head_bias", *_ROFORMER_PROJECTION),
            config={**_BERT_HF.config, "embed": ("embedding_size",)},
            tensors={
                **{name: _BERT_HF.tensors[name] for name in _BERT_HF.tensors if name not in _UNLIKE_BERT},
                **{name: replace(_BERT_HF.tensors[name], paired_rows=True) for name in ("q", "k", "q_bias", "k_bias")},
                **_ROFORMER_PROJECTION,
                "head_bias": Stored("^classifier.dense.bias"),
            },
            extra={
                "mlm": (Stored("^cls.predictions.transform.dense.weight"), "read"),
                "head": (Stored("^classifier.dense.weight"), "read"),
                "classifier": (Stored("^classifier.out_proj.weight"), "read"),
                "token_classifier": (Stored("^classifier.weight"), "read"),
                "qa": _BERT_HF.extra["qa"],
            },
            through={"classifier": ("head", "gelu")},
            unread=(
                r"encoder\.embed_positions\.weight",  # sines and cosines, which the rotation is computed from
                r"\^cls\.predictions\.(bias|decoder\.(weight|bias)|transform\.(dense\.bias|LayerNorm\.(weight|bias)))",
                r"\^(classifier|classifier\.dense|classifier\.out_proj|qa_outputs)\.bias",
            ),
            constants={"rope_theta": 10000.0},
        ),
    ),
    when={"is_decoder": (False, None), "rotary_value": (False, None)},
)

_REMBERT_PROJECTION = weight_and_bias("embed_projection", "encoder.embedding_hidden_mapping_in")
REMBERT = replace(
    BERT,
    name="rembert",
    model_types=("rembert",),
    layouts=(
        replace(
            _BERT_HF,
            prefixes=("rembert.", ""),
            optional=("pooler_bias",),
            config={**_BERT_HF.config, "embed": ("input_embedding_size",)},
            tensors={
                **{name: stored for name, stored in _BERT_HF.tensors.items() if name != "unembedding"},
                **_REMBERT_PROJECTION,
            },
            extra={
                **{name: _BERT_HF.extra[name] for name in ("pooler", "classifier", "qa")},
                "mlm": (Stored("^cls.predictions.dense.weight"), "read"),
            },
            unread=(
                r"\^cls\.predictions\.(dense\.bias|LayerNorm\.(weight|bias)|decoder\.(weight|bias))",
                r"\^(classifier|qa_outputs)\.bias",
            ),
        ),
    ),
    tied_by_default=False,
    config={"activation": "gelu", "eps": 1e-12, "embed": 256},
    when={"is_decoder": (False, None)},
    notes=("the head has a table of its own behind its transform, which no vector of the stream meets",),
)

BERT_GENERATION = replace(
    BERT,
    name="bert-generation",
    model_types=("bert-generation",),
    causal=True,
    layouts=(
        replace(
            _BERT_HF,
            optional=("unembedding", "unembedding_bias"),
            tensors={
                **{name: stored for name, stored in _BERT_HF.tensors.items() if name not in ("types", "pooler_bias")},
                "unembedding": Stored("^lm_head.decoder.weight"),
                "unembedding_bias": Stored("^lm_head.bias"),
            },
            extra={},
            through={},
            unread=(r"embeddings\.position_ids", r"\^lm_head\.decoder\.bias"),
        ),
    ),
    when={"is_decoder": (True,)},
)
BERT_GENERATION_ENCODER = replace(BERT_GENERATION, causal=False, when={"is_decoder": (False, None)})

_BIG_BIRD_BIASES = ("q_bias", "k_bias", "v_bias")
BIG_BIRD = replace(
    BERT,
    name="big_bird",
    model_types=("big_bird",),
    layouts=(
        replace(
            _BERT_HF,
            optional=(*_BERT_HF.optional, *_BIG_BIRD_BIASES, "head_bias"),
            config={**_BERT_HF.config, "embed_scaled": ("rescale_embeddings",)},
            tensors={
                **_BERT_HF.tensors,
                "pooler_bias": Stored("pooler.bias"),
                "head_bias": Stored("^classifier.dense.bias"),
            },
            extra={
                **_BERT_HF.extra,
                "pooler": (Stored("pooler.weight"), "read"),
                "head": (Stored("^classifier.dense.weight"), "read"),
                "classifier": (Stored("^classifier.out_proj.weight"), "read"),
                "token_classifier": (Stored("^classifier.weight"), "read"),
            },
            through={"classifier": ("head", "gelu")},
            unread=(*_BERT_HF.unread, r"\^classifier\.out_proj\.bias"),
            switches={"use_bias": (_BIG_BIRD_BIASES, True)},
            harmless=("block_size", "num_random_blocks"),
        ),
    ),
    config={"activation": "gelu_new", "eps": 1e-12},
    when={"is_decoder": (False, None), "attention_type": ("original_full", "block_sparse", None)},
    notes=("a text of more than (5 + 2 num_random_blocks) block_size tokens attends to a part of them, by position",),
)

GLOBAL_TOKENS = (
    "tokens that the caller marks as global have queries, keys and values of their own, by matrices that are not read; "
    "what is read is what all others go through"
)
LONGFORMER = replace(
    ROBERTA,
    name="longformer",
    model_types=("longformer",),
    layouts=(
        replace(
            _ROBERTA_HF,
            prefixes=("longformer.", ""),
            config={**_BERT_HF.config, "window": ("attention_window",)},
            unread=(
                *_ROBERTA_HF.unread,
                r"encoder\.layer\.\d+\.attention\.self\.(query|key|value)_global\.(weight|bias)",
            ),
            constants={"window_of_both_sides": True},
            defaults={"window": 512},
        ),
    ),
    config={"activation": "gelu", "eps": 1e-12},
    when={"pad_token_id": (1, None), "attention_mode": ("longformer", None)},
    notes=(*ROBERTA.notes, GLOBAL_TOKENS),
)

IBERT = replace(
    ROBERTA,
    name="ibert",
    model_types=("ibert",),
    layouts=(
        replace(
            _ROBERTA_HF,
            prefixes=("ibert.", ""),
            unread=(
                *_ROBERTA_HF.unread,
                r".*\.(weight_integer|bias_integer|(fc|weight|act)_scaling_factor|x_min|x_max|LayerNorm\.shift)",
            ),
            harmless=("force_dequant",),
        ),
    ),
    config={"activation": "gelu", "eps": 1e-12},
    when={"quant_mode": (False, None), "pad_token_id": (1, None)},
)

_QASS = ("query_start", "query_end", "start", "end")
SPLINTER = replace(
    BERT,
    name="splinter",
    model_types=("splinter",),
    layouts=(
        replace(
            _BERT_HF,
            prefixes=("splinter.", ""),
            optional=(),
            tensors={
                name: stored for name, stored in _BERT_HF.tensors.items() if name not in ("unembedding", "pooler_bias")
            },
            extra={name: (Stored(f"^splinter_qass.{name}_transform.dense.weight"), "read") for name in _QASS},
            through={},
            unread=(
                r"embeddings\.position_ids",
                r"\^splinter_qass\.\w+_transform\.(dense\.bias|LayerNorm\.(weight|bias))",
                r"\^splinter_qass\.(start|end)_classifier\.weight",
            ),
            harmless=("question_token_id",),
        ),
    ),
    when={},
)

DPR = replace(
    SPLINTER,
    name="dpr",
    model_types=("dpr",),
    layouts=(
        replace(
            SPLINTER.layouts[0],
            prefixes=("question_encoder.bert_model.", "ctx_encoder.bert_model.", "span_predictor.encoder.bert_model."),
            extra={
                "qa": (Stored("^span_predictor.qa_outputs.weight"), "read"),
                "qa_classifier": (Stored("^span_predictor.qa_classifier.weight"), "read"),
            },
            unread=(
                r"embeddings\.position_ids",
                r"pooler\.dense\.(weight|bias)",  # in old files; the passage's vector is the state of its first token
                r"\^span_predictor\.qa_(outputs|classifier)\.bias",
            ),
            harmless=(),
        ),
    ),
    when={"is_decoder": (False, None), "projection_dim": (0, None)},
)

_SIGLIP = "encoder.layers.{layer}."
SIGLIP = replace(
    BERT,
    name="siglip",
    model_types=("siglip_text_model", "siglip2_text_model"),
    norm_place="pre",
    always_tied=True,
    layouts=(
        Layout(
            format="hf",
            prefixes=("text_model.", ""),
            config=_BERT_HF.config,
            tensors={
                "embedding": Stored("embeddings.token_embedding.weight"),
                "positions": Stored("embeddings.position_embedding.weight"),
                **modules("", final_norm="final_layer_norm"),
                **modules(_SIGLIP, attn_norm="layer_norm1", ff_norm="layer_norm2", key="mlp.fc1", value="mlp.fc2"),
                **modules(_SIGLIP + "self_attn.", q="q_proj", k="k_proj", v="v_proj", o="out_proj"),
            },
            extra={"head": (Stored("head.weight"), "read")},
            unread=(r"embeddings\.position_ids", r"head\.bias"),
            harmless=("projection_size",),
        ),
    ),
    config={"activation": "gelu_pytorch_tanh", "eps": 1e-6},
    when={},
    notes=(
        "its words are those of its embedding: it has no unembedding, and compares a text with images",
        "it was trained on texts that padding fills, to which it attends; here a text is read without",
    ),
)

LUKE = replace(
    ROBERTA,
    name="luke",
    model_types=("luke",),
    layouts=(
        replace(
            _ROBERTA_HF,
            prefixes=("luke.", ""),
            optional=("unembedding", "pooler_bias"),
            tensors={name: stored for name, stored in _ROBERTA_HF.tensors.items() if name != "head_bias"},
            extra={name: _ROBERTA_HF.extra[name] for name in ("pooler", "mlm", "mlm_norm")},
            through={},
            unread=(
                *_ROBERTA_HF.unread,
                r"entity_embeddings\..*",
                r"encoder\.layer\.\d+\.attention\.self\.(w2e|e2w|e2e)_query\.(weight|bias)",
                r"\^entity_predictions\..*",
            ),
            harmless=("use_entity_aware_attention", "entity_vocab_size", "entity_emb_size"),
        ),
    ),
    config={"activation": "gelu", "eps": 1e-12},
    when={"pad_token_id": (1, None), "cls_entity_prediction": (False, None)},
    notes=(*ROBERTA.notes, "entities are not read: a text without them goes through what is read alone"),
)

XLM = replace(
    BERT,
    name="xlm",
    model_types=("xlm",),
    layouts=(
        Layout(
            format="hf",
            prefixes=("transformer.", ""),
            optional=("unembedding", "unembedding_bias"),
            config={
                "layers": ("n_layers",),
                "d": ("emb_dim",),
                "heads": ("n_heads",),
                "kv_heads": ("n_heads",),
                "vocab": ("vocab_size",),
                "eps": ("layer_norm_eps",),
            },
            tensors={
                "embedding": Stored("embeddings.weight"),
                **weight_and_bias("unembedding", "^pred_layer.proj"),
                "positions": Stored("position_embeddings.weight"),
                **weight_and_bias("embed_norm", "layer_norm_emb"),
                **weight_and_bias("attn_norm", "layer_norm1.{layer}"),
                **weight_and_bias("ff_norm", "layer_norm2.{layer}"),
                **weight_and_bias("q", "attentions.{layer}.q_lin"),
                **weight_and_bias("k", "attentions.{layer}.k_lin"),
                **weight_and_bias("v", "attentions.{layer}.v_lin"),
                **weight_and_bias("o", "attentions.{layer}.out_lin", transpose=True),
                **weight_and_bias("key", "ffns.{layer}.lin1"),
                **weight_and_bias("value", "ffns.{layer}.lin2", transpose=True),
            },
            extra={"classifier": (Stored("^sequence_summary.summary.weight"), "read")},
            unread=(r"position_ids", r"\^sequence_summary\.summary\.bias"),
            harmless=_XLM_HARMLESS,
        ),
    ),
    when={"causal": (False, None), "is_encoder": (True, None), "gelu_activation": (True, None)},
)
FLAUBERT = replace(
    XLM,
    name="flaubert",
    model_types=("flaubert",),
    config={"activation": "gelu", "eps": 1e-12},
    when={**XLM.when, "pre_norm": (False, None)},
)

_DEBERTA = "encoder.layer.{layer}.attention.self."
_DEBERTA_ATTENTION = {
    "is_decoder": (False, None),
    "relative_attention": (True,),
    "position_biased_input": (False,),
    "pos_att_type": ("c2p|p2c", "p2c|c2p", ["c2p", "p2c"], ["p2c", "c2p"]),
}
DEBERTA = replace(
    BERT,
    name="deberta",
    model_types=("deberta",),
    layouts=(
        replace(
            _BERT_HF,
            prefixes=("deberta.", ""),
            config={
                **_BERT_HF.config,
                "distance_reach": ("max_relative_positions",),
                "longest_text": ("max_position_embeddings",),
            },
            tensors={
                **{name: stored for name, stored in _BERT_HF.tensors.items() if name not in _NOT_DEBERTA},
                **dict.fromkeys("qkv", Stored(_DEBERTA + "in_proj.weight", fused="grouped")),
                **{bias: Stored(_DEBERTA + bias) for bias in ("q_bias", "v_bias")},
                "distances": Stored("encoder.rel_embeddings.weight"),
                **weight_and_bias("distance_q", _DEBERTA + "pos_q_proj"),
                "distance_k": Stored(_DEBERTA + "pos_proj.weight"),
                "pooler_bias": Stored("^pooler.dense.bias"),
            },
            extra={
                **_BERT_HF.extra,
                "pooler": (Stored("^pooler.dense.weight"), "read"),
                "lm_head": (Stored("^lm_predictions.lm_head.dense.weight"), "read"),
            },
            through={"classifier": ("pooler", "gelu")},
            unread=(
                *_BERT_HF.unread,
                r"embeddings\.position_embeddings\.weight",  # of files that keep one that nothing uses
                r"\^lm_predictions\.lm_head\.(bias|dense\.bias|LayerNorm\.(weight|bias))",
            ),
            constants={"attention_terms": 3},
            harmless=("legacy", "padding_idx", "pooler_hidden_(act|size)"),
        ),
    ),
    config={"activation": "gelu", "eps": 1e-7},
    when=_DEBERTA_ATTENTION,
)
DEBERTA_V2 = replace(
    DEBERTA,
    name="deberta-v2",
    model_types=("deberta-v2",),
    layouts=(
        replace(
            DEBERTA.layouts[0],
            config={
                **DEBERTA.layouts[0].config,
                "head_dim": ("attention_head_size",),
                "distance_buckets": ("position_buckets",),
            },
            tensors={
                **{name: s for name, s in DEBERTA.layouts[0].tensors.items() if not name.startswith("distance_")},
                **weight_and_bias("q", _DEBERTA + "query_proj"),
                **weight_and_bias("k", _DEBERTA + "key_proj"),
                **weight_and_bias("v", _DEBERTA + "value_proj"),
                **weight_and_bias("distances_norm", "encoder.LayerNorm"),
            },
        ),
    ),
    when={
        **_DEBERTA_ATTENTION,
        "share_att_key": (True,),
        "norm_rel_ebd": ("layer_norm",),
        "conv_kernel_size": (0, None),  # a convolution behind the first layer mixes neighbouring tokens
    },
    notes=("distances are seen by the queries and keys of tokens, whose columns therefore read them as well",),
)

_ESM = "encoder.layer.{layer}."
ESM = replace(
    BERT,
    name="esm",
    model_types=("esm",),
    norm_place="pre",
    rotary=True,
    layouts=(
        replace(
            _ROBERTA_HF,
            prefixes=("esm.", ""),
            optional=(*_ROBERTA_HF.optional, "embed_norm", "embed_norm_bias"),
            config={
                **{name: keys for name, keys in _BERT_HF.config.items() if name != "activation"},
                "rope_theta": ("rope_theta",),
            },
            tensors={
                **{name: s for name, s in _ROBERTA_HF.tensors.items() if name not in ("types", "positions")},
                **weight_and_bias("embed_norm", "embeddings.layer_norm"),
                **weight_and_bias("attn_norm", _ESM + "attention.LayerNorm"),
                **weight_and_bias("ff_norm", _ESM + "LayerNorm"),
                **weight_and_bias("final_norm", "encoder.emb_layer_norm_after"),
            },
            unread=(
                *_ROBERTA_HF.unread,
                r"contact_head\.regression\.(weight|bias)",
                # of every layer or, as transformers 5 saves it, of one that it calls by an asterisk
                r"encoder\.layer\.(\d+|\*)\.attention\.self\.rotary_embeddings\.inv_freq",
                r"embeddings\.position_embeddings\.weight",  # of files that keep one that nothing uses
            ),
            switches={"emb_layer_norm_before": (("embed_norm", "embed_norm_bias"), False)},
            constants={"embed_scale": 0.88, "activation": "gelu"},
            harmless=("hidden_act",),  # transformers has GELU whatever it says
        ),
    ),
    config={"eps": 1e-12},
    when={"position_embedding_type": ("rotary",), "token_dropout": (True,), "is_decoder": (False, None)},
    notes=("rows are scaled as in a text without masks; a masked token has a row of zeros and raises the others'",),
)
ESM_ABSOLUTE = replace(
    ESM,
    rotary=False,
    first_position=2,
    layouts=(
        replace(
            ESM.layouts[0],
            tensors={**ESM.layouts[0].tensors, "positions": _ROBERTA_HF.tensors["positions"]},
            harmless=("hidden_act", "rope_theta"),
        ),
    ),
    when={**ESM.when, "position_embedding_type": ("absolute", None), "pad_token_id": (1,)},
    notes=(*ESM.notes, *ROBERTA.notes),
)

FAMILIES: tuple[Family, ...] = (
    NOMIC_BERT_PUBLISHED,
    NOMIC_BERT,
    GTE,
    JINA_EMBEDDINGS_V3,
    ROFORMER,
    REMBERT,
    BERT_GENERATION,
    BERT_GENERATION_ENCODER,
    BIG_BIRD,
    LONGFORMER,
    IBERT,
    SPLINTER,
    DPR,
    SIGLIP,
    LUKE,
    XLM,
    FLAUBERT,
    DEBERTA,
    DEBERTA_V2,
    ESM,
    ESM_ABSOLUTE,
)

_APPROXIMATE = "its attention approximates a softmax"
_ON_A_PAGE = "each of its tokens has a place on a page, which adds to its row"
NOT_READ: Mapping[str, str] = {
    "canine": "it reads characters by hashes, without a table of tokens",
    "convbert": "some of its heads are convolutions",
    "fnet": "Fourier transforms stand in the place of its attention",
    "funnel": "it pools the tokens of a text between its blocks",
    "layoutlm": _ON_A_PAGE,
    "lilt": _ON_A_PAGE,
    "markuplm": "each of its tokens has a place in a document tree, which adds to its row",
    "mobilebert": "its blocks are narrower than the stream between them",
    "mra": _APPROXIMATE,
    "nystromformer": _APPROXIMATE,
    "roc_bert": "the row of a token is made of its shape and its pronunciation as well",
    "squeezebert": "its linear layers are convolutions in groups",
    "tapas": "each of its tokens has a place in a table, which adds to its row",
    "xmod": "each layer ends with an adapter of the text's language, which the files do not choose",
    "yoso": _APPROXIMATE,
}
"""Model types of encoders that no record can describe, and why."""
