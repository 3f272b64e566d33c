"""Model types that zeropass reads, beside those that TransformerLens lists in its registry (`make peers`).

The registry is read from the source of the package, without importing it. It names classes of transformers; those
that transformers itself does not have (a checkpoint's own code) are named apart: there is no model type to compare.
nnterp has no list: it renames the modules of whatever has names that it knows.
"""

import argparse
import ast
from pathlib import Path

from rich.console import Console
from transformers.models.auto import modeling_auto

from zeropass.arch.families import FAMILIES
from zeropass.arch.families.multimodal import WRAPPERS

REGISTRY = "lib/python3*/site-packages/transformer_lens/factories/architecture_adapter_factory.py"


def read_types() -> dict[str, set[str]]:
    """Return the formats of each model type that zeropass reads."""
    types: dict[str, set[str]] = {}
    for family in FAMILIES:
        for model_type in family.model_types:
            types.setdefault(model_type, set()).update(layout.format for layout in family.layouts)
    return types | {name: {"hf"} for wrapper in WRAPPERS for name in wrapper.model_types}


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


def main() -> None:
    """Print the types that both read, that one of them reads, and how many there are."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(".peers"), help="where `make peers` installed its tools")
    sources = sorted(parser.parse_args().folder.glob(f"venv/{REGISTRY}"))
    if not sources:
        raise SystemExit("There is no TransformerLens in that folder; `make peers` installs it.")
    read, of_class = read_types(), types_of_classes()
    classes = registered(sources[0])
    theirs = set().union(*(of_class.get(name, set()) for name in classes))
    elsewhere = sorted(name for name in classes if name not in of_class)
    console = Console(width=118, highlight=False)
    for name, types in (
        ("read by both", read.keys() & theirs),
        ("by zeropass alone", read.keys() - theirs),
        ("by TransformerLens alone", theirs - read.keys()),
    ):
        console.print(f"[bold]{name}: {len(types)}[/]", " ".join(sorted(types)), sep="\n")
    console.print(f"[bold]classes of TransformerLens that transformers does not have: {len(elsewhere)}[/]")
    console.print(" ".join(elsewhere))
    gguf = sum("gguf" in formats for formats in read.values())
    console.print(f"zeropass: {len(read)} model types, {gguf} of them as GGUF too; TransformerLens: {len(theirs)}.")


if __name__ == "__main__":
    main()
