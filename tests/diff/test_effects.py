"""Effects of a change beside those of the base and of random changes: slow twins, and planted words are named."""

import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

import zeropass as zp
from zeropass.diff.changes import Change
from zeropass.diff.effects import DRAWS, Effects, word_mask
from zeropass.diff.findings import LEAD, MARGIN, judged
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


NAMES = {"value": "mlp.down_proj", "o": "self_attn.o_proj", "v": "self_attn.v_proj"}


def tuned(base: zp.Model, matrices: dict[tuple[str, int], Tensor], folder: Path) -> zp.Model:
    """Write a copy of models/first with other matrices, and open it."""
    state = load_file(ROOT / "models" / "first" / "model.safetensors")
    for (role, layer), matrix in matrices.items():
        stored = matrix if role == "v" else matrix.T
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
        effects.add(change(frames, role, layer, vectors))
        added.append((role, layer, vectors))
        own.append((role, layer, matrix))
    effects.close()
    expected = slow_excess(lengths(frames, added, shown), lengths(frames, own, shown))
    torch.testing.assert_close(effects.excess(shown).double(), expected, rtol=1e-3, atol=2e-3)


def test_chance_is_what_changes_of_one_direction_a_matrix_reach(frames: Frames, shown: Tensor) -> None:
    effects, model = Effects(frames), frames.model
    for layer in range(model.dims.layers):
        effects.draw(layer)
    drawn = effects.drawn["output.write"]
    effects.close()
    own = [(role, layer, model.matrix(role, layer)) for layer in range(4) for role in ("value", "o")]
    base, rows = lengths(frames, own, shown), frames.rows("output.write").matrix.double()
    for draw in (0, DRAWS - 1):
        total = torch.stack([(rows @ directions[draw].double()).square() for directions in drawn]).sum(0)
        expected = slow_excess(total[shown].sqrt(), base)
        torch.testing.assert_close(effects.chance(shown)[draw].double(), expected, rtol=1e-3, atol=2e-3)


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


def test_a_change_that_writes_nothing_by_itself_is_not_judged(frames: Frames, tmp_path: Path) -> None:
    base = frames.model
    matrices = {("v", layer): base.matrix("v", layer) * 1.1 for layer in range(base.dims.layers)}
    difference = zp.compare(base, tuned(base, matrices, tmp_path), frames=frames, progress=False)
    assert (difference.finding.answer, difference.writes) == ("unjudged", ())
    assert difference.verdict[0] == "NOT JUDGED: it changes no matrix that writes to the residual stream."


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
