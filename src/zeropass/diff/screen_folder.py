"""The places that are screened, and the folder of a screening.

::

    screening.html      one table for people, narrow changes first; no script
    screening.parquet   one row for each change
    screening.json      everything
    thresholds.json     with --benign: what benign changes reach
    parts/              what is measured of each change, by its hash, with which a stopped run continues
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from zeropass._io.atomic import claim_folder, make_folder, write_json, write_text
from zeropass._io.parquet import write_rows
from zeropass._io.parse import read_lines
from zeropass.checkpoints.adapter_files import CONFIG
from zeropass.diff.screen_render import screening_page
from zeropass.diff.screen_results import Screening
from zeropass.errors import BadOption

__all__ = ["Place", "claim_screening", "places_in", "write_screening"]

_MARKS = ("screening.json", "screening.parquet", "screening.html", "parts")

_COLUMNS = {
    **dict.fromkeys(("name", "path", "sha256", "answer", "reason", "kind", "method"), "string"),
    "rank": "int32",
    **dict.fromkeys(("roles", "layers", "outside", "relation"), "string"),
    **dict.fromkeys(("relative", "excess", "lead", "threshold", "lead_threshold", "chance"), "double"),
    "benign": "int32",
    **dict.fromkeys(("writes", "sees", "nearest"), "string"),
    "similarity": "double",
    "alike": "bool",
    "usual_similarity": "double",
    "warnings": "string",
    "seconds": "double",
}


@dataclass(frozen=True)
class Place:
    """Something to screen: the name that is shown, and the folder, file or hub id."""

    name: str
    path: str

    @property
    def is_adapter(self) -> bool:
        """True for the folder of an adapter."""
        return (Path(self.path) / CONFIG).is_file()


def places_in(source: str | Path | Sequence[str | Path]) -> tuple[Place, ...]:
    """Return the adapters and models that a user names.

    Args:
        source: A folder: every folder in it, itself included, that has an ``adapter_config.json`` or a
            ``config.json``. A text file: a path or a hub id of a model on each line; those that begin with # are left
            out. Or a sequence of paths and hub ids.

    Raises:
        BadOption: There is no such folder or file, or nothing in it.
    """
    if not isinstance(source, str | Path):
        return _named(str(path) for path in source)
    path = Path(source)
    if path.is_dir():
        places = tuple(_below(path))
    elif path.is_file():
        places = _named(line for line in read_lines(path, "LIST", "path") if not line.startswith("#"))
    else:
        raise BadOption(f"There is no folder or file {path}: screen takes a folder of adapters, or a list of them.")
    if not places:
        raise BadOption(f"{path} has no adapter ({CONFIG}) and no model (config.json) in it, nor names any.")
    return places


def _named(paths: Iterator[str]) -> tuple[Place, ...]:
    return tuple(Place(name=path, path=path) for path in dict.fromkeys(paths))


def _below(folder: Path) -> Iterator[Place]:
    """Yield the adapters and models in a folder, by their paths in it; links to folders are not followed."""
    for root, folders, files in os.walk(folder):
        folders.sort()
        if CONFIG in files or "config.json" in files:
            name = Path(root).relative_to(folder).as_posix()
            yield Place(name=folder.resolve().name if name == "." else name, path=root)


def claim_screening(folder: Path) -> None:
    """Make the folder of a screening; raise BadOption for one that holds something else."""
    claim_folder(folder, "a screening", _MARKS)
    make_folder(folder, BadOption)


def write_screening(screening: Screening, folder: str | Path) -> None:
    """Write a screening to a folder, each file completely or not at all.

    Args:
        screening: The screening.
        folder: The folder, made if it does not exist.

    Raises:
        BadOption: The folder or a file cannot be written; the message names it.
    """
    folder = Path(folder)
    make_folder(folder, BadOption)
    write_rows(screening.table_rows(), folder / "screening.parquet", _COLUMNS, BadOption)
    write_text(folder / "screening.html", screening_page(screening))
    write_json(folder / "screening.json", screening.to_json())
