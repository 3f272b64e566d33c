"""Train a small sparse autoencoder on text that a model writes, and measure what its words are worth.

The autoencoder keeps the largest activations of each state (Gao et al., *Scaling and evaluating sparse autoencoders*,
2024); it is written as SAELens writes its own. On other text, the list of what each encoder sees is compared with the
feature's mean activation for each type of token, beside the list of the next feature. ``models/dictionary``
is made by::

    python reproduce/dictionary.py models/first --layer 2 --out models/dictionary
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from scipy.stats import spearmanr
from torch import Tensor

import zeropass as zp
from zeropass.model.blocks import Block, embedded
from zeropass.model.dictionaries import Dictionary
from zeropass.model.generate import own_text

WINDOWS, WINDOW, BATCH = 48, 128, 512


@torch.no_grad()
def states_of(model: zp.Model, layer: int, windows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return the tokens (n,) of a text that a model writes and the states (n, d) that enter a layer."""
    ids = own_text(model, windows, WINDOW, seed)
    states = embedded(model, ids)
    for before in range(layer):
        states = Block(model, before)(states)
    return ids[:, 1:].flatten(), states[:, 1:].reshape(-1, model.dims.d).cpu()


def trained(states: Tensor, count: int, steps: int, active: int = 8) -> tuple[dict[str, Tensor], float]:
    """Train an autoencoder that keeps the largest activations.

    Args:
        states: The states, (n, d).
        count: The number of features.
        steps: The number of steps.
        active: The number of activations that are kept.

    Returns:
        The tensors of a dictionary of SAELens, and the share of the states' variance that is left unexplained.
    """
    torch.manual_seed(0)
    mean, scale = states.mean(0), states.shape[1] ** 0.5 / states.norm(dim=1).mean()
    centred = (states - mean) * scale
    decoders = torch.nn.functional.normalize(torch.randn(count, states.shape[1]), dim=1).requires_grad_()
    encoders = decoders.detach().clone().requires_grad_()
    optimiser = torch.optim.Adam([encoders, decoders], 2e-3)

    def lost(batch: Tensor) -> Tensor:
        best = (batch @ encoders.T).topk(active, dim=1)
        codes = torch.zeros(len(batch), count).scatter(1, best.indices, best.values.relu())
        return (codes @ decoders - batch).square().sum()

    for _ in range(steps):
        loss = lost(centred[torch.randint(len(centred), (BATCH,))])
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    left = float(lost(centred).detach() / centred.square().sum())
    tensors = {"W_enc": encoders.detach().T * scale, "W_dec": decoders.detach() / scale, "b_dec": mean}
    return {name: tensor.contiguous() for name, tensor in tensors.items()} | {"b_enc": torch.zeros(count)}, left


def write(folder: Path, tensors: dict[str, Tensor], model: str, layer: int) -> None:
    """Write a dictionary as SAELens does, in half precision."""
    folder.mkdir(parents=True, exist_ok=True)
    d, count = tensors["W_enc"].shape
    save_file({name: tensor.half() for name, tensor in tensors.items()}, folder / "sae_weights.safetensors")
    metadata = {"hook_name": f"blocks.{layer}.hook_resid_pre", "model_name": model, "sae_lens_version": "6.0.0"}
    config = {"architecture": "topk", "d_in": d, "d_sae": count, "dtype": "float16", "apply_b_dec_to_input": True}
    config |= {"normalize_activations": "none", "reshape_activations": "none", "metadata": metadata}
    (folder / "cfg.json").write_text(json.dumps(config, indent=1) + "\n")


@torch.no_grad()
def agreement(lens: zp.Lens, dictionary: Dictionary, layer: int, ids: Tensor, states: Tensor) -> tuple[float, float]:
    """Return the median correlation of what encoders see with what activates them, and that of the next feature's list.

    Args:
        lens: A lens on the model.
        dictionary: The dictionary.
        layer: The layer whose incoming states it reads.
        ids: The tokens of a text, (n,).
        states: The states, (n, d).
    """
    encoders = dictionary.set(layer, "encoder")
    types, at = torch.unique(ids, return_inverse=True)
    lists = lens.frames.folded(encoders, "seen") @ lens.frames.rows("token").matrix[types].T
    activations = encoders.vectors @ (states - states.mean(0)).T
    means = torch.zeros(len(lists), len(types)).index_add_(1, at, activations) / at.bincount()
    medians = []
    for shift in (0, 1):
        pairs = zip(lists, means.roll(shift, 0), strict=True)
        medians.append(float(torch.tensor([spearmanr(seen, mean).statistic for seen, mean in pairs]).median()))
    return medians[0], medians[1]


def main() -> None:
    """Train, write, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--layer", type=int, default=2)
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--texts", type=int, default=4, help="how many times 6,144 tokens it is trained on")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    model = zp.open_model(options.model)
    parts = [states_of(model, options.layer, WINDOWS, seed)[1] for seed in range(1, options.texts + 1)]
    tensors, left = trained(torch.cat(parts), options.features, options.steps)
    write(options.out, tensors, model.name, options.layer)
    lens = zp.load(model, lens=zp.calibrate(model))
    dictionary = zp.open_dictionary(model, options.out)
    right, wrong = agreement(lens, dictionary, options.layer, *states_of(model, options.layer, WINDOWS, 99))
    print("| model | layer | features | unexplained | list and activations | list of the next feature |")
    print("|---|---:|---:|---:|---:|---:|")
    print(f"| {model.name} | {options.layer} | {options.features} | {left:.2f} | {right:.2f} | {wrong:.2f} |")


if __name__ == "__main__":
    main()
