"""The answers of zeropass from an atlas on disk: both poles and z of every vector, and the inverted index of tokens."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import zeropass as zp
from questions import TOKENS, Best, serve


@dataclass(frozen=True)
class Builder:
    """A model to build atlases of."""

    model: zp.Model

    def neuron(self, layer: int, row: int) -> Best:
        raise NotImplementedError  # benchmarks/reading.py times the answers of a finished atlas

    def values(self, layers: range) -> Best:
        options = zp.Options(
            k=TOKENS, layers=(layers.start, layers.stop), roles=("value",), frames=("paper",), tokens="all"
        )
        with tempfile.TemporaryDirectory(prefix="zeropass-bench-") as folder:
            zp.build(self.model, Path(folder) / "atlas", options, lens=None)
            atlas = zp.open_atlas(Path(folder) / "atlas")
            lists = [
                row
                for layer in layers
                for row in atlas.query(
                    "SELECT top_ids, top_z, mean, std FROM read_parquet($file) ORDER BY id",
                    file=f"lists/L{layer}.value.parquet",
                )
            ]
        ids, z, mean, std = (np.array(column) for column in zip(*lists, strict=True))
        return torch.from_numpy(ids), torch.from_numpy(z * std[:, None] + mean[:, None])

    def pairs(self, circuit: str, layer: int, head: int) -> Best:
        raise NotImplementedError  # an atlas runs the same search as way_zeropass.py


def opened(folder: Path) -> Builder:
    return Builder(zp.open_model(str(folder)))


if __name__ == "__main__":
    serve(opened, ["values"])
