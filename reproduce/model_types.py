"""The table of docs/model-types.md: every model type of transformers, and whether it is read.

    python reproduce/model_types.py            # --prune first removes the reasons of types that are read by now

What is read comes from the records; unread_types.toml says of every other type why it is not.
"""

import argparse
import re
import tomllib
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from zeropass._io.atomic import write_text
from zeropass.arch.family_table import type_rows

REASONS = Path(__file__).parent / "unread_types.toml"
PAGE = Path(__file__).parent.parent / "docs" / "model-types.md"


def reasons(source: str) -> dict[str, dict[str, str]]:
    """Return the model types that are not read, by kind of reason, each with its reason."""
    return tomllib.loads(source)


def pruned(source: str, read: Collection[str]) -> str:
    """Return the file of reasons without the lines of model types that are read."""
    lines = source.splitlines(keepends=True)
    names = (re.match(r"\"?([^\"\s\[#]+)\"? = ", line) for line in lines)
    return "".join(line for line, name in zip(lines, names, strict=True) if name is None or name[1] not in read)


def page(kinds: Mapping[str, Mapping[str, str]]) -> str:
    """Return the page for these reasons."""
    rows, known = type_rows(), set(CONFIG_MAPPING_NAMES)
    theirs = [row for row in rows if row["model_type"] in known]
    others = sorted(row["model_type"] for row in rows if row["model_type"] not in known)
    inside = sum(row["reads"] == "text model" for row in theirs)
    gguf = sum("GGUF" in row["formats"] for row in theirs)
    unread = {kind: {name: why for name, why in types.items() if name in known} for kind, types in kinds.items()}
    counts = [("read", len(theirs) - inside), ("read in part: the text model of a multimodal one", inside)]
    counts += [(f"not read: {kind}", len(types)) for kind, types in unread.items()]
    sections = (_section(kind, types) for kind, types in unread.items() if types)
    return "\n".join(
        [
            *_head(len(known)),
            *_table(("", "model types"), counts),
            "",
            f"{gguf} of the types that are read are read from GGUF files as well.",
            f"Read too, though transformers has no such type: {', '.join(map(_code, others))}.",
            "",
            "## Read",
            "",
            "Whatever a configuration says in a key of the last column must be one of these values.",
            "",
            *_table(("model type", "files", "what is read", "family", "only with"), map(_cells, theirs)),
            "",
            "## Not read",
            "",
            *(line for section in sections for line in section),
        ]
    )


def _head(count: int) -> list[str]:
    version = ".".join(transformers.__version__.split(".")[:2])
    return [
        "# Model types",
        "",
        f"transformers {version} has {count} model types (`model_type` in `config.json`), parts of models included.",
        "This page says of each whether zeropass reads it, and if not, why.",
        "A type that is not read is refused by name; so is a configuration that no record of its type is for.",
        "How a type gets a record: [adding-a-family.md](adding-a-family.md).",
        "",
        "`python reproduce/model_types.py` writes this page, from the records and from `reproduce/unread_types.toml`.",
        "",
    ]


def _section(kind: str, types: Mapping[str, str]) -> Iterator[str]:
    yield f"### {kind[0].upper()}{kind[1:]}"
    yield ""
    yield from _table(("model type", "why"), ((_code(name), why) for name, why in types.items()))
    yield ""


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    families = row["families"] if len(row["families"]) < 4 else [*row["families"][:3], "…"]
    only = (f"`{key}` {' or '.join(map(_value, values))}" for key, values in row["only"].items())
    return _code(row["model_type"]), ", ".join(row["formats"]), row["reads"], ", ".join(families), "; ".join(only)


def _value(value: object) -> str:
    return "absent" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _code(name: str) -> str:
    return f"`{name}`"


def _table(head: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"| {' | '.join('---' for _ in head)} |"
    for row in rows:
        yield f"| {' | '.join(map(str, row))} |"


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prune", action="store_true", help="remove the reasons of types that are read")
    source = REASONS.read_text(encoding="utf-8")
    if parser.parse_args().prune:
        source = pruned(source, {row["model_type"] for row in type_rows()})
        write_text(REASONS, source)
    write_text(PAGE, page(reasons(source)))


if __name__ == "__main__":
    main()
