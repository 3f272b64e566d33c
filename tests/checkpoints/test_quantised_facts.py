"""Weights of HQQ and torchao, which bring the facts of their own quantisation."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import quantised_files as files
import tiny
from zeropass.checkpoints.quantised import QuantisedSource, dequantised
from zeropass.checkpoints.safetensors import SafetensorsSource
from zeropass.errors import BadModel, BadWeights
from zeropass.model.opening import open_model


def drawn(rows: int = 24, width: int = 48) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(0))


def source_of(
    stored: dict[str, Tensor], folder: Path, how: dict[str, Any] | None, facts: Any = None
) -> QuantisedSource:
    file = folder / "model.safetensors"
    metadata = None if facts is None else {"b.weight": facts if isinstance(facts, str) else json.dumps(facts)}
    save_file({f"b.{part}": tensor.contiguous() for part, tensor in stored.items()}, file, metadata)
    config = {} if how is None else {"quantization_config": how}
    source = dequantised(SafetensorsSource([file]), config, str(folder))
    assert isinstance(source, QuantisedSource)
    return source


def test_numbers_of_four_bits_are_those_of_their_formula(tmp_path: Path) -> None:
    stored, values = files.int4(drawn())
    source = source_of(stored, tmp_path, files.TORCHAO, files.FACTS)
    assert (source.dtype("b.weight"), source.names()) == ("INT4", ["b.weight"])
    torch.testing.assert_close(torch.from_numpy(source.rows("b.weight")), values, rtol=2e-6, atol=1e-6)
    for columns in (slice(0, 1), slice(7, 33), slice(47, 48)):
        part = torch.from_numpy(source.rows("b.weight", 5, 9, columns))
        torch.testing.assert_close(part, values[5:9, columns], rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "facts", "says"),
    [
        ({}, None, "metadata of its file do not say what tensor of torchao it is"),
        ({}, "{", "do not say what tensor"),
        ({}, "[1]", r"say \[1\] of it"),
        (
            {},
            files.FACTS | {"_type": "Int4TilePackedTo4dTensor"},
            "as Int4TilePackedTo4dTensor, which is laid out for one",
        ),
        ({}, files.FACTS | {"_type": "NVFP4Tensor"}, "as NVFP4Tensor"),
        ({}, files.FACTS | {"_data": {"block_size": [1, 0]}}, r"block_size is \[1, 0\]"),
        ({}, files.FACTS | {"_data": {"block_size": [1, 7]}}, r"block_size is \[1, 7\]"),
        ({}, files.FACTS | {"_data": {"block_size": [2, 16]}}, r"block_size is \[2, 16\]"),
        ({}, files.FACTS | {"_data": {}}, "block_size is None"),
        ({}, files.FACTS | {"_type": "Int8Tensor"}, r"weight_scale is F32 of shape \(3, 24\)"),
        ({"_weight_scale": torch.ones(2, 24)}, files.FACTS, r"\(3, 24\) is right"),
        ({"_weight_zero_point": None}, files.FACTS, "_weight_zero_point is missing"),
        ({"_weight_qdata": torch.ones(24, 24)}, files.FACTS, "_weight_qdata is F32"),
    ],
)
def test_tensors_of_torchao_that_are_not_known_are_refused(
    changes: dict[str, Tensor | None], facts: Any, says: str, tmp_path: Path
) -> None:
    stored = {part: tensor for part, tensor in {**files.int4(drawn())[0], **changes}.items() if tensor is not None}
    with pytest.raises(BadWeights, match=f"'b.weight'.*{says}"):
        source_of(stored, tmp_path, files.TORCHAO, facts)


@pytest.mark.parametrize(("target", "says"), [("int7", "target_dtype is"), ("float8_e4m3fn", "target_dtype is")])
def test_whole_numbers_of_other_types_are_refused(target: str, says: str, tmp_path: Path) -> None:
    stored = {"_weight_qdata": torch.ones(24, 48).to(torch.int8), "_weight_scale": torch.ones(24, 1)}
    data = {"block_size": [1, 48], "target_dtype": {"_type": "torch.dtype", "_data": target}}
    with pytest.raises(BadWeights, match=says):
        source_of(stored, tmp_path, files.TORCHAO, {"_type": "IntxUnpackedToInt8Tensor", "_data": data})


def test_a_model_of_torchao_is_a_model(tmp_path: Path) -> None:
    hf = tiny.MAKERS["llama"](hidden_size=32, intermediate_size=64)
    folder, values = files.torchao_model(tiny.save(hf, tmp_path / "plain"), tmp_path / "model")
    model = open_model(str(folder))
    assert (model.info()["types"], model.info()["tensors_unread"]) == ({"F32": 7, "INT4": 14}, [])
    gate = values["model.layers.1.mlp.gate_proj.weight"]
    torch.testing.assert_close(model.matrix("gate", 1), gate, rtol=2e-6, atol=1e-6)
    path = folder / "model.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    scale = {"model.layers.1.mlp.gate_proj._weight_act_pre_scale": torch.ones(32)}  # of what comes in
    save_file(load_file(path) | scale, path, metadata)
    with pytest.raises(BadModel, match="_weight_act_pre_scale"):
        open_model(str(folder))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"nbits": torch.tensor(3, dtype=torch.int32)}, "'packing': '4bit_u8', 'nbits': 3"),
        ({"nbits": torch.tensor(1.58)}, "nbits is F32"),
        ({"axis": torch.tensor(2, dtype=torch.int32)}, "'axis': 2"),
        ({"view_as_float": torch.tensor(1).byte()}, "'view_as_float': 1"),
        ({"quant_zero": torch.tensor(1).byte()}, "'quant_zero': 1"),
        ({"packing": torch.tensor(list(b"\xff\x00bit_u"), dtype=torch.uint8)}, "which is not read"),
        ({"packing": torch.zeros(9).byte()}, "packing is U8 of shape"),
        ({"group_size": torch.tensor(0, dtype=torch.int32)}, "groups of 0"),
        ({"group_size": torch.tensor(7, dtype=torch.int32)}, "groups of 7, which must divide it"),
        ({"shape": torch.tensor([24, 40])}, "W_q is U8"),
        ({"shape": torch.tensor([-24, -48])}, "which must divide it"),
        ({"scale": torch.ones(72)}, "scale is F32|must have 2 dimensions"),
        ({"zero": None}, "zero is missing"),
        ({"shape": None}, "shape is missing"),
    ],
)
def test_facts_of_hqq_that_are_not_right_are_refused(
    changes: dict[str, Tensor | None], says: str, tmp_path: Path
) -> None:
    stored = {**files.hqq(drawn())[0], **changes}
    with pytest.raises(BadWeights, match=f"'b.weight'.*({says})"):
        source_of(
            {part: tensor for part, tensor in stored.items() if tensor is not None}, tmp_path, files.METHODS["hqq-4"][1]
        )


def test_hqq_needs_no_settings(tmp_path: Path) -> None:
    """Its own form of safetensors has none."""
    stored, values = files.hqq(drawn())
    source = source_of(stored, tmp_path, None)
    torch.testing.assert_close(torch.from_numpy(source.rows("b.weight")), values, rtol=2e-6, atol=1e-6)
    hf = tiny.MAKERS["llama"](hidden_size=32, intermediate_size=64)
    folder, tensors = files.quantised(tiny.save(hf, tmp_path / "plain"), tmp_path / "quantised", "hqq-3")
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    model = open_model(str(folder))
    assert model.info()["tensors_unread"] == []
    gate = tensors["model.layers.1.mlp.gate_proj.weight"]
    torch.testing.assert_close(model.matrix("gate", 1), gate, rtol=2e-6, atol=1e-6)
