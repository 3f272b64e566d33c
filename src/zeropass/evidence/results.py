"""What a measurement of evidence found: plain data, its JSON and its Parquet. No torch.

One `Result` is one number (a mean over ``n`` vectors, heads or positions) with its bootstrap interval, and beside it
the same number under each null. A folder of evidence holds::

    evidence.json      how it was measured, and every result
    evidence.parquet   the same results, one row for each result and null
    verdicts.json      which kinds of list are above their nulls, layer by layer: what the command line shows
    report.html        one page with figures
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from zeropass._io.parquet import columns_of, write_rows
from zeropass._io.parse import holding, read_schema
from zeropass.errors import BadOption

__all__ = ["EVERY_LAYER", "MEASURES", "NULLS", "Evidence", "Null", "Result", "read_evidence", "write_parquet"]

SCHEMA_VERSION = 1

EVERY_LAYER = -1
"""The layer of a result that is about the whole model."""

MEASURES = {
    "states": "top tokens of a hidden state found among those of the most active parameters (R_k)",
    "pairs": "overlap of the top tokens of two parameters that belong together (Sim_k)",
    "inverses": "inner products that survive the way to the vocabulary and back",
    "reading": "tokens on which a vector fires, against its list",
    "writing": "logits gained when a vector is added to the stream, against its list",
    "promotes": "logits gained when a head's output for a token is added to the stream, against vo",
    "attention": "attention logits between tokens of the text, against qk",
}
"""Every measure, and what it compares."""

NULLS = {
    "permuted": "the list of another parameter of the same kind and layer",
    "rotated": "the list after a random rotation of the stream",
    "noise": "random vectors of the same norm in the parameters' place, each with its own list",
}
"""The nulls. ``permuted`` and ``rotated`` ask whether a list is about its parameter; ``noise`` whether lists of
parameters hold better than those of just any direction."""


@dataclass(frozen=True)
class Null:
    """A result under one null: mean and deviation over its items, the 95% interval of that mean, and the gap to it.

    ``gap_low`` and ``gap_high`` are the 95% bootstrap interval of value minus mean; ``effect`` is Cohen's d: the gap
    in units of the pooled deviation (None where nothing deviates).
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
        """Whether the result lies above this null with its whole interval."""
        return self.gap_low > 0

    @property
    def indistinguishable(self) -> bool:
        """Whether the result cannot be told from this null."""
        return self.gap_low <= 0 <= self.gap_high


@dataclass(frozen=True)
class Result:
    """One measured number: the mean of ``metric`` over ``n`` items, with its 95% bootstrap interval and its nulls.

    ``role`` is a role of the model or a pair of them (``gate-up``), ``frame`` the rows that the list was made with
    (docs/evidence.md names them), ``target`` what it was held against.
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
        """The null of a name, if it was measured."""
        return next((null for null in self.nulls if null.name == name), None)

    @property
    def above(self) -> bool:
        """Whether the list is about its parameter: above the nulls that give it a wrong list, ``noise`` left aside."""
        wrong = [null for null in self.nulls if null.name != "noise"]
        return bool(wrong) and all(null.beaten for null in wrong)


@dataclass(frozen=True)
class Evidence:
    """Everything that one measurement found.

    ``model`` holds name, family, layers, sha256 and bytes of the weights; ``method`` date, machine, text, tokens, seed,
    settings and versions; ``left_out`` says why a measure was not taken; ``notes`` what else a reader must know.
    """

    model: dict[str, Any]
    method: dict[str, Any]
    results: tuple[Result, ...]
    left_out: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def select(self, **wanted: Any) -> tuple[Result, ...]:
        """Results whose fields equal what is given, such as ``measure="reading", role="gate"``."""
        return tuple(r for r in self.results if all(getattr(r, name) == value for name, value in wanted.items()))

    def to_json(self) -> dict[str, Any]:
        """A dict that json.dumps takes as it is."""
        return {"schema": SCHEMA_VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Evidence":
        """The same from its JSON; raises KeyError or TypeError if it is something else."""
        results = tuple(result_from_json(one) for one in value["results"])
        return cls(value["model"], value["method"], results, value["left_out"], tuple(value["notes"]))


def result_from_json(value: dict[str, Any]) -> Result:
    """One result from its JSON."""
    nulls = tuple(Null(**null) for null in value["nulls"])
    return Result(**{f.name: value[f.name] for f in fields(Result) if f.name != "nulls"}, nulls=nulls)


def read_evidence(folder: Path) -> Evidence:
    """The evidence that ``zeropass evidence --out`` wrote; BadOption, naming the file, if it is not that."""
    path = folder / "evidence.json"
    with holding(path, "evidence"):
        return Evidence.from_json(read_schema(path, SCHEMA_VERSION))


def write_parquet(results: Iterable[Result], path: Path) -> None:
    """One row for each result and null, whole or not at all, so that any query engine can ask (columns ``null_*``)."""
    rows = []
    for result in results:
        plain = {f.name: getattr(result, f.name) for f in fields(Result) if f.name != "nulls"}
        nulls = [{f"null_{f.name}": getattr(null, f.name) for f in fields(Null)} for null in result.nulls]
        rows += [plain | null for null in nulls or [dict.fromkeys(f"null_{f.name}" for f in fields(Null))]]
    nulls_columns = {f"null_{name}": kind for name, kind in columns_of(Null).items()}
    write_rows(rows, path, columns_of(Result) | nulls_columns, BadOption)
