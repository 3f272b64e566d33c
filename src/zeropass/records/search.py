"""The records of a search: what was looked for, and the parameters in whose lists it ranks high. No torch."""

import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from zeropass._io.short_repr import ShortRepr
from zeropass.arch.frame_names import Frame
from zeropass.errors import in_short
from zeropass.model.address import Address, parse
from zeropass.records.numbers import plain
from zeropass.records.panels import AsFigure, Dot, Points, token_label
from zeropass.records.parameters import VERBS, AsJson, Token, html_note, html_token, listed, verb_of
from zeropass.records.tabular import Row, Several, plain_fields
from zeropass.tokens.shown import shown_text

__all__ = ["MOST_TOKENS", "MOST_WORDS", "FindRecord", "Hit", "QueryWord", "largest"]


@dataclass(frozen=True, repr=False)
class QueryWord(ShortRepr):
    """A word of a search, whose z in a list is the mean z of its tokens.

    Attributes:
        text: The word or pattern as it was given.
        ids: Its tokens.
        source: ``token`` if each of them is the word, with or without a space before it; ``pieces`` if the tokenizer
            splits it into them; ``pattern`` for all that a pattern matches.
        against: True if its z counts against a parameter.
        similar: Tokens that are spelled like a word in pieces.
    """

    text: str
    ids: tuple[int, ...]
    source: str = "token"
    against: bool = False
    similar: tuple[str, ...] = ()


@dataclass(frozen=True, repr=False)
class Hit(ShortRepr):
    """A parameter in whose list a word or concept ranks high.

    Attributes:
        above: True if lists of its role and layer are above the null distribution on a text; it never says anything
            about this parameter alone.
        words: The first words of the pole of its list that the word is in, of several the one with the largest |z|.
        says_little: True if no token of the list stands out and its first tokens belong together no more than those of
            random directions.
        zs: The z of each word of the search, in order; empty for a single word, whose z is the parameter's.
    """

    address: str
    side: str
    role: str
    frame: Frame
    score: float
    z: float
    above: bool | None = None
    words: tuple[Token, ...] = ()
    says_little: bool = False
    zs: tuple[float, ...] = ()

    @property
    def place(self) -> Address:
        """The address with its role, which `explain` takes."""
        place = parse(self.address)
        return place if place.role else place.with_role(self.role)

    @property
    def layer(self) -> int:
        """The layer of the parameter; -1 outside the blocks."""
        return self.place.layer

    @property
    def doubt(self) -> str:
        """The warning that lists of its role and layer are not above the null distribution, or nothing."""
        return "lists of its role and layer are not above the null" if self.above is False else ""

    @property
    def pole_words(self) -> str:
        """The pole of its list that `words` are of, and whether that list is faint."""
        pole = "top" if largest(self.zs or (self.z,)) > 0 else "bottom"
        return f"{pole}, faint" if self.says_little else pole

    @property
    def verb(self) -> str:
        """The verb for what the parameter does with the word."""
        return verb_of(self.side, self.frame)


def largest(zs: Sequence[float]) -> float:
    """Return the z that is largest in size."""
    return max(zs, key=abs)


MOST_WORDS, MOST_TOKENS, MOST_ADDRESSES = 6, 24, 8
"""The largest numbers of words of a search whose z is shown beside a parameter, of its tokens that are listed, and of
addresses in a figure."""


@dataclass(frozen=True, repr=False)
class FindRecord(Several[Hit], AsJson, AsFigure):
    """The parameters that see, are about to say, or write some tokens; best |z| first. A sequence of them.

    Attributes:
        query: The tokens that were searched for.
        notes: What ``above`` of the hits rests on.
        words: The words that these tokens stand for.
    """

    query: tuple[Token, ...]
    hits: tuple[Hit, ...]
    notes: tuple[str, ...] = field(default=())
    words: tuple[QueryWord, ...] = field(default=())

    _ITEMS = "hits"

    @property
    def explanations(self) -> tuple[str, ...]:
        """The sentences on words that are not single tokens, on patterns, on z of several words, and on faint lists."""
        text_of = {token.id: shown_text(token.token) for token in self.query}
        sentences = [sentence for word in self.words if (sentence := _origin(word, text_of))]
        if len(sentences) > MOST_WORDS:
            rest = len(sentences) - MOST_WORDS
            sentences[MOST_WORDS:] = [f"{rest} more of the words are patterns or in pieces."]
        if len(self.words) > 1:
            means = (_mean_of([word for word in self.words if word.against is against]) for against in (False, True))
            sentences.append(f"z is {', less '.join(filter(None, means))}.")
        if any(match.says_little for match in self.hits):
            sentences.append(_FAINT)
        return tuple(sentences)

    def word_scores(self, match: Hit) -> list[tuple[str, float]]:
        """Return the words of the search that weigh most in a parameter, in their order, with their z."""
        scores = [(word.text, z) for word, z in zip(self.words, match.zs, strict=False)]
        largest = sorted(range(len(scores)), key=lambda place: -abs(scores[place][1]))[:MOST_WORDS]
        return [scores[place] for place in sorted(largest)]

    def table_rows(self) -> Iterator[Row]:
        """Yield a row for each parameter; several words have a column each for their z."""
        for rank, match in enumerate(self.hits):
            scores = {f"z of {word.text}": z for word, z in zip(self.words, match.zs, strict=False)}
            row = {"rank": rank, **plain_fields(match), "verb": match.verb}
            yield {**row, "words": " ".join(shown_text(token.token) for token in match.words), **scores}

    def panel(self) -> Points:
        """Return the parameters by layer and z, with the addresses of the first."""
        doubtful = any(match.doubt for match in self.hits)
        return Points(
            title=f"Parameters of {self._searched}",
            notes=("hollow: its role and layer are not above the null",) if doubtful else (),
            x="layer",
            y="z",
            groups=list(dict.fromkeys([*VERBS.values(), *(match.verb for match in self.hits)])),
            dots=[
                Dot(
                    x=match.layer,
                    y=match.z,
                    group=match.verb,
                    label=match.address if rank < MOST_ADDRESSES else "",
                    hollow=match.above is False,
                )
                for rank, match in enumerate(self.hits)
            ],
        )

    @property
    def _searched(self) -> str:
        """The words in short: those that count, less those that count against."""
        if len(self.words) < 2:
            return in_short(token_label(token.token) for token in self.query)
        sides = ([word.text for word in self.words if word.against is against] for against in (False, True))
        return " less ".join(in_short(map(token_label, side)) for side in sides if side)

    def _repr_words(self) -> str:
        matches = (f"{match.address}.{match.role} {plain(match.z, '+')}" for match in self.hits[:4])
        return f"{listed(self.query)}: {', '.join(matches)}, {len(self.hits)} parameters"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{html.escape(match.address)}</td><td>{html.escape(match.role)}</td>"
            f"<td>{html.escape(match.verb)}</td><td>{plain(match.z, '+')}</td><td>{match.pole_words}</td>"
            f"<td>{' '.join(html_token(token.token) for token in match.words)}</td>"
            f"<td><small>{html.escape(self._scores_text(match))}</small></td><td><small>{match.doubt}</small></td></tr>"
            for match in self.hits
        )
        query = ", ".join(html_token(t.token) for t in self.query[:MOST_TOKENS])
        notes = (*self.explanations, *self.notes)
        return f"<table><caption>{query}</caption>{rows}</table>{''.join(map(html_note, notes))}"

    def _scores_text(self, match: Hit) -> str:
        return ", ".join(f"{shown_text(text)} {plain(z, '+')}" for text, z in self.word_scores(match))


_FAINT = (
    "Faint: no token of the list stands out, and its first tokens belong together no more than those of random "
    "directions."
)


def _origin(word: QueryWord, text_of: Mapping[int, str]) -> str:
    """Return the sentence on a word that is in pieces, or on a pattern; nothing for a token."""
    name = shown_text(word.text)
    if word.source == "pattern":
        return f"{name} matches {len(word.ids)} token{'s' if len(word.ids) > 1 else ''}."
    if word.source == "token":
        return ""
    pieces = " + ".join(text_of[i] for i in word.ids)
    meant = f" Did you mean {' or '.join(map(shown_text, word.similar))}?" if word.similar else ""
    return f"{name} is not one token: its pieces {pieces} count together.{meant}"


def _mean_of(words: Sequence[QueryWord]) -> str:
    """Return the z of some words in words: the mean, or that of the only one; nothing for none."""
    names = in_short(shown_text(word.text) for word in words)
    return names and f"{'the mean' if len(words) > 1 else 'that'} of {names}"
