"""What in an evidence judges which kind of list, and in which order kinds are shown. No figure, no page.

A kind of list is a role read in a frame; `own_target` says what its lists claim to be about. Tables, summary and
figures are made from what is chosen here.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from zeropass.arch.spec import USUAL_OFFSET
from zeropass.evidence.results import Evidence, Result

__all__ = ["MAIN_FRAMES", "METRIC", "Kind", "base", "frame_order", "inverse_lines", "is_main", "kinds"]
__all__ += ["layer_results", "own_target", "primary", "role_order"]

METRIC = {"states": "recall", "pairs": "jaccard", "inverses": "correlation"}
"""The metric a measure is shown by first; ``spearman`` for the rest."""

MAIN_FRAMES = ("token", "output", "paper")
"""Frames a list is judged in; any other name is a variant, drawn only where frames are compared."""

_ROLES = ("gate", "up", "key", "q", "k", "v", "value", "o", "vo", "qk")
_PAIRS = ("key-value", "gate-up", "gate-value", "up-value", "v-o", "q-k")
_JUDGED = ("reading", "writing", "promotes", "attention")
_TARGETS = {"writing": "logits", "promotes": "logits", "attention": f"offset {USUAL_OFFSET}"}


@dataclass(frozen=True)
class Kind:
    """A kind of list: a role read in one frame, and what it is judged by."""

    measure: str
    role: str
    frame: str
    target: str


def is_main(measure: str, frame: str) -> bool:
    """Whether the library makes lists of this frame itself, rather than for comparison alone."""
    return frame in MAIN_FRAMES and (measure, frame) != ("writing", "token")


def own_target(measure: str, frame: str) -> str | None:
    """What a list claims to be about, so what it is judged by; None for measures that judge no list."""
    if measure == "reading":
        return "predicted" if base(frame) == "output" else "current"
    return _TARGETS.get(measure)


def kinds(evidence: Evidence) -> dict[Kind, dict[int, Result]]:
    """Every kind of list that was judged, with its results by layer, sorted by measure, frame and role."""
    found: dict[Kind, dict[int, Result]] = {}
    rotary = _rotary_layers(evidence)
    for result in evidence.results:
        if result.metric == "spearman" and result.measure in _JUDGED and result.layer >= 0:
            target = _judging(result, rotary)
            if result.target == target:
                kind = Kind(result.measure, result.role, result.frame, target)
                found.setdefault(kind, {})[result.layer] = result
    return {kind: dict(sorted(found[kind].items())) for kind in sorted(found, key=_kind_order)}


def primary(evidence: Evidence, measure: str, target: str | None = None) -> tuple[Result, ...]:
    """The results that a measure is shown by first: its metric, main frames, and one target (each frame's own)."""
    metric, rotary = METRIC.get(measure, "spearman"), _rotary_layers(evidence)
    chosen = (
        r for r in evidence.select(measure=measure, metric=metric) if is_main(r.measure, r.frame) and r.layer >= 0
    )
    return tuple(r for r in chosen if r.target == (target or _judging(r, rotary) or r.target))


def _rotary_layers(evidence: Evidence) -> frozenset[int]:
    """Layers whose attention was measured at the usual offset, so whose positions are rotary."""
    return frozenset(r.layer for r in evidence.results if r.target == _TARGETS["attention"])


def _judging(result: Result, rotary: frozenset[int]) -> str | None:
    """`own_target`; attention where no position is rotary, or by the paper's formulas, knows offset 0 alone."""
    if result.measure == "attention" and (result.layer not in rotary or base(result.frame) == "paper"):
        return "offset 0"
    return own_target(result.measure, result.frame)


def layer_results(results: Iterable[Result]) -> dict[tuple[str, str], list[Result]]:
    """Results by role and frame, sorted in the order they are shown in, each list by layer."""
    found: dict[tuple[str, str], list[Result]] = {}
    for result in sorted(results, key=lambda r: (role_order(r.role), frame_order(r.frame), r.layer)):
        found.setdefault((result.role, result.frame), []).append(result)
    return found


def inverse_lines(evidence: Evidence) -> dict[tuple[str, str], list[tuple[int, Result]]]:
    """``(kind of vector, inverse) -> (k, result)``, out of targets such as ``transpose, k=1000``."""
    found: dict[tuple[str, str], list[tuple[int, Result]]] = {}
    for result in evidence.select(measure="inverses", metric="correlation"):
        parts = re.fullmatch(r"(.+), k=([1-9]\d{0,8})", result.target)
        if parts:
            found.setdefault((result.role, parts[1]), []).append((int(parts[2]), result))
    return found


def base(frame: str) -> str:
    """What a frame is a variant of: ``token`` for ``token.half``."""
    return frame.split(".")[0]


def _place(name: str, known: Sequence[str]) -> int:
    return known.index(name) if name in known else len(known)


def role_order(role: str) -> tuple[int, str]:
    """A sort key: what reads before what writes, and names that are not known last."""
    return _place(role, _ROLES + _PAIRS), role


def frame_order(frame: str) -> tuple[int, str]:
    """A sort key: `MAIN_FRAMES` first, each followed by its variants."""
    return _place(base(frame), MAIN_FRAMES), frame


def _kind_order(kind: Kind) -> tuple[int, tuple[int, str], tuple[int, str]]:
    return _place(kind.measure, _JUDGED), frame_order(kind.frame), role_order(kind.role)
