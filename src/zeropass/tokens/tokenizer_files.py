"""The tokenizer of a model's folder as the content of a ``tokenizer.json``, whatever files it is kept in.

Added tokens are those that transformers adds (5.24, ``PreTrainedTokenizerBase._from_pretrained``): ``added_tokens`` of
tokenizer.json, then ``added_tokens_decoder`` of tokenizer_config.json or else added_tokens.json, then the special
tokens that the folder names. Unlike there, a stated id that a token does not get is refused.
"""

import fnmatch
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from zeropass._io.untrusted import read_bytes, read_json
from zeropass.errors import BadModel
from zeropass.tokens.sentencepiece import sentencepiece_spec
from zeropass.tokens.tekken import tekken_spec
from zeropass.tokens.tokenizer_json import (
    FLAGS,
    Spec,
    added_tokens,
    assigned_ids,
    by_piece,
    has_endless_holes,
    numbered,
    refusing,
    whole_number,
)

__all__ = ["TOKENIZER_FILES", "other_vocabularies", "tokenizer_json"]

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
)
"""What is read of a folder's tokenizer."""

VOCABULARIES = ("*.model", "*.model.v*", "*.tiktoken", "*tekken*.json")
"""Vocabularies of other libraries; looked at, or named, where there is no other."""

USUAL_OF_BPE = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
USUAL_OF_WORDS = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "sep", "pad", "cls", "mask")}
"""Special tokens of GPT-2 and BERT, whose older folders do not name them."""

SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""Settings that name a special token, in the order in which transformers adds them; others end in _token too."""

PIECES_BY_ID = ("llama", "mistral", "mixtral", "gemma", "gemma2", "gemma3", "gemma3_text", "phi3")
"""Model types whose tokens have the ids of SentencePiece's pieces; others move them."""

Token = dict[str, Any]
"""An added token with its content and flags, as tokenizer.json spells them."""


def other_vocabularies(names: Iterable[str]) -> list[str]:
    """Return the vocabularies of other libraries among file names; none where there is one that is read before them."""
    names = list(names)
    if not {"tokenizer.json", "vocab.json", "vocab.txt"}.isdisjoint(names):
        return []
    return [name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in VOCABULARIES)]


def tokenizer_json(folder: Path) -> bytes:
    """Return the content of tokenizer.json with the tokens that other files add, or the same built from a vocabulary.

    Raises BadModel, naming the files that are there, for a tokenizer that is kept in none that is read.
    """
    has = {file.name for file in folder.iterdir() if file.is_file()}
    if "tokenizer.json" in has:
        return _with_added(read_bytes(folder / "tokenizer.json"), folder)
    with refusing(f"{folder}: its vocabulary files cannot be read"):
        spec, usual = _built(folder, has)
    return _with_added(json.dumps(spec).encode(), folder, usual)


def _built(folder: Path, has: set[str]) -> tuple[Spec, dict[str, str]]:
    """A tokenizer.json built from other files, and the names of special tokens that it has even if nothing says so."""
    if {"vocab.json", "merges.txt"} <= has:
        return _spec_of(_byte_level_bpe(folder)), USUAL_OF_BPE
    if "vocab.txt" in has:
        return _spec_of(_word_piece(folder)), USUAL_OF_WORDS
    if "tekken.json" in has:
        return _tekken(folder / "tekken.json"), {}
    if "tokenizer.model" in has:
        return _sentencepiece(folder / "tokenizer.model"), {}
    raise BadModel(_nothing_to_read(folder))


def _nothing_to_read(folder: Path) -> str:
    there = sorted(
        {file.name for pattern in (*VOCABULARIES, "vocab.json", "merges.txt") for file in folder.glob(pattern)}
    )
    if there:
        return f"{folder} has no tokenizer.json, and {', '.join(there)} cannot be read here. {_way(folder)}"
    return f"{folder} has no tokenizer.json (nor vocab.json with merges.txt, vocab.txt, tekken.json, tokenizer.model)."


def _way(folder: Path, library: str = "") -> str:
    """How to get a tokenizer.json from what is there."""
    needs = f" (with {library} installed)" if library else ""
    return (
        f"Write it with transformers{needs}: AutoTokenizer.from_pretrained({str(folder)!r})"
        f".save_pretrained({str(folder)!r})."
    )


def _spec_of(tokenizer: Tokenizer) -> Spec:
    """Return what the library writes of a tokenizer; ids with endless holes between them would fill its memory."""
    ids = tokenizer.get_vocab()
    if has_endless_holes(last := max(ids.values(), default=0), len(ids)):
        raise ValueError(f"it has an id {last}, but only {len(ids)} tokens")
    spec: Spec = json.loads(tokenizer.to_str())
    return spec


def _byte_level_bpe(folder: Path) -> Tokenizer:
    prefixed = bool(_settings(folder, "tokenizer_config.json").get("add_prefix_space", False))
    tokenizer = Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    stated = read_json(folder / "vocab.json")
    numbered({"vocab": stated})
    if stated != tokenizer.get_vocab():  # it cuts numbers down to 32 bits
        raise ValueError("vocab.json has ids that the tokenizers library reads otherwise")
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefixed)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _word_piece(folder: Path) -> Tokenizer:
    settings = _settings(folder, "tokenizer_config.json")
    tokenizer = Tokenizer(models.WordPiece.from_file(str(folder / "vocab.txt"), unk_token="[UNK]"))  # noqa: S106
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=bool(settings.get("do_lower_case", True)),
        strip_accents=settings.get("strip_accents"),
        handle_chinese_chars=bool(settings.get("tokenize_chinese_chars", True)),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _tekken(path: Path) -> Spec:
    try:
        return tekken_spec(read_json(path))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else error
        raise BadModel(f"{path} cannot be read: {why}. {_way(path.parent, 'mistral-common')}") from error


def _sentencepiece(path: Path) -> Spec:
    kind = _settings(path.parent, "config.json").get("model_type")
    try:
        if kind not in PIECES_BY_ID:
            raise ValueError(f"which ids a {kind} gives to its pieces is not known")
        return sentencepiece_spec(read_bytes(path), str(path))
    except ValueError as error:
        library = "sentencepiece or, if it is tiktoken's, tiktoken"
        raise BadModel(f"{path} cannot be read: {error}. {_way(path.parent, library)}") from error


def _settings(folder: Path, name: str) -> dict[str, Any]:
    return read_json(folder / name) if (folder / name).is_file() else {}


def _stated(folder: Path) -> dict[int, Token]:
    """Added tokens by the ids that tokenizer_config.json states, or else added_tokens.json, in order."""
    older, stated = _of_added_tokens(folder), _of_decoder(folder)
    if stated is None:
        return dict(sorted(older.items()))
    ids = {token["content"]: i for i, token in stated.items()}
    for i, token in older.items():
        content = token["content"]
        if stated.get(i, token)["content"] != content or ids.get(content, i) != i:
            raise BadModel(
                f"{folder}: added_tokens.json gives the id {i} to {content!r}; the added_tokens_decoder of "
                "tokenizer_config.json says otherwise."
            )
    return dict(sorted(stated.items()))


def _of_added_tokens(folder: Path) -> dict[int, Token]:
    special = {*_named(folder), *_extra(folder)}
    tokens: dict[int, Token] = {}
    for content, i in _settings(folder, "added_tokens.json").items():
        flags = FLAGS | {"special": content in special, "normalized": content not in special}
        _put(tokens, i, {"content": content, **flags}, folder / "added_tokens.json")
    return tokens


def _of_decoder(folder: Path) -> dict[int, Token] | None:
    """Added tokens as tokenizer_config.json has them, if it does."""
    path = folder / "tokenizer_config.json"
    decoder = _settings(folder, path.name).get("added_tokens_decoder")
    if decoder is None:
        return None
    if not isinstance(decoder, dict):
        raise BadModel(f"{path}: added_tokens_decoder is {decoder!r}; it should be an object.")
    tokens: dict[int, Token] = {}
    for i, token in decoder.items():
        if not isinstance(token, dict) or not isinstance(token.get("content"), str) or not i.isdecimal():
            raise BadModel(f"{path}: added_tokens_decoder has {i!r}: {token!r}; it should be an id and a token.")
        _put(tokens, int(i), _flagged(token), path)
    return tokens


def _put(tokens: dict[int, Token], i: object, token: Token, path: Path) -> None:
    """Add a token under its id. Raises BadModel for what is no id, and for one that another token has."""
    try:
        number = whole_number(i, token["content"])
    except ValueError as error:
        raise BadModel(f"{path}: {error}.") from error
    if tokens.setdefault(number, token) is not token:
        raise BadModel(f"{path}: {tokens[number]['content']!r} and {token['content']!r} have the same id {number}.")


def _named(folder: Path, usual: Mapping[str, str] = MappingProxyType({})) -> dict[str, Token]:
    """Special tokens by their texts that settings name one by one, in the order in which transformers adds them."""
    settings = {**usual, **_special_settings(folder)}
    others = [key for key in settings if key.endswith("_token") and key not in SPECIAL_NAMES]
    return _by_content(settings.get(key) for key in (*SPECIAL_NAMES, *others))


def _extra(folder: Path) -> dict[str, Token]:
    """Further special tokens by their texts, which the folder lists."""
    settings = _special_settings(folder)
    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    return _by_content(extra.values() if isinstance(extra, dict) else extra if isinstance(extra, list) else [])


def _special_settings(folder: Path) -> dict[str, Any]:
    settings = _settings(folder, "tokenizer_config.json")
    if settings.get("added_tokens_decoder") is not None:  # then transformers does not look at the older file
        return settings
    return settings | _settings(folder, "special_tokens_map.json")


def _by_content(values: Iterable[Any]) -> dict[str, Token]:
    tokens: dict[str, Token] = {}
    for value in values:
        token = _special(value) if isinstance(value, str) else value
        if isinstance(token, dict) and isinstance(token.get("content"), str) and token["content"]:
            tokens.setdefault(token["content"], _flagged(token) | {"special": True})
    return tokens


def _special(content: str) -> Token:
    return {"content": content, **FLAGS, "special": True}


def _flagged(token: dict[str, Any]) -> Token:
    """A token with its flags, those left out as the library has them."""
    special = bool(token.get("special", False))
    flags = {name: bool(token.get(name, False)) for name in ("single_word", "lstrip", "rstrip")}
    normalized = bool(token.get("normalized", not special))
    return {"content": token["content"], **flags, "special": special, "normalized": normalized}


def _with_added(data: bytes, folder: Path, usual: Mapping[str, str] = MappingProxyType({})) -> bytes:
    """A tokenizer.json with the further tokens of its folder, each under the id that it gets.

    ``usual`` names special tokens of the vocabulary. Raises BadModel, naming token and ids, where a token does not get
    the id that is stated.
    """
    stated, named, extra = _stated(folder), _named(folder), _extra(folder)
    if not (stated or named or extra or usual):
        return data
    try:
        spec = json.loads(data)
        pieces = numbered(spec["model"])
        ids, present = by_piece(pieces), added_tokens(spec, pieces)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return data  # refused where it is read
    special = [content for content in _named(folder, usual) if content in named or content in ids]
    tokens: dict[str, Token] = {}
    for token in (*present.values(), *stated.values(), *named.values(), *extra.values(), *map(_special, special)):
        tokens.setdefault(token["content"], token)
    if _of_decoder(folder) is not None:  # its flags count
        tokens |= {token["content"]: token for token in stated.values()}
    try:
        given = assigned_ids(ids, tokens)
    except ValueError as error:
        raise BadModel(f"{folder}: {error}.") from error
    for i, token in stated.items():
        content = token["content"]
        if given[content] != i:
            raise BadModel(
                f"{folder}: added tokens give the id {i} to {content!r}, to which the tokenizer gives {given[content]}."
            )
    added = [
        {"id": given[content]} | token | {"special": bool(token.get("special")) or content in special}
        for content, token in sorted(tokens.items(), key=lambda item: given[item[0]])
    ]
    if added == (spec.get("added_tokens") or []):
        return data
    return json.dumps(spec | {"added_tokens": added}).encode()
