"""`zeropass evidence` as one call: open, measure, write the folder, keep the verdicts."""

from dataclasses import dataclass
from pathlib import Path

from rich.console import RenderableType

from zeropass._io.atomic import claim_folder
from zeropass._io.progress import Progress, silent
from zeropass.evidence.corpus import PRESS_SOURCE, press_text, read_text
from zeropass.evidence.judging import verdicts_of
from zeropass.evidence.measure import PARTS, Settings, measure, write_evidence
from zeropass.evidence.render import html, summary
from zeropass.evidence.results import Evidence
from zeropass.model.model import Model, open_model
from zeropass.records.verdicts import Verdicts, known_verdicts
from zeropass.records.verdicts import keep as keep_verdicts

__all__ = ["Collected", "collect_evidence"]


@dataclass(frozen=True)
class Collected:
    """An evidence with what is said of it: verdicts on each kind of list, and a summary for a terminal.

    ``kept``: where the verdicts were kept for `show` and `explain`, if they were; ``note`` says so, or why not.
    """

    evidence: Evidence
    verdicts: Verdicts
    summary: RenderableType
    kept: Path | None
    note: str


def collect_evidence(
    model: str,
    text: Path | None,
    folder: Path,
    *,
    tokens: int = Settings.tokens,
    only: tuple[str, ...] | None = None,
    seed: int = 0,
    keep: bool = False,
    device: str = "cpu",
    progress: Progress = silent,
) -> Collected:
    """Measure a model and write ``folder``; the verdicts also go to the cache, where `show` and `explain` find them.

    text: a file, or None for newspaper prose. only: some of the measures. keep: a run that is smaller than the usual
    one (fewer tokens, or not every measure), or than what is known, goes to the cache only if this is asked for.
    Raises BadOption for a folder that holds something else, a text that cannot be used, or a measure that does not
    exist.
    """
    claim_folder(folder, "evidence", ("evidence.json", "parts"))
    source = PRESS_SOURCE if text is None else text.name
    prose = press_text() if text is None else read_text(text)
    opened = open_model(model)
    settings = Settings(tokens=tokens, seed=seed)
    found = measure(
        opened, prose, source, settings, parts=only or PARTS, folder=folder, device=device, progress=progress
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_evidence(found, folder, html(found))
    verdicts = verdicts_of(found)
    verdicts.write(folder / "verdicts.json")
    reason = _why_not_kept(found, verdicts, opened)
    if not verdicts.kinds or (reason and not keep):
        return Collected(found, verdicts, summary(found), None, f"Not kept for show and explain: {reason}")
    return Collected(found, verdicts, summary(found), keep_verdicts(verdicts), "Kept: show and explain quote it.")


def _why_not_kept(found: Evidence, verdicts: Verdicts, model: Model) -> str:
    """Why verdicts are not what `show` should quote unasked; empty if they are: a quick look is no measurement."""
    if not verdicts.kinds:
        return "nothing that was measured judges a list."
    tokens, measures = found.method["tokens"], found.method["measures"]
    if tokens < Settings.tokens or len(measures) < len(PARTS):
        share = "every measure" if len(measures) == len(PARTS) else ", ".join(measures)
        usual = f"the usual run takes {Settings.tokens:,} tokens and every measure"
        return f"it is a small run ({tokens:,} tokens, {share}; {usual}). --keep keeps it."
    known = known_verdicts(verdicts.model["bytes"], lambda: model.fingerprint)
    if known and (len(verdicts.kinds), tokens) < (len(known.kinds), known.method.get("tokens", 0)):
        return f"what is known rests on more ({known.basis}). --keep keeps it all the same."
    return ""
