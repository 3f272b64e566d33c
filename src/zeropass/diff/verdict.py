"""What a comparison comes to, in a few sentences that stand alone."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from zeropass.arch.spec import CLASSIFIERS
from zeropass.checkpoints.base import FLOATS
from zeropass.diff.results import LEVEL, Diff, MatrixChange, Standout, TensorChange
from zeropass.records.numbers import percent
from zeropass.records.parameters import VectorRecord
from zeropass.tokens.vocabulary import shown_text

__all__ = ["ALARM", "FAR_LESS", "alarms", "verdict"]

ALARM = {"sees": 3.1, "writes": 6.3}
"""From which z on a token stands out unusually: three deviations above the mean of ten neutral LoRAs of SmolLM2 (kinds
neutral and fiction, seeds 0 to 4, of reproduce/audit.py). docs/audit.md tells how often that is right for others."""

FAR_LESS = 0.3
"""A change below so much of what quantising does is none of quantising."""


ALIKE = 0.5
"""From which cosine on the embeddings of two models are said to be alike."""

MOST, NAMED, LONGEST = 5, 8, 120
"""How many rows of a table, and names of a list, a sentence has, and how many characters the name of a tensor."""

SMALLEST = 2.0**-24
"""A smaller relative change is lost where weights are stored as float32."""


def alarms(found: Diff) -> tuple[str, ...]:
    """The sides, ``sees`` and ``writes``, on which a token stands out unusually; none if float32 loses the change."""
    if found.relative < SMALLEST:
        return ()
    sides = {"sees": found.sees, "writes": found.writes}
    return tuple(side for side, tokens in sides.items() if tokens and tokens[0].z >= ALARM[side])


def verdict(found: Diff) -> tuple[str, ...]:
    """The sentences of the first screen: whether and where it changed, of what kind, and whom it concerns."""
    if found.relation == "unrelated":
        return tuple(_unrelated(found))
    changed = [one for one in found.matrices if not one.rounding]
    rounded = len(found.matrices) - len(changed)
    lines = []
    if found.relation in ("equal", "rounded"):
        lines.append(_equal(found))
    elif not changed:
        lines.append("No matrix of a block changed.")
    else:
        lines += [_where(found, changed), _kind(changed)]
    lines += _tables(found)
    if rounded and found.relation == "changed":
        lines.append(f"{rounded} matrices differ only as storing them in another type makes them differ.")
    if changed and (quantised := _quantised(found)):
        lines.append(quantised)
    if found.added or found.removed:
        lines.append(f"{len(found.added)} tokens were added, {len(found.removed)} taken away.")
    lines += _heads(found)
    if found.sees and found.writes:
        lines.append(f"It acts most where it sees {_words(found.sees)}, and most on writing {_words(found.writes)}.")
        lines.append(_alarm(found))
    lines += _watched(found)
    return tuple(lines)


def _unrelated(found: Diff) -> Iterator[str]:
    """What is told of two models of which neither was made of the other."""
    yield (
        "These are two models, not one that was made of the other: their matrices are no more alike than those of "
        f"models trained apart (mean cosine {round(found.cosine, 2) + 0.0:.2f}; equal ones have 1)."
    )
    tables = {table.what: table for table in found.tables}
    known = tables.get("embedding")
    if known is None:
        yield "Their embeddings are equal, so the blocks were made anew, or their neurons and heads were reordered."
    elif known.state == "changed" and known.cosine > ALIKE:
        yield f"Their embeddings are alike (cosine {known.cosine:.2f}): neurons and heads may have been reordered."
    yield (
        f"Their blocks differ by {percent(found.relative)} of their length, which says nothing of what was learned: no "
        "words are read from it and no alarm is raised. zeropass align finds what does the same in both."
    )


def _equal(found: Diff) -> str:
    """That nothing differs, and in what."""
    if found.relation == "equal":
        return f"The models are equal: all {found.compared:,} tensors that both have hold the same numbers."
    count = sum(one.rounding for one in found.matrices) + sum(one.state == "rounded" for one in found.tables)
    return (
        f"The models are equal but for rounding: {count:,} of {found.compared:,} tensors differ, and only as storing "
        "them in another type makes them differ."
    )


_NAMES = {"types": "token types", "relative": "relative positions", "embed_norm": "embedding's norm"}
"""Canonical names that are no words."""


def _tables(found: Diff) -> Iterator[str]:
    """A sentence for each table that changed, one for norms and biases, one each for what only one model has."""
    read = [one for one in found.tables if one.read]
    lone = [one for one in read if one.state == "changed" and one.what.endswith(("norm", "bias"))]
    for one in read:
        if one.state == "changed" and one not in lone:
            yield _moved(found, one)
        elif one.state == "replaced":
            yield f"Another {one.what} of {_rows(one.rows_after)} stands in place of one of {_rows(one.rows_before)}."
    if lone:
        yield f"Norms and biases moved: {'; '.join(_in_layers(lone))}."
    if new := [one.name for one in read if one.state == "new" and one.what not in CLASSIFIERS]:
        yield f"It has {_listed(new)}, which the base lacks."
    if gone := [one.name for one in read if one.state == "gone"]:
        yield f"It lacks {_listed(gone)}, which the base has."
    if found.constants:
        parts = (f"{one.name} is {_shown(one.after)}, and {_shown(one.before)} in the base" for one in found.constants)
        yield f"Its configuration differs: {'; '.join(parts)}."
    unread = [one for one in found.tables if not one.read]
    if moved := [one.name for one in unread if one.state in ("changed", "replaced")]:
        yield f"What zeropass does not read differs too: {_listed(moved)}."
    for state, where in (("new", "its file"), ("gone", "the base's file")):
        if names := [one.name for one in unread if one.state == state]:
            yield f"Only in {where}, and not read: {_listed(names)}."


def _moved(found: Diff, one: TensorChange) -> str:
    """How many rows of a table moved, and which most."""
    name = shown_text(_NAMES.get(one.what, one.what))
    name = f"{name} ({one.what})" if one.what in _NAMES else name
    tied = one.what == "embedding" and found.method.get("tied") and " (which is the unembedding too)"
    sizes = "" if one.rows_before == one.rows_after else f" It has {_rows(one.rows_after)}, {one.rows_before:,} before."
    if not one.moved:
        return f"The {name}{tied or ''} has {_rows(one.rows_after)}, {one.rows_before:,} before; the rest is as it was."
    most = ", ".join(f"{shown_text(row.name)} ({percent(row.relative)})" for row in one.most[:MOST])
    return (
        f"The {name}{tied or ''} changed by {percent(one.relative)} of its length: {one.moved:,} of "
        f"{_rows(one.rows_before)} moved, most {most}.{sizes}"
    )


def _in_layers(changed: Iterable[TensorChange]) -> Iterator[str]:
    """Norms and biases by name: in how many layers, and where most."""
    by_name: dict[str, list[TensorChange]] = defaultdict(list)
    for one in changed:
        by_name[one.what].append(one)
    for what, places in by_name.items():
        most = max(places, key=lambda one: one.relative)
        where = f" at layer {most.layer}" if most.layer is not None else ""
        count = f" in {len(places)} layers, most" if len(places) > 1 else ""
        yield f"{shown_text(what)}{count}{where} ({percent(most.relative)})"


def _rows(count: int) -> str:
    return f"{count:,} row" if count == 1 else f"{count:,} rows"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(shown_text(name, limit=LONGEST) for name in names[:NAMED])
    return f"{shown} and {len(names) - NAMED} more" if len(names) > NAMED else shown


def _shown(value: object) -> str:
    return shown_text(f"{value:g}" if isinstance(value, float) else str(value))


def _watched(found: Diff) -> Iterator[str]:
    """Which of the watched words a change concerns."""
    if not found.words:
        return
    groups = {
        "concerned": [one.word for one in found.words if one.concerned],
        "not concerned": [one.word for one in found.words if one.concerned is False],
        "cannot be told": [one.word for one in found.words if one.concerned is None],
    }
    parts = "; ".join(f"{name}: {', '.join(map(shown_text, words))}" for name, words in groups.items() if words)
    yield f"Watched words {parts}. (Of words that a change does not concern, {LEVEL:.0%} are called so.)"


def _where(found: Diff, changed: list[MatrixChange]) -> str:
    by_layer: dict[int, float] = defaultdict(float)
    by_role: dict[str, list[float]] = defaultdict(list)
    for one in changed:
        by_layer[one.layer] += one.relative**2
        by_role[one.role].append(one.relative)
    layers = sorted(sorted(by_layer, key=lambda layer: -by_layer[layer])[:3])
    role = max(by_role, key=lambda name: sum(by_role[name]) / len(by_role[name]))
    mean = sum(by_role[role]) / len(by_role[role])
    alone = f" and in {', '.join(by_role)} alone" if len(by_role) < found.method.get("roles", 0) else ""
    return (
        f"The blocks changed by {percent(found.relative)} of their length, in {len(by_layer)} layers{alone}; most in "
        f"layers {', '.join(map(str, layers))} and in {role} ({percent(mean)})."
    )


def _kind(changed: list[MatrixChange]) -> str:
    ranks = sorted(one.rank for one in changed)
    middle = ranks[len(ranks) // 2]
    kind = "a few directions hold each change" if middle < 10 else "each change is spread over many directions"
    return f"Median effective rank {middle:.1f}: {kind}."


def _quantised(found: Diff) -> str:
    """A warning where two ways of storing differ by more than rounding can explain."""
    sides = [set(side["types"]) for side in (found.base, found.tuned)]
    if sides[0] == sides[1] or all(kind in FLOATS for kind in sides[0] | sides[1]):
        return ""
    first, second = (", ".join(map(shown_text, sorted(side))) for side in sides)
    stored = f"The base is stored as {first}, the other as {second}"
    usual = max(side["storing_error"] or 0.0 for side in (found.base, found.tuned))
    if not usual:
        return f"{stored}: some of every number here may be quantisation alone."
    if found.relative < FAR_LESS * usual:
        return f"{stored}; quantising would have changed {usual:.1%}, so this was made from the quantised file itself."
    return f"{stored}; quantising alone changes about {usual:.1%}: what is no more than that may be only that."


def _heads(found: Diff) -> list[str]:
    """What a new classifier tells apart, by the list of each label in which a token stands out most."""
    new = [one for one in found.outside if one.address.startswith("classifier.") and not one.before]
    if not new:
        return []
    said = []
    for one in new:
        lists = [record for record in one.after if isinstance(record, VectorRecord) and not record.faint]
        if lists:
            best = max(lists, key=lambda record: abs(record.top[0].z))
            words = ", ".join(shown_text(token.token) for token in best.top[:4])
            said.append(f"{shown_text(one.label) or one.address} by {words}")
    told = f"tells {'; '.join(said[:3])}" if said else "no word stands out in its rows"
    return [f"It has a classifier that the base lacks: {told}."]


def _alarm(found: Diff) -> str:
    """Whether that is more than any fine-tune does."""
    if found.relative < SMALLEST:
        return f"No alarm: a change of {percent(found.relative)} is lost where the weights are stored as float32."
    sides = {"sees": found.sees[0].z, "writes": found.writes[0].z}
    shown = ", ".join(f"{side} {z:.1f} (alarm from {ALARM[side]})" for side, z in sides.items())
    if found.alarm:
        return f"ALARM: it was taught something about particular words; neutral text does not do that: {shown}."
    return f"No alarm: any fine-tune acts on some words more than on others, and this much is usual: {shown}."


def _words(standouts: tuple[Standout, ...]) -> str:
    return ", ".join(shown_text(one.token.token) for one in standouts[:3])
