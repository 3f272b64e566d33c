"""Write quantised_weights/: small weights that the libraries quantised, with the numbers that these make of them.

Run where the libraries are installed, with the names of those whose files are to be written: bitsandbytes 0.50.2,
compressed-tensors 0.20.0, nvidia-modelopt 0.47.0, mlx 0.32.4, hqq 0.2.8 and torchao 0.18.0 wrote them. The tests need
none of these.
Rows begin at blocks: from rows that begin within one, the kernel of bitsandbytes 0.50.2 for CPUs makes other numbers
than its kernels for GPUs.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

FOLDER = Path(__file__).parent / "quantised_weights"

SCHEMES: dict[str, tuple[str, dict[str, Any]]] = {
    "packed": ("pack-quantized", {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}),
    "packed-channel": ("pack-quantized", {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}),
    "int-channel": ("int-quantized", {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}),
    "int-group": ("int-quantized", {"num_bits": 8, "type": "int", "strategy": "group", "group_size": 64}),
    "float-channel": ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}),
    "float-tensor": ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True}),
    "float-block": (
        "float-quantized",
        {"num_bits": 8, "type": "float", "strategy": "block", "symmetric": True, "block_structure": [4, 64]},
    ),
}


def four_bits(weight: Tensor, kind: str, nested: bool) -> dict[str, Tensor]:
    """Return the stored tensors of a 4-bit weight of bitsandbytes, and what it makes of them."""
    functional = import_module("bitsandbytes.functional")
    codes, state = functional.quantize_4bit(weight, quant_type=kind, compress_statistics=nested)
    parts = {f"w.weight.{name}": tensor.contiguous() for name, tensor in state.as_dict(packed=True).items()}
    return {"w.weight": codes, **parts, "expected": functional.dequantize_4bit(codes, state)}


def eight_bits(weight: Tensor) -> dict[str, Tensor]:
    """Return the stored tensors of an 8-bit weight of bitsandbytes, and what it makes of them."""
    functional = import_module("bitsandbytes.functional")
    codes, largest, _ = functional.int8_vectorwise_quant(weight.half())
    expected = functional.int8_vectorwise_dequant(codes, largest)
    return {"w.weight": codes, "w.SCB": largest, "w.weight_format": torch.tensor(0).byte(), "expected": expected}


def compressed(weight: Tensor, name: str, scheme: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the stored tensors of a weight of compressed-tensors with what it makes of them, and the settings."""
    quantization = import_module("compressed_tensors.quantization")
    utils = import_module("compressed_tensors.quantization.utils")
    compressors = import_module("compressed_tensors.compressors")
    arguments = quantization.QuantizationArgs(**({"symmetric": False} | scheme))
    high, wide = {
        "group": (1, scheme.get("group_size")),
        "channel": (1, weight.shape[1]),
        "tensor": tuple(weight.shape),
        "block": tuple(scheme.get("block_structure", (1, 1))),
    }[scheme["strategy"]]
    blocks = weight.unflatten(1, (-1, wide)).unflatten(0, (-1, high))
    scales, zeros = utils.calculate_qparams(blocks.amin((1, 3)), blocks.amax((1, 3)), arguments)
    if scheme["strategy"] == "tensor":
        scales, zeros = scales.flatten(), zeros.flatten()
    group = quantization.QuantizationScheme(targets=["Linear"], weights=arguments)
    compressor = compressors.BaseCompressor.get_value_from_registry(name)
    state = {"weight": weight, "weight_scale": scales, "weight_zero_point": zeros}
    stored = compressor.compress(state, group)
    expected = compressor.decompress(dict(stored), group)["weight"]
    settings = {"quant_method": "compressed-tensors", "format": name, "quantization_status": "compressed"}
    settings["config_groups"] = {"group_0": group.model_dump(mode="json")}
    return {f"w.{part}": tensor.contiguous() for part, tensor in stored.items()} | {"expected": expected}, settings


def float_blocks(weight: Tensor, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the stored tensors of a weight of 4-bit floats of compressed-tensors, what it makes of them, settings.

    Its compressor computes in bfloat16; the steps are its own, in float32.
    """
    quantization = import_module("compressed_tensors.quantization")
    utils = import_module("compressed_tensors.quantization.utils")
    helpers = import_module("compressed_tensors.compressors.nvfp4.helpers")
    dequantize = import_module("compressed_tensors.quantization.lifecycle.forward").dequantize
    scheme = quantization.preset_name_to_scheme("NVFP4A16" if name == "nvfp4" else "MXFP4A16", ["Linear"])
    blocks = weight.unflatten(1, (-1, scheme.weights.group_size))
    low, high = blocks.amin(2), blocks.amax(2)
    factor = utils.generate_gparam(weight.min(), weight.max()) if name == "nvfp4" else None
    scales, _ = utils.calculate_qparams(low, high, scheme.weights, global_scale=factor)
    state = {"weight": weight, "weight_scale": scales} | ({} if factor is None else {"weight_global_scale": factor})
    compressor = import_module("compressed_tensors.compressors").BaseCompressor
    stored = compressor.get_value_from_registry(f"{name}-pack-quantized").compress(state, scheme)
    codes = helpers.unpack_fp4_from_uint8(stored["weight_packed"], *weight.shape, dtype=torch.float32)
    wide = 2.0 ** (stored["weight_scale"].float() - 127) if name == "mxfp4" else stored["weight_scale"].float()
    expected = dequantize(codes, wide, args=scheme.weights, global_scale=factor, dtype=torch.float32)
    settings = {"quant_method": "compressed-tensors", "format": f"{name}-pack-quantized"}
    settings["config_groups"] = {"group_0": scheme.model_dump(mode="json")}
    return {f"w.{part}": tensor.contiguous() for part, tensor in stored.items()} | {"expected": expected}, settings


def of_modelopt(weight: Tensor, algorithm: str) -> dict[str, Tensor]:
    """Return the stored tensors of a weight of ModelOpt, and what it makes of them."""
    types = import_module("modelopt.torch.quantization.qtensor")
    if algorithm == "FP8":
        stored, scale = types.FP8QTensor.quantize(weight)
        parts, expected = {"w.weight_scale": scale.squeeze()}, stored.dequantize(torch.float32, scale=scale)
    else:
        stored, scale, factor = types.NVFP4QTensor.quantize(weight, 16)
        parts = {"w.weight_scale": scale, "w.weight_scale_2": factor}
        how = {"scale": scale, "double_scale": factor, "block_sizes": {-1: 16}}
        expected = stored.dequantize(torch.float32, **how)
    return parts | {"w.weight": stored._quantized_data, "expected": expected}


def of_mlx(weight: Tensor, bits: int, size: int) -> dict[str, Tensor]:
    """Return the stored tensors of a weight of MLX, and what it makes of them."""
    mlx = import_module("mlx.core")
    parts = mlx.quantize(mlx.array(weight.numpy()), group_size=size, bits=bits)
    expected = mlx.dequantize(*parts, group_size=size, bits=bits)
    words, scales, shifts = (np.array(part) for part in parts)
    stored = {"w.weight": words, "w.scales": scales, "w.biases": shifts, "expected": np.array(expected)}
    return {name: torch.from_numpy(array) for name, array in stored.items()}


def of_hqq(weight: Tensor, bits: int, size: int, axis: int) -> dict[str, Tensor]:
    """Return the stored tensors of a weight of HQQ, and what it makes of them."""
    quantize = import_module("hqq.core.quantize")
    how = quantize.BaseQuantizeConfig(nbits=bits, group_size=size, axis=axis)
    layer = quantize.HQQLinear.from_weights(weight.clone(), None, how, torch.float32, "cpu")
    stored = {f"w.{part}": tensor.detach().clone() for part, tensor in layer.state_dict().items()}
    return stored | {"expected": layer.dequantize()}


def of_torchao(weight: Tensor, method: str) -> dict[str, Tensor | str]:
    """Return the stored tensors and metadata of a weight of torchao, and what it makes of them."""
    quantization = import_module("torchao.quantization")
    group = quantization.granularity.PerGroup(32)
    configs = {
        "int8": lambda: quantization.Int8WeightOnlyConfig(version=2),
        "float8": quantization.Float8WeightOnlyConfig,
        "int4": lambda: quantization.IntxWeightOnlyConfig(
            weight_dtype=torch.int4, granularity=group, mapping_type=quantization.MappingType.ASYMMETRIC
        ),
    }
    layer = torch.nn.Linear(*reversed(weight.shape), bias=False)
    layer.weight.data = weight.clone()
    model = torch.nn.ModuleDict({"w": layer})
    quantization.quantize_(model, configs[method]())
    support = import_module("torchao.prototype.safetensors.safetensors_support")
    stored, metadata = support.flatten_tensor_state_dict({"w.weight": model["w"].weight.detach()})
    return {**stored, **metadata, "expected": model["w"].weight.detach().dequantize()}


Recorded = Iterator[tuple[str, Mapping[str, Tensor | str], dict[str, Any]]]


def bitsandbytes(weight: Tensor) -> Recorded:
    """Yield the name, tensors and settings of each file of bitsandbytes."""
    for kind in ("nf4", "fp4"):
        for nested in (False, True):
            name = f"{kind}-nested" if nested else kind
            settings = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind}
            yield name, four_bits(weight, kind, nested), settings
    yield "int8", eight_bits(weight), {"quant_method": "bitsandbytes", "load_in_8bit": True}


def compressed_tensors(weight: Tensor) -> Recorded:
    """Yield the name, tensors and settings of each file of compressed-tensors."""
    for name, (layout, scheme) in SCHEMES.items():
        yield name, *compressed(weight, layout, scheme)
    for name in ("nvfp4", "mxfp4"):
        yield f"{name}-packed", *float_blocks(weight, name)


def modelopt(weight: Tensor) -> Recorded:
    """Yield the name, tensors and settings of each file of ModelOpt."""
    for algorithm in ("FP8", "NVFP4"):
        settings = {"quant_method": "modelopt", "quant_algo": algorithm}
        yield f"modelopt-{algorithm.lower()}", of_modelopt(weight, algorithm), settings


def mlx(weight: Tensor) -> Recorded:
    """Yield the name, tensors and settings of each file of MLX."""
    for bits, size in ((2, 32), (3, 64), (4, 64), (5, 128), (6, 32), (8, 64)):
        settings = {"quant_method": "mlx", "bits": bits, "group_size": size}
        yield f"mlx-{bits}", of_mlx(weight, bits, size), settings


def hqq(weight: Tensor) -> Recorded:
    """Yield the name, tensors and settings of each file of HQQ."""
    for bits, size, axis in (
        (1, 32, 1),
        (2, 16, 1),
        (3, 64, 0),
        (3, 64, 1),
        (4, 64, 0),
        (4, 64, 1),
        (6, 64, 1),
        (8, 128, 1),
    ):
        yield (
            f"hqq-{bits}-{axis}",
            of_hqq(weight, bits, size, axis),
            {"quant_method": "hqq", "skip_modules": ["lm_head"]},
        )


def torchao(weight: Tensor) -> Recorded:
    """Yield the name, tensors, with metadata, and settings of each file of torchao."""
    for method in ("int8", "float8", "int4"):
        yield f"torchao-{method}", of_torchao(weight, method), {"quant_method": "torchao", "quant_type": method}


LIBRARIES = {
    "torchao": torchao,
    "bitsandbytes": bitsandbytes,
    "compressed-tensors": compressed_tensors,
    "modelopt": modelopt,
    "mlx": mlx,
    "hqq": hqq,
}


def record(libraries: Sequence[str]) -> None:
    """Write the files of some libraries."""
    FOLDER.mkdir(exist_ok=True)
    weight = torch.randn(16, 128, generator=torch.Generator().manual_seed(0))
    path = FOLDER / "settings.json"
    settings = json.loads(path.read_text()) if path.exists() else {}
    for library in libraries:
        for name, tensors, how in LIBRARIES[library](weight):
            metadata = {key: text for key, text in tensors.items() if isinstance(text, str)}
            plain = {key: tensor for key, tensor in tensors.items() if isinstance(tensor, Tensor)}
            save_file(plain, FOLDER / f"{name}.safetensors", metadata or None)
            settings[name] = how
    path.write_text(json.dumps(settings, indent=1) + "\n")


if __name__ == "__main__":
    record(sys.argv[1:] or list(LIBRARIES))
