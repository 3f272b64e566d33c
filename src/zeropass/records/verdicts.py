"""Verdicts: which types of list hold on a running model, layer by layer (docs/evidence.md).

A verdict is about the lists of a role, frame and layer, never about one parameter. `zeropass evidence` measures a model
and keeps its verdicts in the cache as ``evidence/{bytes}-{sha256}.json``, size and hash of the weights; the package
contains those of some models. An atlas or a lens finds them by that hash, or else by the hash of the values
(`zeropass.model.identity`), which files of other formats share. Nothing here imports torch.
"""

import math
import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from zeropass._io.atomic import make_folder, write_json
from zeropass._io.parse import holding, load_json
from zeropass._io.short_repr import ShortRepr
from zeropass.arch.frame_names import ALL_FRAMES, FRAMES, LENS_FRAMES
from zeropass.arch.roles import MAP_ROLES, READ_ROLES, WRITE_ROLES
from zeropass.checkpoints.demo import cache_folder
from zeropass.errors import BadOption
from zeropass.records.numbers import coefficient
from zeropass.records.panels import AsFigures, Curve, Curves, Panel, token_label
from zeropass.records.tabular import AsTable, Row, Several, plain_fields

__all__ = ["JUDGES", "Verdict", "Verdicts", "default_name", "footnote", "keep", "known_verdicts", "read_verdicts"]

SCHEMA_VERSION = 1
SHIPPED = Path(__file__).parent / "known"

JUDGES = (
    (READ_ROLES, ("token", "seen", "paper"), "reading", "current"),
    (READ_ROLES, ("output",), "reading", "predicted"),
    (WRITE_ROLES, ("output", "effect", "distinctive", "paper"), "writing", "logits"),
    (("vo",), (*FRAMES, "seen"), "promotes", "logits"),
    (("qk",), (*FRAMES, "seen"), "attention", r"offset \d+"),
)
"""Roles, frames, and the measure and target (a pattern) that judge their lists, always by rank correlation."""

_NAME = re.compile(r"([0-9]{1,18})-([0-9a-f]{64})\.json")


@dataclass(frozen=True, repr=False)
class Verdict(ShortRepr):
    """The agreement of the lists of one role, frame and layer with a text, and whether it is above the null.

    Attributes:
        value: The mean of ``metric`` over ``n`` vectors or heads.
        null: The same for wrong lists, by the stronger null.
        above: True if the whole bootstrap interval of the value lies above every such null.
        basis: What it was measured on; `Verdicts.of` adds it.
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
        """The lists that the verdict is about, never those of one parameter: ``gate lists of layer 29``."""
        return f"{self.role} {'maps' if self.role in MAP_ROLES else 'lists'} of layer {self.layer}"

    @property
    def words(self) -> str:
        """The verdict as text next to a heading."""
        value, null = coefficient(self.value), coefficient(self.null)
        measured = f"{self.kind}: correlation {value}"
        return f"{measured} (null {null})" if self.above else f"{measured}, not above the null ({null})"


@dataclass(frozen=True, repr=False)
class Verdicts(Several[Verdict], ShortRepr, AsTable, AsFigures):
    """All verdicts on one model: a sequence of them.

    Attributes:
        model: The model that was measured (`Evidence.model`).
        method: How it was measured (`Evidence.method`).
        kinds: One verdict for each role, frame and layer; for ``qk`` one for each offset.
        by_values: True if another file was measured, which holds the same values.
    """

    model: dict[str, Any]
    method: dict[str, Any]
    kinds: tuple[Verdict, ...]
    by_values: bool = False

    _ITEMS = "kinds"

    def table_rows(self) -> Iterator[Row]:
        """Yield a row for each verdict."""
        yield from map(plain_fields, self.kinds)

    def panels(self) -> Iterator[Panel]:
        """Yield for each role the value of every frame by layer, hollow where it is not above its null in grey."""
        panels: dict[str, dict[str, list[Verdict]]] = {}
        for verdict in self.kinds:
            title = f"{verdict.role}, {verdict.target}" if verdict.role == "qk" else verdict.role
            panels.setdefault(title, {}).setdefault(verdict.frame, []).append(verdict)
        for title, frames in panels.items():
            measured = [_curve(token_label(frame), verdicts) for frame, verdicts in frames.items()]
            nulls = [_curve("", verdicts, null=True) for verdicts in frames.values()]
            nulls[0] = replace(nulls[0], name="null of each")
            yield Curves(title=title, x="layer", y="correlation", curves=[*measured, *nulls], groups=ALL_FRAMES)

    @cached_property
    def basis(self) -> str:
        """The text, tokens, lists and date that the verdicts rest on; the measures if not all, the file if another."""
        tokens, text, date = (self.method.get(name) for name in ("tokens", "text", "date"))
        parts = [f"{tokens:,} tokens" if type(tokens) is int else "", f"of {text}" if text else ""]
        counts = sorted({verdict.n for verdict in self.kinds})
        measures = sorted({verdict.measure for verdict in self.kinds})
        ends = dict.fromkeys((counts[0], counts[-1])) if counts else ()
        more = [f"n = {' to '.join(map(str, ends))} a layer" if ends else "", str(date or "")]
        more += [f"by {', '.join(measures)}" if set() < set(measures) < {judge[2] for judge in JUDGES} else ""]
        more += [f"in another file of the same values, {self.model.get('name')}" if self.by_values else ""]
        return ", ".join(part for part in (" ".join(filter(None, parts)), *more) if part)

    @property
    def lens(self) -> str:
        """The lens whose frames were measured, in words; empty if none was."""
        return str(self.method.get("lens", ""))

    def of(self, role: str, frame: str, layer: int, offset: int = 0, *, lens: str = "") -> Verdict | None:
        """Return the verdict on the lists of a role, frame and layer, if there is one.

        Args:
            role: The role.
            frame: The frame.
            layer: The layer.
            offset: The offset, for ``qk`` only.
            lens: The lens that the lists were made through, in words: a verdict holds for no other.
        """
        if frame in LENS_FRAMES and lens != self.lens:
            return None
        return self._by_list_type.get((role, frame, layer, f"offset {offset}" if role == "qk" else ""))

    @cached_property
    def _by_list_type(self) -> dict[tuple[str, str, int, str], Verdict]:
        """The verdicts, with their basis, by role, frame, layer and, for qk, target."""
        verdicts = [replace(verdict, basis=self.basis) for verdict in self.kinds]
        return {(v.role, v.frame, v.layer, v.target if v.role == "qk" else ""): v for v in verdicts}

    def to_json(self) -> dict[str, Any]:
        """Return a dict that json.dumps accepts."""
        stored = {key: value for key, value in asdict(self).items() if key != "by_values"}
        verdicts = [{key: value for key, value in verdict.items() if key != "basis"} for verdict in stored["kinds"]]
        return {"schema": SCHEMA_VERSION, **stored, "kinds": verdicts}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Verdicts":
        """Return verdicts from their JSON; raise KeyError, TypeError or ValueError if it is something else."""
        if value["schema"] != SCHEMA_VERSION:
            raise ValueError(f"schema is {value['schema']!r}, not {SCHEMA_VERSION}")
        model, method = (_checked(value[name], dict, name) for name in ("model", "method"))
        for name, expected_type in (("sha256", str), ("bytes", int)):
            _checked(model[name], expected_type, f"model.{name}")
        if model.get("values_sha256") is not None:
            _checked(model["values_sha256"], str, "model.values_sha256")
        return cls(model, method, tuple(_verdict(verdict) for verdict in value["kinds"]))

    def write(self, path: Path) -> None:
        """Write the JSON completely or not at all; raise BadOption, with the name of the file, if that fails."""
        make_folder(path.parent, BadOption)
        write_json(path, self.to_json())


def default_name(model: str) -> str:
    """Return a folder name for a model: the last part of its name, without characters that paths cannot hold."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", Path(model).name.removesuffix(".gguf")).strip(".-") or "model"


def read_verdicts(path: Path) -> Verdicts:
    """Return the verdicts in a file; raise BadOption, with the name of the file, if it holds something else."""
    with holding(path, "verdicts"):
        return Verdicts.from_json(load_json(path))


def known_verdicts(
    size: int | None,
    fingerprint: Callable[[], str],
    layers: int | None = None,
    values: Callable[[], str | None] = lambda: None,
) -> Verdicts | None:
    """Return the verdicts on a model from the cache or else from the package; None if it was never measured.

    Args:
        size: The size of its weight files in bytes, if known.
        fingerprint: Returns their SHA-256. Hashing gigabytes takes time, so it is called only if stored verdicts are
            on weights of this size.
        layers: The number of its layers; without it, verdicts are not looked up by values.
        values: Returns `identity.values_sha256`, by which the same weights in another file are found. It is called
            only if stored verdicts are on a model with as many layers.
    """
    stored = list(_stored())
    same_size = [(sha256, path) for bytes_, sha256, path in stored if size in (None, bytes_)]
    model_sha256 = fingerprint() if same_size else ""
    for path in (path for sha256, path in same_size if sha256 == model_sha256):
        if (verdicts := _undamaged(path)) is not None:
            return verdicts
    readable = [v for _, _, path in stored if layers is not None and (v := _undamaged(path)) is not None]
    same_depth = [v for v in readable if v.model.get("layers") == layers and v.model.get("values_sha256")]
    values_sha256 = values() if same_depth else None
    return next((replace(v, by_values=True) for v in same_depth if v.model["values_sha256"] == values_sha256), None)


def _undamaged(path: Path) -> Verdicts | None:
    """Return the verdicts in a file, or None if it is damaged; a file that stays as it is, is read once."""
    with suppress(OSError):
        stat = path.stat()
        return _read_once(path, stat.st_mtime_ns, stat.st_size)
    return None


@lru_cache(maxsize=32)
def _read_once(path: Path, _modified: int, _size: int) -> Verdicts | None:
    with suppress(BadOption):  # lists can be shown without verdicts, so a damaged file is no error
        return read_verdicts(path)
    return None


def footnote(verdicts: Verdicts | None, model: str | None, through: str = "") -> str:
    """Return a note for the reader of lists: their lens, and what their verdicts rest on or how to measure some.

    Args:
        verdicts: The verdicts on the model, if it was measured.
        model: The name of the model for `zeropass evidence`; None if that cannot measure it.
        through: A sentence on the lens; empty for the weights alone.
    """
    return " ".join(filter(None, (through, _measured(verdicts, model))))


def _measured(verdicts: Verdicts | None, model: str | None) -> str:
    if verdicts:
        measure = "of ranks, all lists of a role and layer with the running model; null: the same for wrong lists"
        return f"correlation: {measure}; measured on {verdicts.basis}."
    if model is None:
        return "No measurement of these weights is known."
    return f"No measurement of these weights is known: zeropass evidence {shlex.quote(model)} makes one."


def keep(verdicts: Verdicts, folder: Path | None = None) -> Path:
    """Store verdicts in a folder (by default the cache), where `known_verdicts` finds them; return the file."""
    name = f"{verdicts.model.get('bytes')}-{verdicts.model.get('sha256')}.json"
    if not _NAME.fullmatch(name):
        raise BadOption(f"Verdicts are kept by size and SHA-256 of the weights, 64 hexadecimal digits; not {name!r}.")
    path = (folder or cache_folder() / "evidence") / name
    verdicts.write(path)
    return path


def _stored() -> Iterator[tuple[int, str, Path]]:
    """Yield size and SHA-256 of the weights, and the file, of all verdicts in the cache, then in the package."""
    for folder in (_cache(), SHIPPED):
        for path in folder.glob("*.json") if folder else ():
            if name := _NAME.fullmatch(path.name):
                yield int(name[1]), name[2], path


def _cache() -> Path | None:
    """Return the folder of verdicts in the cache, or None if there is no cache."""
    try:
        return cache_folder() / "evidence"
    except RuntimeError:  # this user has no home folder
        return None


def _curve(name: str, verdicts: Iterable[Verdict], null: bool = False) -> Curve:
    """Return the values of verdicts by layer, or their nulls."""
    ordered = sorted(verdicts, key=lambda verdict: verdict.layer)
    return Curve(
        name=name,
        x=[verdict.layer for verdict in ordered],
        y=[verdict.null if null else verdict.value for verdict in ordered],
        hollow=[not (verdict.above or null) for verdict in ordered],
        null=null,
    )


def _verdict(value: dict[str, Any]) -> Verdict:
    """Return a verdict from its JSON."""
    verdict = Verdict(**value)
    if verdict.basis:
        raise ValueError("a kind has a basis of its own")
    for field in fields(Verdict):
        _checked(getattr(verdict, field.name), field.type, field.name)
    if not (math.isfinite(verdict.value) and math.isfinite(verdict.null)):
        raise ValueError("value or null is not finite")
    return verdict


def _checked(value: Any, expected_type: Any, name: str) -> Any:
    """Return a value if it has exactly the expected type, else raise TypeError."""
    if type(value) is not expected_type:
        raise TypeError(f"{name} is {value!r}, which is not a {expected_type.__name__}")
    return value
