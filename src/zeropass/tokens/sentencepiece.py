"""Conversion of SentencePiece's ``tokenizer.model`` to the content of a ``tokenizer.json``, without that library.

The file is a protobuf of the pieces in the order of their ids (sentencepiece_model.proto). Files with settings that
cannot be converted exactly are refused.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

from zeropass.tokens.gguf_tokenizer import gguf_spec
from zeropass.tokens.tokenizer_json import Spec

__all__ = ["BPE", "BYTE", "CONTROL", "NORMAL", "UNIGRAM", "UNKNOWN", "UNUSED", "USER_DEFINED"]
__all__ += ["Model", "model_of", "sentencepiece_spec"]

UNIGRAM, BPE = 1, 2
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
PIECES, TRAINER, NORMALIZER = 1, 2, 3
"""The field numbers of the file itself."""


class _Piece(NamedTuple):
    text: str
    score: float
    type: int


class Model(NamedTuple):
    """A file: its pieces, and the fields of its trainer_spec and normalizer_spec by number."""

    pieces: list[_Piece]
    trainer: dict[int, int | bytes]
    normalizer: dict[int, int | bytes]


def model_of(data: bytes) -> Model:
    """Read a file; raise ValueError if it is not a SentencePiece model."""
    model = Model([], {}, {})
    for number, value in _fields(data):
        if number == PIECES:
            model.pieces.append(_usual_piece(value) or _piece(_message(value)))
        elif number == TRAINER:
            model.trainer.update(_message(value))
        elif number == NORMALIZER:
            model.normalizer.update(_message(value))
    if not model.pieces:
        raise ValueError("it has no pieces")
    return model


def sentencepiece_spec(model: Model, path: str) -> Spec:
    """Return the tokenizer.json of a BPE model whose pieces keep their ids.

    Args:
        model: The pieces.
        path: Name of the file in messages.

    Raises:
        ValueError: If the model cannot be converted exactly, with the reason.
    """
    pieces, trainer, normalizer = model
    prefix = bool(normalizer.get(3, 1))
    if reasons := [reason for reason, applies in _obstacles(pieces, trainer, normalizer, prefix).items() if applies]:
        raise ValueError(" and ".join(reasons))
    # llama.cpp keeps the same list of pieces with the same types, and writes plain spaces in user-defined pieces.
    texts = [piece.text.replace("▁", " ") if piece.type == USER_DEFINED else piece.text for piece in pieces]
    metadata = {
        "model": "llama",
        "tokens": texts,
        "scores": [piece.score for piece in pieces],
        "token_type": [piece.type for piece in pieces],
        "add_space_prefix": prefix,
    }
    return gguf_spec({f"tokenizer.ggml.{key}": value for key, value in metadata.items()}, path)[0]


def _obstacles(
    pieces: list[_Piece], trainer: dict[int, int | bytes], normalizer: dict[int, int | bytes], prefix: bool
) -> dict[str, bool]:
    """Return the reasons that prevent an exact conversion, each with whether it applies."""
    return {
        "it is neither a Unigram nor a BPE model": trainer.get(3, UNIGRAM) != BPE,
        "white space is written behind words": bool(trainer.get(24, 0)),
        "it rewrites characters": bool(normalizer.get(2)),
        "it removes extra spaces": bool(normalizer.get(4, 1)),
        "it keeps spaces as they are": not normalizer.get(5, 1),
        "it has user-defined pieces behind a dummy prefix": prefix and any(p.type == USER_DEFINED for p in pieces),
    }


def _usual_piece(value: int | bytes) -> _Piece | None:
    """Return a piece whose fields are written as SentencePiece writes them, several times as fast as `_piece`."""
    if not isinstance(value, bytes) or len(value) < 2 or value[0] != _TEXT or value[1] > 127:
        return None
    end = value[1] + 2
    typed = len(value) == end + 7 and value[end + 5] == _TYPE and value[end + 6] < 128
    if not (typed or len(value) == end + 5) or value[end] != _SCORE:
        return None
    text, (score,) = value[2:end].decode("utf-8"), _FLOAT.unpack_from(value, end + 1)
    return _Piece(text, score, value[end + 6] if typed else NORMAL)


_TEXT, _SCORE, _TYPE = 1 << 3 | BYTES, 2 << 3 | FIXED32, 3 << 3 | VARINT
_FLOAT = struct.Struct("<f")


def _piece(message: dict[int, int | bytes]) -> _Piece:
    text, score, type_ = message.get(1, b""), message.get(2, b"\0\0\0\0"), message.get(3, NORMAL)
    if not isinstance(text, bytes) or not isinstance(score, bytes) or len(score) != 4 or not isinstance(type_, int):
        raise ValueError("a piece is not one of SentencePiece's")
    return _Piece(text.decode("utf-8"), _FLOAT.unpack(score)[0], type_)


def _message(value: int | bytes) -> dict[int, int | bytes]:
    """Return the fields of a nested message; of a repeated field, the last value."""
    if not isinstance(value, bytes):
        raise ValueError("a field is a number where a message should be")
    return dict(_fields(value))


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the fields of a protobuf message: their numbers, each with an integer or bytes."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        number, wire = key >> 3, key & 7
        if wire == VARINT:
            integer, position = _varint(data, position)
            yield number, integer
            continue
        if wire not in (FIXED64, BYTES, FIXED32):
            raise ValueError(f"it has a field of type {wire}")
        size = {FIXED64: 8, FIXED32: 4}.get(wire, 0)
        if wire == BYTES:
            size, position = _varint(data, position)
        if position + size > len(data):
            raise ValueError("it is cut short")
        yield number, data[position : position + size]
        position += size


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while position < len(data) and shift < 64:
        byte = data[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return value, position
    raise ValueError("it is cut short")
