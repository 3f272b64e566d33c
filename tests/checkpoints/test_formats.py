"""Formats of weights: each is read lazily and equals its plain twin; bad files are refused by name."""

import json
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from zeropass.checkpoints.base import TensorSource
from zeropass.checkpoints.gguf import GgufSource
from zeropass.checkpoints.model_files import fingerprint, open_files
from zeropass.checkpoints.safetensors import SafetensorsSource
from zeropass.checkpoints.torchbin import TorchBinSource
from zeropass.errors import BadModel, BadWeights, ZeropassError

TOKENIZER = {"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}


def tensors() -> dict[str, torch.Tensor]:
    """Return seeded values that half types hold exactly, so that all formats give the same."""
    values = torch.randn(7, 64, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    return {
        "f64": values.double(),
        "f32": values.float(),
        "f16": values.clamp(-4, 4).half(),
        "bf16": values,
        "vector": values[0].float(),
        "scalar": torch.tensor(2.5),
        "cube": values.float().reshape(7, 8, 8),
    }


def make_gguf(path: Path, **metadata: object) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in metadata.items():
        writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
    writer.add_array("tokenizer.ggml.tokens", ["a", "é", "日本"])
    writer.add_array("tokenizer.ggml.scores", [0.5, -1.0])
    for name, tensor in tensors().items():
        if name not in ("f64", "bf16", "scalar"):
            writer.add_tensor(name, tensor.numpy())
    quantised = gguf.quants.quantize(tensors()["f32"].numpy(), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("q8", quantised, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def gguf_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder that opens; tests break it."""
    save_file(tensors(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    return tmp_path


@pytest.fixture(params=["safetensors", "torch", "gguf"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> TensorSource:
    if request.param == "gguf":
        return GgufSource(make_gguf(tmp_path / "m.gguf"))
    if request.param == "torch":
        torch.save(tensors(), tmp_path / "m.bin")
        return TorchBinSource([tmp_path / "m.bin"])
    save_file(tensors(), tmp_path / "m.safetensors")
    return SafetensorsSource([tmp_path / "m.safetensors"])


# Every format -------------------------------------------------------------------------------------------


def test_full_tensors_are_the_stored_values(source: TensorSource) -> None:
    known = set(source.names()) & set(tensors())
    assert len(known) >= 4
    for name in known:
        values, expected = source.rows(name), tensors()[name].float().numpy()
        assert values.dtype == np.float32
        assert values.flags.c_contiguous
        assert values.flags.writeable
        assert source.shape(name) == values.shape == expected.shape
        np.testing.assert_array_equal(values, expected)


def test_parts_equal_the_full_tensor(source: TensorSource) -> None:
    for name in set(source.names()) - {"scalar"}:
        full = source.rows(name)
        np.testing.assert_array_equal(source.rows(name, 2, 5), full[2:5])
        np.testing.assert_array_equal(source.rows(name, 6), full[6:])
        assert source.rows(name, 3, 3).shape == full[3:3].shape
        if full.ndim == 2:
            part = source.rows(name, 1, 4, slice(3, 40))
            assert part.flags.c_contiguous
            np.testing.assert_array_equal(part, full[1:4, 3:40])
            np.testing.assert_array_equal(source.rows(name, columns=slice(60, None)), full[:, 60:])


def test_a_result_is_a_copy(source: TensorSource) -> None:
    source.rows("f32")[:] = 0
    assert source.rows("f32").any()


@pytest.mark.parametrize(
    ("name", "start", "stop", "columns", "message"),
    [
        ("f32", 0, 8, None, "rows 0 to 7"),
        ("f32", -1, 3, None, "rows 0 to 7"),
        ("f32", 4, 2, None, "rows 0 to 7"),
        ("f32", 0, 2, slice(0, 65), "columns 0 to 64"),
        ("f32", 0, 2, slice(0, 8, 2), "columns 0 to 64"),
        ("vector", 0, 2, slice(0, 1), "only a matrix has columns"),
        ("nope", 0, 1, None, "no tensor 'nope'"),
    ],
)
def test_missing_tensors_rows_and_columns_are_refused(
    source: TensorSource, name: str, start: int, stop: int, columns: slice | None, message: str
) -> None:
    with pytest.raises(BadWeights, match=message) as caught:
        source.rows(name, start, stop, columns)
    assert source.path in str(caught.value)
    with pytest.raises(BadWeights, match="no tensor 'nope'"):
        source.dtype("nope")


# Safetensors --------------------------------------------------------------------------------------------


def test_types_of_safetensors_are_named(folder: Path) -> None:
    source = open_files(str(folder)).source
    assert [source.dtype(n) for n in ("f64", "f32", "f16", "bf16")] == ["F64", "F32", "F16", "BF16"]


def test_nan_and_infinite_values_are_named_and_counted(tmp_path: Path) -> None:
    values = torch.ones(6, 4)
    values[1, 1], values[1, 2], values[4, 0] = float("nan"), float("inf"), float("-inf")
    save_file({"w": values}, tmp_path / "m.safetensors")
    source = SafetensorsSource([tmp_path / "m.safetensors"])
    with pytest.raises(BadWeights, match=r"m\.safetensors: tensor 'w' holds 3 values that are NaN or inf"):
        source.rows("w")
    with pytest.raises(BadWeights, match="holds 2 values"):
        source.rows("w", 0, 3)
    assert source.rows("w", 2, 4).all()


@pytest.mark.parametrize("kind", [torch.int8, torch.int32, torch.uint8, torch.float8_e4m3fn])
def test_integers_and_quantised_types_are_refused(tmp_path: Path, kind: torch.dtype) -> None:
    save_file({"qweight": torch.ones(4, 4).to(kind)}, tmp_path / "m.safetensors")
    source = SafetensorsSource([tmp_path / "m.safetensors"])
    with pytest.raises(BadWeights, match=r"'qweight' is stored as (I8|I32|U8|F8_E4M3)"):
        source.rows("qweight")


def header_of(entries: object, data: int = 64) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + bytes(data)


def entry(shape: list[int], start: int, stop: int) -> dict[str, object]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    "content",
    [
        b"\x10\0\0",
        struct.pack("<Q", 1 << 60) + b"{}",
        struct.pack("<Q", 40) + b'{"a": {"dtype": "F32", "sh',
        header_of({"a": entry([8], 0, 32), "b": entry([8], 16, 48)}),
        header_of({"a": entry([8], 0, 32), "b": entry([8], 16, 64)}),
        header_of({"a": entry([4, 4], 0, 64), "b": entry([4], 1 << 40, (1 << 40) + 16)}),
        header_of({"a": entry([1 << 40, 1 << 40], 0, 64)}),
        header_of({"a": entry([16], 0, 64)}, data=60),
        header_of(["not", "an", "object"]),
    ],
    ids=["short", "huge", "cut", "overlap", "overlap2", "outside", "shape", "data", "list"],
)
def test_a_damaged_safetensors_file_is_refused_by_name(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(BadModel, match=r"model\.safetensors is not a whole safetensors file"):
        open_files(str(folder))


def test_a_truncated_safetensors_file_is_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BadModel, match="not a whole safetensors file"):
        open_files(str(folder))


# Shards -------------------------------------------------------------------------------------------------


@pytest.fixture(params=["safetensors", "bin"])
def sharded(request: pytest.FixtureRequest, folder: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """Yield the index of a folder of two shards, as transformers writes them, and its content."""
    (folder / "model.safetensors").unlink()
    stem = "model" if request.param == "safetensors" else "pytorch_model"
    save = save_file if request.param == "safetensors" else torch.save
    index = {}
    for number, names in enumerate([("f32", "bf16"), ("f16", "vector")], 1):
        shard = f"{stem}-0000{number}-of-00002.{request.param}"
        save({name: tensors()[name] for name in names}, folder / shard)
        index |= dict.fromkeys(names, shard)
    yield folder / f"{stem}.{request.param}.index.json", index


def write_index(path: Path, weight_map: object) -> None:
    path.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_shards_read_as_one(sharded: tuple[Path, dict[str, str]]) -> None:
    path, index = sharded
    write_index(path, index)
    files = open_files(str(path.parent))
    assert files.source.names() == list(dict.fromkeys(files.source.names()))
    assert set(files.source.names()) == set(index)
    assert [file.name for file in files.weight_files] == sorted(set(index.values()))
    for name in index:
        np.testing.assert_array_equal(files.source.rows(name), tensors()[name].float().numpy())


def test_a_tensor_missing_from_its_shard_is_named(sharded: tuple[Path, dict[str, str]]) -> None:
    path, index = sharded
    write_index(path, index | {"ghost": index["f32"]})
    with pytest.raises(BadWeights, match=r"00001-of-00002.*tensor 'ghost' is not in it"):
        open_files(str(path.parent))
    write_index(path, index | {"vector": index["f32"]})
    with pytest.raises(BadWeights, match=r"00001-of-00002.*tensor 'vector' is not in it"):
        open_files(str(path.parent))


def test_a_missing_shard_is_named(sharded: tuple[Path, dict[str, str]]) -> None:
    path, index = sharded
    write_index(path, index)
    (path.parent / index["vector"]).unlink()
    with pytest.raises(BadModel, match=r"lacks 1 of its 2 shards: .*00002-of-00002"):
        open_files(str(path.parent))


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for file in files:
        save_file({"w": torch.ones(2)}, file)
    with pytest.raises(BadModel, match=r"b\.safetensors: tensor 'w' is also in a\.safetensors"):
        SafetensorsSource(files)


@pytest.mark.parametrize(
    "shard", ["../m.safetensors", "/etc/passwd", "a/b", "a\\b", "C:x", "..", "", "\x1b[2J", 7, None]
)
def test_an_index_cannot_leave_its_folder(sharded: tuple[Path, dict[str, str]], shard: object) -> None:
    path, index = sharded
    write_index(path, index | {"f32": shard})
    with pytest.raises(BadModel, match="only a plain file name is right"):
        open_files(str(path.parent))


@pytest.mark.parametrize("weight_map", [None, [], {}, "x"])
def test_an_index_without_a_map_is_refused(sharded: tuple[Path, dict[str, str]], weight_map: object) -> None:
    write_index(sharded[0], weight_map)
    with pytest.raises(BadModel, match="no weight_map"):
        open_files(str(sharded[0].parent))


# PyTorch files ------------------------------------------------------------------------------------------


class Payload:
    """An object whose unpickling would create a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickled_payload_is_refused_and_not_run(folder: Path, zipped: bool) -> None:
    (folder / "model.safetensors").unlink()
    content = {"w": torch.ones(2), "x": Payload(folder / "owned")}
    torch.save(content, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(BadModel, match=r"pytorch_model\.bin cannot be read without unpickling.*safetensors"):
        open_files(str(folder))
    assert not (folder / "owned").exists()


def test_the_old_format_without_zip_is_read(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(tensors(), folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    values = open_files(str(folder)).source.rows("f32")
    np.testing.assert_array_equal(values, tensors()["f32"].numpy())


@pytest.mark.parametrize("content", [[torch.ones(2)], {"w": 1}, {1: torch.ones(2)}, torch.ones(2)])
def test_a_file_without_a_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "m.pt")
    with pytest.raises(BadModel, match="not a state dict"):
        TorchBinSource([tmp_path / "m.pt"])


@pytest.mark.parametrize("keep", [0, 10, 200, 0.5, 0.99])
def test_a_damaged_pytorch_file_is_refused(tmp_path: Path, keep: float) -> None:
    torch.save(tensors(), tmp_path / "m.bin")
    content = (tmp_path / "m.bin").read_bytes()
    (tmp_path / "m.bin").write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(BadModel, match=r"m\.bin"):
        TorchBinSource([tmp_path / "m.bin"])


def test_pytorch_tensors_of_other_types_are_refused(tmp_path: Path) -> None:
    torch.save({"i": torch.ones(2, dtype=torch.int64), "nan": torch.tensor([1, float("nan")])}, tmp_path / "m.pt")
    source = TorchBinSource([tmp_path / "m.pt"])
    with pytest.raises(BadWeights, match="'i' is stored as int64"):
        source.rows("i")
    with pytest.raises(BadWeights, match="'nan' holds 1 values"):
        source.rows("nan")


def test_a_pytorch_shape_beyond_its_bytes_is_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1).expand(1 << 30, 1 << 30)}, tmp_path / "m.pt")
    with pytest.raises(BadWeights, match="more than is stored"):
        TorchBinSource([tmp_path / "m.pt"]).rows("w")


# GGUF ---------------------------------------------------------------------------------------------------


def test_gguf_metadata_are_read(tmp_path: Path) -> None:
    path = make_gguf(tmp_path / "m.gguf", **{"llama.x": 3, "llama.f": 0.5, "llama.b": True, "llama.s": "é"})
    files = open_files(str(path))
    assert files.format == "gguf"
    assert files.tokenizer_json is None
    assert files.weight_files == (path,)
    assert files.config == {
        "general.architecture": "llama",
        "llama.x": 3,
        "llama.f": 0.5,
        "llama.b": True,
        "llama.s": "é",
    }
    assert files.tokenizer_metadata == {
        "tokenizer.ggml.tokens": ["a", "é", "日本"],
        "tokenizer.ggml.scores": [0.5, -1.0],
    }


def test_gguf_is_dequantised_as_by_the_reference(smollm2_path: Path) -> None:
    names = ["token_embd.weight", "blk.0.attn_q.weight", "blk.7.ffn_down.weight", "output_norm.weight"]
    began = time.process_time()
    source = GgufSource(smollm2_path)
    assert time.process_time() - began < 1
    assert len(source.metadata["tokenizer.ggml.tokens"]) == 49_152
    reader = gguf.GGUFReader(smollm2_path)
    assert source.names() == [tensor.name for tensor in reader.tensors]
    for tensor in reader.tensors:
        assert source.shape(tensor.name) == tuple(tensor.shape[::-1])
        assert source.dtype(tensor.name) == tensor.tensor_type.name
        if tensor.name in names:
            stop = min(100, len(tensor.data))
            expected = gguf.quants.dequantize(tensor.data[3:stop], tensor.tensor_type)
            np.testing.assert_array_equal(source.rows(tensor.name, 3, stop), expected)


def test_a_truncated_gguf_says_how_much_is_missing(gguf_path: Path, tmp_path: Path) -> None:
    content = gguf_path.read_bytes()
    (tmp_path / "cut.gguf").write_bytes(content[:-100])
    end = max(tensor.end for tensor in GgufSource(gguf_path)._tensors.values())
    missing = 100 - (len(content) - end)
    with pytest.raises(BadModel, match=rf"cut\.gguf: the file is cut short: of its bytes {missing} are missing"):
        GgufSource(tmp_path / "cut.gguf")


def test_a_tensor_of_an_unknown_type_is_named(gguf_path: Path, tmp_path: Path) -> None:
    for number, label in ((99, "type 99"), (24, "I8")):
        changed = bytearray(gguf_path.read_bytes())
        at = changed.index(b"q8") + 2 + 4 + 16
        assert struct.unpack_from("<I", changed, at) == (8,)
        struct.pack_into("<I", changed, at, number)
        (tmp_path / "new.gguf").write_bytes(changed)
        source = GgufSource(tmp_path / "new.gguf")
        assert source.dtype("q8") == label
        with pytest.raises(BadWeights, match=f"new.gguf: tensor 'q8' is stored as {label}"):
            source.rows("q8")


def test_a_damaged_scale_is_counted(gguf_path: Path, tmp_path: Path) -> None:
    changed = bytearray(gguf_path.read_bytes())
    struct.pack_into("<H", changed, GgufSource(gguf_path)._tensors["q8"].offset, 0x7C00)
    (tmp_path / "inf.gguf").write_bytes(changed)
    with pytest.raises(BadWeights, match="tensor 'q8' holds 32 values that are NaN or infinite"):
        GgufSource(tmp_path / "inf.gguf").rows("q8")


def gguf_bytes(
    *, version: int = 3, fields: bytes = b"", count: int = 0, infos: bytes = b"", tensor_count: int = 0
) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensor_count, count) + fields + infos + bytes(128)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def info(name: str, shape: tuple[int, ...] = (8,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"m\.gguf is empty"),
        (b"PK\3\4" + bytes(99), "no GGUF file"),
        (b"GGUF\3", "bytes that are missing"),
        (gguf_bytes(version=1), "version 1; versions 2 and 3"),
        (gguf_bytes(version=0x03000000), "big-endian"),
        (gguf_bytes(count=1 << 63), "twice|missing"),
        (gguf_bytes(tensor_count=1 << 63), "missing|dimension"),
        (gguf_bytes(count=1, fields=struct.pack("<Q", 1 << 63)), "missing"),
        (gguf_bytes(count=1, fields=text("k") + struct.pack("<I", 77)), "'k' has a value of type 77"),
        (gguf_bytes(count=1, fields=text("k") + struct.pack("<IIQ", 9, 10, 1 << 61)), "missing"),
        (gguf_bytes(count=1, fields=text("k") + struct.pack("<IIQ", 9, 8, 1 << 62)), "missing"),
        (gguf_bytes(count=1, fields=text("k") + struct.pack("<IIQ", 9, 9, 1)), "list of values of type 9"),
        (gguf_bytes(count=1, fields=struct.pack("<Q", 1) + b"\xff" + bytes(4)), "not UTF-8"),
        (
            gguf_bytes(count=2, fields=(text("k") + struct.pack("<IB", 0, 1)) * 2),
            "'k' is in the header twice",
        ),
        (
            gguf_bytes(count=1, fields=text("general.alignment") + struct.pack("<II", 4, 33)),
            "general.alignment is 33",
        ),
        (gguf_bytes(tensor_count=1, infos=info("t", (1,) * 5)), "'t' has 5 dimensions"),
        (gguf_bytes(tensor_count=1, infos=info("t", (0, 4))), "a dimension of 0"),
        (gguf_bytes(tensor_count=1, infos=info("t", (1 << 63, 1 << 63))), "cut short"),
        (gguf_bytes(tensor_count=1, infos=info("t", (33,), kind=8)), "whole blocks of 32"),
        (gguf_bytes(tensor_count=1, infos=info("t", offset=7)), "not at a multiple of 32"),
        (gguf_bytes(tensor_count=1, infos=info("t", offset=1 << 60)), "cut short"),
        (gguf_bytes(tensor_count=2, infos=info("t") + info("u")), "'t' and 'u' overlap"),
        (gguf_bytes(tensor_count=2, infos=info("t") + info("t", offset=32)), "twice"),
    ],
)
def test_a_damaged_gguf_header_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(BadModel, match=message) as caught:
        GgufSource(tmp_path / "m.gguf")
    assert "m.gguf" in str(caught.value)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_fuzzed_gguf_raises_zeropass_errors_only(gguf_path: Path, tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(gguf_path.read_bytes())
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, 700))
        content[at : at + 8] = data.draw(st.binary(min_size=1, max_size=8))
    path = tmp_path / "fuzz.gguf"
    path.write_bytes(content[: data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))])
    try:
        source = GgufSource(path)
        for name in source.names():
            source.rows(name)
    except ZeropassError as error:
        assert "fuzz.gguf" in str(error)


# Files of a model ---------------------------------------------------------------------------------------


def test_a_folder_opens(folder: Path) -> None:
    files = open_files(str(folder))
    assert (files.name, files.format, files.path) == (str(folder), "hf", folder)
    assert files.config == {"model_type": "llama"}
    assert files.tokenizer_json is not None
    assert json.loads(files.tokenizer_json) == TOKENIZER
    assert files.weight_files == (folder / "model.safetensors",)


def test_the_real_encoder_opens(minilm_path: Path) -> None:
    files = open_files(str(minilm_path))
    name = "embeddings.word_embeddings.weight"
    assert files.source.shape(name) == (30_522, 384)
    table = files.source.rows(name)
    np.testing.assert_array_equal(files.source.rows(name, 100, 200, slice(7, 9)), table[100:200, 7:9])


@pytest.mark.parametrize(
    "model",
    ["./nowhere", "/no/where", "nowhere", "a/b/c", "x.gguf", "~/nowhere", "~nobody/x", "x" * 5000, ""],
)
def test_a_bad_model_name_gets_the_list_of_what_it_may_be(model: str) -> None:
    with pytest.raises(BadModel, match=r"MODEL may be: a demo model .*smollm2-135m.*hub id"):
        open_files(model)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("config.json", "has no config.json"),
        ("tokenizer.json", "has no tokenizer.json"),
        ("model.safetensors", "has no weights; it should have one of model.safetensors"),
    ],
)
def test_a_missing_file_is_named(folder: Path, name: str, message: str) -> None:
    (folder / name).unlink()
    with pytest.raises(BadModel, match=message):
        open_files(str(folder))


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe\xfa", b"[1]", b"[" * 100_000, b'"x"'])
def test_a_bad_config_is_refused(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    with pytest.raises(BadModel, match=r"config\.json (is not JSON|holds a JSON)"):
        open_files(str(folder))


def test_a_gguf_in_a_folder_is_pointed_at(tmp_path: Path, gguf_path: Path) -> None:
    with pytest.raises(BadModel, match=r"It has tiny\.gguf: give the file itself"):
        open_files(str(gguf_path.parent))
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(BadModel, match=r"is not a \.gguf file"):
        open_files(str(tmp_path / "model.safetensors"))


def test_a_word_piece_vocabulary_becomes_a_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\nthe\ncat\n##s\n")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    built = json.loads(open_files(str(folder)).tokenizer_json or b"")
    assert built["model"]["vocab"] == {"[PAD]": 0, "[UNK]": 1, "the": 2, "cat": 3, "##s": 4}
    assert [token["content"] for token in built["added_tokens"] if token["special"]] == ["[PAD]", "[UNK]"]
    assert built["normalizer"]["lowercase"]


def test_a_byte_level_vocabulary_becomes_a_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps({"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}))
    (folder / "merges.txt").write_text("#version: 0.2\na b\n")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    built = json.loads(open_files(str(folder)).tokenizer_json or b"")
    assert built["model"]["type"] == "BPE"
    assert [(token["id"], token["content"]) for token in built["added_tokens"]] == [(3, "<|endoftext|>")]
    (folder / "merges.txt").write_text("not merges at all here\n")
    with pytest.raises(BadModel, match="vocabulary files cannot be read"):
        open_files(str(folder))


def test_the_fingerprint_depends_on_content_and_not_on_the_path(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    first, other = folder / "model.safetensors", tmp_path_factory.mktemp("x") / "model.safetensors"
    other.write_bytes(first.read_bytes())
    assert fingerprint([first]) == fingerprint([other])
    other.write_bytes(first.read_bytes()[:-1] + b"\x07")
    assert fingerprint([first]) != fingerprint([other])
    assert fingerprint([first, folder / "config.json"]) == fingerprint([folder / "config.json", first])
