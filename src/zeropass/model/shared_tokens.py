"""The tokens that two vocabularies share, however each spells them."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from zeropass.errors import BadOption
from zeropass.model.model import Model
from zeropass.tokens.vocabulary import Vocabulary

__all__ = ["Shared", "normal_form", "shared_tokens"]

STRATA = 16
"""Into how many runs of neighbouring ids the shared tokens are cut before they are shuffled: see `Shared.shuffled`."""


@dataclass(frozen=True, eq=False)
class Shared:
    """Pairs of token ids, ``first[i]`` and ``second[i]`` the same token, in the order of the first's ids."""

    first: Tensor
    second: Tensor
    sizes: tuple[int, int]
    identical: bool

    def __len__(self) -> int:
        return len(self.first)

    @property
    def shares(self) -> tuple[float, float]:
        """Which part of each vocabulary is shared."""
        return len(self) / self.sizes[0], len(self) / self.sizes[1]

    @property
    def pairs(self) -> tuple[Tensor, Tensor]:
        """Both columns of ids."""
        return self.first, self.second

    @cached_property
    def partners(self) -> tuple[Tensor, Tensor]:
        """Which token of the second stands for one of the first, (V₁,), and the other way, (V₂,); -1 if none does."""
        return _table(self.first, self.second, self.sizes[0]), _table(self.second, self.first, self.sizes[1])

    def shuffled(self, seed: int) -> "Shared":
        """The same tokens with wrong partners: the null of every score.

        Partners change places within a sixteenth of the ids only. Vocabularies are sorted by frequency, by design
        (WordPiece) or as their merges were found (BPE), so what frequent tokens alone do to two models stays.
        """
        draw = torch.Generator().manual_seed(seed)
        runs = torch.arange(len(self)).tensor_split(STRATA)
        order = torch.cat([run[torch.randperm(len(run), generator=draw)] for run in runs])
        return Shared(self.first, self.second[order.to(self.second.device)], self.sizes, identical=False)


def shared_tokens(first: Model, second: Model) -> Shared:
    """The tokens that both models have. Raises BadOption, with the numbers, if they are too few for the widths."""
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
    """(whether it begins a word, its text without the space or mark that says so): the same for every spelling.

    ``Ġthe`` (byte-level), ``▁the`` (SentencePiece) and ``the`` (WordPiece) begin a word; ``the``, ``the`` and ``##the``
    continue one.
    """
    if vocab.kind in ("wordpiece", "plain"):
        return not vocab.is_continuation(token), vocab.text(token)
    text = vocab.text(token)
    return text.startswith(" "), text.removeprefix(" ")


def _table(ids: Tensor, partners: Tensor, size: int) -> Tensor:
    found = torch.full((size,), -1, dtype=torch.long, device=ids.device)
    found[ids] = partners.to(ids.device)
    return found


def _forms(vocab: Vocabulary) -> dict[tuple[bool, str], int]:
    """Token ids by normal form, special and unused tokens left out; of two that are spelt alike the first."""
    found: dict[tuple[bool, str], int] = {}
    for token in range(vocab.size):
        if not (vocab.special[token] or vocab.unused[token]):
            found.setdefault(normal_form(vocab, token), token)
    return found
