"""Measure what lenses are worth: their lists beside those of the weights alone, held against the running model.

    python reproduce/lens.py [MODEL] [--lens LENS]... [--tokens 8000] [--layers 1,4,7]

Several lenses are compared; reproduce/published_lenses.py makes some of the kinds that others publish.

Writing: vectors are added to the stream where their layer writes, at the last token of 12 contexts of 64 tokens, scaled
to a tenth of the stream's median norm there. The mean change of the logits over 4,096 sampled tokens is compared with
the list by Spearman correlation. The ceiling is what a perfect list could reach with so few contexts: the square root
of the reliability, from two halves of the contexts (Spearman 1910; Brown 1910).

Reading: the mean activation of columns of q, k, v and of gates and ups (or keys) for each token type that occurs five
times or more is compared with the list in the same way.

The text is newspaper prose that the lens did not see. A list of another vector of the same layer is the null.
"""

import argparse
from collections.abc import Iterator

import torch
from torch import Tensor

import zeropass as zp
from zeropass.arch.roles import site_of
from zeropass.evidence.corpus import press_text
from zeropass.evidence.resampling import spearman
from zeropass.evidence.writing import SAMPLED, STRENGTH
from zeropass.model.blocks import Block, embedded
from zeropass.model.frames import Frames
from zeropass.model.running import Contexts, Running

CONTEXTS, PREFIX, WINDOW = 12, 64, 256
VECTORS, COLUMNS, LEAST = 16, 100, 5


def writing(
    lenses: list[Frames], contexts: Contexts, layers: list[int], sample: Tensor
) -> Iterator[tuple[str, int, list[float]]]:
    """Yield role, layer and agreements: without a lens, through each, with a wrong list, of a perfect list."""
    model, rows = contexts.running.model, lenses[0].rows("output.write").matrix[sample]
    for layer in layers:
        for number, role in enumerate(("value", "o")):
            site = site_of(role)
            order = torch.randperm(
                model.rows(role, layer), generator=torch.Generator().manual_seed(100 * layer + number)
            )
            vectors = model.matrix(role, layer)[order[:VECTORS]]
            length = STRENGTH * contexts.streams[layer + 1].norm(dim=-1).median()
            direct = lenses[0].fold(vectors, "output", "write", f"{site}_norm", layer)
            effects = [lens.fold(vectors, "effect", "write", f"{site}_norm", layer) for lens in lenses]
            unit = vectors / vectors.norm(dim=1, keepdim=True).clamp_min(1e-20)
            changes = contexts.changes(layer, site, length * unit)[..., sample]
            mean, lists = changes.mean(0), [folded @ rows.T for folded in (direct, *effects)]
            halves = spearman(changes[::2].mean(0), changes[1::2].mean(0), 1).mean().clamp_min(0)
            agreements = [spearman(scores, mean, 1) for scores in (*lists, lists[1].roll(1, 0))]
            ceiling = (2 * halves / (1 + halves)).sqrt()
            yield role, layer, [*(float(x.mean()) for x in agreements), float(ceiling)]


def reading(lenses: list[Frames], ids: Tensor, layers: list[int]) -> Iterator[tuple[str, int, list[float]]]:
    """Yield roles, layer and agreements: without a lens, through each, and with a wrong list."""
    model = lenses[0].model
    types, at, counts = torch.unique(ids[:, 1:].flatten(), return_inverse=True, return_counts=True)
    frequent = (counts >= LEAST).nonzero()[:, 0]
    rows = lenses[0].rows("token").matrix[types[frequent]]
    x = embedded(model, ids)
    for layer in range(max(layers) + 1):
        inputs: dict[str, list[Tensor]] = {"attn": [], "ff": []}

        def record(name: str, values: Tensor, inputs: dict[str, list[Tensor]] = inputs) -> None:
            if name in inputs:
                inputs[name].append(values[:, 1:].flatten(0, 1))

        block = Block(model, layer)
        x = torch.cat([block(part, record=record) for part in torch.split(x, 4)])
        if layer not in layers or layer == 0:
            continue
        for site, roles in (("attn", ("q", "k", "v")), ("ff", tuple(r for r in model.family.ff_roles if r != "value"))):
            matrix = torch.cat([model.matrix(role, layer) for role in roles])
            vectors = matrix[torch.randperm(len(matrix), generator=torch.Generator().manual_seed(layer))[:COLUMNS]]
            active = torch.cat(inputs[site]) @ vectors.T
            means = torch.zeros(len(types), len(vectors)).index_add_(0, at, active) / counts[:, None]
            true = means[frequent].T
            folds = [(lenses[0], "token"), *((lens, "seen") for lens in lenses)]
            lists = [lens.fold(vectors, frame, "read", f"{site}_norm", layer) @ rows.T for lens, frame in folds]
            agreements = (spearman(scores, true, 1) for scores in (*lists, lists[1].roll(1, 0)))
            yield " ".join(roles), layer, [float(x.mean()) for x in agreements]


@torch.no_grad()
def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--lens", action="append", help="may be given several times; the lens that is kept if not")
    parser.add_argument("--tokens", type=int, default=8000)
    parser.add_argument("--layers", default="")
    options = parser.parse_args()
    model = zp.open_model(options.model)
    lenses = [Frames.through(model, lens) for lens in options.lens or ["auto"]]
    for lens in lenses:
        print(f"{model.name}, {lens.require_lens('effect').facts.words}\n")
    ids = torch.tensor(model.vocab.encode(press_text())[-options.tokens :])
    windows = ids[: len(ids) // WINDOW * WINDOW].reshape(-1, WINDOW)
    layers = (
        [int(layer) for layer in options.layers.split(",")] if options.layers else list(range(1, model.dims.layers, 3))
    )
    shown = torch.from_numpy(model.vocab.mask("default", *model.judgement)).nonzero()[:, 0]
    sample = shown[torch.randperm(len(shown), generator=torch.Generator().manual_seed(21))[:SAMPLED]]
    starts = torch.randperm(len(ids) - PREFIX, generator=torch.Generator().manual_seed(22))[:CONTEXTS].tolist()
    contexts = Contexts.of(Running(model), torch.stack([ids[start : start + PREFIX] for start in starts]))
    names = [lens.require_lens("effect").facts.kind for lens in lenses]
    _print_table(["writes", "layer", "weights alone", *names, "wrong list", "ceiling"])
    for role, layer, numbers in sorted(writing(lenses, contexts, layers, sample)):
        _print_row(role, layer, numbers)
    if lenses := [lens for lens in lenses if "seen" in lens.lens_frames]:
        names = [lens.require_lens("seen").facts.kind for lens in lenses]
        print()
        _print_table(["reads", "layer", "weights alone", *names, "wrong list"])
        for roles, layer, numbers in sorted(reading(lenses, windows, layers)):
            _print_row(roles, layer, numbers)


def _print_table(heads: list[str]) -> None:
    print(f"| {' | '.join(heads)} |\n|---{'|---:' * (len(heads) - 1)}|")


def _print_row(roles: str, layer: int, numbers: list[float]) -> None:
    print(f"| {roles} | {layer} |", " | ".join(f"{x:.2f}" for x in numbers), "|", flush=True)


if __name__ == "__main__":
    main()
