"""Commands that show an atlas to others: in a browser, over MCP, as a site, on the hub."""

import os
import sys
import webbrowser
from pathlib import Path
from typing import Annotated, Any

import typer

import zeropass as zp
from zeropass._io.progress import reporting
from zeropass.cli.inputs import (
    adapters_of,
    is_atlas,
    open_named,
    parse_layers,
    put_adapters,
    refuse_mixed,
    refuse_weights_only,
)
from zeropass.cli.options import Adapters, Device, Either, Folder, Json, Layers, LensOption, Weights, new_app
from zeropass.cli.output import print_json
from zeropass.errors import BadOption
from zeropass.tokens.shown import shown_text

__all__ = ["app"]

app: typer.Typer = new_app()


@app.command()
def serve(
    folder: Folder,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="The port to listen on; 0 takes any that is free.")
    ] = 8765,
    model: Annotated[
        str | None, typer.Option(help="The model that the atlas was built from, for what only weights can tell.")
    ] = None,
    second: Annotated[str | None, typer.Option(help="The atlas of another model, to compare with.")] = None,
    second_model: Annotated[str | None, typer.Option(help="Like --model, for the second atlas.")] = None,
    alignment: Annotated[
        Path | None, typer.Option(help="The folder that zeropass align wrote about the two models.")
    ] = None,
    diff: Annotated[Path | None, typer.Option(help="The folder that zeropass diff --out wrote.")] = None,
    host: Annotated[
        str,
        typer.Option(
            help="The address to listen on; unless it is a loopback one, clients need the token that is printed."
        ),
    ] = "127.0.0.1",
    name: Annotated[
        list[str] | None, typer.Option(help="A further host name under which it may be asked for; may be repeated.")
    ] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, max=64, help="How many processes make pages; one a core if not given.")
    ] = None,
    in_browser: Annotated[bool, typer.Option("--open", help="Open the explorer in the browser.")] = False,
) -> None:
    """Show an atlas in the browser, on this machine, until Ctrl-C (needs zeropass[web])."""
    sources = zp.Sources(
        atlas=folder, model=model, second=second, second_model=second_model, alignment=alignment, diff=diff
    )
    contexts = zp.open_sources(sources)

    def say(address: str) -> None:
        print(f"{address}  (Ctrl-C ends it)", flush=True)
        if in_browser and not webbrowser.open(address):
            print("No browser could be opened here; open the address yourself.", file=sys.stderr)

    zp.serve(
        contexts,
        host,
        port,
        name or (),
        say=say,
        processes=processes or os.cpu_count() or 1,
    )


@app.command()
def mcp(
    what: Either,
    model: Annotated[
        str | None, typer.Option(help="The model that the atlas was built from, for what only weights can tell.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="The model that it was tuned from: the tool diff says what changed.")
    ] = None,
    adapter: Adapters = None,
    weight: Weights = None,
    second: Annotated[str | None, typer.Option(help="Another model, for the tool match.")] = None,
    features: Annotated[
        str | None,
        typer.Option(metavar="PLACE", help="The folder or hub id of a dictionary, for the tools features and feature."),
    ] = None,
    hook: Annotated[
        str | None, typer.Option(help="With --features: where it reads and writes, if its files do not say so.")
    ] = None,
    lens: LensOption = "auto",
    device: Device = "cpu",
) -> None:
    """Answer a language model's questions about a model or an atlas, over MCP on stdin (needs zeropass[mcp])."""
    serve_mcp = zp.serve_mcp  # refuses a missing extra before anything is read
    refuse_mixed(None, features, {"--hook": hook}, {})
    adapters = adapters_of(adapter, weight)
    if adapters and base:
        raise BadOption("--base and --adapter exclude each other: the base of an adapter is MODEL.")
    untuned = zp.open_model(base, device=device) if base else None
    if is_atlas(what):
        only_weights = {
            "adapter": adapter,
            "weight": weight,
            "device": device != "cpu",
            "lens": lens not in ("auto", "none"),
        }
        refuse_weights_only(what, only_weights, "mcp MODEL")
        source: Any = zp.open_atlas(what)
    elif model is not None:
        raise BadOption(f"--model is for an atlas, which does not hold the weights; {what} is a model.")
    else:
        opened = open_named(what, device)
        if adapters:
            untuned, opened = opened, put_adapters(opened, adapters, weight)
        source = zp.load(opened, lens=lens)
    second_model = zp.open_model(second, device=device) if second else None
    serve_mcp(source, model=model, base=untuned, second=second_model, features=features, hook=hook)


@app.command()
def export(
    folder: Folder,
    site: Annotated[Path, typer.Argument(metavar="SITE", help="The folder to make.")],
    layers: Layers = None,
    most: Annotated[
        int,
        typer.Option(
            min=1, help="How many neurons, and columns of heads, of a layer get pages, the most telling first."
        ),
    ] = 20,
    tokens: Annotated[int, typer.Option(min=0, help="How many tokens get pages, the most mentioned first.")] = 1000,
    everything: Annotated[bool, typer.Option("--all", help="Make pages of every parameter and token.")] = False,
    second: Annotated[str | None, typer.Option(help="The atlas of another model, to compare with.")] = None,
    alignment: Annotated[
        Path | None, typer.Option(help="The folder that zeropass align wrote about the two models.")
    ] = None,
    diff: Annotated[Path | None, typer.Option(help="The folder that zeropass diff --out wrote.")] = None,
) -> None:
    """Write the pages of an atlas as a static site for any file server (needs zeropass[web])."""
    chosen = zp.Chosen(parse_layers(layers), None if everything else most, None if everything else tokens)
    contexts = zp.open_sources(zp.Sources(folder, second=second, alignment=alignment, diff=diff))
    with reporting() as report:
        count = zp.export_site(contexts, site, chosen, report)
    print(f"{shown_text(str(site), limit=500)}: {count:,} pages; begin with index.html.")


@app.command()
def push(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="The folder of an atlas.")],
    name: Annotated[
        str, typer.Argument(metavar="OWNER/NAME", help="The dataset on the hub; it is created if there is none.")
    ],
    private: Annotated[bool, typer.Option("--private", help="Make a new dataset private.")] = False,
    model_license: Annotated[
        str, typer.Option("--license", help="The licence of the model's weights, such as apache-2.0.")
    ] = "unknown",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the atlas and print its card, but send nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Put an atlas on the hub, with a card; `show hf://datasets/OWNER/NAME …` then reads it from there."""
    pushed = zp.push_atlas(folder, name, private=private, license_id=model_license, dry_run=dry_run)
    if print_json(pushed.to_json(), as_json):
        return
    if dry_run:
        print("\n".join(shown_text(line, limit=1000) for line in pushed.card.split("\n")))
    at = f" at commit {pushed.commit}" if pushed.commit else ", nothing sent"
    print(f"{pushed.address}: {pushed.files:,} files, {pushed.bytes / 1e6:,.0f} MB{at}.")
    if pushed.kept_card:
        print("Its card was edited on the hub, so it stays as it is there.")
