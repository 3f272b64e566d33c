"""Conversion of Mistral's ``tekken.json`` to a ``tokenizer.json``: special tokens first, then byte strings by rank."""

import base64
from typing import Any

from zeropass.tokens.tokenizer_json import FLAGS, Spec, as_letters

__all__ = ["tekken_spec"]


def tekken_spec(content: dict[str, Any]) -> Spec:
    """Return the tokenizer.json of a parsed tekken.json.

    Raises:
        ValueError: If the content is invalid, or of the first version, whose special tokens only mistral-common knows.
        KeyError: If the content is invalid.
        TypeError: If the content is invalid.
    """
    config = content["config"]
    if content.get("special_tokens") is None:
        raise ValueError("it does not name its special tokens")
    special = [str(token["token_str"]) for token in sorted(content["special_tokens"], key=lambda token: token["rank"])]
    if [token["rank"] for token in content["special_tokens"]] != list(range(len(special))):
        raise ValueError("the ranks of its special tokens are not 0, 1, 2 …")
    special_count = config.get("default_num_special_tokens")
    special_count = len(special) if special_count is None else special_count
    special += [f"<SPECIAL_{i}>" for i in range(len(special), special_count)]
    size = config.get("default_vocab_size")
    entries = content["vocab"] if size is None else content["vocab"][: size - special_count]
    if [entry["rank"] for entry in entries] != list(range(len(entries))):
        raise ValueError("the ranks of its tokens are not 0, 1, 2 …")
    tokens = [base64.b64decode(entry["token_bytes"], validate=True) for entry in entries]
    vocab = {as_letters(token): special_count + rank for rank, token in enumerate(tokens)}
    vocab |= {token: rank for rank, token in enumerate(special)}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": config["pattern"]}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        **dict.fromkeys(("truncation", "padding", "normalizer", "post_processor")),
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "decoder": byte_level,
        "added_tokens": [{"id": rank, "content": t, "special": True, **FLAGS} for rank, t in enumerate(special)],
        "model": {"type": "BPE", "ignore_merges": True, "vocab": vocab, "merges": _merges(tokens)},
    }


def _merges(tokens: list[bytes]) -> list[list[str]]:
    """Return every split of a token into two others, by the rank of the token, then of its parts."""
    ranks = {token: rank for rank, token in enumerate(tokens)}
    merges = []
    for token in tokens:
        cuts = [(token[:cut], token[cut:]) for cut in range(1, len(token) if len(token) <= LONGEST else 0)]
        pairs = sorted((ranks[a], ranks[b]) for a, b in cuts if a in ranks and b in ranks)
        merges += [[as_letters(tokens[a]), as_letters(tokens[b])] for a, b in pairs]
    return merges


LONGEST = 1024
"""The length in bytes up to which tokens are split; very long, hostile ones would take forever."""
