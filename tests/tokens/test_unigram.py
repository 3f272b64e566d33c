"""SentencePiece's Unigram files alone: ids of transformers' classes, splits of SentencePiece itself."""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.convert_slow_tokenizer import SpmConverter
from transformers.utils import sentencepiece_model_pb2_new as sentencepiece_pb2

from zeropass.errors import BadModel
from zeropass.tokens.tokenizer_files import tokenizer_json
from zeropass.tokens.unigram import CLASS_OF_TYPE, UNIGRAM_CLASSES
from zeropass.tokens.vocabulary import Vocabulary

RECORDED = json.loads((Path(__file__).parent / "unigram.json").read_text())
"""Two models that sentencepiece 0.2.3 trained, with its own splits, and what transformers 5.24 makes of them.

Both follow rules of their own that rewrite characters; ``t5`` begins with T5's controls, ``fairseq`` with the usual.
"""

MODELS = {name: base64.b64decode(text) for name, text in RECORDED["models"].items()}


def folder_of(name: str, tmp_path: Path, data: bytes | None = None, **config: Any) -> Path:
    """Write the files of a class into a folder."""
    model = MODELS[RECORDED["classes"][name]["model"]] if data is None else data
    (tmp_path / UNIGRAM_CLASSES[name].file).write_bytes(model)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name, **config}))
    return tmp_path


def changed(name: str, **changes: Any) -> bytes:
    """Return a recorded model with fields changed: ``normalizer_spec__add_dummy_prefix=False``."""
    proto = sentencepiece_pb2.ModelProto.FromString(MODELS[name])
    for key, value in changes.items():
        part, field = key.split("__")
        setattr(getattr(proto, part), field, value)
    return proto.SerializeToString()


def test_every_class_is_recorded() -> None:
    assert {*RECORDED["classes"]} == {*UNIGRAM_CLASSES} >= {*CLASS_OF_TYPE.values()}


@pytest.mark.parametrize("name", UNIGRAM_CLASSES)
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
        assert vocab.encode(text) == ids, text


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
    "BPE": ("T5Tokenizer", changed("t5", trainer_spec__model_type=2), {}, "not a Unigram model"),
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
    "cut short": ("T5Tokenizer", MODELS["t5"][:-3], {}, "cut short"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_moves_ids_or_splits_is_refused(name: str, tmp_path: Path) -> None:
    kind, data, config, message = REFUSED[name]
    with pytest.raises(BadModel, match=message) as caught:
        tokenizer_json(folder_of(kind, tmp_path, data, **config))
    assert "AutoTokenizer.from_pretrained" in str(caught.value)


@pytest.mark.parametrize("config", [{"model_type": "mbart"}, {"model_type": "t5", "tokenizer_class": "MyTokenizer"}])
def test_a_class_that_is_not_known_is_refused(config: dict[str, str], tmp_path: Path) -> None:
    for file in ("spiece.model", "sentencepiece.bpe.model"):
        (tmp_path / file).write_bytes(MODELS["t5"])
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadModel, match=r"spiece\.model cannot be read here"):
        tokenizer_json(tmp_path)
