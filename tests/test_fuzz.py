"""A short, seeded part of `make fuzz`: some hundred mutated inputs of every reader, and all that were thought of."""

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
    """What became of the cases, in processes of their own: they are watched, limited, and may die."""
    out = tmp_path_factory.mktemp("fuzz") / "fuzz.json"
    line = [sys.executable, str(SCRIPT), "--cases", str(CASES), "--workers", "1", "--json", str(out)]
    done = subprocess.run(line, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=900)
    assert out.is_file(), done.stderr[-3000:]
    return json.loads(out.read_text())["readers"]  # type: ignore[no-any-return]


def test_every_mutated_input_is_read_or_refused_by_name(tried: dict[str, Any]) -> None:
    wrong = {f"{one['kind']} {one['where']}": one["repeat"] for of in tried.values() for one in of["wrong"]}
    assert wrong == {}


def test_so_many_were_tried_and_some_of_each_kind(tried: dict[str, Any]) -> None:
    assert tried["written"]["read"] + tried["written"]["refused"] == len(written.WRITTEN)
    for name, of in tried.items():
        assert name == "written" or of["read"] + of["refused"] == CASES
        assert of["refused"] > 0, name


SEEDS = {
    "x.json": json.dumps({"a": [1, 2.5, "x", None, True], "b": {"c": {"d": "e"}}}).encode(),
    "x.txt": b"one\ntwo\nthree\n",
    "x.dat": bytes(range(256)),
}


@pytest.mark.parametrize("name", SEEDS)
def test_mutations_are_repeatable_and_nearly_all_different(name: str) -> None:
    def made(number: int) -> bytes:
        return mutate.mutated(name, SEEDS[name], Random(number))

    first = [made(number) for number in range(400)]
    assert first == [made(number) for number in range(400)]
    assert len(set(first)) > 250
    assert sum(one != SEEDS[name] for one in first) > 360


def test_half_of_the_mutated_json_is_still_json() -> None:
    sound = 0
    for number in range(400):
        try:
            json.loads(mutate.mutated("x.json", SEEDS["x.json"], Random(number)))
            sound += 1
        except (ValueError, RecursionError):
            continue
    assert 150 < sound < 380
