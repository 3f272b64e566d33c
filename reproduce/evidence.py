"""The tables and figures of docs/evidence.md, and the verdicts of the package, from `zeropass evidence`.

    python reproduce/evidence.py evidence/smollm2-135m evidence/minilm-l6
    python reproduce/evidence.py --values   # rewrite what the shipped verdicts state about their demo models' values

writes docs/evidence/MODEL.md (every table), docs/evidence/MODEL-FIGURE.svg, the tables between the marks in
docs/evidence.md, and src/zeropass/records/known/ (what `show` says about these models without a measurement).
"""

import argparse
import re
from dataclasses import replace
from pathlib import Path

from zeropass.evidence.figures import figures
from zeropass.evidence.judging import verdicts_of
from zeropass.evidence.render import tables
from zeropass.evidence.results import Evidence, read_evidence
from zeropass.model.identity import values_sha256
from zeropass.model.opening import open_model
from zeropass.records.verdicts import SHIPPED, keep, read_verdicts

DOCS = Path(__file__).parent.parent / "docs"
FIGURES = ("trust", "reading", "writing", "attention", "states", "inverses", "offsets")
TABLES = ("verdict", "variants", "effects")
"""The tables that docs/evidence.md itself shows, where it has marks for them."""


def measured(evidence: Evidence) -> str:
    """Describe in one line how a model was measured."""
    method = evidence.method
    versions = ", ".join(f"{name} {version}" for name, version in method["versions"].items())
    return (
        f"Measured {method['date']}; {method['machine']}; {versions}. {method['text']}, {method['tokens']:,} tokens, "
        f"seed {method['settings']['seed']}; {method['seconds']} s, {method['peak_mb']:,} MB at most."
    )


def page(evidence: Evidence) -> str:
    """Return the page with every table of a model."""
    suffix = f" ({evidence.model['title']})" if evidence.model.get("title") else ""
    title = f"# Evidence on {evidence.model['name']}{suffix}: every table"
    left_out = [f"Left out: {name}: {why}" for name, why in evidence.left_out.items()]
    intro = [title, measured(evidence), "[How to read them](../evidence.md). A dot: not above wrong lists.", *left_out]
    return "\n\n".join([*intro, *(text.rstrip() for text in tables(evidence).values())]) + "\n"


def between(text: str, mark: str, new: str) -> str:
    """Replace the text between ``<!-- mark -->`` and ``<!-- end -->``, if the text has these marks."""
    return re.sub(rf"(<!-- {re.escape(mark)} -->\n).*?(<!-- end -->)", lambda m: m[1] + new + m[2], text, flags=re.S)


def document(evidence: Evidence) -> None:
    """Write every page and figure of the documents about one model."""
    name, folder = evidence.model["name"], DOCS / "evidence"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.md").write_text(page(evidence), encoding="utf-8")
    for drawing in figures(evidence):
        if drawing.name in FIGURES:
            (folder / f"{name}-{drawing.name}.svg").write_text(drawing.svg() + "\n", encoding="utf-8")
    markdown, path = tables(evidence), DOCS / "evidence.md"
    text = between(path.read_text(encoding="utf-8"), f"{name} measured", measured(evidence) + "\n")
    for table in TABLES:
        text = between(text, f"{name} {table}", markdown[table])
    path.write_text(text, encoding="utf-8")
    keep(verdicts_of(evidence), SHIPPED)


def name_values() -> None:
    """Write into the shipped verdicts the names of their demo models and the hashes of their values."""
    for path in sorted(SHIPPED.glob("*.json")):
        known = read_verdicts(path)
        model = open_model(str(known.model["name"]))
        if model.fingerprint != known.model["sha256"]:
            raise SystemExit(f"{path} is about other weights than {model.name}")
        facts = known.model | {"title": model.title, "values_sha256": values_sha256(model)}
        keep(replace(known, model=facts), SHIPPED)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, help="what `zeropass evidence --out` wrote")
    parser.add_argument(
        "--values", action="store_true", help="name the values of the models whose verdicts are shipped"
    )
    options = parser.parse_args()
    for folder in options.folders:
        document(read_evidence(folder))
    if options.values:
        name_values()
