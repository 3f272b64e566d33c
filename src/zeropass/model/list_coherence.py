"""The coherence of lists of a model's vectors, and of random directions of the same layer, role and frame."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from zeropass.arch.frame_names import FIRST, judge_space
from zeropass.arch.roles import LAYER_ROLES, Side
from zeropass.model.frames import Frames, Rows
from zeropass.model.vectors import VectorSet, vector_set
from zeropass.numerics.coherence import coherence, percentile, random_sums, stronger_pole
from zeropass.numerics.projection import Extremes, extremes
from zeropass.numerics.statistics import standardised

__all__ = ["ListCoherence"]

_TOGETHER = 128
"""The number of directions whose scores are held at once."""


@dataclass(frozen=True, eq=False)
class ListCoherence:
    """The coherence of lists that a model's frames make.

    Attributes:
        frames: The frames.
    """

    frames: Frames
    _nulls: dict[tuple[int, str, str, str], float | None] = field(default_factory=dict, repr=False)

    def of(self, lists: Extremes, side: Side, mean: float = 0.0) -> Tensor:
        """Return the coherence of lists of a side, whose scores have a mean, (n,)."""
        rows = self.frames.rows(judge_space(side))
        return coherence(rows.matrix[stronger_pole(lists, FIRST, mean)], rows.moments.mean.float())

    def null(self, vectors: VectorSet, frame: str, view: str, ids: Tensor) -> float | None:
        """Return the coherence that 19 of 20 random directions stay below, kept for each layer, role, frame and view.

        Args:
            vectors: Vectors of the layer and role, any number of them.
            frame: The frame.
            view: The name of the view of the tokens.
            ids: Ids of the tokens that the view shows, (V',).

        Returns:
            The coherence; None for lone vectors, which have no others to compare with.
        """
        if vectors.role not in LAYER_ROLES:
            return None
        key = vectors.layer, vectors.role, frame, view
        if key not in self._nulls:
            self._nulls[key] = self.frames.remembered(
                f"coherence of {'.'.join(map(str, key))}", lambda: self._of_random(vectors, frame, ids)
            )
        return self._nulls[key]

    def _of_random(self, vectors: VectorSet, frame: str, ids: Tensor) -> float | None:
        """Return the coherence that 19 of 20 random directions of the layer and role stay below."""
        every = vector_set(self.frames.model, vectors.layer, vectors.role)
        directions = random_sums(self.scaled(every, frame), vectors.layer)
        return percentile(self.of_directions(directions, every, frame, ids))

    def scaled(self, vectors: VectorSet, frame: str) -> Tensor:
        """Return vectors folded for a frame, each scaled so that its scores are z, (n, d)."""
        folded = self.frames.folded(vectors, frame)
        return standardised(folded, self._rows(vectors, frame).moments.of_scores(folded)[1])

    def lists(self, directions: Tensor, vectors: VectorSet, frame: str, ids: Tensor) -> Iterator[Extremes]:
        """Yield the first tokens of the lists of some directions, which are by z if these are `scaled`.

        Args:
            directions: Folded vectors, (n, d).
            vectors: Vectors of the layer and role whose frame they are read in.
            frame: The frame.
            ids: Ids of the tokens that lists may show, (V',).
        """
        rows, factors = self._rows(vectors, frame), self.frames.factors(vectors.layer, vectors.role, frame)
        centred = rows.matrix[ids] - rows.moments.mean.float()
        for part in torch.split(directions, _TOGETHER):
            scores = part @ centred.T
            yield extremes(scores if factors is None else scores * factors[ids], FIRST, ids)

    def of_directions(self, directions: Tensor, vectors: VectorSet, frame: str, ids: Tensor) -> Tensor:
        """Return the coherence of the lists of some directions, (n,), as `lists` makes them."""
        return torch.cat([self.of(lists, vectors.side) for lists in self.lists(directions, vectors, frame, ids)])

    def _rows(self, vectors: VectorSet, frame: str) -> Rows:
        return self.frames.rows(vectors.space(frame))
