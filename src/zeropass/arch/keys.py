"""An allow-list of the keys of a configuration that may be ignored; any other may change what the model computes.

Every key must be used (the records name it), known to change nothing that zeropass reads, or off (null, false or
empty); otherwise the model is refused.
"""

import re
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

from zeropass.arch.layout import Layout
from zeropass.arch.spec import Family
from zeropass.checkpoints.model_files import ModelFiles
from zeropass.errors import UnknownFamily, in_short

__all__ = ["check_keys", "is_harmless"]

_READ_ELSEWHERE = (
    *("model_type", "tie_word_embeddings", "id2label", "quantization_config", "transformers_weights"),
    *("rope_theta", "rope_scaling", "rope_parameters", "general.architecture"),
    *("max_position_embeddings", "original_max_position_embeddings"),  # by some scalings of rotary positions
)
"""Keys that are read, though no record names them."""

_HARMLESS = (
    # names, versions and the origin of a file
    r"_?(model_)?name_or_path|architectures|auto_map|custom_pipelines|transformers_version|transformers\.js_config|unsloth_\w+",
    r"_commit_hash|is_llama_config|tokenizer_class|language|license|_diffusers_version|peft_version|model_name",
    # training: regularisation, initial values, losses, memory
    r"\w*(dropout|_pdrop|layerdrop)(_prob|_rate|_p)?|\w*_drop|initializer_\w+|init_std|init_method\w*|init_device",
    r"gradient_checkpointing|router_\w*(coef|noise)|aux_loss_\w+|problem_type|label_smoothing|z_loss\w*|tie_weights_",
    r"sparse_pred\w*|reference_compile|repad_logits_with_grad|sinusoidal_pos_embds|replacing_rate|student_\w+",
    # precision and kernels
    r"(torch_)?dtype|_?attn_implementation\w*|_flash_attn_\w+|use_flash\w*|deterministic_flash_attn|torchscript",
    r"use_bfloat16|tf_legacy_loss|pretraining_tp|slow_but_exact|reorder_and_upcast_attn|chunk_size_feed_forward",
    r"attention_softmax_in_fp32|masked_softmax_fusion|bias_dropout_fusion|skip_bias_add(_qkv)?|use_cache",
    r"experts_implementation|layer_norm_in_fp32|output_past|_output_attentions|mem_efficient",
    # generation and what a call returns
    r"\w*_token_ids?|\w*_token_index|output_\w+|return_dict\w*|cache_implementation|prefix|add_bias_logits",
    r"(max|min)_(new_tokens|length)|do_sample|early_stopping|num_beams|num_beam_groups|diversity_penalty|temperature",
    r"top_k|top_p|typical_p|repetition_penalty|length_penalty|(encoder_)?no_repeat_ngram_size|bad_words_ids",
    r"num_return_sequences|remove_invalid_values|exponential_decay_length_penalty|(begin_)?suppress_tokens",
    r"force_bos_token_to_be_generated|task_specific_params",
    # how long a text may be
    r"(original_)?max_position_embeddings|n_positions|n_ctx|seq_length|max_sequence_length|model_max_length",
    # what follows the stream: labels, pooling, summaries of a text
    r"label2id|_?num_labels|finetuning_task|summary_\w+|classifier_pooling|sentence_transformers|sbert_\w+|is_reward\w*",
    r"pooler_(fc_size|num_attention_heads|num_fc_layers|size_per_head|type)",
    # what the tensors themselves show: which biases exist, how many rows a table has
    r"((attention|mlp|qkv|norm|decoder|classifier|lm_head)_)?bias|type_vocab_size|word_embed_proj_dim",
    r"relative_attention_num_buckets",
)
_PATTERN = re.compile("|".join(f"(?:{pattern})" for pattern in _HARMLESS))

_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "position_embedding_type": ("absolute",),
    "directionality": ("bidi",),
    "partial_rotary_factor": (1, 1.0),
    "full_attn_mod": (1,),
    "interpolate_factor": (1,),
    "normalize_embedding": (True,),
    "extra_pos_embeddings": (2,),
    "down_scale_factor": (1,),
    "gap_size": (0,),
    "net_structure_type": (0,),
    "num_memory_blocks": (0,),
    "offset_alibi": (100,),
    "rotary": (True,),
    "scale_attn_weights": (True,),
}
"""Keys with the only values for which they change nothing."""

_GGUF_HARMLESS = re.compile(
    r"context_length|vocab_size|pooling_type|tensor_data_layout|attention\.value_length"
    r"|rope\.(dimension_count|scale_linear|scaling\.(type|factor))"  # `config` reads these and refuses unknown values
    r"|rope\.scaling\.(original_context_length|finetuned|attn_factor|yarn_\w+)"
    r"|rope\.dimension_sections|n_deepstack_layers"  # of images
)
_GGUF_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "attention.causal": (True,),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "use_parallel_residual": (False,),
}


def check_keys(files: ModelFiles, family: Family, layout: Layout) -> tuple[str, ...]:
    """Return notes on keys that a user should know about.

    Raises:
        UnknownFamily: Keys of the configuration, named in the message, may change what the model computes.
    """
    used = set(_used(family, layout))
    unknown = [
        f"{key} is {_shown(value)}"
        for key, value in files.config.items()
        if key not in used and not is_harmless(files, layout, key, value)
    ]
    if unknown:
        raise UnknownFamily(
            f"{files.place}: the configuration has keys that the {family.name} record does not know: "
            f"{in_short(unknown)}. They may change what the model computes; reading it would need a record "
            "of its own (docs/adding-a-family.md), or, where they change nothing, a configuration without them."
        )
    if not files.config.get("auto_map"):
        return ()
    return (
        "The configuration names code of its own (auto_map), which is not read: the tensors are read as those of a "
        f"plain {family.name}.",
    )


def is_harmless(files: ModelFiles, layout: Layout, key: str, value: object) -> bool:
    """Tell whether a key with this value changes nothing that zeropass reads."""
    if files.format == "gguf":
        return _is_harmless_gguf(files, layout, key, value)
    if value is None or value is False or value in ("", [], {}):
        return True
    if _PATTERN.fullmatch(key) or _harmless_in(layout, key):
        return True
    return _is_neutral(_NEUTRAL, key, value)


def _is_harmless_gguf(files: ModelFiles, layout: Layout, key: str, value: object) -> bool:
    """Tell the same for a GGUF file: llama.cpp computes only with keys that begin with the architecture's name."""
    stem = f"{files.config.get('general.architecture')}."
    if not key.startswith(stem):
        return True
    key = key.removeprefix(stem)
    return bool(_GGUF_HARMLESS.fullmatch(key)) or _harmless_in(layout, key) or _is_neutral(_GGUF_NEUTRAL, key, value)


def _harmless_in(layout: Layout, key: str) -> bool:
    return any(re.fullmatch(pattern, key) for pattern in layout.harmless)


def _is_neutral(neutral: Mapping[str, tuple[object, ...]], key: str, value: object) -> bool:
    return any(value == known and isinstance(value, bool) == isinstance(known, bool) for known in neutral.get(key, ()))


def _used(family: Family, layout: Layout) -> Iterator[str]:
    """Yield the keys that are read; for a key inside an object, also the key of the object."""
    yield from _READ_ELSEWHERE
    for key in chain(*layout.config.values(), family.when, layout.switches, layout.stacks):
        yield key
        yield key.partition(".")[0]


def _shown(value: Any) -> str:
    text = "an object" if isinstance(value, Mapping) else repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
