"""The records that everything shows: command line, JSON, notebook and web pages (JSON-ready, no torch).

A record knows how to become JSON (`to_json`) and a notebook's HTML; `terminal.py` prints it.
"""

import html
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import NormalDist
from typing import Any

from zeropass.records.verdicts import Verdict
from zeropass.tokens.vocabulary import shown_text

__all__ = [
    "SEES",
    "AsJson",
    "Certificate",
    "Direction",
    "FindRecord",
    "Hidden",
    "Hit",
    "PairRecord",
    "PairScore",
    "Records",
    "SvdRecord",
    "Token",
    "TokenScore",
    "VectorRecord",
    "verb_of",
]

SEES = {("read", "token"): "sees", ("read", "output"): "is about to say", ("write", "output"): "writes"}
"""What a list of a side and frame says, in words."""


def verb_of(side: str, frame: str) -> str:
    """What a list of a side and frame says, in words: it sees, is about to say, writes, or reads in another frame."""
    return SEES.get((side, frame), {"read": "reads", "write": "writes"}[side] + f" ({frame})")


class AsJson:
    """A record that is all in its fields, and so has a JSON."""

    def to_json(self) -> dict[str, Any]:
        """A dict that json.dumps takes as it is."""
        return asdict(self)  # type: ignore[call-overload,no-any-return]  # of a dataclass, which every record is


@dataclass(frozen=True)
class Token:
    """A token: its id and the text that it stands for, leading space included."""

    id: int
    token: str


@dataclass(frozen=True)
class TokenScore:
    """A token's score in a list, raw and as z: (score − mean) / std over the vocabulary."""

    id: int
    token: str
    score: float
    z: float


@dataclass(frozen=True)
class Hidden:
    """Which tokens a list leaves out: the view (``default``, ``words``, ``ascii``, ``all``), how many and why."""

    view: str
    count: int
    shown: int
    reasons: dict[str, int]


@dataclass(frozen=True)
class VectorRecord(AsJson):
    """What one vector of the stream reads or writes in one frame: both poles, best first.

    ``evidence`` is the verdict of a text on lists of this role, frame and layer, if the model was measured.
    ``spread`` is given for the list of a change: the standard deviation of its scores, over that which lists of this
    role and layer had before; z counts in the latter.
    """

    address: str
    role: str
    side: str
    frame: str
    norm: float
    top: tuple[TokenScore, ...]
    bottom: tuple[TokenScore, ...]
    mean: float
    std: float
    hidden: Hidden
    evidence: Verdict | None = None
    spread: float | None = None

    @property
    def faint(self) -> bool:
        """Whether no token stands out: as high a z turns up among as many normal scores in one list of twenty."""
        chance = NormalDist().inv_cdf(1 - 0.05 / (2 * max(self.hidden.shown, 1)))
        chance *= 1.0 if self.spread is None else self.spread
        return all(abs(token.z) < chance for token in (*self.top[:1], *self.bottom[:1]))

    @property
    def verb(self) -> str:
        """What the list says, in words: it sees, is about to say, writes."""
        plain = verb_of(self.side, self.frame)
        return plain if self.spread is None else f"{plain}, change"

    def _repr_html_(self) -> str:
        poles = "".join(
            f"<tr><th>{sign}</th><td>{', '.join(_html_token(t.token, t.z) for t in pole[:15])}</td></tr>"
            for sign, pole in (("+", self.top), ("−", self.bottom))
        )
        return f"<table>{_html_caption(self)}{poles}</table>"


@dataclass(frozen=True)
class PairScore:
    """One entry of a head map: token ``left`` (query, or attended to) with token ``right`` (key, or promoted)."""

    left: Token
    right: Token
    score: float


@dataclass(frozen=True)
class Certificate:
    """Proof that no better pair exists: the k-th score, and the largest bound of what was not visited."""

    kth: float
    bound: float | None
    complete: bool


@dataclass(frozen=True)
class PairRecord(AsJson):
    """The best pairs of a head map; ``offset`` is query position minus key position (RoPE).

    ``evidence`` is the verdict of a text on head maps of this role, frame and layer, if the model was measured.
    ``change``: the map is what was added to one, so the pairs are those whose score rose most.
    """

    address: str
    role: str
    offset: int
    frame: str
    pairs: tuple[PairScore, ...]
    certificate: Certificate
    hidden: Hidden
    evidence: Verdict | None = None
    change: bool = False

    @property
    def verb(self) -> str:
        """What the pairs say, in words."""
        plain = "as query attends to" if self.role.endswith("qk") else "when attended to, promotes"
        return f"{plain}, change" if self.change else plain

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{_html_token(p.left.token)}</td><td>{_html_token(p.right.token)}</td><td>{p.score:.2f}</td></tr>"
            for p in self.pairs[:20]
        )
        return f"<table>{_html_caption(self)}{rows}</table>"


@dataclass(frozen=True)
class Direction:
    """One singular direction of a head map: what its two sides hold; ``close`` warns that it means nothing alone."""

    value: float
    share: float
    close: bool
    left: tuple[TokenScore, ...]
    left_bottom: tuple[TokenScore, ...]
    right: tuple[TokenScore, ...]
    right_bottom: tuple[TokenScore, ...]


@dataclass(frozen=True)
class SvdRecord(AsJson):
    """The leading singular directions of a head map over the vocabulary."""

    address: str
    role: str
    offset: int
    frame: str
    directions: tuple[Direction, ...]
    hidden: Hidden
    note: str = ""

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{d.share:.0%}{' ≈' if d.close else ''}</td>"
            f"<td>{', '.join(_html_token(t.token) for t in d.left[:8])}</td>"
            f"<td>{', '.join(_html_token(t.token) for t in d.right[:8])}</td></tr>"
            for d in self.directions
        )
        return f"<table><caption>{_html_title(self)} {html.escape(self.note)}</caption>{rows}</table>"


@dataclass(frozen=True)
class Hit:
    """A parameter that a word or concept ranks high for.

    ``above`` says whether lists of its role and layer hold on a text: it is never a figure of this parameter alone.
    """

    address: str
    side: str
    role: str
    frame: str
    score: float
    z: float
    above: bool | None = None

    @property
    def doubt(self) -> str:
        """What a reader must know of it: that lists of its kind and layer are not above chance."""
        return "its kind is not above chance" if self.above is False else ""

    @property
    def verb(self) -> str:
        """What this hit does with the word."""
        return SEES.get((self.side, self.frame), f"{self.side} ({self.frame})")


@dataclass(frozen=True)
class FindRecord(AsJson):
    """The parameters that see, are about to say, or write some tokens; best |z| first.

    ``notes`` are what a reader must know of them: what ``above`` rests on.
    """

    query: tuple[Token, ...]
    hits: tuple[Hit, ...]
    notes: tuple[str, ...] = field(default=())

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{html.escape(h.address)}</td><td>{html.escape(h.role)}</td>"
            f"<td>{html.escape(h.verb)}</td><td>{h.z:+.1f}</td><td><small>{h.doubt}</small></td></tr>"
            for h in self.hits
        )
        query = ", ".join(_html_token(t.token) for t in self.query)
        return f"<table><caption>{query}</caption>{rows}</table>{''.join(map(_html_note, self.notes))}"


Record = VectorRecord | PairRecord | SvdRecord


class Records(Sequence[Record]):
    """The records of one address, in order; shows itself in a notebook.

    ``note`` says what their verdicts rest on, or that no measurement of the weights is known.
    """

    def __init__(self, records: Iterable[Record], note: str = "") -> None:
        self._records, self.note = tuple(records), note

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: Any) -> Any:
        return self._records[index]

    def __repr__(self) -> str:
        return f"Records({', '.join(f'{r.address}.{r.role} {r.frame}' for r in self._records)})"

    def to_json(self) -> list[dict[str, Any]]:
        """A list that json.dumps takes as it is."""
        return [record.to_json() for record in self._records]

    def _repr_html_(self) -> str:
        return "".join(record._repr_html_() for record in self._records) + (_html_note(self.note) if self.note else "")


def _html_note(note: str) -> str:
    return f"<p><small>{html.escape(shown_text(note, limit=500))}</small></p>"


def _html_title(record: Record) -> str:
    return f"<b>{html.escape(record.address)}</b> {html.escape(record.role)}"


def _html_caption(record: VectorRecord | PairRecord) -> str:
    known = f" <small>{html.escape(record.evidence.words)}</small>" if record.evidence else ""
    return f"<caption>{_html_title(record)} <i>{html.escape(record.verb)}</i>{known}</caption>"


def _html_token(text: str, z: float | None = None) -> str:
    shown = html.escape(shown_text(text))
    return f"<code>{shown}</code>" + ("" if z is None else f"&nbsp;<small>{z:.1f}</small>")
