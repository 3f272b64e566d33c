"""The naive answers: every product in full, 9.7 GB for a head map of 49,152 tokens, and then its best entries."""

from pathlib import Path

import torch

import way_torch
from questions import PAIRS, TOKENS, Best, best_rows, serve


class FullMatrices(way_torch.Script):
    """The same weights, fully multiplied out."""

    def values(self, layers: range) -> Best:
        vectors = torch.cat([self.down(layer).T for layer in layers])
        top = (vectors @ self.model.lm_head.weight.T).topk(TOKENS, dim=1)
        return top.indices, top.values

    def pairs(self, circuit: str, layer: int, head: int) -> Best:
        left, right = self.factors(circuit, layer, head)
        return best_rows([left @ right.T], PAIRS)  # topk over all entries as one list would take another 39 GB


def opened(folder: Path) -> FullMatrices:
    return FullMatrices(way_torch.opened(folder).model)


if __name__ == "__main__":
    serve(opened)
