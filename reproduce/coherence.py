"""Measure how far the tokens of a list belong together, beside the same for random directions.

The coherence of a list is the mean cosine of its ten top tokens to each other, in rows other than those that made it:
the ``token`` frame for what writes, the ``output`` frame for what reads, each less its mean. A random direction is a
sum of all the layer's vectors of the role with normal weights, so it has their covariance, and goes through the same
lens. Reported is the share of the layer's own vectors above the 95th percentile of the random ones, which is .05 if
they are no more coherent than these. The table is in docs/evidence.md::

    python reproduce/coherence.py smollm2-135m --layers 0,6,12,18,24
"""

import argparse

import torch
from torch import Tensor

import zeropass as zp
from zeropass.arch.spec import side_of, space_of
from zeropass.model.frames import Frames
from zeropass.model.vectors import vector_set

TOP, RANDOM, OWN = 10, 512, 512
KINDS = (
    ("value", "output"),
    ("value", "effect"),
    ("o", "output"),
    ("o", "effect"),
    ("gate", "token"),
    ("gate", "seen"),
)


def unit(rows: Tensor) -> Tensor:
    """Return rows less their mean, each of length one."""
    centred = rows - rows.mean(0)
    return centred / centred.norm(dim=1, keepdim=True).clamp_min(1e-20)


def deviations(folded: Tensor, rows: Tensor) -> Tensor:
    """Return the deviation of each token's score among vectors (n, d), over rows (V', d): √(r C rᵀ), (V',)."""
    centred = folded - folded.mean(0)
    return ((rows @ (centred.T @ centred / len(centred))) * rows).sum(1).clamp_min(1e-20).sqrt()


def coherence(folded: Tensor, rows: Tensor, judges: Tensor, scale: Tensor | None = None) -> Tensor:
    """Return the coherence of the stronger pole of each list, (n,).

    Args:
        folded: The vectors of the lists, (n, d).
        rows: The rows that make the lists, (V', d).
        judges: The rows that they are judged by, of length one, (V', d).
        scale: What each token's score is divided by, (V',): its deviation among the vectors of the layer, so that what
            all of them do is taken out.
    """
    results = []
    for part in folded.split(64):
        scores = part @ rows.T if scale is None else part @ rows.T / scale
        z = (scores - scores.mean(1, keepdim=True)) / scores.std(1, keepdim=True)
        up, down = z.topk(TOP, 1), (-z).topk(TOP, 1)
        stronger = (up.values[:, -1] >= down.values[:, -1])[:, None]
        chosen = judges[torch.where(stronger, up.indices, down.indices)]
        total = chosen.sum(1).square().sum(1)  # the sum of all cosines, each token's with itself included
        results.append((total - TOP) / (TOP * (TOP - 1)))
    return torch.cat(results)


@torch.no_grad()
def shares(frames: Frames, role: str, frame: str, layer: int, distinctive: bool = False) -> tuple[float, float, float]:
    """Return the share of a layer's lists above random ones, and the mean coherence of both."""
    model, side = frames.model, side_of(role)
    shown = torch.from_numpy(model.vocab.mask("default", *model.judgement)).nonzero()[:, 0]
    rows = frames.rows(space_of(frame, side, layer)).matrix[shown]
    judges = unit(frames.rows(space_of("token", "read", 1) if side == "write" else "output.write").matrix[shown])
    folded = frames.folded(vector_set(model, layer, role), frame)
    generator = torch.Generator().manual_seed(layer)
    random = torch.randn(RANDOM, len(folded), generator=generator) @ folded
    lists = folded[torch.randperm(len(folded), generator=generator)[:OWN]]
    scale = deviations(folded, rows) if distinctive else None
    scores, null = coherence(lists, rows, judges, scale), coherence(random, rows, judges, scale)
    return float((scores > null.quantile(0.95)).float().mean()), float(scores.mean()), float(null.mean())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--layers", default="0,3,6,9,12,15,18,21,24,27,29")
    parser.add_argument("--lens", default="auto")
    parser.add_argument("--distinctive", action="store_true", help="divide each token's scores by their deviation")
    options = parser.parse_args()
    frames = Frames.through(zp.open_model(options.model), options.lens)
    frames.require_lens("seen")
    kinds = [(role, frame) for role, frame in KINDS if role in frames.model.family.vector_roles]
    print(f"| layer | {' | '.join(f'{role} {frame}' for role, frame in kinds)} |\n|---:|{'---:|' * len(kinds)}")
    for layer in map(int, options.layers.split(",")):
        cells = [shares(frames, role, frame, layer, options.distinctive) for role, frame in kinds]
        texts = [f"{share:.2f} ({mean:.2f}, random {null:.2f})" for share, mean, null in cells]
        print(f"| {layer} | {' | '.join(texts)} |", flush=True)


if __name__ == "__main__":
    main()
