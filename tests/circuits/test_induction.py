"""Induction heads from weights: maps between tokens the slow way; attention and ablation as transformers has them."""

import json
from pathlib import Path

import pytest
import torch
from test_composition import opened
from transformers import AutoModelForCausalLM

import small
import zeropass as zp
from commands import Run
from zeropass.circuits.head_factors import layer_heads
from zeropass.circuits.induction import Diagonals, previous_weights
from zeropass.circuits.measured import attention_scores, repeated_tokens, surprise
from zeropass.errors import CannotRun
from zeropass.model.frames import Frames
from zeropass.model.generate import random_tokens

pytestmark = pytest.mark.usefixtures("one_thread")
FIRST = Path(__file__).parents[2] / "models" / "first"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.llama(tmp_path_factory.mktemp("induction") / "llama", biases=True)


def test_diagonals_are_those_of_maps_that_are_made(folder: Path) -> None:
    model = zp.open_model(str(folder))
    frames = Frames(model, zp.calibrate(model, source="random", tokens=512))
    heads = layer_heads(frames, 2, "seen", "effect")
    means = Diagonals(frames).of(heads.v, heads.o, ("token", "output.write"))
    used = frames.used
    for head in range(4):
        product = frames.head_map(2, head, "vo", "seen")
        dense = product.left[used].double() @ product.right[used].double().T
        dense = dense - dense.mean(0) - dense.mean(1, keepdim=True) + dense.mean()
        assert float(means[head]) == pytest.approx(float(dense.diagonal().mean() / dense.std()), rel=1e-3, abs=1e-4)
    draw = torch.Generator().manual_seed(0)
    shuffled = [float(dense[:, torch.randperm(len(dense), generator=draw)].diagonal().mean()) for _ in range(2000)]
    assert float(torch.tensor(shuffled).std() / dense.std()) == pytest.approx(Diagonals(frames).deviation, rel=0.1)


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_attention_to_the_previous_token_is_exact_in_the_first_layer(name: str, tmp_path: Path) -> None:
    model = opened(name, tmp_path)
    texts = random_tokens(model, 8 * 64).reshape(8, 64)
    hf = AutoModelForCausalLM.from_pretrained(tmp_path / name, attn_implementation="eager").float()
    with torch.no_grad():
        weights = hf(texts, output_attentions=True).attentions[0]
    expected = weights.diagonal(-1, -2, -1)[..., 1:].mean((0, 2))
    assert torch.allclose(previous_weights(Frames(model), 0), expected, atol=1e-5)


def test_scores_are_those_of_maps_between_tokens(folder: Path) -> None:
    lens = zp.load(str(folder), lens=None)
    heads = zp.induction_heads(lens)
    assert [head.score for head in heads] == sorted((head.score for head in heads), reverse=True)
    assert {head.head for head in heads} == {f"L{layer}.attn.{head}" for layer in (1, 2) for head in range(4)}
    best = heads[0]
    (a, m), (b, n) = ((int(x[1]), int(x[-1])) for x in (best.previous, best.head))
    frames = lens.frames
    first, second = layer_heads(frames, a), layer_heads(frames, b)
    spaces = ["token" if layer else "embedded" for layer in (b, a)]
    queries, earlier = (frames.rows(name).matrix[frames.used].double() for name in spaces)
    left = queries @ second.q[n].double().T
    right = earlier @ first.v[m].double().T @ first.o[m].double() @ second.k[n].double().T
    dense = left @ right.T
    dense = dense - dense.mean(0) - dense.mean(1, keepdim=True) + dense.mean()
    assert best.match == pytest.approx(float(dense.diagonal().mean() / dense.std()), rel=1e-3)
    assert best.attention == pytest.approx(float(previous_weights(frames, a)[m]))
    assert best.score == pytest.approx(best.attention * best.match)


def test_what_is_measured_is_what_transformers_computes(folder: Path) -> None:
    model, length = zp.open_model(str(folder)), 12
    ids = repeated_tokens(model, texts=3, length=length)
    assert torch.equal(ids[:, :length], ids[:, length:])
    previous, induction = attention_scores(model, ids, length)
    hf = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").float()
    with torch.no_grad():
        out = hf(ids, output_attentions=True)
    rows = range(length + 1, 2 * length)
    for layer in range(3):
        weights = out.attentions[layer]
        expected = [
            torch.stack([weights[:, :, i, i - back] for i in rows], -1).mean((0, 2)) for back in (1, length - 1)
        ]
        assert torch.allclose(previous[layer], expected[0], atol=1e-5)
        assert torch.allclose(induction[layer], expected[1], atol=1e-5)
    hf.model.layers[1].self_attn.o_proj.weight.data[:, 8:16] = 0
    with torch.no_grad():
        logits = hf(ids).logits.log_softmax(-1)
    expected = -logits[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    assert torch.allclose(surprise(model, ids, [(1, 1)]), expected, atol=1e-4)
    assert not torch.allclose(surprise(model, ids), expected, atol=1e-2)


def test_the_best_head_of_a_trained_model_does_induction_and_is_missed() -> None:
    heads = zp.induction_heads(zp.load(FIRST, lens=None), run=True, progress=False)
    assert heads[0].measured == max(head.measured or 0 for head in heads)
    assert (heads[0].measured_previous or 0) > 0.8
    model = zp.open_model(FIRST)
    ids = repeated_tokens(model, texts=4)
    losses = {
        head.head: float(surprise(model, ids, [(int(head.head[1]), int(head.head[-1]))])[:, 64:].mean())
        for head in (heads[0], heads[-1])
    }
    intact = float(surprise(model, ids)[:, 64:].mean())
    assert losses[heads[0].head] - intact > 3 * abs(losses[heads[-1].head] - intact)


def test_heads_without_distances_of_their_own_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CannotRun, match="adds positions to the embedding"):
        zp.induction_heads(str(small.gpt2(tmp_path / "gpt2")), lens=None)
    with pytest.raises(CannotRun, match="sees the tokens that follow"):
        zp.induction_heads(opened("modernbert", tmp_path), lens=None)


def test_induction_heads_are_shown_everywhere_alike(folder: Path, run: Run) -> None:
    heads = zp.induction_heads(str(folder), lens=None)
    assert run.json("circuit", folder, "--induction", "--lens", "none") == json.loads(json.dumps(heads.to_json()))
    code, text, _ = run("circuit", folder, "--induction", "--run", "--lens", "none", "-k", 2)
    assert code == 0
    assert heads[0].head in text
    assert "Induction heads, from weights: the best of 8" in text
    assert list(heads.to_pandas()["head"]) == [head.head for head in heads]
    assert heads[0].previous in heads._repr_html_()
    assert heads.panel().right[0][1] == heads[0].score
    for arguments, reason in (
        (("L1.attn.0", "--induction"), "takes no address"),
        (("L1.attn.0", "--run"), "--run is for --induction"),
    ):
        code, _, error = run("circuit", folder, *arguments)
        assert code
        assert reason in error
