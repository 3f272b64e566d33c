"""The project's own small models, and what the documents say of their alignment, on less text."""

import hashlib
import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

import zeropass as zp
from zeropass.evidence.corpus import press_text

ROOT = Path(__file__).parents[2]
NAMES = ("first", "second", "wide")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reproduce_alignment", ROOT / "reproduce" / "alignment.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_what_its_training_record_says(name: str) -> None:
    folder = ROOT / "models" / name
    story = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    weights = folder / "model.safetensors"
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == story["sha256"]
    assert weights.stat().st_size <= 8e6
    assert story["loss"][-1]["held_out"] < 4.2
    assert zp.open_model(str(folder)).dims.layers == story["recipe"]["layers"]


def test_layers_of_two_seeds_are_the_identity_in_embedding_space_only(tmp_path: Path) -> None:
    models = [zp.open_model(str(ROOT / "models" / name)) for name in NAMES[:2]]
    alignment = zp.align_models(*models, tmp_path / "out")
    by_tokens = [layer_map.assigned for layer_map in alignment.layers if layer_map.frame != "raw"]
    assert sum(assigned == (0, 1, 2, 3) for assigned in by_tokens) >= len(by_tokens) - 1
    drawn = (tmp_path / "out" / "layers.svg").read_text(encoding="utf-8")
    assert drawn.count("<g ") == len(alignment.layers)
    assert alignment.summary()["matches"]["neuron"]["above_chance"] > 1000


@pytest.mark.real
def test_matches_agree_with_activations(script: ModuleType) -> None:
    folders = [ROOT / "models" / name for name in ("first", "wide")]
    ids = script.windows(press_text(), folders[0], 80)
    active = [script.activations(folder, ids) for folder in folders]
    first, second = (zp.open_model(str(folder)) for folder in folders)
    pair = zp.pair_of(first, second)
    through = zp.pair_of(first, second, (zp.calibrate(first), zp.calibrate(second)))
    rows = {row.method: row for row in script.agreement_with_activations(pair, through, *active, "first, wide")}
    assert rows["lists of ten"].first > 0.3
    assert rows["lists of ten, through lenses"].first > rows["lists of ten"].first + 0.04
    assert rows["lists of ten"].first > rows["all tokens"].first + 0.05
    assert rows["lists of ten"].ten > rows["all tokens"].ten
    assert rows["raw space"].first is None
    assert rows["chance"].first < 0.001
