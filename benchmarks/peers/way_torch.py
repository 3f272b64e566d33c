"""A script of transformers and torch, as a user would write it: a layer at a time, a head map in blocks of rows."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from questions import PAIRS, TOKENS, Best, best_rows, serve

ROWS = 512


@dataclass(frozen=True)
class Script:
    """A Llama-like model of transformers."""

    model: PreTrainedModel

    def neuron(self, layer: int, row: int) -> Best:
        found = (self.model.lm_head.weight @ self.down(layer)[:, row]).topk(TOKENS)
        return found.indices[None], found.values[None]

    def values(self, layers: range) -> Best:
        found = [(self.down(layer).T @ self.model.lm_head.weight.T).topk(TOKENS, dim=1) for layer in layers]
        return torch.cat([one.indices for one in found]), torch.cat([one.values for one in found])

    def pairs(self, kind: str, layer: int, head: int) -> Best:
        left, right = self.factors(kind, layer, head)
        return best_rows((part @ right.T for part in left.split(ROWS)), PAIRS)

    def down(self, layer: int) -> Tensor:
        return self.model.model.layers[layer].mlp.down_proj.weight

    def factors(self, kind: str, layer: int, head: int) -> tuple[Tensor, Tensor]:
        """Both sides of a head map over the vocabulary, (V, d_h) each."""
        config, attention = self.model.config, self.model.model.layers[layer].self_attn
        width = config.head_dim
        group = config.num_attention_heads // config.num_key_value_heads
        own, shared = slice(head * width, (head + 1) * width), slice(head // group * width, (head // group + 1) * width)
        embedding, unembedding = self.model.model.embed_tokens.weight, self.model.lm_head.weight
        if kind == "qk":
            return embedding @ attention.q_proj.weight[own].T, embedding @ attention.k_proj.weight[shared].T
        return embedding @ attention.v_proj.weight[shared].T, unembedding @ attention.o_proj.weight[:, own]


def opened(folder: Path) -> Script:
    return Script(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))


if __name__ == "__main__":
    serve(opened)
