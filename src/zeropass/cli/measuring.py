"""Commands that run a model and compare."""

from pathlib import Path
from typing import Annotated

import typer

import zeropass as zp
from zeropass._io.progress import reporting
from zeropass.cli.inputs import adapters_of, open_named, parse_names, put_adapters
from zeropass.cli.options import Adapters, Device, Json, LensOption, Model, Weights, new_app
from zeropass.cli.output import print_json, text_output
from zeropass.records.verdicts import default_name
from zeropass.render.terminal import render_proof
from zeropass.tokens.shown import shown_text

__all__ = ["app"]

app: typer.Typer = new_app()


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
