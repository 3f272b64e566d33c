"""ESM's ``vocab.txt``: a token a line, found in a text wherever it stands (transformers 5.24, ``EsmTokenizer``)."""

import re
from collections.abc import Mapping
from typing import Any

from zeropass.tokens.tokenizer_json import FLAGS, Spec

__all__ = ["esm_spec"]

_SPECIAL = {f"{name}_token": f"<{name}>" for name in ("unk", "cls", "pad", "mask", "eos")}
_SPACE = r"[\s\x1c-\x1f]+"


def esm_spec(text: str, settings: Mapping[str, Any]) -> Spec:
    """Return the tokenizer.json of a vocab.txt.

    The longest of the tokens that begin at a place is taken; what lies between tokens is unknown, a word at a time.

    Args:
        text: Content of the file.
        settings: tokenizer_config.json, which may name special tokens, or state that there is none (null).

    Raises:
        ValueError: If two lines are alike, or a special token is none of the lines.
    """
    tokens = [line.strip() for line in text.splitlines()]
    ids = {token: i for i, token in enumerate(tokens)}
    if len(ids) < len(tokens) or "" in ids:
        raise ValueError("two of its lines are alike, or one is empty")
    special = {key: _content(settings.get(key, token)) for key, token in _SPECIAL.items()}
    if missing := [f"{key} is {token!r}" for key, token in special.items() if token and token not in ids]:
        raise ValueError(f"{missing[0]}, which is none of its tokens")
    if not special["unk_token"] or not special["cls_token"]:
        raise ValueError("it has no token for what is unknown, or none before a text")
    pattern = "|".join(map(re.escape, sorted(tokens, key=lambda token: (-len(token), token))))
    around = [special["cls_token"], "$A", *([special["eos_token"]] if special["eos_token"] else [])]
    return {
        "version": "1.0",
        **dict.fromkeys(("truncation", "padding", "normalizer", "decoder")),
        "added_tokens": [
            {"id": ids[token], "content": token, "special": True} | FLAGS
            for token in sorted({*filter(None, special.values())}, key=ids.__getitem__)
        ],
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [_split(pattern, "Isolated"), _split(_SPACE, "Removed")],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [_part(part) for part in around],
            "pair": [*(_part(part) for part in around), {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {
                part: {"id": part, "ids": [ids[part]], "tokens": [part]} for part in around if part != "$A"
            },
        },
        "model": {"type": "WordLevel", "vocab": ids, "unk_token": special["unk_token"]},
    }


def _content(token: Any) -> str:
    """Return the text of a special token that a folder names; an empty one for none."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else ""


def _split(pattern: str, behavior: str) -> Spec:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": False}


def _part(part: str) -> Spec:
    return {"Sequence": {"id": "A", "type_id": 0}} if part == "$A" else {"SpecialToken": {"id": part, "type_id": 0}}
