"""Whether a change concerns words: each against tokens of like frequency, for which everything is computed alike.

Any training acts on frequent tokens more than on rare ones, so a word is compared with the `PEERS` tokens nearest to
its own in the vocabulary, whose ids are in order of rank, that are whole words if it is one. Looked at are the effect
of the whole change on what is seen and on what is written, and of each side the matrix that acts on a token most, over
what it does to the mean token. The latter is compared with that of each peer, which tests all matrices at once
(Westfall and Young 1993, max T). The smallest chance counts, times the number of tests and of readings.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist

import torch
from torch import Tensor

from zeropass.arch.spec import side_of
from zeropass.diff.results import LEVEL, Watched, WatchedWord
from zeropass.diff.tensor_rows import BLOCK
from zeropass.diff.watch_list import Word
from zeropass.numerics.statistics import blocks
from zeropass.tokens.vocabulary import Vocabulary

__all__ = ["PEERS", "Watching", "effects", "quadratic"]

PEERS = 2000
"""Tokens of like frequency that a word is compared with."""

KEPT = 6
"""Matrices of a word that are kept."""

SIDES = {"read": "sees", "write": "writes"}


@dataclass(eq=False)
class Watching:
    """Running results for some words. ``shown``: ids (n,), rising, of the tokens that lists show."""

    words: Sequence[Word]
    vocab: Vocabulary
    shown: Tensor
    most: dict[str, Tensor] = field(default_factory=dict)
    matrices: dict[int, list[Watched]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Choose the peers of every token: these and the words are all whose effects are needed."""
        ids = list(dict.fromkeys(i for word in self.words for i in word.ids))
        peers = {i: self._peers(i) for i in ids}
        needed = set(ids).union(*(some.tolist() for some in peers.values()))
        self.sample = torch.tensor(sorted(needed), dtype=torch.long, device=self.shown.device)
        self.place = {i: int(torch.searchsorted(self.sample, i)) for i in ids}
        self.peers = {i: torch.searchsorted(self.sample, some) for i, some in peers.items()}

    def take(self, layer: int, role: str, rows: Tensor, root: Tensor, usual: float) -> None:
        """Take in one matrix: rows (V, d) that stand for the tokens, what was added as they meet it, (n, d).

        ``usual`` is the mean effect on all tokens.
        """
        times, side = effects(rows[self.sample], root) / usual, SIDES[side_of(role)]
        self.most[side] = torch.maximum(self.most[side], times) if side in self.most else times
        for i, place in self.place.items():
            effect = float(times[place])
            above = float((times[self.peers[i]] < effect).float().mean()) if len(self.peers[i]) else 0.0
            kept = [*self.matrices.get(i, ()), Watched(layer, role, effect, above)]
            self.matrices[i] = sorted(kept, key=_by_effect)[:KEPT]

    def finish(self, totals: dict[str, Tensor]) -> tuple[tuple[WatchedWord, ...], tuple[Watched, ...]]:
        """A verdict on each word, by the effects (V,) of the whole change on each side, and its strongest matrices."""
        tests = [*(whole[self.sample] for whole in totals.values()), *self.most.values()]
        verdicts = tuple(self._verdict(word, tests, totals) for word in self.words)
        matrices = (replace(one, word=word.text) for word in self.words for one in self._matrices(word))
        return verdicts, tuple(matrices)

    def _verdict(self, word: Word, tests: list[Tensor], totals: dict[str, Tensor]) -> WatchedWord:
        fewest = min(len(self.peers[i]) for i in word.ids)
        count = len(tests) * len(word.readings)
        chances = [self._chance(reading, values) for reading in word.readings for values in tests]
        chance = min(1.0, min(chances) * count) if chances else 1.0
        told = count / (fewest + 1) <= LEVEL
        return WatchedWord(
            word.text,
            tuple(self.vocab.label(i) for i in word.ids),
            split=len(word.readings[0]) > 1,
            concerned=chance <= LEVEL if told else None,
            chance=chance,
            level=LEVEL,
            peers=fewest,
            sees=self._above(word, totals.get("sees")),
            writes=self._above(word, totals.get("writes")),
        )

    def _chance(self, reading: tuple[int, ...], values: Tensor) -> float:
        """How often tokens drawn from the peers have values (of the sample) as high as those of a reading.

        Of several pieces: their ranks as normal scores, added (Stouffer).
        """
        shares = []
        for i in reading:
            peers = values[self.peers[i]]
            shares.append((1 + int((peers >= values[self.place[i]]).sum())) / (1 + len(peers)))
        if len(shares) == 1:
            return shares[0]
        normal = NormalDist()
        most = 1 - 0.5 / (1 + min(len(self.peers[i]) for i in reading))
        scores = [-normal.inv_cdf(min(share, most)) for share in shares]
        return 1 - normal.cdf(sum(scores) / len(scores) ** 0.5)

    def _above(self, word: Word, effects_of_all: Tensor | None) -> float | None:
        """The share of the shown tokens on which the change acts less: of the best reading, of its weakest piece."""
        if effects_of_all is None:
            return None
        shown = effects_of_all[self.shown]
        return max(
            min(float((shown < effects_of_all[i]).double().mean()) for i in reading) for reading in word.readings
        )

    def _matrices(self, word: Word) -> list[Watched]:
        return sorted((one for i in word.ids for one in self.matrices.get(i, ())), key=_by_effect)[:KEPT]

    def _peers(self, token: int) -> Tensor:
        """The shown tokens nearest in rank to one, (n,): whole words if it is one, others if not."""
        words = torch.from_numpy(self.vocab.words).to(self.shown.device)
        alike = self.shown[(words[self.shown] == bool(self.vocab.words[token])) & (self.shown != token)]
        middle = int(torch.searchsorted(alike, token))
        start = min(max(middle - PEERS // 2, 0), max(len(alike) - PEERS, 0))
        return alike[start : start + PEERS]


def effects(rows: Tensor, root: Tensor) -> Tensor:
    """``‖A r‖²`` (n,) of rows (n, d) and a matrix A (m, d), block by block."""
    if len(root) > root.shape[1]:
        return quadratic(rows, root.T @ root)
    return torch.cat([(rows[part] @ root.T).square().sum(1) for part in blocks(len(rows), BLOCK)])


def quadratic(rows: Tensor, gram: Tensor) -> Tensor:
    """``r G rᵀ`` (n,) of rows (n, d), block by block."""
    return torch.cat([((rows[part] @ gram) * rows[part]).sum(1) for part in blocks(len(rows), BLOCK)])


def _by_effect(one: Watched) -> float:
    return -one.effect
