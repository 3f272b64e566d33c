"""Models read from storage, through fsspec's own memory file system."""

from pathlib import Path

import fsspec
import pytest
import torch

import small
import zeropass as zp
from zeropass.errors import BadModel, NotFetched


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A model in storage, and a cache of the test's own."""
    monkeypatch.setenv("ZEROPASS_CACHE", str(tmp_path / "cache"))
    folder = small.llama(tmp_path / "model")
    memory = fsspec.filesystem("memory")
    for file in folder.iterdir():
        memory.pipe_file(f"/bucket/model/{file.name}", file.read_bytes())
    memory.pipe_file("/bucket/model/readme.md", b"not read")
    return "memory://bucket/model"


def test_a_model_in_storage_is_the_model(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there, here = zp.open_model(bucket), zp.open_model(str(tmp_path / "model"))
    assert torch.equal(there.embedding, here.embedding)
    assert there.fingerprint == here.fingerprint
    assert not list((tmp_path / "cache").rglob("readme*"))
    monkeypatch.setattr(type(fsspec.filesystem("memory")), "get_file", None)  # a second time nothing is fetched
    assert zp.open_model(bucket).fingerprint == here.fingerprint


def test_a_vocabulary_of_another_library_is_fetched_to_be_named(bucket: str) -> None:
    memory = fsspec.filesystem("memory")
    memory.rm("/bucket/model/tokenizer.json")
    memory.pipe_file("/bucket/model/spiece.model", b"x")
    with pytest.raises(BadModel, match=r"spiece\.model cannot be read here"):
        zp.open_model(bucket)


def test_what_changed_there_is_fetched_again(bucket: str) -> None:
    zp.open_model(bucket)
    fsspec.filesystem("memory").pipe_file("/bucket/model/config.json", b"{}")
    with pytest.raises(BadModel, match="model_type is None"):
        zp.open_model(bucket)


@pytest.mark.parametrize(
    ("url", "error", "said"),
    [
        ("memory://bucket/nothing", NotFetched, "memory://bucket/nothing cannot be fetched"),
        ("nonsense://bucket/model", NotFetched, "cannot be fetched: Protocol not known"),
        ("memory://bucket/none.gguf", NotFetched, "cannot be fetched"),
    ],
)
def test_no_model_there(bucket: str, url: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        zp.open_model(url)


def test_a_folder_without_a_model(bucket: str) -> None:
    fsspec.filesystem("memory").pipe_file("/bucket/texts/a.txt", b"words")
    with pytest.raises(BadModel, match=r"has no config\.json"):
        zp.open_model("memory://bucket/texts")
