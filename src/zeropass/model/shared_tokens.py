"""The tokens that two vocabularies share, however each of them spells them."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from zeropass.errors import BadOption
from zeropass.model.model import Model
from zeropass.tokens.vocabulary import Vocabulary

__all__ = ["Shared", "normal_form", "shared_tokens"]

STRATA = 16
"""The number of runs of neighbouring ids within which shared tokens are shuffled: see `Shared.shuffled`."""


@dataclass(frozen=True, eq=False)
class Shared:
    """Pairs of token ids that stand for the same token.

    Attributes:
        first: Ids (n,) in the first vocabulary; `shared_tokens` sorts by them.
        second: Ids (n,) in the second vocabulary: ``second[i]`` is the same token as ``first[i]``.
        sizes: Sizes of both vocabularies.
        identical: True if both vocabularies are the same.
    """

    first: Tensor
    second: Tensor
    sizes: tuple[int, int]
    identical: bool

    def __len__(self) -> int:
        return len(self.first)

    @property
    def shares(self) -> tuple[float, float]:
        """The shared part of each vocabulary."""
        return len(self) / self.sizes[0], len(self) / self.sizes[1]

    @property
    def pairs(self) -> tuple[Tensor, Tensor]:
        """Both columns of ids."""
        return self.first, self.second

    @cached_property
    def partners(self) -> tuple[Tensor, Tensor]:
        """For each token of either vocabulary the id of its partner in the other, (V₁,) and (V₂,); -1 for none."""
        return _table(self.first, self.second, self.sizes[0]), _table(self.second, self.first, self.sizes[1])

    def shuffled(self, seed: int) -> "Shared":
        """Return the same tokens with wrong partners: the null of every score.

        Partners change places only within a sixteenth of the ids. Vocabularies are sorted by frequency, by design
        (WordPiece) or in the order of their merges (BPE), so the effect of frequent tokens alone remains.
        """
        draw = torch.Generator().manual_seed(seed)
        runs = torch.arange(len(self)).tensor_split(STRATA)
        order = torch.cat([run[torch.randperm(len(run), generator=draw)] for run in runs])
        return Shared(self.first, self.second[order.to(self.second.device)], self.sizes, identical=False)


def shared_tokens(first: Model, second: Model) -> Shared:
    """Return the tokens that both models have.

    Raises:
        BadOption: If there are too few for the widths of the streams; gives the numbers.
    """
    a, b = first.vocab, second.vocab
    identical = a.pieces == b.pieces
    forms, others = _forms(a), _forms(b)
    pairs = [(i, others[form]) for form, i in forms.items() if form in others]
    widest = max(first.dims.d, second.dims.d)
    if len(pairs) <= 2 * widest:
        raise BadOption(
            f"{first.name} and {second.name} share {len(pairs):,} tokens (of {a.size:,} and {b.size:,}); for streams "
            f"of width {first.dims.d} and {second.dims.d} more than {2 * widest:,} are needed."
        )
    ids = torch.tensor(sorted(pairs), device=first.device)
    return Shared(ids[:, 0], ids[:, 1].to(second.device), (a.size, b.size), identical)


def normal_form(vocab: Vocabulary, token: int) -> tuple[bool, str]:
    """Return whether a token begins a word, and its text without the mark of that: the same for every spelling.

    ``Ġthe`` (byte-level), ``▁the`` (SentencePiece) and ``the`` (WordPiece) begin a word; ``the``, ``the`` and ``##the``
    continue one. Where ``</w>`` ends a word, ``the</w>`` is nearly always an entire one; ``the`` may begin or continue
    one, so that its form is that of no other spelling.
    """
    if vocab.kind in ("wordpiece", "plain"):
        return not vocab.is_continuation(token), vocab.text(token)
    is_word, text = vocab.boundary(vocab.text(token))
    return is_word, text if is_word or vocab.spells_spaces else f"{text}\0"


def _table(ids: Tensor, partners: Tensor, size: int) -> Tensor:
    table = torch.full((size,), -1, dtype=torch.long, device=ids.device)
    table[ids] = partners.to(ids.device)
    return table


def _forms(vocab: Vocabulary) -> dict[tuple[bool, str], int]:
    """Return token ids by normal form, without special and unused tokens; the first of those spelt alike."""
    ids: dict[tuple[bool, str], int] = {}
    for token in range(vocab.size):
        if not (vocab.special[token] or vocab.unused[token]):
            ids.setdefault(normal_form(vocab, token), token)
    return ids
