"""The results of `zeropass relation`: plain data, without torch."""

import html
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

from zeropass._io.short_repr import ShortRepr
from zeropass.model.address import parse
from zeropass.records.numbers import coefficient
from zeropass.records.panels import AsFigure, AsFigures, HeatMap
from zeropass.records.parameters import AsJson, html_note
from zeropass.records.tabular import POLES, AsTable, Row, Several, plain_fields
from zeropass.tokens.shown import shown_text

__all__ = ["DOES", "LEVEL", "HeadScore", "Relation", "Relations", "examples", "small"]

LEVEL = 0.05
"""The p at which a head is named: the probability that chance names any head, in any set of the call."""

DOES = dict(zip(POLES, ("writes", "suppresses"), strict=True))
"""The verb for a head and the right word, by the pole of its row."""

_NEIGHBOURS = "no head writes more of them than copying alone: the right words are neighbours of the left ones"


@dataclass(frozen=True, repr=False)
class HeadScore(ShortRepr):
    """The score of one head for one set, at one pole of its rows.

    Attributes:
        address: The head.
        pole: ``+`` for right words among the highest scores, ``−`` for those among the lowest.
        share: The share of pairs whose right word is among the k most extreme tokens of the left word's row.
        shuffled: The same share for right words that belong to other left words of the set.
        z: The median z of the right words in their rows.
        shuffled_z: The same for those of other left words.
        copies: The share of left words that are among the k most extreme tokens of their own row; None where none is
            a single token that has a rank.
        p: The probability that shuffled right words give any head of the model this much more than wrong pairs have,
            times the number of sets.
        pairs: Some of the pairs that it takes to each other, if it is named.
    """

    address: str
    pole: str
    share: float
    shuffled: float
    z: float
    shuffled_z: float
    copies: float | None
    p: float
    pairs: tuple[tuple[str, str], ...] = ()

    @property
    def gain(self) -> float:
        """The share of right pairs less that of wrong ones."""
        return self.share - self.shuffled

    @property
    def named(self) -> bool:
        """True if chance would hardly give any head as much."""
        return self.gain > 0 and self.p <= LEVEL


@dataclass(frozen=True, repr=False)
class Relation(Several[HeadScore], ShortRepr, AsTable, AsFigure):
    """The scores of every head for one set of pairs, two for each: a sequence of them.

    Attributes:
        name: The name of the set.
        about: The meaning of the two words of a pair.
        source: The origin of the pairs.
        count: The number of pairs.
        unused: The number of pairs that are left out, by the reason.
        by_copying: The share that a head would have that writes the left word's own row of the output.
        scores: The scores of all heads, in order, at both poles.
    """

    name: str
    about: str
    source: str
    count: int
    unused: dict[str, int]
    by_copying: float
    scores: tuple[HeadScore, ...]

    _ITEMS = "scores"

    @property
    def named(self) -> tuple[HeadScore, ...]:
        """The heads that beat their null, the largest gain first."""
        return tuple(sorted((score for score in self.scores if score.named), key=lambda score: -score.gain))

    @property
    def best(self) -> HeadScore:
        """The score with the largest gain, be it named or not."""
        return max(self.scores, key=lambda score: score.gain)

    @property
    def notes(self) -> tuple[str, ...]:
        """The pairs in use, the shares of all heads and of mere copying, and the best head if none is named."""
        unused = ", ".join(f"{count} {shown_text(reason)}" for reason, count in self.unused.items())
        pairs = f"{self.count} pairs" + (f" (left out: {unused})" if unused else "")
        first = f"{pairs}; {self._others}; copying alone has {coefficient(self.by_copying)}"
        return (first, *((self._nothing,) if not self.named else (_NEIGHBOURS,) if self._copied else ()))

    @property
    def _others(self) -> str:
        """The shares of all heads at the pole +, in words."""
        shares = [score.share for score in self.scores if score.pole == POLES[0]]
        high = quantiles(shares, n=20)[-1] if len(shares) > 1 else shares[0]
        return f"half of all heads write {coefficient(median(shares))} or less, 19 of 20 {coefficient(high)} or less"

    @property
    def _copied(self) -> bool:
        """True if heads write the right words, other than by copying, and none more of them than copying alone."""
        written = [score for score in self.named if score.pole == POLES[0] and score.share != score.copies]
        return bool(written) and max(score.share for score in written) <= self.by_copying

    @property
    def _nothing(self) -> str:
        best = self.best
        nearest = f"{best.address} {DOES[best.pole]} {coefficient(best.share)}, shuffled {coefficient(best.shuffled)}"
        return f"no head beats the shuffles; nearest is {nearest}, p {small(best.p)}"

    def table_rows(self) -> Iterator[Row]:
        """Yield a row for each head and pole."""
        for score in self.scores:
            yield {"relation": self.name, **plain_fields(score), "gain": score.gain, "named": score.named}

    def panel(self) -> HeatMap:
        """Return the gain at the pole +: layers down, heads across."""
        gains = {
            (place.layer, place.head): score.gain
            for score in self.scores
            if score.pole == POLES[0]
            for place in (parse(score.address),)
        }
        layers, heads = (sorted(set(axis)) for axis in zip(*gains, strict=True))
        return HeatMap(
            title=f"{self.name}: share of right pairs beyond that of wrong ones",
            notes=self.notes,
            x="head",
            y="layer",
            rows=[str(layer) for layer in layers],
            columns=[str(head) for head in heads],
            values=[[gains.get((layer, head), math.nan) for head in heads] for layer in layers],
            scale="gain",
        )

    def _repr_words(self) -> str:
        heads = ", ".join(f"{score.address} {DOES[score.pole]} {coefficient(score.share)}" for score in self.named[:3])
        return f"{self.name}, {self.count} pairs: {heads or 'no head beats the shuffles'}"


@dataclass(frozen=True, repr=False)
class Relations(Several[Relation], AsJson, AsFigures):
    """The scores of all heads of a model for some sets of pairs: a sequence of `Relation`.

    Attributes:
        model: The name of the model.
        frame: The frame of the left words; that of the right ones belongs to it.
        lens: The lens that the maps were read through, in words; empty for the weights alone.
        k: The number of tokens of a row that count.
        view: The view of the tokens that have a rank.
        heads: The number of heads.
        shuffles: The number of shuffles of each set.
        seed: Their seed.
        sets: The sets.
        left_out: The sets of which the vocabulary has too few pairs.

    Example:
        >>> import zeropass as zp
        >>> relations = zp.relation("models/first", sets=["plural"], layers=(2, 3))
        >>> relations.heads, [relation.name for relation in relations]
        (6, ['plural'])
    """

    model: str
    frame: str
    lens: str
    k: int
    view: str
    heads: int
    shuffles: int
    seed: int
    sets: tuple[Relation, ...]
    left_out: tuple[str, ...] = ()

    _ITEMS = "sets"

    def of(self, name: str) -> Relation:
        """Return the set of a name; raise KeyError if there is none."""
        for relation in self.sets:
            if relation.name == name:
                return relation
        raise KeyError(name)

    def of_head(self, address: str) -> tuple[tuple[str, HeadScore], ...]:
        """Return the sets for which a head is named, with its scores, the largest gain first."""
        mine = [(relation.name, score) for relation in self.sets for score in relation.named]
        return tuple(sorted((each for each in mine if each[1].address == address), key=lambda each: -each[1].gain))

    @property
    def notes(self) -> tuple[str, ...]:
        """The meaning of the numbers, and the sets that were left out."""
        through = f"through the {shown_text(self.lens, limit=200)}" if self.lens else "by the weights alone"
        method = (
            f"Share of pairs whose right word is among the {self.k} most extreme tokens of the left word's row of vo "
            f"in the frame {self.frame}, {through}; shuffled: that of the right words of other pairs."
        )
        null = (
            f"Named are heads with p ≤ {coefficient(LEVEL)}: the probability that chance names any of {self.heads:,} "
            f"heads in any set ({self.shuffles:,} shuffles of the right words). "
            "Copying alone: a head that writes the left word itself, and so its neighbours."
        )
        few = f"Too few pairs in this vocabulary: {', '.join(map(shown_text, self.left_out))}." if self.left_out else ""
        return tuple(filter(None, (method, null, few)))

    def table_rows(self) -> Iterator[Row]:
        """Yield a row for each set, head and pole."""
        for relation in self.sets:
            yield from relation.table_rows()

    def panels(self) -> Iterator[HeatMap]:
        """Yield the gains of each set."""
        for relation in self.sets:
            yield relation.panel()

    def to_json(self) -> dict[str, Any]:
        """Return a dict that json.dumps accepts, with the names of the heads that beat their null beside all scores."""
        named = {relation.name: _places(relation.named) for relation in self.sets}
        return {**super().to_json(), "named": named}

    def _repr_words(self) -> str:
        with_heads = [relation.name for relation in self.sets if relation.named]
        return f"{self.model}, {self.heads} heads, {len(self.sets)} sets, heads for {', '.join(with_heads) or 'none'}"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{html.escape(shown_text(relation.name))}</td><td>{html.escape(score.address)}</td>"
            f"<td><i>{DOES[score.pole]}</i></td><td>{coefficient(score.share)}</td>"
            f"<td>{coefficient(score.shuffled)}</td><td>{html.escape(examples(score))}</td></tr>"
            for relation in self.sets
            for score in relation.named
        )
        head = "<tr><th>relation</th><th>head</th><th></th><th>share</th><th>shuffled</th><th>pairs</th></tr>"
        none = [relation.name for relation in self.sets if not relation.named]
        nothing = (f"No head beats the shuffles for {', '.join(map(shown_text, none))}.",) if none else ()
        return (f"<table>{head}{rows}</table>" if rows else "") + "".join(map(html_note, (*self.notes, *nothing)))


def small(p: float) -> str:
    """Return a probability with three decimals and no leading zero."""
    return f"{p:.3f}".removeprefix("0")


def _places(scores: Sequence[HeadScore]) -> list[dict[str, str]]:
    return [{"address": score.address, "pole": score.pole} for score in scores]


def examples(score: HeadScore) -> str:
    """Return some pairs that a head takes to each other, on one line, safe for a terminal."""
    return ", ".join(f"{shown_text(left)} → {shown_text(right)}" for left, right in score.pairs)
