"""`reproduce/lens.py` runs."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

import zeropass as zp
from scripts import imported
from tiny import error
from zeropass.model.blocks import Block, Cache, embedded

ROOT = Path(__file__).parents[2]
NAMES = ["lens", "published_lenses", "middle_of_block", "top_pairs", "coherence", "lens_variants"]
script, published, middle, top_pairs, coherence, variants = imported(ROOT / "reproduce", NAMES)

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


def test_the_exact_means_are_those_of_autograd(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean Jacobian of each half at one position, norm and attention included."""
    model = zp.open_model(ROOT / "models" / "first")
    monkeypatch.setattr(variants, "QUERIES", 1)
    with torch.no_grad():
        x = Block(model, 0)(embedded(model, torch.randint(300, (1, 6), generator=torch.Generator().manual_seed(7))))
        block = Block(model, 1)
        means = variants.ExactMeans(block)
        block(x, record=means.record)
        closed = means.jacobians()

    def attended(state: Tensor, at: int) -> Tensor:
        y = block._normed(torch.cat((x[0, :at], state[None]))[None], "attn_norm")
        return block._attend(y, Cache(), None)[0, -1]

    def fed(state: Tensor) -> Tensor:
        return block._feed(block._normed(state[None], "ff_norm"), None)[0]

    attn, ff = torch.zeros(2, model.dims.d, model.dims.d)
    for at in range(1, 6):
        attn += torch.autograd.functional.jacobian(partial(attended, at=at), x[0, at]).T / 5
        ff += torch.autograd.functional.jacobian(fed, x[0, at] + attended(x[0, at], at).detach()).T / 5
    assert error(closed.attn, attn) < 1e-4
    assert error(closed.ff, ff) < 1e-4


def test_variants_are_compared(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    first = str(ROOT / "models" / "first")
    monkeypatch.setattr(variants, "TOKENS", 512)
    parts = "fit,blocks,classes,size,vo"
    monkeypatch.setattr("sys.argv", ["x", first, "--layers", "2", "--tokens", "1024", "--only", parts])
    variants.main()
    *tables, vo = (table.splitlines() for table in capsys.readouterr().out.split("\n\n")[1:])
    listed = [row.split("|")[1:-1] for table in tables for row in table[2:]]
    rows = {name.strip(): [float(x) for x in numbers] for name, *numbers in listed}
    assert len(rows) == 17
    present = rows.pop("present")
    for name, numbers in rows.items():
        assert numbers[0] == pytest.approx(present[0], abs=0.1), name
    with_mean, wrong = (float(x) for x in vo[-1].split("|")[4:6])
    assert with_mean > wrong + 0.2


@pytest.fixture
def printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[ModuleType, int], list[list[str]]]:
    """Return a function that gives the rows of a script's table for one layer of a model, read through a lens."""
    first = ROOT / "models" / "first"

    def rows(module: ModuleType, layer: int) -> list[list[str]]:
        zp.calibrate(zp.open_model(str(first)), tmp_path / "lens", source="random", tokens=2048)
        arguments = ["x", str(first), "--layers", str(layer), "--lens", str(tmp_path / "lens")]
        monkeypatch.setattr("sys.argv", arguments)
        module.main()
        return [line.split("|") for line in capsys.readouterr().out.splitlines()[2:]]

    return rows


def test_top_pairs_are_held_against_the_model(printed: Callable[[ModuleType, int], list[list[str]]]) -> None:
    token, seen = printed(top_pairs, 2)
    assert (token[2].strip(), seen[2].strip()) == ("token", "seen")
    assert float(seen[4]) > 0.5  # of 4,096 tokens


def test_what_a_head_writes_for_a_token_is_what_a_forward_pass_writes() -> None:
    model = zp.open_model(str(ROOT / "models" / "first"))
    before, layer, head, token = torch.tensor([[300, 301, 302]]), 2, 1, 400
    x = torch.cat((before, torch.tensor([[token]])), 1)
    states, width = embedded(model, x), model.dims.head_dim
    for number in range(layer):
        states = Block(model, number)(states)
    values: dict[str, torch.Tensor] = {}
    Block(model, layer)(states, record=values.__setitem__)
    expected = values["v"][0, -1, width : 2 * width] @ model.head("o", layer, head)
    written = top_pairs.written(model, layer, torch.tensor([head]), torch.tensor([token]), before)
    torch.testing.assert_close(written[0], expected)


def test_late_lists_are_more_coherent_than_random_ones(printed: Callable[[ModuleType, int], list[list[str]]]) -> None:
    cells = printed(coherence, 3)[-1][2:-1]
    assert len(cells) == 8
    assert float(cells[1].split()[0]) > 0.05
