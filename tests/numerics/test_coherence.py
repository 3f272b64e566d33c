"""Coherence of lists: compared with a loop over all pairs, and with lists of random directions."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zeropass.numerics.coherence import DIRECTIONS, coherence, percentile, random_sums, stronger_pole, within
from zeropass.numerics.projection import extremes
from zeropass.numerics.statistics import moments, quadratic, relative_factors, standardised

SETTINGS = settings(max_examples=25, deadline=None)
SEEDS = st.integers(0, 2**32 - 1)


@given(SEEDS, st.integers(2, 8))
@SETTINGS
def test_coherence_is_the_mean_cosine_of_all_pairs(seed: int, count: int) -> None:
    g = torch.Generator().manual_seed(seed)
    rows, mean = torch.randn(3, count, 6, generator=g), torch.randn(6, generator=g)
    for each, value in zip(rows, coherence(rows, mean), strict=True):
        cosines = [
            torch.nn.functional.cosine_similarity(each[a] - mean, each[b] - mean, dim=0)
            for a in range(count)
            for b in range(count)
            if a != b
        ]
        assert value == pytest.approx(float(torch.stack(cosines).mean()), abs=1e-5)


def test_coherence_of_equal_opposite_and_lone_rows() -> None:
    rows, zero = torch.ones(1, 4, 3), torch.zeros(3)
    assert coherence(rows, zero).tolist() == pytest.approx([1.0])
    assert coherence(torch.stack((rows[0, :2], -rows[0, :2]), 1), zero).tolist() == pytest.approx([-1.0, -1.0])
    assert coherence(rows[:, :1], zero).tolist() == [0.0]
    assert coherence(torch.zeros(1, 4, 3), zero).tolist() == [0.0]


@given(SEEDS, st.integers(1, 12))
@SETTINGS
def test_the_stronger_pole_is_the_one_whose_last_token_is_further_out(seed: int, count: int) -> None:
    scores = torch.randn(5, 40, generator=torch.Generator().manual_seed(seed)).double() ** 3
    for mean in (0.0, 0.5):
        poles = stronger_pole(extremes(scores, 10), count, mean)
        for each, pole in zip((scores - mean).numpy(), poles.tolist(), strict=True):
            order, last = np.argsort(-each), min(count, 10)
            up, down = order[:last], order[::-1][:last]
            assert pole == (up if each[up[-1]] >= -each[down[-1]] else down).tolist()


@given(SEEDS)
@SETTINGS
def test_lists_within_a_view_are_those_made_in_it_where_they_are_long_enough(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    scores, mask = torch.randn(6, 60, generator=g), torch.rand(60, generator=g) < 0.5
    kept = within(extremes(scores, 25), mask, 8)
    expected = extremes(scores[:, mask], 8, mask.nonzero()[:, 0])
    places = iter(range(len(kept.top)))
    for each in range(6):
        listed = [mask[scores[each].topk(25, largest=up).indices].sum() >= 8 for up in (True, False)]
        if all(listed):
            place = next(places)
            assert torch.equal(kept.top_ids[place], expected.top_ids[each])
            assert torch.equal(kept.bottom_ids[place], expected.bottom_ids[each])
            assert torch.equal(kept.bottom[place], expected.bottom[each])
    assert next(places, None) is None


def test_random_sums_have_the_second_moments_of_the_vectors() -> None:
    vectors = torch.randn(300, 4, generator=torch.Generator().manual_seed(1)) * torch.tensor([1.0, 2.0, 4.0, 8.0])
    sums = torch.cat([random_sums(vectors, seed) for seed in range(40)])
    assert sums.shape == (40 * DIRECTIONS, 4)
    ours, theirs = sums.T @ sums / len(sums) / len(vectors), vectors.T @ vectors / len(vectors)
    assert float((ours - theirs).norm() / theirs.norm()) < 0.1
    assert torch.equal(random_sums(vectors, 3), random_sums(vectors, 3))


def test_nineteen_of_twenty_are_below_the_percentile() -> None:
    values = torch.arange(101.0)
    assert percentile(values) == pytest.approx(95.0)
    assert percentile(values[:0]) is None


@given(SEEDS)
@SETTINGS
def test_relative_scores_have_one_size_for_every_row(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    rows, vectors = torch.randn(50, 6, generator=g), torch.randn(30, 6, generator=g)
    rows[7] = 0
    unit = standardised(vectors, moments(rows).of_scores(vectors)[1])
    factors = relative_factors(rows, unit)
    scores = (rows @ unit.T) * factors[:, None]
    sizes = scores.square().mean(1)
    assert sizes[7] == factors[7] == 0
    torch.testing.assert_close(sizes[sizes > 0], torch.ones(49))


def test_quadratic_forms_are_those_of_single_rows() -> None:
    g = torch.Generator().manual_seed(2)
    rows, gram = torch.randn(20, 5, generator=g), torch.randn(5, 5, generator=g)
    expected = torch.stack([row @ gram @ row for row in rows])
    torch.testing.assert_close(quadratic(rows, gram), expected)
