"""A model with an adapter on it: every parameter as it is after the change, nothing merged on disk."""

import hashlib
import re
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path

from torch import Tensor

from zeropass.arch.families import FAMILIES
from zeropass.arch.rows import row_index
from zeropass.arch.spec import Dimensions, Layout, side_of
from zeropass.errors import BadModel, BadWeights
from zeropass.factored import Factored
from zeropass.model import Model
from zeropass.sources.adapter import Adapter, LowRank, open_adapter
from zeropass.sources.files import fingerprint

__all__ = ["Adapted", "adapt"]

Place = tuple[str, int]
"""Canonical name and layer."""


@dataclass(frozen=True, eq=False)
class Adapted(Model):
    """A base model with an adapter's changes added where they belong.

    ``low`` are the changed matrices: for each (canonical name, layer) the module's change. ``replaced`` are whole
    canonical tensors that the adapter brings: in place of the base's, or task heads that it does not have.
    """

    base: Model = field(kw_only=True)
    adapter: Adapter = field(kw_only=True)
    low: dict[Place, LowRank] = field(kw_only=True)
    replaced: dict[Place, Tensor] = field(kw_only=True)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the base's and of the adapter's."""
        own = fingerprint((self.adapter.path / "adapter_model.safetensors",))
        settings = fingerprint((self.adapter.path / "adapter_config.json",))
        return hashlib.sha256(f"{self.base.fingerprint} {own} {settings}".encode()).hexdigest()

    def matrix(self, what: str, layer: int = 0, start: int = 0, stop: int | None = None) -> Tensor:
        """As `Model.matrix`, with the adapter's change."""
        plain = self._before(what, layer, start, stop)
        change = self.change(what, layer)
        if change is None:
            return plain
        if isinstance(change, Tensor):
            return plain + change[start:stop]
        return plain + change.left[start:stop] @ change.right.T

    def vector(self, what: str, layer: int = 0) -> Tensor | None:
        """As `Model.vector`, or the one that the adapter brings."""
        whole = self.replaced.get((what, layer))
        return super().vector(what, layer) if whole is None else whole.to(self.device)

    def has(self, what: str) -> bool:
        """As `Model.has`, with the heads that the adapter brings."""
        return super().has(what) or (what, 0) in self.replaced

    def rows(self, what: str, layer: int = 0) -> int:
        """As `Model.rows`."""
        whole = self.replaced.get((what, layer))
        if whole is None:
            return super().rows(what, layer)
        return 1 if self.is_vector(what) and not what.endswith("bias") else whole.shape[0]

    def is_vector(self, what: str) -> bool:
        """As `Model.is_vector`."""
        whole = self.replaced.get((what, 0))
        return super().is_vector(what) if whole is None else whole.ndim == 1

    def change(self, what: str, layer: int = 0) -> Factored | Tensor | None:
        """What the adapter adds to a canonical matrix: (rows, d), as its factors (DoRA: dense); None for nothing."""
        low = self.low.get((what, layer))
        if low is None:
            return None
        down, up = low.down.to(self.device), low.up.to(self.device) * low.scale
        writes = low.table or side_of(what) == "write"
        if low.magnitude is None:
            left, right = (down.T, up) if writes else (up, down.T)
            return Factored(left.contiguous(), right.contiguous())
        plain = self._before(what, layer)
        weight = plain.T if writes else plain  # (out, in), as the module has it
        added = weight + up @ down
        changed = added * (low.magnitude.to(self.device) / added.norm(dim=1))[:, None] - weight
        dense: Tensor = changed.T if writes else changed
        return dense.contiguous()

    def _before(self, what: str, layer: int, start: int = 0, stop: int | None = None) -> Tensor:
        """The matrix to which the factors add: the base's, or one that the adapter brings instead."""
        whole = self.replaced.get((what, layer))
        return super().matrix(what, layer, start, stop) if whole is None else whole[start:stop].to(self.device)


def adapt(base: Model, folder: Path) -> Adapted:
    """Put an adapter on a model. The base may be of any format of its family (a GGUF file too).

    Raises BadModel for an adapter that is not read, BadWeights, naming module and shapes, for one that does not fit.
    """
    adapter = open_adapter(folder)
    layout = base.family.layout("hf")
    if layout is None or base.family not in FAMILIES:
        raise BadModel(
            f"{base.name}: adapters name modules as Hugging Face does, which is not known of {base.family.name}."
        )
    places = _places(layout, base.dims)
    low: dict[Place, LowRank] = {}
    for module, change in adapter.changes.items():
        for what, layer, index in _found(places, f"{module}.weight", adapter, base):
            own = change if index is None else _rows_of(change, index)
            _require_fit(adapter, module, own, what, layer, base)
            low[what, layer] = own
    replaced: dict[Place, Tensor] = {}
    unread = [pattern.removeprefix(r"\^") for pattern in layout.unread]
    for name, tensor in adapter.whole.items():
        if any(re.search(rf"(^|\.)({pattern})$", name) for pattern in unread):
            continue
        for what, layer, index in _found(places, name, adapter, base):
            replaced[what, layer] = _canonical(layout, what, tensor, index)
    values = {f.name: getattr(base, f.name) for f in fields(Model)}
    values["name"] = f"{base.name} with {adapter.path.name}"
    values["layout"] = replace(base.layout, extra={**layout.extra, **base.layout.extra}, through=layout.through)
    return Adapted(**values, base=base, adapter=adapter, low=low, replaced=replaced)


_Meant = tuple[str, int, Tensor | None]
"""A canonical tensor, its layer, and which rows of the stored tensor are its own (`row_index`)."""


def _places(layout: Layout, dims: Dimensions) -> dict[str, list[_Meant]]:
    """Tensor name, without prefix, to all canonical places that it holds."""
    found: dict[str, list[_Meant]] = {}
    heads = {what: stored for what, (stored, _) in layout.extra.items()}
    for what, stored in (*layout.tensors.items(), *heads.items()):
        if "{expert}" in stored.name:
            continue  # adapters of experts are refused as modules that are not there
        for layer in range(dims.layers if "{layer}" in stored.name else 1):
            name = stored.name.removeprefix("^").format(layer=layer)
            found.setdefault(name, []).append((what, layer, row_index(stored, what, dims)))
    return found


def _found(places: dict[str, list[_Meant]], name: str, adapter: Adapter, base: Model) -> list[_Meant]:
    """The places of a tensor, whatever stands before its name in a task model."""
    parts = name.split(".")
    for start in range(len(parts)):
        if found := places.get(".".join(parts[start:])):
            return found
    raise BadWeights(
        f"{adapter.path}: it changes {name}, which {base.name} ({base.family.name}, {base.dims.layers} layers) does "
        f"not have; the adapter was made for {adapter.base or 'another model'}."
    )


def _rows_of(low: LowRank, index: Tensor) -> LowRank:
    """The rows of a fused module that belong to one of its parts."""
    magnitude = None if low.magnitude is None else low.magnitude[index]
    return LowRank(low.down, low.up[index], low.scale, magnitude, low.table)


def _require_fit(adapter: Adapter, module: str, low: LowRank, what: str, layer: int, base: Model) -> None:
    rows, d = base.rows(what, layer), base.dims.d
    writes = low.table or side_of(what) == "write"
    found = (low.down.shape[1], low.up.shape[0]) if writes else (low.up.shape[0], low.down.shape[1])
    if found != (rows, d):
        raise BadWeights(
            f"{adapter.path}: {module} is changed by a matrix of {found}; {what} of {base.name} is {(rows, d)}: the "
            f"adapter was made for {adapter.base or 'another model'}."
        )


def _canonical(layout: Layout, what: str, tensor: Tensor, index: Tensor | None) -> Tensor:
    stored = layout.tensors.get(what) or layout.extra[what][0]
    whole = tensor.T if stored.transpose and tensor.ndim == 2 else tensor
    return (whole if index is None else whole[index]).contiguous()
