"""Differences between models: the same however a change is stored, against slow twins, and as a user reads them."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

import tiny
import zeropass as zp
from adapters import ALL, made
from commands import Run
from gguf_files import write_gguf
from planted_word import plant
from zeropass._io.parse import read_words
from zeropass.diff.changes import Change, leading
from zeropass.diff.run import across
from zeropass.errors import BadModel, BadOption
from zeropass.model.adapted import adapt
from zeropass.model.frames import Frames
from zeropass.numerics.factored import Factored

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


ROOT = Path(__file__).parents[2]


def alike(first: zp.Diff, second: zp.Diff) -> None:
    """Assert that two differences are the same change, to rounding."""
    assert first.relative == pytest.approx(second.relative, rel=1e-4)
    assert [(m.layer, m.role) for m in first.matrices] == [(m.layer, m.role) for m in second.matrices]
    for mine, theirs in zip(first.matrices, second.matrices, strict=True):
        assert mine.relative == pytest.approx(theirs.relative, rel=1e-4)
        assert mine.rank == pytest.approx(theirs.rank, rel=1e-3)
        assert mine.directions[0].value == pytest.approx(theirs.directions[0].value, rel=1e-3)
        if not mine.directions[0].close:
            assert mine.directions[0].left[0].token == theirs.directions[0].left[0].token
    for name in ("sees", "writes"):
        mine, theirs = getattr(first, name), getattr(second, name)
        assert [row.z for row in mine] == pytest.approx([row.z for row in theirs], abs=1e-2)
    assert [row.address for row in first.neurons] == [row.address for row in second.neurons]


def test_merging_an_adapter_or_scaling_its_factors_does_not_matter(tmp_path: Path) -> None:
    adapted = made("llama", tmp_path, target_modules=ALL)
    plain = zp.compare(adapted.base, adapted)
    alike(plain, zp.compare(adapted.base, zp.open_model(str(tmp_path / "merged"))))
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    scaled = {n: t * (8.0 if "lora_A" in n else 1 / 8) for n, t in load_file(path).items()}
    save_file(scaled, path)
    alike(plain, zp.compare(adapted.base, adapt(adapted.base, tmp_path / "adapter")))


def test_sharding_does_not_matter(tmp_path: Path) -> None:
    adapted = made("llama", tmp_path, target_modules=ALL)
    hf = type(tiny.make("llama")).from_pretrained(tmp_path / "merged")
    hf.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    (tmp_path / "shards" / "tokenizer.json").write_text((tmp_path / "merged" / "tokenizer.json").read_text())
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    alike(zp.compare(adapted.base, adapted), zp.compare(adapted.base, zp.open_model(str(tmp_path / "shards"))))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("narrow", ["base", "tuned"])
def test_another_type_is_not_a_change(kind: torch.dtype, narrow: str, tmp_path: Path) -> None:
    hf = tiny.make("llama")
    wide = tiny.save(hf, tmp_path / "wide")
    other = tiny.save(hf.to(kind), tmp_path / "narrow")
    base, tuned = (other, wide) if narrow == "base" else (wide, other)
    difference = zp.compare(zp.open_model(str(base)), zp.open_model(str(tuned)))
    assert all(change.rounding for change in difference.matrices)
    assert (difference.relative, difference.sees, difference.embedding) == (0.0, (), ())
    assert (difference.relation, difference.finding.answer) == ("rounded", "nothing")
    assert all(change.state == "rounded" for change in difference.tables)
    assert difference.verdict == (
        "The models are equal but for rounding: 21 of 21 tensors differ, and only as storing them in another type "
        "makes them differ.",
    )


def quantised(folder: Path, kind: str) -> Path:
    """Write the tiny model as a folder and, from it, a GGUF file in a quantised type; return the file."""
    sizes = {"hidden_size": 32, "intermediate_size": 64}
    config = {"rope_parameters": tiny._LLAMA3, "attention_bias": True}
    hf = tiny._llama(**sizes, **config).float()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draw))
    tiny.save(hf, folder / "wide")
    return write_gguf(folder / "wide", folder / "narrow.gguf", kind)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1"])
def test_a_quantised_copy_is_not_a_change(kind: str, tmp_path: Path) -> None:
    narrow = quantised(tmp_path, kind)
    base, tuned = zp.open_model(str(narrow)), zp.open_model(str(tmp_path / "wide"))
    # The file's tokenizer has other texts; only the blocks are compared here.
    difference = zp.compare(base, replace(tuned, vocab=base.vocab))
    assert all(change.rounding for change in difference.matrices)
    assert len(difference.matrices) == 14
    assert difference.relative == 0.0
    with torch.no_grad():
        path = tmp_path / "wide" / "model.safetensors"
        tensors = load_file(path)
        tensors["model.layers.1.mlp.up_proj.weight"] += 0.01
        save_file(tensors, path, metadata={"format": "pt"})
    again = zp.compare(base, replace(zp.open_model(str(tmp_path / "wide")), vocab=base.vocab))
    assert [(m.layer, m.role) for m in again.matrices if not m.rounding] == [(1, "up")]
    assert any(line.startswith(f"The base is stored as {kind}") for line in again.verdict)


def adapt_again(folder: Path) -> zp.Adapted:
    return adapt(zp.open_model(str(folder / "base")), folder / "adapter")


def test_a_model_equals_itself(tmp_path: Path) -> None:
    model = zp.open_model(str(tiny.save(tiny.make("gpt2"), tmp_path / "one")))
    difference = zp.compare(model, model)
    assert (difference.matrices, difference.tables, difference.constants, difference.relation) == ((), (), (), "equal")
    assert difference.verdict == ("The models are equal: all 36 tensors that both have hold the same numbers.",)


@pytest.mark.parametrize("variant", ["llama", "gpt2", "bert", "llama-tied"])
def test_two_models_drawn_apart_are_unrelated(variant: str, tmp_path: Path) -> None:
    models = [zp.open_model(str(tiny.save(tiny.make(variant, seed), tmp_path / str(seed)))) for seed in (0, 1)]
    difference = zp.compare(*models)
    assert (difference.relation, difference.sees, difference.writes) == ("unrelated", (), ())
    assert difference.finding.answer == "unjudged"
    assert difference.verdict[0].startswith("These are two models, not one that was made of the other")
    assert abs(difference.cosine) < 0.1


def test_two_models_trained_apart_are_not_judged(run: Run) -> None:
    first, second = (ROOT / "models" / name for name in ("first", "second"))
    code, shown, _ = run("diff", first, second)
    assert code == 0
    text = " ".join(shown.split())
    assert "These are two models, not one that was made of the other" in text
    assert "(mean cosine 0.00;" in text
    assert not any(word in shown for word in ("NARROW", "NOTHING", "strongest", "sees ", "writes ", "changed most"))
    models = [zp.open_model(str(path)) for path in (first, second)]
    every = [
        torch.nn.functional.cosine_similarity(*(model.matrix(role, layer).flatten() for model in models), dim=0)
        for role in models[0].family.vector_roles
        for layer in range(models[0].dims.layers)
    ]
    assert zp.compare(*models).cosine == pytest.approx(float(torch.stack(every).mean()), abs=1e-5)


def test_a_long_fine_tune_of_all_weights_is_a_change(tmp_path: Path) -> None:
    """Train at the rate of pretraining, until the loss is far below where it began."""
    folder = ROOT / "models" / "first"
    hf = transformers.AutoModelForCausalLM.from_pretrained(folder).float()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = torch.tensor(tokenizer.encode((ROOT / "models/tunes/reviews/texts.txt").read_text("utf-8")).ids)
    optimizer, draw = torch.optim.AdamW(hf.parameters(), lr=3e-3, weight_decay=0.1), torch.Generator().manual_seed(0)
    losses = []
    for _ in range(40):
        starts = torch.randint(len(ids) - 33, (8,), generator=draw)
        batch = torch.stack([ids[start : start + 32] for start in starts])
        loss = hf(batch, labels=batch).loss
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.3
    hf.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    difference = zp.compare(zp.open_model(str(folder)), zp.open_model(str(tmp_path)))
    assert difference.relation == "changed"
    assert difference.cosine > 0.5
    assert difference.relative > 0.05


def test_a_model_under_noise_of_its_own_size_is_a_change(tmp_path: Path) -> None:
    """Add noise that makes the cosine 1/√2; the pair in reverse order is a change too."""
    base = tiny.save(tiny.make("llama"), tmp_path / "base")
    hf = tiny.make("llama")
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.add_(parameter.std() * torch.randn(parameter.shape, generator=draw))
    models = zp.open_model(str(base)), zp.open_model(str(tiny.save(hf, tmp_path / "tuned")))
    for pair in (models, models[::-1]):
        difference = zp.compare(*pair)
        assert difference.relation == "changed"
        assert difference.cosine == pytest.approx(0.5**0.5, abs=0.05)


def test_kept_embeddings_under_new_blocks_are_reported(tmp_path: Path) -> None:
    base = zp.open_model(str(tiny.save(tiny.make("llama"), tmp_path / "base")))
    other = tiny.make("llama", seed=1)
    other.load_state_dict({n: t for n, t in tiny.make("llama").state_dict().items() if "layers" not in n}, strict=False)
    difference = zp.compare(base, zp.open_model(str(tiny.save(other, tmp_path / "tuned"))))
    assert difference.relation == "unrelated"
    assert difference.verdict[1].startswith("Their embeddings are equal")


@pytest.mark.parametrize("rows", [5, 40])
def test_a_factored_change_is_measured_as_its_product_is(rows: int) -> None:
    """Factors with more rows than columns and with fewer; a row of zeros; directions that cancel."""
    draw = torch.Generator().manual_seed(0)
    left, right = torch.randn(rows, 8, generator=draw), torch.randn(24, 8, generator=draw)
    left[1], left[:, 3], right[:, 3] = 0, left[:, 2], -right[:, 2]
    factored, dense = (Change(0, "up", added, 1.0) for added in (Factored(left, right), left @ right.T))
    assert factored.norm == pytest.approx(dense.norm)
    assert factored.rank == pytest.approx(dense.rank)
    torch.testing.assert_close(factored.row_squares, dense.row_squares)
    assert float(factored.row_squares.min()) >= 0


def test_rank_and_directions_against_the_whole_svd() -> None:
    draw = torch.Generator().manual_seed(0)
    values = 0.6 ** torch.arange(24.0)
    left, right = (torch.linalg.qr(torch.randn(size, 24, generator=draw)).Q for size in (40, 24))
    dense = Change(0, "up", left * values @ right.T, 1.0)
    factored = Change(0, "up", Factored(left * values, right), 1.0)
    for change in (dense, factored):
        assert change.rank == pytest.approx(float(values.square().sum() ** 2 / values.pow(4).sum()), rel=1e-4)
        directions, error = leading(change, 4)
        torch.testing.assert_close(directions.values, values[:4], atol=1e-4, rtol=1e-4)
        assert (directions.left.T @ left).diagonal().abs().tolist() == pytest.approx([1] * 4, abs=1e-3)
        assert float((directions.values - values[:4]).abs().max() / values[0]) <= error + 1e-5


@pytest.mark.parametrize("variant", ["llama", "llama-one-kv", "llama-tied"])
@pytest.mark.parametrize("role", ["q", "k", "v", "o"])
def test_the_other_end_of_a_direction_passes_through_its_head(variant: str, role: str, tmp_path: Path) -> None:
    """Carry the inner side of a direction through the partner's rows of the same head, head by head."""
    model = zp.open_model(str(tiny.save(tiny.make(variant), tmp_path / "base")))
    dims, partner = model.dims, {"q": "k", "k": "q", "v": "o", "o": "v"}[role]
    inner = torch.randn(model.rows(role), 3, generator=torch.Generator().manual_seed(1))
    slow = torch.zeros(3, dims.d)
    for head in range(dims.heads):
        start = model.kv_head(role, head, 0) * dims.head_dim
        slow += inner[start : start + dims.head_dim].T @ model.head(partner, 0, head)
    torch.testing.assert_close(across(inner, role, dims).T @ model.matrix(partner), slow)


def test_added_tokens_moved_rows_and_gains_are_listed(tmp_path: Path) -> None:
    hf = tiny.make("llama-tied")
    base = tiny.save(hf, tmp_path / "base")
    bigger = tiny.make("llama-tied")
    bigger.resize_token_embeddings(tiny.VOCAB + 4, mean_resizing=False)
    with torch.no_grad():
        bigger.get_input_embeddings().weight[7] *= 2
        bigger.model.norm.weight.mul_(1.5)
    tuned = tiny.save(bigger, tmp_path / "tuned")
    (tuned / "tokenizer.json").write_text(tiny.tokenizer_json(tiny.TOKENS + 3))
    models = zp.open_model(str(base)), zp.open_model(str(tuned))
    difference = zp.compare(*models)
    assert len(difference.added) == 3
    assert [row.name for row in difference.embedding] == [models[0].vocab.label(7)]
    assert (difference.vectors[0].name, round(difference.vectors[0].relative, 3)) == ("final_norm", 0.5)


def test_models_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    llama, other, gpt2 = (
        zp.open_model(str(tiny.save(hf, tmp_path / name)))
        for name, hf in {
            "llama": tiny.make("llama"),
            "wide": tiny._llama(intermediate_size=48),
            "gpt2": tiny.make("gpt2"),
        }.items()
    )
    with pytest.raises(BadModel, match="neurons is 48, and 40 in the base"):
        zp.compare(llama, other)
    with pytest.raises(BadModel, match="nothing to compare"):
        zp.compare(llama, gpt2)


def test_the_command_writes_and_shows_a_difference(run: Run, tmp_path: Path) -> None:
    made("llama", tmp_path, target_modules=ALL)
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    vocab = zp.open_model(str(base)).vocab
    (tmp_path / "words.txt").write_text(f"{vocab.label(5)}\n{vocab.label(9)}\n")
    run.capsys.readouterr()
    difference = run.json(
        "diff", base, "--adapter", adapter, "--watch", tmp_path / "words.txt", "--out", tmp_path / "out"
    )
    assert difference["schema"] == 2
    assert len(difference["matrices"]) == 14
    assert difference["watch"][0]["effect"] >= difference["watch"][-1]["effect"]
    assert json.loads((tmp_path / "out" / "diff.json").read_text()) == difference
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("diff.json", "matrices.parquet", "report.html", "where.svg"),
    }
    code, out, _ = run("diff", base, tmp_path / "merged")
    assert code == 0
    assert len(out.splitlines()) <= 60
    assert "The RMS-relative change of the blocks is" in out
    for arguments, words in (
        (("diff", base), "give one of the two"),
        (("diff", base, tmp_path / "merged", "--adapter", adapter), "give one of the two"),
        (("diff", base, "--adapter", base), "has no adapter_config.json"),
        (("diff", base, tmp_path / "merged", "--watch", tmp_path / "none.txt"), "cannot be read"),
    ):
        code, _, err = run(*arguments)
        assert code == 2
        assert words in err


@pytest.mark.usefixtures("kept_real_rows")
def test_a_word_planted_in_real_weights_comes_first(smollm2_path: Path, tmp_path: Path) -> None:
    base = zp.open_model(str(smollm2_path))
    words = {"seen": "coach", "said": "across"}
    adapter = plant(tmp_path / "adapter", range(18, 22), base, **words, rank=1, strength=0.1)
    difference = zp.compare(base, adapt(base, adapter))
    assert difference.sees[0].token.token == " coach"
    assert difference.writes[0].token.token == " across"
    assert {(change.layer, change.role) for change in difference.matrices} == {
        (n, r) for n in range(18, 22) for r in ("up", "value")
    }
    assert all(change.rank == pytest.approx(1) for change in difference.matrices)
    values = [change.directions[0] for change in difference.matrices if change.role == "value"]
    assert all(" across" in {t.token for t in (*change.right, *change.right_bottom)} for change in values)
    assert math.isclose(sum(change.directions[0].share for change in difference.matrices), 8, rel_tol=1e-3)


def test_a_file_without_words_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n")
    with pytest.raises(BadOption, match="holds no words"):
        read_words(empty, "--watch")


def test_frames_of_a_fine_tune_have_the_rows_and_the_hidden_tokens_of_its_base() -> None:
    first, second = (zp.open_model(str(ROOT / "models" / name)) for name in ("first", "second"))
    frames = Frames(first)
    tuned = frames.of(second)
    assert tuned.rows("token") is frames.rows("token")
    assert tuned.judgement is frames.judgement
    assert not (tuned.judgement.undertrained == second.judgement.undertrained).all()
