"""The parameters that one feeds and is fed by: slow twins, planted wires, and random ones in the null."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_composition import flow_of, opened

import small
import zeropass as zp
from commands import Run
from zeropass.errors import BadAddress, BadOption
from zeropass.model.frames import Frames
from zeropass.model.model import Model
from zeropass.model.vectors import vector_set

MODELS = Path(__file__).parents[2] / "models"

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.llama(tmp_path_factory.mktemp("feeds") / "llama")


@pytest.fixture(scope="module")
def lens(folder: Path) -> zp.Lens:
    model = zp.open_model(str(folder))
    return zp.load(model, lens=zp.calibrate(model, source="random", tokens=512))


def table_of(wiring: zp.Feeds, role: str, path: str, kind: str) -> dict[tuple[str, str], tuple[float, float, float]]:
    (table,) = (t for t in wiring if (t.role, t.path, t.kind) == (role, path, kind))
    assert table.compared == len(table)
    return {(feed.address, feed.role): (feed.score, feed.null, feed.z) for feed in table}


def folded(model: Model, layer: int, role: str) -> torch.Tensor:
    vectors = vector_set(model, layer, role)
    rows = Frames(model).folded(vectors, "token" if vectors.side == "read" else "output").double()
    return rows - rows.mean(1, keepdim=True) if model.family.norm == "layer" else rows


@pytest.mark.parametrize("name", ["llama", "phi"])
def test_cosines_and_their_null_are_those_of_all_vectors(name: str, tmp_path: Path) -> None:
    model = opened(name, tmp_path)
    maps = zp.calibrate(model, source="random", tokens=256)
    wiring = zp.feeds(zp.load(model, lens=maps), "L0.attn.1.o.2", k=10_000)
    last, width = model.dims.layers - 1, model.dims.head_dim
    flow, reads = flow_of(model, maps), folded(model, last, "k")
    for path, written in (("direct", folded(model, 0, "o")), ("flow", folded(model, 0, "o") @ flow)):
        written = written - written.mean(1, keepdim=True) if model.family.norm == "layer" else written
        cosines = torch.nn.functional.cosine_similarity(written, reads[3].expand_as(written))
        others = torch.cat((cosines[: width + 2], cosines[width + 3 :]))
        score, null, z = table_of(wiring, "o", path, "vectors")[f"L{last}.attn.0.k.3", "k"]
        assert score == pytest.approx(float(cosines[width + 2]), abs=1e-4)
        assert null == pytest.approx(float(others.mean()), abs=1e-4)
        assert z == pytest.approx(float((cosines[width + 2] - others.mean()) / others.std()), abs=1e-2)


def test_what_reads_is_fed_through_the_same_flow(lens: zp.Lens) -> None:
    model, maps = lens.model, lens.frames.lens
    assert maps is not None
    wiring = zp.feeds(lens, "L2.attn.1.q.2", k=10_000)
    reads = folded(model, 2, "q")[8 + 2] @ flow_of(model, maps).T
    written = folded(model, 0, "o")[5]
    score = table_of(wiring, "q", "flow", "vectors")["L0.attn.0.o.5", "o"][0]
    assert score == pytest.approx(float(reads @ written / reads.norm() / written.norm()), abs=1e-4)
    direct = table_of(wiring, "q", "direct", "vectors")
    assert {address.partition(".")[0] for address, _ in direct} == {"L0", "L1"}


def test_heads_feed_by_composition_beside_the_other_heads(lens: zp.Lens) -> None:
    wiring = zp.feeds(lens, "L0.attn.1", k=10_000)
    assert [(t.role, t.relation) for t in wiring[::4]] == [
        ("q", "is fed by"),
        ("k", "is fed by"),
        ("v", "is fed by"),
        ("vo", "feeds"),
    ]
    pairs = zp.head_pairs(lens, progress=False)
    for path in ("direct", "flow"):
        heads = table_of(wiring, "vo", path, "heads")
        assert heads["L2.attn.3", "k"][0] == pytest.approx(float(pairs.table(path).score[1, 1, 11]), rel=1e-4)
        others = [float(pairs.table(path).score[1, head, 11]) ** 2 for head in (0, 2, 3)]
        assert heads["L2.attn.3", "k"][1] == pytest.approx((sum(others) / 3) ** 0.5, rel=1e-4)
    assert [table.role for table in zp.feeds(lens, "L0.attn.1.qk")[::4]] == ["q", "k"]


def test_a_planted_wire_comes_first_and_random_ones_are_within_the_null(folder: Path, tmp_path: Path) -> None:
    lens = zp.load(str(folder), lens=None)
    neurons = [zp.feeds(lens, f"L0.ff.{neuron}.value", k=1) for neuron in range(small.NEURONS)]
    heads = [zp.feeds(lens, f"L{layer}.attn.{head}", k=1) for layer in (0, 1) for head in range(4)]
    for tables in (neurons, heads):
        for kind in ("vectors", "heads"):
            above = [table[0].above for wiring in tables for table in wiring if table.kind == kind and table.feeds]
            assert sum(above) <= 0.15 * len(above)
    planted = small.llama(tmp_path / "planted")
    path = planted / "model.safetensors"
    tensors = load_file(path)
    gain = tensors["model.layers.2.post_attention_layernorm.weight"]
    tensors["model.layers.0.mlp.down_proj.weight"][:, 7] = -tensors["model.layers.2.mlp.gate_proj.weight"][11] * gain
    save_file(tensors, path)
    best = zp.feeds(str(planted), "L0.ff.7.value", lens=None)[0][0]
    assert (best.address, best.role, best.above) == ("L2.ff.11", "gate", True)
    assert best.score == pytest.approx(-1, abs=1e-4)
    back = zp.feeds(str(planted), "L2.ff.11.gate", lens=None)[0][0]
    assert (back.address, back.role, back.above) == ("L0.ff.7", "value", True)


def test_an_input_that_all_heads_share_is_left_out(tmp_path: Path) -> None:
    lens = zp.load(opened("gpt_bigcode", tmp_path), lens=None)
    assert [table.role for table in zp.feeds(lens, "L1.attn.0")[::2]] == ["q", "vo"]


def test_what_has_no_null_or_is_not_there_is_refused(lens: zp.Lens) -> None:
    for address, reason in (
        ("L0.ff.norm", "no ff_norm|none"),
        ("L9.ff.1", "out of range"),
        ("L0.attn.7", "out of range"),
        ("L0.sae.1", "feature of a dictionary"),
    ):
        with pytest.raises(BadAddress, match=reason):
            zp.feeds(lens, address)
    with pytest.raises(BadOption):
        zp.feeds(lens, "L0.ff.1", k=0)


def test_a_feature_is_wired_from_its_place_in_the_stream(run: Run) -> None:
    lens = zp.load(MODELS / "first", lens=None)
    wiring = zp.feeds(lens, "L2.sae.17", features=MODELS / "dictionary", k=100_000)
    assert [(table.role, table.relation) for table in wiring[::2]] == [("encoder", "is fed by"), ("decoder", "feeds")]
    earlier, later = (table_of(wiring, role, "direct", "vectors") for role in ("encoder", "decoder"))
    assert {address.partition(".")[0] for address, _ in earlier} == {"L0", "L1"}
    assert {address.partition(".")[0] for address, _ in later} == {"L2", "L3"}
    decoder = zp.open_dictionary(lens.model, MODELS / "dictionary").set(2, "decoder").vectors.double()
    cosines = torch.nn.functional.cosine_similarity(decoder, folded(lens.model, 3, "gate")[5][None])
    others = torch.cat((cosines[:17], cosines[18:]))
    score, _, z = later["L3.ff.5", "gate"]
    assert score == pytest.approx(float(cosines[17]), abs=1e-4)
    assert z == pytest.approx(float((cosines[17] - others.mean()) / others.std()), abs=1e-2)
    given = ("--features", MODELS / "dictionary", "-k", 3, "--lens", "none")
    shown = zp.feeds(lens, "L2.sae.17", features=MODELS / "dictionary", k=3).to_json()
    printed = run.json("circuit", MODELS / "first", "L2.sae.17", *given)
    assert printed["tables"] == json.loads(json.dumps(shown["tables"]))
    code, _, error = run("circuit", MODELS / "first", *given)
    assert code
    assert "needs the ADDRESS of a feature" in error


def test_the_ends_of_a_model_feed_nothing(lens: zp.Lens) -> None:
    assert all(not table.feeds for table in zp.feeds(lens, "L2.ff.1.value"))
    assert all(not table.feeds for table in zp.feeds(lens, "L0.attn.1.q.1"))


def test_wiring_is_shown_everywhere_alike(lens: zp.Lens, folder: Path, run: Run) -> None:
    wiring = zp.feeds(str(folder), "L1.ff.3", k=3, lens=None)
    assert run.json("circuit", folder, "L1.ff.3", "-k", 3, "--lens", "none") == json.loads(json.dumps(wiring.to_json()))
    code, text, _ = run("circuit", folder, "L1.ff.3", "-k", 3, "--lens", "none")
    assert code == 0
    assert "L1.ff.3 gate is fed by, direct: the best of" in text
    assert "within the null" in text
    assert "zeropass calibrate" in text
    assert len(wiring.to_pandas()) == 3 * 2 * 3
    assert "L1.ff.3 value feeds" in wiring._repr_html_()
    assert [panel.title for panel in zp.feeds(lens, "L1.ff.3.value", k=3).panels()][-1] == "L1.ff.3 value feeds, flow"


def test_all_pairs_of_heads_are_a_command(folder: Path, run: Run) -> None:
    pairs = zp.head_pairs(str(folder), lens=None)
    assert run.json("circuit", folder, "--lens", "none") == json.loads(json.dumps(pairs.to_json()))
    code, text, _ = run("circuit", folder, "--lens", "none", "-k", 2)
    assert code == 0
    assert pairs.strongest(1, into="k")[0].reader in text
    assert "K-composition, direct: the best of 48" in text
