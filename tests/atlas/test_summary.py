"""What the explorer shows beyond the CLI, each against a slow twin: overviews, wiring, likeness, spreads, filters."""

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
from zeropass.arch.spec import FF_ROLES, space_of
from zeropass.atlas import distributions, neighbours, summary
from zeropass.atlas.read import Atlas
from zeropass.errors import BadAddress, BadAtlas, BadOption
from zeropass.numerics.statistics import kurtosis
from zeropass.records.overviews import Telling
from zeropass.records.parameters import PairRecord
from zeropass.tokens.vocabulary import View

KINDS = ("llama", "gpt2", "bert")


@pytest.fixture(scope="module", params=KINDS)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> small.Built:
    return small.built(request.param, tmp_path_factory)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> small.Built:
    return small.built("llama", tmp_path_factory)


def table(atlas: Atlas, file: str = "parameters.parquet") -> list[dict[str, object]]:
    names = pq.read_schema(atlas.path / file).names
    rows = atlas.query("SELECT * FROM read_parquet($file)", file=str(atlas.path / file))
    return [dict(zip(names, row, strict=True)) for row in rows]


def z_of(built: small.Built, address: str, role: str, frame: str) -> np.ndarray:
    """z of all tokens, from the model itself, in float64."""
    lens, place = built.lens, zp.parse(address)
    vectors = lens.vectors(place.layer, role)
    row = [str(one) for one in vectors.addresses].index(address)
    folded = lens.frames.fold(vectors.vectors, frame, vectors.side, vectors.norm, vectors.layer)[row].double()
    space = space_of(frame, vectors.side, vectors.reads_at)
    rows = lens.frames.rows(space).matrix.double()
    scores = rows @ folded
    used = scores[torch.from_numpy(lens.model.vocab.used)]
    return ((scores - used.mean()) / used.std(correction=0)).numpy()


# --- Kurtosis and best, stored by the build ---------------------------------------------------------------------------


@given(st.integers(0, 2**31), st.integers(2, 60))
@settings(max_examples=30, deadline=None)
def test_kurtosis_is_that_of_the_definition(seed: int, n: int) -> None:
    x = torch.randn(3, n, generator=torch.Generator().manual_seed(seed)) ** 3 + 2
    y = x.double() - x.double().mean(1, keepdim=True)
    expected = (y**4).mean(1) / (y**2).mean(1) ** 2 - 3
    assert torch.allclose(kurtosis(x).double(), expected, rtol=1e-3, atol=1e-3)
    assert kurtosis(torch.ones(2, n)).tolist() == [0, 0]


def test_the_atlas_knows_kurtosis_and_best_of_every_list(built: small.Built) -> None:
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
            own = [r for r in rows if (r["side"], r["frame"], r["layer"]) == (side, frame, 2)]
            roles: dict[str, list[dict[str, object]]] = {}
            for r in own:
                head = 3 // group * group if r["role"] in ("k", "v") else 3
                if r["role"] in ("q", "k", "v", "o") and r["head"] == head:
                    roles.setdefault(str(r["role"]), []).append(r)
            means = [np.mean([float(r[measure]) for r in of]) for of in roles.values()]  # type: ignore[arg-type]
            cell = cells[2, "attn.3"]
            assert cell.mean == pytest.approx(np.mean(means), rel=1e-4)
            most = max((r for of in roles.values() for r in of), key=lambda r: float(r[measure]))  # type: ignore[arg-type]
            assert (cell.most, cell.address) == (pytest.approx(most[measure]), most["address"])


def test_an_overview_of_what_there_is_not(llama: small.Built) -> None:
    with pytest.raises(BadOption, match="kurtosis"):
        summary.overview(llama.atlas, "read", "token", "beauty; DROP TABLE")
    with pytest.raises(BadOption, match="no lists"):
        summary.overview(llama.atlas, "write", "token", "best")


def test_neurons_of_a_layer_most_telling_first(built: small.Built) -> None:
    atlas = built.atlas
    pages = [summary.telling(atlas, 1, first, 20) for first in range(0, 200, 20)]
    rows = [row for page in pages for row in page.rows]
    assert len(rows) == pages[0].count == atlas.model["neurons"]
    assert [row.strength for row in rows] == sorted((row.strength for row in rows), reverse=True)
    for row in rows[::9]:
        for one, record in zip(row.lists, atlas.explain(row.address, k=6), strict=True):
            up = record.top[0].z >= -record.bottom[0].z
            assert one.pole == ("+" if up else "−")
            assert one.tokens == (record.top if up else record.bottom)[:6]
            assert (one.role, one.frame, one.verb) == (record.role, record.frame, record.verb)
    assert [row.address for row in rows] == atlas.strongest(atlas.model["ff_roles"], (1, 2))
    with pytest.raises(BadAddress, match="out of range"):
        summary.telling(atlas, 9)


def test_columns_of_a_head_are_its_own_and_its_groups(llama: small.Built) -> None:
    found = summary.subheads(llama.atlas, 1, 3)
    owners = {(role, zp.parse(row.address).head) for role, rows in found.items() for row in rows}
    assert owners == {("q", 3), ("k", 2), ("v", 2), ("o", 3)}
    for role, rows in found.items():
        assert len(rows) == llama.atlas.model["head_dim"]
        assert [row.strength for row in rows] == sorted((row.strength for row in rows), reverse=True)
        assert {one.role for row in rows for one in row.lists} == {role}
        assert rows == above_all(llama.atlas, rows)
    few = summary.subheads(llama.atlas, 1, 3, 2)
    assert few["q"][:2] == found["q"][:2]
    assert [(row.address, row.strength, row.lists) for row in few["q"][2:]] == [
        (row.address, row.strength, ()) for row in found["q"][2:]
    ]


def above_all(atlas: zp.Atlas, rows: Sequence[Telling]) -> list[Telling]:
    """The same parameters, each looked up by its address."""
    return summary.in_short(atlas, [row.address for row in rows])


def test_strengths_count_every_list(built: small.Built) -> None:
    found = summary.strengths(built.atlas, 0)
    rows = [r for r in table(built.atlas) if r["layer"] == 0 and r["role"] in FF_ROLES]
    counted = sum(sum(bins.values()) for (role, *_), bins in found.items() if role in FF_ROLES)
    assert counted == len(rows)


def test_short_lists_of_any_addresses(llama: small.Built) -> None:
    asked = ["L2.ff.5", "L0.ff.7", "L1.attn.2.o.3", "L9.ff.9"]
    found = summary.in_short(llama.atlas, asked)
    assert [row.address for row in found] == asked[:3]
    assert [one.role for one in found[0].lists] == ["gate", "gate", "gate", "up", "up", "up", "value", "value"]


# --- What stands near -------------------------------------------------------------------------------------------------


def vectors(built: small.Built, role: str, layer: int) -> tuple[list[str], torch.Tensor]:
    found = built.lens.vectors(layer, role)
    frame = found.frames[-1]
    folded = built.lens.frames.fold(found.vectors, frame, found.side, found.norm, found.layer)
    return [str(one) for one in found.addresses], folded.double()


def test_what_is_written_before_and_read_after(built: small.Built) -> None:
    model = built.lens.model
    read = "gate" if "gate" in model.family.ff_roles else "key"
    found = neighbours.neighbours_of(built.atlas, "L1.ff.7", k=15)
    writing = {one.role: one for one in found.wiring}
    for role, others, layers in ((read, ("value", "o"), (0, 1)), ("value", ("gate", "key", "q", "k", "v"), (2,))):
        own = vectors(built, role, 1)[1][7]
        expected: dict[tuple[str, str], float] = {}
        for layer in layers:
            for other in (o for o in others if o in (*model.family.ff_roles, "q", "k", "v", "o")):
                if (layer, other) != (1, "value"):  # a layer's attention stands before its neurons, they beside them
                    names, there = vectors(built, other, layer)
                    expected |= {(n, other): float(p) for n, p in zip(names, there @ own, strict=True)}
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
    own = vectors(llama, "gate", 1)[1][7]
    parts = {(part.layer, part.part): part.norm for part in wiring.parts}
    products = vectors(llama, "value", 0)[1] @ own
    bias = llama.atlas.explain("L0.attn.1.v.bias")  # the biased variant: what heads write whatever they see
    assert bias
    assert parts[0, "ff"] == pytest.approx(float(products.norm()), rel=1e-3)
    assert parts.keys() == {(0, "attn"), (0, "ff"), (1, "attn")}


def test_lists_like_one_correlate_over_all_tokens(built: small.Built) -> None:
    used = built.lens.model.vocab.used
    found = neighbours.neighbours_of(built.atlas, "L1.ff.7", k=5)
    for alike in found.alike:
        own = z_of(built, "L1.ff.7", alike.role, alike.frame)[used]
        layers = (1, 2) if alike.frame == "token" else (0, 1, 2)
        every = {}
        for layer in layers:
            for row in range(built.lens.model.dims.neurons):
                address = f"L{layer}.ff.{row}"
                if row % 5 == 0 or address in {one.address for one in alike.best}:
                    other = z_of(built, address, alike.role, alike.frame)[used]
                    every[address] = float(np.corrcoef(own, other)[0, 1])
        every.pop("L1.ff.7", None)
        assert len(alike.best) == 5
        for one in alike.best:
            assert one.correlation == pytest.approx(every[one.address], abs=2e-3)
        assert max(map(abs, every.values())) <= abs(alike.best[0].correlation) + 2e-3


@pytest.mark.parametrize("address", ["L1.attn.2", "L1.attn.2.qk"])
def test_a_head_map_is_no_vector(llama: small.Built, address: str) -> None:
    with pytest.raises(BadAddress, match="columns are vectors"):
        neighbours.neighbours_of(llama.atlas, address)


@pytest.mark.parametrize("address", ["L1.attn.3.k.2", "L1.attn.1.v.bias", "L0.attn.0.o.1", "L2.ff.0.value"])
def test_every_vector_has_a_neighbourhood(llama: small.Built, address: str) -> None:
    found = neighbours.neighbours_of(llama.atlas, address)
    assert found.address == str(zp.parse(address))
    assert found.alike
    assert all(one.best for one in found.alike)
    with pytest.raises(BadAddress, match="out of range"):
        neighbours.neighbours_of(llama.atlas, "L1.ff.4800")


# --- Spreads, clouds, neighbours --------------------------------------------------------------------------------------


def test_a_spread_counts_the_shown_tokens(built: small.Built) -> None:
    shown = built.atlas.mask("default")
    for one in distributions.spreads(built.atlas, "L1.ff.7"):
        z = z_of(built, "L1.ff.7", one.role, one.frame)[shown]
        assert sum(one.counts) == shown.sum() == one.hidden.shown
        edges = one.low + one.step * np.arange(len(one.counts) + 1)
        assert np.abs(np.cumsum(one.counts) - [(z < edge).sum() for edge in edges[1:]]).max() <= 2  # rounding at edges
        y = z - z.mean()
        assert one.kurtosis == pytest.approx((y**4).mean() / (y**2).mean() ** 2 - 3, rel=1e-2, abs=1e-2)
        assert one.top[0].z == pytest.approx(z.max(), rel=1e-3)


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


def test_the_plane_of_one_point_and_of_none_that_differ() -> None:
    assert distributions.plane(np.ones((1, 4)))[0].tolist() == [[0, 0]]
    assert distributions.plane(np.zeros((3, 4)))[1] == (0, 0)


def test_a_cloud_holds_both_poles(built: small.Built) -> None:
    for one, record in zip(
        distributions.clouds(built.atlas, "L1.ff.7", 10), built.atlas.explain("L1.ff.7", k=10), strict=True
    ):
        assert {p.id for p in one.points} == {t.id for t in (*record.top, *record.bottom)}
        assert all((p.z > 0) == (p.id in {t.id for t in record.top}) for p in one.points)


def test_nearest_tokens(built: small.Built) -> None:
    found = distributions.Neighbours(built.atlas).nearest(300, 10)
    rows = built.lens.frames.rows(found.space).matrix.double()
    rows = rows - rows[torch.from_numpy(built.lens.model.vocab.used)].mean(0)
    cosines = torch.nn.functional.cosine_similarity(rows, rows[300:301]).numpy()
    shown = built.atlas.mask("default").copy()
    shown[300] = False
    best = np.argsort(np.where(shown, -cosines, 9), kind="stable")[:10]
    assert [t.id for t in found.tokens] == best.tolist()
    assert [t.score for t in found.tokens] == pytest.approx(cosines[best], abs=1e-5)
    with pytest.raises(BadOption, match="no token 60000"):
        distributions.Neighbours(built.atlas).nearest(60_000)


def test_damaged_moments_are_named(llama: small.Built, tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "token.moments.npy").write_bytes(b"\x93NUMPY nonsense")
    with pytest.raises(BadAtlas, match=r"token\.moments"):
        neighbours.moments(Atlas(tmp_path, llama.atlas.manifest), "token")


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
def test_directions_from_gram_matrices_are_the_directions(built: small.Built, kind: str) -> None:
    address = f"L1.attn.2.{kind}"
    ours, theirs = zp.lens_of(built.atlas, str(built.folder)).svd(address), built.lens.svd(address)
    values = [one.value for one in theirs.directions]
    assert [one.value for one in ours.directions] == pytest.approx(values, rel=1e-3, abs=1e-3 * values[0])
    assert [one.share for one in ours.directions] == pytest.approx([one.share for one in theirs.directions], abs=1e-4)
    for own, other in zip(ours.directions, theirs.directions, strict=True):
        if not other.close:
            for side in ("left", "left_bottom", "right", "right_bottom"):
                assert {t.id for t in getattr(own, side)[:5]} == {t.id for t in getattr(other, side)[:5]}


@pytest.mark.parametrize("view", ["default", "words", "all"])
def test_the_mask_of_a_view_gives_the_pairs_that_the_lens_shows(built: small.Built, view: View) -> None:
    shown = built.lens.view(view).mask
    found = zp.top_pairs(built.lens.head_map("L1.attn.2.vo"), 9, left_mask=shown, right_mask=shown)
    (record,) = built.lens.explain("L1.attn.2.vo", tokens=view, k=9)
    assert [(p.left.id, p.right.id, p.score) for p in record.pairs] == list(
        zip(found.left.tolist(), found.right.tolist(), found.scores.tolist(), strict=True)
    )


def test_another_offset_turns_the_same_scores(llama: small.Built) -> None:
    lens = zp.lens_of(llama.atlas, str(llama.folder))
    for offset in (0, 5, 16, 5):
        ours, theirs = (one.head_map("L1.attn.2.qk", offset=offset) for one in (lens, llama.lens))
        assert torch.allclose(ours.left @ ours.right.T, theirs.left @ theirs.right.T, rtol=1e-3, atol=1e-3)


def test_other_weights_are_refused(llama: small.Built, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = small.built("gpt2", tmp_path_factory)
    with pytest.raises(BadOption, match="other weights"):
        zp.lens_of(llama.atlas, str(other.folder))


@pytest.mark.parametrize(("kind", "offset"), [("qk", 0), ("qk", 3), ("vo", 0)])
def test_pairs_with_a_token_are_a_row_of_the_whole_map(llama: small.Built, kind: str, offset: int) -> None:
    lens, address = llama.lens, f"L1.attn.2.{kind}"
    product = lens.head_map(address, offset=offset)
    whole = (product.left.double() @ product.right.double().T).numpy()
    shown = np.flatnonzero(llama.atlas.mask("default"))
    row = zp.pairs_with(lens, address, product, offset, left=[300], k=12)
    assert [p.right.id for p in row.pairs] == shown[np.argsort(-whole[300, shown], kind="stable")[:12]].tolist()
    column = zp.pairs_with(lens, address, product, offset, right=[301, 302], k=12)
    grid = whole[np.ix_(shown, [301, 302])]
    order = np.argsort(-grid, axis=None, kind="stable")[:12]
    expected = [(int(shown[n // 2]), (301, 302)[n % 2]) for n in order]
    assert [(p.left.id, p.right.id) for p in column.pairs] == expected
    both = zp.pairs_with(lens, address, product, offset, left=[300], right=[301])
    assert [p.score for p in both.pairs] == pytest.approx([whole[300, 301]], rel=1e-4)
    assert (both.role, both.address, both.offset) == (kind, "L1.attn.2", offset)
    assert row.certificate.bound is None
    assert row.certificate.complete


def test_filters_that_cannot_be(llama: small.Built) -> None:
    product = llama.lens.head_map("L1.attn.2.vo")
    with pytest.raises(BadOption, match="needs a token"):
        zp.pairs_with(llama.lens, "L1.attn.2.vo", product, 0)
    with pytest.raises(BadOption, match="no token 600"):
        zp.pairs_with(llama.lens, "L1.attn.2.vo", product, 0, left=[600])
