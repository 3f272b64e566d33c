"""Top-k by quantized products, compared with the full product: the same poles, the same vectors for each token."""

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from devices import multiply_float16
from zeropass.numerics import half, top_k
from zeropass.numerics.statistics import moments
from zeropass.numerics.token_index import TokenIndex
from zeropass.numerics.top_k import PreparedRows, Survey, prepare_rows, survey

SETTINGS = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(params=["int8", "float32", "given", "float16"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    assert top_k.numba_kernels is not None, "these tests need zeropass[fast]"
    if request.param == "float16":
        multiply_float16(monkeypatch)
    monkeypatch.setattr(top_k.numba_kernels, "INT8", request.param == "int8")
    if request.param == "given":
        monkeypatch.setattr(sys.modules[__name__], "survey", survey_of_given_scores)
    monkeypatch.setattr(top_k, "_TILE", 96)  # several tiles, of which the last is incomplete
    yield request.param == "int8"


def survey_of_given_scores(
    vectors: Tensor, rows: PreparedRows, k: int, ids: Tensor, index: TokenIndex, first_id: int
) -> Survey:
    """Survey a given full product in float32 of vectors that are scaled by powers of two from 0.125 to 4."""
    scale = 2.0 ** (torch.arange(len(vectors)) % 6 - 3)
    return top_k.survey(vectors, rows, k, ids, index, first_id, (rows.rows @ (vectors * scale[:, None]).T, scale))


def prepared(rows: Tensor) -> PreparedRows:
    return prepare_rows(rows, moments(rows).covariance)


def survey_blocks(vectors: Tensor, rows: Tensor, k: int, size: int, block: int = 40) -> tuple[list[Survey], TokenIndex]:
    """Survey blocks of the vectors; return the surveys and the index over all of them."""
    ids, index, prepared_rows = torch.arange(len(rows)) * 3 + 1, TokenIndex(len(rows), size), prepared(rows)
    parts = torch.arange(len(vectors)).split(block)
    return [survey(vectors[part], prepared_rows, k, ids, index, int(part[0])) for part in parts], index


def sorted_rows(scores: Tensor, k: int, descending: bool) -> tuple[Tensor, Tensor]:
    """Return the first k entries of each sorted row; equal ones keep their order."""
    order = scores.sort(dim=1, descending=descending, stable=True)
    return order.values[:, :k], order.indices[:, :k]


def check(vectors: Tensor, rows: Tensor, k: int, size: int) -> None:
    """Compare all results of a survey with a full sort of the product, which must be exact for these numbers."""
    surveys, index = survey_blocks(vectors, rows, k, size)
    scores = vectors @ rows.T
    for name, descending in (("top", True), ("bottom", False)):
        values, at = sorted_rows(scores, k, descending)
        assert torch.equal(torch.cat([getattr(block.extremes, name) for block in surveys]), values)
        assert torch.equal(torch.cat([getattr(block.extremes, f"{name}_ids") for block in surveys]), at * 3 + 1)
    taken, ids, z = index.ranked()
    sizes, at = sorted_rows(scores.abs().T, size, descending=True)
    assert torch.equal(taken, torch.arange(size).expand(len(rows), size) < len(vectors))
    assert torch.equal(ids[taken], at.flatten())
    assert torch.equal(z[taken].abs(), sizes.flatten())
    assert torch.equal(z[taken], scores.T.gather(1, at).flatten())


@given(st.integers(0, 2**32 - 1), st.integers(1, 90), st.integers(1, 300), st.integers(1, 20), st.integers(1, 12))
@SETTINGS
def test_small_integers_with_many_ties(way, seed: int, n: int, v: int, d: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    vectors, rows = (torch.from_numpy(rng.integers(-3, 4, (m, d)).astype(np.float32)) for m in (n, v))
    check(vectors, rows, k, k)


@given(st.integers(0, 2**32 - 1), st.integers(1, 9))
@SETTINGS
def test_numbers_that_rounding_changes(way, seed: int, k: int) -> None:
    """Twelve bits do not fit float16, but products of two such numbers and sums of a few are exact in float32."""
    rng = np.random.default_rng(seed)
    vectors = torch.from_numpy((rng.integers(-2047, 2048, (60, 2))).astype(np.float32))
    rows = torch.from_numpy((rng.integers(-2047, 2048, (250, 2))).astype(np.float32))
    check(vectors, rows, k, k + 3)


def test_zero_and_equal_rows_and_vectors(way) -> None:
    vectors, rows = torch.zeros(50, 8), torch.ones(130, 8)
    vectors[::7], rows[::5] = 2.0, 0.0
    check(vectors, rows, 10, 10)
    check(torch.zeros(45, 8), rows, 10, 10)
    for block in survey_blocks(vectors, torch.ones(130, 8), 10, 10)[0]:
        assert torch.equal(block.kurtosis, torch.zeros(len(block.kurtosis)))  # equal scores have no tails
    check(vectors, torch.zeros(100, 8), 10, 10)


def test_rows_of_very_unequal_lengths(way) -> None:
    g = torch.Generator().manual_seed(1)
    vectors, rows = torch.randint(-9, 10, (80, 6), generator=g).float(), torch.randint(-9, 10, (400, 6), generator=g)
    check(vectors, rows.float() * 2.0 ** torch.randint(-6, 6, (400, 1), generator=g), 7, 7)


@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(1, 300), st.integers(1, 20), st.integers(1, 12))
@SETTINGS
def test_scaled_rows(way, seed: int, n: int, v: int, d: int, k: int) -> None:
    """Rows scaled after they were prepared give what rows scaled before give, without an index too."""
    rng = np.random.default_rng(seed)
    vectors, rows = (torch.from_numpy(rng.integers(-3, 4, (m, d)).astype(np.float32)) for m in (n, v))
    factors = torch.from_numpy(2.0 ** rng.integers(-4, 5, v)).float() * torch.from_numpy(rng.integers(0, 2, v))
    ids, late, early = torch.arange(v), TokenIndex(v, k), TokenIndex(v, k)
    scaled = top_k.survey(vectors, prepared(rows).scaled(factors), k, ids, late, 0)
    plain = top_k.survey(vectors, prepared(rows * factors[:, None]), k, ids, early, 0)
    bare = top_k.survey(vectors, prepared(rows).scaled(factors), k, ids, None, 0)
    for name in ("top", "top_ids", "bottom", "bottom_ids"):
        assert torch.equal(getattr(scaled.extremes, name), getattr(plain.extremes, name))
        assert torch.equal(getattr(scaled.extremes, name), getattr(bare.extremes, name))
    for ours, theirs in zip(late.ranked(), early.ranked(), strict=True):
        assert torch.equal(ours, theirs)


def test_factors_that_round_the_rows(way) -> None:
    """With real numbers, the poles are those of the full product up to rounding."""
    g = torch.Generator().manual_seed(3)
    vectors, rows = torch.randn(40, 64, generator=g), torch.randn(2000, 64, generator=g)
    factors = torch.rand(2000, generator=g).exp()
    extremes = top_k.survey(vectors, prepared(rows).scaled(factors), 20, torch.arange(2000), None, 0).extremes
    values, at = sorted_rows((vectors @ rows.T) * factors, 20, descending=True)
    torch.testing.assert_close(extremes.top, values, rtol=1e-5, atol=1e-5)
    assert (extremes.top_ids == at).float().mean() > 0.999


def test_a_sample_that_promises_too_much(way, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the rows of the sample are long, so fewer than k scores reach the floor that it suggests."""
    monkeypatch.setattr(top_k, "SAMPLE", 32)
    monkeypatch.setattr(top_k, "_GROUP", 1)
    g = torch.Generator().manual_seed(5)
    vectors, rows = (torch.randint(-9, 10, (n, 6), generator=g).float() for n in (50, 300))
    rows[torch.linspace(0, 299, 32).long()] *= 16
    times: list[bool] = []
    look = top_k._Survey.look_through

    def counted(self, tiles: list[slice], lowest: Tensor, for_tokens: bool = True) -> None:
        times.append(for_tokens)
        look(self, tiles, lowest, for_tokens)

    monkeypatch.setattr(top_k._Survey, "look_through", counted)
    check(vectors, rows, 5, 5)
    assert (False in times) == top_k._quantizes(rows)


def test_real_numbers_give_what_the_full_product_gives(way, monkeypatch: pytest.MonkeyPatch) -> None:
    """Single dot products and the full product in float32 differ only by rounding."""
    g = torch.Generator().manual_seed(2)
    vectors, rows = torch.randn(120, 64, generator=g), torch.randn(3000, 64, generator=g).exp()
    rows -= rows.mean(0)  # as in a build
    monkeypatch.setattr(top_k, "_TILE", 1024)
    surveys, index = survey_blocks(vectors, rows, 20, 15)
    monkeypatch.setattr(top_k, "numba_kernels", None)
    plain, other_index = survey_blocks(vectors, rows, 20, 15)
    for block, other in zip(surveys, plain, strict=True):
        for name in ("top", "bottom"):
            assert torch.allclose(getattr(block.extremes, name), getattr(other.extremes, name), rtol=1e-5, atol=1e-4)
            same = getattr(block.extremes, f"{name}_ids") == getattr(other.extremes, f"{name}_ids")
            assert same.float().mean() > 0.995  # neighbours that differ only by rounding may change places
        assert torch.allclose(block.kurtosis, other.kurtosis, rtol=0.02, atol=0.02)
    (_, ids, z), (_, others_ids, others_z) = index.ranked(), other_index.ranked()
    assert torch.allclose(z, others_z, rtol=1e-5, atol=1e-4)
    assert (ids == others_ids).float().mean() > 0.995


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_and_block_sizes_change_no_bit(threads: int) -> None:
    g = torch.Generator().manual_seed(3)
    vectors, rows = torch.randn(100, 48, generator=g), torch.randn(5000, 48, generator=g)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected, index = survey_blocks(vectors, rows, 10, 10, block=100)
        torch.set_num_threads(threads)
        surveys, other_index = survey_blocks(vectors, rows, 10, 10, block=30)
    finally:
        torch.set_num_threads(before)
    extremes = expected[0].extremes
    for name in ("top", "top_ids", "bottom", "bottom_ids"):
        assert torch.equal(torch.cat([getattr(survey.extremes, name) for survey in surveys]), getattr(extremes, name))
    for part, other in zip(index.ranked(), other_index.ranked(), strict=True):
        assert torch.equal(part, other)


@pytest.mark.parametrize("first_id", [0, 77, 12345])
def test_threads_change_no_bit_of_the_kurtosis(first_id: int) -> None:
    """A survey sums over its rows in one order, wherever it starts."""
    g = torch.Generator().manual_seed(3)
    vectors, rows = torch.randn(100, 48, generator=g), prepared(torch.randn(5000, 48, generator=g))
    threads, values = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            values.append(survey(vectors, rows, 10, torch.arange(5000), TokenIndex(5000, 10), first_id).kurtosis)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(values[0], other) for other in values)


def test_consecutive_surveys_start_far_apart() -> None:
    tiles = [top_k._tiles(5000, first_id) for first_id in (0, 1)]
    assert sorted(tiles[0], key=lambda tile: tile.start) == sorted(tiles[1], key=lambda tile: tile.start)
    assert sum(tile.stop - tile.start for tile in tiles[1]) == 5000
    assert tiles[0][0].start == 0 != tiles[1][0].start


def test_float16_computes_the_full_product_only_where_rounding_leaves_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the tokens' lists are filled, there is no full product for vectors whose scores are all distinct."""
    multiply_float16(monkeypatch)
    monkeypatch.setattr(half, "_FIRST", 64)
    g = torch.Generator().manual_seed(6)
    vectors, rows = torch.randn(1024, 64, generator=g), torch.randn(3000, 64, generator=g)
    vectors[700] = 0  # all its scores are equal
    widths: list[int] = []
    monkeypatch.setattr(
        half, "_first", lambda z, at, k, first=half._first: (widths.append(z.shape[1]), first(z, at, k))[1]
    )
    offered: list[int] = []
    offer = TokenIndex.offer
    monkeypatch.setattr(
        TokenIndex, "offer", lambda self, z, first_id: (offered.append(first_id), offer(self, z, first_id))[1]
    )
    index = TokenIndex(3000, 5)
    survey(vectors, prepared_rows := prepare_rows(rows, moments(rows).covariance), 10, torch.arange(3000), index, 0)
    assert prepared_rows.coarse is not None and prepared_rows.coarse.numbers.dtype == torch.float16
    assert widths.count(52) == 32  # both poles of 16 blocks, 2 k + 32 scores each
    assert 0 < widths.count(3000) <= 4
    assert offered and max(offered) < 512
    monkeypatch.setattr(top_k, "_rounds", lambda _: False)
    other_index = TokenIndex(3000, 5)
    survey(vectors, prepare_rows(rows, moments(rows).covariance), 10, torch.arange(3000), other_index, 0)
    same = index.ranked()[1] == other_index.ranked()[1]
    assert same.float().mean() > 0.999  # neighbours that differ only by rounding may change places


def test_an_index_continues_from_kept_entries(way) -> None:
    g = torch.Generator().manual_seed(4)
    vectors, rows = torch.randn(90, 16, generator=g), prepared(torch.randn(200, 16, generator=g))
    ids = torch.arange(200)
    complete, early, late = (TokenIndex(200, 8) for _ in range(3))
    survey(vectors, rows, 5, ids, complete, 0)
    survey(vectors[:50], rows, 5, ids, early, 0)
    for tokens, keys in early.entries(0, 50):
        late.add(tokens, keys)
    survey(vectors[50:], rows, 5, ids, late, 50)
    for part, other in zip(complete.ranked(), late.ranked(), strict=True):
        assert torch.equal(part, other)


OTHER = """
import sys
import llvmlite.binding
llvmlite.binding.get_host_cpu_features = lambda: {}
import numpy, torch
from test_top_k import kept_of_real_numbers
from zeropass.numerics import numba_kernels
assert not numba_kernels.INT8 and numba_kernels._TOGETHER == 1
numpy.save(sys.argv[1], kept_of_real_numbers())
"""


def kept_of_real_numbers() -> np.ndarray:
    """Return scores and ids of some poles as one array."""
    g = torch.Generator().manual_seed(8)
    vectors, rows = (torch.randn(n, 150, generator=g) for n in (60, 900))
    extremes = survey(vectors, prepared(rows), 9, torch.arange(900), TokenIndex(900, 5), 0).extremes
    return torch.cat([tensor.double().flatten() for tensor in vars(extremes).values()]).numpy()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the test simulates an older x86-64 processor")
def test_a_processor_without_avx_512_gives_the_same_bits(tmp_path: Path) -> None:
    older = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2", "NUMBA_CACHE_DIR": str(tmp_path)}
    folders = map(str, Path(__file__).parents[:2])
    paths = os.pathsep.join([*folders, *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-c", OTHER, str(tmp_path / "kept.npy")]
    subprocess.run(command, check=True, env=os.environ | older | {"PYTHONPATH": paths})
    assert np.array_equal(np.load(tmp_path / "kept.npy"), kept_of_real_numbers())


def test_the_rotation_has_the_same_bits_on_any_number_of_threads() -> None:
    rows = torch.randn(2000, 300, generator=torch.Generator().manual_seed(3)) * torch.arange(1.0, 301)
    covariance, threads, turns = moments(rows).covariance, torch.get_num_threads(), []
    try:
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            turns.append(top_k._turns(covariance))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    for side in (0, 1):
        assert all(torch.equal(turns[0][side].matrix, turn[side].matrix) for turn in turns)
