"""Fit an adapter to a base model: find the canonical place of every change, check every shape, report what is left out.

The reference is the model that PEFT computes. If the base ties its unembedding to its embedding, an adapter of one of
the two leaves the other as it was, unless it says otherwise (`ensure_weight_tying`, trained tokens).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import Any, NoReturn

import torch
from torch import Tensor

from zeropass.arch.layout import Layout
from zeropass.arch.roles import BY_TOKEN, side_of
from zeropass.arch.rows import expected_shape
from zeropass.checkpoints.adapter_changes import Added, Change, Computed, LowRank, OfExperts, Rows, Scaled
from zeropass.checkpoints.adapter_methods import Adapter, StackedFactors
from zeropass.errors import BadModel, BadWeights, MissingExtra, in_short
from zeropass.model.adapter_names import Meaning, Names
from zeropass.model.model import Model

__all__ = ["Fitted", "Place", "fit"]

Place = tuple[str, int]
"""A canonical name and a layer; layer 0 for what all layers share."""

Shape = tuple[int | None, ...]
"""A shape; None stands for any size."""

_EMBEDDING, _UNEMBEDDING = ("embedding", 0), ("unembedding", 0)
_ROWS = 8192
"""The number of rows of a table that are compared at once."""

_BY_ID = ("positions", "types", "relative")
"""Tables whose rows have ids that are not tokens."""

_ADDABLE = ("unembedding", "pooler_bias", "head_bias")
"""Parameters that an adapter may bring, besides task heads, to a base that lacks them."""

_UNTRANSPOSED_SINCE = (0, 19, 1)
"""The first version of PEFT whose factors of stacked experts are those of (out, in); before, of its transpose."""


@dataclass(frozen=True, eq=False)
class Fitted:
    """The changes of an adapter, by canonical place.

    Attributes:
        changed: Changes of parameters.
        replaced: Tensors that take the place of the base's, as files in transformers' layout keep them, canonical.
        tied: True if the unembedding is still the embedding.
        notes: What was left out, one sentence each.
    """

    changed: dict[Place, Change]
    replaced: dict[Place, Tensor]
    tied: bool
    notes: tuple[str, ...]


def fit(base: Model, layouts: tuple[Layout, ...], adapter: Adapter) -> Fitted:
    """Find the place of everything that an adapter brings.

    Args:
        base: The model that the adapter changes.
        layouts: Its layout in transformers' names; inside a multimodal model one for each generation of names.
        adapter: The adapter as it was read.

    Returns:
        The changes by place.

    Raises:
        BadModel: If the meaning of something would have to be guessed.
        BadWeights: If something does not fit or the base lacks it; names the tensor and the shapes.
    """
    if base.layout.gains:
        raise BadModel(
            f"{base.name}: experts that have norms of their own are read with the gains of these, which an adapter of "
            "them does not know. Merge the adapter into the model and read that."
        )
    fitting = _Fitting(base, layouts[0], adapter, Names(base.family, layouts, base.dims))
    for name, tensor in adapter.whole.items():
        fitting.take_tensor(name, tensor)
    for name, change in adapter.changes.items():
        fitting.take_change(name, change)
    for module, factors in adapter.stacked.items():
        fitting.take_stacked(module, factors)
    fitting.take_computed()
    return fitting.finish()


@dataclass(eq=False)
class _Fitting:
    """The state of one fit.

    Attributes:
        base: The model that the adapter changes.
        layout: The ``hf`` layout of its family.
        adapter: The adapter as it was read.
        names: The names of the base's parameters.
        changed: Changes found so far.
        replaced: Tensors, found so far, that take the place of the base's.
        experts: Changes of single experts, by place and expert.
        shared: Tables that are loaded into the one table of a tied base.
        other_stack: Names of tensors that belong to the other stack.
        unread: Names of changed tensors that hold no parameter of the stream.
        notes: Notes so far.
    """

    base: Model
    layout: Layout
    adapter: Adapter
    names: Names
    changed: dict[Place, Change] = field(default_factory=dict)
    replaced: dict[Place, Tensor] = field(default_factory=dict)
    experts: dict[Place, dict[int, Change]] = field(default_factory=dict)
    shared: dict[Place, Tensor] = field(default_factory=dict)
    other_stack: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def take_tensor(self, name: str, tensor: Tensor) -> None:
        """Register a tensor that takes the place of the base's."""
        for meaning in self._meanings(name):
            what, place = meaning.what, meaning.place
            if meaning.expert is not None:
                self._refuse(f"{name} is brought whole, which is not read of experts")
            self._check(name, tuple(tensor.shape), meaning, free=what in BY_TOKEN)
            if not (self._has(meaning) or what in _ADDABLE or what in self.layout.extra):
                self._missing(name)
            values = tensor.T if meaning.stored.transpose and tensor.ndim == 2 else tensor
            values = (values if meaning.index is None else values[meaning.index]).contiguous()
            if what in BY_TOKEN:
                values = self._by_id(what, values)
            if place in (_EMBEDDING, _UNEMBEDDING) and self.base.dims.tied and not self.adapter.settings.saved(name):
                self._put(self.shared, place, values, name)
            elif what not in BY_TOKEN or not self._is_of_base(what, values):  # PEFT also saves tables that it adapts
                self._put(self.replaced, place, values, name)

    def take_change(self, name: str, change: Change) -> None:
        """Register a change of one parameter."""
        exists = self._has_all(name)
        if isinstance(change, Scaled) and change.vector and not exists:
            return  # a module without a bias has nothing to scale
        for meaning in self._meanings(name, changed=True):
            if not exists and not isinstance(change, Added):
                self._missing(name)
            by_token = meaning.what in BY_TOKEN
            shape = change.shape
            if len(shape) == 2 and meaning.stored.transpose != _writes(meaning):
                shape = shape[::-1]  # a module whose weight is kept as (in, out)
            self._check(name, shape, meaning, free=by_token)
            fitted = self._change_by_id(name, change) if by_token else change
            self._place(name, meaning, fitted if meaning.index is None else fitted.picked(meaning.index))

    def _place(self, name: str, meaning: Meaning, change: Change) -> None:
        """Register a change of (out, in) at its place, transposed where the canonical matrix is."""
        place = meaning.place
        canonical = change.turned() if _writes(meaning) else change
        if meaning.expert is None:
            self._put(self.changed, place, canonical, name)
        else:
            self._put(self.experts.setdefault(place, {}), meaning.expert, canonical, name)

    def take_stacked(self, module: str, factors: Sequence[StackedFactors]) -> None:
        """Register factors of parameters that stack experts; transformers 5 stacks gate and up in one of them."""
        places = {what: self.names.experts(module, what) for what in ("gate", "up", "value")}
        if not all(places.values()):
            self._missing(f"{module} (target_parameters)")
        settings, size = self.adapter.settings, self.base.dims.expert_neurons
        inputs_first = not places["value"][0].stored.transpose
        for stack in factors:
            leaf, expert_factors = self._experts_of(module, stack, inputs_first)
            rank, name = stack.down.shape[0] // self.base.dims.experts, f"{module}.{leaf}"
            if rank != settings.number(name, "rank_pattern", "r"):
                self._refuse(f"the factors of {name} have rank {rank}, which is not what the settings say")
            for expert, (up, down) in enumerate(expert_factors):
                change = LowRank(up, down, settings.scale(name, rank))
                if leaf == "down_proj":
                    self._place(name, places["value"][expert], change)
                    continue
                for what, start in (("gate", 0), ("up", size)):
                    meaning = places[what][expert]
                    rows = torch.arange(start, start + size) if meaning.index is None else meaning.index
                    self._place(name, meaning, change.picked(rows))

    def _experts_of(
        self, module: str, factors: StackedFactors, inputs_first: bool
    ) -> tuple[str, list[tuple[Tensor, Tensor]]]:
        """Return the parameter of the factors, found by their shapes, and each expert's (out, r) and (r, in).

        No version of PEFT turns those of parameters that are (experts, in, out), ``inputs_first``.
        """
        count, size, d = self.base.dims.experts, self.base.dims.expert_neurons, self.base.dims.d
        rows, inside, out, columns = *factors.down.shape, *factors.up.shape
        shapes = {"gate_up_proj": (2 * size, d), "down_proj": (d, size)}
        leaves = self.adapter.settings.parameters(module)
        direct = [leaf for leaf in leaves if shapes.get(leaf) == (out, inside)]
        transposed = [leaf for leaf in leaves if shapes.get(leaf) == (inside, out)]
        if rows != columns or rows % count or not (direct or transposed):
            known = " and ".join(f"{shape} in {leaf}" for leaf, shape in shapes.items())
            raise BadWeights(
                f"{self.adapter.place}: the factors of {module} have shapes {tuple(factors.down.shape)} and "
                f"{tuple(factors.up.shape)}; each of the {count} experts of {self.base.name} is {known}."
            )
        if direct and transposed and inputs_first:
            transposed = []
        if direct and transposed:
            version = self.adapter.settings.version()
            if not version:
                self._refuse(f"the factors of {module} may be turned, and peft_version does not say which way they are")
            direct = direct if version >= _UNTRANSPOSED_SINCE else []
        rank = rows // count
        downs = factors.down.reshape(count, rank, inside)
        ups = factors.up.reshape(out, rank, count).permute(2, 0, 1)
        if direct:
            return direct[0], list(zip(ups, downs, strict=True))
        return transposed[0], [(down.T, up.T) for down, up in zip(downs, ups, strict=True)]

    def take_computed(self) -> None:
        """Register the modules whose change PEFT computes."""
        modules = {module: self._plain_module(module) for module in self.adapter.computed if module}
        if not self.adapter.computed:
            return
        if not modules or self.other_stack:
            self._refuse(f"{self.adapter.settings.method} is read of whole models with some changed modules only")
        shapes = {module: (shape, self._has_all(f"{module}.bias")) for module, (_, shape) in modules.items()}
        try:
            computer = import_module("zeropass.checkpoints.adapter_peft").Computer(self.adapter, shapes)
        except MissingExtra as error:
            raise MissingExtra(
                f"{self.adapter.folder} is of the kind {self.adapter.settings.method}: {error}"
            ) from error
        for module, (meaning, shape) in modules.items():
            self._place(module, meaning, Computed(partial(_matrix, computer, module), shape))
            if shapes[module][1]:
                (target,) = self.names.meanings(f"{module}.bias")
                bias = Computed(partial(_bias, computer, module, shape), shape[:1])
                self._put(self.changed, target.place, bias, f"{module}.bias")

    def _plain_module(self, module: str) -> tuple[Meaning, tuple[int, int]]:
        """Return the meaning of a module that is one linear matrix of a block, and its (out, in)."""
        name, method = f"{module}.weight", self.adapter.settings.method
        meanings = self._meanings(name)
        if not meanings:
            self._refuse(f"{method} is read of one stack of a model only, and {module} is of another")
        meaning = meanings[0]
        plain = len(meanings) == 1 and meaning.index is None and meaning.expert is None and self._has(meaning)
        shape = self._expected(meaning)
        if not plain or meaning.stored.transpose != _writes(meaning) or len(shape) != 2 or None in shape:
            self._refuse(f"{method} is read of plain linear modules only, and {module} is none")
        if meaning.what in (*BY_TOKEN, *_BY_ID):
            self._refuse(f"{method} is read of linear modules of the blocks only, and {module} is a table")
        out, inside = (int(size or 0) for size in shape)
        return meaning, (out, inside)

    def finish(self) -> Fitted:
        """Combine the changes of experts, decide whether the tables are tied, and note what was left out."""
        for place, changes in self.experts.items():
            self._put(self.changed, place, OfExperts(changes, partial(self._rows_of, place[1])), place[0])
        tied = self.base.dims.tied and self._tied()
        if self.other_stack:
            self.notes.append(
                f"the adapter also changes the other stack of this model, which is read by itself: "
                f"{len(self.other_stack)} tensors ({self.other_stack[0]} …)"
            )
        if self.unread:
            self.notes.append(
                "the adapter also changes tensors that hold no parameter of the stream: "
                f"{in_short(dict.fromkeys(self.unread))}"
            )
        return Fitted(self.changed, self.replaced, tied, tuple(dict.fromkeys(self.notes)))

    def _tied(self) -> bool:
        """Give both tables of a tied base what PEFT's model has, and tell whether they are still one."""
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
            return True  # an encoder without a head is read through its changed embedding
        return _same_table(self.replaced.get(_EMBEDDING), self.replaced.get(_UNEMBEDDING)) and _same_change(
            self.changed.get(_EMBEDDING), self.changed.get(_UNEMBEDDING), scales=True
        )

    def _follow(self) -> None:
        """Give the unembedding what the embedding has, since the adapter says that they stay one table."""
        table, other_table = self.replaced.get(_EMBEDDING), self.replaced.get(_UNEMBEDDING)
        change, other_change = self.changed.get(_EMBEDDING), self.changed.get(_UNEMBEDDING)
        alike = (other_table is None or _same_table(table, other_table)) and (
            other_change is None
            or (change is None and isinstance(other_change, Rows))
            or _same_change(change, other_change)
        )
        if not alike or (other_change is None and isinstance(change, LowRank) and change.magnitude is not None):
            self._refuse("it says that embedding and unembedding stay tied, and changes them differently")
        if table is not None:
            self.replaced[_UNEMBEDDING] = table
        if change is not None and other_change is None:
            self.changed[_UNEMBEDDING] = change

    def _rows_of(self, layer: int, expert: int) -> slice:
        """Return the rows of an expert in the matrices of a layer."""
        mlps = self.base.dims.mlps
        start = mlps.row_of(layer, expert, 0)
        return slice(start, start + mlps.sizes(layer)[expert])

    def _has_head(self) -> bool:
        """Tell whether the base has a language model's head; a decoder always has one."""
        return self.base.family.causal or self.base.has("unembedding") or self.base.has("mlm")

    def _meanings(self, name: str, changed: bool = False) -> list[Meaning]:
        """Return the canonical tensors of a parameter, and refuse a name that the model does not have."""
        if meanings := self.names.meanings(name):
            return meanings
        if self.names.elsewhere(name):
            self.other_stack.append(name)
        elif not self.names.unread(name):
            self._missing(name)
        elif changed:
            self.unread.append(name)
        return []

    def _has_all(self, name: str) -> bool:
        """Tell whether the base has every canonical tensor of a parameter."""
        meanings = self.names.meanings(name)
        return bool(meanings) and all(self._has(meaning) for meaning in meanings)

    def _has(self, meaning: Meaning) -> bool:
        """Tell whether the base has a canonical tensor; some families lack only the first norm of the first layer."""
        what, layer = meaning.what, meaning.layer
        if self.base.has(what) or (what == "unembedding" and self.base.dims.tied):
            return True
        return layer > 0 and self.base.vector(what, layer) is not None

    def _expected(self, meaning: Meaning) -> Shape:
        """Return the shape of a stored tensor."""
        what, stored, dims = meaning.what, meaning.stored, self.base.dims.at(meaning.layer)
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
        """Refuse a shape that is not the base's; if ``free``, any number of rows of a table of tokens will do."""
        expected = self._expected(meaning)
        required = (None, *expected[1:]) if free else expected
        if len(shape) != len(required) or any(
            size is not None and given not in (None, size) for size, given in zip(required, shape, strict=True)
        ):
            raise BadWeights(
                f"{self.adapter.place}: {name} is of shape {_shown(shape)}; {meaning.what} of {self.base.name} has "
                f"{_shown(expected)}: the adapter was made for {self._other}."
            )

    def _by_id(self, what: str, table: Tensor) -> Tensor:
        """Return the rows of the base's tokens, by id, without those of tokens that the adapter added."""
        count, rows = self.base.dims.vocab, len(table)
        self._compare_tokens(rows)
        if rows >= count:
            return table[:count].contiguous()
        if table.ndim == 1:
            before = self.base.vector(what)
            return torch.cat([table, torch.zeros(count - rows) if before is None else before[rows:].cpu()])
        return torch.cat([table, self._rows_of_base(what, rows, count)])

    def _is_of_base(self, what: str, table: Tensor) -> bool:
        """Tell whether a table of tokens is the base's own."""
        if table.ndim == 1:
            before = self.base.vector(what)
            return before is not None and torch.equal(table, before.cpu())
        if not (self.base.dims.tied or self.base.has(what)):
            return False
        parts = zip(range(0, len(table), _ROWS), torch.split(table, _ROWS), strict=True)
        return all(torch.equal(part, self._rows_of_base(what, start, start + len(part))) for start, part in parts)

    def _rows_of_base(self, what: str, start: int, stop: int) -> Tensor:
        """Return rows of a table of tokens as the base has it."""
        if what == "unembedding" and self.base.dims.tied:
            return self.base.tokens("embedding", slice(start, stop)).cpu()
        return self.base.matrix(what, 0, start, stop).cpu()

    def _change_by_id(self, name: str, change: Change) -> Change:
        """Return a change restricted to the rows of the base's tokens, by id."""
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
        """Note the rows by which the vocabularies differ, or refuse an adapter that lacks tokens of the base."""
        count = self.base.dims.vocab
        if rows > count:
            self.notes.append(
                f"the adapter's vocabulary has {rows} rows, the base's {count}: rows {count} to {rows - 1}, tokens "
                "that were added, are left out"
            )
        elif rows < count:
            if any(self.base.vocab.pieces[rows:count]):
                raise BadWeights(
                    f"{self.adapter.place}: its vocabulary has {rows} rows, that of {self.base.name} {count}, with "
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
            raise BadWeights(f"{self.adapter.place}: two of its tensors are of the same parameter, {name}.")
        table[key] = value

    def _missing(self, name: str) -> NoReturn:
        raise BadWeights(
            f"{self.adapter.place}: it changes {name}, which {self.base.name} ({self.base.family.name}, "
            f"{self.base.dims.layers} layers) does not have; the adapter was made for {self._other}."
        )

    def _refuse(self, reason: str) -> NoReturn:
        raise BadModel(f"{self.adapter.folder}: {reason}.")


def _matrix(computer: Any, module: str, before: Tensor) -> Tensor:
    after: Tensor = computer.matrix(module, before)[0]
    return after


def _bias(computer: Any, module: str, shape: tuple[int, int], before: Tensor) -> Tensor:
    after: Tensor = computer.matrix(module, torch.zeros(shape, device=before.device), before)[1]
    return after


def _writes(meaning: Meaning) -> bool:
    """Tell whether the canonical matrix (rows, d) is the transpose of a linear module's (out, in)."""
    return side_of(meaning.place[0]) == "write"


def _shown(shape: Iterable[int | None]) -> str:
    return f"({', '.join('any' if size is None else str(size) for size in shape)})"


def _same_table(first: Tensor | None, second: Tensor | None) -> bool:
    if first is None or second is None:
        return first is second
    return torch.equal(first, second)


def _same_change(first: Change | None, second: Change | None, scales: bool = False) -> bool:
    """Tell whether two tables of tokens are changed by the same factors or rows; with ``scales``, exactly alike."""
    if isinstance(first, LowRank) and isinstance(second, LowRank):
        alike = first.scale == second.scale and first.magnitude is None and second.magnitude is None
        return (alike or not scales) and torch.equal(first.up, second.up) and torch.equal(first.down, second.down)
    if isinstance(first, Rows) and isinstance(second, Rows):
        return torch.equal(first.ids, second.ids) and torch.equal(first.values, second.values)
    return first is second
