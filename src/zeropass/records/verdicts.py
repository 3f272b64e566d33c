"""Which kinds of list hold on a running model, layer by layer: what stands beside the words of a parameter. No torch.

A verdict is about a kind (a role in a frame) and a layer, never about one parameter. Verdicts are known for a model
once `zeropass evidence` has measured it: they are kept in the cache as ``evidence/{bytes}-{sha256}.json``, both of the
weights; those of some models come with the package. An atlas or a lens finds them by that hash, or else by the hash of
the values (`zeropass.model.identity`), which files of other formats share.
"""

import json
import math
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from zeropass._io.atomic import atomic_write, make_folder
from zeropass._io.parse import holding, load_json
from zeropass.arch.spec import FRAMES, MAP_ROLES, READ_ROLES, WRITE_ROLES
from zeropass.checkpoints.demo import cache_folder
from zeropass.errors import BadOption
from zeropass.records.numbers import coefficient

__all__ = ["JUDGES", "Verdict", "Verdicts", "default_name", "footnote", "keep", "known_verdicts", "read_verdicts"]

SCHEMA_VERSION = 1
SHIPPED = Path(__file__).parent / "known"

JUDGES = (
    (READ_ROLES, ("token", "paper"), "reading", "current"),
    (READ_ROLES, ("output",), "reading", "predicted"),
    (WRITE_ROLES, ("output", "paper"), "writing", "logits"),
    (("vo",), FRAMES, "promotes", "logits"),
    (("qk",), FRAMES, "attention", r"offset \d+"),
)
"""The measure and target (a pattern) that judge the lists of some roles and frames, always by rank correlation."""

_NAME = re.compile(r"([0-9]{1,18})-([0-9a-f]{64})\.json")


@dataclass(frozen=True)
class Verdict:
    """How well the lists of one role, frame and layer hold on a text, and whether that is above chance.

    ``value`` is the mean of ``metric`` over ``n`` vectors or heads, ``null`` the same for wrong lists (the stronger
    null), ``above`` whether the value lies above every such null with its whole bootstrap interval. ``basis`` says what
    it was measured on; `Verdicts.of` adds it.
    """

    role: str
    frame: str
    layer: int
    measure: str
    target: str
    metric: str
    value: float
    null: float
    n: int
    above: bool
    basis: str = ""

    @property
    def kind(self) -> str:
        """What it is about, which is never one parameter: ``gate lists of layer 29``."""
        return f"{self.role} {'maps' if self.role in MAP_ROLES else 'lists'} of layer {self.layer}"

    @property
    def words(self) -> str:
        """The verdict as it stands beside a heading."""
        if self.above:
            return f"{self.kind} on text {coefficient(self.value)} (chance {coefficient(self.null)})"
        return f"{self.kind} not above chance on text ({coefficient(self.value)}, chance {coefficient(self.null)})"


@dataclass(frozen=True)
class Verdicts:
    """All verdicts on one model, with what was measured and how (`Evidence.model` and `Evidence.method`).

    ``by_values``: they were found for another file than the one that was measured, which holds the same values.
    """

    model: dict[str, Any]
    method: dict[str, Any]
    kinds: tuple[Verdict, ...]
    by_values: bool = False

    @cached_property
    def basis(self) -> str:
        """What they rest on: how many tokens of which text, how many lists, when; some measures only, another file."""
        tokens, text, date = (self.method.get(name) for name in ("tokens", "text", "date"))
        parts = [f"{tokens:,} tokens" if type(tokens) is int else "", f"of {text}" if text else ""]
        counts, measures = sorted({kind.n for kind in self.kinds}), sorted({kind.measure for kind in self.kinds})
        ends = dict.fromkeys((counts[0], counts[-1])) if counts else ()
        more = [f"n = {' to '.join(map(str, ends))} a layer" if ends else "", str(date or "")]
        more += [f"by {', '.join(measures)}" if set() < set(measures) < {judge[2] for judge in JUDGES} else ""]
        more += [f"in another file of the same values, {self.model.get('name')}" if self.by_values else ""]
        return ", ".join(part for part in (" ".join(filter(None, parts)), *more) if part)

    def of(self, role: str, frame: str, layer: int, offset: int = 0) -> Verdict | None:
        """The verdict on the lists of a role, frame and layer, for qk at an offset, if there is one."""
        return self._by_kind.get((role, frame, layer, f"offset {offset}" if role == "qk" else ""))

    @cached_property
    def _by_kind(self) -> dict[tuple[str, str, int, str], Verdict]:
        kinds = [replace(kind, basis=self.basis) for kind in self.kinds]
        return {(k.role, k.frame, k.layer, k.target if k.role == "qk" else ""): k for k in kinds}

    def to_json(self) -> dict[str, Any]:
        """A dict that json.dumps takes as it is."""
        stored = {key: value for key, value in asdict(self).items() if key != "by_values"}
        kinds = [{key: value for key, value in kind.items() if key != "basis"} for kind in stored["kinds"]]
        return {"schema": SCHEMA_VERSION, **stored, "kinds": kinds}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Verdicts":
        """The same from its JSON; raises KeyError, TypeError or ValueError if it is something else."""
        if value["schema"] != SCHEMA_VERSION:
            raise ValueError(f"schema is {value['schema']!r}, not {SCHEMA_VERSION}")
        model, method = (_checked(value[name], dict, name) for name in ("model", "method"))
        for name, kind in (("sha256", str), ("bytes", int)):
            _checked(model[name], kind, f"model.{name}")
        if model.get("values_sha256") is not None:
            _checked(model["values_sha256"], str, "model.values_sha256")
        return cls(model, method, tuple(_verdict(one) for one in value["kinds"]))

    def write(self, path: Path) -> None:
        """Write the JSON whole or not at all. Raises BadOption, naming the file, where that is not possible."""
        make_folder(path.parent, BadOption)
        with atomic_write(path, BadOption) as temporary:
            temporary.write_text(json.dumps(self.to_json(), allow_nan=False) + "\n", encoding="utf-8")


def default_name(model: str) -> str:
    """A folder's name for a model: the last part of what the user called it, without what paths cannot hold."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", Path(model).name.removesuffix(".gguf")).strip(".-") or "model"


def read_verdicts(path: Path) -> Verdicts:
    """The verdicts in a file. Raises BadOption, naming the file, if it holds something else."""
    with holding(path, "verdicts"):
        return Verdicts.from_json(load_json(path))


def known_verdicts(
    size: int | None,
    fingerprint: Callable[[], str],
    layers: int | None = None,
    values: Callable[[], str | None] = lambda: None,
) -> Verdicts | None:
    """What is known of a model, from the cache or else from the package; None if it was never measured.

    size: of its weight files in bytes, if known. fingerprint: gives their SHA-256; it is called only where the size
    fits something known, because hashing gigabytes takes time. values: gives `identity.values_sha256`, by which the
    same weights in another file are found; it is called only where something known has as many ``layers``.
    """
    stored = list(_stored())
    fitting = [(sha256, path) for bytes_, sha256, path in stored if size in (None, bytes_)]
    wanted = fingerprint() if fitting else ""
    for path in (path for sha256, path in fitting if sha256 == wanted):
        if (found := _undamaged(path)) is not None:
            return found
    others = [one for _, _, path in stored if layers is not None and (one := _undamaged(path)) is not None]
    alike = [one for one in others if one.model.get("layers") == layers and one.model.get("values_sha256")]
    sought = values() if alike else None
    return next((replace(one, by_values=True) for one in alike if one.model["values_sha256"] == sought), None)


def _undamaged(path: Path) -> Verdicts | None:
    try:
        return read_verdicts(path)
    except BadOption:  # a damaged file must not keep words from being shown
        return None


def footnote(verdicts: Verdicts | None, model: str | None) -> str:
    """What a reader of lists must know once: what their verdicts rest on, or that there are none and how to get some.

    model: what `zeropass evidence` would call it; None where it cannot measure that.
    """
    if verdicts:
        agree = "rank correlation of all lists of a role and layer with the running model, beside that of wrong lists"
        return f"on text: {agree} (chance); measured on {verdicts.basis}."
    if model is None:
        return "No measurement of these weights is known."
    return f"No measurement of these weights is known: zeropass evidence {shlex.quote(model)} makes one."


def keep(verdicts: Verdicts, folder: Path | None = None) -> Path:
    """Keep verdicts in a folder (the cache), where `known_verdicts` finds them by their name; gives the file."""
    name = f"{verdicts.model.get('bytes')}-{verdicts.model.get('sha256')}.json"
    if not _NAME.fullmatch(name):
        raise BadOption(f"Verdicts are kept by size and SHA-256 of the weights, 64 hexadecimal digits; not {name!r}.")
    path = (folder or cache_folder() / "evidence") / name
    verdicts.write(path)
    return path


def _stored() -> Iterator[tuple[int, str, Path]]:
    """Bytes and SHA-256 of the weights of what is in the cache, then in the package, and its file."""
    for folder in (_cached(), SHIPPED):
        for path in folder.glob("*.json") if folder else ():
            if name := _NAME.fullmatch(path.name):
                yield int(name[1]), name[2], path


def _cached() -> Path | None:
    try:
        return cache_folder() / "evidence"
    except RuntimeError:  # this user has no home folder
        return None


def _verdict(value: dict[str, Any]) -> Verdict:
    found = Verdict(**value)
    if found.basis:
        raise ValueError("a kind has a basis of its own")
    for field in fields(Verdict):
        _checked(getattr(found, field.name), field.type, field.name)
    if not (math.isfinite(found.value) and math.isfinite(found.null)):
        raise ValueError("value or null is not finite")
    return found


def _checked(value: Any, kind: Any, name: str) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{name} is {value!r}, which is not a {kind.__name__}")
    return value
