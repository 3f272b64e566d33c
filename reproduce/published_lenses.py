"""Make lenses that others publish, in their own formats, to compare ours with them (reproduce/lens.py).

    python reproduce/published_lenses.py MODEL DIR [--source own|press] [--tokens 6144] [--prompts 4] [--only tuned]

DIR/jacobian.pt is a Jacobian lens: the derivative of the last state with respect to the state behind each block,
averaged over prompts of 128 tokens and their positions, and summed over later positions, as the package jlens computes
it. DIR/same.pt is the same without the sum: the derivative at the last token of every window, to its own last state.
DIR/tuned is a tuned lens: for each state an affine map to the last one. The package tuned-lens trains it with the
model's logits as the goal, on tens of millions of tokens; here it is a ridge on the states of a few thousand.

All are made from tokens that the model writes itself, those of `zeropass calibrate`, or from newspaper prose.
"""

import argparse
import json
import resource
import time
from pathlib import Path

import torch
from torch import Tensor

import zeropass as zp
from zeropass.evidence.corpus import press_text
from zeropass.model.blocks import Block, Cache, embedded
from zeropass.model.generate import own_text

WINDOW, SKIPPED, BATCH = 128, 16, 16
"""The tokens of a prompt, those at its start that do not count, and the rows of a Jacobian that are made at once."""

RIDGE = 0.01
"""The penalty of the fit, in units of the mean variance of a coordinate of the states."""


def averaged_jacobians(model: zp.Model, windows: Tensor, alone: bool = False) -> dict[int, Tensor]:
    """Return the Jacobian (d, d) of the last state with respect to the state behind each block but the last.

    Source: ``jacobian_for_prompt`` of https://github.com/anthropics/jacobian-lens.

    Args:
        model: The model.
        windows: Token ids, (prompts, tokens).
        alone: Count the last token of each prompt alone, not all positions with the later ones that they reach.

    Returns:
        The mean over prompts and positions, for column vectors; by layer.
    """
    d, layers, length = model.dims.d, model.dims.layers, windows.shape[1]
    blocks = [Block(model, layer) for layer in range(layers)]
    total = {layer: torch.zeros(d, d) for layer in range(layers - 1)}
    first = length - 1 if alone else 0
    counted = slice(None) if alone else slice(SKIPPED, length - 1)
    for ids in windows:
        caches = [Cache() for _ in blocks]
        with torch.no_grad():
            x = embedded(model, ids[None, :first].expand(BATCH, -1))
            for block, cache in zip(blocks, caches, strict=True):
                x = block(x, cache) if first else x
        x = blocks[0](embedded(model, ids[None, first:].expand(BATCH, -1), first), caches[0]).requires_grad_()
        states = [x]
        for block, cache in zip(blocks[1:], caches[1:], strict=True):
            states.append(block(states[-1], cache))
        for start in range(0, d, BATCH):
            rows = min(BATCH, d - start)
            goal = torch.zeros_like(x)
            for row in range(rows):
                goal[row, counted, start + row] = 1
            gradients = torch.autograd.grad(states[-1], states[:-1], goal, retain_graph=start + BATCH < d)
            for layer, gradient in enumerate(gradients):
                total[layer][start : start + rows] += gradient[:rows, counted].mean(1)
    return {layer: matrix / len(windows) for layer, matrix in total.items()}


def save_jacobians(matrices: dict[int, Tensor], prompts: int, file: Path) -> None:
    """Write a Jacobian lens as the package jlens does."""
    halves = {layer: matrix.half() for layer, matrix in matrices.items()}
    d = len(matrices[0])
    torch.save({"J": halves, "n_prompts": prompts, "source_layers": list(halves), "d_model": d}, file)


@torch.no_grad()
def translators(model: zp.Model, windows: Tensor) -> dict[str, Tensor]:
    """Return the translators of a tuned lens, fitted by least squares to the last state.

    Args:
        model: The model.
        windows: Token ids, (windows, tokens).

    Returns:
        ``l.weight`` (d, d) and ``l.bias`` (d,): a state h before layer l becomes ``h + weight @ h + bias``.
    """
    states, x = [], embedded(model, windows)
    for layer in range(model.dims.layers):
        states.append(x[:, 1:].flatten(0, 1))
        block = Block(model, layer)
        x = torch.cat([block(part) for part in torch.split(x, 8)])
    last, fitted = x[:, 1:].flatten(0, 1), {}
    for layer, state in enumerate(states):
        mean, change = state.mean(0), last - state
        centred = state - mean
        gram = centred.T @ centred
        gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram))
        weight = torch.linalg.solve(gram, centred.T @ (change - change.mean(0))).T
        fitted |= {f"{layer}.weight": weight, f"{layer}.bias": change.mean(0) - weight @ mean}
    return fitted


def save_translators(fitted: dict[str, Tensor], model: zp.Model, folder: Path) -> None:
    """Write a tuned lens as the package tuned-lens does."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({name: tensor.clone() for name, tensor in fitted.items()}, folder / "params.pt")
    config = {
        "base_model_name_or_path": model.name,
        "d_model": model.dims.d,
        "num_hidden_layers": model.dims.layers,
        "bias": True,
        "base_model_revision": None,
        "unembed_hash": None,
        "lens_type": "linear_tuned_lens",
    }
    (folder / "config.json").write_text(json.dumps(config))


def windows_of(model: zp.Model, source: str, tokens: int) -> Tensor:
    """Return windows of token ids, (windows, tokens), of the model's own text or of newspaper prose."""
    pieces = tokens // WINDOW
    if source == "own":
        return own_text(model, pieces, WINDOW, 0, lambda *_: None)
    return torch.tensor(model.vocab.encode(press_text())[: pieces * WINDOW]).reshape(pieces, WINDOW)


def main() -> None:
    """Make the lenses, and print what each took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--source", choices=("own", "press"), default="own")
    parser.add_argument("--tokens", type=int, default=6144)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--only", choices=("tuned", "same", "jacobian"))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    model = zp.open_model(options.model)
    windows = windows_of(model, options.source, options.tokens)
    for kind in ("tuned", "same", "jacobian") if options.only is None else (options.only,):
        prompts = windows[: options.prompts] if kind == "jacobian" else windows
        started = time.monotonic()
        if kind == "tuned":
            save_translators(translators(model, prompts), model, options.folder / kind)
        else:
            matrices = averaged_jacobians(model, prompts, alone=kind == "same")
            save_jacobians(matrices, len(prompts), options.folder / f"{kind}.pt")
        memory, seconds = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, time.monotonic() - started
        print(f"{kind}: {prompts.numel():,} tokens, {seconds:.0f} s, {memory:.1f} GiB at most so far", flush=True)


if __name__ == "__main__":
    main()
