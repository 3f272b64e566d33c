"""Reading vectors: the tokens of the text that activate them most, compared with the tokens of their lists.

There are three targets: the token at a position (``current``), the next token of the text (``next``), and the token
that the model predicts (``predicted``). For the last two, the effect of the current token is removed first: the mean of
its type is subtracted at each position.
"""

from collections.abc import Iterator

from torch import Tensor

from zeropass._io.progress import Progress
from zeropass.arch.roles import site_of
from zeropass.evidence.activations import Activations, Settings, Tally
from zeropass.evidence.compared_frames import Spaces
from zeropass.evidence.resampling import correlation, overlap, partner, ranks, rotation, summarised
from zeropass.evidence.results import Result

__all__ = ["MAIN", "TOP", "reading"]

MAIN = ("token", "output", "paper")
"""The library's frames, which are compared with every target by every metric."""

TOP = 20
"""The number of top token types that are compared."""


def reading(
    spaces: Spaces, activations: Activations, noise: dict[str, Tensor], settings: Settings, tell: Progress
) -> list[Result]:
    """Return the results by reading role, layer, frame and target.

    The metrics are ``spearman`` and ``top-k`` over token types, and ``position``: Pearson correlation over positions.

    Args:
        spaces: The rows of every frame.
        activations: The activations on the text.
        noise: Random directions (n, d) by site.
        settings: The extent of the measurement.
        tell: Reports progress.
    """
    measured = {key: _Measured.of(activations, tally, settings.least) for key, tally in activations.tallies.items()}
    turn = rotation(spaces.frames.model.dims.d, settings.seed)
    results: list[Result] = []
    for number, frame in enumerate(spaces.read_frames):
        for layer, role in activations.chosen:
            lists = _Lists.of(spaces, activations, noise, frame, layer, role, turn)
            for target in _targets(frame, activations.targets):
                sides = (measured[layer, role], measured[layer, f"noise.{site_of(role)}"])
                results += _compared(lists, *sides, activations.targets.index(target), (layer, role, frame, target))
        tell("reading", number + 1, len(spaces.read_frames))
    return results


def _targets(frame: str, targets: tuple[str, ...]) -> tuple[str, ...]:
    """Return the targets with which a frame is compared."""
    if frame in MAIN:
        return targets
    return targets[1:] if frame.startswith("output") else targets[:1]


class _Measured:
    """Activations by target: the counted types (B,), their means (B, n) and ranks, and the sums over positions."""

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
        """Return the Pearson correlation (n,) of activations with their types' scores (A, n) over counted positions."""
        sums, counts = self.tally.sums[plane][:-1].double(), self.counts[plane].double()
        total, s = counts.sum(), scores.double()
        x_mean, s_mean = sums.sum(0) / total, (counts @ s) / total
        covariance = (sums * s).sum(0) / total - x_mean * s_mean
        x_var = self.tally.squares[plane].double() / total - x_mean.square()
        s_var = counts @ s.square() / total - s_mean.square()
        return covariance / (x_var * s_var).clamp_min(1e-30).sqrt()


class _Lists:
    """The scores (A, n) of the token types in a frame's lists: right lists, rotated ones, those of random vectors."""

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
    scores_by_null = {"": lists.right, "permuted": wrong, "rotated": lists.turned}
    metrics = ("spearman", "top-k", "position") if frame in MAIN else ("spearman",)
    for metric in metrics:
        values = {null: _agreement(metric, measured, plane, scores) for null, scores in scores_by_null.items()}
        values["noise"] = _agreement(metric, noise, plane, lists.noise)
        yield summarised("reading", layer, role, frame, target, metric, values.pop(""), values)


def _agreement(metric: str, measured: _Measured, plane: int, scores: Tensor) -> Tensor:
    """Return the agreement of activations and scores by a metric, (n,)."""
    if metric == "position":
        return measured.over_positions(scores, plane)
    scores = scores[measured.at[plane]]
    if metric == "spearman":
        return correlation(measured.ranks[plane], ranks(scores))
    return overlap(scores, measured.means[plane], min(TOP, len(scores) // 4))
