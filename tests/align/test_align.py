"""Alignment: kernels against whole score matrices, twins matched to the last neuron, and nulls that stay nulls."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM

import small
import twins
import zeropass as zp
from commands import Run
from zeropass.align.alignment_folder import write_alignment
from zeropass.align.pair import Pair, neuron_views
from zeropass.align.render import layers_in_short
from zeropass.align.results import through
from zeropass.align.token_lists import LENGTH, Lists, carried, lists_of
from zeropass.errors import BadAddress, BadOption
from zeropass.model.shared_tokens import normal_form, shared_tokens
from zeropass.numerics.cross_gram import cross_kernel, head_products, unit
from zeropass.tokens.vocabulary import Vocabulary

seeds = st.integers(0, 2**31)


def centred(x: Tensor) -> Tensor:
    return x - x.mean(0)


# --- Numerics, against their slow twins ---------------------------------------------------------------------------


@given(seeds, st.integers(1, 9), st.integers(1, 9), st.integers(3, 40))
@settings(max_examples=40, deadline=None)
def test_correlations_from_kernels_are_those_of_the_scores(seed: int, d: int, e: int, shared: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    a, b = torch.randn(shared + 5, d, generator=draw), 3 + torch.randn(shared + 7, e, generator=draw)
    x, y = torch.randn(4, d, generator=draw), torch.randn(6, e, generator=draw)
    ids, others = torch.randperm(len(a), generator=draw)[:shared], torch.randperm(len(b), generator=draw)[:shared]
    gram, other_gram = (cross_kernel(r, r, (i, i)) for r, i in ((a, ids), (b, others)))
    correlations = unit(x, gram) @ cross_kernel(a, b, (ids, others)) @ unit(y, other_gram).T
    s, t = centred(a[ids].double() @ x.double().T), centred(b[others].double() @ y.double().T)
    expected = (s.T @ t) / s.norm(dim=0)[:, None] / t.norm(dim=0)
    assert torch.allclose(correlations.double(), expected, atol=1e-3)


@given(seeds, st.integers(2, 9), st.integers(2, 9), st.integers(15, 40))
@settings(max_examples=40, deadline=None)
def test_agreement_is_the_slope_over_the_tokens_of_a_list(seed: int, d: int, e: int, shared: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    a, b = torch.randn(shared + 5, d, generator=draw), 3 + torch.randn(shared + 7, e, generator=draw)
    x, y = torch.randn(4, d, generator=draw), torch.randn(6, e, generator=draw)
    ids, others = torch.randperm(len(a), generator=draw)[:shared], torch.randperm(len(b), generator=draw)[:shared]
    x, y = unit(x, cross_kernel(a, a, (ids, ids))), unit(y, cross_kernel(b, b, (others, others)))
    partner = dict(zip(ids.tolist(), others.tolist(), strict=True))
    lists = lists_of(x, a, ids, a[ids].mean(0))
    there = Lists(torch.tensor([[partner[n] for n in line] for line in lists.ids.tolist()]), lists.z)
    scores = carried(there, b, b[others].mean(0)) @ y.T
    s, t = centred(a[ids].double() @ x.double().T), centred(b[others].double() @ y.double().T)
    for n in range(len(x)):
        top = s[:, n].abs().argsort(descending=True)[:LENGTH]
        assert set(lists.ids[n].tolist()) == set(ids[top].tolist())
        slope = (s[top, n, None] * t[top]).sum(0) / s[top, n].square().sum()
        assert torch.allclose(scores[n].double(), slope, atol=1e-3)


@given(seeds, st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_products_of_head_maps_are_those_of_whole_maps(seed: int, h: int, g: int, m: int, n: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    a, b = torch.randn(11, 5, generator=draw), torch.randn(11, 4, generator=draw)
    p, r = torch.randn(2, h, m, 5, generator=draw)
    q, s = torch.randn(2, g, n, 4, generator=draw)
    kernel = a.T @ b
    products = head_products(*(x.reshape(-1, 5) @ kernel @ y.reshape(-1, 4).T for x, y in ((p, q), (r, s))), (h, g))
    maps = [[(rows @ i.T) @ (rows @ j.T).T for i, j in zip(x, y, strict=True)] for rows, x, y in ((a, p, r), (b, q, s))]
    expected = torch.stack([torch.stack([(own * other).sum() for other in maps[1]]) for own in maps[0]])
    assert torch.allclose(products, expected, rtol=1e-3, atol=1e-2)


def test_a_vector_without_scores_agrees_with_nothing() -> None:
    rows = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    ids = torch.arange(20)
    nothing = unit(torch.zeros(1, 3), cross_kernel(rows, rows, (ids, ids)))
    assert nothing.abs().max() == 0
    assert carried(lists_of(nothing, rows, ids, rows.mean(0)), rows, rows.mean(0)).abs().max() == 0


# --- Shared tokens ------------------------------------------------------------------------------------------------


def vocabulary(kind: Any, *pieces: str) -> Vocabulary:
    none = torch.zeros(len(pieces), dtype=torch.bool).numpy()
    return Vocabulary(kind, list(pieces), none, none, none)


def test_a_token_has_one_normal_form_however_it_is_spelt() -> None:
    spellings = {
        "bytes": ("Ġthe", "ing", "."),
        "sentencepiece": ("▁the", "ing", "."),
        "wordpiece": ("the", "##ing", "."),
    }
    forms = [[normal_form(vocabulary(kind, *pieces), n) for n in range(2)] for kind, pieces in spellings.items()]
    assert forms == [[(True, "the"), (False, "ing")]] * 3
    ends = vocabulary("word-ends", "the</w>", "ing")
    assert normal_form(ends, 0) == (True, "the") and normal_form(ends, 1) not in forms[0]


def test_models_of_two_families_share_what_both_spell(tmp_path: Path) -> None:
    first, second = zp.open_model(str(small.gpt2(tmp_path / "a"))), zp.open_model(str(small.bert(tmp_path / "b")))
    shared = shared_tokens(first, second)
    for i, j in zip(shared.first.tolist(), shared.second.tolist(), strict=True):
        assert first.vocab.text(i).removeprefix(" ") == second.vocab.text(j)
        assert first.vocab.text(i).startswith(" ") != second.vocab.is_continuation(j)
    assert not shared.identical
    assert shared.shares == (len(shared) / small.V, len(shared) / small.V)
    mixed = shared.shuffled(0)
    assert sorted(mixed.second.tolist()) == sorted(shared.second.tolist())
    assert (mixed.second == shared.second).float().mean() < 0.2
    best = zp.match(zp.pair_of(first, second), "L1.ff.3", k=2)
    assert len(best.matches) == 2


def test_too_few_shared_tokens_are_refused_with_the_numbers(tmp_path: Path) -> None:
    first, second = zp.open_model(str(small.llama(tmp_path / "a"))), zp.open_model(str(small.llama(tmp_path / "b")))
    other = replace(second, vocab=vocabulary("bytes", *(f"none{n}" for n in range(small.V))))
    with pytest.raises(BadOption, match=r"share 0 tokens \(of 600 and 600\).*more than 64 are needed"):
        zp.pair_of(first, other)


# --- Twins --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llama_and_twin(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pair, twins.Moved]:
    folder = tmp_path_factory.mktemp("twins")
    model = zp.open_model(str(small.llama(folder / "model")))
    path, moved = twins.twin(model, small.LAYERS, folder / "twin")
    return zp.pair_of(model, zp.open_model(str(path))), moved


def logits(folder: Path) -> Tensor:
    running = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        return running(torch.arange(7, 47)[None]).logits


def check_twins(pair: Pair, moved: twins.Moved) -> None:
    """Check that every neuron and head of every layer matches its twin, in its own layer, with a score of one."""
    views, heads = neuron_views(pair), pair.models[0].dims.heads
    for layer, (neurons, order) in enumerate(zip(moved.neurons, moved.heads, strict=True)):
        scores = pair.neuron_scores(views, (layer, layer))
        assert torch.equal(neurons[scores.argmax(1)], torch.arange(len(neurons)))
        assert scores.amax(1).min() > 0.999
        for kind in ("qk", "vo"):
            cosines = pair.head_cosines(kind, (layer, layer))
            assert torch.equal(order[cosines.argmax(1)], torch.arange(heads))
            assert cosines.amax(1).min() > 0.999


def test_a_twin_computes_the_same_and_is_matched(llama_and_twin: tuple[Pair, twins.Moved]) -> None:
    pair, moved = llama_and_twin
    own, other = (logits(Path(model.files.path)) for model in pair.models)
    assert torch.allclose(own, other, atol=1e-3 * float(own.abs().max()))
    check_twins(pair, moved)


def test_the_alignment_of_a_twin_is_the_identity(llama_and_twin: tuple[Pair, twins.Moved], tmp_path: Path) -> None:
    pair, _ = llama_and_twin
    alignment = zp.align_models(*pair.models, tmp_path / "out")
    identity = tuple(range(small.LAYERS))
    for layer_map in alignment.layers:
        assert (layer_map.assigned == identity) or layer_map.frame == "raw" or layer_map.role in ("v", "o")
    assert alignment.layer_map("gate", "token").scores[1][1] == pytest.approx(1, abs=1e-3)
    assert alignment.layer_map("gate", "raw").scores[1][1] < 0.7
    for counts in alignment.summary()["matches"].values():
        assert counts["all"] == counts["mutual"] == counts["above_chance"]
    assert zp.read_alignment(tmp_path / "out") == alignment
    assert zp.align_models(*pair.models, tmp_path / "out") == alignment


def test_a_twin_is_matched_through_lenses(llama_and_twin: tuple[Pair, twins.Moved], tmp_path: Path) -> None:
    """Lenses of the same tokens are the same maps in another basis, up to half precision."""
    plain, moved = llama_and_twin
    first, second = (zp.calibrate(model, source="random", tokens=512) for model in plain.models)
    pair = zp.pair_of(*plain.models, (first, second))
    assert {(view.roles[0], view.frame) for view in neuron_views(pair)} == {
        ("gate", "seen"),
        ("up", "seen"),
        ("value", "effect"),
    }
    check_twins(pair, moved)
    alignment = zp.align_models(*plain.models, tmp_path / "out", lenses=(first, second))
    assert alignment.lenses == ("mean-field lens from 512 random tokens",) * 2
    assert alignment.layer_map("value", "effect").assigned == tuple(range(small.LAYERS))
    assert zp.read_alignment(tmp_path / "out") == alignment
    assert zp.match(pair, "L2.ff.17", k=1).lenses == alignment.lenses
    assert zp.match(pair, "L2.attn.1", k=1).lenses == ()


def test_scores_through_lenses_are_those_of_what_frames_fold(llama_and_twin: tuple[Pair, twins.Moved]) -> None:
    """Twin of `Half.vectors`: the scores of a list, from the rows that each token has behind the maps of the lens."""
    plain, _ = llama_and_twin
    lenses = tuple(zp.calibrate(model, source="random", tokens=512) for model in plain.models)
    pair = zp.pair_of(*plain.models, (lenses[0], lenses[1]))
    half, lens = pair.first, lenses[0]
    space, vectors = half.vectors(1, "gate", "seen")
    linear, shift = lens.seen(1) or (torch.zeros(0), torch.zeros(0))
    states = half.rows(space) @ linear + shift
    gates = half.model.matrix("gate", 1) * half.model.vector("ff_norm", 1)
    scores = centred((states @ gates.T)[half.ids].double())
    expected = scores / scores.square().mean(0).sqrt()
    assert torch.allclose(centred((half.rows(space) @ vectors.T)[half.ids].double()), expected, atol=1e-3)
    space, vectors = half.vectors(1, "value", "effect")
    logits = half.model.matrix("value", 1) @ lens.effect(1, "ff") @ half.rows("output.write").T
    scores = centred(logits.T[half.ids].double())
    expected = scores / scores.square().mean(0).sqrt()
    assert torch.allclose(centred((half.rows(space) @ vectors.T)[half.ids].double()), expected, atol=1e-3)


def test_a_sentence_names_the_lenses() -> None:
    assert through("Lists", ()) == ""
    assert through("Lists", ("x", "x")) == "Lists of both are read through a x."
    assert through("Tokens", ("x", "y\x1b")) == "Tokens of A are read through a x, those of B through a y\\x1b."


@pytest.mark.parametrize("lenses", ["two", ["one"], [1, 2], None])
def test_lenses_that_are_no_words_are_refused(
    llama_and_twin: tuple[Pair, twins.Moved], tmp_path: Path, lenses: Any
) -> None:
    zp.align_models(*llama_and_twin[0].models, tmp_path / "out")
    path = tmp_path / "out" / "alignment.json"
    value = json.loads(path.read_text())
    value["method"]["lenses"] = lenses
    path.write_text(json.dumps(value))
    with pytest.raises(BadOption, match="lenses are not the words of two lenses"):
        zp.read_alignment(tmp_path / "out")


def test_a_frame_that_one_lens_lacks_is_compared_without(llama_and_twin: tuple[Pair, twins.Moved]) -> None:
    models = llama_and_twin[0].models
    first, second = (zp.calibrate(model, source="random", tokens=512) for model in models)
    effects = {name: values for name, values in second.tensors.items() if name.startswith("effect")}  # type: ignore[union-attr]
    pair = zp.pair_of(*models, (first, replace(second, tensors=effects)))
    assert pair.frames("read") == ("token", "output")
    assert pair.frames("write") == ("effect",)
    assert len(pair.lens_words) == 2
    half_blind = zp.pair_of(*models, (first, None))
    assert half_blind.frames("write") == ("output",)
    assert half_blind.lens_words == ()
    assert torch.equal(
        half_blind.agreement(neuron_views(half_blind)[0], (1, 1)),
        llama_and_twin[0].agreement(neuron_views(half_blind)[0], (1, 1)),
    )


@pytest.mark.parametrize("address", ["L2.ff.17", "L1.ff.3.gate", "L2.ff.9.up", "L0.ff.1.value"])
def test_a_neuron_is_matched_across_all_layers(address: str, llama_and_twin: tuple[Pair, twins.Moved]) -> None:
    pair, moved = llama_and_twin
    search = zp.match(pair, address, k=3)
    best, place = zp.parse(search.matches[0].address), zp.parse(address)
    assert (best.layer, best.role) == (place.layer, place.role)
    assert int(moved.neurons[place.layer][best.index]) == place.index
    assert search.matches[0].score == pytest.approx(1, abs=1e-3)
    assert search.matches[0].score > search.matches[1].score >= search.matches[2].score
    assert search.matches[0].effect == pytest.approx(
        (search.matches[0].score - search.matches[0].null_mean) / search.matches[0].null_std
    )


@pytest.mark.parametrize("address", ["L2.attn.3", "L1.attn.0.vo", "L0.attn.2.qk"])
def test_a_head_is_matched_across_all_layers(address: str, llama_and_twin: tuple[Pair, twins.Moved]) -> None:
    pair, moved = llama_and_twin
    best, place = zp.parse(zp.match(pair, address).matches[0].address), zp.parse(address)
    assert (best.layer, best.role) == (place.layer, place.role)
    assert int(moved.heads[place.layer][best.head]) == place.head


def test_a_column_of_a_head_is_matched_where_it_was_not_mixed(llama_and_twin: tuple[Pair, twins.Moved]) -> None:
    pair, moved = llama_and_twin
    best = zp.parse(zp.match(pair, "L1.attn.2.q.5").matches[0].address)
    assert (best.layer, best.role, best.index) == (1, "q", 5)
    assert int(moved.heads[1][best.head]) == 2


@pytest.mark.parametrize(
    "address", ["L3.ff.0", "L0.ff.48", "L0.attn.4", "L0.ff.1.key", "L0.ff.bias", "final.norm", "ff"]
)
def test_what_cannot_be_matched_is_refused(address: str, llama_and_twin: tuple[Pair, twins.Moved]) -> None:
    with pytest.raises(BadAddress):
        zp.match(llama_and_twin[0], address)


class Stopped(Exception):
    """An exception that stands for Ctrl-C."""


def test_an_alignment_that_was_stopped_continues(llama_and_twin: tuple[Pair, twins.Moved], tmp_path: Path) -> None:
    models = llama_and_twin[0].models
    undisturbed = zp.align_models(*models, tmp_path / "undisturbed")
    seen: list[str] = []

    def until_heads(what: str, done: int, total: int) -> None:
        assert 0 <= done < total
        seen.append(what)
        if what == "heads":
            raise Stopped

    with pytest.raises(Stopped):
        zp.align_models(*models, tmp_path / "out", progress=until_heads)
    assert {"gate-token", "qk", "q-raw", "neurons"} <= set(seen)
    assert not (tmp_path / "out" / "alignment.json").exists()
    again: list[str] = []
    assert zp.align_models(*models, tmp_path / "out", progress=lambda what, *_: again.append(what)) == undisturbed
    assert set(again) == {"heads"}
    zp.align_models(*models, tmp_path / "out", seed=1, progress=lambda what, *_: again.append(what))
    assert set(again) > {"heads", "neurons"}, "another seed does not reuse the parts"


def test_a_model_aligned_with_itself_is_the_identity(tmp_path: Path) -> None:
    model = zp.open_model(str(small.llama(tmp_path / "model")))
    alignment = zp.align_models(model, model, tmp_path / "out")
    assert all(layer_map.assigned == (0, 1, 2) for layer_map in alignment.layers)
    assert all(pairing.first == pairing.second for pairing in alignment.pairings)


@pytest.mark.real
def test_real_weights_are_matched_with_their_twin(smollm2_path: Path, tmp_path: Path) -> None:
    full, layers = zp.open_model(str(smollm2_path)), 2
    path = twins.plain(full, layers, tmp_path / "plain")
    model = zp.open_model(str(path))
    other, moved = twins.twin(model, layers, tmp_path / "twin")
    logits_of_model, logits_of_twin = logits(path), logits(other)
    assert torch.allclose(logits_of_model, logits_of_twin, atol=1e-3 * float(logits_of_model.abs().max()))
    pair = zp.pair_of(model, zp.open_model(str(other)))
    check_twins(pair, moved)
    stored = [m.matrix("gate", 1) for m in pair.models]
    cosines = torch.nn.functional.normalize(stored[0]) @ torch.nn.functional.normalize(stored[1]).T
    assert (moved.neurons[1][cosines.argmax(1)] == torch.arange(len(cosines))).float().mean() < 0.01  # raw space


def test_noise_hides_a_twin_gradually(tmp_path: Path) -> None:
    model = zp.open_model(str(small.llama(tmp_path / "model")))
    shares = []
    for noise in (0.0, 0.5, 4.0):
        path, moved = twins.twin(model, small.LAYERS, tmp_path / f"twin-{noise}", noise=noise)
        pair = zp.pair_of(model, zp.open_model(str(path)))
        scores = pair.neuron_scores(neuron_views(pair), (1, 1))
        shares.append(float((moved.neurons[1][scores.argmax(1)] == torch.arange(small.NEURONS)).float().mean()))
    assert shares[0] == 1 > shares[2]
    assert shares[1] > 0.9


# --- Null distributions -------------------------------------------------------------------------------------------


def test_random_models_give_no_match(tmp_path: Path) -> None:
    """Count false discoveries: at most two of ten pairs of unrelated models may have a match above its null."""
    counted = 0
    for seed in range(10):
        folders = small.llama(tmp_path / f"a{seed}", seed=seed), small.llama(tmp_path / f"b{seed}", seed=seed + 100)
        alignment = zp.align_models(*(zp.open_model(str(folder)) for folder in folders), tmp_path / f"out{seed}")
        counted += any(kind["above_chance"] for kind in alignment.summary()["matches"].values())
    assert counted <= 2


def test_a_match_between_random_models_is_no_better_than_chance(tmp_path: Path) -> None:
    folders = small.llama(tmp_path / "a", seed=1), small.llama(tmp_path / "b", seed=2)
    pair = zp.pair_of(*(zp.open_model(str(folder)) for folder in folders))
    effects = [zp.match(pair, f"L1.ff.{n}", k=1).matches[0].effect for n in range(12)]
    assert abs(sum(effects) / len(effects)) < 1
    assert max(effects) < 4.5


# --- Files and the command line -----------------------------------------------------------------------------------


def test_match_and_align_work_from_the_command_line(
    llama_and_twin: tuple[Pair, twins.Moved], tmp_path: Path, run: Run
) -> None:
    def command(*arguments: object, code: int = 0) -> str:
        status, out, err = run(*arguments)
        assert status == code, err
        return err if code else out

    first, second = (model.files.path for model in llama_and_twin[0].models)
    search = json.loads(command("match", first, "L2.ff.17", second, "-k", 3, "--json"))
    assert list(search) == ["query", "matches", "lenses"]
    assert search["query"] == "L2.ff.17"
    assert list(search["matches"][0]) == ["address", "score", "null_mean", "null_std", "effect"]
    assert len(search["matches"]) == 3
    shown = command("match", first, "L2.ff.17", second)
    assert search["matches"][0]["address"] in shown
    assert all(heading in shown for heading in ("gate sees", "value writes"))
    query, twin = (
        next(line.split() for line in shown.splitlines() if line.startswith(f"{address} "))
        for address in ("L2.ff.17", search["matches"][0]["address"])
    )
    assert query[1] == twin[3], "the first word of the query is that of its twin, behind score and effect"
    assert "vo when attended to," in command("match", first, "L1.attn.2", second, "-k", 1)
    shown = command("align", first, second, "--out", tmp_path / "out")
    assert "590 tokens are shared: 98% and 98% of the vocabularies" in shown
    value = json.loads(command("align", first, second, "--out", tmp_path / "out", "--json"))
    assert value["layers"]["gate token"] == [0, 1, 2]
    assert "out of range" in command("match", first, "L9.ff.0", second, code=2)
    lenses = tmp_path / "first", tmp_path / "second"
    for path, lens in zip((first, second), lenses, strict=True):
        command("calibrate", path, "--source", "random", "--tokens", 512, "--out", lens)
    through = ("--lens", lenses[0], "--lens", lenses[1])
    value = json.loads(command("match", first, "L2.ff.17", second, *through, "--json"))
    assert value["lenses"] == ["mean-field lens from 512 random tokens"] * 2
    shown = command("match", first, "L2.ff.17", second, *through)
    assert "Lists of both are read through a mean-field lens from 512 random tokens." in shown
    shown = command("align", first, second, *through, "--out", tmp_path / "through")
    assert "Lists of both are read through a mean-field lens from 512 random tokens." in shown
    assert "--lens is given 1 times" in command("align", first, second, *through[:2], code=2)
    assert "is a lens of" in command("match", first, "L2.ff.17", second, *through[2:], *through[:2], code=2)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    assert "does not hold an alignment" in command("align", first, second, "--out", tmp_path / "full", code=2)


@pytest.mark.parametrize(
    ("assigned", "shown"),
    [
        (range(30), "0–29"),
        ((0, 2, 3, 1), "0 2 3 1"),
        ((-1, 0, 1, 2, -1, -1), "· 0–2 · ·"),
        ((4, 5, 6, 3), "4–6 3"),
        ((), ""),
        ((-1, 10, -1), "· 10 ·"),
    ],
)
def test_layers_are_shown_in_short(assigned: Sequence[int], shown: str) -> None:
    assert layers_in_short(assigned) == shown


@pytest.mark.parametrize(
    "damage",
    [
        *("{", "[]", '{"schema": 1}', '{"schema": 9}', '{"schema": 1, "models": [], "layers": 1}'),
        '{"schema": 1, "models": [{"name": "a"}, {}], "method": {}, "layers": []}',
    ],
)
def test_a_damaged_folder_is_refused_by_name(
    damage: str, llama_and_twin: tuple[Pair, twins.Moved], tmp_path: Path
) -> None:
    alignment = zp.Alignment(({"name": "a"}, {"name": "b"}), {}, (), ())
    write_alignment(alignment, tmp_path)
    assert zp.read_alignment(tmp_path) == alignment
    (tmp_path / "alignment.json").write_text(damage)
    with pytest.raises(BadOption, match=r"alignment\.json"):
        zp.read_alignment(tmp_path)


def test_scores_of_matches_are_finite(llama_and_twin: tuple[Pair, twins.Moved]) -> None:
    search = zp.match(llama_and_twin[0], "L0.attn.1.o.2", k=5)
    assert all(math.isfinite(value) for match in search.matches for value in (match.score, match.effect))
