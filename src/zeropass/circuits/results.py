"""The results about circuits: plain data, without torch."""

import html
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from zeropass._io.short_repr import ShortRepr
from zeropass.errors import BadOption
from zeropass.records.numbers import NOTHING, coefficient, plain
from zeropass.records.panels import AsFigure, AsFigures, Bars, HeatMap, Panel
from zeropass.records.parameters import AsJson, Token, html_note
from zeropass.records.tabular import AsTable, Row, Several, plain_fields
from zeropass.tokens.shown import shown_text

__all__ = ["Composition", "Compositions", "Feed", "FeedTable", "Feeds", "HeadPairs", "PairTable"]
__all__ += ["InductionHead", "InductionHeads", "WordPath", "WordPaths", "html_table"]

INPUTS = ("q", "k", "v")
"""The inputs of a head, in the order of all tables."""

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, repr=False)
class Composition(ShortRepr):
    """The composition of an earlier head, which writes, with an input of a later one, which reads.

    Attributes:
        writer: The address of the earlier head.
        reader: That of the later head.
        into: The input: ``q``, ``k`` or ``v``.
        path: ``direct`` along the stream, or ``flow`` through the blocks between as well.
        score: ``‖A Bᵀ‖ / (‖A‖ ‖B‖)``, from 0 to 1.
        expected: The root of its mean square if one of the two is turned at random.
        z: The distance of its square from that mean, in standard deviations of the random turns.
        z_pairs: Its robust z among the pairs of the same two layers and input; None where these are few.
        overlap: The mean squared cosine of the principal angles of the two subspaces.
        overlap_expected: Its mean if one of the two is turned at random.
        overlap_z: The distance from that mean, in standard deviations.
    """

    writer: str
    reader: str
    into: str
    path: str
    score: float
    expected: float
    z: float
    z_pairs: float | None
    overlap: float
    overlap_expected: float
    overlap_z: float


@dataclass(frozen=True, repr=False)
class Compositions(Several[Composition], AsJson, AsFigure):
    """Pairs of heads with the strongest composition: a sequence of them.

    Attributes:
        model: The name of the model.
        compared: The number of pairs and inputs that they were chosen from.
        pairs: The pairs, the best first.
        notes: Notes on them.
    """

    model: str
    compared: int
    pairs: tuple[Composition, ...]
    notes: tuple[str, ...] = ()

    _ITEMS = "pairs"

    def table_rows(self) -> Iterator[Row]:
        """Yield a row for each pair."""
        yield from map(plain_fields, self.pairs)

    def panel(self) -> Bars:
        """Return the z of each pair."""
        return Bars(
            title=f"Composition of heads of {self.model}",
            x="z against random turns",
            right=[(f"{pair.writer} → {pair.reader}.{pair.into}", pair.z) for pair in self.pairs],
        )

    def _repr_html_(self) -> str:
        return html_table(COMPOSITION_COLUMNS, map(composition_cells, self.pairs), self.notes)


COMPOSITION_COLUMNS = (
    "writes",
    "reads",
    "into",
    "score",
    "random",
    "z",
    "z among its layers",
    "overlap",
    "random",
    "z",
)
"""The columns of a table of pairs of heads."""


def composition_cells(pair: Composition) -> tuple[str, ...]:
    """Return the cells of a pair of heads in a table."""
    return (
        pair.writer,
        pair.reader,
        pair.into,
        f"{pair.score:.3f}",
        f"{pair.expected:.3f}",
        plain(pair.z, "+"),
        NOTHING if pair.z_pairs is None else plain(pair.z_pairs, "+"),
        f"{pair.overlap:.3f}",
        f"{pair.overlap_expected:.3f}",
        plain(pair.overlap_z, "+"),
    )


@dataclass(frozen=True, eq=False, repr=False)
class PairTable(ShortRepr):
    """The composition of all pairs of heads along one way; (3, heads, heads) each: input, writer, reader.

    Where the writer is not earlier than the reader there is NaN.

    Attributes:
        path: ``direct`` or ``flow``.
        score: See `Composition`, as for all others.
        z: z against random turns.
        z_pairs: z among the pairs of the same two layers.
        overlap: The mean squared cosine of the principal angles.
        overlap_expected: Its mean under random turns.
        overlap_z: Its z.
    """

    path: str
    score: Floats
    z: Floats
    z_pairs: Floats
    overlap: Floats
    overlap_expected: Floats
    overlap_z: Floats

    @property
    def arrays(self) -> tuple[Floats, ...]:
        """All arrays, in order."""
        return self.score, self.z, self.z_pairs, self.overlap, self.overlap_expected, self.overlap_z


@dataclass(frozen=True, eq=False, repr=False)
class HeadPairs(ShortRepr, AsTable, AsFigures):
    """The composition of all pairs of heads of a model.

    Attributes:
        model: The name of the model.
        lens: The lens whose flow was used, in words; empty for none.
        d: The number of dimensions in which heads meet.
        heads: The addresses of the heads, in the order of the tables.
        tables: A table for each way.
        notes: Notes on them.

    Example:
        >>> import zeropass as zp
        >>> pairs = zp.head_pairs(zp.load("models/first", lens=None))
        >>> pairs.table("direct").score.shape, len(pairs.strongest(5, into="k"))
        ((3, 24, 24), 5)
    """

    model: str
    lens: str
    d: int
    heads: tuple[str, ...]
    tables: tuple[PairTable, ...]
    notes: tuple[str, ...] = ()

    def _repr_words(self) -> str:
        return f"{self.model}: {len(self.heads)} heads, {', '.join(table.path for table in self.tables)}"

    def table(self, path: str) -> PairTable:
        """Return the table of a way; raise BadOption if it is not known."""
        for table in self.tables:
            if table.path == path:
                return table
        raise BadOption(f"There is no path {path!r}; there is {', '.join(table.path for table in self.tables)}.")

    def strongest(self, k: int = 20, *, into: str | None = None, path: str | None = None) -> Compositions:
        """Return the pairs with the largest z.

        Args:
            k: The number of pairs.
            into: The input of the reader: q, k or v; all if not given.
            path: ``direct``, the default, or ``flow``.

        Raises:
            BadOption: If there is no such input or path.
        """
        if into is not None and into not in INPUTS:
            raise BadOption(f"There is no input {into!r} of a head; there is {', '.join(INPUTS)}.")
        table = self.tables[0] if path is None else self.table(path)
        inputs = range(len(INPUTS)) if into is None else [INPUTS.index(into)]
        z = np.where(np.isnan(table.z), -np.inf, table.z)[list(inputs)]
        order = np.argsort(-z, axis=None, kind="stable")[: min(k, int(np.isfinite(z).sum()))]
        places = zip(*np.unravel_index(order, z.shape), strict=True)
        pairs = tuple(self._pair(table, inputs[int(i)], int(a), int(b)) for i, a, b in places)
        return Compositions(self.model, int(np.isfinite(z).sum()), pairs, self.notes)

    def _pair(self, table: PairTable, into: int, writer: int, reader: int) -> Composition:
        score, z, z_pairs, overlap, overlap_expected, overlap_z = (
            float(array[into, writer, reader]) for array in table.arrays
        )
        return Composition(
            writer=self.heads[writer],
            reader=self.heads[reader],
            into=INPUTS[into],
            path=table.path,
            score=score,
            expected=self.d**-0.5,
            z=z,
            z_pairs=None if math.isnan(z_pairs) else z_pairs,
            overlap=overlap,
            overlap_expected=overlap_expected,
            overlap_z=overlap_z,
        )

    def table_rows(self) -> Iterator[Row]:
        """Yield a row for each pair, input and way."""
        for table in self.tables:
            for into, writer, reader in zip(*np.nonzero(~np.isnan(table.z)), strict=True):
                yield plain_fields(self._pair(table, int(into), int(writer), int(reader)))

    def to_json(self) -> dict[str, Any]:
        """Return the facts and the twenty strongest pairs of each input and way; `to_pandas` has all of them."""
        return {
            "model": self.model,
            "lens": self.lens,
            "heads": len(self.heads),
            "pairs": [self.strongest(into=into, path=table.path).to_json() for table in self.tables for into in INPUTS],
        }

    def panels(self) -> Iterator[Panel]:
        """Yield for each input the largest z of two layers: writers down, readers across."""
        layers = [int(head.partition(".")[0][1:]) for head in self.heads]
        known = sorted(set(layers))
        at = {layer: np.flatnonzero(np.array(layers) == layer) for layer in known}
        table = self.tables[0]
        for into, name in enumerate(INPUTS):
            cells = [
                [math.nan if a >= b else float(table.z[into][np.ix_(at[a], at[b])].max()) for b in known] for a in known
            ]
            yield HeatMap(
                title=f"{name.upper()}-composition, {table.path}",
                notes=("the largest z of two layers against random turns",),
                x="layer that reads",
                y="layer that writes",
                rows=[str(layer) for layer in known],
                columns=[str(layer) for layer in known],
                values=cells,
                scale="z",
            )


@dataclass(frozen=True, repr=False)
class Feed(ShortRepr):
    """A parameter that another one feeds, or that feeds it.

    Attributes:
        address: Its address.
        role: Its role; for a head the input (``q``, ``k``, ``v``), or ``vo`` for what it writes.
        score: The cosine of two vectors; if either is a head, their composition, from 0 to 1.
        null: The mean score of what takes the other's place under the null.
        z: How far it lies from that mean, in standard deviations of the null.
        above: True if as many normal scores reach that z in one table of twenty.
    """

    address: str
    role: str
    score: float
    null: float
    z: float
    above: bool


@dataclass(frozen=True, repr=False)
class FeedTable(Several[Feed], ShortRepr, AsTable):
    """The parameters that one feeds or is fed by, in one role and along one way: a sequence of them, the best first.

    Attributes:
        address: The address of the parameter.
        role: Its role.
        relation: ``feeds`` or ``is fed by``.
        path: ``direct`` or ``flow``.
        kind: ``vectors`` (neurons, columns and rows of heads) or ``heads``.
        compared: The number of parameters that these were chosen from.
        threshold: The z from which one is above the null.
        feeds: The parameters.
    """

    address: str
    role: str
    relation: str
    path: str
    kind: str
    compared: int
    threshold: float
    feeds: tuple[Feed, ...]

    _ITEMS = "feeds"

    @property
    def title(self) -> str:
        """The heading: what feeds what, and how many were compared."""
        above = sum(feed.above for feed in self.feeds)
        count = f"{above} of {len(self.feeds)} above the null" if self.feeds else "none"
        where = "later" if self.relation == "feeds" else "earlier"
        return (
            f"{self.address} {self.role} {self.relation}, {self.path}: "
            f"the best of {self.compared:,} {where} {self.kind}, {count}"
        )

    def table_rows(self) -> Iterator[Row]:
        """Yield a row for each parameter."""
        place = {"of": self.address, "of_role": self.role, "relation": self.relation, "path": self.path}
        for rank, feed in enumerate(self.feeds):
            yield {**place, "kind": self.kind, "rank": rank, **plain_fields(feed)}


FEED_COLUMNS = ("address", "role", "", "score", "null", "z")
"""The columns of a table of what a parameter feeds."""


def feed_cells(feed: Feed) -> tuple[str, ...]:
    """Return the cells of a parameter in a table of feeds."""
    faint = "" if feed.above else "within the null"
    return feed.address, feed.role, faint, f"{feed.score:+.3f}", f"{feed.null:+.3f}", plain(feed.z, "+")


@dataclass(frozen=True, repr=False)
class Feeds(Several[FeedTable], AsJson, AsFigures):
    """The wiring of one parameter: tables by role, way and kind.

    Attributes:
        model: The name of the model.
        address: The address of the parameter.
        lens: The lens whose flow was used, in words; empty for none.
        tables: The tables.
        notes: Notes on them.

    Example:
        >>> import zeropass as zp
        >>> zp.feeds(zp.load("models/first", lens=None), "L1.ff.3.gate", k=3)[0].relation
        'is fed by'
    """

    model: str
    address: str
    lens: str
    tables: tuple[FeedTable, ...]
    notes: tuple[str, ...] = ()

    _ITEMS = "tables"

    def table_rows(self) -> Iterator[Row]:
        """Yield the rows of all tables."""
        for table in self.tables:
            yield from table.table_rows()

    def panels(self) -> Iterator[Panel]:
        """Yield the z of each parameter of each table that has some."""
        for table in self.tables:
            if table.feeds:
                yield Bars(
                    title=f"{table.address} {table.role} {table.relation}, {table.path}",
                    notes=(f"of {table.compared:,} {table.kind}; dashed: the null reaches it in one table of twenty",),
                    x="z",
                    right=[(f"{feed.address} {feed.role}", feed.z) for feed in table.feeds],
                    lines=(table.threshold,),
                )

    def _repr_html_(self) -> str:
        tables = (
            f"<p><b>{html.escape(table.title)}</b></p>{html_table(FEED_COLUMNS, map(feed_cells, table.feeds))}"
            for table in self.tables
        )
        return "".join(tables) + "".join(map(html_note, self.notes))


@dataclass(frozen=True, repr=False)
class InductionHead(ShortRepr):
    """A head that may do induction, from the weights, with the earlier head that makes it most likely.

    Attributes:
        head: Its address.
        previous: The address of the earlier head, which attends to the previous token.
        attention: The mean attention of the earlier head to the previous token, from rows that stand for tokens.
        match: How well queries match the same token in what the earlier head wrote to the keys: the mean of the
            diagonal of their map from tokens to tokens, in standard deviations of its entries.
        copying: The same of what the head attends to and what it writes.
        deviation: The standard deviation of both under shuffled tokens.
        score: ``attention`` times ``match``: what heads are ordered by.
        measured: Its induction score in the running model; None if it was not run.
        measured_previous: The attention of the earlier head to the previous token in the running model.
    """

    head: str
    previous: str
    attention: float
    match: float
    copying: float
    deviation: float
    score: float
    measured: float | None = None
    measured_previous: float | None = None


@dataclass(frozen=True, repr=False)
class InductionHeads(Several[InductionHead], AsJson, AsFigure):
    """The heads of a model by how likely they do induction, from the weights: a sequence of them, the best first.

    Attributes:
        model: The name of the model.
        lens: The lens that they were read through, in words; empty for the weights alone.
        heads: The heads.
        notes: Notes on them.

    Example:
        >>> import zeropass as zp
        >>> heads = zp.induction_heads(zp.load("models/first", lens=None))
        >>> [f"{head.previous} → {head.head}" for head in heads[:2]]
        ['L1.attn.5 → L2.attn.4', 'L1.attn.5 → L3.attn.4']
    """

    model: str
    lens: str
    heads: tuple[InductionHead, ...]
    notes: tuple[str, ...] = ()

    _ITEMS = "heads"

    def table_rows(self) -> Iterator[Row]:
        """Yield a row for each head."""
        yield from map(plain_fields, self.heads)

    def panel(self) -> Bars:
        """Return the scores of the first heads."""
        return Bars(
            title=f"Induction heads of {self.model}, from weights",
            x="attention to the previous token x match",
            right=[(f"{head.previous} → {head.head}", head.score) for head in self.heads[:MOST_BARS]],
        )

    def _repr_html_(self) -> str:
        return html_table(INDUCTION_COLUMNS, map(induction_cells, self.heads[:MOST_BARS]), self.notes)


MOST_BARS = 24
"""The largest number of heads in a figure."""

INDUCTION_COLUMNS = ("head", "reads of", "previous", "match", "copying", "score", "run: induction", "run: previous")
"""The columns of a table of induction heads."""


def induction_cells(head: InductionHead) -> tuple[str, ...]:
    """Return the cells of a head in a table of induction heads."""
    measured = (NOTHING if x is None else coefficient(x) for x in (head.measured, head.measured_previous))
    return (
        head.head,
        head.previous,
        coefficient(head.attention),
        f"{head.match:+.2f}",
        f"{head.copying:+.2f}",
        f"{head.score:+.2f}",
        *measured,
    )


@dataclass(frozen=True, repr=False)
class WordPath(ShortRepr):
    """A path from reading a word to writing another.

    Attributes:
        addresses: The parameters on the way: one, or one that feeds another.
        z: The z of each step: of the word in what the first sees (for a head, of the size of what it then writes), of
            the first in what the second reads, and of the other word in what the last writes.
        strength: The size of the weakest step.
        p: The share of random words to which some path is as strong, in place of the word that is written.
    """

    addresses: tuple[str, ...]
    z: tuple[float, ...]
    strength: float
    p: float

    @property
    def above(self) -> bool:
        """True if no more than one random word in twenty has such a path."""
        return self.p <= LARGEST_P


@dataclass(frozen=True, repr=False)
class WordPaths(Several[WordPath], AsJson, AsFigure):
    """The strongest paths from reading a word to writing another: a sequence of them, the best first.

    Attributes:
        model: The name of the model.
        word: The token that is read.
        to: The token that is written.
        path: ``direct``, or ``flow`` for steps through the blocks between.
        lens: The lens, in words; empty for the weights alone.
        paths: The paths.
        notes: Notes on them.

    Example:
        >>> import zeropass as zp
        >>> paths = zp.paths(zp.load("models/first", lens=None), "one", "two", k=3)
        >>> [path.above for path in paths]
        [False, False, False]
    """

    model: str
    word: Token
    to: Token
    path: str
    lens: str
    paths: tuple[WordPath, ...]
    notes: tuple[str, ...] = ()

    _ITEMS = "paths"

    @property
    def title(self) -> str:
        """The heading: from which word to which, and how many are above the null."""
        above = sum(path.above for path in self.paths)
        words = " to ".join(shown_text(token.token) for token in (self.word, self.to))
        return f"from {words}, {self.path}: {above} of {len(self.paths)} above the null"

    def table_rows(self) -> Iterator[Row]:
        """Yield a row for each path."""
        for rank, path in enumerate(self.paths):
            row = {"word": self.word.token, "to": self.to.token, "rank": rank, "path": " → ".join(path.addresses)}
            steps = {"sees": path.z[0], "feeds": path.z[1] if len(path.z) > 2 else math.nan, "writes": path.z[-1]}
            yield {**row, **steps, "strength": path.strength, "p": path.p}

    def panel(self) -> Bars:
        """Return the strength of each path."""
        return Bars(
            title=self.title,
            x="z of the weakest step",
            right=[(" → ".join(path.addresses), path.strength) for path in self.paths],
        )

    def _repr_html_(self) -> str:
        title = f"<p><b>{html.escape(self.title)}</b></p>"
        return title + html_table(PATH_COLUMNS, map(path_cells, self.paths), self.notes)


LARGEST_P = 0.05
"""The largest p of a path that is above the null."""

PATH_COLUMNS = ("path", "", "", "sees", "feeds", "writes", "weakest", "p")
"""The columns of a table of paths."""


def path_cells(path: WordPath) -> tuple[str, ...]:
    """Return the cells of a path in a table."""
    first, second = (*path.addresses, "")[:2]
    faint = "" if path.above else "within the null"
    feeds = plain(path.z[1], "+") if second else ""
    return (
        first,
        second,
        faint,
        plain(path.z[0], "+"),
        feeds,
        plain(path.z[-1], "+"),
        plain(path.strength),
        f"{path.p:.2f}",
    )


def html_table(columns: Sequence[str], rows: Iterable[Sequence[str]], notes: Iterable[str] = ()) -> str:
    """Return a table as HTML, every cell escaped, with notes below."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>{''.join(map(html_note, notes))}"
