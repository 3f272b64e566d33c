"""A tiny random checkpoint of every multimodal model whose text model is read; a new wrapper is added here."""

from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from transformers import PreTrainedModel

import tiny
from zoo import VOCAB, drawn

_TEXT: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "intermediate_size": 40,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
_MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "mrope_section": [1, 1, 1]}}
_VISION = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 20}
_SIZED = _VISION | {"image_size": 8, "patch_size": 4}
_CLIP = _SIZED | {"model_type": "clip_vision_model", "projection_dim": 16}
_SIGLIP = _SIZED | {"model_type": "siglip_vision_model"}
_VISUAL = {"depth": 1, "hidden_size": 16, "num_heads": 2, "patch_size": 4}
_WINDOWED = _VISUAL | {"intermediate_size": 20, "out_hidden_size": 24, "fullatt_block_indexes": [0]}
_DEEP = _VISUAL | {"intermediate_size": 20, "out_hidden_size": 24, "deepstack_visual_indexes": [0]}
_HYBRID = {"head_dim": 8, "layer_types": ["full_attention", "full_attention"], "linear_num_value_heads": 6}
_HYBRID |= {"linear_num_key_heads": 3, "linear_key_head_dim": 4, "linear_value_head_dim": 5}
_HYBRID |= {"rope_parameters": {**_MROPE["rope_parameters"], "partial_rotary_factor": 0.75}}
_QWEN3_5_VISUAL = _VISUAL | {"intermediate_size": 20, "out_hidden_size": 24, "num_position_embeddings": 16}
_AUDIO = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 20}
_MEL = {"num_mel_bins": 8, "max_source_positions": 16}
_ROUTED = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
_LATENT = {"num_key_value_heads": 4, "kv_lora_rank": 14, "q_lora_rank": 11, "qk_nope_head_dim": 6}
_LATENT |= {"qk_rope_head_dim": 4, "v_head_dim": 5, "n_routed_experts": 4, **_ROUTED}
_HALF = {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "mrope_section": [1, 1, 0]}}
_HALF["rope_parameters"] |= {"partial_rotary_factor": 2 / 3}
_GLM = _VISUAL | {"intermediate_size": 20, "out_hidden_size": 24, "image_size": 8}
_VQ = {"embed_dim": 4, "num_embeddings": 8, "latent_channels": 4, "base_channels": 32, "channel_multiplier": [1]}
_VQ |= {"num_res_blocks": 1, "projection_dim": 24, "image_token_embed_dim": 16, "num_patches": 4}
_EMU = {"codebook_size": 8, "embed_dim": 4, "latent_channels": 4, "base_channels": 32, "channel_multiplier": [1]}
_EMU |= {"num_res_blocks": 1, "attn_resolutions": [], "hidden_size": 16, "num_attention_heads": 1}
_SAM = _VISION | {"output_channels": 8, "image_size": 64, "patch_size": 16, "mlp_dim": 20, "global_attn_indexes": [0]}
_BART = {"model_type": "bart", "vocab_size": VOCAB, "d_model": 24, "max_position_embeddings": 64}
_BART |= {"encoder_layers": 2, "encoder_attention_heads": 3, "encoder_ffn_dim": 20}
_BART |= {"decoder_layers": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 28}
_DAVIT = {"window_size": 2, "projection_dim": 24, "embed_dim": [8] * 4}
_DAVIT |= dict.fromkeys(("num_heads", "num_groups", "depths"), [1] * 4)
_READ = {"vocab_size": VOCAB, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
_READ |= {"intermediate_size": 40, "layer_norm_eps": 1e-2, "projection_size": 12}
_OPT = {"model_type": "opt", "vocab_size": VOCAB, "hidden_size": 24, "num_hidden_layers": 2, "ffn_dim": 20}
_OPT |= {"num_attention_heads": 4, "max_position_embeddings": 64, "word_embed_proj_dim": 24}
_T5 = {"model_type": "t5", "vocab_size": VOCAB, "d_model": 24, "num_layers": 2, "num_heads": 3, "d_kv": 10, "d_ff": 20}
_T5 |= {"layer_norm_epsilon": 1e-2, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
_QFORMER = {"vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
_QFORMER |= {"intermediate_size": 20}
_ENCODEC = {"hidden_size": 8, "num_filters": 4, "downsampling_ratios": [2], "depths": [1, 1]}
_CONFORMER: dict[str, Any] = {
    "encoder_config": {
        "input_dim": 8,
        "num_layers": 1,
        "hidden_dim": 16,
        "num_heads": 2,
        "output_dim": 4,
        "max_pos_emb": 16,
        "context_size": 8,
    },
    "projector_config": _QFORMER | {"encoder_hidden_size": 16, "model_type": "blip_2_qformer"},
    "has_lora_adapter": False,
    "tie_word_embeddings": False,
}
_RESAMPLER = {"hidden_size": 24, "resampler_n_latents": 4, "resampler_depth": 1, "resampler_n_heads": 2}
_RESAMPLER |= {"resampler_head_dim": 8, "num_key_value_heads": 2}


def _of(model_type: str, **more: Any) -> dict[str, Any]:
    """Return the configuration of a text model."""
    return _TEXT | {"model_type": model_type} | more


def _model(name: str, text: dict[str, Any], vision: dict[str, Any], **more: Any) -> tuple[str, str, dict[str, Any]]:
    """Return the class, the class of the configuration and the settings of a model of images."""
    settings = {"text_config": text, "vision_config": vision, "tie_word_embeddings": False} | more
    return f"{name}ForConditionalGeneration", f"{name}Config", settings


def _speech(name: str, text: dict[str, Any], audio: dict[str, Any], **more: Any) -> tuple[str, str, dict[str, Any]]:
    """Return the same of a model of speech."""
    settings = {"text_config": text, "audio_config": audio} | more
    return f"{name}ForConditionalGeneration", f"{name}Config", settings


_COHERE = {name: value for name, value in _TEXT.items() if name != "rms_norm_eps"}
_COHERE |= {"model_type": "cohere2", "head_dim": 8, "layer_norm_eps": 1e-2, "sliding_window": 3}
_COHERE |= {"layer_types": ["sliding_attention", "full_attention"]}
_GEMMA = {"head_dim": 8, "final_logit_softcapping": 4.0}
MULTIMODAL: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llava": _model("Llava", _of("llama", attention_bias=True, mlp_bias=True), _CLIP),
    "llava of gemma2": _model("Llava", _of("gemma2", sliding_window=3, **_GEMMA), _CLIP),
    "vipllava": _model("VipLlava", _of("llama"), _CLIP),
    "llava_next": _model("LlavaNext", _of("mistral", sliding_window=3), _CLIP),
    "llava_next_video": _model("LlavaNextVideo", _of("llama"), _CLIP),
    "llava_onevision": _model("LlavaOnevision", _of("qwen2"), _SIGLIP),
    "llava_onevision, tied": _model("LlavaOnevision", _of("qwen2"), _SIGLIP, tie_word_embeddings=True),
    "video_llava": _model("VideoLlava", _of("llama"), _CLIP),
    "internvl": _model("InternVL", _of("qwen2"), _VISION | {"image_size": [8, 8], "patch_size": [4, 4]}),
    "internvl of qwen3": _model(
        "InternVL", _of("qwen3", head_dim=8), _VISION | {"image_size": [8, 8], "patch_size": [4, 4]}
    ),
    "got_ocr2": _model("GotOcr2", _of("qwen2"), _SAM | {"window_size": 2}),
    "mistral3": _model("Mistral3", _of("mistral", head_dim=8), _SIZED | {"model_type": "pixtral", "head_dim": 8}),
    "paligemma": _model("PaliGemma", _of("gemma", head_dim=8), _SIGLIP, projection_dim=24),
    "paligemma2": _model("PaliGemma", _of("gemma2", sliding_window=3, **_GEMMA), _SIGLIP, projection_dim=24),
    "gemma3": _model("Gemma3", _TEXT | {"sliding_window": 3, **_GEMMA}, _SIGLIP, mm_tokens_per_image=4),
    "shieldgemma2": (
        "ShieldGemma2ForImageClassification",
        "ShieldGemma2Config",
        {"text_config": _TEXT | {"sliding_window": 3, **_GEMMA}, "vision_config": _SIGLIP, "mm_tokens_per_image": 4},
    ),
    "gemma4": _model(
        "Gemma4",
        _TEXT
        | {"sliding_window": 3, **_GEMMA, "global_head_dim": 12, "num_hidden_layers": 3, "num_kv_shared_layers": 1}
        | {"layer_types": ["full_attention", "sliding_attention", "full_attention"], "hidden_size_per_layer_input": 6}
        | {"vocab_size_per_layer_input": VOCAB},
        _VISION | {"patch_size": 4, "head_dim": 8, "position_embedding_size": 8, "num_key_value_heads": 2},
        audio_config=_VISION | {"output_proj_dims": 24, "subsampling_conv_channels": [4, 4]},
        tie_word_embeddings=True,
    ),
    "gemma4_unified": _model(
        "Gemma4Unified",
        _TEXT
        | {"sliding_window": 3, **_GEMMA, "global_head_dim": 12, "attention_k_eq_v": True}
        | {"layer_types": ["sliding_attention", "full_attention"], "num_global_key_value_heads": 1},
        {"patch_size": 4, "mm_embed_dim": 24, "mm_posemb_size": 8, "pooling_kernel_size": 1},
        tie_word_embeddings=True,
    ),
    "aya_vision": _model("AyaVision", _COHERE, _SIGLIP, downsample_factor=2),
    "cohere2_vision": _model("Cohere2Vision", _COHERE, _SIGLIP, downsample_factor=2),
    "idefics2": _model("Idefics2", _of("mistral"), _SIZED, perceiver_config=_RESAMPLER),
    "idefics3": _model("Idefics3", _of("llama"), _SIZED),
    "smolvlm": _model("SmolVLM", _of("llama"), _SIZED, tie_word_embeddings=True),
    "qwen2_vl": _model("Qwen2VL", _TEXT | _MROPE, _VISUAL | {"embed_dim": 16, "hidden_size": 24, "mlp_ratio": 2}),
    "qwen2_5_vl": _model("Qwen2_5_VL", _TEXT | _MROPE, _WINDOWED, tie_word_embeddings=True),
    "qwen3_vl": _model("Qwen3VL", _TEXT | _MROPE | {"head_dim": 6}, _DEEP | {"num_position_embeddings": 16}),
    "qwen3_vl_moe": _model(
        "Qwen3VLMoe",
        _TEXT | _MROPE | _ROUTED | {"head_dim": 6, "num_experts": 5},
        _DEEP | {"num_position_embeddings": 16},
    ),
    "glm4v": _model("Glm4v", _TEXT | _HALF, _GLM),
    "glm46v": _model("Glm46V", _of("glm4v_text") | _HALF, _GLM | {"model_type": "glm4v_vision"}),
    "glm4v_moe": _model(
        "Glm4vMoe", _TEXT | _HALF | _ROUTED | {"n_routed_experts": 6, "first_k_dense_replace": 1}, _GLM
    ),
    "glm_ocr": _model("GlmOcr", _TEXT | _HALF, _GLM),
    "muse_glimmer": _model(
        "MuseGlimmer",
        _TEXT | {"head_dim": 8, "sliding_window": 3},
        _VISION | {"patch_size": 4, "pos_emb_height": 4, "pos_emb_width": 4},
        out_hidden_size=64,
        projector_hidden_size=12,
    ),
    "exaone4_5": _model(
        "Exaone4_5_", _of("exaone4", sliding_window=3, layer_types=["sliding_attention", "full_attention"]), _WINDOWED
    ),
    "llama4": _model(
        "Llama4",
        _TEXT | {"head_dim": 8, "num_local_experts": 5, "intermediate_size_mlp": 44, "attention_chunk_size": 3},
        _SIZED | {"vision_output_dim": 24, "projector_input_dim": 24, "projector_output_dim": 24},
    ),
    "aria": _model(
        "Aria",
        _of("aria_text", moe_num_experts=5),
        _SIZED | {"model_type": "idefics3_vision"},
        projector_patch_to_query_dict={4: 4},
    ),
    "deepseek_vl": _model("DeepseekVL", _of("llama"), _SIGLIP),
    "janus": _model("Janus", _of("llama"), _SIZED, vq_config=_VQ),
    "lighton_ocr": _model("LightOnOcr", _of("qwen3", head_dim=8), _SIZED | {"model_type": "pixtral", "head_dim": 8}),
    "video_llama_3": _model("VideoLlama3", _of("qwen2"), _VISION | {"patch_size": 4}),
    "ovis2": _model(
        "Ovis2",
        _of("qwen2"),
        _SIZED | {"vocab_size": 20, "num_visual_indicator_tokens": 5},
        hidden_size=24,
        vocab_size=VOCAB,
    ),
    "mistral3 of ministral3": _model(
        "Mistral3", _of("ministral3", head_dim=8), _SIZED | {"model_type": "pixtral", "head_dim": 8}
    ),
    "mistral3 of mistral4": _model(
        "Mistral3", _of("mistral4", **_LATENT), _SIZED | {"model_type": "pixtral", "head_dim": 8}
    ),
    "fuyu": (
        "FuyuForCausalLM",
        "FuyuConfig",
        {
            "text_config": {
                name: value for name, value in _TEXT.items() if name not in ("num_key_value_heads", "rms_norm_eps")
            }
            | {"model_type": "persimmon", "layer_norm_eps": 1e-2}
            | {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 2 / 3}},
            "patch_size": 4,
            "image_size": 8,
        },
    ),
    "qwen3_5": _model("Qwen3_5", _TEXT | _HYBRID, _QWEN3_5_VISUAL),
    "qwen3_5_moe": _model(
        "Qwen3_5Moe",
        {key: value for key, value in (_TEXT | _HYBRID).items() if key != "intermediate_size"}
        | {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
        | {"shared_expert_intermediate_size": 12},
        _QWEN3_5_VISUAL,
    ),
    "qwen2_5_omni_thinker": _model(
        "Qwen2_5OmniThinker", _TEXT | _MROPE, _WINDOWED, audio_config=_AUDIO | _MEL | {"output_dim": 24, "n_window": 2}
    ),
    "qwen3_omni_moe_thinker": _model(
        "Qwen3OmniMoeThinker",
        _TEXT | _MROPE | _ROUTED | {"head_dim": 6, "num_experts": 5},
        _DEEP | {"num_position_embeddings": 16},
        audio_config=_AUDIO | _MEL | {"output_dim": 24, "n_window": 2, "downsample_hidden_size": 8},
    ),
    "qwen2_audio": (
        "Qwen2AudioForConditionalGeneration",
        "Qwen2AudioConfig",
        {"text_config": _of("qwen2"), "audio_config": _AUDIO | _MEL},
    ),
    "audioflamingo3": _speech("AudioFlamingo3", _of("qwen2"), _VISION | _MEL),
    "musicflamingo": _speech("MusicFlamingo", _of("qwen2"), _VISION | _MEL | {"model_type": "audioflamingo3_encoder"}),
    "glmasr": _speech("GlmAsr", _of("llama"), _VISION | _MEL, tie_word_embeddings=False),
    "qwen3_asr": _speech(
        "Qwen3ASR",
        _of("qwen3", head_dim=8),
        _AUDIO | _MEL | {"output_dim": 24, "n_window": 2, "downsample_hidden_size": 8},
        tie_word_embeddings=False,
    ),
    "fun_asr_nano": _speech(
        "FunAsrNano",
        _of("qwen3", head_dim=8),
        _VISION | {"num_mel_bins": 8, "num_timestamp_prediction_layers": 1},
        adaptor_config={"hidden_size": 24, "intermediate_size": 6, "num_attention_heads": 2, "num_hidden_layers": 1},
        tie_word_embeddings=False,
    ),
    "deepseek_vl_hybrid": _model(
        "DeepseekVLHybrid", _of("llama"), _SIGLIP, high_res_vision_config=_SAM | {"model_type": "sam_vision_model"}
    ),
    "lfm2_vl": _model(
        "Lfm2Vl",
        {name: value for name, value in _of("lfm2").items() if name != "rms_norm_eps"}
        | {"norm_eps": 1e-2, "layer_types": ["full_attention", "full_attention"]},
        _VISION | {"model_type": "siglip2_vision_model", "patch_size": 4, "num_patches": 4},
        projector_hidden_size=12,
    ),
    "emu3": (
        "Emu3ForConditionalGeneration",
        "Emu3Config",
        {
            "text_config": _TEXT,
            "vq_config": _EMU,
            "vocabulary_map": {"<image>": 5, "<|extra_200|>": 6, "<|visual token 000000|>": 7},
            "tie_word_embeddings": False,
        },
    ),
    "fast_vlm": _model("FastVlm", _of("qwen2"), _SIGLIP),
    "perception_lm": _model("PerceptionLM", _of("llama"), _SIGLIP | {"model_args": {"embed_dim": 16}}),
    "pp_chart2table": (
        "GotOcr2ForConditionalGeneration",
        "PPChart2TableConfig",
        {"text_config": _of("qwen2"), "vision_config": _SAM | {"window_size": 2}, "tie_word_embeddings": False},
    ),
    "colpali": (
        "ColPaliForRetrieval",
        "ColPaliConfig",
        {
            "vlm_config": {
                "model_type": "paligemma",
                "text_config": _of("gemma", head_dim=8),
                "vision_config": _SIGLIP,
                "projection_dim": 24,
            }
        },
    ),
    "colqwen2": (
        "ColQwen2ForRetrieval",
        "ColQwen2Config",
        {
            "vlm_config": {
                "model_type": "qwen2_vl",
                "text_config": _TEXT | _MROPE | {"tie_word_embeddings": True},
                "vision_config": _VISUAL | {"embed_dim": 16, "hidden_size": 24, "mlp_ratio": 2},
                "tie_word_embeddings": True,
            }
        },
    ),
    "granite_docling": _model(
        "GraniteDocling",
        _TEXT,
        _SIZED | {"out_hidden_size": 24, "deepstack_visual_indexes": [0], "scale_factor": 2},
        tie_word_embeddings=True,
    ),
    "hyperclovax_vision_v2": _model(
        "HyperCLOVAXVisionV2", _of("hyperclovax", head_dim=8), _WINDOWED, tie_word_embeddings=True
    ),
    "glmga": (
        "Glm46VForConditionalGeneration",
        "GlmgaConfig",
        {
            "text_config": _of("glm4v_text") | _HALF,
            "vision_config": _GLM | {"model_type": "glm4v_vision"},
            "tie_word_embeddings": False,
        },
    ),
    "florence2": _model("Florence2", _BART, _DAVIT, tie_word_embeddings=True),
    "siglip": ("SiglipModel", "SiglipConfig", {"text_config": _READ, "vision_config": _SIZED}),
    "siglip2": ("Siglip2Model", "Siglip2Config", {"text_config": _READ, "vision_config": _VISION | {"patch_size": 4}}),
    "blip-2": _model("Blip2", _OPT, _SIZED, qformer_config=_QFORMER),
    "blip-2 of t5": _model("Blip2", _T5, _SIZED, qformer_config=_QFORMER),
    "instructblip": _model("InstructBlip", _of("llama"), _SIZED, qformer_config=_QFORMER),
    "instructblipvideo": _model("InstructBlipVideo", _OPT, _SIZED, qformer_config=_QFORMER),
    "minicpmv4_6": _model("MiniCPMV4_6", _TEXT | _HYBRID, _SIZED | {"insert_layer_id": 0}, insert_layer_id=0),
    "minicpmv4_7": _model("MiniCPMV4_7", _TEXT | _HYBRID, _SIZED | {"insert_layer_id": 0}, insert_layer_id=0),
    "minicpm_ocr": _model("MiniCPMOcr", _TEXT | _HYBRID, _SIZED | {"insert_layer_id": 0}, insert_layer_id=0),
    "moss_transcribe_diarize": _speech(
        "MossTranscribeDiarize", _of("qwen3", head_dim=8), _VISION | _MEL, tie_word_embeddings=False
    ),
    "omniasr": _speech(
        "OmniASR",
        _of("llama"),
        _VISION | {"conv_dim": [8], "conv_kernel": [3], "conv_stride": [2], "num_conv_pos_embedding_groups": 2},
    ),
    "vibevoice_asr": (
        "VibeVoiceAsrForConditionalGeneration",
        "VibeVoiceAsrConfig",
        {
            "text_config": _of("qwen2"),
            "acoustic_tokenizer_encoder_config": _ENCODEC,
            "semantic_tokenizer_encoder_config": _ENCODEC,
            "acoustic_tokenizer_chunk_size": 64,
        },
    ),
    "granite_speech": (
        "GraniteSpeechForConditionalGeneration",
        "GraniteSpeechConfig",
        {"text_config": _of("granite"), **_CONFORMER},
    ),
    "granite_speech_plus": (
        "GraniteSpeechPlusForConditionalGeneration",
        "GraniteSpeechPlusConfig",
        {"text_config": _of("granite"), **_CONFORMER},
    ),
    "voxtral": (
        "VoxtralForConditionalGeneration",
        "VoxtralConfig",
        {"text_config": _of("llama"), "audio_config": _VISION | _MEL},
    ),
}


def tiny_multimodal(name: str, seed: int = 0) -> PreTrainedModel:
    """Make one of MULTIMODAL in float32, with every parameter drawn at random."""
    return drawn(*MULTIMODAL[name], seed)


def save_as_in_memory(hf: PreTrainedModel, folder: Path) -> Path:
    """Write a model with the names of transformers 5 in memory, which it does not write itself for older types.

    Experts that it joins in memory are in no file: such a model is written as usual.
    """
    tiny.save(hf, folder)
    if any(".experts." in name for name in hf.state_dict()):
        return folder
    state = hf.state_dict()
    tied = {name for name in hf._tied_weights_keys or () if hf.config.tie_word_embeddings}
    save_file({name: state[name].clone() for name in state.keys() - tied}, folder / "model.safetensors")
    return folder
