"""SentencePiece in plain Python, for tests: what the library does, slowly, with its names, so that it can stand for it.

`test_piece_classes` compares it with splits of the library itself, which is no dependency.
"""

import math
import re
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

from tokenizers import normalizers
from transformers.utils import sentencepiece_model_pb2_new as sentencepiece_pb2

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6


class SentencePieceProcessor:
    """The pieces of a file, and the splits of a text into them."""

    def __init__(self, model_proto: bytes = b"") -> None:
        self.proto = sentencepiece_pb2.ModelProto.FromString(model_proto)
        self._index()

    def Load(self, path: str) -> None:  # noqa: N802
        self.__init__(Path(path).read_bytes())  # type: ignore[misc]

    def _index(self) -> None:
        self.ids = {piece.piece: i for i, piece in enumerate(self.proto.pieces)}
        self.scores = {p.piece: p.score for p in self.proto.pieces if p.type in (NORMAL, USER_DEFINED)}
        self.users = {p.piece for p in self.proto.pieces if p.type == USER_DEFINED}
        self.unknown = next((i for i, p in enumerate(self.proto.pieces) if p.type == UNKNOWN), 0)
        self.bytes = any(p.type == BYTE for p in self.proto.pieces)

    def __len__(self) -> int:
        return len(self.proto.pieces)

    get_piece_size = __len__

    def piece_to_id(self, piece: str) -> int:
        return self.ids.get(piece, self.unknown)

    PieceToId = piece_to_id

    def id_to_piece(self, i: int) -> str:
        return str(self.proto.pieces[i].piece)

    IdToPiece = id_to_piece

    def encode(self, text: str, out_type: type = str) -> list[str]:
        """Split a text; characters in a row that no piece has are one piece, or their bytes."""
        assert out_type is str
        text = self._normalized(text)
        pieces: list[str] = []
        known = True
        for piece in self._best(text) if self.proto.trainer_spec.model_type == 1 else self._merged(text):
            if known or piece in self.scores:
                pieces.append(piece)
            else:
                pieces[-1] += piece
            known = piece in self.scores
        return [part for piece in pieces for part in self._bytes_of(piece)]

    def _bytes_of(self, piece: str) -> list[str]:
        if piece in self.scores or not self.bytes:
            return [piece]
        return [f"<0x{byte:02X}>" for byte in piece.encode()]

    def _normalized(self, text: str) -> str:
        rules = self.proto.normalizer_spec
        if rules.precompiled_charsmap:
            text = normalizers.Precompiled(rules.precompiled_charsmap).normalize_str(text)
        if rules.remove_extra_whitespaces:
            text = re.sub(" +", " ", text.strip(" "))
        text = text.replace(" ", "▁")
        if rules.remove_extra_whitespaces:
            text = text.rstrip("▁")
        return "▁" + text if text and rules.add_dummy_prefix else text

    def _best(self, text: str) -> list[str]:
        """Return the pieces with the largest sum of scores, that of an unknown character being 10 below the least."""
        scores = [p.score for p in self.proto.pieces if p.type == NORMAL]
        least, most = min(scores) - 10, max(scores)
        best = [(0.0, "")] + [(-math.inf, "")] * len(text)
        for start in range(len(text)):
            for end in range(start + 1, len(text) + 1):
                piece = text[start:end]
                score = self.scores.get(piece, least if end == start + 1 else -math.inf)
                score = len(piece) * most - 0.1 if piece in self.users else score
                best[end] = max(best[end], (best[start][0] + score, piece), key=lambda entry: entry[0])
        pieces = []
        while text:
            pieces.append(best[len(text)][1])
            text = text[: -len(pieces[-1])]
        return pieces[::-1]

    def _merged(self, text: str) -> list[str]:
        """Merge the two neighbours that join to the best piece, the leftmost first, until no two do."""
        pieces = list(text)
        while True:
            joined = [(-self.scores[a + b], n) for n, (a, b) in enumerate(pairwise(pieces)) if a + b in self.scores]
            if not joined:
                return pieces
            _, n = min(joined)
            pieces[n : n + 2] = [pieces[n] + pieces[n + 1]]


STUB = SimpleNamespace(SentencePieceProcessor=SentencePieceProcessor, __spec__=None)
"""Stands for the module."""
