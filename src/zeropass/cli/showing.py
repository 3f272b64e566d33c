"""Commands that show what a model or an atlas holds."""

from pathlib import Path
from typing import Annotated, Any, cast

import typer

import zeropass as zp
from zeropass._io.parse import read_words
from zeropass._io.progress import reporting, waiting
from zeropass.cli.inputs import (
    adapters_of,
    is_atlas,
    open_named,
    parse_layers,
    put_adapters,
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
from zeropass.render.terminal import facts_table, render, render_find
from zeropass.render.tour import print_tour

__all__ = ["app"]

app: typer.Typer = new_app()


@app.command("explain", help="Another name for show.")
@app.command()
def show(
    what: Either,
    address: OrVector = None,
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
    """Say what a parameter does, from an atlas or straight from the weights; or any direction, or a feature."""
    name: Any = frame  # what takes it knows which frames there are
    require_vector_or_address(vector, address, {"--layer": layer, "--side": side, "--at": at})
    refuse_mixed(vector, features, {"--hook": hook}, {"--svd": svd, "--offset": offset is not None})
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
        atlas = zp.open_atlas(what)
        records = atlas.explain(str(address), frame=name, tokens=tokens, k=k)
        print_records(records, str(address), frame, k or 12, as_json)
        _print_labels(atlas, records, as_json)
        return
    adapters, k = adapters_of(adapter, weight), k or 12
    with waiting("opening the model"):
        model = open_named(what, device)
        reader = zp.load(put_adapters(model, adapters, weight), lens=lens)
    options: dict[str, Any] = {"frame": name, "tokens": tokens, "k": k}
    if features is not None:
        records = reader.feature(zp.open_dictionary(reader.model, features, hook), str(address), **options)
    elif vector is not None:
        place: dict[str, Any] = {"layer": layer, "side": side, "at": at or "block"}
        records = reader.direction(vector, **place, **options)
    elif svd:
        record = reader.svd(str(address), **options | {"k": min(k, 8)}, offset=offset)
    else:
        records = reader.explain(str(address), **options, offset=offset)
    if svd:
        if not print_json(record.to_json(), as_json):
            with text_output() as console:
                console.print(render(record, k))
        return
    parameter = None if features or vector else address
    print_records(records, parameter, frame, k, as_json)
    if parameter:
        _print_labels(reader, records, as_json)


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
