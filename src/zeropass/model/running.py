"""Models that run on their own parameters, and show or change what happens inside.

Any family and any file format runs, since `blocks` needs the parameters alone. The activations of a layer are those of
`blocks.Block`, and `state`, the stream as the layer leaves it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

from torch import Tensor

from zeropass._io.short_repr import ShortRepr
from zeropass.arch.roles import Site
from zeropass.model.blocks import Block, Cache, caches, embedded, final_logits, require_forward
from zeropass.model.model import Model

__all__ = ["Contexts", "Recorder", "Running"]

Recorder = Callable[[str, int, Tensor], None]
"""A callback for activations: the name, the layer, and the values (batch, tokens, width)."""


@dataclass(frozen=True, eq=False, repr=False)
class Running(ShortRepr):
    """A model with the parameters of all its blocks in memory.

    Attributes:
        model: The model, which runs on its device.

    Raises:
        CannotRun: If the forward pass of the model is not known.

    Example:
        >>> import torch, zeropass as zp
        >>> from zeropass.model.running import Running
        >>> running = Running(zp.open_model("models/first"))
        >>> running.logits(running.run(torch.tensor([[5, 6, 7]]))).shape
        torch.Size([1, 3, 4096])
    """

    model: Model

    def __post_init__(self) -> None:
        require_forward(self.model)

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """All blocks."""
        return tuple(Block(self.model, layer) for layer in range(self.model.dims.layers))

    def run(self, ids: Tensor, recorder: Recorder | None = None) -> Tensor:
        """Run the model on token ids.

        Args:
            ids: The ids, (batch, tokens).
            recorder: Receives the activations of every layer.

        Returns:
            The stream behind the last block, (batch, tokens, d).
        """
        x = embedded(self.model, ids)
        for block, cache in zip(self.blocks, caches(self.model), strict=True):
            record = None if recorder is None else partial(_record, recorder, block.layer)
            x = block(x, cache, record, ids=ids)
            if recorder is not None:
                recorder("state", block.layer, x)
        return x

    def logits(self, states: Tensor) -> Tensor:
        """Return the logits (…, V) of the stream behind the last block, (…, d)."""
        _ = self.model.unembedding  # kept, since every call reads all of it
        return final_logits(self.model, states)


@dataclass(frozen=True, eq=False, repr=False)
class Contexts(ShortRepr):
    """Texts that were run once, to which vectors are added at their last token.

    Attributes:
        running: The running model.
        caches: Keys and values of all tokens but the last, by layer.
        streams: The stream of the last token before each layer and behind the last one, (texts, 1, d) each.
        logits: The logits of the last token, (texts, V).

    Example:
        >>> import torch, zeropass as zp
        >>> from zeropass.model.running import Contexts, Running
        >>> model = zp.open_model("models/first")
        >>> contexts = Contexts.of(Running(model), torch.tensor([[5, 6, 7], [8, 9, 10]]))
        >>> contexts.changes(1, "ff", model.matrix("value", 1, 0, 4)).shape
        torch.Size([2, 4, 4096])
    """

    running: Running
    caches: Sequence[Cache]
    streams: Sequence[Tensor]
    logits: Tensor

    @classmethod
    def of(cls, running: Running, ids: Tensor) -> "Contexts":
        """Run texts of the same length, (texts, tokens)."""
        model, last = running.model, ids.shape[1] - 1
        model.require_alike_layers("vectors added to a text")
        caches, streams = [Cache() for _ in running.blocks], []
        before, x = embedded(model, ids[:, :-1]), embedded(model, ids[:, -1:], last)
        for block, cache in zip(running.blocks, caches, strict=True):
            before = block(before, cache)
            streams.append(x)
            x = block(x, cache.repeated(1))
        return cls(running, caches, [*streams, x], running.logits(x[:, 0]))

    def changes(self, layer: int, site: Site, vectors: Tensor) -> Tensor:
        """Return the changes of the logits when each vector is added to what a layer writes.

        Args:
            layer: The layer.
            site: The half of the layer that writes: ``attn`` or ``ff``.
            vectors: The vectors, (n, d).

        Returns:
            The changes, (texts, n, V).
        """
        count, n = len(self.logits), len(vectors)
        x, added = self.streams[layer].repeat_interleave(n, 0), {site: vectors.repeat(count, 1)}
        for block, cache in zip(self.running.blocks[layer:], self.caches[layer:], strict=True):
            x = block(x, cache.repeated(n), added=added if block.layer == layer else None)
        return self.running.logits(x[:, 0]).reshape(count, n, -1) - self.logits[:, None]


def _record(recorder: Recorder, layer: int, name: str, values: Tensor) -> None:
    recorder(name, layer, values)
