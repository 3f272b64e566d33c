"""The context of a page: one atlas, its weights if they are at hand, and the comparison with another model."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zeropass as zp
from zeropass.align.results import Alignment, Pairing
from zeropass.arch.roles import OUTSIDE
from zeropass.atlas.distributions import Neighbours
from zeropass.atlas.highlights import Highlights, highlights_of
from zeropass.atlas.read import Atlas
from zeropass.checkpoints.demo import DEMOS, cache_folder
from zeropass.errors import BadAtlas, BadOption
from zeropass.heads.kept_heads import kept_heads
from zeropass.heads.results import Head, HeadCatalogue

if TYPE_CHECKING:
    from zeropass.lens import Lens
    from zeropass.numerics.factored import Factored

__all__ = ["Context", "local_name"]


@dataclass(eq=False)
class Context:
    """One atlas with what belongs to it.

    Attributes:
        atlas: The atlas.
        prefix: The prefix of all its addresses (``second/`` for the second model of an alignment).
        weights: The name of the model, for what only the weights can tell.
        alignment: The result of `zeropass align`.
        diff: The result of `zeropass diff`.
        other: The context of the other model.
        part: The index of this model in the alignment, 0 or 1.
    """

    atlas: Atlas
    prefix: str = ""
    weights: str | None = None
    alignment: Alignment | None = None
    diff: dict[str, Any] | None = None
    other: "Context | None" = None
    part: int = 0
    _lens_lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def name(self) -> str:
        """The name of the model."""
        return str(self.atlas.model["name"])

    @cached_property
    def highlights(self) -> Highlights:
        """The parts of the atlas that a newcomer reads first."""
        return highlights_of(self.atlas)

    @cached_property
    def has_outside(self) -> bool:
        """True if the atlas has lists of what lies outside the blocks, or is damaged, which their page then says."""
        try:
            return any(run.layer == OUTSIDE for run in self.atlas.runs)
        except BadAtlas:
            return True

    @cached_property
    def neighbours(self) -> Neighbours:
        """The nearest tokens of each token."""
        return Neighbours(self.atlas)

    @property
    def rotary(self) -> bool:
        """True if an offset between positions has a meaning: if they rotate, or if distances have vectors."""
        return bool(self.atlas.model.get("rotary"))

    def lens(self) -> "Lens":
        """Return the model itself. Raise BadOption, with advice, if its weights are not at hand."""
        if self.weights is None:
            raise BadOption(
                "This is computed from the weights, and this server was not told where they are: "
                "start it with --model MODEL, the model that the atlas was built from."
            )
        with self._lens_lock:
            return self._lens

    @cached_property
    def _lens(self) -> "Lens":
        lens: Lens = zp.lens_of(self.atlas, str(self.weights))
        return lens

    @cached_property
    def heads(self) -> HeadCatalogue | None:
        """The catalogue of the heads of the model, if `zeropass heads` has kept one of its weights."""
        return None if self.atlas.is_change else kept_heads(str(self.atlas.manifest.get("weights_sha256")))

    def head(self, address: str) -> Head | None:
        """Return what a head does, if that is known."""
        return next((head for head in self.heads or () if head.address == address), None)

    def head_map(self, address: str, offset: int) -> "Factored":
        """Return a head map in the usual frame as its factors. The last few are cached (25 MB each for SmolLM2)."""
        factored: Factored = self._maps(address, offset)
        return factored

    @cached_property
    def _maps(self) -> Callable[[str, int], "Factored"]:
        return lru_cache(6)(lambda address, offset: self.lens().head_map(address, offset=offset))

    def matches(self, stem: str) -> list[Pairing]:
        """Return the pairings of a neuron or head of this model, by its address without a role; best first."""
        return self._matches.get(stem, [])

    @cached_property
    def _matches(self) -> dict[str, list[Pairing]]:
        by_stem: dict[str, list[Pairing]] = {}
        for pairing in self.alignment.pairings if self.alignment else ():
            by_stem.setdefault(stem_of(pairing.second if self.part else pairing.first), []).append(pairing)
        for pairings in by_stem.values():
            pairings.sort(key=lambda pairing: -pairing.effect)
        return by_stem


def stem_of(address: str) -> str:
    """Return an address without the role of a neuron or head map: ``L3.attn.2`` for ``L3.attn.2.vo``."""
    stem, _, role = address.rpartition(".")
    return address if role.isdigit() else stem


def local_name(atlas: Atlas) -> str | None:
    """Return the name of the model that an atlas was built from if it is on this machine. Nothing is ever fetched.

    An atlas may come from anywhere; the model it names is used only if its weights have the atlas's hash (`lens_of`).
    """
    name = str(atlas.model["name"])
    if atlas.is_change:
        return None
    if name in DEMOS:
        folder = cache_folder() / "demo" / name
        complete = all((folder / file.name).is_file() for file in DEMOS[name].files)
        return name if complete else None
    path = name.removesuffix("#encoder").removesuffix("#decoder")
    return name if _is_model(Path(path)) else None


def _is_model(path: Path) -> bool:
    try:
        return (path / "config.json").is_file() or (path.suffix == ".gguf" and path.is_file())
    except (OSError, ValueError):  # the name cannot be a path on this system
        return False
