"""Vocabularies: the text of tokens, look-up, masks, GGUF; and under-trained tokens."""

import json
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from zeropass.checkpoints.gguf import GgufSource
from zeropass.errors import BadModel, BadOption, UnknownWord
from zeropass.tokens.shown import escape
from zeropass.tokens.spelling import SPELLINGS, Kind
from zeropass.tokens.undertrained import discoveries, judge, undertrained
from zeropass.tokens.vocabulary import Vocabulary

COMMON_WORDS = """
the of and to in is it you that he was for on are with as his they be at one have this from or had by hot but
some what there we can out other were all your when up use word how said an each she which do their time if will
way about many then them would write like so these her long make thing see him two has look more day could go
come did my sound no most number who over know water than call first people may down side been now find any new
work part take get place made live where after back little only round man year came show every good me give our
under name very through just form much great think say help low line before turn cause same mean differ move
right boy old too does tell sentence set three want air well also play small end put home read hand port large
spell add even land here must big high such follow act why ask men change went light kind off need house picture
try us again animal point mother world near build self earth father head stand own page should country found
answer school grow study still learn plant cover food sun four thought let keep eye never last door between city
tree cross hard start happen become nobody Monday Paris London started begun beginning organisation whilst
"""
COMMON = COMMON_WORDS.split()


def byte_level(tokens: list[str], merges: list[str], types: list[int], pre: str = "gpt-2") -> dict[str, Any]:
    names = ("model", "tokens", "token_type", "merges", "pre")
    return {f"tokenizer.ggml.{k}": v for k, v in zip(names, ("gpt2", tokens, types, merges, pre), strict=True)}


@pytest.fixture
def bpe() -> Vocabulary:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = ["Ġ c", "a t", "Ġc at", "c at", "Ġcat s", "e m"]
    tokens = [*letters, *(m.replace(" ", "") for m in merges), "<|end|>", "<|reserved_7|>", "two  words"]
    types = [1] * (len(tokens) - 3) + [3, 3, 4]
    return Vocabulary.from_gguf(byte_level(tokens, merges, types), len(tokens) + 2)


@pytest.fixture
def wordpiece() -> Vocabulary:
    pieces = "[UNK] [CLS] [unused1] cat ##s zebra ##fish , 12 ##x paris"
    vocab = {piece: i for i, piece in enumerate(pieces.split())}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(["[UNK]", "[CLS]"])
    tokenizer.enable_padding(length=64)
    return Vocabulary.from_tokenizer_json(tokenizer.to_str().encode())


def sentencepiece() -> dict[str, Any]:
    tokens = ["<unk>", "<s>", "<0x0A>", "<0xE4>", "▁", "a", "b", "▁a", "ab", "▁ab"]
    types = [2, 3, 6, 6, 1, 1, 1, 1, 1, 1]
    keys = {"model": "llama", "tokens": tokens, "token_type": types, "scores": [-float(i) for i in range(10)]}
    return {f"tokenizer.ggml.{k}": v for k, v in keys.items()}


def single(piece: str, special: bool = False) -> Vocabulary:
    no, yes = np.array([False]), np.array([True])
    return Vocabulary("plain", [piece], yes if special else no, no, yes)


@given(st.text(st.characters()), st.sampled_from(sorted(SPELLINGS)))
def test_shown_is_safe_for_a_terminal(piece: str, kind: Any) -> None:
    no = np.array([False])
    shown = Vocabulary(kind, [piece], no, no, no).shown(0)
    assert shown and len(shown) <= 40
    assert all(unicodedata.category(c)[0] != "C" and unicodedata.category(c) not in ("Zl", "Zp") for c in shown)
    assert shown == shown.strip(" ")


@pytest.mark.parametrize(
    ("piece", "shown"),
    [
        (" the", "␣the"),
        ("    ", "␣␣␣␣"),
        ("\n", r"\n"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("a\u202eb", r"a\u202eb"),
        ("\u200b", r"\u200b"),
        ("\ud800", r"\ud800"),
        ("日本", "日本"),
        ("-" * 90, "-" * 39 + "…"),
        ("", "<no token 0>"),
    ],
)
def test_a_piece_is_shown_readably(piece: str, shown: str) -> None:
    assert single(piece).shown(0) == shown


def test_escape_keeps_plain_text() -> None:
    assert escape("naïve, 日本 🙂") == "naïve, 日本 🙂"


def test_a_byte_level_vocabulary_is_decoded_searched_and_encoded(bpe: Vocabulary) -> None:
    assert [bpe.text(i) for i in bpe.find("cat")] == [" cat", "cat"]
    assert [bpe.shown(i) for i in bpe.find(" cat")] == ["␣cat"]
    assert bpe.find("<|end|>") == [bpe.pieces.index("<|end|>")]
    assert bpe.text(bpe.find("two  words")[0]) == "two  words"
    assert [bpe.text(i) for i in bpe.encode("cat cats")] == ["cat", " cats"]
    assert bpe.text(bpe.pieces.index("Ã")) == r"\xc3"


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
@settings(max_examples=50)
def test_bytes_survive_a_round_trip(text: str) -> None:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = Vocabulary.from_gguf(byte_level(letters, [], [1] * 256))
    pieces = "".join(vocab.pieces[i] for i in vocab.encode(text))
    no = np.array([False])
    assert Vocabulary("bytes", [pieces], no, no, no).text(0) == text


def test_an_unknown_word_says_how_it_is_split(bpe: Vocabulary, wordpiece: Vocabulary) -> None:
    with pytest.raises(UnknownWord, match=r"'catem' is not one token; it is split as ␣cat \+ em\. Ask"):
        bpe.find("catem")
    with pytest.raises(UnknownWord, match=r"'Zebrafish' is not one token; it is split as zebra \+ ##fish"):
        wordpiece.find("Zebrafish")
    with pytest.raises(UnknownWord, match="empty"):
        bpe.find("")
    with pytest.raises(UnknownWord) as caught:
        bpe.find("\x1b[2J")
    assert "\x1b" not in str(caught.value)


def test_without_a_tokenizer_a_known_word_is_still_found() -> None:
    vocab = single("cat")
    assert vocab.find("cat") == [0]
    with pytest.raises(UnknownWord, match="cannot split"):
        vocab.find("dog")


def test_a_wordpiece_vocabulary_is_decoded_searched_and_encoded(wordpiece: Vocabulary) -> None:
    assert wordpiece.uncased and wordpiece.kind == "wordpiece"
    assert [wordpiece.pieces[i] for i in wordpiece.find("Paris")] == ["paris"]
    assert wordpiece.find(" paris") == wordpiece.find("paris")
    i = wordpiece.find("##fish")[0]
    assert (wordpiece.text(i), wordpiece.shown(i), wordpiece.is_continuation(i)) == ("fish", "##fish", True)
    words = {wordpiece.pieces[i] for i in np.flatnonzero(wordpiece.mask("words"))}
    assert words == {"cat", "zebra", ",", "12", "paris"}
    assert wordpiece.hidden("words") == {"special": 2, "unused": 1, "not a word": 3}
    assert len(wordpiece.encode("zebra cats")) == 3  # the padding of the file is off
    assert np.isnan(wordpiece.swallowed()).all()


def test_a_sentencepiece_vocabulary_is_decoded_searched_and_encoded() -> None:
    vocab = Vocabulary.from_gguf(sentencepiece())
    assert [vocab.text(i) for i in range(2, 10)] == ["\n", r"\xe4", " ", "a", "b", " a", "ab", " ab"]
    assert vocab.find("ab") == [9, 8] and vocab.find(" a") == [7]
    assert vocab.encode("ab ab") == [9, 9]
    assert vocab.encode("\n") == [4, 2]
    assert vocab.special.tolist() == [True, True] + [False] * 8
    assert vocab.hidden("default") == {"special": 2, "non-text": 2}
    assert [vocab.pieces[i] for i in np.flatnonzero(vocab.swallowed() > 0)] == ["▁a", "ab"]


@pytest.mark.parametrize("kind", ["word-ends", "byte-word-ends"])
def test_a_vocabulary_of_word_ends_is_decoded_searched_and_encoded(kind: Kind) -> None:
    """OpenAI GPT and CLIP mark where a word ends: the mark is a space behind the text, as Ġ is one before it."""
    letters = [*"cathe,", "Ã", "©", "é"]
    merges = [("t", "h"), ("th", "e"), ("th", "e</w>"), ("a", "t</w>"), ("c", "at</w>")]
    pieces = ["<unk>", *letters, *(f"{c}</w>" for c in letters), *("".join(pair) for pair in merges)]
    model = models.BPE({p: i for i, p in enumerate(pieces)}, merges, unk_token="<unk>", end_of_word_suffix="</w>")
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Lowercase()
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = [pre_tokenizers.BertPreTokenizer(), *([level] if kind == "byte-word-ends" else [])]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    tokenizer.add_special_tokens(["<unk>"])
    vocab = Vocabulary.from_tokenizer_json(tokenizer.to_str())
    assert vocab.kind == kind and vocab.pieces == pieces
    assert [vocab.pieces[i] for i in vocab.find("the")] == ["the</w>", "the"]
    assert vocab.find(" the") == vocab.find("The") == vocab.find("the")
    assert [vocab.shown(i) for i in vocab.find("the ")] == ["the␣"] == [vocab.shown(vocab.find("the")[0])]
    assert [vocab.text(i) for i in vocab.find("the")] == ["the ", "the"]
    assert [vocab.text(i) for i in vocab.encode("the cat, the")] == ["the ", "cat ", ", ", "the "]
    assert vocab.text(vocab.pieces.index("é</w>" if kind == "word-ends" else "©</w>")) in ("é ", r"\xa9 ")
    assert vocab.pieces[vocab.find("é")[0]] == "é</w>" if kind == "word-ends" else True
    words = [vocab.pieces[i] for i in np.flatnonzero(vocab.words)]
    assert {"the</w>", "cat</w>", ",</w>", ","} <= {*words} and not {"the", "th", "<unk>"} & {*words}
    with pytest.raises(UnknownWord, match=r"'cathe' is not one token; it is split as c \+ a \+ the␣"):
        vocab.find("cathe")
    again = replace(vocab)
    assert again.find("the") == vocab.find("the")


def test_gguf_wordpiece_is_spelled_back() -> None:
    tokens, types = ["[UNK]", "[CLS]", "▁cat", "s", "▁,"], [3, 3, 1, 1, 1]
    keys = {"model": "bert", "tokens": tokens, "token_type": types}
    vocab = Vocabulary.from_gguf({f"tokenizer.ggml.{k}": v for k, v in keys.items()})
    assert vocab.pieces == ["[UNK]", "[CLS]", "cat", "##s", ","]
    assert vocab.uncased and vocab.encode("Cats,") == [2, 3, 4]


def test_merge_steps_have_the_share_that_longer_tokens_swallow(bpe: Vocabulary) -> None:
    share = dict(zip(bpe.pieces, bpe.swallowed().tolist(), strict=True))
    assert share["Ġc"] == pytest.approx(1 / 3) and share["at"] == pytest.approx(2 / 3)
    assert share["Ġcats"] == share["em"] == 0
    assert np.isnan(share["a"]) and np.isnan(share["<|end|>"])


def test_masks_hide_tokens_and_count_them(bpe: Vocabulary) -> None:
    shown = bpe.mask("default")
    hidden = bpe.hidden("default")
    assert hidden["special"] == 1 and hidden["unused"] == 3  # a reserved token and two rows of padding
    assert sum(hidden.values()) == (~shown).sum() and not shown[bpe.pieces.index("Ã")]
    assert bpe.mask("all").all() and bpe.hidden("all") == {}
    assert not bpe.mask("ascii")[bpe.non_ascii].any()
    assert np.array_equal(bpe.mask("ascii"), shown & ~bpe.non_ascii)
    undertrained_tokens = np.zeros(bpe.size, dtype=bool)
    undertrained_tokens[bpe.pieces.index("em")] = True
    assert bpe.hidden("default", undertrained_tokens) == hidden | {"under-trained": 1}
    assert bpe.hidden("words", fragments=undertrained_tokens)["fragment"] == 1
    words = {bpe.text(i) for i in np.flatnonzero(bpe.mask("words"))}
    assert {" cat", "cat", " cats", ",", "7"} <= words
    assert not {"at", "em", "two  words", "Ġ"} & words
    assert (bpe.used == ~bpe.unused).all()
    with pytest.raises(BadOption, match="default, words, ascii, all"):
        bpe.mask("some")  # type: ignore[arg-type]


@pytest.mark.parametrize("metadata", [sentencepiece(), "bpe"])
def test_a_vocabulary_survives_a_stored_tokenizer(metadata: Any, bpe: Vocabulary) -> None:
    vocab = bpe if metadata == "bpe" else Vocabulary.from_gguf(metadata)
    back = Vocabulary.from_tokenizer_json(vocab.to_tokenizer_json(), vocab.size)
    assert (back.pieces, back.kind, back.uncased) == (vocab.pieces, vocab.kind, vocab.uncased)
    for name in ("special", "unused", "literal"):
        assert (getattr(back, name) == getattr(vocab, name)).all()
    assert back.encode("ab cat\n") == vocab.encode("ab cat\n")


def test_stored_pieces_need_no_tokenizer(bpe: Vocabulary) -> None:
    def read() -> str:
        raise AssertionError("the tokenizer was read")

    stored = Vocabulary(bpe.kind, bpe.pieces, bpe.special, bpe.unused, bpe.literal, bpe.uncased, read)
    assert stored.find("cat") == bpe.find("cat") and stored.shown(260) == bpe.shown(260)


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_known_splits_are_exact(pre: str) -> None:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = Vocabulary.from_gguf(byte_level([*letters, "12"], ["1 2"], [1] * 257, pre))
    assert not vocab.split_note
    assert len(vocab.encode("12")) == (1 if pre in ("gpt-2", "llama-bpe") else 2)


def test_an_unknown_split_is_called_approximate() -> None:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = Vocabulary.from_gguf(byte_level(letters, [], [1] * 256, "new\x1b"))
    with pytest.raises(UnknownWord, match=r"approximately: the pre-tokenizer 'new\\x1b' is not known"):
        vocab.find("ab")


def test_of_tokens_with_one_spelling_the_first_counts() -> None:
    vocab = Vocabulary.from_gguf(byte_level(["a", "b", "a"], [], [1, 1, 5]))
    assert vocab.pieces == ["a", "b", ""] and vocab.unused.tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "cannot be read|not a tokenizer"),
        (b"{}", "KeyError"),
        (b'{"model": {"vocab": {"a": "x"}}}', "ValueError"),
        (b'{"model": {"vocab": {}}}', "no tokens"),
        (b'{"model": {"vocab": {"a": -1}}}', "negative"),
        (b'{"model": {"vocab": {"a": 3}}}', "such as a with the id 3, are beyond the 2 rows"),
        (b'{"model": {"vocab": {"a": 0}, "merges": [1]}}', "not a tokenizer"),
        (b'{"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": 0}]}', "not a tokenizer"),
    ],
)
def test_a_bad_tokenizer_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(BadModel, match=message):
        Vocabulary.from_tokenizer_json(data, 2)


def test_a_huge_id_is_refused_without_a_size() -> None:
    with pytest.raises(BadModel, match="only 1 tokens"):
        Vocabulary.from_tokenizer_json(b'{"model": {"vocab": {"a": 999999999999}}}')


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "t5\x1b"}, r"'t5\\x1b'; known are gpt2, llama, bert"),
        ({"tokens": [1, 2]}, "not a list of texts"),
        ({"tokens": None}, "not a list of texts"),
        ({"token_type": [1]}, "1 entries"),
        ({"token_type": ["x"] * 256}, "cannot be read"),
        ({"merges": [3]}, "cannot be read"),
    ],
)
def test_a_bad_gguf_tokenizer_is_refused(change: dict[str, Any], message: str) -> None:
    metadata = byte_level(sorted(pre_tokenizers.ByteLevel.alphabet()), [], [1] * 256)
    with pytest.raises(BadModel, match=message):
        Vocabulary.from_gguf(metadata | {f"tokenizer.ggml.{k}": v for k, v in change.items()})


def test_pieces_agree_with_the_tokenizers_library(bpe: Vocabulary) -> None:
    tokenizer = Tokenizer.from_str(bpe.to_tokenizer_json())
    tokenizer.decoder = decoders.ByteLevel()
    for i in np.flatnonzero(~bpe.non_text):
        assert tokenizer.decode([int(i)], skip_special_tokens=False) == bpe.text(int(i))


def random_table(seed: int, rows: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(rows, d)).astype(np.float32) + 0.3
    return table, rng.random(rows) * (rng.random(rows) < 0.3)


@pytest.mark.parametrize(("seed", "d"), [(0, 4), (1, 16), (2, 64), (3, 64)])
def test_no_random_row_is_under_trained(seed: int, d: int) -> None:
    judged = judge(*random_table(seed, 6000, d))
    assert not judged.undertrained.any() and not judged.fragments.any()


def test_long_merge_steps_are_found_and_full_words_are_not() -> None:
    table, share = random_table(5, 8000, 64)
    steps = np.flatnonzero(share > 0)[:300]
    table[steps] *= 2.5
    flagged = undertrained(table, share)
    assert flagged[steps].mean() > 0.95
    assert flagged.sum() - flagged[steps].sum() <= 6  # at a false discovery rate of 1%
    full_words = np.flatnonzero(share == 0)[:300]
    table, share = random_table(5, 8000, 64)
    table[full_words] *= 2.5
    assert not undertrained(table, share).any()


def test_rows_that_training_never_reached_are_found() -> None:
    table, _ = random_table(6, 6000, 32)
    unseen = np.arange(5000, 5400)
    rng = np.random.default_rng(7)
    table[unseen] = table.mean(0) + 0.2 * rng.normal(size=(400, 32))
    flagged = undertrained(table, np.full(6000, np.nan))
    assert flagged[unseen].mean() > 0.98 and flagged.sum() <= 402


def test_copied_rows_are_found() -> None:
    table, share = random_table(8, 6000, 64)
    copies = np.array([3, 700, 5000, 5999])
    table[copies] = table[3] + 1e-4
    table[100:120] = 0
    assert np.flatnonzero(undertrained(table, share)).tolist() == sorted([*copies, *range(100, 120)])


def test_small_and_degenerate_tables_are_not_judged() -> None:
    assert not undertrained(np.zeros((4, 2), np.float32), np.zeros(4)).any()
    undertrained(np.zeros((2000, 16), np.float32), np.zeros(2000))  # a warning about a division by zero would fail


def test_discoveries_follow_benjamini_and_hochberg() -> None:
    score = np.concatenate([np.arange(1000.0), [2000.0, 1500.0, 998.5, 500.0]])
    null = np.arange(1004) < 1000
    assert np.flatnonzero(discoveries(score, ~null, null, 0.01)).tolist() == [1000, 1001, 1002]
    assert not discoveries(score, ~null, null, 1e-4).any()


@pytest.fixture(scope="module")
def smollm2(smollm2_path: Path) -> tuple[Vocabulary, Any]:
    source = GgufSource(smollm2_path)
    vocab = Vocabulary.from_gguf(source.metadata, source.shape("token_embd.weight")[0])
    return vocab, judge(source.rows("token_embd.weight"), vocab.swallowed())


def test_smollm2_hides_under_trained_tokens_and_no_common_word(smollm2: tuple[Vocabulary, Any]) -> None:
    vocab, judged = smollm2
    for text in (" strugg", " necessit", " enthus", "emetery", " preserv", " acknowled"):
        assert judged.undertrained[vocab.find(text)].all(), text
    ids = [i for word in COMMON for i in vocab.find(word)]
    assert not judged.undertrained[ids].any()
    assert not judged.undertrained[vocab.find("isational")].any()
    assert 500 < judged.undertrained.sum() < 4000
    assert set(vocab.hidden("default", judged.undertrained)) == {"special", "non-text", "under-trained"}


def test_smollm2_has_common_words_and_no_fragments_in_its_word_view(smollm2: tuple[Vocabulary, Any]) -> None:
    vocab, judged = smollm2
    words = vocab.mask("words", *judged)
    seen = "started begun first beginning UK BBC wellbeing whilst Whilst organisation realised Monday Paris 2 second"
    for word in [*seen.split(), *COMMON]:
        assert words[vocab.find(word)].any(), word
    for text in (" strugg", " necessit", "isational", "emetery", " initi", "\n"):
        assert not words[vocab.find(text)].any(), text
    assert words[vocab.find("!")].all() and words[vocab.find('."')].all()


def test_smollm2_survives_a_round_trip_and_splits_as_the_library(smollm2: tuple[Vocabulary, Any]) -> None:
    vocab, _ = smollm2
    back = Vocabulary.from_tokenizer_json(vocab.to_tokenizer_json(), vocab.size)
    assert back.pieces == vocab.pieces and (back.special == vocab.special).all()
    text = "Hello world, it's 1234!\n\n  naïve 日本語 🙂"
    tokenizer = Tokenizer.from_str(vocab.to_tokenizer_json())
    assert tokenizer.decode(vocab.encode(text)) == text
    texts = tokenizer.decode_batch([[i] for i in range(vocab.size)], skip_special_tokens=False)
    textual = ~vocab.non_text
    assert all(texts[i] == vocab.text(i) for i in np.flatnonzero(textual))
    with pytest.raises(UnknownWord, match=r"split as ␣strugg \+ lings"):
        vocab.find("strugglings")


def test_minilm_has_the_vocabulary_of_the_library(minilm_path: Path) -> None:
    data = (minilm_path / "tokenizer.json").read_bytes()
    vocab = Vocabulary.from_tokenizer_json(data, 30522)
    assert vocab.kind == "wordpiece" and vocab.uncased
    assert vocab.hidden("default") == {"special": 5, "unused": 994}
    tokenizer = Tokenizer.from_str(data.decode())
    assert vocab.pieces == [tokenizer.id_to_token(i) for i in range(vocab.size)]
    assert json.loads(vocab.to_tokenizer_json()) == json.loads(data)


@pytest.mark.parametrize("text", ["{", "[]", '{"model": {"merges": [5]}}'])
def test_a_damaged_tokenizer_is_named_when_it_is_needed(text: str, bpe: Vocabulary) -> None:
    vocab = replace(bpe, tokenizer=lambda: text, path="the/file.json")
    with pytest.raises(BadModel, match=r"the/file\.json is not a tokenizer that can be read"):
        vocab.merges()


def _templated(model: models.Model, single: str, *names: str) -> Vocabulary:
    """Return the vocabulary of a tokenizer that puts special tokens around a text."""
    tokenizer = Tokenizer(model)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[(name, tokenizer.token_to_id(name)) for name in names]
    )
    tokenizer.add_special_tokens(list(names))
    return Vocabulary.from_tokenizer_json(tokenizer.to_str())


def test_special_tokens_around_a_text_are_those_of_the_tokenizer() -> None:
    words = models.WordLevel({"<s>": 0, "</s>": 1, "a": 2, "b": 3}, unk_token="a")
    assert _templated(words, "<s> $A </s>", "<s>", "</s>").around == ((0,), (1,))
    assert _templated(words, "$A </s>", "</s>").around == ((), (1,))
    assert _templated(words, "<s> <s> $A", "<s>").around == ((0, 0), ())


def test_a_wordpiece_tokenizer_that_states_no_special_tokens_has_those_of_bert() -> None:
    pieces = ["[UNK]", "[CLS]", "[SEP]", "a"]
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.add_special_tokens(pieces[:3])
    assert Vocabulary.from_tokenizer_json(tokenizer.to_str()).around == ((1,), (2,))
    plain = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    assert Vocabulary.from_tokenizer_json(plain.to_str()).around == ((), ())
