"""A short, seeded part of `make fuzz`: 120 mutated inputs for every reader, and all hand-written ones."""

import json
import os
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest

from fuzzing import mutate, written

CASES = 120
SCRIPT = Path(__file__).parent / "fuzz.py"


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the outcomes of all cases, which run in separate processes with limits and may crash."""
    out = tmp_path_factory.mktemp("fuzz") / "fuzz.json"
    line = [sys.executable, str(SCRIPT), "--cases", str(CASES), "--workers", "1", "--json", str(out)]
    done = subprocess.run(line, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=900)
    assert out.is_file(), done.stderr[-3000:]
    return json.loads(out.read_text())["readers"]  # type: ignore[no-any-return]


def test_every_mutated_input_is_read_or_refused_by_name(tried: dict[str, Any]) -> None:
    wrong = {f"{case['kind']} {case['where']}": case["repeat"] for tally in tried.values() for case in tally["wrong"]}
    assert wrong == {}


def test_every_reader_tries_all_cases_and_refuses_some(tried: dict[str, Any]) -> None:
    assert tried["written"]["read"] + tried["written"]["refused"] == len(written.WRITTEN)
    for name, tally in tried.items():
        assert name == "written" or tally["read"] + tally["refused"] == CASES
        assert tally["refused"] > 0, name


SEEDS = {
    "x.json": json.dumps({"a": [1, 2.5, "x", None, True], "b": {"c": {"d": "e"}}}).encode(),
    "x.txt": b"one\ntwo\nthree\n",
    "x.dat": bytes(range(256)),
}


@pytest.mark.parametrize("name", SEEDS)
def test_mutations_are_repeatable_and_nearly_all_different(name: str) -> None:
    def mutated(number: int) -> bytes:
        return mutate.mutated(name, SEEDS[name], Random(number))

    first = [mutated(number) for number in range(400)]
    assert first == [mutated(number) for number in range(400)]
    assert len(set(first)) > 250
    assert sum(data != SEEDS[name] for data in first) > 360


def test_about_half_of_the_mutated_json_still_parses() -> None:
    sound = 0
    for number in range(400):
        try:
            json.loads(mutate.mutated("x.json", SEEDS["x.json"], Random(number)))
            sound += 1
        except (ValueError, RecursionError):
            continue
    assert 150 < sound < 380
