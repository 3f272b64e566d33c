"""The benchmark of peers: when two answers count as the same, and that the ways of our own environment agree."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import small
import zeropass as zp
from scripts import ROOT, imported

BENCHMARKS = ROOT / "benchmarks"
WAYS = ("way_zeropass", "way_torch", "way_whole")
"""The ways that run in our own environment."""

copies, agreement, questions, side_by_side = imported(
    BENCHMARKS, ("copies", "peers.agreement", "peers.questions", "side_by_side")
)


@pytest.fixture(scope="module")
def small_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.llama(tmp_path_factory.mktemp("small"))


FINE = ([4, 2, 9], [3.0, 2.0, 1.0])


@given(st.permutations(range(6)), st.lists(st.floats(-9, 9, width=32), min_size=6, max_size=6))
def test_rounding_may_reorder_nearly_equal_scores(order: list[int], values: list[float]) -> None:
    """Accept any order of scores that are all within rounding of one another."""
    scores = [100 + value * 1e-5 for value in values]
    ours = (list(range(6)), sorted(scores, reverse=True))
    theirs = ([ours[0][i] for i in order], sorted((ours[1][i] for i in order), reverse=True))
    result = agreement.agreement([ours], [theirs])
    assert (result.lists, result.same, result.ordered) == (1, 1, int(list(order) == list(range(6))))
    assert result.difference <= 2 * 18e-5 / 100


def test_an_id_that_ties_with_the_last_may_replace_it() -> None:
    result = agreement.agreement([FINE], [([4, 2, 7], [3.0, 2.0, 1.0])])
    assert (result.lists, result.ordered, result.same, result.difference) == (1, 0, 0, 0.0)


@pytest.mark.parametrize(
    ("ids", "scores"),
    [
        ([2, 4, 9], [3.0, 2.0, 1.0]),  # two ids have changed places
        ([4, 7, 9], [3.0, 2.0, 1.0]),  # another id in the middle
        ([4, 2, 9], [3.0, 2.0, 1.1]),
        ([4, 2, 9], [3.0, 2.0, math.nan]),
        ([4, 2], [3.0, 2.0]),
        ([4, 4, 9], [3.0, 2.0, 1.0]),
    ],
)
def test_more_than_rounding_is_another_answer(ids: list[int], scores: list[float]) -> None:
    with pytest.raises(agreement.Differs):
        agreement.agreement([FINE], [(ids, scores)])


def test_fewer_lists_are_another_answer() -> None:
    with pytest.raises(agreement.Differs, match="1 lists and not 2"):
        agreement.agreement([FINE, FINE], [FINE])


@given(st.integers(1, 9), st.integers(0, 1000))
def test_best_rows_are_the_top_of_the_whole_matrix(rows: int, seed: int) -> None:
    scores = torch.randn(9, 7, generator=torch.Generator().manual_seed(seed))
    (left, right), best = questions.best_rows(scores.split(rows), 5)
    assert torch.equal(best, scores.flatten().topk(5).values)
    assert torch.equal(scores[left, right], best)


def test_ways_give_the_same_answers(tmp_path: Path, small_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask for every value vector and head map of a layer of a tiny model, written out as `make peers` writes it."""
    written = copies.write_folder(zp.open_model(str(small_llama)), tmp_path / "written")
    answers = []
    for module in imported(BENCHMARKS / "peers", WAYS):
        monkeypatch.setattr(module, "PAIRS", 30)
        with torch.no_grad():
            way = module.opened(written)
            lists = list(zip(*(part.tolist() for part in way.values(range(2))), strict=True))
            lists += list(zip(*(part.tolist() for part in way.neuron(1, 3)), strict=True))
            maps = [way.pairs(kind, 1, head) for kind in ("vo", "qk") for head in range(4)]
        answers.append(lists + [(((left << 32) + right).tolist(), scores.tolist()) for (left, right), scores in maps])
    for theirs in answers[1:]:
        assert agreement.agreement(answers[0], theirs).same == len(theirs)


def test_a_written_model_holds_the_same_parameters(tmp_path: Path, small_llama: Path) -> None:
    model = zp.open_model(str(small_llama))
    written = zp.open_model(str(copies.write_folder(model, tmp_path / "written", change=lambda values: 2 * values)))
    for role in ("gate", "up", "value", "q", "k", "v", "o"):
        torch.testing.assert_close(written.matrix(role, 1), 2 * model.matrix(role, 1), rtol=0, atol=0)
    torch.testing.assert_close(written.embedding, model.embedding, rtol=0, atol=0)
    torch.testing.assert_close(written.vector("ff_norm", 1), model.vector("ff_norm", 1), rtol=0, atol=0)


def run(busy: float, scores: list[float], **more: float) -> object:
    answer = {"seconds": 2 * busy, "busy": busy, "peak": 100.0, "ids": [[4, 2, 9]], "scores": [scores]} | more
    return side_by_side.Run((0.5, 0.25), (1.0, 0.75), {"neuron": answer, "vo": answer})


def test_a_table_is_made_of_runs_that_agree() -> None:
    runs = {"zeropass": run(1.0, FINE[1]), "another": run(30.0, FINE[1], peak=9000.0)}
    assert len(side_by_side.compared(runs)) == 2
    assert side_by_side.table(runs)[2:] == [
        "| zeropass | 0.5 (0.25) | 1 (0.75) | – | 0.4 (0.2) | – | 100 / – / 100 |",
        "| another | 0.5 (0.25) | 1 (0.75) | – | 12 (6) | – | 9,000 / – / 9,000 |",
    ]
    assert [(ratio.name, ratio.value) for ratio in side_by_side.ratios(runs)] == [("peers, vo, a map: another", 30.0)]


def test_a_run_ends_if_a_way_gives_another_answer() -> None:
    runs = {"zeropass": run(1.0, FINE[1]), "another": run(1.0, [3.0, 2.0, 1.1])}
    with pytest.raises(SystemExit, match="another, neuron: not the answer that zeropass gives"):
        side_by_side.compared(runs)
