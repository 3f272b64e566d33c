"""Rows of the embeddings without a token: no result depends on what the file holds there."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import small
import zeropass as zp
from tiny import MAKERS, TOKENS, VOCAB, make, save
from zeropass.arch.families import FAMILIES
from zeropass.checkpoints.safetensors import SafetensorsSource
from zeropass.errors import BadAddress, BadOption, BadWeights
from zeropass.model.frames import Frames
from zeropass.model.model import Model
from zeropass.model.opening import open_model
from zeropass.model.running import Running
from zeropass.tokens.undertrained import judge

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

GARBAGE = (float("nan"), float("inf"), float("-inf"), 1e4)
TABLES = {
    "llama": ("model.embed_tokens.weight", "lm_head.weight"),
    "gpt2": ("transformer.wte.weight",),
    "bert": ("embeddings.word_embeddings.weight",),
}
MAKE = {"llama": small.llama, "gpt2": small.gpt2, "bert": small.bert}
ADDRESSES = ("L0.ff.1", "L1.attn.2.qk", "L1.attn.0.vo")


def absent_rows(folder: Path) -> Tensor:
    """Return the rows that no token of tokenizer.json has."""
    spec = json.loads((folder / "tokenizer.json").read_text())
    ids = {*spec["model"]["vocab"].values(), *(token["id"] for token in spec["added_tokens"])}
    return torch.tensor([i for i in range(small.V) if i not in ids])


def fill_rows(folder: Path, tables: tuple[str, ...], rows: Tensor, value: float) -> Path:
    """Write a value into some rows of a model's token tables."""
    tensors = load_file(folder / "model.safetensors")
    for name in tables:
        tensors[name][rows] = value
    save_file(tensors, folder / "model.safetensors")
    return folder


def lens_records(model: Model, view: Any) -> list[Any]:
    """Return the lens records of some addresses in all frames."""
    lens = zp.Lens(model)
    frames = ("token", "output", "paper")
    records = []
    for address in ADDRESSES:
        for frame in frames:
            try:
                records += [record.to_json() for record in lens.explain(address, frame=frame, tokens=view, k=40)]
            except (BadOption, BadAddress):  # not in this family, or not in this frame
                continue
    return records


@pytest.mark.parametrize("kind", TABLES)
def test_values_in_rows_without_a_token_change_nothing(kind: str, tmp_path: Path, one_thread: None) -> None:
    folder = MAKE[kind](tmp_path / "model")
    rows = absent_rows(folder)
    assert len(rows) >= 8
    plain = open_model(str(fill_rows(folder, TABLES[kind], rows, 0.0)))
    expected = {view: lens_records(plain, view) for view in ("default", "all")}
    moments = {space: Frames(plain).rows(space).moments for space in ("token", "output.read", "output.write")}
    assert len(expected["all"]) > 4
    for value in GARBAGE[::3]:
        model = open_model(str(fill_rows(folder, TABLES[kind], rows, value)))
        finite = value == 1e4  # finite rows stay: they count in head maps, but not in moments and judgement
        assert torch.equal(model.embedding, plain.embedding) != finite
        assert torch.equal(model.unembedding, plain.unembedding) != finite
        assert np.array_equal(model.judgement.undertrained, plain.judgement.undertrained)
        for view, records in expected.items():
            assert finite or lens_records(model, view) == records
        for space, expected_moments in moments.items():
            assert torch.equal(Frames(model).rows(space).moments.covariance, expected_moments.covariance)
            assert Frames(model).rows(space).matrix.isfinite().all()


def test_nan_padding_does_not_change_an_atlas(tmp_path: Path, one_thread: None) -> None:
    options = zp.Options(k=15, pairs=20, roles=("gate", "value", "vo"), tokens="all")
    folder = small.llama(tmp_path / "model", layers=1)
    rows = absent_rows(folder)
    atlases = []
    for name, value in (("zero", 0.0), ("nan", float("nan"))):
        fill_rows(folder, TABLES["llama"], rows, value)
        atlases.append(small.build(folder, tmp_path / name, options))
    for address in ("L0.ff.1", "L0.attn.0.vo"):
        records = [[record.to_json() for record in atlas.explain(address)] for atlas in atlases]
        assert records[0] == records[1]
    word = atlases[0].vocab.text(300)
    matches = [atlas.find(word).to_json()["hits"] for atlas in atlases]
    assert matches[0] == matches[1] and matches[0]
    for path in (tmp_path / "nan").rglob("*.npy"):
        assert np.isfinite(np.load(path)).all(), path


@pytest.mark.parametrize("table", TABLES["llama"])
@pytest.mark.parametrize("value", GARBAGE[:3])
def test_nan_in_a_row_of_a_token_is_refused_by_the_name_of_the_tensor(table: str, value: float, tmp_path: Path) -> None:
    folder = small.llama(tmp_path / "model", layers=1)
    rows = absent_rows(folder)
    fill_rows(folder, (table,), rows, float("nan"))
    fill_rows(folder, (table,), rows[:1] - 1, value)  # the last special token
    model = open_model(str(folder))
    with pytest.raises(BadWeights, match=rf"model\.safetensors: tensor '{table}' holds {small.D} values"):
        model.tokens("embedding" if "embed" in table else "unembedding", slice(0, small.V))


def test_a_placeholder_that_is_not_finite_becomes_zero_and_a_finite_one_stays(tmp_path: Path) -> None:
    folder = small.llama(tmp_path / "model", layers=1)
    path = folder / "tokenizer.json"
    spec = json.loads(path.read_text())
    ids = [token["id"] for token in spec["added_tokens"]]
    for number, token in enumerate(spec["added_tokens"]):
        token["content"] = f"<|reserved_{number}|>"
    path.write_text(json.dumps(spec))
    fill_rows(folder, ("model.embed_tokens.weight",), torch.tensor(ids[:1]), float("nan"))
    table = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    model = open_model(str(folder))
    assert model.vocab.unused[ids].all() and not model.vocab.absent[ids].any()
    assert not model.embedding[ids[0]].any()
    assert torch.equal(model.embedding[ids[1]], table[ids[1]])


def test_a_mask_of_another_length_is_refused(tmp_path: Path) -> None:
    save_file({"t": torch.ones(4, 2)}, tmp_path / "a.safetensors")
    with pytest.raises(BadWeights, match=r"'t': the mask for the rows 1:4 has the shape \(1,\)"):
        SafetensorsSource((tmp_path / "a.safetensors",)).rows("t", 1, 4, spare=np.ones(1, bool))


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_bad_values_are_forgiven_in_spare_rows_only(data: st.DataObject, tmp_path_factory: Any) -> None:
    rows, columns = data.draw(st.tuples(st.integers(1, 7), st.integers(1, 4)))
    flags = st.lists(st.booleans(), min_size=rows, max_size=rows)
    bad, spare = np.array(data.draw(flags)), np.array(data.draw(flags))
    start = data.draw(st.integers(0, rows))
    stop = data.draw(st.integers(start, rows))
    values = torch.arange(rows * columns, dtype=torch.float32).reshape(rows, columns) + 1
    values[bad, 0] = float("nan")
    path = tmp_path_factory.mktemp("x") / "a.safetensors"
    save_file({"t": values}, path)
    part = slice(start, stop)
    if (bad & ~spare)[part].any():
        with pytest.raises(BadWeights, match=rf"'t' holds {(bad & ~spare)[part].sum()} values"):
            SafetensorsSource((path,)).rows("t", start, stop, spare=spare[part])
        return
    expected = values.numpy().copy()
    expected[bad] = 0
    np.testing.assert_array_equal(SafetensorsSource((path,)).rows("t", start, stop, spare=spare[part]), expected[part])


def test_token_tables_have_a_row_for_each_token_in_every_family() -> None:
    tables = [
        stored
        for family in FAMILIES
        for layout in family.layouts
        for name, stored in layout.tensors.items()
        if name in ("embedding", "unembedding")
    ]
    assert len(tables) > 50 and not any(stored.transpose for stored in tables)


def test_rows_without_a_token_do_not_count_in_the_judgement(tmp_path: Path) -> None:
    folder = small.llama(tmp_path / "model", layers=1)
    table = load_file(folder / "model.safetensors")["model.embed_tokens.weight"].numpy()
    fill_rows(folder, TABLES["llama"], absent_rows(folder), 1e4)
    model = open_model(str(folder))
    present = ~model.vocab.absent
    expected = judge(table[present], model.vocab.swallowed()[present])
    assert np.array_equal(model.judgement.undertrained[present], expected.undertrained)
    assert np.array_equal(model.judgement.fragments[present], expected.fragments)
    assert not model.judgement.undertrained[~present].any()


def test_a_checkpoint_with_old_names_is_read_in_the_same_way(tmp_path: Path) -> None:
    folder = small.bert(tmp_path / "model")
    fill_rows(folder, TABLES["bert"], absent_rows(folder), float("nan"))
    tensors = load_file(folder / "model.safetensors")
    old = {name.replace("LayerNorm.weight", "LayerNorm.gamma"): tensor for name, tensor in tensors.items()}
    save_file(old, folder / "model.safetensors")
    assert open_model(str(folder)).embedding.isfinite().all()


def gguf_model(folder: Path, path: Path, table: np.ndarray, kind: gguf.GGMLQuantizationType) -> Path:
    """Write the tiny tied llama of a folder as GGUF with another table; name rows without a token as llama.cpp does."""
    config = json.loads((folder / "config.json").read_text())
    spec = json.loads((folder / "tokenizer.json").read_text())
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(64)
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    pieces = [*spec["model"]["vocab"], *(f"[PAD{i}]" for i in range(TOKENS, VOCAB))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(pieces)
    writer.add_token_types([1] * TOKENS + [5] * (VOCAB - TOKENS))
    writer.add_token_merges([])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, values in load_file(folder / "model.safetensors").items():
        to = names.get_name(name, try_suffixes=(".weight",))
        if "embed_tokens" in name:
            writer.add_tensor(to, table, raw_dtype=kind)
        else:
            writer.add_tensor(to, values.numpy())
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    return path


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0"])
def test_padding_of_a_gguf_file_may_be_anything(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MAKERS, "llama-wide", partial(MAKERS["llama-tied"], hidden_size=32))  # whole blocks of Q8_0
    folder = save(make("llama-wide"), tmp_path / "hf")
    quant = gguf.GGMLQuantizationType[kind]
    table = load_file(folder / "model.safetensors")["model.embed_tokens.weight"].numpy()
    plain = gguf.quants.quantize(table, quant)
    stored = plain.copy()
    if kind == "Q8_0":
        stored.view(np.uint8).reshape(VOCAB, -1)[TOKENS:, :2] = np.frombuffer(np.float16("nan").tobytes(), np.uint8)
    else:
        stored[TOKENS:] = np.nan
    model = open_model(str(gguf_model(folder, tmp_path / "a.gguf", stored, quant)))
    expected = torch.from_numpy(gguf.quants.dequantize(plain, quant))
    assert model.vocab.absent.nonzero()[0].tolist() == list(range(TOKENS, VOCAB))
    assert torch.equal(model.embedding[:TOKENS], expected[:TOKENS]) and not model.embedding[TOKENS:].any()
    assert Frames(model).rows("token").matrix.isfinite().all()
    used = stored.copy()
    used[3] = stored[TOKENS]
    broken = open_model(str(gguf_model(folder, tmp_path / "b.gguf", used, quant)))
    with pytest.raises(BadWeights, match=r"token_embd\.weight"):
        broken.embedding  # noqa: B018 - read for its error


def test_the_running_model_has_finite_logits(tmp_path: Path) -> None:
    folder = save(make("llama"), tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    ids = torch.arange(0, TOKENS, 3)[None]
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(ids).logits[..., :TOKENS]
    for name in TABLES["llama"]:
        tensors[name][TOKENS:] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    running = Running(open_model(str(folder)))
    logits = running.logits(running.run(ids))
    assert logits.isfinite().all()
    torch.testing.assert_close(logits[..., :TOKENS], expected)
