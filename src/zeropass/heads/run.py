"""Run the catalogue of heads in one call."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from zeropass._io.progress import Progress, callback, shows_progress
from zeropass.errors import BadOption
from zeropass.heads.closing import Brackets, brackets
from zeropass.heads.expected_attention import Expected, ExpectedAttention, Texts
from zeropass.heads.own_token import entries_z, own_ranks, shares, turns
from zeropass.heads.results import TRAITS, Head, HeadCatalogue, Trait
from zeropass.heads.token_heads import TokenHeads
from zeropass.lens import Lens, load
from zeropass.model.address import Address
from zeropass.model.generate import random_tokens
from zeropass.model.lens_maps import LensMaps
from zeropass.model.model import Model
from zeropass.model.opening import ModelLike

__all__ = ["catalogue_heads"]

TOKENS, NAMES = 2048, 256
"""Tokens that are drawn for the measures of ``vo``, by Zipf's law; draws of capitalised words."""

RANDOM_HEADS, FEWEST_TURNS = 1000, 8
"""The least number of random heads that traits are compared with, and the least number for each head."""


@torch.no_grad()
@shows_progress
def catalogue_heads(
    model: "ModelLike | Lens",
    *,
    layers: tuple[int, int] | None = None,
    lens: str | Path | LensMaps | None = "auto",
    seed: int = 0,
    progress: Progress | bool = True,
) -> HeadCatalogue:
    """Say of every attention head what it does, and of each trait how many random heads have as much of it.

    What a head attends to is the attention that is expected in a text of unrelated tokens, by the mean of ``exp`` of
    its logits; what it does to the token that it attends to is read off its ``vo`` map. A random head has the queries
    or values of one of the model's heads turned at random against its keys or outputs, so that it reads and writes the
    same subspaces. Nobody's text is needed.

    Args:
        model: The model, its name, or a lens on it.
        layers: A half-open range of layers; all if not given. Random heads are those of the same layers.
        lens: The lens to read through, as in `load`; a `Lens` has its own.
        seed: The seed of tokens and random heads.
        progress: True for a bar in a notebook or on a terminal, False for none; or a function that is called with the
            stage, the step and the number of steps.

    Returns:
        The heads, by layer.

    Raises:
        BadOption: There are no such layers, or no attention in them.

    Example:
        >>> import zeropass as zp
        >>> catalogue = zp.catalogue_heads("models/first", layers=(1, 2), lens=None)
        >>> len(catalogue), catalogue.having("previous")[0].address
        (6, 'L1.attn.5')
    """
    report = callback(progress)
    reader = model if isinstance(model, Lens) else load(model, lens=lens)
    work = _Work(reader, seed)
    numbers = _layers(reader.model, layers)
    report("heads", 0, len(numbers))
    measured = []
    for done, layer in enumerate(numbers):
        measured.append(work.measured(layer, len(numbers)))
        report("heads", done + 1, len(numbers))
    return work.catalogue(measured)


def _layers(model: Model, layers: tuple[int, int] | None) -> list[int]:
    """Return the layers of a range that have attention; raise BadOption if there are none."""
    first, stop = layers or (0, model.dims.layers)
    if not 0 <= first < stop <= model.dims.layers:
        raise BadOption(
            f"--layers {first}:{stop} is out of range: {model.name} has layers 0 to {model.dims.layers - 1}."
        )
    attending = [layer for layer in range(first, stop) if model.dims.has_site("attn", layer)]
    if not attending:
        raise BadOption(f"{model.name} has no attention in layers {first} to {stop - 1}, so there are no heads.")
    return attending


_Values = dict[str, Tensor]
"""The values of a trait by its name: (heads,) of a layer's own heads, (draws, heads) of random ones."""


@dataclass(frozen=True)
class _Layer:
    """The measures of the heads of a layer.

    Attributes:
        layer: The layer.
        values: The traits of its heads.
        random: Those of random heads.
        facts: What random heads are not compared in.
    """

    layer: int
    values: _Values
    random: _Values
    facts: _Values


@dataclass(frozen=True, eq=False)
class _Work:
    """The catalogue of one model.

    Attributes:
        lens: The lens on it.
        seed: The seed.
        texts: The texts of unrelated tokens.
    """

    lens: Lens
    seed: int
    texts: Texts = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "texts", Texts(self.lens.frames, self.seed))

    @property
    def model(self) -> Model:
        """The model."""
        return self.lens.model

    @cached_property
    def ids(self) -> Tensor:
        """The tokens of the measures of ``vo``, each once."""
        ids: Tensor = torch.unique(random_tokens(self.model, TOKENS, self.seed))
        return ids

    @cached_property
    def names(self) -> Tensor:
        """Capitalised words, which most names are, (n,)."""
        vocab = self.model.vocab
        texts = [vocab.boundary(vocab.text(i)) for i in range(vocab.size)]
        capitalised = [word and text.isalpha() and len(text) > 2 and text.istitle() for word, text in texts]
        mask = torch.tensor(capitalised) & torch.from_numpy(vocab.mask("words", *self.model.judgement))
        drawn = random_tokens(self.model, NAMES, self.seed, mask) if mask.any() else self.ids[:0]
        ids: Tensor = torch.unique(drawn)
        return ids

    @cached_property
    def brackets(self) -> Brackets:
        """The brackets and quotes of the vocabulary."""
        return brackets(self.model.vocab)

    def measured(self, layer: int, layers: int) -> _Layer:
        """Return the measures of the heads of a layer, one of so many."""
        heads = TokenHeads(self.lens.frames, layer, self.lens.map_frame)
        draws = max(FEWEST_TURNS, math.ceil(RANDOM_HEADS / (layers * heads.block.dims.heads)))
        attention, written = ExpectedAttention(heads, self.texts), _Written.of(heads, self)
        q_turns, v_turns = (
            turns(draws, heads.block.dims.width(role), self.seed + layer).to(self.model.device) for role in "qv"
        )
        expected = attention()
        random = [
            self._of_attention(attention.of_random(q_turn)) | written.traits(v_turn)
            for q_turn, v_turn in zip(q_turns, v_turns, strict=True)
        ]
        return _Layer(
            layer=layer,
            values=self._of_attention(expected) | written.traits(),
            random={name: torch.stack([draw[name] for draw in random]) for name in random[0]},
            facts=self._facts(heads, expected, written),
        )

    def _facts(self, heads: TokenHeads, expected: Expected, written: "_Written") -> _Values:
        """Return what random heads are not compared in."""
        others = self.texts.offsets != 0
        best = expected.by_offset[:, others].argmax(1)
        queries = heads.block.turned_queries(heads.queries(self.ids), self.lens.frames.usual_offset("qk", heads.frame))
        keys, (values, outputs) = heads.keys(self.ids).repeat_interleave(heads.block.dims.group, 0), written.own
        qk, vo = shares(queries, keys), shares(values + written.mean, outputs)
        return {
            "rank": own_ranks(values, outputs),
            "distance": self.texts.offsets[others][best],
            "vo_own": vo.own,
            "vo_alike": vo.alike,
            "qk_own": qk.own,
            "qk_alike": qk.alike,
        }

    def _of_attention(self, expected: Expected) -> _Values:
        """Return the traits that are shares of attention."""
        offsets = self.texts.offsets
        traits = {
            "previous": expected.by_offset[:, offsets == 1].sum(1),
            "offset": expected.by_offset[:, offsets != 0].amax(1),
            "itself": expected.by_offset[:, offsets == 0].sum(1),
            "same": expected.same,
        }
        return traits if expected.first is None else traits | {"first": expected.first}

    def catalogue(self, measured: Sequence[_Layer]) -> HeadCatalogue:
        """Return the catalogue of some layers, in which random heads of all of them are put together."""
        random = {
            name: torch.cat([layer.random[name].flatten() for layer in measured]).sort().values
            for name in measured[0].values
        }
        heads = tuple(_head(layer, head, random) for layer in measured for head in range(len(layer.values["copying"])))
        return HeadCatalogue(
            model={"name": self.model.name, "fingerprint": self.model.fingerprint},
            frame=self.lens.map_frame,
            lens=self.lens.lens_words(self.lens.map_frame),
            tokens=len(self.ids),
            random_heads=len(random["copying"]),
            brackets=self.brackets.kinds,
            heads=heads,
            seed=self.seed,
        )


def _head(layer: _Layer, head: int, random: _Values) -> Head:
    """Return a head of a layer with the chance of each trait, given the sorted values of all random heads."""
    traits = {name: _trait(values[head], random[name]) for name, values in layer.values.items()}
    facts = {name: values[head].item() for name, values in layer.facts.items()}
    absent = dict.fromkeys(TRAITS.keys() - traits.keys())
    address = str(Address(layer.layer, "attn", head=head))
    return Head(address=address, layer=layer.layer, head=head, **traits, **absent, **facts)  # type: ignore[arg-type]


def _trait(value: Tensor, random: Tensor) -> Trait:
    reached = len(random) - int(torch.searchsorted(random, value.reshape(1)))
    return Trait(value=float(value), chance=(1 + reached) / (1 + len(random)))


_Pairs = tuple[Tensor, Tensor]
"""Values of tokens and the scores of as many other tokens in what the heads write, (heads, n, width) each."""


@dataclass(frozen=True, eq=False)
class _Written:
    """The factors of the ``vo`` maps of a layer over some tokens.

    Attributes:
        mean: The mean value, (heads, 1, width).
        own: Every token with itself. From all values the mean is subtracted: what every token does alike says nothing
            about the token.
        names: Capitalised words with themselves, if the vocabulary has any.
        closing: Opening brackets with those that close them, if it has any.
        weights: The weights of these pairs, (n,).
    """

    mean: Tensor
    own: _Pairs
    names: _Pairs | None
    closing: _Pairs | None
    weights: Tensor

    @classmethod
    def of(cls, heads: TokenHeads, work: _Work) -> "_Written":
        """Return the factors of a layer."""
        values, signs = heads.values(work.ids), work.brackets
        mean = values.mean(1, keepdim=True)

        def pairs(attended: Tensor, promoted: Tensor) -> _Pairs | None:
            return (heads.values(attended) - mean, heads.written(promoted)) if len(attended) else None

        return cls(
            mean=mean,
            own=(values - mean, heads.written(work.ids)),
            names=pairs(work.names, work.names),
            closing=pairs(signs.opening, signs.closing),
            weights=signs.weights,
        )

    def traits(self, turn: Tensor | None = None) -> _Values:
        """Return the traits of what heads write; of random heads, if values are turned (width, width)."""
        every = self.own[1]

        def z(pairs: _Pairs) -> Tensor:
            return entries_z(pairs[0] if turn is None else pairs[0] @ turn, pairs[1], every)

        copying = z(self.own).median(-1).values
        traits = {"copying": copying, "suppression": -copying}
        if self.names is not None:
            traits["names"] = z(self.names).median(-1).values
        if self.closing is not None:
            traits["closing"] = z(self.closing) @ self.weights.to(every)
        return traits
