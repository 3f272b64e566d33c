"""Invented verdicts on an invented model, for tests of what is shown next to words."""

from typing import Any

from zeropass.records.verdicts import Verdict, Verdicts

SHA = "ab" * 32
METHOD = {"date": "2030-01-01", "text": "made up", "tokens": 100}


def verdict(role: str, frame: str, layer: int, above: bool = True) -> Verdict:
    measure, target = ("attention", "offset 16") if role == "qk" else ("reading", "current")
    return Verdict(role, frame, layer, measure, target, "spearman", 0.28 if above else 0.02, 0.01, 20, above)


def verdicts(*kinds: Verdict, sha256: str = SHA, size: int = 7, **more: Any) -> Verdicts:
    return Verdicts({"name": "m", "sha256": sha256, "bytes": size}, METHOD | more, kinds)
