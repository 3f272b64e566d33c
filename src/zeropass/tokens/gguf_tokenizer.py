"""Conversion of the tokenizer in a GGUF file to the content of a Hugging Face ``tokenizer.json``.

llama.cpp's converter keeps a flat list of tokens, their types and, for byte-level BPE, the merges. It gives only the
name of the pre-tokenizer (``tokenizer.ggml.pre``); `gguf_splits` says what the names mean.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from zeropass.errors import BadModel
from zeropass.tokens.gguf_splits import GPT2_STEPS, IGNORES_MERGES, STEPS
from zeropass.tokens.sentencepiece_steps import DECODER, Rules, merges_by_score, normalizer, pre_tokenizer, unigram
from zeropass.tokens.tokenizer_json import FLAGS, Spec

__all__ = ["gguf_spec", "gguf_unused"]

SPIECE = "▁"
_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6

UNREAD = {
    "none": "no tokenizer",
    "no_vocab": "no tokenizer",
    "rwkv": "RWKV's greedy tokenizer",
    "plamo2": "PLaMo-2's tokenizer",
    "hybriddna": "HybridDNA's tokenizer",
}
"""Other tokenizer models of llama.cpp (src/llama-vocab.cpp)."""


def gguf_spec(metadata: Mapping[str, Any], path: str) -> tuple[Spec, str]:
    """Build a tokenizer.json from ``tokenizer.ggml.*``, with a note on what in it is approximate.

    Raises:
        BadModel: For a tokenizer of an unknown model, or with lists of different lengths.
    """
    builders = {
        "gpt2": _byte_level_spec,
        "llama": _sentencepiece_spec,
        "bert": _wordpiece_spec,
        "t5": _unigram_spec,
        "gemma4": _gemma4_spec,
    }
    model = metadata.get("tokenizer.ggml.model")
    if model not in builders:
        remark = f" ({UNREAD[model]}), which is not read" if model in UNREAD else ""
        raise BadModel(f"{path}: tokenizer.ggml.model is {model!r}{remark}; known are {', '.join(builders)}.")
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, Sequence) or isinstance(tokens, str) or not all(isinstance(t, str) for t in tokens):
        raise BadModel(f"{path}: tokenizer.ggml.tokens is not a list of texts.")
    types = _gguf_types(metadata, len(tokens), path)
    _check_scores(metadata, len(tokens), path)
    return builders[model](metadata, list(tokens), types)


def _gguf_types(metadata: Mapping[str, Any], size: int, path: str) -> list[int]:
    stored = metadata.get("tokenizer.ggml.token_type")
    types = [_NORMAL] * size if stored is None else [int(t) for t in stored]
    if len(types) != size:
        raise BadModel(f"{path}: {size} tokens, but {len(types)} entries in tokenizer.ggml.token_type.")
    return types


def _check_scores(metadata: Mapping[str, Any], size: int, path: str) -> None:
    """Raise BadModel for a Unigram tokenizer without a score for each token."""
    scores = metadata.get("tokenizer.ggml.scores")
    if metadata["tokenizer.ggml.model"] == "t5" and (not isinstance(scores, Sequence) or len(scores) != size):
        raise BadModel(f"{path}: tokenizer.ggml.scores is not a list with a score for each of the {size} tokens.")


def gguf_unused(metadata: Mapping[str, Any]) -> list[int]:
    """Return the ids that the file itself marks as unused."""
    types = metadata.get("tokenizer.ggml.token_type")
    return [] if types is None else [i for i, token_type in enumerate(types) if int(token_type) == _UNUSED]


def _spec(tokens: list[str], types: list[int], model: Spec, **parts: Any) -> Spec:
    """Assemble a tokenizer.json; among tokens spelled alike the first keeps the text and the others are unused.

    The model gets a vocabulary, unless it has one.
    """
    vocab = {token: i for i, token in reversed(list(enumerate(tokens))) if token}
    added = [
        {"id": i, "content": token, "special": types[i] != _USER} | FLAGS
        for token, i in sorted(vocab.items(), key=lambda item: item[1])
        if types[i] in (_UNKNOWN, _CONTROL, _USER)
    ]
    empty = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"))
    return {"version": "1.0", **empty, **parts, "added_tokens": added, "model": {"vocab": vocab, **model}}


def _bpe(merges: list[list[str]], **more: Any) -> Spec:
    return {"type": "BPE", "dropout": None, "unk_token": None, "fuse_unk": False, "merges": merges, **more}


def _byte_level_spec(metadata: Mapping[str, Any], tokens: list[str], types: list[int]) -> tuple[Spec, str]:
    pre = str(metadata.get("tokenizer.ggml.pre", "gpt-2"))
    pieces = set(tokens)
    merges = [m.split(" ") for m in metadata.get("tokenizer.ggml.merges") or []]
    merges = [m for m in merges if len(m) == 2 and {*m, m[0] + m[1]} <= pieces]
    note = "" if pre in STEPS else f"approximately: the pre-tokenizer {pre!r} is not known, GPT-2's is used"
    steps = STEPS.get(pre, GPT2_STEPS)
    level = next(step for step in steps if step["type"] == "ByteLevel")
    model = _bpe(merges, ignore_merges=pre in IGNORES_MERGES)
    sequence = {"type": "Sequence", "pretokenizers": list(steps)}
    return _spec(tokens, types, model, pre_tokenizer=sequence, decoder=level), note


def _sentencepiece_spec(metadata: Mapping[str, Any], tokens: list[str], types: list[int]) -> tuple[Spec, str]:
    scores = metadata.get("tokenizer.ggml.scores")
    order = {t: float(scores[i]) if scores is not None and i < len(scores) else -float(i) for i, t in enumerate(tokens)}
    merges = merges_by_score({t: order[t] for i, t in enumerate(tokens) if types[i] == _NORMAL}, order)
    prefix = {"type": "Prepend", "prepend": SPIECE} if metadata.get("tokenizer.ggml.add_space_prefix", True) else None
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPIECE}
    spaces = {"type": "Sequence", "normalizers": [step for step in (prefix, replace) if step]}
    unknown = next((t for i, t in enumerate(tokens) if types[i] == _UNKNOWN), None)
    model = _bpe(merges, byte_fallback=True, unk_token=unknown) | {"fuse_unk": True}
    decoder = {"type": "Sequence", "decoders": [replace | {"pattern": {"String": SPIECE}, "content": " "}]}
    return _spec(tokens, types, model, normalizer=spaces, decoder=decoder), ""


def _gemma4_spec(metadata: Mapping[str, Any], tokens: list[str], types: list[int]) -> tuple[Spec, str]:
    """Merge characters of runs with and without line breaks, whose spaces are ``▁`` (LLAMA_VOCAB_PRE_TYPE_GEMMA4)."""
    cuts = ((merge, merge.find(" ", 1)) for merge in metadata.get("tokenizer.ggml.merges") or [])
    merges, pieces = [[merge[:cut], merge[cut + 1 :]] for merge, cut in cuts], set(tokens)
    merges = [pair for pair in merges if {*pair, "".join(pair)} <= pieces]
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPIECE}
    runs = {"type": "Split", "pattern": {"Regex": "\\n+"}, "behavior": "Isolated", "invert": False}
    unknown = next((t for i, t in enumerate(tokens) if types[i] == _UNKNOWN), None)
    model = _bpe(merges, byte_fallback=True, unk_token=unknown) | {"fuse_unk": True}
    decoder = {"type": "Replace", "pattern": {"String": SPIECE}, "content": " "}
    return _spec(tokens, types, model, normalizer=spaces, pre_tokenizer=runs, decoder=decoder), ""


def _unigram_spec(metadata: Mapping[str, Any], tokens: list[str], types: list[int]) -> tuple[Spec, str]:
    scores = metadata["tokenizer.ggml.scores"]
    rules = Rules(
        charsmap=bytes(metadata.get("tokenizer.ggml.precompiled_charsmap") or ()),
        prefix=bool(metadata.get("tokenizer.ggml.add_space_prefix", True)),
        tidy=bool(metadata.get("tokenizer.ggml.remove_extra_whitespaces", True)),
    )
    unknown = next((i for i, token_type in enumerate(types) if token_type == _UNKNOWN), None)
    vocab = [[token, float(score)] for token, score in zip(tokens, scores, strict=True)]
    parts = {"normalizer": normalizer(rules), "pre_tokenizer": pre_tokenizer(rules), "decoder": DECODER}
    return _spec(tokens, types, unigram(vocab, unknown, _BYTE in types), **parts), ""


def _wordpiece_spec(_: Mapping[str, Any], tokens: list[str], types: list[int]) -> tuple[Spec, str]:
    """Undo the converter, which writes ``▁word`` for a word and ``ing`` for ``##ing``, and keeps ``[CLS]``."""

    def original(token: str) -> str:
        if not token or (token.startswith("[") and token.endswith("]")):
            return token
        return token[1:] if token.startswith(SPIECE) else "##" + token

    pieces = [original(token) for token in tokens]
    lower = not any(p != p.lower() for p, t in zip(pieces, types, strict=True) if t == _NORMAL and p[:1] != "[")
    flags = {"clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": lower}
    model = {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##"}
    parts = {
        "normalizer": {"type": "BertNormalizer", **flags},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
    }
    return _spec(pieces, types, model | {"max_input_chars_per_word": 100}, **parts), ""
