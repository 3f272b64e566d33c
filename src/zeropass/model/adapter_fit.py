"""Fits an adapter to a base model: every change to its canonical place, every shape checked, nothing dropped unsaid.

What PEFT's own model computes counts. On a base whose unembedding is its embedding, an adapter of one of the two leaves
the other as it was, unless it says otherwise (`ensure_weight_tying`, trained tokens).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import Any, NoReturn

import torch
from torch import Tensor

from zeropass.arch.rows import expected_shape
from zeropass.arch.spec import BY_TOKEN, Layout, side_of
from zeropass.checkpoints.adapter_changes import Added, Change, Computed, LowRank, OfExperts, Rows, Scaled
from zeropass.checkpoints.adapter_methods import Adapter, StackedFactors
from zeropass.errors import BadModel, BadWeights, MissingExtra
from zeropass.model.adapter_names import Meaning, Names
from zeropass.model.model import Model

__all__ = ["Fitted", "Place", "fit"]

Place = tuple[str, int]
"""Canonical name and layer; layer 0 of what all layers share."""

Shape = tuple[int | None, ...]
"""A shape, None where any size will do."""

_EMBEDDING, _UNEMBEDDING = ("embedding", 0), ("unembedding", 0)
_ROWS = 8192
"""Rows of a table that are compared at once."""

_BY_ID = ("positions", "types", "relative")
"""Tables with a row for each of something else."""

_BROUGHT = ("unembedding", "pooler_bias", "head_bias")
"""Beside task heads, what an adapter may bring to a base that does not have it."""

_TURNED = (0, 19, 1)
"""The version of PEFT since which factors of stacked experts are those of (out, in), and no longer of its transpose."""


@dataclass(frozen=True, eq=False)
class Fitted:
    """An adapter's changes by canonical place; ``replaced`` are as files of transformers' layout keep them, canonical.

    ``tied`` is whether the unembedding is still the embedding. ``notes`` say what was left out, a sentence each.
    """

    changed: dict[Place, Change]
    replaced: dict[Place, Tensor]
    tied: bool
    notes: tuple[str, ...]


def fit(base: Model, layout: Layout, adapter: Adapter) -> Fitted:
    """Find the place of everything that an adapter brings.

    Raises BadWeights, naming the tensor and the shapes, for what the base does not have or what does not fit;
    BadModel for what would need a guess.
    """
    fitting = _Fitting(base, layout, adapter, Names(base.family, layout, base.dims))
    for name, tensor in adapter.whole.items():
        fitting.whole(name, tensor)
    for name, change in adapter.changes.items():
        fitting.change(name, change)
    for module, factors in adapter.stacked.items():
        fitting.stacked(module, factors)
    fitting.computed()
    return fitting.finish()


@dataclass(eq=False)
class _Fitting:
    """The state of one fit. ``shared`` are tables that are loaded into the one table of a tied base."""

    base: Model
    layout: Layout
    adapter: Adapter
    names: Names
    changed: dict[Place, Change] = field(default_factory=dict)
    replaced: dict[Place, Tensor] = field(default_factory=dict)
    experts: dict[Place, dict[int, Change]] = field(default_factory=dict)
    shared: dict[Place, Tensor] = field(default_factory=dict)
    elsewhere: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def whole(self, name: str, tensor: Tensor) -> None:
        """Take in a tensor that takes the place of the base's."""
        for meaning in self._meanings(name):
            what, place = meaning.what, (meaning.what, meaning.layer)
            if meaning.expert is not None:
                self._refuse(f"{name} is brought whole, which is not read of experts")
            self._check(name, tuple(tensor.shape), meaning, free=what in BY_TOKEN)
            if not (self._has(meaning) or what in _BROUGHT or what in self.layout.extra):
                self._missing(name)
            own = tensor.T if meaning.stored.transpose and tensor.ndim == 2 else tensor
            own = (own if meaning.index is None else own[meaning.index]).contiguous()
            if what in BY_TOKEN:
                own = self._by_id(what, own)
            if place in (_EMBEDDING, _UNEMBEDDING) and self.base.dims.tied and not self.adapter.settings.saved(name):
                self._put(self.shared, place, own, name)
            elif what not in BY_TOKEN or not self._is_of_base(what, own):  # PEFT saves tables beside adapters of them
                self._put(self.replaced, place, own, name)

    def change(self, name: str, change: Change) -> None:
        """Take in a change of one parameter."""
        there = self._has_all(name)
        if isinstance(change, Scaled) and change.vector and not there:
            return  # a module without a bias has nothing to scale
        for meaning in self._meanings(name, changed=True):
            if not there and not isinstance(change, Added):
                self._missing(name)
            by_token = meaning.what in BY_TOKEN
            shape = change.shape
            if len(shape) == 2 and meaning.stored.transpose != _writes(meaning):
                shape = shape[::-1]  # a module whose weight is kept as (in, out)
            self._check(name, shape, meaning, free=by_token)
            own = self._change_by_id(name, change) if by_token else change
            self._place(name, meaning, own if meaning.index is None else own.picked(meaning.index))

    def _place(self, name: str, meaning: Meaning, change: Change) -> None:
        """Put a change of (out, in) at its place, as the canonical matrix lies."""
        place = meaning.what, meaning.layer
        own = change.turned() if _writes(meaning) else change
        if meaning.expert is None:
            self._put(self.changed, place, own, name)
        else:
            self._put(self.experts.setdefault(place, {}), meaning.expert, own, name)

    def stacked(self, module: str, factors: Sequence[StackedFactors]) -> None:
        """Take in factors of parameters that stack experts: transformers 5 keeps gate and up in one of them."""
        places = {what: self.names.experts(module, what) for what in ("gate", "up", "value")}
        if not all(places.values()):
            self._missing(f"{module} (target_parameters)")
        settings, size = self.adapter.settings, self.base.dims.expert_neurons
        for one in factors:
            leaf, parts = self._experts_of(module, one)
            rank, name = one.down.shape[0] // self.base.dims.experts, f"{module}.{leaf}"
            if rank != settings.number(name, "rank_pattern", "r"):
                self._refuse(f"the factors of {name} have rank {rank}, which is not what the settings say")
            for expert, (up, down) in enumerate(parts):
                change = LowRank(up, down, settings.scale(name, rank))
                if leaf == "down_proj":
                    self._place(name, places["value"][expert], change)
                    continue
                for what, start in (("gate", 0), ("up", size)):
                    self._place(name, places[what][expert], change.picked(torch.arange(start, start + size)))

    def _experts_of(self, module: str, factors: StackedFactors) -> tuple[str, list[tuple[Tensor, Tensor]]]:
        """Say which parameter the factors are of, by their shapes, and give each expert's (out, r) and (r, in)."""
        count, size, d = self.base.dims.experts, self.base.dims.expert_neurons, self.base.dims.d
        rows, inside, out, columns = *factors.down.shape, *factors.up.shape
        shapes = {"gate_up_proj": (2 * size, d), "down_proj": (d, size)}
        named = self.adapter.settings.parameters(module)
        straight = [leaf for leaf in named if shapes.get(leaf) == (out, inside)]
        turned = [leaf for leaf in named if shapes.get(leaf) == (inside, out)]
        if rows != columns or rows % count or not (straight or turned):
            known = " and ".join(f"{shape} in {leaf}" for leaf, shape in shapes.items())
            raise BadWeights(
                f"{self.adapter.files[1]}: the factors of {module} have shapes {tuple(factors.down.shape)} and "
                f"{tuple(factors.up.shape)}; each of the {count} experts of {self.base.name} is {known}."
            )
        if straight and turned:
            version = self.adapter.settings.version()
            if not version:
                self._refuse(f"the factors of {module} may be turned, and peft_version does not say which way they are")
            straight = straight if version >= _TURNED else []
        rank = rows // count
        downs = factors.down.reshape(count, rank, inside)
        ups = factors.up.reshape(out, rank, count).permute(2, 0, 1)
        if straight:
            return straight[0], list(zip(ups, downs, strict=True))
        return turned[0], [(down.T, up.T) for down, up in zip(downs, ups, strict=True)]

    def computed(self) -> None:
        """Take in the modules whose change PEFT computes."""
        modules = {module: self._plain_module(module) for module in self.adapter.computed if module}
        if not self.adapter.computed:
            return
        if not modules or self.elsewhere:
            self._refuse(f"{self.adapter.settings.method} is read of whole models with some changed modules only")
        shapes = {module: (shape, self._has_all(f"{module}.bias")) for module, (_, shape) in modules.items()}
        try:
            computer = import_module("zeropass.checkpoints.adapter_peft").Computer(self.adapter, shapes)
        except MissingExtra as error:
            raise MissingExtra(f"{self.adapter.path} is of the kind {self.adapter.settings.method}: {error}") from error
        for module, (meaning, shape) in modules.items():
            self._place(module, meaning, Computed(partial(_matrix, computer, module), shape))
            if shapes[module][1]:
                (own,) = self.names.meanings(f"{module}.bias")
                bias = Computed(partial(_bias, computer, module, shape), shape[:1])
                self._put(self.changed, (own.what, own.layer), bias, f"{module}.bias")

    def _plain_module(self, module: str) -> tuple[Meaning, tuple[int, int]]:
        """A module that is one linear matrix of a block, and its (out, in)."""
        name, method = f"{module}.weight", self.adapter.settings.method
        found = self._meanings(name)
        if not found:
            self._refuse(f"{method} is read of one stack of a model only, and {module} is of another")
        meaning = found[0]
        plain = len(found) == 1 and meaning.index is None and meaning.expert is None and self._has(meaning)
        shape = self._expected(meaning)
        if not plain or meaning.stored.transpose != _writes(meaning) or len(shape) != 2 or None in shape:
            self._refuse(f"{method} is read of plain linear modules only, and {module} is none")
        if meaning.what in (*BY_TOKEN, *_BY_ID):
            self._refuse(f"{method} is read of linear modules of the blocks only, and {module} is a table")
        out, inside = (int(size or 0) for size in shape)
        return meaning, (out, inside)

    def finish(self) -> Fitted:
        """Put experts together, say which tables are one, and what was left out."""
        for place, parts in self.experts.items():
            self._put(self.changed, place, OfExperts(parts, self.base.dims.expert_neurons), place[0])
        tied = self.base.dims.tied and self._tied()
        if self.elsewhere:
            self.notes.append(
                f"the adapter also changes the other stack of this model, which is read by itself: "
                f"{len(self.elsewhere)} tensors ({self.elsewhere[0]} …)"
            )
        return Fitted(self.changed, self.replaced, tied, tuple(dict.fromkeys(self.notes)))

    def _tied(self) -> bool:
        """Make both tables of a tied base what PEFT's model has, and say whether they are still one."""
        if self.shared:
            table, *others = self.shared.values()
            if not all(torch.equal(table, other) for other in others):
                self._refuse("it brings two tables for embedding and unembedding, which are one in the base")
            for place in () if self._is_of_base("embedding", table) else (_EMBEDDING, _UNEMBEDDING):
                self.replaced.setdefault(place, table)
        if self.adapter.settings.tied:
            self._follow()
        elif isinstance(self.changed.get(_EMBEDDING), Rows):
            if not isinstance(self.changed.setdefault(_UNEMBEDDING, self.changed[_EMBEDDING]), Rows):
                self._refuse("it trains tokens of the embedding and changes the unembedding in another way")
            if self.replaced.get(_EMBEDDING) is not self.replaced.get(_UNEMBEDDING):
                self._refuse("it trains tokens of the embedding and brings an unembedding beside it")
        touched = self.replaced.keys() | self.changed.keys()
        if not self._has_head() and _UNEMBEDDING not in touched:
            return True  # an encoder without a head is read through its embedding, as it becomes
        return _same_table(self.replaced.get(_EMBEDDING), self.replaced.get(_UNEMBEDDING)) and _same_change(
            self.changed.get(_EMBEDDING), self.changed.get(_UNEMBEDDING), scales=True
        )

    def _follow(self) -> None:
        """Give the unembedding what the embedding has: the adapter says that they stay one table."""
        table, other_table = self.replaced.get(_EMBEDDING), self.replaced.get(_UNEMBEDDING)
        change, other = self.changed.get(_EMBEDDING), self.changed.get(_UNEMBEDDING)
        alike = (other_table is None or _same_table(table, other_table)) and (
            other is None or (change is None and isinstance(other, Rows)) or _same_change(change, other)
        )
        if not alike or (other is None and isinstance(change, LowRank) and change.magnitude is not None):
            self._refuse("it says that embedding and unembedding stay tied, and changes them differently")
        if table is not None:
            self.replaced[_UNEMBEDDING] = table
        if change is not None and other is None:
            self.changed[_UNEMBEDDING] = change

    def _has_head(self) -> bool:
        """Whether the base has a language model's head, or is a decoder, which always has one."""
        return self.base.family.causal or self.base.has("unembedding") or self.base.has("mlm")

    def _meanings(self, name: str, changed: bool = False) -> list[Meaning]:
        """The canonical tensors of a parameter; a name that the model does not have is refused."""
        if found := self.names.meanings(name):
            return found
        if self.names.elsewhere(name):
            self.elsewhere.append(name)
        elif not self.names.unread(name):
            self._missing(name)
        elif changed:
            self.notes.append(f"the adapter also changes {name}, which holds no parameter of the stream")
        return []

    def _has_all(self, name: str) -> bool:
        """Whether the base has every canonical tensor of a parameter."""
        found = self.names.meanings(name)
        return bool(found) and all(self._has(one) for one in found)

    def _has(self, meaning: Meaning) -> bool:
        """Whether the base has a canonical tensor; some families lack the first norm of the first layer only."""
        what, layer = meaning.what, meaning.layer
        if self.base.has(what) or (what == "unembedding" and self.base.dims.tied):
            return True
        return layer > 0 and self.base.vector(what, layer) is not None

    def _expected(self, meaning: Meaning) -> Shape:
        """Shape of a stored tensor."""
        what, stored, dims = meaning.what, meaning.stored, self.base.dims
        if what in self.layout.extra:
            if stored.name.endswith("bias") or (self.base.has(what) and self.base.is_vector(what)):
                return (dims.d,)
            return (dims.d, None) if stored.transpose else (None, dims.d)
        if what == "unembedding":
            return dims.vocab, dims.d
        expected = expected_shape(stored, what, dims)
        if what in _BY_ID:
            return self.base.rows(what), *expected[1:]
        if what in ("q_norm", "k_norm") and (gain := self.base.vector(what, meaning.layer)) is not None:
            return (len(gain),)
        return expected

    def _check(self, name: str, shape: Shape, meaning: Meaning, free: bool) -> None:
        """Refuse another shape than that of the base; ``free`` are the rows of a table of tokens."""
        expected = self._expected(meaning)
        wanted = (None, *expected[1:]) if free else expected
        if len(shape) != len(wanted) or any(
            own is not None and other not in (None, own) for own, other in zip(wanted, shape, strict=True)
        ):
            raise BadWeights(
                f"{self.adapter.files[1]}: {name} is of shape {_shown(shape)}; {meaning.what} of {self.base.name} has "
                f"{_shown(expected)}: the adapter was made for {self._other}."
            )

    def _by_id(self, what: str, table: Tensor) -> Tensor:
        """The rows of the base's tokens, by id: those that the adapter added are left out."""
        count, rows = self.base.dims.vocab, len(table)
        self._compare_tokens(rows)
        if rows >= count:
            return table[:count].contiguous()
        if table.ndim == 1:
            before = self.base.vector(what)
            return torch.cat([table, torch.zeros(count - rows) if before is None else before[rows:].cpu()])
        return torch.cat([table, self._rows_of_base(what, rows, count)])

    def _is_of_base(self, what: str, table: Tensor) -> bool:
        """Whether a table of tokens is the base's own."""
        if table.ndim == 1:
            before = self.base.vector(what)
            return before is not None and torch.equal(table, before.cpu())
        if not (self.base.dims.tied or self.base.has(what)):
            return False
        parts = zip(range(0, len(table), _ROWS), torch.split(table, _ROWS), strict=True)
        return all(torch.equal(part, self._rows_of_base(what, start, start + len(part))) for start, part in parts)

    def _rows_of_base(self, what: str, start: int, stop: int) -> Tensor:
        """Rows of a table of tokens as the base has it."""
        if what == "unembedding" and self.base.dims.tied:
            return self.base.tokens("embedding", slice(start, stop)).cpu()
        return self.base.matrix(what, 0, start, stop).cpu()

    def _change_by_id(self, name: str, change: Change) -> Change:
        """A change of the rows of the base's tokens, by id."""
        count = self.base.dims.vocab
        if isinstance(change, Rows):
            known = change.ids < count
            if not bool(known.all()):
                ids = change.ids[~known]
                self.notes.append(
                    f"the adapter trains {len(ids)} tokens from id {int(ids.min())} on that the base, with {count} "
                    "rows, does not have: they are left out"
                )
            return Rows(change.ids[known], change.values[known])
        rows = change.shape[0]
        if rows is None or rows == count:
            return change
        self._compare_tokens(rows)
        lengths = isinstance(change, LowRank) and change.magnitude is not None
        if not isinstance(change, LowRank) or (lengths and (rows < count or change.axis == 1)):
            self._refuse(f"{name} is changed for {rows} tokens, in a way that needs the base's {count}")
        if rows > count:
            return change.picked(torch.arange(count))
        rest = torch.zeros(count - rows, change.up.shape[1])
        return LowRank(torch.cat([change.up, rest]), change.down, change.scale)

    def _compare_tokens(self, rows: int) -> None:
        """Say which rows an adapter of a resized vocabulary has more, or refuse one that lacks tokens of the base."""
        count = self.base.dims.vocab
        if rows > count:
            self.notes.append(
                f"the adapter's vocabulary has {rows} rows, the base's {count}: rows {count} to {rows - 1}, tokens "
                "that were added, are left out"
            )
        elif rows < count:
            if any(self.base.vocab.pieces[rows:count]):
                raise BadWeights(
                    f"{self.adapter.files[1]}: its vocabulary has {rows} rows, that of {self.base.name} {count}, with "
                    f"tokens in rows {rows} to {count - 1}: the adapter was made for {self._other}."
                )
            self.notes.append(
                f"the adapter's vocabulary has {rows} rows, the base's {count}: rows {rows} to {count - 1}, which have "
                "no token, stay as they are"
            )

    @property
    def _other(self) -> str:
        return self.adapter.settings.base or "another model"

    def _put(self, table: dict[Any, Any], key: object, value: object, name: str) -> None:
        if key in table:
            raise BadWeights(f"{self.adapter.files[1]}: two of its tensors are of the same parameter, {name}.")
        table[key] = value

    def _missing(self, name: str) -> NoReturn:
        raise BadWeights(
            f"{self.adapter.files[1]}: it changes {name}, which {self.base.name} ({self.base.family.name}, "
            f"{self.base.dims.layers} layers) does not have; the adapter was made for {self._other}."
        )

    def _refuse(self, reason: str) -> NoReturn:
        raise BadModel(f"{self.adapter.path}: {reason}.")


def _matrix(computer: Any, module: str, before: Tensor) -> Tensor:
    after: Tensor = computer.matrix(module, before)[0]
    return after


def _bias(computer: Any, module: str, shape: tuple[int, int], before: Tensor) -> Tensor:
    after: Tensor = computer.matrix(module, torch.zeros(shape, device=before.device), before)[1]
    return after


def _writes(meaning: Meaning) -> bool:
    """Whether the canonical matrix is the transpose of what a linear module has: (out, in) against (rows, d)."""
    return side_of(meaning.what) == "write"


def _shown(shape: Iterable[int | None]) -> str:
    return f"({', '.join('any' if size is None else str(size) for size in shape)})"


def _same_table(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one, other)


def _same_change(one: Change | None, other: Change | None, scales: bool = False) -> bool:
    """Whether two tables of tokens are changed by the same numbers; with ``scales`` exactly alike."""
    if isinstance(one, LowRank) and isinstance(other, LowRank):
        alike = one.scale == other.scale and one.magnitude is None and other.magnitude is None
        return (alike or not scales) and torch.equal(one.up, other.up) and torch.equal(one.down, other.down)
    if isinstance(one, Rows) and isinstance(other, Rows):
        return torch.equal(one.ids, other.ids) and torch.equal(one.values, other.values)
    return one is other
