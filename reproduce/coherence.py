"""Measure how far the tokens of a list belong together, beside the same for random directions.

The coherence of a list is the mean cosine of its ten first tokens to each other, in rows other than those that made it
(`zeropass.numerics.coherence`). A random direction is a sum of all the layer's vectors of the role with normal weights,
so it has their covariance, and goes through the same lens. Printed is the share of the layer's vectors above the 95th
percentile of random ones, which is .05 if they are no more coherent than these; then the mean coherence and that
percentile. The table is in docs/evidence.md::

    python reproduce/coherence.py smollm2-135m --layers 0,6,12,18,24
"""

import argparse

import torch

import zeropass as zp
from zeropass.model.frames import Frames
from zeropass.model.list_coherence import ListCoherence
from zeropass.model.vectors import vector_set

KINDS = (
    ("value", "output"),
    ("value", "effect"),
    ("value", "distinctive"),
    ("o", "output"),
    ("o", "effect"),
    ("o", "distinctive"),
    ("gate", "token"),
    ("gate", "seen"),
)


@torch.no_grad()
def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--layers", default="0,3,6,9,12,15,18,21,24,27,29")
    parser.add_argument("--lens", default="auto")
    options = parser.parse_args()
    frames = Frames.through(zp.open_model(options.model), options.lens)
    frames.require_lens("seen")
    model, coherence = frames.model, ListCoherence(frames)
    shown = torch.from_numpy(model.vocab.mask("default", *model.judgement)).nonzero()[:, 0]
    kinds = [(role, frame) for role, frame in KINDS if role in model.family.vector_roles]
    print(f"| layer | {' | '.join(f'{role} {frame}' for role, frame in kinds)} |\n|---:|{'---:|' * len(kinds)}")
    for layer in map(int, options.layers.split(",")):
        cells = []
        for role, frame in kinds:
            vectors = vector_set(model, layer, role)
            values = coherence.of_directions(coherence.scaled(vectors, frame), vectors, frame, shown)
            null = coherence.null(vectors, frame, "default", shown) or 1.0
            cells.append(f"{float((values > null).float().mean()):.2f} ({float(values.mean()):.2f}, {null:.2f})")
        print(f"| {layer} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
