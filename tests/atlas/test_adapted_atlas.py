"""Atlases of models with adapters on them."""

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import zeropass as zp
from adapters import made
from builds import ARGUMENTS, OPTIONS, contents
from commands import Run
from zeropass.errors import BadAtlas
from zeropass.model.adapted import Adapted


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Adapted:
    return made("llama", tmp_path_factory.mktemp("adapted"), target_modules=["q_proj", "up_proj", "down_proj"])


@pytest.mark.filterwarnings("ignore")
def test_the_atlas_holds_what_the_adapted_model_says(adapted: Adapted, run: Run, tmp_path: Path) -> None:
    base, adapter = adapted.base.name, adapted.adapters[0].folder
    arguments = ("build", base, "--adapter", adapter, *ARGUMENTS)
    out = tmp_path / "atlas"
    assert run(*arguments, "--out", out)[0] == 0
    atlas = zp.open_atlas(out)
    assert atlas.manifest["weights_sha256"] == adapted.fingerprint
    assert set(atlas.manifest["sha256"]) == {"model.safetensors", "adapter 1: adapter_model.safetensors"}
    assert atlas.model["name"] == adapted.name
    for address in ("L1.ff.3", "L1.attn.1.qk"):
        there, here = (source.explain(address, k=3) for source in (atlas, zp.Lens(adapted)))
        for record, expected in zip(there, here, strict=True):
            entries, theirs = ((r.top if hasattr(r, "top") else r.pairs)[:3] for r in (record, expected))
            assert [entry.score for entry in entries] == pytest.approx([entry.score for entry in theirs], rel=1e-3)
    plain = tmp_path / "plain"
    assert zp.build(base, plain, OPTIONS)
    assert atlas.explain("L1.ff.3.up")[0].top != zp.open_atlas(plain).explain("L1.ff.3.up")[0].top
    assert zp.lens_of(atlas, adapted).explain("L1.ff.3")
    run.capsys.readouterr()
    code, _, err = run("show", out, "L1.attn.1.qk", "--svd")
    assert (code, f"zeropass show {base} --adapter {adapter} …" in err) == (2, True)
    code, text, _ = run(*arguments, "--out", out)
    assert (code, "complete already" in text) == (0, True)


@pytest.mark.filterwarnings("ignore")
def test_another_adapter_is_another_atlas(adapted: Adapted, tmp_path: Path) -> None:
    """A stopped build continues with the same adapter wherever it lies, and with no other."""
    base, folder = adapted.base.name, Path(adapted.adapters[0].folder)
    whole = tmp_path / "whole"
    zp.build(adapted, whole, OPTIONS)
    stopped = tmp_path / "stopped"

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        zp.build(adapted, stopped, OPTIONS, run=stop)
    moved = Path(shutil.copytree(folder, tmp_path / "moved"))
    path = Path(shutil.copytree(folder, tmp_path / "other")) / "adapter_model.safetensors"
    save_file({name: tensor * 1.01 for name, tensor in load_file(path).items()}, path)
    opened = zp.open_model(base)
    for other in (opened, zp.adapt(opened, path.parent), zp.adapt(opened, folder, [0.5])):
        with pytest.raises(BadAtlas):
            zp.build(other, stopped, OPTIONS)
    assert zp.build(zp.adapt(opened, moved), stopped, OPTIONS)
    differing = {name for name, data in contents(whole).items() if contents(stopped).get(name) != data}
    assert differing <= {"plan.json", "manifest.json"}  # which name the folder
