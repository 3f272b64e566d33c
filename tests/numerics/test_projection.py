"""Scores, z, folding, rotation and right inverses, compared with float64 and with their defining identities."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from zeropass.numerics.projection import (
    apply_norm,
    extremes,
    fold_read,
    fold_write,
    from_scores,
    keep_k,
    normed,
    pseudo_inverse,
    rotate,
    scores,
)
from zeropass.numerics.statistics import blocks, moments, standardised

SEEDS = st.integers(0, 2**32 - 1)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def lopsided(rows: int, d: int, seed: int, shift: float = 3.0) -> Tensor:
    """Draw rows with a large common mean and very unequal scales, like embeddings."""
    return draw(rows, d, seed=seed) * torch.logspace(-2, 1, d) + shift


# Scores and their statistics


@given(SEEDS, st.integers(1, 40), st.integers(1, 70))
@settings(max_examples=30, deadline=None)
def test_scores_are_the_product(seed: int, d: int, rows: int):
    vectors, matrix = draw(5, d, seed=seed), draw(rows, d, seed=seed + 1)
    expected = torch.einsum("nd,vd->nv", vectors.double(), matrix.double())
    torch.testing.assert_close(scores(vectors, matrix).double(), expected, rtol=1e-5, atol=1e-5)


@given(SEEDS, st.integers(1, 24), st.integers(2, 90), st.floats(0, 30), st.booleans())
@settings(max_examples=60, deadline=None)
def test_the_moments_determine_z(seed: int, d: int, count: int, shift: float, masked: bool):
    """Mean and deviation are those of the full list of scores, which is not computed."""
    rows, vectors = lopsided(count, d, seed, shift), draw(4, d, seed=seed + 1)
    keep = draw(count, seed=seed + 2) > 0 if masked else torch.ones(count, dtype=torch.bool)
    keep[0] = True
    full = vectors.double() @ rows[keep].double().T
    of_rows = moments(rows, keep if masked else None)
    mean, std = of_rows.of_scores(vectors)
    assert of_rows.count == int(keep.sum())
    scale = float(full.abs().max())
    torch.testing.assert_close(mean.double(), full.mean(1), rtol=1e-5, atol=1e-6 * scale)
    torch.testing.assert_close(std.double(), full.std(1, correction=0), rtol=1e-4, atol=1e-6 * scale)


def test_moments_in_blocks_are_those_of_all_rows():
    rows = lopsided(20_000, 5, 0)
    of_rows = moments(rows)
    torch.testing.assert_close(of_rows.mean, rows.double().mean(0))
    torch.testing.assert_close(of_rows.covariance, torch.cov(rows.double().T, correction=0))
    assert [*blocks(20_000, 8192)][-1] == slice(16384, 20_000)


def test_moments_of_no_rows_are_refused():
    with pytest.raises(ValueError, match="no rows"):
        moments(draw(3, 2), torch.zeros(3, dtype=torch.bool))


def test_standardised_vectors_give_z_itself():
    rows, vectors = lopsided(300, 8, 0), draw(6, 8, seed=1)
    of_rows = moments(rows)
    z = standardised(vectors, of_rows.of_scores(vectors)[1]) @ (rows - of_rows.mean.float()).T
    torch.testing.assert_close(z.mean(1), torch.zeros(6), rtol=0, atol=1e-5)
    torch.testing.assert_close(z.std(1, correction=0), torch.ones(6), rtol=1e-4, atol=0)


def test_a_vector_that_scores_all_rows_alike_has_z_zero():
    rows = draw(50, 4)
    rows[:, 0] = 2.0
    vector = torch.tensor([[1.0, 0, 0, 0]])
    mean, std = moments(rows).of_scores(vector)
    assert (float(mean), float(std)) == (2.0, 0.0)
    assert not standardised(vector, std).any()


# Norms


@given(SEEDS, st.sampled_from(["rms", "layer"]), st.booleans())
@settings(max_examples=30, deadline=None)
def test_norms_are_those_of_torch(seed: int, norm, bare: bool):
    x, gain, shift = lopsided(6, 12, seed), draw(12, seed=seed + 1), draw(12, seed=seed + 2)
    parts = (None, None) if bare else (gain, None if norm == "rms" else shift)
    actual = apply_norm(x, norm, 1e-3, *parts)
    if norm == "layer":
        expected = functional.layer_norm(x, (12,), *parts, eps=1e-3)
    else:
        expected = functional.rms_norm(x, (12,), parts[0], eps=1e-3)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@given(SEEDS, st.sampled_from(["rms", "layer"]))
@settings(max_examples=30, deadline=None)
def test_fold_read_moves_the_norm_into_the_vector(seed: int, norm):
    """w · LN(x) = fold(w) · normed(x) + w · β, and the folded vector needs no centring of x."""
    x, w = lopsided(6, 12, seed), draw(4, 12, seed=seed + 1)
    gain, shift = draw(12, seed=seed + 2), draw(12, seed=seed + 3)
    folded = fold_read(w, gain, norm)
    expected = apply_norm(x, norm, 1e-5, gain, shift) @ w.T
    torch.testing.assert_close(normed(x, norm, 1e-5) @ folded.T + w @ shift, expected, rtol=1e-4, atol=1e-4)
    if norm == "layer":
        torch.testing.assert_close(x @ folded.T, (x - x.mean(1, keepdim=True)) @ folded.T, rtol=1e-4, atol=1e-3)


@given(SEEDS, st.sampled_from(["rms", "layer"]))
@settings(max_examples=30, deadline=None)
def test_fold_write_is_the_linear_part_of_the_norm_that_follows(seed: int, norm):
    """The folded parts of x, added up and divided by its deviation, are the norm of x."""
    parts, gain = lopsided(3, 12, seed), draw(12, seed=seed + 1)
    x = parts.sum(0, keepdim=True)
    inner = x - x.mean() if norm == "layer" else x
    std = (inner.square().mean() + 1e-5).sqrt()
    actual = fold_write(parts, gain, norm).sum(0, keepdim=True) / std
    torch.testing.assert_close(actual, apply_norm(x, norm, 1e-5, gain, None), rtol=1e-4, atol=1e-4)


def test_folding_without_a_gain_only_centres():
    w = lopsided(3, 6, 0)
    assert torch.equal(fold_read(w, None, "rms"), w)
    assert torch.equal(fold_write(w, None, "rms"), w)
    assert torch.equal(fold_read(w, None, "layer"), w - w.mean(1, keepdim=True))


# Rotary positions


@given(SEEDS, st.integers(-900, 900), st.integers(-900, 900), st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_rotation_is_orthogonal_and_relative(seed: int, m: int, n: int, rest: int):
    """(R_m q) · (R_n k) = (R_{m−n} q) · k; lengths and coordinates beyond the frequencies do not change."""
    frequencies = 100.0 ** -(torch.arange(4) / 4)
    q, k = draw(5, 8 + rest, seed=seed), draw(5, 8 + rest, seed=seed + 1)
    turned = rotate(q, m, frequencies)
    torch.testing.assert_close(turned.norm(dim=1), q.norm(dim=1))
    assert torch.equal(turned[:, 8:], q[:, 8:])
    both = (turned * rotate(k, n, frequencies)).sum(1)
    torch.testing.assert_close(both, (rotate(q, m - n, frequencies) * k).sum(1), rtol=1e-3, atol=1e-3)


def test_rotation_agrees_with_a_calculation_by_hand():
    x = torch.tensor([[1.0, 0.0, 0.0, 2.0]])
    frequencies = torch.tensor([torch.pi / 2, torch.pi])
    assert torch.equal(rotate(x, 0, frequencies), x)
    # pairs of the two halves: (1, 0) rotates by a quarter to (0, 1), (0, 2) by a half to (0, -2)
    torch.testing.assert_close(rotate(x, 1, frequencies), torch.tensor([[0.0, 0.0, 1.0, -2.0]]), rtol=0, atol=1e-6)


# Right inverses


@given(SEEDS, st.integers(1, 12), st.integers(0, 60))
@settings(max_examples=30, deadline=None)
def test_pseudo_inverse_recovers_states(seed: int, d: int, more: int):
    """x Eᵀ E′ = x, where E′ is the Moore-Penrose inverse of Eᵀ."""
    rows = draw(2 * d + more, d, seed=seed).double()
    x = draw(3, d, seed=seed + 1).double()
    inverse = pseudo_inverse(rows)
    torch.testing.assert_close(from_scores(scores(x, rows), inverse), x, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(inverse, torch.linalg.pinv(rows.T), rtol=1e-5, atol=1e-6)


def test_pseudo_inverse_recovers_states_in_float32_with_a_large_common_mean():
    rows, x = lopsided(400, 16, 0, 1.0), draw(3, 16, seed=1)
    torch.testing.assert_close(from_scores(scores(x, rows), pseudo_inverse(rows)), x, rtol=1e-2, atol=1e-2)


def test_pseudo_inverse_without_full_rank_recovers_the_span_of_the_rows():
    rows = draw(30, 3) @ draw(3, 8, seed=1)
    x = draw(2, 3, seed=2) @ draw(3, 8, seed=1)
    torch.testing.assert_close(from_scores(scores(x, rows), pseudo_inverse(rows)), x, rtol=1e-3, atol=1e-3)


@given(SEEDS, st.integers(1, 30), st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_keep_k_keeps_the_k_strongest(seed: int, size: int, k: int):
    values = draw(4, size, seed=seed)
    kept = keep_k(values, k)
    strongest = values.abs().sort(1, descending=True).indices[:, :k]
    expected = torch.zeros_like(values)
    for row, at in enumerate(strongest):
        expected[row, at] = values[row, at]
    assert torch.equal(kept, expected)


def test_from_scores_can_use_the_k_strongest_alone():
    rows = draw(50, 6)
    values = scores(draw(2, 6, seed=1), rows)
    inverse = pseudo_inverse(rows)
    torch.testing.assert_close(from_scores(values, inverse, 5), keep_k(values, 5) @ inverse)
    torch.testing.assert_close(from_scores(values, inverse, 50), from_scores(values, inverse))


# Extremes


@given(SEEDS, st.integers(1, 30), st.integers(1, 40), st.booleans())
@settings(max_examples=60, deadline=None)
def test_extremes_are_the_ends_of_the_sorted_list(seed: int, size: int, k: int, named: bool):
    values = draw(3, size, seed=seed)
    ids = torch.arange(size) * 7 + 3 if named else None
    ends = extremes(values, k, ids)
    order = values.sort(1, descending=True)
    ordered_ids = order.indices if ids is None else ids[order.indices]
    assert torch.equal(ends.top, order.values[:, :k])
    assert torch.equal(ends.top_ids, ordered_ids[:, :k])
    assert torch.equal(ends.bottom, order.values.flip(1)[:, :k])
    assert torch.equal(ends.bottom_ids, ordered_ids.flip(1)[:, :k])
