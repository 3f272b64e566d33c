"""Watched words: looked up before any work, judged against tokens of like frequency, and right as often as stated."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

import small
import tiny
import zeropass as zp
from commands import Run
from zeropass.diff.results import LEVEL
from zeropass.diff.watch_list import looked_up
from zeropass.diff.watched_words import PEERS, Watching, effects
from zeropass.errors import UnknownWord
from zeropass.tokens.vocabulary import Vocabulary

ROOT = Path(__file__).parents[2]
COACH = ROOT / "models" / "tunes" / "coach"


@pytest.fixture(scope="module")
def vocab() -> Vocabulary:
    return Vocabulary.from_tokenizer_json((ROOT / "models" / "tokenizer.json").read_bytes())


def test_a_word_is_its_tokens_or_its_pieces(vocab: Vocabulary) -> None:
    man, rare = looked_up(vocab, ["man", "pterodactyl"])
    assert vocab.text(*man.readings[0]) == " man"
    assert all(len(reading) == 1 for reading in man.readings)
    (pieces,) = rare.readings
    assert len(pieces) > 1
    assert "".join(vocab.text(i) for i in pieces) == " pterodactyl"
    assert looked_up(vocab, ["man", "man"]) == (man,)


def test_a_word_that_cannot_be_written_is_refused_before_any_work(run: Run, tmp_path: Path) -> None:
    for name in ("base", "tuned"):
        tiny.save(tiny.make("bert", seed=int(name == "tuned")), tmp_path / name)
    words = tmp_path / "words.txt"
    words.write_text("word3\n漢字\n", encoding="utf-8")
    run.capsys.readouterr()
    out = tmp_path / "out"
    code, _, err = run("diff", tmp_path / "base", tmp_path / "tuned", "--watch", words, "--build", "--out", out)
    assert (code, "'漢字' cannot be written" in err, out.exists()) == (2, True, False)
    vocab = zp.open_model(str(tmp_path / "base")).vocab
    with pytest.raises(UnknownWord, match="'漢字' cannot be written"):
        looked_up(vocab, ["漢字"])


def watching(vocab: Vocabulary, texts: list[str]) -> Watching:
    words = looked_up(vocab, texts) if texts else ()
    return Watching(words, vocab, torch.from_numpy(vocab.mask().nonzero()[0]))


def test_the_chance_of_a_word_is_its_rank_among_its_peers(vocab: Vocabulary) -> None:
    """Count by hand: of the words nearest in rank, the share that the change concerns at least as much."""
    draw = torch.Generator().manual_seed(0)
    scores = torch.randn(vocab.size, generator=draw).exp()
    work = watching(vocab, [" man"])
    ((token,),) = looked_up(vocab, [" man"])[0].readings
    scores[token] = float(scores.quantile(0.99))
    ((verdict,), _) = work.finish({"sees": scores})
    shown = [i for i in vocab.mask().nonzero()[0].tolist() if vocab.words[i] and i != token]
    nearest = sorted(shown, key=lambda i: abs(shown.index(i) + 0.5 - sum(j < token for j in shown)))[:PEERS]
    higher = sum(float(scores[i]) >= float(scores[token]) for i in nearest)
    assert verdict.peers == len(nearest)
    assert verdict.chance == pytest.approx((1 + higher) / (1 + len(nearest)))
    lower = [float(scores[i]) < float(scores[token]) for i in vocab.mask().nonzero()[0]]
    assert verdict.sees == pytest.approx(sum(lower) / len(lower))
    assert verdict.writes is None


def test_words_are_called_concerned_as_often_as_stated(vocab: Vocabulary) -> None:
    """Draw random changes, larger for frequent tokens: about LEVEL of all words come out as concerned."""
    draw = torch.Generator().manual_seed(1)
    rank = torch.arange(vocab.size, dtype=torch.float32)
    texts = [vocab.text(int(i)) for i in vocab.words.nonzero()[0]]
    work = watching(vocab, [text for text in random.Random(0).sample(texts, 400) if text.startswith(" ")])
    concerned = []
    for _ in range(8):
        sides = {side: (torch.randn(vocab.size, generator=draw) - rank / 5000).exp() for side in ("sees", "writes")}
        concerned += [word.concerned for word in work.finish(sides)[0]]
    assert None not in concerned
    share = sum(map(bool, concerned)) / len(concerned)
    assert 0.5 * LEVEL < share < 1.5 * LEVEL


def test_the_pieces_of_a_word_stand_out_together_or_not_at_all(vocab: Vocabulary) -> None:
    (word,) = looked_up(vocab, ["pterodactyl"])
    pieces = word.ids
    draw = torch.Generator().manual_seed(2)
    noise = torch.randn(vocab.size, generator=draw).exp()
    work = watching(vocab, ["pterodactyl"])
    ((before,), _) = work.finish({"sees": noise})
    together = noise.clone()
    together[list(pieces)] = 50.0
    ((after,), _) = work.finish({"sees": together})
    assert (before.concerned, after.concerned, after.split) == (False, True, True)
    assert len(after.pieces) == len(pieces)
    assert after.sees == pytest.approx(1.0, abs=0.01)


def test_one_matrix_among_many_betrays_a_word(vocab: Vocabulary) -> None:
    """Let one of forty matrices concern one token: the sum hides it, the matrix shows it, and other words are clear."""
    draw = torch.Generator().manual_seed(3)
    rows = torch.randn(vocab.size, 64, generator=draw)
    (token,) = looked_up(vocab, [" man"])[0].readings[0]
    work = watching(vocab, [" man", " day"])
    for layer in range(40):
        root = rows[token][None] if layer == 17 else torch.randn(8, 64, generator=draw)
        work.take(layer, "up", rows, root, float(effects(rows, root).mean()))
    noise = torch.randn(vocab.size, generator=draw).exp()
    (man, day), matrices = work.finish({"sees": noise})
    assert (man.concerned, day.concerned) == (True, False)
    best = next(match for match in matrices if match.word == " man")
    assert (best.layer, best.role, best.above) == (17, "up", 1.0)


def test_effects_are_squared_lengths() -> None:
    draw = torch.Generator().manual_seed(4)
    rows = torch.randn(50, 12, generator=draw)
    for count in (3, 30):
        root = torch.randn(count, 12, generator=draw)
        torch.testing.assert_close(effects(rows, root), (rows @ root.T).square().sum(1))


def test_too_few_peers_give_no_verdict(tmp_path: Path) -> None:
    base = zp.open_model(str(tiny.save(tiny.make("llama"), tmp_path / "base")))
    hf = tiny.make("llama")
    with torch.no_grad():
        hf.model.layers[1].mlp.up_proj.weight.add_(0.1)
    tuned = zp.open_model(str(tiny.save(hf, tmp_path / "tuned")))
    difference = zp.compare(base, tuned, watch=[base.vocab.label(5)])
    (word,) = difference.words
    assert (word.concerned, word.peers < 100) == (None, True)
    assert f"cannot be told: {base.vocab.label(5)}" in difference.verdict[-1]


def test_a_model_that_did_not_change_concerns_no_word(tmp_path: Path) -> None:
    model = zp.open_model(str(small.llama(tmp_path / "base")))
    difference = zp.compare(model, model, watch=["bababa"])
    assert [(word.concerned, word.sees) for word in difference.words] == [(False, None)]
    assert difference.relation == "equal"


@pytest.mark.usefixtures("kept_real_rows")
def test_planted_words_are_found_and_others_are_not(smollm2_path: Path, run: Run, tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("coach\nacross\ntable\npaper\nriver\npurple\nstegosaurus\n")
    difference: dict[str, Any] = run.json(
        "diff", smollm2_path, "--adapter", COACH, "--watch", words, "--out", tmp_path / "out"
    )
    verdicts = {word["word"]: word for word in difference["words"]}
    assert [word for word, row in verdicts.items() if row["concerned"]] == ["coach", "across"]
    assert verdicts["stegosaurus"]["split"]
    assert "".join(verdicts["stegosaurus"]["pieces"]) == " stegosaurus"
    assert verdicts["coach"]["sees"] > 0.9999
    assert verdicts["across"]["writes"] > 0.9999
    assert {row["word"] for row in difference["watch"]} == set(verdicts)
    assert json.loads((tmp_path / "out" / "diff.json").read_text()) == difference
    assert any(
        line.startswith("Watched words concerned: coach, across; not concerned: table")
        for line in difference["verdict"]
    )


def test_models_trained_apart_have_no_watched_words() -> None:
    models = [zp.open_model(str(ROOT / "models" / name)) for name in ("first", "second")]
    difference = zp.compare(*models, watch=["man"])
    assert (difference.relation, difference.words, difference.watch) == ("unrelated", (), ())
