"""``vocab.json`` with ``merges.txt``: every class splits as that of transformers does, or is refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

from zeropass.errors import BadModel
from zeropass.tokens.bpe_files import _BYTE_LEVEL, BPE_CLASS_OF_TYPE, OPENAI_GPT, WITHOUT_FAST
from zeropass.tokens.tokenizer_files import tokenizer_json
from zeropass.tokens.vocabulary import Vocabulary

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "<|endoftext|>", "<|padding|>"]
SPECIAL += ["[CLS]", "[SEP]", "[UNK]", "[PAD]", "[MASK]"]
LEVEL_MERGES = ["a b", "c ab", "Ġ a", "1 2", "Ġ 1", "' s", "Ã ©", "e Ì", "eÌ ģ", "Ċ Ċ", "Ġ Ġ"]
END_MERGES = ["a b", "a b</w>", "c ab</w>", "1 2</w>", "' s</w>"]


def folder_of(tmp_path: Path, ends: bool = False, **config: Any) -> Path:
    """Write both files, of bytes or of letters with ends of words, with a config.json or tokenizer_config.json."""
    letters = "abc12's.,é日"
    pieces = [*letters, *(f"{c}</w>" for c in letters)] if ends else sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = END_MERGES if ends else LEVEL_MERGES
    pieces = list(dict.fromkeys([*SPECIAL, *pieces, *(m.replace(" ", "") for m in merges)]))
    (tmp_path / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    name = "config.json" if "model_type" in config else "tokenizer_config.json"
    (tmp_path / name).write_text(json.dumps(config))
    return tmp_path


@pytest.mark.parametrize("prefix", [{}, {"add_prefix_space": True}, {"add_prefix_space": False}])
@pytest.mark.parametrize("kind", [*_BYTE_LEVEL, OPENAI_GPT])
def test_every_class_splits_as_that_of_transformers(kind: str, prefix: dict[str, bool], tmp_path: Path) -> None:
    folder = folder_of(tmp_path, kind == OPENAI_GPT, tokenizer_class=kind, **prefix)
    vocab = Vocabulary.from_tokenizer_json(tokenizer_json(folder))
    reference = AutoTokenizer.from_pretrained(folder)
    ids = {i: piece for piece, i in reference.get_vocab().items()}
    assert vocab.pieces == [ids[i] for i in range(len(ids))]
    special = {i for i, token in reference.added_tokens_decoder.items() if token.special}
    assert {i for i in range(len(ids)) if vocab.special[i] or (vocab.literal[i] and vocab.unused[i])} == special

    @given(st.text(alphabet="abcAB12's.,é日 \n\u0301e", max_size=12))
    @settings(max_examples=100, deadline=None)
    def splits(text: str) -> None:
        assert vocab.encode(text) == reference.encode(text, add_special_tokens=False), text

    splits()


@pytest.mark.parametrize("model_type", BPE_CLASS_OF_TYPE)
def test_the_class_of_a_type_is_that_of_transformers(model_type: str) -> None:
    theirs = TOKENIZER_MAPPING_NAMES[model_type]
    same = {"LEDTokenizer": "RobertaTokenizer", "MvpTokenizer": "RobertaTokenizer"}
    assert BPE_CLASS_OF_TYPE[model_type] == same.get(theirs, theirs)


@pytest.mark.parametrize("kind", [*WITHOUT_FAST[:7], "CLIPTokenizer", "HerbertTokenizer", "MyTokenizer"])
@pytest.mark.parametrize("ends", [False, True])
def test_another_class_is_refused_by_name(kind: str, ends: bool, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, ends, tokenizer_class=kind)
    with pytest.raises(BadModel, match=f"the class {kind} splits words is not known") as caught:
        tokenizer_json(folder)
    assert ("transformers writes none" in str(caught.value)) == (kind in WITHOUT_FAST)


@pytest.mark.parametrize("model_type", ["biogpt", "ctrl", "blenderbot-small", "xlm", "flaubert", "clip", "llama", "x"])
def test_a_type_of_another_class_is_refused(model_type: str, tmp_path: Path) -> None:
    with pytest.raises(BadModel, match=r"splits words(, nor does the model type| is not known)"):
        tokenizer_json(folder_of(tmp_path, model_type=model_type))


def test_ends_of_words_are_no_bytes(tmp_path: Path) -> None:
    with pytest.raises(BadModel, match="mark the end of a word, as none of a GPT2Tokenizer does"):
        tokenizer_json(folder_of(tmp_path, ends=True, model_type="gpt2"))


def test_two_vocabularies_are_named(tmp_path: Path) -> None:
    for name in ("vocab-src.json", "vocab-tgt.json", "merges.txt"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "config.json").write_text('{"model_type": "fsmt"}')
    with pytest.raises(
        BadModel, match=r"merges\.txt, vocab-src\.json, vocab-tgt\.json cannot be read here.*writes none"
    ):
        tokenizer_json(tmp_path)
