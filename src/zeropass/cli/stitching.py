"""Commands that make and use classifiers without training."""

from pathlib import Path
from typing import Annotated

import typer

import zeropass as zp
from zeropass._io.parse import read_lines
from zeropass._io.progress import reporting
from zeropass.cli.inputs import open_tuned, parse_lenses, parse_names
from zeropass.cli.options import Device, Json, LensesOption, new_app
from zeropass.cli.output import print_json, text_output
from zeropass.errors import BadOption
from zeropass.stitch.render import render_classes, render_stitch
from zeropass.tokens.shown import shown_text

__all__ = ["app"]

app: typer.Typer = new_app()


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
