"""Published lenses: what they say is what the model does, in the right direction, and damage is refused by name."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import zeropass as zp
from commands import Run
from scripts import imported
from tiny import error, save
from zeropass.errors import BadLens, BadOption
from zeropass.evidence.resampling import spearman
from zeropass.model.blocks import Block, embedded
from zeropass.model.frames import Frames
from zeropass.model.running import Contexts, Running
from zoo import tiny_model

ROOT = Path(__file__).parents[2]
FIRST = ROOT / "models" / "first"
(makers,) = imported(ROOT / "reproduce", ["published_lenses"])

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model() -> zp.Model:
    return zp.open_model(FIRST)


@pytest.fixture(scope="module")
def windows(model: zp.Model) -> Tensor:
    return makers.windows_of(model, "own", 1024)


@pytest.fixture(scope="module")
def jacobians(model: zp.Model, windows: Tensor) -> dict[int, Tensor]:
    return makers.averaged_jacobians(model, windows[:1])


@pytest.fixture(scope="module")
def translators(model: zp.Model, windows: Tensor) -> dict[str, Tensor]:
    return makers.translators(model, windows)


@pytest.fixture(scope="module")
def file(jacobians: dict[int, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("jacobian") / "first.pt"
    makers.save_jacobians(jacobians, 1, file)
    return file


@pytest.fixture(scope="module")
def folder(translators: dict[str, Tensor], model: zp.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tuned") / "first"
    makers.save_translators(translators, model, folder)
    return folder


def test_a_jacobian_is_the_change_of_the_last_states(
    model: zp.Model, windows: Tensor, jacobians: dict[int, Tensor], file: Path
) -> None:
    """Push the state behind a block at one position after another: the later states move by the row times its map."""
    layer, ids = 1, windows[:1]
    push = torch.randn(model.dims.d, generator=torch.Generator().manual_seed(1))
    x = embedded(model, ids)
    for number in range(layer + 1):
        x = Block(model, number)(x)

    def last(states: Tensor) -> Tensor:
        for number in range(layer + 1, model.dims.layers):
            states = Block(model, number)(states)
        return states

    at = range(makers.SKIPPED, ids.shape[1] - 1)
    step = 0.003 * float(x[0, 50].norm() / push.norm())
    changes = torch.zeros(model.dims.d)
    for position in at:
        pushed = x.clone()
        pushed[0, position] += step * push
        changes += (last(pushed) - last(x))[0, makers.SKIPPED : -1].sum(0) / step
    assert error(push @ jacobians[layer].T, changes / len(at)) < 0.02
    read = zp.read_lens(file, model).effect(layer, "ff")
    assert error(read, jacobians[layer].half().float().T) == 0


def test_a_translator_carries_a_state_to_the_last_one(
    model: zp.Model, windows: Tensor, translators: dict[str, Tensor], folder: Path
) -> None:
    states = [embedded(model, windows)]
    for layer in range(model.dims.layers):
        states.append(Block(model, layer)(states[-1]))
    lens = zp.read_lens(folder, model)
    for layer in range(1, model.dims.layers):
        entering, last = (x[:, 1:].flatten(0, 1) for x in (states[layer], states[-1]))
        carried = entering @ lens.effect(layer - 1, "ff") + translators[f"{layer}.bias"]
        assert error(carried, last) < 0.8 * error(entering + (last - entering).mean(0), last)


def test_a_vector_takes_the_map_of_the_first_state_behind_it(
    model: zp.Model, jacobians: dict[int, Tensor], translators: dict[str, Tensor], file: Path, folder: Path
) -> None:
    d, last = model.dims.d, model.dims.layers - 1
    jacobian, tuned = zp.read_lens(file, model), zp.read_lens(folder, model)
    for lens in (jacobian, tuned):
        assert torch.equal(lens.effect(last, "ff"), torch.eye(d))
        for layer in range(last + 1):
            assert torch.equal(lens.effect(layer, "attn"), lens.effect(layer, "ff"))
    assert torch.equal(jacobian.effect(-1, "ff"), jacobian.effect(0, "ff"))
    assert torch.equal(tuned.effect(-1, "ff"), torch.eye(d) + translators["0.weight"].T)
    assert torch.equal(tuned.effect(1, "ff"), torch.eye(d) + translators["2.weight"].T)


def test_a_jacobian_of_the_token_alone_is_what_the_same_text_without_a_cache_gives(
    model: zp.Model, windows: Tensor
) -> None:
    ids, layer = windows[:1, :20], 1
    behind = embedded(model, ids)
    for number in range(layer + 1):
        behind = Block(model, number)(behind)

    def last(state: Tensor) -> Tensor:
        x = torch.cat((behind[:, :-1], state[None, None]), 1)
        for number in range(layer + 1, model.dims.layers):
            x = Block(model, number)(x)
        return x[0, -1]

    true = torch.autograd.functional.jacobian(last, behind[0, -1])
    assert error(makers.averaged_jacobians(model, ids, alone=True)[layer], true) < 1e-4


def test_lists_through_a_jacobian_say_more_than_those_of_the_weights_alone(
    model: zp.Model, windows: Tensor, tmp_path: Path
) -> None:
    prompts, others = windows.reshape(64, -1).split((48, 16))
    makers.save_jacobians(makers.averaged_jacobians(model, prompts, alone=True), len(prompts), tmp_path / "lens.pt")
    contexts, frames, sample = (
        Contexts.of(Running(model), others),
        Frames.through(model, tmp_path),
        torch.arange(300, 1300),
    )
    rows, vectors = frames.rows("output.write").matrix[sample], model.matrix("value", 1)[:12]
    with torch.no_grad():
        length = 0.1 * contexts.streams[2].norm(dim=-1).median()
        changes = contexts.changes(1, "ff", length * vectors / vectors.norm(dim=1, keepdim=True))[..., sample].mean(0)
    direct, effect = (
        float(spearman(frames.fold(vectors, frame, "write", "ff_norm", 1) @ rows.T, changes, 1).mean())
        for frame in ("output", "effect")
    )
    assert effect > direct + 0.01  # .95 and .93


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_only_what_writes_is_read_through_it(kind: str, request: pytest.FixtureRequest) -> None:
    reader = zp.load(FIRST, lens=request.getfixturevalue(kind))
    records = reader["L2.ff.3"]
    frames = {(record.role, record.frame) for record in records}
    assert frames == {("gate", "token"), ("gate", "output"), ("up", "token"), ("up", "output")} | {
        ("value", "distinctive"),
        ("value", "effect"),
    }
    assert reader.frames.lens is not None
    words = reader.frames.lens.facts.words
    assert {record.frame: record.lens for record in records} == {
        "token": "",
        "output": "",
        "distinctive": words,
        "effect": words,
    }
    assert f"Read through a {words}, which does not say which weights it belongs to." in records.note
    assert "Read through" not in reader["L2.ff.3.gate"].note
    for role in ("qk", "vo"):
        assert reader[f"L2.attn.1.{role}"][0].frame == "token"
    for address in ("L2.ff.3.gate", "L2.attn.1.qk"):
        with pytest.raises(BadOption, match=r"has the frame distinctive, effect only; seen needs a lens that"):
            reader.explain(address, frame="seen")


def test_a_lens_says_what_it_is(file: Path, folder: Path, model: zp.Model, tmp_path: Path) -> None:
    assert zp.read_lens(file, model).facts.words.startswith("Jacobian lens from 1 prompts (sha256 ")
    assert zp.read_lens(str(folder), model).facts.words.startswith(f"tuned lens of {model.name} (sha256 ")
    shutil.copy(file, tmp_path / "lens.pt")
    lens = zp.read_lens(tmp_path, model)
    assert lens.facts.identity == zp.read_lens(file, model).facts.identity
    assert lens.facts.identity != zp.read_lens(folder, model).facts.identity
    assert zp.load(FIRST, lens=lens)["L2.ff.3.value"][0].frame == "distinctive"
    config = json.loads((folder / "config.json").read_text()) | {"base_model_name_or_path": "\x1b[31m" + "x" * 9999}
    shutil.copytree(folder, tmp_path / "named")
    (tmp_path / "named" / "config.json").write_text(json.dumps(config))
    words = zp.read_lens(tmp_path / "named", model).facts.words
    assert len(words) <= 210
    assert words.isprintable()


def test_the_command_line_takes_it(file: Path, folder: Path, run: Run) -> None:
    for lens in (file, folder):
        code, out, _ = run("show", str(FIRST), "L2.ff.3.value", "--lens", str(lens), "--json")
        assert code == 0
        assert json.loads(out)[0]["frame"] == "distinctive"
    code, _, err = run("show", str(FIRST), "L2.ff.3", "--lens", str(FIRST / "config.json"))
    assert code == 2
    assert "config.json" in err
    code, _, err = run("show", str(FIRST), "L2.ff.3", "--lens", "nowhere")
    assert code == 2
    assert "There is no lens 'nowhere'" in err


JACOBIAN_DAMAGE: dict[str, tuple[dict[str, Any], str]] = {
    "no J": ({"J": None}, "no dictionary J"),
    "a list of matrices": ({"J": [torch.eye(192)] * 3}, "no dictionary J"),
    "a missing layer": ({"J": {0: torch.eye(192), 2: torch.eye(192)}}, "without all layers"),
    "a missing last layer": ({"J": {0: torch.eye(192), 1: torch.eye(192)}, "source_layers": [0, 1]}, "3 layers"),
    "layers by name": ({"J": {str(n): torch.eye(192) for n in range(3)}}, "without all layers"),
    "another order": ({"source_layers": [2, 1, 0]}, "without all layers"),
    "another width": ({"d_model": 64}, "width 64"),
    "another shape": ({"J": {n: torch.eye(192)[: 192 - n] for n in range(3)}}, r"J\[1\] has shape \(191, 192\)"),
    "a text": ({"n_prompts": "many"}, "n_prompts is a str"),
    "a count of nothing": ({"n_prompts": -1}, "n_prompts is -1"),
    "a number too long to read": ({"n_prompts": 10**5000}, "bad.pt"),
    "another fact": ({"bank_arms": 2}, "'bank_arms'"),
}


@pytest.mark.parametrize("damage", JACOBIAN_DAMAGE)
def test_a_damaged_jacobian_lens_is_refused(damage: str, model: zp.Model, file: Path, tmp_path: Path) -> None:
    change, message = JACOBIAN_DAMAGE[damage]
    torch.save(torch.load(file, weights_only=True) | change, tmp_path / "bad.pt")
    with pytest.raises(BadLens, match=message) as caught:
        zp.read_lens(tmp_path / "bad.pt", model)
    assert "bad.pt" in str(caught.value)


TUNED_DAMAGE: dict[str, tuple[dict[str, Any], str]] = {
    "another width": ({"d_model": 64}, "width 64"),
    "more layers than there are": ({"num_hidden_layers": 10**9}, "1000000000 layers"),
    "fewer layers": ({"num_hidden_layers": 3}, "3 layers"),
    "no bias": ({"bias": False}, "lacks a translator of the 4 layers, or holds something else"),
    "another lens": ({"lens_type": "mlp"}, "linear_tuned_lens"),
    "another fact": ({"rank": 8}, "'rank'"),
}


@pytest.mark.parametrize("damage", TUNED_DAMAGE)
def test_a_tuned_lens_of_another_form_is_refused(damage: str, model: zp.Model, folder: Path, tmp_path: Path) -> None:
    change, message = TUNED_DAMAGE[damage]
    bad = shutil.copytree(folder, tmp_path / "bad")
    (bad / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | change))
    with pytest.raises(BadLens, match=message) as caught:
        zp.read_lens(bad, model)
    assert str(bad) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"3.weight": None}, "not a state dict"),
        ({"4.weight": torch.eye(192)}, "holds something else"),
        ({"2.weight": torch.eye(64)}, r"2.weight has shape \(64, 64\)"),
    ],
)
def test_damaged_translators_are_refused(
    change: dict[str, Any], message: str, model: zp.Model, folder: Path, tmp_path: Path
) -> None:
    bad = shutil.copytree(folder, tmp_path / "bad")
    torch.save(torch.load(folder / "params.pt", weights_only=True) | change, bad / "params.pt")
    with pytest.raises(BadLens, match=message):
        zp.read_lens(bad, model)


def test_values_are_checked_when_they_are_read(model: zp.Model, file: Path, tmp_path: Path) -> None:
    content = torch.load(file, weights_only=True)
    content["J"][1][5, 7] = torch.nan
    content["J"][2] = content["J"][2].to(torch.int8)
    torch.save(content, tmp_path / "bad.pt")
    lens = zp.read_lens(tmp_path / "bad.pt", model)
    assert lens.effect(0, "ff").isfinite().all()
    for layer, message in ((1, r"tensor 'J\[1\]' holds 1 values that are NaN"), (2, "stored as int8")):
        with pytest.raises(zp.ZeropassError, match=message):
            lens.effect(layer, "ff")


class Code:
    """An object whose unpickling would run code."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


def test_a_pickle_with_code_is_refused_and_not_run(model: zp.Model, file: Path, folder: Path, tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    torch.save(torch.load(file, weights_only=True) | {"n_prompts": Code(trace)}, tmp_path / "bad.pt")
    bad = shutil.copytree(folder, tmp_path / "bad")
    torch.save({"0.weight": Code(trace)}, bad / "params.pt")
    for path in (tmp_path / "bad.pt", bad):
        with pytest.raises(BadLens, match="without unpickling objects"):
            zp.read_lens(path, model)
    assert not trace.exists()


def test_a_lens_of_another_model_is_refused(file: Path, folder: Path, tmp_path: Path) -> None:
    encoder = zp.open_model(str(save(tiny_model("bert"), tmp_path / "bert")))
    with pytest.raises(BadLens, match=r"layers of width 192; .* has"):
        zp.read_lens(file, encoder)
    layers, d = encoder.dims.layers, encoder.dims.d
    makers.save_jacobians({layer: torch.eye(d) for layer in range(layers - 1)}, 1, tmp_path / "bert.pt")
    with pytest.raises(BadLens, match="predict the next token from the text before it alone"):
        zp.read_lens(tmp_path / "bert.pt", encoder)
    lens = zp.read_lens(folder, zp.open_model(FIRST))
    with pytest.raises(BadLens, match="The lens is a lens of 4 layers"):
        zp.load(save(tiny_model("llama"), tmp_path / "llama"), lens=lens)
