"""Commands that say what heads do, and what feeds what."""

from pathlib import Path
from typing import Annotated, Any

import typer

import zeropass as zp
from zeropass._io.atomic import write_text
from zeropass._io.progress import reporting
from zeropass.circuits.render import draw_paths, render_feeds, render_induction, render_pairs, render_paths
from zeropass.cli.inputs import (
    adapters_of,
    is_atlas,
    open_named,
    parse_layers,
    put_adapters,
    refuse_weights_only,
    require_features,
)
from zeropass.cli.options import (
    Adapters,
    Device,
    Either,
    Frame,
    Hook,
    Json,
    Layers,
    LensOption,
    Model,
    Tokens,
    Weights,
    new_app,
)
from zeropass.cli.output import print_json, text_output
from zeropass.errors import BadOption
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
    relations: Annotated[
        bool,
        typer.Option("--relations", help="Also find which word pairs each writes, as relation does: some minutes."),
    ] = False,
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
        if relations:
            pairs = zp.relation(reader, layers=parse_layers(layers), seed=seed, progress=report)
            catalogue = catalogue.with_relations(pairs)
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
    k: Annotated[int, typer.Option("-k", min=1, help="How many of the most extreme tokens of a row count.")] = 10,
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


@app.command()
def circuit(
    model: Model,
    what: Annotated[
        str | None,
        typer.Argument(metavar="ADDRESS|WORD", help="Such as L26.ff.1189, L10.attn.3; or a word, with --to."),
    ] = None,
    to: Annotated[
        str | None, typer.Option(metavar="WORD", help="The strongest paths from reading the word to writing this one.")
    ] = None,
    svg: Annotated[Path | None, typer.Option(metavar="FILE", help="With --to: draw the paths into a file.")] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many of each table.")] = 8,
    induction: Annotated[
        bool, typer.Option("--induction", help="Instead: previous-token heads and the induction heads that read them.")
    ] = False,
    run: Annotated[bool, typer.Option("--run", help="With --induction: run the model as well, to compare.")] = False,
    features: Annotated[
        str | None,
        typer.Option(
            metavar="PLACE", help="The folder or hub id of a dictionary; ADDRESS is that of a feature: L12.sae.4051."
        ),
    ] = None,
    hook: Hook = None,
    lens: LensOption = "auto",
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Say what feeds a parameter and what it feeds, how a word leads to another, or which heads read which."""
    if induction and what is not None:
        raise BadOption(f"--induction is about all heads, so it takes no address ({what!r}).")
    if to is not None and (what is None or features is not None):
        raise BadOption("--to leads from a word to another, so it needs the WORD that is read, and no --features.")
    if svg is not None and to is None:
        raise BadOption("--svg draws paths, which --to asks for.")
    if run and not induction:
        raise BadOption("--run is for --induction; all else comes from the weights.")
    require_features(features, {"--hook": hook})
    if features is not None and what is None:
        raise BadOption("--features needs the ADDRESS of a feature, such as L12.sae.4051.")
    result: Any
    with reporting() as report:
        report("opening", 0, 1)
        reader = zp.load(open_named(model, device), lens=lens)
        if induction:
            result = zp.induction_heads(reader, run=run, progress=report)
            shown = render_induction(result, k)
        elif to is not None:
            result = zp.paths(reader, str(what), to, k=k, progress=report)
            shown = render_paths(result)
        elif what is None:
            result = zp.head_pairs(reader, progress=report)
            shown = render_pairs(result, k)
        else:
            dictionary = None if features is None else zp.open_dictionary(reader.model, features, hook)
            result = zp.feeds(reader, what, k=k, features=dictionary)
            shown = render_feeds(result)
    if svg is not None:
        write_text(svg, draw_paths(result))
    if not print_json(result.to_json(), as_json):
        with text_output() as console:
            console.print(shown)
