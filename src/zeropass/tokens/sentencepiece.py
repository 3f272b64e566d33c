"""SentencePiece's ``tokenizer.model`` as the content of a ``tokenizer.json``, without the sentencepiece library.

The file is a protobuf of the pieces in the order of their ids (sentencepiece_model.proto); of its settings only those
are taken that are known to be converted exactly.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

from zeropass.tokens.gguf_tokenizer import gguf_spec
from zeropass.tokens.tokenizer_json import Spec

__all__ = ["sentencepiece_spec"]

BPE = 2
NORMAL, USER_DEFINED = 1, 4
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
PIECES, TRAINER, NORMALIZER = 1, 2, 3
"""Fields of the file itself."""


class _Piece(NamedTuple):
    text: str
    score: float
    kind: int


def sentencepiece_spec(data: bytes, path: str) -> Spec:
    """Return the tokenizer.json of a BPE model.

    ValueError for what is no SentencePiece model, and, with the reason, for one of another kind.
    """
    pieces: list[_Piece] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for number, value in _fields(data):
        if number == PIECES:
            pieces.append(_piece(_message(value)))
        elif number == TRAINER:
            trainer = _message(value)
        elif number == NORMALIZER:
            normalizer = _message(value)
    if not pieces:
        raise ValueError("it has no pieces")
    prefix = bool(normalizer.get(3, 1))
    if reasons := [reason for reason, holds in _unknown(pieces, trainer, normalizer, prefix).items() if holds]:
        raise ValueError(" and ".join(reasons))
    # llama.cpp keeps the same list of pieces with the same numbers of kinds, and spells spaces out where a user did.
    texts = [piece.text.replace("▁", " ") if piece.kind == USER_DEFINED else piece.text for piece in pieces]
    metadata = {
        "model": "llama",
        "tokens": texts,
        "scores": [piece.score for piece in pieces],
        "token_type": [piece.kind for piece in pieces],
        "add_space_prefix": prefix,
    }
    return gguf_spec({f"tokenizer.ggml.{key}": value for key, value in metadata.items()}, path)[0]


def _unknown(
    pieces: list[_Piece], trainer: dict[int, int | bytes], normalizer: dict[int, int | bytes], prefix: bool
) -> dict[str, bool]:
    """Say what would not be converted exactly: reason -> whether it is so."""
    return {
        "it is a Unigram model, whose ids depend on the tokenizer's class": trainer.get(3, 1) != BPE,
        "white space is written behind words": bool(trainer.get(24, 0)),
        "it rewrites characters": bool(normalizer.get(2)),
        "it removes extra spaces": bool(normalizer.get(4, 1)),
        "it keeps spaces as they are": not normalizer.get(5, 1),
        "it has user-defined pieces behind a dummy prefix": prefix and any(p.kind == USER_DEFINED for p in pieces),
    }


def _piece(message: dict[int, int | bytes]) -> _Piece:
    text, score, kind = message.get(1, b""), message.get(2, b"\0\0\0\0"), message.get(3, NORMAL)
    if not isinstance(text, bytes) or not isinstance(score, bytes) or len(score) != 4 or not isinstance(kind, int):
        raise ValueError("a piece is not one of SentencePiece's")
    return _Piece(text.decode("utf-8"), struct.unpack("<f", score)[0], kind)


def _message(value: int | bytes) -> dict[int, int | bytes]:
    """Return the fields of a message in a message; of repeated ones the last."""
    if not isinstance(value, bytes):
        raise ValueError("a field is a number where a message should be")
    return dict(_fields(value))


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Read a protobuf message: numbers of fields with a whole number, or with bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == VARINT:
            whole, at = _varint(data, at)
            yield number, whole
            continue
        if wire not in (FIXED64, BYTES, FIXED32):
            raise ValueError(f"it has a field of type {wire}")
        size = {FIXED64: 8, FIXED32: 4}.get(wire, 0)
        if wire == BYTES:
            size, at = _varint(data, at)
        if at + size > len(data):
            raise ValueError("it is cut short")
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 64:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
    raise ValueError("it is cut short")
