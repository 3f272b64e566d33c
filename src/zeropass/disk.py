"""Files are written whole or not at all: beside, then renamed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from zeropass.errors import ZeropassError

__all__ = ["beside"]


@contextmanager
def beside(
    path: Path, failure: type[ZeropassError], advice: str = "Make room or choose another place."
) -> Iterator[Path]:
    """Write to a file beside ``path`` and rename it there at the end; on any failure nothing is left behind.

    Raises ``failure``, naming the file, where the disk is full or closed to us.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise failure(f"{path} could not be written ({error.strerror or error}). {advice}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
