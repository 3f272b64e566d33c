"""The commands: each function reads its options, calls the library and prints the result."""

import os
import shlex
import sys
import time
import webbrowser
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import typer

import zeropass as zp
from zeropass._io.atomic import write_json
from zeropass._io.parse import read_lines, read_text, read_words
from zeropass._io.progress import reporting, waiting
from zeropass.align.render import render_alignment, render_matches
from zeropass.arch.family_table import family_rows
from zeropass.checkpoints.cache import CONTENTS, cache_facts, clear_cache
from zeropass.cli.inputs import (
    adapters_of,
    is_atlas,
    open_named,
    open_tuned,
    parse_layers,
    parse_lenses,
    parse_names,
    put_adapters,
    refuse_mixed,
    refuse_weights_only,
    require_features,
    require_vector_or_address,
)
from zeropass.cli.options import (
    MODEL_HELP,
    Adapters,
    Count,
    Device,
    Either,
    First,
    Folder,
    Frame,
    Hook,
    Json,
    Layers,
    LensesOption,
    LensOption,
    Model,
    OrVector,
    Second,
    ThresholdsOption,
    Tokens,
    Weights,
    Where,
)
from zeropass.cli.output import duration, print_json, print_records, text_output
from zeropass.diff.against_render import render_against
from zeropass.diff.passage_table import render_passages
from zeropass.diff.render import render_diff
from zeropass.diff.sarif import sarif
from zeropass.diff.screen_render import render_screening
from zeropass.diff.verdict import FailOn, failure
from zeropass.diff.watch_list import looked_up
from zeropass.errors import BadOption
from zeropass.labels.render import render_labels
from zeropass.records.verdicts import default_name
from zeropass.relations.render import render_relations, render_sets
from zeropass.render.terminal import facts_table, render, render_families, render_find, render_proof
from zeropass.render.tour import print_tour
from zeropass.stitch.render import render_classes, render_stitch
from zeropass.tokens.vocabulary import View, shown_text

__all__ = ["app"]

AnyOf = Literal["narrow", "topic"]
"""The kinds of change that end a screening with exit code 1."""

app: typer.Typer = typer.Typer(
    name="zeropass",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="markdown",  # rich's own markup would take zeropass[web] for zeropass in a style named web
)


def _print_version(requested: bool) -> None:
    if requested:
        print(f"zeropass {zp.__version__}")
        raise typer.Exit


@app.callback()
def common(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Read the weights of a Transformer as words, without running the model."""


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
def info(
    what: Either,
    as_json: Json = False,
) -> None:
    """Say what a model or an atlas is and which parts of it are read, with sizes and hashes."""
    facts = zp.open_atlas(what).info() if is_atlas(what) else open_named(what).info()
    if not print_json(facts, as_json):
        with text_output() as console:
            console.print(facts_table(facts))


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


@app.command()
def families(as_json: Json = False) -> None:
    """List the families that can be read, what each has, and what is not modelled exactly."""
    rows = family_rows()
    if not print_json(rows, as_json):
        with text_output() as console:
            console.print(render_families(rows))


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


@app.command()
def evidence(
    model: Model,
    text: Annotated[
        Path | None, typer.Option(help="A UTF-8 text file to run the model on; newspaper prose if not given.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The folder to write to; evidence/MODEL if not given. A stopped run continues.")
    ] = None,
    tokens: Annotated[int, typer.Option(help="How many tokens of the text to use.")] = 10_000,
    only: Annotated[
        str | None, typer.Option(help="Some measures only: pairs,inverses,states,reading,attention,writing.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The seed of all samples and nulls.")] = 0,
    keep: Annotated[
        bool, typer.Option("--keep", help="Let show quote it even if it is smaller than the usual run.")
    ] = False,
    lens: LensOption = "auto",
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Run MODEL on a text and measure how far its words can be believed, against chance."""
    folder = out if out is not None else Path("evidence") / default_name(model)
    with reporting() as report:
        run = zp.collect_evidence(
            model,
            text,
            folder,
            tokens=tokens,
            only=parse_names(only),
            seed=seed,
            keep=keep,
            lens=lens,
            device=device,
            progress=report,
        )
    facts = {"left_out": run.evidence.left_out, "out": str(folder), "kept": run.kept is not None, "note": run.note}
    if not print_json(run.verdicts.to_json() | facts, as_json):
        with text_output() as console:
            console.print(run.summary)
        print(shown_text(run.note, limit=500))
        print(f"{shown_text(str(folder), limit=500)}: report.html, evidence.json, evidence.parquet, verdicts.json.")


@app.command()
def prove(
    model: Model,
    adapter: Adapters = None,
    weight: Weights = None,
    tokens: Annotated[int, typer.Option(min=1, help="How many random tokens to run, in texts of 32.")] = 128,
    seed: Annotated[int, typer.Option(min=0, help="The seed of the tokens.")] = 0,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Prove on MODEL's own files that zeropass computes what transformers does (needs zeropass[run]).

    The exit code is 1 if some part of the forward pass differs.
    """
    adapters, prove_model = adapters_of(adapter, weight), zp.prove  # refuses a missing extra before anything is read
    with reporting() as report:
        report("opening", 0, 1)
        opened = open_named(model, device)
        proof = prove_model(put_adapters(opened, adapters, weight), tokens=tokens, seed=seed, progress=report)
    if not print_json(proof.to_json(), as_json):
        with text_output() as console:
            console.print(render_proof(proof))
    if not proof.proven:
        raise typer.Exit(1)


@app.command()
def align(
    first: First,
    second: Second,
    out: Annotated[Path | None, typer.Option(help="The folder to write to; alignment/A-B if not given.")] = None,
    lens: LensesOption = None,
    seed: Annotated[int, typer.Option(min=0, help="The seed of the shuffled tokens.")] = 0,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Find the layers, neurons and heads of B that do what those of A do; the models must share tokens."""
    folder = out if out is not None else Path("alignment") / f"{default_name(first)}-{default_name(second)}"
    lenses = parse_lenses(lens)
    with reporting() as report:
        report("opening", 0, 1)
        models = zp.open_model(first, device=device), zp.open_model(second, device=device)
        alignment = zp.align_models(*models, folder, lenses=lenses, seed=seed, progress=report)
    if not print_json(alignment.summary() | {"out": str(folder)}, as_json):
        with text_output() as console:
            console.print(render_alignment(alignment))
        print(f"{shown_text(str(folder), limit=500)}: alignment.json, layers.svg, layers.parquet, matches.parquet.")


@app.command()
def match(
    first: First,
    address: Where,
    second: Second,
    k: Count = 10,
    lens: LensesOption = None,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Find the parameters of B that do what one of A does, searching every layer of B."""
    lenses = parse_lenses(lens)
    pair = zp.pair_of(zp.open_model(first, device=device), zp.open_model(second, device=device), lenses)
    record = zp.match(pair, address, k)
    if not print_json(record.to_json(), as_json):
        a, b = (zp.Lens.over(half.frames) for half in pair.halves)
        with text_output() as console:
            console.print(render_matches(record, a[record.query], [b[match.address] for match in record.matches]))


@app.command()
def diff(
    base: Annotated[str, typer.Argument(metavar="BASE", help=MODEL_HELP)],
    tuned: Annotated[str | None, typer.Argument(metavar="TUNED", help="The model that was tuned from it.")] = None,
    adapter: Adapters = None,
    weight: Weights = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="OTHER", help="Another fine-tune or adapter of BASE: what did one teach, and the other not?"
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A folder for the whole result, with a picture.")] = None,
    watch: Annotated[
        Path | None, typer.Option(help="A file of words, one a line: does the change concern them?")
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help="A UTF-8 text file to run BASE on once: which passages fire the change?")
    ] = None,
    atlas: Annotated[
        bool, typer.Option("--build", help="Also build an atlas of the change, for show and find, in OUT/atlas.")
    ] = False,
    layers: Annotated[
        str | None, typer.Option(metavar="A:B", help="With --build: layers A to B-1; all if not given.")
    ] = None,
    thresholds: ThresholdsOption = "auto",
    fail_on: Annotated[
        FailOn | None,
        typer.Option(
            help="Exit with code 1, after all output, for a narrow change, a topic too, or any that is not only "
            "rounding; what cannot be judged passes none."
        ),
    ] = None,
    sarif_file: Annotated[
        Path | None, typer.Option("--sarif", metavar="FILE", help="Also write the finding for code scanning (SARIF).")
    ] = None,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Say what a fine-tune or an adapter changed in BASE: where, and in which words.

    With --fail-on the exit code is 1 if the change is of that kind or could not be judged.
    """
    adapters = adapters_of(adapter, weight)
    if (tuned is None) == (not adapters):
        raise BadOption("diff compares BASE with TUNED, or with --adapter PLACE: give one of the two.")
    if layers and not atlas:
        raise BadOption("--layers is for the atlas of a change: it needs --build.")
    alone = {"--watch": watch, "--build": atlas, "--text": text, "--fail-on": fail_on, "--sarif": sarif_file}
    if against is not None and (given := next((name for name, value in alone.items() if value), "")):
        raise BadOption(f"{given} is about one change; --against compares two.")
    words = read_words(watch, "--watch") if watch else ()
    prose = read_text(text) if text else ""
    with reporting() as report:
        report("opening", 0, 1)
        model = zp.open_model(base, device=device)
        looked_up(model.vocab, words)  # refuses an unknown word before any work
        other = zp.open_model(tuned, device=device) if tuned else put_adapters(model, adapters, weight)
        if against is not None:
            result = zp.against(model, other, open_tuned(against, model, device), progress=report)
            if out is not None:
                zp.write_against(result, out)
            _print_against(result, out, as_json)
            return
        # before the comparison, because it refuses a model or a text that cannot be run at once
        passages = zp.fired_passages(model, other, prose, source=text.name, progress=report) if text else None
        if atlas:  # before the comparison, because it refuses an unusable folder at once
            out = out or Path("diff") / f"{default_name(base)}-{'+'.join(map(default_name, adapters or [str(tuned)]))}"
            zp.build_change(model, other, out / "atlas", zp.Options(layers=parse_layers(layers)), report)
        comparison = zp.compare(model, other, watch=words, thresholds=thresholds, progress=report)
        comparison = replace(comparison, made=comparison.made | {"command": shlex.join(["zeropass", *sys.argv[1:]])})
        if out is not None:
            zp.write_diff(comparison, out)
            if passages is not None:
                write_json(out / "passages.json", passages.to_json())
        if sarif_file is not None:
            write_json(sarif_file, sarif(comparison, tuned or " + ".join(map(str, adapters))))
    if not print_json(comparison.to_json() | ({"passages": passages.to_json()} if passages else {}), as_json):
        with text_output() as console:
            console.print(render_diff(comparison))
            if passages is not None:
                console.print()
                console.print(render_passages(passages))
        if out is not None:
            more = (", passages.json" if passages else "") + ("; atlas (zeropass show, find)" if atlas else "")
            print(f"{shown_text(str(out), limit=500)}: report.html, diff.json, matrices.parquet, where.svg{more}.")
    if fail_on and (reason := failure(comparison, fail_on)):
        print(f"--fail-on {fail_on}: {shown_text(reason, limit=500)}", file=sys.stderr)
        raise typer.Exit(1)


def _print_against(result: Any, out: Path | None, as_json: bool) -> None:
    """Print a comparison of two changes, and the folder that it was written to."""
    if not print_json(result.to_json(), as_json):
        with text_output() as console:
            console.print(render_against(result))
        if out is not None:
            print(f"{shown_text(str(out), limit=500)}: against.json, matrices.parquet.")


@app.command()
def screen(
    changes: Annotated[
        str,
        typer.Argument(
            metavar="FOLDER|LIST",
            help="A folder with adapters and fine-tunes in it, at any depth; or a text file with a path or a hub id of "
            "a model on each line.",
        ),
    ],
    base: Annotated[str, typer.Option(help="The model that all of them were made of, given as MODEL elsewhere.")],
    out: Annotated[Path, typer.Option(help="The folder to write to; a stopped run continues in it.")],
    thresholds: ThresholdsOption = "auto",
    benign: Annotated[
        bool,
        typer.Option(
            "--benign",
            help="All are known to be benign: keep what they reach as thresholds of BASE, for diff and screen.",
        ),
    ] = False,
    fail_on: Annotated[
        AnyOf | None,
        typer.Option(help="Exit with 1 if any is narrow, or (topic) narrow or a topic; or if any could not be read."),
    ] = None,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Say of many adapters or fine-tunes of one BASE what kind of change each is: a table, narrow ones first."""
    with reporting() as report:
        report("opening", 0, 1)
        model = zp.open_model(base, device=device)
        screening = zp.screen(model, changes, out=out, thresholds="none" if benign else thresholds, progress=report)
    kept = None
    if benign:
        limits = zp.thresholds_of(screening)
        zp.write_thresholds(limits, out / "thresholds.json")
        kept = zp.write_thresholds(limits)
    if not print_json(screening.to_json(), as_json):
        with text_output() as console:
            console.print(render_screening(screening))
        print(f"{shown_text(str(out), limit=500)}: screening.html, screening.parquet, screening.json.")
        if kept is not None:
            print(f"{shown_text(str(kept), limit=500)}: the thresholds of diff and screen for this base, from now on.")
    failing = {"narrow": ("narrow", "unreadable"), "topic": ("narrow", "topic", "unreadable"), None: ()}[fail_on]
    if any(row.answer in failing for row in screening):
        raise typer.Exit(1)


@app.command()
def stitch(
    classifier: Annotated[
        str, typer.Option(help="The folder of a fine-tuned classifier, or of a PEFT LoRA with its head.")
    ],
    onto: Annotated[
        str, typer.Option(help="The pretrained model that becomes a classifier, given as MODEL elsewhere.")
    ],
    out: Annotated[Path, typer.Option(help="The folder to write to.")],
    base: Annotated[str | None, typer.Option(help="The model that the classifier was tuned from.")] = None,
    text: Annotated[
        Path | None,
        typer.Option(help="A file of unlabelled texts, one a line, for the choices and for the accuracy to expect."),
    ] = None,
    texts: Annotated[int, typer.Option(min=1, help="How many of the texts to use.")] = 300,
    accuracy: Annotated[float | None, typer.Option(help="The accuracy that the classifier is known to have.")] = None,
    keep: Annotated[int | None, typer.Option(help="How many lower layers of the model to keep.")] = None,
    take: Annotated[int | None, typer.Option(help="How many upper layers of the classifier to take.")] = None,
    kernel: Annotated[str | None, typer.Option(help="orthogonal, centred, ridge, weighted, pinv or identity.")] = None,
    frame: Annotated[
        str | None, typer.Option(help="What stands for a token: both, token or paper; with lenses, seen.")
    ] = None,
    lens: LensesOption = None,
    labels: Annotated[
        str | None, typer.Option(help="Names for its labels in their order, separated by commas.")
    ] = None,
    transplant: Annotated[
        bool, typer.Option("--transplant", help="Add what tuning changed to the model's own layers instead.")
    ] = False,
    strength: Annotated[
        float | None, typer.Option(help="With --transplant: the factor by which to multiply the change.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The seed of the shuffled tokens.")] = 0,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Turn a pretrained model into a classifier, with that of another model and no training (needs zeropass[run])."""
    if transplant and base is None:
        raise BadOption("--transplant moves what tuning changed: it needs --base, what the classifier was tuned from.")
    if transplant and (keep is not None or take is not None):
        raise BadOption("--keep and --take are for a stitch; --transplant leaves all layers where they are.")
    if strength is not None and not transplant:
        raise BadOption("--strength is for --transplant.")
    if transplant and lens not in (None, ["auto"], ["none"]):
        raise BadOption("--lens is for a stitch; --transplant carries what changed by the weights alone.")
    with reporting() as report:
        report("opening", 0, 1)
        before = zp.open_model(base, device=device) if base else None
        tuned, other = open_tuned(classifier, before, device), zp.open_model(onto, device=device)
        options = zp.StitchOptions(
            kernel=kernel,
            frame=frame,
            texts=read_lines(text, "--text", "text", texts) if text else (),
            accuracy=accuracy,
            labels=parse_names(labels) or (),
            seed=seed,
            lenses=parse_lenses(lens),
        )
        if transplant and before is not None:
            _, record = zp.transplant(tuned, other, before, out, strength=strength, options=options, progress=report)
        else:
            _, record = zp.stitch_models(
                tuned, other, out, base=before, keep=keep, take=take, options=options, progress=report
            )
    if not print_json(record.to_json() | {"out": str(out)}, as_json):
        with text_output() as console:
            console.print(render_stitch(record))
        path = shown_text(str(out), limit=500)
        print(f'{path}: zeropass classify {path} TEXT..., or in Python: model = zeropass.load_stitched("{path}")')


@app.command()
def classify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder that zeropass stitch wrote.")],
    texts: Annotated[list[str], typer.Argument(metavar="TEXT...", help="The texts to label.")],
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Label texts with a stitched classifier (needs zeropass[run])."""
    classes = zp.classify(folder, texts, device)
    if not print_json(classes, as_json):
        with text_output() as console:
            console.print(render_classes(texts, classes))


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


@app.command()
def tour(folder: Folder) -> None:
    """Walk through an atlas: telling neurons, heads, and the parameters that deal with a word."""
    with text_output(width=100) as console:
        print_tour(console, zp.open_atlas(folder))
