"""Brackets and quotes: whether attending to an opening one promotes the closing one of its kind."""

from dataclasses import dataclass

import torch
from torch import Tensor

from zeropass.tokens.vocabulary import Vocabulary

__all__ = ["Brackets", "brackets"]

BRACKETS = ("()", "[]", "{}", "“”", "‘’", "«»", "「」", "『』", "（）", "【】", "《》")
"""Brackets and quotes whose two ends differ; each kind counts once, whatever its number of tokens."""


@dataclass(frozen=True, eq=False)
class Brackets:
    """The tokens that open and close a kind.

    Attributes:
        kinds: The kinds that the vocabulary has, both ends of each.
        opening: The tokens that open, (n,).
        closing: A token that closes the same kind for each, (n,): all pairs of the two.
        weights: The weight of each pair, so that kinds count alike, (n,).
    """

    kinds: tuple[str, ...]
    opening: Tensor
    closing: Tensor
    weights: Tensor


def brackets(vocab: Vocabulary) -> Brackets:
    """Return the brackets and quotes that a vocabulary has as tokens of their own, with or without a space before."""
    signs: dict[str, list[int]] = {sign: [] for kind in BRACKETS for sign in kind}
    for i in vocab.used.nonzero()[0].tolist():
        if (text := vocab.text(i).strip()) in signs:
            signs[text].append(i)
    kinds = tuple(kind for kind in BRACKETS if signs[kind[0]] and signs[kind[1]])
    pairs = [(a, b, kind) for kind in kinds for a in signs[kind[0]] for b in signs[kind[1]]]
    sizes = {kind: len(signs[kind[0]]) * len(signs[kind[1]]) * len(kinds) for kind in kinds}
    return Brackets(
        kinds=kinds,
        opening=torch.tensor([a for a, _, _ in pairs], dtype=torch.long),
        closing=torch.tensor([b for _, b, _ in pairs], dtype=torch.long),
        weights=torch.tensor([1 / sizes[kind] for _, _, kind in pairs], dtype=torch.float64),
    )
