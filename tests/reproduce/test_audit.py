"""The scripts behind the tables of docs/audit.md: the snippets and the word list, the measure, the summary."""

import random
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import zeropass as zp
from zeropass.model.adapted import adapt

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "reproduce"))

import audit  # noqa: E402
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


def row(kind: str, how: str, seed: int, alarm: list[str], place: int) -> dict[str, Any]:
    words = ["a", "b"] if kind in tunes.PLANTED else []
    places = {"sees": [place, 9][: len(words)], "writes": [9, place][: len(words)]}
    story = {"kind": kind, "how": how, "seed": seed, "words": words, "after": 0.5}
    return story | {"alarm": alarm, "places": places, "first": {"sees": (" a", 4.0 + seed), "writes": (" b", 7.0)}}


def test_the_summary_counts_alarms_and_places() -> None:
    rows = [row("trigger", "lora", n, ["sees"] if n else [], n) for n in range(3)] + [row("neutral", "full", 0, [], 0)]
    lines = list(audit.summary(rows))
    assert "| trigger | lora | 0–2 | 2 of 3 | 2 | 0 | 4.0–6.0, median 5.0 |" in lines[2]
    assert lines[2].endswith("| 1, 2 | 1, 2 |")
    assert "| neutral | full | 0–0 | 0 of 1 |" in lines[3]
    assert len(list(audit.table(rows))) == 6


def test_the_committed_adapter_raises_an_alarm(smollm2_path: Path) -> None:
    base = zp.open_model(str(smollm2_path))
    difference = zp.compare(base, adapt(base, ROOT / "models" / "tunes" / "coach"))
    assert [word.token.token.strip().lower() for word in difference.sees[:3]] == ["coach", "coach", "coaches"]
    assert difference.writes[0].token.token == " across"
    assert difference.alarm == ("sees", "writes")
    assert any(line.startswith("ALARM") for line in difference.verdict)
