"""The spelling of a text in the pieces of a vocabulary, and its marks of where words begin and end."""

import re
from dataclasses import dataclass
from typing import Literal

from zeropass.tokens.tokenizer_json import BYTES, as_letters

__all__ = ["SPELLINGS", "Kind", "Spelling", "utf8"]

Kind = Literal["bytes", "sentencepiece", "wordpiece", "plain", "word-ends", "byte-word-ends"]
"""The spelling of a text: a byte alphabet, ▁ for a space, ## for a continuation, unchanged, or </w> at a word's end."""

_BYTE_OF = {letter: bytes([byte]) for letter, byte in BYTES.items()}
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True)
class Spelling:
    """The marks of a kind of vocabulary; each is empty where it has none."""

    letters: bool = False
    """If set, a piece has a letter of the byte alphabet for each byte."""
    space: str = ""
    """The mark of a space, which stands before a word."""
    continued: str = ""
    """The prefix of a piece that continues a word."""
    end: str = ""
    """The suffix of a piece that ends a word, in whose text it is a space."""

    def continues(self, piece: str) -> bool:
        """Tell whether a piece is marked as one that continues a word."""
        return bool(self.continued) and piece.startswith(self.continued) and len(piece) > len(self.continued)

    def is_byte(self, piece: str) -> bool:
        """Tell whether a piece stands for a single byte, as ``<0x0A>`` does for SentencePiece."""
        return self.space == "▁" and _BYTE_PIECE.fullmatch(piece) is not None

    def text(self, piece: str) -> bytes:
        """Return the text of a piece in UTF-8, which may be incomplete."""
        ends = bool(self.end) and piece.endswith(self.end)
        piece = piece.removesuffix(self.end) if ends else piece
        piece = piece.removeprefix(self.continued) if self.continues(piece) else piece
        if self.is_byte(piece):
            return bytes([int(piece[3:5], 16)])
        if self.letters:
            text = b"".join([_BYTE_OF[c] if c in _BYTE_OF else utf8(c) for c in piece])
        else:
            text = utf8(piece.replace(self.space, " ") if self.space else piece)
        return text + b" " if ends else text

    def pieces(self, text: str) -> list[str]:
        """Return the pieces that a text may be stored as, the one with the space of a word's boundary first."""
        if self.end:
            word = self._spelled(text.removeprefix(" ").removesuffix(" "))
            return [word + self.end] if text.endswith(" ") else [word + self.end, word]
        if not self.space:
            return [text.removeprefix(" ") if self.continued else text]
        forms = [text] if text.startswith(" ") or not text else [" " + text, text]
        return [self._spelled(form) for form in forms]

    def boundary(self, text: str) -> tuple[bool, str]:
        """Return whether a token's text has the space of a word's boundary, and the text without it."""
        if self.end:
            return text.endswith(" "), text.removesuffix(" ")
        return text.startswith(" "), text.removeprefix(" ")

    def _spelled(self, text: str) -> str:
        return as_letters(utf8(text)) if self.letters else text.replace(" ", self.space or " ")


SPELLINGS: dict[Kind, Spelling] = {
    "bytes": Spelling(letters=True, space=" "),
    "sentencepiece": Spelling(space="▁"),
    "wordpiece": Spelling(continued="##"),
    "plain": Spelling(),
    "word-ends": Spelling(end="</w>"),
    "byte-word-ends": Spelling(letters=True, end="</w>"),
}


def utf8(text: str) -> bytes:
    """Return a text in UTF-8, lone surrogates escaped."""
    return text.encode("utf-8", errors="backslashreplace")
