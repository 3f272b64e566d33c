"""Watched words as tokens, looked up before any work so that an impossible word is refused at once. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass

from zeropass.errors import UnknownWord
from zeropass.tokens.shown import shown_text
from zeropass.tokens.vocabulary import Vocabulary

__all__ = ["Word", "looked_up"]


@dataclass(frozen=True)
class Word:
    """A word and its readings.

    Attributes:
        text: The word as it was given.
        readings: The ways in which it may stand in a text: each a single token, or one of several pieces.
    """

    text: str
    readings: tuple[tuple[int, ...], ...]

    @property
    def ids(self) -> tuple[int, ...]:
        """The ids of all tokens of the word."""
        return tuple(dict.fromkeys(i for reading in self.readings for i in reading))


def looked_up(vocab: Vocabulary, texts: Sequence[str]) -> tuple[Word, ...]:
    """Look up words in a vocabulary.

    Args:
        vocab: The vocabulary.
        texts: The words.

    Returns:
        Each word once; a word that is no token has the pieces that it is split into.

    Raises:
        UnknownWord: The tokens of the vocabulary cannot write a word; the message names it.
    """
    return tuple(Word(text, _readings(vocab, text)) for text in dict.fromkeys(texts))


def _readings(vocab: Vocabulary, text: str) -> tuple[tuple[int, ...], ...]:
    """Return the readings of a word as token ids."""
    try:
        return tuple((i,) for i in vocab.find(text))
    except UnknownWord:
        spaced = f" {text}" if vocab.spells_spaces and not text.startswith(" ") else text
        pieces = vocab.encode(spaced)
        unusable = [i for i in pieces if not 0 <= i < vocab.size or vocab.special[i] or vocab.unused[i]]
        if unusable or not pieces:
            raise UnknownWord(
                f"--watch: '{shown_text(text)}' cannot be written with the tokens of this vocabulary."
            ) from None
        return (tuple(pieces),)
