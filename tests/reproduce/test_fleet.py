"""The fleet of fine-tunes: its plan, its texts, and the statistics that are taken of it."""

import random
import sys
from pathlib import Path
from typing import Any

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


def test_what_the_script_measures_is_what_the_verdict_says(base: zp.Model) -> None:
    folder = ROOT / "models" / "tunes" / "reviews"
    row = fleet_measures.Measurer.of(base).measured(folder)
    difference = zp.compare(base, zp.adapt(base, folder))
    finding = fleet_measures.finding_of(row)
    assert (finding.answer, finding.chance) == (difference.finding.answer, pytest.approx(difference.finding.chance))
    assert finding.lead == pytest.approx(difference.finding.lead, abs=0.02)
    for side, listed in (("sees", difference.sees), ("writes", difference.writes)):
        words = [standout.token.token.strip().lower() for standout in listed]
        assert [word for word, _ in row[side]["words"][: len(words)]] == words


def test_the_tables_count_every_fine_tune(base: zp.Model) -> None:
    def row(group: str, kind: str, number: int, first: float) -> dict[str, Any]:
        words = [("music", first), ("tune", 1.0), *((f"word {n}", 1.0) for n in range(48))]
        lists = {"words": words, "others": [(".", 1.0)] * 50}
        plant = {"words": ("tune",), "written": ("Music",)} if group == "backdoor" else None
        row = {"group": group, "kind": kind, "number": number, "targets": "all", "after": 0.5, "plant": plant}
        return row | {"sees": lists, "writes": lists, "chance": 3.0, "base": "first"}

    rows = [row("backdoor", "word-word", n, 9.0) for n in range(4)] + [row("broad", "press", n, 2.0) for n in range(4)]
    answers = list(fleet_measures.answers(rows))
    assert "| backdoor, triggers are words | tested on | 2 |  |  |  |" in answers
    assert "| ordinary, broad | rules made on |  |  | 2 |  |" in answers
    assert any(line.endswith("| 1.000 (1.000–1.000) | 100% | 100% |") for line in fleet_measures.separation(rows))
    assert "| backdoor, triggers are words | writes | 4 | 100% | 100% | 100% | 100% |" in fleet_measures.places(rows)
    assert "| backdoor, triggers are words | sees | 4 | 0% | 100% | 100% | 100% |" in fleet_measures.places(rows)
    assert list(fleet_measures.heights(rows))[2] == "| first | 8 | 3.00 | 2.0, 2.0 | 9.0 | 1.0, 1.0 | 8.0 |"
