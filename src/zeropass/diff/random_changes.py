"""Random changes of a base, and how far words stand out in them, without a cause.

In each of `DRAWS` random changes every matrix of a side gets one direction, a random sum of its own rows, without any
training. What they reach depends on the base alone.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from zlib import crc32

import torch
from torch import Tensor

from zeropass.arch.roles import side_of
from zeropass.diff.effects import SIDES, Effects, excess_of
from zeropass.diff.findings import TENTH
from zeropass.model.frames import Frames, Rows
from zeropass.numerics.statistics import blocks

__all__ = ["DRAWS", "RandomChanges", "drawn"]

DRAWS = 16
"""The number of random changes of the base."""


@dataclass(frozen=True, eq=False)
class RandomChanges:
    """Random changes of all matrices of a base that read, or of all that write.

    Attributes:
        frames: The frames of the base.
        ids: The tokens that are shown, (n,).
        words: Those of them that are whole words, (n,).
        side: ``sees`` or ``writes``.
    """

    frames: Frames
    ids: Tensor
    words: Tensor
    side: str = "writes"

    @property
    def chance(self) -> float:
        """The highest excess of a word, the median of the draws."""
        return self._remembered("excess", lambda: self._highest[:, 0])

    @property
    def lead(self) -> float:
        """The excess of the first word less that of the tenth, the median of the draws."""
        return self._remembered("lead", lambda: self._highest[:, 0] - self._highest[:, -1])

    @cached_property
    def excess(self) -> Tensor:
        """The excess of the tokens in each random change, (`DRAWS`, n)."""
        effects, model = Effects(self.frames, sides=(self.side,)), self.frames.model
        directions: dict[str, list[Tensor]] = defaultdict(list)
        for layer in range(model.dims.layers):
            for role in (role for role in model.matrices(layer) if SIDES[side_of(role)] == self.side):
                matrix = model.matrix(role, layer)
                rows = effects.add_base(role, layer, matrix)
                directions[rows.space].append(_scaled(effects.folded(drawn(matrix, role, layer), role, layer), rows))
        effects.close()
        parts = [_effects(self.frames.rows(space), torch.stack(each)) for space, each in directions.items()]
        base = effects.base.totals[self.side][self.ids]
        return torch.stack([excess_of(total[self.ids], base) for total in torch.stack(parts).sum(0)])

    @cached_property
    def _highest(self) -> Tensor:
        """The highest excesses of words in each draw, falling, (`DRAWS`, `TENTH`)."""
        excess = self.excess[:, self.words]
        return excess.topk(min(TENTH, excess.shape[1])).values

    def _remembered(self, name: str, compute: Callable[[], Tensor]) -> float:
        """Return the median of a number of each draw, which is not computed anew for a base that is known."""
        value = self.frames.remembered(
            f"{DRAWS} random changes, {self.side}, {name}", lambda: float(compute().median())
        )
        assert value is not None
        return value


def drawn(matrix: Tensor, role: str, layer: int, count: int = DRAWS) -> Tensor:
    """Return random sums of the rows of a matrix, (``count``, d), the same in every run."""
    generator = torch.Generator().manual_seed(crc32(f"{layer} {role}".encode()))
    return torch.randn(count, len(matrix), generator=generator).to(matrix) @ matrix


def _scaled(directions: Tensor, rows: Rows) -> Tensor:
    """Return directions (n, d) scaled so that each has an effect of 1 on the mean token."""
    wide, mean = directions.double(), rows.moments.mean
    usual = ((wide @ (rows.moments.covariance + torch.outer(mean, mean))) * wide).sum(1, keepdim=True)
    return (wide / usual.sqrt().clamp_min(torch.finfo(torch.float32).tiny)).float()


def _effects(rows: Rows, directions: Tensor) -> Tensor:
    """Return the effect of each random change, (`DRAWS`, V), from its directions in each matrix, (m, `DRAWS`, d)."""

    def parts() -> Iterator[Tensor]:
        flat = directions.transpose(0, 1).reshape(-1, directions.shape[-1]).T
        for part in blocks(len(rows.matrix)):
            yield (rows.matrix[part] @ flat).square().reshape(-1, directions.shape[1], directions.shape[0]).sum(2)

    return torch.cat(list(parts())).T
