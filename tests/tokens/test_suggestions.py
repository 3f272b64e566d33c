"""A word that is no token: refused by the same rule everywhere, with what may have been meant."""

import pickle
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import small
import zeropass as zp
from commands import Run
from serving import Seen, contexts_of, serving
from zeropass.errors import UnknownWord
from zeropass.tokens.vocabulary import Vocabulary

TEXTS = (" Paris", " cat", "cat", " Cat", " berry", " box", "NASA", " the", " Berlin", " kilometre", " Mondays")


def vocabulary(texts: Sequence[str]) -> Vocabulary:
    return Vocabulary.from_tokenizer_json(small.tokenizer_json(texts))


VOCAB = vocabulary(TEXTS)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> small.Built:
    return small.built("llama", tmp_path_factory)


@pytest.fixture(scope="module")
def web(llama: small.Built) -> Iterator[httpx.Client]:
    with serving(contexts_of(llama.atlas.path, llama.folder)) as address, httpx.Client(base_url=address) as client:
        yield client


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("paris", ["Paris"]),
        ("PARIS", ["Paris"]),
        ("  Paris ", ["Paris"]),
        ("Paris ", ["Paris"]),
        (" NASA", ["NASA"]),
        ("nasa", ["NASA"]),
        ("CAT", ["Cat", "cat"]),
        ("cats", ["cat", "Cat"]),
        ("Cats", ["Cat", "cat"]),
        ("berries", ["berry"]),
        ("boxes", ["box"]),
        ("Kilometres", ["kilometre"]),
        ("monday", ["Mondays"]),
        ("Pariss", ["Paris"]),
        ("Parix", []),
        ("arsi", []),
        ("s", ["S"]),
        ("", []),
        (" ", []),
    ],
)
def test_case_spaces_and_number_are_suggested_and_nothing_else(text: str, meant: list[str]) -> None:
    assert VOCAB.suggestions(text) == meant


@given(st.text("abcdefgABCs ", max_size=5), st.lists(st.text("abcdefgABCs", min_size=1, max_size=4), max_size=20))
@settings(max_examples=200)
def test_a_suggestion_is_a_token_like_the_text_and_not_the_text(text: str, words: list[str]) -> None:
    vocab = vocabulary(list(dict.fromkeys(f" {word}" for word in words)))
    found = vocab.suggestions(text)
    assert len(found) == len(set(found)) <= 3
    for one in found:
        assert one != text
        assert vocab.find(one)
        stem, other = one.lower(), text.strip().lower()
        assert stem == other or {stem, other} in [{w, w + end} for w in (stem, other) for end in ("s", "es")]
    for word in words:
        if word.lower() == text.strip().lower() and word in (word.capitalize(), word.lower(), word.upper()) and text:
            assert word in (*found, text, text.strip())


def test_the_error_says_it_and_holds_it() -> None:
    with pytest.raises(UnknownWord) as error:
        VOCAB.find("paris")
    said = r"'paris' is not one token; it is split as Ġ + p + a + r + i + s. Did you mean Paris? If not, ask for one or"
    assert str(error.value).replace("␣", "Ġ").startswith(said)
    assert (error.value.text, error.value.suggestions) == ("paris", ("Paris",))
    assert [VOCAB.text(i) for i in error.value.pieces] == [" ", "p", "a", "r", "i", "s"]
    sent = pickle.loads(pickle.dumps(error.value))
    assert (str(sent), vars(sent)) == (str(error.value), vars(error.value))
    with pytest.raises(UnknownWord, match=r"split as .*\. Ask for one or more of these pieces\.$"):
        VOCAB.find("Parix")


@pytest.mark.parametrize("word", ["Babade", "BABADE", "babades", "babade "])
def test_command_line_python_and_explorer_refuse_alike(
    llama: small.Built,
    web: httpx.Client,
    run: Run,
    word: str,
) -> None:
    with pytest.raises(UnknownWord, match="Did you mean babade") as error:
        llama.atlas.find(word)
    assert run("find", llama.atlas.path, word) == (2, "", f"error: {error.value}\n")
    asked = f'"{word}"' if " " in word else word
    for path, query in (("/find", {"q": asked}), ("/map/L1.attn.2.vo", {"left": word})):
        page = web.get(path, params=query)
        assert page.status_code == 404
        seen = Seen(page.text)
        assert str(error.value) in seen.text
        assert "A concept" not in seen.text
        assert seen.chips == [llama.atlas.vocab.shown(i) for i in error.value.pieces]
        (link,) = [one for one in seen.links if "babade" in one]
        meant = web.get(link, follow_redirects=True)
        assert meant.status_code == 200
        assert str(meant.url.path) in ("/token/257", "/token/256", "/map/L1.attn.2.vo")
        told = web.get(f"{path}.json", params=query).json()
        assert (told["error"], told["meant"]) == (str(error.value), ["babade"])
        assert [one["id"] for one in told["pieces"]] == list(error.value.pieces)
    (pieces,) = [one for one in seen.links if "q=%23" in one]
    concept = web.get(pieces)
    assert "A concept" in concept.text


def test_the_suggestion_stands_in_the_whole_search(web: httpx.Client) -> None:
    told = web.get("/find.json", params={"q": '#300 Babade " babafi"'})
    assert told.status_code == 404
    assert told.json()["meant"] == ['#300 babade " babafi"']
    seen = Seen(web.get("/find", params={"q": '#300 Babade " babafi"'}).text)
    (link,) = [one for one in seen.links if "babade" in one]
    assert "A concept" in web.get(link).text
    assert ("input", "value", '#300 Babade " babafi"') in seen.attributes


def test_hostile_words_stay_words(web: httpx.Client, llama: small.Built) -> None:
    for word in ("<script>alert(1)</script>", "\x1b[31m", '"><b>', "{{7*7}}"):
        page = web.get("/find", params={"q": f'"{word}"' if '"' not in word else word})
        assert page.status_code == 404
        assert Seen(page.text).tags.count("script") == 1
        assert "\x1b" not in page.text
    assert zp.open_atlas(llama.atlas.path).find("babade").hits


def test_a_tokenizer_that_cannot_split_still_refuses(
    llama: small.Built,
    tmp_path: Path,
    run: Run,
) -> None:
    folder = shutil.copytree(llama.atlas.path, tmp_path / "atlas")
    (folder / "tokenizer.json").write_text("{")
    said = "'Babade' is not one token of this vocabulary, and its tokenizer cannot split it. Did you mean babade?"
    assert run("find", folder, "Babade") == (2, "", f"error: {said}\n")
    with serving(contexts_of(folder)) as address:
        told = httpx.get(f"{address}/find.json?q=Babade")
    assert (told.status_code, told.json()) == (
        404,
        {"status": 404, "error": said, "meant": ["babade"], "pieces": []},
    )
