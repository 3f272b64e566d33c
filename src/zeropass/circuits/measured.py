"""Heads in the running model: attention in texts that repeat random tokens, and what the model loses without a head."""

from collections.abc import Collection

import torch
from torch import Tensor

from zeropass.model.blocks import Block, caches, embedded, final_logits
from zeropass.model.model import Model
from zeropass.model.running import Running

__all__ = ["attention_scores", "repeated_tokens", "surprise"]


def repeated_tokens(model: Model, texts: int = 8, length: int = 64, seed: int = 0) -> Tensor:
    """Return texts of random tokens, all that lists show being as likely, each text twice over, (texts, 2 length)."""
    shown = torch.from_numpy(model.vocab.mask("default", *model.judgement)).nonzero()[:, 0]
    drawn = torch.randint(len(shown), (texts, length), generator=torch.Generator().manual_seed(seed))
    return shown[drawn].repeat(1, 2)


@torch.no_grad()
def attention_scores(model: Model, ids: Tensor, length: int) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """Run a model on texts that repeat, and return the attention of its heads.

    Args:
        model: The model.
        ids: The texts: `repeated_tokens`.
        length: The number of tokens that are repeated.

    Returns:
        For each layer with attention, of each head in the second part of the texts, (heads,): the mean attention to
        the previous token, and the induction score, the mean attention to what followed the same token before (Olsson
        et al. 2022).
    """
    running, last = Running(model), ids.shape[1]
    recorded: dict[str, Tensor] = {}
    previous: dict[int, Tensor] = {}
    induction: dict[int, Tensor] = {}
    places = torch.arange(last - length + 1, last)

    def record(name: str, layer: int, values: Tensor) -> None:
        recorded[name] = values
        if name != "rotated.k":
            return
        block = running.blocks[layer]
        q, k = (block.heads(recorded[f"rotated.{role}"], role) for role in "qk")
        weights = block.weights(q, k, torch.arange(last, device=q.device))
        previous[layer] = weights[..., places, places - 1].mean((0, 2))
        induction[layer] = weights[..., places, places - length + 1].mean((0, 2))

    running.run(ids.to(model.device), record)
    return previous, induction


@torch.no_grad()
def surprise(model: Model, ids: Tensor, without: Collection[tuple[int, int]] = ()) -> Tensor:
    """Return the surprise of the model at each token but the first, in nats, (texts, tokens − 1).

    Args:
        model: The model.
        ids: The texts.
        without: Heads, each a layer and a head, that write nothing but the bias of their layer.
    """
    ids = ids.to(model.device)
    x = embedded(model, ids)
    for layer, cache in zip(range(model.dims.layers), caches(model), strict=True):
        heads = [head for at, head in without if at == layer]
        x = _block(model, layer, heads)(x, cache, ids=ids)
    logits = final_logits(model, x).log_softmax(-1)
    return -logits[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]


def _block(model: Model, layer: int, silent: Collection[int]) -> Block:
    """Return a block some of whose heads write nothing."""
    if not silent:
        return Block(model, layer)
    rows, width = model.matrix("o", layer).clone(), model.dims.at(layer).width("o")
    for head in silent:
        rows[head * width : (head + 1) * width] = 0
    return Block(model, layer, {"o": rows})
