"""The explorer's summaries, wiring, neighbours, distributions and filters, each against a slow twin."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import small
import zeropass as zp
from zeropass.arch.frame_names import RELATIVE, space_of
from zeropass.arch.roles import FF_ROLES
from zeropass.atlas import distributions, neighbours, summary
from zeropass.atlas.read import Atlas
from zeropass.errors import BadAddress, BadAtlas, BadOption
from zeropass.numerics.statistics import kurtosis
from zeropass.records.overviews import Telling
from zeropass.records.parameters import PairRecord
from zeropass.tokens.shown import View

KINDS = ("llama", "gpt2", "bert", "llama+lens")


@pytest.fixture(scope="module", params=KINDS)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> small.Built:
    return small.built(request.param, tmp_path_factory)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> small.Built:
    return small.built("llama", tmp_path_factory)


def table(atlas: Atlas, file: str = "parameters.parquet") -> list[dict[str, object]]:
    names = pq.read_schema(atlas.path / file).names
    rows = atlas.query("SELECT * FROM read_parquet($file)", file=file)
    return [dict(zip(names, row, strict=True)) for row in rows]


def z_of(built: small.Built, address: str, role: str, frame: str) -> np.ndarray:
    """Return z of all tokens, computed from the model in float64."""
    lens, place = built.lens, zp.parse(address)
    vectors = lens.vectors(place.layer, role)
    row = [str(name) for name in vectors.addresses].index(address)
    folded = lens.frames.folded(vectors, frame).double()
    space = space_of(frame, vectors.side, vectors.reads_at)
    rows = lens.frames.rows(space).matrix.double()
    scores = folded @ rows.T
    used = scores[:, torch.from_numpy(lens.model.vocab.used)]
    z = (scores - used.mean(1, keepdim=True)) / used.std(1, correction=0, keepdim=True)
    sizes = z.square().mean(0).sqrt() if frame in RELATIVE else torch.ones_like(z[0])
    return (z[row] / torch.where(sizes > 0, sizes, torch.inf)).numpy()


# --- Kurtosis and best, stored by the build ---------------------------------------------------------------------------


@given(st.integers(0, 2**31), st.integers(2, 60))
@settings(max_examples=30, deadline=None)
def test_kurtosis_follows_its_definition(seed: int, n: int) -> None:
    x = torch.randn(3, n, generator=torch.Generator().manual_seed(seed)) ** 3 + 2
    y = x.double() - x.double().mean(1, keepdim=True)
    expected = (y**4).mean(1) / (y**2).mean(1) ** 2 - 3
    assert torch.allclose(kurtosis(x).double(), expected, rtol=1e-3, atol=1e-3)
    assert kurtosis(torch.ones(2, n)).tolist() == [0, 0]


def test_the_atlas_stores_kurtosis_and_best_of_every_list(built: small.Built) -> None:
    shown = built.atlas.mask("default")
    rows = [row for row in table(built.atlas) if row["layer"] == 1 and row["head"] in (-1, 0)][::17]
    assert len(rows) > 5
    for row in rows:
        z = z_of(built, str(row["address"]), str(row["role"]), str(row["frame"]))[shown]
        y = z - z.mean()
        assert row["kurtosis"] == pytest.approx((y**4).mean() / (y**2).mean() ** 2 - 3, rel=1e-2, abs=1e-2)
        assert row["best"] == pytest.approx(max(z.max(), -z.min()), rel=1e-3)


# --- Overviews --------------------------------------------------------------------------------------------------------


def test_the_map_is_the_mean_over_the_lists_of_each_part(built: small.Built) -> None:
    atlas, rows = built.atlas, table(built.atlas)
    group = atlas.model["heads"] // atlas.model["kv_heads"]
    for side, frame in summary.list_types_of(atlas):
        for measure in summary.MEASURES:
            cells = {(c.layer, c.part): c for c in summary.overview(atlas, side, frame, measure).cells}
            assert len(cells) == atlas.model["layers"] * (1 + atlas.model["heads"])
            lists = [r for r in rows if (r["side"], r["frame"], r["layer"]) == (side, frame, 2)]
            roles: dict[str, list[dict[str, object]]] = {}
            for r in lists:
                head = 3 // group * group if r["role"] in ("k", "v") else 3
                if r["role"] in ("q", "k", "v", "o") and r["head"] == head:
                    roles.setdefault(str(r["role"]), []).append(r)
            means = [np.mean([float(r[measure]) for r in of]) for of in roles.values()]  # type: ignore[arg-type]
            cell = cells[2, "attn.3"]
            assert cell.mean == pytest.approx(np.mean(means), rel=1e-4)
            most = max((r for of in roles.values() for r in of), key=lambda r: float(r[measure]))  # type: ignore[arg-type]
            assert (cell.most, cell.address) == (pytest.approx(most[measure]), most["address"])


def test_an_overview_of_an_unknown_measure_or_list_is_refused(llama: small.Built) -> None:
    with pytest.raises(BadOption, match="kurtosis"):
        summary.overview(llama.atlas, "read", "token", "beauty; DROP TABLE")
    with pytest.raises(BadOption, match="no lists"):
        summary.overview(llama.atlas, "write", "token", "best")


def test_neurons_of_a_layer_are_ordered_by_strength(built: small.Built) -> None:
    atlas = built.atlas
    pages = [summary.telling(atlas, 1, first, 20) for first in range(0, 200, 20)]
    rows = [row for page in pages for row in page.rows]
    assert len(rows) == pages[0].count == atlas.model["neurons"]
    assert [row.strength for row in rows] == sorted((row.strength for row in rows), reverse=True)
    for row in rows[::9]:
        for short, record in zip(row.lists, atlas.explain(row.address, k=6), strict=True):
            up = record.top[0].z >= -record.bottom[0].z
            assert short.pole == ("+" if up else "−")
            assert short.tokens == (record.top if up else record.bottom)[:6]
            assert (short.role, short.frame, short.verb) == (record.role, record.frame, record.verb)
    assert [row.address for row in rows] == atlas.strongest(atlas.model["ff_roles"], (1, 2))
    with pytest.raises(BadAddress, match="out of range"):
        summary.telling(atlas, 9)


def test_columns_of_a_head_include_those_of_its_group(llama: small.Built) -> None:
    columns = summary.subheads(llama.atlas, 1, 3)
    owners = {(role, zp.parse(row.address).head) for role, rows in columns.items() for row in rows}
    assert owners == {("q", 3), ("k", 2), ("v", 2), ("o", 3)}
    for role, rows in columns.items():
        assert len(rows) == llama.atlas.model["head_dim"]
        assert [row.strength for row in rows] == sorted((row.strength for row in rows), reverse=True)
        assert {short.role for row in rows for short in row.lists} == {role}
        assert rows == looked_up(llama.atlas, rows)
    few = summary.subheads(llama.atlas, 1, 3, 2)
    assert few["q"][:2] == columns["q"][:2]
    assert [(row.address, row.strength, row.lists) for row in few["q"][2:]] == [
        (row.address, row.strength, ()) for row in columns["q"][2:]
    ]


def looked_up(atlas: zp.Atlas, rows: Sequence[Telling]) -> list[Telling]:
    """Return the same parameters, each looked up by its address."""
    return summary.in_short(atlas, [row.address for row in rows])


def test_strengths_count_every_list(built: small.Built) -> None:
    strengths = summary.strengths(built.atlas, 0)
    rows = [r for r in table(built.atlas) if r["layer"] == 0 and r["role"] in FF_ROLES]
    counted = sum(sum(bins.values()) for (role, *_), bins in strengths.items() if role in FF_ROLES)
    assert counted == len(rows)


def test_short_lists_are_given_for_any_addresses(llama: small.Built) -> None:
    asked = ["L2.ff.5", "L0.ff.7", "L1.attn.2.o.3", "L9.ff.9"]
    rows = summary.in_short(llama.atlas, asked)
    assert [telling.address for telling in rows] == asked[:3]
    assert [short.role for short in rows[0].lists] == ["gate", "gate", "gate", "up", "up", "up", "value", "value"]


# --- Neighbours -------------------------------------------------------------------------------------------------------


def vectors(built: small.Built, role: str, layer: int) -> tuple[list[str], torch.Tensor]:
    vector_set = built.lens.vectors(layer, role)
    frame = vector_set.frames[-1]
    folded = built.lens.frames.folded(vector_set, frame)
    return [str(address) for address in vector_set.addresses], folded.double()


def test_wiring_joins_a_vector_to_writers_before_and_readers_after(built: small.Built) -> None:
    model = built.lens.model
    read = "gate" if "gate" in model.family.ff_roles else "key"
    neighbourhood = neighbours.neighbours_of(built.atlas, "L1.ff.7", k=15)
    writing = {wiring.role: wiring for wiring in neighbourhood.wiring}
    for role, others, layers in ((read, ("value", "o"), (0, 1)), ("value", ("gate", "key", "q", "k", "v"), (2,))):
        vector = vectors(built, role, 1)[1][7]
        expected: dict[tuple[str, str], float] = {}
        for layer in layers:
            for other in (o for o in others if o in (*model.family.ff_roles, "q", "k", "v", "o")):
                # A layer's attention comes before its neurons; these stand in parallel.
                if (layer, other) != (1, "value"):
                    names, there = vectors(built, other, layer)
                    expected |= {(n, other): float(p) for n, p in zip(names, there @ vector, strict=True)}
        wires = [w for w in writing[role].wires if w.role in others]
        best = sorted(expected.values(), key=abs, reverse=True)
        assert [w.product for w in wires] == pytest.approx(best[: len(wires)], rel=1e-3, abs=1e-4)
        for wire in wires:
            assert expected[wire.address, wire.role] == pytest.approx(wire.product, rel=1e-3, abs=1e-4)
            assert abs(wire.cosine) <= 1.0001
    assert writing[read].verb == "is written by"
    assert writing["value"].verb == "is read by"


def test_parts_hold_the_norm_of_all_products(llama: small.Built) -> None:
    wiring = neighbours.neighbours_of(llama.atlas, "L1.ff.7.gate").wiring[0]
    vector = vectors(llama, "gate", 1)[1][7]
    parts = {(part.layer, part.part): part.norm for part in wiring.parts}
    products = vectors(llama, "value", 0)[1] @ vector
    bias = llama.atlas.explain("L0.attn.1.v.bias")  # this variant has biases: what heads write whatever they see
    assert bias
    assert parts[0, "ff"] == pytest.approx(float(products.norm()), rel=1e-3)
    assert parts.keys() == {(0, "attn"), (0, "ff"), (1, "attn")}


def test_similar_lists_correlate_over_all_tokens(built: small.Built) -> None:
    used = built.lens.model.vocab.used
    neighbourhood = neighbours.neighbours_of(built.atlas, "L1.ff.7", k=5)
    for alike in neighbourhood.alike:
        mine = z_of(built, "L1.ff.7", alike.role, alike.frame)[used]
        layers = (1, 2) if alike.frame == "token" else (0, 1, 2)
        every = {}
        for layer in layers:
            for row in range(built.lens.model.dims.neurons):
                address = f"L{layer}.ff.{row}"
                if row % 5 == 0 or address in {neighbour.address for neighbour in alike.best}:
                    other = z_of(built, address, alike.role, alike.frame)[used]
                    every[address] = float(np.corrcoef(mine, other)[0, 1])
        every.pop("L1.ff.7", None)
        assert len(alike.best) == 5
        for neighbour in alike.best:
            assert neighbour.correlation == pytest.approx(every[neighbour.address], abs=2e-3)
        assert max(map(abs, every.values())) <= abs(alike.best[0].correlation) + 2e-3


@pytest.mark.parametrize("address", ["L1.attn.2", "L1.attn.2.qk"])
def test_a_head_map_has_no_neighbourhood(llama: small.Built, address: str) -> None:
    with pytest.raises(BadAddress, match="columns are vectors"):
        neighbours.neighbours_of(llama.atlas, address)


@pytest.mark.parametrize("address", ["L1.attn.3.k.2", "L1.attn.1.v.bias", "L0.attn.0.o.1", "L2.ff.0.value"])
def test_every_vector_has_a_neighbourhood(llama: small.Built, address: str) -> None:
    neighbourhood = neighbours.neighbours_of(llama.atlas, address)
    assert neighbourhood.address == str(zp.parse(address))
    assert neighbourhood.alike
    assert all(alike.best for alike in neighbourhood.alike)
    with pytest.raises(BadAddress, match="out of range"):
        neighbours.neighbours_of(llama.atlas, "L1.ff.4800")


# --- Spreads, clouds, nearest tokens ---------------------------------------------------------------------------------


def test_a_spread_counts_the_shown_tokens(built: small.Built) -> None:
    shown = built.atlas.mask("default")
    for spread in distributions.spreads(built.atlas, "L1.ff.7"):
        z = z_of(built, "L1.ff.7", spread.role, spread.frame)[shown]
        assert sum(spread.counts) == shown.sum() == spread.hidden.shown
        edges = spread.low + spread.step * np.arange(len(spread.counts) + 1)
        off = np.cumsum(spread.counts) - [(z < edge).sum() for edge in edges[1:]]
        assert np.abs(off).max() <= 2  # rounding at edges
        y = z - z.mean()
        assert spread.kurtosis == pytest.approx((y**4).mean() / (y**2).mean() ** 2 - 3, rel=1e-2, abs=1e-2)
        assert spread.top[0].z == pytest.approx(z.max(), rel=1e-3)


@given(st.integers(0, 2**31), st.integers(2, 12), st.integers(2, 8))
@settings(max_examples=30, deadline=None)
def test_the_plane_holds_the_principal_components(seed: int, n: int, d: int) -> None:
    points = np.random.default_rng(seed).normal(size=(n, d))
    flat, shares = distributions.plane(points)
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    unit -= unit.mean(0)
    values = np.sort(np.linalg.eigvalsh(unit.T @ unit))[::-1]
    assert np.square(flat).sum(0) == pytest.approx(values[:2], abs=1e-9)
    assert shares == pytest.approx(tuple(values[:2] / values.sum()), abs=1e-9)
    assert (flat.max(0) >= np.abs(flat).max(0) - 1e-12).all()


def test_the_plane_of_one_point_or_of_equal_points_is_empty() -> None:
    assert distributions.plane(np.ones((1, 4)))[0].tolist() == [[0, 0]]
    assert distributions.plane(np.zeros((3, 4)))[1] == (0, 0)


def test_a_cloud_holds_both_poles(built: small.Built) -> None:
    for cloud, record in zip(
        distributions.clouds(built.atlas, "L1.ff.7", 10), built.atlas.explain("L1.ff.7", k=10), strict=True
    ):
        assert {p.id for p in cloud.points} == {t.id for t in (*record.top, *record.bottom)}
        assert all((p.z > 0) == (p.id in {t.id for t in record.top}) for p in cloud.points)


def test_nearest_tokens_have_the_largest_cosines(built: small.Built) -> None:
    nearest = distributions.Neighbours(built.atlas).nearest(300, 10)
    rows = built.lens.frames.rows(nearest.space).matrix.double()
    rows = rows - rows[torch.from_numpy(built.lens.model.vocab.used)].mean(0)
    cosines = torch.nn.functional.cosine_similarity(rows, rows[300:301]).numpy()
    shown = built.atlas.mask("default").copy()
    shown[300] = False
    best = np.argsort(np.where(shown, -cosines, 9), kind="stable")[:10]
    assert [t.id for t in nearest.tokens] == best.tolist()
    assert [t.score for t in nearest.tokens] == pytest.approx(cosines[best], abs=1e-5)
    with pytest.raises(BadOption, match="no token 60000"):
        distributions.Neighbours(built.atlas).nearest(60_000)


def test_damaged_moments_are_named(llama: small.Built, tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "token.moments.npy").write_bytes(b"\x93NUMPY nonsense")
    with pytest.raises(BadAtlas, match=r"token\.moments"):
        Atlas(tmp_path, llama.atlas.manifest).moments("token")


# --- From an atlas to its weights -------------------------------------------------------------------------------------


def test_a_lens_of_an_atlas_is_a_lens_of_the_model(built: small.Built) -> None:
    lens = zp.lens_of(built.atlas, str(built.folder))
    for address in ("L1.attn.2", "L1.ff.7", "L0.attn.1.q.2"):
        for ours, theirs in zip(lens[address], built.lens[address], strict=True):
            assert (ours.address, ours.role, ours.frame, ours.hidden) == (
                theirs.address,
                theirs.role,
                theirs.frame,
                theirs.hidden,
            )
            if isinstance(ours, PairRecord):
                assert [p.score for p in ours.pairs] == pytest.approx([p.score for p in theirs.pairs], rel=1e-4)
            else:
                assert [t.score for t in ours.top] == pytest.approx([t.score for t in theirs.top], rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("kind", ["qk", "vo"])
def test_directions_from_gram_matrices_equal_those_of_the_model(built: small.Built, kind: str) -> None:
    address = f"L1.attn.2.{kind}"
    ours, theirs = zp.lens_of(built.atlas, str(built.folder)).svd(address), built.lens.svd(address)
    values = [direction.value for direction in theirs.directions]
    assert [direction.value for direction in ours.directions] == pytest.approx(values, rel=1e-3, abs=1e-3 * values[0])
    assert [direction.share for direction in ours.directions] == pytest.approx(
        [direction.share for direction in theirs.directions], abs=1e-4
    )
    for mine, other in zip(ours.directions, theirs.directions, strict=True):
        if not other.close:
            for side in ("left", "left_bottom", "right", "right_bottom"):
                assert {t.id for t in getattr(mine, side)[:5]} == {t.id for t in getattr(other, side)[:5]}


@pytest.mark.parametrize("view", ["default", "words", "all"])
def test_the_mask_of_a_view_gives_the_pairs_that_the_lens_shows(built: small.Built, view: View) -> None:
    shown = built.lens.view(view).mask
    pairs = zp.top_pairs(built.lens.head_map("L1.attn.2.vo"), 9, left_mask=shown, right_mask=shown)
    (record,) = built.lens.explain("L1.attn.2.vo", tokens=view, k=9)
    assert [(p.left.id, p.right.id, p.score) for p in record.pairs] == list(
        zip(pairs.left.tolist(), pairs.right.tolist(), pairs.scores.tolist(), strict=True)
    )


def test_another_offset_turns_the_same_scores(llama: small.Built) -> None:
    lens = zp.lens_of(llama.atlas, str(llama.folder))
    for offset in (0, 5, 16, 5):
        ours, theirs = (source.head_map("L1.attn.2.qk", offset=offset) for source in (lens, llama.lens))
        assert torch.allclose(ours.left @ ours.right.T, theirs.left @ theirs.right.T, rtol=1e-3, atol=1e-3)


def test_other_weights_are_refused(llama: small.Built, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = small.built("gpt2", tmp_path_factory)
    with pytest.raises(BadOption, match="other weights"):
        zp.lens_of(llama.atlas, str(other.folder))


@pytest.mark.parametrize(("kind", "offset"), [("qk", 0), ("qk", 3), ("vo", 0)])
def test_pairs_with_a_token_are_a_row_of_the_whole_map(llama: small.Built, kind: str, offset: int) -> None:
    lens, address = llama.lens, f"L1.attn.2.{kind}"
    product = lens.head_map(address, offset=offset)
    matrix = (product.left.double() @ product.right.double().T).numpy()
    shown = np.flatnonzero(llama.atlas.mask("default"))
    row = zp.pairs_with(lens, address, product, offset, left=[300], k=12)
    assert [p.right.id for p in row.pairs] == shown[np.argsort(-matrix[300, shown], kind="stable")[:12]].tolist()
    column = zp.pairs_with(lens, address, product, offset, right=[301, 302], k=12)
    grid = matrix[np.ix_(shown, [301, 302])]
    order = np.argsort(-grid, axis=None, kind="stable")[:12]
    expected = [(int(shown[n // 2]), (301, 302)[n % 2]) for n in order]
    assert [(p.left.id, p.right.id) for p in column.pairs] == expected
    both = zp.pairs_with(lens, address, product, offset, left=[300], right=[301])
    assert [p.score for p in both.pairs] == pytest.approx([matrix[300, 301]], rel=1e-4)
    assert (both.role, both.address, both.offset) == (kind, "L1.attn.2", offset)
    assert row.certificate.bound is None
    assert row.certificate.complete


def test_impossible_filters_are_refused(llama: small.Built) -> None:
    product = llama.lens.head_map("L1.attn.2.vo")
    with pytest.raises(BadOption, match="needs a token"):
        zp.pairs_with(llama.lens, "L1.attn.2.vo", product, 0)
    with pytest.raises(BadOption, match="no token 600"):
        zp.pairs_with(llama.lens, "L1.attn.2.vo", product, 0, left=[600])
