"""Activations of transformers, recorded at the modules that a record names: the ground truth for every family."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from zeropass.model.model import Model


@dataclass
class Forward:
    """One forward pass: inputs and outputs of modules, call by call, and those of every softmax over keys."""

    model: Model
    hf: Any
    into: dict[str, list[Tensor]] = field(default_factory=dict)
    out: dict[str, list[Any]] = field(default_factory=dict)
    tokens: int = 0
    logits: list[Tensor] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)
    result: Any = None

    @property
    def stack(self) -> str:
        """The half of an encoder-decoder that is read; only the decoder has words where the encoder is no text's."""
        return self.model.family.stack or ("decoder" if self.model.family.other_memory else "")

    def states(self, layer: int) -> Tensor:
        """Return the stream before a layer; several side by side, which transformers stacks before the texts."""
        stack = self.stack
        states: Tensor = self.result[f"{stack}_hidden_states" if stack else "hidden_states"][layer]
        return states.movedim(0, -2).flatten(-2) if self.model.dims.streams > 1 else states

    def call(self, layer: int, site: str = "attn") -> int:
        """Return the index of this attention in the pass: an encoder's come first, then self and cross alternate."""
        if self.stack != "decoder":
            return sum(self.model.dims.has_site("attn", before) for before in range(layer))
        return len(self.result.encoder_attentions) + 2 * layer + (site == "cross")

    def memory(self) -> Tensor:
        """Return the output of the encoder's last block, before the norm if the family has one there."""
        has_norm = "memory_norm" in self.model.layout.tensors
        return self.took("memory_norm") if has_norm else self.result.encoder_last_hidden_state

    def took(self, what: str, layer: int = 0) -> Tensor:
        """Return the input of the module that holds a canonical tensor; layers that share it call it once each."""
        return self._unpadded(_call(self.into[self.name(what, layer)], layer))

    def gave(self, what: str, layer: int = 0) -> Any:
        """Return the output of the module that holds a canonical tensor."""
        return self._unpadded(_call(self.out[self.name(what, layer)], layer))

    def _unpadded(self, x: Any) -> Any:
        """Return activations (batch, tokens, width) without the padding to entire windows (Longformer)."""
        return x[:, : self.tokens] if isinstance(x, Tensor) and x.ndim == 3 and self.window else x

    @property
    def window(self) -> int:
        """The number of keys that a query of a Longformer sees; 0 for other models."""
        windows = getattr(self.hf.config, "attention_window", None)
        return windows[0] + 1 if windows else 0

    def name(self, what: str, layer: int = 0) -> str:
        """Return the full name of the module that holds a canonical tensor."""
        tensor = self.model.layout.tensors[what].name.format(layer=layer).removesuffix(".weight")
        # transformers and the files of Mixtral name the module of the experts differently, and text models inside
        # multimodal ones
        for prefix in (self.model.prefix, "", "model.", "model.language_model."):
            for name in (
                (prefix + tensor).replace(".router.gate", ".router").removesuffix(".wg").removesuffix(".classifier"),
                prefix + tensor,
                (prefix + tensor).replace("block_sparse_moe", "mlp"),
                (prefix + tensor).removesuffix(".layer"),
                (prefix + tensor).replace("block_sparse_moe.gate", "mlp.router"),
            ):
                if name in self.out:
                    return name
        return loaded_name(self.hf, self.model.prefix + tensor)


def loaded_name(hf: Any, module: str) -> str:
    """Return the module into which transformers loads that of a file, by its table of conversions."""
    conversions = get_model_conversion_mapping(hf, add_legacy=False)
    by_type = [[c for c in conversions if isinstance(c, kind)] for kind in (WeightRenaming, WeightConverter)]
    return rename_source_key(f"{module}.weight", *by_type)[0].removesuffix(".weight")


def _call(calls: list[Any], layer: int) -> Any:
    return calls[layer] if len(calls) > 1 else calls[0]


@torch.no_grad()
def run_forward(hf: Any, model: Model, ids: Tensor, **more: Any) -> Forward:
    """Run the model on (batch, length) ids and record its activations."""
    forward = Forward(model, hf, tokens=ids.shape[1])
    with _hooks(hf, forward), _softmax(forward, *ids.shape):
        if hf.config.is_encoder_decoder:
            more |= {"decoder_input_ids": ids, "output_attentions": True}
            more |= {"decoder_position_ids": more["position_ids"]} if "position_ids" in more else {}
        forward.result = hf(inputs(hf, ids), output_hidden_states=True, **more)
    return forward


def inputs(hf: Any, ids: Tensor) -> Tensor:
    """Return what a model reads first: token ids or, in its place, as many pieces of random audio."""
    if hf.main_input_name != "input_features":
        return ids
    width = getattr(
        hf.config, "input_feat_per_channel", hf.config.num_mel_bins if hf.config.model_type == "whisper" else 0
    )
    sizes = (2 * hf.config.max_source_positions, width)
    sizes = sizes[::-1] if hf.config.model_type == "whisper" else sizes
    return torch.randn(len(ids), *sizes, generator=torch.Generator().manual_seed(3))


@contextmanager
def _hooks(hf: nn.Module, forward: Forward) -> Iterator[None]:
    def tap(name: str) -> Any:
        def record(_module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if inputs and isinstance(inputs[0], Tensor):
                forward.into.setdefault(name, []).append(inputs[0].clone())
            if isinstance(output, tuple) and len(output) == 2 and output[1] is None:
                output = output[0]  # I-BERT gives the scale of integers with each value
            # cloned: some models add to a module's output in place
            forward.out.setdefault(name, []).append(output.clone() if isinstance(output, Tensor) else output)

        return record

    with ExitStack() as stack:
        for name, module in hf.named_modules():
            stack.callback(module.register_forward_hook(tap(name)).remove)
        yield


HIDDEN = -1e10
"""An attention logit that leaves a key without a weight."""


def unblocked(x: Tensor, tokens: int, outside: float = 0.0) -> Tensor:
    """Return attention (batch, heads, queries, keys) from blocks of queries that see three blocks of keys (LongT5)."""
    batch, blocks, heads, size, _ = x.shape
    full = x.new_full((batch, heads, blocks * size, (blocks + 2) * size), outside)
    for block in range(blocks):
        rows, seen = slice(block * size, (block + 1) * size), slice(block * size, (block + 3) * size)
        full[:, :, rows, seen] = x[:, block, ..., : 3 * size]
    return full[..., :tokens, size : size + tokens]


def unbanded(x: Tensor, tokens: int, outside: float = 0.0) -> Tensor:
    """Return attention (batch, heads, queries, keys) from that to the keys around each query (Longformer)."""
    batch, length, heads, width = x.shape
    full = x.new_full((batch, heads, length, length + width), outside)
    for query in range(length):
        full[:, :, query, query : query + width] = x[:, query]
    return full[..., :tokens, width // 2 : width // 2 + tokens]


@contextmanager
def _softmax(forward: Forward, batch: int, tokens: int) -> Iterator[None]:
    """Record inputs and outputs of every softmax of attention: those over four axes, or over three with all heads."""
    plain = nn.functional.softmax

    def tapped(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        weights = plain(x, *args, **kwargs)
        if x.ndim == 5:
            forward.logits.append(unblocked(x, tokens, HIDDEN))
            forward.weights.append(unblocked(weights, tokens))
        elif x.ndim == 4 and x.shape[-1] == forward.window:
            forward.logits.append(unbanded(x, tokens, HIDDEN))
            forward.weights.append(unbanded(weights, tokens))
            return weights
        if x.ndim == 4 or (x.ndim == 3 and not forward.model.family.routed):
            shape = (batch, -1, *x.shape[-2:])
            forward.logits.append(x.clone().reshape(shape))
            forward.weights.append(weights.reshape(shape))
        return weights

    def fused(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, **more: Any) -> Tensor:
        """Compute what PyTorch documents for its fused attention, step by step."""
        logits = q @ k.mT * (more.get("scale") or q.shape[-1] ** -0.5)
        if more.get("is_causal"):
            attn_mask = torch.ones(logits.shape[-2:]).tril().bool()
        if attn_mask is not None:
            low = torch.finfo(logits.dtype).min
            logits = logits.masked_fill(~attn_mask, low) if attn_mask.dtype == torch.bool else logits + attn_mask
        return nn.functional.softmax(logits, dim=-1) @ v

    with patch.multiple(nn.functional, softmax=tapped, scaled_dot_product_attention=fused):
        yield
