"""Reading of the tokenizer of a model's folder, in whatever files it is kept, as the content of a ``tokenizer.json``.

Added tokens are those that transformers adds (5.24, ``PreTrainedTokenizerBase._from_pretrained``): ``added_tokens`` of
tokenizer.json, then ``added_tokens_decoder`` of tokenizer_config.json or else added_tokens.json, then the special
tokens that the folder names. Unlike transformers, zeropass refuses a stated id that a token does not get.
"""

import fnmatch
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from zeropass._io.untrusted import read_bytes, read_json
from zeropass.errors import BadModel, BadOption
from zeropass.tokens.bpe_files import BPE_CLASS_OF_TYPE, WITHOUT_FAST, bpe_tokenizer, usual_specials
from zeropass.tokens.esm import esm_spec
from zeropass.tokens.piece_classes import CLASS_OF_TYPE, PIECE_CLASSES, PIECES, PieceClass, Variants, piece_spec
from zeropass.tokens.sentencepiece import UNIGRAM, model_of, sentencepiece_spec
from zeropass.tokens.tekken import tekken_spec
from zeropass.tokens.tokenizer_json import (
    FLAGS,
    Spec,
    added_tokens,
    assigned_ids,
    by_piece,
    has_endless_holes,
    integer,
    numbered,
    refusing,
)

__all__ = ["TOKENIZER_FILES", "given_tokenizer", "other_vocabularies", "tokenizer_json"]

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
)
"""The files of a folder's tokenizer that are read."""

VOCABULARIES = ("*.model", "source.spm", "*.model.v*", "*.tiktoken", "*tekken*.json")
"""Vocabularies of other libraries, which are read, or named in a message, only if there is no other vocabulary."""

USUAL_OF_WORDS = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "sep", "pad", "cls", "mask")}
"""The special tokens of BERT, which its older folders do not name."""

SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""Settings that name a special token, in the order in which transformers adds them; others end in _token too."""

PIECES_BY_ID = ("llama", "mistral", "mixtral", "gemma", "gemma2", "gemma3", "gemma3_text", "phi3")
"""Model types whose tokens have the ids of SentencePiece's pieces; other types change the ids."""

_NOT_WRITTEN = (
    "transformers writes none of such a vocabulary (as of Marian, M2M-100, BioGPT, CTRL and FSMT); a copy "
    "of the model that was converted for another library, such as transformers.js, may have one."
)
"""The advice for classes of tokenizers that transformers has only in Python."""

Token = dict[str, Any]
"""An added token with its content and flags, as tokenizer.json spells them."""


def other_vocabularies(names: Iterable[str]) -> list[str]:
    """Return the vocabularies of other libraries among file names; none if a preferred vocabulary is there."""
    names = list(names)
    if any(preferred <= {*names} for preferred in ({"tokenizer.json"}, {"vocab.json", "merges.txt"}, {"vocab.txt"})):
        return []
    return [name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in VOCABULARIES)]


def tokenizer_json(folder: Path) -> bytes:
    """Return the content of tokenizer.json, or one built from a vocabulary, with the tokens that other files add.

    Raises:
        BadModel: If the folder has no tokenizer that can be read; the message names the files that are there.
    """
    names = {file.name for file in folder.iterdir() if file.is_file()}
    if "tokenizer.json" in names:
        return _with_added(read_bytes(folder / "tokenizer.json"), folder)
    with refusing(f"{folder}: its vocabulary files cannot be read"):
        spec, usual = _build_spec(folder, names)
    return _with_added(json.dumps(spec).encode(), folder, usual)


def given_tokenizer(tokenizer: object) -> bytes:
    """Return the content of tokenizer.json of a tokenizer that is given with a model in memory.

    Args:
        tokenizer: A fast tokenizer of transformers, a `tokenizers.Tokenizer`, or the path of a tokenizer.json or of a
            folder with a tokenizer.

    Raises:
        BadModel: If the files cannot be read.
        BadOption: If it is none of these.
    """
    if isinstance(tokenizer, str | Path):
        path = Path(tokenizer)
        try:
            is_folder = path.is_dir()
        except (OSError, ValueError) as error:  # such as a text in place of its path, which is too long for one
            raise BadOption(f"{str(path)[:80]!r} … cannot be the path of a tokenizer: {error.args[-1]}.") from error
        return tokenizer_json(path) if is_folder else read_bytes(path)
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if isinstance(backend, Tokenizer):
        return backend.to_str().encode()
    given = "no tokenizer" if tokenizer is None else f"a {type(tokenizer).__name__} of {type(tokenizer).__module__}"
    raise BadOption(
        f"{given[0].upper()}{given[1:]} is given with a model in memory; it should be a fast tokenizer of "
        "transformers, a tokenizers.Tokenizer, or the path of a tokenizer.json or its folder."
    )


def _build_spec(folder: Path, names: set[str]) -> tuple[Spec, dict[str, str]]:
    """Return a tokenizer.json built from other files, and the special tokens that it has even if no file names them."""
    if {"vocab.json", "merges.txt"} <= names:
        return _bpe(folder)
    if "vocab.txt" in names and _tokenizer_class(folder) == "EsmTokenizer":
        return _esm(folder / "vocab.txt"), {}
    if "vocab.txt" in names:
        return _spec_of(_word_piece(folder)), USUAL_OF_WORDS
    if "tekken.json" in names:
        return _tekken(folder / "tekken.json"), {}
    if "tokenizer.model" in names:
        return _sentencepiece(folder / "tokenizer.model"), {}
    if (kind := _piece_class(folder)) and kind.file in names and kind.numbered == ("vocab.json" in names):
        return _pieces(folder, kind), {}
    raise BadModel(_missing_message(folder))


def _missing_message(folder: Path) -> str:
    patterns = (*VOCABULARIES, "*.spm", "vocab*.json", "merges.txt")
    unreadable = sorted({file.name for pattern in patterns for file in folder.glob(pattern)})
    if unreadable:
        ids_apart = "vocab.json" in unreadable and any(name.endswith((".spm", ".model")) for name in unreadable)
        advice = _NOT_WRITTEN if ids_apart else _class_advice(folder)
        return f"{folder} has no tokenizer.json, and {', '.join(unreadable)} cannot be read here. {advice}"
    return f"{folder} has no tokenizer.json (nor vocab.json with merges.txt, vocab.txt, tekken.json, tokenizer.model)."


def _class_advice(folder: Path) -> str:
    return (
        f"A tokenizer.json is needed: {_NOT_WRITTEN}" if _tokenizer_class(folder) in WITHOUT_FAST else _advice(folder)
    )


def _advice(folder: Path, library: str = "") -> str:
    """Say how to make a tokenizer.json from the files that are there."""
    needs = f" (with {library} installed)" if library else ""
    return (
        f"Write it with transformers{needs}: AutoTokenizer.from_pretrained({str(folder)!r})"
        f".save_pretrained({str(folder)!r})."
    )


def _spec_of(tokenizer: Tokenizer) -> Spec:
    """Return a tokenizer as the library writes it; refuse ids with endless gaps, which would fill its memory."""
    ids = tokenizer.get_vocab()
    if has_endless_holes(last := max(ids.values(), default=0), len(ids)):
        raise ValueError(f"it has an id {last}, but only {len(ids)} tokens")
    spec: Spec = json.loads(tokenizer.to_str())
    return spec


def _bpe(folder: Path) -> tuple[Spec, dict[str, str]]:
    kind = _tokenizer_class(folder)
    try:
        tokenizer = bpe_tokenizer(folder, kind, _settings(folder, "tokenizer_config.json"))
    except ValueError as error:
        raise BadModel(f"{folder}: its vocabulary files cannot be read: {error}. {_class_advice(folder)}") from error
    return _spec_of(tokenizer), {f"{i}_token": text for i, text in enumerate(usual_specials(kind))}


_WORD_PIECES = (
    *("bert", "convbert", "distilbert", "electra", "ernie", "funnel", "layoutlm", "lxmert", "megatronbert"),
    *("mobilebert", "mpnet", "nomicbert", "splinter", "squeezebert"),
    *("dpr", "dprcontextencoder", "dprquestionencoder", "dprreader"),
)
"""The model types and classes of tokenizers, in short, whose vocab.txt holds WordPieces split as BERT's."""


def _word_piece(folder: Path) -> Tokenizer:
    settings = _settings(folder, "tokenizer_config.json")
    owner = settings.get("tokenizer_class") or _settings(folder, "config.json").get("model_type") or "bert"
    short = str(owner).removesuffix("Fast").removesuffix("Tokenizer").lower()
    if short.replace("-", "").replace("_", "") not in _WORD_PIECES:
        raise BadModel(
            f"{folder / 'vocab.txt'}: how a {owner} splits texts into its tokens is not known. {_advice(folder)}"
        )
    tokenizer = Tokenizer(models.WordPiece.from_file(str(folder / "vocab.txt"), unk_token="[UNK]"))  # noqa: S106
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=bool(settings.get("do_lower_case", True)),
        strip_accents=settings.get("strip_accents"),
        handle_chinese_chars=bool(settings.get("tokenize_chinese_chars", True)),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _esm(path: Path) -> Spec:
    try:
        return esm_spec(read_bytes(path).decode("utf-8"), _special_settings(path.parent))
    except ValueError as error:
        raise BadModel(f"{path} cannot be read: {error}.") from error


def _tekken(path: Path) -> Spec:
    try:
        return tekken_spec(read_json(path))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else error
        raise BadModel(f"{path} cannot be read: {reason}. {_advice(path.parent, 'mistral-common')}") from error


def _sentencepiece(path: Path) -> Spec:
    model_type = _settings(path.parent, "config.json").get("model_type")
    try:
        if model_type not in PIECES_BY_ID:
            raise ValueError(f"which ids a {model_type} gives to its pieces is not known")
        data = read_bytes(path)
        model = model_of(data)
        if model.trainer.get(3, UNIGRAM) == UNIGRAM:
            return piece_spec(model, PIECES, {}, {})
        return sentencepiece_spec(model, str(path))
    except ValueError as error:
        library = "sentencepiece or, if it is tiktoken's, tiktoken"
        raise BadModel(f"{path} cannot be read: {error}. {_advice(path.parent, library)}") from error


def _piece_class(folder: Path) -> PieceClass | None:
    """Return the class of SentencePiece's pieces that the folder or its model type states, if it is one."""
    kind = PIECE_CLASSES.get(_tokenizer_class(folder))
    try:
        return kind.of(_special_settings(folder)) if isinstance(kind, Variants) else kind
    except ValueError as error:
        raise BadModel(f"{folder / 'tokenizer_config.json'}: {error}.") from error


def _pieces(folder: Path, kind: PieceClass) -> Spec:
    settings = _special_settings(folder)
    named = {
        key: token["content"] if isinstance(token, dict) else token
        for key, token in settings.items()
        if key.endswith("_token") and isinstance(token, dict | str)
    }
    try:
        numbers = read_json(folder / "vocab.json") if kind.numbered else None
        return piece_spec(model_of(read_bytes(folder / kind.file)), kind, settings, named, numbers)
    except (KeyError, ValueError) as error:
        advice = _NOT_WRITTEN if kind.numbered else _advice(folder, "sentencepiece")
        raise BadModel(f"{folder / kind.file} cannot be read: {error}. {advice}") from error


def _tokenizer_class(folder: Path) -> str:
    """Return the class of the tokenizer that the folder states, else that of its model type; empty if not known."""
    config = _settings(folder, "config.json")
    stated = _settings(folder, "tokenizer_config.json").get("tokenizer_class") or config.get("tokenizer_class")
    if stated:
        return str(stated).removesuffix("Fast")
    return (CLASS_OF_TYPE | BPE_CLASS_OF_TYPE | {"esm": "EsmTokenizer"}).get(str(config.get("model_type")), "")


def _settings(folder: Path, name: str) -> dict[str, Any]:
    return read_json(folder / name) if (folder / name).is_file() else {}


def _stated_tokens(folder: Path) -> dict[int, Token]:
    """Return the added tokens by the ids that tokenizer_config.json, or else added_tokens.json, states, in order."""
    older, stated = _tokens_of_older_file(folder), _tokens_of_decoder(folder)
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


def _tokens_of_older_file(folder: Path) -> dict[int, Token]:
    special = {*_named_specials(folder), *_listed_specials(folder)}
    tokens: dict[int, Token] = {}
    for content, i in _settings(folder, "added_tokens.json").items():
        flags = FLAGS | {"special": content in special, "normalized": content not in special}
        _add_token(tokens, i, {"content": content, **flags}, folder / "added_tokens.json")
    return tokens


def _tokens_of_decoder(folder: Path) -> dict[int, Token] | None:
    """Return the added tokens of tokenizer_config.json, or None if it does not list any."""
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
        _add_token(tokens, int(i), _flagged(token), path)
    return tokens


def _add_token(tokens: dict[int, Token], i: object, token: Token, path: Path) -> None:
    """Add a token under its id; raise BadModel for an invalid id, or one that another token has."""
    try:
        number = integer(i, token["content"])
    except ValueError as error:
        raise BadModel(f"{path}: {error}.") from error
    if tokens.setdefault(number, token) is not token:
        raise BadModel(f"{path}: {tokens[number]['content']!r} and {token['content']!r} have the same id {number}.")


def _named_specials(folder: Path, usual: Mapping[str, str] = MappingProxyType({})) -> dict[str, Token]:
    """Return by text the special tokens that settings name one by one, in the order in which transformers adds them."""
    settings = {**usual, **_special_settings(folder)}
    others = [key for key in settings if key.endswith("_token") and key not in SPECIAL_NAMES]
    return _by_content(settings.get(key) for key in (*SPECIAL_NAMES, *others))


def _listed_specials(folder: Path) -> dict[str, Token]:
    """Return by text the further special tokens that the folder lists."""
    settings = _special_settings(folder)
    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    return _by_content(extra.values() if isinstance(extra, dict) else extra if isinstance(extra, list) else [])


def _special_settings(folder: Path) -> dict[str, Any]:
    settings = _settings(folder, "tokenizer_config.json")
    if settings.get("added_tokens_decoder") is not None:  # transformers then ignores the older file
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
    """Return a token with all its flags, missing ones set to the library's defaults."""
    special = bool(token.get("special", False))
    flags = {name: bool(token.get(name, False)) for name in ("single_word", "lstrip", "rstrip")}
    normalized = bool(token.get("normalized", not special))
    return {"content": token["content"], **flags, "special": special, "normalized": normalized}


def _with_added(data: bytes, folder: Path, usual: Mapping[str, str] = MappingProxyType({})) -> bytes:
    """Return a tokenizer.json with the further tokens of its folder, each under the id that it gets.

    ``usual`` names special tokens of the vocabulary. For a token that does not get its stated id, BadModel is raised,
    naming the token and both ids.
    """
    stated, named, extra = _stated_tokens(folder), _named_specials(folder), _listed_specials(folder)
    if not (stated or named or extra or usual):
        return data
    try:
        spec = json.loads(data)
        pieces = numbered(spec["model"])
        ids, present = by_piece(pieces), added_tokens(spec, pieces)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return data  # its reader refuses it
    special = [content for content in _named_specials(folder, usual) if content in named or content in ids]
    tokens: dict[str, Token] = {}
    for token in (*present.values(), *stated.values(), *named.values(), *extra.values(), *map(_special, special)):
        tokens.setdefault(token["content"], token)
    if _tokens_of_decoder(folder) is not None:  # the flags of the decoder take precedence
        tokens |= {token["content"]: token for token in stated.values()}
    try:
        id_of = assigned_ids(ids, tokens)
    except ValueError as error:
        raise BadModel(f"{folder}: {error}.") from error
    for i, token in stated.items():
        content = token["content"]
        if id_of[content] != i:
            raise BadModel(
                f"{folder}: added tokens give the id {i} to {content!r}, to which the tokenizer gives {id_of[content]}."
            )
    added = [
        {"id": id_of[content]} | token | {"special": bool(token.get("special")) or content in special}
        for content, token in sorted(tokens.items(), key=lambda item: id_of[item[0]])
    ]
    if added == (spec.get("added_tokens") or []):
        return data
    return json.dumps(spec | {"added_tokens": added}).encode()
