"""Run the command line: mistakes of the user end with a message and exit code 2, never with a traceback."""

import io
import os
import sys

from zeropass.cli.commands import app
from zeropass.errors import ZeropassError
from zeropass.tokens.vocabulary import shown_text

__all__ = ["app", "main"]

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


def main() -> None:
    """Run the command line: mistakes of the user end with a message and exit code 2, never with a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # what this terminal cannot show is spelled out
    # torch, not loaded yet, keeps the cores busy while its threads wait for work: some microseconds are enough.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    # Nor does it ask for large pages by itself, and fresh memory in small ones takes several times as long to fill.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        app()
    except ZeropassError as error:
        print(f"error: {shown_text(str(error), limit=2000)}", file=sys.stderr)
        sys.exit(2)
    except SystemExit as end:
        if end.code == INTERRUPTED:  # typer has caught the Ctrl-C and says nothing
            print("interrupted; what builds, measures or aligns continues with the same command", file=sys.stderr)
        raise
