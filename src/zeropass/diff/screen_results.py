"""The results of screening many changes of one base, as plain data. No torch."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from zeropass._io.short_repr import ShortRepr
from zeropass.diff.findings import Answer, Finding, Standout
from zeropass.diff.results import Relation
from zeropass.diff.thresholds import Benign, Thresholds
from zeropass.records.tabular import AsTable, Row, Several

__all__ = ["ORDER", "Nearest", "Screened", "Screening", "thresholds_of"]

SCHEMA_VERSION = 1
"""The version of the JSON."""

ORDER: tuple[Answer, ...] = ("narrow", "topic", "unjudged", "nothing")
"""The answers in the order in which rows are shown; files that cannot be read come before what is not judged."""


@dataclass(frozen=True, repr=False)
class Nearest(ShortRepr):
    """Another change of the same base.

    Attributes:
        name: Its name.
        similarity: The cosine of the excess of the words that the two changes write most.
        alike: Whether that is more than is usual among the others; None if they are too few to tell.
    """

    name: str
    similarity: float
    alike: bool | None = None


@dataclass(frozen=True, repr=False)
class Screened(ShortRepr):
    """One change, as screening describes it.

    Attributes:
        name: The name: the path below the folder that was screened, or the line of the list.
        path: The path, or the hub id.
        sha256: The hash of its weights and settings; empty if they could not be read.
        kind: ``adapter``, or ``model`` for a whole fine-tune; empty if that could not be told.
        method: The method of an adapter, as PEFT names it.
        rank: The highest rank of the factors of an adapter; 0 without factors.
        roles: The roles of the matrices of blocks that differ, those that changed most (relative to their norm) first.
        layers: The layers that changed most, at most three, rising.
        outside: Names of tensors outside the matrices of blocks that changed, or that only one of the models has.
        relation: The relation of the two models.
        relative: Norm of the change of all blocks over that of the blocks.
        finding: What kind of change it is, and what that rests on.
        writes: The words whose writing the change concerns most, by their excess.
        sees: The words whose reading the change concerns most, by their z.
        nearest: The other changes that are most similar to it in what they write, at most three, most similar first.
        usual: The median similarity of the others to it; None if they are too few.
        warnings: Notes that make it doubtful whether it belongs to this base.
        seconds: The time that it took.
        error: The reason why it could not be read.
    """

    name: str
    path: str
    sha256: str
    kind: Literal["adapter", "model", ""]
    finding: Finding
    method: str = ""
    rank: int = 0
    roles: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()
    outside: tuple[str, ...] = ()
    relation: Relation = "changed"
    relative: float = 0.0
    writes: tuple[Standout, ...] = ()
    sees: tuple[Standout, ...] = ()
    nearest: tuple[Nearest, ...] = ()
    usual: float | None = None
    warnings: tuple[str, ...] = ()
    seconds: float = 0.0
    error: str = ""

    @property
    def answer(self) -> str:
        """The kind of change, or ``unreadable``."""
        return "unreadable" if self.error else self.finding.answer

    def plain(self) -> Row:
        """Return it as a row of texts and numbers."""
        first = self.nearest[0] if self.nearest else None
        return {
            "name": self.name,
            "path": self.path,
            "sha256": self.sha256,
            "answer": self.answer,
            "reason": self.error or self.finding.reason,
            "kind": self.kind,
            "method": self.method,
            "rank": self.rank,
            "roles": " ".join(self.roles),
            "layers": " ".join(map(str, self.layers)),
            "outside": " ".join(self.outside),
            "relation": "" if self.error else self.relation,
            "relative": self.relative,
            "excess": self.finding.excess,
            "lead": self.finding.lead,
            "threshold": self.finding.threshold,
            "lead_threshold": self.finding.lead_threshold,
            "chance": self.finding.chance,
            "benign": self.finding.benign,
            "writes": " ".join(word.token.token for word in self.writes),
            "sees": " ".join(word.token.token for word in self.sees),
            "nearest": "" if first is None else first.name,
            "similarity": None if first is None else first.similarity,
            "alike": None if first is None else first.alike,
            "usual_similarity": self.usual,
            "warnings": " ".join(self.warnings),
            "seconds": self.seconds,
        }


@dataclass(frozen=True, repr=False)
class Screening(ShortRepr, AsTable, Several[Screened]):
    """Many changes of one base, as screening describes them: a sequence of `Screened`, narrow ones first.

    Attributes:
        base: Name, hash and stored types of the base.
        rows: The changes.
        method: Settings on which the rows depend.

    Example:
        >>> import zeropass as zp
        >>> screening = zp.screen("models/first", ["models/tunes/reviews"])
        >>> screening[0].finding.answer, screening[0].method, screening[0].rank
        ('nothing', 'LORA', 8)
    """

    base: dict[str, Any]
    rows: tuple[Screened, ...]
    method: dict[str, Any]

    _ITEMS = "rows"

    def table_rows(self) -> Iterator[Row]:
        """Yield a row for each change."""
        yield from (row.plain() for row in self.rows)

    def counts(self) -> dict[str, int]:
        """Return how many rows have each answer, in the order of the table."""
        answers = [row.answer for row in self.rows]
        return {answer: answers.count(answer) for answer in dict.fromkeys(answers)}

    def _repr_words(self) -> str:
        answers = ", ".join(f"{count} {answer}" for answer, count in self.counts().items())
        return f"{len(self.rows)} changes of {self.base.get('name', '')}: {answers}"

    def to_json(self) -> dict[str, Any]:
        """Return a dict that `json.dumps` can write."""
        return {"schema": SCHEMA_VERSION, **asdict(self)}


def thresholds_of(screening: Screening) -> Thresholds:
    """Return thresholds from changes that are known to be benign: each counts once, if it writes and was read.

    Args:
        screening: What screening says of them.

    Raises:
        BadOption: There are too few of them.

    Example:
        >>> import zeropass as zp
        >>> try:
        ...     zp.thresholds_of(zp.screen("models/first", ["models/tunes/reviews"]))
        ... except zp.ZeropassError as error:
        ...     print(str(error).rpartition("; ")[2])
        there are 1.
    """
    judged = {row.sha256: row for row in screening.rows if not row.error and row.finding.answer != "unjudged"}
    changes = (
        Benign(name=row.name, sha256=row.sha256, excess=row.finding.excess, lead=row.finding.lead)
        for row in judged.values()
    )
    return Thresholds(base=str(screening.base["sha256"]), changes=tuple(changes))
