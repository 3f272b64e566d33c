"""An adapter's folder as PEFT saves it: ``adapter_config.json`` and ``adapter_model.safetensors``, or both in memory.

Nothing is ever unpickled. `adapter_methods` interprets the tensors.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zeropass._io.parse import parse_json
from zeropass.checkpoints.adapter_settings import Settings
from zeropass.checkpoints.base import TensorSource
from zeropass.checkpoints.demo import DEMOS
from zeropass.checkpoints.hub import fetch_adapter, is_lens_id
from zeropass.checkpoints.object_store import is_url
from zeropass.checkpoints.safetensors import SafetensorsSource
from zeropass.errors import BadModel, BadWeights

__all__ = [
    "CONFIG",
    "WEIGHTS",
    "AdapterFiles",
    "adapter_files",
    "adapter_folder",
    "adapter_named",
    "open_adapter_files",
]

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MAX_CONFIG = 1 << 20
_ROOT = re.compile(r"base_model\.model\.")


@dataclass(frozen=True, eq=False)
class AdapterFiles:
    """The opened files of an adapter.

    Attributes:
        name: The name of the adapter.
        folder: The adapter's folder; None for an adapter in memory.
        settings: The checked configuration.
        source: The tensors.
        stored: The name inside the model, without PEFT's prefix ``base_model.model.``, to the name in the file.
    """

    name: str
    folder: Path | None
    settings: Settings
    source: TensorSource
    stored: dict[str, str]


def adapter_folder(name: str | Path) -> Path:
    """Return the folder of an adapter; a name that is no path may be a hub id, as `fetch_adapter` takes it.

    Raises:
        BadModel: If the name cannot be looked up.
        NotFetched: If it cannot be fetched.
    """
    try:
        folder = Path(name).expanduser()
        if folder.exists() or isinstance(name, Path):
            return folder
    except (OSError, RuntimeError) as error:  # a name too long, a folder without permission, an unknown ~user
        raise BadModel(f"{str(name)!r} cannot be looked up: {error}.") from error
    return fetch_adapter(name) if is_lens_id(name) else folder


def adapter_named(name: str | Path) -> Path | None:
    """Return the folder of an adapter by its path or hub id; None for what may be the name of a model.

    A folder or repository that holds both is the adapter's, as in transformers.

    Raises:
        NotFetched: If a hub id cannot be looked up.
    """
    if name in DEMOS or is_url(str(name)):
        return None
    try:
        folder = adapter_folder(name)
    except BadModel:  # no path, and no repository with an adapter
        return None
    return folder if (folder / CONFIG).is_file() else None


def open_adapter_files(folder: Path, name: str = "") -> AdapterFiles:
    """Open an adapter's folder, reading the configuration and the names of the tensors but no values.

    Args:
        folder: The folder that PEFT's ``save_pretrained`` wrote.
        name: The name of the adapter; that of the folder if not given.

    Raises:
        BadModel: For a folder without an adapter, an unknown configuration or a pickled adapter.
        BadWeights: For a file without tensors.
    """
    settings = Settings(folder / CONFIG, _read_config(folder))
    path = folder / WEIGHTS
    if not path.is_file():
        pickled = sorted(file.name for file in folder.glob("adapter_model.*") if file.suffix != ".json")
        hint = f"; {', '.join(pickled)} is not read, since unpickling can run code. Save it anew" if pickled else ""
        raise BadModel(f"{folder} has no {WEIGHTS}{hint}.")
    return adapter_files(name or folder.name, folder, settings, SafetensorsSource((path,)))


def adapter_files(name: str, folder: Path | None, settings: Settings, source: TensorSource) -> AdapterFiles:
    """Return the files of an adapter, or their like in memory; raise BadWeights for a source without tensors."""
    stored: dict[str, str] = {}
    for full_name in source.names():
        inside = _ROOT.sub("", full_name, count=1) if _ROOT.match(full_name) else full_name
        if inside in stored:
            raise BadWeights(f"{source.path}: tensors {stored[inside]!r} and {full_name!r} are both of {inside}.")
        stored[inside] = full_name
    if not stored:
        raise BadWeights(f"{source.path} holds no tensors.")
    return AdapterFiles(name, folder, settings, source, stored)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise BadModel(f"{folder} has no {CONFIG}; {_folder_hint(folder)}")
    try:
        if path.stat().st_size > MAX_CONFIG:
            raise BadModel(f"{path} has more than {MAX_CONFIG} bytes; it should be a short JSON object.")
        config = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BadModel(f"{path} cannot be read: {error}.") from error
    if not isinstance(config, dict):
        raise BadModel(f"{path} holds a JSON {type(config).__name__}; it should hold an object.")
    return config


def _folder_hint(folder: Path) -> str:
    """Suggest the right folder: PEFT saves an adapter that is not named ``default`` in a subfolder."""
    try:
        inner = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG}"))
    except OSError:
        inner = []
    if inner:
        return f"its adapters are in {', '.join(inner[:10])}: give one of these folders ({folder / inner[0]})."
    return "an adapter is a folder that PEFT's save_pretrained wrote, or the hub id of one (owner/name)."
