"""Commands that say what heads do, and what feeds what."""

from pathlib import Path
from typing import Annotated, Any

import typer

import zeropass as zp
from zeropass._io.progress import reporting
from zeropass.cli.inputs import adapters_of, is_atlas, open_named, parse_layers, put_adapters, refuse_weights_only
from zeropass.cli.options import (
    Adapters,
    Count,
    Device,
    Either,
    Frame,
    Json,
    Layers,
    LensOption,
    Tokens,
    Weights,
    new_app,
)
from zeropass.cli.output import print_json, text_output
from zeropass.heads.kept_heads import keep_heads
from zeropass.heads.render import render_heads
from zeropass.heads.results import check_trait
from zeropass.relations.render import render_relations, render_sets

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


def _print_sets(requested: bool) -> None:
    if requested:
        with text_output() as console:
            console.print(render_sets())
        raise typer.Exit


@app.command()
def relation(
    what: Either,
    pairs: Annotated[
        Path | None,
        typer.Argument(metavar="PAIRS", help="A file of pairs: two words a line, with a tab between them."),
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME", help="A set that ships with zeropass; may be repeated."),
    ] = None,
    _list_sets: Annotated[
        bool,
        typer.Option("--sets", callback=_print_sets, is_eager=True, help="List the sets that ship with it and exit."),
    ] = False,
    k: Count = 10,
    frame: Frame = None,
    tokens: Tokens = None,
    layers: Layers = None,
    seed: Annotated[int, typer.Option(min=0, help="The seed of the shuffles.")] = 0,
    adapter: Adapters = None,
    weight: Weights = None,
    lens: LensOption = "auto",
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Find the heads that take the left word of a pair to the right one, as a country to its capital.

    Without PAIRS and --set, all sets are measured. Each head is held against shuffled pairs.
    """
    with reporting() as report:
        report("opening", 0, 1)
        if is_atlas(what):
            weights = {"adapter": adapter, "weight": weight, "device": device != "cpu"}
            refuse_weights_only(what, weights | {"lens": lens not in ("auto", "none")}, "relation MODEL …")
            source: Any = zp.open_atlas(what)
        else:
            adapters = adapters_of(adapter, weight)
            source = zp.load(put_adapters(open_named(what, device), adapters, weight), lens=lens)
        options: dict[str, Any] = {"frame": frame, "tokens": tokens, "layers": parse_layers(layers)}
        relations = zp.relation(source, pairs, sets=sets or (), k=k, **options, seed=seed, progress=report)
    if not print_json(relations.to_json(), as_json):
        with text_output() as console:
            console.print(render_relations(relations))
