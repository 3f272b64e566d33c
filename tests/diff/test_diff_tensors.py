"""Differences that miss nothing: every canonical tensor of every family, changed alone and by a little."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import tiny
import zeropass as zp
from adapters import ALL, made
from commands import Run
from gguf_files import write_gguf
from zeropass.arch.layout import INNER_NORMS, KEYS_AS_VALUES, Stored, expand, full_name, names_of, role_of, shares_of
from zeropass.arch.rows import row_index
from zeropass.arch.wrappers import tower_name
from zeropass.checkpoints.base import Float32, TensorSource
from zeropass.diff.changes import Comparison
from zeropass.diff.rounding import moved_rows
from zeropass.diff.tensor_rows import BLOCK, TensorRows, gathered, rows_of
from zeropass.diff.tensors import tensor_changes, unread_changes
from zeropass.errors import BadModel
from zeropass.model.adapted import adapt
from zeropass.model.frames import Frames
from zeropass.tokens.shown import shown_text
from zoo import ZOO, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")

LITTLE = 1e-3


@dataclass(frozen=True)
class Held:
    """A source in memory: the tensors of a file, read once."""

    source: TensorSource
    tensors: dict[str, Float32]

    @property
    def path(self) -> str:
        return self.source.path

    def names(self) -> list[str]:
        return list(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name].shape

    def dtype(self, name: str) -> str:
        return self.source.dtype(name)

    def rows(
        self,
        name: str,
        start: int = 0,
        stop: int | None = None,
        columns: slice | None = None,
        spare: Any = None,  # every number here is finite
    ) -> Float32:
        part = self.tensors[name][start:stop] if self.shape(name) else self.tensors[name]
        return np.array(part if columns is None else part[:, columns])


def in_memory(model: zp.Model) -> zp.Model:
    """Return the model with its tensors read into memory."""
    source = model.source
    return replace(model, files=replace(model.files, source=Held(source, {n: source.rows(n) for n in source.names()})))


def nudged(model: zp.Model, name: str, at: tuple[int, ...], by: float = LITTLE) -> zp.Model:
    """Return the model with one number of one stored tensor changed."""
    assert isinstance(model.source, Held)
    changed = model.source.tensors[name].copy()
    changed[at] += by
    return replace(model, files=replace(model.files, source=Held(model.source, model.source.tensors | {name: changed})))


def records(model: zp.Model) -> dict[str, Stored]:
    """Return what is stored under every canonical name that the model's layout knows."""
    return dict(model.layout.tensors) | {what: stored for what, (stored, _) in model.layout.extra.items()}


def places(model: zp.Model) -> Iterator[tuple[str, int | None, str, tuple[int, ...]]]:
    """Yield canonical name, layer (the last, or None), stored name and index of one number of each canonical tensor."""
    for what, stored in records(model).items():
        layers = [n for n in range(model.dims.layers) if names_of(stored, n, model.dims)]
        if not layers:
            continue
        layer = layers[-1] if "{layer}" in stored.name else None
        name = full_name(names_of(stored, layer or 0, model.dims)[-1], model.prefix)
        if name not in model.source.names() or (what == "unembedding" and model.logit_table == "embedding"):
            continue
        index = row_index(stored, what, model.dims)
        row = 0 if index is None else int(index[-1])
        axes = len(model.source.shape(name))
        yield what, layer, name, (row,)[:axes] if axes < 2 else (0, row) if stored.transpose else (row, 0)


def opened(name: str, folder: Path) -> zp.Model:
    stack = ZOO[name][2].get("stack", "")
    return in_memory(zp.open_model(f"{tiny.save(tiny_model(name), folder)}{'#' + stack if stack else ''}"))


HEADS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "bert-classifier": (transformers.BertForSequenceClassification, {"num_labels": 3}),
    "bert-answers": (transformers.BertForQuestionAnswering, {}),
    "bert-pretraining": (transformers.BertForPreTraining, {"tie_word_embeddings": False}),
}


def with_head(name: str, folder: Path) -> zp.Model:
    task, more = HEADS[name]
    hf = tiny._bert(task, **more).float()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draw))
    return in_memory(zp.open_model(str(tiny.save(hf, folder))))


def test_tensors_that_an_adapter_leaves_alone_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    base = zp.open_model("models/first")
    _, every = tensor_changes(Comparison(base, base))
    monkeypatch.setattr(TensorRows, "read", None)
    differing, compared = tensor_changes(Comparison(base, zp.adapt(base, "models/tunes/reviews")))
    assert ([change.what for change in differing], compared) == (["classifier"], every)


@pytest.mark.parametrize("name", sorted({*ZOO, *HEADS} - {"gemma4-moe"}))  # refused: tests/model/test_gemma4.py
def test_every_tensor_of_every_family_is_compared(name: str, tmp_path: Path) -> None:
    """Move one number of one canonical tensor: only tensors that share the number differ."""
    base = opened(name, tmp_path) if name in ZOO else with_head(name, tmp_path)
    assert tensor_changes(Comparison(base, base))[0] == ()
    for what, layer, stored, at in places(base):
        pair = Comparison(base, nudged(base, stored, at))
        differing = {(change.what, change.layer) for change in tensor_changes(pair)[0] if change.state == "changed"}
        assert all(change.moved == 1 for change in tensor_changes(pair)[0])
        layers = (0,) if layer is None else (layer,)
        differing |= {(role, n) for n in layers for role in base.matrices(n) if pair.change(role, n).norm}
        role = "mixer_in_bias" if what in shares_of("mixer_in_bias") else role_of(what)
        shared = {
            other
            for other, _, tensor, _ in places(base)
            if tensor == stored and ("norm" in what or (base.dims.key_valued and what in (KEYS_AS_VALUES, "k")))
        }
        shared = {role_of(other) for other in shared} if base.dims.key_valued else shared
        place = layer if role not in pair.roles else layer or 0
        parts = {other: (*base.layout.factors_of(other), base.layout.inner_norm(other)) for other in pair.roles}
        products = {other for other, names in parts.items() if what in names}
        of_products = products | ({what} if "latent" in what or what in INNER_NORMS.values() else set())
        alone = role if role in (*pair.roles, "mixer_in_bias") else what
        expected = {(other, place) for other in of_products or shared or {alone}}
        assert differing == expected, f"{name}: {what} at {layer}"
    for stored in sorted(set(base.source.names()) - set(every_stored(base)))[:4]:
        pair = Comparison(base, nudged(base, stored, (0,) * len(base.source.shape(stored))))
        name = tower_name(base.wrapper, stored) or stored.removeprefix(base.prefix)
        assert [change.name for change in unread_changes(pair)] == [name]


def every_stored(model: zp.Model) -> Iterator[str]:
    """Yield the stored names of all tensors that the record reads."""
    for stored in records(model).values():
        yield from (full_name(name, model.prefix) for name in expand(stored, model.dims))


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3_moe", "t5-decoder", "bert-classifier", "bert-pretraining"])
def test_the_verdict_names_the_tensor_that_changed(name: str, tmp_path: Path) -> None:
    base = opened(name, tmp_path) if name in ZOO else with_head(name, tmp_path)
    frames = Frames(base)
    for what, layer, stored, at in places(base):
        difference = zp.compare(base, nudged(base, stored, at, 0.1), frames=frames)
        assert difference.relation == "changed"
        role = role_of(what)
        if role in base.family.vector_roles:
            assert {(change.layer, change.role) for change in difference.matrices} == {(layer, role)}
            assert f"in 1 layers and in {role} alone; most in layers {layer}" in " ".join(difference.verdict)
        else:
            assert [(change.what, change.layer, change.moved) for change in difference.tables] == [(what, layer, 1)]
            assert difference.verdict[0] == "No matrix of a block changed."
            assert what in difference.verdict[1], difference.verdict
            if layer is not None:
                assert f"at layer {layer} (" in difference.verdict[1]
        json.dumps(difference.to_json(), allow_nan=False)


def test_rows_of_tokens_are_named_by_their_words(tmp_path: Path) -> None:
    base = zp.open_model(str(tiny.save(tiny.make("llama"), tmp_path / "base")))
    path = tmp_path / "tuned"
    tiny.save(tiny.make("llama"), path)
    tensors = load_file(path / "model.safetensors")
    tensors["lm_head.weight"][7] *= 2
    tensors["lm_head.weight"][9] *= 1.5
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    difference = zp.compare(base, zp.open_model(str(path)))
    labels = [base.vocab.label(i) for i in (7, 9)]
    assert [(row.name, round(row.relative, 4)) for row in difference.unembedding] == [
        (labels[0], 1.0),
        (labels[1], 0.5),
    ]
    assert difference.embedding == ()
    (table,) = difference.tables
    norms = load_file(tmp_path / "base" / "model.safetensors")["lm_head.weight"].double().norm(dim=1)
    expected = (norms[7] ** 2 + (0.5 * norms[9]) ** 2).sqrt() / norms.square().sum().sqrt()
    assert table.relative == pytest.approx(float(expected), rel=1e-5)
    shown = list(map(shown_text, labels))
    assert f"2 of {tiny.VOCAB} rows moved, most {shown[0]} (100.00%), {shown[1]} (50.00%)." in difference.verdict[1]
    assert difference.finding.answer == "unjudged"


@pytest.mark.parametrize("untied", ["base", "tuned"])
def test_a_tied_model_is_compared_with_an_untied_one(untied: str, tmp_path: Path) -> None:
    """Compare heads: equal if the untied one is a copy of the other's embedding, else the head moved."""
    hf = tiny.make("llama-tied")
    tied = zp.open_model(str(tiny.save(hf, tmp_path / "tied")))
    head = hf.model.embed_tokens.weight.detach().clone()
    tiny.save(hf, tmp_path / "copy")
    tiny.edit(tmp_path / "copy", {"tie_word_embeddings": False}, {"lm_head.weight": head.clone()})
    head[3] += 1
    tiny.save(hf, tmp_path / "other")
    tiny.edit(tmp_path / "other", {"tie_word_embeddings": False}, {"lm_head.weight": head})
    copy, other = (zp.open_model(str(tmp_path / name)) for name in ("copy", "other"))
    pairs = [(tied, model) if untied == "tuned" else (model, tied) for model in (copy, other)]
    assert zp.compare(*pairs[0]).relation == "equal"
    difference = zp.compare(*pairs[1])
    assert [(table.what, table.moved) for table in difference.tables] == [("unembedding", 1)]
    assert "unembedding" in difference.verdict[1]


@given(seed=st.integers(0, 2**20), kind=st.sampled_from(["F16", "BF16", "F32"]), rows=st.integers(1, 20))
@settings(max_examples=12)
def test_rows_that_moved_are_distinguished_from_rounded_ones(
    tmp_path_factory: pytest.TempPathFactory, seed: int, kind: str, rows: int
) -> None:
    """Move some rows of a table and store all of them in another type: exactly the moved ones count."""
    folder = tmp_path_factory.mktemp("rounded")
    tiny.save(tiny.make("llama"), folder / "base")
    tiny.save(tiny.make("llama"), folder / "tuned")
    draw = torch.Generator().manual_seed(seed)
    moved = torch.randperm(tiny.VOCAB, generator=draw)[:rows]
    tensors = load_file(folder / "tuned" / "model.safetensors")
    tensors["model.embed_tokens.weight"][moved] += 0.3 * torch.randn(rows, 24, generator=draw)
    types = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
    tensors = {name: tensor.to(types[kind]) for name, tensor in tensors.items()}
    save_file(tensors, folder / "tuned" / "model.safetensors", metadata={"format": "pt"})
    difference = tensor_changes(Comparison(*(zp.open_model(str(folder / name)) for name in ("base", "tuned"))))[0]
    table = next(change for change in difference if change.what == "embedding")
    assert (table.state, table.moved) == ("changed", rows)
    assert {change.state for change in difference if change is not table} <= {"rounded"}


class InType:
    """A tensor that a file keeps in bfloat16 or in float32."""

    turned = False

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def as_stored(self, rows: torch.Tensor) -> torch.Tensor:
        return rows.bfloat16().float() if self.kind == "BF16" else rows


@pytest.mark.parametrize("kind", ["BF16", "F32"])
def test_one_number_of_a_long_row_is_no_rounding(kind: str) -> None:
    """Plant one number among thousands of rounded ones; then move many numbers by a little more than rounding."""
    old = torch.randn(10, 8192, generator=torch.Generator().manual_seed(0))
    sides: Any = (InType("F32"), InType(kind))
    new = sides[1].as_stored(old.clone())
    moved, rounded = moved_rows(*sides, old, new)
    assert (bool(moved.any()), rounded) == (False, kind == "BF16")
    new[3, 5] += 1
    assert moved_rows(*sides, old, new)[0].nonzero().tolist() == [[3]]
    new = sides[1].as_stored(old + 2e-3 * torch.randn(old.shape, generator=torch.Generator().manual_seed(1)))
    assert moved_rows(*sides, old, new)[0].all()


def test_one_number_of_a_narrow_file_is_a_change(tmp_path: Path) -> None:
    """Change one number of each of two tensors: nearly all agree, as after rounding, but nothing was rounded."""
    hf = tiny.make("llama").to(torch.float16)
    base = zp.open_model(str(tiny.save(hf, tmp_path / "base")))
    with torch.no_grad():
        hf.lm_head.weight[5, 3] += 1
        hf.model.layers[1].mlp.up_proj.weight[2, 1] += 1
    difference = zp.compare(base, zp.open_model(str(tiny.save(hf, tmp_path / "tuned"))))
    assert [(change.layer, change.role, change.rounding) for change in difference.matrices] == [(1, "up", False)]
    assert [(change.what, change.moved) for change in difference.tables] == [("unembedding", 1)]


def test_a_large_table_is_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that no read is longer than a block, and that tokens with other ids are found all the same."""
    monkeypatch.setattr("zeropass.diff.tensor_rows.BLOCK", 8)
    monkeypatch.setattr("zeropass.diff.tensors.BLOCK", 8)
    base = zp.open_model(str(tiny.save(tiny.make("llama"), tmp_path / "base")))
    read: list[int] = []

    class Watched(Held):
        def rows(self, name: str, *args: Any, **kwargs: Any) -> Float32:
            part = super().rows(name, *args, **kwargs)
            if name in ("lm_head.weight", "model.embed_tokens.weight"):
                read.append(len(part))
            return part

    tuned = nudged(in_memory(base), "lm_head.weight", (40, 0))
    assert isinstance(tuned.source, Held)
    tuned = replace(tuned, files=replace(tuned.files, source=Watched(base.source, tuned.source.tensors)))
    (change,) = tensor_changes(Comparison(base, tuned))[0]
    assert (change.what, change.moved, change.most[0].name) == ("unembedding", 1, base.vocab.label(40))
    assert max(read) <= 8
    table = rows_of(base, "embedding", 0)
    assert table is not None
    ids = torch.randperm(tiny.VOCAB, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(gathered(table, ids), base.embedding[ids])
    assert BLOCK == 4096


def test_a_model_in_another_format_is_equal(tmp_path: Path) -> None:
    tiny.save(tiny.make("llama-rope3"), tmp_path / "folder")
    file = zp.open_model(str(write_gguf(tmp_path / "folder", tmp_path / "model.gguf")))
    folder = zp.open_model(str(tmp_path / "folder"))
    folder = replace(folder, vocab=file.vocab)  # the file's tokenizer has other texts
    difference = zp.compare(folder, file)
    assert (difference.relation, difference.constants) == ("equal", ())
    other = replace(file, dims=replace(file.dims, rope=replace(file.dims.rope, theta=5.0)))  # type: ignore[type-var]
    difference = zp.compare(folder, other)
    assert [constant.name for constant in difference.constants] == ["rope"]
    assert difference.relation == "changed"


@pytest.mark.parametrize("key", ["short_factor", "long_factor", "attention_factor", "original"])
def test_every_part_of_longrope_is_compared(key: str, tmp_path: Path) -> None:
    rope = {"rope_type": "longrope", "rope_theta": 500.0, "short_factor": [1.5] * 4, "long_factor": [4.0] * 4}
    tiny.save(tiny.make("llama"), tmp_path / "base")
    shutil.copytree(tmp_path / "base", tmp_path / "tuned")
    lengths = {"original_max_position_embeddings": 64, "max_position_embeddings": 512}
    tiny.edit(tmp_path / "base", {**lengths, "rope_parameters": rope | {"attention_factor": 1.25}})
    other = {"short_factor": [2.0] * 4, "long_factor": [5.0] * 4, "attention_factor": 1.5}
    changed = rope | {"attention_factor": 1.25, **{name: value for name, value in other.items() if name == key}}
    lengths |= {"original_max_position_embeddings": 48} if key == "original" else {}
    tiny.edit(tmp_path / "tuned", {**lengths, "rope_parameters": changed})
    base, tuned = (zp.open_model(str(tmp_path / name)) for name in ("base", "tuned"))
    assert zp.compare(base, base).constants == ()
    (constant,) = zp.compare(base, tuned).constants
    assert constant.name == "rope" and constant.before != constant.after


def test_equal_numbers_under_another_configuration_are_a_change(tmp_path: Path) -> None:
    base = zp.open_model(str(tiny.save(tiny.make("llama"), tmp_path / "base")))
    tiny.save(tiny.make("llama"), tmp_path / "tuned")
    tiny.edit(tmp_path / "tuned", {"rms_norm_eps": 1e-5, "hidden_act": "gelu"})
    difference = zp.compare(base, zp.open_model(str(tmp_path / "tuned")))
    assert difference.relation == "changed"
    assert difference.verdict[1] == (
        "Its configuration differs: eps is 1e-05, and 0.01 in the base; activation is gelu, and silu in the base."
    )


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_a_change_of_the_other_stack_is_named(stack: str, tmp_path: Path) -> None:
    name = f"t5-{stack}"
    base = opened(name, tmp_path / "base")
    tiny.save(tiny_model(name), tmp_path / "tuned")
    other = "decoder" if stack == "encoder" else "encoder"
    changed = f"{other}.block.1.layer.0.SelfAttention.q.weight"
    tensors = load_file(tmp_path / "tuned" / "model.safetensors")
    tensors[changed][0, 0] += 1
    save_file(tensors, tmp_path / "tuned" / "model.safetensors", metadata={"format": "pt"})
    difference = zp.compare(base, zp.open_model(f"{tmp_path / 'tuned'}#{stack}"))
    assert difference.relation == "changed"
    assert f"What zeropass does not read differs too: {changed}." in difference.verdict


def test_tensors_that_only_one_model_has_are_named(tmp_path: Path) -> None:
    """Compare a model with a pooler and one with a head for answers in its place; the blocks are the same."""
    base = zp.open_model(str(tiny.save(tiny.make("bert"), tmp_path / "base")))
    tiny.save(tiny.make("bert"), tmp_path / "tuned")
    tensors = dict.fromkeys(("pooler.dense.weight", "pooler.dense.bias"))
    tiny.edit(
        tmp_path / "tuned",
        tensors={**tensors, "qa_outputs.weight": torch.ones(2, 24), "classifier.bias": torch.ones(3)},
    )
    difference = zp.compare(base, zp.open_model(str(tmp_path / "tuned")))
    states = {change.what: (change.state, change.read) for change in difference.tables}
    assert states == {
        "qa": ("new", True),
        "pooler": ("gone", True),
        "pooler_bias": ("gone", True),
        "classifier.bias": ("new", False),
    }
    assert difference.verdict == (
        "No matrix of a block changed.",
        "It has qa, which the base lacks.",
        "It lacks pooler_bias, pooler, which the base has.",
        "Only in its file, and not read: classifier.bias.",
    )


def test_an_adapter_that_changes_nothing_is_equal(tmp_path: Path) -> None:
    adapted = made("llama", tmp_path, target_modules=ALL)
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({n: t * 0 if "lora_B" in n else t for n, t in load_file(path).items()}, path)
    difference = zp.compare(adapted.base, adapt(adapted.base, tmp_path / "adapter"))
    assert (difference.relation, difference.finding.answer, difference.matrices) == ("equal", "nothing", ())
    assert difference.verdict[0].startswith("The models are equal")


def test_an_adapter_too_small_to_matter_is_not_judged(tmp_path: Path) -> None:
    adapted = made("llama", tmp_path, target_modules=ALL)
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({n: t * 1e-9 if "lora_B" in n else t for n, t in load_file(path).items()}, path)
    difference = zp.compare(adapted.base, adapt(adapted.base, tmp_path / "adapter"))
    assert difference.finding.answer == "unjudged"
    assert "is lost where the weights are stored as float32" in " ".join(difference.verdict)


def test_blocks_of_two_kinds_are_refused(tmp_path: Path) -> None:
    plain, gated = (opened(name, tmp_path / name) for name in ("t5-encoder", "t5-gated-encoder"))
    with pytest.raises(BadModel, match="its blocks have"):
        Comparison(plain, gated)


def test_the_command_says_that_two_models_are_equal(run: Run, tmp_path: Path) -> None:
    tiny.save(tiny.make("gpt2"), tmp_path / "one")
    run.capsys.readouterr()
    code, shown, _ = run("diff", tmp_path / "one", tmp_path / "one")
    assert code == 0
    assert "The models are equal: all 36 tensors" in shown
    assert "strongest" not in shown
