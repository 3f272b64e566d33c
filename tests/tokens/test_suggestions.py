"""Words that are no tokens: refused by the same rule everywhere, with suggestions."""

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
    ("text", "suggestions"),
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
def test_other_cases_spaces_and_numbers_are_suggested_and_nothing_else(text: str, suggestions: list[str]) -> None:
    assert VOCAB.suggestions(text) == suggestions


@given(st.text("abcdefgABCs ", max_size=5), st.lists(st.text("abcdefgABCs", min_size=1, max_size=4), max_size=20))
@settings(max_examples=200)
def test_a_suggestion_is_a_token_that_resembles_the_text(text: str, words: list[str]) -> None:
    vocab = vocabulary(list(dict.fromkeys(f" {word}" for word in words)))
    suggestions = vocab.suggestions(text)
    assert len(suggestions) == len(set(suggestions)) <= 3
    for suggestion in suggestions:
        assert suggestion != text
        assert vocab.find(suggestion)
        stem, other = suggestion.lower(), text.strip().lower()
        assert stem == other or {stem, other} in [{w, w + end} for w in (stem, other) for end in ("s", "es")]
    for word in words:
        if word.lower() == text.strip().lower() and word in (word.capitalize(), word.lower(), word.upper()) and text:
            assert word in (*suggestions, text, text.strip())


def test_the_error_says_and_holds_the_suggestions() -> None:
    with pytest.raises(UnknownWord) as error:
        VOCAB.find("paris")
    message = (
        r"'paris' is not one token; it is split as Ġ + p + a + r + i + s. Did you mean Paris? If not, ask for one or"
    )
    assert str(error.value).replace("␣", "Ġ").startswith(message)
    assert (error.value.text, error.value.suggestions) == ("paris", ("Paris",))
    assert [VOCAB.text(i) for i in error.value.pieces] == [" ", "p", "a", "r", "i", "s"]
    copy = pickle.loads(pickle.dumps(error.value))
    assert (str(copy), vars(copy)) == (str(error.value), vars(error.value))
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
    query_text = f'"{word}"' if " " in word else word
    for path, query in (("/find", {"q": query_text}), ("/map/L1.attn.2.vo", {"left": word})):
        page = web.get(path, params=query)
        assert page.status_code == 404
        seen = Seen(page.text)
        assert str(error.value) in seen.text
        assert "A concept" not in seen.text
        assert seen.chips == [llama.atlas.vocab.shown(i) for i in error.value.pieces]
        (link,) = [href for href in seen.links if "babade" in href]
        target = web.get(link, follow_redirects=True)
        assert target.status_code == 200
        assert str(target.url.path) in ("/token/257", "/token/256", "/map/L1.attn.2.vo")
        response = web.get(f"{path}.json", params=query).json()
        assert (response["error"], response["meant"]) == (str(error.value), ["babade"])
        assert [piece["id"] for piece in response["pieces"]] == list(error.value.pieces)
    (pieces,) = [href for href in seen.links if "q=%23" in href]
    concept = web.get(pieces)
    assert "A concept" in concept.text


def test_the_suggestion_keeps_the_rest_of_the_search(web: httpx.Client) -> None:
    response = web.get("/find.json", params={"q": '#300 Babade " babafi"'})
    assert response.status_code == 404
    assert response.json()["meant"] == ['#300 babade " babafi"']
    seen = Seen(web.get("/find", params={"q": '#300 Babade " babafi"'}).text)
    (link,) = [href for href in seen.links if "babade" in href]
    assert "A concept" in web.get(link).text
    assert ("input", "value", '#300 Babade " babafi"') in seen.attributes


def test_hostile_words_are_escaped(web: httpx.Client, llama: small.Built) -> None:
    for word in ("<script>alert(1)</script>", "\x1b[31m", '"><b>', "{{7*7}}"):
        page = web.get("/find", params={"q": f'"{word}"' if '"' not in word else word})
        assert page.status_code in (200, 404)
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
    message = "'Babade' is not one token of this vocabulary, and its tokenizer cannot split it. Did you mean babade?"
    assert run("find", folder, "Babade") == (2, "", f"error: {message}\n")
    with serving(contexts_of(folder)) as address:
        response = httpx.get(f"{address}/find.json?q=Babade")
    assert (response.status_code, response.json()) == (
        404,
        {"status": 404, "error": message, "meant": ["babade"], "pieces": []},
    )
