"""Tokens for a calibration that are nobody's text: drawn at random, or written by the model itself."""

import torch
from torch import Tensor

from zeropass._io.progress import Progress, silent
from zeropass.errors import CannotRun
from zeropass.model.blocks import Block, caches, embedded, final_logits, require_forward
from zeropass.model.model import Model

__all__ = ["own_text", "random_tokens"]

_ZIPF_SHIFT = 30
"""The number added to a token's id before it counts as its rank: Zipf's law with Mandelbrot's shift."""

_FIRST_WORDS = 4
"""The number of random words that a piece begins with: a single token may be a piece of code or a number, and a lens
from what a model writes behind it is worse (docs/evidence.md)."""


def random_tokens(model: Model, count: int, seed: int = 0, among: Tensor | None = None) -> Tensor:
    """Draw tokens by Zipf's law over their ids.

    The ids of BPE, WordPiece and Unigram vocabularies rise, roughly, as tokens become rare.

    Args:
        model: The model whose vocabulary they are drawn from; unused, special and under-trained tokens are left out.
        count: The number of tokens.
        seed: The seed.
        among: Mask (V,) of tokens to draw from, if it leaves any; None for all.

    Returns:
        Token ids, (count,).

    Example:
        >>> import zeropass as zp
        >>> from zeropass.model.generate import random_tokens
        >>> random_tokens(zp.open_model("models/first"), 5).shape
        torch.Size([5])
    """
    vocab = model.vocab
    eligible = torch.from_numpy(vocab.mask("default", *model.judgement))
    if among is not None and (eligible & among).any():
        eligible = eligible & among
    weights = torch.where(eligible, 1 / (torch.arange(vocab.size) + _ZIPF_SHIFT), 0.0)
    return weights.multinomial(count, replacement=True, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def own_text(model: Model, pieces: int, length: int, seed: int = 0, progress: Progress = silent) -> Tensor:
    """Sample text from a causal model, each piece from four random words on, at temperature one.

    Args:
        model: The model.
        pieces: The number of pieces, which are written side by side.
        length: Tokens in each piece.
        seed: The seed.
        progress: Reports progress.

    Returns:
        Token ids, (pieces, length).

    Raises:
        CannotRun: If the model predicts no next token.
    """
    require_forward(model)
    if not model.family.causal:
        raise CannotRun(f"{model.name} does not predict the next token, so it writes no text.")
    generator = torch.Generator().manual_seed(seed)
    progress("writing text", 1, length)
    _ = model.unembedding  # kept, since every step reads it
    eligible = torch.from_numpy(model.vocab.used & ~model.vocab.special).to(model.device)
    ids = _beginnings(model, pieces, seed)
    blocks = [Block(model, layer) for layer in range(model.dims.layers)]
    kept = caches(model)
    while ids.shape[1] < length:
        passed = kept[0].length
        x = embedded(model, ids[:, passed:], passed)
        for block, cache in zip(blocks, kept, strict=True):
            x = block(x, cache, ids=ids[:, passed:])
        logits = final_logits(model, x[:, -1]).masked_fill(~eligible, float("-inf"))
        ids = torch.cat((ids, _drawn(logits.softmax(-1), generator).cpu()), 1)
        progress("writing text", ids.shape[1], length)
    return ids[:, :length]


def _beginnings(model: Model, pieces: int, seed: int) -> Tensor:
    """Return random words with a space before them, (pieces, words); any random tokens where there are none."""
    texts = [model.vocab.text(i) for i in range(model.vocab.size)]
    words = torch.tensor([text.startswith(" ") and text[1:].isalpha() for text in texts])
    return random_tokens(model, pieces * _FIRST_WORDS, seed, words).reshape(pieces, -1)


def _drawn(probabilities: Tensor, generator: torch.Generator) -> Tensor:
    """Draw one token of each row (n, V) by its cumulated probabilities; four times as fast as ``multinomial``."""
    total = probabilities.cumsum(-1)
    at = torch.rand(len(total), 1, generator=generator).to(total.device) * total[:, -1:]
    return torch.searchsorted(total, at, right=True).clamp_max(total.shape[1] - 1)
