"""Paths from word to word: each z the slow way, a planted path, random ones in the null, and the drawing."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_composition import opened
from torch import Tensor

import small
import zeropass as zp
from commands import Run
from zeropass.circuits.render import draw_paths
from zeropass.errors import UnknownWord
from zeropass.model.vectors import vector_set

pytestmark = pytest.mark.usefixtures("one_thread")
WORD, TO = "babade", "babafi"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.llama(tmp_path_factory.mktemp("paths") / "llama")


def z_of(lens: zp.Lens, vector: Tensor, space: str, token: int) -> float:
    scores = lens.frames.rows(space).matrix[lens.frames.used].double() @ vector.double()
    value = lens.frames.rows(space).matrix[token].double() @ vector.double()
    return float((value - scores.mean()) / scores.std(correction=0))


def test_every_step_has_the_z_of_what_it_says(folder: Path) -> None:
    lens = zp.load(str(folder), lens=None)
    model, frames = lens.model, lens.frames
    paths = zp.paths(lens, WORD, TO, k=400)
    assert [path.strength for path in paths] == sorted((path.strength for path in paths), reverse=True)
    path = next(path for path in paths if len(path.addresses) == 2 and path.addresses[0].startswith("L1.ff"))
    (a, m), (b, n) = ((int(address[1]), int(address.rpartition(".")[2])) for address in path.addresses)
    gates, values = ({layer: vector_set(model, layer, role) for layer in (a, b)} for role in ("gate", "value"))
    written = frames.folded(values[a], "output").double()
    cosines = torch.nn.functional.cosine_similarity(written, frames.folded(gates[b], "token")[n].double()[None])
    others = torch.cat((cosines[:m], cosines[m + 1 :]))
    assert path.z == pytest.approx(
        (
            z_of(lens, frames.folded(gates[a], "token")[m], "token", paths.word.id),
            float((cosines[m] - others.mean()) / others.std()),
            z_of(lens, frames.folded(values[b], "output")[n], "output.write", paths.to.id),
        ),
        rel=1e-3,
    )
    assert path.strength == pytest.approx(min(path.z[0], path.z[1], abs(path.z[2])))
    head = next(path for path in paths if "attn" in path.addresses[0] and len(path.addresses) == 1)
    layer, number = int(head.addresses[0][1]), int(head.addresses[0][-1])
    space = "token" if layer else "embedded"
    row = frames.rows(space).matrix[paths.word.id] - frames.rows(space).moments.mean.float()
    vector = row @ frames.fold(model.head("v", layer, number), "token", "read", "attn_norm", layer).T
    vector = vector @ frames.fold(model.head("o", layer, number), "output", "write", "attn_norm", layer)
    assert head.z[-1] == pytest.approx(z_of(lens, vector, "output.write", paths.to.id), rel=1e-3)


def plant(folder: Path, word: int, to: int) -> None:
    """Let neuron 7 of layer 0 see a word and feed neuron 9 of layer 2, which writes another."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    norms = {f"L{n}": tensors[f"model.layers.{n}.post_attention_layernorm.weight"] for n in (0, 2)}
    embedding, final = tensors["model.embed_tokens.weight"], tensors["model.norm.weight"]
    normed = embedding / embedding.square().mean(1, keepdim=True).sqrt()
    gate = torch.linalg.solve(normed.T @ normed, normed[word] - normed.mean(0)) / norms["L0"]
    tensors["model.layers.0.mlp.gate_proj.weight"][7] = gate
    tensors["model.layers.0.mlp.down_proj.weight"][:, 7] = (
        tensors["model.layers.2.mlp.gate_proj.weight"][9] * norms["L2"]
    )
    rows = tensors["lm_head.weight"] * final
    value = torch.linalg.solve(rows.T @ rows, rows[to] - rows.mean(0))
    tensors["model.layers.2.mlp.down_proj.weight"][:, 9] = value
    save_file(tensors, path)


def test_a_planted_path_comes_first_and_random_ones_are_within_the_null(folder: Path, tmp_path: Path) -> None:
    lens = zp.load(str(folder), lens=None)
    tried = [zp.paths(lens, WORD, to, k=1)[0] for to in small.words(30)[3:]]
    assert sum(path.above for path in tried) <= 0.2 * len(tried)
    planted = small.llama(tmp_path / "planted")
    vocab = lens.model.vocab
    plant(planted, vocab.find(WORD)[0], vocab.find(TO)[0])
    best = zp.paths(str(planted), WORD, TO, lens=None)
    assert best[0].addresses == ("L0.ff.7", "L2.ff.9")
    assert best[0].above
    assert not zp.paths(str(planted), WORD, "babago", k=1, lens=None)[0].above


@pytest.mark.parametrize("name", ["phi", "qwen3"])
def test_other_families_and_the_flow_have_paths(name: str, tmp_path: Path) -> None:
    model = opened(name, tmp_path)
    lens = zp.load(model, lens=zp.calibrate(model, source="random", tokens=256))
    word, to = (model.vocab.text(i) for i in model.vocab.used.nonzero()[0][5:7].tolist())
    paths = zp.paths(lens, word, to, k=5)
    assert (paths.path, len(paths)) == ("flow", 5)
    assert all(0 < path.p <= 1 for path in paths)


def test_paths_are_shown_everywhere_alike(folder: Path, tmp_path: Path, run: Run) -> None:
    paths = zp.paths(str(folder), WORD, TO, k=3, lens=None)
    given = ("circuit", folder, WORD, "--to", TO, "-k", 3, "--lens", "none")
    assert run.json(*given) == json.loads(json.dumps(paths.to_json()))
    drawing = tmp_path / "paths.svg"
    code, text, _ = run(*given, "--svg", drawing)
    assert code == 0
    assert paths[0].addresses[0] in text
    assert drawing.read_text(encoding="utf-8") == draw_paths(paths)
    assert paths[0].addresses[0] in draw_paths(paths)
    assert paths[0].addresses[0] in paths._repr_html_()
    assert len(paths.to_pandas()) == 3
    assert paths.panel().right[0][1] == paths[0].strength
    with pytest.raises(UnknownWord):
        zp.paths(str(folder), "nosuchword", TO, lens=None)
    for arguments, reason in ((("--to", TO), "needs the WORD"), ((WORD, "--svg", drawing), "--svg draws paths")):
        code, _, error = run("circuit", folder, *arguments)
        assert code
        assert reason in error
