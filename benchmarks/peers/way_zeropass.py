"""The answers of zeropass, in memory."""

from dataclasses import dataclass
from pathlib import Path

import torch

import zeropass as zp
from questions import PAIRS, TOKENS, Best, serve

ROWS = 512


@dataclass(frozen=True)
class Reader:
    """A model in zeropass."""

    lens: zp.Lens

    def neuron(self, layer: int, row: int) -> Best:
        (record,) = self.lens.explain(f"L{layer}.ff.{row}.value", frame="paper", tokens="all", k=TOKENS)
        return torch.tensor([[entry.id for entry in record.top]]), torch.tensor([[entry.score for entry in record.top]])

    def values(self, layers: range) -> Best:
        rows = self.lens.model.unembedding
        blocks = (part for layer in layers for part in self.lens.vectors(layer, "value").vectors.split(ROWS))
        tops = [(part @ rows.T).topk(TOKENS, dim=1) for part in blocks]
        return torch.cat([top.indices for top in tops]), torch.cat([top.values for top in tops])

    def pairs(self, circuit: str, layer: int, head: int) -> Best:
        top = zp.top_pairs(self.lens.head_map(f"L{layer}.attn.{head}.{circuit}", frame="paper"), PAIRS)
        return torch.stack((top.left, top.right)), top.scores


def opened(folder: Path) -> Reader:
    return Reader(zp.load(str(folder), lens=None))


if __name__ == "__main__":
    serve(opened)
