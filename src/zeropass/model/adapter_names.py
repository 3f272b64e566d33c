"""The canonical tensors that an adapter's names stand for in a base model. Full names match, never suffixes."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from zeropass.arch.dimensions import Dimensions
from zeropass.arch.families import FAMILIES
from zeropass.arch.layout import KEYS_AS_VALUES, Layout, Stored, names_of, share_of
from zeropass.arch.rows import row_index
from zeropass.arch.spec import Family

__all__ = ["Meaning", "Names"]

_WRAPPERS = {"t5": ("transformer.",)}
"""Prefixes that task models add to every name and that no layout of the family lists."""


@dataclass(frozen=True)
class Meaning:
    """A canonical tensor that a stored tensor holds.

    Attributes:
        what: Canonical name.
        layer: The layer; 0 for what all layers share.
        stored: The entry of the record.
        index: The rows of the stored tensor, if it holds more than these (`row_index`).
        expert: The expert whose rows they are, if any; the shared one is numbered behind the others.
    """

    what: str
    layer: int
    stored: Stored
    index: Tensor | None = None
    expert: int | None = None

    @property
    def place(self) -> tuple[str, int]:
        """The canonical matrix of the layer that has these rows, by its role."""
        return "v" if self.what == KEYS_AS_VALUES else share_of(self.what)[1], self.layer


_STACKS = {"gate": "gate_up_proj", "up": "gate_up_proj", "value": "down_proj"}
"""The parameters that stack the experts of a module of transformers 5."""


@dataclass(frozen=True)
class Names:
    """The names of a model's parameters inside the model of transformers.

    Attributes:
        family: The record of the family.
        layouts: Its layout in transformers' names; inside a multimodal model one for each generation of names.
        dims: Sizes of the model.
    """

    family: Family
    layouts: tuple[Layout, ...]
    dims: Dimensions

    def meanings(self, name: str) -> list[Meaning]:
        """Return the canonical tensors of a parameter; none for a name that the model does not have."""
        return self._known.get(name, [])

    def elsewhere(self, name: str) -> bool:
        """Tell whether the other stack of an encoder-decoder has a parameter of this name in any layer."""
        return any(
            re.fullmatch(re.escape(full_name).replace(r"\{layer\}", r"\d{1,5}"), name)
            for family, layout in self._others
            for what, stored in _entries(layout)
            for full_name in _full_names(family, layout, what, stored.name)
        )

    def unread(self, name: str) -> bool:
        """Tell whether the record says that a tensor of this name holds no parameter of the stream.

        For an encoder-decoder both records must say so, since each leaves the other stack unread.
        """
        this = any(_unread(self.family, layout, name) for layout in self.layouts)
        return this and all(_unread(family, layout, name) for family, layout in self._others)

    def experts(self, module: str, what: str) -> list[Meaning]:
        """Return the canonical tensors, one for each expert, of a module that stacks experts (``…mlp.experts``)."""
        for layout in self.layouts:
            stored = layout.tensors.get(what)
            if stored is None or "{expert}" not in stored.name:
                return []
            stem = stored.name.removesuffix(f".{_STACKS[what]}[{{expert}}]").partition(".{expert}")[0]
            if "{expert}" in stem:
                return []
            index = row_index(stored, what, self.dims)
            for layer in range(self.dims.layers):
                if module in _full_names(self.family, layout, what, stem.format(layer=layer)):
                    return [Meaning(what, layer, stored, index, expert) for expert in range(self.dims.experts)]
        return []

    @cached_property
    def _known(self) -> dict[str, list[Meaning]]:
        meanings: dict[str, list[Meaning]] = {}
        for layout in self.layouts:
            meanings = {**self._named(layout), **meanings}
        return meanings

    def _named(self, layout: Layout) -> dict[str, list[Meaning]]:
        """Return the full names of one layout, each with the canonical tensors that it stands for."""
        meanings: dict[str, list[Meaning]] = {}
        for what, stored in _entries(layout):
            index = row_index(stored, what, self.dims)
            shared = share_of(what)[0] == "shared"
            if shared and what == "shared_router":
                continue  # a row of the router is no linear module
            for layer in range(self.dims.layers if "{layer}" in stored.name else 1):
                names = names_of(stored, layer, self.dims)
                for number, name in enumerate(names):
                    expert = self.dims.experts if shared else number if len(names) > 1 else None
                    for full_name in _full_names(self.family, layout, what, name):
                        meanings.setdefault(full_name, []).append(Meaning(what, layer, stored, index, expert))
        return meanings

    @cached_property
    def _others(self) -> list[tuple[Family, Layout]]:
        """The records of the other stack."""
        records = []
        for family in FAMILIES:
            layout = family.layout("hf")
            if layout and family.name == self.family.name and family.stack != self.family.stack:
                records.append((family, layout))
        return records


def _entries(layout: Layout) -> Iterator[tuple[str, Stored]]:
    yield from layout.tensors.items()
    for what, (stored, _) in layout.extra.items():
        yield what, stored


def _full_names(family: Family, layout: Layout, what: str, name: str) -> list[str]:
    """Return all names that a tensor may have inside a model."""
    if name.startswith("^"):
        return [name[1:]]
    if what == "embedding" and family.stack:
        name = f"{family.stack}.embed_tokens.weight"  # each stack runs its own module, not the shared one
    names = dict.fromkeys((name, name.replace(".block_sparse_moe.", ".mlp.")))  # transformers 4 and 5
    return [prefix + alias for prefix in _prefixes(family, layout) for alias in names]


def _unread(family: Family, layout: Layout, name: str) -> bool:
    for pattern in layout.unread:
        if pattern.startswith(r"\^"):
            if re.fullmatch(pattern.removeprefix(r"\^"), name):
                return True
        elif any(re.fullmatch(re.escape(prefix) + f"(?:{pattern})", name) for prefix in _prefixes(family, layout)):
            return True
    return False


def _prefixes(family: Family, layout: Layout) -> list[str]:
    return list(dict.fromkeys((*layout.prefixes, *_WRAPPERS.get(family.name, ()))))
