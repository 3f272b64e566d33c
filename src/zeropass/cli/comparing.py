"""Commands that compare models."""

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

import zeropass as zp
from zeropass._io.atomic import write_json
from zeropass._io.parse import read_text, read_words
from zeropass._io.progress import reporting
from zeropass.align.render import render_alignment, render_matches
from zeropass.cli.inputs import adapters_of, open_tuned, parse_layers, parse_lenses, put_adapters
from zeropass.cli.options import (
    MODEL_HELP,
    Adapters,
    Count,
    Device,
    First,
    Json,
    LensesOption,
    Second,
    ThresholdsOption,
    Weights,
    Where,
    new_app,
)
from zeropass.cli.output import print_json, text_output
from zeropass.diff.against_render import render_against
from zeropass.diff.passage_table import render_passages
from zeropass.diff.render import render_diff
from zeropass.diff.sarif import sarif
from zeropass.diff.screen_render import render_screening
from zeropass.diff.verdict import FailOn, failure
from zeropass.diff.watch_list import looked_up
from zeropass.errors import BadOption
from zeropass.records.verdicts import default_name
from zeropass.tokens.shown import shown_text

__all__ = ["app"]

AnyOf = Literal["narrow", "topic"]
"""The kinds of change that end a screening with exit code 1."""

app: typer.Typer = new_app()


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
