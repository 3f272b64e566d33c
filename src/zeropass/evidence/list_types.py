"""The kinds of list that evidence judges, the results that judge them, and the order in which they are shown.

A kind of list is a role read in a frame; `own_target` gives the target that its lists claim to describe. The tables,
the summary and the figures select their results here.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zeropass.arch.frame_names import USUAL_OFFSET

if TYPE_CHECKING:
    from zeropass.evidence.results import Evidence, Result

__all__ = ["MAIN_FRAMES", "METRIC", "Kind", "base", "frame_order", "inverse_lines", "is_main", "kinds"]
__all__ += ["layer_results", "own_target", "primary", "role_order"]

METRIC = {"states": "recall", "pairs": "jaccard", "inverses": "correlation"}
"""The metric by which a measure is shown first; ``spearman`` for all others."""

MAIN_FRAMES = ("token", "seen", "output", "effect", "distinctive", "paper")
"""The frames in which lists are judged; any other name is a variant, shown only where frames are compared."""

_ROLES = ("gate", "up", "key", "q", "k", "v", "mixer_in", "value", "o", "mixer_out", "vo", "qk")
_PAIRS = ("key-value", "gate-up", "gate-value", "up-value", "v-o", "q-k")
_JUDGED = ("reading", "writing", "promotes", "attention")
_TARGETS = {"writing": "logits", "promotes": "logits", "attention": f"offset {USUAL_OFFSET}"}


@dataclass(frozen=True)
class Kind:
    """A kind of list: a role read in one frame, with the measure and target that judge it."""

    measure: str
    role: str
    frame: str
    target: str


def is_main(measure: str, frame: str) -> bool:
    """Tell whether the library itself shows lists of a frame, rather than for comparison alone."""
    return frame in MAIN_FRAMES and (measure, frame) != ("writing", "token")


def own_target(measure: str, frame: str) -> str | None:
    """Return the target that a list claims to describe, by which it is judged; None if the measure judges no list."""
    if measure == "reading":
        return "predicted" if base(frame) == "output" else "current"
    return _TARGETS.get(measure)


def kinds(evidence: "Evidence") -> "dict[Kind, dict[int, Result]]":
    """Return the results of every judged kind of list by layer, sorted by measure, frame and role."""
    results: dict[Kind, dict[int, Result]] = {}
    rotary = _rotary_layers(evidence)
    for result in evidence.results:
        if result.metric == "spearman" and result.measure in _JUDGED and result.layer >= 0:
            target = _judging(result, rotary)
            if result.target == target:
                list_type = Kind(measure=result.measure, role=result.role, frame=result.frame, target=target)
                results.setdefault(list_type, {})[result.layer] = result
    return {list_type: dict(sorted(results[list_type].items())) for list_type in sorted(results, key=_list_type_order)}


def primary(evidence: "Evidence", measure: str, target: str | None = None) -> "tuple[Result, ...]":
    """Return the results by which a measure is shown first: those of its metric, in the main frames, for one target.

    Args:
        evidence: The evidence.
        measure: A measure of `MEASURES`.
        target: The target; without it, the target that judges each list, or every target if none does.
    """
    metric, rotary = METRIC.get(measure, "spearman"), _rotary_layers(evidence)
    results = (
        r for r in evidence.select(measure=measure, metric=metric) if is_main(r.measure, r.frame) and r.layer >= 0
    )
    return tuple(r for r in results if r.target == (target or _judging(r, rotary) or r.target))


def _rotary_layers(evidence: "Evidence") -> frozenset[int]:
    """Return the layers with rotary positions: those whose attention was measured at the usual offset."""
    return frozenset(r.layer for r in evidence.results if r.target == _TARGETS["attention"])


def _judging(result: "Result", rotary: frozenset[int]) -> str | None:
    """Return the target that judges a result.

    This is `own_target`, except for attention without rotary positions or by the paper's formulas: those have only
    offset 0.
    """
    if result.measure == "attention" and (result.layer not in rotary or base(result.frame) == "paper"):
        return "offset 0"
    return own_target(result.measure, result.frame)


def layer_results(results: "Iterable[Result]") -> "dict[tuple[str, str], list[Result]]":
    """Return the results by role and frame, in the order in which they are shown, each list sorted by layer."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in sorted(results, key=lambda r: (role_order(r.role), frame_order(r.frame), r.layer)):
        groups.setdefault((result.role, result.frame), []).append(result)
    return groups


def inverse_lines(evidence: "Evidence") -> "dict[tuple[str, str], list[tuple[int, Result]]]":
    """Return the pairs (k, result) by (kind of vector, inverse), from targets such as ``transpose, k=1000``."""
    lines: dict[tuple[str, str], list[tuple[int, Result]]] = {}
    for result in evidence.select(measure="inverses", metric="correlation"):
        parts = re.fullmatch(r"(.+), k=([1-9]\d{0,8})", result.target)
        if parts:
            lines.setdefault((result.role, parts[1]), []).append((int(parts[2]), result))
    return lines


def base(frame: str) -> str:
    """Return the frame of which a frame is a variant: ``token`` for ``token.half``."""
    return frame.split(".")[0]


def _place(name: str, known: Sequence[str]) -> int:
    """Return the place of a name among those known, or one after the last."""
    return known.index(name) if name in known else len(known)


def role_order(role: str) -> tuple[int, str]:
    """Return a sort key: reading roles before writing roles, unknown names last."""
    return _place(role, _ROLES + _PAIRS), role


def frame_order(frame: str) -> tuple[int, str]:
    """Return a sort key: `MAIN_FRAMES` first, each followed by its variants."""
    return _place(base(frame), MAIN_FRAMES), frame


def _list_type_order(list_type: Kind) -> tuple[int, tuple[int, str], tuple[int, str]]:
    return _place(list_type.measure, _JUDGED), frame_order(list_type.frame), role_order(list_type.role)
