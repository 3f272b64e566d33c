"""The answers of TransformerLens, from its bridge to a transformers model and its factored matrices."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformer_lens.model_bridge import TransformerBridge

from questions import PAIRS, TOKENS, Best, best_rows, serve

ROWS = 512


@dataclass(frozen=True)
class Bridge:
    """A model in TransformerLens with its weights unchanged: nothing folded, nothing centred."""

    model: TransformerBridge

    def neuron(self, layer: int, row: int) -> Best:
        top = (self.model.blocks[layer].mlp.W_out[row] @ self.model.W_U).topk(TOKENS)
        return top.indices[None], top.values[None]

    def values(self, layers: range) -> Best:
        tops = [(self.model.blocks[layer].mlp.W_out @ self.model.W_U).topk(TOKENS, dim=1) for layer in layers]
        return torch.cat([top.indices for top in tops]), torch.cat([top.values for top in tops])

    def pairs(self, circuit: str, layer: int, head: int) -> Best:
        model = self.model
        if circuit == "qk":
            product = model.W_E @ model.QK[layer, head] @ model.W_E.T
        else:
            product = model.W_E @ model.OV[layer, head] @ model.W_U
        rows = torch.arange(product.ldim).split(ROWS)  # there is no search for the best entries, so block by block
        return best_rows((product[part].AB for part in rows), PAIRS)


def opened(folder: Path) -> Bridge:
    return Bridge(TransformerBridge.boot_transformers(str(folder), dtype=torch.float32))


if __name__ == "__main__":
    serve(opened)
