"""The folder of labels: a JSON file for each list and command, below the hash of the weights."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from zeropass._io.atomic import key_of, make_folder, write_json
from zeropass._io.parse import load_json
from zeropass._io.typed_json import from_json
from zeropass.atlas.read import Atlas
from zeropass.checkpoints.demo import cache_folder
from zeropass.errors import BadOption
from zeropass.labels.results import Label
from zeropass.model.address import parse

if TYPE_CHECKING:
    from zeropass.lens import Lens

__all__ = ["LabelFolder", "label_folder", "stored_labels"]

_SHA256 = re.compile("[0-9a-f]{64}")


class LabelFolder:
    """The labels of the lists of a model.

    Args:
        path: The folder; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __iter__(self) -> Iterator[Label]:
        """Yield the labels, by address; a file that is damaged is left out, since lists are complete without it."""
        labels = [label for path in sorted(self.path.glob("*.json")) if (label := _read(path)) is not None]
        yield from sorted(labels, key=lambda label: (parse(label.address), label.role, label.frame))

    def of(self, label: Label) -> Label | None:
        """Return the label of the same list by the same command, if there is one."""
        return _read(self._file(label))

    def keep(self, label: Label) -> None:
        """Write a label, in the place of an earlier one of the same list by the same command."""
        make_folder(self.path, BadOption)
        write_json(self._file(label), label.to_json())

    def _file(self, label: Label) -> Path:
        key = key_of(label.ids, label.offset, label.view, label.lens, label.command)[:16]
        return self.path / f"{label.address}.{label.role}.{label.frame}.{key}.json"


def label_folder(source: "Atlas | Lens", parent: Path | None = None) -> LabelFolder:
    """Return the folder of the labels of a model's lists.

    Args:
        source: The atlas or lens.
        parent: The folder of all labels; ``labels`` in the cache if not given.

    Raises:
        BadOption: If there is no cache, or the atlas states no hash.
    """
    parent = _parent(parent)
    weights = str(source.manifest.get("weights_sha256")) if isinstance(source, Atlas) else source.model.fingerprint
    if not _SHA256.fullmatch(weights):
        raise BadOption(f"Labels are kept by the SHA-256 of the weights, 64 hexadecimal digits; not {weights!r}.")
    return LabelFolder(parent / weights)


def stored_labels(source: "Atlas | Lens", parent: Path | None = None) -> Iterator[Label]:
    """Yield the labels of a model's lists, none where none can be kept.

    Args:
        source: The atlas or lens.
        parent: As for `label_folder`.
    """
    try:
        if _parent(parent).is_dir():  # else the weights, whose hash takes time, need not be read
            yield from label_folder(source, parent)
    except BadOption:
        return


def _parent(parent: Path | None) -> Path:
    try:
        return parent or cache_folder() / "labels"
    except RuntimeError as error:
        raise BadOption("There is no cache, since this user has no home folder; $ZEROPASS_CACHE names one.") from error


def _read(path: Path) -> Label | None:
    try:
        label = from_json(Label, load_json(path))
        parse(label.address)
    except (OSError, ValueError):
        return None
    return label
