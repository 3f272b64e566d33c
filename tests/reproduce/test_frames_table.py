"""The script reproduce/frames.py on a tiny random Llama, where layer 0 must come out exactly."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import planted_models as planted
from scripts import ROOT, imported
from zeropass.errors import BadAddress, BadOption
from zeropass.model.frames import Frames
from zeropass.model.opening import open_model

transformers = pytest.importorskip("transformers")

TEXT = "the cat sat on the mat and the dog saw that the cat had the hat " * 8


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return imported(ROOT / "reproduce", ["frames"])[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a random Llama of two layers, with gains that are not one, and a tokenizer of single bytes."""
    path = tmp_path_factory.mktemp("tiny")
    config = transformers.LlamaConfig(
        vocab_size=256,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    torch.manual_seed(0)
    running = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in running.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
    return planted.save(running, path)


@pytest.fixture(scope="module")
def settings(script: ModuleType) -> Any:
    return script.Settings(tokens=400, pair_tokens=128, window=64, vectors=20, layers=(0, 1), head_layers=(0, 1))


@pytest.fixture(scope="module")
def tables(script: ModuleType, folder: Path, settings: Any) -> Any:
    return script.measure(str(folder), folder, TEXT, settings)


def test_layer_0_columns_read_the_token_itself(tables: Any) -> None:
    for layer, _role, _raw, normed, token, *_rest in tables[1].rows[:3]:
        assert layer == "0"
        assert normed == pytest.approx(1, abs=1e-3)
        assert token == normed


def test_layer_0_logits_are_those_of_the_token_frame_at_true_offsets(tables: Any) -> None:
    layer, _raw, fixed, true, shuffled, rest = tables[2].rows[0]
    assert layer == "0"
    assert (true, rest) == (pytest.approx(1, abs=1e-5), pytest.approx(1, abs=1e-5))
    assert shuffled < fixed < true


def test_the_report_states_how_it_was_measured(script: ModuleType, tables: Any, settings: Any) -> None:
    page = script.report(tables, "tiny", "made up", settings)
    assert "tiny; text: made up; seed 0; windows of 64 tokens" in page
    assert page.count("| layer |") == 5
    assert "heads where it is the best assumption" in page


def test_assumed_offsets_are_those_of_the_library(script: ModuleType, folder: Path) -> None:
    frames, ids = Frames(open_model(str(folder))), torch.arange(20, 40)
    everything = torch.ones(20, 20)
    q, k = script.sides(frames, 1, "token", ids)
    for offset, scores in zip(script.FIXED, script.at_assumed_offsets(q, k, frames.frequencies()), strict=False):
        for head in range(4):
            factors = frames.head_map(1, head, "qk", "token", offset)
            expected = script.centred((factors.left[ids] @ factors.right[ids].T)[None], everything)[0]
            torch.testing.assert_close(script.centred(scores, everything)[head], expected, atol=1e-4, rtol=1e-4)


def test_next_token_means_leave_out_what_the_current_token_explains(script: ModuleType) -> None:
    ids = torch.randint(0, 4, (300,), generator=torch.Generator().manual_seed(1))
    types = script.Types.of(ids[:-1], ids[1:], 5)
    values = torch.randn(299, 2, generator=torch.Generator().manual_seed(2))
    means = script.Means.empty(types, 2)
    for part in (slice(0, 100), slice(100, 299)):
        means.add(part, values[part])
    left = values.clone()
    for i in range(4):
        left[ids[:-1] == i] -= values[ids[:-1] == i].mean(0)
    expected = torch.stack([left[ids[1:] == i].mean(0) for i in range(4)])
    torch.testing.assert_close(means.by_following().float(), expected)


def test_spearman_ranks_and_cells_are_rounded(script: ModuleType) -> None:
    x = torch.tensor([[1.0, 1.0], [2.0, 2.0], [9.0, 3.0]])
    assert script.spearman(x, torch.tensor([[0.0, 9.0], [1.0, 4.0], [2.0, 1.0]])).tolist() == pytest.approx([1, -1])
    assert [script._cell(v) for v in (0.123, -0.5, -0.001, 0.999, "q")] == [".12", "-.50", ".00", "1.00", "q"]


def test_a_text_that_is_too_short_is_refused(script: ModuleType, folder: Path, settings: Any) -> None:
    with pytest.raises(BadOption, match="The text has 3 tokens, but 401 are needed"):
        script.measure(str(folder), folder, "the", settings)


def test_a_layer_that_the_model_lacks_is_refused(script: ModuleType, folder: Path) -> None:
    with pytest.raises(BadAddress, match="Layer 3 is out of range"):
        script.measure(str(folder), folder, TEXT, script.Settings())
