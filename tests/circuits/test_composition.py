"""The composition of heads: factors against dense matrices, nulls against draws, planted pairs against random ones."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import small
import zeropass as zp
from tiny import save
from zeropass.circuits.composition import basis, concentration, shares, under_covariance, under_rotation, unit
from zeropass.errors import BadOption, CannotRun
from zeropass.model.model import Model
from zoo import tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")


def rotations(count: int, d: int, seed: int) -> Tensor:
    """Draw rotations of the Haar measure."""
    q, r = torch.linalg.qr(torch.randn(count, d, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    return q * r.diagonal(dim1=-2, dim2=-1).sign()[:, None]


def test_the_null_of_random_turns_is_that_of_draws() -> None:
    d, draw = 7, torch.Generator().manual_seed(0)
    first, second = (unit(torch.randn(1, w, d, generator=draw, dtype=torch.float64)) for w in (3, 2))
    turned = second @ rotations(40_000, d, 1)
    drawn = shares(first, turned)[0]
    mean, deviation = under_rotation(concentration(first), concentration(second), d)
    assert float(drawn.mean()) == pytest.approx(mean, rel=0.01)
    assert float(drawn.std()) == pytest.approx(float(deviation), rel=0.02)


def test_the_null_of_a_covariance_is_that_of_draws() -> None:
    draw = torch.Generator().manual_seed(0)
    own, reads, root = (torch.randn(*shape, generator=draw, dtype=torch.float64) for shape in ((3, 6), (2, 6), (6, 6)))
    own, reads = unit(own), unit(reads)
    root = root / root.norm()
    sizes = torch.linalg.svdvals(own)
    drawn = sizes[:, None] * (torch.randn(60_000, 3, 6, generator=draw, dtype=torch.float64) @ root)
    share = (drawn @ reads.T).square().sum((1, 2))
    mean, deviation = under_covariance(reads[None] @ root.T, concentration(own))
    assert float(share.mean()) == pytest.approx(float(mean), rel=0.01)
    assert float(share.std()) == pytest.approx(float(deviation), rel=0.02)


def test_a_basis_has_only_the_directions_that_are_there() -> None:
    rows = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(0))
    rows[1, 2] = rows[1, 0] - 2 * rows[1, 1]
    spanned, rank = basis(rows)
    assert rank.tolist() == [3, 2]
    projector = spanned.mT @ spanned
    assert torch.allclose(projector @ projector, projector, atol=1e-5)
    assert torch.allclose(rows @ projector, rows, atol=1e-5)
    assert not basis(torch.zeros(1, 3, 6))[0].any()


def stored(model: Model, layer: int, role: str, head: int) -> Tensor:
    """Return the folded rows of a head, the slow way: gain, centring, the norm behind and that of queries and keys."""
    rows = model.head(role, layer, head).double()
    if role == "o":
        gain = model.vector("attn_post_norm", layer)
        return rows if gain is None else rows * gain
    gain, inner = model.vector("attn_norm", layer), model.vector(f"{role}_norm", layer) if role in "qk" else None
    rows = rows * gain
    rows = rows - rows.mean(1, keepdim=True) if model.family.norm == "layer" else rows
    return rows if inner is None else rows * inner[:, None]


def dense(model: Model, writer: tuple[int, int], reader: tuple[int, int], into: str, between: Tensor) -> float:
    """Return a composition from d x d matrices (Elhage et al. 2021)."""
    q, k, v, o = (stored(model, *reader[:1], role, reader[1]) for role in "qkvo")
    behind = {"q": q.T @ k, "k": k.T @ q, "v": v.T @ o}[into]
    written = stored(model, writer[0], "v", writer[1]).T @ stored(model, writer[0], "o", writer[1]) @ between
    if model.family.norm == "layer":
        written = written - written.mean(1, keepdim=True)
    return float((written @ behind).norm() / written.norm() / behind.norm())


def opened(name: str, folder: Path) -> Model:
    if name in ("llama", "gpt2"):
        return zp.open_model(str(small.VARIANTS[name](folder / name)))
    return zp.open_model(str(save(tiny_model(name), folder / name)))


def flow_of(model: Model, lens: zp.LensMaps) -> Tensor:
    """Return what a vector that the attention of layer 0 writes has become before the last layer, (d, d)."""
    identity = torch.eye(model.dims.d, dtype=torch.float64)
    first: list[tuple[str, ...]] = [] if model.family.parallel else [("0.ff",)]
    layers = range(1, model.dims.layers - 1)
    both = [((f"{n}.attn", f"{n}.ff"),) if model.family.parallel else ((f"{n}.attn",), (f"{n}.ff",)) for n in layers]
    flow = identity
    for sites in (*first, *(sites for layer in both for sites in layer)):
        flow = flow @ (identity + sum(lens.map(f"jacobian.{site}").double() for site in sites))
    return flow


@pytest.mark.parametrize("name", ["llama", "phi", "qwen3", "gemma2", "mimo_v2_flash"])
def test_pairs_are_those_of_dense_matrices(name: str, tmp_path: Path) -> None:
    model = opened(name, tmp_path)
    lens = zp.calibrate(model, source="random", tokens=256)
    pairs = zp.head_pairs(zp.load(model, lens=lens), progress=False)
    heads, last = model.dims.heads, model.dims.layers - 1
    identity = torch.eye(model.dims.d, dtype=torch.float64)
    for path, between in (("direct", identity), ("flow", flow_of(model, lens))):
        table = pairs.table(path)
        for into, role in enumerate("qkv"):
            for reader in range(heads):
                expected = dense(model, (0, 1), (last, reader), role, between)
                assert table.score[into, 1, last * heads + reader] == pytest.approx(expected, rel=1e-4)
    assert np.isnan(pairs.table("flow").z[:, heads:, :heads]).all()
    assert {pair.path for pair in pairs.strongest(3)} == {"direct"}


def test_the_overlap_is_that_of_principal_angles(tmp_path: Path) -> None:
    model = opened("llama", tmp_path)
    pairs = zp.head_pairs(zp.load(model, lens=None), progress=False)
    first, second = stored(model, 0, "o", 2), stored(model, 2, "k", 3)
    cosines = torch.linalg.svdvals(torch.linalg.qr(first.T).Q.T @ torch.linalg.qr(second.T).Q)
    assert pairs.table("direct").overlap[1, 2, 2 * 4 + 3] == pytest.approx(float(cosines.square().mean()), rel=1e-4)


def plant(folder: Path, writer: str, reader: str) -> None:
    """Let the o rows of head 1 of layer 0 be what the keys of group 1 of layer 2 read."""
    path = folder / "model.safetensors"
    tensors, width = load_file(path), small.D // small.HEADS
    gain = tensors["model.layers.2.input_layernorm.weight"]
    tensors[writer][:, width : 2 * width] = (tensors[reader][width : 2 * width] * gain).T
    save_file(tensors, path)


def test_a_planted_pair_comes_first_and_random_ones_are_within_the_null(tmp_path: Path) -> None:
    folder = small.llama(tmp_path / "llama")
    pairs = zp.head_pairs(str(folder), lens=None, progress=False)
    z = pairs.table("direct").z
    assert np.nanmax(np.abs(z)) < 5
    assert np.nanmean(z) == pytest.approx(0, abs=0.2)
    assert np.nanstd(z) == pytest.approx(1, abs=0.2)
    plant(folder, "model.layers.0.self_attn.o_proj.weight", "model.layers.2.self_attn.k_proj.weight")
    best = zp.head_pairs(str(folder), lens=None, progress=False).strongest(4)
    assert {(pair.writer, pair.reader, pair.into) for pair in best[:2]} == {
        ("L0.attn.1", "L2.attn.2", "k"),
        ("L0.attn.1", "L2.attn.3", "k"),
    }
    assert best[1].z > 2 * best[2].z
    assert best[0].overlap == pytest.approx(1, abs=1e-4)


def test_pairs_are_tables_json_and_figures(tmp_path: Path) -> None:
    pairs = zp.head_pairs(str(small.llama(tmp_path / "llama")), lens=None, progress=False)
    table = pairs.to_pandas()
    assert len(table) == 3 * 4 * (4 + 8)
    assert set(table["into"]) == {"q", "k", "v"}
    json = pairs.to_json()
    assert json["heads"] == 12
    assert json["pairs"][1]["pairs"][0] == pairs.strongest(1, into="k").to_json()["pairs"][0]
    assert "only the direct way is shown" in pairs.strongest(1)._repr_html_()
    assert [panel.title for panel in pairs.panels()] == [f"{name}-composition, direct" for name in "QKV"]
    assert pairs.strongest(3).panel().right[0][1] == pairs.strongest(1)[0].z
    with pytest.raises(BadOption, match="no input 'o'"):
        pairs.strongest(into="o")
    with pytest.raises(BadOption, match="no path 'flow'; there is direct"):
        pairs.strongest(path="flow")


@pytest.mark.parametrize(
    ("name", "reason"),
    [("bert", "the stream itself is normed"), ("deepseek_v3", "made of a latent"), ("qwen3_next", "output gates")],
)
def test_what_is_no_product_of_vectors_is_refused(name: str, reason: str, tmp_path: Path) -> None:
    model = zp.open_model(str(small.bert(tmp_path / name))) if name == "bert" else opened(name, tmp_path)
    with pytest.raises(CannotRun, match=reason):
        zp.head_pairs(zp.load(model, lens=None))
