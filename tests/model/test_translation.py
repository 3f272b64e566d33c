"""Translation from one stream to another: every kernel against the plain formula and on a rotated model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import orthogonal_procrustes
from torch import Tensor

import twins
import zeropass as zp
from zeropass.errors import BadOption
from zeropass.model.translation import (
    _SOLVED,
    FRAMES,
    HEAD_OF_ZIPF,
    KERNELS,
    RIDGE,
    Bridge,
    _sums,
    bridge,
    from_anchors,
    translate,
)

MODELS = Path(__file__).parents[2] / "models"
EXACT = ("orthogonal", "centred", "pinv")


@pytest.fixture(scope="module")
def first() -> zp.Model:
    return zp.open_model(str(MODELS / "first"))


@pytest.fixture(scope="module")
def moved(first: zp.Model, tmp_path_factory: pytest.TempPathFactory) -> zp.Model:
    """Return a model that computes the same function: rotated, permuted, with signs flipped."""
    return zp.open_model(str(twins.twin(first, 4, tmp_path_factory.mktemp("twin") / "model")[0]))


@pytest.fixture(scope="module")
def across(first: zp.Model, moved: zp.Model) -> Bridge:
    return bridge(first, moved)


def rows(draw: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Draw related anchors of two widths, and weights."""
    n, a, b = draw(st.integers(30, 60)), draw(st.integers(2, 9)), draw(st.integers(2, 9))
    seed = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    x = torch.randn(n, a, generator=seed) + torch.randn(a, generator=seed)
    y = x @ torch.randn(a, b, generator=seed) + 0.3 * torch.randn(n, b, generator=seed)
    return x, y, torch.rand(n, generator=seed) + 0.1


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_kernels_are_the_plain_formulas(data: st.DataObject) -> None:
    x, y, w = rows(data.draw)
    ids = torch.arange(len(x))
    a, b = x.double(), y.double()
    plain, weighted = _sums(x, y, (ids, ids), None), _sums(x, y, (ids, ids), w)
    torch.testing.assert_close(_SOLVED["pinv"](plain, 0), a.T @ torch.linalg.pinv(b).T, rtol=1e-6, atol=1e-8)
    damp = (RIDGE * a.square().sum() / a.shape[1]).sqrt() * torch.eye(a.shape[1], dtype=torch.float64)
    padded = torch.cat([a, damp]), torch.cat([b, torch.zeros(a.shape[1], b.shape[1], dtype=torch.float64)])
    torch.testing.assert_close(_SOLVED["ridge"](plain, 0), torch.linalg.lstsq(*padded).solution, rtol=1e-6, atol=1e-8)
    root = w.double().sqrt()[:, None]
    wide = _sums((root * a).float(), (root * b).float(), (ids, ids), None)
    torch.testing.assert_close(_SOLVED["ridge"](weighted, 0), _SOLVED["ridge"](wide, 0), rtol=1e-4, atol=1e-5)
    if a.shape[1] == b.shape[1]:
        rotation = torch.from_numpy(orthogonal_procrustes(a.numpy(), b.numpy())[0])
        weight = _SOLVED["orthogonal"](plain, 0)
        torch.testing.assert_close(weight / weight.norm(), rotation / rotation.norm(), rtol=1e-5, atol=1e-6)
    weight = _SOLVED["orthogonal"](plain, 0)
    assert float((a @ weight).norm()) == pytest.approx(float(b.norm()), rel=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_centring_subtracts_the_means(data: st.DataObject) -> None:
    x, y, w = rows(data.draw)
    ids, share = torch.arange(len(x)), (w / w.sum())[:, None].double()
    centred = _sums(x, y, (ids, ids), w).centred
    a, b = x.double() - (share * x).sum(0), y.double() - (share * y).sum(0)
    for product, slow in ((centred.xx, (a.T * w) @ a), (centred.yy, (b.T * w) @ b), (centred.xy, (a.T * w) @ b)):
        torch.testing.assert_close(product, slow, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_rotation_is_found(across: Bridge, first: zp.Model, moved: zp.Model, kernel: str, frame: str) -> None:
    translation = across.translation(kernel, frame)
    distance = (translation.states(first.embedding) - moved.embedding).norm() / moved.embedding.norm()
    assert distance < (1e-3 if kernel in EXACT else 0.2)
    assert across.fit(kernel, frame) > 0.99
    assert across.shuffled(0).fit(kernel, frame) < 0.05


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_wrong_partners_share_the_sums_of_the_right_ones(across: Bridge, kernel: str, frame: str) -> None:
    fast = across.shuffled(3).translation(kernel, frame)
    slow = Bridge(across.first, across.second, across.shared.shuffled(3)).translation(kernel, frame)
    torch.testing.assert_close(fast.weight, slow.weight, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(fast.bias, slow.bias, rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def through(first: zp.Model, moved: zp.Model) -> Bridge:
    """Return the bridge between twins through lenses of the same tokens."""
    lenses = [zp.calibrate(model, source="random", tokens=512) for model in (first, moved)]
    return bridge(first, moved, (lenses[0], lenses[1]))


@pytest.mark.parametrize("layers", [(0, 0), (2, 2), (4, 4)])
def test_a_rotation_is_found_through_lenses(
    through: Bridge, across: Bridge, first: zp.Model, moved: zp.Model, layers: tuple[int, int]
) -> None:
    assert through.frames == ("seen", *FRAMES)
    assert across.frames == FRAMES
    translation = through.at(layers).translation("orthogonal", "seen")
    distance = (translation.states(first.embedding) - moved.embedding).norm() / moved.embedding.norm()
    assert distance < 0.02
    assert through.at(layers).fit("orthogonal", "seen") > 0.99
    assert through.at(layers).shuffled(0).fit("orthogonal", "seen") < 0.05


@pytest.mark.parametrize("kernel", KERNELS)
def test_anchors_through_lenses_are_the_mean_states_of_tokens(through: Bridge, kernel: str) -> None:
    anchors = []
    for side, layer, ids in zip((through.first, through.second), (1, 3), through.shared.pairs, strict=True):
        assert side.lens is not None
        linear, shift = side.lens.seen(layer) or (torch.zeros(0), torch.zeros(0))
        anchors.append(side.rows("token").matrix[ids] @ linear + shift)
    if kernel != "weighted":
        slow = from_anchors(anchors[0], anchors[1], kernel)
        fast = through.at((1, 3)).translation(kernel, "seen")
        torch.testing.assert_close(fast.weight, slow.weight, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(fast.bias, slow.bias, rtol=1e-3, atol=1e-4)
    fast = through.at((1, 3)).shuffled(3).translation(kernel, "seen")
    slow = Bridge(through.first, through.second, through.shared.shuffled(3), (1, 3)).translation(kernel, "seen")
    torch.testing.assert_close(fast.weight, slow.weight, rtol=1e-4, atol=1e-6)
    back = through.at((1, 3)).back
    assert back.layers == (3, 1)


def test_what_a_frame_of_lenses_lacks_is_named(through: Bridge, across: Bridge) -> None:
    with pytest.raises(BadOption, match="here no layers are given"):
        through.translation("orthogonal", "seen")
    with pytest.raises(BadOption, match="The frame seen needs a lens of the model"):
        across.at((1, 1)).translation("orthogonal", "seen")


def test_readers_are_translated_by_the_transpose(across: Bridge, moved: zp.Model) -> None:
    translation = across.translation("ridge", "both")
    draw = torch.Generator().manual_seed(0)
    x, w = torch.randn(5, moved.dims.d, generator=draw), torch.randn(3, moved.dims.d, generator=draw)
    scores = translation.states(x) @ w.T
    torch.testing.assert_close(x @ translation.readers(w).T + w @ translation.bias, scores, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(
        translation.directions(x), translation.states(x) - translation.bias, rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(translation.scaled(2.0).states(x), 2 * translation.states(x))


def test_vectors_that_read_and_write_are_translated_to_their_twins(first: zp.Model, moved: zp.Model) -> None:
    gain = first.vector("ff_norm", 1)
    assert gain is not None
    for role, side, vectors in (
        ("gate", "read", first.matrix("gate", 1) * gain),
        ("value", "write", first.matrix("value", 1)),
    ):
        there = translate(vectors, first, moved, side=side)  # type: ignore[arg-type]
        cosines = torch.nn.functional.normalize(there) @ torch.nn.functional.normalize(moved.matrix(role, 1)).T
        assert float(cosines.abs().amax(1).min()) > 0.999


def test_both_directions_of_a_bridge_share_their_tables(across: Bridge) -> None:
    across.translation("pinv", "token")
    back = across.back
    assert back.first is across.second
    assert {id(rows) for rows in back._tables.values()} == {id(rows) for rows in across._tables.values()}
    there = across.translation("orthogonal", "token").weight @ back.translation("orthogonal", "token").weight
    torch.testing.assert_close(there, torch.eye(len(there)), rtol=0, atol=1e-3)


def test_models_of_other_widths_that_share_part_of_the_vocabulary_are_bridged(first: zp.Model) -> None:
    wide = bridge(first, zp.open_model(str(MODELS / "wide")))
    translation = wide.translation("centred", "both")
    assert translation.weight.shape == (192, 224)
    assert wide.fit("centred", "both") > 0.9
    with pytest.raises(BadOption, match="one width; these have 192 and 224"):
        wide.translation("identity")
    rows = wide._rows("token")
    lengths = [table[ids].square().sum(1).mean().sqrt() for table, ids in zip(rows, wide.shared.pairs, strict=True)]
    carried = translation.states(rows[0][wide.shared.first]).square().sum(1).mean().sqrt()
    assert float(carried / lengths[1]) == pytest.approx(1, abs=0.1)


def test_a_random_map_keeps_the_lengths_only(across: Bridge) -> None:
    first, second = (across.translation("random", "token", seed).weight for seed in (0, 1))
    assert float((first * second).sum() / first.norm() / second.norm()) < 0.1
    assert float(first.norm()) == pytest.approx(float(across.translation("orthogonal", "token").weight.norm()), rel=0.1)


def test_frequent_tokens_weigh_more(across: Bridge) -> None:
    ids = across.shared.pairs
    w = 1.0 / (torch.arange(len(ids[0])) + HEAD_OF_ZIPF)
    slow = _sums(*across._rows("paper"), ids, w)
    np.testing.assert_allclose(across._summed("paper", True, False).xy, slow.xy)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": "nose"}, "no kernel 'nose'; kernels are orthogonal"),
        ({"frame": "output"}, "no frame 'output' to translate in; frames are both, token, paper, seen"),
    ],
)
def test_unknown_kernels_and_frames_are_refused(across: Bridge, options: dict[str, str], message: str) -> None:
    with pytest.raises(BadOption, match=message):
        across.translation(**options)


def test_vectors_of_another_width_are_refused(first: zp.Model, moved: zp.Model) -> None:
    with pytest.raises(BadOption, match=r"have 5 numbers each; .*first is 192 wide"):
        translate(torch.zeros(2, 5), first, moved)
