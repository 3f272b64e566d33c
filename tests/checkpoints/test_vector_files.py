"""Vectors in files: what is read, and what is refused by name."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import small
from commands import Run
from zeropass.checkpoints.vector_files import read_vectors
from zeropass.errors import BadModel, BadOption, ZeropassError


def test_arrays_and_tensors_are_read(tmp_path: Path) -> None:
    table = np.arange(12.0).reshape(3, 4)
    for dtype in (np.float16, np.float32, np.float64):
        np.save(tmp_path / "x.npy", table.astype(dtype))
        assert np.array_equal(read_vectors(str(tmp_path / "x.npy")), table)
    save_file({"a": torch.from_numpy(table).bfloat16()}, tmp_path / "one.safetensors")
    save_file({"a": torch.ones(4), "b.c": torch.from_numpy(table)[1].clone()}, tmp_path / "two.safetensors")
    assert np.array_equal(read_vectors(str(tmp_path / "one.safetensors")), table)
    assert np.array_equal(read_vectors(f"{tmp_path}/two.safetensors:b.c"), table[1])
    assert np.array_equal(read_vectors(f"{tmp_path}/one.safetensors:a.T"), table.T)
    save_file({"a.T": torch.ones(4), "a": torch.zeros(4)}, tmp_path / "named.safetensors")
    assert read_vectors(f"{tmp_path}/named.safetensors:a.T").all()  # a tensor of that very name


def test_a_control_vector_is_read(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "control.gguf", "controlvector")
    directions = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    for layer, direction in enumerate(directions, start=1):
        writer.add_tensor(f"direction.{layer}", direction)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert np.array_equal(read_vectors(f"{tmp_path}/control.gguf:direction.2"), directions[1])
    with pytest.raises(BadOption, match=r"holds 3 tensors; name one of them: .*control\.gguf:direction\.1"):
        read_vectors(str(tmp_path / "control.gguf"))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none.npy", "cannot be read"),
        ("folder.npy", "folder"),
        ("text.npy", "cannot be read as an array"),
        ("objects.npy", "cannot be read as an array"),
        ("integers.npy", "int64"),
        ("x.pt", r"these are \.npy, \.safetensors"),
        ("two.safetensors", "holds 2 tensors"),
        ("two.safetensors:z", "z"),
        ("text.safetensors", "safetensors"),
        ("text.gguf", "GGUF"),
    ],
)
def test_what_holds_no_vectors_is_refused(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "folder.npy").mkdir()
    for file in ("text.npy", "text.safetensors", "text.gguf", "x.pt"):
        (tmp_path / file).write_text("These are words and no vectors.")
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    np.save(tmp_path / "integers.npy", np.arange(4))
    save_file({"a": torch.ones(4), "b": torch.ones(4)}, tmp_path / "two.safetensors")
    with pytest.raises(ZeropassError, match=words) as caught:
        read_vectors(f"{tmp_path}/{name}")
    assert isinstance(caught.value, BadModel | BadOption)


def test_the_command_line_reads_vectors(tmp_path: Path, run: Run) -> None:
    model = str(small.llama(tmp_path / "model"))
    np.save(tmp_path / "x.npy", np.random.default_rng(1).normal(size=(2, small.D)))
    file = str(tmp_path / "x.npy")
    code, out, err = run("show", model, "--vector", file, "--layer", "1", "--side", "write", "-k", "3")
    assert code == 0, err
    assert "L1.block.0 direction  writes" in out
    assert "L1.block.1 direction  writes" in out
    code, out, err = run("show", model, "--vector", file, "--layer", "1", "--json")
    assert code == 0, err
    assert out.count('"role": "direction"') == 6
    for words, *options in (
        ("needs --layer", "--vector", file),
        ("takes no address", "L1.ff.0", "--vector", file, "--layer", "1"),
        ("An address is needed",),
        ("--layer is about --vector", "L1.ff.0", "--layer", "1"),
        ("--svd is for head maps", "--vector", file, "--layer", "1", "--svd"),
        ("sides are read and write", "--vector", file, "--layer", "1", "--side", "both"),
    ):
        code, out, err = run("show", model, *options)
        assert (code, out) == (2, ""), (words, err)
        assert words in err
