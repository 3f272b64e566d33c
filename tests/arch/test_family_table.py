"""``zeropass families``: its table describes each family as its checkpoints are."""

import ast
import importlib
import inspect
import json
import pkgutil
import re
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tiny import save
from zeropass.arch import families
from zeropass.arch.families import FAMILIES
from zeropass.arch.family_table import attention_of, family_rows, mlp_of, norm_of, notes_of, positions_of
from zeropass.arch.layout import Layout
from zeropass.arch.spec import Family
from zeropass.cli import main as cli
from zeropass.model.model import Model
from zeropass.model.opening import open_model
from zoo import ZOO, tiny_model

ROWS = {row["family"]: row for row in family_rows()}

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Model]:
    folder = tmp_path_factory.mktemp("table")

    @cache
    def open_zoo(name: str) -> Model:
        mark = "#decoder" if ZOO[name][2].get("stack") == "decoder" else ""
        return open_model(f"{save(tiny_model(name), folder / name)}{mark}")

    return open_zoo


def test_every_family_is_one_row() -> None:
    assert list(ROWS) == list(dict.fromkeys(family.name for family in FAMILIES))
    for family in FAMILIES:
        row = ROWS[family.name]
        assert set(family.model_types) <= set(row["model_types"])
        assert len(row["formats"]) == len(
            {layout.format for f in FAMILIES if f.name == family.name for layout in f.layouts}
        )
        assert set(family.notes) <= set(row["notes"])


@pytest.mark.parametrize(
    ("family", "norm", "positions", "attention", "mlp"),
    [
        ("llama", "RMSNorm before", "rotary", "GQA", "gated"),
        (
            *("gemma3", "RMSNorm around", "rotary"),
            *("GQA, QK-norm, window or GQA, QK-norm, window, both ways", "gated"),
        ),
        ("olmo2", "RMSNorm after", "rotary", "GQA, QK-norm", "gated"),
        ("mixtral", "RMSNorm before", "rotary", "GQA, window", "gated, experts"),
        ("gpt2", "LayerNorm before", "learned", "heads", "plain"),
        ("phi", "LayerNorm before", "partial rotary", "GQA", "plain, parallel"),
        ("bloom", "LayerNorm before", "ALiBi", "heads", "plain"),
        (
            *("falcon", "LayerNorm before", "ALiBi or rotary"),
            *("heads or multi-query or GQA", "plain or plain, parallel"),
        ),
        ("bert", "LayerNorm post", "learned", "heads, both ways or heads", "plain"),
        ("t5", "RMSNorm before", "relative", "heads, both ways or heads, cross", "plain or gated"),
    ],
)
def test_a_row_describes_its_family(family: str, norm: str, positions: str, attention: str, mlp: str) -> None:
    row = ROWS[family]
    assert [row[key] for key in ("norm", "positions", "attention", "mlp")] == [norm, positions, attention, mlp]


@pytest.mark.parametrize("name", sorted(ZOO))
def test_a_row_is_true_of_a_checkpoint(name: str, opened: Callable[[str], Model]) -> None:
    model = opened(name)
    family, dims, row = model.family, model.dims, ROWS[model.family.name]
    assert norm_of(family) in row["norm"]
    assert ("around" in norm_of(family)) == (family.reads_normed and model.has("attn_post_norm"))
    words = positions_of(family)
    assert words in row["positions"]
    assert ("learned" in words, "rotary" in words) == (model.has("positions"), dims.rope is not None)
    assert "partial" in words or dims.rotary in (0, dims.head_dim)
    words = attention_of(family)
    assert words in row["attention"]
    assert dims.group == 1 or words.startswith(("GQA", "multi-query"))
    assert ("QK-norm" in words) == bool(family.qk_norm) >= model.has("q_norm")
    assert ("cross" in words) == model.has("cross_q")
    assert ("both ways" in words) != family.causal
    assert "window" in words or not dims.local
    assert ("experts" in mlp_of(family)) == (dims.experts > 1)
    assert ("gated" in mlp_of(family)) == model.has("gate")


@pytest.mark.parametrize("name", sorted(ZOO))
def test_the_notes_of_a_model_are_those_that_concern_it(name: str, opened: Callable[[str], Model]) -> None:
    model = opened(name)
    dims, notes = model.dims, " ".join(model.info()["notes"])
    of_files = set(model.files.notes)
    assert set(model.info()["notes"]) - of_files <= set(notes_of(model.family)) <= set(ROWS[model.family.name]["notes"])
    for word, present in (
        ("QK-norm", model.family.qk_norm),
        ("clip_qkv", dims.clip),
        ("soft-caps", dims.logit_cap or dims.attention_cap),
        ("windows", dims.window),
        ("distance alone", model.family.alibi or model.has("relative")),
        ("experts", dims.experts > 1),
        ("latents", dims.kv_latent),
        ("RoPE scalings", False),
    ):
        assert (word in notes) == bool(present), word


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *line: str) -> str:
    monkeypatch.setattr(sys, "argv", ["zeropass", *line])
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    return capsys.readouterr().out


def flat(text: str) -> str:
    """Return a page as one line."""
    return " ".join(text.split())


def test_the_command_lists_the_families(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert json.loads(run(monkeypatch, capsys, "families", "--json")) == list(ROWS.values())
    shown = flat(run(monkeypatch, capsys, "families"))
    for row in ROWS.values():
        assert row["family"] in shown
        assert all(note in shown for note in row["notes"])
        assert all(name in shown for name in row["inside"])
    assert {"llava", "smolvlm"} <= set(ROWS["llama"]["inside"])
    assert "gemma3" in ROWS["gemma3"]["inside"]
    assert ROWS["bert"]["inside"] == []


def test_info_lists_the_features_of_a_model_and_no_others(
    opened: Callable[[str], Model], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mixtral = flat(run(monkeypatch, capsys, "info", opened("mixtral").name))
    for part in ("gated, experts", "experts used 2", "router", "each is read as if a token went through it"):
        assert part in mixtral
    assert "logit cap" not in mixtral
    gemma = flat(run(monkeypatch, capsys, "info", opened("gemma3").name))
    for part in ("RMSNorm around", "logit cap", "theta 500; kind linear; options: factor 4", "theta 50,", "its layers"):
        assert part in gemma
    assert "experts" not in gemma
    assert "None" not in mixtral + gemma


def test_usage_shows_what_the_command_prints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "usage.md").read_text(encoding="utf-8")
    lines = page.partition("$ zeropass families\n")[2].partition("```")[0].splitlines()
    printed = flat(run(monkeypatch, capsys, "families"))
    assert len(lines) > 8
    assert [line for line in lines if flat(line) not in printed and line != "…"] == []


def test_the_page_on_adding_a_family_quotes_the_source() -> None:
    """Every line of Python in docs/adding-a-family.md is a line of the source."""
    root = Path(__file__).parents[2]
    tests = (root / "tests" / "zoo.py", root / "tests" / "multimodal.py")
    files = (*(root / "src" / "zeropass" / "arch" / "families").glob("*.py"), *tests)
    source = {line.strip() for file in files for line in file.read_text(encoding="utf-8").splitlines()}
    page = (root / "docs" / "adding-a-family.md").read_text(encoding="utf-8")
    shown = [
        line.strip() for block in re.findall(r"^```python\n(.*?)^```", page, re.M | re.S) for line in block.splitlines()
    ]
    assert len(shown) > 40
    assert [line for line in shown if line not in source | {"…"}] == []


LONGEST = 40
"""The number of lines of a family, or of a layout with a name, that a reader can take in at once."""


def test_no_record_is_longer_than_a_reader_can_take_in() -> None:
    """What kin share is written once (families/parts.py), and `dataclasses.replace` states what differs."""
    lengths = {}
    for info in pkgutil.iter_modules(families.__path__, f"{families.__name__}."):
        module = importlib.import_module(info.name)
        for node in ast.parse(inspect.getsource(module)).body:
            names = [ast.unparse(target) for target in node.targets] if isinstance(node, ast.Assign) else []
            if any(isinstance(getattr(module, name, None), Family | Layout) for name in names):
                lengths[f"{info.name}.{names[0]}"] = (node.end_lineno or node.lineno) - node.lineno + 1
    assert {"BERT", "_MODERN_HF", "JAMBA"} <= {name.rpartition(".")[2] for name in lengths}
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}
