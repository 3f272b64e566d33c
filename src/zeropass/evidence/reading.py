"""Reading vectors: which tokens of the text fire them most, against the tokens that their lists give.

Three targets: the token at a position (``current``), the one that follows in the text (``next``), the one that the
model holds most likely (``predicted``). For the last two, what the current token explains is removed first: each
position has the mean of its current type subtracted.
"""

from collections.abc import Iterator

from torch import Tensor

from zeropass._io.progress import Progress
from zeropass.arch.spec import site_of
from zeropass.evidence.activations import Activations, Settings, Tally
from zeropass.evidence.compared_frames import READ_FRAMES, Spaces
from zeropass.evidence.resampling import correlation, overlap, partner, ranks, rotation, summarised
from zeropass.evidence.results import Result

__all__ = ["MAIN", "TOP", "reading"]

MAIN = ("token", "output", "paper")
"""The library's frames: held against every target, by every metric."""

TOP = 20
"""Token types of the overlap at the top."""


def reading(
    spaces: Spaces, activations: Activations, noise: dict[str, Tensor], settings: Settings, tell: Progress
) -> list[Result]:
    """Results by reading role, layer, frame and target: ``spearman`` over token types, ``top-k``, ``position``."""
    measured = {key: _Measured.of(activations, tally, settings.least) for key, tally in activations.tallies.items()}
    turn = rotation(spaces.frames.model.dims.d, settings.seed)
    found: list[Result] = []
    for number, frame in enumerate(READ_FRAMES):
        for layer, role in activations.chosen:
            lists = _Lists.of(spaces, activations, noise, frame, layer, role, turn)
            for target in _targets(frame, activations.targets):
                sides = (measured[layer, role], measured[layer, f"noise.{site_of(role)}"])
                found += _compared(lists, *sides, activations.targets.index(target), (layer, role, frame, target))
        tell("reading", number + 1, len(READ_FRAMES))
    return found


def _targets(frame: str, targets: tuple[str, ...]) -> tuple[str, ...]:
    if frame in MAIN:
        return targets
    return targets[1:] if frame.startswith("output") else targets[:1]


class _Measured:
    """By target: the types that count (B,), their means (B, n), ranks of these, and sums over positions."""

    def __init__(self, at: list[Tensor], means: list[Tensor], tally: Tally, counts: list[Tensor]) -> None:
        self.at, self.means, self.tally, self.counts = at, means, tally, counts
        self.ranks = [ranks(m) for m in means]

    @classmethod
    def of(cls, activations: Activations, tally: Tally, least: int) -> "_Measured":
        counts = [together.sum(1) for together in activations.together]
        current = tally.sums[0][:-1] / counts[0][:, None]
        at, means = [], []
        for plane, count in enumerate(counts):
            frequent = (count >= least).nonzero()[:, 0]
            sums = tally.sums[plane][:-1][frequent]
            if plane:
                sums = sums - activations.together[plane][frequent] @ current
            at.append(frequent)
            means.append(sums / count[frequent][:, None])
        return cls(at, means, tally, counts)

    def over_positions(self, scores: Tensor, plane: int) -> Tensor:
        """Pearson correlation (n,), over counted positions, of activations and the scores (A, n) of their types."""
        sums, counts = self.tally.sums[plane][:-1].double(), self.counts[plane].double()
        total, s = counts.sum(), scores.double()
        x_mean, s_mean = sums.sum(0) / total, (counts @ s) / total
        both = (sums * s).sum(0) / total - x_mean * s_mean
        x_var = self.tally.squares[plane].double() / total - x_mean.square()
        s_var = counts @ s.square() / total - s_mean.square()
        return both / (x_var * s_var).clamp_min(1e-30).sqrt()


class _Lists:
    """Scores (A, n) that a frame's lists give the token types: right, with the stream rotated, of random vectors."""

    def __init__(self, right: Tensor, turned: Tensor, noise: Tensor) -> None:
        self.right, self.turned, self.noise = right, turned, noise

    @classmethod
    def of(
        cls,
        spaces: Spaces,
        activations: Activations,
        noise: dict[str, Tensor],
        frame: str,
        layer: int,
        role: str,
        turn: Tensor,
    ) -> "_Lists":
        rows = spaces.rows(frame, layer, activations.types)
        folded = spaces.vectors(role, layer, frame, activations.chosen[layer, role])
        random = spaces.folded(noise[site_of(role)], role, layer, frame)
        return cls(rows @ folded.T, rows @ (folded @ turn).T, rows @ random.T)


def _compared(
    lists: _Lists, measured: _Measured, noise: _Measured, plane: int, name: tuple[int, str, str, str]
) -> Iterator[Result]:
    layer, role, frame, target = name
    at, wrong = measured.at[plane], partner(lists.right)
    if len(at) < 8:
        return
    of = {"": lists.right, "permuted": wrong, "rotated": lists.turned}
    metrics = ("spearman", "top-k", "position") if frame in MAIN else ("spearman",)
    for metric in metrics:
        values = {null: _agreement(metric, measured, plane, scores) for null, scores in of.items()}
        values["noise"] = _agreement(metric, noise, plane, lists.noise)
        yield summarised("reading", layer, role, frame, target, metric, values.pop(""), values)


def _agreement(metric: str, measured: _Measured, plane: int, scores: Tensor) -> Tensor:
    """One number a vector, (n,)."""
    if metric == "position":
        return measured.over_positions(scores, plane)
    scores = scores[measured.at[plane]]
    if metric == "spearman":
        return correlation(measured.ranks[plane], ranks(scores))
    return overlap(scores, measured.means[plane], min(TOP, len(scores) // 4))
