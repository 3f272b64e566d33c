"""Attention: the logits between the tokens of the text, compared with the ``qk`` map of the same pairs.

For a sample of queries, the keys that they may attend to are ranked by the model's own logits, just before the softmax,
and by ``q · k`` of the two tokens, from the weights alone: normed, clipped and turned as the model does it. A constant
that a query adds to all its logits changes no rank, just as it does not change their softmax.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from zeropass._io.progress import Progress
from zeropass.arch.frame_names import USUAL_OFFSET
from zeropass.evidence.activations import Activations, Attention, Settings
from zeropass.evidence.compared_frames import Spaces
from zeropass.evidence.list_types import base
from zeropass.evidence.resampling import among, ranks, rotation, summarised
from zeropass.evidence.results import Result
from zeropass.model.blocks import Block
from zeropass.model.frames import Frames
from zeropass.model.positions import qk_norm_at
from zeropass.numerics.projection import normed

__all__ = ["attention", "noise_heads"]

TOP = 5
"""The number of top keys that are compared."""

NOISE_HEADS = 6
RANGE = 16
"""The last of the offsets, counted from 0, over which ``MEAN`` averages."""

OFFSETS = {f"offset {offset}": offset for offset in (1, 4, USUAL_OFFSET, 64)}
TRUE, MEAN = "true offsets", f"mean of 0..{RANGE}"


def attention(spaces: Spaces, activations: Activations, settings: Settings, tell: Progress) -> list[Result]:
    """Return the results for ``qk`` by layer, frame and assumed offset.

    Each head is one item: its mean over all sampled queries.

    Args:
        spaces: The rows of every frame.
        activations: The activations on the text.
        settings: The extent of the measurement.
        tell: Reports progress.
    """
    model = spaces.frames.model
    results: list[Result] = []
    blocks = [Block(model, layer) for layer in model.dims.attending]
    turn = rotation(model.dims.d, settings.seed)
    noise = {block.layer: noise_heads(model.dims.d, block.dims.head_dim, settings) for block in blocks}
    truth = {
        (block.layer, number): _Truth.of(window, block, noise[block.layer])
        for number, window in enumerate(activations.attention)
        for block in blocks
    }
    for number, frame in enumerate(spaces.read_frames):
        for block in blocks:
            pair = _Pair.of(spaces, frame, block, noise[block.layer], settings.seed)
            agreements = [
                pair.compared(truth[block.layer, w], window, spaces.rows(frame, block.layer, window.ids), turn)
                for w, window in enumerate(activations.attention)
            ]
            results += _results(agreements, block.layer, frame)
        tell("attention", number + 1, len(spaces.read_frames))
    return results


def noise_heads(d: int, width: int, settings: Settings) -> tuple[Tensor, Tensor]:
    """Return random query and key columns, (heads * width, d) each."""
    generator = settings.generator(3)
    q, k = torch.randn(2, NOISE_HEADS * width, d, generator=generator) / d**0.5
    return q, k


@dataclass(frozen=True)
class _Truth:
    """The logits that one layer computed in one window, ranked.

    Attributes:
        model: The ranked logits of the model's heads.
        noise: The ranked logits of random heads.
        mask: The keys that each query may attend to, (Q, t).
    """

    model: "_Ranked"
    noise: "_Ranked"
    mask: Tensor

    @classmethod
    def of(cls, window: Attention, block: Block, noise: tuple[Tensor, Tensor]) -> "_Truth":
        logits, inputs = window.logits[block.layer], window.inputs[block.layer]
        mask = logits[0].isfinite()
        random = (inputs[window.at] @ noise[0].T, inputs @ noise[1].T)
        queries, keys = (_random_heads(block, side) for side in random)
        last = len(inputs) - 1
        turned_keys = block.turned(keys, torch.arange(last + 1))
        random_logits = block.turned_queries(queries, window.at, last) @ turned_keys.mT
        return cls(_Ranked.of(logits, mask), _Ranked.of(random_logits, mask), mask)


def _random_heads(block: Block, x: Tensor) -> Tensor:
    """Cut queries or keys of random heads, (t, width), into heads, (heads, t, d_h), normed where the model does it."""
    heads = block.heads(x)
    family = block.model.family
    norms = qk_norm_at(block.model, block.layer)
    return normed(heads, family.qk_norm_kind, block.model.dims.eps) if norms else heads


@dataclass(frozen=True, eq=False)
class _Side:
    """The queries or the keys of a layer, as a frame gives them from the rows that stand for tokens.

    Attributes:
        block: The layer.
        role: ``q`` or ``k``.
        frames: The frames, for the lengths of latents.
        frame: The frame, without its variant.
        columns: The columns of all heads, folded for the frame, (width, d).
        constant: What no token changes, (width,); None in the paper's formulas, which norm nothing either.
        noise: The columns of random heads, folded for the frame.
    """

    block: Block
    role: str
    frames: Frames
    frame: str
    columns: Tensor
    constant: Tensor | None
    noise: Tensor

    @classmethod
    def of(cls, spaces: Spaces, frame: str, block: Block, role: str, noise: Tensor) -> "_Side":
        columns = spaces.vectors(role, block.layer, frame)
        constant = None
        if base(frame) != "paper":
            constant = spaces.frames.constant(block.layer, role, frame=frame)
            constant = torch.zeros(len(columns)) if constant is None else constant
        noise = spaces.folded(noise, role, block.layer, frame)
        return cls(
            block=block,
            role=role,
            frames=spaces.frames,
            frame=base(frame),
            columns=columns,
            constant=constant,
            noise=noise,
        )

    def heads(self, rows: Tensor) -> Tensor:
        """Return the queries or keys of rows (t, d) before they are rotated, (query heads, t, d_h)."""
        x = rows @ self.columns.T
        x = x if self.constant is None else self.block.bounded(x + self.constant, self.role)
        heads = self._per_latent(self.block.heads(x), rows)
        return heads.repeat_interleave(self.block.dims.heads // len(heads), 0)

    def _per_latent(self, heads: Tensor, rows: Tensor) -> Tensor:
        """Divide queries or keys (heads, t, d_h) of rows (t, d) as the norm of their latent does, if they have one."""
        if not self.block.model.layout.latent_of(self.role):
            return heads
        lengths = self.frames.lengths(self.block.layer, self.role, rows, torch.zeros(rows.shape[1]), frame=self.frame)
        return heads if lengths is None else self.frames.per_latent(heads, self.role, lengths.each)

    def random_heads(self, rows: Tensor) -> Tensor:
        """Return `heads` of random columns."""
        return _random_heads(self.block, rows @ self.noise.T)


@dataclass(frozen=True, eq=False)
class _Pair:
    """The query and the key side of a layer in one frame."""

    block: Block
    frame: str
    q: _Side
    k: _Side
    seed: int

    @classmethod
    def of(cls, spaces: Spaces, frame: str, block: Block, noise: tuple[Tensor, Tensor], seed: int) -> "_Pair":
        q, k = (_Side.of(spaces, frame, block, role, columns) for role, columns in zip("qk", noise, strict=True))
        return cls(block=block, frame=frame, q=q, k=k, seed=seed)

    def compared(
        self, truth: _Truth, window: Attention, rows: Tensor, turn: Tensor
    ) -> dict[tuple[str, str, str], Tensor]:
        """Return the mean agreement of each head over the queries of a window, (heads,), by (offset, metric, null).

        Args:
            truth: The model's logits in the window.
            window: The window.
            rows: Rows of the window's tokens, (t, d).
            turn: A rotation of the stream, (d, d).
        """
        # This null shuffles the tokens and leaves their places, so it keeps what the distances alone explain.
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(self.seed + self.block.layer))
        agreements: dict[tuple[str, str, str], Tensor] = {}
        for null, tokens in {"": rows, "permuted": rows[order], "rotated": rows @ turn}.items():
            pair = (self.q.heads(tokens[window.at]), self.k.heads(tokens))
            agreements |= self._agreements(null, truth.model, pair, truth.mask, window.at)
        pair = (self.q.random_heads(rows[window.at]), self.k.random_heads(rows))
        return agreements | self._agreements("noise", truth.noise, pair, truth.mask, window.at)

    def _agreements(
        self, null: str, true: "_Ranked", pair: tuple[Tensor, Tensor], mask: Tensor, at: Tensor
    ) -> dict[tuple[str, str, str], Tensor]:
        return {
            (offset, metric, null): value
            for offset, predicted in self._predictions(*pair, at, null == "noise")
            for metric, value in _agreement(true, _Ranked.of(predicted, mask))
        }

    def _predictions(self, q: Tensor, k: Tensor, at: Tensor, random: bool) -> Iterator[tuple[str, Tensor]]:
        """Yield the logits (heads, Q, t) of queries and keys at each assumed offset; random heads have no biases."""
        block, model = self.block, self.block.model
        placed = model.dims.rope is not None or model.has("distances")
        turned = block.turned if base(self.frame) == "paper" else block.turned_queries
        yield "offset 0", turned(q, 0) @ k.mT
        if placed or model.family.alibi or model.has("relative"):
            q_at, k_at = turned(q, at, k.shape[1] - 1), block.turned(k, torch.arange(k.shape[1]))
            logits = q_at @ k_at.mT if random else block.products(q_at, k_at, at)
            yield TRUE, block.dims.scale_at(block.layer) * logits + (0 if random else block.mask(at, k.shape[1]))
        if not placed:
            return
        meeting = block.meeting if model.has("distances") and not random else turned
        full = self.frame in ("token", "seen", "paper")
        for name, offset in OFFSETS.items():
            if full or offset == USUAL_OFFSET:
                yield name, meeting(q, offset) @ k.mT
        if full:
            yield MEAN, torch.stack([meeting(q, offset) for offset in range(RANGE + 1)]).mean(0) @ k.mT


@dataclass(frozen=True)
class _Ranked:
    """Logits (heads, Q, t) as ranks with mean 0 over the keys of each query (0 outside the mask), and the top keys."""

    ranks: Tensor
    top: Tensor

    @classmethod
    def of(cls, logits: Tensor, mask: Tensor) -> "_Ranked":
        low = logits.masked_fill(~mask, torch.finfo(logits.dtype).min)
        count = mask.sum(-1, keepdim=True)
        # Keys outside the mask take the lowest ranks, so the ranks of the others are shifted down to mean 0.
        centred = ranks(low, -1) - (mask.shape[-1] - count) - (count - 1) / 2
        return cls(centred * mask, low.topk(min(TOP, mask.shape[-1]), -1).indices)


def _agreement(x: _Ranked, y: _Ranked) -> Iterator[tuple[str, Tensor]]:
    """Yield the rank correlation over a query's keys and the overlap of its top keys, means over queries (heads,)."""
    norm = (x.ranks.square().sum(-1) * y.ranks.square().sum(-1)).sqrt()
    yield "spearman", ((x.ranks * y.ranks).sum(-1) / norm).mean(-1)
    yield "top-k", among(x.top, y.top).double().mean((-1, -2))


def _results(windows: list[dict[tuple[str, str, str], Tensor]], layer: int, frame: str) -> Iterator[Result]:
    """Yield the results of one layer and frame from the agreements in each window."""
    means = {key: torch.stack([window[key] for window in windows]).mean(0) for key in windows[0]}
    for (offset, metric, null), values in means.items():
        if null:
            continue
        nulls = {name: means[offset, metric, name] for name in ("permuted", "rotated", "noise")}
        yield summarised("attention", layer, "qk", frame, offset, metric, values, nulls)
