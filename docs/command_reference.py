"""A Sphinx extension that writes the page of the commands from the commands themselves."""

import re
from collections.abc import Iterator
from typing import Any

import typer
from sphinx.application import Sphinx

from zeropass.cli.commands import COMMANDS, app, loaded

PAGE = "commands"


def reference() -> Iterator[str]:
    """Yield a section for each command in Markdown: its usage, help, arguments and options."""
    program = typer.main.get_command(app)
    top = typer.Context(program, info_name=program.name)
    for name in COMMANDS:
        command = loaded(name)
        context = typer.Context(command, info_name=name, parent=top)
        yield f"## {name}\n\n{_text(command.help)}\n"
        yield f"```text\n{command.get_usage(context).removeprefix('Usage: ')}\n```\n"
        records = [parameter.get_help_record(context) for parameter in command.get_params(context)]
        yield "| argument or option | what it means |\n| --- | --- |"
        yield "".join(f"| `{_cell(left)}` | {_cell(_text(right))} |\n" for left, right in filter(None, records))


def _text(markup: str) -> str:
    """Return help as Markdown that shows every character of it, on one line."""
    return re.sub(r"([\\`*_<>\[\]])", r"\\\1", " ".join(markup.split()))


def _cell(text: str) -> str:
    """Return a text in which no sign ends the cell of a table."""
    return text.replace("|", r"\|")


def _add_reference(_app: Sphinx, page: str, source: list[str]) -> None:
    if page == PAGE:
        source[0] += "\n".join(reference())


def setup(app: Sphinx) -> dict[str, Any]:
    """Add the sections when the page is read."""
    app.connect("source-read", _add_reference)
    return {"parallel_read_safe": True}
