"""Opens what is served: an atlas, or two, and what was found of them; refuses what does not belong together."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zeropass.align.alignment_folder import read_alignment
from zeropass.align.results import Alignment
from zeropass.atlas.read import Atlas, open_atlas
from zeropass.errors import BadOption
from zeropass.web.context import Context, local_name
from zeropass.web.pages.comparison_pages import read_diff

__all__ = ["SECOND", "Sources", "open_sources"]

SECOND = "second/"
"""What stands before the addresses of the second model."""


@dataclass(frozen=True)
class Sources:
    """The folders of what is to be shown, and the names of the models that the atlases were built from."""

    atlas: Path
    model: str | None = None
    second: Path | None = None
    second_model: str | None = None
    alignment: Path | None = None
    diff: Path | None = None


def open_sources(sources: Sources) -> list[Context]:
    """The contexts of some sources, the first model's first.

    Raises BadAtlas for a folder that is no atlas, BadOption for an alignment or a difference of other models.
    """
    atlas = open_atlas(sources.atlas)
    found = read_alignment(sources.alignment) if sources.alignment else None
    diff = read_diff(sources.diff) if sources.diff else None
    if found:
        _require(atlas, found.models[0], sources.alignment, "the first model")
    if diff and not atlas.is_change:
        _require(atlas, diff["base"], sources.diff, "the base")
    contexts = [Context(atlas, weights=sources.model or local_name(atlas), alignment=found, diff=diff)]
    if sources.second:
        contexts.append(_second(sources, found))
        contexts[0].other, contexts[1].other = contexts[1], contexts[0]
    return contexts


def _second(sources: Sources, found: Alignment | None) -> Context:
    atlas = open_atlas(Path(str(sources.second)))
    if found:
        _require(atlas, found.models[1], sources.alignment, "the second model")
    return Context(atlas, SECOND, sources.second_model or local_name(atlas), alignment=found, part=1)


def _require(atlas: Atlas, model: dict[str, Any], folder: Path | None, which: str) -> None:
    """BadOption for what was found of other weights than the atlas's; what does not say its weights is believed."""
    stored = model.get("sha256")
    if stored is not None and stored != atlas.manifest.get("weights_sha256"):
        raise BadOption(f"{folder} is about other weights than {atlas.path}: {which} there is {model.get('name')!r}.")
