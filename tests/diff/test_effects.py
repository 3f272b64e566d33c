"""Effects of a change beside those of the base and of random changes: slow twins, and planted words are named."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

import zeropass as zp
from zeropass.diff import run
from zeropass.diff.changes import Change
from zeropass.diff.effects import Effects, word_mask
from zeropass.diff.findings import LEAD, MARGIN, judged, unjudged
from zeropass.diff.random_changes import DRAWS, RandomChanges, drawn
from zeropass.diff.standouts import UNJUDGED_VALUES
from zeropass.diff.values import head_vectors
from zeropass.errors import BadOption
from zeropass.model.adapted import adapt
from zeropass.model.frames import Frames

ROOT = Path(__file__).parents[2]
RISING = st.lists(st.floats(0, 20), min_size=1, max_size=12).map(lambda values: sorted(values, reverse=True))


@pytest.fixture(scope="module")
def frames() -> Frames:
    return Frames(zp.open_model(str(ROOT / "models" / "first")))


@pytest.fixture(scope="module")
def shown(frames: Frames) -> Tensor:
    return zp.Lens.over(frames, with_coherence=False).view("default").ids


def change(frames: Frames, role: str, layer: int, added: Tensor) -> Change:
    return Change(layer=layer, role=role, added=added, before=float(frames.model.matrix(role, layer).norm()))


NAMES = {"value": "mlp.down_proj", "o": "self_attn.o_proj", "v": "self_attn.v_proj", "q": "self_attn.q_proj"}


def tuned(base: zp.Model, matrices: dict[tuple[str, int], Tensor], folder: Path) -> zp.Model:
    """Write a copy of models/first with other matrices, and open it."""
    state = load_file(ROOT / "models" / "first" / "model.safetensors")
    for (role, layer), matrix in matrices.items():
        stored = matrix if role in "qv" else matrix.T
        state[f"model.layers.{layer}.{NAMES[role]}.weight"] = stored.contiguous()
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(ROOT / "models" / "first" / name, folder / name)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return zp.open_model(str(folder))


def lengths(frames: Frames, parts: list[tuple[str, int, Tensor]], ids: Tensor) -> Tensor:
    """Return the length of what matrices write on every token, from the scores of every vector."""
    rows = frames.rows("output.write").matrix.double()
    total = torch.zeros(len(rows), dtype=torch.float64)
    for role, layer, vectors in parts:
        norm = "ff_norm" if role == "value" else "attn_norm"
        effect = (rows @ frames.fold(vectors, "output", "write", norm, layer).double().T).square().sum(1)
        total += effect / effect[frames.used].mean()
    return total[ids].sqrt()


def slow_excess(written: Tensor, own: Tensor) -> Tensor:
    ratios = written / own
    return (ratios - ratios.median()) / (1.4826 * (ratios - ratios.median()).abs().median())


def test_the_excess_is_that_of_the_scores_one_by_one(frames: Frames, shown: Tensor) -> None:
    draw = torch.Generator().manual_seed(1)
    effects, added, own = Effects(frames), [], []
    for role, layer in (("value", 1), ("o", 3)):
        matrix = frames.model.matrix(role, layer)
        vectors = torch.randn(matrix.shape, generator=draw)
        effects.add(change(frames, role, layer, vectors), matrix)
        added.append((role, layer, vectors))
        own.append((role, layer, matrix))
    effects.close()
    expected = slow_excess(lengths(frames, added, shown), lengths(frames, own, shown))
    torch.testing.assert_close(effects.excess(shown).double(), expected, rtol=1e-3, atol=2e-3)


def test_chance_is_what_changes_of_one_direction_a_matrix_reach(frames: Frames, shown: Tensor) -> None:
    words = word_mask(frames.model.vocab, shown)
    random = RandomChanges(frames, shown, words)
    own = [(role, layer, frames.model.matrix(role, layer)) for layer in range(4) for role in ("value", "o")]
    base, firsts, leads = lengths(frames, own, shown), [], []
    for draw in range(DRAWS):
        added = [(role, layer, drawn(matrix, role, layer)[draw][None]) for role, layer, matrix in own]
        expected = slow_excess(lengths(frames, added, shown), base)
        torch.testing.assert_close(random.excess[draw].double(), expected, rtol=1e-3, atol=2e-3)
        highest = expected[words].sort(descending=True).values
        firsts.append(float(highest[0]))
        leads.append(float(highest[0] - highest[9]))
    assert random.chance == pytest.approx(sorted(firsts)[DRAWS // 2 - 1], rel=1e-3)
    assert random.lead == pytest.approx(sorted(leads)[DRAWS // 2 - 1], abs=5e-3)


def test_what_random_changes_reach_is_kept_for_the_base(
    frames: Frames, shown: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers: dict[str, float] = {}

    def remembered(_frames: Frames, name: str, compute: Callable[[], float]) -> float:
        numbers[name] = numbers[name] if name in numbers else compute()
        return numbers[name]

    monkeypatch.setattr(Frames, "remembered", remembered)
    words = word_mask(frames.model.vocab, shown)
    adapted = adapt(frames.model, ROOT / "models" / "tunes" / "reviews")
    first, random = zp.compare(frames.model, adapted, frames=frames), RandomChanges(frames, shown, words)
    lead = random.lead
    monkeypatch.setattr(RandomChanges, "excess", None)
    monkeypatch.setattr(run, "drawn", None)
    again = RandomChanges(frames, shown, words)
    assert (again.chance, again.lead) == (random.chance, lead)
    assert again.chance != again.lead
    second = zp.compare(frames.model, adapted, frames=frames)
    assert (second.finding, second.matrices) == (first.finding, first.matrices)


@pytest.mark.parametrize("role", ["value", "o"])
def test_a_planted_word_is_named_and_a_random_direction_is_not(role: str, frames: Frames, tmp_path: Path) -> None:
    base = frames.model
    word = base.vocab.find(" music")[0]
    rows, draw = frames.rows("output.write").matrix, torch.Generator().manual_seed(2)
    random = torch.randn(len(base.matrix(role, 0)), generator=draw)

    def compared(direction: Tensor | None) -> zp.Diff:
        """Change the matrices of all layers along one direction, or each along a random sum of its own rows."""
        matrices = {}
        for layer in range(base.dims.layers):
            matrix = base.matrix(role, layer)
            along = random @ matrix if direction is None else direction
            added = torch.outer(random, along)
            matrices[role, layer] = matrix + 0.1 * added * matrix.norm() / added.norm()
        return zp.compare(base, tuned(base, matrices, tmp_path), frames=frames, progress=False)

    planted = compared(rows[word])
    assert planted.finding.answer == "narrow"
    assert planted.writes[0].token.token == " music"
    assert planted.verdict[0].startswith("NARROW: few words stand out in what it writes, far above the rest: ␣music")
    ordinary = compared(None)
    assert ordinary.finding.answer != "narrow"
    assert ordinary.finding.chance == planted.finding.chance


def test_the_committed_adapter_is_narrow(smollm2_path: Path) -> None:
    base = zp.open_model(str(smollm2_path))
    difference = zp.compare(base, adapt(base, ROOT / "models" / "tunes" / "coach"))
    assert [word.token.token.strip().lower() for word in difference.sees[:3]] == ["coach", "coach", "coaches"]
    assert {word.token.token for word in difference.writes[:5]} >= {" across", " coach"}
    assert difference.finding.answer == "narrow"
    assert difference.verdict[0].startswith("NARROW")


def test_a_change_that_writes_nothing_by_itself_is_not_judged(
    frames: Frames, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = frames.model
    matrices = {("q", layer): base.matrix("q", layer) * 1.1 for layer in range(base.dims.layers)}
    monkeypatch.setattr(RandomChanges, "excess", None)  # then nothing is drawn either
    difference = zp.compare(base, tuned(base, matrices, tmp_path), frames=frames, progress=False)
    assert (difference.finding.answer, difference.writes) == ("unjudged", ())
    reason = "it changes no matrix that writes to the residual stream, and no values"
    assert difference.verdict[0] == f"NOT JUDGED: {reason}."


def test_head_vectors_have_the_gram_matrix_of_values_through_outputs() -> None:
    base, draw = zp.open_model(str(ROOT / "models" / "first")), torch.Generator().manual_seed(3)
    dims, output = base.dims.at(1), base.matrix("o", 1).double()
    width = dims.width("v")
    for change in (base.matrix("v", 1), torch.outer(*torch.randn(2, base.dims.d, generator=draw))[: len(output)]):
        values = change[: dims.kv_heads * width]
        expected = torch.zeros(base.dims.d, base.dims.d, dtype=torch.float64)
        for head in range(dims.heads):
            first = base.kv_head("v", head, 1) * width
            written = values[first : first + width].double().T @ output[head * width : (head + 1) * width]
            expected += written.T @ written
        vectors = head_vectors(values, output.float(), dims).double()
        torch.testing.assert_close(vectors.T @ vectors, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_a_change_of_values_alone_is_not_judged_and_its_words_are_shown(frames: Frames, tmp_path: Path) -> None:
    base, draw = frames.model, torch.Generator().manual_seed(4)
    along = frames.rows("output.write").matrix[base.vocab.find(" music")[0]]
    planted, ordinary = {}, {}
    for layer in range(base.dims.layers):
        values, output = base.matrix("v", layer), base.matrix("o", layer)
        width, dims = base.dims.width("v"), base.dims
        wanted = (output @ along).reshape(dims.kv_heads, dims.group, width).sum(1).flatten()
        seen = torch.randn(dims.d, generator=draw)
        for into, column in ((planted, wanted), (ordinary, torch.randn(len(values), generator=draw))):
            added = torch.outer(column, seen)
            into["v", layer] = values + 0.1 * added * values.norm() / added.norm()
    difference = zp.compare(base, tuned(base, planted, tmp_path), frames=frames, progress=False)
    assert difference.finding == replace(unjudged(UNJUDGED_VALUES), through="o")
    assert difference.writes[0].token.token == " music"
    assert difference.writes[0].places == ()
    assert "words that heads write of its values are no evidence" in difference.verdict[0]
    row = zp.screen(base, [tmp_path], progress=False)[0]
    assert (row.finding, row.writes[0].token.token) == (difference.finding, " music")
    with pytest.raises(BadOption, match="there are 0"):
        zp.thresholds_of(zp.screen(base, [tmp_path], progress=False))
    difference = zp.compare(base, tuned(base, ordinary, tmp_path), frames=frames, progress=False)
    assert difference.finding == replace(unjudged(UNJUDGED_VALUES), through="o")
    assert difference.writes


@given(RISING, st.floats(0.1, 9))
def test_what_stands_out_decides_the_answer(excesses: list[float], chance: float) -> None:
    finding = judged(excesses, chance, DRAWS)
    lead = excesses[0] - excesses[min(10, len(excesses)) - 1]
    assert (finding.answer == "narrow") == (lead >= LEAD * chance)
    assert (finding.answer == "nothing") == (lead < LEAD * chance and excesses[0] < MARGIN * chance)


def test_words_are_word_mask_of_letters(frames: Frames) -> None:
    vocab = frames.model.vocab
    ids = torch.arange(vocab.size)
    texts = [vocab.text(int(i)) for i in ids[word_mask(vocab, ids)]]
    assert {" the", " music"} <= set(texts)
    assert not any(len(text.strip()) < 2 or not text.strip().isalpha() for text in texts)
    assert bool(word_mask(vocab, torch.tensor([vocab.find(".")[0]])).all())  # there is no word to tell it from
