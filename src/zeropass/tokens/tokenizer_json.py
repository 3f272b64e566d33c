"""A ``tokenizer.json`` as the tokenizers library reads it: the ids of its pieces, and a version with fewer rows.

The library numbers added tokens itself, consecutively after the vocabulary, whatever ids the file states. Models are
trained and run with it, so its ids are the right ones (tokenizers 0.23, ``AddedVocabulary.add_tokens``).
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tokenizers import Tokenizer

from zeropass.errors import BadModel, ZeropassError
from zeropass.tokens.numbered_pieces import SPLITTER, numbering_tokenizer

__all__ = ["BYTES", "FLAGS", "Spec", "added_tokens", "as_letters", "assigned_ids", "by_piece", "merges_of", "numbered"]
__all__ += ["has_endless_holes", "integer", "refusing", "tokenizer_of", "without_rows"]

Spec = dict[str, Any]

FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
"""The flags of an added token that is matched in a text literally and anywhere."""


def _byte_alphabet() -> dict[int, str]:
    """Map each byte to its printable letter in byte-level BPE (GPT-2 keeps printable Latin-1)."""
    same = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [byte for byte in range(256) if byte not in same]
    return {byte: chr(byte) for byte in same} | {byte: chr(256 + i) for i, byte in enumerate(rest)}


_LETTERS = _byte_alphabet()
BYTES = {letter: byte for byte, letter in _LETTERS.items()}
"""The byte of each letter of byte-level BPE."""


def as_letters(data: bytes) -> str:
    """Spell bytes as the pieces of byte-level BPE do."""
    return "".join(_LETTERS[byte] for byte in data)


def numbered(model: Spec) -> dict[int, str]:
    """Return the pieces of a tokenizer's model by id; raise ValueError for an invalid or repeated id."""
    vocab = model["vocab"]
    if not isinstance(vocab, dict):
        return {i: _piece(entry) for i, entry in enumerate(vocab)}
    if not {*map(type, vocab.values())} <= {int}:
        for piece, i in vocab.items():
            integer(i, piece)
    pieces = {i: piece for piece, i in vocab.items()}
    if len(pieces) < len(vocab):
        first, last = next((piece, pieces[i]) for piece, i in vocab.items() if pieces[i] != piece)
        raise ValueError(f"{first!r} and {last!r} have the same id {vocab[last]}")
    return pieces


def added_tokens(spec: Spec, pieces: Mapping[int, str]) -> dict[int, Spec]:
    """Return the added tokens of a tokenizer by the ids that they get.

    Args:
        spec: The tokenizer.json.
        pieces: Pieces of its model by id (`numbered`).

    Raises:
        ValueError: If the library, which follows the list, and transformers, which follows the stated ids, would number
            them differently, or if `assigned_ids` does not know the ids.
    """
    tokens = [token for token in spec.get("added_tokens") or [] if token["content"]]
    ids = by_piece(pieces)
    stated: dict[int, str] = {}
    for token in tokens:
        content = str(token["content"])
        if stated.setdefault(integer(token["id"], content), content) != content:
            raise ValueError(f"the added tokens {stated[token['id']]!r} and {content!r} have the same id {token['id']}")
    assigned = assigned_ids(ids, [str(token["content"]) for token in tokens])
    if assigned != assigned_ids(ids, [stated[i] for i in sorted(stated)]):
        raise ValueError("the added tokens are not in the order of their ids, which do not follow the vocabulary")
    return {assigned[str(token["content"])]: token for token in tokens}


def has_endless_holes(last: int, count: int) -> bool:
    """Tell whether a vocabulary of ``count`` tokens leaves out more ids up to its last one than any real one does."""
    return last > 2 * count + 65536


def by_piece(pieces: Mapping[int, str]) -> dict[str, int]:
    """Return the id of every piece; among pieces spelled alike that of the last, as the library does."""
    return {piece: i for i, piece in pieces.items()}


def assigned_ids(ids: dict[str, int], contents: Iterable[str]) -> dict[str, int]:
    """Return the ids of added tokens: a piece of the vocabulary keeps its id, any other token gets the next one.

    Raises:
        ValueError: If the next id is not past the vocabulary, whose ids then have gaps.
    """
    contents = list(dict.fromkeys(contents))
    new = [content for content in contents if content not in ids]
    last = max(ids.values(), default=-1)
    if new and last >= len(ids):
        raise ValueError(
            f"the vocabulary has {len(ids)} pieces and the id {last}: which id {new[0]!r} gets is not known"
        )
    numbers = ids | dict(zip(new, range(len(ids), len(ids) + len(new)), strict=True))
    return {content: numbers[content] for content in contents}


def merges_of(model: Spec) -> list[tuple[str, str]]:
    """Return the merges of a BPE tokenizer in order; none for other tokenizers."""
    pairs = (m.split(" ") if isinstance(m, str) else m for m in model.get("merges") or [])
    return [(str(pair[0]), str(pair[1])) for pair in pairs if len(pair) == 2]


def without_rows(text: str, rows: int) -> str:
    """Return a tokenizer.json without the tokens whose ids are ``rows`` or above; no text is split into them."""
    spec = json.loads(text)
    model = spec["model"]
    removed = {str(token["content"]) for i, token in added_tokens(spec, numbered(model)).items() if i >= rows}
    if isinstance(model["vocab"], dict):
        removed |= {piece for piece, i in model["vocab"].items() if i >= rows}
        model["vocab"] = {piece: i for piece, i in model["vocab"].items() if i < rows}
    else:
        model["vocab"] = model["vocab"][:rows]
    if model.get("merges"):
        model["merges"] = [list(pair) for pair in merges_of(model) if not {*pair, _merged(model, pair)} & removed]
    spec["added_tokens"] = [token for token in spec.get("added_tokens") or [] if str(token["content"]) not in removed]
    return json.dumps(spec)


def tokenizer_of(text: str, path: str = "tokenizer.json") -> Tokenizer:
    """Return the tokenizer of a tokenizer.json, without padding and truncation.

    Raises:
        BadModel: If the library cannot use it; the message names ``path``.
    """
    with refusing(f"{path}: the tokenizers library cannot use this tokenizer"):
        spec = json.loads(text)
        steps = spec.get("pre_tokenizer") or {}
        tokenizer = numbering_tokenizer(spec) if steps.get("type") == SPLITTER else Tokenizer.from_str(text)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Turn errors of the tokenizers library, a bare Exception or a panic outside that hierarchy, into BadModel."""
    try:
        yield
    except (ZeropassError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise BadModel(f"{what}: {error}.") from error


def integer(value: object, of: str) -> int:
    """Return an id if it is an integer; otherwise raise ValueError, naming the token."""
    if type(value) is not int:
        raise ValueError(f"the id of {of!r} is {value!r}, which is not a whole number")
    return value


def _piece(entry: object) -> str:
    if not isinstance(entry, list) or not entry or not isinstance(entry[0], str):
        raise ValueError(f"{entry!r} is not a piece with its score")
    return entry[0]


def _merged(model: Spec, pair: tuple[str, str]) -> str:
    """Return the piece that a merge produces."""
    return pair[0] + pair[1].removeprefix(model.get("continuing_subword_prefix") or "")
