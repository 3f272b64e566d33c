"""A model with an adapter on it: each parameter as it is after the change. Nothing is merged on disk."""

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from zeropass.arch.families import FAMILIES
from zeropass.arch.wrappers import layouts_in
from zeropass.checkpoints.adapter_changes import Change, LowRank, Rows
from zeropass.checkpoints.adapter_files import WEIGHTS
from zeropass.checkpoints.adapter_methods import Adapter, open_adapter
from zeropass.checkpoints.model_files import hashes
from zeropass.errors import BadModel, BadOption
from zeropass.model.adapter_fit import Place, fit
from zeropass.model.adapter_stack import stacked
from zeropass.model.model import Model
from zeropass.numerics.factored import Factored
from zeropass.tokens.undertrained import Judgement

__all__ = ["Adapted", "adapt"]


@dataclass(frozen=True, eq=False, repr=False)
class Adapted(Model):
    """A base model with the changes of an adapter, or with the weighted sum of the changes of several.

    Attributes:
        base: The model without the adapter.
        adapters: The adapters as they were read; mostly one.
        weights: The factor by which the change of each is multiplied.
        changed: The changes of parameters, by canonical name and layer.
        replaced: Entire canonical tensors that the adapter brings: instead of the base's, or task heads that the base
            does not have. The gain of a norm is as transformers keeps it. A place may be in ``changed`` as well.
        remarks: Notes that the adapter adds to those of the model.
        warnings: Notes that make it doubtful whether the adapter belongs to this base.

    Example:
        >>> import zeropass as zp
        >>> model = zp.adapt(zp.open_model("models/first"), "models/tunes/reviews")
        >>> isinstance(model, zp.Model), model.warnings
        (True, ())
    """

    base: Model = field(kw_only=True)
    adapters: tuple[Adapter, ...] = field(kw_only=True)
    weights: tuple[float, ...] = field(kw_only=True)
    changed: dict[Place, Change] = field(kw_only=True)
    replaced: dict[Place, Tensor] = field(kw_only=True)
    remarks: tuple[str, ...] = field(kw_only=True, default=())
    warnings: tuple[str, ...] = field(kw_only=True, default=())

    @cached_property
    def fingerprint(self) -> str:
        """The SHA-256 over the fingerprints of the base, and those of the weights and settings of each adapter."""
        parts = [self.base.fingerprint]
        for adapter, weight in zip(self.adapters, self.weights, strict=True):
            parts += [*adapter.fingerprints, *([] if weight == 1 else [repr(weight)])]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    @property
    def sha256(self) -> dict[str, str] | None:
        """`Model.sha256` of the base's files and of those of the adapters; None if one of them is in memory."""
        folders = [adapter.path for adapter in self.adapters]
        if self.files.state is not None or None in folders:
            return None
        each = dict(self.files.hashes.sha256)
        for n, folder in enumerate(folders, 1):
            if folder is not None:
                each[f"adapter {n}: {WEIGHTS}"] = hashes((folder / WEIGHTS,)).sha256[WEIGHTS]
        return each

    @property
    def title(self) -> str:
        """`Model.title` with the names of the adapters; empty where that is."""
        return f"{self.base.title} with {_names(self.adapters, self.weights)}" if self.base.title else ""

    @property
    def command(self) -> str:
        """The arguments by which a command opens the model: the base's name, and options."""
        parts = [self.base.command, *(f"--adapter {adapter.folder}" for adapter in self.adapters)]
        weighted = any(weight != 1 for weight in self.weights)
        return " ".join([*parts, *(f"--weight {weight:g}" for weight in self.weights if weighted)])

    @property
    def notes(self) -> tuple[str, ...]:
        """`Model.notes`, and the adapter's warnings and remarks."""
        return (*super().notes, *self.warnings, *self.remarks)

    @cached_property
    def memory(self) -> Model:
        """`Model.memory`, with the adapter's changes in the encoder."""
        return adapt(self.base.memory, self.adapters, self.weights)

    def relative(self, layer: int = 0) -> Tensor:
        """Return `Model.relative`, with the adapter's change."""
        place = self._place("relative", layer)
        replacement, change = self.replaced.get(place), self.changed.get(place)
        before = self.base.relative(layer) if replacement is None else replacement.to(self.device)
        return before if change is None else change.applied(before)

    def touches(self, what: str, layer: int = 0) -> bool:
        """Tell, without reading it, whether the adapter changes a canonical tensor."""
        if factors := self.layout.factors_of(what):
            return any(self.touches(factor, layer) for factor in factors)
        if (inner := self.layout.inner_norm(what)) and self.touches(inner, layer):
            return True
        tied = what == "unembedding" and (self.dims.tied or not self.has("unembedding"))
        place = self._place("embedding" if tied else what, layer)
        return place in self.changed or place in self.replaced

    def plain_matrix(self, what: str, layer: int = 0, start: int = 0, stop: int | None = None) -> Tensor:
        """Return `Model.plain_matrix` with the adapter's change."""
        change = self.changed.get(self._place(what, layer))
        if change is None or change.rowwise:
            before = self._before(what, layer, start, stop)
            return before if change is None else change.applied(before, start)
        return change.applied(self._before(what, layer))[start:stop]

    def matrix_on_cpu(self, what: str, layer: int = 0, start: int = 0, stop: int | None = None) -> Tensor:
        """Return `Model.matrix_on_cpu` with the adapter's change."""
        return self.matrix(what, layer, start, stop).cpu()

    def columns(self, what: str, part: slice, start: int, stop: int) -> Tensor:
        """Return `Model.columns` with the adapter's change."""
        if self.touches(what):
            return self.matrix_on_cpu(what, 0, start, stop)[:, part]
        return self.base.columns(what, part, start, stop)

    @cached_property
    def judgement(self) -> Judgement:
        """`Model.judgement`; that of the base where the adapter leaves the embedding as it is."""
        changed = self.touches("embedding") or self.vocab is not self.base.vocab
        return super().judgement if changed else self.base.judgement

    def vector(self, what: str, layer: int = 0) -> Tensor | None:
        """Return `Model.vector` with the adapter's change, or the vector that the adapter brings."""
        place = self._place(what, layer)
        replacement, change = self.replaced.get(place), self.changed.get(place)
        if replacement is None:
            before = self.base.vector(what, layer)
        else:
            layout = self.family.layout("hf")
            before = replacement.to(self.device) + (0.0 if layout is None else layout.offset_of(what))
        if before is None and (size := self._added_size(what)):
            before = torch.zeros(size, device=self.device)
        return before if before is None or change is None else change.applied(before)

    def has(self, what: str) -> bool:
        """Return `Model.has`, counting the heads, biases and the unembedding that the adapter adds."""
        if what == "unembedding" and self.base.dims.tied and not self.dims.tied:
            return True
        return self.base.has(what) or (what, 0) in self.replaced or bool(self._added_size(what))

    def rows(self, what: str, layer: int = 0) -> int:
        """Return `Model.rows`."""
        replacement = self.replaced.get(self._place(what, layer))
        if replacement is not None:
            return 1 if self.is_vector(what) and not what.endswith("bias") else replacement.shape[0]
        return self._added_size(what) or self.base.rows(self._stored_as(what), layer)

    def is_vector(self, what: str) -> bool:
        """Return `Model.is_vector`."""
        replacement = self.replaced.get((what, 0))
        if replacement is not None:
            return replacement.ndim == 1
        return bool(self._added_size(what)) or self.base.is_vector(self._stored_as(what))

    def stored_type(self, what: str, layer: int = 0) -> str:
        """Return `Model.stored_type`; float32 for what the adapter brings, since it is read in float32."""
        if self._place(what, layer) in self.replaced or self._added_size(what):
            return "F32"
        return self.base.stored_type(self._stored_as(what), layer)

    def change(self, what: str, layer: int = 0) -> Factored | Tensor | None:
        """Return what the adapter adds to a canonical matrix, or None if it adds nothing.

        If the adapter brings the matrix itself, this is what it adds to that.

        Args:
            what: Canonical name of the matrix.
            layer: The layer; 0 for what all layers share.

        Returns:
            The change, (rows, d); its two factors if it has low rank.
        """
        if self.layout.latent_of(what) or self.layout.inner_norm(what):
            return self.matrix(what, layer) - self.base.matrix(what, layer) if self.touches(what, layer) else None
        change = self.changed.get(self._place(what, layer))
        if change is None:
            return None
        if isinstance(change, LowRank) and change.magnitude is None:
            up, down = change.up.to(self.device) * change.scale, change.down.to(self.device)
            return Factored(up.contiguous(), down.T.contiguous())
        before = self._before(what, layer)
        if isinstance(change, Rows):
            ids = change.ids.to(self.device)
            selection = torch.zeros(len(before), len(ids), device=self.device)
            selection[ids, torch.arange(len(ids), device=self.device)] = 1
            return Factored(selection, (change.values.to(self.device) - before[ids]).T.contiguous())
        return (change.applied(before) - before).contiguous()

    def _before(self, what: str, layer: int, start: int = 0, stop: int | None = None) -> Tensor:
        """Return the matrix that is changed: the base's, or the one that the adapter brings instead."""
        replacement = self.replaced.get(self._place(what, layer))
        if replacement is not None:
            return replacement[start:stop].to(self.device)
        if what == "unembedding" and self._stored_as(what) != what:
            return self.base.tokens("embedding", slice(start, self.dims.vocab if stop is None else stop))
        return self.base.plain_matrix(what, layer, start, stop)

    def _place(self, what: str, layer: int) -> Place:
        """Return the key of a canonical tensor in ``changed`` and ``replaced``: layer 0 if all layers share it."""
        stored = self._find(what)
        shared = stored is not None and "{layer}" not in stored.name
        return what, 0 if shared else layer

    def _stored_as(self, what: str) -> str:
        """Return the name of the base's table that a table comes from."""
        return "embedding" if what == "unembedding" and self.base.dims.tied else what

    def _added_size(self, what: str) -> int:
        """Return the size of a bias that the adapter adds in some layer and the base lacks; else 0."""
        if not what.endswith("_bias") or self.base.has(what):
            return 0
        sizes = (change.shape[0] for (name, _), change in self.changed.items() if name == what)
        return next(sizes, 0) or 0


def adapt(
    base: Model,
    adapter: str | Path | Adapter | Sequence[str | Path | Adapter],
    weights: Sequence[float] | None = None,
) -> Adapted:
    """Put an adapter on a model, or several at once.

    Several change the base by the weighted sum of their changes, as PEFT's model does in which all of them are active.

    Args:
        base: The model, from any format of its family (also a GGUF file).
        adapter: The folder of the adapter, its hub id (``owner/name``), or an adapter that was read; or several.
        weights: The factor of each adapter's change; 1 if not given.

    Returns:
        The base model with the changes.

    Raises:
        BadModel: If zeropass does not read this kind of adapter, or does not put it together with others.
        BadWeights: If the adapter does not fit the base; names the tensor and the shapes.
        BadOption: If there are no adapters, or not as many weights.
        NotFetched: If an adapter cannot be fetched from the hub.

    Example:
        >>> import zeropass as zp
        >>> model = zp.adapt(zp.open_model("models/first"), "models/tunes/reviews")
        >>> model.name, model.dims.layers
        ('models/first with reviews', 4)
    """
    several = [adapter] if isinstance(adapter, str | Path | Adapter) else adapter
    adapters = tuple(part if isinstance(part, Adapter) else open_adapter(part) for part in several)
    factors = tuple(map(float, [1.0] * len(adapters) if weights is None else weights))
    _check_weights(adapters, factors)
    layout = base.family.layout("hf")
    if layout is None or base.family not in FAMILIES:
        raise BadModel(
            f"{base.name}: adapters name modules as Hugging Face does, which is not known of {base.family.name}."
        )
    layouts = layouts_in(base.wrapper, layout)
    fitted = stacked([fit(base, layouts, part) for part in adapters], adapters, factors)
    named = [_named_base(base, part.base[:200]) for part in adapters]
    values = {f.name: getattr(base, f.name) for f in fields(Model)}
    values["name"] = f"{base.name} with {_names(adapters, factors)}"
    values["layout"] = replace(base.layout, extra={**layouts[0].extra, **base.layout.extra}, through=layout.through)
    values["dims"] = replace(base.dims, tied=fitted.tied)
    return Adapted(
        **values,
        base=base,
        adapters=adapters,
        weights=factors,
        changed=fitted.changed,
        replaced=fitted.replaced,
        remarks=(*(note for notes, doubtful in named if not doubtful for note in notes), *fitted.notes),
        warnings=tuple(note for notes, doubtful in named if doubtful for note in notes),
    )


def _names(adapters: Sequence[Adapter], weights: Sequence[float]) -> str:
    """Return the names of adapters, with their weights if these are not 1."""
    pairs = zip(adapters, weights, strict=True)
    return " + ".join(adapter.name if weight == 1 else f"{weight:g} × {adapter.name}" for adapter, weight in pairs)


def _check_weights(adapters: Sequence[Adapter], weights: Sequence[float]) -> None:
    if not adapters:
        raise BadOption("No adapter is given.")
    if len(adapters) != len(weights):
        raise BadOption(f"There are {len(weights)} weights for {len(adapters)} adapters: give one for each, or none.")
    if odd := [weight for weight in weights if not math.isfinite(weight)]:
        raise BadOption(f"The weight of an adapter is {odd[0]}; it must be a finite number.")


def _named_base(base: Model, named: str) -> tuple[tuple[str, ...], bool]:
    """Return notes on the base that an adapter names if it is not clearly this one, and whether it is clearly another.

    A local folder may have any name, so it is another base only if both names are hub ids.
    """
    names = _known_names(base)
    if not named or _plain(named) in {_plain(name) for name in names} or _inside(named, base):
        return (), False
    ids = [name for name in names if _is_hub_id(name)]
    if ids and _is_hub_id(named):
        return (f"the adapter was trained on {named}, and this is {ids[0]}: what it changes may not belong here",), True
    return (f"the adapter says that it was trained on {named}",), False


def _known_names(base: Model) -> list[str]:
    """Return a model's names: the user's, that of its folder in the hub's cache, and that in its configuration."""
    name = base.name.rpartition("#")[0] if base.name.endswith(("#encoder", "#decoder")) else base.name
    names = [name if Path(name).exists() else name.partition("@")[0]]
    cached = re.search(r"models--([\w.-]+?)--([\w.-]+)", str(base.files.path))
    names += [f"{cached[1]}/{cached[2]}"] if cached else []
    original = base.files.config.get("_name_or_path")
    return [*names, *([original] if isinstance(original, str) and original else [])]


def _is_hub_id(name: str) -> bool:
    """Tell whether a name is a hub id, ``owner/name``, and not an existing path."""
    return re.fullmatch(r"[\w-][\w.-]{0,99}/[\w.-]{1,99}", name) is not None and not Path(name).exists()


def _plain(name: str) -> str:
    """Return the last part of a name in lower case, with letters and digits only."""
    return re.sub(r"[^a-z0-9]", "", name.rstrip("/\\").replace("\\", "/").rpartition("/")[2].lower())


def _inside(named: str, base: Model) -> bool:
    """Tell whether a file's name contains the name of the base: ``SmolLM2-135M-Instruct-Q4_1.gguf``."""
    path = base.files.path
    return path is not None and path.is_file() and bool(_plain(named)) and _plain(named) in _plain(str(path))
