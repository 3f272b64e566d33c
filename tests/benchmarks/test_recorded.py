"""The regression guard of the benchmarks: its arithmetic, and the file that it reads and writes."""

import json
import math
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices import multiply_float16
from scripts import ROOT, imported
from zeropass.errors import BadOption

gpu, machine, recorded = imported(ROOT / "benchmarks", ("gpu", "machine", "recorded"))
Ratio = recorded.Ratio
SPEED, COST = Ratio("a search", 30.0, "times as fast", "more"), Ratio("a build", 2.0, "times as long", "less")


@given(st.floats(0.1, 100), st.floats(0.1, 100))
def test_worse_is_the_same_for_a_cost_and_for_its_inverse_speed(then: float, now: float) -> None:
    cost = recorded.worse(Ratio("", now, "", "less"), Ratio("", then, "", "less"))
    speed = recorded.worse(Ratio("", 1 / now, "", "more"), Ratio("", 1 / then, "", "more"))
    assert cost == pytest.approx(now / then)
    assert speed == pytest.approx(cost)


def test_a_speed_of_zero_is_infinitely_worse() -> None:
    assert recorded.worse(Ratio("", 0.0, "", "more"), Ratio("", 2.0, "", "more")) == math.inf


def test_only_what_is_worse_by_more_than_the_factor_is_marked(tmp_path: Path) -> None:
    path = tmp_path / "recorded.json"
    recorded.write([SPEED, COST], path)
    now = [Ratio("a search", 10.0, "times as fast", "more"), Ratio("a build", 2.4, "times as long", "less")]
    rows = recorded.table([*now, Ratio("new", 1.0, "", "less")], recorded.read(path)).splitlines()[2:]
    date = machine.today()
    assert rows == [
        f"| a search | times as fast | 30 ({date}) | 10 | 0.33 | WORSE, 3.00 times |",
        f"| a build | times as long | 2 ({date}) | 2.4 | 1.20 |  |",
        "| new |  | – | 1 | – | not recorded |",
    ]


def test_recording_replaces_a_name_and_keeps_the_others(tmp_path: Path) -> None:
    path = tmp_path / "recorded.json"
    recorded.write([SPEED, COST], path)
    recorded.write([Ratio("a build", 1.5, "times as long", "less")], path)
    rows = recorded.read(path)
    assert {name: row.value for name, row in rows.items()} == {"a build": 1.5, "a search": 30.0}
    assert (rows["a build"].date, rows["a build"].machine) == (machine.today(), machine.shape())
    assert [file.name for file in tmp_path.iterdir()] == ["recorded.json"]


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_nothing_is_recorded_if_a_value_is_not_positive(tmp_path: Path, value: float) -> None:
    path = tmp_path / "recorded.json"
    recorded.write([SPEED], path)
    before = path.read_bytes()
    with pytest.raises(BadOption, match="a build was measured as"):
        recorded.write([Ratio("a search", 1.0, "s", "more"), Ratio("a build", value, "s", "less")], path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("half", [False, True])
def test_the_gpu_benchmark_runs_on_a_processor_too(
    half: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Run with the products of a processor, and with those in float16 that a GPU makes."""
    if half:
        multiply_float16(monkeypatch)
    monkeypatch.setattr(
        sys, "argv", ["gpu.py", "--device", "cpu", "--small", "--layers", "1", "--maps", "1", "--build", "1"]
    )
    gpu.main()
    printed = capsys.readouterr().out
    assert "as in the whole products: 100.00%" in printed
    assert "| 864 |" in printed
    assert "| 12 |" in printed
    assert "A file of 0.0 GB with 1 layers." in printed
    assert "| 6,144 tokens |" in printed
    assert "| by the weights alone | 0.0 GB |" in printed
    assert "| through a lens | 0.0 GB |" in printed


def test_a_device_that_is_not_there_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "nowhere"])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 2
    assert "--device nowhere: torch cannot use it here" in capsys.readouterr().err


def test_without_a_file_the_ratios_are_printed_and_none_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded.report([SPEED], path=tmp_path / "recorded.json")
    assert "| a search | times as fast | – | 30 | – | not recorded |" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


ROW = {"name": "a", "value": 2.0, "unit": "s", "better": "less", "date": "2026-11-25", "machine": "a laptop"}
SPOILED = [
    "[{",
    "{}",
    "3",
    "[3]",
    "[{}]",
    *(json.dumps([ROW | {"value": value}]) for value in ("2", None, True, 0, -1.0, math.nan)),
    *(json.dumps([ROW | wrong]) for wrong in ({"better": "more or less"}, {"date": None}, {"name": ""}, {"what": 1})),
    json.dumps([ROW, ROW]),
]


@pytest.mark.parametrize("text", SPOILED)
@pytest.mark.parametrize("record", [False, True])
def test_a_spoiled_file_is_named_after_the_measurement_and_left_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, record: bool
) -> None:
    path = tmp_path / "recorded.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        recorded.report([SPEED], record, path)
    printed = capsys.readouterr()
    assert ended.value.code == 2
    assert "| a search | times as fast | – | 30 |" in printed.out
    assert str(path) in printed.err
    assert path.read_text(encoding="utf-8") == text


def test_the_recorded_file_is_valid_and_in_its_written_form(tmp_path: Path) -> None:
    rows = recorded.read()
    assert rows
    names = list(rows)
    assert names == sorted(names)
    copy = tmp_path / "recorded.json"
    copy.write_bytes(recorded.RECORDED.read_bytes())
    recorded.write([], copy)
    assert copy.read_bytes() == recorded.RECORDED.read_bytes()
