"""Models of transformers, loaded from the files that a `Model` was read from."""

import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any

import torch

from zeropass.errors import CannotRun, MissingExtra
from zeropass.model.model import Model

try:
    import transformers
except ImportError as _error:
    raise MissingExtra("This needs transformers, which is in an extra: pip install 'zeropass[run]'.") from _error

__all__ = ["loaded", "naming", "quiet", "transformers"]


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what transformers prints while it loads, including progress bars that have no switch."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        transformers.logging.set_verbosity(verbosity)


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Raise CannotRun, with the name of the model and the reason, for any error of transformers."""
    try:
        with quiet():
            yield
    except Exception as error:  # a third party's loader may raise anything, and the user needs the reason
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CannotRun(f"transformers cannot run {name}: {reason[0]}") from error


def loaded(kind: Any, model: Model, **more: Any) -> Any:
    """Load the model in float32 as one of transformers' classes.

    Args:
        kind: The class (``AutoModel`` …).
        model: The parameters, whose files are loaded.
        **more: Further arguments of ``from_pretrained``.

    Returns:
        The model in transformers.

    Raises:
        CannotRun: If transformers cannot load it; gives the reason.
    """
    path = model.files.path
    if model.wrapper is not None:
        raise CannotRun(
            f"{model.name} is the text model inside a multimodal one, which is not run in parts: save the text model "
            "alone (save_pretrained) and give the folder."
        )
    if path is None:
        raise CannotRun(f"transformers runs {model.name} from files: save it (save_pretrained) and give the folder.")
    if model.files.format == "gguf":
        path, more = path.parent, more | {"gguf_file": path.name}
    with naming(model.name):
        return kind.from_pretrained(path, dtype=torch.float32, local_files_only=True, **more).eval()
