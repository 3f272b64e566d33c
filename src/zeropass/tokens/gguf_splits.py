"""Steps that split a text before byte-level BPE, by llama.cpp's names of them (``tokenizer.ggml.pre``).

The names, and which of them are alike, are those of src/llama-vocab.cpp; the patterns are those of the tokenizers that
the names come from. A name that is not here is unknown.
"""

from zeropass.tokens.tokenizer_json import Spec

__all__ = ["GPT2_STEPS", "IGNORES_MERGES", "STEPS"]


def _level(*, use_regex: bool) -> Spec:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _split(pattern: str) -> Spec:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _by_pattern(*patterns: str) -> tuple[Spec, ...]:
    return (*map(_split, patterns), _level(use_regex=False))


_GPT2 = _level(use_regex=True)  # its pattern is part of the library's ByteLevel
_DIGITS: Spec = {"type": "Digits", "individual_digits": True}
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LLAMA3 = _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = _LLAMA3.replace("{1,3}", "")
_QWEN35 = _QWEN2.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
_CASED_ENDINGS = "|".join(f"{word}{_CONTRACTION}?" for word in _CASED.split("|"))
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SEED = _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"
_FALCON = r"[\p{P}\$\+<=>\^~\|`]+"

_LIKE_LLAMA3 = (
    "llama-bpe",
    "llama3",
    "llama-v3",
    "falcon3",
    "falcon-h1",
    "pixtral",
    "midm-2.0",
    "lfm2",
    "jina-v5-nano",
)
IGNORES_MERGES = (*_LIKE_LLAMA3, "tekken")
"""Names with which a piece that is a token is not built by merges (``ignore_merges``)."""

GPT2_STEPS = (_GPT2,)
_ALIKE: tuple[tuple[tuple[str, ...], tuple[Spec, ...]], ...] = (
    (("gpt-2", "gpt2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "exaone4"), GPT2_STEPS),
    (("roberta-bpe", "modern-bert", "jina-v1-en", "jina-v2-code", "jina-v2-es", "jina-v2-de", "gigachat"), GPT2_STEPS),
    (("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), (_DIGITS, _GPT2)),
    ((*_LIKE_LLAMA3, "dbrx", "smaug-bpe", "glm4", "chatglm-bpe"), _by_pattern(_LLAMA3)),
    (("qwen2", "stablelm2", "hunyuan", "deepseek-r1-qwen", "megrez", "grok-2", "solar-open"), _by_pattern(_QWEN2)),
    (("kormo", "f2llmv2"), _by_pattern(_QWEN2)),
    (("qwen35",), _by_pattern(_QWEN35)),
    (("tekken",), _by_pattern(rf"{_CASED}|\p{{N}}{_REST}")),
    (("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"), _by_pattern(rf"{_CASED_ENDINGS}|\p{{N}}{{1,3}}{_REST}")),
    (("seed-coder",), _by_pattern(_SEED)),
    (("bloom", "poro-chat", "gpt3-finnish"), _by_pattern(_BLOOM)),
    (("falcon",), (_split(_FALCON), _GPT2, _split("[0-9][0-9][0-9]"))),
)
STEPS = {name: steps for names, steps in _ALIKE for name in names}
"""The steps of each known name, as in a tokenizer.json."""
