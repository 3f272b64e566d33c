"""The stored tensors that are E and U, against what transformers makes of the same files."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import tiny
from zeropass.arch.embeddings import _blocks, _equal
from zeropass.arch.families import FAMILIES
from zeropass.checkpoints.safetensors import SafetensorsSource
from zeropass.errors import BadWeights, ZeropassError
from zeropass.model.opening import open_model
from zoo import ZOO, tiny_model

TIED = ["llama", "gpt2", "gemma3", "opt", "gpt_neox", "bert", "roberta", "modernbert", "gemma3-multimodal", "qwen2-vl"]
IN_FILES = {
    "gpt_neox": {"lm_head.": "embed_out."},
    "gemma3-multimodal": {"lm_head.": "language_model.lm_head.", "model.language_model.": "language_model.model."},
    "qwen2-vl": {"model.language_model.": "model."},
}
"""The beginnings of names that transformers 5 changes in memory, and those that they have in files."""

STORED = ["equal", "different", "embedding alone", "head alone"]

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")


def names_of(hf: Any) -> tuple[str, str]:
    """Return the names of the embedding and of the head that transformers ties to it."""
    (head, embedding), *_ = ((k, v) for k, v in hf._tied_weights_keys.items() if k.endswith("weight"))
    return embedding, head


def in_files(tensor: str, name: str) -> str:
    """Return the name that a tensor in memory has in the files of a checkpoint of the zoo."""
    for in_memory, stored in IN_FILES.get(name, {}).items():
        if tensor.startswith(in_memory):
            return stored + tensor.removeprefix(in_memory)
    return tensor


def save(name: str, folder: Path, stored: str, flag: bool | None) -> Path:
    """Write a checkpoint of the zoo with the given tables and ``tie_word_embeddings``."""
    hf = tiny_model(name)
    tiny.save(hf, folder)
    embedding, head = (in_files(tensor, name) for tensor in names_of(hf))
    tensors = load_file(folder / "model.safetensors")
    table = tensors[embedding]
    other = table + torch.randn(table.shape, generator=torch.Generator().manual_seed(5))
    tensors[head] = other if stored == "different" else table.clone()
    if stored.endswith("alone"):
        del tensors[head if stored.startswith("embedding") else embedding]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return tiny.edit(folder, {"tie_word_embeddings": flag})


@pytest.mark.parametrize("flag", [True, False, None])
@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("name", TIED)
def test_e_and_u_are_those_of_transformers(name: str, stored: str, flag: bool | None, tmp_path: Path) -> None:
    folder = save(name, tmp_path / name, stored, flag)
    hf, loading = getattr(transformers, ZOO[name][0]).from_pretrained(folder, output_loading_info=True)
    embedding, head = names_of(hf)
    if embedding in loading["missing_keys"]:  # transformers draws it at random
        with pytest.raises(BadWeights, match=r"there is no embedding.*not tied"):
            open_model(str(folder))
        return
    try:
        model = open_model(str(folder))
        unembedding = model.unembedding
    except BadWeights as error:
        assert head in loading["missing_keys"], str(error)
        assert "unembedding" in str(error)
        return
    assert torch.equal(model.embedding, hf.get_input_embeddings().weight)
    if head in loading["missing_keys"]:  # an encoder without its own head
        assert not model.family.causal
        return
    assert torch.equal(unembedding, hf.get_output_embeddings().weight)
    assert model.dims.tied == torch.equal(model.embedding, model.unembedding)
    differs = [note for note in model.notes if "differ, so each is read as it is" in note]
    assert bool(differs) == (stored == "different" and flag is not False)
    assert not {in_files(tensor, name) for tensor in (embedding, head)} & set(model.info()["tensors_unread"])


SEQ2SEQ = {
    "t5": ("T5ForConditionalGeneration", "shared.weight"),
    "bart": ("BartForConditionalGeneration", "model.shared.weight"),
}


@pytest.mark.parametrize("flag", [True, False, None])
@pytest.mark.parametrize("table_name", ["shared", "encoder.embed_tokens", "decoder.embed_tokens", "lm_head"])
@pytest.mark.parametrize("family", ["t5", "bart"])
def test_an_encoder_decoder_with_one_of_its_four_tables_is_read(
    family: str, table_name: str, flag: bool | None, tmp_path: Path
) -> None:
    """A T5 may hold decoder.embed_tokens.weight alone (transformers issue 48154)."""
    folder = tiny.save(tiny_model(f"{family}-encoder"), tmp_path / family)
    class_name, shared = SEQ2SEQ[family]
    tensors = load_file(folder / "model.safetensors")
    table = tensors.pop(shared)
    stem = "model." if family == "bart" and table_name != "lm_head" else ""
    save_file(tensors | {f"{stem}{table_name}.weight": table}, folder / "model.safetensors", metadata={"format": "pt"})
    tiny.edit(folder, {"tie_word_embeddings": flag, "scale_decoder_outputs": None})
    hf, loading = getattr(transformers, class_name).from_pretrained(folder, output_loading_info=True)
    for mark, stack in (("", hf.get_encoder()), ("#decoder", hf.get_decoder())):
        try:
            model = open_model(f"{folder}{mark}")
            assert torch.equal(model.embedding, table)
            missing = f"{hf.base_model_prefix if family == 'bart' else ''}.{mark[1:] or 'encoder'}.embed_tokens.weight"
            if missing.lstrip(".") not in loading["missing_keys"]:
                assert torch.equal(model.embedding, stack.embed_tokens.weight)
            else:  # before transformers 5 the stacks of BART always shared their table
                assert (family, table_name, flag) == ("bart", "shared", False)
        except BadWeights:
            assert any("embed_tokens" in key or "shared" in key for key in loading["missing_keys"])
    if family == "t5":
        model = open_model(f"{folder}#decoder")
        assert torch.equal(model.unembedding, hf.lm_head.weight)
        assert model.dims.logit_scale == (24**-0.5 if hf.config.scale_decoder_outputs else 1.0)


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_a_stack_reads_its_own_copy_where_it_differs(stack: str, tmp_path: Path) -> None:
    folder = tiny.save(tiny_model("t5-encoder"), tmp_path / "t5")
    draw = torch.Generator().manual_seed(1)
    copies = {f"{side}.embed_tokens.weight": torch.randn(61, 24, generator=draw) for side in ("encoder", "decoder")}
    tiny.edit(folder, tensors={**copies, "lm_head.weight": torch.randn(61, 24, generator=draw)})
    hf = transformers.T5ForConditionalGeneration.from_pretrained(folder)
    model = open_model(f"{folder}#{stack}")
    assert torch.equal(model.embedding, getattr(hf, f"get_{stack}")().embed_tokens.weight)
    assert torch.equal(model.embedding, copies[f"{stack}.embed_tokens.weight"])
    if stack == "decoder":
        assert torch.equal(model.unembedding, hf.lm_head.weight)
        assert not model.dims.tied


INSIDE = ("qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text", "qwen3_vl_moe_text", "qwen2_5_omni_text")
INSIDE += ("glm4v_text", "glm_ocr_text", "qwen3_omni_moe_text")


def test_defaults_and_forced_ties_are_those_of_transformers() -> None:
    for family in FAMILIES:
        for kind in family.model_types if family.layout("hf") else ():
            if kind == "kimi_k2":
                continue  # which only wrappers in transformers take for deepseek_v3 (Kimi_K25Config.__post_init__)
            config = transformers.CONFIG_MAPPING[kind]()
            if kind in INSIDE:
                continue  # the tie of a text model inside a multimodal one is the other's
            if not hasattr(config, "tie_word_embeddings"):
                continue  # DPR and Splinter have no unembedding
            assert config.tie_word_embeddings == family.tied_by_default, kind
            forced = transformers.CONFIG_MAPPING[kind](tie_word_embeddings=False).tie_word_embeddings
            assert forced == family.always_tied, kind


def test_mt5_never_scales_its_outputs(tmp_path: Path) -> None:
    config = transformers.MT5Config(**{k: v for k, v in ZOO["t5-decoder"][2].items() if k != "stack"})
    hf = transformers.MT5ForConditionalGeneration(config)
    assert open_model(f"{tiny.save(hf, tmp_path / 'mt5')}#decoder").dims.logit_scale == 1.0


def test_a_difference_in_the_last_row_is_seen(tmp_path: Path) -> None:
    folder = save("llama", tmp_path / "llama", "equal", True)
    table = load_file(folder / "model.safetensors")["model.embed_tokens.weight"].clone()
    table[-1, -1] += 1
    tiny.edit(folder, tensors={"lm_head.weight": table})
    assert not open_model(str(folder)).dims.tied


def test_tables_are_equal_if_every_block_is(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(3)
    table = torch.randn(200, 8, generator=draw)
    other = table.clone()
    other[150, 3] += 1e-6
    save_file(
        {"a": table, "same": table.clone(), "other": other, "more": torch.cat([table, table])},
        tmp_path / "t.safetensors",
    )
    source = SafetensorsSource((tmp_path / "t.safetensors",))
    assert _equal(source, "a", "same")
    assert not _equal(source, "a", "other")
    assert not _equal(source, "a", "more")


def test_blocks_cover_all_rows_once() -> None:
    for rows in (1, 63, 64, 65, 20_000):
        parts = list(_blocks(rows, 4096))
        assert [i for start, stop in parts for i in range(start, stop)] == list(range(rows))


def test_tables_of_another_shape_are_refused(tmp_path: Path) -> None:
    folder = save("llama", tmp_path / "llama", "equal", True)
    tiny.edit(folder, tensors={"lm_head.weight": torch.ones(70, 24)})
    with pytest.raises(ZeropassError, match=r"lm_head.weight has shape \(70, 24\)"):
        open_model(str(folder))


def test_padding_that_is_not_finite_does_not_untie_tables(tmp_path: Path) -> None:
    folder = save("llama", tmp_path / "llama", "equal", True)
    table = load_file(folder / "model.safetensors")["model.embed_tokens.weight"].clone()
    table[tiny.TOKENS :] = torch.nan
    tiny.edit(folder, tensors={"model.embed_tokens.weight": table, "lm_head.weight": table.clone()})
    model = open_model(str(folder))
    assert model.dims.tied
    assert torch.equal(model.embedding[: tiny.TOKENS], table[: tiny.TOKENS])
