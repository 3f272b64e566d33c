"""Pages of words: a token, those near it, and what is found for one or several."""

import re
from functools import partial
from typing import Any

from zeropass.errors import BadAddress, BadOption, UnknownWord
from zeropass.model.address import parse
from zeropass.records.parameters import SEES, FindRecord, Hit, verb_of
from zeropass.tokens.vocabulary import shown_text
from zeropass.web.context import Context
from zeropass.web.pages import drawings
from zeropass.web.pages.page import Page, Table, at, token
from zeropass.web.pages.parameter_pages import token_ids

__all__ = ["MOST_WORDS", "find", "goal", "nearest", "of_token", "replaced"]

MOST_WORDS = 16
"""Words of a concept."""

HIT_COLUMNS = ("address", "side", "role", "frame", "score", "z", "above chance")


def of_token(context: Context, i: int) -> Page:
    """A token: the parameters that see it, are about to say it and write it, by layer."""
    atlas = context.atlas
    k = min(50, int(atlas.options["k"]))
    found = atlas.find_tokens([i], k=k)
    shown = {
        "token": found.query[0],
        "kinds": by_kind(found),
        "hidden": not atlas.mask(atlas.view)[i],
        "by_layer": by_layer(found),
        "k": k,
    }
    return Page(
        token(i),
        "token.html",
        f"Token {shown_text(found.query[0].token) or i}",
        found.to_json,
        shown,
        Table(HIT_COLUMNS, partial(_rows, found)),
        drawings.hits(found, atlas.model["layers"]),
        ((context.name, ""), ("Tokens", "tokens")),
        token(i - 1) if i > 0 else None,
        token(i + 1) if i + 1 < len(atlas.vocab) else None,
    )


def by_kind(found: FindRecord) -> list[tuple[str, list[Hit]]]:
    """Hits by what they do with the word, in words; best first in each."""
    kinds = dict.fromkeys([*SEES, *((hit.side, hit.frame) for hit in found.hits)])
    hits = [(verb_of(*kind), [hit for hit in found.hits if (hit.side, hit.frame) == kind]) for kind in kinds]
    return [(verb, of) for verb, of in hits if of]


def by_layer(found: FindRecord) -> list[tuple[int, list[Hit]]]:
    """Hits by layer, the first layer first; what lies outside the blocks comes last."""
    layers: dict[int, list[Hit]] = {}
    for hit in found.hits:
        layers.setdefault(parse(hit.address).layer, []).append(hit)
    return sorted(layers.items(), key=lambda entry: (entry[0] < 0, entry[0]))


def _rows(found: FindRecord) -> list[tuple[Any, ...]]:
    return [(h.address, h.side, h.role, h.frame, h.score, h.z, h.above) for h in found.hits]


def nearest(context: Context, i: int) -> Page:
    """The tokens nearest to one in the embedding."""
    found = context.neighbours.nearest(i)
    rows = [(n, t.id, t.token, t.score, t.z) for n, t in enumerate(found.tokens, 1)]
    return Page(
        f"nearest/{i}",
        "nearest.html",
        f"Nearest to {shown_text(found.token.token)}",
        found.to_json,
        {"nearest": found},
        Table(("rank", "id", "token", "cosine", "z"), rows),
        None,
        ((context.name, ""), ("Tokens", "tokens"), (shown_text(found.token.token) or str(i), token(i))),
    )


def goal(context: Context, text: str) -> str | None:
    """Where a search leads if it names one thing: the path of an address or of a token; None for a concept."""
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
    """The words of a search: by spaces, or whole between quotes (``"in front"``, ``" the"`` with its space)."""
    return [quoted or plain for quoted, plain in re.findall(r'"([^"]+)"|([^\s"]+)', text)]


def replaced(query: str, word: str, other: str) -> str:
    """A search with another word in the place of one of its words."""
    words = [other if one == word else one for one in split(query)]
    return " ".join(f'"{one}"' if " " in one else one for one in words)


def find(context: Context, text: str, k: int = 20) -> Page:
    """The parameters of several words at once. Raises UnknownWord for a word that is no token, as `Atlas.find` does."""
    words = split(text)
    if not words:
        raise BadOption("Type a word, several words for a concept, or an address such as L3.ff.17.")
    if len(words) > MOST_WORDS:
        raise BadOption(f"That is {len(words)} words; a concept has at most {MOST_WORDS}.")
    ids = list(dict.fromkeys(i for word in words for i in token_ids(context, word)))
    found = context.atlas.find_tokens(ids, k=k)
    return Page(
        "find",
        "find.html",
        f"Found for {shown_text(text, 80)}",
        found.to_json,
        {"found": found, "kinds": by_kind(found), "query": text, "k": k},
        Table(HIT_COLUMNS, partial(_rows, found)),
        drawings.hits(found, context.atlas.model["layers"]),
        ((context.name, ""),),
    )
