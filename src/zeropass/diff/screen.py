"""Screen many adapters or fine-tunes of one base: a row each, and which of them write much the same."""

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from zeropass._io.atomic import Parts, key_of
from zeropass._io.progress import Progress, callback, shows_progress
from zeropass._io.typed_json import from_json
from zeropass.checkpoints.adapter_files import WEIGHTS
from zeropass.checkpoints.model_files import hashes
from zeropass.diff.findings import LEAD, MARGIN, TENTH, unjudged
from zeropass.diff.random_changes import DRAWS
from zeropass.diff.screen_base import ScreenBase
from zeropass.diff.screen_folder import Place, claim_screening, places_in, write_screening
from zeropass.diff.screen_results import ORDER, Nearest, Screened, Screening
from zeropass.diff.thresholds import Thresholds, kept_thresholds
from zeropass.errors import BadOption, ZeropassError
from zeropass.model.adapted import Adapted, adapt
from zeropass.model.kept_rows import kept_frames
from zeropass.model.model import Model
from zeropass.model.opening import ModelLike, open_model

__all__ = ["screen"]

WRITTEN = 200
"""The number of words, those with the highest excess, by which changes are compared; docs/audit.md says why."""

NEAREST, FEWEST, ALIKE = 3, 8, 5.0
"""The others that are named; the least number that say what is usual; deviations above it of one that is alike."""

SCHEMA_VERSION = 1
"""The version of what is kept of a change: an older one is measured again."""

_BLOCK = 512


@shows_progress
def screen(
    base: ModelLike,
    changes: str | Path | Sequence[str | Path],
    *,
    out: str | Path | None = None,
    thresholds: Thresholds | str | Path | None = "auto",
    progress: Progress | bool = True,
) -> Screening:
    """Say of many adapters or fine-tunes of one base what kind of change each is, and what it concerns.

    What their rows say is what `compare` says of each; its directions and parameters are left out, and what the base
    alone decides is computed once.

    Args:
        base: The model that all were made of, or its name.
        changes: A folder, in which every folder with an ``adapter_config.json`` or a ``config.json`` counts; a text
            file with a path or a hub id of a model on each line; or a sequence of these.
        out: The folder to write to, if any. A stopped run with the same folder continues; what is changed, or judged by
            other thresholds, is measured again.
        thresholds: As in `compare`.
        progress: True for a bar in a notebook or on a terminal, False for none; or a function that is called with the
            stage, the step and the number of steps.

    Returns:
        A row for each change, narrow ones first. What cannot be read has a row that says why.

    Raises:
        BadModel: The base cannot be read.
        BadOption: There is nothing to screen, the folder holds something else, or the thresholds cannot be read.

    Example:
        >>> import zeropass as zp
        >>> screening = zp.screen("models/first", ["models/tunes/reviews", "models/none"])
        >>> [(row.name, row.answer) for row in screening]
        [('models/none', 'unreadable'), ('models/tunes/reviews', 'nothing')]
    """
    report = callback(progress)
    report("opening", 0, 1)
    places, folder = places_in(changes), None if out is None else Path(out)
    base = open_model(base)
    limits = kept_thresholds(base.fingerprint, thresholds)
    work = _Work(base=base, thresholds=limits, folder=folder, report=report)
    measured = []
    for done, place in enumerate(places):
        report("screening", done, len(places))
        measured.append(work.measured(place))
    report("screening", len(places), len(places))
    rows = _with_nearest([row for row, _ in measured], [written for _, written in measured])
    screening = Screening(base=work.facts, rows=tuple(sorted(rows, key=_order)), method=work.method)
    if folder is not None:
        write_screening(screening, folder)
    return screening


@dataclass(frozen=True)
class _Written:
    """The words with the highest excess in what a change writes: their ids, and their excess."""

    ids: tuple[int, ...]
    excess: tuple[float, ...]


@dataclass(frozen=True)
class _Kept:
    """The row of a change, and what it writes, as they are kept."""

    row: Screened
    written: _Written | None


@dataclass(eq=False)
class _Work:
    """The screening of changes of one base.

    Attributes:
        base: The base.
        thresholds: What benign changes of the base reach, if that is known.
        folder: The folder of the screening, if there is one.
        report: Is told of progress.
    """

    base: Model
    thresholds: Thresholds | None
    folder: Path | None
    report: Progress

    def __post_init__(self) -> None:
        """Claim the folder."""
        self.parts: Parts | None = None
        if self.folder is not None:
            claim_screening(self.folder)
            self.parts = Parts(self.folder, key_of(self.base.fingerprint, self.method), BadOption)

    @cached_property
    def shared(self) -> ScreenBase:
        """The base with what all changes share, read when the first is measured."""
        shared = ScreenBase(kept_frames(self.base, None), self.thresholds)
        shared.read(self.report)
        return shared

    @cached_property
    def facts(self) -> dict[str, Any]:
        """The name and the hash of the base."""
        return {"name": self.base.name, "sha256": self.base.fingerprint}

    @cached_property
    def method(self) -> dict[str, Any]:
        """Settings on which a row depends."""
        benign = None if self.thresholds is None else key_of(self.thresholds.to_json())
        return {
            "schema": SCHEMA_VERSION,
            "margin": MARGIN,
            "lead": LEAD,
            "tenth": TENTH,
            "draws": DRAWS,
            "compared_words": WRITTEN,
            "thresholds": benign,
        }

    def measured(self, place: Place) -> tuple[Screened, _Written | None]:
        """Return the row of a change, and what it writes; what is kept is not measured again."""
        row = Screened(name=place.name, path=place.path, sha256="", kind="", finding=unjudged(""))
        started = time.monotonic()
        try:
            tuned = self._opened(place)
            row = replace(row, sha256=_sha256(tuned))
            kept = self._kept(tuned)
            if kept is None:
                kept = self._measure(tuned, row, started)
            return replace(kept.row, name=place.name, path=place.path), kept.written
        except (ZeropassError, OSError) as error:
            reason = str(error) or type(error).__name__
            return replace(row, error=reason, finding=unjudged("it cannot be read")), None

    def _opened(self, place: Place) -> Model:
        if place.is_adapter:
            return adapt(self.base, place.path)
        return open_model(place.path, device=self.base.device)

    def _kept(self, tuned: Model) -> _Kept | None:
        value = None if self.parts is None else self.parts.load(_identity(tuned))
        try:
            return None if value is None else from_json(_Kept, value)
        except ValueError:  # it is damaged
            return None

    def _measure(self, tuned: Model, row: Screened, started: float) -> _Kept:
        shared = self.shared
        row, excess = shared.measured(tuned, row)
        written = None
        if excess is not None:
            best = excess.topk(min(WRITTEN, len(excess)))
            ids = shared.ids[shared.words][best.indices]
            written = _Written(ids=tuple(ids.tolist()), excess=tuple(best.values.tolist()))
        kept = _Kept(row=replace(row, seconds=time.monotonic() - started), written=written)
        if self.parts is not None:
            self.parts.save(_identity(tuned), asdict(kept))
        return kept


def _sha256(tuned: Model) -> str:
    """Return the SHA-256 of the weights, as ``sha256sum`` prints it if they are one file."""
    if isinstance(tuned, Adapted):
        (adapter,) = tuned.adapters
        assert adapter.path is not None, "what is screened lies in a folder"
        return next(iter(hashes((adapter.path / WEIGHTS,)).sha256.values()))
    return tuned.sha256 if isinstance(tuned.sha256, str) else tuned.fingerprint


def _identity(tuned: Model) -> str:
    """Return a hash of everything that is read of a change."""
    if isinstance(tuned, Adapted):
        return tuned.fingerprint
    config = tuned.files.config if tuned.files.format == "hf" else None  # that of a GGUF is part of its weight file
    return key_of(tuned.fingerprint, config, hashlib.sha256(tuned.files.tokenizer_json or b"").hexdigest())


def _order(row: Screened) -> tuple[int, float, str]:
    """Return the sort key: narrow ones first, then topics, what cannot be read, what is not judged, and the others."""
    rank = 2 * ORDER.index(row.finding.answer)
    return rank - 1 if row.error else rank, -row.finding.excess, row.name


def _with_nearest(rows: Sequence[Screened], written: Sequence[_Written | None]) -> Iterator[Screened]:
    """Yield rows with the others that write most nearly the same."""
    writing = [n for n, words in enumerate(written) if words is not None]
    blocks = _similarities([words for words in written if words is not None])
    similar = dict(zip(writing, blocks, strict=True))
    for n, row in enumerate(rows):
        if n not in similar or len(writing) < 2:
            yield row
            continue
        others = [m for m in np.argsort(-similar[n], kind="stable") if writing[m] != n]
        usual, limit = _usual(similar[n][others])
        nearest = tuple(
            Nearest(
                name=rows[writing[m]].name,
                similarity=float(similar[n][m]),
                alike=None if limit is None else bool(similar[n][m] > limit),
            )
            for m in others[:NEAREST]
        )
        yield replace(row, nearest=nearest, usual=usual)


def _usual(similarities: npt.NDArray[np.float64]) -> tuple[float | None, float | None]:
    """Return the median similarity of others, and what that of one alike exceeds; None for both if they are too few."""
    if len(similarities) < FEWEST:
        return None, None
    median = float(np.median(similarities))
    return median, median + ALIKE * 1.4826 * float(np.median(np.abs(similarities - median)))


def _similarities(written: Sequence[_Written]) -> Iterator[npt.NDArray[np.float64]]:
    """Yield the cosine of each change's words to those of all, (n,), in their order."""
    if not written:
        return
    columns = np.concatenate([words.ids for words in written])
    ends = np.cumsum([0, *(len(words.ids) for words in written)])
    values = np.concatenate([words.excess for words in written]).clip(0.0)
    table = csr_array((values, columns.astype(np.int64), ends), shape=(len(written), int(columns.max()) + 1))
    lengths = np.sqrt(table.multiply(table).sum(axis=1))
    scale = np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    for start in range(0, len(written), _BLOCK):
        products = (table[start : start + _BLOCK] @ table.T).toarray()
        yield from products * scale[start : start + _BLOCK, None] * scale
