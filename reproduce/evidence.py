"""What `zeropass evidence` measured, for docs/evidence.md (tables and figures) and for the package (verdicts).

    python reproduce/evidence.py evidence/smollm2-135m evidence/minilm-l6
    python reproduce/evidence.py --values   # write anew what the shipped verdicts say of their demo models' values

writes docs/evidence/MODEL.md (every table), docs/evidence/MODEL-FIGURE.svg, the tables between the marks in
docs/evidence.md, and src/zeropass/records/known/ (what `show` says of these models without a measurement).
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
from zeropass.model.model import open_model
from zeropass.records.verdicts import SHIPPED, keep, read_verdicts

DOCS = Path(__file__).parent.parent / "docs"
FIGURES = ("trust", "reading", "writing", "attention", "states", "inverses", "offsets")
TABLES = ("verdict", "variants", "effects")
"""Tables that stand in docs/evidence.md itself, where it has marks for them."""


def measured(evidence: Evidence) -> str:
    """How a model was measured, in one line."""
    method = evidence.method
    versions = ", ".join(f"{name} {version}" for name, version in method["versions"].items())
    return (
        f"Measured {method['date']}; {method['machine']}; {versions}. {method['text']}, {method['tokens']:,} tokens, "
        f"seed {method['settings']['seed']}; {method['seconds']} s, {method['peak_mb']:,} MB at most."
    )


def page(evidence: Evidence) -> str:
    """Every table of a model."""
    what = f" ({evidence.model['title']})" if evidence.model.get("title") else ""
    title = f"# Evidence on {evidence.model['name']}{what}: every table"
    left_out = [f"Left out: {name}: {why}" for name, why in evidence.left_out.items()]
    head = [title, measured(evidence), "[How to read them](../evidence.md). A dot: not above wrong lists.", *left_out]
    return "\n\n".join([*head, *(table.rstrip() for table in tables(evidence).values())]) + "\n"


def between(text: str, mark: str, new: str) -> str:
    """The text with what stands between ``<!-- mark -->`` and ``<!-- end -->`` replaced, if it has such a place."""
    return re.sub(rf"(<!-- {re.escape(mark)} -->\n).*?(<!-- end -->)", lambda m: m[1] + new + m[2], text, flags=re.S)


def document(evidence: Evidence) -> None:
    """Write everything that the documents show of one model."""
    name, folder = evidence.model["name"], DOCS / "evidence"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.md").write_text(page(evidence), encoding="utf-8")
    for drawing in figures(evidence):
        if drawing.name in FIGURES:
            (folder / f"{name}-{drawing.name}.svg").write_text(drawing.svg() + "\n", encoding="utf-8")
    made, path = tables(evidence), DOCS / "evidence.md"
    text = between(path.read_text(encoding="utf-8"), f"{name} measured", measured(evidence) + "\n")
    for table in TABLES:
        text = between(text, f"{name} {table}", made[table])
    path.write_text(text, encoding="utf-8")
    keep(verdicts_of(evidence), SHIPPED)


def name_values() -> None:
    """Write into the shipped verdicts what their demo models are and which values they have."""
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
    asked = parser.parse_args()
    for one in asked.folders:
        document(read_evidence(one))
    if asked.values:
        name_values()
