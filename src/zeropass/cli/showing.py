"""Commands that show what a model or an atlas holds."""

from pathlib import Path
from typing import Annotated, Any, cast

import typer

import zeropass as zp
from zeropass._io.parse import read_words
from zeropass._io.progress import reporting, waiting
from zeropass.atlas.summary import head_addresses, telling
from zeropass.cli.inputs import (
    adapters_of,
    is_atlas,
    open_named,
    parse_layers,
    put_adapters,
    refuse_layers,
    refuse_mixed,
    refuse_weights_only,
    require_vector_or_address,
)
from zeropass.cli.options import (
    Adapters,
    Device,
    Either,
    Folder,
    Frame,
    Hook,
    Json,
    Layers,
    LensOption,
    OrVector,
    Tokens,
    Weights,
    new_app,
)
from zeropass.cli.output import print_json, print_records, text_output
from zeropass.errors import BadOption
from zeropass.labels.render import render_labels
from zeropass.model.address import parse, part_of_layer
from zeropass.records.parameters import Records
from zeropass.render.terminal import facts_table, render_find, render_layer
from zeropass.render.tour import print_tour

__all__ = ["app"]

app: typer.Typer = new_app()

LAYER_ROWS, LAYER_PAIRS = 12, 6
"""The neurons of a layer that are shown if ``-k`` is not given, and the pairs of a head in its layer."""


@app.command("explain", help="Another name for show.")
@app.command()
def show(
    what: Either,
    addresses: OrVector = None,
    frame: Frame = None,
    tokens: Tokens = None,
    k: Annotated[int | None, typer.Option("-k", min=1, help="How many to list; 12 if not given.")] = None,
    offset: Annotated[
        int | None, typer.Option(help="For qk: how many positions the query stands after the key; 16 if not given.")
    ] = None,
    svd: Annotated[
        bool, typer.Option("--svd", help="Singular directions of a head map instead of its top pairs.")
    ] = False,
    vector: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Instead of a parameter, directions in FILE.npy, FILE.safetensors[:name], FILE.gguf[:name].",
        ),
    ] = None,
    layer: Annotated[int | None, typer.Option(help="With --vector: the layer where it reads or writes.")] = None,
    side: Annotated[str | None, typer.Option(help="With --vector: read or write; both if not given.")] = None,
    at: Annotated[
        str | None,
        typer.Option(help="With --vector: block (the stream that enters the layer; the default), mid, attn or ff."),
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(
            metavar="PLACE", help="The folder or hub id of a dictionary; ADDRESS is that of a feature: L12.sae.4051."
        ),
    ] = None,
    hook: Hook = None,
    adapter: Adapters = None,
    weight: Weights = None,
    lens: LensOption = "auto",
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Say what a parameter does, from an atlas or straight from the weights; or any direction, or a feature.

    An atlas also shows a layer (L24): its most telling neurons and its heads (L24.ff, L24.attn for one of the two).
    """
    places = addresses or []
    name: Any = frame  # what takes it knows which frames there are
    require_vector_or_address(vector, places, {"--layer": layer, "--side": side, "--at": at})
    refuse_mixed(vector, features, {"--hook": hook}, {"--svd": svd, "--offset": offset is not None})
    refuse_layers(what, places)
    options: dict[str, Any] = {"frame": name, "tokens": tokens}
    if is_atlas(what):
        weights = {
            "vector": vector,
            "features": features,
            "adapter": adapter,
            "weight": weight,
            "device": device != "cpu",
        }
        maps = {"offset": offset, "svd": svd}
        refuse_weights_only(what, weights | maps | {"lens": lens not in ("auto", "none")})
        source: Any = zp.open_atlas(what)
        if place := part_of_layer(places[0]):
            _print_layer(source, *place, k or LAYER_ROWS, as_json)
            return
        records = [source.explain(address, k=k, **options) for address in places]
        k = k or 12
    else:
        adapters, k = adapters_of(adapter, weight), k or 12
        with waiting("opening the model"):
            model = open_named(what, device)
            source = zp.load(put_adapters(model, adapters, weight), lens=lens)
        if features is not None:
            dictionary = zp.open_dictionary(source.model, features, hook)
            records = [source.feature(dictionary, address, k=k, **options) for address in places]
        elif vector is not None:
            records = [source.direction(vector, layer=layer, side=side, at=at or "block", k=k, **options)]
        elif svd:
            few = min(k, 8)
            directions = [source.svd(address, offset=offset, k=few, **options) for address in places]
            records = [Records([record]) for record in directions]
        else:
            records = [source.explain(address, offset=offset, k=k, **options) for address in places]
    single = svd or (frame is not None and not features and bool(places) and parse(places[0]).role != "")
    print_records(records, k, as_json, single=single)
    if places and not (svd or features):
        _print_labels(source, [record for of_address in records for record in of_address], as_json)


def _print_layer(atlas: Any, layer: int, part: str, k: int, as_json: bool) -> None:
    """Print the most telling neurons of a layer and its heads, or one of the two."""
    neurons = None if part == "attn" else telling(atlas, layer, count=k)
    heads = [] if part == "ff" else [atlas.explain(address, k=LAYER_PAIRS) for address in head_addresses(atlas, layer)]
    value = {
        "neurons": neurons.to_json() if neurons else None,
        "heads": [record for records in heads for record in records.to_json()],
    }
    if not print_json(value, as_json):
        with text_output() as console:
            console.print(render_layer(neurons, heads))


def _print_labels(source: Any, records: Any, as_json: bool) -> None:
    """Print the labels that are kept of some lists; JSON holds measurements alone."""
    if not as_json and len(labels := zp.kept_labels(source, records)):
        with text_output() as console:
            console.print(render_labels(labels))


@app.command()
def find(
    folder: Folder,
    texts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TEXT...", help="A word, or its pieces if it has several; several words make a concept."
        ),
    ] = None,
    like: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="All tokens that match, such as 're*', as one word; may be repeated."),
    ] = None,
    words: Annotated[Path | None, typer.Option(metavar="FILE", help="A file of further words, one a line.")] = None,
    without: Annotated[
        list[str] | None, typer.Option("--not", metavar="TEXT", help="A word to subtract; may be repeated.")
    ] = None,
    side: Annotated[str | None, typer.Option(help="read or write; both if not given.")] = None,
    role: Annotated[str | None, typer.Option(help="gate, up, key, value, q, k, v, o …; all if not given.")] = None,
    layers: Layers = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many of each kind: sees, is about to say, writes.")] = 10,
    as_json: Json = False,
) -> None:
    """Find the parameters that see a word, that are about to say it, and that write it, each with its first words."""
    further = read_words(words, "--words") if words else ()
    record = zp.open_atlas(folder).find(
        [*(texts or ()), *further],
        like=like or (),
        without=without or (),
        side=cast(Any, side),
        role=role,
        layers=parse_layers(layers),
        k=k,
    )
    if not print_json(record.to_json(), as_json):
        with text_output() as console:
            console.print(render_find(record, k))


@app.command()
def tour(folder: Folder) -> None:
    """Walk through an atlas: telling neurons, heads, and the parameters that deal with a word."""
    with text_output(width=100) as console:
        print_tour(console, zp.open_atlas(folder))


@app.command()
def label(
    what: Either,
    addresses: Annotated[
        list[str] | None, typer.Argument(metavar="ADDRESS...", help="Such as L26.ff.1189, L10.attn.3.vo.")
    ] = None,
    command: Annotated[
        str | None,
        typer.Option(
            "--with",
            metavar="COMMAND",
            help="The program: it gets a prompt on stdin and answers on stdout. Without it, kept labels are listed.",
        ),
    ] = None,
    frame: Annotated[
        str | None, typer.Option(help="The frame of the lists; if not given, the most coherent list of each role.")
    ] = None,
    tokens: Tokens = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many tokens of a pole, or pairs, it sees at a time.")] = 12,
    choices: Annotated[int, typer.Option(min=2, help="How many lists it chooses between.")] = 5,
    orders: Annotated[int, typer.Option(min=1, help="How often it chooses, each time in another order.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="The seed of the wrong lists and of their order.")] = 0,
    timeout: Annotated[float, typer.Option(help="How many seconds to wait for an answer.")] = 120,
    lens: LensOption = "auto",
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Have another program say in a sentence what lists have in common, and score it against wrong lists."""
    if command is not None and not addresses:
        raise BadOption("An address is needed, such as L26.ff.1189: --with labels what it is given.")
    if is_atlas(what):
        refuse_weights_only(
            what, {"device": device != "cpu", "lens": lens not in ("auto", "none")}, "label MODEL ADDRESS …"
        )
        source: Any = zp.open_atlas(what)
    else:
        source = zp.load(open_named(what, device), lens=lens)
    if command is None:
        lists = [record for address in addresses for record in source.explain(address)] if addresses else None
        labels = zp.kept_labels(source, lists)
    else:
        options: dict[str, Any] = {"frame": frame, "tokens": tokens, "k": k, "choices": choices, "orders": orders}
        with reporting() as report:
            labels = zp.label(source, addresses or (), command, **options, seed=seed, timeout=timeout, progress=report)
    if not print_json(labels.to_json(), as_json):
        with text_output() as console:
            console.print(render_labels(labels) if labels.notes else "No label is kept; --with COMMAND makes some.")


@app.command()
def info(
    what: Either,
    as_json: Json = False,
) -> None:
    """Say what a model or an atlas is and which parts of it are read, with sizes and hashes."""
    facts = zp.open_atlas(what).info() if is_atlas(what) else open_named(what).info()
    if not print_json(facts, as_json):
        with text_output() as console:
            console.print(facts_table(facts))
