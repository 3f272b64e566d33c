"""Text models inside multimodal ones: their configuration, the names of their tensors, and what else a file holds.

The record of its own family reads a text model; its layout gets the names that the tensors have inside the `Wrapper`.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from zeropass.arch.families.multimodal import ASSUMED, NOT_READ, WRAPPERS
from zeropass.arch.layout import Layout, Stored
from zeropass.arch.spec import Wrapper
from zeropass.checkpoints.model_files import ModelFiles
from zeropass.errors import BadModel, UnknownFamily

__all__ = ["layouts_in", "text_files", "tower_name", "towers", "wrapper_files", "wrapper_notes", "wrapper_of"]

_CARRIED = ("quantization_config", "id2label", "problem_type")
"""Keys of the wrapper that are about the text model as well."""

_ORIGIN = "_name_or_path"

_TIE = "tie_word_embeddings"

_INNER = ("model.", "text_model.")
"""The modules inside text models of which a wrapper may hold what is in them, without the head."""


def wrapper_of(files: ModelFiles) -> Wrapper | None:
    """Return the wrapper that files hold; None for a text model, and for a configuration that describes no other part.

    Raises:
        UnknownFamily: It is a wrapper that is not read; the message says why.
    """
    config = files.config
    name = config.get("model_type")
    if files.format == "gguf" or not isinstance(name, str):
        return None
    if name in NOT_READ:
        raise UnknownFamily(
            f"{files.place}: this is a {name}, a multimodal model whose text model is not read: {NOT_READ[name]}. "
            f"Known: {', '.join(sorted(name for wrapper in WRAPPERS for name in wrapper.model_types))}."
        )
    wrapper = next((wrapper for wrapper in WRAPPERS if name in wrapper.model_types), None)
    parts = () if wrapper is None else (wrapper.config.partition(".")[0], *wrapper.others)
    return wrapper if any(part in config for part in parts) else None


def text_files(files: ModelFiles, wrapper: Wrapper) -> ModelFiles:
    """Return the files of a wrapper with the configuration of its text model.

    Raises:
        BadModel: There is no such configuration.
        UnknownFamily: The text model is not one that is read inside this wrapper.
    """
    outer, text = _parts(files, wrapper)
    model_type = text.get("model_type", wrapper.texts[0])
    if model_type not in wrapper.texts:
        raise UnknownFamily(
            f"{files.place}: the text model inside this {files.config['model_type']} is {model_type!r}, which is not "
            f"read there. Known: {', '.join(wrapper.texts)}."
        )
    carried = {key: outer[key] for key in _CARRIED if outer.get(key)}
    tied = {_TIE: tie} if (tie := _tie(wrapper, outer.get(_TIE), text.get(_TIE))) is not None else {}
    assumed = {**ASSUMED[model_type], **wrapper.assumed}
    config = {**assumed, **text, **carried, **tied, **wrapper.fixed, "model_type": model_type}
    return replace(files, config=config)


def _tie(wrapper: Wrapper, outer: object, text: object) -> object:
    """Return what the configurations of a wrapper and its text model say on the tie of E and U; None for nothing."""
    return text if outer is None or (outer is False and wrapper.text_ties and text is not None) else outer


def wrapper_files(files: ModelFiles, wrapper: Wrapper) -> ModelFiles:
    """Return the files of a wrapper with the keys of its configuration that describe none of its parts."""
    return replace(files, config=_parts(files, wrapper)[0])


def _parts(files: ModelFiles, wrapper: Wrapper) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the keys of a wrapper itself, and the configuration of its text model."""
    outer: dict[str, Any] = {}
    inner: Mapping[str, Any] = files.config
    for part in wrapper.config.split("."):
        rest = {key: value for key, value in inner.items() if key not in (part, *wrapper.others)}
        if part not in inner and wrapper.flat:
            return {}, {**rest, "model_type": wrapper.texts[0]}
        inner = inner.get(part)  # type: ignore[assignment]
        if not isinstance(inner, Mapping):
            raise BadModel(f"{files.place}: {wrapper.config} must be an object, that of the text model, not {inner!r}.")
        outer |= rest
    return outer, {**inner, _ORIGIN: outer.get(_ORIGIN)}  # inside it is what the wrapper was made from


def layouts_in(wrapper: Wrapper | None, layout: Layout) -> tuple[Layout, ...]:
    """Return the layouts that the layout of a text model has inside a wrapper, one for each generation of files."""
    if wrapper is None:
        return (layout,)
    return tuple(_layout_in(wrapper, layout, prefix, head) for prefix, head in wrapper.prefixes.items())


def _layout_in(wrapper: Wrapper, layout: Layout, prefix: str, head: str) -> Layout:
    """Return a text model's layout with a prefix of its tensors, and one of what stands outside of them."""

    def inside(name: str) -> str:
        return f"^{head}{name[1:]}" if name.startswith("^") else name

    def pattern_inside(pattern: str) -> str:
        return rf"\^{re.escape(head)}{pattern[2:]}" if pattern.startswith(r"\^") else pattern

    def stored_inside(stored: Stored) -> Stored:
        return replace(stored, name=inside(stored.name))

    own = layout.prefixes[0]
    inner = next((module for module in _INNER if own.startswith(module)), None)
    return replace(
        layout,
        prefixes=(head + own if inner is None else prefix + own.removeprefix(inner),),
        tensors={what: stored_inside(stored) for what, stored in layout.tensors.items()},
        extra={what: (stored_inside(stored), side) for what, (stored, side) in layout.extra.items()},
        copies=tuple(map(inside, layout.copies)),
        head=inside(layout.head),
        unread=(*map(pattern_inside, layout.unread), rf"\^{_tower_pattern(wrapper)}"),
        harmless=(*layout.harmless, *wrapper.harmless),
    )


def _tower_pattern(wrapper: Wrapper) -> str:
    """Return the pattern of the tensors that are not read; in memory, and in some files, all stand inside a model."""
    return rf"(?:model\.)*(?P<inside>(?P<tower>{'|'.join(map(re.escape, wrapper.towers))})(?:\..*)?)"


def tower_name(wrapper: Wrapper | None, name: str) -> str:
    """Return the name that a tensor of a part that is not read has in any generation; empty for the text model's."""
    match = re.fullmatch(_tower_pattern(wrapper), name) if wrapper else None
    return match["inside"] if match else ""


def towers(wrapper: Wrapper | None, names: Iterable[str]) -> dict[str, list[str]]:
    """Return the tensors of each part of a wrapper that is not read; an empty dict for a text model."""
    if wrapper is None:
        return {}
    pattern, parts = re.compile(_tower_pattern(wrapper)), dict[str, list[str]]()
    for match in filter(None, map(pattern.fullmatch, names)):
        parts.setdefault(match["tower"], []).append(match.string)
    return {tower: parts[tower] for tower in wrapper.towers if tower in parts}


def wrapper_notes(files: ModelFiles, wrapper: Wrapper, names: Iterable[str]) -> tuple[str, ...]:
    """Return what a user should know of a text model that is read inside a wrapper."""
    parts = ", ".join(f"{name} ({wrapper.towers[name]})" for name in towers(wrapper, names))
    unread = f"; not read: {parts}" if parts else ""
    return (f"This is the text model inside a model of type {files.config['model_type']}{unread}.", *wrapper.notes)
