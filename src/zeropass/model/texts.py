"""Texts as token ids: checked, cut into windows, between the special tokens that an encoder expects."""

from collections.abc import Iterator

import torch
from torch import Tensor

from zeropass.errors import BadOption
from zeropass.model.model import Model

__all__ = ["require_tokens", "special_tokens", "windows"]


def windows(ids: Tensor, size: int, around: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())) -> Iterator[Tensor]:
    """Cut token ids into windows, with special tokens around each.

    Args:
        ids: Token ids, (n,).
        size: Tokens in a window, special tokens included; the last window may be shorter.
        around: Special tokens before and after each window, as `special_tokens` gives them.

    Yields:
        The ids of each window, (size,).
    """
    before, after = (torch.tensor(part, dtype=ids.dtype) for part in around)
    step = size - len(before) - len(after)
    for start in range(0, len(ids), step):
        yield torch.cat((before, ids[start : start + step], after))


def special_tokens(model: Model) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the special tokens that an encoder expects before and after a text; none for a causal model."""
    return ((), ()) if model.family.causal else model.vocab.around


def require_tokens(ids: Tensor, least: int, model: Model) -> None:
    """Check that a text has enough tokens, and that the vocabulary can spell it.

    Args:
        ids: The token ids of the text, (n,).
        least: The least number of tokens.
        model: The model whose tokens they are.

    Raises:
        BadOption: If there are fewer tokens, or if more than a fifth of them are special or unknown.
    """
    if len(ids) < least:
        raise BadOption(f"The text has {len(ids)} tokens of {model.name}; at least {least} are needed.")
    special = torch.from_numpy(model.vocab.special)[ids].double().mean()
    if special > 0.2:
        raise BadOption(
            f"{special:.0%} of the text are special or unknown tokens to {model.name}: another tokenizer's?"
        )
