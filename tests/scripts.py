"""Imports of scripts that form no package, in the way they import one another."""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


def imported(folder: Path, names: Sequence[str]) -> list[Any]:
    """Import modules of a folder as its scripts import them."""
    sys.path.insert(0, str(folder))
    try:
        return [importlib.import_module(name) for name in names]
    finally:
        sys.path.remove(str(folder))
