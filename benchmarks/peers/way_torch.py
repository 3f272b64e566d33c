"""The answers of transformers and torch, as a user would script them: layer by layer, head maps in blocks of rows."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from questions import PAIRS, TOKENS, Best, best_rows, serve

ROWS = 512


@dataclass(frozen=True)
class Script:
    """A Llama-like model in transformers."""

    model: PreTrainedModel

    def neuron(self, layer: int, row: int) -> Best:
        top = (self.model.lm_head.weight @ self.down(layer)[:, row]).topk(TOKENS)
        return top.indices[None], top.values[None]

    def values(self, layers: range) -> Best:
        tops = [(self.down(layer).T @ self.model.lm_head.weight.T).topk(TOKENS, dim=1) for layer in layers]
        return torch.cat([top.indices for top in tops]), torch.cat([top.values for top in tops])

    def pairs(self, circuit: str, layer: int, head: int) -> Best:
        left, right = self.factors(circuit, layer, head)
        return best_rows((part @ right.T for part in left.split(ROWS)), PAIRS)

    def down(self, layer: int) -> Tensor:
        return self.model.model.layers[layer].mlp.down_proj.weight

    def factors(self, circuit: str, layer: int, head: int) -> tuple[Tensor, Tensor]:
        """Return both sides of a head map over the vocabulary, (V, d_h) each."""
        config, attention = self.model.config, self.model.model.layers[layer].self_attn
        width = config.head_dim
        group = config.num_attention_heads // config.num_key_value_heads
        rows = slice(head * width, (head + 1) * width)
        group_rows = slice(head // group * width, (head // group + 1) * width)
        embedding, unembedding = self.model.model.embed_tokens.weight, self.model.lm_head.weight
        if circuit == "qk":
            return embedding @ attention.q_proj.weight[rows].T, embedding @ attention.k_proj.weight[group_rows].T
        return embedding @ attention.v_proj.weight[group_rows].T, unembedding @ attention.o_proj.weight[:, rows]


def opened(folder: Path) -> Script:
    return Script(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))


if __name__ == "__main__":
    serve(opened)
