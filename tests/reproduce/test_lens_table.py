"""`reproduce/lens.py` runs."""

from pathlib import Path

import pytest

import zeropass as zp
from scripts import imported

ROOT = Path(__file__).parents[2]
script, published, middle = imported(ROOT / "reproduce", ["lens", "published_lenses", "middle_of_block"])

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_tables_are_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    zp.calibrate(zp.open_model(ROOT / "models" / "first"), tmp_path / "lens", source="random", tokens=512)
    line = ["lens.py", str(ROOT / "models" / "first"), "--lens", str(tmp_path / "lens"), "--tokens", "1024"]
    monkeypatch.setattr("sys.argv", [*line, "--layers", "1,2"])
    script.main()
    out = capsys.readouterr().out
    rows = [row.split("|")[1:-1] for row in out.splitlines() if row.startswith("| value") or row.startswith("| q k v")]
    assert len(rows) == 4
    for row in rows:
        wrong, lens = float(row[4]), float(row[3])
        assert lens > wrong + 0.1


def test_published_lenses_are_made_and_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = str(ROOT / "models" / "first")
    monkeypatch.setattr("sys.argv", ["x", first, str(tmp_path), "--tokens", "512", "--prompts", "1"])
    published.main()
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == ["tuned", "same", "jacobian"]
    lenses = [x for name in ("tuned", "same.pt", "jacobian.pt") for x in ("--lens", str(tmp_path / name))]
    monkeypatch.setattr("sys.argv", ["x", first, *lenses, "--tokens", "1024", "--layers", "2"])
    script.main()
    out = capsys.readouterr().out
    assert "| writes | layer | weights alone | tuned | Jacobian | Jacobian | wrong list | ceiling |" in out
    assert "| reads" not in out
    values = next(line for line in out.splitlines() if line.startswith("| value")).split("|")[3:-1]
    assert all(float(x) > float(values[4]) + 0.3 for x in values[:4])
    monkeypatch.setattr("sys.argv", ["x", first, str(tmp_path / "same.pt"), "--layers", "2"])
    middle.main()
    assert all(float(x) > 0.8 for x in capsys.readouterr().out.splitlines()[-1].split("|")[2:-1])
