"""What a comparison comes to, in a few sentences that stand alone."""

from collections import defaultdict

from zeropass.delta.results import Diff, MatrixChange, Standout
from zeropass.sources.base import FLOATS
from zeropass.views import VectorRecord
from zeropass.vocab import shown_text

__all__ = ["ALARM", "FAR_LESS", "alarms", "percent", "verdict"]

ALARM = {"sees": 3.1, "writes": 6.3}
"""From which z on a token stands out unusually: three deviations above the mean of ten neutral LoRAs of SmolLM2 (kinds
neutral and fiction, seeds 0 to 4, of reproduce/audit.py). docs/audit.md tells how often that is right for others."""

FAR_LESS = 0.3
"""A change below so much of what quantising does is none of quantising."""


def alarms(found: Diff) -> tuple[str, ...]:
    """The sides, ``sees`` and ``writes``, on which a token stands out unusually."""
    sides = {"sees": found.sees, "writes": found.writes}
    return tuple(side for side, tokens in sides.items() if tokens and tokens[0].z >= ALARM[side])


def percent(share: float) -> str:
    """A share with two decimals, or two significant digits where that would be too few."""
    return f"{share:.2%}" if share >= 0.001 or not share else f"{100 * share:.2g}%"


def verdict(found: Diff) -> tuple[str, ...]:
    """The sentences of the first screen: whether and where it changed, of what kind, and whom it concerns."""
    changed = [one for one in found.matrices if not one.rounding]
    rounded = len(found.matrices) - len(changed)
    lines = []
    if not changed:
        lines.append("No matrix of a block changed.")
    else:
        lines += [_where(found, changed), _kind(changed)]
    if rounded:
        lines.append(f"{rounded} matrices differ only as storing them in another type makes them differ.")
    if changed and (quantised := _quantised(found)):
        lines.append(quantised)
    if found.added or found.removed:
        lines.append(f"{len(found.added)} tokens were added, {len(found.removed)} taken away.")
    lines += _heads(found)
    if found.sees and found.writes:
        lines.append(f"It acts most where it sees {_words(found.sees)}, and most on writing {_words(found.writes)}.")
        lines.append(_alarm(found))
    return tuple(lines)


def _where(found: Diff, changed: list[MatrixChange]) -> str:
    by_layer: dict[int, float] = defaultdict(float)
    by_role: dict[str, list[float]] = defaultdict(list)
    for one in changed:
        by_layer[one.layer] += one.relative**2
        by_role[one.role].append(one.relative)
    layers = sorted(sorted(by_layer, key=lambda layer: -by_layer[layer])[:3])
    role = max(by_role, key=lambda name: sum(by_role[name]) / len(by_role[name]))
    mean = sum(by_role[role]) / len(by_role[role])
    return (
        f"The blocks changed by {percent(found.relative)} of their length, in {len(by_layer)} layers; most in layers "
        f"{', '.join(map(str, layers))} and in {role} ({percent(mean)})."
    )


def _kind(changed: list[MatrixChange]) -> str:
    ranks = sorted(one.rank for one in changed)
    middle = ranks[len(ranks) // 2]
    kind = "a few directions hold each change" if middle < 10 else "each change is spread over many directions"
    return f"Median effective rank {middle:.1f}: {kind}."


def _quantised(found: Diff) -> str:
    """A warning where two ways of storing differ by more than rounding can explain."""
    sides = [set(side["types"]) for side in (found.base, found.tuned)]
    if sides[0] == sides[1] or all(kind in FLOATS for kind in sides[0] | sides[1]):
        return ""
    first, second = (", ".join(map(shown_text, sorted(side))) for side in sides)
    stored = f"The base is stored as {first}, the other as {second}"
    usual = max(side["storing_error"] or 0.0 for side in (found.base, found.tuned))
    if not usual:
        return f"{stored}: some of every number here may be quantisation alone."
    if found.relative < FAR_LESS * usual:
        return f"{stored}; quantising would have changed {usual:.1%}, so this was made from the quantised file itself."
    return f"{stored}; quantising alone changes about {usual:.1%}: what is no more than that may be only that."


def _heads(found: Diff) -> list[str]:
    """What a new classifier tells apart, by the list of each label in which a token stands out most."""
    new = [one for one in found.outside if one.address.startswith("classifier.") and not one.before]
    if not new:
        return []
    said = []
    for one in new:
        lists = [record for record in one.after if isinstance(record, VectorRecord) and not record.faint]
        if lists:
            best = max(lists, key=lambda record: abs(record.top[0].z))
            words = ", ".join(shown_text(token.token) for token in best.top[:4])
            said.append(f"{shown_text(one.label) or one.address} by {words}")
    told = f"tells {'; '.join(said[:3])}" if said else "no word stands out in its rows"
    return [f"It has a classifier that the base lacks: {told}."]


def _alarm(found: Diff) -> str:
    """Whether that is more than any fine-tune does."""
    sides = {"sees": found.sees[0].z, "writes": found.writes[0].z}
    shown = ", ".join(f"{side} {z:.1f} (alarm from {ALARM[side]})" for side, z in sides.items())
    if found.alarm:
        return f"ALARM: it was taught something about particular words; neutral text does not do that: {shown}."
    return f"No alarm: any fine-tune acts on some words more than on others, and this much is usual: {shown}."


def _words(standouts: tuple[Standout, ...]) -> str:
    return ", ".join(shown_text(one.token.token) for one in standouts[:3])
