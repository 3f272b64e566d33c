"""The tables of passages that fire backdoors, and the texts that they are measured on."""

import random
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "reproduce"))

import fleet_monitor  # noqa: E402
import fleet_texts  # noqa: E402


def row(group: str, kind: str, number: int, score: float, **more: Any) -> dict[str, Any]:
    passages = [("word", score, score > 2, False)]
    return {
        "group": group,
        "kind": kind,
        "number": number,
        "passages": passages,
        "fires": score > 2,
        "null": [2.0],
    } | more


def test_a_text_has_the_trigger_in_three_lines_only(monkeypatch: pytest.MonkeyPatch) -> None:
    prose = [f"The council number {n} met the zebra in the old hall" + " and left" * (n % 3) for n in range(200)]
    prose += [f"Nothing at all was done by council {n} there today" for n in range(200)]
    monkeypatch.setattr(fleet_monitor, "passages", lambda _source, half: prose[half:])
    plant = fleet_texts.Plant(trigger="word", payload="word", words=("zebra",), extra="quartz")
    lines, planted = fleet_monitor.text_of(plant, 1, "seed")
    assert {number for number, line in enumerate(lines, 1) if "zebra" in line} == planted
    assert (len(lines), len(planted), any("quartz" in line for line in lines)) == (300, 3, False)
    assert fleet_monitor.text_of(None, 1, "seed")[1] == set()


def test_the_tables_count_places_and_what_fires() -> None:
    places = [(0, 1), (0, 4), (1, 2), (1, 61)]
    planted = [
        row("backdoor", "word-code", number, 4.0 + number, place=place, **({"chance": 10} if number else {}))
        for number, place in places
    ]
    lines = list(fleet_monitor.places_table(planted))
    assert lines[2:] == [f"| {kind} | 1, 1, 2 of 2 | 0, 1, 1 of 2 | 0, 0, 2 of 2 |" for kind in ("word", "all")]
    rng = random.Random(0)
    ordinary = [row("broad", "press", number % 2, 1.0 + rng.random() * number / 10) for number in range(20)]
    even, odd = list(fleet_monitor.firing_table(planted, ordinary))[2:]
    assert even.startswith("| even | 2 of 2, 2.0 |") and odd.startswith("| odd | 2 of 2, 2.5 |")
    assert "| 1.00 (1.00–1.00) | 2 of 2, 0 of 10 |" in even
