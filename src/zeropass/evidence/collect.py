"""`zeropass evidence` as one call: open, measure, write the folder, keep the verdicts."""

from dataclasses import dataclass
from pathlib import Path

from rich.console import RenderableType

from zeropass.errors import BadOption
from zeropass.evidence.listening import Progress
from zeropass.evidence.measure import PARTS, Settings, measure, write_evidence
from zeropass.evidence.report import html, summary
from zeropass.evidence.results import Evidence
from zeropass.evidence.verdicts import Verdicts, judge, keep, known_verdicts
from zeropass.model import Model, open_model
from zeropass.sources.text import PRESS_SOURCE, press_text, read_text

__all__ = ["Collected", "collect_evidence"]


@dataclass(frozen=True)
class Collected:
    """An evidence with what is said of it: verdicts on each kind of list, and a summary for a terminal."""

    evidence: Evidence
    verdicts: Verdicts
    summary: RenderableType


def collect_evidence(
    model: str,
    text: Path | None,
    folder: Path,
    *,
    tokens: int = Settings.tokens,
    only: tuple[str, ...] | None = None,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress = lambda *_: None,
) -> Collected:
    """Measure a model and write ``folder``; the verdicts also go to the cache, where `show` and `explain` find them.

    text: a file, or None for newspaper prose. only: some of the measures. Raises BadOption for a folder that holds
    something else, a text that cannot be used, or a measure that does not exist.
    """
    _require_ours(folder)
    source = PRESS_SOURCE if text is None else text.name
    prose = press_text() if text is None else read_text(text)
    opened = open_model(model)
    settings = Settings(tokens=tokens, seed=seed)
    found = measure(
        opened, prose, source, settings, parts=only or PARTS, folder=folder, device=device, progress=progress
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_evidence(found, folder, html(found))
    verdicts = judge(found)
    verdicts.write(folder / "verdicts.json")
    _keep_if_better(verdicts, opened)
    return Collected(found, verdicts, summary(found))


def _keep_if_better(verdicts: Verdicts, model: Model) -> None:
    """A quick look at fewer tokens, or at some measures, does not replace what is known from more."""
    known = known_verdicts(verdicts.model["bytes"], lambda: model.fingerprint)
    size = (len(verdicts.kinds), verdicts.method["tokens"])
    if verdicts.kinds and (known is None or size >= (len(known.kinds), known.method.get("tokens", 0))):
        keep(verdicts)


def _require_ours(folder: Path) -> None:
    """BadOption for a folder that holds something other than evidence, finished or begun."""
    if not folder.exists():
        return
    ours = any((folder / name).exists() for name in ("evidence.json", "parts"))
    if not folder.is_dir() or (not ours and any(folder.iterdir())):
        raise BadOption(f"{folder} exists and does not hold evidence; give another --out.")
