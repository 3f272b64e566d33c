"""The pages of words: a token, its nearest tokens, and the parameters found for one word or several."""

import re
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from zeropass.atlas.query import pattern_of, token_of, word_of
from zeropass.errors import BadAddress, BadOption, UnknownWord
from zeropass.model.address import parse
from zeropass.records.parameters import verbs_of
from zeropass.records.search import MOST_TOKENS, FindRecord, Hit, QueryWord
from zeropass.tokens.shown import shown_text
from zeropass.web.context import Context
from zeropass.web.pages import drawings
from zeropass.web.pages.page import Page, Table, at, token
from zeropass.web.pages.parameter_pages import token_id, token_ids

__all__ = ["MOST_WORDS", "find", "goal", "nearest", "of_token", "replaced", "split"]

MOST_WORDS = 16
"""The largest number of words of a concept."""

DESCRIBED = 20
"""The number of parameters of each kind that the page of a token shows with their words."""

PARAMETER_COLUMNS = ("address", "side", "role", "frame", "score", "z", "above chance", "words", "faint")


def of_token(context: Context, i: int) -> Page:
    """Return the page of a token: the parameters that see it, are about to say it and write it, by layer."""
    atlas = context.atlas
    k = min(50, int(atlas.options["k"]))
    record = atlas.find_tokens([i], k=k)
    shown = {
        "token": record.query[0],
        "record": record,
        "groups": [(verb, rows[:DESCRIBED]) for verb, rows in by_kind(record)],
        "hidden": not atlas.mask(atlas.view)[i],
        "by_layer": by_layer(record),
        "k": k,
    }
    return Page(
        path=token(i),
        template="token.html",
        title=f"Token {shown_text(record.query[0].token) or i}",
        data=record.to_json,
        shown=shown,
        table=_table(record),
        picture=drawings.parameter_marks(record, atlas.model["layers"]),
        crumbs=((context.name, ""), ("Tokens", "tokens")),
        before=token(i - 1) if i > 0 else None,
        after=token(i + 1) if i + 1 < len(atlas.vocab) else None,
    )


def by_kind(record: FindRecord) -> list[tuple[str, list[Hit]]]:
    """Return the found parameters by what they do with the word, in words; best first."""
    verbs = verbs_of((row.side, row.frame) for row in record.hits)
    return [
        (verb, [row for row in record.hits if (row.side, row.frame) == list_type]) for list_type, verb in verbs.items()
    ]


def by_layer(record: FindRecord) -> list[tuple[int, list[Hit]]]:
    """Return the found parameters by layer, the first layer first; what lies outside the blocks comes last."""
    layers: dict[int, list[Hit]] = {}
    for row in record.hits:
        layers.setdefault(parse(row.address).layer, []).append(row)
    return sorted(layers.items(), key=lambda entry: (entry[0] < 0, entry[0]))


def _table(record: FindRecord) -> Table:
    """Return the found parameters as a table; several words have a column each for their z."""
    scores = [f"z of {word.text}" for word in record.words] if len(record.words) > 1 else []
    return Table((*PARAMETER_COLUMNS, *scores), partial(_rows, record))


def _rows(record: FindRecord) -> list[tuple[Any, ...]]:
    return [
        (
            *(row.address, row.side, row.role, row.frame, row.score, row.z, row.above),
            *(" ".join(shown_text(word.token) for word in row.words), row.says_little, *row.zs),
        )
        for row in record.hits
    ]


def nearest(context: Context, i: int) -> Page:
    """Return the page of the tokens that are nearest to one in the embedding."""
    record = context.neighbours.nearest(i)
    rows = [(n, t.id, t.token, t.score, t.z) for n, t in enumerate(record.tokens, 1)]
    return Page(
        path=f"nearest/{i}",
        template="nearest.html",
        title=f"Nearest to {shown_text(record.token.token)}",
        data=record.to_json,
        shown={"nearest": record},
        table=Table(("rank", "id", "token", "cosine", "z"), rows),
        crumbs=((context.name, ""), ("Tokens", "tokens"), (shown_text(record.token.token) or str(i), token(i))),
    )


@dataclass(frozen=True)
class Part:
    """A part of a search.

    Attributes:
        text: The word or the pattern.
        quoted: True if it stood in quotes, so that it is taken as it is.
        against: True if a ``-`` stands before it, so that it counts against a parameter.
    """

    text: str
    quoted: bool = False
    against: bool = False

    @property
    def is_pattern(self) -> bool:
        """True if it is a pattern: it has a ``*`` among letters, and no quotes."""
        return not self.quoted and "*" in self.text and any(map(str.isalpha, self.text))

    def __str__(self) -> str:
        text = f'"{self.text}"' if self.quoted or " " in self.text else self.text
        return f"-{text}" if self.against else text


def goal(context: Context, text: str) -> str | None:
    """Return the path of the address or token that a search names; None for what has to be searched for."""
    text = text.strip()
    try:
        parse(text)
    except BadAddress:
        pass
    else:
        return at(text)
    parts = split(text)
    if len(parts) != 1 or parts[0].is_pattern:
        return None
    try:
        return token(token_ids(context, parts[0].text)[0])
    except UnknownWord:
        return None


def split(text: str) -> list[Part]:
    """Return the parts of a search, separated by spaces or in quotes (``"in front"``, or ``" the"`` with its space).

    All but the first count against a parameter if they begin with ``-``, as in ``French -Spanish``.
    """
    parts: list[Part] = []
    for minus, quoted, plain in re.findall(r'(-?)"([^"]+)"|([^\s"]+)', text):
        against = bool(parts) and (minus or plain.startswith("-")) and plain != "-"
        parts.append(Part(quoted or (plain[1:] if against else plain), bool(quoted), bool(against)))
    return list(dict.fromkeys(parts))


def replaced(query: str, word: str, other: str) -> str:
    """Return a search with one of its words replaced by another."""
    parts = (replace(part, text=other, quoted=False) if part.text == word else part for part in split(query))
    return " ".join(map(str, parts))


def find(context: Context, text: str, k: int = 20) -> Page:
    """Return the page of the parameters found for what has no page of its own: several words, patterns, pieces.

    Args:
        context: The context.
        text: The words, as `split` separates them.
        k: The number of parameters of each kind.

    Raises:
        BadOption: If there are no words or too many, or as in `Atlas.find`.
        UnknownWord: If a word is not a token, as in `Atlas.find`.
    """
    parts = split(text)
    if not parts:
        raise BadOption("Type a word, several words for a concept, or an address such as L3.ff.17.")
    if len(parts) > MOST_WORDS:
        raise BadOption(f"That is {len(parts)} words; a concept has at most {MOST_WORDS}.")
    record = context.atlas.search([_looked_up(context, part) for part in parts], k=k)
    meant = [replaced(text, word.text, other) for word in record.words for other in word.similar]
    return Page(
        path="find",
        template="find.html",
        title=f"Found for {shown_text(text, 80)}",
        data=record.to_json,
        shown={"record": record, "groups": by_kind(record), "query": text, "meant": meant, "most": MOST_TOKENS},
        table=_table(record),
        picture=drawings.parameter_marks(record, context.atlas.model["layers"]),
        crumbs=((context.name, ""),),
    )


def _looked_up(context: Context, part: Part) -> QueryWord:
    """Return a part of a search with its tokens."""
    atlas = context.atlas
    if part.is_pattern:
        word = pattern_of(atlas.vocab, part.text, atlas.mask("default"))
    elif (i := token_id(part.text)) is not None:
        word = token_of(atlas.vocab, i)
    else:
        word = word_of(atlas.vocab, part.text, atlas.mask("default"))
    return replace(word, against=part.against)
