"""What a comparison comes to, in a few sentences that stand alone."""

from collections import defaultdict

from zeropass.delta.results import Diff, MatrixChange, Standout
from zeropass.vocab import shown_text

__all__ = ["verdict"]


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
    if found.added or found.removed:
        lines.append(f"{len(found.added)} tokens were added, {len(found.removed)} taken away.")
    if found.sees and found.writes:
        lines.append(f"It acts most where it sees {_words(found.sees)}, and most on writing {_words(found.writes)}.")
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
        f"The blocks changed by {found.relative:.2%} of their length, in {len(by_layer)} layers; most in layers "
        f"{', '.join(map(str, layers))} and in {role} ({mean:.2%})."
    )


def _kind(changed: list[MatrixChange]) -> str:
    ranks = sorted(one.rank for one in changed)
    middle = ranks[len(ranks) // 2]
    kind = "a few directions hold each change" if middle < 10 else "each change is spread over many directions"
    return f"Median effective rank {middle:.1f}: {kind}."


def _words(standouts: tuple[Standout, ...]) -> str:
    return ", ".join(shown_text(one.token.token) for one in standouts[:3])
