"""Attention: the logits between the tokens of the text, against what ``qk`` says of the same pairs.

For a sample of queries, the keys before them are ranked by the model's own logits (its queries and keys, turned by
RoPE) and by ``q · k`` of the two tokens, from the weights alone. A constant a query adds changes no rank, as softmax
does not see it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from zeropass._io.progress import Progress
from zeropass.arch.spec import USUAL_OFFSET
from zeropass.evidence.activations import Activations, Attention, Settings
from zeropass.evidence.compared_frames import READ_FRAMES, Spaces
from zeropass.evidence.resampling import among, ranks, rotation, summarised
from zeropass.evidence.results import Result
from zeropass.model.frames import Frames
from zeropass.numerics.projection import rotate

__all__ = ["attention", "noise_heads"]

TOP = 5
"""Keys of the overlap at the top."""

NOISE_HEADS = 6
RANGE = 16
"""The averaged offsets are 0 to this one."""

OFFSETS = {f"offset {offset}": offset for offset in (1, 4, USUAL_OFFSET, 64)}
TRUE, MEAN = "true offsets", f"mean of 0..{RANGE}"


def attention(spaces: Spaces, activations: Activations, settings: Settings, tell: Progress) -> list[Result]:
    """Results for ``qk``, by layer, frame and assumed offset: one item a head, its mean over all sampled queries."""
    dims = spaces.frames.model.dims
    found: list[Result] = []
    rotary = dims.rope is not None
    frequencies = [spaces.frames.frequencies(layer) if rotary else None for layer in range(dims.layers)]
    turn, noise = rotation(dims.d, settings.seed), noise_heads(dims.d, dims.head_dim, settings)
    truth = {
        (layer, number): _Truth.of(window, layer, noise, frequencies[layer], spaces.frames.model.family.causal)
        for number, window in enumerate(activations.attention)
        for layer in range(dims.layers)
    }
    for number, frame in enumerate(READ_FRAMES):
        for layer in range(dims.layers):
            pair = _Pair.of(spaces, frame, layer, noise, frequencies[layer], settings)
            sums = [
                pair.compared(truth[layer, w], window, spaces.rows(frame, layer, window.ids), turn)
                for w, window in enumerate(activations.attention)
            ]
            found += _results(sums, layer, frame)
        tell("attention", number + 1, len(READ_FRAMES))
    return found


def noise_heads(d: int, width: int, settings: Settings) -> tuple[Tensor, Tensor]:
    """Random query and key columns (heads, width, d)."""
    generator = settings.generator(3)
    q, k = torch.randn(2, NOISE_HEADS, width, d, generator=generator) / d**0.5
    return q, k


@dataclass(frozen=True)
class _Truth:
    """What the model computed for one layer and window: ranks of its logits and its top keys, and those of noise.

    mask: (Q, t), the keys that a query may attend to.
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
        own, random = (_at_true(*pair, at, places, frequencies) for pair in ((q, k), (random_q, random_k)))
        return cls(_Ranked.of(own, mask), _Ranked.of(random, mask), mask)


def _constants(frames: Frames, layer: int) -> Tensor:
    """What queries and keys hold whatever the token, (2, heads, d_h). A key's changes no rank but by its distance."""
    dims = frames.model.dims
    found = torch.zeros(2, dims.heads, dims.head_dim)
    for side, role in enumerate(("q", "k")):
        for head in range(dims.heads):
            constant = frames.head_constant(layer, head, role)
            if constant is not None:
                found[side, head] = constant
    return found


def _at_true(q: Tensor, k: Tensor, at: Tensor, places: Tensor, frequencies: Tensor | None) -> Tensor:
    if frequencies is None:
        return q @ k.mT
    return rotate(q, at, frequencies) @ rotate(k, places, frequencies).mT


@dataclass(frozen=True, eq=False)
class _Pair:
    """The query and key columns of a layer, (heads, d_h, d) each, as a frame takes them."""

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
        noise_q, noise_k = (spaces.folded(one.flatten(0, 1), "q", layer, frame).reshape(one.shape) for one in noise)
        constants = (
            torch.zeros(2, dims.heads, dims.head_dim) if frame.startswith("paper") else _constants(frames, layer)
        )
        return cls(
            layer,
            q,
            k.repeat_interleave(dims.group, 0),
            noise_q,
            noise_k,
            constants,
            frequencies,
            frame in ("token", "paper"),
            settings.seed,
        )

    def compared(
        self, truth: _Truth, window: Attention, own: Tensor, turn: Tensor
    ) -> dict[tuple[str, str, str], Tensor]:
        """By (offset, metric, null), the mean agreement of each head over the queries of the window, (heads,).

        ``own`` are the rows (t, d) of the window's tokens.
        """
        # Shuffled tokens at the same places: what the distances alone explain stays in this null.
        order = torch.randperm(len(own), generator=torch.Generator().manual_seed(self.seed + self.layer))
        found = {}
        sides = {
            "": (own, self.q, self.k, self.constants, truth.model),
            "permuted": (own[order], self.q, self.k, self.constants, truth.model),
            "rotated": (own @ turn, self.q, self.k, self.constants, truth.model),
            "noise": (own, self.noise_q, self.noise_k, self.constants[:, :1] * 0, truth.noise),
        }
        for null, (tokens, q, k, constants, true) in sides.items():
            queries, keys = tokens[window.at] @ q.mT + constants[0, :, None], tokens @ k.mT + constants[1, :, None]
            for offset, predicted in self._predictions(queries, keys, window):
                for metric, value in _agreement(true, _Ranked.of(predicted, truth.mask)):
                    found[offset, metric, null] = value
        return found

    def _predictions(self, q: Tensor, k: Tensor, window: Attention) -> Iterator[tuple[str, Tensor]]:
        yield "offset 0", q @ k.mT
        if self.frequencies is None:
            return
        yield TRUE, _at_true(q, k, window.at, torch.arange(k.shape[1]), self.frequencies)
        for name, offset in OFFSETS.items():
            if self.full or offset == USUAL_OFFSET:
                yield name, rotate(q, offset, self.frequencies) @ k.mT
        if not self.full:
            return
        total = torch.stack([rotate(q, offset, self.frequencies) for offset in range(RANGE + 1)]).mean(0)
        yield MEAN, total @ k.mT


@dataclass(frozen=True)
class _Ranked:
    """Logits (heads, Q, t) as ranks with mean 0 over the keys of each query, 0 outside the mask, and their top keys."""

    ranks: Tensor
    top: Tensor

    @classmethod
    def of(cls, logits: Tensor, mask: Tensor) -> "_Ranked":
        low = logits.masked_fill(~mask, torch.finfo(logits.dtype).min)
        count = mask.sum(-1, keepdim=True)
        # Keys outside the mask take the lowest ranks; the others' ranks are shifted to mean 0.
        centred = ranks(low, -1) - (mask.shape[-1] - count) - (count - 1) / 2
        return cls(centred * mask, low.topk(min(TOP, mask.shape[-1]), -1).indices)


def _agreement(x: _Ranked, y: _Ranked) -> Iterator[tuple[str, Tensor]]:
    """Rank correlation over the keys of each query, and overlap of the top keys, as means over queries: (heads,)."""
    norm = (x.ranks.square().sum(-1) * y.ranks.square().sum(-1)).sqrt()
    yield "spearman", ((x.ranks * y.ranks).sum(-1) / norm).mean(-1)
    yield "top-k", among(x.top, y.top).double().mean((-1, -2))


def _results(sums: list[dict[tuple[str, str, str], Tensor]], layer: int, frame: str) -> Iterator[Result]:
    means = {key: torch.stack([one[key] for one in sums]).mean(0) for key in sums[0]}
    for (offset, metric, null), values in means.items():
        if null:
            continue
        nulls = {name: means[offset, metric, name] for name in ("permuted", "rotated", "noise")}
        yield summarised("attention", layer, "qk", frame, offset, metric, values, nulls)
