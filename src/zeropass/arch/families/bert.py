"""BERT and its kin: encoders whose stream is normed after every block, and one (ModernBERT) like today's decoders."""

from collections.abc import Mapping
from dataclasses import replace

from zeropass.arch.spec import Family, Layout, Side, Stored, fused_qkv

_BERT = "encoder.layer.{layer}."

BERT = Family(
    name="bert",
    model_types=("bert",),
    norm="layer",
    norm_place="post",
    causal=False,
    ff_roles=("key", "value"),
    rotary=False,
    tied_by_default=True,
    layouts=(
        Layout(
            format="hf",
            prefixes=("bert.", ""),
            optional=("unembedding", "pooler_bias"),
            config={
                "layers": ("num_hidden_layers",),
                "d": ("hidden_size",),
                "heads": ("num_attention_heads",),
                "kv_heads": ("num_attention_heads",),
                "neurons": ("intermediate_size",),
                "vocab": ("vocab_size",),
                "eps": ("layer_norm_eps",),
                "activation": ("hidden_act",),
            },
            tensors={
                "embedding": Stored("embeddings.word_embeddings.weight"),
                "unembedding": Stored("^cls.predictions.decoder.weight"),
                "positions": Stored("embeddings.position_embeddings.weight"),
                "types": Stored("embeddings.token_type_embeddings.weight"),
                "embed_norm": Stored("embeddings.LayerNorm.weight"),
                "embed_norm_bias": Stored("embeddings.LayerNorm.bias"),
                "attn_norm": Stored(_BERT + "attention.output.LayerNorm.weight"),
                "attn_norm_bias": Stored(_BERT + "attention.output.LayerNorm.bias"),
                "ff_norm": Stored(_BERT + "output.LayerNorm.weight"),
                "ff_norm_bias": Stored(_BERT + "output.LayerNorm.bias"),
                "q": Stored(_BERT + "attention.self.query.weight"),
                "k": Stored(_BERT + "attention.self.key.weight"),
                "v": Stored(_BERT + "attention.self.value.weight"),
                "q_bias": Stored(_BERT + "attention.self.query.bias"),
                "k_bias": Stored(_BERT + "attention.self.key.bias"),
                "v_bias": Stored(_BERT + "attention.self.value.bias"),
                "o": Stored(_BERT + "attention.output.dense.weight", transpose=True),
                "o_bias": Stored(_BERT + "attention.output.dense.bias"),
                "key": Stored(_BERT + "intermediate.dense.weight"),
                "key_bias": Stored(_BERT + "intermediate.dense.bias"),
                "value": Stored(_BERT + "output.dense.weight", transpose=True),
                "value_bias": Stored(_BERT + "output.dense.bias"),
                "pooler_bias": Stored("pooler.dense.bias"),
            },
            extra={
                "pooler": (Stored("pooler.dense.weight"), "read"),
                "mlm": (Stored("^cls.predictions.transform.dense.weight"), "read"),
                "mlm_norm": (Stored("^cls.predictions.transform.LayerNorm.bias"), "write"),
                "classifier": (Stored("^classifier.weight"), "read"),
                "qa": (Stored("^qa_outputs.weight"), "read"),
            },
            through={"classifier": ("pooler", "tanh")},
            unread=(
                r"embeddings\.position_ids",
                r"\^cls\.predictions\.(bias|decoder\.bias|transform\.dense\.bias|transform\.LayerNorm\.weight)",
                r"\^(classifier|qa_outputs)\.bias",
                r"\^cls\.seq_relationship\.(weight|bias)",  # reads the pooler's tanh, not the stream
            ),
        ),
    ),
    config={"activation": "gelu", "eps": 1e-12},
)

_BERT_HF = BERT.layouts[0]
_INNER = {what: one for what, one in _BERT_HF.tensors.items() if what not in ("unembedding", "pooler_bias")}
_QA: Mapping[str, tuple[Stored, Side]] = {"qa": (Stored("^qa_outputs.weight"), "read")}

ROBERTA = replace(
    BERT,
    name="roberta",
    model_types=("roberta",),
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
    notes=("the first rows of pos are padding: position i is pos.(i + 2)",),
)

_DISTIL = "transformer.layer.{layer}."
DISTILBERT = replace(
    BERT,
    name="distilbert",
    model_types=("distilbert",),
    layouts=(
        Layout(
            format="hf",
            prefixes=("distilbert.", ""),
            optional=("unembedding",),
            config={
                "layers": ("n_layers", "num_hidden_layers"),
                "d": ("dim", "hidden_size"),
                "heads": ("n_heads", "num_attention_heads"),
                "kv_heads": ("n_heads", "num_attention_heads"),
                "neurons": ("hidden_dim",),
                "vocab": ("vocab_size",),
                "activation": ("activation",),
            },
            tensors={
                **{what: one for what, one in _INNER.items() if what.startswith(("embed", "positions"))},
                "unembedding": Stored("^vocab_projector.weight"),
                "attn_norm": Stored(_DISTIL + "sa_layer_norm.weight"),
                "attn_norm_bias": Stored(_DISTIL + "sa_layer_norm.bias"),
                "ff_norm": Stored(_DISTIL + "output_layer_norm.weight"),
                "ff_norm_bias": Stored(_DISTIL + "output_layer_norm.bias"),
                "q": Stored(_DISTIL + "attention.q_lin.weight"),
                "k": Stored(_DISTIL + "attention.k_lin.weight"),
                "v": Stored(_DISTIL + "attention.v_lin.weight"),
                "q_bias": Stored(_DISTIL + "attention.q_lin.bias"),
                "k_bias": Stored(_DISTIL + "attention.k_lin.bias"),
                "v_bias": Stored(_DISTIL + "attention.v_lin.bias"),
                "o": Stored(_DISTIL + "attention.out_lin.weight", transpose=True),
                "o_bias": Stored(_DISTIL + "attention.out_lin.bias"),
                "key": Stored(_DISTIL + "ffn.lin1.weight"),
                "key_bias": Stored(_DISTIL + "ffn.lin1.bias"),
                "value": Stored(_DISTIL + "ffn.lin2.weight", transpose=True),
                "value_bias": Stored(_DISTIL + "ffn.lin2.bias"),
            },
            extra={
                "mlm": (Stored("^vocab_transform.weight"), "read"),
                "mlm_norm": (Stored("^vocab_layer_norm.bias"), "write"),
                "pre_classifier": (Stored("^pre_classifier.weight"), "read"),
                "classifier": (Stored("^classifier.weight"), "read"),
                **_QA,
            },
            through={"classifier": ("pre_classifier", "relu")},
            unread=(
                r"\^vocab_(projector\.bias|transform\.bias|layer_norm\.weight)",
                r"\^(pre_classifier|classifier|qa_outputs)\.bias",
            ),
        ),
    ),
    notes=("a classifier behind its ReLU is read by the half of it that is linear",),
)

_NARROW = {
    "embed_projection": Stored("embeddings_project.weight"),
    "embed_projection_bias": Stored("embeddings_project.bias"),
}
ELECTRA = replace(
    BERT,
    name="electra",
    model_types=("electra",),
    layouts=(
        replace(
            _BERT_HF,
            prefixes=("electra.", ""),
            optional=("head_bias", *_NARROW),
            config={**_BERT_HF.config, "embed": ("embedding_size",)},
            tensors={**_INNER, **_NARROW, "head_bias": Stored("^classifier.dense.bias")},
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
                **{what: one for what, one in _INNER.items() if what.startswith(("embed", "positions", "types"))},
                "embed_projection": Stored("encoder.embedding_hidden_mapping_in.weight"),
                "embed_projection_bias": Stored("encoder.embedding_hidden_mapping_in.bias"),
                "attn_norm": Stored(_ALBERT + "attention.LayerNorm.weight"),
                "attn_norm_bias": Stored(_ALBERT + "attention.LayerNorm.bias"),
                "ff_norm": Stored(_ALBERT + "full_layer_layer_norm.weight"),
                "ff_norm_bias": Stored(_ALBERT + "full_layer_layer_norm.bias"),
                "q": Stored(_ALBERT + "attention.query.weight"),
                "k": Stored(_ALBERT + "attention.key.weight"),
                "v": Stored(_ALBERT + "attention.value.weight"),
                "q_bias": Stored(_ALBERT + "attention.query.bias"),
                "k_bias": Stored(_ALBERT + "attention.key.bias"),
                "v_bias": Stored(_ALBERT + "attention.value.bias"),
                "o": Stored(_ALBERT + "attention.dense.weight", transpose=True),
                "o_bias": Stored(_ALBERT + "attention.dense.bias"),
                "key": Stored(_ALBERT + "ffn.weight"),
                "key_bias": Stored(_ALBERT + "ffn.bias"),
                "value": Stored(_ALBERT + "ffn_output.weight", transpose=True),
                "value_bias": Stored(_ALBERT + "ffn_output.bias"),
                "pooler_bias": Stored("pooler.bias"),
            },
            extra={
                "pooler": (Stored("pooler.weight"), "read"),
                "mlm": (Stored("^predictions.dense.weight"), "read"),
                "classifier": (Stored("^classifier.weight"), "read"),
                **_QA,
            },
            unread=(
                r"embeddings\.position_ids",
                r"\^predictions\.(bias|decoder\.(weight|bias)|dense\.bias|LayerNorm\.(weight|bias))",
                r"\^sop_classifier\.classifier\.(weight|bias)",
                r"\^(classifier|qa_outputs)\.bias",
            ),
        ),
    ),
    config={"activation": "gelu_new", "eps": 1e-12},
    when={"num_hidden_groups": (1, None), "inner_group_num": (1, None)},
    notes=("all layers are one: L0 and the last have the same parameters and differ in what they read",),
)

_MODERN = "layers.{layer}."
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
        Layout(
            format="hf",
            prefixes=("model.", ""),
            optional=(
                "unembedding",
                "head_bias",
                *("q_bias", "k_bias", "v_bias", "o_bias", "gate_bias", "up_bias", "value_bias"),
                *("embed_norm_bias", "attn_norm_bias", "ff_norm_bias", "final_norm_bias"),
            ),
            config={
                "layers": ("num_hidden_layers",),
                "d": ("hidden_size",),
                "heads": ("num_attention_heads",),
                "kv_heads": ("num_attention_heads",),
                "neurons": ("intermediate_size",),
                "vocab": ("vocab_size",),
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
                "embed_norm": Stored("embeddings.norm.weight"),
                "embed_norm_bias": Stored("embeddings.norm.bias"),
                "final_norm": Stored("final_norm.weight"),
                "final_norm_bias": Stored("final_norm.bias"),
                "attn_norm": Stored(_MODERN + "attn_norm.weight"),
                "attn_norm_bias": Stored(_MODERN + "attn_norm.bias"),
                "ff_norm": Stored(_MODERN + "mlp_norm.weight"),
                "ff_norm_bias": Stored(_MODERN + "mlp_norm.bias"),
                **fused_qkv(_MODERN + "attn.Wqkv", "stacked"),
                "o": Stored(_MODERN + "attn.Wo.weight", transpose=True),
                "o_bias": Stored(_MODERN + "attn.Wo.bias"),
                "gate": Stored(_MODERN + "mlp.Wi.weight", part=(0, 2)),
                "up": Stored(_MODERN + "mlp.Wi.weight", part=(1, 2)),
                "value": Stored(_MODERN + "mlp.Wo.weight", transpose=True),
                "gate_bias": Stored(_MODERN + "mlp.Wi.bias", part=(0, 2)),
                "up_bias": Stored(_MODERN + "mlp.Wi.bias", part=(1, 2)),
                "value_bias": Stored(_MODERN + "mlp.Wo.bias"),
                "head_bias": Stored("^head.dense.bias"),
            },
            extra={
                "head": (Stored("^head.dense.weight"), "read"),
                "classifier": (Stored("^classifier.weight"), "read"),
                **_QA,
            },
            through={"classifier": ("head", "gelu")},
            unread=(r"\^head\.norm\.(weight|bias)", r"\^(decoder|classifier|qa_outputs)\.bias"),
        ),
    ),
    config={"activation": "gelu", "eps": 1e-5},
    notes=("a classifier behind its GELU and norm is read by the part of it that is linear",),
)

FAMILIES = (BERT, ROBERTA, DISTILBERT, ELECTRA, ALBERT, MODERNBERT)
