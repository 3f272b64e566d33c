"""Rows that are kept: the same answers, whatever is missing, damaged or in the way, and no more than is allowed."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import small
import zeropass as zp
from zeropass.model import kept_rows
from zeropass.model.frames import Frames
from zeropass.model.kept_rows import KeptFrames, kept_frames
from zeropass.model.model import Model


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of rows in a cache that keeps tables of any size."""
    monkeypatch.setenv("ZEROPASS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(kept_rows, "MOST", 4 << 30)
    monkeypatch.setattr(kept_rows, "_LEAST", 0)
    return tmp_path / "cache" / "rows"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return small.llama(tmp_path / "model")


@pytest.fixture
def lens(path: Path) -> zp.LensMaps:
    return zp.calibrate(path, source="random", tokens=512)


def answers(frames: Frames) -> Any:
    lens = zp.Lens.over(frames)
    return [lens[address].to_json() for address in ("L1.ff.3", "L0.ff.3", "L1.attn.0.vo", "L2.attn.1.o.3")]


def computed(path: Path, lens: zp.LensMaps | None) -> Any:
    return answers(Frames(zp.open_model(path), lens))


def test_the_second_answer_is_the_first_and_computes_no_rows(
    cache: Path, path: Path, lens: zp.LensMaps, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert answers(kept_frames(zp.open_model(path), lens)) == computed(path, lens)
    assert {file.suffix for folder in cache.iterdir() for file in folder.iterdir()} == {".npy", ".json"}

    def refuse(*_arguments: Any) -> None:
        raise AssertionError("This was computed again.")

    expected = computed(path, lens)
    monkeypatch.setattr(Frames, "_computed", refuse)
    monkeypatch.setattr(Frames, "_relative_factors", refuse)
    monkeypatch.setattr(Model, "judgement", property(refuse))
    assert answers(kept_frames(zp.open_model(path), lens)) == expected


def test_rows_moments_and_judgement_are_kept_bit_for_bit(cache: Path, path: Path) -> None:
    kept_frames(zp.open_model(path), None).rows("token")
    model = zp.open_model(path)
    kept, expected = kept_frames(model, None).rows("token"), Frames(model).rows("token")
    assert torch.equal(kept.matrix, expected.matrix)
    assert torch.equal(kept.moments.mean, expected.moments.mean)
    assert torch.equal(kept.moments.covariance, expected.moments.covariance)
    assert kept.moments.count == expected.moments.count
    for _ in range(2):
        judgement = kept_frames(model, None).judgement
        assert all(np.array_equal(*pair) for pair in zip(judgement, model.judgement, strict=True))


def test_other_lenses_have_their_own_numbers(cache: Path, path: Path, lens: zp.LensMaps) -> None:
    second = zp.calibrate(path, source="random", tokens=256, seed=3)
    for maps in (lens, second, None, lens, second, None):
        assert answers(kept_frames(zp.open_model(path), maps)) == computed(path, maps)


def test_weights_with_other_values_have_their_own_rows(cache: Path, path: Path, tmp_path: Path) -> None:
    second = small.llama(tmp_path / "second", seed=1)
    for _ in range(2):
        for folder in (path, second):
            assert answers(kept_frames(zp.open_model(folder), None)) == computed(folder, None)
    assert len([*cache.iterdir()]) == 2


@pytest.mark.parametrize("damage", [b"", b"{", b"[1]", b'{"a": "b"}', b"\x93NUMPY\x01\x00", None])
def test_damaged_files_are_computed_again(damage: bytes | None, cache: Path, path: Path, lens: zp.LensMaps) -> None:
    expected = answers(kept_frames(zp.open_model(path), lens))
    (folder,) = cache.iterdir()
    for file in folder.iterdir():
        file.unlink() if damage is None else file.write_bytes(damage)
    assert answers(kept_frames(zp.open_model(path), lens)) == expected
    for file in folder.glob("*.npy"):
        with file.open("wb") as out:
            np.save(out, np.zeros(3))
    assert answers(kept_frames(zp.open_model(path), lens)) == expected


def test_a_cache_that_cannot_be_written_is_no_error(cache: Path, path: Path) -> None:
    cache.parent.mkdir()
    cache.write_text("This is a file.")
    assert answers(kept_frames(zp.open_model(path), None)) == computed(path, None)


def test_what_is_in_memory_adapted_small_or_large_is_not_kept(
    cache: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = zp.open_model(path)
    state = {name: torch.from_numpy(model.source.rows(name)) for name in model.source.names()}
    from_memory = zp.open_model(state, path / "tokenizer.json", config={**model.files.config})
    answers(kept_frames(from_memory, None))
    for name, value in (("_LEAST", 1 << 30), ("MOST", 1)):
        with monkeypatch.context() as patch:
            patch.setattr(kept_rows, name, value)
            answers(kept_frames(zp.open_model(path), None))
    assert not cache.exists()


def test_what_was_used_longest_ago_is_removed(
    cache: Path, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [path, *(small.llama(tmp_path / f"model-{seed}", seed=seed) for seed in (1, 2))]
    for age, folder in enumerate(paths[:2]):
        frames = kept_frames(zp.open_model(folder), None)
        answers(frames)
        os.utime(frames._folder or "", (age, age))
    answers(kept_frames(zp.open_model(paths[0]), None))  # used again, so that the other one is the older
    largest = max(sum(file.stat().st_size for file in folder.iterdir()) for folder in cache.iterdir())
    monkeypatch.setattr(kept_rows, "MOST", 2 * largest + largest // 2)
    answers(kept_frames(zp.open_model(paths[2]), None))
    expected = {kept_frames(zp.open_model(folder), None)._folder for folder in (paths[0], paths[2])}
    assert {*cache.iterdir()} == expected


def test_load_keeps_what_it_computes(cache: Path, path: Path) -> None:
    assert isinstance(zp.load(path).frames, KeptFrames)
    _ = zp.load(path)["L1.ff.3"]
    assert [*cache.iterdir()]
    shutil.rmtree(cache)
    assert zp.load(path)["L1.ff.3"].to_json() == zp.Lens(zp.open_model(path))["L1.ff.3"].to_json()
