"""A comparison as SARIF 2.1.0 (OASIS 2023), which code scanning of repositories shows beside the files."""

from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from zeropass.diff.findings import Answer
from zeropass.diff.results import Diff
from zeropass.diff.verdict import meaning, where
from zeropass.tokens.shown import shown_text

__all__ = ["sarif"]

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
PLACED = 3
"""The number of words whose matrices are named."""


class _Rule(NamedTuple):
    """A rule: its id, its level, and what breaks it."""

    id: str
    level: str
    short: str


RULES: dict[Answer, _Rule] = {
    "narrow": _Rule("zeropass/narrow-change", "error", "Few words stand out in what the change writes."),
    "topic": _Rule("zeropass/topic-change", "warning", "Many words stand out in what the change writes."),
    "unjudged": _Rule("zeropass/unjudged-change", "note", "It cannot be told from the weights what was changed."),
}
"""The rules by the answer that breaks them; a change that is nothing in particular breaks none."""


def sarif(difference: Diff, place: str | Path) -> dict[str, Any]:
    """Return a comparison as a SARIF log with a result for each finding: at most one.

    Args:
        difference: The comparison.
        place: The folder or the file of what was compared with the base, as paths of the repository are written.
    """
    rules = [
        {
            "id": rule.id,
            "shortDescription": {"text": rule.short},
            "fullDescription": {"text": rule.short},
            "help": {"text": "zeropass diff BASE TUNED --out FOLDER writes the whole report; see docs/audit.md."},
            "defaultConfiguration": {"level": rule.level},
        }
        for rule in RULES.values()
    ]
    driver = {"name": "zeropass", "version": difference.made.get("zeropass", ""), "rules": rules}
    run = {"tool": {"driver": driver}, "results": _results(difference, Path(place)), "columnKind": "unicodeCodePoints"}
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _results(difference: Diff, place: Path) -> list[dict[str, Any]]:
    answer = difference.finding.answer
    if difference.relation in ("equal", "rounded") or answer not in RULES:
        return []
    rule, uri = RULES[answer], _uri(difference, place)
    words = [f"{shown_text(word.token.token)}: {where(word)}." for word in difference.writes[:PLACED] if word.places]
    text = " ".join(part for part in (*difference.verdict, *words, meaning(difference)) if part)
    return [
        {
            "ruleId": rule.id,
            "ruleIndex": list(RULES).index(answer),
            "level": rule.level,
            "message": {"text": text},
            "locations": [{"physicalLocation": {"artifactLocation": {"uri": uri}, "region": {"startLine": 1}}}],
            "partialFingerprints": {"change/v1": str(difference.tuned["sha256"])},
        }
    ]


def _uri(difference: Diff, place: Path) -> str:
    """Return the URI of the file of weights: relative for a path below this folder, as code scanning wants it."""
    weights = [name for name in difference.tuned.get("files", {}) if not name.endswith(".json")]
    path = place if not weights or place.name == weights[0] else place / weights[0]
    if path.is_absolute():
        here = Path.cwd()
        return quote(path.relative_to(here).as_posix()) if path.is_relative_to(here) else path.as_uri()
    return quote(path.as_posix())
