"""Quantised weights in safetensors files are read as the numbers that they stand for, in full and in parts."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import quantised_files as files
import tiny
from adapters import made
from commands import Run
from zeropass.checkpoints.bitsandbytes_weights import STATE
from zeropass.checkpoints.quantised import QuantisedSource, dequantised
from zeropass.checkpoints.safetensors import SafetensorsSource
from zeropass.checkpoints.storing import stored_as, storing_error
from zeropass.diff.run import compare
from zeropass.errors import BadModel, BadWeights
from zeropass.model.adapted import adapt
from zeropass.model.opening import open_model

ROOT = Path(__file__).parents[2]
REFERENCES = sorted((Path(__file__).parent / "quantised_weights").glob("*.safetensors"))


def drawn(rows: int = 24, width: int = 48, seed: int = 0) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def width_of(method: str) -> int:
    """Return a width that is whole blocks of a method."""
    return 64 if method.startswith(("mxfp4", "mlx")) else 48


def source_of(
    tensors: dict[str, Tensor], how: dict[str, Any], folder: Path, metadata: dict[str, str] | None = None
) -> QuantisedSource:
    """Write tensors to a file and open it."""
    file = folder / "model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, metadata)
    source = dequantised(SafetensorsSource([file]), {"quantization_config": how}, str(folder))
    assert isinstance(source, QuantisedSource)
    return source


def opened(method: str, weight: Tensor, folder: Path) -> tuple[QuantisedSource, Tensor]:
    """Return a file with one quantised weight, between two plain tensors, and the values of the weight."""
    _, how, writer = files.METHODS[method]
    stored, values = writer(weight)
    tensors = {"a.weight": weight[0].clone(), **{f"b.{part}": t for part, t in stored.items()}, "c.weight": weight[1]}
    return source_of({name: tensor.clone() for name, tensor in tensors.items()}, how, folder), values


@pytest.mark.parametrize("method", files.METHODS)
def test_a_weight_is_what_its_stored_numbers_stand_for(method: str, tmp_path: Path) -> None:
    weight = drawn(24, width_of(method))
    source, values = opened(method, weight, tmp_path)
    assert source.names() == ["a.weight", "b.weight", "c.weight"]
    assert (source.dtype("b.weight"), source.shape("b.weight")) == (files.METHODS[method][0], tuple(weight.shape))
    read = torch.from_numpy(source.rows("b.weight"))
    torch.testing.assert_close(read, values, rtol=2e-6, atol=1e-7)
    assert float((read - weight).norm() / weight.norm()) < (0.6 if method.endswith("-2") else 0.2)
    assert torch.equal(torch.from_numpy(source.rows("a.weight")), weight[0])


@pytest.mark.parametrize("method", files.METHODS)
@given(data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rows_and_columns_are_those_of_the_matrix(method: str, data: st.DataObject, tmp_path: Path) -> None:
    width = width_of(method)
    source, _ = opened(method, drawn(24, width), tmp_path)
    rows = sorted(data.draw(st.tuples(st.integers(0, 24), st.integers(0, 24)), "rows"))
    columns = sorted(data.draw(st.tuples(st.integers(0, width), st.integers(0, width)), "columns"))
    part = source.rows("b.weight", *rows, columns=slice(*columns))
    assert part.flags.c_contiguous
    assert (part == source.rows("b.weight")[slice(*rows), slice(*columns)]).all()


@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 70)),
    block=st.sampled_from([32, 64]),
    nested=st.sampled_from([0, 32]),
    seed=st.integers(0, 9),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_blocks_run_through_rows_of_any_width(
    shape: tuple[int, int], block: int, nested: int, seed: int, tmp_path: Path
) -> None:
    stored, values = files.four_bits(drawn(*shape, seed), block=block, nested=nested)
    source = source_of({f"b.{part}": t for part, t in stored.items()}, files.METHODS["nf4"][1], tmp_path)
    each = [torch.from_numpy(source.rows("b.weight", row, row + 1)) for row in range(shape[0])]
    torch.testing.assert_close(torch.cat(each), values, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("path", REFERENCES, ids=lambda path: path.stem)
def test_the_libraries_give_the_same_numbers(path: Path, tmp_path: Path) -> None:
    """These files were written, and the expected numbers computed, by the libraries (record_quantised_weights.py)."""
    tensors = load_file(path)
    expected = tensors.pop("expected")
    how = json.loads((path.parent / "settings.json").read_text())[path.stem]
    with safe_open(path, framework="pt") as file:
        source = source_of(tensors, how, tmp_path, file.metadata())
    torch.testing.assert_close(torch.from_numpy(source.rows("w.weight")), expected, rtol=2e-6, atol=1e-7)
    part = torch.from_numpy(source.rows("w.weight", 3, 14, slice(37, 101)))
    torch.testing.assert_close(part, expected[3:14, 37:101], rtol=2e-6, atol=1e-7)


def test_the_references_are_there() -> None:
    assert len(REFERENCES) >= 8


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_ternary_weights_are_packed_as_transformers_does_it() -> None:
    from transformers.integrations.bitnet import pack_weights

    for divides in (False, True):
        stored, values = files.ternary(drawn(), divides)
        assert torch.equal(pack_weights(values.sign()), stored["weight"])


def test_fp8_is_what_transformers_makes_of_it(tmp_path: Path) -> None:
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    weight = drawn(32, 48)
    stored, _ = files.fp8(weight)
    expected = Fp8Dequantize(None)._dequantize_one(stored["weight"], stored["weight_scale_inv"], torch.float32)
    source, _ = opened("fp8", weight, tmp_path)
    torch.testing.assert_close(torch.from_numpy(source.rows("b.weight")), expected)


@pytest.mark.parametrize("method", ["nf4-nested", "int8", "fp8", "gptq", "awq", "packed", "modelopt-nvfp4"])
def test_a_quantised_model_is_a_model(method: str, tmp_path: Path) -> None:
    hf = tiny.MAKERS["llama"](hidden_size=32, intermediate_size=64)
    folder, values = files.quantised(tiny.save(hf, tmp_path / "plain"), tmp_path / "quantised", method)
    model, plain = open_model(str(folder)), open_model(str(tmp_path / "plain"))
    info = model.info()
    assert info["types"] == {"F32": 7, files.METHODS[method][0]: 14}
    assert (info["parameters"], info["tensors_unread"]) == (plain.info()["parameters"], [])
    assert model.stored_type("gate") == files.METHODS[method][0]
    gate = values["model.layers.1.mlp.gate_proj.weight"]
    torch.testing.assert_close(model.matrix("gate", 1), gate, rtol=2e-6, atol=1e-7)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_an_adapter_on_a_quantised_base_adds_to_what_it_stands_for(tmp_path: Path) -> None:
    """The adapter of QLoRA, which is saved as any LoRA is."""
    adapted = made("llama", tmp_path, target_modules=["up_proj", "o_proj"])
    folder, values = files.quantised(tmp_path / "base", tmp_path / "quantised", "nf4-nested")
    model = adapt(open_model(str(folder)), tmp_path / "adapter")
    for role, module in (("up", "mlp.up_proj"), ("o", "self_attn.o_proj")):
        weight = values[f"model.layers.1.{module}.weight"]
        change = adapted.matrix(role, 1) - adapted.base.matrix(role, 1)
        assert float(change.norm()) > 0
        torch.testing.assert_close(model.matrix(role, 1), (weight.T if role == "o" else weight) + change)


def test_the_lists_of_a_model_survive_four_bits(tmp_path: Path) -> None:
    folder, _ = files.quantised(ROOT / "models" / "first", tmp_path / "first", "nf4-nested")
    plain, quantised = open_model(str(ROOT / "models" / "first")), open_model(str(folder))
    for role in ("gate", "value"):
        before, after = (model.matrix(role, 2, 0, 32) @ model.unembedding.T for model in (plain, quantised))
        ranks = [scores.argsort(1).argsort(1).float() for scores in (before, after)]
        correlations = [float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in zip(*ranks, strict=True)]
        assert min(correlations) > 0.98
        assert max(correlations) < 1


@pytest.mark.parametrize("method", ["nf4", "fp4", "int8", "mxfp4-packed"])
def test_a_quantised_copy_is_not_a_change(method: str, tmp_path: Path) -> None:
    plain = open_model(str(tiny.save(of_blocks(), tmp_path / "plain")))
    folder, _ = files.quantised(tmp_path / "plain", tmp_path / "quantised", method)
    difference = compare(plain, open_model(str(folder)))
    if method == "fp4":  # in blocks of 32, which are not the usual ones
        assert not any(change.rounding for change in difference.matrices)
    else:
        assert (difference.relation, difference.finding.answer) == ("rounded", "nothing")
        assert len(difference.matrices) == 14


@pytest.mark.parametrize(
    ("kind", "writer"),
    [("NF4", files.four_bits), ("FP4", lambda w: files.four_bits(w, "fp4")), ("INT8", files.eight_bits)],
)
def test_storing_gives_the_numbers_of_the_file(kind: str, writer: Any) -> None:
    weight = drawn(16, 128)
    stored = stored_as(weight.numpy(), kind)
    assert stored is not None
    torch.testing.assert_close(torch.from_numpy(stored), writer(weight)[1], rtol=2e-6, atol=1e-7)
    assert storing_error(kind) == pytest.approx(float((writer(weight)[1] - weight).norm() / weight.norm()), rel=0.1)
    assert (stored_as(weight[:, :100].numpy(), "NF4"), storing_error("INT4")) == (None, None)
    assert (stored_as(0 * weight.numpy(), kind) == 0).all()


@pytest.mark.parametrize("method", ["fp4", "gptq", "modelopt-nvfp4", "mlx-4", "hqq-4"])
def test_quantising_alone_is_not_judged(method: str, tmp_path: Path) -> None:
    plain = open_model(str(ROOT / "models" / "first"))
    folder, _ = files.quantised(ROOT / "models" / "first", tmp_path / "quantised", method)
    difference = compare(plain, open_model(str(folder)))
    assert difference.relation == "changed"
    assert difference.finding.answer == "unjudged"
    text = " ".join(difference.verdict)
    assert f"The base is stored as F16, the other as {files.METHODS[method][0]}" in text
    assert "NOT JUDGED: quantising alone moves some tokens" in text


def test_more_than_quantising_is_judged(tmp_path: Path) -> None:
    folder, _ = files.quantised(tiny.save(of_blocks(), tmp_path / "plain"), tmp_path / "quantised", "nf4")
    path = tmp_path / "plain" / "model.safetensors"
    state = load_file(path)
    save_file({name: tensor * 1.2 for name, tensor in state.items()}, path, metadata={"format": "pt"})
    difference = compare(open_model(str(folder)), open_model(str(tmp_path / "plain")))
    assert "NOT JUDGED" not in " ".join(difference.verdict)
    assert "what is no more than that may be only that" in " ".join(difference.verdict)


def of_blocks() -> Any:
    """Return a tiny model whose rows are blocks of 64 numbers."""
    hf = tiny.MAKERS["llama"](
        hidden_size=64, intermediate_size=128, num_attention_heads=8, num_key_value_heads=8
    ).half()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draw))
    return hf


def test_settings_that_are_not_known_are_refused(tmp_path: Path) -> None:
    for method, key, value, says in (
        ("gptq", "bits", 3, "bits is 3"),
        ("gptq", "dynamic", {"-:lm_head": {}}, "dynamic is"),
        ("gptq", "checkpoint_format", "marlin", "checkpoint_format is marlin"),
        ("awq", "version", "gemv", "version is gemv"),
        ("fp8", "weight_block_size", [0, 128], "weight_block_size is"),
        ("packed", "transform_config", {"config_groups": {"a": 1}}, "transform_config is"),
        ("nf4", "llm_int8_has_fp16_weight", True, "llm_int8_has_fp16_weight is True"),
        ("nf4", "rotation", "hadamard", "rotation is hadamard"),
        ("modelopt-nvfp4", "quant_algo", "NVFP4_AWQ", "quant_algo is NVFP4_AWQ"),
        ("modelopt-nvfp4", "quantized_layers", {"b": {"quant_algo": "W4A8_AWQ"}}, "quantized_layers is"),
        ("modelopt-nvfp4", "group_size", 32, "group_size is 32"),
    ):
        _, how, writer = files.METHODS[method]
        stored, _ = writer(drawn())
        with pytest.raises(BadModel, match=says):
            source_of({f"b.{part}": t for part, t in stored.items()}, how | {key: value}, tmp_path)
    with pytest.raises(BadModel, match="group_size is missing"):
        opened_without("awq", "group_size", tmp_path)


def opened_without(method: str, key: str, folder: Path) -> QuantisedSource:
    _, how, writer = files.METHODS[method]
    tensors = {f"b.{part}": t for part, t in writer(drawn())[0].items()}
    return source_of(tensors, {k: v for k, v in how.items() if k != key}, folder)


def test_schemes_that_are_not_known_are_refused(tmp_path: Path) -> None:
    stored, _ = files.row_packed(drawn())
    how = files.METHODS["packed"][1]
    weights = how["config_groups"]["group_0"]["weights"]
    for change, says in (
        ({"num_bits": 3}, "num_bits is 3"),
        ({"dynamic": True}, "dynamic is True"),
        ({"type": "float"}, "packed, but config_groups says float"),
        ({"strategy": "tensor"}, "strategy tensor"),
        ({"symmetric": True}, "symmetric is true, but it has weight_zero_point"),
        ({"group_size": 0}, "blocks of"),
        ({"actorder": "group"}, "weight_g_idx is missing"),
        ({"sparsity": 0.5}, "sparsity"),
    ):
        groups = {"group_0": {"targets": ["Linear"], "weights": weights | change}}
        with pytest.raises(BadWeights, match=says):
            source_of({f"b.{part}": t for part, t in stored.items()}, how | {"config_groups": groups}, tmp_path)
    stored, _ = files.fp8(drawn(), (1, 48), "weight_scale")
    lopsided = files.compressed("float-quantized", num_bits=8, type="float", strategy="channel", symmetric=False)
    with pytest.raises(BadWeights, match="symmetric is false, but it lacks"):
        source_of({f"b.{part}": t for part, t in stored.items()}, lopsided, tmp_path)


def test_one_scheme_is_read(tmp_path: Path) -> None:
    stored, _ = files.row_packed(drawn())
    how = files.METHODS["packed"][1]
    weights = how["config_groups"]["group_0"]["weights"]
    two = {name: {"weights": weights | {"group_size": size}} for name, size in (("a", 8), ("b", 20))}
    with pytest.raises(BadWeights, match="2 schemes"):
        source_of({f"b.{part}": t for part, t in stored.items()}, how | {"config_groups": two}, tmp_path)


def test_a_quantised_tensor_that_is_stored_transposed_is_refused(tmp_path: Path) -> None:
    """A square one would fit either way."""
    hf = tiny.MAKERS["gpt2"]()
    tiny.save(hf, tmp_path / "plain")
    state = load_file(tmp_path / "plain" / "model.safetensors")
    name = "transformer.h.1.attn.c_proj.weight"
    stored, _ = files.four_bits(state.pop(name))
    state |= {name.removesuffix("weight") + part: tensor for part, tensor in stored.items()}
    folder = files.write(state, tmp_path / "plain", files.METHODS["nf4"][1])
    with pytest.raises(BadWeights, match=r"attn\.c_proj\.weight is quantised as NF4; a gpt2 stores it transposed"):
        open_model(str(folder))


DAMAGE: dict[str, tuple[str, dict[str, Tensor | None], str]] = {
    "scales of another number": ("nf4", {"weight.absmax": torch.ones(7)}, r"weight\.absmax is F32 of shape \(7,\)"),
    "scales of another type": ("nf4", {"weight.absmax": torch.ones(18).half()}, "F16 of shape"),
    "scales that are NaN": ("nf4", {"weight.absmax": torch.full((18,), torch.nan)}, "holds 1152 values that are NaN"),
    "no scales": ("nf4", {"weight.absmax": None}, r"b\.weight\.absmax is missing"),
    "no codes": ("nf4", {"weight": None}, r"b\.weight is missing"),
    "codes cut short": ("nf4", {"weight": torch.zeros(9, 1, dtype=torch.uint8)}, "does not hold 4 bits"),
    "another table": ("nf4", {"weight.quant_map": torch.linspace(-1, 1, 16)}, "other numbers than nf4"),
    "no table of scales": ("nf4-nested", {"weight.nested_quant_map": None}, "nested_quant_map is missing"),
    "another table of scales": ("nf4-nested", {"weight.nested_quant_map": torch.full((256,), torch.inf)}, "infinite"),
    "two types": ("nf4", {f"{STATE}fp4": torch.zeros(1, dtype=torch.uint8)}, "both nf4 and fp4"),
    "a second storage": ("int8", {"weight_format": torch.tensor(2, dtype=torch.uint8)}, "weight_format is 2"),
    "rows without a scale": ("int8", {"SCB": torch.ones(9)}, "SCB is F32"),
    "another grid": ("fp8", {"weight_scale_inv": torch.ones(2, 2)}, r"F32 of shape \(2, 2\)"),
    "a NaN of FP8": ("fp8", {"weight": torch.full((24, 48), torch.nan).to(torch.float8_e4m3fn)}, "NaN"),
    "a group too far": (
        "gptq",
        {"g_idx": torch.full((48,), 6, dtype=torch.int32)},
        "names the groups 6 to 6; there are 6",
    ),
    "a group below zero": ("gptq", {"g_idx": torch.full((48,), -1, dtype=torch.int32)}, "names the groups -1"),
    "no groups": ("gptq", {"g_idx": None}, "g_idx is missing"),
    "zero points of another number": ("awq", {"qzeros": torch.zeros(6, 2, dtype=torch.int32)}, "qzeros is I32"),
    "codes of another type": ("awq", {"qweight": torch.zeros(48, 3)}, "qweight is F32"),
    "a shape below zero": ("packed", {"weight_shape": torch.tensor([24, -48])}, "both must be positive"),
    "an absurd shape": ("packed", {"weight_shape": torch.tensor([2**62, 2**62])}, "weight_packed is I32"),
    "another dimension": ("packed", {"weight_packed": torch.zeros(6, dtype=torch.int32)}, "must have 2 dimensions"),
    "no factor": ("nvfp4-packed", {"weight_global_scale": None}, "weight_global_scale must be one number"),
    "two factors": ("modelopt-nvfp4", {"weight_scale_2": torch.ones(2)}, "weight_scale_2 must be one number"),
    "no factor of one weight": ("modelopt-nvfp4", {"weight_scale_2": None}, "weight is U8 of shape"),
    "a factor of zero": ("nvfp4-packed", {"weight_global_scale": torch.zeros(1)}, "is 0.0; it must be positive"),
    "a factor that is NaN": ("modelopt-nvfp4", {"weight_scale_2": torch.tensor(torch.nan)}, "is nan; it must be"),
    "blocks cut short": ("nvfp4-packed", {"weight_packed": torch.zeros(24, 20).byte()}, "which are no blocks of 16"),
    "scales of other blocks": ("nvfp4-packed", {"weight_scale": torch.ones(24, 2).to(torch.float8_e4m3fn)}, "F8_E4M3"),
    "no numbers": ("int8", {"weight": torch.zeros(0, 48, dtype=torch.int8)}, "and some numbers"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_weights_are_refused_by_name(case: str, tmp_path: Path) -> None:
    method, changes, says = DAMAGE[case]
    _, how, writer = files.METHODS[method]
    stored = {**writer(drawn())[0], **changes}
    tensors = {f"b.{part}": tensor for part, tensor in stored.items() if tensor is not None}
    with pytest.raises(BadWeights, match=f"'b.weight'.*{says}"):
        source_of(tensors, how, tmp_path).rows("b.weight")


FACTS: dict[str, tuple[bytes, str]] = {
    "no JSON": (b"{", "Expecting"),
    "no UTF-8": (b"{\xff}", "'utf-8' codec"),
    "no object": (b"[1]", "not an object"),
    "no facts": (b"{}", "lacks 'quant_type'"),
    "another type": (b'{"quant_type": "fp4", "blocksize": 64, "dtype": "x", "shape": [24, 48]}', "its own type"),
    "an odd block": (b'{"quant_type": "nf4", "blocksize": 63, "dtype": "x", "shape": [24, 48]}', "its own type"),
    "block zero": (b'{"quant_type": "nf4", "blocksize": 0, "dtype": "x", "shape": [24, 48]}', "its own type"),
    "a shape below zero": (b'{"quant_type": "nf4", "blocksize": 64, "dtype": "x", "shape": [-24, -48]}', "positive"),
    "an absurd shape": (
        b'{"quant_type": "nf4", "blocksize": 64, "dtype": "x", "shape": [4611686018427387904, 2]}',
        "does not hold",
    ),
    "three dimensions": (b'{"quant_type": "nf4", "blocksize": 64, "dtype": "x", "shape": [2, 12, 48]}', "3 entries"),
    "half of the nested facts": (
        b'{"quant_type": "nf4", "blocksize": 64, "dtype": "x", "shape": [24, 48], "nested_blocksize": 256}',
        "block, type and offset",
    ),
    "more facts": (b'{"quant_type": "nf4", "rotated": 1}', "rotated"),
    "too long": (b" " * 10_001, "10001 bytes"),
}


@pytest.mark.parametrize("case", FACTS)
def test_facts_that_are_not_right_are_refused(case: str, tmp_path: Path) -> None:
    text, says = FACTS[case]
    stored, _ = files.four_bits(drawn())
    stored["weight.quant_state.bitsandbytes__nf4"] = torch.tensor(list(text), dtype=torch.uint8)
    with pytest.raises(BadWeights, match=f"'b.weight'.*{says}"):
        source_of({f"b.{part}": t for part, t in stored.items()}, files.METHODS["nf4"][1], tmp_path)


def test_stray_parts_are_refused(tmp_path: Path) -> None:
    """A scale without a weight that it belongs to, and a weight that the configuration does not describe."""
    folder, _ = files.quantised(tiny.save(tiny.make("llama"), tmp_path / "plain"), tmp_path / "quantised", "nf4")
    state = load_file(folder / "model.safetensors")
    state["model.norm.absmax"] = torch.ones(1)
    files.write(state, folder, files.METHODS["nf4"][1])
    with pytest.raises(BadModel, match=r"'model\.norm\.absmax' belongs to a format .* \(bitsandbytes\)"):
        open_model(str(folder))
    del state["model.norm.absmax"]
    for how in ({}, {"quant_method": "awq", "bits": 4, "group_size": 8}):
        files.write(state, folder, how)
        with pytest.raises(BadModel, match="belongs to a format"):
            open_model(str(folder))


def test_a_damaged_model_is_a_message_of_the_command_line(run: Run, tmp_path: Path) -> None:
    folder, _ = files.quantised(tiny.save(tiny.make("llama"), tmp_path / "plain"), tmp_path / "quantised", "nf4")
    state = load_file(folder / "model.safetensors")
    state["model.layers.0.mlp.up_proj.weight.absmax"] = torch.ones(3)
    files.write(state, folder, files.METHODS["nf4"][1])
    code, _, error = run("info", folder)
    assert code == 2
    assert "model.layers.0.mlp.up_proj.weight" in error
    assert "Traceback" not in error


def test_settings_in_a_file_of_their_own_are_read(tmp_path: Path) -> None:
    """ModelOpt keeps them in hf_quant_config.json; older models have them there alone."""
    hf = tiny.MAKERS["llama"](hidden_size=32, intermediate_size=64)
    folder, values = files.quantised(tiny.save(hf, tmp_path / "plain"), tmp_path / "quantised", "modelopt-nvfp4")
    state = load_file(folder / "model.safetensors")
    for layer in range(2):  # of the cache of keys and values, which is quantised while the model runs
        state |= {f"model.layers.{layer}.self_attn.{role}_proj.{role}_scale": torch.tensor(0.5) for role in "kv"}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    settings = config.pop("quantization_config")
    del settings["quant_method"], settings["ignore"]
    settings |= {"kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadModel, match="belongs to a format that is not read here"):
        open_model(str(folder))
    separate = {"producer": {"name": "modelopt", "version": "0.29.0"}, "quantization": settings}
    (folder / "hf_quant_config.json").write_text(json.dumps(separate))
    model = open_model(str(folder))
    assert model.info()["tensors_unread"] == []
    gate = values["model.layers.1.mlp.gate_proj.weight"]
    torch.testing.assert_close(model.matrix("gate", 1), gate, rtol=2e-6, atol=1e-7)


def test_a_weight_that_is_stored_twice_is_refused(tmp_path: Path) -> None:
    stored, _ = files.gptq(drawn())
    with pytest.raises(BadWeights, match=r"'b\.weight': it is stored both quantised and as F32"):
        source_of(
            {**{f"b.{part}": t for part, t in stored.items()}, "b.weight": drawn()}, files.METHODS["gptq"][1], tmp_path
        )


def mlx_model(folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """Write a model as mlx-lm does: its embedding too, of other bits, and a second copy of the settings."""
    hf = tiny.MAKERS["llama"](hidden_size=32, intermediate_size=64)
    target, values = files.quantised(tiny.save(hf, folder / "plain"), folder / "mlx", "mlx-4")
    state, name = load_file(target / "model.safetensors"), "model.embed_tokens"
    parts, values[f"{name}.weight"] = files.mlx(state.pop(f"{name}.weight"), 6)
    state |= {f"{name}.{part}": tensor for part, tensor in parts.items()}
    save_file(state, target / "model.safetensors", metadata={"format": "mlx"})
    config = json.loads((target / "config.json").read_text())
    settings = {"group_size": 32, "bits": 4, "mode": "affine", name: {"group_size": 32, "bits": 6}, "lm_head": False}
    config["quantization"] = config["quantization_config"] = settings
    (target / "config.json").write_text(json.dumps(config))
    return target, values


def test_a_model_of_mlx_is_a_model(tmp_path: Path) -> None:
    folder, values = mlx_model(tmp_path)
    model = open_model(str(folder))
    info = model.info()
    assert (info["types"], info["tensors_unread"]) == ({"F32": 6, "INT4": 14, "INT6": 1}, [])
    for what, layer, name in (("embedding", 0, "embed_tokens"), ("gate", 1, "layers.1.mlp.gate_proj")):
        torch.testing.assert_close(model.matrix(what, layer), values[f"model.{name}.weight"], rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"mode": "mxfp4"}, BadModel, "mode is mxfp4"),
        ({"bits": 7}, BadModel, "bits is 7"),
        ({"group_size": 64}, BadWeights, "scales is F32"),
        ({"bits": 8}, BadWeights, "scales is F32"),
        ({"rotation": "hadamard"}, BadModel, "rotation is hadamard"),
        ({"model.embed_tokens": {"bits": 6, "group_size": 32, "mode": "nvfp4"}}, BadWeights, "embed_tokens.*nvfp4"),
        ({"model.embed_tokens": {"bits": 7, "group_size": 32}}, BadWeights, "has 7 bits in groups of 32"),
        ({"model.embed_tokens": True}, BadWeights, "the settings of its module are True"),
    ],
)
def test_settings_of_mlx_that_are_not_known_are_refused(
    change: dict[str, Any], error: type[Exception], says: str, tmp_path: Path
) -> None:
    folder, _ = mlx_model(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["quantization"] |= change
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(error, match=says):
        open_model(str(folder))


def test_two_statements_of_quantisation_are_refused(tmp_path: Path) -> None:
    """MLX keeps the settings of a model that it did not quantise itself."""
    folder, _ = mlx_model(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadModel, match="belongs to a format that is not read here"):
        open_model(str(folder))


def test_metal_is_what_transformers_makes_of_it(tmp_path: Path) -> None:
    from transformers.integrations.metal_quantization import _affine_dequantize_tensor

    stored, _ = files.mlx(drawn(24, 64), shift="qbiases")
    parts = (stored["weight"].view(torch.int32), stored["scales"], stored["qbiases"])
    source, _ = opened("mlx-metal", drawn(24, 64), tmp_path)
    torch.testing.assert_close(torch.from_numpy(source.rows("b.weight")), _affine_dequantize_tensor(*parts, 32, 4))
