"""`reproduce/lens.py` runs, and the changes that it measures are those of transformers with the vectors added."""

from pathlib import Path

import pytest
import torch

import zeropass as zp
from scripts import imported
from tiny import error
from zeropass.model.running import load_running

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


@pytest.mark.parametrize(("site", "role"), [("ff", "value"), ("attn", "o")])
@torch.no_grad()
def test_changes_are_those_of_transformers(site: str, role: str) -> None:
    model = zp.open_model(ROOT / "models" / "first")
    ids = torch.randint(300, 4000, (2, 9), generator=torch.Generator().manual_seed(1))
    vectors = 0.5 * torch.randn(3, model.dims.d, generator=torch.Generator().manual_seed(2))
    sample, layer = torch.arange(100, 600), 1
    changes = script.Contexts(model, ids).changes(layer, site, vectors, sample)
    running = load_running(model)
    for at, text in enumerate(ids):
        alone = running.run(text[None]).logits[0, -1, sample]
        for number in range(len(vectors)):
            with running.adding({(layer, role): (torch.tensor([0]), vectors[number : number + 1])}):
                true = running.run(text[None]).logits[0, -1, sample] - alone
            assert error(changes[at, number], true) < 1e-3
