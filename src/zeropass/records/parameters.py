"""The records that the command line, JSON, notebooks and web pages show.

A record converts itself to JSON (`to_json`) and to HTML for a notebook; `render.terminal` prints it. Nothing here
imports torch.
"""

import html
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from statistics import NormalDist
from typing import Any

from zeropass._io.short_repr import ShortRepr, one_line
from zeropass.arch.frame_names import ALL_FRAMES
from zeropass.records import latex
from zeropass.records.numbers import coefficient, plain
from zeropass.records.panels import AsFigure, AsFigures, Bars, Entry, HeatMap, Panel, token_label
from zeropass.records.tabular import AsTable, Row, Several, plain_fields, token_rows
from zeropass.records.verdicts import Verdict
from zeropass.tokens.shown import shown_text

__all__ = [
    "COHERENCE_NOTE",
    "MOST_TOKENS",
    "VERBS",
    "AsJson",
    "Certificate",
    "Coherence",
    "Direction",
    "Hidden",
    "PairRecord",
    "PairScore",
    "Records",
    "SvdRecord",
    "Token",
    "TokenScore",
    "VectorRecord",
    "ends_of",
    "html_note",
    "html_token",
    "is_faint",
    "listed",
    "threshold_of",
    "verb_of",
    "verbs_of",
]

FEW, MOST_TOKENS = 3, 18
"""Limits of figures: tokens of an end of a direction, tokens of a side of a pair map."""

VERBS = {
    ("read", "seen"): "sees",
    ("read", "token"): "sees",
    ("read", "output"): "is about to say",
    ("write", "distinctive"): "writes distinctively",
    ("write", "effect"): "writes",
    ("write", "output"): "writes",
}
"""The verbs for what lists of the usual sides and frames say."""


def verb_of(side: str, frame: str) -> str:
    """Return the verb for what a list of a side and frame says: sees, is about to say, writes, or reads (frame)."""
    return VERBS.get((side, frame), {"read": "reads", "write": "writes"}[side] + f" ({frame})")


def verbs_of(list_types: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Return the verb of each (side, frame), in the order of pages; those of one verb get their frames as well.

    Example:
        >>> verbs_of([("write", "output"), ("read", "token"), ("write", "effect")])
        {('read', 'token'): 'sees', ('write', 'effect'): 'writes (effect)', ('write', 'output'): 'writes (output)'}
    """
    ordered = sorted(set(list_types), key=lambda kind: (kind[0], ALL_FRAMES.index(kind[1])))
    verbs = [verb_of(*kind) for kind in ordered]
    return {
        kind: f"{verb} ({kind[1]})" if verbs.count(verb) > 1 else verb
        for kind, verb in zip(ordered, verbs, strict=True)
    }


def ends_of(role: str) -> tuple[str, str]:
    """Return the names of the two ends of a head map."""
    return ("query", "key") if role.endswith("qk") else ("attended to", "promoted")


class AsJson(ShortRepr, AsTable):
    """A record whose fields hold all of it, and which therefore converts to JSON; and to a table."""

    def to_json(self) -> dict[str, Any]:
        """Return a dict that json.dumps accepts."""
        return asdict(self)  # type: ignore[call-overload,no-any-return]  # every record is a dataclass


@dataclass(frozen=True, repr=False)
class Token(ShortRepr):
    """A token: its id and its text, leading space included."""

    id: int
    token: str


@dataclass(frozen=True, repr=False)
class TokenScore(ShortRepr):
    """The score of a token in a list, raw and as z: (score − mean) / std over the vocabulary."""

    id: int
    token: str
    score: float
    z: float


@dataclass(frozen=True, repr=False)
class Hidden(ShortRepr):
    """The tokens that a list leaves out.

    Attributes:
        view: ``default``, ``words``, ``ascii`` or ``all``.
        count: How many tokens it hides.
        shown: How many tokens it shows.
        reasons: The counts of hidden tokens by reason.
    """

    view: str
    count: int
    shown: int
    reasons: dict[str, int]

    @property
    def words(self) -> str:
        """The number of hidden tokens and why, in words; nothing if none is hidden."""
        reasons = ", ".join(f"{count:,} {shown_text(reason)}" for reason, count in self.reasons.items())
        return f"{self.view}: {self.count:,} tokens are hidden ({reasons})" if self.count else ""


@dataclass(frozen=True)
class Coherence:
    """The coherence of a list, by which its first tokens belong together, beside that of random directions.

    Attributes:
        value: The mean cosine of the ten first tokens of the stronger pole to each other, in rows other than those that
            made the list (`numerics.coherence`).
        null: What 19 of 20 random directions of the layer stay below.
    """

    value: float
    null: float

    @property
    def above(self) -> bool:
        """True if the tokens belong together more than those of random directions do."""
        return self.value > self.null

    @property
    def words(self) -> str:
        """The coherence as text next to a heading."""
        value, null = coefficient(self.value), coefficient(self.null)
        return f"coherence {value} (random {null})" if self.above else f"coherence {value}, not above random ({null})"


COHERENCE_NOTE = (
    "Coherence: mean cosine of a list's ten first tokens to each other, in other rows than its own; random: what 19 of "
    "20 random directions of the layer stay below."
)


def is_faint(best: float, shown: int, spread: float | None = None) -> bool:
    """Tell whether no token of a list stands out (docs/theory.md, section 8).

    Args:
        best: The largest |z| of both poles.
        shown: The number of tokens that the list shows.
        spread: For the list of a change, the standard deviation of its scores in units of z.
    """
    return best < threshold_of(shown, spread)


def threshold_of(shown: int, spread: float | None = None) -> float:
    """Return the |z| from which a token of a list stands out: as many normal scores reach it in one list of twenty.

    Args:
        shown: The number of tokens that the list shows.
        spread: As for `is_faint`.
    """
    return NormalDist().inv_cdf(1 - 0.05 / (2 * max(shown, 1))) * (1.0 if spread is None else spread)


@dataclass(frozen=True, repr=False)
class VectorRecord(AsJson, AsFigure):
    """The list of one vector of the stream in one frame: both poles, best first.

    Attributes:
        evidence: The verdict of a text on lists of this role, frame and layer, if the model was measured.
        spread: For the list of a change, the standard deviation of its scores over the usual one of lists of this role
            and layer before the change, which is the unit of z; else None.
        lens: The lens through which the vector is read, in words; empty for the weights alone.
        coherence: How far its first tokens belong together; None for a lone vector, and where it was not computed.
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
    lens: str = ""
    coherence: Coherence | None = None

    @property
    def threshold(self) -> float:
        """The |z| from which a token stands out (`threshold_of`)."""
        return threshold_of(self.hidden.shown, self.spread)

    @property
    def faint(self) -> bool:
        """True if no token stands out: as many normal scores reach such a z in more than one list of twenty."""
        best = max((abs(token.z) for token in (*self.top[:1], *self.bottom[:1])), default=0.0)
        return is_faint(best, self.hidden.shown, self.spread)

    @property
    def says_little(self) -> bool:
        """True if no token stands out, and the first tokens belong together no more than those of random directions."""
        return self.faint and not (self.coherence and self.coherence.above)

    @property
    def verb(self) -> str:
        """The verb for what the list says: sees, is about to say, writes."""
        verb = verb_of(self.side, self.frame)
        return verb if self.spread is None else f"{verb}, change"

    @property
    def heading(self) -> str:
        """The address, role and verb."""
        return f"{self.address} {self.role} {self.verb}"

    @property
    def notes(self) -> tuple[str, ...]:
        """The notes next to the heading: the size of a change, whether a token stands out, coherence, verdict."""
        change = "" if self.spread is None else f"its scores moved by {self.spread:.2%} of what is usual here"
        faint = "no token stands out" if self.faint else ""
        return tuple(filter(None, (change, faint, *(note.words for note in (self.coherence, self.evidence) if note))))

    def table_rows(self) -> Iterator[Row]:
        """Yield a row for each token of both poles."""
        place = {"address": self.address, "role": self.role, "side": self.side, "frame": self.frame}
        yield from token_rows(place, self.top, self.bottom)

    def panel(self) -> Bars:
        """Return both poles side by side."""
        return Bars(
            title=self.heading,
            notes=self.notes,
            x="z; a token stands out beyond the dashes",
            right=_entries(self.top),
            left=_entries(self.bottom),
            pale=self.says_little,
            lines=(-self.threshold, self.threshold),
        )

    def to_latex(self) -> str:
        r"""Return both poles side by side as a table of LaTeX, which needs the package booktabs.

        Tokens are in typewriter type. Letters that the fonts of pdfLaTeX lack need XeLaTeX or LuaLaTeX.

        Example:
            >>> import zeropass as zp
            >>> print(zp.load("models/first").explain("L2.ff.3.value", k=1)[0].to_latex())
            % \usepackage{booktabs}
            % coherence .18, not above random (.30)
            \begin{tabular}{lrlr}
            \toprule
            \multicolumn{4}{l}{L2.ff.3 value writes} \\
            \midrule
            $+$ & $z$ & $-$ & $z$ \\
            \midrule
            \texttt{\textvisiblespace{}twenty} & $2.8$ & \texttt{Written} & $-4.5$ \\
            \bottomrule
            \end{tabular}
            <BLANKLINE>
        """
        top, bottom = ([(latex.token(t.token), latex.number(t.z)) for t in pole] for pole in (self.top, self.bottom))
        rows = [[*left, *right] for left, right in zip_longest(top, bottom, fillvalue=("", ""))]
        return latex.tabular("lrlr", self.heading, self.notes, ("$+$", "$z$", "$-$", "$z$"), rows)

    def _repr_words(self) -> str:
        poles = (f"{sign} {listed(pole)}" for sign, pole in (("+", self.top), ("−", self.bottom)))
        return f"{self.address}.{self.role} {self.frame}: {' '.join(poles)}"

    def _repr_html_(self) -> str:
        poles = "".join(
            f"<tr><th>{sign}</th><td>{', '.join(html_token(t.token, t.z) for t in pole[:15])}</td></tr>"
            for sign, pole in (("+", self.top), ("−", self.bottom))
        )
        pale = ' style="opacity:.6"' if self.says_little else ""
        return f"<table{pale}>{_html_caption(self)}{poles}</table>"


@dataclass(frozen=True, repr=False)
class PairScore(ShortRepr):
    """One entry of a head map: token ``left`` (query, or attended to) with token ``right`` (key, or promoted)."""

    left: Token
    right: Token
    score: float


@dataclass(frozen=True, repr=False)
class Certificate(ShortRepr):
    """The proof that no better pair exists: the k-th score, and the largest bound on the pairs not visited."""

    kth: float
    bound: float | None
    complete: bool

    @property
    def words(self) -> str:
        """The certificate in words."""
        proof = "every pair was looked at" if self.bound is None else f"what was left out is at most {self.bound:.4g}"
        return f"exact: the search ended at {self.kth:.4g}, {proof}" if self.complete else "not complete"


@dataclass(frozen=True, repr=False)
class PairRecord(Several[PairScore], AsJson, AsFigure):
    """The top pairs of a head map, which is a sequence of them.

    Attributes:
        offset: Query position minus key position (RoPE).
        evidence: The verdict of a text on head maps of this role, frame and layer, if the model was measured.
        change: True if the map is the change of a head map, so that the pairs are those whose score rose most.
        lens: The lens through which the map is read, in words; empty for the weights alone.
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
    lens: str = ""

    _ITEMS = "pairs"

    def table_rows(self) -> Iterator[Row]:
        """Yield a row for each pair."""
        place = {"address": self.address, "role": self.role, "offset": self.offset, "frame": self.frame}
        for rank, pair in enumerate(self.pairs):
            left, right = pair.left, pair.right
            tokens = {"left_id": left.id, "left": left.token, "right_id": right.id, "right": right.token}
            yield {**place, "rank": rank, **tokens, "score": pair.score}

    @property
    def heading(self) -> str:
        """The address, role and verb."""
        return f"{self.address} {self.role} {self.verb}"

    @property
    def notes(self) -> tuple[str, ...]:
        """The notes next to the heading: frame and offset, verdict."""
        offset = f", query {self.offset} after key" if self.role == "qk" else ""
        return (f"{self.frame} frame{offset}", *((self.evidence.words,) if self.evidence else ()))

    def within(self, tokens: int) -> "PairRecord":
        """Return the pairs that a map has room for: the first ones with at most so many tokens on either side."""
        lefts: set[Token] = set()
        rights: set[Token] = set()
        pairs = []
        for pair in self.pairs:
            if len(lefts | {pair.left}) <= tokens and len(rights | {pair.right}) <= tokens:
                lefts.add(pair.left)
                rights.add(pair.right)
                pairs.append(pair)
        return replace(self, pairs=tuple(pairs))

    def panel(self) -> HeatMap:
        """Return the tokens of the first pairs: left ones down, right ones across, empty where a pair is not listed."""
        scores = {(pair.left, pair.right): pair.score for pair in self.within(MOST_TOKENS)}
        lefts, rights = (list(dict.fromkeys(pair[end] for pair in scores)) for end in (0, 1))
        low, high = min(scores.values(), default=0.0), max(scores.values(), default=1.0)
        return HeatMap(
            title=self.heading,
            notes=self.notes,
            rows=[token_label(left.token) for left in lefts],
            columns=[token_label(right.token) for right in rights],
            values=[[scores.get((left, right), math.nan) for right in rights] for left in lefts],
            scale="score",
            ends=(low - (high - low) / 4, high),  # the lightest colour would look like an empty cell
        )

    def to_latex(self) -> str:
        """Return the pairs as a table of LaTeX, which needs the package booktabs.

        Tokens are in typewriter type. Letters that the fonts of pdfLaTeX lack need XeLaTeX or LuaLaTeX.
        """
        rows = [[latex.token(p.left.token), latex.token(p.right.token), latex.number(p.score)] for p in self.pairs]
        return latex.tabular("llr", self.heading, self.notes, (*ends_of(self.role), "score"), rows)

    def _repr_words(self) -> str:
        pairs = (f"{shown_text(p.left.token)} → {shown_text(p.right.token)}" for p in self.pairs[:4])
        return f"{self.address}.{self.role} {self.frame}: {', '.join(pairs)}, {len(self.pairs)} pairs"

    @property
    def verb(self) -> str:
        """The verb for what the pairs say."""
        verb = "as query attends to" if self.role.endswith("qk") else "when attended to, promotes"
        return f"{verb}, change" if self.change else verb

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{html_token(p.left.token)}</td><td>{html_token(p.right.token)}</td><td>{plain(p.score)}</td></tr>"
            for p in self.pairs[:20]
        )
        header = _html_header(*ends_of(self.role), "score")
        return f"<table>{_html_caption(self)}{header}{rows}</table>{html_note(self.certificate.words)}"


@dataclass(frozen=True, repr=False)
class Direction(ShortRepr):
    """One singular direction of a head map with the tokens of its two sides; if ``close``, it means nothing alone."""

    value: float
    share: float
    close: bool
    left: tuple[TokenScore, ...]
    left_bottom: tuple[TokenScore, ...]
    right: tuple[TokenScore, ...]
    right_bottom: tuple[TokenScore, ...]


@dataclass(frozen=True, repr=False)
class SvdRecord(Several[Direction], AsJson, AsFigure):
    """The leading singular directions of a head map over the vocabulary, which is a sequence of them."""

    address: str
    role: str
    offset: int
    frame: str
    directions: tuple[Direction, ...]
    hidden: Hidden
    note: str = ""
    lens: str = ""

    _ITEMS = "directions"

    def table_rows(self) -> Iterator[Row]:
        """Yield a row for each token of both poles of both ends of each direction."""
        for number, direction in enumerate(self.directions):
            place = {"address": self.address, "role": self.role, "offset": self.offset, "frame": self.frame}
            place |= {"direction": number, **plain_fields(direction)}
            for end, top, bottom in (
                ("left", direction.left, direction.left_bottom),
                ("right", direction.right, direction.right_bottom),
            ):
                yield from token_rows({**place, "end": end}, top, bottom)

    @property
    def heading(self) -> str:
        """The address and role, and what is shown of them."""
        return f"{self.address} {self.role} singular directions"

    @property
    def notes(self) -> tuple[str, ...]:
        """The notes next to the heading."""
        return tuple(filter(None, (f"{self.frame} frame", self.note)))

    def panel(self) -> Bars:
        """Return the share of each direction, with the first tokens of its two ends."""
        left, right = ends_of(self.role)
        return Bars(
            title=self.heading,
            notes=self.notes,
            x=f"share of the map; left {left}, right {right}",
            right=[(_few(d.right) + (" ≈" if d.close else ""), d.share) for d in self.directions],
            left=[(_few(direction.left), -direction.share) for direction in self.directions],
            mirrored=True,
        )

    def to_latex(self) -> str:
        """Return the directions with the first tokens of both poles of both ends, as a table that needs booktabs."""
        rows = [
            [share, *(latex.tokens(token.token for token in end[:FEW]) for end in ends)]
            for direction in self.directions
            for share, ends in (
                (latex.escaped(f"{direction.share:.1%}"), (direction.left, direction.right)),
                ("", (direction.left_bottom, direction.right_bottom)),
            )
        ]
        return latex.tabular("rll", self.heading, self.notes, ("share", *ends_of(self.role)), rows)

    def _repr_words(self) -> str:
        sides = (f"{listed(d.left[:2])} → {listed(d.right[:2])}" for d in self.directions[:2])
        return f"{self.address}.{self.role} {self.frame}: {'; '.join(sides)}, {len(self.directions)} directions"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{share}</td><td>{', '.join(html_token(t.token) for t in left[:8])}</td>"
            f"<td>{', '.join(html_token(t.token) for t in right[:8])}</td></tr>"
            for d in self.directions
            for share, left, right in (
                (f"{d.share:.0%}{' ≈' if d.close else ''} +", d.left, d.right),
                ("−", d.left_bottom, d.right_bottom),
            )
        )
        return f"<table>{_html_caption(self)}{_html_header('share', *ends_of(self.role))}{rows}</table>"


Record = VectorRecord | PairRecord | SvdRecord


class Records(Sequence[Record], AsTable, AsFigures):
    """The records of one address, in order, which a notebook displays. A slice is of this class again.

    ``basis`` says what their verdicts rest on, or that no measurement of the weights is known; ``note`` also says what
    coherence is, if they have any.
    """

    def __init__(self, records: Iterable[Record], note: str = "") -> None:
        self._records = tuple(records)
        measured = any(isinstance(record, VectorRecord) and record.coherence for record in self._records)
        self.basis: str = note
        self.note: str = " ".join(filter(None, (note, COHERENCE_NOTE if measured else "")))

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: Any) -> Any:
        return Records(self._records[index], self.basis) if isinstance(index, slice) else self._records[index]

    def __repr__(self) -> str:
        return one_line(f"Records({', '.join(f'{r.address}.{r.role} {r.frame}' for r in self._records)})")

    def table_rows(self) -> Iterator[Row]:
        """Yield the rows of all records; those of lists and of pairs have some columns of their own."""
        for record in self._records:
            yield from record.table_rows()

    def panels(self) -> Iterator[Panel]:
        """Yield the panel of each record."""
        for record in self._records:
            yield record.panel()

    def to_latex(self) -> str:
        """Return a table of LaTeX for each record, with an empty line between two."""
        return "\n".join(record.to_latex() for record in self._records)

    def to_json(self) -> list[dict[str, Any]]:
        """Return a list that json.dumps accepts."""
        return [record.to_json() for record in self._records]

    def _repr_html_(self) -> str:
        hidden = dict.fromkeys(record.hidden.words for record in self._records)
        notes = filter(None, (*(words and f"{words}." for words in hidden), self.note))
        return "".join(record._repr_html_() for record in self._records) + "".join(map(html_note, notes))


def listed(tokens: Iterable[Token | TokenScore]) -> str:
    """Return the first few tokens as one line."""
    return ", ".join(shown_text(token.token) for token in tuple(tokens)[:4])


def _entries(tokens: Iterable[TokenScore]) -> list[Entry]:
    return [(token_label(token.token), token.z) for token in tokens]


def _few(tokens: Sequence[TokenScore]) -> str:
    return " ".join(token_label(token.token) for token in tokens[:FEW])


def html_note(note: str) -> str:
    """Return a note as a small paragraph of HTML."""
    return f"<p><small>{html.escape(shown_text(note, limit=500))}</small></p>"


def _html_title(record: Record) -> str:
    return f"<b>{html.escape(record.address)}</b> {html.escape(record.role)}"


def _html_caption(record: Record) -> str:
    verb = "singular directions" if isinstance(record, SvdRecord) else record.verb
    small = f" <small>{html.escape('; '.join(record.notes))}</small>" if record.notes else ""
    return f"<caption>{_html_title(record)} <i>{html.escape(verb)}</i>{small}</caption>"


def _html_header(*names: str) -> str:
    return f"<tr>{''.join(f'<th>{name}</th>' for name in names)}</tr>"


def html_token(text: str, z: float | None = None) -> str:
    """Return a token, with its z if there is one, as HTML."""
    shown = html.escape(shown_text(text))
    return f"<code>{shown}</code>" + ("" if z is None else f"&nbsp;<small>{plain(z)}</small>")
