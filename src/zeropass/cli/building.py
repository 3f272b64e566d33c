"""Commands that make an atlas or a lens of a model."""

import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

import zeropass as zp
from zeropass._io.parse import read_text
from zeropass._io.progress import reporting
from zeropass.cli.inputs import adapters_of, open_named, parse_layers, parse_names, put_adapters, require_features
from zeropass.cli.options import Adapters, Device, Hook, Json, Layers, LensOption, Model, Weights, new_app
from zeropass.cli.output import duration, print_json
from zeropass.errors import BadOption
from zeropass.tokens.shown import View, shown_text

__all__ = ["app"]

app: typer.Typer = new_app()


@app.command()
def build(
    model: Model,
    out: Annotated[Path, typer.Option(help="The folder to make; a stopped build continues in it.")],
    k: Annotated[int, typer.Option(help="How many tokens each pole of a list keeps.")] = 50,
    pairs: Annotated[int, typer.Option(help="How many pairs each head map keeps.")] = 100,
    layers: Layers = None,
    roles: Annotated[str | None, typer.Option(help="Roles to read, such as gate,value,vo; all if not given.")] = None,
    frame: Annotated[
        str | None,
        typer.Option(
            help="Frames, such as token,output; the usual ones if not given, through the lens if there is one."
        ),
    ] = None,
    lens: LensOption = "auto",
    tokens: Annotated[View, typer.Option(help="The tokens that lists may show.")] = "default",
    device: Device = "cpu",
    engine: Annotated[
        str, typer.Option(help="local; or ray, or ray://address, for a cluster (needs zeropass[ray]).")
    ] = "local",
    memory: Annotated[
        str | None, typer.Option(help="The most memory to use, such as 4GB; what does not fit is read from disk.")
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(
            metavar="PLACE", help="The folder or hub id of a dictionary: read its features instead of the parameters."
        ),
    ] = None,
    hook: Hook = None,
    adapter: Adapters = None,
    weight: Weights = None,
) -> None:
    """Read every parameter of MODEL, or every feature of a dictionary, into an atlas: a folder to search."""
    options = zp.Options(
        k=k,
        pairs=pairs,
        layers=parse_layers(layers),
        roles=parse_names(roles),
        frames=parse_names(frame),
        tokens=tokens,
    )
    adapters = adapters_of(adapter, weight)
    if memory is not None and engine != "local":
        raise BadOption("--memory is for builds in one process; a cluster gives its tasks their memory.")
    if features is not None and engine != "local":
        raise BadOption("--features is for builds in one process.")
    require_features(features, {"--hook": hook})
    local = partial(zp.build, memory=None if memory is None else zp.parse_size(memory))
    build_atlas = local if engine == "local" else partial(zp.build_on_cluster, engine=engine)
    started = time.monotonic()
    with reporting() as report:
        report("opening", 0, 1)
        opened = put_adapters(zp.open_model(model, device=device), adapters, weight)
        if features is not None:
            build_atlas = partial(local, features=zp.open_dictionary(opened, features, hook))
        is_new = build_atlas(opened, out, options, report, lens=lens)
    seconds = time.monotonic() - started
    path = shown_text(str(out), limit=500)
    if is_new:
        size = sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
        print(f"{path}: complete, {size / 1e6:,.0f} MB, {duration(seconds)}.")
    else:
        print(f"{path}: complete already, reused.")


@app.command()
def calibrate(
    model: Model,
    text: Annotated[Path | None, typer.Option(help="A UTF-8 text file to calibrate on, instead of --source.")] = None,
    source: Annotated[
        str | None,
        typer.Option(help="own for text that the model writes, the default where it can; random for random tokens."),
    ] = None,
    tokens: Annotated[int, typer.Option(help="How many tokens of text.")] = 6144,
    seed: Annotated[int, typer.Option(min=0, help="The seed of what is drawn.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="The folder to write to; the cache if not given. A stopped run continues.")
    ] = None,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Make a lens of MODEL, which gives words to early and middle layers: one pass over text that it writes itself."""
    with reporting() as report:
        lens = zp.calibrate(
            open_named(model, device),
            out,
            keep=out is None,
            source=text.name if text else source or "",
            text=read_text(text) if text else None,
            tokens=tokens,
            seed=seed,
            progress=report,
        )
    facts = asdict(lens.facts)
    if not print_json(facts, as_json):
        place = "kept for show" if out is None else shown_text(str(out), limit=500)
        print(f"{lens.facts.words}: {place}, {duration(facts['seconds'])}.")
