"""Measure what a published lens should say of what attention writes, in the middle of a block.

    python reproduce/middle_of_block.py MODEL LENS [--layers 1,4,7]

A published lens has matrices for the states between blocks. Compared for rows of o, as in reproduce/lens.py: the matrix
of the state behind the block, which leaves its MLP out; the same behind the mean-field Jacobian of that MLP, from 2,048
tokens of the model's own text; and the matrix of the state before the block, which also counts its attention.
"""

import argparse

import torch
from torch import Tensor

import zeropass as zp
from lens import PREFIX, VECTORS
from published_lenses import windows_of
from zeropass.evidence.corpus import press_text
from zeropass.evidence.resampling import spearman
from zeropass.evidence.writing import SAMPLED, STRENGTH
from zeropass.model.blocks import Block, embedded
from zeropass.model.frames import Frames
from zeropass.model.mean_field import BlockMeans
from zeropass.model.running import Contexts, Running

CONTEXTS = 12


def feed_jacobians(model: zp.Model, layers: list[int]) -> dict[int, Tensor]:
    """Return the mean-field Jacobian (d, d) of the MLP of some layers."""
    x, jacobians = embedded(model, windows_of(model, "own", 2048)), {}
    for layer in range(max(layers) + 1):
        block = Block(model, layer)
        means = BlockMeans(block)
        x = torch.cat([block(part, record=means.record) for part in torch.split(x, 8)])
        if layer in layers:
            jacobians[layer] = means.jacobians().ff
    return jacobians


@torch.no_grad()
def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("lens")
    parser.add_argument("--layers", default="")
    options = parser.parse_args()
    model = zp.open_model(options.model)
    lens = zp.read_lens(options.lens, model)
    layers = [int(n) for n in options.layers.split(",")] if options.layers else list(range(1, model.dims.layers))
    ids = torch.tensor(model.vocab.encode(press_text())[-8000:])
    starts = torch.randperm(len(ids) - PREFIX, generator=torch.Generator().manual_seed(22))[:CONTEXTS].tolist()
    contexts = Contexts.of(Running(model), torch.stack([ids[start : start + PREFIX] for start in starts]))
    sample = torch.randperm(model.dims.vocab, generator=torch.Generator().manual_seed(21))[:SAMPLED]
    rows = Frames(model).rows("output.write").matrix[sample]
    print("| layer | behind the block | with its MLP | before the block |\n|---:|---:|---:|---:|")
    for layer, jacobian in feed_jacobians(model, layers).items():
        order = torch.randperm(model.rows("o", layer), generator=torch.Generator().manual_seed(layer))[:VECTORS]
        vectors = model.matrix("o", layer)[order]
        length = STRENGTH * contexts.streams[layer + 1].norm(dim=-1).median()
        unit = vectors / vectors.norm(dim=1, keepdim=True).clamp_min(1e-20)
        changes = contexts.changes(layer, "attn", length * unit)[..., sample].mean(0)
        behind = lens.effect(layer, "ff")
        maps = (behind, behind + jacobian @ behind, lens.effect(layer - 1, "ff"))
        folded = Frames(model).fold(vectors, "output", "write", "attn_norm", layer)
        agreements = [float(spearman(folded @ matrix @ rows.T, changes, 1).mean()) for matrix in maps]
        print(f"| {layer} |", " | ".join(f"{x:.2f}" for x in agreements), "|", flush=True)


if __name__ == "__main__":
    main()
