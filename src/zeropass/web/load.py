"""Open what is served: an atlas, or two, and the results of comparing them. Refuse what does not belong together."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zeropass._io.short_repr import ShortRepr
from zeropass.align.alignment_folder import read_alignment
from zeropass.align.results import Alignment
from zeropass.atlas.read import Atlas, open_atlas
from zeropass.errors import BadOption
from zeropass.web.context import Context, local_name
from zeropass.web.pages.comparison_pages import read_diff

__all__ = ["SECOND", "Sources", "open_sources"]

SECOND = "second/"
"""The prefix of the addresses of the second model."""


@dataclass(frozen=True, repr=False)
class Sources(ShortRepr):
    """The atlases and results to be served.

    Attributes:
        atlas: The folder of the atlas, or its address on the hub.
        model: The model that the atlas was built from.
        second: A second atlas.
        second_model: The model that the second atlas was built from.
        alignment: A folder that `zeropass align` wrote.
        diff: A folder that `zeropass diff --out` wrote.

    Example:
        >>> import zeropass as zp
        >>> zp.Sources("demo/smollm2-135m", model="smollm2-135m").model
        'smollm2-135m'
    """

    atlas: str | Path
    model: str | Path | None = None
    second: str | Path | None = None
    second_model: str | Path | None = None
    alignment: str | Path | None = None
    diff: str | Path | None = None


def open_sources(sources: Sources) -> list[Context]:
    """Return the contexts of some sources, the first model's first.

    Raises:
        BadAtlas: If a folder is not an atlas.
        BadOption: If an alignment or a difference is of other models.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> import zeropass as zp
        >>> options = zp.Options(k=10, layers=(1, 2), roles=("gate",))
        >>> with TemporaryDirectory() as folder:
        ...     fresh = zp.build(zp.open_model("models/first"), folder, options)
        ...     contexts = zp.open_sources(zp.Sources(folder))
        >>> [context.name for context in contexts]
        ['models/first']
    """
    atlas = open_atlas(sources.atlas)
    alignment = read_alignment(sources.alignment) if sources.alignment else None
    diff = read_diff(Path(sources.diff)) if sources.diff else None
    if alignment:
        _require(atlas, alignment.models[0], sources.alignment, "the first model")
    if diff and not atlas.is_change:
        _require(atlas, diff["base"], sources.diff, "the base")
    contexts = [Context(atlas, weights=_name(sources.model) or local_name(atlas), alignment=alignment, diff=diff)]
    if sources.second:
        contexts.append(_second(sources, alignment))
        contexts[0].other, contexts[1].other = contexts[1], contexts[0]
    return contexts


def _second(sources: Sources, alignment: Alignment | None) -> Context:
    atlas = open_atlas(str(sources.second))
    if alignment:
        _require(atlas, alignment.models[1], sources.alignment, "the second model")
    return Context(atlas, SECOND, _name(sources.second_model) or local_name(atlas), alignment=alignment, part=1)


def _name(model: str | Path | None) -> str | None:
    return None if model is None else str(model)


def _require(atlas: Atlas, model: dict[str, Any], folder: str | Path | None, label: str) -> None:
    """Raise BadOption for a result of other weights than the atlas's. One that does not name its weights is trusted."""
    stored = model.get("sha256")
    if stored is not None and stored != atlas.manifest.get("weights_sha256"):
        raise BadOption(f"{folder} is about other weights than {atlas.path}: {label} there is {model.get('name')!r}.")
