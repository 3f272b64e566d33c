"""The fleet of fine-tunes: its plan, its texts, and the statistics that are taken of it."""

import random
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import zeropass as zp
from zeropass.diff.findings import Finding, judged
from zeropass.diff.screen_results import Nearest, Screened

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "reproduce"))

import fleet  # noqa: E402
import fleet_measures  # noqa: E402
import fleet_texts  # noqa: E402
import screen_measures  # noqa: E402

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


def screened(name: str, group: str, number: int, nearest: str, finding: Finding) -> tuple[str, Any]:
    """Return a row of a screening with its story, by name."""
    near = Nearest(name=nearest, similarity=0.5, alike=number < 2)
    row = Screened(name=name, path="", sha256=name, kind="adapter", finding=finding, nearest=(near,), usual=0.1)
    kind = {"backdoor": "word-word", "broad": "press"}[group]
    return name, (row, {"group": group, "kind": kind, "number": number, "targets": "all", "after": 0.9})


def test_screening_is_counted_by_recipe_and_judged_again_by_benign_changes() -> None:
    low, high = judged([4.5, *[4.0] * 9], 4.0, 16), judged([12.0, *[5.0] * 9], 4.0, 16)
    rows = dict(
        [
            screened("plant-0", "backdoor", 0, "plant-1", high),
            screened("plant-1", "backdoor", 1, "broad-3", high),
            *(screened(f"broad-{n}", "broad", n, "broad-1", low) for n in range(16)),
        ]
    )
    assert screen_measures.alike("models/first", rows) == "| first | 18 | 0.10 | 17, 3 | 1, 1 |"
    planted, ordinary = screen_measures.benign("models/first", rows)
    assert planted.endswith("| 9.2, 4.8 | 1 narrow, 0 topic, 0 nothing | 4.5, 0.5 | 1 narrow, 0 topic, 0 nothing |")
    assert "ordinary, 8 | 9.2, 4.8 | 0 narrow, 0 topic, 8 nothing | 4.5, 0.5 | 8 narrow" in ordinary
