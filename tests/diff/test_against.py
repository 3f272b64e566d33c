"""Two changes of one model: equal, mirrored, planted ones told apart, and overlaps against slow twins."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import tiny
import zeropass as zp
from adapters import ALL, base_model, randomise, save
from commands import Run
from planted_word import plant
from zeropass.diff.against import contrast, overlap
from zeropass.diff.against_render import render_against
from zeropass.diff.against_results import Against, Contrast
from zeropass.errors import BadModel

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")

ROOT = Path(__file__).parents[2]
FIRST, REVIEWS = ROOT / "models" / "first", ROOT / "models" / "tunes" / "reviews"


@pytest.fixture(scope="module")
def tunes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a base, fine-tunes of it by several methods, and the first of these merged."""
    folder = tmp_path_factory.mktemp("tunes")
    save("llama", folder, peft.LoraConfig(r=4, lora_alpha=6, target_modules=ALL))
    configs: dict[str, peft.PeftConfig] = {
        "other": peft.LoraConfig(r=2, lora_alpha=3, target_modules=["q_proj", "down_proj"], modules_to_save=["norm"]),
        "scaled": peft.IA3Config(target_modules=["v_proj"], feedforward_modules=[]),
        "norms": peft.LNTuningConfig(target_modules=["norm", "post_attention_layernorm"]),
    }
    for name, config in configs.items():
        hf: Any = peft.get_peft_model(base_model("llama"), config)
        torch.manual_seed(len(name))
        randomise(hf)
        hf.save_pretrained(folder / name)
    return folder


def mirrored(result: Against) -> dict[str, Any]:
    """Return a comparison as JSON with the two changes exchanged."""

    def swap(part: Any) -> Any:
        pairs = (("first", "second"), ("first_directions", "second_directions"))
        return replace(
            part, **{a: getattr(part, b) for a, b in (*pairs, *((b, a) for a, b in pairs)) if hasattr(part, a)}
        )

    def swap_words(words: Contrast) -> Contrast:
        exchanged = swap(words)
        return replace(
            exchanged, **{name: tuple(map(swap, getattr(exchanged, name))) for name in ("first", "second", "both")}
        )

    return replace(
        swap(result),
        matrices=tuple(map(swap, result.matrices)),
        tensors=tuple(sorted(map(swap, result.tensors), key=str)),
        words=tuple(map(swap_words, result.words)),
    ).to_json()


def near(mine: Any, theirs: Any) -> None:
    """Assert that two JSON values are equal, numbers to rounding."""
    if isinstance(mine, dict):
        assert mine.keys() == theirs.keys()
        for key in mine:
            near(mine[key], theirs[key])
    elif isinstance(mine, list | tuple):
        assert len(mine) == len(theirs)
        for pair in zip(mine, theirs, strict=True):
            near(*pair)
    else:
        assert mine == (pytest.approx(theirs, rel=1e-3, abs=1e-4) if isinstance(theirs, float) else theirs)


PAIRS = (
    *(("adapter", "adapter"), ("merged", "merged"), ("adapter", "merged"), ("adapter", "other"), ("other", "merged")),
    *(("adapter", "scaled"), ("norms", "other"), ("scaled", "norms"), ("base", "norms"), ("other", "base")),
)


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_exchanging_the_changes_mirrors_the_answer(first: str, second: str, tunes: Path) -> None:
    base = zp.open_model(str(tunes / "base"))
    there, back = (zp.against(base, tunes / a, tunes / b) for a, b in ((first, second), (second, first)))
    near(
        json.loads(json.dumps(replace(there, tensors=tuple(sorted(there.tensors, key=str))).to_json())), mirrored(back)
    )
    same = first == second or {first, second} == {"adapter", "merged"}
    assert (there.relation == "different") != same
    if first == second:
        assert (there.relation, there.words) == ("equal", ())
        assert there.verdict == ("A and B are equal: they make one change.",)
        assert all(matrix.cosine == pytest.approx(1) for matrix in there.matrices)
        assert all(min(m.read or 0, m.write or 0) == pytest.approx(1) for m in there.matrices)
    changing = [name for name in (first, second) if name not in ("base", "norms")]
    assert (there.cosine is not None) == (len(changing) == 2)


def test_a_change_stored_otherwise_is_equal_but_for_rounding(tunes: Path, tmp_path: Path) -> None:
    scaled = Path(shutil.copytree(tunes / "adapter", tmp_path / "scaled"))
    path = scaled / "adapter_model.safetensors"
    save_file({n: t * (3.0 if "lora_A" in n else 1 / 3) for n, t in load_file(path).items()}, path)
    for other in (scaled, tunes / "merged"):
        result = zp.against(tunes / "base", tunes / "adapter", other)
        assert (result.relation, result.cosine) == ("rounded", pytest.approx(1))
        assert "equal but for rounding" in result.verdict[0]


def test_adapters_of_two_bases_are_compared_by_what_they_compute(tunes: Path, tmp_path: Path) -> None:
    """An adapter on another base changes the base as well as what it says."""
    other = tiny.make("llama")
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight.mul_(1.5)
    moved = zp.open_model(str(tiny.save(other, tmp_path / "moved")))
    base = zp.open_model(str(tunes / "base"))
    up = [m.relative for m in zp.compare(base, zp.adapt(moved, tunes / "other")).matrices if m.role == "up"]
    assert up == [pytest.approx(0.5)]
    result = zp.against(base, zp.adapt(moved, tunes / "other"), tunes / "other")
    assert [(m.layer, m.role, m.second) for m in result.matrices if m.role == "up"] == [(1, "up", 0.0)]
    assert result.relation == "different"


def test_a_model_that_was_trained_apart_is_no_change(tunes: Path) -> None:
    result = zp.against(FIRST, REVIEWS, ROOT / "models" / "second")
    assert (result.relation, result.words) == ("unrelated", ())
    assert result.verdict[0].startswith("B is no change of the base")
    with pytest.raises(BadModel, match="no fine-tune"):
        zp.against(FIRST, REVIEWS, tunes / "base")


def orthonormal(rows: int, k: int, seed: int) -> Tensor:
    return torch.linalg.qr(torch.randn(rows, k, generator=torch.Generator().manual_seed(seed))).Q


def test_the_overlap_is_that_of_principal_angles() -> None:
    first, second = orthonormal(20, 3, 0), orthonormal(20, 5, 1)
    cosines = torch.linalg.svdvals(first.T @ second)
    assert overlap(first, second) == (pytest.approx(float(cosines.square().mean())), 5 / 20)
    drawn = [overlap(first, orthonormal(20, 5, seed))[0] for seed in range(400)]
    assert sum(drawn) / len(drawn) == pytest.approx(5 / 20, abs=0.02)


def edited(source: Path, folder: Path, edit: Callable[[str, Tensor], Tensor]) -> Path:
    """Copy an adapter, with its tensors changed by name."""
    copy = Path(shutil.copytree(source, folder))
    path = copy / "adapter_model.safetensors"
    save_file({name: edit(name, tensor).contiguous() for name, tensor in load_file(path).items()}, path)
    return copy


def test_sides_are_what_is_read_and_what_is_written(tunes: Path, tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(5)
    same_reads = edited(
        tunes / "adapter",
        tmp_path / "reads",
        lambda name, tensor: tensor if "lora_A" in name else torch.randn(tensor.shape, generator=draw),
    )
    for matrix in zp.against(tunes / "base", tunes / "adapter", same_reads).matrices:
        assert matrix.first_directions is not None
        assert matrix.second_directions is not None
        assert matrix.read_null is not None
        assert matrix.write is not None
        if matrix.first_directions == matrix.second_directions == 4:
            assert matrix.read == pytest.approx(1, abs=1e-4)
        assert matrix.write < 0.9


def test_planted_words_stand_in_their_lists(tmp_path: Path) -> None:
    model = zp.open_model(str(FIRST))
    first, second = (
        plant(tmp_path / said, range(2, 4), model, seen="city", said=said, rank=1, strength=1)
        for said in ("person", "church")
    )
    sees, writes = zp.against(model, first, second).words
    seen, person, church = (model.vocab.label(model.vocab.find(word)[0]) for word in ("city", "person", "church"))
    assert (sees.side, sees.both[0].token.token) == ("sees", seen)
    assert sees.both[0].score > sees.both_null
    assert not [word for word in (*sees.first, *sees.second) if word.token.token == seen]
    assert (writes.first[0].token.token, writes.second[0].token.token) == (person, church)
    assert writes.first[0].score > writes.alone_null
    assert writes.second[0].score > writes.alone_null


def test_chance_is_what_one_pair_of_random_changes_in_twenty_reaches() -> None:
    random, beyond = torch.randn(16, 500, generator=torch.Generator().manual_seed(0)), torch.zeros(2)
    for seed in range(60):
        first, second = torch.randn(2, 500, generator=torch.Generator().manual_seed(1 + seed))
        scores = contrast(first, second, random)
        highest = torch.stack([scores.alone[0].max(), scores.alone[2].max()])
        beyond += highest > torch.tensor([scores.alone_null, scores.both_null])
    assert float(beyond.max()) <= 12  # 3 of 60 are expected
    first, second = torch.zeros(500), torch.zeros(500)
    first[[7, 8]], second[[8, 9]] = 9, 8
    scores = contrast(first, second, random)
    assert [int(alone.argmax()) for alone in scores.alone] == [7, 9, 8]
    assert (float(scores.alone[0][7]), float(scores.alone[0][8]), float(scores.alone[2][8])) == (9, 1, 8)


def test_the_command_shows_and_writes_it(run: Run, tunes: Path, tmp_path: Path) -> None:
    options = ("diff", tunes / "base", "--adapter", tunes / "adapter", "--against", tunes / "other")
    result = run.json(*options, "--out", tmp_path / "out")
    assert (result["schema"], result["relation"]) == (1, "different")
    assert json.loads((tmp_path / "out" / "against.json").read_text()) == result
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"against.json", "matrices.parquet"}
    code, out, _ = run(*options)
    assert code == 0
    assert "changed by both" in out
    assert "final_norm" in out
    code, out, _ = run("diff", tunes / "base", tunes / "merged", "--against", tunes / "adapter")
    assert (code, out.splitlines()[-1]) == (0, "A and B are equal but for rounding: they make one change.")
    for more, words in (
        (("--watch", tmp_path / "words.txt"), "--watch is about one change"),
        (("--build",), "--build is about one change"),
        (("--against", tmp_path / "none"), "none"),
    ):
        code, _, err = run(*options, *more)
        assert code == 2
        assert words in err


def test_a_comparison_is_a_table_a_figure_and_html(tunes: Path) -> None:
    result = zp.against(tunes / "base", tunes / "adapter", tunes / "other")
    assert len(result.to_pandas()) == 14
    assert sorted(result.panel().rows) == ["q", "value"]
    assert result._repr_html_().startswith("<table><caption>A: ")
    assert repr(result).startswith("Against(")
    assert render_against(result)
