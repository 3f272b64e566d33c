"""Relations: exact shares, a null that holds, a planted head, and refusals."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import small
import zeropass as zp
from commands import Run
from zeropass.errors import BadOption
from zeropass.relations.pair_files import PairSet, read_pairs, shipped_sets
from zeropass.relations.run import SHUFFLES, set_names
from zeropass.relations.shuffles import Shuffles, shuffled_share
from zeropass.relations.token_pairs import VOCABULARY_SETS, looked_up, of_vocabulary

WORDS = small.words(100)
PAIRS = tuple(zip(WORDS[:12], WORDS[20:32], strict=True))
"""Words of the small models; each is one token, with a space before it."""

MIXED = (*PAIRS[:6], ("q" + WORDS[0], WORDS[40]), (WORDS[1], "zz" + WORDS[2]))
"""Pairs of which some words have several tokens."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> small.Built:
    return small.built("llama", tmp_path_factory)


@pytest.fixture(scope="module")
def model(built: small.Built) -> Path:
    return built.folder


@pytest.fixture(scope="module")
def lens(built: small.Built) -> zp.Lens:
    return built.lens


def planted(model: Path, folder: Path) -> Path:
    """Write a copy in which L1.attn.1 takes six words to their partners; head 0 shares its values."""
    lens = zp.load(str(model), lens=None)
    frames, vocab = lens.frames, lens.model.vocab
    left, right = ([vocab.find(word)[0] for word in side] for side in zip(*PAIRS[:6], strict=True))
    tensors = load_file(model / "model.safetensors")
    gain = tensors["model.layers.1.input_layernorm.weight"]
    values = torch.linalg.pinv(frames.rows("token").matrix[left].double()).T.float() / gain
    tensors["model.layers.1.self_attn.v_proj.weight"][:6] = values
    outputs = frames.rows("output.write").matrix[right]
    tensors["model.layers.1.self_attn.o_proj.weight"][:, 8:14] = 30 * torch.linalg.pinv(outputs.double()).float()
    folder.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_text((model / name).read_text())
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("frame", ["token", "paper"])
def test_shares_are_those_of_the_full_maps(lens: zp.Lens, frame: Any) -> None:
    """The slow twin: every row of every map in full, sorted."""
    k, vocab, shown = 25, lens.model.vocab, lens.view("default").mask
    relation = zp.relation(lens, MIXED, k=k, frame=frame)[0]
    pairs = looked_up(PairSet("pairs", "", "", MIXED), vocab, shown.numpy()).pairs
    assert relation.count == len(pairs) == 8
    assert len({len(left) for left, _ in pairs}) > 1
    scores = iter(relation)
    for address in lens.heads(role="vo").addresses:
        product = lens.head_map(address, frame=frame)
        full = (product.left @ product.right.T).double()
        rows = torch.stack([full[list(left)].mean(0) for left, _ in pairs]) - full[shown].mean(0)
        rank = {True: rows.where(shown, -torch.inf), False: -rows.where(shown, torch.inf)}
        z = (rows - rows[:, shown].mean(1, keepdim=True)) / rows[:, shown].std(1, correction=0, keepdim=True)
        at = [right for _, right in pairs]
        for score, largest in zip((next(scores), next(scores)), rank, strict=True):
            within = rank[largest].argsort(1, descending=True)[:, :k]
            reached = torch.tensor([[right in row for right in at] for row in within.tolist()])
            wrong = [reached[i, j] for i in range(8) for j in range(8) if i != j]
            assert (score.address, score.pole) == (address.removesuffix(".vo"), "+" if largest else "−")
            assert score.share == pytest.approx(float(reached.diagonal().double().mean()))
            assert score.shuffled == pytest.approx(float(torch.stack(wrong).double().mean()))
            assert score.z == pytest.approx(float(z[:, at].diagonal().median()), abs=1e-4)
            single = [(i, left[0]) for i, (left, _) in enumerate(pairs) if len(left) == 1]
            copies = [own in within[i].tolist() for i, own in single]
            assert score.copies == pytest.approx(sum(copies) / len(copies))
    assert next(scores, None) is None


def test_a_head_that_was_made_for_a_relation_is_named_and_no_other(model: Path, tmp_path: Path) -> None:
    changed = planted(model, tmp_path / "planted")
    relations = zp.relation(changed, PAIRS[:6], k=3)
    assert [(score.address, score.pole) for score in relations[0].named] == [("L1.attn.1", "+")]
    best = relations[0].named[0]
    assert relations.of_head("L1.attn.1") == (("pairs", best),) and not relations.of_head("L1.attn.0")
    assert best.share == 1 and best.shuffled < 0.2 and best.p < 0.02
    assert best.pairs[0] == (f" {WORDS[0]}", f" {WORDS[20]}")
    wrong = [(left, right) for (left, _), (_, right) in zip(PAIRS[:6], (*PAIRS[1:6], PAIRS[0]), strict=True)]
    assert not zp.relation(changed, wrong, k=3)[0].named


def test_a_head_that_suppresses_is_named_at_the_other_pole(model: Path, tmp_path: Path) -> None:
    changed = planted(model, tmp_path / "planted")
    tensors = load_file(changed / "model.safetensors")
    tensors["model.layers.1.self_attn.o_proj.weight"][:, 8:16] *= -1
    save_file(tensors, changed / "model.safetensors")
    assert [(score.address, score.pole) for score in zp.relation(changed, PAIRS[:6], k=3)[0].named] == [
        ("L1.attn.1", "−")
    ]


def test_the_null_counts_every_order_of_a_small_set() -> None:
    """Of four pairs there are 24 orders; with all of them the share that reaches the gain is that of the shuffles."""
    reached = torch.tensor([[1, 0, 0, 1], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]], dtype=torch.bool)
    total = int(reached.sum())

    def gain(order: tuple[int, ...]) -> float:
        count = sum(bool(reached[i, j]) for i, j in enumerate(order))
        return count / 4 - shuffled_share(count, total, 4)

    value = gain((0, 1, 2, 3))
    exact = sum(gain(order) >= value for order in itertools.permutations(range(4))) / 24
    shuffles = Shuffles(4, 4000, 0)
    shuffles.add(reached)
    assert shuffles.p(value) == pytest.approx(exact, abs=0.03)
    assert all(float(most) == max(0, gain(tuple(order))) for most, order in zip(
        shuffles.most[:50], shuffles.orders[:50].tolist(), strict=True))  # fmt: skip


def test_heads_that_write_a_whole_category_are_not_named() -> None:
    shuffles = Shuffles(20, 500, 0)
    everything = torch.ones(20, 20, dtype=torch.bool)
    shuffles.add(everything)
    assert shuffled_share(20, 400, 20) == 1
    assert shuffles.p(1 - shuffled_share(20, 400, 20)) == 1


def test_chance_names_some_head_as_rarely_as_it_should() -> None:
    """Of random maps of twenty heads, five in a hundred name one."""
    draw, named, trials = torch.Generator().manual_seed(0), 0, 100
    for trial in range(trials):
        shuffles = Shuffles(12, 199, trial)
        heads = [torch.rand(12, 12, generator=draw) < 0.1 + 0.5 * (n % 2) for n in range(20)]
        for reached in heads:
            shuffles.add(reached)
        gains = [
            float(own) / 12 - shuffled_share(int(own), int(reached.sum()), 12)
            for reached in heads
            for own in (reached.diagonal().sum(),)
        ]
        named += shuffles.p(max(gains)) <= 0.05
    assert named <= 0.05 * trials + 3 * (0.05 * 0.95 * trials) ** 0.5


def test_a_p_accounts_for_the_number_of_sets(lens: zp.Lens) -> None:
    alone, both = (zp.relation(lens, PAIRS, sets=names, k=25) for names in ((), ("copying",)))
    assert (alone.shuffles, len(both)) == (SHUFFLES, 2)
    assert [min(1, 2 * score.p) for score in alone[0]] == pytest.approx([score.p for score in both[0]])


def test_a_set_gives_the_same_with_other_sets_and_again(lens: zp.Lens) -> None:
    relations = [zp.relation(lens, sets=names, k=10, seed=3) for names in (("copying",), ("leading-space", "copying"))]
    shares = [[(score.share, score.shuffled) for score in each.of("copying")] for each in relations]
    assert shares[0] == shares[1]
    with pytest.raises(KeyError):
        relations[0].of("leading-space")


def test_an_atlas_gives_what_its_model_gives(built: small.Built) -> None:
    from_atlas, from_model = (zp.relation(source, PAIRS)[0] for source in (built.atlas, built.lens))
    assert [*from_atlas] == [*from_model]


def test_layers_and_heads_are_those_asked_for(lens: zp.Lens) -> None:
    relations = zp.relation(lens, PAIRS, layers=(1, 2))
    assert relations.heads == small.HEADS
    assert {score.address for score in relations[0]} == {f"L1.attn.{head}" for head in range(small.HEADS)}


@pytest.mark.parametrize("kind", ["gpt2", "bert", "llama"])
def test_every_kind_of_model_is_read(kind: str, tmp_path: Path) -> None:
    folder = small.VARIANTS[kind](tmp_path / kind)
    maps = small.calibrated(folder, tmp_path / "lens") if kind == "llama" else None
    relations = zp.relation(zp.load(str(folder), lens=maps), PAIRS)
    assert relations.frame == ("seen" if maps else "token")
    assert bool(relations.lens) == bool(maps)
    assert len(relations[0]) == 2 * small.LAYERS * small.HEADS
    assert "capitalised" in zp.relation(zp.load(str(folder), lens=maps)).left_out


@pytest.mark.parametrize("name", sorted(shipped_sets()))
def test_a_shipped_set_says_what_it_is_and_where_it_comes_from(name: str) -> None:
    pair_set = shipped_sets()[name]
    assert pair_set.about and "Source:" in pair_set.source and "Licence: Apache-2.0" in pair_set.source
    assert len(pair_set.pairs) >= 9
    assert all(left != right for left, right in pair_set.pairs)


def test_sets_of_the_vocabulary_are_what_they_say(lens: zp.Lens) -> None:
    vocab, shown, words = lens.model.vocab, *(lens.view(view).mask.numpy() for view in ("default", "words"))
    made = of_vocabulary([*VOCABULARY_SETS], vocab, shown, words)
    text = {
        name: [(vocab.text(left[0]), vocab.text(right)) for left, right in each.pairs] for name, each in made.items()
    }
    assert len(text["copying"]) == 200 and all(left == right and left[0] == " " for left, right in text["copying"])
    assert len(text["leading-space"]) == 100 and all(right == f" {left}" for left, right in text["leading-space"])
    assert not text["capitalised"]  # all words of this vocabulary are in lower case


def test_brackets_letters_and_capitals_are_told_from_a_vocabulary_that_has_them() -> None:
    vocab = zp.open_model("models/first").vocab
    everything = vocab.mask("all")
    made = of_vocabulary([*VOCABULARY_SETS], vocab, everything, everything)
    text = {
        name: [(vocab.text(left[0]), vocab.text(right)) for left, right in each.pairs] for name, each in made.items()
    }
    assert all(right.strip() == left.strip().capitalize() != left.strip() for left, right in text["capitalised"])
    assert all(right == left[:2] for left, right in text["first-letter"]) and len(text["first-letter"]) == 200
    assert ("(", ")") in text["closing"] and all(right in ")]}>”’»" for _, right in text["closing"])


def test_pairs_that_cannot_be_used_are_counted_by_their_reason(lens: zp.Lens) -> None:
    extra = ((WORDS[1], "\U0001f600"), (WORDS[3], WORDS[3]), ("<|special0|>", WORDS[4]))
    relation = zp.relation(lens, (*PAIRS, *extra))[0]
    assert relation.count == len(PAIRS)
    assert relation.unused == {"right token hidden": 1, "same token": 1, "not in the vocabulary": 1}


def test_results_are_tables_figures_and_json(lens: zp.Lens, tmp_path: Path) -> None:
    relations = zp.relation(lens, PAIRS, sets="copying")
    table = relations.to_pandas()
    assert len(table) == 2 * relations.heads * len(relations)
    assert {"relation", "address", "pole", "share", "shuffled", "z", "p", "gain", "named"} <= set(table)
    value = json.loads(json.dumps(relations.to_json(), allow_nan=False))
    assert len(value["sets"][1]["scores"]) == 2 * relations.heads and value["named"].keys() == {"pairs", "copying"}
    panel = relations[0].panel()
    assert (len(panel.rows), len(panel.columns)) == (small.LAYERS, small.HEADS)
    assert "No head beats the shuffles for pairs" in relations._repr_html_()
    assert len(repr(relations)) < 200 and len(repr(relations[0])) < 200


def test_nothing_hostile_reaches_a_terminal_or_a_notebook(tmp_path_factory: pytest.TempPathFactory) -> None:
    hostile = small.built("hostile", tmp_path_factory).lens
    tokens = [text for text in small.HOSTILE if "\x00" not in text][:8]
    relations = zp.relation(hostile, [*zip(tokens, WORDS, strict=False)], tokens="all")
    assert "<script>" not in relations._repr_html_() and "\x1b" not in relations._repr_html_()


def test_heads_of_a_real_model_write_pronouns_and_close_brackets(smollm2_path: Path) -> None:
    """By the weights alone, in one layer; docs/circuits.md has all of them through the lens."""
    relations = zp.relation(zp.load(str(smollm2_path), lens=None), sets=("pronoun", "closing"), layers=(26, 27))
    pronoun, closing = ([(score.address, score.pole) for score in relation.named] for relation in relations)
    assert pronoun == [("L26.attn.2", "+"), ("L26.attn.0", "−")]
    assert closing == [("L26.attn.6", "+")]
    assert all(score.copies == 0 for relation in relations for score in relation.named)


COMMAND = ("--lens", "none", "-k", 3)


def test_the_command_prints_heads_beside_their_null(run: Run, model: Path, tmp_path: Path) -> None:
    changed = planted(model, tmp_path / "planted")
    file = tmp_path / "pairs.txt"
    file.write_text("# Partners\n" + "".join(f"{left}\t{right}\n" for left, right in PAIRS[:6]))
    code, out, err = run("relation", changed, file, "--set", "copying", *COMMAND)
    assert (code, err) == (0, "")
    assert "Partners" in out and "L1.attn.1" in out and "shuffled" in out
    value = run.json("relation", changed, file, *COMMAND)
    assert value["named"] == {"pairs": [{"address": "L1.attn.1", "pole": "+"}]}
    code, out, _ = run("relation", "--sets")
    assert code == 0 and all(name in out for name in set_names())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no pairs"),
        (b"# only a comment\n\n", "has no pairs"),
        (b"one two\nthree\n", "line 2"),
        (b"one two three\n", "line 1"),
        (b"one\t\n", "line 1"),
        (b"\x00\x01 \x02\n", "not text"),
        (b"\xff\xfe\x00a", "not UTF-8"),
        (b"a b\n" * 2001, "zz"),
        (b"a" * (1 << 20) + b" b", "larger than 1 MB"),
    ],
)
def test_a_file_that_holds_no_pairs_is_refused(
    run: Run, model: Path, tmp_path: Path, content: bytes, message: str
) -> None:
    file = tmp_path / "pairs.txt"
    file.write_bytes(content if message != "zz" else b"".join(b"a%d b\n" % n for n in range(2001)))
    code, out, err = run("relation", model, file)
    assert (code, out) == (2, "")
    assert ("2,001 pairs" if message == "zz" else message) in err and "pairs.txt" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--set", "capitols"), "There is no set capitols; sets are abbreviation"),
        (("--set", "capitalised"), "can use 0 pairs"),
        (("nowhere.txt",), "cannot be read"),
        (("/dev/zero",), "cannot be read"),
        (("--set", "copying", "-k", 100_000), "shows"),
        (("--set", "copying", "--layers", "2:9"), "no layers 2:9"),
        (("--set", "copying", "--frame", "seen"), "needs a lens"),
    ],
)
def test_what_cannot_be_measured_is_refused(run: Run, model: Path, arguments: tuple[object, ...], message: str) -> None:
    code, out, err = run("relation", model, *arguments)
    assert (code, out) == (2, "")
    assert message in err


def test_an_atlas_refuses_what_needs_its_weights(run: Run, built: small.Built) -> None:
    code, _, err = run("relation", built.atlas.path, "--set", "copying", "--adapter", "x")
    assert code == 2 and "needs the weights" in err


def test_too_many_pairs_in_memory_are_refused(lens: zp.Lens) -> None:
    with pytest.raises(BadOption, match="2,001 pairs"):
        zp.relation(lens, [(f"a{n}", "b") for n in range(2001)])


def test_a_line_may_have_words_with_spaces(tmp_path: Path) -> None:
    file = tmp_path / "pairs.txt"
    file.write_text("United States\tWashington\n a\tb\none two\none two\n")
    assert read_pairs(file).pairs == (("United States", "Washington"), (" a", "b"), ("one", "two"))
