"""What transformers computes, recorded at the places that a record names: the ground truth of every family."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from zeropass.model.model import Model


@dataclass
class Forward:
    """One forward pass: what modules took and gave, call by call, and what every softmax over keys took and gave."""

    model: Model
    hf: Any
    into: dict[str, list[Tensor]] = field(default_factory=dict)
    out: dict[str, list[Any]] = field(default_factory=dict)
    logits: list[Tensor] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)
    result: Any = None

    def states(self, layer: int) -> Tensor:
        """The stream before a layer."""
        stack = self.model.family.stack
        return self.result[f"{stack}_hidden_states" if stack else "hidden_states"][layer]

    def call(self, layer: int, site: str = "attn") -> int:
        """Which of all attentions of the pass is this one: an encoder's come first, then self and cross by turns."""
        if self.model.family.stack != "decoder":
            return layer
        return len(self.result.encoder_attentions) + 2 * layer + (site == "cross")

    def memory(self) -> Tensor:
        """What leaves the encoder's last block, not yet normed where the family norms it on the way."""
        norm = self.model.layout.tensors.get("memory_norm")
        return self.into[norm.name.removesuffix(".weight")][0] if norm else self.result.encoder_last_hidden_state

    def took(self, what: str, layer: int = 0) -> Tensor:
        """Input of the module that holds a canonical tensor; one that several layers share is called once by each."""
        return _call(self.into[self.name(what, layer)], layer)

    def gave(self, what: str, layer: int = 0) -> Any:
        """Output of the module that holds a canonical tensor."""
        return _call(self.out[self.name(what, layer)], layer)

    def name(self, what: str, layer: int = 0) -> str:
        """Full name of the module that holds a canonical tensor."""
        tensor = self.model.layout.tensors[what].name.format(layer=layer).removesuffix(".weight")
        # transformers names the module of Mixtral's experts otherwise than its files do
        for one in (
            self.model.prefix + tensor,
            tensor,
            (self.model.prefix + tensor).replace("block_sparse_moe", "mlp"),
        ):
            if one in self.out:
                return one
        raise KeyError(tensor)


def _call(calls: list[Any], layer: int) -> Any:
    return calls[layer] if len(calls) > 1 else calls[0]


@torch.no_grad()
def run_forward(hf: Any, model: Model, ids: Tensor, **more: Any) -> Forward:
    """Run the model on (batch, length) ids, listening."""
    forward = Forward(model, hf)
    with _hooks(hf, forward), _softmax(forward):
        if hf.config.is_encoder_decoder:
            more |= {"decoder_input_ids": ids, "output_attentions": True}
        forward.result = hf(ids, output_hidden_states=True, **more)
    return forward


@contextmanager
def _hooks(hf: nn.Module, forward: Forward) -> Iterator[None]:
    def tap(name: str) -> Any:
        def listen(_module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if inputs and isinstance(inputs[0], Tensor):
                forward.into.setdefault(name, []).append(inputs[0].clone())
            # cloned: some models add to what a module gave in place
            forward.out.setdefault(name, []).append(output.clone() if isinstance(output, Tensor) else output)

        return listen

    with ExitStack() as stack:
        for name, module in hf.named_modules():
            stack.callback(module.register_forward_hook(tap(name)).remove)
        yield


@contextmanager
def _softmax(forward: Forward) -> Iterator[None]:
    """Keep what every softmax over four axes takes and gives: those of attention."""
    plain = nn.functional.softmax

    def tapped(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        found = plain(x, *args, **kwargs)
        if x.ndim == 4:
            forward.logits.append(x.clone())
            forward.weights.append(found)
        return found

    def fused(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, **more: Any) -> Tensor:
        """PyTorch's fused attention, spelled out: what it documents that it computes."""
        logits = q @ k.mT * (more.get("scale") or q.shape[-1] ** -0.5)
        if more.get("is_causal"):
            attn_mask = torch.ones(logits.shape[-2:]).tril().bool()
        if attn_mask is not None:
            low = torch.finfo(logits.dtype).min
            logits = logits.masked_fill(~attn_mask, low) if attn_mask.dtype == torch.bool else logits + attn_mask
        return nn.functional.softmax(logits, dim=-1) @ v

    with patch.multiple(nn.functional, softmax=tapped, scaled_dot_product_attention=fused):
        yield
