"""The naive way: every product whole, 9.7 GB for a head map of 49,152 tokens, then its best entries."""

from pathlib import Path

import torch

import way_torch
from questions import PAIRS, TOKENS, Best, best_rows, serve


class Whole(way_torch.Script):
    """The same weights, multiplied out."""

    def values(self, layers: range) -> Best:
        vectors = torch.cat([self.down(layer).T for layer in layers])
        found = (vectors @ self.model.lm_head.weight.T).topk(TOKENS, dim=1)
        return found.indices, found.values

    def pairs(self, kind: str, layer: int, head: int) -> Best:
        left, right = self.factors(kind, layer, head)
        return best_rows([left @ right.T], PAIRS)  # topk over all entries as one list would take another 39 GB


def opened(folder: Path) -> Whole:
    return Whole(way_torch.opened(folder).model)


if __name__ == "__main__":
    serve(opened)
