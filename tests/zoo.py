"""A tiny random checkpoint of every family, from its transformers configuration; a new family is added here.

Where the family allows it, a checkpoint has more heads than key/value heads, all biases, and untied embeddings. Sizes
that could be confused with each other are different.
"""

from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

VOCAB = 61
_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
_GQA = _SIZES | {"num_attention_heads": 4, "num_key_value_heads": 2}
_WIDE = _GQA | {"head_dim": 8, "rms_norm_eps": 1e-2}
_BIASED = _WIDE | {"attention_bias": True}
_THREE = _SIZES | {"num_attention_heads": 3, "layer_norm_eps": 1e-2}
_COHERE_MOE = _GQA | {"head_dim": 8, "layer_norm_eps": 1e-2, "sliding_window": 3, "num_experts": 5}
_COHERE_MOE |= {"intermediate_size": 16, "tie_word_embeddings": False, "rope_theta": 50.0}
_GEMMA = _BIASED | {"query_pre_attn_scalar": 5, "attn_logit_softcapping": 20.0, "final_logit_softcapping": 4.0}
_TWO_ROPES = {
    "full_attention": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
}
_TWO_SHARES = {
    "full_attention": {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "partial_rotary_factor": 0.5},
    "sliding_attention": {"rope_type": "default", "rope_theta": 50.0, "partial_rotary_factor": 1.0},
}
_TWO_SHARES["full_attention"]["original_max_position_embeddings"] = 64
_GEMMA4 = _WIDE | {"global_head_dim": 12, "sliding_window": 3, "final_logit_softcapping": 4.0}
_GEMMA4 |= {"rope_parameters": {"full_attention": {"rope_type": "proportional", "rope_theta": 500.0}}}
_GEMMA4["rope_parameters"]["full_attention"]["partial_rotary_factor"] = 0.5
_GEMMA4["rope_parameters"]["sliding_attention"] = {"rope_type": "default", "rope_theta": 50.0}
_GEMMA4 |= {"vocab_size_per_layer_input": VOCAB, "layer_types": ["sliding_attention", "full_attention"]}
_FALCON = {"vocab_size": VOCAB, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
_FALCON |= {"bos_token_id": 0, "eos_token_id": 0, "layer_norm_epsilon": 1e-2, "ffn_hidden_size": 40}
_GPT = {"vocab_size": VOCAB, "bos_token_id": 0, "eos_token_id": 0, "layer_norm_epsilon": 1e-2}
_T5 = {"vocab_size": VOCAB, "d_model": 24, "d_kv": 6, "d_ff": 40, "num_layers": 2, "num_decoder_layers": 3}
_T5 |= {"num_heads": 3, "layer_norm_epsilon": 1e-2, "relative_attention_num_buckets": 8}
_LONGT5 = _T5 | {"local_radius": 2, "is_encoder_decoder": True}
_SWITCH = _T5 | {"num_experts": 4, "router_bias": True, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 3}
_T5GEMMA = {"encoder": _GEMMA | {"sliding_window": 2, "rope_parameters": {"rope_type": "default", "rope_theta": 50.0}}}
_T5GEMMA |= {"decoder": _T5GEMMA["encoder"] | {"num_hidden_layers": 3, "intermediate_size": 44, "head_dim": 10}}
_T5GEMMA |= {"tie_word_embeddings": False, "vocab_size": VOCAB}
_BART = {"vocab_size": VOCAB, "d_model": 24, "encoder_layers": 2, "decoder_layers": 3, "scale_embedding": True}
_BART |= {"encoder_attention_heads": 3, "decoder_attention_heads": 4, "encoder_ffn_dim": 40, "decoder_ffn_dim": 44}
_BART |= {"max_position_embeddings": 64}
_LED = {key: value for key, value in _BART.items() if key not in ("scale_embedding", "max_position_embeddings")}
_LED |= {"attention_window": 6, "max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 64}
_MARIAN = _BART | {"pad_token_id": 0, "decoder_start_token_id": 0}
_AUDIO = {key: value for key, value in _BART.items() if key != "max_position_embeddings"} | {"max_target_positions": 64}
_WHISPER = _AUDIO | {
    "scale_embedding": False,
    "num_mel_bins": 8,
    "max_source_positions": 5,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
}
_WHISPER |= {"bos_token_id": 0, "eos_token_id": 0, "suppress_tokens": None, "begin_suppress_tokens": None}
_SPEECH = _AUDIO | {"input_feat_per_channel": 8, "max_source_positions": 64, "conv_channels": 20}
_ALONE = {"use_cache": False}  # its cache would have the layers of the encoder
_DEBERTA = _THREE | {"relative_attention": True, "position_biased_input": False, "pos_att_type": ["c2p", "p2c"]}
_ESM = _THREE | {"pad_token_id": 1, "mask_token_id": VOCAB, "token_dropout": True}
_XLM = {"vocab_size": VOCAB, "emb_dim": 24, "n_layers": 2, "n_heads": 3, "max_position_embeddings": 64}
_XLM |= {"layer_norm_eps": 1e-2, "pad_token_id": 0}
_EXPERTS = {"num_experts_per_tok": 2}
_GROUPED = {"num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_routed_experts": 6, "n_shared_experts": 2}
_GROUPED |= {"n_group": 3, "topk_group": 2, "routed_scaling_factor": 1.7, "first_k_dense_replace": 1}
_GRANITE_MOE = _GQA | _EXPERTS | {"num_local_experts": 5, "rms_norm_eps": 1e-2, "attention_bias": True}
_GRANITE_MOE |= {"attention_multiplier": 0.3, "embedding_multiplier": 3.0, "residual_multiplier": 0.4}
_GRANITE_MOE |= {"logits_scaling": 5.0}
_DELTA = {"linear_num_value_heads": 6, "linear_num_key_heads": 3, "linear_key_head_dim": 4}
_DELTA |= {"linear_value_head_dim": 5, "linear_conv_kernel_dim": 3}
_HALF_TURNED = {
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5},
}
_MAMBA = {"mamba_n_heads": 6, "mamba_d_head": 8, "mamba_n_groups": 3, "mamba_d_state": 5, "mamba_d_conv": 3}
_MAMBA |= {"mamba_proj_bias": True}
_FALCON_MAMBA = {key: value for key, value in _MAMBA.items() if key != "mamba_proj_bias"}
_FALCON_MAMBA |= {"mamba_d_ssm": 48, "mamba_expand": 2, "embedding_multiplier": 3.0, "lm_head_multiplier": 0.3}
_FALCON_MAMBA |= {"key_multiplier": 1.5, "attention_out_multiplier": 0.7, "ssm_in_multiplier": 1.3}
_FALCON_MAMBA |= {"ssm_out_multiplier": 0.6, "ssm_multipliers": [0.8, 1.2, 1.4, 0.9, 1.1]}
_FALCON_MAMBA |= {"mlp_multipliers": [1.6, 0.5]}
_NEMOTRON = {k: v for k, v in _WIDE.items() if k not in ("num_hidden_layers", "rms_norm_eps")} | {
    "layer_norm_epsilon": 1e-2
}
_NEMOTRON |= {"mamba_num_heads": 6, "mamba_head_dim": 8, "n_groups": 3, "ssm_state_size": 5, "conv_kernel": 3}
_NEMOTRON |= {"use_bias": True, "n_routed_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_NEMOTRON |= {"moe_shared_expert_intermediate_size": 12, "n_group": 3, "topk_group": 2, "routed_scaling_factor": 1.7}
_NEMOTRON |= {"time_step_min": 0.7}
_SHARED_EXPERT = {"num_experts": 5, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 12}
_YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "beta_fast": 4.0, "beta_slow": 0.5}
_YARN |= {"original_max_position_embeddings": 64, "truncate": False}
_BY_LENGTH = {"max_position_embeddings": 32}
_BY_LENGTH |= {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 4.0}}
_LONGROPE = {"rope_type": "longrope", "rope_theta": 500.0, "short_factor": [1.5, 2.0], "long_factor": [1.25, 5.0]}
_LONG = {"max_position_embeddings": 512, "original_max_position_embeddings": 32, "rope_parameters": _LONGROPE}
_MSCALE = {"rope_type": "longrope", "rope_theta": 500.0, "short_factor": [1.5, 2.0, 3.0], "long_factor": [1.0] * 3}
_MSCALE |= {"short_mscale": 1.25, "long_mscale": 1.5, "original_max_position_embeddings": 512}
_BETA = {"llama_4_scaling_beta": 0.3}
_LLAMA4 = _BIASED | _EXPERTS | {"num_local_experts": 5, "intermediate_size_mlp": 44, "intermediate_size": 16}
_LLAMA4 |= {"attention_chunk_size": 3, "floor_scale": 3, "attn_scale": 0.3}
_ALPHA = {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 1.0, "alpha": 30.0}}
_GROUPED_ROUTING = {key: value for key, value in _GROUPED.items() if key != "first_k_dense_replace"}
_LATENT = _SIZES | {"num_attention_heads": 4, "num_key_value_heads": 4, "rms_norm_eps": 1e-2, "kv_lora_rank": 14}
_LATENT |= {"qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 5}
_INDEXED = {"q_lora_rank": 11, "index_topk": 16, "index_n_heads": 2, "index_head_dim": 6}
_VISION = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 20}
_SOUND = {"hidden_size": 16, "num_blocks": 1, "num_attention_heads": 2, "intermediate_size": 20}
_SOUND |= {"input_size": 16, "nemo_conv_channels": 16, "ext_pw_out_channel": 16}
_SOUND |= {"depthwise_separable_out_channel": 16, "feature_layer": -1}
_SIGLIP = _VISION | {"image_size": 8, "patch_size": 4, "model_type": "siglip_vision_model"}
_T5GEMMA2 = _GEMMA | {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
_T5GEMMA2 |= {"rope_parameters": _TWO_ROPES}
_T5GEMMA2 = {"decoder": _T5GEMMA2, "encoder": {"text_config": _T5GEMMA2, "mm_tokens_per_image": 4}, "vocab_size": VOCAB}
_T5GEMMA2["encoder"]["vision_config"] = _SIGLIP | {"image_size": 16}
_VISUAL = {"depth": 1, "hidden_size": 16, "num_heads": 2, "patch_size": 4}
_QWEN_VISUAL = _VISUAL | {"intermediate_size": 20, "out_hidden_size": 24}


_GLM_VISUAL = _QWEN_VISUAL | {"image_size": 8}


def _mrope(*section: int, share: float = 1.0) -> dict[str, Any]:
    """Return rotary positions of three axes, with the number of frequencies of each, for a share of each head."""
    rope = {"rope_type": "default", "rope_theta": 500.0, "mrope_section": list(section)}
    return {"rope_parameters": rope | ({} if share == 1 else {"partial_rotary_factor": share})}


ZOO: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", _GPT | {"n_embd": 24, "n_layer": 2, "n_head": 3, "n_inner": 40}),
    "gpt_bigcode": (
        "GPTBigCodeForCausalLM",
        "GPTBigCodeConfig",
        _GPT | {"n_embd": 24, "n_layer": 2, "n_head": 3, "n_inner": 40, "n_positions": 64},
    ),
    "openai-gpt": (
        "OpenAIGPTLMHeadModel",
        "OpenAIGPTConfig",
        _GPT | {"n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 64},
    ),
    "mpt": (
        "MptForCausalLM",
        "MptConfig",
        _GPT | {"d_model": 24, "n_layers": 2, "n_heads": 3, "attn_config": {"clip_qkv": 1.5}},
    ),
    "biogpt": ("BioGptForCausalLM", "BioGptConfig", _SIZES | {"num_attention_heads": 3}),
    "xglm": (
        "XGLMForCausalLM",
        "XGLMConfig",
        {"vocab_size": VOCAB, "d_model": 24, "num_layers": 2, "attention_heads": 3, "ffn_dim": 40},
    ),
    "gpt_neo": (
        "GPTNeoForCausalLM",
        "GPTNeoConfig",
        _GPT
        | {"hidden_size": 24, "num_layers": 2, "num_heads": 3, "intermediate_size": 40, "window_size": 3}
        | {"attention_types": [[["global", "local"], 1]], "max_position_embeddings": 64},
    ),
    "gptj": (
        "GPTJForCausalLM",
        "GPTJConfig",
        _GPT | {"n_embd": 24, "n_layer": 2, "n_head": 3, "n_inner": 40, "rotary_dim": 4, "n_positions": 512},
    ),
    "codegen": (
        "CodeGenForCausalLM",
        "CodeGenConfig",
        _GPT | {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_positions": 512, "n_inner": 40},
    ),
    "gpt_neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", _THREE | {"rotary_pct": 0.75}),
    "gpt_neox-sequential": (
        "GPTNeoXForCausalLM",
        "GPTNeoXConfig",
        _THREE | {"use_parallel_residual": False, "attention_bias": False, "rotary_pct": 0.5},
    ),
    "opt": (
        "OPTForCausalLM",
        "OPTConfig",
        {key: value for key, value in _SIZES.items() if key != "intermediate_size"}
        | {"num_attention_heads": 3, "ffn_dim": 40, "word_embed_proj_dim": 24},
    ),
    "bloom": ("BloomForCausalLM", "BloomConfig", _GPT | {"hidden_size": 24, "n_layer": 2, "n_head": 3}),
    "falcon-rw": (
        "FalconForCausalLM",
        "FalconConfig",
        _FALCON
        | {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True}
        | {"attn_implementation": "sdpa"},  # the eager path of transformers 5.24 adds ALiBi twice
    ),
    "falcon-7b": ("FalconForCausalLM", "FalconConfig", _FALCON),
    "falcon-40b": (
        "FalconForCausalLM",
        "FalconConfig",
        _FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": True, "tie_word_embeddings": False},
    ),
    "falcon-11b": (
        "FalconForCausalLM",
        "FalconConfig",
        _FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
    ),
    "phi": ("PhiForCausalLM", "PhiConfig", _GQA | {"layer_norm_eps": 1e-2, "partial_rotary_factor": 2 / 3}),
    "llama": ("LlamaForCausalLM", "LlamaConfig", _BIASED | {"mlp_bias": True}),
    "mistral": ("MistralForCausalLM", "MistralConfig", _WIDE | {"sliding_window": 3}),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", _GQA | {"rms_norm_eps": 1e-2}),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", _BIASED),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", _BIASED),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", _GEMMA | {"sliding_window": 3}),
    "gemma3": (
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        _GEMMA | {"sliding_window": 3, "sliding_window_pattern": 2, "rope_parameters": _TWO_ROPES},
    ),
    "phi3": (
        "Phi3ForCausalLM",
        "Phi3Config",
        _GQA | _LONG | {"rms_norm_eps": 1e-2, "rope_parameters": _LONGROPE | {"partial_rotary_factor": 2 / 3}},
    ),
    "phi3-multimodal": (
        "Phi4MultimodalForCausalLM",
        "Phi4MultimodalConfig",
        _GQA
        | {"rms_norm_eps": 1e-2, "tie_word_embeddings": False}
        | {"vision_config": _VISION | {"image_size": 8, "patch_size": 4, "crop_size": 8, "feature_layer": -1}}
        | {"audio_config": _SOUND},
    ),
    "olmo": ("OlmoForCausalLM", "OlmoConfig", _GQA | {"attention_bias": True, "clip_qkv": 0.7}),
    "olmo2": ("Olmo2ForCausalLM", "Olmo2Config", _GQA | {"rms_norm_eps": 1e-2, "attention_bias": True}),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", _WIDE | _EXPERTS | {"num_local_experts": 5}),
    "qwen3_moe": (
        "Qwen3MoeForCausalLM",
        "Qwen3MoeConfig",
        _BIASED | _EXPERTS | {"num_experts": 5, "moe_intermediate_size": 16},
    ),
    "qwen3_moe-normed": (
        "Qwen3MoeForCausalLM",
        "Qwen3MoeConfig",
        _BIASED | _EXPERTS | {"num_experts": 5, "moe_intermediate_size": 16, "norm_topk_prob": True},
    ),
    "aria": (
        "AriaTextForCausalLM",
        "AriaTextConfig",
        _BIASED | {"moe_num_experts": 5, "moe_topk": 2, "moe_num_shared_experts": 2, "intermediate_size": 16},
    ),
    "mellum": (
        "MellumForCausalLM",
        "MellumConfig",
        _BIASED
        | _EXPERTS
        | {"num_local_experts": 5, "moe_intermediate_size": 16, "sliding_window": 3, "rope_parameters": _TWO_ROPES}
        | {"layer_types": ["sliding_attention", "full_attention"], "mlp_layer_types": ["sparse", "dense"]},
    ),
    "olmoe": (
        "OlmoeForCausalLM",
        "OlmoeConfig",
        _GQA | _EXPERTS | {"num_experts": 5, "rms_norm_eps": 1e-2, "clip_qkv": 1.5},
    ),
    "qwen3_moe-dense": (
        "Qwen3MoeForCausalLM",
        "Qwen3MoeConfig",
        _BIASED | _EXPERTS | {"num_experts": 5, "moe_intermediate_size": 16, "mlp_only_layers": [1]},
    ),
    "qwen2_moe": (
        "Qwen2MoeForCausalLM",
        "Qwen2MoeConfig",
        _GQA
        | _EXPERTS
        | {"num_experts": 5, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 12, "rms_norm_eps": 1e-2},
    ),
    "qwen2_moe-dense": (
        "Qwen2MoeForCausalLM",
        "Qwen2MoeConfig",
        _GQA
        | _EXPERTS
        | {"num_experts": 5, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 12, "rms_norm_eps": 1e-2}
        | {"decoder_sparse_step": 2, "norm_topk_prob": True},
    ),
    "dots1": ("Dots1ForCausalLM", "Dots1Config", _BIASED | _GROUPED | {"first_k_dense_replace": 0}),
    "exaone_moe": (
        "ExaoneMoeForCausalLM",
        "ExaoneMoeConfig",
        {name: value for name, value in (_WIDE | _GROUPED).items() if not name.startswith("n_")}
        | {"num_experts": 6, "num_shared_experts": 2, "n_group": 3, "sliding_window": 3, "num_hidden_layers": 3}
        | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
        | {"mlp_layer_types": ["dense", "sparse", "sparse"]},
    ),
    "afmoe": (
        "AfmoeForCausalLM",
        "AfmoeConfig",
        _BIASED
        | _EXPERTS
        | {"num_experts": 6, "num_shared_experts": 2, "moe_intermediate_size": 16, "route_scale": 1.7}
        | {"layer_types": ["sliding_attention"] * 3 + ["full_attention"], "sliding_window": 3, "mup_enabled": True}
        | {"num_hidden_layers": 4, "route_norm": True},
    ),
    "flint": (
        "FlintForCausalLM",
        "FlintConfig",
        _BIASED
        | (_EXPERTS | _SHARED_EXPERT)
        | {"layer_types": ["full_attention", "sliding_attention"], "mlp_only_layers": [0], "sliding_window": 3},
    ),
    "kolibri1": (
        "Kolibri1ForCausalLM",
        "Kolibri1Config",
        {name: value for name, value in _WIDE.items() if name != "intermediate_size"}
        | (_EXPERTS | _SHARED_EXPERT)
        | {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 3},
    ),
    "solar_open": (
        "SolarOpenForCausalLM",
        "SolarOpenConfig",
        _BIASED | {name: value for name, value in _GROUPED.items() if name != "first_k_dense_replace"},
    ),
    "sarvam_moe": ("Glm4MoeForCausalLM", "SarvamMoEConfig", _WIDE | _GROUPED),
    "llama4": ("Llama4ForCausalLM", "Llama4TextConfig", _LLAMA4 | {"no_rope_layers": [1, 0], "moe_layers": [1]}),
    "llama4-bare": (
        "Llama4ForCausalLM",
        "Llama4TextConfig",
        _LLAMA4 | {"no_rope_layers": [0, 1], "use_qk_norm": False, "interleave_moe_layer_step": 1},
    ),
    "hy_v3": (
        "HYV3ForCausalLM",
        "HYV3Config",
        _BIASED
        | _EXPERTS
        | {"num_experts": 6, "num_shared_experts": 2, "moe_intermediate_size": 16, "router_scaling_factor": 1.7},
    ),
    "glm4_moe": ("Glm4MoeForCausalLM", "Glm4MoeConfig", _BIASED | _GROUPED | {"use_qk_norm": True}),
    "glm4_moe-plain": ("Glm4MoeForCausalLM", "Glm4MoeConfig", _BIASED | _GROUPED | {"norm_topk_prob": False}),
    "deepseek_v3": ("DeepseekV3ForCausalLM", "DeepseekV3Config", _LATENT | _GROUPED | {"q_lora_rank": 11}),
    "deepseek_v3-direct": (
        "DeepseekV3ForCausalLM",
        "DeepseekV3Config",
        _LATENT | _GROUPED | {"q_lora_rank": None, "rope_parameters": _YARN | {"mscale": 0.7, "mscale_all_dim": 0.7}},
    ),
    "deepseek_v2": (
        "DeepseekV2ForCausalLM",
        "DeepseekV2Config",
        _LATENT | _GROUPED | {"q_lora_rank": None, "topk_method": "greedy"},
    ),
    "deepseek_v2-groups": (
        "DeepseekV2ForCausalLM",
        "DeepseekV2Config",
        _LATENT | _GROUPED | {"q_lora_rank": 11, "topk_method": "group_limited_greedy", "num_experts_per_tok": 3},
    ),
    "glm4_moe_lite": (
        "Glm4MoeLiteForCausalLM",
        "Glm4MoeLiteConfig",
        _LATENT | _GROUPED_ROUTING | {"q_lora_rank": 11, "mlp_layer_types": ["sparse", "dense"]},
    ),
    "sarvam_mla": ("DeepseekV3ForCausalLM", "SarvamMLAConfig", _LATENT | _GROUPED | {"q_lora_rank": None}),
    "axk1": ("AXK1ForCausalLM", "AXK1Config", _LATENT | _GROUPED | {"q_lora_rank": 11}),
    "deepseek_v32": ("DeepseekV32ForCausalLM", "DeepseekV32Config", _LATENT | _GROUPED | _INDEXED),
    "glm_moe_dsa": (
        "GlmMoeDsaForCausalLM",
        "GlmMoeDsaConfig",
        _LATENT
        | _GROUPED_ROUTING
        | _INDEXED
        | {"mlp_layer_types": ["sparse", "dense"], "indexer_types": ["full", "shared"]},
    ),
    "mistral4": (
        "Mistral4ForCausalLM",
        "Mistral4Config",
        _LATENT
        | _GROUPED
        | {"q_lora_rank": 11, "rope_parameters": _YARN | {"mscale_all_dim": 0.7, "mscale": 0.7} | _BETA},
    ),
    "minicpm3": (
        "MiniCPM3ForCausalLM",
        "MiniCPM3Config",
        _LATENT
        | _LONG
        | {"q_lora_rank": 11, "scale_emb": 3.0, "scale_depth": 0.7, "dim_model_base": 5, "tie_word_embeddings": False},
    ),
    "youtu": (
        "YoutuForCausalLM",
        "YoutuConfig",
        _LATENT | {"q_lora_rank": 11, "tie_word_embeddings": False, "rope_parameters": _YARN},
    ),
    "granitemoe": ("GraniteMoeForCausalLM", "GraniteMoeConfig", _GRANITE_MOE),
    "granitemoe-shared": (
        "GraniteMoeSharedForCausalLM",
        "GraniteMoeSharedConfig",
        _GRANITE_MOE | {"shared_intermediate_size": 12},
    ),
    "gpt_oss": (
        "GptOssForCausalLM",
        "GptOssConfig",
        _WIDE | _EXPERTS | {"num_local_experts": 5, "sliding_window": 3, "swiglu_limit": 0.4, "rope_parameters": _YARN},
    ),
    "openai_privacy_filter": (
        "OpenAIPrivacyFilterForTokenClassification",
        "OpenAIPrivacyFilterConfig",
        _WIDE | _EXPERTS | {"num_local_experts": 5, "sliding_window": 2, "swiglu_limit": 0.4, "rope_parameters": _YARN},
    ),
    "minimax_m2": (
        "MiniMaxM2ForCausalLM",
        "MiniMaxM2Config",
        _WIDE | _EXPERTS | {"num_local_experts": 5, "rotary_dim": 4},
    ),
    "flex_olmo": (
        "FlexOlmoForCausalLM",
        "FlexOlmoConfig",
        _GQA | _EXPERTS | {"num_experts": 5, "rms_norm_eps": 1e-2, "attention_bias": True},
    ),
    "ernie4_5_moe": (
        "Ernie4_5_MoeForCausalLM",
        "Ernie4_5_MoeConfig",
        _WIDE
        | {"moe_num_experts": 6, "moe_k": 2, "moe_intermediate_size": 16, "num_hidden_layers": 3}
        | {"moe_layer_end_index": 1, "tie_word_embeddings": False},
    ),
    "phimoe": (
        "PhimoeForCausalLM",
        "PhimoeConfig",
        _GQA
        | _EXPERTS
        | {"num_local_experts": 5, "rms_norm_eps": 1e-2, "attention_bias": True, "lm_head_bias": True}
        | {
            "router_jitter_noise": 0.3,
            "sliding_window": 3,
            "rope_parameters": _MSCALE,
            "max_position_embeddings": 1024,
        },
    ),
    "qwen3_5": (
        "Qwen3_5ForCausalLM",
        "Qwen3_5TextConfig",
        _BIASED | _DELTA | _HALF_TURNED | {"layer_types": ["linear_attention", "full_attention"]},
    ),
    "qwen3_5-attention": (
        "Qwen3_5ForCausalLM",
        "Qwen3_5TextConfig",
        _BIASED | _DELTA | _HALF_TURNED | {"layer_types": ["full_attention", "linear_attention"]},
    ),
    "qwen3_5-full": (
        "Qwen3_5ForCausalLM",
        "Qwen3_5TextConfig",
        _WIDE | _DELTA | _HALF_TURNED | {"layer_types": ["full_attention", "full_attention"]},
    ),
    "qwen3_next": (
        "Qwen3NextForCausalLM",
        "Qwen3NextConfig",
        _WIDE
        | (_DELTA | _HALF_TURNED | _EXPERTS | _SHARED_EXPERT)
        | {"layer_types": ["linear_attention", "full_attention"], "norm_topk_prob": True},
    ),
    "qwen3_5_moe": (
        "Qwen3_5MoeForCausalLM",
        "Qwen3_5MoeTextConfig",
        {key: value for key, value in _BIASED.items() if key != "intermediate_size"}
        | (_DELTA | _HALF_TURNED | _EXPERTS | _SHARED_EXPERT)
        | {"layer_types": ["linear_attention", "full_attention"]},
    ),
    "lfm2": (
        "Lfm2ForCausalLM",
        "Lfm2Config",
        _GQA
        | {"norm_eps": 1e-2, "layer_types": ["conv", "full_attention"], "conv_bias": True, "block_multiple_of": 8}
        | {"tie_word_embeddings": False},
    ),
    "lfm2_moe": (
        "Lfm2MoeForCausalLM",
        "Lfm2MoeConfig",
        _GQA
        | (_EXPERTS | {"num_experts": 5, "moe_intermediate_size": 16, "num_dense_layers": 1, "norm_eps": 1e-2})
        | {"layer_types": ["full_attention", "conv"], "routed_scaling_factor": 1.7, "tie_word_embeddings": False},
    ),
    "falcon_h1": (
        "FalconH1ForCausalLM",
        "FalconH1Config",
        {k: v for k, v in (_BIASED | _FALCON_MAMBA).items() if k != "head_dim"}
        | {"projectors_bias": True, "mlp_bias": True},
    ),
    "falcon_h1-normed": (
        "FalconH1ForCausalLM",
        "FalconH1Config",
        {k: v for k, v in (_WIDE | _FALCON_MAMBA).items() if k != "head_dim"}
        | {"mamba_rms_norm": True, "mamba_norm_before_gate": False},
    ),
    "jamba": (
        "JambaForCausalLM",
        "JambaConfig",
        _GQA
        | {"rms_norm_eps": 1e-2, "num_experts": 5, "num_hidden_layers": 4, "attn_layer_period": 2}
        | {"attn_layer_offset": 1, "expert_layer_period": 3, "expert_layer_offset": 1, "mamba_d_state": 5}
        | {"mamba_d_conv": 3, "mamba_proj_bias": True, "mamba_dt_rank": 3},
    ),
    "jamba-attention": (
        "JambaForCausalLM",
        "JambaConfig",
        _GQA
        | {"rms_norm_eps": 1e-2, "num_experts": 5, "attn_layer_period": 2, "attn_layer_offset": 0}
        | {"mamba_d_state": 5, "mamba_d_conv": 3},
    ),
    "recurrent_gemma": (
        "RecurrentGemmaForCausalLM",
        "RecurrentGemmaConfig",
        _GQA
        | {"num_hidden_layers": 3, "block_types": ["recurrent", "attention"], "intermediate_size": 80}
        | {"attention_window_size": 3, "attention_bias": True, "logits_soft_cap": 4.0, "conv1d_width": 3}
        | {"rms_norm_eps": 1e-2, "partial_rotary_factor": 2 / 3},
    ),
    "bamba": (
        "BambaForCausalLM",
        "BambaConfig",
        _BIASED | _MAMBA | {"attn_layer_indices": [1], "mlp_bias": True},
    ),
    "granitemoehybrid": (
        "GraniteMoeHybridForCausalLM",
        "GraniteMoeHybridConfig",
        _GRANITE_MOE | _MAMBA | {"shared_intermediate_size": 12, "layer_types": ["linear_attention", "full_attention"]},
    ),
    "granitemoehybrid-dense": (
        "GraniteMoeHybridForCausalLM",
        "GraniteMoeHybridConfig",
        _GRANITE_MOE
        | _MAMBA
        | {"num_local_experts": 0, "shared_intermediate_size": 12, "position_embedding_type": "rope"}
        | {"layer_types": ["full_attention", "linear_attention"]},
    ),
    "nemotron_h": (
        "NemotronHForCausalLM",
        "NemotronHConfig",
        _NEMOTRON | {"layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"]},
    ),
    "nemotron_h-attention": (
        "NemotronHForCausalLM",
        "NemotronHConfig",
        _NEMOTRON | {"layers_block_type": ["full_attention", "moe", "linear_attention"], "n_group": 1, "topk_group": 1},
    ),
    "ministral": (
        "MinistralForCausalLM",
        "MinistralConfig",
        _WIDE | {"sliding_window": 3, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "cwm": ("CwmForCausalLM", "CwmConfig", _WIDE | {"sliding_window": 3}),
    "iquestcoder": ("LlamaForCausalLM", "IQuestCoderConfig", _BIASED | {"mlp_bias": True}),
    "internlm3": ("LlamaForCausalLM", "InternLM3Config", _BIASED | _BY_LENGTH | {"mlp_bias": True}),
    "exaone": ("LlamaForCausalLM", "ExaoneConfig", _BIASED | {"mlp_bias": True}),
    "ministral3": (
        "Ministral3ForCausalLM",
        "Ministral3Config",
        _WIDE | {"sliding_window": 3, "rope_parameters": _YARN | _BETA},
    ),
    "hunyuan_v1_dense": ("HunYuanDenseV1ForCausalLM", "HunYuanDenseV1Config", _BIASED | _ALPHA),
    "hunyuan_v1_moe": (
        "HunYuanMoEV1ForCausalLM",
        "HunYuanMoEV1Config",
        _BIASED | {"num_experts": 5, "moe_topk": [2, 2]} | _ALPHA,
    ),
    "nanochat": (
        "NanoChatForCausalLM",
        "NanoChatConfig",
        _GQA | {"rms_norm_eps": 1e-2, "attention_bias": True, "final_logit_softcapping": 4.0},
    ),
    "apertus": ("ApertusForCausalLM", "ApertusConfig", _BIASED),
    "persimmon": (
        "PersimmonForCausalLM",
        "PersimmonConfig",
        _THREE | {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5}},
    ),
    "bitnet": ("BitNetForCausalLM", "BitNetConfig", _GQA | {"rms_norm_eps": 1e-2, "attention_bias": True}),
    "muse_glimmer": (
        "MuseGlimmerForConditionalGeneration",
        "MuseGlimmerConfig",
        {
            "text_config": _BIASED
            | {"sliding_window": 3, "post_norm_eps": 0.05, "qk_scale_factor": 1.7, "output_multiplier": 0.6}
            | {"layer_types": ["full_attention", "sliding_attention"], "layer_rope_theta": [0, 500.0]}
            | {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}, "final_logit_softcapping": 4.0},
            "vision_config": _VISION | {"patch_size": 4, "pos_emb_height": 4, "pos_emb_width": 4},
            "out_hidden_size": 64,
            "projector_hidden_size": 12,
            "tie_word_embeddings": False,
        },
    ),
    "laguna": (
        "LagunaForCausalLM",
        "LagunaConfig",
        _BIASED
        | {"num_hidden_layers": 3, "num_attention_heads_per_layer": [4, 6, 2], "sliding_window": 3}
        | {"layer_types": ["full_attention", "sliding_attention", "full_attention"]}
        | {"mlp_layer_types": ["dense", "sparse", "sparse"], "num_experts": 5, "num_experts_per_tok": 2}
        | {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 12, "moe_routed_scaling_factor": 1.7}
        | {"rope_parameters": _TWO_SHARES},
    ),
    "laguna-element": (
        "LagunaForCausalLM",
        "LagunaConfig",
        _WIDE
        | {"num_attention_heads_per_layer": [2, 6], "gating": "per-element", "num_experts": 5, "num_experts_per_tok": 2}
        | {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 3, "moe_intermediate_size": 16}
        | {"shared_expert_intermediate_size": 12, "moe_routed_scaling_factor": 1.7},
    ),
    "mimo_v2_flash": (
        "MiMoV2FlashForCausalLM",
        "MiMoV2FlashConfig",
        _BIASED
        | {"num_hidden_layers": 3, "head_dim": 12, "v_head_dim": 6, "sliding_window": 3, "attention_value_scale": 0.6}
        | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "routed_scaling_factor": 1.7}
        | {"mlp_layer_types": ["dense", "sparse", "sparse"], "n_routed_experts": 6, "num_experts_per_tok": 2}
        | {"moe_intermediate_size": 16, "n_group": 3, "topk_group": 2}
        | {
            "rope_parameters": {
                kind: {"rope_type": "default", "rope_theta": theta, "partial_rotary_factor": 0.334}
                for kind, theta in (("full_attention", 500.0), ("sliding_attention", 50.0))
            }
        },
    ),
    "granite_swa": (
        "GraniteSWAForCausalLM",
        "GraniteSWAConfig",
        _GQA
        | {"rms_norm_eps": 1e-2, "attention_bias": True, "mlp_bias": True, "attention_multiplier": 0.3}
        | {"embedding_multiplier": 3.0, "residual_multiplier": 0.4, "logits_scaling": 5.0, "sliding_window": 3}
        | {"layer_rope_theta": [0, 10000.0], "tie_word_embeddings": False},
    ),
    "granitemoe_swa": (
        "GraniteMoeSWAForCausalLM",
        "GraniteMoeSWAConfig",
        _GRANITE_MOE | {"shared_intermediate_size": 12, "sliding_window": 3},
    ),
    "granitemoe_swa-routed": ("GraniteMoeSWAForCausalLM", "GraniteMoeSWAConfig", _GRANITE_MOE | {"sliding_window": 3}),
    "seed_oss": (
        "SeedOssForCausalLM",
        "SeedOssConfig",
        _BIASED | {"attention_out_bias": True, "mlp_bias": True},
    ),
    "smollm3": (
        "SmolLM3ForCausalLM",
        "SmolLM3Config",
        _GQA | {"rms_norm_eps": 1e-2, "attention_bias": True, "mlp_bias": True, "no_rope_layers": [1, 0]},
    ),
    "ernie4_5": ("Ernie4_5ForCausalLM", "Ernie4_5Config", _WIDE | {"use_bias": True, "tie_word_embeddings": False}),
    "helium": (
        "HeliumForCausalLM",
        "HeliumConfig",
        _GQA | {"head_dim": 6, "rms_norm_eps": 1e-2, "attention_bias": True},
    ),
    "gemma4": (
        "Gemma4ForCausalLM",
        "Gemma4TextConfig",
        _GEMMA4
        | {"num_hidden_layers": 4, "num_kv_shared_layers": 2, "use_double_wide_mlp": True}
        | {"layer_types": 2 * _GEMMA4["layer_types"], "hidden_size_per_layer_input": 6},
    ),
    "gemma4-plain": (
        "Gemma4ForCausalLM",
        "Gemma4TextConfig",
        _GEMMA4 | {"attention_k_eq_v": True, "num_global_key_value_heads": 1, "hidden_size_per_layer_input": 0},
    ),
    "gemma4-moe": (
        "Gemma4ForCausalLM",
        "Gemma4TextConfig",
        _GEMMA4
        | {"attention_k_eq_v": True, "num_global_key_value_heads": 1, "hidden_size_per_layer_input": 0}
        | {"enable_moe_block": True, "num_experts": 5, "top_k_experts": 2, "moe_intermediate_size": 16},
    ),
    "gemma3n": (
        "Gemma3nForCausalLM",
        "Gemma3nTextConfig",
        _WIDE
        | {"sliding_window": 3, "final_logit_softcapping": 4.0, "rope_parameters": _TWO_ROPES, "laurel_rank": 5}
        | {"num_hidden_layers": 4, "num_kv_shared_layers": 2, "layer_types": 2 * _GEMMA4["layer_types"]}
        | {"hidden_size_per_layer_input": 6, "vocab_size_per_layer_input": 40}
        | {"activation_sparsity_pattern": [0.6, 0.0, 0.4, 0.0]},
    ),
    "vaultgemma": ("VaultGemmaForCausalLM", "VaultGemmaConfig", _GEMMA | {"sliding_window": 3}),
    "olmo3": (
        "Olmo3ForCausalLM",
        "Olmo3Config",
        _GQA
        | {"rms_norm_eps": 1e-2, "attention_bias": True, "sliding_window": 3, "rope_parameters": _TWO_ROPES}
        | {"layer_types": ["sliding_attention", "full_attention"]},
    ),
    "exaone4": (
        "Exaone4ForCausalLM",
        "Exaone4Config",
        _WIDE | {"sliding_window": 3, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "glm": ("GlmForCausalLM", "GlmConfig", _BIASED),
    "glm4": ("Glm4ForCausalLM", "Glm4Config", _BIASED),
    "granite": (
        "GraniteForCausalLM",
        "GraniteConfig",
        _GQA
        | {"rms_norm_eps": 1e-2, "attention_bias": True, "mlp_bias": True, "attention_multiplier": 0.3}
        | {"embedding_multiplier": 3.0, "residual_multiplier": 0.4, "logits_scaling": 5.0},
    ),
    "hyperclovax": (
        "HyperCLOVAXForCausalLM",
        "HyperCLOVAXConfig",
        _GQA
        | {"rms_norm_eps": 1e-2, "attention_bias": True, "mlp_bias": True, "attention_multiplier": 0.3}
        | {"embedding_multiplier": 3.0, "residual_multiplier": 0.4, "logits_scaling": 5.0},
    ),
    "jais2": ("Jais2ForCausalLM", "Jais2Config", _GQA | {"head_dim": 8, "layer_norm_eps": 1e-2}),
    "cohere": ("CohereForCausalLM", "CohereConfig", _GQA | {"layer_norm_eps": 1e-2, "attention_bias": True}),
    "cohere2": (
        "Cohere2ForCausalLM",
        "Cohere2Config",
        _GQA
        | {"head_dim": 8, "layer_norm_eps": 1e-2, "attention_bias": True, "sliding_window": 3}
        | {"layer_types": ["sliding_attention", "full_attention"], "tie_word_embeddings": False},
    ),
    "cohere2_moe": (
        "Cohere2MoeForCausalLM",
        "Cohere2MoeConfig",
        _COHERE_MOE
        | {"num_hidden_layers": 3, "layer_types": ["full_attention", "sliding_attention", "full_attention"]}
        | {"mlp_layer_types": ["dense", "sparse", "sparse"], "prefix_dense_intermediate_size": 20}
        | {"num_shared_experts": 2, "expert_selection_fn": "sigmoid", "attention_bias": True},
    ),
    "cohere2_moe-rms": (
        "Cohere2MoeForCausalLM",
        "Cohere2MoeConfig",
        _COHERE_MOE
        | {"layer_types": ["sliding_attention", "full_attention"], "mlp_layer_types": ["sparse", "dense"]}
        | {"rms_norm_eps": 1e-2, "prefix_dense_sliding_window_pattern": 2},
    ),
    "arcee": ("ArceeForCausalLM", "ArceeConfig", _BIASED | {"mlp_bias": True}),
    "nemotron": (
        "NemotronForCausalLM",
        "NemotronConfig",
        _GQA | {"head_dim": 8, "norm_eps": 1e-2, "attention_bias": True, "mlp_bias": True},
    ),
    "starcoder2": ("Starcoder2ForCausalLM", "Starcoder2Config", _GQA | {"norm_epsilon": 1e-2, "sliding_window": 3}),
    "stablelm": (
        "StableLmForCausalLM",
        "StableLmConfig",
        _GQA | {"layer_norm_eps": 1e-2, "use_qkv_bias": True, "partial_rotary_factor": 2 / 3},
    ),
    "stablelm-parallel": (
        "StableLmForCausalLM",
        "StableLmConfig",
        _GQA | {"layer_norm_eps": 1e-2, "use_parallel_residual": True, "partial_rotary_factor": 2 / 3},
    ),
    "gemma3-multimodal": (
        "Gemma3ForConditionalGeneration",
        "Gemma3Config",
        {
            "text_config": _GEMMA | {"sliding_window": 3, "sliding_window_pattern": 2, "rope_parameters": _TWO_ROPES},
            "vision_config": _SIGLIP,
            "mm_tokens_per_image": 4,
            "tie_word_embeddings": False,
        },
    ),
    "qwen2-vl": (
        "Qwen2VLForConditionalGeneration",
        "Qwen2VLConfig",
        {
            "text_config": _GQA | {"rms_norm_eps": 1e-2} | _mrope(1, 1, 1),
            "vision_config": _VISUAL | {"embed_dim": 16, "hidden_size": 24, "mlp_ratio": 2},
        },
    ),
    "qwen3-vl": (
        "Qwen3VLForConditionalGeneration",
        "Qwen3VLConfig",
        {
            "text_config": _BIASED | _mrope(2, 1, 1),
            "vision_config": _QWEN_VISUAL | {"deepstack_visual_indexes": [0], "num_position_embeddings": 16},
        },
    ),
    "glm4-vision": (
        "Glm4vForConditionalGeneration",
        "Glm4vConfig",
        {"text_config": _GQA | {"rms_norm_eps": 1e-2} | _mrope(1, 1, 0, share=2 / 3), "vision_config": _GLM_VISUAL},
    ),
    "glm4_moe-vision": (
        "Glm4vMoeForConditionalGeneration",
        "Glm4vMoeConfig",
        {
            "text_config": _WIDE | _GROUPED | {"first_k_dense_replace": 0} | _mrope(1, 1, 0, share=0.5),
            "vision_config": _GLM_VISUAL,
        },
    ),
    "qwen3_moe-vision": (
        "Qwen3VLMoeForConditionalGeneration",
        "Qwen3VLMoeConfig",
        {
            "text_config": _BIASED
            | _EXPERTS
            | {"num_experts": 5, "moe_intermediate_size": 16, "mlp_only_layers": [1]}
            | _mrope(2, 1, 1),
            "vision_config": _QWEN_VISUAL | {"deepstack_visual_indexes": [0], "num_position_embeddings": 16},
        },
    ),
    "qwen3_moe-omni": (
        "Qwen3OmniMoeThinkerForConditionalGeneration",
        "Qwen3OmniMoeThinkerConfig",
        {
            "text_config": _BIASED
            | _EXPERTS
            | {"num_experts": 5, "moe_intermediate_size": 16, "mlp_only_layers": [1]}
            | _mrope(2, 1, 1),
            "vision_config": _QWEN_VISUAL | {"deepstack_visual_indexes": [0], "num_position_embeddings": 16},
            "vision_start_token_id": VOCAB,
            "audio_config": {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 20}
            | {"num_mel_bins": 8, "max_source_positions": 16, "output_dim": 24, "downsample_hidden_size": 8},
        },
    ),
    "bert": ("BertForMaskedLM", "BertConfig", _THREE),
    "roberta": ("RobertaForMaskedLM", "RobertaConfig", _THREE | {"pad_token_id": 1}),
    "roberta-xlm": ("XLMRobertaForMaskedLM", "XLMRobertaConfig", _THREE | {"pad_token_id": 1}),
    "roberta-camembert": ("CamembertForMaskedLM", "CamembertConfig", _THREE | {"pad_token_id": 1}),
    "bert-decoder": ("BertLMHeadModel", "BertConfig", _THREE | {"is_decoder": True}),
    "roberta-decoder": ("RobertaForCausalLM", "RobertaConfig", _THREE | {"is_decoder": True, "pad_token_id": 1}),
    "data2vec-text": ("Data2VecTextForMaskedLM", "Data2VecTextConfig", _THREE | {"pad_token_id": 1}),
    "ernie": ("ErnieForMaskedLM", "ErnieConfig", _THREE),
    "roberta-prelayernorm": (
        "RobertaPreLayerNormForMaskedLM",
        "RobertaPreLayerNormConfig",
        _THREE | {"pad_token_id": 1},
    ),
    "xlm-roberta-xl": ("XLMRobertaXLForMaskedLM", "XLMRobertaXLConfig", _THREE | {"pad_token_id": 1}),
    "megatron-bert": ("MegatronBertForMaskedLM", "MegatronBertConfig", _THREE),
    "mpnet": ("MPNetForMaskedLM", "MPNetConfig", _THREE | {"pad_token_id": 1}),
    "eurobert": ("EuroBertForMaskedLM", "EuroBertConfig", _BIASED | {"mlp_bias": True}),
    "distilbert": (
        "DistilBertForMaskedLM",
        "DistilBertConfig",
        {"vocab_size": VOCAB, "dim": 24, "n_layers": 2, "n_heads": 3, "hidden_dim": 40, "max_position_embeddings": 64},
    ),
    "electra": ("ElectraForPreTraining", "ElectraConfig", _THREE | {"embedding_size": 16}),
    "electra-generator": ("ElectraForMaskedLM", "ElectraConfig", _THREE | {"embedding_size": 24}),
    "modernbert": (
        "ModernBertForMaskedLM",
        "ModernBertConfig",
        _THREE
        | {"norm_eps": 1e-2, "global_attn_every_n_layers": 2, "local_attention": 4}
        | {"cls_token_id": 0, "sep_token_id": 0},
    ),
    "modernbert-biased": (
        "ModernBertForMaskedLM",
        "ModernBertConfig",
        _THREE
        | {"norm_eps": 1e-2, "attention_bias": True, "mlp_bias": True, "norm_bias": True}
        | {"cls_token_id": 0, "sep_token_id": 0, "tie_word_embeddings": False},
    ),
    "modernbert-decoder": (
        "ModernBertDecoderForCausalLM",
        "ModernBertDecoderConfig",
        _THREE
        | {"norm_eps": 1e-2, "attention_bias": True, "mlp_bias": True, "norm_bias": True, "classifier_bias": True}
        | {"cls_token_id": 0, "sep_token_id": 0, "tie_word_embeddings": False, "local_attention": 6}
        | {"layer_types": ["sliding_attention", "full_attention"]},
    ),
    "nomic_bert": ("NomicBertForMaskedLM", "NomicBertConfig", _THREE),
    "gte": ("GteForMaskedLM", "GteConfig", _THREE),
    "jina_embeddings_v3": ("JinaEmbeddingsV3ForMaskedLM", "JinaEmbeddingsV3Config", _THREE),
    "roformer": ("RoFormerForMaskedLM", "RoFormerConfig", _THREE | {"embedding_size": 16}),
    "rembert": (
        "RemBertForMaskedLM",
        "RemBertConfig",
        _THREE | {"input_embedding_size": 16, "output_embedding_size": 20},
    ),
    "bert-generation": ("BertGenerationDecoder", "BertGenerationConfig", _THREE | {"is_decoder": True}),
    "bert-generation-encoder": ("BertGenerationDecoder", "BertGenerationConfig", _THREE),
    "big_bird": ("BigBirdForMaskedLM", "BigBirdConfig", _THREE | {"rescale_embeddings": True}),
    "longformer": ("LongformerForMaskedLM", "LongformerConfig", _THREE | {"pad_token_id": 1, "attention_window": 6}),
    "ibert": ("IBertForMaskedLM", "IBertConfig", _THREE | {"pad_token_id": 1}),
    "splinter": ("SplinterForQuestionAnswering", "SplinterConfig", _THREE | {"question_token_id": VOCAB}),
    "dpr": ("DPRContextEncoder", "DPRConfig", _THREE),
    "siglip": (
        "SiglipTextModel",
        "SiglipTextConfig",
        {key: value for key, value in _THREE.items() if key != "type_vocab_size"} | {"projection_size": 12},
    ),
    "luke": (
        "LukeForMaskedLM",
        "LukeConfig",
        _THREE | {"pad_token_id": 1, "entity_vocab_size": 20, "entity_emb_size": 8},
    ),
    "xlm": ("XLMWithLMHeadModel", "XLMConfig", _XLM),
    "flaubert": ("FlaubertWithLMHeadModel", "FlaubertConfig", _XLM),
    "deberta": ("DebertaForMaskedLM", "DebertaConfig", _DEBERTA | {"max_relative_positions": 3}),
    "deberta-v2": (
        "DebertaV2ForMaskedLM",
        "DebertaV2Config",
        _DEBERTA
        | {"share_att_key": True, "norm_rel_ebd": "layer_norm", "position_buckets": 8, "max_relative_positions": 16},
    ),
    "esm": ("EsmForMaskedLM", "EsmConfig", _ESM | {"position_embedding_type": "rotary"}),
    "esm-absolute": ("EsmForMaskedLM", "EsmConfig", _ESM | {"emb_layer_norm_before": True}),
    "albert": ("AlbertForMaskedLM", "AlbertConfig", _THREE | {"embedding_size": 16}),
    "bart-encoder": ("BartForConditionalGeneration", "BartConfig", _BART | {"stack": "encoder"}),
    "bart-decoder": ("BartForConditionalGeneration", "BartConfig", _BART | {"stack": "decoder"}),
    "plbart-encoder": ("PLBartForConditionalGeneration", "PLBartConfig", _BART | {"stack": "encoder"}),
    "plbart-decoder": ("PLBartForConditionalGeneration", "PLBartConfig", _BART | {"stack": "decoder"}),
    "mvp-encoder": ("MvpForConditionalGeneration", "MvpConfig", _BART | {"stack": "encoder"}),
    "mvp-decoder": ("MvpForConditionalGeneration", "MvpConfig", _BART | {"stack": "decoder"}),
    "led-encoder": ("LEDForConditionalGeneration", "LEDConfig", _LED | {"stack": "encoder"}),
    "led-decoder": ("LEDForConditionalGeneration", "LEDConfig", _LED | {"stack": "decoder"}),
    "mbart-encoder": ("MBartForConditionalGeneration", "MBartConfig", _BART | {"stack": "encoder"}),
    "mbart-decoder": ("MBartForConditionalGeneration", "MBartConfig", _BART | {"stack": "decoder"}),
    "blenderbot-encoder": ("BlenderbotForConditionalGeneration", "BlenderbotConfig", _BART | {"stack": "encoder"}),
    "blenderbot-decoder": ("BlenderbotForConditionalGeneration", "BlenderbotConfig", _BART | {"stack": "decoder"}),
    "marian-encoder": ("MarianMTModel", "MarianConfig", _MARIAN | {"stack": "encoder"}),
    "marian-decoder": ("MarianMTModel", "MarianConfig", _MARIAN | {"stack": "decoder"}),
    "pegasus-encoder": ("PegasusForConditionalGeneration", "PegasusConfig", _BART | {"stack": "encoder"}),
    "pegasus-decoder": ("PegasusForConditionalGeneration", "PegasusConfig", _BART | {"stack": "decoder"}),
    "m2m_100-encoder": ("M2M100ForConditionalGeneration", "M2M100Config", _BART | {"stack": "encoder"}),
    "m2m_100-decoder": ("M2M100ForConditionalGeneration", "M2M100Config", _BART | {"stack": "decoder"}),
    "whisper": ("WhisperForConditionalGeneration", "WhisperConfig", _WHISPER),
    "speech_to_text": ("Speech2TextForConditionalGeneration", "Speech2TextConfig", _SPEECH),
    "bart-alone": ("BartForCausalLM", "BartConfig", _BART | _ALONE),
    "plbart-alone": ("PLBartForCausalLM", "PLBartConfig", _BART | _ALONE),
    "mbart-alone": ("MBartForCausalLM", "MBartConfig", _BART | _ALONE),
    "blenderbot-alone": ("BlenderbotForCausalLM", "BlenderbotConfig", _BART | _ALONE),
    "marian-alone": ("MarianForCausalLM", "MarianConfig", _MARIAN | _ALONE),
    "pegasus-alone": ("PegasusForCausalLM", "PegasusConfig", _BART | _ALONE),
    "t5-encoder": ("T5ForConditionalGeneration", "T5Config", _T5 | {"stack": "encoder"}),
    "t5-decoder": ("T5ForConditionalGeneration", "T5Config", _T5 | {"stack": "decoder"}),
    "umt5-encoder": ("UMT5ForConditionalGeneration", "UMT5Config", _T5 | {"stack": "encoder"}),
    "umt5-decoder": ("UMT5ForConditionalGeneration", "UMT5Config", _T5 | {"stack": "decoder"}),
    "umt5-plain-encoder": (
        "UMT5ForConditionalGeneration",
        "UMT5Config",
        _T5 | {"stack": "encoder", "feed_forward_proj": "relu", "tie_word_embeddings": False},
    ),
    "umt5-plain-decoder": (
        "UMT5ForConditionalGeneration",
        "UMT5Config",
        _T5 | {"stack": "decoder", "feed_forward_proj": "relu", "tie_word_embeddings": False},
    ),
    "switch_transformers-encoder": (
        "SwitchTransformersForConditionalGeneration",
        "SwitchTransformersConfig",
        _SWITCH | {"stack": "encoder"},
    ),
    "switch_transformers-decoder": (
        "SwitchTransformersForConditionalGeneration",
        "SwitchTransformersConfig",
        _SWITCH | {"stack": "decoder"},
    ),
    "longt5-encoder": ("LongT5ForConditionalGeneration", "LongT5Config", _LONGT5 | {"stack": "encoder"}),
    "longt5-sums-encoder": (
        "LongT5ForConditionalGeneration",
        "LongT5Config",
        _LONGT5 | {"stack": "encoder", "encoder_attention_type": "transient-global", "feed_forward_proj": "gated-gelu"},
    ),
    "longt5-decoder": ("LongT5ForConditionalGeneration", "LongT5Config", _LONGT5 | {"stack": "decoder"}),
    "t5gemma-encoder": ("T5GemmaForConditionalGeneration", "T5GemmaConfig", _T5GEMMA | {"stack": "encoder"}),
    "t5gemma-decoder": ("T5GemmaForConditionalGeneration", "T5GemmaConfig", _T5GEMMA | {"stack": "decoder"}),
    "t5gemma2-encoder": ("T5Gemma2ForConditionalGeneration", "T5Gemma2Config", _T5GEMMA2 | {"stack": "encoder"}),
    "t5-gated-encoder": (
        "T5ForConditionalGeneration",
        "T5Config",
        _T5 | {"stack": "encoder", "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ),
    "t5-gated-decoder": (
        "T5ForConditionalGeneration",
        "T5Config",
        _T5 | {"stack": "decoder", "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ),
}


OF_AUDIO = ("whisper", "speech_to_text")
"""Decoders whose encoder reads no text; a checkpoint has nothing else that is read."""

DECODERS = [name for name in ZOO if ZOO[name][2].get("stack") == "decoder" or name in OF_AUDIO]
"""Decoders that need the states of an encoder."""
_WITH_MIXERS = ("qwen3_5", "qwen3_5_moe", "qwen3_next", "jamba", "lfm2", "lfm2_moe", "falcon_h1", "bamba")
_WITH_MIXERS += ("granitemoehybrid", "nemotron_h", "recurrent_gemma")
HYBRIDS = [name for name in ZOO if not name.endswith("-full") and name.partition("-")[0] in _WITH_MIXERS]
"""The entries with mixers."""

PARTLY_RUN = ["longt5-sums-encoder"]
"""The entries that compute more for a long text than is modelled."""

NOT_RUN = [*DECODERS, *PARTLY_RUN]
"""The entries whose forward pass on a text is not modelled."""

UNEVEN = [name for name in ZOO if name.startswith(("gemma3n", "gemma4"))]
"""The entries whose layers differ in more than the lens, and what adds vectors to a text, know."""

WITHOUT_LENS = ("bitnet",)
"""The entries whose mean-field lens is refused: norms stand inside attention and MLP."""


def tiny_model(name: str, seed: int = 0) -> PreTrainedModel:
    """Make one of the ZOO in float32 with every parameter drawn at random, and with eager attention where possible."""
    model, config, settings = ZOO[name]
    return drawn(model, config, {key: value for key, value in settings.items() if key != "stack"}, seed)


def drawn(model: str, config: str, settings: dict[str, Any], seed: int = 0) -> PreTrainedModel:
    """Make a model of a class and a configuration of transformers, with every parameter drawn at random."""
    attention = settings.get("attn_implementation", "eager")
    configuration = getattr(transformers, config)(**{k: v for k, v in settings.items() if k != "attn_implementation"})
    hf: PreTrainedModel = (
        getattr(transformers, model)._from_config(configuration, attn_implementation=attention).float().eval()
    )
    draw = torch.Generator().manual_seed(seed)
    gains = {id(m.weight) for m in hf.modules() if "norm" in type(m).__name__.lower() and hasattr(m, "weight")}
    with torch.no_grad():
        for name, weight in hf.named_parameters():
            if "embed_positions" in name and not weight.requires_grad:  # sines and cosines
                continue
            noise = 0.3 * torch.randn(weight.shape, generator=draw)
            weight.copy_(1 + noise if id(weight) in gains else noise)
        for name, values in hf.named_buffers():
            if name.endswith(("correction_bias", "expert_bias", "final_logits_bias", "layer_scalar")):
                values.copy_(0.3 * torch.randn(values.shape, generator=draw))
    return hf
