"""Arguments and options that several commands share."""

from typing import Annotated, Any

import typer

from zeropass.tokens.shown import View

MODEL_HELP = "A hub id, a folder, a .gguf file, or smollm2-135m (SmolLM2-135M-Instruct in Q4_1)."
Model = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)]
First = Annotated[str, typer.Argument(metavar="A", help=MODEL_HELP)]
Second = Annotated[str, typer.Argument(metavar="B", help="The model to search.")]
ATLAS_HELP = "The folder of an atlas, or one on the hub: hf://datasets/owner/name."
Folder = Annotated[str, typer.Argument(metavar="DIR", help=ATLAS_HELP)]
Either = Annotated[
    str, typer.Argument(metavar="MODEL_OR_DIR", help="A model, or an atlas: its folder, or hf://datasets/owner/name.")
]
Where = Annotated[str, typer.Argument(metavar="ADDRESS", help="Such as L26.ff.1189, L10.attn.3.vo, L10.attn.3.v.17.")]
OrVector = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[ADDRESS]...", help="Such as L26.ff.1189, L10.attn.3.vo, of an atlas also L26; none with --vector."
    ),
]
Adapters = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter",
        metavar="PLACE",
        help="A PEFT adapter to put on the model: its folder or hub id; may be repeated, and the changes are summed.",
    ),
]
Weights = Annotated[
    list[float] | None,
    typer.Option(
        "--weight", help="What the change of an adapter is multiplied by: one for each --adapter, in their order."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Frame = Annotated[
    str | None,
    typer.Option(help="token, output or paper; with a lens seen, effect or distinctive; the usual ones if not given."),
]
LensOption = Annotated[
    str,
    typer.Option(
        "--lens",
        help="The folder of a lens, or a published one: a file, a folder or a hub id; auto for the lens that is kept; "
        "none for the weights alone.",
    ),
]
Hook = Annotated[
    str | None,
    typer.Option(help="With --features: where it reads and writes, if its files do not say so."),
]
LensesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--lens",
        help="auto for the lenses that are kept, none for the weights alone; or twice, for a lens of each model.",
    ),
]
ThresholdsOption = Annotated[
    str,
    typer.Option(
        "--thresholds",
        help="The file of what benign changes of the base reach (screen --benign); auto for what is kept of it; none "
        "for random changes alone.",
    ),
]
Tokens = Annotated[View | None, typer.Option(help="The tokens that lists may show.")]
Layers = Annotated[str | None, typer.Option(metavar="A:B", help="Layers A to B-1; all if not given.")]
Count = Annotated[int, typer.Option("-k", min=1, help="How many to list.")]
Device = Annotated[str, typer.Option(help="Where to compute: cpu or cuda.")]


def new_app(**settings: Any) -> typer.Typer:
    """Return an empty set of commands with the settings of all.

    Args:
        settings: Further ones of typer's.
    """
    return typer.Typer(
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        rich_markup_mode=None,  # rich takes twice as long to load as all else that the help needs
        **settings,
    )
