"""The commands by name: the module of each, which is imported only when it runs, and what it does in a sentence."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from zeropass import __version__
from zeropass.cli.options import new_app

__all__ = ["COMMANDS", "app", "loaded"]

COMMANDS: Mapping[str, tuple[str, str]] = {
    "build": (
        "building",
        "Read every parameter of MODEL, or every feature of a dictionary, into an atlas: a folder to search.",
    ),
    "show": (
        "showing",
        "Say what a parameter does, from an atlas or straight from the weights; or any direction, or a feature.",
    ),
    "explain": ("showing", "Another name for show."),
    "find": (
        "showing",
        "Find the parameters that see a word, that are about to say it, and that write it, each with its first words.",
    ),
    "label": (
        "showing",
        "Have another program say in a sentence what lists have in common, and score it against wrong lists.",
    ),
    "info": ("showing", "Say what a model or an atlas is and which parts of it are read, with sizes and hashes."),
    "relation": (
        "tracing",
        "Find the heads that take the left word of a pair to the right one, as a country to its capital.",
    ),
    "heads": (
        "tracing",
        "Say of every attention head what it does: copies, suppresses, attends to the token before, closes brackets.",
    ),
    "circuit": (
        "tracing",
        "Say what feeds a parameter and what it feeds, how a word leads to another, or which heads read which.",
    ),
    "cache": ("listing", "Say what is kept in the cache and how large it is."),
    "families": ("listing", "List the families that can be read, what each has, and what is not modelled exactly."),
    "calibrate": (
        "building",
        "Make a lens of MODEL, which gives words to early and middle layers: one pass over text that it writes itself.",
    ),
    "evidence": ("measuring", "Run MODEL on a text and measure how far its words can be believed, against chance."),
    "prove": (
        "measuring",
        "Prove on MODEL's own files that zeropass computes what transformers does (needs zeropass[run]).",
    ),
    "align": (
        "comparing",
        "Find the layers, neurons and heads of B that do what those of A do; the models must share tokens.",
    ),
    "match": ("comparing", "Find the parameters of B that do what one of A does, searching every layer of B."),
    "diff": ("comparing", "Say what a fine-tune or an adapter changed in BASE: where, and in which words."),
    "screen": (
        "comparing",
        "Say of many adapters or fine-tunes of one BASE what kind of change each is: a table, narrow ones first.",
    ),
    "stitch": (
        "stitching",
        "Turn a pretrained model into a classifier, with that of another model and no training (needs zeropass[run]).",
    ),
    "classify": ("stitching", "Label texts with a stitched classifier (needs zeropass[run])."),
    "serve": ("sharing", "Show an atlas in the browser, on this machine, until Ctrl-C (needs zeropass[web])."),
    "mcp": (
        "sharing",
        "Answer a language model's questions about a model or an atlas, over MCP on stdin (needs zeropass[mcp]).",
    ),
    "export": ("sharing", "Write the pages of an atlas as a static site for any file server (needs zeropass[web])."),
    "push": (
        "sharing",
        "Put an atlas on the hub, with a card; `show hf://datasets/OWNER/NAME …` then reads it from there.",
    ),
    "tour": (
        "showing",
        "Walk through an atlas: telling neurons, heads, and the parameters that deal with a word.",
    ),
}
"""Of each command, in the order of the help, its module in this package and the first paragraph of its help."""


def loaded(name: str) -> Any:
    """Return a command with its options, importing its module."""
    module = import_module(f"zeropass.cli.{COMMANDS[name][0]}")
    return typer.main.get_group(module.app).commands[name]


class _Commands(TyperGroup):
    """All commands, of which the one that runs is loaded: the help of them all needs a sentence of each."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for name, (_, sentence) in COMMANDS.items():
            self.add_command(TyperCommand(name=name, short_help=sentence))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the name, the loaded command and its arguments."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, loaded(name) if name and command else command, rest


app: typer.Typer = new_app(name="zeropass", no_args_is_help=True, cls=_Commands)


def _print_version(requested: bool) -> None:
    if requested:
        print(f"zeropass {__version__}")
        raise typer.Exit


@app.callback()
def common(
    _version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    """Read the weights of a Transformer as words, without running the model."""
