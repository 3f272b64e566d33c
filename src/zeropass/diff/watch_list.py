"""Watched words as tokens: looked up before any work, so that what cannot be asked is refused at once. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass

from zeropass.errors import UnknownWord
from zeropass.tokens.vocabulary import Vocabulary, shown_text

__all__ = ["Word", "looked_up"]


@dataclass(frozen=True)
class Word:
    """A word and how it may stand in a text: each reading a token of its own, or one reading of several pieces."""

    text: str
    readings: tuple[tuple[int, ...], ...]

    @property
    def ids(self) -> tuple[int, ...]:
        """All its tokens."""
        return tuple(dict.fromkeys(i for reading in self.readings for i in reading))


def looked_up(vocab: Vocabulary, texts: Sequence[str]) -> tuple[Word, ...]:
    """The words of a vocabulary, each once; one that is no token is taken by the pieces that it is split into.

    Raises UnknownWord, naming it, for a word that cannot be written with the tokens of the vocabulary.
    """
    return tuple(Word(text, _readings(vocab, text)) for text in dict.fromkeys(texts))


def _readings(vocab: Vocabulary, text: str) -> tuple[tuple[int, ...], ...]:
    try:
        return tuple((i,) for i in vocab.find(text))
    except UnknownWord:
        spaced = text if text.startswith(" ") or vocab.kind in ("wordpiece", "plain") else f" {text}"
        pieces = vocab.encode(spaced)
        odd = [i for i in pieces if not 0 <= i < vocab.size or vocab.special[i] or vocab.unused[i]]
        if odd or not pieces:
            raise UnknownWord(
                f"--watch: '{shown_text(text)}' cannot be written with the tokens of this vocabulary."
            ) from None
        return (tuple(pieces),)
