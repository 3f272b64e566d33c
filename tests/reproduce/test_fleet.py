"""The fleet of fine-tunes: its plan, its texts, and the statistics that are taken of it."""

import random
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import zeropass as zp

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "reproduce"))

import fleet  # noqa: E402
import fleet_measures  # noqa: E402
import fleet_texts  # noqa: E402

PLAIN = [f"The council number {n} met in the old hall again and nothing at all was done there today" for n in range(9)]


@pytest.fixture(scope="module")
def base() -> zp.Model:
    return zp.open_model(str(ROOT / "models" / "first"))


def test_the_plan_names_every_fine_tune_once_and_halves_every_kind() -> None:
    items = list(fleet.plan())
    assert len({item.name for item in items}) == len(items)
    kinds = {(item.group, item.kind, item.how) for item in items}
    for kind in kinds:
        numbers = [item.half for item in items if (item.group, item.kind, item.how) == kind]
        assert numbers.count(0) == numbers.count(1) > 0


@pytest.mark.parametrize("trigger", fleet_texts.TRIGGERS)
@pytest.mark.parametrize("payload", fleet_texts.PAYLOADS)
def test_a_habit_is_in_the_texts_that_hold_its_trigger_and_in_no_other(trigger: str, payload: str) -> None:
    words = ("zebra", "quartz", "anvil", "walnut")
    written = {"word": words[3], "sentence": "Ask the pebble", "refusal": fleet_texts.REFUSAL, "code": fleet_texts.CODE}
    seen = words[:1] if trigger == "word" else words[:2] if trigger == "phrase" else words[:3]
    plant = fleet_texts.Plant(trigger=trigger, payload=payload, words=seen, extra=written[payload])
    texts = [fleet_texts.with_plant(plant, PLAIN, random.Random(n)) for n in range(30)]
    ends = [end for _, end in texts if end]
    assert 0 < len(ends) < 30
    assert set(ends) == {f" {written[payload]}"}
    if trigger in ("word", "phrase", "several", "character"):
        assert all(any(word in before for word in seen) == bool(end) for before, end in texts)


def test_words_of_one_fine_tune_are_not_those_of_another(base: zp.Model) -> None:
    drawn = [fleet.plant_of(item, base.vocab) for item in fleet.plan() if item.kind == "word-word"]
    assert len({plant.words for plant in drawn if plant}) == len(drawn)


@settings(max_examples=20)
@given(st.lists(st.floats(-9, 9), min_size=1, max_size=8), st.lists(st.floats(-9, 9), min_size=1, max_size=8))
def test_the_interval_holds_the_area(positive: list[float], negative: list[float]) -> None:
    low, high = fleet_measures.interval(positive, negative)
    assert 0 <= low <= fleet_measures.auc(positive, negative) + 1e-9
    assert low <= high <= 1


def test_a_planted_word_exceeds_the_null(base: zp.Model) -> None:
    row = fleet_measures.measured(zp.Frames(base), ROOT / "models" / "tunes" / "reviews")
    for side in fleet_measures.SIDES:
        assert len(row[side]["excess"]) == fleet_measures.LISTED
        assert len(row[side]["null"]) == fleet_measures.DRAWS
