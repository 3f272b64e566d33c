"""The wrong lists that a sentence is held against: other lists of the same role, layer and frame."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from zeropass.arch.roles import PROJECTION_ROLES
from zeropass.atlas.read import Atlas
from zeropass.atlas.schema import head_count, head_width
from zeropass.labels.results import Listed, ids_of
from zeropass.model.address import FEATURE, Address, parse
from zeropass.records.parameters import PairRecord, VectorRecord

if TYPE_CHECKING:
    from zeropass.lens import Lens

__all__ = ["says_little", "siblings", "wrong_lists"]

_TRIES = 200
"""The most lists that are read in search of wrong ones."""

_COMMON = 0.25
"""The largest share of a list's words that a wrong list may have as well."""


def wrong_lists(source: "Atlas | Lens", record: Listed, count: int, generator: np.random.Generator) -> list[Listed]:
    """Return up to so many lists that are like a list but about something else, drawn at random.

    They are of the same role, layer and frame, and as telling: among lists that say little, one that says something
    would be told at once. They share few words with the list.

    Args:
        source: The atlas or lens that the list is from.
        record: The list.
        count: How many to return.
        generator: The source of what is drawn.
    """
    place = parse(record.address)
    place = place if place.role else place.with_role(record.role)
    others = siblings(place, _sizes(source, place))
    chosen: list[Listed] = []
    for i in generator.permutation(len(others))[:_TRIES]:
        candidate = _read(source, others[i], record)
        if says_little(candidate) == says_little(record) and _common(record, candidate) <= _COMMON:
            chosen.append(candidate)
        if len(chosen) == count:
            break
    return chosen


def siblings(place: Address, sizes: Mapping[str, Any]) -> list[Address]:
    """Return the other parameters of a layer and role: neurons, experts, heads, columns, projections or features.

    What stands alone in its layer, and tables outside the blocks, have none.

    Example:
        >>> sizes = {"neurons": 512, "experts": 1, "heads": 3, "head_dim": 32, "features": 0}
        >>> [str(other) for other in siblings(parse("L1.attn.1.vo"), sizes)]
        ['L1.attn.0', 'L1.attn.2']
    """
    if place.layer < 0:
        return []
    if place.index >= 0:
        counts = {"ff": sizes["neurons"] // sizes["experts"], FEATURE: sizes["features"]}
        counts |= dict.fromkeys(("mixer", "laurel", "ple"), sizes.get("rows", 0))
        count = counts[place.part] if place.part in counts else head_width(sizes, place.role, place.layer)
        others = [replace(place, index=i) for i in range(count)]
    elif place.head >= 0:
        others = [replace(place, head=i) for i in range(head_count(sizes, place.layer))]
    else:
        others = [replace(place, expert=i) for i in range(sizes["experts"])] if place.expert >= 0 else []
    return [other for other in others if other != place]


def says_little(record: Listed) -> bool:
    """Tell whether a list makes no more sense than one of a random direction; pairs have no such mark."""
    return isinstance(record, VectorRecord) and record.says_little


def _sizes(source: "Atlas | Lens", place: Address) -> Mapping[str, Any]:
    """Return the sizes of a layer by name; only an atlas of a dictionary has features, only projections have rows."""
    layer, role = place.layer, place.role
    if not isinstance(source, Atlas):
        rows = source.model.rows(role, layer) if role in PROJECTION_ROLES else 0
        return asdict(source.model.dims) | {"features": 0, "rows": rows}
    return source.model | {
        "features": max((run.count for run in source.runs if run.layer == layer), default=0),
        "rows": max((run.count for run in source.runs if (run.layer, run.role) == (layer, role)), default=0),
    }


def _read(source: "Atlas | Lens", place: Address, record: Listed) -> Listed:
    """Return the list of another parameter in the frame, the view and the length of a list."""
    options: dict[str, Any] = {"frame": record.frame, "tokens": record.hidden.view}
    listed: Listed = source.explain(place, **options, k=max(map(len, ids_of(record))))[0]
    return listed


def _common(record: Listed, other: Listed) -> float:
    """Return the share of a list's words that another list has, too."""
    words = {*_words(record)}
    return len(words & {*_words(other)}) / max(len(words), 1)


def _words(record: Listed) -> Iterator[str]:
    """Yield the tokens of a list without spaces and case: a flipped list, or its plurals in capitals, is no other."""
    if isinstance(record, PairRecord):
        texts = [token.token for pair in record.pairs for token in (pair.left, pair.right)]
    else:
        texts = [token.token for token in (*record.top, *record.bottom)]
    for text in texts:
        yield text.strip().casefold()
