"""Commands that say what heads do, and what feeds what."""

from typing import Annotated

import typer

import zeropass as zp
from zeropass._io.progress import reporting
from zeropass.cli.inputs import is_atlas, open_named, parse_layers, refuse_weights_only
from zeropass.cli.options import Device, Either, Json, Layers, LensOption, new_app
from zeropass.cli.output import print_json, text_output
from zeropass.heads.kept_heads import keep_heads
from zeropass.heads.render import render_heads
from zeropass.heads.results import check_trait

__all__ = ["app"]

app: typer.Typer = new_app()


@app.command()
def heads(
    what: Either,
    layers: Layers = None,
    sort: Annotated[
        str | None, typer.Option(metavar="TRAIT", help="Heads with the most of a trait first: copying, previous …")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The seed of tokens and of random heads.")] = 0,
    lens: LensOption = "auto",
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Say of every attention head what it does: copies, suppresses, attends to the token before, closes brackets."""
    check_trait(sort)
    if is_atlas(what):
        refuse_weights_only(what, {"device": device != "cpu", "lens": lens not in ("auto", "none")}, "heads MODEL …")
        atlas = zp.open_atlas(what)
        reader = zp.lens_of(atlas, atlas.model.get("command", atlas.model["name"]))
    else:
        reader = zp.load(open_named(what, device), lens=lens)
    with reporting() as report:
        catalogue = zp.catalogue_heads(reader, layers=parse_layers(layers), seed=seed, progress=report)
    if layers is None:
        keep_heads(catalogue)
    catalogue = catalogue if sort is None else catalogue.sorted_by(sort)
    if not print_json(catalogue.to_json(), as_json):
        with text_output() as console:
            console.print(render_heads(catalogue))
