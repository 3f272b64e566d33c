"""Hold the top pairs of value-output maps against the running model, without a lens and through it.

A pair (a, b) of a head says: attending to a promotes b. Here a stands behind four texts that the model wrote itself;
what the head really writes there is added to the stream at the last token of eight others, and b's rank in the change
of the logits is reported, mean over these texts. The table is in docs/evidence.md::

    python reproduce/top_pairs.py smollm2-135m --layers 12,18,23,29
"""

import argparse

import torch
from torch import Tensor

import zeropass as zp
from zeropass._io.progress import silent
from zeropass.model.blocks import Block, embedded
from zeropass.model.frames import Frames
from zeropass.model.generate import own_text
from zeropass.model.running import Contexts, Running
from zeropass.numerics.top_pairs import top_pairs

PAIRS, BEFORE, OTHERS = 6, (4, 16), (8, 20)
"""Pairs of each head; texts before a token and texts whose logits change, each (number, tokens)."""


def written(model: zp.Model, layer: int, heads: Tensor, tokens: Tensor, before: Tensor) -> Tensor:
    """Return what heads write for tokens, (n, d), mean over the texts before them.

    Args:
        model: The model.
        layer: The layer.
        heads: The head of each token, (n,).
        tokens: Ids of the tokens, (n,).
        before: The texts, (texts, tokens).
    """
    repeated = before.repeat(len(tokens), 1)
    ids = torch.cat((repeated, tokens.repeat_interleave(len(before))[:, None]), 1)
    states = []
    for part in ids.split(64):
        x = embedded(model, part)
        for number in range(layer):
            x = Block(model, number)(x)
        states.append(Frames(model).as_read(x[:, -1]))
    mean = torch.cat(states).reshape(len(tokens), len(before), -1).mean(1) * model.vector("attn_norm", layer)
    values = [state @ model.head("v", layer, int(head)).T for state, head in zip(mean, heads, strict=True)]
    return torch.stack([value @ model.head("o", layer, int(head)) for value, head in zip(values, heads, strict=True)])


@torch.no_grad()
def ranks(frames: Frames, frame: str, layer: int, before: Tensor, contexts: Contexts) -> Tensor:
    """Return the rank of each promoted token in the measured change of the logits, (heads · pairs,)."""
    model = frames.model
    mask = torch.from_numpy(model.vocab.mask("default", *model.judgement))
    heads = range(model.dims.heads)
    best = [
        top_pairs(frames.head_map(layer, head, "vo", frame), PAIRS, left_mask=mask, right_mask=mask) for head in heads
    ]
    lefts, rights = (torch.cat([getattr(pairs, side) for pairs in best]) for side in ("left", "right"))
    vectors = written(model, layer, torch.arange(len(heads)).repeat_interleave(PAIRS), lefts, before)
    change = torch.cat([contexts.changes(layer, "attn", part).mean(0) for part in vectors.split(9)])
    return (change > change.gather(1, rights[:, None])).sum(1)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--layers", default="12,18,20,23,26,29")
    parser.add_argument("--lens", default="auto")
    options = parser.parse_args()
    model = zp.open_model(options.model)
    frames = Frames.through(model, options.lens)
    frames.require_lens("seen")
    before = own_text(model, *BEFORE, 98, silent)
    contexts = Contexts.of(Running(model), own_text(model, *OTHERS, 99, silent))
    print("| layer | frame | median rank | in the top 100 |\n|---:|---|---:|---:|")
    for layer in map(int, options.layers.split(",")):
        for frame in ("token", "seen"):
            places = ranks(frames, frame, layer, before, contexts)
            print(
                f"| {layer} | {frame} | {int(places.median()) + 1:,} | {(places < 100).float().mean():.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
