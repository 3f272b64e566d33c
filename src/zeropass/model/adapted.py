"""A model with an adapter on it: every parameter as it is after the change, nothing merged on disk."""

import hashlib
import re
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from zeropass.arch.families import FAMILIES
from zeropass.checkpoints.adapter_changes import Change, LowRank, Rows
from zeropass.checkpoints.adapter_methods import Adapter, open_adapter
from zeropass.checkpoints.model_files import fingerprint
from zeropass.errors import BadModel
from zeropass.model.adapter_fit import Place, fit
from zeropass.model.model import Model
from zeropass.numerics.factored import Factored
from zeropass.tokens.undertrained import Judgement

__all__ = ["Adapted", "adapt"]


@dataclass(frozen=True, eq=False)
class Adapted(Model):
    """A base model with an adapter's changes made where they belong.

    ``changed`` are parameters that are changed: for each (canonical name, layer) how. ``replaced`` are whole canonical
    tensors that the adapter brings: in place of the base's, or task heads that it does not have; a norm's gain as
    transformers keeps it. A parameter may be both. ``remarks`` are the notes that the adapter adds to the model's, and
    ``warnings`` those of them that make it doubtful whether the adapter belongs to this base.
    """

    base: Model = field(kw_only=True)
    adapter: Adapter = field(kw_only=True)
    changed: dict[Place, Change] = field(kw_only=True)
    replaced: dict[Place, Tensor] = field(kw_only=True)
    remarks: tuple[str, ...] = field(kw_only=True, default=())
    warnings: tuple[str, ...] = field(kw_only=True, default=())

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the base's and of the adapter's."""
        settings, weights = (fingerprint((path,)) for path in self.adapter.files)
        return hashlib.sha256(f"{self.base.fingerprint} {weights} {settings}".encode()).hexdigest()

    @property
    def notes(self) -> tuple[str, ...]:
        """As `Model.notes`, with those of the adapter."""
        return (*super().notes, *self.warnings, *self.remarks)

    @cached_property
    def memory(self) -> Model:
        """As `Model.memory`, with what the adapter changes in the encoder."""
        return adapt(self.base.memory, self.adapter.path)

    @cached_property
    def relative(self) -> Tensor:
        """As `Model.relative`, with the adapter's change."""
        whole, change = self.replaced.get(("relative", 0)), self.changed.get(("relative", 0))
        before = self.base.relative if whole is None else whole.to(self.device)
        return before if change is None else change.applied(before)

    def touches(self, what: str, layer: int = 0) -> bool:
        """Whether the adapter changes a canonical tensor; without reading it."""
        tied = what == "unembedding" and (self.dims.tied or not self.has("unembedding"))
        place = self._place("embedding" if tied else what, layer)
        return place in self.changed or place in self.replaced

    def matrix(self, what: str, layer: int = 0, start: int = 0, stop: int | None = None) -> Tensor:
        """As `Model.matrix`, with the adapter's change."""
        change = self.changed.get(self._place(what, layer))
        if change is None or change.rowwise:
            before = self._before(what, layer, start, stop)
            return before if change is None else change.applied(before, start)
        return change.applied(self._before(what, layer))[start:stop]

    def matrix_on_cpu(self, what: str, layer: int = 0, start: int = 0, stop: int | None = None) -> Tensor:
        """As `Model.matrix_on_cpu`, with the adapter's change."""
        return self.matrix(what, layer, start, stop).cpu()

    @cached_property
    def judgement(self) -> Judgement:
        """As `Model.judgement`: that of the base, where the adapter leaves the embedding as it is."""
        changed = self.touches("embedding") or self.vocab is not self.base.vocab
        return super().judgement if changed else self.base.judgement

    def vector(self, what: str, layer: int = 0) -> Tensor | None:
        """As `Model.vector`, with the adapter's change, or the one that it brings."""
        place = self._place(what, layer)
        whole, change = self.replaced.get(place), self.changed.get(place)
        if whole is None:
            before = self.base.vector(what, layer)
        else:
            layout = self.family.layout("hf")
            offset = layout.gain_offset if layout is not None and what.endswith("_norm") else 0.0
            before = whole.to(self.device) + offset
        if before is None and (size := self._added_size(what)):
            before = torch.zeros(size, device=self.device)
        return before if before is None or change is None else change.applied(before)

    def has(self, what: str) -> bool:
        """As `Model.has`, with the heads, biases and the unembedding that the adapter makes."""
        if what == "unembedding" and self.base.dims.tied and not self.dims.tied:
            return True
        return self.base.has(what) or (what, 0) in self.replaced or bool(self._added_size(what))

    def rows(self, what: str, layer: int = 0) -> int:
        """As `Model.rows`."""
        whole = self.replaced.get(self._place(what, layer))
        if whole is not None:
            return 1 if self.is_vector(what) and not what.endswith("bias") else whole.shape[0]
        return self._added_size(what) or self.base.rows(self._stored_as(what), layer)

    def is_vector(self, what: str) -> bool:
        """As `Model.is_vector`."""
        whole = self.replaced.get((what, 0))
        if whole is not None:
            return whole.ndim == 1
        return bool(self._added_size(what)) or self.base.is_vector(self._stored_as(what))

    def stored_type(self, what: str, layer: int = 0) -> str:
        """As `Model.stored_type`; what the adapter brings has float32, in which it is read."""
        if self._place(what, layer) in self.replaced or self._added_size(what):
            return "F32"
        return self.base.stored_type(self._stored_as(what), layer)

    def change(self, what: str, layer: int = 0) -> Factored | Tensor | None:
        """What the adapter adds to a canonical matrix: (rows, d), as its factors if it has low rank; None for nothing.

        To one that the adapter brings whole, what it changes beside that.
        """
        change = self.changed.get(self._place(what, layer))
        if change is None:
            return None
        if isinstance(change, LowRank) and change.magnitude is None:
            up, down = change.up.to(self.device) * change.scale, change.down.to(self.device)
            return Factored(up.contiguous(), down.T.contiguous())
        before = self._before(what, layer)
        if isinstance(change, Rows):
            ids = change.ids.to(self.device)
            place = torch.zeros(len(before), len(ids), device=self.device)
            place[ids, torch.arange(len(ids), device=self.device)] = 1
            return Factored(place, (change.values.to(self.device) - before[ids]).T.contiguous())
        return (change.applied(before) - before).contiguous()

    def _before(self, what: str, layer: int, start: int = 0, stop: int | None = None) -> Tensor:
        """The matrix that is changed: the base's, or one that the adapter brings instead."""
        whole = self.replaced.get(self._place(what, layer))
        if whole is not None:
            return whole[start:stop].to(self.device)
        if what == "unembedding" and self._stored_as(what) != what:
            return self.base.tokens("embedding", slice(start, self.dims.vocab if stop is None else stop))
        return self.base.matrix(what, layer, start, stop)

    def _place(self, what: str, layer: int) -> Place:
        """Where a change of a canonical tensor is kept: layer 0 of what all layers share."""
        stored = self._find(what)
        shared = stored is not None and "{layer}" not in stored.name
        return what, 0 if shared else layer

    def _stored_as(self, what: str) -> str:
        """The table of the base that a table comes from."""
        return "embedding" if what == "unembedding" and self.base.dims.tied else what

    def _added_size(self, what: str) -> int:
        """Size of a bias that the base does not have and the adapter adds, in some layer; else 0."""
        if not what.endswith("_bias") or self.base.has(what):
            return 0
        sizes = (change.shape[0] for (one, _), change in self.changed.items() if one == what)
        return next(sizes, 0) or 0


def adapt(base: Model, folder: Path) -> Adapted:
    """Put an adapter on a model. The base may be of any format of its family (a GGUF file too).

    Raises BadModel for an adapter that is not read, BadWeights, naming tensor and shapes, for one that does not fit.
    """
    adapter = open_adapter(folder)
    layout = base.family.layout("hf")
    if layout is None or base.family not in FAMILIES:
        raise BadModel(
            f"{base.name}: adapters name modules as Hugging Face does, which is not known of {base.family.name}."
        )
    fitted = fit(base, layout, adapter)
    named, doubtful = _named_base(base, adapter.base[:200])
    values = {f.name: getattr(base, f.name) for f in fields(Model)}
    values["name"] = f"{base.name} with {adapter.path.name}"
    values["layout"] = replace(base.layout, extra={**layout.extra, **base.layout.extra}, through=layout.through)
    values["dims"] = replace(base.dims, tied=fitted.tied)
    return Adapted(
        **values,
        base=base,
        adapter=adapter,
        changed=fitted.changed,
        replaced=fitted.replaced,
        remarks=(*(named if not doubtful else ()), *fitted.notes),
        warnings=named if doubtful else (),
    )


def _named_base(base: Model, named: str) -> tuple[tuple[str, ...], bool]:
    """Say which base an adapter names, if that is not plainly this one; and whether it is plainly another.

    A local folder may be called anything. So it is another only where both names are those of a hub.
    """
    own = _known_names(base)
    if not named or _plain(named) in {_plain(name) for name in own} or _inside(named, base):
        return (), False
    ids = [name for name in own if _is_hub_id(name)]
    if ids and _is_hub_id(named):
        return (f"the adapter was trained on {named}, and this is {ids[0]}: what it changes may not belong here",), True
    return (f"the adapter says that it was trained on {named}",), False


def _known_names(base: Model) -> list[str]:
    """What a model is called: by the user, by the folder of the hub's cache it lies in, and by its configuration."""
    name = base.name.rpartition("#")[0] if base.name.endswith(("#encoder", "#decoder")) else base.name
    names = [name if Path(name).exists() else name.partition("@")[0]]
    cached = re.search(r"models--([\w.-]+?)--([\w.-]+)", str(base.files.path))
    names += [f"{cached[1]}/{cached[2]}"] if cached else []
    original = base.files.config.get("_name_or_path")
    return [*names, *([original] if isinstance(original, str) and original else [])]


def _is_hub_id(name: str) -> bool:
    """Whether a name is one of a hub, ``owner/name``, and no path that is there."""
    return re.fullmatch(r"[\w-][\w.-]{0,99}/[\w.-]{1,99}", name) is not None and not Path(name).exists()


def _plain(name: str) -> str:
    """The last part of a name, without what spellings differ in."""
    return re.sub(r"[^a-z0-9]", "", name.rstrip("/\\").replace("\\", "/").rpartition("/")[2].lower())


def _inside(named: str, base: Model) -> bool:
    """Whether a file's name holds the name of the base: ``SmolLM2-135M-Instruct-Q4_1.gguf``."""
    return base.files.path.is_file() and bool(_plain(named)) and _plain(named) in _plain(str(base.files.path))
