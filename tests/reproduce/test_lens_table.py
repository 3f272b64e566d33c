"""`reproduce/lens.py` runs."""

from pathlib import Path

import pytest

import zeropass as zp
from scripts import imported

ROOT = Path(__file__).parents[2]
(script,) = imported(ROOT / "reproduce", ["lens"])

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
