"""Tokenizers of ``vocab.json`` with ``merges.txt``, which only the tokenizer's class tells apart.

The classes are transformers' (5.24), built as it builds them from these two files.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from zeropass._io.untrusted import read_json
from zeropass.tokens.gguf_splits import GPT2_STEPS, STEPS
from zeropass.tokens.tokenizer_json import Spec, numbered

__all__ = ["BPE_CLASS_OF_TYPE", "WITHOUT_FAST", "bpe_tokenizer", "usual_specials"]

OPENAI_GPT = "OpenAIGPTTokenizer"


@dataclass(frozen=True)
class _ByteLevel:
    """A class of byte-level BPE: how it normalises and splits a text, and the special tokens that it has unnamed."""

    special: tuple[str, ...] = ("<|endoftext|>",)
    prefix: bool = False
    """If set, a text gets a space before it unless the settings say otherwise."""
    composed: bool = False
    """If set, characters are composed (NFC)."""
    steps: tuple[Spec, ...] = GPT2_STEPS


_LIKE_GPT2 = _ByteLevel()
_LIKE_ROBERTA = _ByteLevel(("<s>", "</s>", "<unk>", "<pad>", "<mask>"))
_BYTE_LEVEL = {
    **dict.fromkeys(("GPT2Tokenizer", "CodeGenTokenizer", "WhisperTokenizer"), _LIKE_GPT2),
    **dict.fromkeys(("RobertaTokenizer", "BartTokenizer", "LEDTokenizer"), _LIKE_ROBERTA),
    **dict.fromkeys(("LongformerTokenizer", "MvpTokenizer"), _LIKE_ROBERTA),
    "BlenderbotTokenizer": _ByteLevel(_LIKE_ROBERTA.special, prefix=True),
    "DebertaTokenizer": _ByteLevel(("[CLS]", "[SEP]", "[UNK]", "[PAD]", "[MASK]")),
    "GPTNeoXTokenizer": _ByteLevel(("<|endoftext|>", "<|padding|>"), composed=True),
    "Qwen2Tokenizer": _ByteLevel(composed=True, steps=STEPS["qwen2"]),
}

BPE_CLASS_OF_TYPE = {
    **dict.fromkeys(("gpt2", "gpt_neo", "gptj", "opt", "phi"), "GPT2Tokenizer"),
    **dict.fromkeys(("qwen2", "qwen2_moe", "qwen3", "qwen3_moe"), "Qwen2Tokenizer"),
    **dict.fromkeys(("bart", "roberta", "longformer", "led", "mvp"), "RobertaTokenizer"),
    **dict.fromkeys(("data2vec-text", "roberta-prelayernorm"), "RobertaTokenizer"),
    "codegen": "GPT2Tokenizer",
    "blenderbot": "BlenderbotTokenizer",
    "deberta": "DebertaTokenizer",
    **dict.fromkeys(("gpt_neox", "mpt", "olmo", "olmoe"), "GPTNeoXTokenizer"),
    "whisper": "WhisperTokenizer",
    "openai-gpt": OPENAI_GPT,
    "biogpt": "BioGptTokenizer",
    "blenderbot-small": "BlenderbotSmallTokenizer",
    "clip": "CLIPTokenizer",
    "ctrl": "CTRLTokenizer",
    "flaubert": "FlaubertTokenizer",
    "fsmt": "FSMTTokenizer",
    "xlm": "XLMTokenizer",
}
"""The class of a model type whose folder names none, those that are refused included."""

WITHOUT_FAST = (
    *("BioGptTokenizer", "BlenderbotSmallTokenizer", "CTRLTokenizer", "ClvpTokenizer", "FSMTTokenizer"),
    *("FlaubertTokenizer", "XLMTokenizer", "MarianTokenizer", "M2M100Tokenizer", "Speech2TextTokenizer"),
)
"""Classes for which transformers writes no tokenizer.json."""


def usual_specials(kind: str) -> tuple[str, ...]:
    """Return the special tokens of a class that older folders do not name."""
    return ("<unk>",) if kind == OPENAI_GPT else _BYTE_LEVEL[kind].special


def bpe_tokenizer(folder: Path, kind: str, settings: Mapping[str, Any]) -> Tokenizer:
    """Build the tokenizer of a folder.

    Args:
        folder: Folder of vocab.json and merges.txt.
        kind: The class of its tokenizer, without Fast; empty if it is not known.
        settings: tokenizer_config.json.

    Raises:
        ValueError: For a class that is not known, or ids that are not plain numbers.
    """
    if not kind:
        raise ValueError("no tokenizer_class says how vocab.json with merges.txt splits words, nor does the model type")
    if kind not in (*_BYTE_LEVEL, OPENAI_GPT):
        raise ValueError(f"how vocab.json with merges.txt of the class {kind} splits words is not known")
    vocab = read_json(folder / "vocab.json")
    numbered({"vocab": vocab})
    marked = sum(piece.endswith(("</w>", "@@")) for piece in vocab)
    if kind != OPENAI_GPT and 10 * marked > len(vocab):
        raise ValueError(f"{marked} of its {len(vocab)} tokens mark the end of a word, as none of a {kind} does")
    files = str(folder / "vocab.json"), str(folder / "merges.txt")
    if kind == OPENAI_GPT:
        tokenizer = _word_ends(*files)
    else:
        tokenizer = _byte_level(*files, _BYTE_LEVEL[kind], settings.get("add_prefix_space"))
    if vocab != tokenizer.get_vocab():  # the library truncates ids to 32 bits
        raise ValueError("vocab.json has ids that the tokenizers library reads otherwise")
    return tokenizer


def _byte_level(vocab: str, merges: str, kind: _ByteLevel, stated: bool | None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE.from_file(vocab, merges))
    prefix = kind.prefix if stated is None else bool(stated)
    *splits, level = kind.steps
    patterns = [pre_tokenizers.Split(_regex(step), "isolated") for step in splits]
    last = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=level["use_regex"])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*patterns, last]) if patterns else last
    tokenizer.decoder = decoders.ByteLevel()
    if kind.composed:
        tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def _regex(step: Spec) -> Regex:
    return Regex(step["pattern"]["Regex"])


def _word_ends(vocab: str, merges: str) -> Tokenizer:
    """Build OpenAI GPT's: words in lower case, each ending with ``</w>``."""
    model = models.BPE.from_file(vocab, merges, unk_token="<unk>", end_of_word_suffix="</w>")  # noqa: S106
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    return tokenizer
