"""The table of multimodal models whose text models are read; adding one touches this file and `tests/multimodal.py`."""

from collections.abc import Mapping
from dataclasses import replace

from zeropass.arch.spec import Wrapper

__all__ = ["ASSUMED", "NOT_READ", "WRAPPERS"]

_LLAMA_LIKE = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text")
_QWEN2_LIKE = ("qwen2", "llama", "mistral", "qwen3", "gemma", "gemma2", "gemma3_text")
_NESTED = {"language_model.model.": "language_model.", "model.language_model.": ""}
_VISION = {"vision_tower": "vision tower", "multi_modal_projector": "projector"}
_AUDIO = {"audio_tower": "audio tower", "multi_modal_projector": "projector"}
_VISUAL = {"visual": "vision tower"}
_IMAGE_KEYS = (
    r"vision_feature_(layer|select_strategy)|vision_aspect_ratio|(image|video)_(seq_length|grid_pinpoints)",
    r"projector_hidden_act|projector_layernorm_eps|multimodal_projector_bias|projection_dim|ignore_index",
    r"use_image_newline_parameter|spatial_(merge_size|pool_mode|pool_stride)|downsample_ratio|mm_tokens_per_image",
    r"image_seq_len|is_composition",
)
_SPEECH_KEYS = (*_IMAGE_KEYS, r"position_id_per_seconds|seconds_per_chunk|enable_(audio_output|talker)")

LLAVA = Wrapper(
    model_types=("llava", "vipllava", "llava_next", "llava_next_video"),
    texts=_LLAMA_LIKE,
    prefixes=_NESTED,
    towers={**_VISION, "image_newline": "end of an image's row"},
    text_ties=True,
    harmless=_IMAGE_KEYS,
)
VIDEO_LLAVA = replace(
    LLAVA,
    model_types=("video_llava",),
    towers={"image_tower": "image tower", "video_tower": "video tower", "multi_modal_projector": "projector"},
)
QWEN_LLAVA = replace(LLAVA, model_types=("llava_onevision", "internvl", "got_ocr2"), texts=_QWEN2_LIKE)
FAST_VLM = replace(
    LLAVA,
    model_types=("fast_vlm",),
    texts=("qwen2",),
    prefixes={"model.language_model.": ""},
    towers=_VISION,
)
PERCEPTION_LM = replace(
    FAST_VLM,
    model_types=("perception_lm",),
    texts=("llama",),
    text_ties=False,
    harmless=(*_IMAGE_KEYS, r"projector_pooling_ratio|vision_use_cls_token"),
)
PP_CHART2TABLE = replace(QWEN_LLAVA, model_types=("pp_chart2table",), texts=("qwen2",), text_ties=False)
MISTRAL3 = replace(
    LLAVA,
    model_types=("mistral3",),
    texts=("mistral", "ministral3", "mistral4"),
    towers=_VISION,
    text_ties=False,
)
ARIA = replace(
    MISTRAL3,
    model_types=("aria",),
    texts=("aria_text",),
    harmless=(*_IMAGE_KEYS, r"(max_value_)?projector_patch_to_query_dict"),
)
FUYU = replace(
    MISTRAL3,
    model_types=("fuyu",),
    texts=("persimmon",),
    towers={"vision_embed_tokens": "projector"},
    # what its file has beside the text model's configuration, which counts
    harmless=(
        r"image_size|patch_size|num_channels|hidden_(act|dropout|size)|intermediate_size|layer_norm_eps|qk_layernorm",
        r"num_(attention_heads|hidden_layers)|vocab_size|partial_rotary_factor",
    ),
)
PALIGEMMA = replace(
    MISTRAL3,
    model_types=("paligemma",),
    texts=("gemma", "gemma2"),
    fixed={"use_bidirectional_attention": None},  # the mask is the wrapper's: both ways where the caller marks a prompt
    harmless=(*_IMAGE_KEYS, r"num_image_tokens|_vocab_size"),
    notes=("a prompt that is marked as one attends both ways; here every text is read as one that the model writes",),
)
_RETRIEVAL = {"embedding_proj_layer": "projection for retrieval"}
COLPALI = replace(
    PALIGEMMA,
    model_types=("colpali",),
    prefixes={"vlm.language_model.model.": "vlm.language_model.", "vlm.language_model.": "vlm."},
    towers={**{f"vlm.{tower}": what for tower, what in _VISION.items()}, **_RETRIEVAL},
    config="vlm_config.text_config",
    harmless=(*PALIGEMMA.harmless, "embedding_dim"),
)
LLAMA4 = replace(
    MISTRAL3,
    model_types=("llama4",),
    texts=("llama4_text",),
    prefixes={"language_model.model.": "language_model."},
    towers={"vision_model": "vision tower", "multi_modal_projector": "projector"},
)
GEMMA3 = replace(MISTRAL3, model_types=("gemma3",), texts=("gemma3_text",))
SHIELDGEMMA2 = replace(
    GEMMA3,
    model_types=("shieldgemma2",),
    prefixes={
        "model.language_model.model.": "model.language_model.",
        "model.model.language_model.": "model.",
        "model.model.language_model.model.": "model.model.language_model.",
    },
    text_ties=True,
    harmless=(*_IMAGE_KEYS, r"(yes|no)_token_index"),
    notes=("its classes are two tokens of the vocabulary, whose logits behind a prompt it compares",),
)
_EMBEDDERS = {"embed_vision": "projector", "embed_audio": "projector"}
GEMMA4 = replace(
    MISTRAL3,
    model_types=("gemma4",),
    texts=("gemma4_text",),
    prefixes={"model.language_model.": ""},
    towers={"vision_tower": "vision tower", "audio_tower": "audio tower", **_EMBEDDERS},
    others=("vision_config", "audio_config"),
    fixed={},
    harmless=(*_IMAGE_KEYS, r"vision_soft_tokens_per_image"),
)
GEMMA4_UNIFIED = replace(
    GEMMA4,
    model_types=("gemma4_unified",),
    texts=("gemma4_unified_text",),
    towers={"vision_embedder": "vision tower", **_EMBEDDERS},
)
GEMMA3N = replace(
    GEMMA4,
    model_types=("gemma3n",),
    texts=("gemma3n_text",),
    notes=("tokens that stand for images and sound have embeddings of their own (embed_vision, embed_audio)",),
    harmless=(*_IMAGE_KEYS, r"(vision|audio)_soft_tokens_per_image"),
)
COHERE2 = replace(
    MISTRAL3,
    model_types=("aya_vision", "cohere2_vision"),
    texts=("cohere2",),
    fixed={"logit_scale": 1.0},
    harmless=(*_IMAGE_KEYS, r"adapter_layer_norm_eps|alignment_intermediate_size|downsample_factor"),
)

IDEFICS = Wrapper(
    model_types=("idefics3", "smolvlm", "idefics2"),
    texts=_LLAMA_LIKE,
    prefixes={"model.text_model.": ""},
    towers={"vision_model": "vision tower", "connector": "projector"},
    others=("vision_config", "perceiver_config"),
    harmless=(*_IMAGE_KEYS, r"scale_factor|pixel_shuffle_factor|neftune_noise_alpha|_pad_token_id|perceiver_config"),
)

GRANITE_DOCLING = replace(
    IDEFICS,
    model_types=("granite_docling",),
    texts=("granite_docling_text",),
    towers={"vision_model": "vision tower", "density_router": "router of images"},
    others=("vision_config",),
    harmless=(*_IMAGE_KEYS, r"density_router_(hidden_size|threshold|loss_weight)"),
)
DEEPSEEK_VL = replace(
    IDEFICS,
    model_types=("deepseek_vl",),
    texts=("llama",),
    prefixes={"model.language_model.": ""},
    towers={"vision_model": "vision tower", "aligner": "projector"},
    others=("vision_config",),
)
_HIGH_RES = ("model", "neck", "proj", "alpha")
DEEPSEEK_VL_HYBRID = replace(
    DEEPSEEK_VL,
    model_types=("deepseek_vl_hybrid",),
    towers={
        **DEEPSEEK_VL.towers,
        **{f"high_res_vision_{part}": "vision tower of higher resolution" for part in _HIGH_RES},
    },
    others=("vision_config", "high_res_vision_config"),
)
EMU3 = replace(
    DEEPSEEK_VL,
    model_types=("emu3",),
    texts=("emu3_text_model",),
    prefixes={"text_model.model.": "text_model.", "model.text_model.": ""},
    towers={"vqmodel": "image tokenizer"},
    others=("vq_config",),
    harmless=("vocabulary_map",),  # codes of images and their tokens
)
HYPERCLOVAX_VISION = replace(
    DEEPSEEK_VL,
    model_types=("hyperclovax_vision_v2",),
    texts=("hyperclovax",),
    prefixes={"model.language_model.model.": "model.language_model.", "model.language_model.": ""},
    towers={"vision_model": "vision tower", "projector": "projector", "vision_projector": "projector"},
)
FLORENCE2 = replace(
    MISTRAL3,
    model_types=("florence2",),
    texts=("bart",),
    prefixes={"model.language_model.": ""},
    both_ways=True,
    fixed={},
)
SIGLIP = Wrapper(
    model_types=("siglip", "siglip2"),
    texts=("siglip_text_model", "siglip2_text_model"),
    prefixes={"text_model.": "text_model."},
    towers={"vision_model": "vision tower", **dict.fromkeys(("logit_scale", "logit_bias"), "comparison with images")},
    both_ways=True,
    fixed={},
    harmless=("initializer_factor",),
)
_QFORMER = {"qformer": "Q-Former", "query_tokens": "Q-Former", "language_projection": "projector"}
BLIP2 = Wrapper(
    model_types=("blip-2", "instructblip", "instructblipvideo"),
    texts=("opt", "t5", "llama"),
    prefixes={"language_model.model.": "language_model."},
    towers={"vision_model": "vision tower", **_QFORMER},
    others=("vision_config", "qformer_config"),
    text_ties=True,
    both_ways=True,
    harmless=(r"num_query_tokens|image_text_hidden_size|use_decoder_only_language_model",),
)
LFM2_VL = replace(
    MISTRAL3,
    model_types=("lfm2_vl",),
    texts=("lfm2",),
    prefixes={"model.language_model.": ""},
    harmless=(*_IMAGE_KEYS, "downsample_factor", r"projector_(hidden_size|bias|use_layernorm)"),
)
_JANUS_TOWERS = dict.fromkeys((f"generation_{part}" for part in ("embeddings", "aligner", "head")), "image generation")
JANUS = replace(
    DEEPSEEK_VL,
    model_types=("janus",),
    towers={**DEEPSEEK_VL.towers, "vqmodel": "image tokenizer", **_JANUS_TOWERS},
    others=("vision_config", "vq_config"),
)
LIGHTON_OCR = replace(
    DEEPSEEK_VL,
    model_types=("lighton_ocr",),
    texts=("qwen3",),
    towers={"vision_encoder": "vision tower", "vision_projection": "projector"},
)
VIDEO_LLAMA3 = replace(
    DEEPSEEK_VL,
    model_types=("video_llama_3",),
    texts=("qwen2",),
    towers={"vision_model": "vision tower", "projector": "projector"},
)
OVIS2 = replace(
    DEEPSEEK_VL,
    model_types=("ovis2",),
    texts=("qwen2",),
    towers={"vision_tower": "vision tower", "visual_embeddings_table": "embeddings of images"},
    harmless=(*_IMAGE_KEYS, "hidden_size|vocab_size"),
)

QWEN2_VL = Wrapper(
    model_types=("qwen2_vl",),
    texts=("qwen2_vl_text",),
    prefixes={"model.": "", "model.language_model.": ""},
    towers=_VISUAL,
    flat=True,
    text_ties=True,
)
COLQWEN2 = replace(
    QWEN2_VL,
    model_types=("colqwen2",),
    prefixes={"vlm.model.": "vlm.", "vlm.language_model.": "vlm."},
    towers={"vlm.visual": "vision tower", **_RETRIEVAL},
    config="vlm_config.text_config",
    harmless=("embedding_dim",),
)
QWEN2_5_VL = replace(QWEN2_VL, model_types=("qwen2_5_vl",), texts=("qwen2_5_vl_text",))
QWEN3_VL = replace(
    QWEN2_VL,
    model_types=("qwen3_vl",),
    texts=("qwen3_vl_text",),
    prefixes={"model.language_model.": ""},
    flat=False,
    text_ties=False,
)
QWEN3_VL_MOE = replace(QWEN3_VL, model_types=("qwen3_vl_moe",), texts=("qwen3_vl_moe_text",))
GLM4V = replace(QWEN3_VL, model_types=("glm4v", "glm46v", "glmga"), texts=("glm4v_text", "glm4v_moe_text"))
GLM4V_MOE = replace(QWEN3_VL, model_types=("glm4v_moe",), texts=("glm4v_moe_text",))
GLM_OCR = replace(QWEN3_VL, model_types=("glm_ocr",), texts=("glm_ocr_text",))
MUSE_GLIMMER = replace(
    QWEN3_VL,
    model_types=("muse_glimmer",),
    texts=("muse_glimmer_text",),
    towers={"vision_tower": "vision tower", "vision_adapter": "projector", "vision_projection": "projector"},
    fixed={},
    harmless=("out_hidden_size", r"projector_hidden_(size|act)"),
)
EXAONE4_5 = replace(QWEN3_VL, model_types=("exaone4_5",), texts=("exaone4",))
QWEN3_5 = replace(QWEN3_VL, model_types=("qwen3_5",), texts=("qwen3_5_text",))
QWEN3_5_MOE = replace(QWEN3_VL, model_types=("qwen3_5_moe",), texts=("qwen3_5_moe_text",))
MINICPMV4_6 = replace(
    QWEN3_VL,
    model_types=("minicpmv4_6", "minicpmv4_7", "minicpm_ocr"),
    texts=("qwen3_5_text",),
    towers={"vision_tower": "vision tower", "merger": "projector"},
    harmless=(
        *_IMAGE_KEYS,
        r"insert_layer_id|image_size|patch_size|drop_vision_last_layer|downsample_mode|merge_kernel_size|merger_times",
        r"(image|slice)_(start|end)_id|newline_id",
    ),
)
QWEN2_5_OMNI_THINKER = replace(
    QWEN2_VL,
    model_types=("qwen2_5_omni_thinker",),
    texts=("qwen2_5_omni_text",),
    towers={**_VISUAL, **_AUDIO},
    others=("vision_config", "audio_config"),
    flat=False,
    text_ties=False,
    harmless=_SPEECH_KEYS,
)
QWEN2_5_OMNI = replace(
    QWEN2_5_OMNI_THINKER,
    model_types=("qwen2_5_omni",),
    prefixes={"thinker.model.": "thinker."},
    towers={
        **{f"thinker.{tower}": what for tower, what in QWEN2_5_OMNI_THINKER.towers.items()},
        "talker": "model of speech",
        "token2wav": "decoder of sound",
    },
    config="thinker_config.text_config",
    others=(*QWEN2_5_OMNI_THINKER.others, "talker_config", "token2wav_config"),
)
QWEN3_OMNI_THINKER = replace(
    QWEN2_5_OMNI_THINKER,
    model_types=("qwen3_omni_moe_thinker",),
    texts=("qwen3_omni_moe_text",),
    prefixes={"model.": ""},
)
QWEN3_OMNI = replace(
    QWEN3_OMNI_THINKER,
    model_types=("qwen3_omni_moe",),
    prefixes={"thinker.model.": "thinker."},
    towers={
        **{f"thinker.{tower}": what for tower, what in QWEN3_OMNI_THINKER.towers.items()},
        "talker": "model of speech",
        "code2wav": "decoder of sound",
    },
    config="thinker_config.text_config",
    others=(*QWEN3_OMNI_THINKER.others, "talker_config", "code2wav_config"),
)
QWEN2_AUDIO = Wrapper(
    model_types=("qwen2_audio",),
    texts=("qwen2",),
    prefixes=_NESTED,
    towers=_AUDIO,
    others=("audio_config",),
    harmless=_IMAGE_KEYS,
)
VOXTRAL = replace(
    QWEN2_AUDIO,
    model_types=("voxtral",),
    texts=("llama",),
    assumed={
        "hidden_size": 3072,
        "num_hidden_layers": 30,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e8,
    },
)

AUDIO_FLAMINGO3 = replace(
    QWEN2_AUDIO,
    model_types=("audioflamingo3", "musicflamingo"),
    harmless=(*_IMAGE_KEYS, r"projector_bias|audio_frame_step"),
)
GLM_ASR = replace(
    VOXTRAL,
    model_types=("glmasr",),
    assumed={
        "hidden_size": 2048,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "intermediate_size": 6144,
        "rms_norm_eps": 1e-5,
    },
)
QWEN3_ASR = replace(
    QWEN2_AUDIO,
    model_types=("qwen3_asr",),
    texts=("qwen3",),
    prefixes={"model.language_model.": ""},
    assumed={
        "hidden_size": 2048,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "intermediate_size": 6144,
    },
)
FUN_ASR_NANO = replace(
    QWEN3_ASR,
    model_types=("fun_asr_nano",),
    others=("audio_config", "adaptor_config"),
    assumed={},
)

MOSS_TRANSCRIBE = replace(
    QWEN3_ASR,
    model_types=("moss_transcribe_diarize",),
    assumed={},
    harmless=(*_IMAGE_KEYS, r"projector_bias|audio_(merge|chunk)_size"),
)
OMNIASR = replace(
    QWEN3_ASR,
    model_types=("omniasr",),
    texts=("llama",),
    assumed={},
)
VIBEVOICE_ASR = replace(
    QWEN2_AUDIO,
    model_types=("vibevoice_asr",),
    towers={
        **{f"{part}_tokenizer_encoder": "encoder of sound" for part in ("acoustic", "semantic")},
        "multi_modal_projector": "projector",
    },
    others=tuple(f"{part}_tokenizer_encoder_config" for part in ("acoustic", "semantic")),
    harmless=("acoustic_tokenizer_chunk_size",),
)
GRANITE_SPEECH = replace(
    QWEN2_AUDIO,
    model_types=("granite_speech", "granite_speech_plus"),
    texts=("granite",),
    towers={"encoder": "audio encoder", "projector": "projector"},
    others=("encoder_config", "projector_config"),
    harmless=(r"has_lora_adapter|downsample_rate|window_size",),
    notes=("an adapter beside it is for sound, and is off for a text",),
)

# The next two are the layouts of their authors' own code, which transformers has in another form.
INTERNVL_CHAT = replace(
    LLAVA,
    model_types=("internvl_chat",),
    texts=_QWEN2_LIKE,
    prefixes={"language_model.model.": "language_model."},
    towers={"vision_model": "vision tower", "mlp1": "projector"},
    config="llm_config",
    harmless=(
        *_IMAGE_KEYS,
        r"force_image_size|dynamic_image_size|(min|max)_dynamic_patch|use_thumbnail|pad2square|ps_version|select_layer",
        r"template|system_message|use_(backbone|llm)_lora",
    ),
)
_JANUS_PARTS = ("vision", "aligner", "gen_vision", "gen_aligner", "gen_head")
MULTI_MODALITY = replace(
    LLAVA,
    model_types=("multi_modality",),
    texts=("llama",),
    prefixes=INTERNVL_CHAT.prefixes,
    towers={
        "vision_model": "vision tower",
        "aligner": "projector",
        **dict.fromkeys(("gen_vision_model", "gen_aligner", "gen_head", "gen_embed"), "image generation"),
    },
    config="language_config",
    others=tuple(f"{part}_config" for part in _JANUS_PARTS),
)

WRAPPERS = (
    LLAVA,
    VIDEO_LLAVA,
    QWEN_LLAVA,
    FAST_VLM,
    PERCEPTION_LM,
    PP_CHART2TABLE,
    MISTRAL3,
    ARIA,
    FUYU,
    PALIGEMMA,
    COLPALI,
    GEMMA3,
    SHIELDGEMMA2,
    GEMMA4,
    GEMMA3N,
    GEMMA4_UNIFIED,
    LLAMA4,
    COHERE2,
    IDEFICS,
    GRANITE_DOCLING,
    DEEPSEEK_VL,
    DEEPSEEK_VL_HYBRID,
    EMU3,
    HYPERCLOVAX_VISION,
    FLORENCE2,
    SIGLIP,
    BLIP2,
    LFM2_VL,
    JANUS,
    LIGHTON_OCR,
    VIDEO_LLAMA3,
    OVIS2,
    QWEN2_VL,
    COLQWEN2,
    QWEN2_5_VL,
    QWEN3_VL,
    QWEN3_VL_MOE,
    GLM4V,
    GLM4V_MOE,
    GLM_OCR,
    MUSE_GLIMMER,
    EXAONE4_5,
    QWEN3_5,
    QWEN3_5_MOE,
    MINICPMV4_6,
    QWEN2_5_OMNI_THINKER,
    QWEN2_5_OMNI,
    QWEN3_OMNI_THINKER,
    QWEN3_OMNI,
    QWEN2_AUDIO,
    VOXTRAL,
    AUDIO_FLAMINGO3,
    GLM_ASR,
    QWEN3_ASR,
    FUN_ASR_NANO,
    MOSS_TRANSCRIBE,
    OMNIASR,
    VIBEVOICE_ASR,
    GRANITE_SPEECH,
    INTERNVL_CHAT,
    MULTI_MODALITY,
)

NOT_READ: Mapping[str, str] = {
    "mllama": "some of its layers read images alone",
}
"""Multimodal models that are well known and not read, each with the reason."""

_LLAMA = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "intermediate_size": 11008,
    "rms_norm_eps": 1e-6,
}
_QWEN2 = {**_LLAMA, "num_key_value_heads": 32, "intermediate_size": 22016}
_QWEN2_VL = {
    "hidden_size": 8192,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "intermediate_size": 29568,
    "rms_norm_eps": 1e-5,
    "max_window_layers": 80,
    "rope_theta": 1e6,
}
_GEMMA2 = {
    "hidden_size": 2304,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "intermediate_size": 9216,
    "rms_norm_eps": 1e-6,
}
_SIGLIP = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
_GEMMA4 = {**_GEMMA2, "num_hidden_layers": 30}
_GEMMA3N = {
    "hidden_size": 2048,
    "num_hidden_layers": 35,
    "num_attention_heads": 8,
    "intermediate_size": 16384,
    "rms_norm_eps": 1e-6,
    "vocab_size": 262400,
}
ASSUMED: Mapping[str, Mapping[str, object]] = {
    "llama": _LLAMA,
    "mistral": {**_LLAMA, "num_key_value_heads": 8, "intermediate_size": 14336},
    "qwen2": _QWEN2,
    "qwen3": {**_QWEN2, "head_dim": 128},
    "gemma": {
        "hidden_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "head_dim": 256,
        "intermediate_size": 24576,
        "rms_norm_eps": 1e-6,
    },
    "gemma2": _GEMMA2,
    "cohere2": {
        "hidden_size": 8192,
        "num_hidden_layers": 40,
        "num_attention_heads": 64,
        "num_key_value_heads": 64,
        "head_dim": 128,
        "intermediate_size": 22528,
        "layer_norm_eps": 1e-5,
    },
    "gemma3_text": _GEMMA2,
    "gemma3n_text": _GEMMA3N,
    "gemma4_text": _GEMMA4,
    "gemma4_unified_text": _GEMMA4,
    "qwen2_vl_text": _QWEN2_VL,
    "qwen2_5_vl_text": _QWEN2_VL,
    "qwen3_vl_text": {**_QWEN2, "head_dim": 128, "rope_theta": 5e5},
    "ministral3": {
        "hidden_size": 4096,
        "num_hidden_layers": 34,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 14336,
        "rms_norm_eps": 1e-05,
    },
    "mistral4": {
        "hidden_size": 4096,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "intermediate_size": 12288,
        "moe_intermediate_size": 2048,
        "n_routed_experts": 128,
        "kv_lora_rank": 256,
        "qk_nope_head_dim": 64,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "rms_norm_eps": 1e-06,
    },
    "bart": {
        "d_model": 1024,
        **dict.fromkeys(("encoder_layers", "decoder_layers"), 12),
        **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 16),
        **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 4096),
    },
    **dict.fromkeys(("siglip_text_model", "siglip2_text_model"), _SIGLIP),
    "opt": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "ffn_dim": 3072},
    "t5": {"d_model": 512, "num_layers": 6, "num_heads": 8, "d_kv": 64, "d_ff": 2048},
    "granite": {**_LLAMA, "num_key_value_heads": 32},
    "granite_docling_text": {
        "hidden_size": 1024,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "intermediate_size": 2048,
        "rms_norm_eps": 1e-5,
    },
    "hyperclovax": {**_LLAMA, "num_key_value_heads": 32},
    "persimmon": {
        "hidden_size": 4096,
        "num_hidden_layers": 36,
        "num_attention_heads": 64,
        "intermediate_size": 16384,
        "layer_norm_eps": 1e-05,
    },
    "glm4v_text": {
        "hidden_size": 4096,
        "num_hidden_layers": 40,
        "num_attention_heads": 32,
        "num_key_value_heads": 2,
        "intermediate_size": 13696,
        "rms_norm_eps": 1e-05,
    },
    "muse_glimmer_text": {
        "hidden_size": 6656,
        "num_hidden_layers": 52,
        "num_attention_heads": 32,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "intermediate_size": 19968,
        "rms_norm_eps": 1e-05,
    },
    "glm_ocr_text": {
        "hidden_size": 1024,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "intermediate_size": 4096,
        "rms_norm_eps": 1e-05,
    },
    "glm4v_moe_text": {
        "hidden_size": 4096,
        "num_hidden_layers": 46,
        "num_attention_heads": 96,
        "num_key_value_heads": 8,
        "intermediate_size": 10944,
        "rms_norm_eps": 1e-05,
        "moe_intermediate_size": 1408,
        "n_routed_experts": 128,
    },
    "qwen3_vl_moe_text": {
        "hidden_size": 2048,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "head_dim": 128,
        "intermediate_size": 5632,
        "rms_norm_eps": 1e-06,
        "moe_intermediate_size": 1408,
        "num_experts": 60,
    },
    "qwen3_omni_moe_text": {
        "hidden_size": 2048,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "intermediate_size": 18944,
        "rms_norm_eps": 1e-06,
        "moe_intermediate_size": 768,
        "num_experts": 128,
    },
    "exaone4": {
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "intermediate_size": 16384,
        "rms_norm_eps": 1e-05,
    },
    "llama4_text": {
        "hidden_size": 5120,
        "num_hidden_layers": 48,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 8192,
        "intermediate_size_mlp": 16384,
        "num_local_experts": 16,
        "rms_norm_eps": 1e-5,
    },
    "aria_text": {
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "intermediate_size": 4096,
        "moe_num_experts": 8,
        "rms_norm_eps": 1e-6,
    },
    "qwen3_5_text": {
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "intermediate_size": 12288,
        "rms_norm_eps": 1e-6,
    },
    "qwen3_5_moe_text": {
        "hidden_size": 2048,
        "num_hidden_layers": 40,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "head_dim": 256,
        "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512,
        "rms_norm_eps": 1e-6,
    },
    "emu3_text_model": {**_LLAMA, "num_key_value_heads": 8, "intermediate_size": 14336, "rms_norm_eps": 1e-5},
    "lfm2": {
        "hidden_size": 2560,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 12288,
        "norm_eps": 1e-5,
    },
    "qwen2_5_omni_text": {
        "hidden_size": 3584,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "intermediate_size": 18944,
        "rms_norm_eps": 1e-6,
        "max_window_layers": 28,
        "rope_theta": 1e6,
    },
}
"""The values of keys that files leave out: inside a wrapper, transformers 4 writes none that are its defaults."""
