"""Labels: the sentences of another program about lists of tokens, with their scores. Plain data, without torch."""

import html
from collections.abc import Iterator
from dataclasses import dataclass

from zeropass.records.numbers import coefficient
from zeropass.records.parameters import AsJson, PairRecord, Record, VectorRecord, html_note
from zeropass.records.tabular import Row, Several, plain_fields
from zeropass.tokens.shown import shown_text

__all__ = ["LONGEST", "Label", "Labels", "Listed", "ids_of"]

Listed = VectorRecord | PairRecord
"""The records that can be labelled."""

LONGEST = 300
"""The most characters of a sentence."""

_COMMAND = 80
"""The most characters of a command that are shown."""

_SAME = 0.8
"""The share of tokens that two readings of the same list have in common at least: rounding may swap the last ones."""

FOREIGN = "The sentences are another program's words, no measurement."
"""The note next to labels."""


@dataclass(frozen=True, repr=False)
class Label(AsJson):
    """The sentence of another program about a list, and how often it was told from wrong lists by that sentence.

    Attributes:
        address: The address of the parameter.
        role: Its role.
        frame: The frame of the list.
        offset: Query position minus key position, of a head map; else 0.
        verb: The verb for what the list says: sees, is about to say, writes.
        sentence: The sentence, in one line, as the program wrote it.
        command: The command that was called.
        right: How many questions were answered right.
        asked: How many questions were asked; 0 if there is no other list to compare with.
        choices: How many lists each question showed.
        view: The view of the tokens.
        lens: The lens through which the list was read, in words; empty for the weights alone.
        seed: The seed of the wrong lists and of their order.
        date: The day, as in 2026-11-27.
        ids: The tokens of the list: both poles, or both sides of the pairs.
    """

    address: str
    role: str
    frame: str
    offset: int
    verb: str
    sentence: str
    command: str
    right: int
    asked: int
    choices: int
    view: str
    lens: str
    seed: int
    date: str
    ids: tuple[tuple[int, ...], ...]

    @property
    def chance(self) -> float:
        """The share of right answers that guessing would reach."""
        return 1 / max(self.choices, 1)

    @property
    def score(self) -> str:
        """The score in words, beside that of guessing."""
        if not self.asked:
            return "not scored, since there is no other list like it"
        return f"right {self.right} of {self.asked}, chance {coefficient(self.chance)}"

    @property
    def words(self) -> str:
        """The command and the score, in words."""
        return f"labelled by {shown_text(self.command, limit=_COMMAND)}, {self.score}"

    def table_rows(self) -> Iterator[Row]:
        """Yield one row."""
        yield plain_fields(self) | {"chance": self.chance}

    def is_about(self, record: Record) -> bool:
        """Tell whether a record shows the list that was labelled, be it longer, shorter or in another view."""
        offset = record.offset if isinstance(record, PairRecord) else 0
        same = (self.address, self.role, self.frame, self.offset, self.lens)
        if not isinstance(record, Listed) or same != (record.address, record.role, record.frame, offset, record.lens):
            return False
        return record.hidden.view != self.view or _share(self.ids, ids_of(record)) >= _SAME


def ids_of(record: Listed) -> tuple[tuple[int, ...], ...]:
    """Return the tokens of a record: both poles of a list, or both sides of pairs."""
    if isinstance(record, VectorRecord):
        return tuple(tuple(token.id for token in pole) for pole in (record.top, record.bottom))
    return tuple(zip(*((pair.left.id, pair.right.id) for pair in record.pairs), strict=True))


def _share(first: tuple[tuple[int, ...], ...], second: tuple[tuple[int, ...], ...]) -> float:
    """Return the share of the first tokens that two lists have in common, in the length of the shorter one."""
    common = count = 0
    for a, b in zip(first, second, strict=False):
        length = min(len(a), len(b))
        common, count = common + len({*a[:length]} & {*b[:length]}), count + len({*a[:length]})
    return common / count if count else 0.0


@dataclass(frozen=True, repr=False)
class Labels(Several[Label], AsJson):
    """Labels of lists, which are a sequence of them.

    Attributes:
        labels: The labels.
        left_out: The lists that were not labelled since they say little: address and role.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> import zeropass as zp
        >>> with TemporaryDirectory() as folder:
        ...     lens = zp.load("models/first", lens=None)
        ...     labels = zp.label(lens, ["L2.ff.3.gate", "L2.ff.4.gate"], "echo 2 words", frame="token", folder=folder)
        >>> [label.address for label in labels[:1]], labels.notes[1]
        (['L2.ff.3'], 'All of them: right 2 of 6, chance .20.')
    """

    labels: tuple[Label, ...]
    left_out: tuple[str, ...] = ()

    _ITEMS = "labels"

    @property
    def notes(self) -> tuple[str, ...]:
        """The notes below the labels: whose words they are, the score of all of them, and what was left out."""
        asked = sum(label.asked for label in self.labels)
        right, guessed = (
            (
                sum(values)
                for values in zip(*((label.right, label.asked * label.chance) for label in self.labels), strict=True)
            )
            if self.labels
            else (0, 0)
        )
        score = f"All of them: right {right} of {asked}, chance {coefficient(guessed / asked)}." if asked else ""
        little = f"Left out, since they say little: {', '.join(self.left_out)}." if self.left_out else ""
        return tuple(filter(None, (FOREIGN if self.labels else "", score if len(self.labels) > 1 else "", little)))

    def table_rows(self) -> Iterator[Row]:
        """Yield a row for each label."""
        for label in self.labels:
            yield from label.table_rows()

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{html.escape(shown_text(f'{label.address} {label.role}'))}</td>"
            f"<td><i>{html.escape(shown_text(label.verb))}</i></td>"
            f"<td>{html.escape(shown_text(label.sentence, limit=LONGEST))}</td>"
            f"<td><small>{html.escape(label.words)}</small></td></tr>"
            for label in self.labels
        )
        return f"<table>{rows}</table>{''.join(map(html_note, self.notes))}"
