"""The pages of words: a token, its nearest tokens, and the parameters found for one word or several."""

import re
from functools import partial
from typing import Any

from zeropass.errors import BadAddress, BadOption, UnknownWord
from zeropass.model.address import parse
from zeropass.records.parameters import FindRecord, Hit, verbs_of
from zeropass.tokens.vocabulary import shown_text
from zeropass.web.context import Context
from zeropass.web.pages import drawings
from zeropass.web.pages.page import Page, Table, at, token
from zeropass.web.pages.parameter_pages import token_ids

__all__ = ["MOST_WORDS", "find", "goal", "nearest", "of_token", "replaced"]

MOST_WORDS = 16
"""The largest number of words of a concept."""

PARAMETER_COLUMNS = ("address", "side", "role", "frame", "score", "z", "above chance")


def of_token(context: Context, i: int) -> Page:
    """Return the page of a token: the parameters that see it, are about to say it and write it, by layer."""
    atlas = context.atlas
    k = min(50, int(atlas.options["k"]))
    record = atlas.find_tokens([i], k=k)
    shown = {
        "token": record.query[0],
        "groups": by_kind(record),
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
        table=Table(PARAMETER_COLUMNS, partial(_rows, record)),
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


def _rows(record: FindRecord) -> list[tuple[Any, ...]]:
    return [(row.address, row.side, row.role, row.frame, row.score, row.z, row.above) for row in record.hits]


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


def goal(context: Context, text: str) -> str | None:
    """Return the path of the address or token that a search names; None for a concept."""
    text = text.strip()
    try:
        parse(text)
    except BadAddress:
        pass
    else:
        return at(text)
    words = split(text)
    if len(words) != 1:
        return None
    try:
        return token(token_ids(context, words[0])[0])
    except UnknownWord:
        return None


def split(text: str) -> list[str]:
    """Return the words of a search, separated by spaces or in quotes (``"in front"``, or ``" the"`` with its space)."""
    return [quoted or plain for quoted, plain in re.findall(r'"([^"]+)"|([^\s"]+)', text)]


def replaced(query: str, word: str, other: str) -> str:
    """Return a search with one of its words replaced by another."""
    words = [other if part == word else part for part in split(query)]
    return " ".join(f'"{part}"' if " " in part else part for part in words)


def find(context: Context, text: str, k: int = 20) -> Page:
    """Return the page of the parameters found for several words at once.

    Args:
        context: The context.
        text: The words, as `split` separates them.
        k: The number of parameters of each kind.

    Raises:
        BadOption: If there are no words or too many.
        UnknownWord: If a word is not a token, as in `Atlas.find`.
    """
    words = split(text)
    if not words:
        raise BadOption("Type a word, several words for a concept, or an address such as L3.ff.17.")
    if len(words) > MOST_WORDS:
        raise BadOption(f"That is {len(words)} words; a concept has at most {MOST_WORDS}.")
    ids = list(dict.fromkeys(i for word in words for i in token_ids(context, word)))
    record = context.atlas.find_tokens(ids, k=k)
    return Page(
        path="find",
        template="find.html",
        title=f"Found for {shown_text(text, 80)}",
        data=record.to_json,
        shown={"found": record, "groups": by_kind(record), "query": text, "k": k},
        table=Table(PARAMETER_COLUMNS, partial(_rows, record)),
        picture=drawings.parameter_marks(record, context.atlas.model["layers"]),
        crumbs=((context.name, ""),),
    )
