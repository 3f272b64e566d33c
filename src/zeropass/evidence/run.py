"""The command `zeropass evidence` as one call: open, measure, write the folder, keep the verdicts."""

from dataclasses import dataclass
from pathlib import Path

from rich.console import RenderableType

from zeropass._io.atomic import claim_folder
from zeropass._io.parse import read_text
from zeropass._io.progress import Progress, callback, shows_progress
from zeropass._io.short_repr import ShortRepr
from zeropass.evidence.corpus import PRESS_SOURCE, press_text
from zeropass.evidence.judging import verdicts_of
from zeropass.evidence.measure import PARTS, Settings, measure, write_evidence
from zeropass.evidence.render import html, summary
from zeropass.evidence.results import Evidence
from zeropass.model.lens_maps import LensMaps, chosen_lens
from zeropass.model.model import Model
from zeropass.model.opening import ModelLike, open_model
from zeropass.records.verdicts import Verdicts, known_verdicts
from zeropass.records.verdicts import keep as keep_verdicts

__all__ = ["Collected", "collect_evidence"]


@dataclass(frozen=True, repr=False)
class Collected(ShortRepr):
    """Evidence with its verdicts on each kind of list and a summary for a terminal.

    Attributes:
        evidence: The evidence.
        verdicts: The verdicts.
        summary: The summary.
        kept: The file in which the verdicts were kept for `show` and `explain`; None if they were not.
        note: Whether the verdicts were kept, or why not, in words.
    """

    evidence: Evidence
    verdicts: Verdicts
    summary: RenderableType
    kept: Path | None
    note: str


@shows_progress
def collect_evidence(
    model: ModelLike,
    text: str | Path | None,
    folder: str | Path,
    *,
    tokens: int = Settings.tokens,
    only: tuple[str, ...] | None = None,
    seed: int = 0,
    keep: bool = False,
    lens: str | Path | LensMaps | None = "auto",
    device: str = "cpu",
    progress: Progress | bool = True,
) -> Collected:
    """Measure a model and write a folder; keep the verdicts in the cache, where `show` and `explain` find them.

    Args:
        model: The model, or its name.
        text: A text file; None for newspaper prose.
        folder: The folder to write.
        tokens: Tokens of the text.
        only: Some of the measures; None for all.
        seed: The seed of every sample.
        keep: Whether to keep the verdicts of a run that is smaller than the usual one (fewer tokens, or not every
            measure) or than the known one.
        lens: The lens whose frames are measured as well: see `load`.
        device: Where the model runs.
        progress: True for a bar in a notebook or on a terminal, False for none; or a function that is called with the
            stage, the step and the number of steps.

    Returns:
        The evidence with its verdicts and its summary.

    Raises:
        BadOption: The folder holds something else, the text cannot be used, or a measure does not exist.

    Example:
        >>> import os
        >>> from tempfile import TemporaryDirectory
        >>> import zeropass as zp
        >>> model, text = "models/first", "models/tunes/reviews/texts.txt"
        >>> with TemporaryDirectory() as folder:
        ...     collected = zp.collect_evidence(model, text, folder, tokens=600, only=("inverses",))
        ...     "report.html" in os.listdir(folder), collected.evidence.method["measures"]
        (True, ['inverses'])
    """
    report = callback(progress)
    folder = Path(folder)
    text = None if text is None else Path(text)
    claim_folder(folder, "evidence", ("evidence.json", "parts"))
    source = PRESS_SOURCE if text is None else text.name
    prose = press_text() if text is None else read_text(text)
    opened = open_model(model)
    settings = Settings(tokens=tokens, seed=seed)
    evidence = measure(
        opened,
        prose,
        source,
        settings,
        parts=only or PARTS,
        folder=folder,
        lens=chosen_lens(opened, lens),
        device=device,
        progress=report,
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_evidence(evidence, folder, html(evidence))
    verdicts = verdicts_of(evidence)
    verdicts.write(folder / "verdicts.json")
    reason = _why_not_kept(evidence, verdicts, opened)
    if not verdicts.kinds or (reason and not keep):
        return Collected(
            evidence=evidence,
            verdicts=verdicts,
            summary=summary(evidence),
            kept=None,
            note=f"Not kept for show and explain: {reason}",
        )
    return Collected(
        evidence=evidence,
        verdicts=verdicts,
        summary=summary(evidence),
        kept=keep_verdicts(verdicts),
        note="Kept: show quotes it.",
    )


def _why_not_kept(evidence: Evidence, verdicts: Verdicts, model: Model) -> str:
    """Return the reason why `show` should not quote verdicts by default; empty if it should."""
    if not verdicts.kinds:
        return "nothing that was measured judges a list."
    tokens, measures = evidence.method["tokens"], evidence.method["measures"]
    if tokens < Settings.tokens or len(measures) < len(PARTS):
        share = "every measure" if len(measures) == len(PARTS) else ", ".join(measures)
        usual = f"the usual run takes {Settings.tokens:,} tokens and every measure"
        return f"it is a small run ({tokens:,} tokens, {share}; {usual}). --keep keeps it."
    known = known_verdicts(verdicts.model["bytes"], lambda: model.fingerprint)
    if known and (len(verdicts.kinds), tokens) < (len(known.kinds), known.method.get("tokens", 0)):
        return f"what is known rests on more ({known.basis}). --keep keeps it all the same."
    return ""
