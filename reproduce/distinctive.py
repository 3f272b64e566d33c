"""Measure whether distinctive lists are true: held against effects relative to those of other vectors of the layer.

Many vectors of a layer are added to the stream, as `zeropass evidence` does it. The change of the logits by each, as z
over the tokens, is divided by its root mean square over these vectors. Printed is how well this agrees with the frame
``distinctive`` (Spearman correlation, and the share of the list's top 50 in the true top 50) as more vectors make the
divisor, beside the frame ``effect`` against the plain effects. The list of another vector is the null::

    python reproduce/distinctive.py smollm2-135m --layers 4,12,20,28
"""

import argparse

import torch
from torch import Tensor

import zeropass as zp
from zeropass.arch.roles import site_of
from zeropass.evidence.corpus import press_text
from zeropass.evidence.resampling import among, spearman
from zeropass.evidence.writing import SAMPLED, STRENGTH, TOP
from zeropass.model.frames import Frames
from zeropass.model.running import Contexts, Running
from zeropass.model.vectors import vector_set

CONTEXTS, PREFIX, COUNTS, JUDGED = 8, 32, (12, 24, 48, 96), 12


def effects(frames: Frames, contexts: Contexts, role: str, layer: int, chosen: Tensor, shown: Tensor) -> Tensor:
    """Return the mean change of the logits by some vectors of a role, (n, V')."""
    site, vectors = site_of(role), frames.model.matrix(role, layer)[chosen]
    length = STRENGTH * contexts.streams[layer + 1].norm(dim=-1).median()
    added = length * vectors / vectors.norm(dim=1, keepdim=True).clamp_min(1e-20)
    return torch.cat([contexts.changes(layer, site, part).mean(0)[:, shown] for part in added.split(8)])


def standard(scores: Tensor) -> Tensor:
    """Return scores (n, V') as z over the tokens."""
    return (scores - scores.mean(1, keepdim=True)) / scores.std(1, keepdim=True)


def agreement(true: Tensor, lists: Tensor, sample: Tensor) -> str:
    """Return the mean correlation, the share of the top that is in the true top, and the same for a wrong list."""
    right = float(spearman(true[:, sample], lists[:, sample], 1).mean())
    top = float(among(true.topk(TOP).indices, lists.topk(TOP).indices).double().mean())
    wrong = float(spearman(true[:, sample], lists.roll(1, 0)[:, sample], 1).mean())
    return f"{right:.2f} ({top:.2f}; wrong list {wrong:.2f})"


@torch.no_grad()
def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--lens", default="auto")
    parser.add_argument("--layers", default="4,12,20,28")
    options = parser.parse_args()
    frames = Frames.through(zp.open_model(options.model), options.lens)
    model, rows = frames.model, frames.rows("output.write").matrix
    shown = torch.from_numpy(model.vocab.mask("default", *model.judgement)).nonzero()[:, 0]
    sample = torch.randperm(len(shown), generator=torch.Generator().manual_seed(21))[:SAMPLED]
    ids = torch.tensor(model.vocab.encode(press_text())[-4000:])
    starts = torch.randperm(len(ids) - PREFIX, generator=torch.Generator().manual_seed(22))[:CONTEXTS].tolist()
    contexts = Contexts.of(Running(model), torch.stack([ids[start : start + PREFIX] for start in starts]))
    heads = ["role", "layer", "effect", *(f"distinctive, of {count}" for count in COUNTS)]
    print(f"| {' | '.join(heads)} |\n|---|{'---:|' * (len(heads) - 1)}")
    for layer in map(int, options.layers.split(",")):
        for role in ("value", "o"):
            order = torch.randperm(model.rows(role, layer), generator=torch.Generator().manual_seed(layer))
            chosen = order[: max(COUNTS)]
            change = effects(frames, contexts, role, layer, chosen, shown)
            scores = frames.folded(vector_set(model, layer, role), "effect")[chosen] @ rows[shown].T
            factors = frames.factors(layer, role, "distinctive")
            cells = [agreement(change[:JUDGED], scores[:JUDGED], sample)]
            for count in COUNTS:
                z = standard(change)
                relative = (z / z[:count].square().mean(0).sqrt())[:JUDGED]
                cells.append(agreement(relative, scores[:JUDGED] * factors[shown], sample))
            print(f"| {role} | {layer} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
