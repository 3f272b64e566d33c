"""From words to parameters: pieces, patterns, contrasts and the words beside each parameter, against every list."""

import fnmatch
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import small
import zeropass as zp
from commands import Run
from zeropass.atlas.parquet_rows import rows_of
from zeropass.atlas.query import MOST_MATCHES, pattern_of, weights_of, with_similar, word_of
from zeropass.errors import BadOption, UnknownWord
from zeropass.records.numbers import plain
from zeropass.records.parameters import VectorRecord
from zeropass.records.search import MOST_WORDS, FindRecord, Hit, QueryWord
from zeropass.tokens.shown import shown_text
from zeropass.tokens.vocabulary import Vocabulary

KINDS = ["llama", "bert", "llama+lens"]


@pytest.fixture(params=KINDS, scope="module")
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> small.Built:
    return small.built(request.param, tmp_path_factory)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> small.Built:
    return small.built("llama", tmp_path_factory)


def every_z(atlas: zp.Atlas) -> np.ndarray:
    """Return z of every list and token, one list after the other, in float64."""
    lists = []
    for run in atlas.runs:
        for row in range(run.count):
            i = run.first + row
            scores = atlas.scores(run, row).astype(np.float64)
            lists.append((scores - atlas.means[i]) / atlas.stds[i] if atlas.stds[i] > 0 else np.zeros_like(scores))
    return np.array(lists)


_Z: dict[Path, np.ndarray] = {}


def z_of(atlas: zp.Atlas) -> np.ndarray:
    if atlas.path not in _Z:
        _Z[atlas.path] = every_z(atlas)
    return _Z[atlas.path]


def ids_of(atlas: zp.Atlas) -> dict[tuple[str, str, str], int]:
    rows = atlas.sql("SELECT address, role, frame, id FROM parameters").fetchall()
    return {(address, role, frame): i for address, role, frame, i in rows}


def list_record(atlas: zp.Atlas, match: Hit) -> VectorRecord:
    """Return the stored list that a hit is about."""
    records = atlas.explain(match.address, k=small.OPTIONS.k)
    (record,) = [each for each in records if (each.role, each.frame) == (match.role, match.frame)]
    assert isinstance(record, VectorRecord)
    return record


# --- z of several words ----------------------------------------------------------------------------------------------


@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_z_is_the_mean_of_the_words_less_that_of_those_against(built: small.Built, data: st.DataObject) -> None:
    """Every word counts the same, whatever the number of its tokens; its own z stands beside each parameter."""
    atlas, z = built.atlas, z_of(built.atlas)
    token = st.integers(0, small.V - 9)
    groups = st.lists(st.lists(token, min_size=1, max_size=4), min_size=1, max_size=3)
    positive, negative = data.draw(groups), data.draw(st.lists(st.lists(token, min_size=1, max_size=3), max_size=2))
    words = [
        QueryWord(str(place), tuple(ids), against=place >= len(positive))
        for place, ids in enumerate([*positive, *negative])
    ]
    word_scores = np.array([z[:, ids].mean(1) for ids in (*positive, *negative)])
    count = len(positive)
    expected = word_scores[:count].mean(0) - (word_scores[count:].mean(0) if negative else 0)
    weights = plain_weights(words)
    if max(map(abs, weights.values())) < 1e-9:
        return
    assert weights_of(words) == pytest.approx(weights)
    record = atlas.search(words, k=4)
    ids, total = ids_of(atlas), 0 if negative else 1
    for match in record.hits:
        i = ids[match.address, match.role, match.frame]
        assert match.z == pytest.approx(expected[i], abs=2e-4)
        assert match.score == pytest.approx(match.z * atlas.stds[i] + total * atlas.means[i], abs=1e-3)
        assert match.zs == (pytest.approx(word_scores[:, i], abs=2e-4) if len(words) > 1 else ())
    for side, frame in {(run.side, run.frame) for run in atlas.runs}:
        members = [
            i
            for run in atlas.runs
            if (run.side, run.frame) == (side, frame)
            for i in range(run.first, run.first + run.count)
        ]
        best = np.sort(np.abs(expected[members]))[::-1][:4]
        sizes = [abs(match.z) for match in record.hits if (match.side, match.frame) == (side, frame)]
        np.testing.assert_allclose(sizes, best, atol=2e-4)


def plain_weights(words: Sequence[QueryWord]) -> dict[int, float]:
    """Return what `weights_of` does, one token at a time."""
    weights: dict[int, float] = {}
    for against in (False, True):
        group = [word for word in words if word.against is against]
        for word in group:
            for i in word.ids:
                sign = -1.0 if against else 1.0
                weights[i] = weights.get(i, 0.0) + sign / len(group) / len(word.ids)
    return weights


def test_what_cancels_out_is_refused(llama: small.Built) -> None:
    with pytest.raises(BadOption, match="babade is looked for and counts against"):
        llama.atlas.find("babade", without="babade")
    three = ["babade", "babafi", "babago"]
    with pytest.raises(BadOption, match="leaves nothing"):
        llama.atlas.find(three, without=[*three[1:], three[0]])
    for options in ({}, {"without": "babade"}):
        with pytest.raises(BadOption, match="at least one word, or a pattern"):
            llama.atlas.find(**options)
    assert weights_of([QueryWord("a", (1, 1, 2)), QueryWord("b", (2,), against=True)]) == pytest.approx(
        {1: 2 / 3, 2: -2 / 3}
    )


def test_a_word_given_twice_counts_once(llama: small.Built) -> None:
    once = llama.atlas.find(["babade", "babafi"], without="babago", k=3)
    assert llama.atlas.find(["babade", "babafi", "babade"], without=["babago", "babago"], k=3) == once
    assert [(word.text, word.against) for word in once.words] == [
        ("babade", False),
        ("babafi", False),
        ("babago", True),
    ]


# --- The words beside a parameter -------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_memory", [False, True])
def test_the_words_are_the_first_of_the_pole_and_faint_is_that_of_the_list(built: small.Built, in_memory: bool) -> None:
    atlas = zp.open_atlas(built.atlas.path)
    if in_memory:
        atlas.keep_index(rows_of)
    poles, faint = set(), set()
    contrast = [QueryWord("a", (300,)), QueryWord("b", (301, 302), against=True)]
    for words in ([QueryWord("a", (300,))], [QueryWord("a", (301,)), QueryWord("b", (302,))], contrast):
        for match in atlas.search(words, k=12).hits:
            record = list_record(atlas, match)
            z = max(match.zs, key=abs) if match.zs else match.z
            pole = record.top if z > 0 else record.bottom
            assert [word.id for word in match.words] == [token.id for token in pole if atlas.is_word(token.id)][:3]
            assert all(word.token == atlas.vocab.label(word.id) for word in match.words)
            assert match.says_little is record.says_little
            poles.add(match.pole_words.partition(",")[0])
            faint.add(match.says_little)
    assert poles == {"top", "bottom"}
    assert True in faint


# --- Words in pieces, and what may have been meant --------------------------------------------------------------------


def test_a_word_of_several_tokens_is_found_with_its_pieces(llama: small.Built) -> None:
    atlas = llama.atlas
    record = atlas.find("babadebabafi", k=5)
    (word,) = record.words
    assert word.source == "pieces"
    assert list(word.ids) == atlas.vocab.encode(" babadebabafi")
    z = z_of(atlas)[:, list(word.ids)].mean(1)
    ids = ids_of(atlas)
    for match in record.hits:
        assert match.z == pytest.approx(z[ids[match.address, match.role, match.frame]], abs=2e-4)
        assert match.zs == ()
    pieces = " + ".join(map(atlas.vocab.shown, word.ids))
    assert record.explanations[0] == f"babadebabafi is not one token: its pieces {pieces} count together."


def test_another_case_is_asked_for_and_never_taken(llama: small.Built) -> None:
    for options in ({"words": "Babade"}, {"words": "babafi", "without": "Babade"}):
        with pytest.raises(UnknownWord, match="Did you mean babade"):
            llama.atlas.find(**options)


def test_words_without_pieces_are_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    atlas = small.built("bert", tmp_path_factory).atlas
    with pytest.raises(UnknownWord, match="split as"):
        atlas.find("zzqq")  # a WordPiece tokenizer makes it [UNK]


def vocabulary(texts: Sequence[str]) -> Vocabulary:
    return Vocabulary.from_tokenizer_json(small.tokenizer_json(list(dict.fromkeys(texts))))


@pytest.mark.parametrize(
    ("text", "similar"),
    [
        ("Parix", ("Paris",)),
        ("parsi", ("Paris",)),
        ("Prais", ("Paris",)),
        ("Pars", ("Paris",)),
        ("Parriss", ()),
        ("Lodnon", ("London",)),
        ("abc", ()),
    ],
)
def test_tokens_one_letter_off_are_similar(text: str, similar: tuple[str, ...]) -> None:
    vocab = vocabulary([" Paris", " London", " abx"])
    (word,) = with_similar(vocab, [word_of(vocab, text, ~vocab.special)], vocab.words)
    assert (word.source, word.similar) == ("pieces", similar)


@given(st.text("abcA", min_size=4, max_size=6), st.lists(st.text("abc", min_size=3, max_size=6), max_size=12))
@settings(max_examples=150, deadline=None)
def test_similar_words_share_all_letters_but_one(text: str, texts: list[str]) -> None:
    vocab = vocabulary([f" {each}" for each in texts])
    word = QueryWord(text, (0, 1), "pieces")
    (looked_up,) = with_similar(vocab, [word], np.ones(len(vocab), bool))

    def without_one(each: str) -> set[str]:
        return {each} | {each[:place] + each[place + 1 :] for place in range(len(each))}

    near = [
        vocab.text(i).strip()
        for i in range(len(vocab))
        if without_one(vocab.text(i).strip().lower()) & without_one(text.lower())
    ]
    assert looked_up == replace(word, similar=tuple(dict.fromkeys(near))[:3])


# --- Patterns ---------------------------------------------------------------------------------------------------------


@given(st.text("ba*?[]!de ␣", min_size=1, max_size=6))
@settings(max_examples=100, deadline=None)
def test_a_pattern_matches_tokens_as_they_are_shown(llama: small.Built, pattern: str) -> None:
    vocab, shown = llama.atlas.vocab, llama.atlas.mask("default")
    text = "␣" + pattern[1:] if pattern[0] == " " else pattern
    text = text[:-1] + "␣" if text[-1] == " " else text
    expected = []
    for i in range(len(vocab)):
        label = shown_text(vocab.label(i), 500)
        forms = {label} if text[0] == "␣" or label[:1] != "␣" else {label, label[1:]}
        if shown[i] and any(fnmatch.fnmatchcase(form, text) for form in forms):
            expected.append(i)
    if not expected:
        with pytest.raises(BadOption, match="matches no token"):
            pattern_of(vocab, pattern, shown)
    else:
        assert pattern_of(vocab, pattern, shown) == QueryWord(pattern, tuple(expected), "pattern")


def test_a_pattern_is_one_word_of_all_its_tokens(llama: small.Built) -> None:
    atlas = llama.atlas
    record = atlas.find(like="ba?ad*", without="babafi", k=3)
    ids = list(record.words[0].ids)
    texts = {atlas.vocab.text(i) for i in ids}
    assert {" babade", "babade"} <= texts
    assert all(text.strip().startswith("ba") and text.strip()[3:5] == "ad" for text in texts)
    z, places = z_of(atlas), ids_of(atlas)
    for match in record.hits:
        i = places[match.address, match.role, match.frame]
        assert match.zs[0] == pytest.approx(z[i, ids].mean(), abs=2e-4)
    assert record.explanations[0] == f"ba?ad* matches {len(ids)} tokens."
    assert record.explanations[1] == "z is that of ba?ad*, less that of babafi."


def test_a_pattern_that_matches_too_much_is_refused() -> None:
    vocab = vocabulary([f" w{i}" for i in range(MOST_MATCHES)])
    with pytest.raises(BadOption, match=rf"'␣\*' matches {MOST_MATCHES + 1} tokens, more than {MOST_MATCHES}"):
        pattern_of(vocab, " *", np.ones(len(vocab), bool))


# --- What is shown ----------------------------------------------------------------------------------------------------


def test_many_words_are_shown_in_short(llama: small.Built) -> None:
    texts = [word.strip() for word in small.words(12)]
    record = llama.atlas.find(texts, k=2)
    for match in record.hits:
        scores = record.word_scores(match)
        assert len(scores) == MOST_WORDS < len(match.zs) == 12
        chosen = dict(scores)
        assert [text for text in texts if text in chosen] == list(chosen)
        assert min(map(abs, chosen.values())) >= max(
            abs(z) for text, z in zip(texts, match.zs, strict=True) if text not in chosen
        )
    pieces = llama.atlas.find([f"zz{word}" for word in texts], k=1)
    assert pieces.explanations[MOST_WORDS] == "6 more of the words are patterns or in pieces."
    assert pieces.explanations[MOST_WORDS + 1].startswith("z is the mean of zz")


def test_a_table_has_the_words_and_a_column_for_each_word_asked(llama: small.Built) -> None:
    record = llama.atlas.find("babade", without="babafi", k=2)
    table = record.to_pandas()
    assert {"words", "says_little", "z of babade", "z of babafi"} < set(table.columns)
    assert table["z of babafi"].tolist() == [match.zs[1] for match in record.hits]
    assert table["words"][0] == " ".join(shown_text(word.token) for word in record.hits[0].words)
    assert "z of babade" not in llama.atlas.find("babade", k=2).to_pandas().columns


def test_a_notebook_shows_the_words(llama: small.Built) -> None:
    record = llama.atlas.find(["babade", "babadebabafi"], k=2)
    page = record._repr_html_()
    for match in record.hits:
        assert all(f"<code>{shown_text(word.token)}</code>" in page for word in match.words)
        assert match.pole_words in page
    assert all(f"<small>{sentence}</small>" in page for sentence in record.explanations)
    assert f"babade {plain(record.hits[0].zs[0], '+')}" in page


# --- The command line -------------------------------------------------------------------------------------------------


def test_the_command_line_takes_what_python_takes(run: Run, llama: small.Built, tmp_path: Path) -> None:
    atlas, file = llama.atlas, tmp_path / "words.txt"
    file.write_text("babafi\n\n  babago \n", encoding="utf-8")
    printed = run.json("find", atlas.path, "babade", "--words", file, "--like", "babal*", "--not", "bababa", "-k", 2)
    record = atlas.find(["babade", "babafi", "babago"], like="babal*", without=["bababa"], k=2)
    assert printed == json.loads(json.dumps(record.to_json()))
    assert [word["source"] for word in printed["words"]] == ["token"] * 3 + ["pattern", "token"]
    assert [word["against"] for word in printed["words"]] == [False] * 4 + [True]
    assert run.json("find", atlas.path, "--words", file) == json.loads(
        json.dumps(atlas.find(["babafi", "babago"], k=10).to_json())
    )


def test_the_terminal_shows_the_words_and_each_z(run: Run, llama: small.Built) -> None:
    code, text, _ = run("find", llama.atlas.path, "babade", "--not", "babafi", "-k", 1)
    record = llama.atlas.find("babade", without="babafi", k=1)
    assert code == 0
    assert "z is that of babade, less that of babafi.\n" in text
    for match in [each for each in record.hits if each.frame != "paper"]:
        words, scores = " ".join(shown_text(word.token) for word in match.words), record.word_scores(match)
        listed = ", ".join(f"{word} {plain(z, '+')}" for word, z in scores)
        pole = f"{match.pole_words}; {listed}"
        assert any(
            line.split() == [*f"{plain(match.z, '+')} {match.address} {match.role} {words} {pole}".split()]
            for line in text.splitlines()
        )
    assert ("\nFaint: " in text) is any(match.says_little for match in record.hits)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "find needs at least one word, or a pattern"),
        (("--not", "babade"), "find needs at least one word, or a pattern"),
        (("--like", "qqq*"), r"The pattern 'qqq\*' matches no token that lists show; .* stands for any letters"),
        (("--words", "empty.txt"), "--words empty.txt holds no words; there should be one a line"),
        (("--words", "no.txt"), "--words no.txt cannot be read"),
        (("--words", "damaged.txt"), "--words damaged.txt cannot be read .*UTF-8 file with a word a line"),
        (("--words", "."), r"--words \. cannot be read"),
        (("babade", "--not", "Babafi"), "'Babafi' is not one token.*Did you mean babafi"),
    ],
)
def test_the_command_line_refuses(
    run: Run,
    llama: small.Built,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").write_text("\n \n")
    Path("damaged.txt").write_bytes(b"Paris\n\xff\xfe\n")
    code, text, error = run("find", llama.atlas.path, *arguments)
    assert (code, text) == (2, "")
    assert re.search(message, error)


def test_a_record_of_old_has_no_words() -> None:
    match = Hit("L1.ff.2", "read", "gate", "token", 1.0, 2.0)
    record = FindRecord((), (match,))
    assert record.explanations == ()
    assert record.word_scores(match) == []
    assert "top" in record._repr_html_()
