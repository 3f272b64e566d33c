"""Directions of the stream: read as parameters at the same place are, and refused by name if they are none."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import small
import zeropass as zp
from zeropass.errors import BadAddress, BadOption

KINDS = ["llama", "gpt2", "bert"]


@pytest.fixture(scope="module", params=KINDS)
def reader(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> zp.Lens:
    """Return a reader with a lens."""
    folder = tmp_path_factory.mktemp(request.param)
    model = zp.open_model(str(small.VARIANTS[request.param](folder / "model")))
    lens = zp.calibrate(model, folder / "lens", source="random", tokens=512)
    return zp.Lens.over(zp.Frames(model, lens))


def lists(records: Any) -> list[tuple[str, list[tuple[int, float]], Any]]:
    return [(r.frame, [(t.id, round(t.z, 4)) for t in (*r.top, *r.bottom)], r.coherence) for r in records]


def test_a_parameter_s_vector_has_the_parameter_s_lists(reader: zp.Lens) -> None:
    reading = next(role for role in reader.model.family.ff_roles if role != "value")
    for layer in (0, 1, 2):
        for address, role, row, place in (
            (f"L{layer}.ff.5.value", "value", 5, ("write", "ff")),
            (f"L{layer}.ff.5.{reading}", reading, 5, ("read", "ff")),
            (f"L{layer}.attn.0.o.3", "o", 3, ("write", "attn")),
            (f"L{layer}.attn.0.q.3", "q", 3, ("read", "attn")),
        ):
            vector = reader.vectors(layer, role).vectors[row]
            records = reader.direction(vector, layer=layer, side=place[0], at=place[1])
            assert lists(records) == lists(reader[address])
            assert {record.role for record in records} == {"direction"}
            assert {record.evidence for record in records} == {None}
            paper = reader.direction(vector, layer=layer, side=place[0], at=place[1], frame="paper")
            assert lists(paper) == lists(reader.explain(address, frame="paper"))


def test_what_enters_a_layer_is_passed_on_by_it_and_all_behind(reader: zp.Lens) -> None:
    """By the lens: the map of what is added before a layer; the end of the stream meets the final norm alone."""
    vector = torch.randn(reader.model.dims.d, generator=torch.Generator().manual_seed(1))
    maps, layers = reader.frames.require_lens("effect"), reader.model.dims.layers
    rows = reader.frames.rows("output.write")
    for layer, name in ((0, "effect.start"), (1, "effect.0.ff"), (layers, f"effect.{layers - 1}.ff")):
        (record,) = reader.direction(vector, layer=layer, side="write", frame="effect", k=5)
        scores = rows.matrix @ (vector @ maps.map(name))
        assert [token.score for token in record.top] == pytest.approx(
            [float(scores[token.id]) for token in record.top], rel=1e-4, abs=1e-5
        )
    frames = {layer: [r.frame for r in reader.direction(vector, layer=layer)] for layer in (0, 1, layers)}
    assert frames[0] == ["seen", "output", "effect"]
    assert frames[1] == frames[layers] == ["seen", "output", "distinctive", "effect"]


def test_several_directions_of_any_type_are_numbered(reader: zp.Lens) -> None:
    table = np.random.default_rng(0).normal(size=(2, reader.model.dims.d))
    records = reader.direction(table, layer=1, side="read", frame="token", k=3)
    assert [record.address for record in records] == ["L1.block.0", "L1.block.1"]
    for row, record in enumerate(records):
        for other in (table[row], torch.from_numpy(table[row]).to(torch.float64), table[row].tolist()):
            assert lists(reader.direction(other, layer=1, side="read", frame="token", k=3)) == lists([record])
    assert reader.direction(table, layer=1).to_pandas().address.nunique() == 2


def wrong(d: int) -> dict[str, tuple[Any, dict[str, Any], type[Exception], str]]:
    ones = np.ones(d)
    return {
        "width": (np.ones(d + 1), {}, BadOption, "have the shape"),
        "shape": (np.ones((1, 1, d)), {}, BadOption, "have the shape"),
        "text": (["a"] * d, {}, BadOption, "tensors, arrays or lists"),
        "truth": (np.ones(d, bool), {}, BadOption, "bool"),
        "nan": (np.full(d, np.nan), {}, BadOption, "is zero, not finite or too long \\(nan"),
        "zero": (np.zeros((2, d)), {}, BadOption, "direction 0 is zero"),
        "none": (np.zeros((0, d)), {}, BadOption, "none in an empty table"),
        "layer": (ones, {"layer": 99}, BadAddress, "Layer 99 is out of range"),
        "end": (ones, {"layer": small.LAYERS, "at": "ff"}, BadAddress, "out of range"),
        "side": (ones, {"side": "up"}, BadOption, "sides are read and write"),
        "place": (ones, {"at": "mlp"}, BadOption, "places attn, ff, block, mid"),
        "frame": (ones, {"side": "read", "frame": "effect"}, BadOption, "no list in the effect frame"),
        "no frame": (ones, {"frame": "word"}, BadOption, "no frame 'word'"),
        "count": (ones, {"k": 0}, BadOption, "at least 1"),
    }


@pytest.mark.parametrize("case", list(wrong(4)))
def test_what_is_no_direction_is_refused(reader: zp.Lens, case: str) -> None:
    vectors, options, error, words = wrong(reader.model.dims.d)[case]
    with pytest.raises(error, match=words):
        reader.direction(vectors, **({"layer": 1} | options))


def test_directions_need_no_lens(tmp_path: Path) -> None:
    reader = zp.load(str(small.llama(tmp_path / "model")), lens=None)
    records = reader.direction(torch.ones(small.D), layer=1)
    assert [(record.side, record.frame) for record in records] == [
        ("read", "token"),
        ("read", "output"),
        ("write", "output"),
    ]
    assert "random" in records.note
    assert "measurement" not in records.note


def test_tokens_span_the_direction_between_their_states(reader: zp.Lens) -> None:
    """The slow way: the state of every token at the layer, and the mean over those that the model uses."""
    maps, layers = reader.frames.require_lens("seen"), reader.model.dims.layers
    weights = {300: 0.5, 301: 0.5, 400: -0.25}
    plain = zp.Lens(reader.model)
    for layer in (0, 1, layers):
        rows = reader.frames.rows("embedded" if layer == 0 else "token").matrix
        carried = maps.seen(layer)
        states = rows if carried is None else rows @ carried[0] + carried[1]
        for lens, table in ((reader, states), (plain, rows)):
            mean = table[lens.frames.used].mean(0)
            expected = sum(weight * (table[token] - mean) for token, weight in weights.items())
            assert torch.allclose(lens.token_direction(weights, layer), expected, rtol=1e-3, atol=1e-4)
    for wrong, error in ((-1, BadAddress), (layers + 1, BadAddress)):
        with pytest.raises(error, match=f"0 to {layers}, the end"):
            reader.token_direction(weights, wrong)
    for token in (-1, small.V):
        with pytest.raises(BadOption, match=f"There is no token {token}"):
            reader.token_direction({token: 1.0}, 1)
