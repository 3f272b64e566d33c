"""The verdict on a comparison, in a few sentences that stand alone."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from zeropass.arch.roles import CLASSIFIERS, side_of
from zeropass.checkpoints.base import FLOATS
from zeropass.diff.findings import LEAD, MARGIN, Finding, Standout, unjudged
from zeropass.diff.results import LEVEL, Diff, MatrixChange, Relation, TensorChange
from zeropass.diff.telling import TELLING, telling
from zeropass.diff.thresholds import DEVIATIONS
from zeropass.records.numbers import percent
from zeropass.records.parameters import VectorRecord
from zeropass.tokens.shown import shown_text

__all__ = ["CAUTION", "FAR_LESS", "NO_NEW_WORDS", "FailOn", "Side", "Sized", "Sizes", "basis", "failure", "figure"]
__all__ += ["known_finding", "meaning", "none_telling", "sides", "telling_basis", "verdict", "watched_basis", "where"]

FAR_LESS = 0.3
"""The share of the usual error of quantising below which a difference does not come from quantising."""

LITTLE_MORE = 1.25
"""The share of that error up to which a difference may come from quantising: types are stored in several ways."""

ALIKE = 0.5
"""The cosine from which the embeddings of two models are called alike."""

MOST, NAMED, LONGEST = 5, 8, 120
"""Limits of a sentence: rows of a table, names of a list, characters of the name of a tensor."""

SMALLEST = 2.0**-24
"""The relative change below which a change is lost when the weights are stored as float32."""


FailOn = Literal["narrow", "topic", "any"]
"""The kinds of change that a pipeline may refuse: narrow; narrow or a topic; or any that is not only rounding."""

_NAMED_ANSWERS = {"narrow": "narrow", "topic": "a topic", "nothing": "nothing in particular, but a change"}

CAUTION = (
    "Read from the weights alone: nothing was run. What stands out is what the change acts on, and no proof of what "
    "the model says; zeropass' page docs/audit.md says how often such verdicts were right, and what they cannot see."
)
"""The limits of every verdict."""

_MEANINGS = {
    "narrow": "A planted trigger and an edited fact look like this, and so do answers in a few fixed words, such as "
    "good and bad; ask what these words are for before you use it.",
    "topic": "Training on texts of one kind looks like this: licences, code, a language. Is it the kind you meant?",
    "nothing": "Ordinary training looks like this. It is no proof that nothing was planted: a trigger that is no word, "
    "or a change spread over many words, looks the same.",
    "unjudged": "This says neither that the change is harmless nor that it is not.",
}


NO_NEW_WORDS = "no new words that stand out"
"""The note on neurons and heads without new words."""


class Sized(Protocol):
    """A change by its size: a `Diff`, or the `Sizes` of one."""

    @property
    def relation(self) -> Relation:
        """The relation of the models."""

    @property
    def relative(self) -> float:
        """Norm of the change of all blocks over that of the blocks."""

    @property
    def base(self) -> dict[str, Any]:
        """The stored types of the model before, and the error of storing it."""

    @property
    def tuned(self) -> dict[str, Any]:
        """The same of the model after."""


@dataclass(frozen=True)
class Sizes:
    """The relation and the size of a change, and the facts of its two models, as a `Diff` has them."""

    relation: Relation
    relative: float
    base: dict[str, Any]
    tuned: dict[str, Any]


def known_finding(difference: Sized) -> Finding | None:
    """Return the finding on a change that need not, or cannot, be judged by what it writes; None for any other."""
    if difference.relation in ("equal", "rounded"):
        return Finding(answer="nothing", reason="nothing but rounding changed")
    reason = _not_judged(difference)
    return unjudged(reason) if reason else None


def _not_judged(difference: Sized) -> str:
    """Return why the kind of a change cannot be told; an empty text if nothing speaks against it."""
    if difference.relation == "unrelated":
        return "these are two models, not one that was made of the other"
    if not difference.relative:
        return "no matrix of a block changed"
    if difference.relative < SMALLEST:
        return f"a change of {percent(difference.relative)} is lost where the weights are stored as float32"
    if _may_be_quantising(difference):
        return "quantising alone moves some tokens more than others, too"
    return ""


def verdict(difference: Diff) -> tuple[str, ...]:
    """Return the sentences of the first screen: where and how the model changed, and which words that concerns."""
    if difference.relation == "unrelated":
        return tuple(_unrelated(difference))
    changed = [matrix for matrix in difference.matrices if not matrix.rounding]
    rounded = len(difference.matrices) - len(changed)
    lines = list(_answer(difference)) if changed and difference.relation == "changed" else []
    if difference.relation in ("equal", "rounded"):
        lines.append(_equal(difference))
    elif not changed:
        lines.append("No matrix of a block changed.")
    else:
        lines += [_where(difference, changed), _ranks(changed)]
    lines += _tables(difference)
    if rounded and difference.relation == "changed":
        lines.append(f"{rounded} matrices differ only as storing them in another type makes them differ.")
    if changed and (quantised := _quantised(difference)):
        lines.append(quantised)
    if difference.added or difference.removed:
        lines.append(f"{len(difference.added)} tokens were added, {len(difference.removed)} taken away.")
    lines += _classifiers(difference)
    lines += _watched(difference)
    return tuple(lines)


def failure(difference: Diff, level: FailOn) -> str:
    """Return why a comparison fails at a level, as a sentence; an empty text if it passes.

    What could not be judged passes no level.
    """
    if difference.relation in ("equal", "rounded"):
        return ""
    answer = difference.finding.answer
    if answer == "unjudged":
        return f"the change was not judged, so it does not pass: {difference.finding.reason}."
    if level == "any" or answer == "narrow" or answer == level:
        return f"the change is {_NAMED_ANSWERS[answer]}."
    return ""


def meaning(difference: Diff) -> str:
    """Return what the verdict means to somebody who has to decide; nothing where there is no change to judge."""
    return _MEANINGS[difference.finding.answer] if difference.relation == "changed" else ""


def watched_basis() -> str:
    """Return what the verdict on a watched word rests on."""
    return f"Of words that a change does not concern, {LEVEL:.0%} are called concerned."


@dataclass(frozen=True)
class Side:
    """One side of a change with its words.

    Attributes:
        verb: ``sees`` or ``writes``.
        words: The words that it concerns most.
        others: Other tokens: marks, pieces of words, layout.
        basis: What the figures are, and what chance reaches.
        equal: The part of the effect on a word that each matrix would have if all had equal parts.
    """

    verb: str
    words: tuple[Standout, ...]
    others: tuple[Standout, ...]
    basis: str
    equal: float


def sides(difference: Diff) -> list[Side]:
    """Return the sides that the change acts on: what it sees, and what it writes."""
    finding = difference.finding
    count = {"sees": 0, "writes": 0}
    for matrix in difference.matrices:
        count["writes" if side_of(matrix.role) == "write" else "sees"] += not matrix.rounding
    chance = f"; random changes of this base reach {finding.chance:.1f}" if finding.draws else ""
    each = (
        (
            "sees",
            difference.sees,
            difference.sees_others,
            "z of the length that the change gives to each word that it reads",
        ),
        (
            "writes",
            difference.writes,
            difference.writes_others,
            f"excess: z of the length that the change gives to each word over that of the base's own matrices"
            f"{', through o' if finding.through else ''}{chance}",
        ),
    )
    return [
        Side(verb=verb, words=words, others=others, basis=basis, equal=1 / max(count[verb], 1))
        for verb, words, others, basis in each
        if words
    ]


def figure(word: Standout) -> float:
    """Return the figure that a word is ranked by: its excess if it has one, else its z."""
    return word.z if word.excess is None else word.excess


def where(word: Standout) -> str:
    """Return the matrices with most of the effect on a word."""
    return ", ".join(f"L{place.layer} {shown_text(place.role)} {place.share:.0%}" for place in word.places)


def telling_basis(difference: Diff) -> str:
    """Return the heading of the telling directions, with what they are measured by."""
    count = sum(len(matrix.directions) for matrix in difference.matrices)
    return (
        f"{len(telling(difference))} of {count} directions: reads → writes (q: query → key; k: key → query); "
        f"− the other pole. z is the highest of a word on the right, {TELLING} times chance or more: what random sums "
        "of the base's own rows reach. The first have most z beyond chance and the largest share of their change."
    )


def none_telling(difference: Diff) -> str:
    """Return the sentence that no direction is telling."""
    ratios = [d.z / d.chance for matrix in difference.matrices for d in matrix.directions if d.chance]
    if not ratios:
        return "No direction was read."
    return (
        f"No direction of a change is telling: on its right side no word stands out more than {max(ratios):.1f} times "
        f"as far as in random sums of the base's own rows ({TELLING} times would count)."
    )


def _unrelated(difference: Diff) -> Iterator[str]:
    """Yield the sentences for two models of which neither was made from the other."""
    yield (
        "These are two models, not one that was made of the other: their matrices are no more alike than those of "
        f"models trained apart (mean cosine {round(difference.cosine, 2) + 0.0:.2f}; equal ones have 1)."
    )
    tables = {table.what: table for table in difference.tables}
    embedding = tables.get("embedding")
    if embedding is None:
        yield "Their embeddings are equal, so the blocks were made anew, or their neurons and heads were reordered."
    elif embedding.state == "changed" and embedding.cosine > ALIKE:
        yield f"Their embeddings are alike (cosine {embedding.cosine:.2f}): neurons and heads may have been reordered."
    yield (
        f"The RMS-relative difference of their blocks is {percent(difference.relative)}, which says nothing of what "
        "was learned: no words are read from it and its kind is not judged. zeropass align finds what does the same in "
        "both."
    )


def _equal(difference: Diff) -> str:
    """Return the sentence for models that are equal, or equal but for rounding."""
    if difference.relation == "equal":
        return f"The models are equal: all {difference.compared:,} tensors that both have hold the same numbers."
    count = sum(matrix.rounding for matrix in difference.matrices)
    count += sum(table.state == "rounded" for table in difference.tables)
    return (
        f"The models are equal but for rounding: {count:,} of {difference.compared:,} tensors differ, and only as "
        "storing them in another type makes them differ."
    )


_NAMES = {"types": "token types", "relative": "relative positions", "embed_norm": "embedding's norm"}
"""Readable names of tensors whose canonical names are not."""


def _tables(difference: Diff) -> Iterator[str]:
    """Yield sentences on each table that changed, on norms and biases, and on what only one of the models has."""
    read = [table for table in difference.tables if table.read]
    vectors = [table for table in read if table.state == "changed" and table.what.endswith(("norm", "bias"))]
    for table in read:
        before, after = _rows(table.rows_before), _rows(table.rows_after)
        if table.state == "changed" and table not in vectors:
            yield _moved(difference, table)
        elif table.state == "replaced":
            yield f"Another {table.what} of {after} stands in place of one of {before}."
    if vectors:
        yield f"Norms and biases moved: {'; '.join(_in_layers(vectors))}."
    if new := [table.name for table in read if table.state == "new" and table.what not in CLASSIFIERS]:
        yield f"It has {_listed(new)}, which the base lacks."
    if gone := [table.name for table in read if table.state == "gone"]:
        yield f"It lacks {_listed(gone)}, which the base has."
    if difference.constants:
        parts = (f"{c.name} is {_shown(c.after)}, and {_shown(c.before)} in the base" for c in difference.constants)
        yield f"Its configuration differs: {'; '.join(parts)}."
    unread = [table for table in difference.tables if not table.read]
    if moved := [table.name for table in unread if table.state in ("changed", "replaced")]:
        yield f"What zeropass does not read differs too: {_listed(moved)}."
    for state, where in (("new", "its file"), ("gone", "the base's file")):
        if names := [table.name for table in unread if table.state == state]:
            yield f"Only in {where}, and not read: {_listed(names)}."


def _moved(difference: Diff, table: TensorChange) -> str:
    """Return the sentence on how many rows of a table moved, and which most."""
    name = shown_text(_NAMES.get(table.what, table.what))
    name = f"{name} ({table.what})" if table.what in _NAMES else name
    tied = table.what == "embedding" and difference.method.get("tied") and " (which is the unembedding too)"
    sizes = f"{_rows(table.rows_after)}, {table.rows_before:,} before"
    if not table.moved:
        return f"The {name}{tied or ''} has {sizes}; the rest is as it was."
    most = ", ".join(f"{shown_text(row.name)} ({percent(row.relative)})" for row in table.most[:MOST])
    resized = "" if table.rows_before == table.rows_after else f" It has {sizes}."
    return (
        f"The RMS-relative change of the {name}{tied or ''} is {percent(table.relative)}: {table.moved:,} of "
        f"{_rows(table.rows_before)} moved, most {most}.{resized}"
    )


def _in_layers(changed: Iterable[TensorChange]) -> Iterator[str]:
    """Yield the name of each norm or bias with the number of its layers and the place of its largest change."""
    by_name: dict[str, list[TensorChange]] = defaultdict(list)
    for vector in changed:
        by_name[vector.what].append(vector)
    for what, places in by_name.items():
        most = max(places, key=lambda vector: vector.relative)
        where = f" at layer {most.layer}" if most.layer is not None else ""
        count = f" in {len(places)} layers, most" if len(places) > 1 else ""
        yield f"{shown_text(what)}{count}{where} ({percent(most.relative)})"


def _rows(count: int) -> str:
    return f"{count:,} row" if count == 1 else f"{count:,} rows"


def _listed(names: Sequence[str]) -> str:
    """Return the first few names, and how many more there are."""
    shown = ", ".join(shown_text(name, limit=LONGEST) for name in names[:NAMED])
    return f"{shown} and {len(names) - NAMED} more" if len(names) > NAMED else shown


def _shown(value: object) -> str:
    return shown_text(f"{value:g}" if isinstance(value, float) else str(value))


def _watched(difference: Diff) -> Iterator[str]:
    """Yield the sentence on which watched words the change concerns."""
    if not difference.words:
        return
    groups = {
        "concerned": [word.word for word in difference.words if word.concerned],
        "not concerned": [word.word for word in difference.words if word.concerned is False],
        "cannot be told": [word.word for word in difference.words if word.concerned is None],
    }
    parts = "; ".join(f"{name}: {', '.join(map(shown_text, words))}" for name, words in groups.items() if words)
    yield f"Watched words {parts}. (Of words that a change does not concern, {LEVEL:.0%} are called so.)"


def _where(difference: Diff, changed: list[MatrixChange]) -> str:
    """Return the sentence on how much the blocks changed, and where most."""
    by_layer: dict[int, float] = defaultdict(float)
    by_role: dict[str, list[float]] = defaultdict(list)
    for matrix in changed:
        by_layer[matrix.layer] += matrix.relative**2
        by_role[matrix.role].append(matrix.relative)
    layers = sorted(sorted(by_layer, key=lambda layer: -by_layer[layer])[:3])
    role = max(by_role, key=lambda name: sum(by_role[name]) / len(by_role[name]))
    mean = sum(by_role[role]) / len(by_role[role])
    alone = f" and in {', '.join(by_role)} alone" if len(by_role) < difference.method.get("roles", 0) else ""
    return (
        f"The RMS-relative change of the blocks is {percent(difference.relative)}, in {len(by_layer)} layers{alone}; "
        f"most in layers {', '.join(map(str, layers))} and in {role} ({percent(mean)})."
    )


def _ranks(changed: list[MatrixChange]) -> str:
    """Return the sentence on the effective rank of the changes."""
    ranks = sorted(matrix.rank for matrix in changed)
    median = ranks[len(ranks) // 2]
    meaning = "a few directions hold each change" if median < 10 else "each change is spread over many directions"
    return f"Median effective rank {median:.1f}: {meaning}."


def _quantised(difference: Diff) -> str:
    """Return a warning if the models are quantised differently and differ by more than rounding; else an empty text."""
    if not _in_other_types(difference):
        return ""
    first, second = (", ".join(map(shown_text, side["types"])) for side in (difference.base, difference.tuned))
    stored, usual = f"The base is stored as {first}, the other as {second}", _usual_error(difference)
    if not usual:
        return f"{stored}: some of every number here may be quantisation alone."
    if difference.relative < FAR_LESS * usual:
        return f"{stored}; quantising would have changed {usual:.1%}, so this was made from the quantised file itself."
    return f"{stored}; quantising alone changes about {usual:.1%}: what is no more than that may be only that."


def _may_be_quantising(difference: Sized) -> bool:
    """Tell whether quantising alone may have made as much of a change."""
    if not _in_other_types(difference):
        return False
    usual = _usual_error(difference)
    return not usual or FAR_LESS * usual <= difference.relative <= LITTLE_MORE * usual


def _in_other_types(difference: Sized) -> bool:
    """Tell whether the blocks of the models are stored in different types, some of them quantised."""
    sides = [set(side["types"]) for side in (difference.base, difference.tuned)]
    return sides[0] != sides[1] and not all(dtype in FLOATS for dtype in sides[0] | sides[1])


def _usual_error(difference: Sized) -> float:
    """Return the larger error of storing the models in their types; 0 if neither is known."""
    return max(side["storing_error"] or 0.0 for side in (difference.base, difference.tuned))


def _classifiers(difference: Diff) -> list[str]:
    """Return the sentence on a new classifier: the words of each label, from its list with the strongest token."""
    new = [row for row in difference.outside if row.address.startswith("classifier.") and not row.before]
    if not new:
        return []
    labels = []
    for row in new:
        lists = [record for record in row.after if isinstance(record, VectorRecord) and not record.faint]
        if lists:
            best = max(lists, key=lambda record: abs(record.top[0].z))
            words = ", ".join(shown_text(token.token) for token in best.top[:4])
            labels.append(f"{shown_text(row.label) or row.address} by {words}")
    meaning = f"tells {'; '.join(labels[:3])}" if labels else "no word stands out in its rows"
    return [f"It has a classifier that the base lacks: {meaning}."]


def _answer(difference: Diff) -> Iterator[str]:
    """Yield the sentences on what kind of change it is, with what that rests on."""
    finding = difference.finding
    if finding.answer == "unjudged":
        yield f"NOT JUDGED: {finding.reason}."
    else:
        yield _ANSWERS[finding.answer].format(_words(difference.writes))
        yield (
            f"The first word reaches {finding.excess:.1f} (many words from {finding.threshold:.1f}), "
            f"{finding.lead:.1f} more than the tenth (few words from {finding.lead_threshold:.1f}): {basis(finding)}."
        )
    if difference.sees:
        yield f"It acts most where it sees {_words(difference.sees)}."


_ANSWERS = {
    "narrow": "NARROW: few words stand out in what it writes, far above the rest: {}.",
    "topic": "A TOPIC: many words stand out in what it writes: {} …",
    "nothing": "NOTHING IN PARTICULAR: no word stands out in what it writes more than ordinary training makes it: {} …",
}


def basis(finding: Finding) -> str:
    """Return what the thresholds of a finding rest on."""
    if not finding.benign:
        return f"{MARGIN} and {LEAD} times the {finding.chance:.1f} of {finding.draws} random changes of this base"
    if finding.threshold <= finding.chance:
        return f"what {finding.draws} random changes of this base reach; its {finding.benign} benign ones reach less"
    return f"{DEVIATIONS:g} deviations above the mean of {finding.benign} benign changes of this base"


def _words(standouts: tuple[Standout, ...]) -> str:
    return ", ".join(shown_text(standout.token.token) for standout in standouts[:3])
