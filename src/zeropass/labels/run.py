"""Run `zeropass label` in one call: have lists labelled by another program, score the labels, and keep them."""

import datetime
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from zeropass._io.atomic import key_of
from zeropass._io.progress import Progress, callback, shows_progress
from zeropass.arch.frame_names import Frame, check_count
from zeropass.atlas.read import Atlas
from zeropass.errors import BadOption
from zeropass.labels.label_files import LabelFolder, label_folder, stored_labels
from zeropass.labels.line_ups import says_little, wrong_lists
from zeropass.labels.program import Program
from zeropass.labels.prompts import choice_prompt, number_in, sentence_in, sentence_prompt
from zeropass.labels.results import Label, Labels, Listed, ids_of
from zeropass.records.parameters import PairRecord, Record, VectorRecord
from zeropass.tokens.shown import View

if TYPE_CHECKING:
    from zeropass.lens import Lens

__all__ = ["kept_labels", "label"]


@shows_progress
def label(
    source: "Atlas | Lens",
    addresses: str | Sequence[str],
    command: str,
    *,
    frame: Frame | None = None,
    tokens: View | None = None,
    k: int = 12,
    choices: int = 5,
    orders: int = 3,
    seed: int = 0,
    timeout: float = 120,
    folder: str | Path | None = None,
    progress: Progress | bool = True,
) -> Labels:
    """Have another program say in a sentence what lists have in common, and score each sentence against wrong lists.

    The program gets a prompt on stdin and answers on stdout. First it sees every other token of a list and is asked for
    a sentence; then it is asked which of several lists that sentence describes, where it sees the tokens between those.
    The wrong lists are of the same role, layer and frame, as telling, and share few words with the right one.
    A label that is kept already is not asked for again, so a stopped run continues.

    Args:
        source: An atlas, or a lens on a model.
        addresses: One address or several.
        command: The command, with its arguments quoted as in a shell; no shell is involved. It is kept with the label.
        frame: One frame. If not given, the most coherent list of each role is labelled, and none that says little.
        tokens: The view of the tokens; the usual one if not given.
        k: Tokens of each pole, or pairs, that the program is shown at a time.
        choices: Lists of a question.
        orders: Questions about each sentence, each with the lists in another order.
        seed: The seed of the wrong lists and of their orders.
        timeout: The most seconds of an answer.
        folder: The folder of all labels; the cache if not given.
        progress: True for a bar in a notebook or on a terminal, False for none; or a function that is called with the
            stage, the step and the number of steps.

    Returns:
        The labels, in the order of the addresses.

    Raises:
        BadAddress: There is no such parameter.
        BadOption: An option is wrong, or the program fails, takes too long, or answers something else than a sentence.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> import zeropass as zp
        >>> lens = zp.load("models/first", lens=None)
        >>> with TemporaryDirectory() as folder:
        ...     labels = zp.label(lens, "L2.ff.3.gate", "echo 2 words", frame="token", folder=folder)
        >>> labels[0].sentence, labels[0].words
        ('2 words', 'labelled by echo 2 words, right 1 of 3, chance .20')
    """
    report = callback(progress)
    for name, value, least in (("choices", choices, 2), ("orders", orders, 1), ("seed", seed, 0)):
        if value < least:
            raise BadOption(f"--{name} is {value}; it must be at least {least}.")
    check_count(k)
    work = _Work(
        source,
        Program(command, timeout),
        label_folder(source, None if folder is None else Path(folder)),
        choices=choices,
        orders=orders,
        seed=seed,
    )
    addresses = [addresses] if isinstance(addresses, str) else list(addresses)
    records = [source.explain(address, frame=frame, tokens=tokens, k=2 * k) for address in dict.fromkeys(addresses)]
    lists = [record for of_address in records for record in _telling(of_address, frame)]
    chosen = {(record.address, record.role, record.frame): record for record in lists}
    labels = []
    for done, record in enumerate(chosen.values()):
        report("labelling", done, len(chosen))
        labels.append(work.label(record))
    report("labelling", len(chosen), len(chosen))
    labelled = {f"{label.address} {label.role}" for label in labels}
    roles = dict.fromkeys(f"{record.address} {record.role}" for of_address in records for record in of_address)
    return Labels(tuple(labels), left_out=tuple(role for role in roles if role not in labelled))


def kept_labels(
    source: "Atlas | Lens", records: Iterable[Record] | None = None, folder: str | Path | None = None
) -> Labels:
    """Return the labels that are kept for the weights of an atlas or a lens, by address.

    Args:
        source: The atlas or lens.
        records: The lists that the labels are to be about; all labels if not given.
        folder: The folder of all labels; the cache if not given.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> import zeropass as zp
        >>> lens = zp.load("models/first", lens=None)
        >>> with TemporaryDirectory() as folder:
        ...     made = zp.label(lens, "L2.ff.3.gate", "echo 2 words", frame="token", folder=folder)
        ...     len(zp.kept_labels(lens, folder=folder)), len(zp.kept_labels(lens, lens["L2.ff.4"], folder))
        (1, 0)
    """
    labels = stored_labels(source, None if folder is None else Path(folder))
    if records is None:
        return Labels(tuple(labels))
    lists = list(records)
    return Labels(tuple(label for label in labels if any(map(label.is_about, lists))))


@dataclass(frozen=True)
class _Work:
    """The labelling of lists.

    Attributes:
        source: What the lists are read from.
        program: The program that labels them.
        folder: Where labels are kept.
        choices: Lists of a question.
        orders: Questions about each sentence.
        seed: The seed of the wrong lists and of their orders.
    """

    source: "Atlas | Lens"
    program: Program
    folder: LabelFolder
    choices: int
    orders: int
    seed: int

    def label(self, record: Listed) -> Label:
        """Return the label of a list: the one that is kept, if it was made and scored like this, or a new one."""
        generator = np.random.default_rng([self.seed, int(key_of(record.address, record.role, record.frame)[:16], 16)])
        others = wrong_lists(self.source, record, self.choices - 1, generator)
        label = Label(
            address=record.address,
            role=record.role,
            frame=record.frame,
            offset=record.offset if isinstance(record, PairRecord) else 0,
            verb=record.verb,
            sentence="",
            command=self.program.command,
            right=0,
            asked=self.orders if others else 0,
            choices=len(others) + 1,
            view=record.hidden.view,
            lens=record.lens,
            seed=self.seed,
            date=datetime.date.today().isoformat(),
            ids=ids_of(record),
        )
        kept = self.folder.of(label)
        if kept is not None and replace(label, sentence=kept.sentence, right=kept.right, date=kept.date) == kept:
            return kept
        answer = self.program.answer(sentence_prompt(record))
        try:
            sentence = sentence_in(answer)
        except ValueError as error:
            raise self.program.failure(str(error)) from error
        right = self._right(sentence, record, others, generator) if others else 0
        label = replace(label, sentence=sentence, right=right)
        self.folder.keep(label)
        return label

    def _right(self, sentence: str, record: Listed, others: Sequence[Listed], generator: np.random.Generator) -> int:
        """Return how many questions about a sentence are answered right.

        The right list stands in another place each time, so that always giving the same number gains nothing.
        """
        places, right = generator.permutation(len(others) + 1), 0
        for n in range(self.orders):
            place = int(places[n % len(places)])
            lists = [others[i] for i in generator.permutation(len(others))]
            lists.insert(place, record)
            right += number_in(self.program.answer(choice_prompt(sentence, lists))) == place + 1
        return right


def _telling(records: Iterable[Record], frame: str | None) -> list[Listed]:
    """Return the lists of an address to label: the most coherent one of each role, and none that says little.

    Where a frame is asked for, its lists are returned as they are.
    """
    lists = [record for record in records if isinstance(record, Listed)]
    if frame is not None:
        return lists
    best: dict[str, Listed] = {}
    for record in lists:
        if not says_little(record) and _margin(record) > _margin(best.get(record.role)):
            best[record.role] = record
    return list(best.values())


def _margin(record: Listed | None) -> float:
    """Return by how much a list is more coherent than random directions; of pairs, which have no coherence, 0."""
    if record is None:
        return -np.inf
    coherence = record.coherence if isinstance(record, VectorRecord) else None
    return coherence.value - coherence.null if coherence else 0.0
