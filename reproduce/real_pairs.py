"""The alignment of real models that were trained separately, for docs/alignment.md.

    python reproduce/real_pairs.py            # `make alignment`

all-MiniLM-L6-v2 and paraphrase-MiniLM-L3-v2 share a vocabulary and an ancestor: their streams are nearly the same, so
raw space (identity) is a strong baseline. A DistilBERT, fine-tuned as a grammar tagger, is cased and twice as wide: it
shares only some of its tokens with MiniLM-L6. Agreement with activations on held-out text is measured for the first
pair, which can share texts; for the second pair, only the number of matches above chance is reported.
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
    """Return a Markdown table of the matches of each pair."""
    lines = [
        "| models | shared tokens | of each | kind | all | above chance | each other's best | mean score | by chance |",
        "|---|---:|---|---|---:|---:|---:|---:|---:|",
    ]
    for name, alignment in alignments.items():
        shares = " and ".join(f"{share:.0%}" for share in alignment.method["shares"])
        for kind, count in alignment.summary()["matches"].items():
            shared = f"{name} | {alignment.method['shared_tokens']:,} | {shares}"
            lines.append(
                f"| {shared} | {kind} | {count['all']:,} | {count['above_chance']:,} "
                f"| {count['mutual']:,} | {count['mean_score']:.3f} | {count['mean_chance']:.3f} |"
            )
    return "\n".join(lines) + "\n"


def main(out: Path, count: int) -> None:
    """Measure, and write the tables of docs/alignment.md."""
    began = time.monotonic()
    six, three, cased = fetch_demo("minilm-l6"), model_folder("minilm-l3"), model_folder("distilbert-tagger")
    alignments = {}
    for name, first, second in (("L6, L3", six, three), ("DistilBERT, L6", cased, six)):
        models = zp.open_model(str(first)), zp.open_model(str(second))
        alignments[name] = zp.align_models(*models, out / name.replace(", ", "-").lower())
        print(name, f"{time.monotonic() - began:.0f} s", flush=True)
    ids = windows(press_text(), six, count)
    models = zp.open_model(str(six)), zp.open_model(str(three))
    pair = zp.pair_of(*models, (None, None))
    through = zp.pair_of(*models, (zp.calibrate(models[0]), zp.calibrate(models[1])))
    rows: list[Row] = agreement_with_activations(
        pair, through, activations(six, ids), activations(three, ids), "L6, L3"
    )
    summary = (
        f"Measured {datetime.now(UTC):%Y-%m-%d} on {os.cpu_count()} cores ({platform.machine()}) in "
        f"{time.monotonic() - began:.0f} s; activations: {PRESS_SOURCE}, {ids.numel():,} tokens.\n\n"
    )
    path = ROOT / "docs" / "alignment.md"
    new = summary + "\n".join((counts(alignments), table(rows), layers_table(alignments)))
    path.write_text(between(path.read_text(encoding="utf-8"), "real pairs", new), encoding="utf-8")
    print(new)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("alignment"), help="where alignments are written")
    parser.add_argument("--windows", type=int, default=80, help="windows of 256 tokens of the text")
    options = parser.parse_args()
    main(options.out, options.windows)
