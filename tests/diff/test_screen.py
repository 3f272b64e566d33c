"""Screening many changes of one base: each row against the comparison of one, what is kept, and what is shown."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from peft import IA3Config, LoraConfig
from safetensors.torch import load_file, save_file

import small
import zeropass as zp
from adapters import save
from commands import Run
from zeropass.diff.screen import _similarities, _Written
from zeropass.diff.screen_base import ScreenBase
from zeropass.diff.screen_folder import places_in
from zeropass.diff.screen_render import screening_page
from zeropass.diff.screen_results import Screened, Screening
from zeropass.errors import BadOption

pytestmark = [
    pytest.mark.usefixtures("cache", "one_thread"),
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"),
]

ROOT = Path(__file__).parents[2]
FIRST = ROOT / "models" / "first"


def lora(folder: Path, model: zp.Model, seed: int, words: tuple[str, ...] = ()) -> Path:
    """Write a LoRA of rank 1 on what the MLPs write: a random sum of their own rows, or what writes some words."""
    draw = torch.Generator().manual_seed(seed)
    rows = zp.Frames(model).rows("output.write")
    tensors: dict[str, Any] = {}
    for layer in range(model.dims.layers):
        values = model.matrix("value", layer)
        written = torch.randn(len(values), generator=draw) @ values
        written /= written.norm()
        for word in words:
            row = rows.matrix[model.vocab.find(word)[0]].double()
            direction = torch.linalg.solve(rows.moments.covariance, row).float()
            written += direction / direction.norm()
        name = f"base_model.model.model.layers.{layer}.mlp.down_proj"
        tensors[f"{name}.lora_A.weight"] = torch.randn(1, len(values), generator=draw)
        tensors[f"{name}.lora_B.weight"] = written[:, None].contiguous()
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 1, "lora_alpha": 0.1}))
    return folder


@pytest.fixture(scope="module")
def first() -> zp.Model:
    return zp.open_model(FIRST)


@pytest.fixture(scope="module")
def fleet(first: zp.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with eight random changes of a base, two that write one word and one that cannot be read."""
    folder = tmp_path_factory.mktemp("fleet")
    for seed in range(8):
        lora(folder / "random" / f"{seed}", first, seed)
    for seed in (8, 9):
        lora(folder / f"planted-{seed}", first, seed, (" spring",))
    shutil.copytree(folder / "planted-8", folder / "broken")
    (folder / "broken" / "adapter_model.safetensors").write_bytes(b"nonsense")
    return folder


def require_same(row: Screened, difference: zp.Diff) -> None:
    """Assert that a row says what the comparison of one change says."""
    assert row.finding == difference.finding
    assert row.relation == difference.relation
    assert row.relative == pytest.approx(difference.relative, rel=1e-9)
    listed = [tuple(replace(word, places=()) for word in side[:5]) for side in (difference.writes, difference.sees)]
    assert [row.writes, row.sees] == listed
    changed = {matrix.role for matrix in difference.matrices if not matrix.rounding}
    assert set(row.roles) == changed
    assert set(row.outside) <= {table.name for table in difference.tables if table.state != "rounded"}
    assert bool(row.outside) == any(table.state != "rounded" for table in difference.tables)


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "down_proj"]),
        LoraConfig(r=2, lora_alpha=6, use_dora=True, target_modules=["o_proj"], modules_to_save=["lm_head"]),
        LoraConfig(r=2, target_modules=["q_proj", "v_proj"]),
        IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    ],
    ids=["lora", "dora", "qv", "ia3"],
)
def test_a_row_says_what_the_comparison_of_one_says(config: Any, tmp_path: Path) -> None:
    save("llama", tmp_path, config)
    base = zp.open_model(tmp_path / "base")
    by_name = {row.name: row for row in zp.screen(base, tmp_path, progress=False)}
    require_same(by_name["adapter"], zp.compare(base, zp.adapt(base, tmp_path / "adapter")))
    require_same(by_name["merged"], zp.compare(base, tmp_path / "merged"))
    assert (by_name["adapter"].method, by_name["merged"].kind) == (config.peft_type.value, "model")
    assert by_name["adapter"].rank == getattr(config, "r", 0)
    assert by_name["base"].relation == "equal"


@pytest.mark.parametrize("other", ["rounded", "second", "moved"])
def test_a_row_of_a_whole_model_says_what_the_comparison_says(other: str, tmp_path: Path) -> None:
    base = small.llama(tmp_path / "base")
    tuned = small.tuned(base, tmp_path / "tuned") if other == "moved" else small.llama(tmp_path / "tuned", seed=1)
    if other == "rounded":
        tensors = {name: tensor.bfloat16() for name, tensor in load_file(base / "model.safetensors").items()}
        save_file(tensors, tuned / "model.safetensors")
    (row,) = zp.screen(base, [tuned], progress=False)
    require_same(row, zp.compare(base, tuned))
    assert row.relation == {"rounded": "rounded", "second": "unrelated", "moved": "changed"}[other]


def test_the_shipped_adapter_has_the_row_of_its_comparison(first: zp.Model) -> None:
    (row,) = zp.screen(first, [ROOT / "models" / "tunes" / "reviews"], progress=False)
    require_same(row, zp.compare(first, zp.adapt(first, ROOT / "models" / "tunes" / "reviews")))
    assert row.outside == ("classifier",)


def test_planted_changes_come_first_and_are_nearest_to_each_other(first: zp.Model, fleet: Path) -> None:
    screening = zp.screen(first, fleet, progress=False)
    planted, rest = screening.rows[:2], screening.rows[2:]
    assert {row.name for row in planted} == {"planted-8", "planted-9"}
    for row in planted:
        assert row.finding.answer == "narrow"
        assert row.writes[0].token.token == " spring"
        assert row.nearest[0].name == ({"planted-8", "planted-9"} - {row.name}).pop()
        assert row.usual is not None
        assert row.nearest[0].similarity > row.usual + 0.3
        assert [other.alike for other in row.nearest] == [True, False, False]
    assert rest[0].name == "broken"
    assert rest[0].answer == "unreadable"
    assert all(row.finding.answer == "nothing" for row in rest[1:])
    assert screening.counts() == {"narrow": 2, "unreadable": 1, "nothing": 8}


def test_similarities_are_cosines() -> None:
    draw = np.random.default_rng(0)
    tables = np.zeros((9, 40))
    written = []
    for row in tables:
        ids = draw.choice(40, 12, replace=False)
        row[ids] = draw.random(12)
        written.append(_Written(tuple(ids.tolist()), tuple(row[ids].tolist())))
    unit = tables / np.linalg.norm(tables, axis=1, keepdims=True)
    assert np.stack(list(_similarities(written))) == pytest.approx(unit @ unit.T)


def counting(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that gets the name of each change that is measured from now on."""
    names: list[str] = []
    measured = ScreenBase.measured

    def counted(self: ScreenBase, tuned: zp.Model, row: Screened) -> Any:
        names.append(row.name)
        return measured(self, tuned, row)

    monkeypatch.setattr(ScreenBase, "measured", counted)
    return names


def test_a_stopped_screening_continues_and_changes_are_measured_again(
    first: zp.Model, fleet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes, out = tmp_path / "fleet", tmp_path / "out"
    shutil.copytree(fleet, changes)
    names = counting(monkeypatch)

    def stop(stage: str, done: int, _total: int) -> None:
        if (stage, done) == ("screening", 4):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        zp.screen(first, changes, out=out, progress=stop)
    assert len(names) == 3  # and the broken one
    whole = zp.screen(first, changes, out=out, progress=False)
    assert sorted(names) == sorted(row.name for row in whole if not row.error)
    names.clear()
    again = zp.screen(first, changes, out=out, progress=False)
    assert (again, names) == (whole, [])
    shutil.rmtree(changes / "planted-8")
    lora(changes / "planted-8", first, 11, (" report",))
    part = next(path for path in (out / "parts").iterdir() if '"random/3"' in path.read_text())
    part.write_text(part.read_text().replace('"relative":', '"relatif":'))
    shutil.move(changes / "random" / "5", changes / "moved")
    rows = {row.name: row for row in zp.screen(first, changes, out=out, progress=False)}
    assert sorted(names) == ["planted-8", "random/3"]
    assert rows["planted-8"].writes[0].token.token == " report"
    assert rows["moved"].finding == next(row.finding for row in whole if row.name == "random/5")


def test_a_folder_a_list_and_a_sequence_name_changes(tmp_path: Path) -> None:
    for name in ("b/adapter", "a", "a/inner"):
        (tmp_path / "all" / name).mkdir(parents=True, exist_ok=True)
    (tmp_path / "all" / "b" / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "all" / "a" / "config.json").write_text("{}")
    (tmp_path / "all" / "a" / "inner" / "config.json").write_text("{}")
    assert [place.name for place in places_in(tmp_path / "all")] == ["a", "a/inner", "b/adapter"]
    assert [place.name for place in places_in(tmp_path / "all" / "a")] == ["a", "inner"]
    listed = tmp_path / "list.txt"
    listed.write_text("# mine\nx/y\n\n some where \nx/y\n")
    assert [place.path for place in places_in(listed)] == ["x/y", "some where"]
    assert [place.path for place in places_in([Path("x"), "y"])] == ["x", "y"]
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "none"):
        with pytest.raises(BadOption, match="adapter"):
            places_in(path)


def test_no_text_of_a_file_is_markup_on_the_page(tmp_path: Path) -> None:
    base = small.llama(tmp_path / "base", hostile=small.HOSTILE)
    changes = tmp_path / "<script>alert(1)<"
    small.tuned(base, changes / "img src=x onerror=alert(1)>")
    (changes / "<b>").mkdir()
    (changes / "<b>" / "adapter_config.json").write_text('{"peft_type": "<i>"}')
    screening = zp.screen(base, changes, progress=False)
    page = screening_page(screening)
    for tag in ("<script", "<img", "<b>", "<i>", "\x1b", "\x00"):
        assert tag not in page
    assert "&lt;b&gt;" in page
    assert "default-src 'none'" in page
    names = (f"<{text}>" for text in small.HOSTILE)  # the words of a list may be any of these
    assert not any(name in page for name in names)


def test_the_command_writes_a_table_and_fails_on_what_it_is_told_to(
    run: Run, first: zp.Model, fleet: Path, tmp_path: Path
) -> None:
    command = ("screen", fleet, "--base", FIRST, "--out", tmp_path / "out")
    code, out, err = run(*command)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].endswith("11 changes: 2 narrow, 1 unreadable, 8 nothing.")
    assert "16 random changes of this base" in " ".join(out.split())
    assert sum(line.startswith("narrow") for line in lines) == 2
    assert any(line.startswith("broken: ") and "broken/adapter_model.safetensors" in line for line in lines)
    result = run.json(*command)
    assert [row["name"] for row in result["rows"]][2] == "broken"
    assert json.loads((tmp_path / "out" / "screening.json").read_text()) == result
    table = pq.read_table(tmp_path / "out" / "screening.parquet").to_pylist()
    screening = zp.screen(first, fleet, out=tmp_path / "out", progress=False)
    assert table == list(screening.table_rows())
    for fail_on, kept, failing in (("narrow", "random", 0), ("narrow", ".", 1), ("topic", "planted-8", 1)):
        arguments = ("screen", fleet / kept, "--base", FIRST, "--out", tmp_path / f"{fail_on} {kept}")
        assert run(*arguments, "--fail-on", fail_on)[0] == failing
    assert run("screen", fleet / "broken", "--base", FIRST, "--out", tmp_path / "b", "--fail-on", "narrow")[0] == 1
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").touch()
    code, _, err = run("screen", fleet, "--base", FIRST, "--out", tmp_path / "taken")
    assert code == 2
    assert "does not hold a screening" in err


# --- Thresholds from benign changes -----------------------------------------------------------------------------------


def test_thresholds_are_three_deviations_above_benign_changes(first: zp.Model, fleet: Path) -> None:
    screening = zp.screen(first, fleet / "random", progress=False)
    limits = zp.thresholds_of(screening)
    excesses = np.array([row.finding.excess for row in screening])
    assert limits.excess == pytest.approx(excesses.mean() + 3 * excesses.std(ddof=1))
    assert limits.lead == pytest.approx(
        np.mean([c.lead for c in limits.changes]) + 3 * np.std([c.lead for c in limits.changes], ddof=1)
    )
    finding = zp.screen(first, [fleet / "planted-8"], thresholds=limits, progress=False)[0].finding
    assert finding.benign == 8
    assert finding.threshold == pytest.approx(max(limits.excess, finding.chance))
    assert finding.answer == "narrow"
    with pytest.raises(BadOption, match="at least 8"):
        zp.thresholds_of(Screening(base=screening.base, rows=screening.rows[:7] + screening.rows[:1], method={}))


def test_thresholds_are_never_below_what_chance_reaches(first: zp.Model, fleet: Path, tmp_path: Path) -> None:
    path = tmp_path / "thresholds.json"
    changes = [{"name": str(n), "sha256": str(n), "excess": 0.1, "lead": 0.05} for n in range(8)]
    path.write_text(json.dumps({"schema": 1, "base": first.fingerprint, "changes": changes}))
    difference = zp.compare(first, zp.adapt(first, fleet / "random" / "3"), thresholds=path, progress=False)
    assert difference.finding.threshold == difference.finding.chance
    assert 0.05 < difference.finding.lead_threshold < difference.finding.chance
    assert "its 8 benign ones reach less" in " ".join(difference.verdict)


def test_what_is_kept_of_benign_changes_is_what_diff_and_screen_rest_on(run: Run, fleet: Path, tmp_path: Path) -> None:
    diff = ("diff", FIRST, "--adapter", fleet / "planted-9")

    def shown(*arguments: object) -> str:
        return " ".join(run(*arguments)[1].split())

    assert "16 random changes of this base" in shown(*diff)
    code, _, err = run("screen", fleet / "planted-8", "--base", FIRST, "--out", tmp_path / "few", "--benign")
    assert code == 2
    assert "there are 1" in err
    code, out, _ = run("screen", fleet / "random", "--base", FIRST, "--out", tmp_path / "benign", "--benign")
    assert code == 0
    assert "for this base, from now on" in out
    sentence = "3 deviations above the mean of 8 benign changes of this base"
    assert sentence in shown(*diff)
    assert sentence in shown("screen", fleet / "planted-8", "--base", FIRST, "--out", tmp_path / "out")
    assert sentence not in shown(*diff, "--thresholds", "none")
    run("cache", "--clear", "thresholds")
    assert sentence not in shown(*diff)
    assert sentence in shown(*diff, "--thresholds", tmp_path / "benign" / "thresholds.json")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[]", "holds no thresholds"),
        ("{", "holds no thresholds"),
        ('{"schema": 1, "base": "x"}', "holds no thresholds"),
        ('{"schema": 2, "base": "x", "changes": []}', "schema 1"),
        ('{"schema": 1, "base": "x", "changes": []}', "at least 8"),
        (
            json.dumps({"schema": 1, "base": "x", "changes": [{"name": "", "sha256": "", "excess": 1, "lead": 1}] * 8}),
            "another base",
        ),
    ],
)
def test_thresholds_that_do_not_fit_are_refused(content: str, words: str, first: zp.Model, tmp_path: Path) -> None:
    path = tmp_path / "thresholds.json"
    path.write_text(content)
    with pytest.raises(BadOption, match=words):
        zp.compare(first, first, thresholds=path, progress=False)
