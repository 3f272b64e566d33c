"""The words of a search: tokens, words in pieces, patterns, and words that count against. No torch."""

import fnmatch
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from zeropass.errors import BadOption, UnknownWord
from zeropass.records.search import QueryWord
from zeropass.tokens.shown import SPACE, shown_text
from zeropass.tokens.vocabulary import Bools, Vocabulary

__all__ = ["MOST_MATCHES", "pattern_of", "token_of", "weights_of", "with_similar", "word_of", "words_of"]

MOST_MATCHES = 2000
"""The largest number of tokens of a pattern, whose mean z would say little about any of them."""

_NOTHING = 1e-9
"""The size below which the weights of all tokens are rounding."""

_LONGEST = 500
"""The number of characters of a token that a pattern is compared with."""

_SHORTEST = 4
"""The number of letters from which on words that differ in one letter are similar."""


def words_of(
    vocab: Vocabulary, words: Iterable[str], like: Iterable[str], without: Iterable[str], shown: Bools
) -> list[QueryWord]:
    """Return the words of a search, each once, in the order of the arguments.

    Args:
        vocab: The vocabulary.
        words: Words.
        like: Patterns.
        without: Words that count against.
        shown: Which tokens may be pieces, or match a pattern, (V,).

    Raises:
        UnknownWord: As in `word_of`.
        BadOption: As in `pattern_of`.
    """
    texts, patterns, negative = map(dict.fromkeys, (words, like, without))
    return [
        *(word_of(vocab, text, shown) for text in texts),
        *(pattern_of(vocab, text, shown) for text in patterns),
        *(replace(word_of(vocab, text, shown), against=True) for text in negative),
    ]


def word_of(vocab: Vocabulary, text: str, shown: Bools) -> QueryWord:
    """Return a word with its tokens, or with its pieces if it is no token.

    Args:
        vocab: The vocabulary.
        text: The word.
        shown: Which tokens may be pieces, (V,).

    Raises:
        UnknownWord: The word is no token but one in another case or number is, or it has pieces that are not shown.
    """
    try:
        return QueryWord(text, tuple(vocab.find(text)))
    except UnknownWord as error:
        pieces = error.pieces
        if error.suggestions or len(pieces) < 2 or not shown[list(pieces)].all():
            raise
        return QueryWord(text, pieces, "pieces")


def token_of(vocab: Vocabulary, i: int) -> QueryWord:
    """Return a word that stands for one token; raise BadOption if the vocabulary does not have it."""
    if not 0 <= i < len(vocab):
        raise BadOption(f"There is no token {i}; the vocabulary has 0 to {len(vocab) - 1}.")
    return QueryWord(vocab.label(i), (i,))


def pattern_of(vocab: Vocabulary, pattern: str, shown: Bools) -> QueryWord:
    """Return a shell pattern with the tokens that it matches as they are shown, with ``␣`` for a space.

    Like a word, a pattern without the space of a word's boundary is tried with and without it.

    Args:
        vocab: The vocabulary.
        pattern: The pattern, with ``*``, ``?`` and ``[…]``.
        shown: Which tokens it may match, (V,).

    Raises:
        BadOption: It matches no token, or more than `MOST_MATCHES`.
    """
    spaced, _ = vocab.boundary(pattern.replace(SPACE, " "))
    text = SPACE + pattern[1:] if pattern.startswith(" ") else pattern
    text = text[:-1] + SPACE if text.endswith(" ") else text
    match = re.compile(fnmatch.translate(text)).match
    labels = [(i, vocab.label(i)) for i in np.flatnonzero(shown).tolist()]
    ids = tuple(i for i, label in labels if any(match(form) for form in _shown_forms(vocab, label, spaced)))
    name = f"The pattern '{shown_text(pattern)}'"
    if not ids:
        raise BadOption(f"{name} matches no token that lists show; * stands for any letters, ? for one, ␣ for a space.")
    if len(ids) > MOST_MATCHES:
        raise BadOption(f"{name} matches {len(ids)} tokens, more than {MOST_MATCHES}; give more letters of it.")
    return QueryWord(pattern, ids, "pattern")


def _shown_forms(vocab: Vocabulary, label: str, spaced: bool) -> list[str]:
    """Return how a token is shown, unless ``spaced`` also without the space of a word's boundary."""
    _, word = vocab.boundary(label)
    return [shown_text(form, limit=_LONGEST) for form in ([label] if spaced or word == label else [label, word])]


def weights_of(words: Sequence[QueryWord]) -> dict[int, float]:
    """Return the weight of each token's z in that of a search: the mean of the words, less that of those against.

    Raises:
        BadOption: Nothing is looked for, or the same as counts against.
    """
    counts = Counter(word.against for word in words)
    if not counts[False]:
        raise BadOption("find needs at least one word, or a pattern.")
    weights: dict[int, float] = {}
    for word in words:
        share = (-1 if word.against else 1) / counts[word.against] / len(word.ids)
        for i in word.ids:
            weights[i] = weights.get(i, 0.0) + share
    if max(map(abs, weights.values())) < _NOTHING:
        raise BadOption(f"{shown_text(words[0].text)} is looked for and counts against, which leaves nothing.")
    return weights


def with_similar(vocab: Vocabulary, words: Sequence[QueryWord], real: Bools) -> tuple[QueryWord, ...]:
    """Return words, those in pieces with up to three tokens that are spelled like them: one letter off.

    Args:
        vocab: The vocabulary.
        words: The words.
        real: Which tokens are words, (V,).
    """
    forms: dict[str, list[str]] = {}
    for word in words:
        if word.source == "pieces" and len(word.text.strip()) >= _SHORTEST:
            for form in _shortened(word.text):
                forms.setdefault(form, []).append(word.text)
    similar: dict[str, dict[str, None]] = {}
    for token in map(vocab.text, np.flatnonzero(real).tolist() if forms else ()):
        for text in {text for form in _shortened(token) for text in forms.get(form, ())}:
            similar.setdefault(text, {})[token.strip()] = None
    return tuple(replace(word, similar=tuple(similar.get(word.text, ()))[:3]) for word in words)


def _shortened(text: str) -> set[str]:
    """Return a text in lower case, and each text that lacks one of its letters.

    Two texts that share one differ by a letter that is missing, added, replaced or moved.
    """
    word = text.strip().lower()
    return {word, *(word[:place] + word[place + 1 :] for place in range(len(word)))}
