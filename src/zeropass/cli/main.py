"""The entry point of the command line: mistakes of the user end with a message, never with a traceback."""

import io
import os
import sys

from zeropass.cli.commands import app
from zeropass.errors import ZeropassError
from zeropass.tokens.shown import shown_text

__all__ = ["app", "main"]

INTERRUPTED = 130
"""The exit code after Ctrl-C, as in shells."""


def main() -> None:
    """Run the command line; mistakes of the user end with a message and exit code 2, never with a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # spell out what this terminal cannot show
    # torch, not loaded yet, keeps the cores busy while its threads wait for work; some microseconds are enough.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    # torch does not ask for large pages by itself, and new memory in small pages takes several times as long to fill.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        app()
    except ZeropassError as error:
        print(f"error: {shown_text(str(error), limit=2000)}", file=sys.stderr)
        sys.exit(2)
    except SystemExit as end:
        if end.code == INTERRUPTED:  # typer catches Ctrl-C and prints nothing
            print(
                "interrupted; a build, measurement, alignment, screening, labelling or push continues with the same "
                "command",
                file=sys.stderr,
            )
        raise
