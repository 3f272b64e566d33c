"""The catalogue of heads: planted heads are named and random ones are not; every measure has a slow twin."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import planted_models
import small
import zeropass as zp
from commands import Run
from forward import run_forward
from tiny import TOKENS, save
from zeropass.errors import BadOption
from zeropass.heads import run as heads_run
from zeropass.heads.closing import brackets
from zeropass.heads.expected_attention import ExpectedAttention, Texts
from zeropass.heads.kept_heads import keep_heads, kept_heads
from zeropass.heads.own_token import entries_z, own_ranks, shares, turns
from zeropass.heads.results import TRAITS
from zeropass.heads.token_heads import TokenHeads
from zeropass.model.frames import Frames
from zeropass.model.running import Running
from zeropass.numerics.projection import rotate
from zoo import tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def factors() -> tuple[Tensor, Tensor]:
    """Return factors of maps (heads, n, r): a random one, one that copies and one that suppresses."""
    left, right = torch.randn(2, 3, 40, 5, generator=torch.Generator().manual_seed(0))
    left = left + 0.5
    right[1], right[2], left[2] = left[1] + 0.1 * right[1], -left[1], left[1]
    return left, right


def dense(left: Tensor, right: Tensor) -> Tensor:
    return (left @ right.mT).double()


# The token itself


def test_the_own_entry_of_a_token_is_that_of_the_dense_map(factors: tuple[Tensor, Tensor]) -> None:
    for head, entries in enumerate(dense(*factors)):
        below = torch.stack([(row < row[i]).double().sum() / 39 for i, row in enumerate(entries)])
        assert own_ranks(*factors)[head] == pytest.approx(float(below.mean()), abs=1e-5)


def test_the_z_of_a_pair_is_that_of_its_row_in_the_dense_map(factors: tuple[Tensor, Tensor]) -> None:
    left, right = factors
    z = entries_z(left[:, :9], right[:, 5:14], right)
    for head, entries in enumerate(dense(left[:, :9], right)):
        true = (entries.diagonal(5) - entries.mean(1)) / entries.std(1, unbiased=False)
        assert torch.allclose(z[head], true.float(), atol=1e-4)


def test_ties_of_the_own_entry_count_half() -> None:
    zero = torch.zeros(1, 6, 2)
    assert own_ranks(zero, zero).tolist() == [0.5]
    assert not entries_z(zero, zero, zero).any()


def test_the_shares_of_a_map_are_those_of_the_dense_one(factors: tuple[Tensor, Tensor]) -> None:
    found = shares(*factors)
    for head, entries in enumerate(dense(*factors)):
        centred = entries - entries.mean(1, keepdim=True)
        mean = centred.mean(0)
        values = torch.linalg.eigvalsh((centred - mean + (centred - mean).T) / 2)
        total = centred.square().sum()
        assert found.alike[head] == pytest.approx(float(40 * mean.square().sum() / total), abs=1e-5)
        assert found.own[head] == pytest.approx(float((values * values.abs()).sum() / total), abs=1e-5)
    assert found.own[1] > 0.6
    assert found.own[2] < -0.6


def test_a_turn_keeps_how_strongly_each_token_is_seen(factors: tuple[Tensor, Tensor]) -> None:
    (turn,) = turns(1, 5, seed=3)
    assert torch.allclose(turn @ turn.T, torch.eye(5), atol=1e-6)
    assert torch.allclose((factors[0] @ turn).norm(dim=-1), factors[0].norm(dim=-1), atol=1e-5)
    assert not torch.equal(turn, turns(1, 5, seed=4)[0])


# The expected attention


def one_token_texts(frames: Frames, query: int, key: int, first: int, at: int) -> Texts:
    """Return texts in which every place has one possible token."""
    texts = Texts(frames)
    tokens = {"queries": query, "keys": key, "first": first}
    vars(texts).update({name: torch.tensor([token]) for name, token in tokens.items()}, at=at)
    return texts


MECHANISMS = {
    "llama": "RoPE, grouped keys",
    "qwen3": "norms of queries and keys",
    "gemma2": "caps, windows",
    "gpt2": "added positions",
    "bloom": "ALiBi",
    "gpt_oss": "sinks",
    "deepseek_v3": "latent keys",
    "t5-decoder": "buckets of distances",
    "bert": "both ways, added positions",
    "deberta": "vectors of distances",
}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", MECHANISMS)
def test_the_attention_of_a_text_is_that_of_transformers(name: str, tmp_path: Path) -> None:
    """In layer 0 a token's state is its row, so with one token a place nothing is left to be expected."""
    hf, at, (first, key, query) = tiny_model(name), 5, (7, 11, 23)
    mark = "#decoder" if name.endswith("decoder") else ""
    model = zp.open_model(f"{save(hf, tmp_path)}{mark}")
    frames = Frames(model)
    causal = model.family.causal
    texts = one_token_texts(frames, query, key, first, at)
    expected = ExpectedAttention(TokenHeads(frames, 0, "token"), texts)()
    places = at + 1 if causal else 2 * at + 1

    def weights(ids: list[int]) -> Tensor:
        """Return the attention of the query in a text, (heads, places)."""
        forward = run_forward(hf, model, torch.tensor([ids]))
        return forward.weights[forward.call(0)][0, :, at]

    known = expected.first is not None  # not in a decoder, which reads an encoder's text
    text = [first if known else key, *[key] * (places - 1)]
    text[at] = query
    true = weights(text)
    assert torch.allclose(expected.by_offset, true[:, at - texts.offsets], atol=1e-5)
    assert known == (causal and name != "t5-decoder")
    if expected.first is not None:
        assert torch.allclose(expected.first, true[:, 0] + true[:, places:].sum(1), atol=1e-5)
    same = [weights([*text[:place], query, *text[place + 1 :]])[:, place] for place in range(int(causal), at)]
    assert torch.allclose(expected.same, torch.stack(same).mean(0), atol=1e-5)


def test_the_expected_attention_is_the_mean_over_tokens(tmp_path: Path) -> None:
    frames = Frames(zp.open_model(str(save(tiny_model("llama"), tmp_path))))
    texts = Texts(frames)
    queries, keys = torch.tensor([3, 9]), torch.tensor([5, 17, 30])
    vars(texts).update(queries=queries, keys=keys, at=4)
    layer, block = TokenHeads(frames, 1, "token"), TokenHeads(frames, 1, "token").block
    turning, scale = frames.frequencies(1), block.dims.scale_at(1)
    q, k, own = layer.queries(queries), layer.keys(keys), layer.keys(queries)
    expected = ExpectedAttention(layer, texts)()
    first = texts.first_keys[1]
    assert expected.first is not None
    for head in range(4):
        kv, shares_of_queries = head // 2, []
        for a in range(2):
            query = rotate(q[head, a], 4, turning)
            sums = [torch.stack([scale * query @ key[kv] for key in first]).exp().mean()]
            for place in (1, 2, 3):
                logits = [scale * query @ rotate(k[kv, b], place, turning) for b in range(3)]
                sums.append(torch.stack(logits).exp().mean())
            sums.append((scale * query @ rotate(own[kv, a], 4, turning)).exp())
            shares_of_queries.append(torch.stack(sums) / torch.stack(sums).sum())
        mean = torch.stack(shares_of_queries).mean(0)
        assert torch.allclose(expected.by_offset[head], mean.flip(0)[:4], atol=1e-5)
        assert expected.first[head] == pytest.approx(float(mean[0]), abs=1e-5)


def test_the_keys_of_a_first_token_are_those_of_any_text_that_it_begins(tmp_path: Path) -> None:
    model = zp.open_model(str(save(tiny_model("llama"), tmp_path)))
    texts, running, keys = Texts(Frames(model)), Running(model), {}

    def record(name: str, layer: int, values: Tensor) -> None:
        if name == "rotated.k":
            keys[layer] = running.blocks[layer].heads(values, "k")[:, :, 0]

    rest = torch.randint(TOKENS, (len(texts.first), 6), generator=torch.Generator().manual_seed(2))
    running.run(torch.cat((texts.first[:, None], rest), 1), record)
    assert all(torch.allclose(texts.first_keys[layer], keys[layer], atol=1e-5) for layer in range(2))


def test_a_random_head_has_no_bias_of_positions(tmp_path: Path) -> None:
    frames = Frames(zp.open_model(str(save(tiny_model("bloom"), tmp_path))))
    attention = ExpectedAttention(TokenHeads(frames, 1, "token"), Texts(frames))
    width = frames.model.dims.head_dim
    inner = attention.of_random(0 * torch.eye(width)).by_offset[:, 1:]
    assert torch.allclose(inner, inner[:, :1].expand_as(inner), atol=1e-6)


# The catalogue


V, D, WIDTH = planted_models.V, planted_models.D, 16
COPYING, PREVIOUS, SAME = 0, 1, 2


@pytest.fixture
def few_random_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare with few random heads, where it does not matter what stands out."""
    monkeypatch.setattr(heads_run, "RANDOM_HEADS", 1)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> zp.HeadCatalogue:
    """Return the catalogue of a model in whose last layer three heads of four do something."""
    folder = tmp_path_factory.mktemp("planted") / "model"
    return zp.catalogue_heads(str(planted_heads(folder)), lens=None, progress=False)


def planted_heads(folder: Path) -> Path:
    """Write a model with a head that copies, one for the token before and one for the same token, and a random one."""
    hf: Any = planted_models._llama()
    hf.config.update({"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": WIDTH, "num_hidden_layers": 2})
    hf = type(hf)(hf.config)
    generator = torch.Generator().manual_seed(1)
    shared = torch.nn.functional.normalize(torch.randn(D, generator=generator), dim=0)
    tokens = torch.nn.functional.normalize(torch.randn(V, D, generator=generator), dim=1)
    turn = torch.linalg.qr(torch.randn(D, D, generator=generator)).Q[:WIDTH]
    key = torch.zeros(WIDTH)
    key[[0, 1, WIDTH // 2, WIDTH // 2 + 1]] = 0.8  # what turns fastest tells neighbours apart
    frequencies = 10000.0 ** (-torch.arange(0, WIDTH, 2) / WIDTH)
    with torch.no_grad():
        hf.model.embed_tokens.weight.copy_(tokens + shared)
        for part in ("self_attn.o_proj", "mlp.down_proj"):
            hf.model.layers[0].get_submodule(part).weight.zero_()
        attention = hf.model.layers[1].self_attn
        head = [slice(n * WIDTH, (n + 1) * WIDTH) for n in range(4)]
        attention.v_proj.weight[head[COPYING]] = turn
        attention.o_proj.weight[:, head[COPYING]] = turn.T
        attention.k_proj.weight[head[PREVIOUS]] = torch.outer(key, shared)
        attention.q_proj.weight[head[PREVIOUS]] = torch.outer(rotate(key, -1, frequencies), shared)
        same = 3 * turn * (torch.arange(WIDTH) % (WIDTH // 2) >= 4)[:, None]  # what turns slowly is the same anywhere
        attention.q_proj.weight[head[SAME]] = attention.k_proj.weight[head[SAME]] = same
    return planted_models.save(hf, folder)


def test_planted_heads_are_named_and_the_others_are_not(planted: zp.HeadCatalogue) -> None:
    does = {head.address: head.does for head in planted if head.does}
    assert does.pop("L1.attn.0") == ("copies",)
    assert does.pop("L1.attn.1")[:1] == ("previous token",)
    assert "same token" in does.pop("L1.attn.2")
    assert not does, does


def test_the_numbers_of_planted_heads(planted: zp.HeadCatalogue) -> None:
    copying, previous, same = (planted[4 + head] for head in (COPYING, PREVIOUS, SAME))
    assert copying.rank > 0.9
    assert copying.vo_own > 0.5
    assert copying.vo_own + copying.vo_alike > 0.9
    assert previous.previous.value > 0.5
    assert previous.distance == 1
    assert previous.qk_alike > 0.9
    assert same.same.value > 0.05
    assert same.qk_own > 0.3
    assert planted.having("copying")[0] == copying
    assert planted.sorted_by("previous")[0] == previous
    assert planted.counts()["copying"] == 1


def test_heads_of_a_random_model_have_no_names(tmp_path: Path) -> None:
    folder = planted_models.at_random(tmp_path / "random", seed=5)
    catalogue = zp.catalogue_heads(str(folder), lens=None, progress=False)
    assert not [head.does for head in catalogue if head.does]
    assert catalogue.random_heads >= 1000


def test_a_head_that_writes_the_negative_of_a_token_suppresses_it(tmp_path: Path) -> None:
    folder = planted_heads(tmp_path / "model")
    hf: Any = planted_models.transformers.LlamaForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        hf.model.layers[1].self_attn.o_proj.weight.mul_(-1)
    catalogue = zp.catalogue_heads(str(planted_models.save(hf, folder)), lens=None, progress=False)
    head = catalogue[4 + COPYING]
    assert head.does == ("suppresses",)
    assert head.vo_own < -0.5


def test_an_opening_bracket_that_promotes_the_closing_one_is_named(tmp_path: Path) -> None:
    folder = planted_heads(tmp_path / "model")
    hf: Any = planted_models.transformers.LlamaForCausalLM.from_pretrained(folder)
    signs = brackets(zp.open_model(str(folder)).vocab)
    assert signs.kinds == ("()", "[]", "{}")
    attention, rows = hf.model.layers[1].self_attn, hf.model.embed_tokens.weight
    with torch.no_grad():
        mean = rows.mean(0)
        attention.v_proj.weight[: len(signs.opening)] = rows[signs.opening] - mean
        attention.v_proj.weight[len(signs.opening) : WIDTH] = 0
        attention.o_proj.weight[:, : len(signs.opening)] = (rows[signs.closing] - mean).T
    catalogue = zp.catalogue_heads(str(planted_models.save(hf, folder)), lens=None, progress=False)
    assert catalogue.brackets == signs.kinds
    assert [head.address for head in catalogue.having("closing")] == ["L1.attn.0"]


def test_through_a_lens_the_heads_are_read_in_its_frames(few_random_heads: None) -> None:
    model = zp.open_model("models/first")
    lens = zp.calibrate(model, source="random", tokens=512, progress=False)
    catalogue = zp.catalogue_heads(model, layers=(1, 2), lens=lens, progress=False)
    assert catalogue.frame == "seen"
    assert catalogue.lens == lens.facts.words
    assert [head.address for head in catalogue] == [f"L1.attn.{head}" for head in range(6)]


def test_layers_without_attention_are_left_out(tmp_path: Path, few_random_heads: None) -> None:
    hybrid = str(save(tiny_model("jamba"), tmp_path))
    layers = {head.layer for head in zp.catalogue_heads(hybrid, lens=None, progress=False)}
    model = zp.open_model(hybrid)
    assert layers == {layer for layer in range(model.dims.layers) if model.dims.has_site("attn", layer)}
    without = next(layer for layer in range(model.dims.layers) if layer not in layers)
    with pytest.raises(zp.ZeropassError, match="no attention in layers"):
        zp.catalogue_heads(model, layers=(without, without + 1), lens=None)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_a_model_that_sees_both_ways_has_no_first_token(tmp_path: Path, few_random_heads: None) -> None:
    catalogue = zp.catalogue_heads(str(save(tiny_model("deberta-v2"), tmp_path)), lens=None, progress=False)
    assert catalogue.traits
    assert "first" not in catalogue.traits
    assert all(head.first is None for head in catalogue)
    assert all(abs(head.distance) <= Texts(Frames(zp.open_model(str(tmp_path)))).at for head in catalogue)


def test_the_table_has_a_row_a_head_and_a_map_a_trait(planted: zp.HeadCatalogue) -> None:
    rows = list(planted.table_rows())
    assert len(rows) == len(planted) == 8
    assert rows[5]["does"].startswith("previous token")
    assert rows[5]["previous_chance"] < 0.001
    panels = list(planted.panels())
    assert {panel.title for panel in panels} == {*TRAITS} - {"names"}  # its tokens are single characters
    assert [len(panel.values) for panel in panels] == [2] * len(panels)
    value = json.loads(json.dumps(planted.to_json(), allow_nan=False))
    assert value["heads"][5]["previous"]["value"] == planted[5].previous.value


def test_a_catalogue_is_kept_by_the_hash_of_its_weights(
    planted: zp.HeadCatalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZEROPASS_CACHE", str(tmp_path))
    fingerprint = planted.model["fingerprint"]
    assert kept_heads(fingerprint) is None
    keep_heads(planted)
    assert kept_heads(fingerprint) == planted
    assert kept_heads("0" * 64) is None
    assert kept_heads("../heads") is None
    (file,) = (tmp_path / "heads").iterdir()
    file.write_text(file.read_text().replace('"rank"', '"runk"'))
    assert kept_heads(fingerprint) is None


def test_the_command_keeps_a_catalogue_of_all_layers(
    run: Run, few_random_heads: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZEROPASS_CACHE", str(tmp_path / "cache"))
    folder = planted_models.at_random(tmp_path / "model")
    assert run("heads", folder, "--layers", "0")[0] == 0
    fingerprint = zp.open_model(str(folder)).fingerprint
    assert kept_heads(fingerprint) is None
    code, out, _ = run("heads", folder)
    kept = kept_heads(fingerprint)
    assert code == 0
    assert kept is not None
    assert [line.split()[0] for line in out.splitlines()[1 : 1 + len(kept)]] == [head.address for head in kept]


def test_an_atlas_is_read_by_the_weights_it_was_built_from(
    run: Run, few_random_heads: None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    built = small.built("llama", tmp_path_factory)
    of_atlas, of_model = (run.json("heads", what, "--layers", "1") for what in (built.atlas.path, built.folder))
    assert of_atlas == of_model
    code, _, err = run("heads", built.atlas.path, "--device", "cuda")
    assert (code, "ask its model: zeropass heads" in err) == (2, True)


def test_the_command_prints_a_row_a_head(run: Run, few_random_heads: None) -> None:
    arguments = ("heads", "models/first", "--lens", "none", "--layers", "1")
    code, out, err = run(*arguments, "--sort", "previous")
    assert (code, err) == (0, "")
    assert out.splitlines()[1].startswith("L1.attn.5")
    assert "random heads" in out
    value = run.json(*arguments)
    assert [head["address"] for head in value["heads"]] == [f"L1.attn.{head}" for head in range(6)]
    for more, message in ((("--sort", "nose"), "There is no trait 'nose'"), (("--layers", "9"), "out of range")):
        code, out, err = run("heads", "models/first", "--lens", "none", *more)
        assert (code, message in err) == (2, True)


def test_a_catalogue_names_the_relations_of_a_head(few_random_heads: None) -> None:
    lens = zp.load("models/first", lens=None)
    catalogue = zp.catalogue_heads(lens, layers=(2, 4), progress=False)
    relations = zp.relation(lens, sets=["participle", "copying"], layers=(2, 4), progress=False)
    joined = catalogue.with_relations(relations)
    participle = relations.of("participle")
    heads = {s.address for s in participle.named if s.pole == "+" and s.share > participle.by_copying}
    assert heads
    assert {head.address for head in joined if "participle" in head.relations} == heads
    assert not [head for head in joined if "copying" in head.relations]  # no head copies more than copying alone
    assert all("participle" in head.does for head in joined if head.address in heads)
    with pytest.raises(BadOption, match="relations of another, and the heads are of models/first"):
        catalogue.with_relations(replace(relations, model="another"))


def test_the_command_joins_relations(run: Run, few_random_heads: None) -> None:
    value = run.json("heads", "models/first", "--layers", "3", "--relations", "--lens", "none")
    assert any(head["relations"] for head in value["heads"])
