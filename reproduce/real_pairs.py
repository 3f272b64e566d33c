"""Alignment of real models that were trained apart, for docs/alignment.md.

    python reproduce/real_pairs.py            # `make alignment`

all-MiniLM-L6-v2 and paraphrase-MiniLM-L3-v2 share a vocabulary and an ancestor: their streams are nearly the same, so
raw space (identity) is a strong baseline. A DistilBERT, fine-tuned as a grammar tagger, is cased and twice as wide: it
shares only a part of its tokens with MiniLM-L6. What agrees with activations on held-out text is measured where texts
can be shared; of the last pair, what lies above chance.
"""

import argparse
import os
import platform
import time
from datetime import UTC, datetime
from pathlib import Path

import zeropass as zp
from alignment import ROOT, Row, activations, agreement_with_activations, between, layers_table, table, windows
from onnx_models import model_folder
from zeropass.checkpoints.demo import fetch_demo
from zeropass.evidence.corpus import PRESS_SOURCE, press_text


def counts(alignments: dict[str, zp.Alignment]) -> str:
    """What of each pair was found, in Markdown."""
    lines = [
        "| models | shared tokens | of each | kind | all | above chance | each other's best | mean score | by chance |",
        "|---|---:|---|---|---:|---:|---:|---:|---:|",
    ]
    for name, found in alignments.items():
        shares = " and ".join(f"{share:.0%}" for share in found.method["shares"])
        for kind, c in found.summary()["matches"].items():
            shared = f"{name} | {found.method['shared_tokens']:,} | {shares}"
            lines.append(
                f"| {shared} | {kind} | {c['all']:,} | {c['above_chance']:,} "
                f"| {c['mutual']:,} | {c['mean_score']:.3f} | {c['mean_chance']:.3f} |"
            )
    return "\n".join(lines) + "\n"


def main(out: Path, count: int) -> None:
    """Measure, and write docs/alignment.md's tables."""
    began = time.monotonic()
    six, three, cased = fetch_demo("minilm-l6"), model_folder("minilm-l3"), model_folder("distilbert-tagger")
    alignments = {}
    for name, first, second in (("L6, L3", six, three), ("DistilBERT, L6", cased, six)):
        models = zp.open_model(str(first)), zp.open_model(str(second))
        alignments[name] = zp.align_models(*models, out / name.replace(", ", "-").lower())
        print(name, f"{time.monotonic() - began:.0f} s", flush=True)
    ids = windows(press_text(), six, count)
    pair = zp.pair_of(zp.open_model(str(six)), zp.open_model(str(three)))
    rows: list[Row] = agreement_with_activations(pair, activations(six, ids), activations(three, ids), "L6, L3")
    said = (
        f"Measured {datetime.now(UTC):%Y-%m-%d} on {os.cpu_count()} cores ({platform.machine()}) in "
        f"{time.monotonic() - began:.0f} s; activations: {PRESS_SOURCE}, {ids.numel():,} tokens.\n\n"
    )
    path = ROOT / "docs" / "alignment.md"
    new = said + "\n".join((counts(alignments), table(rows), layers_table(alignments)))
    path.write_text(between(path.read_text(encoding="utf-8"), "real pairs", new), encoding="utf-8")
    print(new)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("alignment"), help="where alignments are written")
    parser.add_argument("--windows", type=int, default=80, help="windows of 256 tokens of the text")
    options = parser.parse_args()
    main(options.out, options.windows)
