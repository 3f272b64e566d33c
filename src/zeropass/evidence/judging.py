"""The verdicts that evidence gives: which results judge a list, and against which null."""

import math
import re

from zeropass.evidence.results import Evidence, Result
from zeropass.records.verdicts import JUDGES, Verdict, Verdicts

__all__ = ["verdicts_of"]

METRIC = "spearman"

WRONG_LISTS = ("permuted", "rotated")
"""The nulls that give a parameter a wrong list; a verdict states the stronger of them."""


def verdicts_of(evidence: Evidence) -> Verdicts:
    """Return the verdicts that evidence gives: one for each result that `JUDGES` names, with its stronger null."""
    verdicts = []
    for result in evidence.results:
        nulls = [null.mean for null in result.nulls if null.name in WRONG_LISTS]
        if _judges(result) and nulls and all(map(math.isfinite, (result.value, *nulls))):
            verdicts.append(_of_result(result, max(nulls)))
    return Verdicts(dict(evidence.model), dict(evidence.method), tuple(verdicts))


def _judges(result: Result) -> bool:
    """Tell whether a result judges its kind of list: by the judging metric, in one layer, from at least one item."""
    if result.metric != METRIC or result.layer < 0 or result.n < 1:
        return False
    return any(
        result.role in roles
        and result.frame in frames
        and result.measure == measure
        and re.fullmatch(target, result.target) is not None
        for roles, frames, measure, target in JUDGES
    )


def _of_result(result: Result, null: float) -> Verdict:
    return Verdict(
        role=result.role,
        frame=result.frame,
        layer=int(result.layer),
        measure=result.measure,
        target=result.target,
        metric=result.metric,
        value=float(result.value),
        null=float(null),
        n=int(result.n),
        above=bool(result.above),
    )
