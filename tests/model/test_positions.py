"""Frequencies under YaRN, rows of distances, and computed positions, are those of transformers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position
from transformers.models.m2m_100.modeling_m2m_100 import M2M100SinusoidalPositionalEmbedding
from transformers.models.marian.modeling_marian import MarianSinusoidalPositionalEmbedding

from tiny import edit, error, make, save
from zeropass.align.pair import pair_of
from zeropass.arch.config import _yarn_numbers
from zeropass.arch.spec import USUAL_OFFSET, Rope
from zeropass.errors import BadAddress, BadModel, BadOption, BadWeights, CannotRun, UnknownFamily
from zeropass.model.blocks import embedded
from zeropass.model.frames import Frames
from zeropass.model.opening import open_model
from zeropass.model.positions import _rescaled, distance_rows, frequencies
from zeropass.model.vectors import vector_set
from zeropass.numerics.projection import sinusoids
from zoo import tiny_model

OPTIONS = st.fixed_dictionaries(
    {"factor": st.floats(1, 64), "original_max_position_embeddings": st.integers(16, 8192)},
    optional={
        "beta_fast": st.floats(4, 64),
        "beta_slow": st.floats(0.5, 3),
        "truncate": st.booleans(),
        "attention_factor": st.floats(0.5, 2),
        "mscale": st.floats(0.5, 2),
        "mscale_all_dim": st.floats(0.5, 2),
    },
)


# Heads of two numbers, whose ends of the line change places, are rare among the generated ones.
SWAPPED = {"factor": 2.0, "original_max_position_embeddings": 2514, "beta_fast": 4.0, "truncate": False}


@example(options=SWAPPED, theta=100.0, half=1)
@given(options=OPTIONS, theta=st.floats(100, 1e6), half=st.integers(1, 64))
def test_the_frequencies_of_yarn_are_those_of_transformers(options: dict[str, Any], theta: float, half: int) -> None:
    settings = {"rope_type": "yarn", "rope_theta": theta, **options}
    config = LlamaConfig(head_dim=2 * half, max_position_embeddings=16384, rope_parameters=dict(settings))
    true, factor = ROPE_INIT_FUNCTIONS["yarn"](config, torch.device("cpu"))
    files: Any = type("Files", (), {"format": "hf", "config": {"max_position_embeddings": 16384}, "place": "here"})()
    rope = Rope(theta, "yarn", _yarn_numbers(files, settings))
    plain = theta ** (-torch.arange(0, 2 * half, 2, dtype=torch.float64) / (2 * half))
    assert error(_rescaled(plain, rope).float(), true) < 1e-4
    assert rope.options["attention_factor"] == pytest.approx(factor)


def test_options_of_yarn_that_cannot_be_are_refused(tmp_path: Path) -> None:
    folder = save(make("llama"), tmp_path / "llama")
    for options, message in (({"factor": 0}, "factor of the yarn RoPE is 0"), ({"factor": 2, "beta_fast": "x"}, "'x'")):
        edit(folder, {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, **options}})
        with pytest.raises(BadModel, match=message):
            open_model(str(folder))


def test_yarn_on_a_part_of_a_head_is_refused_unless_it_lengthens_nothing(tmp_path: Path) -> None:
    folder = save(tiny_model("phi"), tmp_path / "phi")
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
    yarn |= {"partial_rotary_factor": 2 / 3}
    edit(folder, {"rope_parameters": yarn})
    with pytest.raises(UnknownFamily, match="YaRN lengthens 4 of the 6 numbers of a head"):
        open_model(str(folder))
    edit(folder, {"rope_parameters": yarn | {"attention_factor": 1.0}})
    assert len(frequencies(open_model(str(folder)))) == 2


def test_yarn_of_a_file_without_its_options_is_not_known() -> None:
    with pytest.raises(BadOption, match=r"'yarn' is not known .*: only offset 0"):
        _rescaled(torch.ones(4), Rope(1e4, "yarn"))


# Computed positions


@pytest.mark.parametrize("width", [4, 24, 130])
def test_sinusoids_are_those_of_transformers(width: int) -> None:
    marian = MarianSinusoidalPositionalEmbedding(700, width).create_weight()
    fairseq = M2M100SinusoidalPositionalEmbedding.get_embedding(700, width)
    for rule, true in (("halves", marian), ("tensor2tensor", fairseq)):
        assert (sinusoids(rule, 3, 700, width) - true[3:]).abs().max() < 1e-4  # type: ignore[arg-type]


TABLE = "model.encoder.embed_positions.weight"
STORED: dict[str, tuple[Any, str]] = {
    "the computed ones": (lambda table: table, ""),
    "rounded": (lambda table: table.bfloat16(), ""),
    "trained": (lambda table: table + 0.05, "0.05 away from the sines and cosines that a marian computes"),
    "sines and cosines in turn": (lambda table: table.unflatten(1, (2, -1)).mT.flatten(1), "sines and cosines"),
    "one position further": (lambda table: table.roll(1, 0), "sines and cosines"),
    "not finite": (lambda table: table.log(), ""),
    "fewer": (lambda table: table[:-1], r"shape \(63, 24\); the configuration asks for \(64, 24\)"),
}


@pytest.mark.parametrize("change", STORED)
def test_stored_positions_are_those_that_are_computed(change: str, tmp_path: Path) -> None:
    folder = save(tiny_model("marian-encoder"), tmp_path)
    assert TABLE not in load_file(folder / "model.safetensors")
    changed, message = STORED[change]
    edit(folder, {}, {TABLE: changed(sinusoids("halves", 0, 64, 24)).contiguous()})
    if message or change == "not finite":
        with pytest.raises(BadWeights, match=message or TABLE):
            open_model(str(folder))
    else:
        model = open_model(str(folder))
        assert TABLE in model.info()["tensors_unread"]
        assert not model.tables()


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_the_tables_of_both_stacks_are_compared(stack: str, tmp_path: Path) -> None:
    """The row of padding, which is zero in fairseq's tables, is no position."""
    folder = save(tiny_model("m2m_100-encoder"), tmp_path)
    table = M2M100SinusoidalPositionalEmbedding.get_embedding(66, 24, 1)
    names = [f"model.{half}.embed_positions.weights" for half in ("encoder", "decoder")]
    edit(folder, {}, {name: table.clone() for name in names})
    assert not open_model(f"{folder}#{stack}").tables()
    for name in names:
        edit(folder, {}, {name: table.roll(1, 0)} | {other: table.clone() for other in names if other != name})
        with pytest.raises(BadWeights, match=name):
            open_model(f"{folder}#{stack}")


def test_a_computed_position_has_no_address(tmp_path: Path) -> None:
    model = open_model(str(save(tiny_model("m2m_100-encoder"), tmp_path)))
    assert model.info()["positions"] == "sinusoidal"
    assert any("not parameters" in note for note in model.info()["notes"])
    with pytest.raises(BadAddress, match="no pos, because it computes its positions"):
        vector_set(model, -1, "pos")


@torch.no_grad()
def test_positions_end_where_those_of_the_model_do(tmp_path: Path) -> None:
    ids = torch.arange(2, 60).repeat(2)[None]
    for name, longest in (("marian-encoder", 64), ("m2m_100-encoder", None)):
        hf = tiny_model(name)
        model = open_model(str(save(hf, tmp_path / name)))
        assert error(embedded(model, ids[:, :64]), start(hf, ids[:, :64])) < 1e-4
        if longest is None:
            assert error(embedded(model, ids), start(hf, ids)) < 1e-4
            continue
        with pytest.raises(CannotRun, match=f"has {longest} positions"):
            embedded(model, ids[:, : longest + 1])


def start(hf: Any, ids: Tensor) -> Tensor:
    """Return the stream before the first block of an encoder."""
    states: Tensor = hf.get_encoder()(ids, output_hidden_states=True).hidden_states[0]
    return states


@pytest.mark.parametrize(("reach", "buckets"), [(512, 256), (512, 64), (100, 32), (16, 8), (512, 0)])
def test_distances_have_the_rows_that_transformers_gives_them(reach: int, buckets: int, tmp_path: Path) -> None:
    model = open_model(str(save(tiny_model("deberta-v2"), tmp_path / "deberta")))
    model = replace(model, dims=replace(model.dims, distance_reach=reach, distance_buckets=buckets))
    offsets, span = torch.arange(-700, 701), buckets or reach
    bucketed = make_log_bucket_position(offsets, buckets, reach).long() if buckets else offsets
    assert distance_rows(model, offsets).equal((bucketed + span).clamp(0, 2 * span - 1))


def test_models_with_vectors_of_distances_are_compared_without_them(tmp_path: Path) -> None:
    model = open_model(str(save(tiny_model("deberta-v2"), tmp_path / "deberta")))
    cosines = pair_of(model, model).head_cosines("qk", (1, 1))
    assert cosines.diagonal().min() > 0.999
    maps = [Frames(model).head_map(1, 0, "qk", offset=offset) for offset in (0, 1, USUAL_OFFSET)]
    assert not torch.allclose(maps[0].left, maps[1].left)
    assert Frames(model).head_map(1, 0, "qk").left.equal(maps[2].left)
    with pytest.raises(BadOption, match="only offset 0"):
        Frames(model).head_map(1, 0, "qk", "paper", offset=1)
