"""Model types and formats that zeropass reads, beside those of TransformerLens and nnterp (`make peers`).

TransformerLens has a registry, which is read from the source of the package without importing it. It names classes of
transformers; those that transformers itself does not have (a checkpoint's own code) are named apart: there is no model
type to compare. nnterp has no list: it renames the modules of whatever has names that it knows, and what it reads was
not measured. Both run the model in transformers, so that they load what it loads.

The file is not called coverage.py: numba would import it in place of the package of that name.
"""

import argparse
import ast
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path

from rich.console import Console
from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES
from transformers.models.auto import modeling_auto

from zeropass.arch.family_table import type_rows
from zeropass.checkpoints.quantisation_methods import METHODS

REGISTRY = "lib/python3*/site-packages/transformer_lens/factories/architecture_adapter_factory.py"
REASONS = Path(__file__).parent.parent / "reproduce" / "unread_types.toml"
OTHER_BLOCKS = ("no text stream", "part of another type", "state space, recurrence, convolution or linear attention")
"""The kinds of reason of types whose blocks are not attention and MLPs on a stream of tokens."""


def types_of_classes() -> dict[str, set[str]]:
    """Return the model types of every class of transformers: Llama's, for example, is that of several."""
    mappings = (name for name in vars(modeling_auto) if name.startswith("MODEL_FOR_") and name.endswith("_NAMES"))
    types: dict[str, set[str]] = {}
    for mapping in mappings:
        for model_type, classes in getattr(modeling_auto, mapping).items():
            for name in (classes,) if isinstance(classes, str) else classes:
                types.setdefault(name, set()).add(model_type)
    return types


def registered(source: Path) -> list[str]:
    """Return the classes that TransformerLens's registry names."""
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Assign | ast.AnnAssign) or not isinstance(node.value, ast.Dict):
            continue
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        if any(isinstance(target, ast.Name) and target.id == "SUPPORTED_ARCHITECTURES" for target in targets):
            return [key.value for key in node.value.keys if isinstance(key, ast.Constant)]
    raise SystemExit(f"{source} has no SUPPORTED_ARCHITECTURES.")


def by_kind(types: Collection[str], kinds: Mapping[str, Mapping[str, str]]) -> dict[str, list[str]]:
    """Return model types that zeropass does not read, by the kind of reason."""
    groups = {kind: sorted(types & reasons.keys()) for kind, reasons in kinds.items()}
    return {kind: names for kind, names in groups.items() if names}


def attention_and_mlp(types: Collection[str], kinds: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Return those whose blocks are attention and MLPs."""
    groups = by_kind(types, kinds)
    return sorted(name for kind, names in groups.items() if kind not in OTHER_BLOCKS for name in names)


def formats(theirs: int) -> str:
    """Return the formats that each of the three reads, as a Markdown table.

    Args:
        theirs: The number of model types in TransformerLens's registry.
    """
    rows = type_rows()
    gguf = sum("GGUF" in row["formats"] for row in rows)
    architectures = len({*GGUF_SUPPORTED_ARCHITECTURES} - {"general", "tokenizer"})
    run = "transformers runs it, with the library of the method; its weights stay packed"
    lines = (
        ("", "zeropass", "TransformerLens", "nnterp"),
        ("---", "---", "---", "---"),
        ("model types", str(len(rows)), str(theirs), "no list; what has names that it knows"),
        ("safetensors", "yes", "through transformers", "through transformers"),
        ("PyTorch `.bin`", "yes, never unpickled", "through transformers", "through transformers"),
        ("quantised safetensors", ", ".join(METHODS), run, run),
        ("GGUF", f"{gguf} of the types", *(f"what transformers dequantises: {architectures} architectures",) * 2),
        ("in memory", "transformers, PEFT, nnsight, TransformerLens", "transformers", "transformers"),
        ("larger than memory", "a few rows at a time", *("as transformers offloads it",) * 2),
    )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Print the formats, the types that both read or one of them reads, and what is missing here, by kind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(".peers"), help="where `make peers` installed its tools")
    sources = sorted(parser.parse_args().folder.glob(f"venv/{REGISTRY}"))
    if not sources:
        raise SystemExit("There is no TransformerLens in that folder; `make peers` installs it.")
    read, of_class = {row["model_type"] for row in type_rows()}, types_of_classes()
    kinds = tomllib.loads(REASONS.read_text(encoding="utf-8"))
    classes = registered(sources[0])
    theirs = set().union(*(of_class.get(name, set()) for name in classes))
    missing = theirs - read
    console = Console(width=118, highlight=False)
    console.print(formats(len(theirs)), soft_wrap=True, markup=False)
    for name, types in (
        ("read by both", read & theirs),
        ("by zeropass alone", read - theirs),
        *((f"by TransformerLens alone, {kind}", names) for kind, names in by_kind(missing, kinds).items()),
        ("by TransformerLens alone, of attention and MLPs", attention_and_mlp(missing, kinds)),
        ("classes of TransformerLens that transformers does not have", {n for n in classes if n not in of_class}),
    ):
        console.print(f"[bold]{name}: {len(types)}[/]", " ".join(sorted(types)), sep="\n")


if __name__ == "__main__":
    main()
