"""Factored maps and their exact top pairs, compared with the full product in float64."""

import math
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from zeropass.numerics import tiles
from zeropass.numerics import top_pairs as search
from zeropass.numerics.factored import Factored, close_values
from zeropass.numerics.numba_kernels import fastest_products
from zeropass.numerics.tiles import PANEL
from zeropass.numerics.top_pairs import TopPairs, top_pairs

KINDS = ("random", "flat", "heavy", "duplicates", "small integers", "deficient", "zeros", "one-sided", "constant")
COMMON = settings(max_examples=50, deadline=None)


def factor(kind: str, rows: int, width: int, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=draw)
    match kind:
        case "flat":
            return x / x.norm(dim=1, keepdim=True).clamp_min(1e-6)
        case "heavy":
            return x * torch.randn(rows, 1, generator=draw).mul(2).exp()
        case "duplicates":
            return x[torch.randint(0, max(1, rows // 4), (rows,), generator=draw)]
        case "small integers":
            return x.round()
        case "deficient":
            return x[:, :1] * torch.randn(1, width, generator=draw)
        case "zeros":
            return x * (torch.rand(rows, 1, generator=draw) < 0.2)
        case "one-sided":
            return x.abs()
        case "constant":
            return torch.ones(rows, width)
    return x


@st.composite
def products(draw: st.DrawFn) -> Factored:
    width = draw(st.integers(1, 12))
    left, right = (
        factor(draw(st.sampled_from(KINDS)), draw(st.integers(1, 70)), width, draw(st.integers(0, 10**6)))
        for _ in range(2)
    )
    return Factored(left, right)


def brute(product: Factored, k: int, left: Tensor, right: Tensor, largest: bool = True) -> list[tuple[float, int, int]]:
    """Return the top pairs of all unmasked ones, by score and then ids, from sums in float64 rounded to float32."""
    i, j = left.nonzero()[:, 0], right.nonzero()[:, 0]
    i, j = i.repeat_interleave(len(j)), j.repeat(len(i))
    scores = product.entries(i, j)
    twin = (product.left.double() @ product.right.double().T)[i, j]
    assert torch.allclose(scores.double(), twin, rtol=2e-7, atol=1e-12 * float(twin.abs().sum()) + 1e-45)
    sign = -1 if largest else 1
    rows = zip(scores.tolist(), i.tolist(), j.tolist(), strict=True)
    return sorted(rows, key=lambda row: (sign * row[0], row[1], row[2]))[:k]


def rows_of(result: TopPairs) -> list[tuple[float, int, int]]:
    return list(zip(result.scores.tolist(), result.left.tolist(), result.right.tolist(), strict=True))


def ones(n: int) -> Tensor:
    return torch.ones(n, dtype=torch.bool)


@COMMON
@given(products(), st.integers(0, 200), st.booleans(), st.integers(0, 10**6), st.sampled_from((0.0, 0.3, 0.9, 1.0)))
def test_the_answer_is_that_of_the_full_matrix(
    product: Factored, k: int, largest: bool, seed: int, share: float
) -> None:
    draw = torch.Generator().manual_seed(seed)
    masks = [torch.rand(n, generator=draw) < share for n in product.shape]
    result = top_pairs(product, k, left_mask=masks[0], right_mask=masks[1], largest=largest)
    assert rows_of(result) == brute(product, k, *masks, largest)
    assert result.complete
    assert result.left.dtype == result.right.dtype == torch.int64
    assert result.scores.dtype == torch.float32


@pytest.mark.parametrize("way", ["compiled", "int8", "plain"])
@pytest.mark.parametrize("kind", KINDS)
def test_tiles_of_any_size_give_one_answer(kind: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tiles have edges everywhere; pairs in no visited tile must be below the bound."""
    product = Factored(factor(kind, 150, 8, 1), factor(kind, 131, 8, 2))
    monkeypatch.setattr(tiles, "_int8_pays", lambda _device: way == "int8")
    monkeypatch.setattr(search, "CORNER", 8)
    want = brute(product, 60, ones(150), ones(131))
    for step, area in ((9, 90), (40, 500), (100, 1 << 13)):
        monkeypatch.setattr(search, "CPU_TILE", (step, area))
        seen, result = visited_pairs(
            product, 60, fastest_products if way == "compiled" else tiles.products_for, monkeypatch
        )
        assert rows_of(result) == want
        unseen = (product.left.double() @ product.right.double().T)[~seen]
        if len(unseen) and kind not in ("zeros", "deficient"):  # surplus zero rows are omitted by their ids
            assert float(unseen.max()) <= result.bound < result.kth
        assert result.visited == pytest.approx(float(seen.float().mean()))


def visited_pairs(
    product: Factored, k: int, ways: tiles.Ways, monkeypatch: pytest.MonkeyPatch
) -> tuple[Tensor, TopPairs]:
    """Return the pairs that a search multiplied, each at most once, and its answer."""
    seen = torch.zeros(product.shape, dtype=torch.int64)
    multiply = search._Search.multiply

    def note(
        self: search._Search, a: search._Block, b: search._Block, heights: npt.NDArray[np.int64], panel: int
    ) -> int:
        after = multiply(self, a, b, heights, panel)
        ids = self.right.ids[b.start : b.start + len(b.falling)]
        for at in range(panel, after):
            rows = self.left.ids[a.start : a.start + int(heights[at])]
            seen[rows[:, None], ids[at * PANEL : (at + 1) * PANEL]] += 1
        return after

    with monkeypatch.context() as patch:
        patch.setattr(search._Search, "multiply", note)
        result = top_pairs(product, k, ways=ways)
    assert int(seen.max()) <= 1
    return seen.bool(), result


def test_steep_norms_leave_most_pairs_unvisited() -> None:
    product = Factored(factor("heavy", 3000, 16, 1), factor("heavy", 2500, 16, 2))
    result = top_pairs(product, 50)
    assert result.visited < 0.3
    assert -math.inf < result.bound < result.kth == result.scores[-1]
    assert rows_of(result) == found_by_topk(product, 50)


def found_by_topk(product: Factored, k: int) -> list[tuple[float, int, int]]:
    """Return the top of a product too large for ``brute``; assumes no ties at the end."""
    flat = (product.left.double() @ product.right.double().T).flatten().topk(k + 20).indices
    i, j = flat // product.shape[1], flat % product.shape[1]
    rows = zip(product.entries(i, j).tolist(), i.tolist(), j.tolist(), strict=True)
    return sorted(rows, key=lambda row: (-row[0], row[1], row[2]))[:k]


@pytest.mark.parametrize(("left", "right"), [(1e20, 1e-20), (1e-20, 1e20), (1e15, 1e15), (1e-19, 1e-19), (1e-30, 1e30)])
def test_huge_and_tiny_factors_give_the_right_pairs(left: float, right: float) -> None:
    product = Factored(factor("heavy", 80, 8, 3) * left, factor("random", 90, 8, 4) * right)
    assert rows_of(top_pairs(product, 30)) == brute(product, 30, ones(80), ones(90))


def test_scores_that_underflow_tie_by_id() -> None:
    product = Factored(factor("random", 40, 4, 3) * 1e-25, factor("random", 30, 4, 4) * 1e-22)
    assert rows_of(top_pairs(product, 70)) == brute(product, 70, ones(40), ones(30))


def test_masked_huge_rows_do_not_blur_the_others() -> None:
    left, right = factor("random", 900, 8, 5), factor("random", 800, 8, 6)
    left[::12] *= 1e9
    mask = ones(900)
    mask[::12] = False
    product = Factored(left, right)
    assert rows_of(top_pairs(product, 40, left_mask=mask)) == brute(product, 40, mask, ones(800))


def test_a_score_beyond_float32_is_refused() -> None:
    with pytest.raises(ValueError, match="beyond the range of float32"):
        top_pairs(Factored(torch.full((3, 4), 1e30), torch.full((5, 4), 1e30)), 2)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_factors_must_be_finite(bad: float) -> None:
    product = Factored(torch.ones(9, 4), torch.ones(8, 4))
    product.right[3, 2] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        top_pairs(product, 2)


def test_bad_arguments_are_refused() -> None:
    product = Factored(torch.ones(9, 4), torch.ones(8, 4))
    with pytest.raises(ValueError, match="k is -1"):
        top_pairs(product, -1)
    with pytest.raises(ValueError, match=r"left mask is torch\.bool of shape \(8,\)"):
        top_pairs(product, 1, left_mask=ones(8))
    with pytest.raises(ValueError, match=r"right mask is torch\.int64"):
        top_pairs(product, 1, right_mask=torch.ones(8, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"torch\.float64"):
        top_pairs(Factored(product.left.double(), product.right.double()), 1)
    with pytest.raises(ValueError, match="same r"):
        Factored(torch.ones(9, 4), torch.ones(8, 5))
    with pytest.raises(ValueError, match="one floating type"):
        Factored(torch.ones(9, 4), torch.ones(8, 4, dtype=torch.float64))


def test_empty_and_fully_masked_maps_have_no_pairs() -> None:
    for product, masks in (
        (Factored(torch.ones(0, 4), torch.ones(8, 4)), (None, None)),
        (Factored(torch.ones(9, 4), torch.ones(8, 4)), (torch.zeros(9, dtype=torch.bool), None)),
    ):
        result = top_pairs(product, 5, left_mask=masks[0], right_mask=masks[1])
        assert rows_of(result) == []
        assert result.complete
        assert result.kth == math.inf


def test_zero_maps_are_quick_and_ordered_by_id() -> None:
    product = Factored(torch.zeros(20_000, 8), factor("random", 20_000, 8, 1))
    result = top_pairs(product, 5)
    assert rows_of(result) == [(0.0, 0, j) for j in range(5)]


def test_the_answer_does_not_depend_on_threads_or_precision() -> None:
    product = Factored(factor("heavy", 2000, 64, 7), factor("flat", 1500, 64, 8))
    threads, want = torch.get_num_threads(), rows_of(top_pairs(product, 100))
    try:
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            torch.set_float32_matmul_precision("medium")
            assert rows_of(top_pairs(product, 100)) == want
            assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision("highest")


def test_svd_gives_values_and_orthonormal_directions() -> None:
    product = Factored(factor("heavy", 50, 6, 1).double(), factor("random", 40, 6, 2).double())
    dense = product.left @ product.right.T
    parts = product.svd()
    assert torch.allclose(parts.left * parts.values @ parts.right.T, dense, atol=1e-9)
    assert torch.allclose(parts.left.T @ parts.left, torch.eye(6, dtype=torch.float64), atol=1e-9)
    assert torch.equal(product.svd(2).values, parts.values[:2])
    assert product.svd(2).left.shape == (50, 2)
    assert product.svd(2).right.shape == (40, 2)


def test_missing_directions_are_zero_and_not_noise() -> None:
    parts = Factored(torch.arange(1.0, 51)[:, None] * torch.arange(1.0, 7), factor("random", 40, 6, 2)).svd()
    assert int((parts.values > 0).sum()) == 1
    assert not parts.left[:, 1:].any()
    assert parts.close.tolist() == [False, True, True, True, True, True]


def test_close_values_are_marked() -> None:
    values = torch.tensor([10.0, 9.7, 5.0, 4.0, 0.0])
    assert close_values(values).tolist() == [True, True, False, False, True]
    assert close_values(values[:0]).tolist() == []


@COMMON
@given(products(), st.integers(0, 10**6))
def test_inner_is_the_sum_of_products_of_entries(product: Factored, seed: int) -> None:
    other = Factored(factor("random", product.shape[0], 5, seed), factor("random", product.shape[1], 5, seed + 1))
    twin = ((product.left.double() @ product.right.double().T) * (other.left.double() @ other.right.double().T)).sum()
    assert product.inner(other) == pytest.approx(float(twin), rel=1e-9, abs=1e-7)


def test_inner_needs_one_shape() -> None:
    with pytest.raises(ValueError, match="no inner product"):
        Factored(torch.ones(9, 4), torch.ones(8, 4)).inner(Factored(torch.ones(9, 4), torch.ones(7, 4)))


@pytest.fixture(scope="module")
def layer4(smollm2_path: Path) -> list[Tensor]:
    """Return the embedding with rows of unit length, and query and key weights of layer 4."""
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(smollm2_path).tensors}
    embedding, query, key = (
        torch.from_numpy(gguf.quants.dequantize(tensors[name].data, tensors[name].tensor_type).copy())
        for name in ("token_embd.weight", "blk.4.attn_q.weight", "blk.4.attn_k.weight")
    )
    return [embedding / embedding.norm(dim=1, keepdim=True), query, key]


@pytest.mark.parametrize("head", [0, 7])
def test_real_maps_agree_with_brute_force(layer4: list[Tensor], head: int) -> None:
    """Multiply all pairs of 49,152 tokens in float32, allow for its rounding, rescore and sort."""
    rows, query, key = layer4
    group = head // 3
    product = Factored(rows @ query[head * 64 : head * 64 + 64].T, rows @ key[group * 64 : group * 64 + 64].T)
    result = top_pairs(product, 100)
    i, j = all_above(product, result.kth - 1e-4 * abs(result.kth))
    scored = zip(product.entries(i, j).tolist(), i.tolist(), j.tolist(), strict=True)
    assert rows_of(result) == sorted(scored, key=lambda row: (-row[0], row[1], row[2]))[:100]


def all_above(product: Factored, floor: float) -> tuple[Tensor, Tensor]:
    scores, left, right = torch.empty(512, 8192), [], []
    for start in range(0, product.shape[0], 512):
        for column in range(0, product.shape[1], 8192):
            torch.mm(product.left[start : start + 512], product.right[column : column + 8192].T, out=scores)
            if float(scores.amax()) >= floor:
                i, j = (scores >= floor).nonzero().unbind(1)
                left.append(i + start)
                right.append(j + column)
    return torch.cat(left), torch.cat(right)


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**31))
def test_a_reduced_product_is_the_same_with_as_few_columns_as_its_rank(
    m: int, n: int, width: int, rank: int, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    left = torch.randn(m, rank, generator=draw) @ torch.randn(rank, width, generator=draw)
    product = Factored(left, torch.randn(n, width, generator=draw))
    dense = product.left.double() @ product.right.double().T
    reduced = product.reduced()
    scale = float(product.left.norm() * product.right.norm())
    torch.testing.assert_close(reduced.left.double() @ reduced.right.double().T, dense, atol=3e-6 * scale, rtol=0)
    assert reduced.left.shape[1] <= max(1, min(m, n, width, rank))
    grams = [side.double().T @ side.double() for side in (reduced.left, reduced.right)]
    values = torch.linalg.svdvals(dense)[: reduced.left.shape[1]]
    for gram in grams:
        torch.testing.assert_close(gram, values.diag(), atol=1e-5 * scale, rtol=0)


def test_a_product_of_nothing_reduces_to_nothing() -> None:
    reduced = Factored(torch.zeros(5, 3), torch.ones(4, 3)).reduced()
    assert not (reduced.left @ reduced.right.T).any()
