"""The results of a measurement of evidence as plain data, JSON and Parquet, without torch.

One `Result` is one number (a mean over ``n`` vectors, heads or positions) with its bootstrap interval and the same
number under each null. A folder of evidence holds::

    evidence.json      the method of the measurement, and every result
    evidence.parquet   the same results, one row for each result and null
    verdicts.json      which kinds of list are above their nulls, layer by layer: what the command line shows
    report.html        one page with figures
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from zeropass._io.parquet import columns_of, write_rows
from zeropass._io.parse import holding, read_schema
from zeropass._io.short_repr import ShortRepr
from zeropass.errors import BadOption
from zeropass.evidence.list_types import is_main, kinds
from zeropass.records.panels import AsFigures, Curve, Curves, Panel
from zeropass.records.tabular import AsTable, Row, Several, plain_fields

__all__ = ["EVERY_LAYER", "MEASURES", "NULLS", "Evidence", "Null", "Result", "read_evidence", "write_parquet"]

SCHEMA_VERSION = 1

EVERY_LAYER = -1
"""The layer of a result for the model as a whole."""

MEASURES = {
    "states": "top tokens of a hidden state found among those of the most active parameters (R_k)",
    "pairs": "overlap of the top tokens of two parameters that belong together (Sim_k)",
    "inverses": "inner products that survive the way to the vocabulary and back",
    "reading": "tokens on which a vector fires, against its list",
    "writing": "logits gained when a vector is added to the stream, against its list",
    "promotes": "logits gained when a head's output for a token is added to the stream, against vo",
    "attention": "attention logits between tokens of the text, against qk",
}
"""Every measure, with what it compares."""

NULLS = {
    "permuted": "the list of another parameter of the same kind and layer",
    "rotated": "the list after a random rotation of the stream",
    "noise": "random vectors of the same norm in the parameters' place, each with its own list",
}
"""The nulls. ``permuted`` and ``rotated`` ask whether a list is about its parameter; ``noise`` asks whether the lists
of parameters hold better than those of any direction."""


@dataclass(frozen=True, repr=False)
class Null(ShortRepr):
    """A result under one null, and the gap between the two.

    Attributes:
        name: The name of the null.
        mean: The mean over the items of the null.
        std: Their standard deviation.
        low: The lower end of the 95% interval of the mean.
        high: Its upper end.
        n: The number of items.
        gap_low: The lower end of the 95% bootstrap interval of the gap, the result's value minus the mean.
        gap_high: Its upper end.
        effect: Cohen's d: the gap in units of the pooled standard deviation; None if that is 0.
    """

    name: str
    mean: float
    std: float
    low: float
    high: float
    n: int
    gap_low: float
    gap_high: float
    effect: float | None

    @property
    def beaten(self) -> bool:
        """True if the whole interval of the gap to this null lies above 0."""
        return self.gap_low > 0

    @property
    def indistinguishable(self) -> bool:
        """True if the result cannot be told from this null: the interval of the gap holds 0."""
        return self.gap_low <= 0 <= self.gap_high


@dataclass(frozen=True, repr=False)
class Result(ShortRepr):
    """One measured number: the mean of a metric over items, with its 95% bootstrap interval and its nulls.

    Attributes:
        measure: A measure of `MEASURES`.
        layer: The layer, or `EVERY_LAYER`.
        role: A role of the model, or a pair of roles (``gate-up``).
        frame: The frame whose rows the list was made with (docs/evidence.md names them).
        target: The target with which the list was compared.
        metric: The metric.
        n: The number of items: vectors, heads or positions.
        value: The mean over the items.
        std: Their standard deviation.
        low: The lower end of the 95% interval of the value.
        high: Its upper end.
        nulls: The same number under each null.
    """

    measure: str
    layer: int
    role: str
    frame: str
    target: str
    metric: str
    n: int
    value: float
    std: float
    low: float
    high: float
    nulls: tuple[Null, ...] = ()

    def null(self, name: str) -> Null | None:
        """Return the null of a name; None if it was not measured."""
        return next((null for null in self.nulls if null.name == name), None)

    @property
    def above(self) -> bool:
        """True if the list is about its parameter: it beats every null with a wrong list (all nulls but ``noise``)."""
        wrong = [null for null in self.nulls if null.name != "noise"]
        return bool(wrong) and all(null.beaten for null in wrong)


@dataclass(frozen=True, repr=False)
class Evidence(Several[Result], ShortRepr, AsTable, AsFigures):
    """The outcome of one measurement: a sequence of its results.

    Attributes:
        model: Facts about the model: name, family, layers, and the SHA-256 and bytes of its weights, for example.
        method: The method: date, machine, text, tokens, settings and versions, for example.
        results: All results.
        left_out: The reason, by measure, why a measure was not taken.
        notes: Other things that a reader must know.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> import zeropass as zp
        >>> model, text = "models/first", "models/tunes/reviews/texts.txt"
        >>> with TemporaryDirectory() as folder:
        ...     evidence = zp.collect_evidence(model, text, folder, tokens=600, only=("inverses",)).evidence
        >>> result = evidence.select(role="value", target="pseudo-inverse, k=4096")[0]
        >>> result.metric, round(result.value, 3), result.above
        ('correlation', 1.0, True)
    """

    model: dict[str, Any]
    method: dict[str, Any]
    results: tuple[Result, ...]
    left_out: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    _ITEMS = "results"

    def table_rows(self) -> Iterator[Row]:
        """Yield a row for each result and null (columns ``null_*``); one without them for a result without nulls."""
        yield from _rows(self.results)

    def panels(self) -> Iterator[Panel]:
        """Yield for each role and frame the value by layer over its nulls, hollow where it is not above them."""
        for list_type, by_layer in kinds(self).items():
            if is_main(list_type.measure, list_type.frame):
                yield Curves(
                    title=f"{list_type.role}, {list_type.frame}: {list_type.target}",
                    x="layer",
                    y="Spearman correlation",
                    curves=_curves(tuple(by_layer.values())),
                )

    def select(self, **wanted: Any) -> tuple[Result, ...]:
        """Return the results whose fields have the given values, such as ``measure="reading", role="gate"``."""
        return tuple(r for r in self.results if all(getattr(r, name) == value for name, value in wanted.items()))

    def to_json(self) -> dict[str, Any]:
        """Return a dict that `json.dumps` can write."""
        return {"schema": SCHEMA_VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Evidence":
        """Return evidence from its JSON; raise KeyError or TypeError if it is something else."""
        results = tuple(result_from_json(result) for result in value["results"])
        return cls(
            model=value["model"],
            method=value["method"],
            results=results,
            left_out=value["left_out"],
            notes=tuple(value["notes"]),
        )


def result_from_json(value: dict[str, Any]) -> Result:
    """Return one result from its JSON."""
    nulls = tuple(Null(**null) for null in value["nulls"])
    return Result(**{f.name: value[f.name] for f in fields(Result) if f.name != "nulls"}, nulls=nulls)


def read_evidence(folder: str | Path) -> Evidence:
    """Return the evidence that ``zeropass evidence --out`` wrote.

    Raises:
        BadOption: The file holds something else; the message names it.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> import zeropass as zp
        >>> model, text = "models/first", "models/tunes/reviews/texts.txt"
        >>> with TemporaryDirectory() as folder:
        ...     collected = zp.collect_evidence(model, text, folder, tokens=600, only=("inverses",))
        ...     zp.read_evidence(folder) == collected.evidence
        True
    """
    folder = Path(folder)
    path = folder / "evidence.json"
    with holding(path, "evidence"):
        return Evidence.from_json(read_schema(path, SCHEMA_VERSION))


def write_parquet(results: Iterable[Result], path: Path) -> None:
    """Write one row for each result and null (columns ``null_*``) atomically, for any query engine."""
    null_columns = {f"null_{name}": column_type for name, column_type in columns_of(Null).items()}
    write_rows(list(_rows(results)), path, columns_of(Result) | null_columns, BadOption)


def _curves(results: Sequence[Result]) -> list[Curve]:
    """Return the values of results by layer with their 95% intervals, then those of each null."""
    measured = Curve(
        name="measured",
        x=[result.layer for result in results],
        y=[result.value for result in results],
        low=[result.low for result in results],
        high=[result.high for result in results],
        hollow=[bool(result.nulls) and not result.above for result in results],
    )
    curves = [measured]
    for name in NULLS:
        nulls = [(result.layer, null) for result in results if (null := result.null(name))]
        if nulls:
            curves.append(
                Curve(
                    name=name,
                    x=[layer for layer, _ in nulls],
                    y=[null.mean for _, null in nulls],
                    low=[null.low for _, null in nulls],
                    high=[null.high for _, null in nulls],
                    null=True,
                )
            )
    return curves


def _rows(results: Iterable[Result]) -> Iterator[Row]:
    for result in results:
        nulls = [{f"null_{f.name}": getattr(null, f.name) for f in fields(Null)} for null in result.nulls]
        for null in nulls or [dict.fromkeys(f"null_{f.name}" for f in fields(Null))]:
            yield plain_fields(result) | null
