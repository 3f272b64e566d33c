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
from zeropass.records.numbers import NOTHING, plain
from zeropass.records.panels import AsFigure, AsFigures, Bars, HeatMap, Panel
from zeropass.records.parameters import AsJson, html_note
from zeropass.records.tabular import AsTable, Row, Several, plain_fields

__all__ = ["Composition", "Compositions", "HeadPairs", "PairTable", "html_table"]

INPUTS = ("q", "k", "v")
"""The inputs of a head."""

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
            path: ``direct`` or ``flow``; the last that is known if not given.

        Raises:
            BadOption: If there is no such input or path.
        """
        if into is not None and into not in INPUTS:
            raise BadOption(f"There is no input {into!r} of a head; there is {', '.join(INPUTS)}.")
        table = self.tables[-1] if path is None else self.table(path)
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
        table = self.tables[-1]
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


def html_table(columns: Sequence[str], rows: Iterable[Sequence[str]], notes: Iterable[str] = ()) -> str:
    """Return a table as HTML, every cell escaped, with notes below."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>{''.join(map(html_note, notes))}"
