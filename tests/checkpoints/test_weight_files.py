"""Weights as releases ship them: shards and their index, wrappers, parts of a GGUF file, variants, other files."""

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf.constants import MODEL_ARCH_NAMES
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp._common_utils import FSDP_PREFIX
from transformers import AutoModelForCausalLM, PreTrainedModel

import tiny
from gguf_files import convert
from zeropass.arch.checks import LLAMA_CPP_NAMES
from zeropass.arch.families import FAMILIES
from zeropass.checkpoints.gguf import GgufSource
from zeropass.checkpoints.model_files import fingerprint, open_files
from zeropass.checkpoints.renamed import WRAPPERS
from zeropass.checkpoints.shards import merge_shards
from zeropass.checkpoints.weight_files import gguf_parts, weight_names
from zeropass.errors import BadModel, BadWeights, UnknownFamily, ZeropassError
from zeropass.model.model import Model
from zeropass.model.opening import open_model

GATE = "model.layers.0.mlp.gate_proj.weight"
SAVERS: dict[str, Callable[[dict[str, Tensor], Path], object]] = {
    "safetensors": lambda tensors, path: save_file(tensors, path, metadata={"format": "pt"}),
    "bin": torch.save,
}
Factory = pytest.TempPathFactory
STEMS = {"safetensors": "model", "bin": "pytorch_model"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: Factory) -> Path:
    """Return a tied llama as transformers saves it."""
    return tiny.save(tiny.make("llama-tied"), tmp_path_factory.mktemp("tied"))


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """Return a copy of `saved` without weights; each test writes them in its own layout."""
    shutil.copytree(saved, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    return tmp_path / "model"


@pytest.fixture(scope="module")
def tensors(saved: Path) -> dict[str, Tensor]:
    return load_file(saved / "model.safetensors")


def in_shards(folder: Path, shards: list[dict[str, Tensor]], index: dict[str, int] | None, suffix: str) -> list[Path]:
    """Write shards, and an index that names a shard (from 1) for each tensor; return the paths of the shards."""
    stem = STEMS[suffix]
    paths = [folder / f"{stem}-{i:05d}-of-{len(shards):05d}.{suffix}" for i in range(1, len(shards) + 1)]
    for path, shard in zip(paths, shards, strict=True):
        SAVERS[suffix](shard, path)
    if index is not None:
        names = {name: paths[number - 1].name for name, number in index.items()}
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return paths


def loaded(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def assert_same(model: Model, other: Model) -> None:
    assert model.source.names()
    assert set(model.source.names()) == set(other.source.names())
    for name in other.source.names():
        np.testing.assert_array_equal(model.source.rows(name), other.source.rows(name))


# Shards and their index ---------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("counts", [1, 2])
def test_the_index_says_which_of_two_copies_counts(
    folder: Path, tensors: dict[str, Tensor], suffix: str, counts: int
) -> None:
    changed = {GATE: tensors[GATE] + 1, "model.norm.weight": tensors["model.norm.weight"]}
    base = {name: tensor for name, tensor in tensors.items() if name != "model.norm.weight"}
    in_shards(folder, [base, changed], dict.fromkeys(base, 1) | {"model.norm.weight": 2, GATE: counts}, suffix)
    model = open_model(str(folder))
    assert torch.equal(model.matrix("gate", 0), [tensors[GATE], changed[GATE]][counts - 1])
    (note, *more) = model.files.notes
    assert f"In several shards: {GATE!r}." in note
    # transformers takes the copy of the last file. Where the index says otherwise, it reads another model, which the
    # notes say.
    theirs = loaded(folder).model.layers[0].mlp.gate_proj.weight
    assert torch.equal(theirs, changed[GATE])
    assert bool(more) == (not torch.equal(theirs, model.matrix("gate", 0)))
    assert all("another copy" in note and "transformers 5" in note for note in more)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_tensor_that_the_index_does_not_name_is_named_and_not_read(
    folder: Path, tensors: dict[str, Tensor], suffix: str
) -> None:
    in_shards(folder, [tensors | {"refusal.direction": torch.ones(3)}], dict.fromkeys(tensors, 1), suffix)
    model = open_model(str(folder))
    assert set(model.source.names()) == set(tensors)
    assert model.files.unindexed == {"refusal.direction"}
    (note,) = model.info()["notes"][-1:]
    assert "not in their index" in note
    assert "'refusal.direction'" in note
    for name, tensor in loaded(folder).named_parameters():
        np.testing.assert_array_equal(model.source.rows(name), tensor.detach())


def test_a_tensor_of_the_model_that_the_index_does_not_name_is_refused(
    folder: Path, tensors: dict[str, Tensor]
) -> None:
    head = tensors["model.embed_tokens.weight"] + 1
    in_shards(folder, [tensors | {"lm_head.weight": head}], dict.fromkeys(tensors, 1), "safetensors")
    assert torch.equal(loaded(folder).lm_head.weight, head)  # without it, another model would be read
    with pytest.raises(BadModel, match=r"tensor 'lm_head\.weight' is in a shard, but the index does not name it"):
        open_model(str(folder))
    wrapped = {f"module.{name}": tensor for name, tensor in (tensors | {"lm_head.weight": head}).items()}
    in_shards(folder, [wrapped], {f"module.{name}": 1 for name in tensors}, "safetensors")
    with pytest.raises(BadModel, match="the index does not name it"):
        open_model(str(folder))


def test_shards_that_the_index_does_not_name_are_named(folder: Path, tensors: dict[str, Tensor]) -> None:
    (first,) = in_shards(folder, [tensors], dict.fromkeys(tensors, 1), "safetensors")
    shutil.copy(first, folder / "model-00002-of-00003.safetensors")
    shutil.copy(first, folder / "consolidated.safetensors")  # the same weights in another layout, as Mistral ships them
    model = open_model(str(folder))
    assert model.files.weight_files == (first,)
    assert [note for note in model.files.notes if "model-00002-of-00003.safetensors" in note]
    assert "consolidated" not in str(model.files.notes)


@given(
    shards=st.lists(st.sets(st.sampled_from("abcdefgh")), min_size=1, max_size=4),
    draw=st.data(),
)
@settings(max_examples=200, deadline=None)
def test_an_index_is_obeyed_whatever_the_shards_hold(shards: list[set[str]], draw: st.DataObject) -> None:
    files = {Path(f"{i}"): sorted(names) for i, names in enumerate(shards)}
    homes = {name: [file for file in files if name in files[file]] for name in "abcdefgh"}
    index = {
        name: draw.draw(st.sampled_from([file.name for file in holders]))
        for name, holders in homes.items()
        if holders and draw.draw(st.booleans())
    }
    merged = merge_shards(files, index)
    assert {name: file.name for name, file in merged.home.items()} == index
    assert merged.unindexed == {name for name, holders in homes.items() if holders} - index.keys()
    copied = [name for name in index if len(homes[name]) > 1]
    early = [name for name in copied if index[name] != homes[name][-1].name]
    assert len(merged.notes) == bool(copied) + bool(early) + bool(merged.unindexed)
    if wrong := [name for name, holders in homes.items() if len(holders) < len(files)]:
        elsewhere = next(file.name for file in files if wrong[0] not in files[file])
        with pytest.raises(BadWeights, match="is not in it, though the index says so"):
            merge_shards(files, index | {wrong[0]: elsewhere})
    if any(len(holders) > 1 for holders in homes.values()):
        with pytest.raises(BadModel, match="without an index it must be in one shard"):
            merge_shards(files, None)
    else:
        assert merge_shards(files, None).home == {name: holders[0] for name, holders in homes.items() if holders}


# Wrappers -----------------------------------------------------------------------------------------------


def test_wrappers_of_torch_put_the_known_prefixes_before_names() -> None:
    plain = torch.nn.Linear(2, 2)
    wrapped = (torch.compile(plain, backend="eager"), torch.nn.DataParallel(plain), checkpoint_wrapper(plain))
    names = [next(iter(dict(torch.nn.Module.named_parameters(module)))) for module in wrapped]
    assert [*(name.removesuffix("weight") for name in names), FSDP_PREFIX] == [
        *("_orig_mod.", "module.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module.")
    ]
    assert {*(name.removesuffix("weight") for name in names), FSDP_PREFIX} <= set(WRAPPERS)


@given(wrappers=st.lists(st.sampled_from(WRAPPERS), min_size=1, max_size=3))
@settings(max_examples=25, deadline=None)
def test_a_wrapped_model_is_read_as_the_model(saved: Path, tmp_path_factory: Factory, wrappers: list[str]) -> None:
    folder = tmp_path_factory.mktemp("wrapped") / "model"
    shutil.copytree(saved, folder)
    wrapper = "".join(wrappers)
    tensors = load_file(saved / "model.safetensors")
    tensors |= {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
    save_file({wrapper + name: tensor for name, tensor in tensors.items()}, folder / "model.safetensors")
    model = open_model(str(folder))
    assert set(model.source.names()) == set(tensors)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(model.source.rows(name), tensor)
        assert model.source.shape(name) == tuple(tensor.shape)
        assert model.source.dtype(name) == "F32"
    assert any(repr(wrapper) in note for note in model.notes)
    # A prefix of some tensors only is no wrapper: they may be a second model.
    save_file(
        {(wrapper if i else "") + name: tensor for i, (name, tensor) in enumerate(sorted(tensors.items()))},
        folder / "model.safetensors",
    )
    with pytest.raises(ZeropassError, match=r"no embedding|is missing|does not name"):
        open_model(str(folder))


@pytest.mark.parametrize("variant", sorted(tiny.MAKERS))
def test_names_that_already_fit_stay(variant: str, tmp_path: Path) -> None:
    folder = tiny.save(tiny.make(variant), tmp_path / "plain")
    stored = load_file(folder / "model.safetensors")
    model = open_model(str(folder))
    assert set(model.source.names()) == set(stored)
    assert model.files.notes == ()
    # The full model, its head included, under one more prefix.
    shutil.copytree(folder, tmp_path / "wrapped")
    save_file({f"model.{name}": tensor for name, tensor in stored.items()}, tmp_path / "wrapped" / "model.safetensors")
    wrapped = open_model(str(tmp_path / "wrapped"))
    headless = all(name.startswith("model.") for name in stored)
    assert wrapped.prefix == model.prefix or headless
    assert torch.equal(wrapped.embedding, model.embedding)
    assert torch.equal(wrapped.matrix("q", 1), model.matrix("q", 1))


def test_names_without_their_wrapper_have_to_fit(folder: Path, tensors: dict[str, Tensor]) -> None:
    save_file(
        {f"module.{name.replace('embed', 'x')}": tensor for name, tensor in tensors.items()},
        folder / "model.safetensors",
    )
    with pytest.raises(BadWeights, match="there is no embedding"):
        open_model(str(folder))
    save_file({f"net.{name}": tensor for name, tensor in tensors.items()}, folder / "model.safetensors")
    with pytest.raises(BadWeights, match="there is no embedding"):
        open_model(str(folder))


# GGUF ---------------------------------------------------------------------------------------------------


def aligned(path: Path, alignment: int) -> Path:
    """Write a GGUF file of an alignment; the package itself writes powers of two only."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.data_alignment = alignment
    writer.add_uint32("general.alignment", alignment)
    for i in range(3):
        writer.add_tensor(f"t{i}", np.arange(7 * (i + 1), dtype=np.float32) + i)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("alignment", [8, 24, 32, 40, 96, 4096])
def test_an_alignment_is_a_multiple_of_8(tmp_path: Path, alignment: int) -> None:
    source = GgufSource(aligned(tmp_path / "m.gguf", alignment))
    for i in range(3):
        np.testing.assert_array_equal(source.rows(f"t{i}"), np.arange(7 * (i + 1), dtype=np.float32) + i)
        assert source._tensors[f"t{i}"].offset % alignment == 0


@pytest.mark.parametrize("alignment", [1, 4, 12, 33])
def test_no_other_alignment_is_read(tmp_path: Path, alignment: int) -> None:
    with pytest.raises(BadModel, match=rf"general\.alignment is {alignment}; it must be a multiple of 8"):
        GgufSource(aligned(tmp_path / "m.gguf", alignment))


@pytest.fixture(scope="module")
def split(saved: Path, tmp_path_factory: Factory) -> list[Path]:
    """Write the llama as one GGUF file, ``whole.gguf``, and split by the package's own writer; return the parts."""
    folder = tmp_path_factory.mktemp("split")
    convert(saved, folder / "whole.gguf")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(gguf, "GGUFWriter", partial(gguf.GGUFWriter, split_max_tensors=8))
        convert(saved, folder / "model.gguf")
    return sorted(folder.glob("model-*"))


@pytest.fixture
def parts(split: list[Path], tmp_path: Path) -> list[Path]:
    """Return a copy of the parts; tests break it."""
    return [Path(shutil.copy(part, tmp_path)) for part in split]


def test_a_split_file_is_opened_as_one_from_any_of_its_parts(split: list[Path]) -> None:
    assert [part.name for part in split] == [f"model-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    full = open_model(str(split[0].with_name("whole.gguf")))
    for part in split:
        model = open_model(str(part))
        assert_same(model, full)
        assert model.files.config == full.files.config
        assert model.vocab.pieces == full.vocab.pieces
        assert model.files.weight_files == tuple(split)
        assert model.size == sum(part.stat().st_size for part in split)
        assert model.fingerprint == fingerprint(split)
        assert model.sha256 == {part.name: hashlib.sha256(part.read_bytes()).hexdigest() for part in split}


@pytest.mark.parametrize("size", [1, 5, 19])
def test_a_file_split_at_any_size_equals_the_full_file(
    saved: Path, split: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(gguf, "GGUFWriter", partial(gguf.GGUFWriter, split_max_tensors=size))
    convert(saved, tmp_path / "m.gguf")
    full = GgufSource(split[0].with_name("whole.gguf"))
    parts = sorted(tmp_path.glob("m-*"))
    assert len(parts) == -(-len(full.names()) // size) > 1
    source = GgufSource(parts[-1])
    assert source.names() == full.names()
    for name in full.names():
        np.testing.assert_array_equal(source.rows(name, 1), full.rows(name, 1))


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_missing_part_is_named(parts: list[Path], missing: int) -> None:
    parts[missing].unlink()
    for part in parts[:missing] + parts[missing + 1 :]:
        with pytest.raises(
            BadModel, match=rf"one of 3 parts of a model, of which {parts[missing].name} cannot be found"
        ):
            open_model(str(part))


def rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def test_parts_of_another_order_or_model_are_refused(parts: list[Path], split: list[Path]) -> None:
    parts[1].write_bytes(split[2].read_bytes())
    parts[2].write_bytes(split[1].read_bytes())
    with pytest.raises(BadModel, match=r"model-00002-of-00003\.gguf: split\.no is 2; by its name it should be 1"):
        open_model(str(parts[0]))
    parts[1].write_bytes(split[1].read_bytes())
    parts[2].write_bytes(split[2].read_bytes())
    copy = parts[0].with_name("model-00001-of-00002.gguf")
    shutil.copy(parts[0], copy)
    with pytest.raises(BadModel, match=r"00001-of-00002\.gguf is one of 3 parts of a model \(split\.count\); its name"):
        open_model(str(copy))
    shutil.copy(parts[0], parts[0].with_name("other.gguf"))
    with pytest.raises(BadModel, match=r"other\.gguf is one of 3 parts"):
        open_model(str(parts[0].with_name("other.gguf")))


def number_after(key: bytes, size: int, value: int) -> Callable[[bytes], bytes]:
    """Return a change that writes another number behind a key of a header."""

    def change(content: bytes) -> bytes:
        at = content.index(key) + len(key) + 4
        return content[:at] + value.to_bytes(size, "little") + content[at + size :]

    return change


def test_parts_whose_counts_do_not_agree_are_refused(parts: list[Path]) -> None:
    rewrite(parts[2], number_after(b"split.tensors.count", 4, 99))
    with pytest.raises(BadModel, match=r"model-00003.*split\.tensors\.count is not what model-00001-of-00003"):
        open_model(str(parts[1]))
    for part in parts[:2]:
        rewrite(part, number_after(b"split.tensors.count", 4, 99))
    with pytest.raises(BadModel, match=r"split\.tensors\.count is 99, but its 3 parts hold 20"):
        open_model(str(parts[1]))


def test_a_tensor_in_two_parts_is_refused(tmp_path: Path) -> None:
    for number in range(2):
        writer = gguf.GGUFWriter(tmp_path / f"m-0000{number + 1}-of-00002.gguf", "llama")
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", 2)
        writer.add_int32("split.tensors.count", 2)
        writer.add_tensor("t", np.ones(4, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    with pytest.raises(BadModel, match=r"m-00002-of-00002\.gguf: tensor 't' is also in m-00001-of-00002\.gguf"):
        open_files(str(tmp_path / "m-00001-of-00002.gguf"))


@given(count=st.integers(1, 99_999), number=st.integers(0, 99_999), stem=st.text("ab-.0", min_size=1))
@settings(max_examples=50, deadline=None)
def test_the_parts_of_a_split_file_follow_from_the_name_of_one(count: int, number: int, stem: str) -> None:
    name = f"{stem}-{number:05d}-of-{count:05d}.gguf"
    parts = gguf_parts(name)
    assert name in parts
    if 1 <= number <= count:
        assert parts == tuple(f"{stem}-{i:05d}-of-{count:05d}.gguf" for i in range(1, count + 1))
    else:
        assert parts == (name,)
    assert gguf_parts(f"{stem}.gguf") == (f"{stem}.gguf",)


def bare(text: str) -> str:
    return text.replace("_", "").replace("-", "")


def test_the_names_of_llama_cpp_are_those_of_the_format_and_lead_to_families() -> None:
    known = {kind for family in FAMILIES for kind in family.model_types}
    theirs = set(MODEL_ARCH_NAMES.values())
    assert set(LLAMA_CPP_NAMES) <= theirs - known
    assert set(LLAMA_CPP_NAMES.values()) <= known
    # Families whose names differ there in spelling only.
    spelled = {name: kind for name in theirs - known for kind in known if bare(name) == bare(kind)}
    assert spelled.items() <= LLAMA_CPP_NAMES.items()
    assert dict(LLAMA_CPP_NAMES.items() - spelled.items()) == {
        "chatglm": "glm",
        "command-r": "cohere",
        "phi2": "phi",
        "gemma-embedding": "gemma3_text",
        "gemma4": "gemma4_text",
        "glm-dsa": "glm_moe_dsa",
        "granitehybrid": "granitemoehybrid",
        "hunyuan-dense": "hunyuan_v1_dense",
        "hunyuan-moe": "hunyuan_v1_moe",
        "llama4": "llama4_text",
        "mistral3": "ministral3",
        "nemotron_h_moe": "nemotron_h",
        "qwen3vlmoe": "qwen3_vl_moe_text",
        "qwen35": "qwen3_5_text",
        "qwen35moe": "qwen3_5_moe_text",
        "starcoder": "gpt_bigcode",
    }


@pytest.mark.parametrize("name", sorted(set(MODEL_ARCH_NAMES.values())))
def test_a_gguf_file_of_a_family_known_as_safetensors_says_so(tmp_path: Path, name: str) -> None:
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, name)
    writer.add_tensor("token_embd.weight", np.ones((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    kind = LLAMA_CPP_NAMES.get(name, name)
    families = [family for family in FAMILIES if kind in family.model_types]
    with pytest.raises(ZeropassError) as caught:
        open_model(str(path))
    message = str(caught.value)
    if not families:
        assert isinstance(caught.value, UnknownFamily)
        assert f"general.architecture is {name!r}, which is not in the table of families" in message
    elif not any(family.layout("gguf") for family in families):
        assert isinstance(caught.value, UnknownFamily)
        assert f"general.architecture is {name!r}; the family {families[0].name} is known, but not as a GGUF" in message
        assert "Give the model as a folder or hub id of safetensors." in message
    else:
        assert "not in the table" not in message
        assert "but not as a" not in message


# Hashes -------------------------------------------------------------------------------------------------


def sha256sum(*files: Path) -> dict[str, str]:
    """Return the hashes that the program sha256sum prints."""
    program = shutil.which("sha256sum") or pytest.skip("there is no sha256sum here")
    out = subprocess.run([program, *map(str, files)], check=True, capture_output=True, text=True).stdout
    return {Path(line.split(maxsplit=1)[1]).name: line.split()[0] for line in out.splitlines()}


def test_the_sha256_is_what_sha256sum_prints(
    saved: Path, folder: Path, tensors: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    info = open_model(str(saved)).info()
    assert {"model.safetensors": info["sha256"]} == sha256sum(saved / "model.safetensors")
    half = dict(list(tensors.items())[:5])
    rest = {name: tensor for name, tensor in tensors.items() if name not in half}
    paths = in_shards(folder, [half, rest], dict.fromkeys(half, 1) | dict.fromkeys(rest, 2), "safetensors")
    model = open_model(str(folder))
    reads: list[Path] = []
    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda path, *args, **more: (reads.append(path), opened(path, *args, **more))[1])
    info = model.info()
    assert info["sha256"] == sha256sum(*paths)
    assert info["fingerprint"] == model.fingerprint == fingerprint(paths) != info["sha256"]
    assert [path for path in reads if path in paths] == [*paths, *paths]  # once by info, once by the test itself
    assert json.loads(json.dumps(info)) == info


# Folders ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("count", [1, 3])
def test_shards_without_an_index_are_read_if_none_is_missing(
    folder: Path, tensors: dict[str, Tensor], saved: Path, suffix: str, count: int
) -> None:
    names = list(tensors)
    shards = [{name: tensors[name] for name in names[i::count]} for i in range(count)]
    paths = in_shards(folder, shards, None, suffix)
    model = open_model(str(folder))
    assert_same(model, open_model(str(saved)))
    assert any("No index names the shards" in note for note in model.notes)
    zeroth = folder / f"{STEMS[suffix]}-00000-of-0000{count}.{suffix}"
    paths[0].rename(zeroth)
    with pytest.raises(BadModel, match=rf"lacks 1 of its {count} shards: {paths[0].name}"):
        open_model(str(folder))
    SAVERS[suffix](shards[0], paths[0])
    with pytest.raises(BadModel, match=rf"has .*-00000-of-.*, which is none of its {count} shards"):
        open_model(str(folder))
    (folder / f"{STEMS[suffix]}-00000-of-0000{count}.{suffix}").rename(
        folder / f"{STEMS[suffix]}-00001-of-00009.{suffix}"
    )
    with pytest.raises(BadModel, match=r"shards of several models .*no index"):
        open_model(str(folder))


def test_shards_without_an_index_hold_each_tensor_once(folder: Path, tensors: dict[str, Tensor]) -> None:
    in_shards(folder, [tensors, {GATE: tensors[GATE]}], None, "safetensors")
    with pytest.raises(BadModel, match=r"00002-of-00002\.safetensors: tensor '.*gate_proj.*' is also in .*00001"):
        open_model(str(folder))


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("sharded", [False, True])
def test_a_variant_is_read_if_it_is_the_only_weights(folder: Path, suffix: str, sharded: bool) -> None:
    half = tiny.make("llama-tied").half()
    half.save_pretrained(folder, variant="fp16", max_shard_size="8KB" if sharded else "1GB")
    if suffix == "bin":
        for path in folder.glob("*.safetensors"):
            torch.save(
                load_file(path), folder / path.name.replace("model", "pytorch_model").replace("safetensors", "bin")
            )
            path.unlink()
        for path in folder.glob("*.index.fp16.json"):
            text = path.read_text().replace("model.fp16", "pytorch_model.fp16").replace(".safetensors", ".bin")
            (folder / "pytorch_model.bin.index.fp16.json").write_text(text)
            path.unlink()
    model = open_model(str(folder))
    assert len(model.files.weight_files) > 1 if sharded else len(model.files.weight_files) == 1
    theirs = AutoModelForCausalLM.from_pretrained(
        folder, variant="fp16", dtype=torch.float32, use_safetensors=suffix == "safetensors"
    )
    for name, tensor in theirs.named_parameters():
        np.testing.assert_array_equal(model.source.rows(name), tensor.detach())
    assert any("the variant 'fp16'" in note for note in model.notes)
    second = folder / f"{STEMS[suffix]}.ema.{suffix}"
    SAVERS[suffix]({"w": torch.ones(1)}, second)
    with pytest.raises(BadModel, match=r"weights of several variants \(ema, fp16\)"):
        open_model(str(folder))
    second.rename(folder / f"{STEMS[suffix]}.{suffix}")  # weights without a variant go first
    assert open_files(str(folder)).weight_files == (folder / f"{STEMS[suffix]}.{suffix}",)


def test_files_that_transformers_reads_go_first() -> None:
    order = [
        *("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"),
        *("pytorch_model.pt", "model.pt", "model-00001-of-00001.safetensors", "pytorch_model-00001-of-00001.bin"),
        *("model.fp16.safetensors", "pytorch_model.fp16.bin"),
    ]
    for i, name in enumerate(order):
        choice = weight_names("x", order[i:], {})
        assert choice is not None
        assert (*choice.files, choice.index)[0] == name
        assert choice.suffix == name.removesuffix(".index.json").rpartition(".")[2]
    assert weight_names("x", ["consolidated.safetensors", "adapter_model.safetensors", "model.onnx"], {}) is None


def test_weights_that_the_configuration_names_are_read(folder: Path, tensors: dict[str, Tensor]) -> None:
    changed = tensors | {GATE: tensors[GATE] + 1}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    save_file(changed, folder / "new.safetensors", metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(changed, "new.safetensors")}
    (folder / "new.safetensors.index.json").write_text(json.dumps(index))
    for name in ("new.safetensors", "new.safetensors.index.json"):
        tiny.edit(folder, {"transformers_weights": name})
        assert torch.equal(loaded(folder).model.layers[0].mlp.gate_proj.weight, changed[GATE])
        assert torch.equal(open_model(str(folder)).matrix("gate", 0), changed[GATE])
    (folder / "new.bin").touch()
    for wrong in ("gone.safetensors", "../model/new.safetensors", "new.bin", "config.json", 7, ["new.safetensors"]):
        tiny.edit(folder, {"transformers_weights": wrong})
        with pytest.raises(BadModel, match=r"transformers_weights in config\.json is .*; it should be the name of"):
            open_model(str(folder))


@pytest.mark.parametrize(
    ("names", "advice"),
    [
        (["consolidated.safetensors"], "It has consolidated.safetensors: that is the layout of its authors' own code"),
        (["consolidated.00.pth", "consolidated.01.pth"], "It has consolidated.00.pth, consolidated.01.pth: that is"),
        (["tf_model.h5"], "It has tf_model.h5: let transformers 4 load it (from_tf=True)"),
        (["flax_model.msgpack"], "It has flax_model.msgpack: let transformers 4 load it (from_flax=True)"),
        (["model.onnx"], "It has model.onnx: that is an exported graph"),
        (["q4.gguf", "q8.gguf"], "It has q4.gguf, q8.gguf: give the file itself"),
        (
            ["adapter_model.safetensors"],
            "It has adapter_model.safetensors: give the model that the adapter was trained",
        ),
        (["best.safetensors"], "It has best.safetensors: that is no usual name"),
        (["best.pth", "optimizer.pt"], "It has best.pth: that is no usual name"),
        (["weights.npz"], "It has weights.npz: such a file is not read"),
        ([f"{i}.onnx" for i in range(5)], "It has 0.onnx, 1.onnx, 2.onnx and 2 more: "),
        (["training_args.bin", "optimizer.pt"], "pytorch_model.pt, model.pt."),
    ],
)
def test_unsupported_weights_are_named_with_advice(folder: Path, names: list[str], advice: str) -> None:
    for name in names:
        (folder / name).write_bytes(b"x")
    with pytest.raises(BadModel, match=r"has no weights; it should have one of model\.safetensors") as caught:
        open_model(str(folder))
    assert advice in str(caught.value)
    assert ("It has" in advice) == ("It has" in str(caught.value))
    (folder / "config.json").unlink()
    with pytest.raises(BadModel, match=r"has no config\.json\. ") as caught:
        open_model(str(folder))
    assert advice in str(caught.value) or "It has" not in advice


# Other things in place of a file --------------------------------------------------------------------------

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"
PAGE = b"\n<!DOCTYPE html>\n<html><body>Sign in</body></html>"


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "config.json", "tokenizer.json", "m.gguf"])
@pytest.mark.parametrize(
    ("content", "description"),
    [(POINTER, "a pointer of Git LFS .* git lfs pull"), (PAGE, "a page of HTML"), (b"", r"empty \(0 bytes\)")],
    ids=["lfs", "html", "empty"],
)
def test_a_pointer_or_page_in_place_of_a_file_is_recognised(
    folder: Path, name: str, content: bytes, description: str
) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(BadModel, match=rf"{name} is {description}"):
        open_model(str(folder / name if name.endswith("gguf") else folder))


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "config.json", "m.gguf"])
def test_broken_links_folders_and_pipes_are_named(folder: Path, name: str) -> None:
    path, model = folder / name, str(folder / name if name.endswith("gguf") else folder)
    path.unlink(missing_ok=True)
    if not name.endswith("gguf"):
        path.symlink_to("../blobs/0123")
        with pytest.raises(BadModel, match=rf"{name} is a link to \.\./blobs/0123, which is not there"):
            open_model(model)
        path.unlink()
        path.mkdir()
        with pytest.raises(BadModel, match=rf"{name} is a folder; it should be a file"):
            open_model(model)
        path.rmdir()
    os.mkfifo(path)
    with pytest.raises(BadModel, match=rf"{name} is a device or pipe; it should be a file"):
        open_model(model)
    path.unlink()


def test_a_file_without_permission_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "model.safetensors").write_bytes(b"x" * 100)
    opened = Path.open

    def refuse(path: Path, *args: object, **more: object) -> object:
        if path.name == "model.safetensors":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *args, **more)

    monkeypatch.setattr(Path, "open", refuse)  # an administrator may read any file
    with pytest.raises(BadModel, match=r"model\.safetensors cannot be read: .*Permission denied"):
        open_model(str(folder))


def test_a_shard_that_links_to_nothing_is_named(folder: Path, tensors: dict[str, Tensor]) -> None:
    (path,) = in_shards(folder, [tensors], dict.fromkeys(tensors, 1), "safetensors")
    path.unlink()
    path.symlink_to("../../blobs/0123")
    with pytest.raises(BadModel, match=rf"{path.name} is a link to ../../blobs/0123, which is not there"):
        open_model(str(folder))


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_files_without_a_tensor_are_refused(folder: Path, suffix: str) -> None:
    SAVERS[suffix]({}, folder / f"{STEMS[suffix]}.{suffix}")
    with pytest.raises(BadModel, match=rf"{STEMS[suffix]}\.{suffix} holds no tensors"):
        open_model(str(folder))


def test_a_gguf_file_without_a_tensor_is_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(BadModel, match=r"m\.gguf holds no tensors"):
        open_model(str(tmp_path / "m.gguf"))


def test_unquantised_weights_of_mlx_are_read(folder: Path, tensors: dict[str, Tensor], saved: Path) -> None:
    save_file(tensors, folder / "model.safetensors", metadata={"format": "mlx"})
    assert_same(open_model(str(folder)), open_model(str(saved)))
    quantised = {GATE.replace("weight", kind): torch.ones(40, 1) for kind in ("scales", "biases")}
    save_file(tensors | quantised, folder / "model.safetensors", metadata={"format": "mlx"})
    with pytest.raises(BadModel, match="belongs to a format that is not read"):
        open_model(str(folder))


def test_a_model_is_found_by_relative_paths_and_the_home_folder(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(saved.parent)
    monkeypatch.setenv("HOME", str(saved.parent))
    for name in (saved.name, f"./{saved.name}", f"{saved.name}/", f"~/{saved.name}", f"{saved.name}/../{saved.name}"):
        assert open_model(name).fingerprint == fingerprint([saved / "model.safetensors"])
