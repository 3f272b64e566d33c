"""Adapters of embedding and unembedding on tied and untied bases, as PEFT runs them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, TrainableTokensConfig
from safetensors.torch import load_file

import tiny
import zeropass as zp
from adapters import alike, made, spoiled, trained
from gguf_files import convert, write_gguf
from zeropass.errors import BadModel
from zeropass.model.adapted import Adapted, adapt
from zeropass.model.frames import Frames

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")

E, U = "embed_tokens", "lm_head"

CASES: list[tuple[dict[str, Any], bool]] = [
    ({"modules_to_save": [U]}, False),
    ({"modules_to_save": [E]}, False),
    ({"modules_to_save": [E, U]}, False),
    ({"modules_to_save": [U], "ensure_weight_tying": True}, True),
    ({"modules_to_save": [E], "ensure_weight_tying": True}, True),
    ({"target_modules": ["q_proj", U]}, False),
    ({"target_modules": [E]}, False),
    ({"target_modules": [E, U]}, False),
    ({"target_modules": [U], "ensure_weight_tying": True}, True),
    ({"target_modules": [E, U], "ensure_weight_tying": True}, True),
    ({"target_modules": [E, U], "ensure_weight_tying": True, "alpha_pattern": {U: 11}}, False),
    ({"target_modules": [E, U], "use_dora": True}, False),
    ({"target_modules": [U], "modules_to_save": [E]}, False),
    ({"target_modules": [E], "modules_to_save": [U]}, False),
    ({"trainable_token_indices": [3, 60]}, True),
    ({"trainable_token_indices": {U: [3, 5]}}, False),
    ({"trainable_token_indices": {E: [3], U: [5, 4]}}, False),
    ({"trainable_token_indices": {E: [3, 5], U: [3, 5]}, "ensure_weight_tying": True}, True),
]
"""Settings of a LoRA, and whether a tied base stays tied under it, judged by the outputs of PEFT's modules."""


@pytest.mark.parametrize(("settings", "tied"), CASES)
def test_a_tied_base_is_read_as_peft_runs_it(settings: dict[str, Any], tied: bool, tmp_path: Path) -> None:
    adapted = made("llama-tied", tmp_path, **({"target_modules": ["q_proj"]} | settings))
    merged = zp.open_model(str(tmp_path / "merged"))
    assert adapted.dims.tied == merged.dims.tied == tied
    assert adapted.logit_table == ("embedding" if tied else "unembedding")
    alike(adapted, merged)
    torch.testing.assert_close(
        Frames(adapted).rows("output.read").matrix, Frames(merged).rows("output.read").matrix, rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("number", [0, 4, 6, 9, 14])
def test_an_untied_base_keeps_its_two_tables(number: int, tmp_path: Path) -> None:
    adapted = made("llama", tmp_path, **({"target_modules": ["q_proj"]} | CASES[number][0]))
    alike(adapted, zp.open_model(str(tmp_path / "merged")))
    assert not adapted.dims.tied


def test_every_accessor_gives_the_untied_table(tmp_path: Path) -> None:
    adapted = made("llama-tied", tmp_path, target_modules=["q_proj"], modules_to_save=[U])
    table = load_file(tmp_path / "adapter" / "adapter_model.safetensors")["base_model.model.lm_head.weight"]
    assert adapted.has("unembedding")
    assert not adapted.base.has("unembedding")
    assert not adapted.is_vector("unembedding")
    assert adapted.rows("unembedding") == 61
    assert adapted.stored_type("unembedding") == "F32"
    torch.testing.assert_close(adapted.unembedding, table)
    torch.testing.assert_close(adapted.tokens("unembedding", slice(3, 9)), table[3:9])
    assert adapted.info()["tied"] is False
    assert adapted.touches("unembedding")
    assert not adapted.touches("embedding")
    diff = zp.compare(adapted.base, adapted)
    assert {(matrix.layer, matrix.role) for matrix in diff.matrices} == {(0, "q"), (1, "q")}


def test_the_other_table_of_a_tied_base_stays_unchanged(tmp_path: Path) -> None:
    adapted = made("llama-tied", tmp_path, target_modules=[E])
    assert (adapted.rows("unembedding"), adapted.stored_type("unembedding")) == (61, "F32")
    torch.testing.assert_close(adapted.unembedding, adapted.base.embedding)
    assert not adapted.touches("unembedding")
    with pytest.raises(AssertionError):
        torch.testing.assert_close(adapted.embedding, adapted.base.embedding)


def gguf_twin(folder: Path) -> Adapted:
    path = write_gguf(folder / "base", folder / "base.gguf")
    return adapt(zp.open_model(str(path)), folder / "adapter")


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj", "k_proj", "o_proj", U]},
        {"target_modules": ["q_proj"], "modules_to_save": [E, "norm", "input_layernorm"]},
        {"target_modules": ["v_proj"], "trainable_token_indices": [7], "bias": "all"},
    ],
)
def test_a_gguf_file_is_a_base_like_any_other(settings: dict[str, Any], tmp_path: Path) -> None:
    adapted = made("llama-rope3", tmp_path, **settings)
    alike(gguf_twin(tmp_path), zp.open_model(str(tmp_path / "merged")))
    alike(gguf_twin(tmp_path), adapted)


def test_a_tied_gguf_file_is_untied_like_a_folder(tmp_path: Path) -> None:
    made("llama-tied", tmp_path, target_modules=["q_proj", U])
    path = convert(tmp_path / "base", tmp_path / "base.gguf")
    adapted = adapt(zp.open_model(str(path)), tmp_path / "adapter")
    alike(adapted, zp.open_model(str(tmp_path / "merged")))
    assert adapted.base.dims.tied
    assert not adapted.dims.tied


def test_a_second_table_is_loaded_into_the_tied_one(tmp_path: Path) -> None:
    adapted = made("llama-tied", tmp_path, target_modules=["q_proj"])
    table = torch.randn(61, 24)
    name = "base_model.model.lm_head.weight"
    again = adapt(adapted.base, spoiled(tmp_path / "adapter", {}, {name: table}))
    assert again.dims.tied  # no modules_to_save: PEFT loads it into the only table
    torch.testing.assert_close(again.embedding, table)
    torch.testing.assert_close(again.unembedding, table)
    for other in (table + 1, adapted.base.embedding):
        both = {name: table, "base_model.model.model.embed_tokens.weight": other}
        with pytest.raises(BadModel, match="two tables"):
            adapt(adapted.base, spoiled(tmp_path / "adapter", {}, both))


@pytest.mark.parametrize(
    ("settings", "changed"),
    [
        ({"modules_to_save": [E]}, "base_model.model.lm_head.weight"),
        ({"target_modules": [E]}, "base_model.model.lm_head.lora_B.weight"),
    ],
)
def test_tables_that_should_stay_tied_may_not_differ(settings: dict[str, Any], changed: str, tmp_path: Path) -> None:
    adapted = made("llama-tied", tmp_path, **({"target_modules": ["q_proj"]} | settings), ensure_weight_tying=True)
    tensor = load_file(tmp_path / "adapter" / "adapter_model.safetensors")[changed]
    with pytest.raises(BadModel, match="stay tied"):
        adapt(adapted.base, spoiled(tmp_path / "adapter", {}, {changed: tensor + 1}))


def test_trained_tokens_beside_another_head_are_refused(tmp_path: Path) -> None:
    adapted = made("llama-tied", tmp_path, target_modules=["q_proj", U])
    rows = {"base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta": torch.zeros(1, 24)}
    with pytest.raises(BadModel, match="in another way"):
        adapt(adapted.base, spoiled(tmp_path / "adapter", {"trainable_token_indices": [3]}, rows))
    adapted = made("llama-tied", tmp_path / "second", target_modules=["q_proj"], modules_to_save=[U])
    with pytest.raises(BadModel, match="beside it"):
        adapt(adapted.base, spoiled(tmp_path / "second" / "adapter", {"trainable_token_indices": [3]}, rows))


@pytest.mark.parametrize(("targets", "tied"), [([E], True), ([U], False), ([U, E], True)])
def test_trained_tokens_alone_are_read(targets: list[str], tied: bool, tmp_path: Path) -> None:
    if len(targets) == 1:
        adapted = trained("llama-tied", tmp_path, TrainableTokensConfig(token_indices=[3, 7], target_modules=targets))
        assert adapted.dims.tied == tied
        alike(adapted, zp.open_model(str(tmp_path / "merged")))
    adapted = trained("llama", tmp_path / "untied", TrainableTokensConfig(token_indices=[9, 2], target_modules=targets))
    alike(adapted, zp.open_model(str(tmp_path / "untied" / "merged")))


def test_an_encoder_without_a_head_is_read_through_its_embedding(tmp_path: Path) -> None:
    adapted = made("bert", tmp_path, target_modules=["word_embeddings"])
    assert adapted.dims.tied
    assert adapted.logit_table == "embedding"
    torch.testing.assert_close(adapted.unembedding, adapted.embedding)
    assert not torch.equal(adapted.embedding, adapted.base.embedding)


def test_an_encoder_with_a_head_is_untied_like_a_decoder(tmp_path: Path) -> None:
    adapted = made("bert-mlm", tmp_path, target_modules=["word_embeddings"])
    alike(adapted, zp.open_model(str(tmp_path / "merged")))
    assert not adapted.dims.tied
    torch.testing.assert_close(adapted.unembedding, adapted.base.embedding)


def test_a_narrow_embedding_is_projected_to_the_stream(tmp_path: Path) -> None:
    adapted = trained("electra", tmp_path, LoraConfig(r=2, target_modules=["embeddings_project", "query"]))
    merged = zp.open_model(str(tmp_path / "merged"))
    torch.testing.assert_close(adapted.embedding, merged.embedding, rtol=1e-3, atol=1e-4)


def test_a_scaled_table_unties_a_tied_base(tmp_path: Path) -> None:
    adapted = trained("llama-tied", tmp_path, IA3Config(target_modules=[U, "v_proj"], feedforward_modules=[]))
    assert not adapted.dims.tied
    alike(adapted, zp.open_model(str(tmp_path / "merged")))
    assert tiny.error(adapted.embedding, adapted.base.embedding) == 0
