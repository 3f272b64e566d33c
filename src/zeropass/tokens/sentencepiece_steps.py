"""The steps of SentencePiece as parts of a ``tokenizer.json``: its rules for characters and spaces, and its two models.

They follow ``SpmConverter.build_tokenizer_from_spm_proto`` of transformers (5.24), which splits a text as SentencePiece
does, but for two limits of the tokenizers library: a byte that a text spells out for a Unigram model, ``<0x41>``, is
taken for one, and a mark is lost behind a character that is rewritten without it (a fullwidth A with an accent).
"""

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from zeropass.tokens.tokenizer_json import Spec

__all__ = ["DECODER", "Rules", "bpe", "merges_by_score", "normalizer", "pre_tokenizer", "unigram"]

SPIECE = "▁"
DECODER: Spec = {"type": "Metaspace", "replacement": SPIECE, "prepend_scheme": "always", "split": True}


class Rules(NamedTuple):
    """The rules of a model for characters and spaces."""

    charsmap: bytes
    """The characters that it rewrites, compiled."""
    prefix: bool
    """If set, a text gets a space before it."""
    tidy: bool
    """If set, outer spaces are removed and a run of spaces counts as one."""
    users: frozenset[str] = frozenset()
    """User-defined pieces, which are kept whole."""


def normalizer(rules: Rules) -> Spec:
    """Return the steps on characters, in SentencePiece's order; raise ValueError for a damaged table of characters."""

    def replace(pattern: dict[str, str], content: str) -> Spec:
        return {"type": "Replace", "pattern": pattern, "content": content}

    steps: list[Spec] = []
    if rules.charsmap:
        trie = int.from_bytes(rules.charsmap[:4], "little")  # for which the library allocates memory unchecked
        if trie % 4 or len(rules.charsmap) < 4 + trie:
            raise ValueError("its table of characters is cut short")
        steps.append({"type": "Precompiled", "precompiled_charsmap": base64.b64encode(rules.charsmap).decode()})
    if rules.tidy:
        steps += [replace({"Regex": r"\A +| +\z"}, ""), replace({"Regex": " {2,}"}, " ")]
    steps.append(replace({"String": " "}, SPIECE))
    if rules.tidy:
        steps.append(replace({"Regex": r"▁+\z"}, ""))
    if rules.prefix:  # the next step adds no space before a ▁ that the text itself begins with
        steps.append(replace({"Regex": r"\A▁"}, "▁▁"))
    return {"type": "Sequence", "normalizers": steps}


def pre_tokenizer(rules: Rules) -> Spec:
    """Return the steps that put a space before a text and keep the pieces of users whole."""
    steps: list[Spec] = []
    if rules.prefix:
        steps.append({"type": "Metaspace", "replacement": SPIECE, "prepend_scheme": "always", "split": False})
    if rules.users:
        pattern = "|".join(map(re.escape, sorted(rules.users, key=lambda text: (-len(text), text))))
        steps.append({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False})
    return {"type": "Sequence", "pretokenizers": steps}


def unigram(vocab: Sequence[Sequence[Any]], unknown: int | None, byte_fallback: bool) -> Spec:
    """Return a Unigram model of pieces with their scores."""
    return {"type": "Unigram", "unk_id": unknown, "vocab": list(vocab), "byte_fallback": byte_fallback}


def bpe(vocab: Mapping[str, int], merges: list[list[str]], unknown: str | None, byte_fallback: bool) -> Spec:
    """Return a BPE model that takes unknown characters in a row for one."""
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unknown,
        "fuse_unk": True,
        "byte_fallback": byte_fallback,
        "vocab": dict(vocab),
        "merges": merges,
    }


def merges_by_score(scores: Mapping[str, float], parts: Mapping[str, object] | None = None) -> list[list[str]]:
    """Return the merges of BPE, which its files omit: two pieces merge if they join to a piece, best score first.

    Args:
        scores: The score of each ordinary piece, in the order of their ids.
        parts: The pieces that may be merged; None for the ordinary ones.
    """
    parts = scores if parts is None else parts
    ordered = sorted(scores, key=lambda text: -scores[text])
    return [
        [text[:cut], text[cut:]]
        for text in ordered
        for cut in _cuts(text)
        if text[:cut] in parts and text[cut:] in parts
    ]


def _cuts(text: str) -> range:
    """Return the places to cut a piece at; very long, hostile pieces are not cut, which would take forever."""
    return range(1, len(text)) if len(text) <= 256 else range(0)
