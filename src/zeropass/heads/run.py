"""Run the catalogue of heads in one call."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from zeropass._io.progress import Progress, callback, shows_progress
from zeropass.errors import BadOption
from zeropass.heads.closing import Brackets, brackets
from zeropass.heads.expected_attention import Expected, ExpectedAttention, Texts, first_keys
from zeropass.heads.own_token import entries_z, own_ranks, own_z, shares, turns
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
"""Tokens that are drawn for the measures of ``vo``, by Zipf's law; capitalised words among those that are compared."""

RANDOM_HEADS, FEWEST_TURNS = 2000, 8
"""The random heads that all traits are compared with, and the least number of them for each head."""


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
        >>> catalogue = zp.catalogue_heads("models/first", lens=None)
        >>> catalogue
        HeadCatalogue(24 heads of models/first, 9 with a trait that stands out)
        >>> catalogue.having("previous")[0].address
        'L1.attn.3'
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
        return random_tokens(self.model, TOKENS, self.seed).unique()

    @cached_property
    def names(self) -> Tensor:
        """Capitalised words, which most names are, (n,)."""
        vocab = self.model.vocab
        texts = [vocab.boundary(vocab.text(i)) for i in range(vocab.size)]
        capitalised = [word and text.isalpha() and len(text) > 2 and text.istitle() for word, text in texts]
        mask = torch.tensor(capitalised) & torch.from_numpy(vocab.mask("words", *self.model.judgement))
        return random_tokens(self.model, 4 * NAMES, self.seed, mask).unique()[:NAMES] if mask.any() else self.ids[:0]

    @cached_property
    def brackets(self) -> Brackets:
        """The brackets and quotes of the vocabulary."""
        return brackets(self.model.vocab)

    @cached_property
    def first(self) -> Mapping[int, Tensor]:
        """The keys of the first token of a text by layer."""
        return first_keys(self.model, self.seed)

    def measured(self, layer: int, layers: int) -> _Layer:
        """Return the measures of the heads of a layer, one of so many."""
        heads = TokenHeads(self.lens.frames, layer, self.lens.map_frame)
        dims = heads.block.dims
        draws = max(FEWEST_TURNS, math.ceil(RANDOM_HEADS / (layers * dims.heads)))
        seed = self.seed + layer
        attention = ExpectedAttention(heads, self.texts, self.first.get(dims.kv_layer(layer)))
        expected = attention()
        random = [self._of_attention(attention.of_random(turn)) for turn in turns(draws, dims.width("q"), seed)]
        written = _Written.of(heads, self)
        random_written = [written.traits(turn) for turn in turns(draws, dims.width("v"), seed)]
        others = self.texts.offsets != 0
        best = expected.by_offset[:, others].argmax(1)
        queries = heads.block.turned_queries(heads.queries(self.ids), self.lens.frames.usual_offset("qk", heads.frame))
        qk = shares(queries, heads.keys(self.ids).repeat_interleave(dims.group, 0))
        vo = shares(written.values + written.mean, written.outputs)
        return _Layer(
            layer=layer,
            values=self._of_attention(expected) | written.traits(),
            random=_stacked(random) | _stacked(random_written),
            facts={
                "rank": own_ranks(written.values, written.outputs),
                "distance": self.texts.offsets[others][best],
                "vo_own": vo.own,
                "vo_alike": vo.alike,
                "qk_own": qk.own,
                "qk_alike": qk.alike,
            },
        )

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
        heads = tuple(
            _head(layer, head, random) for layer in measured for head in range(len(layer.values["copying"]))
        )
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


def _stacked(draws: Sequence[_Values]) -> _Values:
    """Return the traits of random heads, (draws, heads) each."""
    return {name: torch.stack([values[name] for values in draws]) for name in draws[0]}


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


@dataclass(frozen=True, eq=False)
class _Written:
    """The factors of the ``vo`` maps of a layer over some tokens, (heads, n, width) each.

    Attributes:
        mean: The mean value, (heads, 1, width).
        values: Values of tokens, less the mean: what every token does alike is not about the token.
        outputs: Scores of the same tokens in what the heads write.
        names: The same two for capitalised words.
        opening: The values of opening brackets, less the same mean.
        closing: The scores of the closing ones.
        brackets: The brackets.
    """

    mean: Tensor
    values: Tensor
    outputs: Tensor
    names: tuple[Tensor, Tensor]
    opening: Tensor
    closing: Tensor
    brackets: Brackets

    @classmethod
    def of(cls, heads: TokenHeads, work: _Work) -> "_Written":
        """Return the factors of a layer."""
        values, signs = heads.values(work.ids), work.brackets
        mean = values.mean(1, keepdim=True)
        return cls(
            mean=mean,
            values=values - mean,
            outputs=heads.written(work.ids),
            names=(heads.values(work.names) - mean, heads.written(work.names)),
            opening=heads.values(signs.opening) - mean,
            closing=heads.written(signs.closing),
            brackets=signs,
        )

    def traits(self, turn: Tensor | None = None) -> _Values:
        """Return the traits of what heads write; of random heads, if values are turned (width, width)."""

        def turned(values: Tensor) -> Tensor:
            return values if turn is None else values @ turn

        copying = own_z(turned(self.values), self.outputs)
        traits = {"copying": copying, "suppression": -copying}
        values, outputs = self.names
        if values.shape[1]:
            traits["names"] = entries_z(turned(values), outputs, self.outputs).median(-1).values
        if self.brackets.kinds:
            traits["closing"] = self.brackets.z(turned(self.opening), self.closing, self.outputs)
        return traits
