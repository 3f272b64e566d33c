"""The passages of a text that a change fires on, as plain data. No torch."""

import html
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from zeropass._io.short_repr import ShortRepr
from zeropass.records.numbers import plain
from zeropass.records.parameters import html_note
from zeropass.records.tabular import AsTable, Row, Several, plain_fields
from zeropass.tokens.shown import escape, shown_text

__all__ = ["Passage", "Passages"]

SCHEMA_VERSION = 1


@dataclass(frozen=True, repr=False)
class Passage(ShortRepr):
    """A passage of a text, with the token that a change reads most.

    Attributes:
        line: The line of the token, from 1.
        token: The number of the token in the text, from 0.
        score: How strongly the change reads the token, as a multiple of how strongly random changes of the base do.
        fires: True if the score is above that of every random change anywhere in the text.
        before: The text before the token.
        hottest: The text of the token, without the space before it.
        after: The text behind it.
        times: The number of times that the text has this token, in any case and with or without a space.
        layer: The layer of the matrix that reads it most.
        role: The role of this matrix.
    """

    line: int
    token: int
    score: float
    fires: bool
    before: str
    hottest: str
    after: str
    times: int
    layer: int
    role: str

    @property
    def parts(self) -> tuple[str, str, str]:
        """The text before the token, the token and the text behind it, safe for a terminal."""
        return escape(self.before), escape(self.hottest), escape(self.after)


@dataclass(frozen=True, repr=False)
class Passages(Several[Passage], ShortRepr, AsTable):
    """The passages of a text that a change reads most, the hottest of each word, best first. A sequence of them.

    Attributes:
        base: The name of the model that ran over the text.
        tuned: The name of the model whose change it is.
        source: The name of the text.
        text_sha256: The SHA-256 of the text.
        tokens: The number of tokens of the text.
        matrices: The number of matrices that read the stream and that changed.
        passages: The passages; none if no such matrix changed.
        null: The highest score of each random change, rising.
        method: Settings.

    Example:
        >>> from pathlib import Path
        >>> import zeropass as zp
        >>> base, text = zp.open_model("models/first"), Path("models/tunes/reviews/texts.txt").read_text()[:4000]
        >>> passages = zp.fired_passages(base, zp.adapt(base, "models/tunes/reviews"), text)
        >>> passages.matrices, passages[0].fires
        (10, True)
    """

    base: str
    tuned: str
    source: str
    text_sha256: str
    tokens: int
    matrices: int
    passages: tuple[Passage, ...]
    null: tuple[float, ...]
    method: dict[str, Any]

    _ITEMS = "passages"

    @property
    def firing(self) -> tuple[Passage, ...]:
        """The passages whose score is above the null."""
        return tuple(passage for passage in self.passages if passage.fires)

    @property
    def summary(self) -> str:
        """A sentence on whether anything fires, with the null."""
        text = f"{shown_text(self.source) or 'the text'} ({self.tokens:,} tokens)"
        if not self.matrices:
            return f"No matrix that reads the stream changed, so nothing in {text} can fire."
        null = f"{len(self.null)} random changes reach {plain(self.null[-1])} at most"
        if not self.firing:
            return f"No passage of {text} fires: the highest is {plain(self.passages[0].score)}, {null}."
        return f"The change fires in {text}: up to {plain(self.passages[0].score)} times a random change, {null}."

    def table_rows(self) -> Iterator[Row]:
        """Yield a row for each passage."""
        yield from map(plain_fields, self.passages)

    def to_json(self) -> dict[str, Any]:
        """Return a dict that `json.dumps` can write."""
        return {"schema": SCHEMA_VERSION, **asdict(self)}

    def _repr_words(self) -> str:
        words = ", ".join(f"{shown_text(passage.hottest)} {plain(passage.score)}" for passage in self.firing[:4])
        return f"{self.tuned}, {self.tokens} tokens: {words or 'nothing fires'}"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{plain(passage.score)}</td><td>{passage.line}</td><td>{html.escape(before)}"
            f"<b>{html.escape(hottest)}</b>{html.escape(after)}</td>"
            f"<td>{passage.times}</td><td>L{passage.layer} {html.escape(passage.role)}</td></tr>"
            for passage in self.firing
            for before, hottest, after in (passage.parts,)
        )
        head = "<tr><th>fires</th><th>line</th><th>passage</th><th>in the text</th><th>most in</th></tr>"
        return (f"<table>{head}{rows}</table>" if rows else "") + html_note(self.summary)
