"""zeropass, in memory."""

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
        return torch.tensor([[one.id for one in record.top]]), torch.tensor([[one.score for one in record.top]])

    def values(self, layers: range) -> Best:
        rows = self.lens.model.unembedding
        blocks = (part for layer in layers for part in self.lens.vectors(layer, "value").vectors.split(ROWS))
        found = [(part @ rows.T).topk(TOKENS, dim=1) for part in blocks]
        return torch.cat([one.indices for one in found]), torch.cat([one.values for one in found])

    def pairs(self, kind: str, layer: int, head: int) -> Best:
        found = zp.top_pairs(self.lens.head_map(f"L{layer}.attn.{head}.{kind}", frame="paper"), PAIRS)
        return torch.stack((found.left, found.right)), found.scores


def opened(folder: Path) -> Reader:
    return Reader(zp.load(str(folder)))


if __name__ == "__main__":
    serve(opened)
