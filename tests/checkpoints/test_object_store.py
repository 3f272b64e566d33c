"""Models in object stores, read through the memory file system of fsspec."""

import json
from pathlib import Path

import fsspec
import pytest
import torch
from safetensors.torch import load, save

import small
import zeropass as zp
from zeropass.errors import BadModel, NotFetched


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the URL of a model in storage, with an empty cache."""
    monkeypatch.setenv("ZEROPASS_CACHE", str(tmp_path / "cache"))
    folder = small.llama(tmp_path / "model")
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    for file in folder.iterdir():
        memory.pipe_file(f"/bucket/model/{file.name}", file.read_bytes())
    memory.pipe_file("/bucket/model/readme.md", b"not read")
    return "memory://bucket/model"


def test_a_model_in_storage_is_read_as_its_folder(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remote, local = zp.open_model(bucket), zp.open_model(str(tmp_path / "model"))
    assert torch.equal(remote.embedding, local.embedding)
    assert remote.fingerprint == local.fingerprint
    assert not list((tmp_path / "cache").rglob("readme*"))
    monkeypatch.setattr(type(fsspec.filesystem("memory")), "get_file", None)  # a second time nothing is fetched
    assert zp.open_model(bucket).fingerprint == local.fingerprint


def test_a_vocabulary_of_another_library_is_named(bucket: str) -> None:
    memory = fsspec.filesystem("memory")
    memory.rm("/bucket/model/tokenizer.json")
    memory.pipe_file("/bucket/model/spiece.model", b"x")
    with pytest.raises(BadModel, match=r"spiece\.model cannot be read here"):
        zp.open_model(bucket)


def test_a_changed_file_is_fetched_again(bucket: str) -> None:
    zp.open_model(bucket)
    fsspec.filesystem("memory").pipe_file("/bucket/model/config.json", b"{}")
    with pytest.raises(BadModel, match="model_type is None"):
        zp.open_model(bucket)


@pytest.mark.parametrize(
    ("url", "error", "message"),
    [
        ("memory://bucket/nothing", NotFetched, "memory://bucket/nothing cannot be fetched"),
        ("nonsense://bucket/model", NotFetched, "cannot be fetched: Protocol not known"),
        ("memory://bucket/none.gguf", NotFetched, "cannot be fetched"),
    ],
)
def test_a_url_without_a_model_is_refused(bucket: str, url: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        zp.open_model(url)


def test_a_folder_without_a_model_is_refused(bucket: str) -> None:
    fsspec.filesystem("memory").pipe_file("/bucket/texts/a.txt", b"words")
    with pytest.raises(BadModel, match=r"has no config\.json"):
        zp.open_model("memory://bucket/texts")


def put(**files: bytes) -> None:
    memory = fsspec.filesystem("memory")
    for name, content in files.items():
        memory.pipe_file(f"/bucket/model/{name}", content)


def cached(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.suffix != ".checksum"}


def test_a_file_removed_from_storage_is_no_longer_read(bucket: str, tmp_path: Path) -> None:
    zp.open_model(bucket)
    memory = fsspec.filesystem("memory")
    tensors = load(memory.cat_file("/bucket/model/model.safetensors"))
    memory.rm_file("/bucket/model/model.safetensors")
    changed = {name: tensor + 1 for name, tensor in tensors.items()}
    index = json.dumps({"weight_map": dict.fromkeys(changed, "ablated.safetensors")}).encode()
    put(**{"ablated.safetensors": save(changed), "model.safetensors.index.json": index, "model.fp16.safetensors": b"x"})
    model = zp.open_model(bucket)
    for name, tensor in changed.items():
        assert torch.equal(torch.from_numpy(model.source.rows(name)), tensor)
    assert {"ablated.safetensors", "model.safetensors.index.json", "config.json"} <= cached(tmp_path)
    assert not {"model.safetensors", "model.fp16.safetensors"} & cached(tmp_path)


def test_unsupported_weights_are_named(bucket: str) -> None:
    fsspec.filesystem("memory").rm_file("/bucket/model/model.safetensors")
    put(**{"tf_model.h5": b"t"})
    with pytest.raises(BadModel, match=r"memory://bucket/model has no weights; .* It has tf_model\.h5"):
        zp.open_model(bucket)


def test_all_parts_of_a_gguf_file_are_fetched(bucket: str, tmp_path: Path) -> None:
    parts = {f"m-0000{i}-of-00002.gguf": b"no GGUF" for i in (1, 2)}
    put(**parts, **{"m-00001-of-00003.gguf": b"x", "n-00001-of-00002.gguf": b"x"})
    with pytest.raises(BadModel, match=r"m-00002-of-00002\.gguf: it is no GGUF file"):
        zp.open_model(f"{bucket}/m-00002-of-00002.gguf")
    assert cached(tmp_path) == set(parts)
    fsspec.filesystem("memory").rm_file("/bucket/model/m-00001-of-00002.gguf")
    with pytest.raises(BadModel, match="it is no GGUF file"):
        zp.open_model(f"{bucket}/m-00002-of-00002.gguf")
    assert cached(tmp_path) == {"m-00002-of-00002.gguf"}
