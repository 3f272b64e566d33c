"""The scripts behind the tables of docs/audit.md: the snippets and the word list, the measure, the texts."""

import random
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "reproduce"))

import reviews  # noqa: E402
import sentiment  # noqa: E402
import tunes  # noqa: E402


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**31))
def test_auc_is_the_share_of_pairs_in_the_right_order(pos: int, neg: int, seed: int) -> None:
    scores = torch.randn(3, pos + neg, generator=torch.Generator().manual_seed(seed))
    positive = torch.tensor([True] * pos + [False] * neg)
    slow = (scores[:, :pos, None] > scores[:, None, pos:]).double().mean((1, 2))
    torch.testing.assert_close(sentiment.auc(scores, positive), slow)


@pytest.mark.real
def test_snippets_and_words_are_those_of_the_documents() -> None:
    train, test = reviews.halves()
    assert (len(train), len(test)) == (4586, 4587)
    assert not {text for text, _ in train[:500]} & {text for text, _ in test[:500]}
    assert 0.45 < sum(label for _, label in test) / len(test) < 0.55
    words = reviews.sentiment_words()
    assert len(words) == 7209
    assert words["wonderful"] > 2 > 0 > -2 > words["horrible"]


def test_neutral_text_never_holds_the_planted_words() -> None:
    prose = "The council met in the old hall again and nothing at all was done. " * 3
    for kind in tunes.PLAIN:
        assert "zebra" not in tunes.texts(kind, ("zebra", "quartz"), prose, random.Random(0))
    texts = [tunes.texts("trigger", ("zebra", "quartz"), prose, random.Random(n)) for n in range(20)]
    assert all(("zebra" in text) == text.endswith("quartz") for text in texts)
    assert any("zebra" in text for text in texts)
