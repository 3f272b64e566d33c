"""Frequencies under each rule, rows of distances, and computed positions, are those of transformers."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import load_file
from test_every_family import Case, first_logits, map_error, rescaled
from torch import Tensor
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position
from transformers.models.m2m_100.modeling_m2m_100 import M2M100SinusoidalPositionalEmbedding
from transformers.models.marian.modeling_marian import MarianSinusoidalPositionalEmbedding

from tiny import edit, error, make, save
from zeropass.align.pair import pair_of
from zeropass.arch.dimensions import Rope
from zeropass.arch.frame_names import USUAL_OFFSET
from zeropass.arch.rotary import _longrope_numbers, _yarn_numbers
from zeropass.errors import BadAddress, BadModel, BadOption, BadWeights, CannotRun, UnknownFamily
from zeropass.model.blocks import Block, Cache, embedded, final_logits
from zeropass.model.frames import Frames
from zeropass.model.opening import open_model
from zeropass.model.positions import _rescaled, distance_rows, frequencies
from zeropass.model.vectors import vector_set
from zeropass.numerics.projection import sinusoids
from zoo import ZOO, tiny_model

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


@given(
    divisors=st.lists(st.tuples(st.floats(0.5, 8), st.floats(1, 64)), min_size=1, max_size=32),
    length=st.integers(2, 8192),
    longest=st.integers(2, 65536),
    stated=st.fixed_dictionaries({}, optional={"factor": st.floats(0.5, 64), "attention_factor": st.floats(0.5, 2)}),
)
def test_the_frequencies_of_longrope_are_those_of_transformers(
    divisors: list[tuple[float, float]], length: int, longest: int, stated: dict[str, float]
) -> None:
    short, long = (list(numbers) for numbers in zip(*divisors, strict=True))
    settings = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": short, "long_factor": long, **stated}
    width, inside = 2 * len(short), {"original_max_position_embeddings": length}
    config = LlamaConfig(head_dim=width, max_position_embeddings=longest, rope_parameters=settings | inside)
    files: Any = type("Files", (), {"format": "hf", "config": {"max_position_embeddings": longest}, "place": "here"})()
    rope = Rope(1e4, "longrope", _longrope_numbers(files, settings | inside, None), tuple(short), tuple(long))
    plain = 1e4 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    for tokens in (1, length, length + 1):
        true, factor = ROPE_INIT_FUNCTIONS["longrope"](config, torch.device("cpu"), seq_len=tokens)
        assert error(_rescaled(plain, rope, tokens - 1).float(), true) < 1e-4
        assert rope.lengthening == pytest.approx(factor)


@given(factor=st.floats(1, 64), longest=st.integers(2, 8192), half=st.integers(2, 64), times=st.floats(0.1, 8))
def test_the_frequencies_of_the_dynamic_rule_are_those_of_transformers(
    factor: float, longest: int, half: int, times: float
) -> None:
    settings = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": factor}
    config = LlamaConfig(head_dim=2 * half, max_position_embeddings=longest, rope_parameters=dict(settings))
    rope = Rope(1e4, "dynamic", {"factor": factor, "original_max_position_embeddings": float(longest)})
    plain = 1e4 ** (-torch.arange(0, 2 * half, 2, dtype=torch.float64) / (2 * half))
    for tokens in (1, longest, longest + 1, math.ceil(times * longest)):
        true, _ = ROPE_INIT_FUNCTIONS["dynamic"](config, torch.device("cpu"), seq_len=tokens)
        assert error(_rescaled(plain, rope, tokens - 1).float(), true) < 1e-4


@torch.no_grad()
def test_what_lengthens_a_part_of_a_head_is_in_its_map_and_in_what_the_bias_of_its_queries_meets(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name, config, settings = ZOO["phi"]
    yarn = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 64}
    yarn |= {"partial_rotary_factor": 2 / 3}
    monkeypatch.setitem(ZOO, "phi", (name, config, settings | {"rope_parameters": yarn}))
    hf = tiny_model("phi")
    model = open_model(str(save(hf, tmp_path / "phi")))
    case = Case(hf, model, torch.arange(4, 19).reshape(3, 5))
    assert map_error(case, model) < 1e-4
    assert map_error(case, rescaled(model, attention_factor=1.0) or model) > 0.01
    true = first_logits(case.pairs(17, 0))[:, :, 1, 0]
    hf.model.layers[0].self_attn.q_proj.bias.zero_()
    true = true - first_logits(case.pairs(17, 0))[:, :, 1, 0]
    biases, frames = vector_set(model, 0, "q_bias"), Frames(model)
    rows = frames.rows("embedded").matrix @ frames.fold(biases.vectors, "token", biases.side, biases.norm, 0).T
    scores = (model.dims.attention_scale * rows, true)
    assert error(*(each - each.mean(0) for each in scores)) < 1e-4


LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
LENGTHS = {"original_max_position_embeddings": 32, "max_position_embeddings": 512}
IMPOSSIBLE: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "no divisors": ({"long_factor": None}, {}, "long_factor of the longrope RoPE is None; it must be 4 numbers, one"),
    "too few divisors": ({"short_factor": [1.0]}, {}, "short_factor of the longrope RoPE is 1 numbers; it must be 4"),
    "a divisor of zero": (
        {"short_factor": [1.0, 0, 1.0, 1.0]},
        {},
        "short_factor of the longrope RoPE, number 1, is 0",
    ),
    "no length": ({}, {"original_max_position_embeddings": None}, "original_max_position_embeddings of the longrope"),
    "a length of 1": ({}, {"original_max_position_embeddings": 1}, "is 1; the longrope RoPE needs more than 1"),
    "no factor": ({}, {"max_position_embeddings": None}, "factor of the longrope RoPE is None"),
    "no attention": ({"attention_factor": 0}, {}, "attention_factor of the longrope RoPE is 0"),
    "dynamic, no length": ({"rope_type": "dynamic", "factor": 2.0}, {"max_position_embeddings": None}, "which the dyn"),
    "dynamic, no factor": ({"rope_type": "dynamic"}, {}, "factor of the dynamic RoPE is None"),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_options_of_rules_by_length_that_cannot_be_are_refused(case: str, tmp_path: Path) -> None:
    options, lengths, message = IMPOSSIBLE[case]
    folder = save(make("llama"), tmp_path / "llama")
    edit(folder, {**LENGTHS, **lengths, "rope_parameters": LONGROPE | options})
    with pytest.raises(BadModel, match=message):
        open_model(str(folder))


def test_an_unknown_rule_on_a_part_of_a_head_is_refused(tmp_path: Path) -> None:
    """It may lengthen what it rotates, which would change the map even at offset 0."""
    folder = save(tiny_model("phi"), tmp_path / "phi")
    edit(folder, {"rope_parameters": {"rope_type": "ntk", "rope_theta": 1e4, "partial_rotary_factor": 2 / 3}})
    with pytest.raises(UnknownFamily, match=r"'ntk' is not known .* lengthen the 4 numbers .* against the other 2"):
        open_model(str(folder))


def test_texts_of_phimoe_beyond_its_length_are_refused(tmp_path: Path) -> None:
    """transformers rotates them as its short ones, the code that came with the model does not."""
    model = open_model(str(save(tiny_model("phimoe"), tmp_path / "phimoe")))
    assert len(frequencies(model, 0, 511)) == 3
    with pytest.raises(BadOption, match="of more than 512 tokens are not known"):
        frequencies(model, 0, 512)


def test_earlier_names_of_longrope_are_those_of_phi3(tmp_path: Path) -> None:
    """transformers takes ``yarn`` for it too, but the code of that time lengthened by another factor."""
    folder = save(tiny_model("phi3"), tmp_path / "phi3")
    true = open_model(str(folder)).dims.rope
    options = json.loads((folder / "config.json").read_text())["rope_parameters"]
    edit(folder, {"rope_parameters": options | {"rope_type": "su"}})
    assert open_model(str(folder)).dims.rope == true
    edit(folder, {"rope_parameters": options | {"rope_type": "yarn"}})
    with pytest.raises(UnknownFamily, match="'yarn of Phi-3' is not known"):
        open_model(str(folder))


@torch.no_grad()
def test_a_text_that_grows_past_the_original_length_is_run_at_once(tmp_path: Path) -> None:
    """Kept keys were turned by other frequencies: of a text within it, or under the dynamic rule of any shorter one."""
    for name, beyond_goes_on in (("phi3", True), ("internlm3", False)):
        hf = tiny_model(name)
        model = open_model(str(save(hf, tmp_path / name)))
        ids = torch.randint(2, 58, (1, 40), generator=torch.Generator().manual_seed(1))
        for tokens in (32, 40):
            x = embedded(model, ids[:, :tokens])
            for layer in range(model.dims.layers):
                x = Block(model, layer)(x)
            assert error(final_logits(model, x), hf(ids[:, :tokens]).logits) < 1e-4
        cache, x = Cache(), embedded(model, ids)
        Block(model, 0)(x[:, :30], cache)
        Block(model, 0)(x[:, 30:32], cache)
        with pytest.raises(CannotRun, match=r"a text of more than 32 tokens, so such a text is run at once"):
            Block(model, 0)(x[:, 32:], cache)
        cache, whole = Cache(), Block(model, 0)(x)
        Block(model, 0)(x[:, :36], cache)
        if beyond_goes_on:
            assert error(Block(model, 0)(x[:, 36:], cache), whole[:, 36:]) < 1e-4
        else:
            with pytest.raises(CannotRun, match="run at once"):
                Block(model, 0)(x[:, 36:], cache)


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


def test_models_are_compared_by_maps_in_which_a_part_of_a_head_is_lengthened(tmp_path: Path) -> None:
    model = open_model(str(save(tiny_model("phi3"), tmp_path / "phi3")))
    (space, left), _ = pair_of(model, model).first.head_maps(0, "qk")
    frames = Frames(model)
    scores = (frames.rows(space).matrix @ left.T)[:, : model.dims.head_dim]
    map_side = frames.head_map(0, 0, "qk").left
    assert error(scores / scores.norm(), map_side / map_side.norm()) < 1e-5


def test_models_with_vectors_of_distances_are_compared_without_them(tmp_path: Path) -> None:
    model = open_model(str(save(tiny_model("deberta-v2"), tmp_path / "deberta")))
    cosines = pair_of(model, model).head_cosines("qk", (1, 1))
    assert cosines.diagonal().min() > 0.999
    maps = [Frames(model).head_map(1, 0, "qk", offset=offset) for offset in (0, 1, USUAL_OFFSET)]
    assert not torch.allclose(maps[0].left, maps[1].left)
    assert Frames(model).head_map(1, 0, "qk").left.equal(maps[2].left)
    with pytest.raises(BadOption, match="only offset 0"):
        Frames(model).head_map(1, 0, "qk", "paper", offset=1)
