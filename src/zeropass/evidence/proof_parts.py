"""The parts of a forward pass, each computed by zeropass from the states of transformers before it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from zeropass.arch.roles import Site
from zeropass.errors import BadOption
from zeropass.evidence.judge import Pass
from zeropass.model.blocks import Block, Cache, Recorder, final_logits, in_streams, model_input, token_rows
from zeropass.model.model import Model
from zeropass.model.observed import Observed, Reading, observed
from zeropass.model.positions import adds_positions, frequencies
from zeropass.numerics.projection import apply_norm
from zeropass.records.proofs import Compared

__all__ = ["FACTOR", "Part", "is_alone", "parts_of"]

FACTOR = 16
"""The largest error, in units of what float32 rounding does to zeropass's own computation of the same part.

transformers rounds in another order, so its own distance from exact numbers is of the same size.
"""

_ALL, _FIRST = slice(None), slice(1)

_LARGEST = torch.finfo(torch.float32).max

_SAME = 1e-3
"""The largest relative distance of an activation that transformers has, too."""

_COLUMNS = 5
"""The number of columns that are looked for where one module gives several activations."""

_INNER: dict[Site, tuple[str, ...]] = {
    "attn": ("attn", "v.latent", "q", "k", "v", "o.in", "attn.out"),
    "mixer": ("mixer", "mixer.out"),
    "laurel": ("laurel", "laurel_in", "laurel.out"),
    "cross": ("cross", "cross.out"),
    "ple": ("ple", "ple_in", "ple.in", "ple.out"),
    "ff": ("ff", "gate", "up", "key", "value.in", "ff.out"),
}
"""The activations of each part of a block (`Block`), in order, that a module of transformers may read or give."""


@dataclass(frozen=True, eq=False)
class Part:
    """A part of the forward pass: how zeropass computes it, and what transformers gives.

    Attributes:
        name: ``embedding``, ``block 3``, ``logits``.
        model: The model, which notes what the part reads.
        compute: Computes the part for some of the texts, in the type of the model's numbers.
        true: What transformers gives, (texts, tokens, width).
        scale: The size of what the part adds for each token, (texts, tokens).
        block: The block that it is; None outside the blocks.
    """

    name: str
    model: Observed
    compute: Callable[[Observed, slice], Tensor]
    true: Tensor
    scale: Tensor
    block: "StreamBlock | None" = None

    @property
    def layer(self) -> int | None:
        """The layer; None outside the blocks."""
        return None if self.block is None else self.block.layer

    @cached_property
    def _narrow(self) -> Tensor:
        return self.compute(self.model, _ALL)

    @cached_property
    def _wide(self) -> Tensor:
        return self.compute(self.model.in_float64(), _ALL)

    @cached_property
    def tolerance(self) -> Tensor:
        """The largest error that rounding explains, (texts, tokens)."""
        rounding = _distance(self._narrow, self._wide, self.scale)
        return FACTOR * rounding.clamp_min(float(rounding.median())).clamp_min(torch.finfo(torch.float32).eps)

    def compared(self) -> Compared:
        """Return the error that is largest beside its tolerance."""
        errors = _distance(self._wide, self.true, self.scale)
        worst = (errors / self.tolerance).flatten().argmax()
        error, tolerance = (float(values.flatten()[worst]) for values in (errors, self.tolerance))
        return Compared(part=self.name, layer=self.layer, error=error, tolerance=tolerance, tokens=errors.numel())

    def unseen(self) -> Iterator[tuple[str, str]]:
        """Yield each parameter of which no change is seen, with the reason; in a block of texts, in the first one."""
        texts = _FIRST if self.block is not None and not self.block.alone else _ALL
        other = None if self.layer is None else self.model.dims.kv_layer(self.layer)
        for reading in tuple(self.model.read):
            if other != self.layer and reading[1] == other:
                continue  # what another layer does for the keys of this one is proven there
            changed = self.compute(self.model.with_altered(reading), texts)
            change = _distance(changed, self._narrow[texts], self.scale[texts])
            if not (change > self.tolerance[texts]).any():
                yield reading[0], self._reason(reading)

    def unchosen(self) -> Iterator[int]:
        """Yield the experts that no token of any text goes through."""
        if self.block is not None and "router" in (activations := self._activations):
            chosen = activations["router"].flatten(0, -2).any(0)
            yield from (~chosen[: self.model.dims.experts]).nonzero()[:, 0].tolist()

    def first_difference(self, run: Callable[[Callable[[object], None]], None]) -> str:
        """Return the first activation of a block that no module of transformers has, in the half that differs.

        Args:
            run: Runs transformers and hands on what every module reads and gives.
        """
        if self.block is None:
            return ""
        ours, same = self._activations, set[str]()

        def see(values: object) -> None:
            if isinstance(values, Tensor) and values.is_floating_point():
                same.update(name for name, activation in ours.items() if _is_same(activation, values))

        run(see)
        for site, inner in _INNER.items():
            names = [name for name in inner if name in ours]
            if site == "ff" and "router" in ours:  # what is inside of experts has a form of its own
                names = [site, f"{site}.out"]
            if names and f"{site}.out" not in same:
                return next(name for name in names if name not in same)
        return "sum"

    def _reason(self, reading: Reading) -> str:
        values = self.model.kept.get(reading)
        if values is not None and not values.any():
            return "it is 0"
        if values is not None and reading[0].endswith("_norm") and bool((values == 1).all()):
            return "it is a gain of 1"
        return "no change of it is seen in these texts"

    @cached_property
    def _activations(self) -> dict[str, Tensor]:
        activations: dict[str, Tensor] = {}
        assert self.block is not None
        self.block(self.model, _ALL, activations.__setitem__)
        return activations


def parts_of(model: Model, ids: Tensor, true: Pass) -> Iterator[Part]:
    """Yield the parts of a pass in order; each reads its parameters anew and forgets them with itself.

    Args:
        model: The model.
        ids: Token ids, (texts, tokens).
        true: What transformers computes on them.
    """
    start, last = 0 if adds_positions(model) else None, model.dims.layers - 1

    def embedding(of: Observed, texts: slice) -> Tensor:
        return in_streams(of, model_input(of, token_rows(of, ids[texts]).to(of.dtype), start))

    def new(**facts: Any) -> Part:
        """Return a part with a note of its own of what is read."""
        return Part(model=observed(model), **facts)

    first = true.states[0]
    yield new(name="embedding", compute=embedding, true=first, scale=_size(first))
    for layer in range(last):
        block = StreamBlock(layer=layer, true=true, ids=ids, alone=is_alone(model, layer))
        before, behind = (block.reached(true.states[n]) for n in (layer, layer + 1))
        scale = _size(behind - before)
        yield new(name=f"block {layer}", compute=block, true=behind, scale=scale, block=block)
    block, view = StreamBlock(layer=last, true=true, ids=ids, alone=is_alone(model, last)), observed(model)
    raw = {of.dtype: block(of, _ALL) for of in (view, view.in_float64())}
    behind = block.reached(true.states[-1])
    raw_only = model.family.stream_normed or model.dims.streams > 1  # there is no norm of several streams
    ends: list[Callable[[Observed, slice], Tensor]] = [block] if raw_only else [block, _Normed(block)]
    # most classes of transformers give the last state behind the final norm; whichever is nearer is compared
    end = min(ends, key=lambda each: float(_distance(each(view, _ALL), behind, _size(behind)).max()))
    yield new(name=f"block {last}", compute=end, true=behind, scale=_size(behind), block=block)
    if true.logits is not None:
        logits = block.reached(true.logits)

        def unembedded(of: Observed, texts: slice) -> Tensor:
            return final_logits(of, raw[of.dtype][texts])

        scale = _size(logits - logits.mean(-1, keepdim=True))
        yield new(name="logits", compute=unembedded, true=logits, scale=scale)


@dataclass(frozen=True, eq=False)
class StreamBlock:
    """A block of zeropass from the states of transformers before it.

    Attributes:
        layer: The layer.
        true: The pass of transformers.
        ids: The texts, (texts, tokens).
        alone: True if only the first token of each text is computed, which sees no other.
    """

    layer: int
    true: Pass
    ids: Tensor
    alone: bool

    def __call__(self, of: Observed, texts: slice, record: Recorder | None = None) -> Tensor:
        """Return the stream behind the block, (texts, tokens, d)."""
        block, x, ids = Block(of, self.layer), self._states(self.layer, texts, of), self.ids[texts]
        if self.alone:
            return block.alone(x[:, 0], record=record, ids=ids[:, 0])[:, None]
        memory, cache = self.true.memory, Cache()
        if (other := of.dims.kv_layer(self.layer)) != self.layer:
            Block(of, other)(self._states(other, texts, of), cache, ids=ids)
        memory = None if memory is None else memory[texts].to(of.dtype)
        return block(x, cache, record=record, memory=memory, ids=ids)

    def _states(self, layer: int, texts: slice, of: Observed) -> Tensor:
        """Return the states of transformers before a layer."""
        return self.true.states[layer][texts].to(of.dtype)

    def reached(self, states: Tensor) -> Tensor:
        """Return those of (texts, tokens, width) that the block is computed for."""
        return states[:, :1] if self.alone else states


@dataclass(frozen=True, eq=False)
class _Normed:
    """The last block with the final norm behind it."""

    block: StreamBlock

    def __call__(self, of: Observed, texts: slice) -> Tensor:
        """Return the normed stream, (texts, tokens, d)."""
        gain, shift = of.vector("final_norm"), of.vector("final_norm_bias")
        return apply_norm(self.block(of, texts), of.family.norm, of.dims.eps, gain, shift)


def is_alone(model: Model, layer: int) -> bool:
    """Tell whether a layer is computed for single tokens only, since its rotations are unknown."""
    try:
        if model.dims.rope:
            frequencies(model, layer)
    except BadOption:
        return True
    return False


def _distance(x: Tensor, true: Tensor, scale: Tensor) -> Tensor:
    """Return the relative distances (texts, tokens) of vectors; the largest number where one is not finite."""
    distance: Tensor = (x.double() - true.double()).norm(dim=-1) / scale
    return distance.nan_to_num(nan=_LARGEST, posinf=_LARGEST)


def _size(x: Tensor) -> Tensor:
    """Return the lengths of vectors, (texts, tokens); the smallest number instead of 0."""
    size: Tensor = x.double().norm(dim=-1)
    return size.clamp_min(torch.finfo(torch.float32).tiny)


def _is_same(x: Tensor, other: Tensor) -> bool:
    """Tell whether two activations have the same numbers but for rounding, or the columns of the first are among more.

    Of a layer that is computed for first tokens alone, so are those of all tokens.
    """
    if x.ndim == 2 and other.ndim == 3 and other.shape[:-1].numel() != len(x) == len(other):
        other = other[:, 0]
    if not other.ndim or other.shape[:-1].numel() != x.shape[:-1].numel():
        return False
    x, other = x.flatten(0, -2), other.flatten(0, -2)
    if x.shape == other.shape:
        return float((x - other).norm()) <= _SAME * float(x.norm())
    if x.shape[1] > other.shape[1]:
        return False
    columns = x[:, torch.linspace(0, x.shape[1] - 1, _COLUMNS).long()].T
    return bool(
        (
            torch.cdist(columns, other.T, compute_mode="donot_use_mm_for_euclid_dist").amin(1)
            <= _SAME * columns.norm(dim=1)
        ).all()
    )
