"""Commands that list what zeropass knows and what it keeps."""

from typing import Annotated

import typer

from zeropass.arch.family_table import family_rows
from zeropass.checkpoints.cache import CONTENTS, cache_facts, clear_cache
from zeropass.cli.options import Json, new_app
from zeropass.cli.output import print_json, text_output
from zeropass.render.terminal import render_families
from zeropass.tokens.shown import shown_text

__all__ = ["app"]

app: typer.Typer = new_app()


@app.command()
def families(as_json: Json = False) -> None:
    """List the families that can be read, what each has, and what is not modelled exactly."""
    rows = family_rows()
    if not print_json(rows, as_json):
        with text_output() as console:
            console.print(render_families(rows))


@app.command()
def cache(
    clear: Annotated[
        str | None, typer.Option(metavar="NAME", help=f"Remove one of its folders: {', '.join(CONTENTS)}.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what is kept in the cache and how large it is."""
    if clear is not None:
        freed = clear_cache(clear)
        if not print_json({"removed": clear, "bytes": freed}, as_json):
            print(f"{clear}: {freed / 1e6:,.1f} MB removed.")
        return
    facts = cache_facts()
    if not print_json(facts, as_json):
        print(shown_text(facts["folder"], limit=500))
        for name, size in facts["bytes"].items():
            print(f"  {name:<9}{size / 1e6:>10,.1f} MB  {CONTENTS[name]}")
