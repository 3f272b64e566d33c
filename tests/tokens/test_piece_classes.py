"""SentencePiece's files: ids of transformers' classes, splits of SentencePiece itself."""

import base64
import importlib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import tokenization_utils_sentencepiece as backend
from transformers.convert_slow_tokenizer import NllbConverter, SpmConverter, XGLMConverter
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES
from transformers.utils import sentencepiece_model_pb2_new as sentencepiece_pb2

import spm
from spm import SentencePieceProcessor
from zeropass.errors import BadModel
from zeropass.tokens import languages, sentencepiece
from zeropass.tokens.piece_classes import CLASS_OF_TYPE, PIECE_CLASSES, PieceClass
from zeropass.tokens.tokenizer_files import tokenizer_json
from zeropass.tokens.vocabulary import Vocabulary

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")

RECORDED = json.loads((Path(__file__).parent / "sentencepiece.json").read_text())
"""Models that sentencepiece 0.2.3 trained, with its own splits (record_sentencepiece.py), and ids of transformers 5.24.

All follow rules of their own that rewrite characters; ``t5`` begins with T5's controls, ``fairseq`` with the usual.
"""

MODELS = {name: base64.b64decode(text) for name, text in RECORDED["models"].items()}
PROCESSORS = {name: SentencePieceProcessor(data) for name, data in MODELS.items()}
NUMBERED = ("MarianTokenizer", "M2M100Tokenizer", "SMALL100Tokenizer", "Speech2TextTokenizer")
LOST = re.compile("[Ａﬁé]\u0301")
"""A character that is rewritten, with a mark: the tokenizers library loses the mark, which SentencePiece keeps."""

TEXTS = st.text(alphabet="the catsonér \n▁Ａﬁ,日本qz<>", max_size=14)
FURTHER = (
    "a<lang:fr>the",
    ">>fra<< the",
    ">>fra<<the cat",
    "a >>fra<<",
    ">>",
    "日本",
    "日本 語",
    "</s> the <unk>x",
    "語日",
)


def folder_of(name: str, tmp_path: Path, data: bytes | None = None, **config: Any) -> Path:
    """Write the files of a class into a folder."""
    kind = PIECE_CLASSES[name]
    kind = kind if isinstance(kind, PieceClass) else next(iter(kind.classes.values()))
    usual = "users" if name == "Speech2TextTokenizer" else RECORDED["classes"].get(name, {"model": "bpe"})["model"]
    usual_data = deberta() if name == "DebertaV2Tokenizer" else MODELS[usual]
    model = usual_data if data is None else data
    (tmp_path / kind.file).write_bytes(model)
    if kind.numbered:
        (tmp_path / "vocab.json").write_text(json.dumps(numbers_of(name, model)))
        (tmp_path / "target.spm").write_bytes(MODELS["users"])
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name, **config}))
    return tmp_path


def numbers_of(name: str, model: bytes) -> dict[str, int]:
    """Return a vocab.json: without some pieces of the file, with others that it has not, in an order of its own."""
    proto = sentencepiece_pb2.ModelProto.FromString(model)
    pieces = [piece.piece for piece in proto.pieces if piece.type in (1, 4)]
    if name == "Speech2TextTokenizer":
        return {piece: i for i, piece in enumerate([*[p.piece for p in proto.pieces], "日本"])}
    first, last = (
        (["</s>", "<unk>"], ["<pad>"]) if name == "MarianTokenizer" else (["<s>", "<pad>", "</s>", "<unk>"], [])
    )
    kept = [piece for n, piece in enumerate(reversed(pieces)) if n % 7 != 3]
    return {piece: i for i, piece in enumerate([*first, *kept, "日本", "▁日", ">>fra<<", *last])}


def changed(name: str, **changes: Any) -> bytes:
    """Return a recorded model with fields changed: ``normalizer_spec__add_dummy_prefix=False``."""
    proto = sentencepiece_pb2.ModelProto.FromString(MODELS[name])
    for key, value in changes.items():
        part, field = key.split("__")
        setattr(getattr(proto, part), field, value)
    return proto.SerializeToString()


def splits_as(vocab: Vocabulary, reference: Callable[[str], list[int]], examples: int = 100) -> None:
    """Require the splits of a reference, of drawn texts and of those that name tokens."""

    @given(TEXTS)
    @settings(max_examples=examples, deadline=None)
    def splits(text: str) -> None:
        assert vocab.encode(text) == reference(text), text

    for text in FURTHER:
        assert vocab.encode(text) == reference(text), text
    splits()


def test_every_class_is_tested() -> None:
    assert {*RECORDED["classes"], *(name for name, *_ in OWN), *CONVERTED, "DebertaV2Tokenizer"} == {*PIECE_CLASSES}
    assert {*PIECE_CLASSES} >= {*CLASS_OF_TYPE.values()}


@pytest.mark.parametrize("name", MODELS)
def test_the_copy_in_python_splits_as_sentencepiece(name: str) -> None:
    for text, split in zip(RECORDED["texts"], RECORDED["splits"][name], strict=True):
        assert PROCESSORS[name].encode(text) == split or LOST.search(text), text


OWN: list[tuple[str, str, dict[str, Any]]] = [
    ("MarianTokenizer", "fairseq", {}),
    ("MarianTokenizer", "bpe", {"source_lang": "en"}),
    ("M2M100Tokenizer", "bpe", {}),
    ("M2M100Tokenizer", "fairseq", {"src_lang": "fr"}),
    ("M2M100Tokenizer", "bytes", {"language_codes": "wmt21"}),
    ("SMALL100Tokenizer", "bpe", {"tgt_lang": "fr"}),
    ("Speech2TextTokenizer", "users", {}),
    ("Speech2TextTokenizer", "users", {"lang_codes": "mustc", "tgt_lang": "ru"}),
    ("PLBartTokenizer", "bpe", {}),
    ("PLBartTokenizer", "fairseq", {"src_lang": "java"}),
    ("PLBartTokenizer", "fairseq", {"language_codes": "multi"}),
]
"""Classes that transformers has in Python, which only number what SentencePiece splits."""


@pytest.mark.parametrize(("name", "model", "config"), OWN)
def test_a_class_in_python_is_read_as_transformers_has_it(
    name: str, model: str, config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(name, tmp_path, MODELS[model], **config)
    vocab = Vocabulary.from_tokenizer_json(tokenizer_json(folder))
    if name == "SMALL100Tokenizer":  # published with its model: M2M-100's, but for the language that stands in front
        config = {"tokenizer_class": "M2M100Tokenizer", "src_lang": config["tgt_lang"]}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    reference = transformers_class(folder, monkeypatch)
    assert vocab.pieces == reference.convert_ids_to_tokens(range(vocab.size))
    assert vocab.size == len({**reference.get_vocab(), **getattr(reference, "lang_token_to_id", {})})
    assert vocab.kind == "sentencepiece"
    assert {*reference.all_special_ids} <= {*np.flatnonzero(vocab.special).tolist()}
    text, plain = reference.encode("the"), reference.encode("the", add_special_tokens=False)
    first = text.index(plain[0])
    assert vocab.around == (tuple(text[:first]), tuple(text[first + len(plain) :]))
    splits_as(vocab, lambda text: reference.encode(text, add_special_tokens=False))
    again = Vocabulary.from_tokenizer_json(vocab.to_tokenizer_json(), vocab.size)
    assert again.encode("日本 the語 xq") == vocab.encode("日本 the語 xq") and again.around == vocab.around


def transformers_class(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the tokenizer of transformers, with SentencePiece in plain Python."""
    name = json.loads((folder / "tokenizer_config.json").read_text())["tokenizer_class"]
    monkeypatch.setitem(sys.modules, "sentencepiece", spm.STUB)
    monkeypatch.setattr(backend, "spm", spm.STUB)
    monkeypatch.setattr(backend, "requires_backends", lambda *_: None)
    module = {"Marian": "marian", "M2M100": "m2m_100", "Speech2Text": "speech_to_text", "PLBart": "plbart"}[name[:-9]]
    return getattr(
        importlib.import_module(f"transformers.models.{module}.tokenization_{module}"), name
    ).from_pretrained(folder)


CONVERTED: dict[str, list[tuple[dict[str, Any], list[str], list[str]]]] = {
    "NllbTokenizer": [
        ({}, ["eng_Latn"], ["</s>"]),
        ({"src_lang": "fra_Latn"}, ["fra_Latn"], ["</s>"]),
        ({"legacy_behaviour": True}, [], ["</s>", "eng_Latn"]),
    ],
    "XGLMTokenizer": [({}, ["</s>"], [])],
}
"""Settings of two classes with what stands around a text, as their published sources say.

Transformers 5.24 gives no languages to NLLB's file alone, and reads none of XGLM's, so that the ids are those of its
converters, which transformers 4 used.
"""


@pytest.mark.parametrize("name", CONVERTED)
@pytest.mark.parametrize("model", ["fairseq", "bpe"])
def test_a_class_has_the_ids_of_its_converter(name: str, model: str, tmp_path: Path) -> None:
    converter = {"NllbTokenizer": NllbConverter, "XGLMTokenizer": XGLMConverter}[name]
    pieces = [piece for piece, _ in converter.vocab(None, PROCESSORS[model].proto)]
    if name == "NllbTokenizer":
        assert "<mask>" not in pieces and "eng_Latn" not in pieces
        pieces += [*languages.NLLB, "<mask>"]
    for config, first, last in CONVERTED[name]:
        vocab = Vocabulary.from_tokenizer_json(tokenizer_json(folder_of(name, tmp_path, MODELS[model], **config)))
        assert vocab.pieces == pieces
        assert [[pieces[i] for i in part] for part in vocab.around] == [first, last]
    unknown = pieces.index("<unk>")

    def reference(text: str) -> list[int]:
        parts = re.split("(</s>|<s>|<unk>)", text)
        splits = [[part] if n % 2 else PROCESSORS[model].encode(part) for n, part in enumerate(parts)]
        return [pieces.index(piece) if piece in pieces else unknown for split in splits for piece in split]

    splits_as(vocab, reference)


def deberta() -> bytes:
    """Return a model with the controls of DeBERTa-v3."""
    proto = sentencepiece_pb2.ModelProto.FromString(MODELS["users"])
    for piece, name in zip(proto.pieces, ("[PAD]", "[CLS]", "[SEP]", "[UNK]"), strict=False):
        piece.piece = name
    return proto.SerializeToString()


def test_deberta_has_its_mask_behind_the_pieces(tmp_path: Path) -> None:
    processor = SentencePieceProcessor(deberta())
    folder = folder_of("DebertaV2Tokenizer", tmp_path, deberta(), do_lower_case=False, mask_token="[MASK]")
    vocab = Vocabulary.from_tokenizer_json(tokenizer_json(folder))
    assert vocab.pieces == [*(piece.piece for piece in processor.proto.pieces), "[MASK]"]
    assert vocab.around == ((1,), (2,)) and vocab.encode("the[MASK]")[-1] == vocab.size - 1

    @given(TEXTS)
    @settings(max_examples=100, deadline=None)
    def splits(text: str) -> None:
        assert vocab.encode(text) == [processor.piece_to_id(piece) for piece in processor.encode(text)], text

    splits()


@pytest.mark.parametrize("model", ["fairseq", "users", "bytes"])
def test_unigram_pieces_with_ids_of_their_own(model: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(MODELS[model])
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    vocab = Vocabulary.from_tokenizer_json(tokenizer_json(tmp_path))
    assert vocab.pieces == [piece.piece for piece in PROCESSORS[model].proto.pieces]
    assert vocab.around == ((), ())
    require_sentencepiece(vocab, model)


def require_sentencepiece(vocab: Vocabulary, model: str) -> None:
    """Require the splits that the library gives for the recorded texts, and those of its copy for others."""
    processor = PROCESSORS[model]

    def numbered(pieces: list[str]) -> list[int]:
        return [processor.piece_to_id(piece) for piece in pieces]

    for text, split in zip(RECORDED["texts"], RECORDED["splits"][model], strict=True):
        assert vocab.encode(text) == numbered(split) or LOST.search(text), text

    @given(TEXTS.filter(lambda text: "<s>" not in text))
    @settings(max_examples=100, deadline=None)
    def splits(text: str) -> None:
        assert vocab.encode(text) == numbered(processor.encode(text)), text

    splits()


@pytest.mark.parametrize("model", ["t5", "bytes"])
def test_unigram_of_gguf_takes_the_same_steps(model: str) -> None:
    proto = PROCESSORS[model].proto
    metadata = {
        "model": "t5",
        "tokens": [piece.piece for piece in proto.pieces],
        "scores": [piece.score for piece in proto.pieces],
        "token_type": [gguf.TokenType(piece.type) for piece in proto.pieces],
        "precompiled_charsmap": list(proto.normalizer_spec.precompiled_charsmap),
        "add_space_prefix": proto.normalizer_spec.add_dummy_prefix,
        "remove_extra_whitespaces": proto.normalizer_spec.remove_extra_whitespaces,
    }
    vocab = Vocabulary.from_gguf({f"tokenizer.ggml.{key}": value for key, value in metadata.items()})
    require_sentencepiece(vocab, model)


@pytest.mark.parametrize("name", RECORDED["classes"])
def test_ids_are_those_of_transformers_and_splits_those_of_sentencepiece(name: str, tmp_path: Path) -> None:
    recorded = RECORDED["classes"][name]
    vocab = Vocabulary.from_tokenizer_json(tokenizer_json(folder_of(name, tmp_path)))
    assert vocab.kind == "sentencepiece" and vocab.pieces == recorded["pieces"]
    special = np.flatnonzero(vocab.special | (vocab.unused & vocab.literal)).tolist()
    assert {*recorded["special"]} <= {*special}
    first, last = vocab.around
    text = [recorded["pieces"].index(piece) for piece in RECORDED["splits"][recorded["model"]][0]]
    assert [vocab.pieces[i] for i in (*first, *text, *last)] == recorded["around"]
    unknown = vocab.pieces.index("<unk>")
    for text, split in zip(RECORDED["texts"], RECORDED["splits"][recorded["model"]], strict=True):
        ids = [vocab.pieces.index(piece) if piece in vocab.pieces else unknown for piece in split]
        assert vocab.encode(text) == ids or LOST.search(text), text


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"normalizer_spec__add_dummy_prefix": False},
        {"normalizer_spec__remove_extra_whitespaces": False},
        {"normalizer_spec__precompiled_charsmap": b""},
    ],
)
def test_splits_follow_the_settings_of_the_file(changes: dict[str, Any], tmp_path: Path) -> None:
    proto = sentencepiece_pb2.ModelProto.FromString(changed("t5", **changes))
    proto.pieces[-2].type = 4
    data = proto.SerializeToString()
    vocab = Vocabulary.from_tokenizer_json(tokenizer_json(folder_of("T5Tokenizer", tmp_path, data, extra_ids=0)))
    assert vocab.pieces == [piece.piece for piece in proto.pieces]
    reference = SpmConverter.build_tokenizer_from_spm_proto(proto, [(p.piece, p.score) for p in proto.pieces])

    @given(st.text(alphabet="the catsonér \n▁Ａﬁ,", max_size=14))
    @settings(max_examples=150, deadline=None)
    def splits(text: str) -> None:
        if not text.rstrip(" \n").endswith("▁"):  # which SentencePiece removes, as recorded, but not its copy
            assert vocab.encode(text) == reference.encode(text, add_special_tokens=False).ids

    splits()


@pytest.mark.parametrize("model_type", CLASS_OF_TYPE)
def test_a_folder_that_names_no_class_has_that_of_its_type(model_type: str, tmp_path: Path) -> None:
    folder = folder_of(CLASS_OF_TYPE[model_type], tmp_path)
    stated = tokenizer_json(folder)
    (folder / "tokenizer_config.json").unlink()
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    assert tokenizer_json(folder) == stated


def test_the_number_of_extra_ids_and_the_source_language_are_read(tmp_path: Path) -> None:
    t5 = Vocabulary.from_tokenizer_json(tokenizer_json(folder_of("T5Tokenizer", tmp_path, extra_ids=2)))
    assert t5.pieces[-3:] == [t5.pieces[-3], "<extra_id_1>", "<extra_id_0>"] and t5.size == 62
    mbart = folder_of("MBart50Tokenizer", tmp_path, src_lang="ro_RO")
    vocab = Vocabulary.from_tokenizer_json(tokenizer_json(mbart))
    assert [vocab.pieces[i] for part in vocab.around for i in part] == ["ro_RO", "</s>"]


REFUSED: dict[str, tuple[str, bytes, dict[str, Any], str]] = {
    "words": ("T5Tokenizer", changed("t5", trainer_spec__model_type=3), {}, "neither a Unigram nor a BPE model"),
    "BPE with pieces of users": (
        "NllbTokenizer",
        changed("users", trainer_spec__model_type=2),
        {},
        "it is a BPE model with user-defined pieces and its first pieces are <s>, <pad>, </s>, not",
    ),
    "a suffix": ("T5Tokenizer", changed("t5", trainer_spec__treat_whitespace_as_suffix=True), {}, "behind words"),
    "spaces": ("T5Tokenizer", changed("t5", normalizer_spec__escape_whitespaces=False), {}, "keeps spaces"),
    "T5's file for fairseq": ("XLMRobertaTokenizer", MODELS["t5"], {}, "first pieces are <pad>, </s>, <unk>, not"),
    "fairseq's file for Pegasus": ("PegasusTokenizer", MODELS["fairseq"], {}, "first pieces are <unk>, <s>, not"),
    "another offset": ("PegasusTokenizer", MODELS["t5"], {"offset": 0}, "offset is 0; known is 103"),
    "another mask": ("PegasusTokenizer", MODELS["t5"], {"mask_token": "[MASK]"}, r"mask_token is '\[MASK\]'"),
    "a renamed token": ("T5Tokenizer", MODELS["t5"], {"pad_token": "[P]"}, r"pad_token is '\[P\]', which is none"),
    "extra ids": ("T5Tokenizer", MODELS["t5"], {"extra_ids": True}, "extra_ids is True"),
    "no prefix": ("XLMRobertaTokenizer", MODELS["fairseq"], {"add_prefix_space": False}, "add_prefix_space is False"),
    "samples": ("T5Tokenizer", MODELS["t5"], {"sp_model_kwargs": {"enable_sampling": True}}, "sp_model_kwargs"),
    "a language": ("MBartTokenizer", MODELS["fairseq"], {"src_lang": "xx"}, "'xx', which stands around"),
    "another language of NLLB": ("NllbTokenizer", MODELS["bpe"], {"src_lang": "▁the"}, "'▁the', which stands around"),
    "another language of M2M-100": ("M2M100Tokenizer", MODELS["bpe"], {"src_lang": "xx"}, "'__xx__', which stands"),
    "languages": ("M2M100Tokenizer", MODELS["bpe"], {"language_codes": "x"}, "is 'x'; known are 'm2m100', 'wmt21'"),
    "a list of languages": ("PLBartTokenizer", MODELS["bpe"], {"language_codes": ["base"]}, r"is \['base'\]; known"),
    "two vocabularies": ("MarianTokenizer", MODELS["bpe"], {"separate_vocabs": True}, "separate_vocabs is True; known"),
    "small letters": ("Speech2TextTokenizer", MODELS["users"], {"do_lower_case": True}, "do_lower_case is True; known"),
    "another end": ("MarianTokenizer", MODELS["bpe"], {"eos_token": "<pad>"}, "eos_token is '<pad>'; known is '</s>'"),
    "cut short": ("T5Tokenizer", MODELS["t5"][:-3], {}, "cut short"),
    "a table of 4 GiB": (
        "T5Tokenizer",
        changed("t5", normalizer_spec__precompiled_charsmap=b"\xfc\xff\xff\xff" + bytes(8)),
        {},
        "its table of characters is cut short",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_moves_ids_or_splits_is_refused(name: str, tmp_path: Path) -> None:
    kind, data, config, message = REFUSED[name]
    with pytest.raises(BadModel, match=message) as caught:
        tokenizer_json(folder_of(kind, tmp_path, data, **config))
    assert ("AutoTokenizer" in str(caught.value)) != (
        kind in NUMBERED or "known are" in message or "known" in message[-5:]
    )


VOCABULARIES: dict[str, tuple[str, dict[str, Any], Callable[[dict[str, int]], Any], str]] = {
    "holes": ("M2M100Tokenizer", {}, lambda ids: ids | {"▁x": 900}, "and ids that are not 0 to"),
    "two of one id": ("MarianTokenizer", {}, lambda ids: ids | {"▁x": 1}, "have the same id 1"),
    "an id that is a text": ("MarianTokenizer", {}, lambda ids: ids | {"▁x": "7"}, "the id of '▁x' is '7'"),
    "a language of its own": ("M2M100Tokenizer", {}, lambda ids: ids | {"__fr__": len(ids)}, "are spelled alike"),
    "nothing unknown": ("MarianTokenizer", {}, lambda ids: {"</s>": 0, "a": 1, "<pad>": 2}, "'<unk>' is none of"),
    "a list": ("MarianTokenizer", {}, lambda ids: [*ids], "list"),
    "a language moved": (
        "Speech2TextTokenizer",
        {"lang_codes": "mustc"},
        lambda ids: ids | {"<lang:fr>": ids["<lang:ru>"], "<lang:ru>": ids["<lang:fr>"]},
        "'<lang:fr>' is piece 5, but vocab.json gives it the id 6",
    ),
}


@pytest.mark.parametrize("name", VOCABULARIES)
def test_a_list_that_does_not_number_its_pieces_is_refused(name: str, tmp_path: Path) -> None:
    kind, config, change, message = VOCABULARIES[name]
    model = MODELS["users" if kind == "Speech2TextTokenizer" else "bpe"]
    folder = folder_of(kind, tmp_path, model, **config)
    ids = change(json.loads((folder / "vocab.json").read_text()))
    (folder / "vocab.json").write_text(json.dumps(ids))
    with pytest.raises(BadModel, match=message):
        tokenizer_json(folder)


def test_a_folder_without_the_file_of_its_class_is_named(tmp_path: Path) -> None:
    folder = folder_of("MarianTokenizer", tmp_path, MODELS["bpe"])
    (folder / "source.spm").unlink()
    with pytest.raises(BadModel, match=r"has no tokenizer\.json, and target\.spm, vocab\.json cannot be read here"):
        tokenizer_json(folder)


@pytest.mark.parametrize("model_type", CLASS_OF_TYPE)
def test_the_class_of_a_type_is_that_of_transformers(model_type: str) -> None:
    theirs = TOKENIZER_MAPPING_NAMES[model_type]  # None without sentencepiece
    assert theirs in (CLASS_OF_TYPE[model_type], None) or (model_type, theirs) == ("umt5", "TokenizersBackend")


@pytest.mark.parametrize("config", [{"model_type": "mbart"}, {"model_type": "t5", "tokenizer_class": "MyTokenizer"}])
def test_a_class_that_is_not_known_is_refused(config: dict[str, str], tmp_path: Path) -> None:
    for file in ("spiece.model", "sentencepiece.bpe.model"):
        (tmp_path / file).write_bytes(MODELS["t5"])
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadModel, match=r"spiece\.model cannot be read here"):
        tokenizer_json(tmp_path)


@given(st.integers(0, len(MODELS["bytes"]) - 1), st.integers(0, 255))
@settings(max_examples=200, deadline=None)
def test_pieces_are_read_alike_fast_and_slowly(place: int, byte: int) -> None:
    data = MODELS["bytes"][:place] + bytes([byte]) + MODELS["bytes"][place + 1 :]

    def read() -> object:
        try:
            return repr(sentencepiece.model_of(data))
        except ValueError as error:
            return type(error)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sentencepiece, "_usual_piece", lambda _: None)
        slow = read()
    assert read() == slow
