"""Attention: the logits between the tokens of the text, compared with the ``qk`` map of the same pairs.

For a sample of queries, the preceding keys are ranked by the model's own logits (its queries and keys, turned by RoPE)
and by ``q · k`` of the two tokens, from the weights alone. A constant that a query adds to all its logits changes no
rank, just as it does not change their softmax.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from zeropass._io.progress import Progress
from zeropass.arch.spec import USUAL_OFFSET
from zeropass.evidence.activations import Activations, Attention, Settings
from zeropass.evidence.compared_frames import Spaces
from zeropass.evidence.resampling import among, ranks, rotation, summarised
from zeropass.evidence.results import Result
from zeropass.model.frames import Frames
from zeropass.numerics.projection import rotate

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
    """
    dims = spaces.frames.model.dims
    results: list[Result] = []
    rotary = dims.rope is not None
    frequencies = [spaces.frames.frequencies(layer) if rotary else None for layer in range(dims.layers)]
    turn, noise = rotation(dims.d, settings.seed), noise_heads(dims.d, dims.head_dim, settings)
    truth = {
        (layer, number): _Truth.of(window, layer, noise, frequencies[layer], spaces.frames.model.family.causal)
        for number, window in enumerate(activations.attention)
        for layer in range(dims.layers)
    }
    for number, frame in enumerate(spaces.read_frames):
        for layer in range(dims.layers):
            pair = _Pair.of(spaces, frame, layer, noise, frequencies[layer], settings)
            agreements = [
                pair.compared(truth[layer, w], window, spaces.rows(frame, layer, window.ids), turn)
                for w, window in enumerate(activations.attention)
            ]
            results += _results(agreements, layer, frame)
        tell("attention", number + 1, len(spaces.read_frames))
    return results


def noise_heads(d: int, width: int, settings: Settings) -> tuple[Tensor, Tensor]:
    """Return random query and key columns, (heads, width, d) each."""
    generator = settings.generator(3)
    q, k = torch.randn(2, NOISE_HEADS, width, d, generator=generator) / d**0.5
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
    def of(
        cls,
        window: Attention,
        layer: int,
        noise: tuple[Tensor, Tensor],
        frequencies: Tensor | None,
        causal: bool,
    ) -> "_Truth":
        at, places = window.at, torch.arange(len(window.ids))
        mask = places <= at[:, None] if causal else torch.ones(len(at), len(places), dtype=torch.bool)
        q, k = window.q[layer], window.k[layer]
        k = k.repeat_interleave(q.shape[0] // k.shape[0], 0)
        random_q = window.inputs[layer][at] @ noise[0].mT
        random_k = window.inputs[layer] @ noise[1].mT
        logits = _rotary_logits(q, k, at, places, frequencies)
        random_logits = _rotary_logits(random_q, random_k, at, places, frequencies)
        return cls(_Ranked.of(logits, mask), _Ranked.of(random_logits, mask), mask)


def _constants(frames: Frames, layer: int, frame: str) -> Tensor:
    """Return the parts of queries and keys that do not depend on the token, (2, heads, d_h).

    The constant of the keys changes ranks only through the distance.
    """
    dims = frames.model.dims
    constants = torch.zeros(2, dims.heads, dims.head_dim)
    for side, role in enumerate(("q", "k")):
        for head in range(dims.heads):
            constant = frames.head_constant(layer, head, role, frame)
            if constant is not None:
                constants[side, head] = constant
    return constants


def _rotary_logits(q: Tensor, k: Tensor, at: Tensor, places: Tensor, frequencies: Tensor | None) -> Tensor:
    """Return the logits of queries and keys at their places, turned by RoPE where the layer has it."""
    if frequencies is None:
        return q @ k.mT
    return rotate(q, at, frequencies) @ rotate(k, places, frequencies).mT


@dataclass(frozen=True, eq=False)
class _Pair:
    """The query and key columns of a layer, (heads, d_h, d) each, folded for a frame."""

    layer: int
    q: Tensor
    k: Tensor
    noise_q: Tensor
    noise_k: Tensor
    constants: Tensor
    frequencies: Tensor | None
    full: bool
    seed: int

    @classmethod
    def of(
        cls,
        spaces: Spaces,
        frame: str,
        layer: int,
        noise: tuple[Tensor, Tensor],
        frequencies: Tensor | None,
        settings: Settings,
    ) -> "_Pair":
        frames, dims = spaces.frames, spaces.frames.model.dims
        q, k = (spaces.vectors(role, layer, frame).reshape(-1, dims.head_dim, dims.d) for role in ("q", "k"))
        noise_q, noise_k = (
            spaces.folded(columns.flatten(0, 1), "q", layer, frame).reshape(columns.shape) for columns in noise
        )
        nothing = torch.zeros(2, dims.heads, dims.head_dim)
        constants = nothing if frame.startswith("paper") else _constants(frames, layer, frame)
        return cls(
            layer=layer,
            q=q,
            k=k.repeat_interleave(dims.group, 0),
            noise_q=noise_q,
            noise_k=noise_k,
            constants=constants,
            frequencies=frequencies,
            full=frame in ("token", "seen", "paper"),
            seed=settings.seed,
        )

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
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(self.seed + self.layer))
        agreements = {}
        sides = {
            "": (rows, self.q, self.k, self.constants, truth.model),
            "permuted": (rows[order], self.q, self.k, self.constants, truth.model),
            "rotated": (rows @ turn, self.q, self.k, self.constants, truth.model),
            "noise": (rows, self.noise_q, self.noise_k, self.constants[:, :1] * 0, truth.noise),
        }
        for null, (tokens, q, k, constants, true) in sides.items():
            queries, keys = tokens[window.at] @ q.mT + constants[0, :, None], tokens @ k.mT + constants[1, :, None]
            for offset, predicted in self._predictions(queries, keys, window):
                for metric, value in _agreement(true, _Ranked.of(predicted, truth.mask)):
                    agreements[offset, metric, null] = value
        return agreements

    def _predictions(self, q: Tensor, k: Tensor, window: Attention) -> Iterator[tuple[str, Tensor]]:
        yield "offset 0", q @ k.mT
        if self.frequencies is None:
            return
        yield TRUE, _rotary_logits(q, k, window.at, torch.arange(k.shape[1]), self.frequencies)
        for name, offset in OFFSETS.items():
            if self.full or offset == USUAL_OFFSET:
                yield name, rotate(q, offset, self.frequencies) @ k.mT
        if not self.full:
            return
        mean_q = torch.stack([rotate(q, offset, self.frequencies) for offset in range(RANGE + 1)]).mean(0)
        yield MEAN, mean_q @ k.mT


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
