"""What is served: one atlas, its weights if they are at hand, and what two models have to say of each other."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zeropass as zp
from zeropass.align.results import Alignment, Pairing
from zeropass.atlas.distributions import Neighbours
from zeropass.atlas.read import Atlas
from zeropass.checkpoints.demo import DEMOS, cache_folder
from zeropass.errors import BadOption

if TYPE_CHECKING:
    from zeropass.lens import Lens
    from zeropass.numerics.factored import Factored

__all__ = ["Context", "local_name"]


@dataclass(eq=False)
class Context:
    """One atlas and what goes with it.

    ``prefix`` stands before all its addresses (``second/`` for the other model of an alignment). ``weights`` names the
    model for what only weights can tell. ``alignment`` and ``diff`` are what `zeropass align` and `diff` stored;
    ``other`` is the context of the second model. ``part`` is which of the two models of the alignment this is.
    """

    atlas: Atlas
    prefix: str = ""
    weights: str | None = None
    alignment: Alignment | None = None
    diff: dict[str, Any] | None = None
    other: "Context | None" = None
    part: int = 0
    _opening: threading.Lock = field(default_factory=threading.Lock)

    @property
    def name(self) -> str:
        """What the model is called."""
        return str(self.atlas.model["name"])

    @cached_property
    def neighbours(self) -> Neighbours:
        """Which tokens lie near one."""
        return Neighbours(self.atlas)

    @property
    def rotary(self) -> bool:
        """Whether the model has rotary positions, so that an offset has a meaning."""
        return bool(self.atlas.model.get("rotary"))

    def lens(self) -> "Lens":
        """The model itself; BadOption, with what to do, if its weights are not at hand."""
        if self.weights is None:
            raise BadOption(
                "This is computed from the weights, and this server was not told where they are: "
                "start it with --model MODEL, the model that the atlas was built from."
            )
        with self._opening:
            return self._lens

    @cached_property
    def _lens(self) -> "Lens":
        found: Lens = zp.lens_of(self.atlas, str(self.weights))
        return found

    def head_map(self, address: str, offset: int) -> "Factored":
        """A head map in the token frame as its factors; the last few are kept (25 MB each for SmolLM2)."""
        found: Factored = self._maps(address, offset)
        return found

    @cached_property
    def _maps(self) -> Callable[[str, int], "Factored"]:
        return lru_cache(6)(lambda address, offset: self.lens().head_map(address, offset=offset))

    def matches(self, stem: str) -> list[Pairing]:
        """What an alignment found for a neuron or a head of this model, by its address without a role."""
        return self._matches.get(stem, [])

    @cached_property
    def _matches(self) -> dict[str, list[Pairing]]:
        found: dict[str, list[Pairing]] = {}
        for one in self.alignment.pairings if self.alignment else ():
            found.setdefault(stem_of(one.second if self.part else one.first), []).append(one)
        for several in found.values():
            several.sort(key=lambda one: -one.effect)
        return found


def stem_of(address: str) -> str:
    """An address without the role of a neuron or head map: ``L3.attn.2.vo`` is of ``L3.attn.2``."""
    stem, _, role = address.rpartition(".")
    return address if role.isdigit() else stem


def local_name(atlas: Atlas) -> str | None:
    """The model that an atlas was built from, if its name is one of this machine: nothing is ever fetched for it.

    An atlas may come from anywhere; what it names is used only where its weights have the atlas's hash (`lens_of`).
    """
    name = str(atlas.model["name"])
    if atlas.is_change:
        return None
    if name in DEMOS:
        folder = cache_folder() / "demo" / name
        whole = all((folder / one.name).is_file() for one in DEMOS[name].files)
        return name if whole else None
    path = name.removesuffix("#encoder").removesuffix("#decoder")
    return name if _is_model(Path(path)) else None


def _is_model(path: Path) -> bool:
    try:
        return (path / "config.json").is_file() or (path.suffix == ".gguf" and path.is_file())
    except (OSError, ValueError):  # no name that this system could have
        return False
