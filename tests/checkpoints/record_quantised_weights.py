"""Write quantised_weights/: small weights that the libraries quantised, with the numbers that these make of them.

Run where bitsandbytes and compressed-tensors are installed (0.50.2 and 0.20.0 wrote the files); the tests need neither.
Rows begin at blocks: from rows that begin within one, the kernel of bitsandbytes 0.50.2 for CPUs makes other numbers
than its kernels for GPUs.
"""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

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


def record() -> None:
    """Write all files."""
    FOLDER.mkdir(exist_ok=True)
    weight = torch.randn(16, 128, generator=torch.Generator().manual_seed(0))
    settings: dict[str, dict[str, Any]] = {}
    for kind in ("nf4", "fp4"):
        for nested in (False, True):
            name = f"{kind}-nested" if nested else kind
            save_file(four_bits(weight, kind, nested), FOLDER / f"{name}.safetensors")
            settings[name] = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind}
    save_file(eight_bits(weight), FOLDER / "int8.safetensors")
    settings["int8"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    for name, (layout, scheme) in SCHEMES.items():
        tensors, settings[name] = compressed(weight, layout, scheme)
        save_file(tensors, FOLDER / f"{name}.safetensors")
    (FOLDER / "settings.json").write_text(json.dumps(settings, indent=1) + "\n")


if __name__ == "__main__":
    record()
