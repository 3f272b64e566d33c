"""Tokenizers in all their files: ids, special tokens and splits are those of transformers."""

import base64
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoTokenizer, EsmTokenizer
from transformers.convert_slow_tokenizer import SpmConverter
from transformers.integrations.mistral.tokenizer import MistralConverter
from transformers.utils import sentencepiece_model_pb2_new as sentencepiece_pb2

import small
import tiny
import zeropass as zp
from zeropass.errors import BadModel, UnknownWord
from zeropass.model.model import Model
from zeropass.model.opening import open_model
from zeropass.tokens.tokenizer_files import tokenizer_json
from zeropass.tokens.vocabulary import Vocabulary

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")

FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
TEXTS = ("abc d", "a<x>b", " <x> cab<y>d", "<|end|>ab", "[PAD] a [NEW]b", "A<X>b é\n")
ROWS = tiny.VOCAB


def put(folder: Path, **files: Any) -> Path:
    """Write files into a folder: ``added_tokens__json=…`` is added_tokens.json; None removes a file."""
    for key, content in files.items():
        path = folder / key.replace("__", ".")
        if content is None:
            path.unlink()
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content, ensure_ascii=False))
    return folder


PIECES = [*sorted(pre_tokenizers.ByteLevel.alphabet())[64:110], "ab", "cab", "Ġa", "Ġ", "<|endoftext|>"]
MERGES = "#version: 0.2\na b\nc ab\nĠ a\n"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "ab", "##b", "##d", "cab", "x", "##x", "<", ">"]


@pytest.fixture
def gpt2(tmp_path: Path) -> Path:
    """Return a GPT-2 with vocab.json and merges.txt."""
    folder = tiny.save(tiny.make("gpt2"), tmp_path / "gpt2")
    vocab = {piece: i for i, piece in enumerate(PIECES)}
    return put(folder, tokenizer__json=None, vocab__json=vocab, merges__txt=MERGES)


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """Return a BERT with vocab.txt."""
    folder = tiny.save(tiny.make("bert"), tmp_path / "bert")
    return put(folder, tokenizer__json=None, vocab__txt="\n".join(WORDS) + "\n")


def token(content: str, special: bool = False, **flags: bool) -> dict[str, Any]:
    return {"content": content, **FLAGS, "special": special, **flags}


def require_like_transformers(folder: Path) -> Model:
    """Require the ids within the rows, the special tokens and the splits of transformers."""
    model, reference = open_model(str(folder)), AutoTokenizer.from_pretrained(folder)
    vocab = model.vocab
    ids = {i: piece for piece, i in reference.get_vocab().items()}
    assert vocab.pieces == [ids.get(i, "") for i in range(ROWS)]
    special = {i for i, added in reference.added_tokens_decoder.items() if added.special and i < ROWS}
    assert set(np.flatnonzero(vocab.special | vocab.unused & np.array([bool(p) for p in vocab.pieces]))) == special
    for text in TEXTS:
        expected = reference.encode(text, add_special_tokens=False)
        if max(expected, default=0) < ROWS:
            assert vocab.encode(text) == expected, text
        else:
            assert max(vocab.encode(text), default=0) < ROWS
    return model


LAST = len(PIECES)
BESIDE_BPE: dict[str, dict[str, Any]] = {
    "nothing": {},
    "added_tokens": {"added_tokens__json": {"<x>": LAST, "<y>": LAST + 1}},
    "added_tokens, not in order": {"added_tokens__json": {"<y>": LAST + 1, "<x>": LAST}},
    "added_tokens, one special": {
        "added_tokens__json": {"<x>": LAST, "[PAD]": LAST + 1},
        "special_tokens_map__json": {"pad_token": "[PAD]"},
    },
    "added_tokens, one an extra special": {
        "added_tokens__json": {"<x>": LAST, "<y>": LAST + 1},
        "tokenizer_config__json": {"additional_special_tokens": ["<y>"]},
    },
    "decoder": {
        "tokenizer_config__json": {
            "added_tokens_decoder": {
                str(LAST): token("<x>", lstrip=True, rstrip=True),
                str(LAST + 1): token("<|end|>", special=True),
                str(LAST + 2): token("<y>", single_word=True, normalized=True),
            }
        }
    },
    "decoder that marks a piece": {
        "tokenizer_config__json": {"added_tokens_decoder": {"46": token("ab", special=True)}},
    },
    "decoder and added_tokens that agree": {
        "tokenizer_config__json": {"added_tokens_decoder": {str(LAST): token("<x>")}},
        "added_tokens__json": {"<x>": LAST},
    },
    "decoder that says more than special_tokens_map": {
        "tokenizer_config__json": {"added_tokens_decoder": {str(LAST): token("<x>")}},
        "special_tokens_map__json": {"pad_token": "[PAD]"},
    },
    "named only": {"tokenizer_config__json": {"pad_token": "[PAD]", "extra_special_tokens": ["<x>", "[NEW]"]}},
    "named in both": {
        "tokenizer_config__json": {"pad_token": "<x>", "bos_token": token("<|end|>") | {"__type": "AddedToken"}},
        "special_tokens_map__json": {"pad_token": {"content": "[PAD]", "lstrip": True}},
    },
    "a kind of its own": {"tokenizer_config__json": {"image_token": "<x>", "pad_token": "[PAD]"}},
    "prefixed": {"tokenizer_config__json": {"add_prefix_space": True}, "added_tokens__json": {"<x>": LAST}},
    "beyond the rows": {"added_tokens__json": {f"<{'x' * n}>": LAST + n - 1 for n in range(1, 14)}},
}


@pytest.mark.parametrize("name", BESIDE_BPE)
def test_tokens_beside_vocab_json_are_those_of_transformers(name: str, gpt2: Path) -> None:
    model = require_like_transformers(put(gpt2, **BESIDE_BPE[name]))
    assert len(model.notes) == (name == "beyond the rows")


BESIDE_WORDS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "added_tokens": {"added_tokens__json": {"<x>": 15, "[NEW]": 16}},
    "decoder": {
        "tokenizer_config__json": {
            "added_tokens_decoder": {"15": token("<x>", special=True), "16": token("<X>", normalized=True)}
        }
    },
    "cased": {"tokenizer_config__json": {"do_lower_case": False}, "added_tokens__json": {"[NEW]": 15}},
    "accents": {"tokenizer_config__json": {"strip_accents": False, "tokenize_chinese_chars": False}},
    "named": {"special_tokens_map__json": {"bos_token": "<x>", "mask_token": "[NEW]"}},
}


@pytest.mark.parametrize("name", BESIDE_WORDS)
def test_tokens_beside_vocab_txt_are_those_of_transformers(name: str, bert: Path) -> None:
    require_like_transformers(put(bert, **BESIDE_WORDS[name]))


@pytest.mark.parametrize("owner", ["RoFormerTokenizerFast", "BertJapaneseTokenizer"])
def test_vocab_txt_of_other_tokenizers_is_refused(owner: str, bert: Path) -> None:
    with pytest.raises(BadModel, match=f"how a {owner} splits texts"):
        open_model(str(put(bert, tokenizer_config__json={"tokenizer_class": owner})))


ESM: dict[str, dict[str, Any]] = {
    "as published": {},
    "no end": {"tokenizer_config__json": {"tokenizer_class": "EsmTokenizer", "eos_token": None}},
    "added_tokens": {"added_tokens__json": {"<x>": 15}},
}


@pytest.mark.parametrize("name", ESM)
def test_amino_acids_are_those_of_transformers(name: str, bert: Path) -> None:
    lines = ["<cls>", "<pad>", "<eos>", "<unk>", "L", "A", "LA", "LAG", ".", "-", "<null_1>", "<mask>", "GA", "V", "日"]
    files = {"config__json": {"model_type": "esm"}, "vocab__txt": "\n".join(lines)} | ESM[name]
    vocab = Vocabulary.from_tokenizer_json(tokenizer_json(put(bert, **files)))
    reference = EsmTokenizer.from_pretrained(bert)
    assert vocab.pieces == reference.convert_ids_to_tokens(range(vocab.size)) and vocab.size == len(reference)
    assert [i for i in range(vocab.size) if vocab.special[i]] == sorted(reference.all_special_ids)
    assert vocab.around == ((0,), () if name == "no end" else (2,))
    assert vocab.find("LAG") == [7]

    @given(st.text(alphabet="LAGVx. \n<>日\x1c", max_size=12))
    @settings(max_examples=150, deadline=None)
    def splits(text: str) -> None:
        assert vocab.encode(text) == reference.encode(text, add_special_tokens=False), text

    splits()


@pytest.mark.parametrize(
    ("lines", "config", "message"),
    [
        ("<cls> <pad> <eos> <unk> <mask> L L", {}, "two of its lines are alike"),
        ("<cls> <pad> <eos> <mask> L", {}, "unk_token is '<unk>', which is none of its tokens"),
        ("<cls> <pad> <eos> <unk> <mask> L", {"cls_token": None}, "none before a text"),
    ],
)
def test_amino_acids_that_do_not_fit_are_refused(lines: str, config: dict[str, Any], message: str, bert: Path) -> None:
    settings = {"tokenizer_class": "EsmTokenizer", **config}
    with pytest.raises(BadModel, match=message):
        open_model(str(put(bert, tokenizer_config__json=settings, vocab__txt=lines.replace(" ", "\n"))))


BESIDE_JSON: dict[str, dict[str, Any]] = {
    "nothing": {},
    "the same": {"tokenizer_config__json": {"added_tokens_decoder": {"58": token("<x>")}}},
    "one more": {
        "tokenizer_config__json": {"added_tokens_decoder": {"58": token("<x>"), "59": token("<y>", special=True)}}
    },
    "other flags": {"tokenizer_config__json": {"added_tokens_decoder": {"58": token("<x>", lstrip=True)}}},
    "older tokens": {"added_tokens__json": {"<y>": 59}},
    "named": {"tokenizer_config__json": {"pad_token": "[PAD]", "eos_token": "<x>", "unk_token": "!"}},
    "beyond the rows": {
        "tokenizer_config__json": {"pad_token": "[PAD]", "extra_special_tokens": ["<y>", "[NEW]", "<|end|>"]}
    },
}


@pytest.mark.parametrize("name", BESIDE_JSON)
def test_tokens_beside_tokenizer_json_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    folder = tiny.save(tiny.make("llama"), tmp_path / "model")
    spec = json.loads((folder / "tokenizer.json").read_text())
    spec["added_tokens"] = [{"id": 58, **token("<x>")}]
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **BESIDE_JSON[name].pop("tokenizer_config__json", {})}
    put(folder, tokenizer__json=spec, tokenizer_config__json=config, **BESIDE_JSON[name])
    model = require_like_transformers(folder)
    assert len(model.notes) == (name == "beyond the rows")


def test_a_token_renamed_beside_tokenizer_json_is_refused(tmp_path: Path) -> None:
    folder = tiny.save(tiny.make("llama"), tmp_path / "model")
    spec = json.loads((folder / "tokenizer.json").read_text())
    spec["added_tokens"] = [{"id": 58, **token("<x>")}]
    config = {"added_tokens_decoder": {"58": token("<|end|>")}, "tokenizer_class": "PreTrainedTokenizerFast"}
    put(folder, tokenizer__json=spec, tokenizer_config__json=config)
    assert AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids("<|end|>") == 59  # and not 58
    with pytest.raises(BadModel, match=r"give the id 58 to '<\|end\|>', to which the tokenizer gives 59"):
        open_model(str(folder))


CONFLICTS: dict[str, tuple[dict[str, Any], str]] = {
    "a gap": ({"added_tokens__json": {"<x>": LAST + 1}}, f"give the id {LAST + 1} to '<x>', .* gives {LAST}"),
    "an id of the vocabulary": ({"added_tokens__json": {"<x>": 3}}, f"give the id 3 to '<x>', .* gives {LAST}"),
    "another id of a piece": ({"added_tokens__json": {"ab": LAST}}, f"give the id {LAST} to 'ab', .* gives 46"),
    "two of one id": ({"added_tokens__json": {"<x>": LAST, "<y>": LAST}}, f"'<x>' and '<y>' have the same id {LAST}"),
    "an id that is a text": ({"added_tokens__json": {"<x>": str(LAST)}}, "the id of '<x>' is '51'"),
    "an id that is true": ({"added_tokens__json": {"<x>": True}}, "the id of '<x>' is True"),
    "a decoder that is a list": ({"tokenizer_config__json": {"added_tokens_decoder": [1]}}, "should be an object"),
    "a decoder of texts": ({"tokenizer_config__json": {"added_tokens_decoder": {"51": "<x>"}}}, "'51': '<x>'"),
    "a decoder of names": ({"tokenizer_config__json": {"added_tokens_decoder": {"x": token("x")}}}, "has 'x'"),
    "a vocabulary with holes": (
        {"vocab__json": {piece: 2 * i for i, piece in enumerate(PIECES)}, "added_tokens__json": {"<x>": 101}},
        "has 51 pieces and the id 100: which id '<x>' gets is not known",
    ),
    "both, with other ids": (
        {
            "tokenizer_config__json": {"added_tokens_decoder": {str(LAST): token("<x>"), str(LAST + 1): token("<y>")}},
            "added_tokens__json": {"<x>": LAST + 1},
        },
        f"added_tokens.json gives the id {LAST + 1} to '<x>'; .* otherwise",
    ),
    "both, with an id moved": (
        {
            "tokenizer_config__json": {"added_tokens_decoder": {str(LAST): token("<x>")}},
            "added_tokens__json": {"<x>": LAST + 1},
        },
        f"added_tokens.json gives the id {LAST + 1} to '<x>'; .* otherwise",
    ),
    "both, with another token": (
        {
            "tokenizer_config__json": {"added_tokens_decoder": {str(LAST): token("<x>")}},
            "added_tokens__json": {"<y>": LAST},
        },
        f"added_tokens.json gives the id {LAST} to '<y>'; .* otherwise",
    ),
}


@pytest.mark.parametrize("name", CONFLICTS)
def test_ids_that_contradict_each_other_are_refused(name: str, gpt2: Path) -> None:
    files, message = CONFLICTS[name]
    with pytest.raises(BadModel, match=message):
        open_model(str(put(gpt2, **files)))


# Ids beyond the rows


def soft_token(folder: Path, in_vocabulary: bool = True) -> Path:
    """Add one token more than the embedding has rows, in the vocabulary or after it, as gemma-3-1b has it."""
    spec = json.loads((folder / "tokenizer.json").read_text())
    ids = [*spec["model"]["vocab"].values(), *(token["id"] for token in spec["added_tokens"])]
    flags = {"special": True, **FLAGS}
    more = [{"id": i, "content": f"<fill{i}>", **flags} for i in range(max(ids) + 1, small.V)]
    more.append({"id": small.V, "content": "<image_soft_token>", **flags})
    spec["added_tokens"] += more
    if in_vocabulary:
        spec["model"]["vocab"] |= {added["content"]: added["id"] for added in spec["added_tokens"]}
        spec["model"]["merges"] = [["b", "a"], ["ba", "b"], ["<image_soft_token", ">"]]
        spec["model"]["vocab"] |= {"ba": 256, "bab": 257, "<image_soft_token": 258}
        for i in (256, 257, 258):
            old = next(piece for piece, n in spec["model"]["vocab"].items() if n == i)
            spec["model"]["vocab"].pop(old)
    return put(folder, tokenizer__json=spec)


@pytest.mark.parametrize("in_vocabulary", [True, False])
def test_a_token_beyond_the_rows_is_left_out_and_named(in_vocabulary: bool, tmp_path: Path) -> None:
    folder = soft_token(small.llama(tmp_path / "model", layers=1), in_vocabulary)
    put(folder, tokenizer_config__json={"tokenizer_class": "PreTrainedTokenizerFast"})
    model, reference = open_model(str(folder)), AutoTokenizer.from_pretrained(folder)
    assert reference.convert_tokens_to_ids("<image_soft_token>") == small.V
    assert model.notes == (
        f"{folder / 'tokenizer.json'} has 1 added token beyond the {small.V} rows of the embedding, left out: "
        f"<image_soft_token> ({small.V}).",
    )
    assert model.info()["notes"] == list(model.notes)
    assert model.vocab.pieces == reference.convert_ids_to_tokens(range(small.V))
    for text in (" bab bade", "<fill597>x", "bab<|special1|>"):
        assert model.vocab.encode(text) == reference.encode(text, add_special_tokens=False)
    around = model.vocab.encode("bab<image_soft_token> bab")
    assert max(around) < small.V and around[:1] == model.vocab.encode("bab")[:1]
    with pytest.raises(UnknownWord):
        model.vocab.find("<image_soft_token>")


def test_an_atlas_keeps_the_tokens_that_have_rows(tmp_path: Path, one_thread: None) -> None:
    folder = soft_token(small.llama(tmp_path / "model", layers=1))
    atlas = small.build(folder, tmp_path / "atlas", zp.Options(k=5, roles=("value",), frames=("output",)))
    vocab = open_model(str(folder)).vocab
    assert atlas.vocab.pieces == vocab.pieces
    text = "bab<image_soft_token> bade"
    assert atlas.vocab.encode(text) == vocab.encode(text)
    stored = Vocabulary.from_tokenizer_json(vocab.to_tokenizer_json(), small.V)
    assert stored.pieces == vocab.pieces and not stored.notes
    saved = Tokenizer.from_str(vocab.to_tokenizer_json())  # as written for a stitched model
    assert max(saved.get_vocab().values()) == small.V - 1


def test_a_note_names_the_first_tokens_and_counts_the_rest(tmp_path: Path) -> None:
    folder = tiny.save(tiny.make("llama"), tmp_path / "model")
    spec = json.loads((folder / "tokenizer.json").read_text())
    spec["added_tokens"] = [{"id": 58 + n, **token(f"<\x1b{n}>")} for n in range(12)]
    (note,) = open_model(str(put(folder, tokenizer__json=spec))).notes
    assert "9 added tokens beyond the 61 rows" in note
    assert note.endswith(r"<\x1b3> (61), <\x1b4> (62), <\x1b5> (63), <\x1b6> (64), <\x1b7> (65) and 4 more.")


def spec_of(vocab: Any, added: Any = (), **model: Any) -> dict[str, Any]:
    return {
        "version": "1.0",
        **dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")),
        "added_tokens": [{"id": i, **token(content)} for i, content in added],
        "model": {"type": "BPE", "merges": [], **model, "vocab": vocab},
    }


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "an ordinary token above": (spec_of({"a": 0, "b": 1, "c": 2}), "another model: 1 of its 3 tokens, such as c with"),
    "an ordinary one among added ones": (
        spec_of({"a": 0, "b": 1, "c": 2}, [(3, "<x>")]),
        "another model: 2 of its 4 tokens, such as c with the id 2, are beyond the 2 rows",
    ),
    "nothing but tokens above": (spec_of({"<x>": 5}, [(5, "<x>")]), "another model: 1 of its 1 tokens, such as <x>"),
    "nothing": (spec_of({}), "no tokens"),
    "two pieces of one id": (spec_of({"a": 0, "b": 0}), "'a' and 'b' have the same id 0"),
    "an id that is a text": (spec_of({"a": "0"}), "the id of 'a' is '0', which is not a whole number"),
    "an id that is a fraction": (spec_of({"a": 0.5}), "the id of 'a' is 0.5"),
    "an id that is true": (spec_of({"a": True}), "the id of 'a' is True"),
    "an added id that is a text": (spec_of({"a": 0}, [("1", "<x>")]), "the id of '<x>' is '1'"),
    "a list of texts": (spec_of(["a", "b"]), "'a' is not a piece with its score"),
    "two added tokens of one id": (spec_of({"a": 0}, [(1, "<x>"), (1, "<y>")]), "'<x>' and '<y>' have the same id 1"),
    "added tokens in another order": (spec_of({"a": 0}, [(2, "<x>"), (1, "<y>")]), "not in the order of their ids"),
    "an added token behind a vocabulary with holes": (
        spec_of({"a": 0, "b": 2}, [(3, "<x>")]),
        "has 2 pieces and the id 2: which id '<x>' gets is not known",
    ),
    "nothing that stands for anything": (spec_of({"[unused0]": 0, "[unused1]": 1}), "no token that stands for"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_inconsistent_tokenizer_is_refused(name: str) -> None:
    spec, message = REFUSED[name]
    with pytest.raises(BadModel, match=message):
        Vocabulary.from_tokenizer_json(json.dumps(spec), 2)


def test_an_added_token_gets_the_id_of_the_library_and_a_note_says_so() -> None:
    text = json.dumps(spec_of({"a": 0, "b": 1, "c": 2}, [(1, "<x>")]))
    vocab = Vocabulary.from_tokenizer_json(text, 5)
    assert Tokenizer.from_str(text).token_to_id("<x>") == 3
    assert vocab.pieces == ["a", "b", "c", "<x>", ""] and vocab.literal.tolist() == [False, False, False, True, False]
    assert vocab.notes == (
        "tokenizer.json states other ids than the tokenizers library gives, which are taken: <x> (3).",
    )
    assert vocab.encode("a<x>b") == [0, 3, 1]


def test_a_token_of_another_file_does_not_hide_the_note(tmp_path: Path) -> None:
    folder = tiny.save(tiny.make("llama"), tmp_path / "model")
    spec = json.loads((folder / "tokenizer.json").read_text())
    spec["added_tokens"] = [{"id": 3, **token("<x>")}]
    put(folder, tokenizer__json=spec, tokenizer_config__json={"pad_token": "[PAD]"})
    model = open_model(str(folder))
    assert model.vocab.pieces[57:] == [model.vocab.pieces[57], "<x>", "[PAD]", ""]
    assert ["<x> (58)" in note for note in model.notes] == [True]


def test_a_panic_of_the_library_becomes_a_refusal(capfd: pytest.CaptureFixture[str]) -> None:
    spec = spec_of({"a": 0, "b": 1}, merges=[["a", "b"]])
    with pytest.raises(BadModel, match="tokenizers library cannot use"):
        Vocabulary.from_tokenizer_json(json.dumps(spec), 2).encode("ab")


NAMES = st.sampled_from(["a", "b", "ab", "<x>", "<y>", "<z>", "[unused3]", "ba"])


@given(
    pieces=st.lists(st.sampled_from(["a", "b", "c", "ab", "<x>", "[unused3]"]), min_size=1, max_size=6, unique=True),
    moved=st.lists(st.integers(0, 8), min_size=6, max_size=6, unique=True),
    dense=st.booleans(),
    added=st.lists(st.tuples(st.integers(0, 9), NAMES), max_size=4),
    rows=st.integers(1, 10),
    kind=st.sampled_from(["BPE", "WordLevel", "Unigram"]),
    text=st.text(alphabet="abc<x>yz", max_size=8),
)
@settings(max_examples=200, deadline=None)
def test_every_id_is_that_of_the_library_or_the_tokenizer_is_refused(
    pieces: list[str],
    moved: list[int],
    dense: bool,
    added: list[tuple[int, str]],
    rows: int,
    kind: str,
    text: str,
) -> None:
    ids = dict(zip(pieces, range(9) if dense else moved, strict=False))
    vocab: Any = ids if kind != "Unigram" else [[piece, -1.0] for piece in pieces]
    extra = {"WordLevel": {"unk_token": "a"}, "Unigram": {"unk_id": 0}, "BPE": {}}[kind]
    spec = json.dumps(spec_of(vocab, added, type=kind, **extra))
    reference = Tokenizer.from_str(spec)
    model_ids = {piece: reference.get_vocab()[piece] for piece in ids}
    names = [content for _, content in added]
    consistent = len({*names}) == len(names) and all(reference.token_to_id(name) == i for i, name in added)
    try:
        vocabulary = Vocabulary.from_tokenizer_json(spec, rows)
    except BadModel:
        tidy = sorted(model_ids.values()) == list(range(len(ids))) and all(i < rows for i in model_ids.values())
        assert not (tidy and consistent) or {*ids, *names} <= {"[unused3]"} or rows == 1
        return
    inside = {i: piece for piece, i in reference.get_vocab().items() if i < rows}
    assert vocabulary.pieces == [inside.get(i, "") for i in range(rows)]
    try:
        expected = reference.encode(text, add_special_tokens=False).ids
    except Exception:  # the library's own exception: the unknown token does not exist
        return
    if max(expected, default=0) < rows:
        assert vocabulary.encode(text) == expected
    else:
        assert vocabulary.notes
        try:
            assert max(vocabulary.encode(text), default=0) < rows
        except BadModel:
            assert kind != "BPE"  # it cannot encode the text without its unknown token


UNIGRAM = ["<unk>", "▁", "a", "▁ab", "b", *(f"<0x{byte:02X}>" for byte in range(256))]


def test_unigram_with_bytes_reads_as_the_library_decodes() -> None:
    scored = [[piece, -float(n)] for n, piece in enumerate(UNIGRAM)]
    spec = spec_of(scored, [(261, "<x>")], type="Unigram", unk_id=0, byte_fallback=True)
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    replace = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    spec["decoder"] = {"type": "Sequence", "decoders": [replace, {"type": "ByteFallback"}, {"type": "Fuse"}]}
    text = json.dumps(spec | {"pre_tokenizer": metaspace})
    vocab, reference = Vocabulary.from_tokenizer_json(text, 300), Tokenizer.from_str(text)
    assert vocab.pieces == [reference.id_to_token(i) or "" for i in range(300)]
    for i in np.flatnonzero(~vocab.non_text[:262]):
        assert vocab.text(i) == reference.decode([i], skip_special_tokens=False)
    assert vocab.text(5 + 0x0A) == "\n" and vocab.non_text[5 + 0x0A]
    assert vocab.find("ab") == [3] and vocab.encode("ab é<x>") == reference.encode("ab é<x>").ids


def test_unigram_pieces_beyond_the_rows_are_never_encoded() -> None:
    scored = [[piece, -float(n)] for n, piece in enumerate([*UNIGRAM, "<x>", "▁<x>"])]
    added = [(261, "<x>"), (262, "▁<x>")]
    spec = json.dumps(spec_of(scored, added, type="Unigram", unk_id=0, byte_fallback=True))
    vocab = Vocabulary.from_tokenizer_json(spec, 261)
    assert vocab.pieces == UNIGRAM and "2 added tokens" in vocab.notes[0]
    assert max(vocab.encode("a<x>▁<x>b")) < 261 and vocab.encode("a")[-1] == 2


def test_word_level_reads_as_the_library_decodes() -> None:
    words = {"[UNK]": 0, "cat": 1, "Cat": 3, "a b": 2}
    spec = spec_of(words, [(0, "[UNK]")], type="WordLevel", unk_token="[UNK]")
    text = json.dumps(spec | {"pre_tokenizer": {"type": "Whitespace"}})
    vocab, reference = Vocabulary.from_tokenizer_json(text, 4), Tokenizer.from_str(text)
    assert [vocab.text(i) for i in range(4)] == [reference.decode([i], skip_special_tokens=False) for i in range(4)]
    assert vocab.kind == "plain" and vocab.find("Cat") == [3]
    assert vocab.encode("cat dog Cat") == reference.encode("cat dog Cat").ids == [1, 0, 3]


# Vocabularies of other libraries


def sentencepiece(
    pieces: list[tuple[str, float, int]], model_type: int = 2, **normalizer: Any
) -> sentencepiece_pb2.ModelProto:
    proto = sentencepiece_pb2.ModelProto()
    for text, score, kind in pieces:
        proto.pieces.add(piece=text, score=score, type=kind)
    proto.trainer_spec.model_type = model_type
    proto.trainer_spec.byte_fallback = True
    for key, value in {"add_dummy_prefix": True, "remove_extra_whitespaces": False, **normalizer}.items():
        setattr(proto.normalizer_spec, key, value)
    return proto


def merged_pieces(user: tuple[str, ...] = ()) -> list[tuple[str, float, int]]:
    """Return the unknown piece, controls, all bytes, then pieces that merge, best first, and their letters."""
    start = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), *((text, 0.0, 4) for text in user)]
    start += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
    texts = ["▁a", "ab", "▁ab", "ba", "aba", "▁▁", "bab", "abab", "a", "b", "▁", "c", "é"]
    return start + [(text, -float(n), 1) for n, text in enumerate(texts)]


def model_of(vocab_size: int, model_type: str, tmp_path: Path) -> Path:
    """Write a llama of a model type without a tokenizer."""
    folder = small.llama(tmp_path / "model", layers=1)
    assert vocab_size <= small.V
    config = json.loads((folder / "config.json").read_text()) | {"model_type": model_type}
    return put(folder, tokenizer__json=None, config__json=config)


@pytest.mark.parametrize(("prefix", "user"), [(True, ()), (False, ()), (False, ("▁▁▁", "<b>", "▁▁"))])
def test_sentencepiece_alone_is_converted_as_by_transformers(
    prefix: bool, user: tuple[str, ...], tmp_path: Path
) -> None:
    listed = [piece for piece in merged_pieces(user) if piece[0] not in user or piece[2] == 4]
    proto = sentencepiece(listed, add_dummy_prefix=prefix)
    folder = model_of(len(listed), "llama", tmp_path)
    (folder / "tokenizer.model").write_bytes(proto.SerializeToString())
    vocab = open_model(str(folder)).vocab
    ids = {piece.piece: i for i, piece in enumerate(proto.pieces)}
    reference = SpmConverter.build_tokenizer_from_spm_proto(proto, ids)
    assert [vocab.text(i) for i in range(3, len(ids)) if proto.pieces[i].type != 6] == [
        piece.piece.replace("▁", " ") for piece in list(proto.pieces)[3:] if piece.type != 6
    ]
    assert [i for i in range(small.V) if vocab.special[i]] == [0, 1, 2]
    assert vocab.find("ab")[0] == ids["▁ab"]

    @given(st.text(alphabet="ab cé<>\n日", max_size=12))
    @settings(max_examples=150, deadline=None)
    def splits(text: str) -> None:
        assert vocab.encode(text) == reference.encode(text, add_special_tokens=False).ids

    splits()


def test_tokens_added_to_sentencepiece_are_read(tmp_path: Path) -> None:
    pieces = merged_pieces()
    folder = model_of(len(pieces), "llama", tmp_path)
    (folder / "tokenizer.model").write_bytes(sentencepiece(pieces).SerializeToString())
    put(folder, added_tokens__json={"<pad>": len(pieces)})
    vocab = open_model(str(folder)).vocab
    assert vocab.pieces[len(pieces)] == "<pad>" and vocab.encode("<pad>") == [len(pieces)]
    put(folder, added_tokens__json={"<pad>": 1})
    with pytest.raises(BadModel, match=rf"give the id 1 to '<pad>', .* gives {len(pieces)}"):
        open_model(str(folder))


def tiktoken_lines() -> str:
    return "".join(f"{base64.b64encode(bytes([n])).decode()} {n}\n" for n in range(256))


ALONE: dict[str, tuple[str, str, Callable[[], bytes], str]] = {
    "letters": (
        "tokenizer.model",
        "llama",
        lambda: sentencepiece(merged_pieces(), model_type=4).SerializeToString(),
        "neither a Unigram nor a BPE model",
    ),
    "a model that moves its ids": (
        "tokenizer.model",
        "opt",
        lambda: sentencepiece(merged_pieces()).SerializeToString(),
        "which ids a opt gives",
    ),
    "characters rewritten": (
        "tokenizer.model",
        "llama",
        lambda: sentencepiece(merged_pieces(), precompiled_charsmap=b"x").SerializeToString(),
        "rewrites characters",
    ),
    "spaces removed": (
        "tokenizer.model",
        "llama",
        lambda: sentencepiece(merged_pieces(), remove_extra_whitespaces=True).SerializeToString(),
        "removes extra spaces",
    ),
    "spaces kept": (
        "tokenizer.model",
        "llama",
        lambda: sentencepiece(merged_pieces(), escape_whitespaces=False).SerializeToString(),
        "keeps spaces",
    ),
    "pieces of a user behind a prefix": (
        "tokenizer.model",
        "llama",
        lambda: sentencepiece(merged_pieces(("<b>",))).SerializeToString(),
        "user-defined pieces",
    ),
    "cut short": (
        "tokenizer.model",
        "llama",
        lambda: sentencepiece(merged_pieces()).SerializeToString()[:-3],
        "cut short",
    ),
    "tiktoken, as Llama 3 has it": ("tokenizer.model", "llama", lambda: tiktoken_lines().encode(), "tiktoken"),
    "tiktoken": ("qwen.tiktoken", "llama", lambda: tiktoken_lines().encode(), "qwen.tiktoken cannot be read here"),
    "spiece": ("spiece.model", "llama", lambda: b"x", "spiece.model cannot be read here"),
    "Mistral's": ("tokenizer.model.v3", "llama", lambda: b"x", r"tokenizer\.model\.v3 cannot be read here"),
    "vocab.json alone": ("vocab.json", "llama", lambda: b"{}", r"vocab\.json cannot be read here"),
    "tekken of the first version": (
        "tekken.json",
        "llama",
        lambda: json.dumps(tekken(special=None)).encode(),
        "does not name its special tokens.*mistral-common",
    ),
    "tekken that is something else": ("tekken.json", "llama", lambda: b'{"config": []}', "cannot be read"),
}


@pytest.mark.parametrize("name", ALONE)
def test_an_unsupported_vocabulary_is_named_with_advice(name: str, tmp_path: Path) -> None:
    file, model_type, content, message = ALONE[name]
    folder = model_of(10, model_type, tmp_path)
    (folder / file).write_bytes(content())
    with pytest.raises(BadModel, match=message) as caught:
        open_model(str(folder))
    assert file in str(caught.value)
    assert f"AutoTokenizer.from_pretrained('{folder}').save_pretrained('{folder}')" in str(caught.value)


@pytest.mark.parametrize("pieces", ["target.spm", "sentencepiece.bpe.model"])
def test_ids_apart_from_their_pieces_are_named(pieces: str, tmp_path: Path) -> None:
    """Transformers has no fast tokenizer of Marian and its like, so that it cannot write a tokenizer.json."""
    folder = model_of(10, "opt", tmp_path)
    (folder / pieces).write_bytes(b"x")
    (folder / "vocab.json").write_text("{}")
    with pytest.raises(
        BadModel, match=re.escape(f"{pieces}, vocab.json cannot be read here. transformers writes none")
    ):
        open_model(str(folder))


COMPLETE = sentencepiece(merged_pieces()).SerializeToString()


@given(data=st.binary(max_size=60) | st.integers(0, len(COMPLETE)).map(lambda n: COMPLETE[:n]))
@settings(max_examples=100, deadline=None)
def test_arbitrary_bytes_are_sentencepiece_or_refused(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("x")
    put(folder, config__json={"model_type": "llama"})
    (folder / "tokenizer.model").write_bytes(data)
    with pytest.raises(BadModel, match=r"tokenizer\.model (cannot be read|is )|has no weights"):
        zp.open_model(str(folder))


SPECIAL: list[dict[str, Any]] | None = [
    {"rank": n, "token_str": text, "is_control": True} for n, text in enumerate(("<unk>", "<s>", "[INST]"))
]


def tekken(special: list[dict[str, Any]] | None = SPECIAL, **config: Any) -> dict[str, Any]:
    tokens = [
        *(bytes([n]) for n in range(256)),
        b"ab",
        b" a",
        b" ab",
        b"abab",
        b"\xc3\xa9",
        b"aba",
        b"bab",
        b"not kept",
    ]
    content: dict[str, Any] = {
        "config": {"pattern": r"\p{L}+| ?\p{L}+|\s+|.", "default_num_special_tokens": 5, "default_vocab_size": 268},
        "vocab": [{"rank": n, "token_bytes": base64.b64encode(t).decode()} for n, t in enumerate(tokens)],
        "special_tokens": special,
    }
    content["config"] |= config
    return content


@pytest.mark.parametrize("config", [{}, {"default_num_special_tokens": None, "default_vocab_size": None}])
def test_tekken_alone_is_converted_as_by_transformers(config: dict[str, Any], tmp_path: Path) -> None:
    folder = put(model_of(300, "llama", tmp_path), tekken__json=tekken(**config))
    vocab, reference = open_model(str(folder)).vocab, MistralConverter(str(folder / "tekken.json")).converted()
    assert vocab.pieces == [reference.id_to_token(i) or "" for i in range(small.V)]
    special = [i for i, added in reference.get_added_tokens_decoder().items() if added.special]
    assert np.flatnonzero(vocab.special).tolist() == sorted(special)
    texts = ["ab abab", " ab[INST]é bab", "日\n", "<SPECIAL_4>a"]
    assert [vocab.encode(text) for text in texts] == [reference.encode(text).ids for text in texts]


@pytest.mark.parametrize("change", ["special", "vocab"])
def test_ranks_out_of_order_are_refused(change: str, tmp_path: Path) -> None:
    content = tekken()
    entries = content["special_tokens" if change == "special" else "vocab"]
    entries[1] = entries[1] | {"rank": 2}
    with pytest.raises(BadModel, match=r"tekken\.json cannot be read: the ranks of its"):
        open_model(str(put(model_of(300, "llama", tmp_path), tekken__json=content)))


# GGUF


@pytest.mark.parametrize("kind", ["none", "no_vocab", "rwkv", "plamo2", "hybriddna"])
def test_an_unsupported_tokenizer_of_llama_cpp_is_named(kind: str) -> None:
    metadata = {"tokenizer.ggml.model": kind, "tokenizer.ggml.tokens": ["a"]}
    with pytest.raises(BadModel, match=rf"'{kind}' \(.*\), which is not read; known are gpt2, llama, bert, t5"):
        Vocabulary.from_gguf(metadata, 1)


def gguf_metadata(types: list[int]) -> dict[str, Any]:
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet())[:58], *(f"<{n}>" for n in range(len(types) - 58))]
    keys = {"model": "gpt2", "pre": "gpt-2", "tokens": tokens, "token_type": types, "merges": []}
    return {f"tokenizer.ggml.{key}": value for key, value in keys.items()}


def test_added_tokens_of_gguf_beyond_the_rows_are_left_out_and_ordinary_ones_refused() -> None:
    control, user, unused = gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED, gguf.TokenType.UNUSED
    vocab = Vocabulary.from_gguf(gguf_metadata([1] * 58 + [control, user, unused, control]), 59, "a.gguf")
    assert vocab.size == 59 and vocab.pieces[58] == "<0>" and vocab.special[58]
    assert vocab.notes == (
        "a.gguf has 3 added tokens beyond the 59 rows of the embedding, left out: <1> (59), <2> (60), <3> (61).",
    )
    assert max(vocab.encode("<0><1><3>")) == 58
    with pytest.raises(BadModel, match=r"a\.gguf is the tokenizer of another model: 2 of its 60 tokens, such as <1>"):
        Vocabulary.from_gguf(gguf_metadata([1] * 58 + [control, 1]), 58, "a.gguf")


@pytest.mark.parametrize("number", [2**32 + 1, 48 * 10**9, 230_196_224])
def test_ids_too_large_for_the_library_are_refused(number: int, tmp_path: Path) -> None:
    """`tests/fuzz.py vocabulary-files --seed 0 --case 322` found such an id, which killed the process."""
    vocab = {chr(ord("a") + n): n for n in range(20)} | {"t": number}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(BadModel, match="its vocabulary files cannot be read"):
        tokenizer_json(tmp_path)
