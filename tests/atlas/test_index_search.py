"""Searches in the index of an atlas, against sums over all lists."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import small
from zeropass.atlas.index_search import Entries, best_sums

KINDS = ["llama", "bert", "llama+lens"]


@given(data=st.data())
def test_sums_from_the_index_are_the_best_of_all(data: st.DataObject) -> None:
    count, stored = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 12))
    weights = dict(enumerate(data.draw(st.lists(st.sampled_from([1.0, 0.5, 0.25, -0.5]), min_size=1, max_size=4))))
    draw = np.random.default_rng(data.draw(st.integers(0, 10_000)))
    z = draw.normal(size=(len(weights), count)) + draw.normal(size=count)
    k, allowed = data.draw(st.integers(1, 10)), set(np.flatnonzero(draw.random(count) < 0.8).tolist())
    entries = {}
    for token in weights:
        best = np.argsort(-np.abs(z[token]))[:stored].tolist()
        rest = abs(z[token][best[-1]]) if count >= stored else 0.0
        entries[token] = Entries({i: z[token][i] for i in best}, rest)
    sums = np.array(list(weights.values())) @ z
    computed: list[int] = []
    best = best_sums(entries, weights, k, allowed.__contains__, lambda i: computed.append(i) or sums[i])
    expected = sorted(((i, sums[i]) for i in allowed), key=lambda entry: (-abs(entry[1]), entry[0]))[:k]
    if best is not None:
        assert [i for i, _ in best] == [i for i, _ in expected]
        assert [value for _, value in best] == pytest.approx([value for _, value in expected])
    elif count < stored:
        pytest.fail("all lists are in the index")
    assert set(computed) <= allowed


@pytest.mark.parametrize("kind", KINDS)
def test_the_index_and_all_vectors_give_the_same(kind: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    atlas = small.built(kind, tmp_path_factory).atlas
    told = 0
    for ids in ((300,), (300, 301), (310, 311, 312), (299, 340)):
        weights = {i: (-1.0 if i == 340 else 1 / len(ids)) for i in ids}
        for k in (1, 3, 8):
            best, others = atlas._best_of_index(weights, atlas.runs, k)
            rest = [run for run in atlas.runs if run not in others]
            expected = atlas.scan(weights, rest, k) if rest else []
            assert [i for i, _ in best] == [i for i, _ in expected]
            assert [z for _, z in best] == pytest.approx([z for _, z in expected], abs=1e-4)
            told += len(best)
    assert told
