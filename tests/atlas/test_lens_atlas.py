"""Atlases whose lists were made through a lens: what they hold, what continues them, and what is refused."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import small
import zeropass as zp
from builds import OPTIONS, contents
from zeropass.atlas import neighbours
from zeropass.errors import BadAtlas, BadLens, BadOption


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.llama(tmp_path_factory.mktemp("lens") / "model", biases=True)


@pytest.fixture(scope="module")
def lens(model: Path) -> zp.LensMaps:
    return small.calibrated(model, model.parent / "lens")


@pytest.fixture(scope="module")
def atlas(model: Path, lens: zp.LensMaps) -> zp.Atlas:
    return small.build(model, model.parent / "atlas", OPTIONS, lens)


def frames_of(atlas: zp.Atlas, address: str) -> list[tuple[str, str]]:
    return [(record.role, record.frame) for record in atlas.explain(address, k=3)]


def test_the_usual_frames_are_those_of_the_lens(atlas: zp.Atlas) -> None:
    assert frames_of(atlas, "L1.ff.2") == [
        ("gate", "seen"),
        ("gate", "output"),
        ("up", "seen"),
        ("up", "output"),
        ("value", "distinctive"),
        ("value", "effect"),
    ]
    assert frames_of(atlas, "L1.attn.2") == [("qk", "seen"), ("vo", "seen")]
    assert {record.lens for record in atlas.explain("L1.attn.2", k=3)} == {atlas.lens}
    assert atlas.lens == "mean-field lens from 512 random tokens"
    assert atlas.note.startswith(f"Read through a {atlas.lens}. ")


def test_without_a_lens_an_atlas_has_the_frames_of_the_weights_alone(model: Path, tmp_path: Path) -> None:
    plain = small.build(model, tmp_path / "plain", OPTIONS)
    assert frames_of(plain, "L1.ff.2.value") == [("value", "output")]
    assert "lens" not in plain.manifest
    assert not (plain.path / "lens").exists()
    assert plain.options["frames"] == ["token", "output"]


def test_a_lens_that_no_frame_needs_is_left_out(model: Path, lens: zp.LensMaps, tmp_path: Path) -> None:
    options = zp.Options(k=5, layers=(1, 2), roles=("gate",), frames=("token",))
    named = small.build(model, tmp_path / "named", options, lens)
    assert contents(named.path) == contents(small.build(model, tmp_path / "plain", options).path)


def test_the_lens_of_an_atlas_is_that_of_its_folder(model: Path, lens: zp.LensMaps, atlas: zp.Atlas) -> None:
    stored = zp.read_lens(atlas.path / "lens", zp.open_model(str(model)))
    assert torch.equal(stored.effect(1, "ff"), lens.effect(1, "ff"))
    again = zp.lens_of(atlas, str(model))
    assert again.frames.lens is not None
    stored_pairs, pairs = (reader.explain("L1.attn.2.qk", k=3)[0].pairs for reader in (atlas, again))
    assert [pair.score for pair in pairs] == pytest.approx([pair.score for pair in stored_pairs], rel=1e-5)


def test_a_build_that_was_stopped_continues_to_the_same_bytes(
    model: Path, lens: zp.LensMaps, atlas: zp.Atlas, tmp_path: Path
) -> None:
    def stop(_what: str, step: int, _total: int) -> None:
        if step == 9:
            raise KeyboardInterrupt

    opened = zp.open_model(str(model))
    with pytest.raises(KeyboardInterrupt):
        zp.build(opened, tmp_path / "out", OPTIONS, stop, lens=lens)
    with pytest.raises(BadAtlas, match="lens: one instead of none"):
        zp.build(opened, tmp_path / "out", zp.Options(k=6, pairs=5), lens=None)
    assert zp.build(opened, tmp_path / "out", OPTIONS, lens=lens)
    assert not zp.build(opened, tmp_path / "out", OPTIONS, lens=lens)
    assert contents(tmp_path / "out") == contents(atlas.path)


def test_another_lens_makes_another_atlas(model: Path, atlas: zp.Atlas, tmp_path: Path) -> None:
    opened = zp.open_model(str(model))
    reseeded = zp.calibrate(opened, tmp_path / "reseeded", source="random", tokens=512, seed=1)
    with pytest.raises(BadAtlas, match="seed 0 instead of 1"):
        zp.build(opened, atlas.path, OPTIONS, lens=reseeded)


def test_frames_of_a_lens_need_one(model: Path, tmp_path: Path) -> None:
    options = zp.Options(frames=("seen",))
    with pytest.raises(BadOption, match="frame seen needs a lens"):
        zp.build(zp.open_model(str(model)), tmp_path / "out", options, lens=None)
    assert not (tmp_path / "out").exists()
    with pytest.raises(BadLens, match="holds no lens"):
        zp.build(zp.open_model(str(model)), tmp_path / "out", options, lens=tmp_path)


def test_similar_lists_are_those_of_the_lens(model: Path, lens: zp.LensMaps, atlas: zp.Atlas) -> None:
    """The correlations of neighbours are those of the lists over all tokens in use."""
    reader = zp.Lens(zp.open_model(str(model)), frames=zp.Frames(zp.open_model(str(model)), lens))
    vectors = reader.vectors(1, "value")
    rows = reader.frames.rows("output.write").matrix[torch.from_numpy(reader.model.vocab.used)]
    lists = (reader.frames.folded(vectors, "effect") @ rows.T).double()
    expected = torch.corrcoef(lists)[2]
    alike = next(each for each in neighbours.neighbours_of(atlas, "L1.ff.2.value", k=400).alike)
    correlations = {like.address: like.correlation for like in alike.best}
    inside = {row: correlations[f"L1.ff.{row}"] for row in range(48) if f"L1.ff.{row}" in correlations}
    assert len(inside) > 40
    assert all(abs(value - expected[row]) < 1e-3 for row, value in inside.items())


@pytest.mark.parametrize("view", ["default", "words", "ascii"])
@pytest.mark.parametrize("address", ["L1.ff.2", "L2.attn.1.o.3", "L0.attn.2.k.1"])
def test_lists_and_their_coherence_are_those_of_the_weights(
    model: Path, lens: zp.LensMaps, tmp_path: Path, address: str, view: str
) -> None:
    """An atlas and a lens on the model say the same in every frame and view."""
    opened, k = zp.open_model(str(model)), 15
    reader = zp.Lens(opened, frames=zp.Frames(opened, lens))
    atlas = small.build(model, tmp_path / "out", zp.Options(k=k, layers=(int(address[1]), int(address[1]) + 1)), lens)
    stored, computed = (source.explain(address, tokens=view, k=k) for source in (atlas, reader))
    assert [(record.role, record.frame) for record in stored] == [(record.role, record.frame) for record in computed]
    for ours, theirs in zip(stored, computed, strict=True):
        assert [token.id for token in ours.top] == [token.id for token in theirs.top]
        assert [token.id for token in ours.bottom] == [token.id for token in theirs.bottom]
        np.testing.assert_allclose([t.z for t in ours.top], [t.z for t in theirs.top], rtol=1e-3, atol=1e-3)
        assert ours.coherence is not None
        assert theirs.coherence is not None
        assert ours.coherence.value == pytest.approx(theirs.coherence.value, abs=1e-4)
        # The lists of random directions that are stored for other views are those that show enough of fifty tokens.
        assert ours.coherence.null == pytest.approx(theirs.coherence.null, abs=1e-4 if view == "default" else 0.1)


def test_a_word_is_found_in_distinctive_lists(atlas: zp.Atlas) -> None:
    """The stored index, a scan and every list in turn give the same vectors."""
    token = int(np.flatnonzero(atlas.mask("default"))[70])
    runs = [run for run in atlas.runs if run.frame == "distinctive"]
    assert {run.role for run in runs} == {"value", "o"}
    z = {run.first + row: atlas.scores(run, row)[token] / atlas.stds[run.first + row] for run in runs for row in (0, 1)}
    scanned = dict(atlas.scan({token: 1.0}, k=10**6))
    assert all(abs(scanned[i] - value) < 1e-3 for i, value in z.items())
    best = sorted((abs(scanned[i]) for run in runs for i in range(run.first, run.first + run.count)), reverse=True)
    hits = [hit for hit in atlas.find_tokens([token], k=5).hits if hit.frame == "distinctive"]
    np.testing.assert_allclose([abs(hit.z) for hit in hits], best[:5], rtol=1e-3)
    together = atlas.scan({token: 0.5, token + 1: 0.5}, runs, k=3)
    second = dict(atlas.scan({token + 1: 1.0}, k=10**6))
    assert all(abs(value - (scanned[i] + second[i]) / 2) < 1e-3 for i, value in together)


@pytest.mark.parametrize("damage", ["missing", "shape", "nan"])
def test_damaged_factors_are_refused(atlas: zp.Atlas, tmp_path: Path, damage: str) -> None:
    folder = shutil.copytree(atlas.path, tmp_path / "atlas")
    path = folder / "vectors" / "L1.value.distinctive.npy"
    factors = np.load(path)
    match damage:
        case "missing":
            path.unlink()
        case "shape":
            np.save(path, factors[:-1])
        case "nan":
            np.save(path, np.full_like(factors, np.nan))
    with pytest.raises(BadAtlas, match=r"distinctive|not finite"):
        zp.open_atlas(folder).explain("L1.ff.2.value", tokens="words")


def test_a_missing_or_damaged_table_of_coherence_is_refused(atlas: zp.Atlas, tmp_path: Path) -> None:
    folder = shutil.copytree(atlas.path, tmp_path / "atlas")
    (folder / "coherence.parquet").write_bytes(b"no table")
    with pytest.raises(BadAtlas, match=r"coherence\.parquet cannot be read"):
        zp.open_atlas(folder).explain("L1.ff.2.value")
    (folder / "coherence.parquet").unlink()
    with pytest.raises(BadAtlas, match=r"lacks coherence\.parquet"):
        zp.open_atlas(folder)


def test_coherent_lists_are_those_above_random_directions(atlas: zp.Atlas) -> None:
    layers = atlas.layers
    addresses = atlas.coherent("value", "distinctive", layers, 1000)
    expected = set()
    for layer in range(*layers):
        for place in range(atlas.model["neurons"]):
            record = atlas.explain(f"L{layer}.ff.{place}.value", frame="distinctive")[0]
            if record.coherence.above:
                expected.add(record.address)
    assert 0 < len(expected) < layers[1] * atlas.model["neurons"] / 2
    assert set(addresses) == expected


@pytest.mark.parametrize("damage", ["shape", "missing", "nan", "type", "cut"])
def test_a_damaged_lens_is_refused(atlas: zp.Atlas, tmp_path: Path, damage: str) -> None:
    folder = shutil.copytree(atlas.path, tmp_path / "atlas")
    path = folder / "lens" / "lens.safetensors"
    tensors = load_file(path)
    name = "effect.1.ff"
    match damage:
        case "shape":
            tensors[name] = tensors[name][:5].contiguous()
        case "missing":
            del tensors[name]
        case "nan":
            tensors[name][3, 3] = float("nan")
        case "type":
            tensors[name] = tensors[name].to(torch.int32)
    save_file(tensors, path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(BadAtlas, match=r"lens\.safetensors cannot be read"):
        zp.open_atlas(folder).explain("L1.ff.2.value", tokens="words")
    shutil.rmtree(folder / "lens")
    with pytest.raises(BadAtlas, match="no such file"):
        zp.open_atlas(folder).find_tokens([300], side="write")


def test_a_manifest_without_words_for_its_lens_is_refused(atlas: zp.Atlas, tmp_path: Path) -> None:
    folder = shutil.copytree(atlas.path, tmp_path / "atlas")
    manifest = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(manifest.replace('"words": "mean', '"word": "mean'))
    with pytest.raises(BadAtlas, match="lens is"):
        zp.open_atlas(folder)


def test_products_with_a_row_are_those_with_the_vectors_through_the_lens(atlas: zp.Atlas) -> None:
    for run in atlas.runs:
        row = np.linspace(-1, 1, atlas.model["d"], dtype=np.float32)
        slow = np.stack([atlas.vector(run, i) for i in range(run.count)]) @ row
        np.testing.assert_allclose(atlas.products(run, row), slow, rtol=1e-3, atol=1e-3)


def test_a_lens_of_what_writes_alone_is_refused(model: Path, tmp_path: Path) -> None:
    d = small.D
    layers = {layer: torch.eye(d) for layer in range(small.LAYERS - 1)}
    torch.save({"J": layers, "n_prompts": 1, "source_layers": list(layers), "d_model": d}, tmp_path / "lens.pt")
    with pytest.raises(BadOption, match="what reads and of what writes"):
        zp.build(zp.open_model(str(model)), tmp_path / "out", OPTIONS, lens=tmp_path / "lens.pt")
    assert not (tmp_path / "out").exists()
