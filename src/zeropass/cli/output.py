"""The output of commands: records, JSON and durations."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console

from zeropass.render.terminal import show_records

__all__ = ["duration", "print_json", "print_records", "text_output"]

UNLIMITED = 10_000
"""Columns of text that goes to a file or a pipe: nothing is cut off or broken there."""


@contextmanager
def text_output(width: int = UNLIMITED) -> Iterator[Console]:
    """Give a console whose text is printed at the end, without padding, and not at all after an error.

    Args:
        width: Columns of text that goes to no terminal, if the environment does not say (``COLUMNS``).
    """
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(width=width)
    with console.capture() as captured:
        yield console
    lines = captured.get().split("\n")
    print("\n".join(lines if console.is_terminal else (line.rstrip() for line in lines)), end="")


def print_records(records: Sequence[Any], k: int, as_json: bool, *, single: bool = False) -> None:
    """Print the records of some addresses.

    Args:
        records: The records of each address.
        k: Tokens of a pole, or pairs, that are shown.
        as_json: If set, a JSON list of all records is printed.
        single: If set, JSON of a single record is no list.
    """
    each = [record for of_address in records for record in of_address]
    value = each[0].to_json() if single and len(each) == 1 else [record.to_json() for record in each]
    if not print_json(value, as_json):
        with text_output() as console:
            show_records(console, records, k)


def print_json(value: Any, as_json: bool) -> bool:
    """Print a value as JSON if ``as_json`` is set, and return ``as_json``."""
    if as_json:
        print(json.dumps(value, ensure_ascii=True, allow_nan=False))
    return as_json


def duration(seconds: float) -> str:
    """Return a duration as text: in seconds below 100 s, else in minutes and seconds."""
    return f"{seconds:.1f} s" if seconds < 100 else f"{int(seconds // 60)} min {int(seconds % 60)} s"
