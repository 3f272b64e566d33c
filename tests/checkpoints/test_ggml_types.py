"""Every ggml type that the gguf package can dequantise is read to the same numbers, in full and in parts."""

from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from zeropass.checkpoints.gguf import MAX_EXPERTS, GgufSource
from zeropass.errors import BadModel, BadWeights

ROWS, BLOCKS = 5, 2
PLAIN = {GGMLQuantizationType.F32: np.float32, GGMLQuantizationType.F16: np.float16}


def stored(kind: GGMLQuantizationType) -> np.ndarray:
    """Return rows of a type as bytes, small enough that no scale among them can overflow."""
    block, size = GGML_QUANT_SIZES[kind]
    count = BLOCKS if block > 1 else 32
    drawn = np.random.default_rng(int(kind)).integers(0, 0x40, (ROWS, count * size), dtype=np.uint8)
    return drawn.view(PLAIN.get(kind, np.uint8))


def known(kind: GGMLQuantizationType) -> bool:
    """Tell whether the package can dequantise a type."""
    try:
        dequantize(stored(kind), kind)
    except NotImplementedError:
        return False
    return True


KNOWN = [kind for kind in GGMLQuantizationType if known(kind)]


def written(kind: GGMLQuantizationType, path: Path) -> GgufSource:
    """Write a file with one tensor of a type and open it."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("w", stored(kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return GgufSource(path)


def test_the_usual_types_are_known() -> None:
    usual = {"F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"}
    assert usual | {"IQ2_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS", "TQ1_0", "MXFP4"} <= {kind.name for kind in KNOWN}


@pytest.mark.parametrize("kind", KNOWN, ids=lambda kind: kind.name)
def test_a_type_is_read_as_the_package_reads_it(kind: GGMLQuantizationType, tmp_path: Path) -> None:
    source, expected = written(kind, tmp_path / "w.gguf"), np.asarray(dequantize(stored(kind), kind), np.float32)
    assert source.dtype("w") == kind.name
    assert source.shape("w") == expected.shape
    assert np.abs(expected).max() > 0
    np.testing.assert_array_equal(source.rows("w"), expected)
    np.testing.assert_array_equal(source.rows("w", 1, 4), expected[1:4])
    np.testing.assert_array_equal(source.rows("w", columns=slice(3, 30)), expected[:, 3:30])


@pytest.mark.parametrize("kind", [k for k in GGMLQuantizationType if k not in KNOWN], ids=lambda kind: kind.name)
def test_any_other_type_is_refused_by_name(kind: GGMLQuantizationType, tmp_path: Path) -> None:
    source = written(kind, tmp_path / "w.gguf")
    with pytest.raises(BadWeights, match=f"'w'.*{kind.name}"):
        source.rows("w")


def file_of(path: Path, **tensors: np.ndarray) -> Path:
    """Write tensors as they are, or as bytes in a type that the name begins with (``Q8_0 name``)."""
    writer = gguf.GGUFWriter(path, "llama")
    for name, values in tensors.items():
        kind, _, plain = name.rpartition(" ")
        writer.add_tensor(plain, values, raw_dtype=GGMLQuantizationType[kind] if kind else None)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    return path


@pytest.mark.parametrize("kind", ["F32", "Q8_0", "Q4_1"])
def test_stacked_experts_are_given_one_by_one(kind: str, tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((3, 5, 64)).astype(np.float32)
    packed = gguf.quants.quantize(values, GGMLQuantizationType[kind])
    tensors = {f"{kind} blk.0.ffn_up_exps.weight": packed, "blk.0.other_exps.weight": np.ones((2, 3, 4), np.float32)}
    source = GgufSource(file_of(tmp_path / "experts.gguf", **tensors))
    assert source.names() == [*(f"blk.0.ffn_up.{i}.weight" for i in range(3)), "blk.0.other_exps.weight"]
    whole = dequantize(packed, GGMLQuantizationType[kind])
    for i in range(3):
        name = f"blk.0.ffn_up.{i}.weight"
        assert (source.shape(name), source.dtype(name)) == ((5, 64), kind)
        assert np.array_equal(source.rows(name), whole[i])
        assert np.array_equal(source.rows(name, 1, 3), whole[i, 1:3])


def test_experts_that_are_there_twice_are_refused(tmp_path: Path) -> None:
    stacked = {"blk.0.ffn_up_exps.weight": np.ones((2, 3, 4), np.float32)}
    path = file_of(tmp_path / "twice.gguf", **stacked, **{"blk.0.ffn_up.1.weight": np.ones((3, 4), np.float32)})
    with pytest.raises(BadModel, match="some experts twice"):
        GgufSource(path)


def test_very_many_experts_stay_stacked(tmp_path: Path) -> None:
    name = "blk.0.ffn_up_exps.weight"
    source = GgufSource(file_of(tmp_path / "many.gguf", **{name: np.ones((MAX_EXPERTS + 1, 1, 1), np.float32)}))
    assert source.names() == [name]
