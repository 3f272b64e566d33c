"""Pairs as tokens: words looked up in a vocabulary, and sets that the vocabulary itself gives. No torch."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from zeropass._io.short_repr import ShortRepr
from zeropass.errors import UnknownWord
from zeropass.relations.pair_files import PairSet
from zeropass.tokens.vocabulary import Vocabulary

__all__ = ["MOST_OF_VOCABULARY", "VOCABULARY_SETS", "TokenPairs", "looked_up", "of_vocabulary"]

Bools = npt.NDArray[np.bool_]
Pair = tuple[tuple[int, ...], int]
"""The tokens of a left word, and the first token of a right one."""

Tokens = dict[str, int]
"""Tokens by their text."""

MOST_OF_VOCABULARY = 200
"""The number of pairs of a set that the vocabulary gives, evenly spread over all that there are."""

_CLOSING = {"(": ")", "[": "]", "{": "}", "<": ">", "“": "”", "‘": "’", "«": "»", "「": "」", "『": "』", "（": "）"}
_SELF = "same token"


@dataclass(frozen=True, repr=False)
class TokenPairs(ShortRepr):
    """The pairs of a set that a vocabulary has.

    Attributes:
        name: The name of the set.
        about: The meaning of the two words of a pair.
        source: The origin of the pairs.
        pairs: The pairs.
        unused: The number of pairs that are left out, by the reason.
    """

    name: str
    about: str
    source: str
    pairs: tuple[Pair, ...]
    unused: dict[str, int]


def looked_up(pair_set: PairSet, vocab: Vocabulary, shown: Bools) -> TokenPairs:
    """Return the pairs of a set as tokens, without those that the vocabulary lacks.

    A word is the token with a space before it where there is one, else the one without, else its pieces. Of a right
    word the first token counts, which the model would have to say first. A pair whose right token is one of its left
    tokens is left out: a head that copies would have it.

    Args:
        pair_set: The set.
        vocab: The vocabulary.
        shown: The tokens that have a rank, (V,).
    """
    reasons: Counter[str] = Counter()
    pairs: dict[Pair, str] = {}
    for left, right in pair_set.pairs:
        ends = _pieces(left, vocab), _pieces(right, vocab)[:1]
        if reason := _lacking(*ends, vocab, shown):
            reasons[reason] += 1
        else:
            pairs.setdefault((ends[0], ends[1][0]), right)
    return TokenPairs(pair_set.name, pair_set.about, pair_set.source, tuple(pairs), dict(reasons))


def _pieces(word: str, vocab: Vocabulary) -> tuple[int, ...]:
    """Return the tokens of a word, without a lone space before it; none if it cannot be written."""
    try:
        return (vocab.find(word)[0],)
    except UnknownWord as error:
        return tuple(i for i in error.pieces if vocab.text(i).strip())


def _lacking(left: tuple[int, ...], right: tuple[int, ...], vocab: Vocabulary, shown: Bools) -> str:
    """Return why a pair cannot be used; an empty text if it can."""
    if not left or not right or any(vocab.special[i] or vocab.unused[i] for i in (*left, *right)):
        return "not in the vocabulary"
    if not shown[right[0]]:
        return "right token hidden"
    return _SELF if right[0] in left else ""


def of_vocabulary(names: Sequence[str], vocab: Vocabulary, shown: Bools, words: Bools) -> dict[str, TokenPairs]:
    """Return sets of `VOCABULARY_SETS` by name; one has no pairs if the vocabulary has none.

    Args:
        names: The names of the sets.
        vocab: The vocabulary.
        shown: The tokens that have a rank, (V,).
        words: Those that are complete words, numbers or signs, (V,): the view ``words``.
    """
    if not names:
        return {}
    every = [i for i in np.flatnonzero(shown).tolist() if not vocab.is_continuation(i)]
    texts = {i: vocab.text(i) for i in every}
    tokens = {text: i for i, text in reversed(texts.items())}
    full = _full_words(vocab, {i: text for i, text in texts.items() if words[i]})
    return {name: _spread(name, list(VOCABULARY_SETS[name][1](tokens, full))) for name in names}


def _spread(name: str, every: list[tuple[int, int]]) -> TokenPairs:
    """Return at most `MOST_OF_VOCABULARY` pairs, evenly spread over all."""
    places = np.unique(np.linspace(0, len(every) - 1, min(MOST_OF_VOCABULARY, len(every))).round().astype(int))
    pairs = tuple(((every[at][0],), every[at][1]) for at in places.tolist())
    return TokenPairs(name, VOCABULARY_SETS[name][0], "the vocabulary", pairs, {})


def _full_words(vocab: Vocabulary, texts: Mapping[int, str]) -> Tokens:
    """Return the tokens that stand for a word of letters: where words are marked by a space, those that have it."""
    forms = [(i, *vocab.boundary(text)) for i, text in texts.items()]
    marked = [(i, word) for i, is_marked, word in forms if is_marked and word.isalpha()]
    words = marked or [(i, word) for i, _, word in forms if word.isalpha()]
    return {word: i for i, word in reversed(words)}


def _copying(_texts: Tokens, words: Tokens) -> Iterator[tuple[int, int]]:
    return ((i, i) for i in words.values())


def _capitalised(_texts: Tokens, words: Tokens) -> Iterator[tuple[int, int]]:
    return ((i, words[word.capitalize()]) for word, i in words.items() if word.islower() and word.capitalize() in words)


def _leading_space(texts: Tokens, words: Tokens) -> Iterator[tuple[int, int]]:
    return ((texts[word], i) for word, i in words.items() if texts.get(word, i) != i)


def _first_letter(_texts: Tokens, words: Tokens) -> Iterator[tuple[int, int]]:
    return ((i, words[word[0]]) for word, i in words.items() if word.islower() and word[0] in words and len(word) > 1)


def _closing(texts: Tokens, _words: Tokens) -> Iterator[tuple[int, int]]:
    signs = {text: i for text, i in texts.items() if not any(c.isalnum() for c in text)}
    return ((i, texts[_CLOSING[text[-1]]]) for text, i in signs.items() if _CLOSING.get(text[-1:]) in texts)


VOCABULARY_SETS: dict[str, tuple[str, Callable[[Tokens, Tokens], Iterator[tuple[int, int]]]]] = {
    "copying": ("A word and itself", _copying),
    "capitalised": ("A word and the same one with a capital", _capitalised),
    "leading-space": ("A word without the space before it and the same one with it", _leading_space),
    "first-letter": ("A word and its first letter", _first_letter),
    "closing": ("A token that ends in an opening bracket or quote, and what closes it", _closing),
}
"""The meaning of the two tokens of a pair, and a function from all tokens that are shown, and from words, to pairs."""
