"""TransformerLens: its bridge to a model of transformers, and its factored matrices."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformer_lens.model_bridge import TransformerBridge

from questions import PAIRS, TOKENS, Best, best_rows, serve

ROWS = 512


@dataclass(frozen=True)
class Bridge:
    """A model in TransformerLens, its weights as they are: nothing folded, nothing centred."""

    model: TransformerBridge

    def neuron(self, layer: int, row: int) -> Best:
        found = (self.model.blocks[layer].mlp.W_out[row] @ self.model.W_U).topk(TOKENS)
        return found.indices[None], found.values[None]

    def values(self, layers: range) -> Best:
        found = [(self.model.blocks[layer].mlp.W_out @ self.model.W_U).topk(TOKENS, dim=1) for layer in layers]
        return torch.cat([one.indices for one in found]), torch.cat([one.values for one in found])

    def pairs(self, kind: str, layer: int, head: int) -> Best:
        model = self.model
        if kind == "qk":
            circuit = model.W_E @ model.QK[layer, head] @ model.W_E.T
        else:
            circuit = model.W_E @ model.OV[layer, head] @ model.W_U
        rows = torch.arange(circuit.ldim).split(ROWS)  # it has no search for the best entries, so block by block
        return best_rows((circuit[part].AB for part in rows), PAIRS)


def opened(folder: Path) -> Bridge:
    return Bridge(TransformerBridge.boot_transformers(str(folder), dtype=torch.float32))


if __name__ == "__main__":
    serve(opened)
