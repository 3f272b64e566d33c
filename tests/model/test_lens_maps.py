"""Lenses: calibration continues and repeats, files are checked, and both frames are what the maps say."""

import gc
import json
from pathlib import Path
from weakref import WeakSet

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import zeropass as zp
from tiny import error, make, save
from zeropass._io.progress import silent
from zeropass.errors import BadLens, BadOption, CannotRun
from zeropass.model import lens_maps
from zeropass.model.blocks import Block, embedded, final_logits
from zeropass.model.calibrate import _Plan, fitted_map
from zeropass.model.frames import Frames
from zeropass.model.generate import own_text
from zeropass.numerics.projection import rotate
from zoo import tiny_model

ROOT = Path(__file__).parents[2]
TOKENS = 512
KEPT_LENS = lens_maps.kept_lens
"""The function that conftest.py replaces for all other tests."""

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model() -> zp.Model:
    return zp.open_model(ROOT / "models" / "first")


@pytest.fixture(scope="module")
def folder(model: zp.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lens") / "lens"
    zp.calibrate(model, folder, source="random", tokens=TOKENS)
    return folder


@pytest.fixture
def lens(model: zp.Model, folder: Path) -> zp.LensMaps:
    return zp.read_lens(folder, model)


def tensors_of(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "lens.safetensors")


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def test_an_encoders_windows_stand_between_its_special_tokens(tmp_path: Path) -> None:
    model = zp.open_model(str(save(make("bert"), tmp_path / "bert")))
    cls, sep = (model.vocab.pieces.index(name) for name in ("[CLS]", "[SEP]"))
    plan = _Plan(model, "random", None, 256, 0)
    ids = plan.ids(silent)
    assert ids.shape == (8, 32)  # as many tokens as it has positions for
    assert set(ids[:, 0].tolist()) == {cls}
    assert set(ids[:, -1].tolist()) == {sep}
    assert not {cls, sep} & set(ids[:, 1:-1].flatten().tolist())
    assert plan.words == "random tokens in [CLS]…[SEP]"


def test_a_stopped_calibration_continues(model: zp.Model, folder: Path, tmp_path: Path) -> None:
    def stop(work: str, done: int, _total: int) -> None:
        if work == "calibrating" and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        zp.calibrate(model, tmp_path / "lens", source="random", tokens=TOKENS, progress=stop)
    assert not (tmp_path / "lens" / "lens.json").exists()
    with pytest.raises(BadLens, match="holds no lens"):
        zp.read_lens(tmp_path / "lens", model)
    passed = []
    block_call = Block.__call__

    def counted(self: Block, *arguments: object, **more: object) -> Tensor:
        passed.append(self.layer)
        return block_call(self, *arguments, **more)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Block, "__call__", counted)
        zp.calibrate(model, tmp_path / "lens", source="random", tokens=TOKENS)
    assert sorted(set(passed)) == [2, 3]
    assert_same(tensors_of(tmp_path / "lens"), tensors_of(folder))
    assert sorted(path.name for path in (tmp_path / "lens").iterdir()) == ["lens.json", "lens.safetensors"]


def test_effects_are_products_of_the_jacobians_that_are_kept(model: zp.Model, lens: zp.LensMaps) -> None:
    after = lens.effect(model.dims.layers - 1, "ff")
    for layer in reversed(range(model.dims.layers)):
        attention, mlp = (torch.eye(model.dims.d) + lens.map(f"jacobian.{layer}.{site}") for site in ("attn", "ff"))
        assert error(lens.effect(layer, "attn"), mlp @ after) < 2e-3
        after = attention @ mlp @ after
    assert error(lens.effect(-1, "attn"), after) < 5e-3


def test_a_lens_without_jacobians_is_read_and_made_again(model: zp.Model, folder: Path, tmp_path: Path) -> None:
    earlier = {name: tensor for name, tensor in tensors_of(folder).items() if not name.startswith("jacobian")}
    (tmp_path / "lens.json").write_bytes((folder / "lens.json").read_bytes())
    save_file(earlier, tmp_path / "lens.safetensors")
    assert not zp.read_lens(tmp_path, model).keeps_jacobians
    assert zp.calibrate(model, tmp_path, source="random", tokens=TOKENS).keeps_jacobians
    assert_same(tensors_of(tmp_path), tensors_of(folder))


def test_a_finished_lens_is_read_not_made_again(model: zp.Model, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = (folder / "lens.safetensors").stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr(Block, "__call__", lambda *_: pytest.fail("the model ran"))
        zp.calibrate(model, folder, source="random", tokens=TOKENS)
    assert (folder / "lens.safetensors").stat().st_mtime_ns == written


def test_what_a_file_says_of_itself_is_shown_safely(model: zp.Model, folder: Path, tmp_path: Path) -> None:
    facts = json.loads((folder / "lens.json").read_text()) | {"source": "\x1b[31mred\n" + "x" * 9999}
    (tmp_path / "lens.json").write_text(json.dumps(facts))
    (tmp_path / "lens.safetensors").write_bytes((folder / "lens.safetensors").read_bytes())
    words = zp.read_lens(tmp_path, model).facts.words
    assert len(words) <= 210
    assert words.isprintable()


def test_the_seed_decides(model: zp.Model, folder: Path, tmp_path: Path) -> None:
    zp.calibrate(model, tmp_path / "again", source="random", tokens=TOKENS)
    zp.calibrate(model, tmp_path / "other", source="random", tokens=TOKENS, seed=1)
    assert_same(tensors_of(tmp_path / "again"), tensors_of(folder))
    assert not torch.equal(tensors_of(tmp_path / "other")["effect.start"], tensors_of(folder)["effect.start"])


def test_own_text_is_a_model_s_likely_text(model: zp.Model) -> None:
    ids = own_text(model, 4, 32, seed=1)
    assert ids.shape == (4, 32)
    assert torch.equal(ids, own_text(model, 4, 32, seed=1))

    def surprise(tokens: Tensor) -> float:
        x = embedded(model, tokens)
        for layer in range(model.dims.layers):
            x = Block(model, layer)(x)
        logits = zp.model.blocks.final_logits(model, x).log_softmax(-1)
        return -float(logits[:, :-1].gather(-1, tokens[:, 1:, None]).mean())

    assert surprise(ids) < surprise(ids[:, torch.randperm(32)]) - 1


def test_own_text_begins_with_random_words(model: zp.Model) -> None:
    ids = own_text(model, 6, 16, seed=1)
    texts = [model.vocab.text(i) for i in ids[:, :4].flatten().tolist()]
    assert all(text[0] == " " and text[1:].isalpha() for text in texts)
    assert len(ids[:, 0].unique()) > 1
    assert own_text(model, 2, 3).shape == (2, 3)  # shorter than the words that it begins with


def test_own_text_is_that_of_a_pass_without_a_cache(model: zp.Model) -> None:
    ids = own_text(model, 3, 12, seed=2)
    eligible = torch.from_numpy(model.vocab.used & ~model.vocab.special)
    generator, slow = torch.Generator().manual_seed(2), ids[:, :4]
    while slow.shape[1] < 12:
        x = embedded(model, slow)
        for layer in range(model.dims.layers):
            x = Block(model, layer)(x)
        total = final_logits(model, x[:, -1]).masked_fill(~eligible, float("-inf")).softmax(-1).cumsum(-1)
        at = torch.rand(3, 1, generator=generator) * total[:, -1:]
        slow = torch.cat((slow, torch.searchsorted(total, at, right=True)), 1)
    assert torch.equal(slow, ids)


def test_the_frame_effect_multiplies_by_the_map(model: zp.Model, lens: zp.LensMaps) -> None:
    frames = Frames(model, lens)
    value = model.matrix("value", 1)[:3]
    assert torch.equal(frames.fold(value, "effect", "write", "ff_norm", 1), value @ lens.effect(1, "ff"))
    o = model.matrix("o", 1)[:3]
    assert torch.equal(frames.fold(o, "effect", "write", "attn_norm", 1), o @ lens.effect(1, "attn"))
    last = model.dims.layers - 1
    direct = frames.fold(value, "output", "write", "ff_norm", last)
    assert error(frames.fold(value, "effect", "write", "ff_norm", last), direct) < 0.5  # only the final norm is between


def test_a_distinctive_list_is_z_over_its_size_among_the_vectors_of_the_layer(
    model: zp.Model, lens: zp.LensMaps
) -> None:
    reader = zp.Lens(model, tokens="all", frames=Frames(model, lens))
    for address, layer, role, place in (("L2.ff.7.value", 2, "value", 7), ("L1.attn.1.o.3", 1, "o", 35)):
        rows = reader.frames.rows("output.write").matrix
        used = torch.from_numpy(model.vocab.used)
        scores = (reader.frames.folded(reader.vectors(layer, role), "effect") @ rows.T).double()
        z = (scores - scores[:, used].mean(1, keepdim=True)) / scores[:, used].std(1, keepdim=True, correction=0)
        expected = z[place] / z.square().mean(0).sqrt()
        expected[~used] = 0
        record = reader.explain(address, frame="distinctive", k=30)[0]
        for pole in (record.top, record.bottom):
            torch.testing.assert_close(
                torch.tensor([token.z for token in pole]).double(),
                expected[[token.id for token in pole]],
                rtol=1e-3,
                atol=1e-3,
            )
        assert abs(record.top[0].z - expected.max()) < 1e-3
        assert abs(record.bottom[0].z - expected.min()) < 1e-3


def test_lone_vectors_have_no_distinctive_list(model: zp.Model, lens: zp.LensMaps) -> None:
    frames = Frames(model, lens)
    assert frames.factors(2, "value", "effect") is None
    reader = zp.Lens(model, frames=frames)
    with pytest.raises(BadOption, match="no list in the distinctive frame"):
        reader.explain("L2.ff.7.gate", frame="distinctive")


def test_the_frame_seen_is_the_state_that_the_map_predicts(model: zp.Model, lens: zp.LensMaps) -> None:
    frames = Frames(model, lens)
    linear, shift = lens.seen(2) or pytest.fail("layer 2 has a map")
    rows, gate = frames.rows("token").matrix, model.matrix("gate", 2)[:5]
    states = (rows @ linear + shift) * model.vector("ff_norm", 2)
    scores = rows @ frames.fold(gate, "seen", "read", "ff_norm", 2).T
    expected = states @ gate.T
    assert error(scores - scores.mean(0), expected - expected.mean(0)) < 1e-4
    first = model.matrix("gate", 0)[:5]
    assert torch.equal(
        frames.fold(first, "seen", "read", "ff_norm", 0), frames.fold(first, "token", "read", "ff_norm", 0)
    )


def test_head_maps_are_those_of_the_predicted_states(model: zp.Model, lens: zp.LensMaps) -> None:
    frames, layer, head, offset = Frames(model, lens), 2, 1, 5
    linear, shift = lens.seen(layer) or pytest.fail("layer 2 has a map")
    states = (frames.rows("token").matrix @ linear + shift) * model.vector("attn_norm", layer)
    q, k, v, o = (model.head(role, layer, head) for role in ("q", "k", "v", "o"))
    product = frames.head_map(layer, head, "qk", "seen", offset)
    some = torch.arange(0, 400, 7)
    true = rotate(states[some] @ q.T, offset, frames.frequencies(layer)) @ (states @ k.T).T
    entries = product.left[some] @ product.right.T
    used = torch.from_numpy(model.vocab.used)
    assert error(*(x - x[:, used].mean(1, keepdim=True) for x in (entries, true))) < 1e-3
    product = frames.head_map(layer, head, "vo", "seen")
    true = (states - shift * model.vector("attn_norm", layer))[some] @ v.T @ o @ lens.effect(layer, "attn")
    assert error(product.left[some] @ product.right.T, true @ frames.rows("output.write").matrix.T) < 1e-3


def test_a_reader_with_a_lens_uses_it_and_says_so(lens: zp.LensMaps) -> None:
    reader = zp.load(ROOT / "models" / "first", lens=lens)
    records = reader["L2.ff.3"]
    frames = {(record.role, record.frame) for record in records}
    reads = {("gate", "seen"), ("gate", "output"), ("up", "seen"), ("up", "output")}
    assert frames == reads | {("value", "distinctive"), ("value", "effect")}
    assert {record.frame: record.lens for record in records} == {
        "seen": lens.facts.words,
        "output": "",
        "distinctive": lens.facts.words,
        "effect": lens.facts.words,
    }
    assert lens.facts.words in records.note
    assert reader["L2.attn.1.qk"][0].frame == "seen"
    assert reader.explain("L2.ff.3.value", frame="output")[0].lens == ""
    assert zp.load(ROOT / "models" / "first", lens=None)["L2.ff.3.value"][0].frame == "output"


def test_a_frame_of_a_lens_needs_one() -> None:
    reader = zp.load(ROOT / "models" / "first", lens=None)
    with pytest.raises(BadOption, match="needs a lens of the model: `zeropass calibrate"):
        reader.explain("L2.ff.3.value", frame="effect")
    with pytest.raises(BadOption, match="no list in the effect frame"):
        reader.explain("L2.ff.3.gate", frame="effect")


def test_a_kept_lens_is_found(model: zp.Model, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZEROPASS_CACHE", str(tmp_path))
    monkeypatch.setattr(lens_maps, "kept_lens", KEPT_LENS)
    assert zp.load(ROOT / "models" / "first")["L2.ff.3.value"][0].frame == "output"
    zp.calibrate(model, keep=True, source="random", tokens=TOKENS)
    assert zp.load(ROOT / "models" / "first")["L2.ff.3.value"][0].frame == "distinctive"
    assert zp.load(ROOT / "models" / "second")["L2.ff.3.value"][0].frame == "output"
    lens_maps.kept_place(model).joinpath("lens.json").write_text("{}")
    assert zp.load(ROOT / "models" / "first")["L2.ff.3.value"][0].frame == "output"


def test_the_lens_of_another_model_is_refused(folder: Path, lens: zp.LensMaps) -> None:
    second = zp.open_model(ROOT / "models" / "second")
    with pytest.raises(BadLens, match="weights are not those"):
        zp.read_lens(folder, second)
    with pytest.raises(BadLens, match="weights are not those"):
        Frames.through(second, lens)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "schema 2"),
        ({"kind": "crystal"}, "'mean-field'"),
        ({"layers": "four"}, "layers"),
        ({"more": 1}, "'more'"),
    ],
)
def test_wrong_facts_are_refused(
    model: zp.Model, folder: Path, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    facts = json.loads((folder / "lens.json").read_text()) | change
    (tmp_path / "lens.json").write_text(json.dumps(facts))
    (tmp_path / "lens.safetensors").write_bytes((folder / "lens.safetensors").read_bytes())
    with pytest.raises(BadLens, match=message):
        zp.read_lens(tmp_path, model)


def test_wrong_maps_are_refused(model: zp.Model, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "lens.json").write_text((folder / "lens.json").read_text())
    with pytest.raises(BadLens):
        zp.read_lens(tmp_path, model)
    (tmp_path / "lens.safetensors").write_bytes((folder / "lens.safetensors").read_bytes()[:-100])
    with pytest.raises(BadLens):
        zp.read_lens(tmp_path, model)
    tensors = tensors_of(folder)
    save_file(tensors | {"seen.2": tensors["seen.2"][:5].clone()}, tmp_path / "lens.safetensors")
    with pytest.raises(BadLens, match=r"'seen\.2' is missing, unknown or of another size"):
        zp.read_lens(tmp_path, model)
    save_file(
        tensors | {"effect.1.ff": torch.full_like(tensors["effect.1.ff"], torch.nan)}, tmp_path / "lens.safetensors"
    )
    with pytest.raises(zp.ZeropassError, match="NaN"):
        zp.read_lens(tmp_path, model).effect(1, "ff")


def test_what_cannot_be_calibrated_is_refused(model: zp.Model, tmp_path: Path) -> None:
    with pytest.raises(BadOption, match="no source 'news'"):
        zp.calibrate(model, source="news")
    with pytest.raises(BadOption, match="at least 256"):
        zp.calibrate(model, tokens=100)
    with pytest.raises(BadOption, match="tokens of"):
        zp.calibrate(model, source="a text", text="far too short")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(BadLens, match="does not hold a lens"):
        zp.calibrate(model, tmp_path, source="random", tokens=TOKENS)
    decoder = zp.open_model(f"{save(tiny_model('t5-decoder'), tmp_path / 't5')}#decoder")
    with pytest.raises(CannotRun, match="an encoder's text"):
        zp.calibrate(decoder)
    encoder = zp.open_model(str(save(tiny_model("bert"), tmp_path / "bert")))
    with pytest.raises(CannotRun, match="predict the next token"):
        zp.calibrate(encoder, source="own")


def test_a_text_is_named_whatever_it_is_called(model: zp.Model) -> None:
    text = "the good and the bad of it all " * 200
    assert (
        zp.calibrate(model, source="own", text=text, tokens=256).facts.words == "mean-field lens from 256 tokens of own"
    )


def test_an_encoder_is_calibrated_on_random_tokens(tmp_path: Path) -> None:
    encoder = zp.open_model(str(save(tiny_model("bert"), tmp_path / "bert")))
    lens = zp.calibrate(encoder, tokens=256)
    assert lens.facts.source == "random tokens in [CLS]…[SEP]"
    assert zp.Lens.over(Frames(encoder, lens))["L1.ff.3.value"][0].frame == "distinctive"


def test_the_fit_recovers_a_linear_map() -> None:
    generator = torch.Generator().manual_seed(5)
    rows, linear = torch.randn(400, 6, generator=generator), torch.eye(6) + 0.2 * torch.randn(6, 6, generator=generator)
    ids = torch.randint(400, (8000,), generator=generator)
    states = rows[ids] @ linear + 2 + 0.1 * torch.randn(8000, 6, generator=generator)
    fitted, shift = fitted_map(rows, ids, states)
    assert error(rows @ fitted + shift, rows @ linear + 2) < 0.2
    nearer = (fitted - linear).norm() < (torch.eye(6) * linear.trace() / 6 - linear).norm()
    assert nearer


def test_one_layer_is_in_memory_at_a_time(model: zp.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: WeakSet[Block] = WeakSet()
    most = []
    initialised = Block.__post_init__

    def counted(self: Block) -> None:
        initialised(self)
        alive.add(self)
        gc.collect()
        most.append(len(alive))

    monkeypatch.setattr(Block, "__post_init__", counted)
    zp.calibrate(model, source="random", tokens=TOKENS)
    assert len(most) > model.dims.layers
    assert max(most) <= 2
