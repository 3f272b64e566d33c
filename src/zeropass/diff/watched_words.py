"""A test of whether a change concerns given words, each compared with tokens of similar frequency.

Any training acts on frequent tokens more than on rare ones. So a word is compared with its peers: the `PEERS` tokens
nearest to its own in the vocabulary, whose ids are in order of frequency; those of a whole word are whole words.
There are up to four tests: the effect of the entire change on what is seen and on what is written, and, for each side,
the largest effect of a single matrix relative to its effect on the mean token. Comparing that maximum with the maximum
of each peer tests all matrices at once (Westfall and Young 1993, max T). The smallest p-value counts, multiplied by the
number of tests and of readings.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist

import torch
from torch import Tensor

from zeropass.arch.roles import side_of
from zeropass.diff.effects import SIDES
from zeropass.diff.results import LEVEL, Watched, WatchedWord
from zeropass.diff.tensor_rows import BLOCK
from zeropass.diff.watch_list import Word
from zeropass.numerics.statistics import blocks, quadratic
from zeropass.tokens.vocabulary import Vocabulary

__all__ = ["PEERS", "Watching", "effects"]

PEERS = 2000
"""The number of tokens of similar frequency that a word is compared with."""

MATRICES = 6
"""The number of matrices that are reported for a word."""


@dataclass(eq=False)
class Watching:
    """The running results for some words.

    Attributes:
        words: The watched words.
        vocab: The vocabulary of the base.
        shown: Ids of the tokens that lists show, (n,), rising.
        most: For each side, the largest relative effect of a matrix on each token of the sample.
        matrices: For each token of the words, the matrices that act on it most.
    """

    words: Sequence[Word]
    vocab: Vocabulary
    shown: Tensor
    most: dict[str, Tensor] = field(default_factory=dict)
    matrices: dict[int, list[Watched]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Choose the peers of every token; the sample is these peers and the tokens of the words."""
        tokens = list(dict.fromkeys(i for word in self.words for i in word.ids))
        peers = {i: self._peers(i) for i in tokens}
        sample = set(tokens).union(*(ids.tolist() for ids in peers.values()))
        self.sample: Tensor = torch.tensor(sorted(sample), dtype=torch.long, device=self.shown.device)
        self.place: dict[int, int] = {i: int(torch.searchsorted(self.sample, i)) for i in tokens}
        self.peers: dict[int, Tensor] = {i: torch.searchsorted(self.sample, ids) for i, ids in peers.items()}

    def take(self, layer: int, role: str, rows: Tensor, root: Tensor, usual: float) -> None:
        """Add the change of one matrix.

        Args:
            layer: The layer of the matrix.
            role: The role of the matrix.
            rows: Rows that stand for the tokens, (V, d).
            root: What was added, folded so that the rows meet it, (n, d).
            usual: The mean effect on all tokens.
        """
        relative, side = effects(rows[self.sample], root) / usual, SIDES[side_of(role)]
        self.most[side] = torch.maximum(self.most[side], relative) if side in self.most else relative
        for i, place in self.place.items():
            effect = float(relative[place])
            above = float((relative[self.peers[i]] < effect).float().mean()) if len(self.peers[i]) else 0.0
            matrices = [*self.matrices.get(i, ()), Watched(layer=layer, role=role, effect=effect, above=above)]
            self.matrices[i] = sorted(matrices, key=_by_effect)[:MATRICES]

    def finish(self, totals: dict[str, Tensor]) -> tuple[tuple[WatchedWord, ...], tuple[Watched, ...]]:
        """Return a verdict on each word and its strongest matrices, from the total effects (V,) on each side."""
        tests = [*(total[self.sample] for total in totals.values()), *self.most.values()]
        verdicts = tuple(self._verdict(word, tests, totals) for word in self.words)
        matrices = (replace(matrix, word=word.text) for word in self.words for matrix in self._matrices(word))
        return verdicts, tuple(matrices)

    def _verdict(self, word: Word, tests: list[Tensor], totals: dict[str, Tensor]) -> WatchedWord:
        """Return the verdict on a word by all tests, with Bonferroni's correction for tests and readings."""
        peers = min(len(self.peers[i]) for i in word.ids)
        count = len(tests) * len(word.readings)
        p_values = [self._p_value(reading, values) for reading in word.readings for values in tests]
        p_value = min(1.0, min(p_values) * count) if p_values else 1.0
        decidable = count / (peers + 1) <= LEVEL
        return WatchedWord(
            word.text,
            tuple(self.vocab.label(i) for i in word.ids),
            split=len(word.readings[0]) > 1,
            concerned=p_value <= LEVEL if decidable else None,
            chance=p_value,
            level=LEVEL,
            peers=peers,
            sees=self._above(word, totals.get("sees")),
            writes=self._above(word, totals.get("writes")),
        )

    def _p_value(self, reading: tuple[int, ...], values: Tensor) -> float:
        """Return how often tokens drawn from the peers have values as high as those of a reading.

        The ranks of several pieces are added as normal scores (Stouffer). The values are those of the sample.
        """
        shares = []
        for i in reading:
            peers = values[self.peers[i]]
            shares.append((1 + int((peers >= values[self.place[i]]).sum())) / (1 + len(peers)))
        if len(shares) == 1:
            return shares[0]
        normal = NormalDist()
        largest = 1 - 0.5 / (1 + min(len(self.peers[i]) for i in reading))
        scores = [-normal.inv_cdf(min(share, largest)) for share in shares]
        return 1 - normal.cdf(sum(scores) / len(scores) ** 0.5)

    def _above(self, word: Word, total: Tensor | None) -> float | None:
        """Return the share of shown tokens on which the change acts less: the best reading's, by its weakest piece."""
        if total is None:
            return None
        shown = total[self.shown]
        return max(min(float((shown < total[i]).double().mean()) for i in reading) for reading in word.readings)

    def _matrices(self, word: Word) -> list[Watched]:
        """Return the matrices that act most on the tokens of a word."""
        return sorted((matrix for i in word.ids for matrix in self.matrices.get(i, ())), key=_by_effect)[:MATRICES]

    def _peers(self, token: int) -> Tensor:
        """Return the shown tokens nearest in rank to a token, (n,): whole words if it is one, otherwise others."""
        words = torch.from_numpy(self.vocab.words).to(self.shown.device)
        candidates = self.shown[(words[self.shown] == bool(self.vocab.words[token])) & (self.shown != token)]
        middle = int(torch.searchsorted(candidates, token))
        start = min(max(middle - PEERS // 2, 0), max(len(candidates) - PEERS, 0))
        return candidates[start : start + PEERS]


def effects(rows: Tensor, root: Tensor) -> Tensor:
    """Return ``‖A r‖²`` (n,) for rows (n, d) and a matrix A (m, d), block by block."""
    if len(root) > root.shape[1]:
        return quadratic(rows, root.T @ root)
    return torch.cat([(rows[part] @ root.T).square().sum(1) for part in blocks(len(rows), BLOCK)])


def _by_effect(matrix: Watched) -> float:
    """Return the sort key that puts the largest effect first."""
    return -matrix.effect
