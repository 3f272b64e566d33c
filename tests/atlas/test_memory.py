"""Builds within a memory limit: the same bytes however many rows fit, and the code that reads tables in blocks."""

import errno
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import small
import zeropass as zp
from builds import contents
from zeropass.atlas.budget import least, parse_size
from zeropass.atlas.build import kept_tokens
from zeropass.atlas.jobs import Runner
from zeropass.atlas.plan import plan_jobs, resolve
from zeropass.atlas.token_rows import Spaces, StoredRows, rows_size, save_array
from zeropass.errors import BadAtlas, BadOption
from zeropass.model import frames as frames_module
from zeropass.model.frames import Frames
from zeropass.numerics.statistics import moments
from zeropass.numerics.top_k import rounded_size
from zeropass.tokens import undertrained

pytestmark = pytest.mark.usefixtures("one_thread")
OPTIONS = zp.Options(k=6, pairs=5, layers=(0, 2))


def needed(model: zp.Model, out: Path) -> int:
    """Return the bytes that a build takes when it holds no rows; only the number of tokens counts, not their ids."""
    options, _ = resolve(OPTIONS, None, model.name)
    kept = torch.zeros(1, dtype=torch.long).expand(model.dims.vocab)  # it takes no memory, however many there are
    return least(Runner(model, out, options, plan_jobs(model, options), kept))


# --- Builds --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_a_build_that_holds_none_or_some_of_its_rows_has_the_same_bytes(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = zp.open_model(str(small.VARIANTS[kind](tmp_path / "model")))
    shape = len(kept_tokens(model, OPTIONS, model.judgement)), small.D
    space_size = rows_size(*shape) + rounded_size(*shape)
    load, mapped = Spaces.load, set[bool]()

    def recording(self: Spaces, space: str) -> Any:
        loaded = load(self, space)
        mapped.add(loaded.mapped is not None)
        return loaded

    monkeypatch.setattr(Spaces, "load", recording)
    zp.build(model, tmp_path / "plain", OPTIONS)
    assert mapped == {False}
    for room, expected in ((0, {True}), (space_size, {True, False}), (9 * space_size, {False})):
        mapped.clear()
        assert zp.build(zp.open_model(model.name), tmp_path / str(room), OPTIONS, memory=needed(model, tmp_path) + room)
        assert mapped == expected
        assert contents(tmp_path / str(room)) == contents(tmp_path / "plain")


def test_a_caller_who_lets_torch_round_float32_gets_the_same_bytes(tmp_path: Path) -> None:
    model, seen = str(small.llama(tmp_path / "model")), set[str]()
    zp.build(zp.open_model(model), tmp_path / "plain", OPTIONS)
    torch.set_float32_matmul_precision("medium")
    try:
        look = lambda *_: seen.add(torch.get_float32_matmul_precision())  # noqa: E731
        zp.build(zp.open_model(model), tmp_path / "rounded", OPTIONS, look)
        assert seen == {"highest"}  # not every processor rounds
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert contents(tmp_path / "rounded") == contents(tmp_path / "plain")


def test_too_little_memory_is_refused_with_a_size_that_is_enough(tmp_path: Path) -> None:
    model = zp.open_model(str(small.llama(tmp_path / "model")))
    with pytest.raises(BadOption, match=r"--memory 1MB is too little .* ([0-9]+)MB at least") as refused:
        zp.build(model, tmp_path / "atlas", OPTIONS, memory=10**6)
    assert not (tmp_path / "atlas").exists()
    enough = str(refused.value).split()[-3]
    assert zp.build(model, tmp_path / "atlas", OPTIONS, memory=parse_size(enough))


@pytest.mark.parametrize("size", ["d", "neurons", "vocab", "head_dim", "layers"])
def test_the_memory_of_a_build_without_rows_grows_with_every_size_but_layers(size: str, tmp_path: Path) -> None:
    model = zp.open_model(str(small.llama(tmp_path / "model")))
    needs = []
    for times in (1, 10**6, 2 * 10**6, 3 * 10**6):  # large enough that the larger of two sizes stays the larger
        dims = replace(model.dims, **{size: getattr(model.dims, size) * times})
        needs.append(needed(replace(model, dims=dims), tmp_path))
    if size == "layers":
        assert len(set(needs)) == 1
    else:
        growth = np.diff(needs[1:])
        assert growth[0] > 0
        assert growth[1] == growth[0] if size != "d" else growth[1] > growth[0]


@given(st.sampled_from(["MB", "GB", "TB", "MiB", "GiB", "TiB"]), st.integers(1, 10**6), st.booleans())
def test_sizes_are_read_in_their_units(unit: str, number: int, spaced: bool) -> None:
    base, power = (1024 if "i" in unit else 1000), "MGT".index(unit[0]) + 2
    for text in (unit, unit.lower(), unit.upper()):
        assert parse_size(f"{number}{' ' * spaced}{text}") == number * base**power


@pytest.mark.parametrize("text", ["", "4", "GB", "-4GB", "4 G B", "4XB", "1e9MB", "inf", "4GB5", "٤GB", "0x4GB", "4B"])
def test_a_text_that_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(BadOption, match=r"--memory .* is not a size; it looks like 4GB"):
        parse_size(text)


# --- Rows in blocks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_rows_do_not_depend_on_how_many_are_computed_at_once(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = zp.open_model(str(small.VARIANTS[kind](tmp_path / "model")))
    spaces = ("paper.read", "embedded", "token", "output.read", "output.write")
    matrices = {space: Frames(model).matrix(space) for space in spaces}
    monkeypatch.setattr(frames_module, "_TOKENS", 37)
    assert "embedding" not in model.__dict__
    for space, matrix in matrices.items():
        torch.testing.assert_close(Frames(model).matrix(space), matrix, rtol=1e-5, atol=1e-6)
    tables = model.embedding, model.unembedding
    for what, table in zip(("embedding", "unembedding"), tables, strict=True):
        if model.has(what):
            assert torch.equal(table, model.matrix(what))


def test_mapped_rows_equal_rows_in_memory(tmp_path: Path) -> None:
    rows, kept = torch.randn(500, 8), torch.arange(3, 500, 7)
    save_array(tmp_path / "token.npy", rows.numpy())
    stored_moments = moments(rows)
    save_array(
        tmp_path / "token.moments.npy", torch.cat((stored_moments.mean[None], stored_moments.covariance)).numpy()
    )
    held, mapped = (Spaces(tmp_path, kept, room).load("token") for room in (None, 0))
    assert held.mapped is None
    assert mapped.mapped is not None
    assert torch.equal(held.rows, rows[kept] - stored_moments.mean.float())
    assert torch.equal(mapped.rows, held.rows)
    for space in (held, mapped):
        space.rest()
        assert torch.equal(space.rows, rows[kept] - stored_moments.mean.float())  # they are loaded again
    if held.prepared.turned and mapped.prepared.turned and mapped.numbers is not None:
        assert mapped.prepared.turned.quantized.numbers.data_ptr() == mapped.numbers.data_ptr()
        mapped.rest()
        assert torch.equal(mapped.prepared.turned.quantized.numbers, held.prepared.turned.quantized.numbers)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["token.moments.npy", "token.npy"]


def test_a_disk_too_full_for_mapped_rows_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    save_array(tmp_path / "token.npy", np.ones((9, 4), np.float32))
    save_array(tmp_path / "token.moments.npy", np.zeros((5, 4)))
    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(BadAtlas, match=r"no room for rows that do not fit into --memory \(No space left"):
        Spaces(tmp_path, torch.arange(9), 0).load("token")


def test_stored_rows_are_read_by_slices(tmp_path: Path) -> None:
    rows, used = torch.randn(5000, 6), torch.arange(5000) % 3 > 0
    save_array(tmp_path / "rows.npy", rows.numpy())
    stored = StoredRows(tmp_path / "rows.npy", torch.device("cpu"))
    for part in (slice(0, 5000), slice(17, 40), slice(4990, 9000), slice(5, 5)):
        assert torch.equal(stored[part], rows[part])
    for keep in (None, used):
        computed, expected = moments(stored, keep), moments(rows, keep)
        assert torch.equal(computed.mean, expected.mean)
        assert torch.equal(computed.covariance, expected.covariance)
    save_array(tmp_path / "rows.npy", rows[0].numpy())
    with pytest.raises(BadAtlas, match=r"rows\.npy holds float32 \(6,\)"):
        StoredRows(tmp_path / "rows.npy", torch.device("cpu"))


# --- Under-trained tokens ------------------------------------------------------------------------------------


def plain_copies(table: np.ndarray, mean: np.ndarray, spread: float) -> np.ndarray:
    """Return what `undertrained._copies` returns, from the distances of all rows that share a code."""
    copies = np.zeros(len(table), dtype=bool)
    for code in undertrained._codes(table, mean)[0]:
        gaps = np.linalg.norm(table[:, None] - table[None], axis=2)
        close = (gaps <= undertrained.COPY_SPREAD * spread) & (code[:, None] == code)
        copies |= close.sum(1) - 1 >= undertrained.COPY_TWINS
    return copies


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([16, 40, 100]), st.integers(0, 5))
def test_copies_agree_with_a_comparison_of_all_pairs(seed: int, d: int, groups: int) -> None:
    draw = np.random.default_rng(seed)
    table = draw.normal(size=(300, d)) + 0.3
    for _ in range(groups):  # near copies, some close enough to count and some not
        ids = draw.choice(300, draw.integers(2, 30), replace=False)
        table[ids] = table[ids[0]] + draw.uniform(0, 0.15) * draw.normal(size=(len(ids), d))
    mean = table.mean(0)
    spread = float(np.median(np.linalg.norm(table - mean, axis=1)))
    assert np.array_equal(undertrained._copies(table, mean, spread), plain_copies(table, mean, spread))


def test_a_model_is_judged_by_its_embedding(tmp_path: Path) -> None:
    folder = small.llama(tmp_path / "model")
    plain = zp.open_model(str(folder))
    table = plain.matrix("embedding").clone()
    ids = np.flatnonzero(~plain.vocab.absent)  # rows without a token do not count
    alike = [20, 300, 301, 302, int(ids[-1])]
    table[alike] = table[20] + 1e-5
    small.save_file(
        small.load_file(folder / "model.safetensors") | {"model.embed_tokens.weight": table},
        folder / "model.safetensors",
    )
    model = zp.open_model(str(folder))
    expected = undertrained.judge(table.numpy()[ids], model.vocab.swallowed()[ids])
    assert model.judgement.undertrained[alike].all()
    assert np.array_equal(model.judgement.undertrained[ids], expected.undertrained)
    assert np.array_equal(model.judgement.fragments[ids], expected.fragments)
    assert "embedding" not in model.__dict__
