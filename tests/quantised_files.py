"""Quantised weights as their methods store them: written from the published formulas, number by number.

Every writer returns the stored tensors and the matrix that they stand for, which comes from the numbers before packing.
"""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from zeropass.checkpoints.bitsandbytes_weights import TABLES

__all__ = [
    "FACTS",
    "GPT_OSS",
    "METHODS",
    "TORCHAO",
    "compressed",
    "eight_bits",
    "four_bits",
    "fp8",
    "gptq",
    "hqq",
    "int4",
]
__all__ += ["mlx", "mxfp4", "mxfp4_experts", "quantised", "row_packed", "torchao_model", "write"]

Stored = tuple[dict[str, Tensor], Tensor]


def four_bits(weight: Tensor, name: str = "nf4", block: int = 64, nested: int = 0, size: int = 1) -> Stored:
    """Return a 4-bit weight of bitsandbytes; ``size`` is that of the numbers in which the bytes are stored."""
    table, count = torch.tensor(TABLES[name]), weight.numel()
    blocks = _blocks(weight.float().flatten(), block)
    scales = blocks.abs().amax(1).clamp(min=1e-30)
    codes = torch.cat(
        [(row[:, None] / scale - table).abs().argmin(1) for row, scale in zip(blocks, scales, strict=True)]
    )
    facts: dict[str, Any] = {"quant_type": name, "blocksize": block, "dtype": "bfloat16", "shape": list(weight.shape)}
    stored = {"weight.absmax": scales, "weight.quant_map": table}
    if nested:
        offset, levels = scales.mean(), torch.linspace(-1, 1, 256)
        rest = _blocks(scales - offset, nested)
        largest = rest.abs().amax(1).clamp(min=1e-30)
        which = ((rest / largest[:, None])[..., None] - levels).abs().argmin(2)
        scales, which = (
            (levels[which] * largest[:, None]).flatten()[: len(scales)] + offset,
            which.flatten()[: len(scales)],
        )
        stored |= {"weight.absmax": which.to(torch.uint8), "weight.nested_absmax": largest}
        stored["weight.nested_quant_map"] = levels
        facts |= {"nested_blocksize": nested, "nested_dtype": "float32", "nested_offset": float(offset)}
    values = (table[codes] * scales[torch.arange(len(codes)) // block])[:count].view(weight.shape)
    even = codes[: count + count % 2]
    packed = (even[::2] * 16 + even[1::2]).to(torch.uint8)[:, None]
    stored["weight"] = packed if size == 1 else packed.flatten().view(torch.bfloat16)[:, None]
    text = json.dumps(facts).encode()
    stored[f"weight.quant_state.bitsandbytes__{name}"] = torch.tensor(list(text), dtype=torch.uint8)
    return stored, values


def _blocks(numbers: Tensor, size: int) -> Tensor:
    """Return numbers in rows, the last of which ends in zeros."""
    return torch.nn.functional.pad(numbers, (0, -len(numbers) % size)).view(-1, size)


def eight_bits(weight: Tensor) -> Stored:
    """Return an 8-bit weight of bitsandbytes."""
    largest = weight.float().abs().amax(1)
    codes = (weight.float() * (127 / largest[:, None])).round()
    stored = {"weight": codes.to(torch.int8), "SCB": largest, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    return stored, codes * largest[:, None] / 127


def fp8(weight: Tensor, block: tuple[int, int] = (16, 16), scale: str = "weight_scale_inv") -> Stored:
    """Return a weight of FP8 with one scale a block."""
    (rows, width), (high, wide) = weight.shape, block
    scales = torch.empty(-(-rows // high), -(-width // wide))
    codes, values = torch.empty_like(weight, dtype=torch.float8_e4m3fn), torch.empty(rows, width)
    for i in range(0, rows, high):
        for j in range(0, width, wide):
            part = (slice(i, i + high), slice(j, j + wide))
            factor = weight[part].float().abs().max() / 448
            codes[part] = (weight[part].float() / factor).to(torch.float8_e4m3fn)
            values[part], scales[i // high, j // wide] = codes[part].float() * factor, factor
    return {"weight": codes, scale: scales}, values


def _grouped(
    weight: Tensor, bits: int, groups: Tensor, symmetric: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the codes (out, in), zero points and scales (out, groups) of a weight, and the values."""
    codes, values = torch.empty(weight.shape, dtype=torch.int64), torch.empty(weight.shape)
    count = int(groups.max()) + 1
    zeros, scales = torch.empty(len(weight), count, dtype=torch.int64), torch.empty(len(weight), count)
    most = 2**bits - 1
    for group in range(count):
        at = (groups == group).nonzero()[:, 0]
        low, high = weight[:, at].float().amin(1).clamp(max=0), weight[:, at].float().amax(1).clamp(min=0)
        low, high = (-torch.maximum(high, -low), torch.maximum(high, -low)) if symmetric else (low, high)
        scale = ((high - low) / most).clamp(min=1e-4).half().float()
        zero = torch.full_like(low, 2 ** (bits - 1)) if symmetric else (-low / scale).round().clamp(0, most)
        codes[:, at] = ((weight[:, at].float() / scale[:, None]).round() + zero[:, None]).clamp(0, most).long()
        values[:, at] = (codes[:, at] - zero[:, None]) * scale[:, None]
        zeros[:, group], scales[:, group] = zero.long(), scale
    return codes, zeros, scales, values


def _words(numbers: Tensor, bits: int, order: tuple[int, ...] | None = None) -> Tensor:
    """Pack the last dimension in int32, one number after the other from the lowest bits."""
    count = 32 // bits
    padded = torch.nn.functional.pad(numbers, (0, -numbers.shape[-1] % count))
    words = torch.zeros(*padded.shape[:-1], padded.shape[-1] // count, dtype=torch.int64)
    for place in range(count):
        words |= padded[..., (order[place] if order else place) :: count] << (bits * place)
    return (words - ((words >> 31) << 32)).to(torch.int32)


def gptq(weight: Tensor, bits: int = 4, size: int = 8, sorted_groups: bool = True, shift: int = 1) -> Stored:
    """Return a weight of GPTQ; groups of inputs in their order or, as ``desc_act`` leaves them, in any."""
    groups = torch.arange(weight.shape[1]) // size
    if not sorted_groups:
        groups = groups[torch.randperm(len(groups), generator=torch.Generator().manual_seed(0))]
    codes, zeros, scales, values = _grouped(weight, bits, groups)
    stored = {
        "qweight": _words(codes, bits).T.contiguous(),
        "qzeros": _words((zeros.T - shift) & (2**bits - 1), bits),
        "scales": scales.T.half().contiguous(),
        "g_idx": groups.int(),
    }
    return stored, values


def awq(weight: Tensor, size: int = 8) -> Stored:
    """Return a weight of AWQ: outputs are packed in the order 0, 2, 4, 6, 1, 3, 5, 7."""
    codes, zeros, scales, values = _grouped(weight, 4, torch.arange(weight.shape[1]) // size)
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    stored = {"qweight": _words(codes.T, 4, order), "qzeros": _words(zeros.T, 4, order)}
    return stored | {"scales": scales.T.half().contiguous()}, values


def row_packed(weight: Tensor, bits: int = 4, size: int = 8, symmetric: bool = False) -> Stored:
    """Return a weight of compressed-tensors in the format ``pack-quantized``."""
    codes, zeros, scales, values = _grouped(weight, bits, torch.arange(weight.shape[1]) // size, symmetric)
    stored = {"weight_packed": _words(codes, bits), "weight_scale": scales, "weight_shape": torch.tensor(weight.shape)}
    return stored | ({} if symmetric else {"weight_zero_point": _words(zeros.T, bits).T.contiguous()}), values


def ternary(weight: Tensor, divides: bool) -> Stored:
    """Return a weight of BitNet: numbers -1, 0 and 1, in bytes that hold a row of each quarter."""
    scale = weight.float().abs().mean()
    numbers = (weight.float() / scale).round().clamp(-1, 1)
    quarters = (numbers + 1).to(torch.uint8).unflatten(0, (4, -1))
    packed = quarters[0] | quarters[1] << 2 | quarters[2] << 4 | quarters[3] << 6
    return {"weight": packed, "weight_scale": (1 / scale if divides else scale).reshape(1)}, numbers * scale


def mxfp4(weight: Tensor) -> Stored:
    """Return the blocks (…, rows, width / 32, 16) and scales of MXFP4, as the OCP MX specification 1.0 makes them."""
    blocks = weight.float().unflatten(-1, (-1, 32))
    exponents = blocks.abs().amax(-1).clamp(min=1e-30).log2().floor() - 2
    packed, values = _floats(blocks, 2**exponents)
    return {"blocks": packed, "scales": (exponents + 127).to(torch.uint8)}, values.flatten(-2)


def _floats(blocks: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """Return blocks of numbers as 4-bit floats with a sign, two exponent bits and one of the mantissa, and values."""
    scaled = blocks / scales[..., None]
    magnitudes = torch.tensor([(1 + mantissa / 2) * 2.0**exponent for exponent in range(3) for mantissa in range(2)])
    magnitudes = torch.cat([torch.tensor([0.0, 0.5]), magnitudes])
    codes = (scaled.abs()[..., None] - magnitudes).abs().argmin(-1)
    values = magnitudes[codes] * scaled.sign() * scales[..., None]
    codes += 8 * (scaled < 0)
    return (codes[..., ::2] + 16 * codes[..., 1::2]).to(torch.uint8), values


def mxfp4_packed(weight: Tensor) -> Stored:
    """Return a weight of compressed-tensors in the format ``mxfp4-pack-quantized``."""
    parts, values = mxfp4(weight)
    return {"weight_packed": parts["blocks"].flatten(1), "weight_scale": parts["scales"]}, values


def nvfp4(weight: Tensor, of_modelopt: bool = False) -> Stored:
    """Return a weight of NVFP4, of ModelOpt or of compressed-tensors, which stores the reciprocal of the factor."""
    blocks = weight.float().unflatten(-1, (-1, 16))
    factor = blocks.abs().max() / (6 * 448)
    scales = (blocks.abs().amax(-1) / 6 / factor).to(torch.float8_e4m3fn)
    packed, values = _floats(blocks, scales.float() * factor)
    stored = {"weight" if of_modelopt else "weight_packed": packed.flatten(1), "weight_scale": scales}
    more = {"weight_scale_2": factor} if of_modelopt else {"weight_global_scale": (1 / factor)[None]}
    return stored | more, values.flatten(1)


def fp8_of_modelopt(weight: Tensor) -> Stored:
    """Return a weight of FP8 of ModelOpt, with the scale of what it is multiplied with."""
    stored, values = fp8(weight, (len(weight), weight.shape[1]), "weight_scale")
    return stored | {"weight_scale": stored["weight_scale"][0, 0], "input_scale": torch.tensor(0.1)}, values


def mlx(weight: Tensor, bits: int = 4, size: int = 32, shift: str = "biases") -> Stored:
    """Return a weight of MLX: numbers run through the bits of a row, the first in the lowest bits."""
    groups = weight.float().unflatten(1, (-1, size))
    low, high = groups.amin(2), groups.amax(2)
    scales = ((high - low) / (2**bits - 1)).clamp(min=1e-7)
    codes = ((groups - low[..., None]) / scales[..., None]).round().long().flatten(1)
    rows = [sum(int(code) << (bits * i) for i, code in enumerate(row)) for row in codes]
    count = weight.shape[1] * bits // 32
    words = torch.tensor([[row >> (32 * i) & 0xFFFFFFFF for i in range(count)] for row in rows])
    values = codes.unflatten(1, (-1, size)) * scales[..., None] + low[..., None]
    return {"weight": words.to(torch.uint32), "scales": scales, shift: low}, values.flatten(1)


def hqq(weight: Tensor, bits: int = 4, size: int = 16, axis: int = 1) -> Stored:
    """Return a weight of HQQ: groups are lines or, along the first axis, columns of the reshaped weight."""
    lines = weight.float().reshape((-1, size) if axis else (size, -1))
    low, high = lines.amin(axis, keepdim=True), lines.amax(axis, keepdim=True)
    scales = (high - low) / (2**bits - 1)
    zeros = -low / scales
    codes = (lines / scales + zeros).round().clamp(0, 2**bits - 1).long()
    width, count, packing = {
        1: (1, 8, "1bit_u8"),
        2: (2, 4, "2bit_u8"),
        3: (3, 10, "3bit_32"),
        4: (4, 2, "4bit_u8"),
    }.get(bits, (8, 1, "8bit_u8"))
    padded = torch.nn.functional.pad(codes, (0, 0, 0, -len(codes) % count)).chunk(count)
    packed = sum(part << (width * place) for part, place in zip(padded, reversed(range(count)), strict=True))
    stored = {
        "W_q": packed.to(torch.int32 if bits == 3 else torch.uint8),
        "scale": scales,
        "zero": zeros,
        "shape": torch.tensor(weight.shape),
        "packing": torch.tensor(list(packing.encode()), dtype=torch.uint8),
        "unpack_view_dtype": torch.tensor(list(b"torch.uint8"), dtype=torch.uint8),
    }
    stored |= {key: torch.tensor(fact, dtype=torch.int32) for key, fact in (("nbits", bits), ("group_size", size))}
    flags = ("view_as_float", "quant_scale", "quant_zero", "offload_meta")
    stored |= {"axis": torch.tensor(axis, dtype=torch.int32)} | {flag: torch.tensor(0).byte() for flag in flags}
    return stored, ((codes - zeros) * scales).view(weight.shape)


def compressed(format: str, **weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    return {"quant_method": "compressed-tensors", "format": format, "config_groups": {"group_0": group}, "ignore": []}


_GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 8, "desc_act": False, "sym": False}
_BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
_FLOAT = {"num_bits": 4, "type": "float", "symmetric": True}
_MODELOPT = {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"], "group_size": 16}
_MLX = {"quant_method": "mlx", "group_size": 32}
_HQQ = {"quant_method": "hqq", "quant_config": {"weight_quant_params": {}}, "skip_modules": ["lm_head"]}
_INT = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 8}

METHODS: dict[str, tuple[str, dict[str, Any], Callable[[Tensor], Stored]]] = {
    "nf4": ("NF4", _BNB, four_bits),
    "nf4-nested": ("NF4", _BNB | {"bnb_4bit_use_double_quant": True}, lambda w: four_bits(w, nested=32)),
    "nf4-bfloat16": ("NF4", _BNB | {"bnb_4bit_quant_storage": "bfloat16"}, lambda w: four_bits(w, size=2)),
    "fp4": ("FP4", _BNB | {"bnb_4bit_quant_type": "fp4"}, lambda w: four_bits(w, "fp4", 32)),
    "int8": ("INT8", {"quant_method": "bitsandbytes", "load_in_8bit": True}, eight_bits),
    "fp8": ("FP8", {"quant_method": "fp8", "weight_block_size": [16, 16], "activation_scheme": "dynamic"}, fp8),
    "fp8-tensor": (
        "FP8",
        {"quant_method": "fp8", "weight_block_size": None, "activation_scheme": "static"},
        lambda w: fp8(w, (len(w), w.shape[1])),
    ),
    "fbgemm": (
        "FP8",
        {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0},
        lambda w: fp8(w, (1, w.shape[1]), "weight_scale"),
    ),
    "gptq": ("INT4", _GPTQ, gptq),
    "gptq-2": ("INT2", _GPTQ | {"bits": 2}, lambda w: gptq(w, 2)),
    "gptq-8": ("INT8", _GPTQ | {"bits": 8}, lambda w: gptq(w, 8)),
    "gptq-act": ("INT4", _GPTQ | {"desc_act": True}, lambda w: gptq(w, sorted_groups=False)),
    "gptq-v2": ("INT4", _GPTQ | {"checkpoint_format": "gptq_v2"}, lambda w: gptq(w, shift=0)),
    "awq": ("INT4", {"quant_method": "awq", "bits": 4, "group_size": 8, "version": "gemm", "zero_point": True}, awq),
    "packed": ("INT4", compressed("pack-quantized", **_INT, symmetric=False), row_packed),
    "packed-symmetric": (
        "INT4",
        compressed("pack-quantized", **_INT, symmetric=True),
        lambda w: row_packed(w, symmetric=True),
    ),
    "float": (
        "FP8",
        compressed("float-quantized", num_bits=8, type="float", strategy="channel"),
        lambda w: fp8(w, (1, w.shape[1]), "weight_scale"),
    ),
    "float-block": (
        "FP8",
        compressed("float-quantized", num_bits=8, type="float", strategy="block", block_structure=[16, 16]),
        lambda w: fp8(w, scale="weight_scale"),
    ),
    "mxfp4-packed": (
        "MXFP4",
        compressed("mxfp4-pack-quantized", **_FLOAT, strategy="group", group_size=32),
        mxfp4_packed,
    ),
    "nvfp4-packed": (
        "NVFP4",
        compressed("nvfp4-pack-quantized", **_FLOAT, strategy="tensor_group", group_size=16),
        nvfp4,
    ),
    "modelopt-nvfp4": ("NVFP4", _MODELOPT, lambda w: nvfp4(w, of_modelopt=True)),
    **{f"mlx-{bits}": (f"INT{bits}", _MLX | {"bits": bits}, partial(mlx, bits=bits)) for bits in (2, 3, 4, 5, 6, 8)},
    **{f"hqq-{bits}": (f"INT{bits}", _HQQ, partial(hqq, bits=bits)) for bits in (2, 3, 4, 5, 8)},
    **{f"hqq-columns-{bits}": (f"INT{bits}", _HQQ, partial(hqq, bits=bits, axis=0)) for bits in (3, 4)},
    "mlx-metal": ("INT4", _MLX | {"quant_method": "metal", "bits": 4}, partial(mlx, shift="qbiases")),
    "bitnet-2": (
        "INT2",
        {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline"},
        partial(ternary, divides=False),
    ),
    "bitlinear-2": ("INT2", {"quant_method": "bitnet"}, partial(ternary, divides=True)),
    "modelopt-fp8": ("FP8", {"quant_method": "modelopt", "quant_algo": "FP8"}, fp8_of_modelopt),
}
"""The stored type, the settings and the writer of every way in which weights are read."""


TORCHAO = {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int4WeightOnlyConfig", "_version": 2}}}
FACTS = {"_type": "Int4Tensor", "_data": {"block_size": [1, 16], "shape": [24, 48]}}


def int4(weight: Tensor, size: int = 16) -> tuple[dict[str, Tensor], Tensor]:
    """Return an Int4Tensor of torchao: numbers from -8 on, and as zero point the number that zero stands for."""
    groups = weight.float().unflatten(1, (-1, size))
    low, high = groups.amin(2), groups.amax(2)
    scales = (high - low) / 15
    zeros = low + 8 * scales
    codes = ((groups - low[..., None]) / scales[..., None]).round().long() - 8
    values = (codes * scales[..., None] + zeros[..., None]).flatten(1)
    bits = codes.flatten(1) % 16
    packed = (bits[:, ::2] + 16 * bits[:, 1::2]).to(torch.uint8).view(torch.int8)
    return {"_weight_qdata": packed, "_weight_scale": scales.T, "_weight_zero_point": zeros.T}, values


def torchao_model(folder: Path, target: Path) -> tuple[Path, dict[str, Tensor]]:
    """Write a model as `quantised` does, with numbers of four bits of torchao, and return the same."""
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("*.safetensors"))
    stored: dict[str, Tensor] = {}
    values: dict[str, Tensor] = {}
    metadata = {"format": "pt"}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if "layers." in name and tensor.ndim == 2:
            parts, values[name] = int4(tensor)
            stored |= {name.removesuffix("weight") + part: each.contiguous() for part, each in parts.items()}
            metadata[name] = json.dumps(FACTS)
        else:
            stored[name] = values[name] = tensor
    write(stored, target, TORCHAO)
    save_file(stored, target / "model.safetensors", metadata)
    return target, values


def write(tensors: dict[str, Tensor], folder: Path, settings: dict[str, Any]) -> Path:
    """Write tensors as the model of a folder, whose configuration gets the settings."""
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    path = folder / "config.json"
    config = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(config | {"quantization_config": settings}))
    return folder


def quantised(folder: Path, target: Path, method: str) -> tuple[Path, dict[str, Tensor]]:
    """Write a model with all matrices of its blocks quantised; return the folder and the tensors as they are read."""
    _, settings, writer = METHODS[method]
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("*.safetensors"))
    stored: dict[str, Tensor] = {}
    values: dict[str, Tensor] = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if "layers." in name and tensor.ndim == 2:
            parts, values[name] = writer(tensor)
            stored |= {name.removesuffix("weight") + part: part_tensor for part, part_tensor in parts.items()}
        else:
            stored[name] = values[name] = tensor
    return write({name: tensor.contiguous() for name, tensor in stored.items()}, target, settings), values


GPT_OSS = {"vocab_size": 58, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8}
GPT_OSS |= {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 3, "num_experts_per_tok": 2}
"""The sizes of a tiny gpt-oss whose experts are whole blocks of MXFP4."""


def mxfp4_experts(folder: Path, target: Path) -> tuple[Path, dict[str, Tensor]]:
    """Write a gpt-oss as OpenAI publishes it, its experts in MXFP4; return the folder and the tensors of the model."""
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("*.safetensors"))
    stored: dict[str, Tensor] = {}
    values: dict[str, Tensor] = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if name.endswith("_proj") and tensor.ndim == 3:
            parts, turned = mxfp4(tensor.transpose(1, 2))
            values[name] = turned.transpose(1, 2)
            stored |= {f"{name}_{part}": part_tensor for part, part_tensor in parts.items()}
        else:
            stored[name] = values[name] = tensor
    settings = {
        "quant_method": "mxfp4",
        "modules_to_not_convert": [
            *("model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head")
        ],
    }
    return write(stored, target, settings), values
