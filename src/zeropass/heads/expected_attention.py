"""The attention that a head is expected to pay in a text of unrelated tokens, by where they stand.

The last token of such a text is the query. The keys are the first token of the text, any tokens in between and the
token itself, each at its place, so that rotations, biases of distances, windows and added positions all have their say.
Each position gets the mean of ``exp`` of its logits over tokens, and a softmax over positions makes shares of these
(docs/heads.md).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from zeropass.errors import BadOption, CannotRun
from zeropass.heads.token_heads import TokenHeads
from zeropass.model.blocks import Block, caches, embedded, require_forward
from zeropass.model.frames import Frames
from zeropass.model.generate import random_tokens
from zeropass.model.model import Model
from zeropass.model.positions import adds_positions, longest_text

__all__ = ["Expected", "ExpectedAttention", "Texts"]

REACH = 64
"""The number of tokens before the query, or on either side of it in a model that sees both."""

QUERIES, KEYS, FIRST = 64, 128, 32
"""The tokens that are averaged over: as queries, as keys and as the first of a text."""

NULL_QUERIES, NULL_KEYS = 32, 32
"""The same for random heads, of which there are many."""


@dataclass(frozen=True, eq=False)
class Expected:
    """Shares of the attention of a query, (heads,) each.

    Attributes:
        by_offset: Those of the offsets from a key to the query, as `Texts.offsets` lists them, (heads, offsets); the
            first token of a text is left out.
        first: That of the first token of the text and of a learned sink; None where the first token is not known.
        same: That of an earlier token that is the same as the query, the mean over its places.
    """

    by_offset: Tensor
    first: Tensor | None
    same: Tensor


@dataclass(frozen=True, eq=False)
class Texts:
    """The texts of unrelated tokens of a model, which are never written out.

    Attributes:
        frames: The frames of the model.
        seed: The seed of the tokens.
    """

    frames: Frames
    seed: int = 0

    @property
    def model(self) -> Model:
        """The model."""
        return self.frames.model

    @cached_property
    def queries(self) -> Tensor:
        """Tokens at the place of the query, by Zipf's law, (`QUERIES`,)."""
        return random_tokens(self.model, QUERIES, self.seed).to(self.model.device)

    @cached_property
    def keys(self) -> Tensor:
        """Tokens at all other places, (`KEYS`,)."""
        return random_tokens(self.model, KEYS, self.seed + 1).to(self.model.device)

    @cached_property
    def first(self) -> Tensor:
        """Tokens at the first place, (`FIRST`,)."""
        return random_tokens(self.model, FIRST, self.seed + 2).to(self.model.device)

    @cached_property
    def first_keys(self) -> Mapping[int, Tensor]:
        """The keys of the first token by layer, (`FIRST`, key heads, d_h) each.

        It attends to itself alone, so it needs no text to be exact: these tokens pass through the model one by one.
        There are no such keys in a model that sees both ways, nor where the forward pass is not known.
        """
        if not self.model.family.causal:
            return {}
        try:
            require_forward(self.model)
        except CannotRun:
            return {}
        keys: dict[int, Tensor] = {}
        ids = self.first[:, None]
        x = embedded(self.model, ids)
        for layer, cache in enumerate(caches(self.model)):  # one layer at a time is in memory
            block = Block(self.model, layer)

            def record(name: str, values: Tensor, block: Block = block) -> None:
                if name == "rotated.k":
                    keys[block.layer] = block.heads(values, "k")[:, :, 0]

            x = block(x, cache, record, ids=ids)
        return keys

    @cached_property
    def at(self) -> int:
        """The position of the query."""
        longest = longest_text(self.model)
        most = REACH if longest is None else longest - 1
        at = min(REACH, most if self.model.family.causal else most // 2)
        if at < 2:
            raise BadOption(f"{self.model.name} has positions for {longest} tokens; heads are compared over 5 or more.")
        return at

    @cached_property
    def offsets(self) -> Tensor:
        """The offsets from the keys to the query, rising; those before the first token are left out."""
        causal = self.model.family.causal
        first, stop = (0, self.at) if causal else (-self.at, self.at + 1)
        return torch.arange(first, stop, device=self.model.device)

    @cached_property
    def places(self) -> Tensor:
        """The positions of all keys, that of the query and, in a model that sees both ways, later ones included."""
        count = self.at + 1 if self.model.family.causal else 2 * self.at + 1
        return torch.arange(count, device=self.model.device)

    def states(self, name: Literal["queries", "keys"], layer: int) -> Tensor:
        """Return the states of tokens at all places, where positions are added, as a layer reads them.

        A token leaves block 0 as it would alone, as in the frame ``token``; so all layers but the first read the same.

        Args:
            name: The tokens.
            layer: The layer that reads them.

        Returns:
            The states, (n, places, d).
        """
        key = name, layer > 0
        if key not in self._states:
            ids = getattr(self, name)[:, None].expand(-1, len(self.places))
            x, bare = embedded(self.model, ids), layer == 0 and self.model.family.reads_bare("attn_norm", 0)
            if layer:
                x = Block(self.model, 0).alone(x.flatten(0, 1), ids=ids.flatten()).reshape(x.shape)
            self._states[key] = x if bare else self.frames.as_read(x)
        return self._states[key]

    @cached_property
    def _states(self) -> dict[tuple[str, bool], Tensor]:
        return {}


@dataclass(frozen=True, eq=False)
class ExpectedAttention:
    """The expected attention of the heads of a layer.

    Attributes:
        heads: The heads.
        texts: The texts.
    """

    heads: TokenHeads
    texts: Texts

    def __call__(self) -> Expected:
        """Return the expected attention of each head."""
        return self._expected(self._queries, self._keys, self._own_keys)

    def of_random(self, turn: Tensor) -> Expected:
        """Return that of random heads: queries are turned (d_h, d_h) against their keys before positions count.

        Biases of positions, which no turn changes, are left out.
        """
        queries = self._queries[:, :NULL_QUERIES] @ turn
        return self._expected(queries, self._keys[:NULL_KEYS], self._own_keys[:NULL_QUERIES], biased=False)

    @cached_property
    def _first(self) -> Tensor | None:
        """Keys of the first token, (n, key heads, d_h), if they are known."""
        return self.texts.first_keys.get(self.heads.block.dims.kv_layer(self.heads.layer))

    @cached_property
    def _queries(self) -> Tensor:
        """Queries before they are rotated, (heads, `QUERIES`, d_h)."""
        texts = self.texts
        if not adds_positions(texts.model):
            return self.heads.queries(texts.queries)
        return self.heads.met("q", texts.states("queries", self.heads.layer)[:, texts.at])

    @cached_property
    def _keys(self) -> Tensor:
        """The keys of each token at each position, rotated, (`KEYS`, key heads, places, d_h)."""
        return self._placed("keys")

    @cached_property
    def _own_keys(self) -> Tensor:
        """The keys of the tokens of the queries at each position, (`QUERIES`, key heads, places, d_h)."""
        return self._placed("queries")

    def _placed(self, name: Literal["queries", "keys"]) -> Tensor:
        heads, texts, places = self.heads, self.texts, self.texts.places
        if adds_positions(texts.model):
            states = texts.states(name, heads.layer)
            keys = heads.met("k", states.flatten(0, 1))
            keys = keys.reshape(len(keys), *states.shape[:2], -1)
        else:
            keys = heads.keys(getattr(texts, name))[:, :, None].expand(-1, -1, len(places), -1)
        return heads.block.turned(keys.transpose(0, 1), places)

    def _expected(self, queries: Tensor, keys: Tensor, own_keys: Tensor, biased: bool = True) -> Expected:
        """Return the expected attention of queries (heads, a, d_h) to keys (b, key heads, places, d_h)."""
        texts, count = self.texts, queries.shape[1]
        at = torch.full((count,), texts.at, device=queries.device)
        turned = self.heads.block.turned_queries(queries, at, len(texts.places) - 1)
        logits = _mean_exp(self._logits(turned[None], keys, at, biased))
        own = self._logits(turned.transpose(0, 1)[:, :, None], own_keys, at[:1], biased)[:, :, 0].transpose(0, 1)
        logits[..., texts.at] = own[..., texts.at]
        if self._first is not None:
            logits[..., 0] = _mean_exp(self._logits(turned[None], self._first[:, :, None], at, biased))[..., 0]
        sinks = self.heads.block.vector("sinks")
        sink = logits[..., :0] if sinks is None else sinks[:, None, None].expand(-1, count, 1)
        total = torch.cat((logits, sink), -1).logsumexp(-1, keepdim=True)
        weights = (logits - total).exp()
        first = weights[..., 0] + (sink - total).exp().sum(-1)
        return Expected(
            by_offset=weights[..., texts.at - texts.offsets].mean(1),
            first=None if self._first is None else first.mean(1),
            same=self._same(own, weights, total),
        )

    def _same(self, own: Tensor, weights: Tensor, total: Tensor) -> Tensor:
        """Return the mean weight of an earlier token that is the same as the query, in place of one that is not."""
        earlier = self.texts.at - self.texts.offsets[self.texts.offsets > 0]
        rest = total + torch.log1p(-weights[..., earlier].clamp_max(1 - 1e-6))
        return (own[..., earlier] - torch.logaddexp(rest, own[..., earlier])).exp().mean((1, 2))

    def _logits(self, queries: Tensor, keys: Tensor, at: Tensor, biased: bool) -> Tensor:
        """Return attention logits (batch, heads, queries, keys), without the biases of positions if not biased."""
        block = self.heads.block
        if block.model.has("distances"):  # each pair of a query and a text of keys takes its own vectors
            queries = queries.expand(len(keys), -1, -1, -1)
        logits = block.logits(queries, keys, at)
        if biased:
            return logits
        mask = block.mask(at, keys.shape[2])
        return logits - torch.where(mask.isfinite(), mask, torch.zeros_like(mask))


def _mean_exp(logits: Tensor) -> Tensor:
    """Return the logarithm of the mean of ``exp`` over the first dimension."""
    return logits.logsumexp(0) - math.log(len(logits))
