"""Each name of a pre-tokenizer splits a text as the tokenizer of the models behind it does."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import CohereTokenizer, GPT2Tokenizer, GPTNeoXTokenizer, Qwen2Tokenizer, RobertaTokenizer
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
from transformers.models.qwen3_5.tokenization_qwen3_5 import Qwen3_5Tokenizer

from zeropass.tokens.gguf_splits import IGNORES_MERGES, STEPS

TEXTS = (
    "It's HE'S we'Re  12 123 1234567 3.14 x²½ Ⅷ ",
    "Hello  World\n\n\r\n  def f(x):\n\treturn x/2 //\n\n\n",
    "Größe ÄÖÜ naïve Ünïcödé ǅ ﬁ ŉ İstanbul CamelCase camelCase ABCdef",
    "Привет, МИР! Ελληνικά ΚΕΦΑΛΑΙΑ 日本語のテキスト、中文。한국어 텍스트",
    "हिन्दी में पाठ। عربي، نص ٣٤٥ עִבְרִית ไทย ภาษา नमस्ते க்ஷ",
    "🦙🦙 😶\u200d🌫️ e\u0301a\u0308 \u00a0nbsp \u2028line $+<=>^`|~ ### !!!??? --- ... a_b",
    "   leading and trailing   ",
    "\t\n \r\n",
)
texts = st.text(
    st.one_of(st.characters(exclude_categories=("Cs",)), st.sampled_from(" \n\r'sdmltrev019.,AbÉé日ा\u0301/"))
)


def step(spec: object) -> pre_tokenizers.PreTokenizer:
    """Return steps of a tokenizer.json as the library's pre-tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    content = json.loads(tokenizer.to_str()) | {"pre_tokenizer": {"type": "Sequence", "pretokenizers": spec}}
    return Tokenizer.from_str(json.dumps(content)).pre_tokenizer


def by_pattern(pattern: str) -> pre_tokenizers.PreTokenizer:
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), level])


# transformers' own tokenizers, and its table of patterns by the same names.
MODELS = {
    **{name: by_pattern(pattern) for name, pattern in GGUF_PRE_TOKENIZER_SPLITS.items()},
    "gpt-2": GPT2Tokenizer()._tokenizer.pre_tokenizer,
    "phi-2": GPTNeoXTokenizer()._tokenizer.pre_tokenizer,
    "roberta-bpe": RobertaTokenizer()._tokenizer.pre_tokenizer,
    "command-r": CohereTokenizer()._tokenizer.pre_tokenizer,
    "qwen2": Qwen2Tokenizer()._tokenizer.pre_tokenizer,
    "qwen35": Qwen3_5Tokenizer()._tokenizer.pre_tokenizer,
}


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=200, deadline=None)
@given(text=texts)
def test_a_text_is_split_as_by_the_models(name: str, text: str) -> None:
    mine, theirs = step(list(STEPS[name])), MODELS[name]
    for sample in (text, *TEXTS):
        assert mine.pre_tokenize_str(sample) == theirs.pre_tokenize_str(sample)


@pytest.mark.parametrize("name", STEPS)
def test_no_text_is_lost(name: str) -> None:
    pieces = step(list(STEPS[name]))
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for text in TEXTS:
        split = pieces.pre_tokenize_str(text)
        assert "".join(piece for piece, _ in split) == "".join(piece for piece, _ in whole.pre_tokenize_str(text))


@pytest.mark.parametrize(
    ("name", "text", "pieces"),
    [
        ("gpt-4o", "HelloWorld's 12345", ["Hello", "World's", "Ġ", "123", "45"]),
        ("seed-coder", "a1\n\n!\n", ["a", "1", "ĊĊ", "!", "Ċ"]),
        ("bloom", "Hi there, 12345", ["Hi", "Ġthere", ",", "Ġ12345"]),
        ("glm4", "12345 it's", ["123", "45", "Ġit", "'s"]),
        ("falcon", "12345 it's", ["123", "45", "Ġit", "'", "s"]),
    ],
)
def test_what_the_others_split(name: str, text: str, pieces: list[str]) -> None:
    assert [piece for piece, _ in step(list(STEPS[name])).pre_tokenize_str(text)] == pieces


def test_whole_pieces_are_of_known_names() -> None:
    assert set(IGNORES_MERGES) <= STEPS.keys()
