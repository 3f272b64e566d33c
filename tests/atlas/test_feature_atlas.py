"""Atlases of dictionaries: they hold what the weights say, continue, and tell features from parameters."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import dictionaries
import small
import zeropass as zp
from builds import contents
from commands import Run
from zeropass._io.progress import silent
from zeropass.atlas import neighbours, summary
from zeropass.errors import BadAddress, BadAtlas, BadDictionary, BadOption
from zeropass.records.parameters import VectorRecord

N = 40
ENCODERS, DECODERS = torch.randn(2, N, small.D, generator=torch.Generator().manual_seed(0))
LATER = torch.randn(N, 3, small.D, generator=torch.Generator().manual_seed(1))
OPTIONS = zp.Options(k=12)

Written = Callable[[Path], Path]

WRITTEN: dict[str, Written] = {
    "stream": lambda path: dictionaries.saelens(path, ENCODERS, DECODERS),
    "end": lambda path: dictionaries.saelens(path, ENCODERS, DECODERS, "blocks.2.hook_resid_post"),
    "start": lambda path: dictionaries.saelens(path, ENCODERS, DECODERS, "hook_embed"),
    "mlp": lambda path: dictionaries.saelens(path, ENCODERS, DECODERS, "blocks.1.hook_mlp_out"),
    "attention": lambda path: dictionaries.sparsify(path / "layers.1.self_attn", ENCODERS, DECODERS),
    "transcoders": lambda path: dictionaries.transcoders(path, [(ENCODERS, DECODERS), (DECODERS, ENCODERS.T)]),
    "cross-layer": lambda path: dictionaries.cross_layer(
        path, [(ENCODERS, LATER), (ENCODERS, LATER[:, 1:]), (ENCODERS, LATER[:, 2:])]
    ),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> zp.Model:
    return zp.open_model(small.llama(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def lens(model: zp.Model) -> zp.LensMaps:
    return zp.calibrate(model, source="random", tokens=256)


def assert_alike(stored: zp.Atlas, reader: zp.Lens, dictionary: zp.Dictionary, address: str) -> None:
    """Compare the records of an address in an atlas with those from the weights."""
    records, expected = stored.explain(address, k=12), reader.feature(dictionary, address, k=12)
    assert [repr(record) for record in records] == [repr(record) for record in expected]
    for record, other in zip(records, expected, strict=True):
        assert isinstance(record, VectorRecord)
        assert isinstance(other, VectorRecord)
        assert (record.role, record.frame, record.evidence, record.lens) == (
            other.role,
            other.frame,
            None,
            other.lens,
        )
        for pole, other_pole in ((record.top, other.top), (record.bottom, other.bottom)):
            assert [token.id for token in pole] == [token.id for token in other_pole]
            assert [token.z for token in pole] == pytest.approx([token.z for token in other_pole], abs=2e-4)
        assert (record.coherence is None) == (other.coherence is None)
        if record.coherence and other.coherence:
            assert record.coherence.value == pytest.approx(other.coherence.value, abs=1e-4)
            assert record.coherence.null == pytest.approx(other.coherence.null, abs=1e-4)
    assert records.note == expected.note


@pytest.mark.parametrize("through", [False, True])
@pytest.mark.parametrize("name", WRITTEN)
def test_an_atlas_of_features_says_what_the_weights_say(
    name: str, through: bool, model: zp.Model, lens: zp.LensMaps, tmp_path: Path
) -> None:
    folder, maps = WRITTEN[name](tmp_path / "features"), lens if through else None
    assert zp.build(model, tmp_path / "atlas", OPTIONS, lens=maps, features=folder)
    assert not zp.build(model, tmp_path / "atlas", OPTIONS, lens=maps, features=folder)
    atlas, reader = zp.open_atlas(tmp_path / "atlas"), zp.load(model, lens=maps)
    dictionary = zp.open_dictionary(model, folder)
    for layer in dictionary.files:
        for address in (f"L{layer}.sae.7", f"L{layer}.sae.{N - 1}.decoder"):
            assert_alike(atlas, reader, dictionary, address)
    for hit in atlas.find("t7", k=3):
        assert ".sae." in hit.address
        assert hit.role in dictionary.roles(int(hit.address[1]))
        assert hit.above is None
    first = atlas.explain(atlas.find(["t7", "t8"], k=3)[0].address, k=5)
    assert first.note.startswith(atlas.note)


def test_the_pages_of_features_say_what_they_are(model: zp.Model, lens: zp.LensMaps, tmp_path: Path) -> None:
    folder = WRITTEN["transcoders"](tmp_path / "features")
    zp.build(model, tmp_path / "atlas", OPTIONS, lens=lens, features=folder)
    atlas = zp.open_atlas(tmp_path / "atlas")
    assert (atlas.layers, atlas.unit_roles) == ((0, 2), ("encoder", "decoder"))
    assert summary.list_types_of(atlas)
    layer = summary.telling(atlas, 1)
    assert layer.count == N
    assert all(row.address.startswith("L1.sae.") for row in layer.rows)
    side, frame = summary.list_types_of(atlas)[0]
    assert {cell.part for cell in summary.overview(atlas, side, frame, "strength").cells} == {"sae"}
    assert summary.outside(atlas, 1) == []
    assert {role for role, *_ in summary.strengths(atlas, 0)} == {"encoder", "decoder"}
    record = neighbours.neighbours_of(atlas, "L0.sae.3")
    assert {wire.address[:6] for wiring in record.wiring for wire in wiring.wires} <= {"L0.sae", "L1.sae"}


def test_a_stopped_build_continues_to_the_same_bytes(model: zp.Model, lens: zp.LensMaps, tmp_path: Path) -> None:
    folder = WRITTEN["stream"](tmp_path / "features")

    def stop(name: str, step: int, total: int) -> None:
        if name == "L1.decoder":
            raise KeyboardInterrupt

    zp.build(model, tmp_path / "atlas", OPTIONS, lens=lens, features=folder)
    with pytest.raises(KeyboardInterrupt):
        zp.build(model, tmp_path / "stopped", OPTIONS, stop, lens=lens, features=folder, memory=10**9)
    assert zp.build(model, tmp_path / "stopped", OPTIONS, silent, lens=lens, features=folder, memory=10**9)
    assert contents(tmp_path / "stopped") == contents(tmp_path / "atlas")


def test_another_dictionary_is_another_atlas(model: zp.Model, tmp_path: Path) -> None:
    zp.build(model, tmp_path / "atlas", OPTIONS, lens=None, features=WRITTEN["stream"](tmp_path / "one"))
    second = dictionaries.saelens(tmp_path / "two", ENCODERS, DECODERS + 1)
    with pytest.raises(BadAtlas, match=r"holds another atlas \(sha256"):
        zp.build(model, tmp_path / "atlas", OPTIONS, lens=None, features=second)
    with pytest.raises(BadAtlas, match=r"holds another atlas \(dictionary: one instead of none"):
        zp.build(model, tmp_path / "atlas", zp.Options(k=12, layers=(1, 2)), lens=None)


def test_some_layers_and_roles(model: zp.Model, tmp_path: Path) -> None:
    folder = WRITTEN["cross-layer"](tmp_path / "features")
    options = zp.Options(k=12, layers=(0, 2), roles=("decoder",))
    zp.build(model, tmp_path / "atlas", options, lens=None, features=folder)
    atlas = zp.open_atlas(tmp_path / "atlas")
    assert atlas.unit_roles == ("decoder.0", "decoder.1", "decoder.2")
    assert [record.role for record in atlas["L1.sae.3"]] == ["decoder.1", "decoder.2"]
    assert {hit.role for hit in atlas.find("t7", role="decoder.2")} == {"decoder.2"}
    for wrong, words in (
        (zp.Options(layers=(5, 6)), "has features of 0, 1, 2"),
        (zp.Options(roles=("gate",)), "have no gate; they have encoder, decoder.0"),
    ):
        with pytest.raises(BadOption, match=words):
            zp.build(model, tmp_path / "other", wrong, lens=None, features=folder)
        assert not (tmp_path / "other").exists()


def test_addresses_of_the_other_kind_are_refused(model: zp.Model, tmp_path: Path) -> None:
    zp.build(model, tmp_path / "atlas", OPTIONS, lens=None, features=WRITTEN["stream"](tmp_path / "features"))
    plain = zp.Options(k=12, layers=(1, 2), roles=("gate",))
    zp.build(model, tmp_path / "plain", plain, lens=None)
    features, parameters = zp.open_atlas(tmp_path / "atlas"), zp.open_atlas(tmp_path / "plain")
    for atlas, address, words in (
        (features, "L1.ff.3", "holds features of a dictionary, such as L1.sae.0"),
        (features, "L1.attn.0.vo", "holds features of a dictionary"),
        (features, "L2.sae.0", "layer 2 is out of range"),
        (features, "L1.sae.40", "has encoder 0 to 39"),
        (features, "L1.sae.3.decoder.7", "holds no decoder.7; it has decoder, encoder"),
        (parameters, "L1.sae.3", "is a feature of a dictionary"),
    ):
        with pytest.raises(BadAddress, match=words):
            atlas.explain(address)
    with pytest.raises(BadDictionary, match="holds no dictionary"):
        zp.build(model, tmp_path / "none", OPTIONS, lens=None, features=tmp_path / "plain")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "damage",
    [
        {"like": {"L1.encoder": [1, "gate"]}},
        {"like": {"L1.encoder": [1, "gate"], "L1.decoder": [0]}},
        {"like": {"L1.encoder": [9, "gate"], "L1.decoder": [0, "value"]}},
        {"like": {"../encoder": [1, "gate"]}},
        {"like": []},
        {"note": 7},
    ],
)
def test_a_damaged_entry_of_the_manifest_is_refused(damage: dict[str, object], model: zp.Model, tmp_path: Path) -> None:
    zp.build(model, tmp_path / "atlas", OPTIONS, lens=None, features=WRITTEN["stream"](tmp_path / "features"))
    path = tmp_path / "atlas" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["dictionary"] |= damage
    path.write_text(json.dumps(manifest))
    with pytest.raises(BadAtlas, match=r"rebuild the atlas|cannot be read"):
        zp.open_atlas(tmp_path / "atlas").find("t7")


def test_the_command_line_builds_and_searches_features(run: Run, tmp_path: Path) -> None:
    model = str(small.llama(tmp_path / "model"))
    folder, out = str(WRITTEN["stream"](tmp_path / "features")), str(tmp_path / "atlas")
    code, text, err = run("build", model, "--out", out, "--features", folder, "--k", "12")
    assert code == 0, err
    assert "complete" in text
    for command, words in (
        (("find", out, "t7"), "L1.sae."),
        (("show", out, "L1.sae.7"), "L1.sae.7 encoder sees"),
        (("show", out, "L1.sae.7.decoder", "--tokens", "all", "-k", "30"), "Features of a dictionary (SAELens"),
        (("info", out), "dictionary"),
        (("tour", out), "features"),
    ):
        code, text, err = run(*command)
        assert code == 0, err
        assert words in " ".join(text.split()), command
    for arguments, words in (
        (("--hook", "blocks.1.hook_resid_mid"), "--hook is about --features"),
        (("--features", folder, "--engine", "ray"), "--features is for builds in one process"),
        (("--features", folder, "--hook", "blocks.1.hook_resid_mid"), "contradicts"),
    ):
        code, text, err = run("build", model, "--out", str(tmp_path / "other"), *arguments)
        assert (code, text) == (2, ""), arguments
        assert words in " ".join(err.split()), (arguments, err)
    shutil.rmtree(tmp_path / "atlas" / "vectors")
    code, _, err = run("find", out, "t7", "t8")
    assert code == 2
    assert "cannot be read" in err
