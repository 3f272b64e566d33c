"""The methods of quantisation that are read: the tensors that each stores, and the settings that are known.

A setting that is not known may change what the stored numbers mean, so it is refused.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from zeropass.checkpoints import bitsandbytes_weights as bnb
from zeropass.checkpoints import packed_integers as integers
from zeropass.checkpoints.affine_groups import BITS, SIZES, affine
from zeropass.checkpoints.compressed_tensors import FORMATS, PACKED, compressed, packed
from zeropass.checkpoints.float_blocks import nvfp4, stacked
from zeropass.checkpoints.hqq_weights import PARTS as HQQ
from zeropass.checkpoints.hqq_weights import hqq
from zeropass.checkpoints.quantised_parts import Packed, Parts
from zeropass.checkpoints.scaled_weights import Scaled, scaled
from zeropass.checkpoints.ternary_weights import PARTS as TERNARY
from zeropass.checkpoints.ternary_weights import ternary
from zeropass.checkpoints.torchao_weights import PARTS as TORCHAO
from zeropass.checkpoints.torchao_weights import torchao
from zeropass.errors import BadModel, in_short

__all__ = ["METHODS", "Method", "Storage"]

Known = Mapping[str, tuple[object, ...] | Callable[[Any], bool]]


@dataclass(frozen=True)
class Storage:
    """A way to store a quantised weight.

    Attributes:
        mark: The part, or the beginning of the part, by which it is known.
        parts: All parts.
        open: Returns the weight of some parts, or those of all experts.
        weight: The end of the name of the weight.
    """

    mark: str
    parts: tuple[str, ...]
    open: Callable[[Parts], Packed | tuple[Packed, ...]]
    weight: str = "weight"


@dataclass(frozen=True)
class Method:
    """A method of quantisation.

    Attributes:
        storages: The ways in which it stores weights.
        harmless: A pattern of settings that do not change what stored numbers mean.
        known: Other settings, with the values that are known, or a test of the value.
        required: The settings that must be there.
        unread: A pattern of the ends of names of tensors that quantise what a model computes, and no weight.
    """

    storages: tuple[Storage, ...]
    harmless: str
    known: Known = field(default_factory=dict)
    required: tuple[str, ...] = ()
    unread: str = ""

    def check(self, settings: Mapping[str, Any], place: str) -> None:
        """Raise BadModel, with the place, for a setting that is not known."""
        unknown = [f"{key} is {str(value)[:100]}" for key, value in settings.items() if not self._knows(key, value)]
        unknown += [f"{key} is missing" for key in self.required if key not in settings]
        if unknown:
            raise BadModel(
                f"{place}: quantization_config ({settings['quant_method']}) is not one that is known: "
                f"{in_short(unknown)}. That may change what the stored numbers mean. Use the model as it was before, "
                "or a GGUF file of it."
            )

    def _knows(self, key: str, value: object) -> bool:
        """Tell whether a setting is known to change nothing, or has a value that is known."""
        known = self.known.get(key)
        if callable(known):
            return known(value)
        if known is not None:
            return any(value == each and type(value) is type(each) for each in known)
        return value is None or value is False or value in ("", [], {}) or bool(re.fullmatch(self.harmless, key))


def _is_block(value: object) -> bool:
    """Tell whether a value is the size of a block: nothing, or two positive numbers."""
    return value is None or (isinstance(value, list) and len(value) == 2 and all(map(_is_positive, value)))


def _is_positive(value: object) -> bool:
    return type(value) is int and value > 0


def _is_size(value: object) -> bool:
    """Tell whether a value is the size of a group; -1 stands for all inputs."""
    return type(value) is int and (value == -1 or value > 0)


_NAMES = "quant_method|modules_to_not_convert|ignored_layers"

_BITSANDBYTES = Method(
    (
        Storage(bnb.STATE, bnb.FOUR_BITS, bnb.four_bits),
        Storage("SCB", bnb.EIGHT_BITS, bnb.eight_bits),
    ),
    # Each tensor says how it is stored; the settings say how it was made and how it is multiplied.
    r"quant_method|_?load_in_[48]bit|bnb_4bit_(quant_type|use_double_quant|compute_dtype|quant_storage)"
    r"|llm_int8_(skip_modules|threshold|enable_fp32_cpu_offload)",
    {"llm_int8_has_fp16_weight": (False,)},
)


def _fp8(parts: Parts) -> Scaled:
    """Return a weight of FP8 in blocks, which are square where the settings do not say it."""
    return scaled(parts, "weight_scale_inv", parts.settings.get("weight_block_size", [128, 128]), ("F8_E4M3",))


_ACTIVATIONS = ("input_scale", "activation_scale", "input_global_scale", "output_scale")
"""Parts that quantise what comes in or goes out, and not the weight."""

_CACHED = r"self_attn\.(k_proj\.k|v_proj\.v|[qkv])_scale"
"""The ends of the names of tensors that quantise what a model keeps of keys and values, and no weight."""

_FP8 = Method(
    (Storage("weight_scale_inv", ("weight", "weight_scale_inv", *_ACTIVATIONS), _fp8),),
    f"{_NAMES}|modules_to_convert|activation_scheme|dequantize",
    {
        "weight_block_size": _is_block,
        "fmt": ("e4m3", "float8_e4m3fn"),
        "scale_fmt": ("float", "ue8m0", None),
        "expert_dtype": ("fp8",),
    },
)

_FBGEMM = Method(
    (
        Storage(
            "weight_scale",
            ("weight", "weight_scale", "input_scale_ub"),
            lambda parts: scaled(parts, "weight_scale", None, ("F8_E4M3",)),
        ),
    ),
    f"{_NAMES}|activation_scale_ub",
)

_GPTQ = Method(
    (
        Storage(
            "qweight",
            integers.GPTQ,
            lambda parts: integers.gptq(
                parts, parts.settings["bits"], parts.settings["group_size"], int(_format_of(parts.settings) == "gptq")
            ),
        ),
    ),
    rf"{_NAMES}|desc_act|act_group_aware|static_groups|sym|true_sequential|damp_\w+|dataset|tokenizer|batch_size|meta"
    "|block_name_to_quantize|module_name_preceding_first_block|modules_in_block_to_quantize|modules_to_quantize"
    "|model_seqlen|max_input_length|pad_token_id|cache_block_outputs|use_cuda_fp16|use_exllama|exllama_config"
    "|disable_exllama|backend|model_name_or_path|model_file_base_name|quantizer|hyb_act|mse",
    {
        "bits": (2, 4, 8),
        "group_size": _is_size,
        "format": ("gptq", "gptq_v2"),
        "checkpoint_format": ("gptq", "gptq_v2"),
        "pack_dtype": ("int32",),
        "lm_head": (False, True),
    },
    ("bits", "group_size"),
)


def _format_of(settings: Mapping[str, Any]) -> object:
    """Return the format of GPTQ: zero points are stored less one unless it is the second."""
    return settings.get("checkpoint_format", settings.get("format", "gptq"))


_AWQ = Method(
    (Storage("qweight", integers.AWQ, lambda parts: integers.awq(parts, parts.settings["group_size"])),),
    f"{_NAMES}|backend|do_fuse|fuse_max_seq_len|modules_to_fuse|exllama_config",
    {
        "bits": (4,),
        "w_bit": (4,),
        "group_size": _is_size,
        "zero_point": (True,),
        "version": ("gemm", "GEMM"),
        "format": ("gemm",),
    },
    ("bits", "group_size"),
)


_COMPRESSED_TENSORS = Method(
    (
        Storage("weight_packed", (*PACKED, *_ACTIVATIONS), packed),
        Storage("weight_scale", ("weight", "weight_scale", "weight_zero_point", *_ACTIVATIONS), compressed),
    ),
    f"{_NAMES}|ignore|config_groups|global_compression_ratio|version|kv_cache_scheme",
    {
        "format": FORMATS,
        "quantization_status": ("compressed", "frozen"),
        "sparsity_config": lambda value: not value or (isinstance(value, dict) and value.get("format") == "dense"),
    },
    ("config_groups", "format"),
    unread=_CACHED,
)

_MXFP4 = Method(
    tuple(
        Storage(f"{weight}_blocks", (f"{weight}_blocks", f"{weight}_scales"), stacked, weight)
        for weight in ("gate_up_proj", "down_proj")
    ),
    f"{_NAMES}|dequantize",
)

_ALGORITHMS = ("FP8", "NVFP4", "W4A16_NVFP4")


def _modelopt(parts: Parts) -> Packed:
    """Return a weight of FP8 or, where it has a second scale, of NVFP4."""
    if "weight_scale_2" in parts:
        return nvfp4(parts, "weight", "weight_scale_2", divides=False)
    return scaled(parts, "weight_scale", None, ("F8_E4M3",))


def _are_known(layers: object) -> bool:
    """Tell whether the settings of layers name algorithms that are known."""
    return isinstance(layers, Mapping) and all(
        isinstance(layer, Mapping) and layer.get("quant_algo") in _ALGORITHMS for layer in layers.values()
    )


_MODELOPT = Method(
    (Storage("weight_scale", ("weight", "weight_scale", "weight_scale_2", *_ACTIVATIONS), _modelopt),),
    f"{_NAMES}|ignore|exclude_modules|config_groups|kv_cache_scheme|kv_cache_quant_algo|producer",
    {
        "quant_algo": (*_ALGORITHMS, "MIXED_PRECISION"),
        "quantized_layers": _are_known,
        "group_size": (16, None),
    },
    ("quant_algo",),
    unread=_CACHED,
)

_MLX = Method(
    (Storage("scales", ("weight", "scales", "biases"), lambda parts: affine(parts, "biases")),),
    r"quant_method|lm_head|\w+(\.\w+)+",  # modules, whose settings are checked with their weights
    {"bits": BITS, "group_size": SIZES, "mode": ("affine",)},
    ("bits", "group_size"),
)

_METAL = Method(
    (Storage("scales", ("weight", "scales", "qbiases"), lambda parts: affine(parts, "qbiases")),),
    f"{_NAMES}|dequantize",
    {"bits": (2, 4, 8), "group_size": SIZES},
    ("bits", "group_size"),
)

# Each weight says how it is stored; the settings say how it was made.
_HQQ = Method((Storage("W_q", HQQ, hqq),), "quant_method|quant_config|skip_modules")

# The metadata of each file say how a weight is stored; the settings say how it was made.
_TORCHAO = Method(
    (Storage("_weight_qdata", TORCHAO, torchao),),
    "quant_method|quant_type|quant_type_kwargs|autoquant_version|modules_to_not_convert"
    "|include_input_output_embeddings|untie_embedding_weights",
)

_BITNET = Method(
    (Storage("weight_scale", TERNARY, ternary),),
    f"{_NAMES}|rms_norm_eps",  # the module also rounds what comes in to eight bits
    {"linear_class": ("bitlinear", "autobitlinear"), "quantization_mode": ("offline",), "use_rms_norm": (False,)},
)

METHODS = {
    "bitnet": _BITNET,
    "bitsandbytes": _BITSANDBYTES,
    "fp8": _FP8,
    "fbgemm_fp8": _FBGEMM,
    "gptq": _GPTQ,
    "awq": _AWQ,
    "compressed-tensors": _COMPRESSED_TENSORS,
    "hqq": _HQQ,
    "metal": _METAL,
    "mlx": _MLX,
    "modelopt": _MODELOPT,
    "torchao": _TORCHAO,
    "mxfp4": _MXFP4,
}
