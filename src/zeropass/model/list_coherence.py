"""The coherence of lists of a model's vectors, and of random directions of the same layer, role and frame."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from zeropass.arch.spec import FF_ROLES, FIRST, HEAD_ROLES, Side, judge_space, space_of
from zeropass.model.frames import Frames
from zeropass.model.vectors import VectorSet, vector_set
from zeropass.numerics.coherence import coherence, percentile, random_sums, stronger_pole
from zeropass.numerics.projection import Extremes, extremes
from zeropass.numerics.statistics import standardised

__all__ = ["ListCoherence"]


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
        if vectors.role not in (*FF_ROLES, *HEAD_ROLES):
            return None
        key = vectors.layer, vectors.role, frame, view
        if key not in self._nulls:
            self._nulls[key] = percentile(self.of(self._random_lists(vectors, frame, ids), vectors.side))
        return self._nulls[key]

    def _random_lists(self, vectors: VectorSet, frame: str, ids: Tensor) -> Extremes:
        """Return the lists of random directions, by z."""
        rows = self.frames.rows(space_of(frame, vectors.side, vectors.reads_at))
        folded = self.frames.folded(vector_set(self.frames.model, vectors.layer, vectors.role), frame)
        directions = random_sums(standardised(folded, rows.moments.of_scores(folded)[1]), vectors.layer)
        scores = directions @ (rows.matrix[ids] - rows.moments.mean.float()).T
        if (factors := self.frames.factors(vectors.layer, vectors.role, frame)) is not None:
            scores *= factors[ids]
        return extremes(scores / scores.std(1, keepdim=True).clamp_min(torch.finfo(scores.dtype).tiny), FIRST, ids)
