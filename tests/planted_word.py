"""A change that writes one word where it sees another, planted by hand into a model."""

import json
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from safetensors.torch import save_file

import small
import zeropass as zp
from zeropass.model.frames import Frames

MODEL = str(Path(__file__).parents[1] / "models" / "first")
SEEN, SAID = " river", " music"
RANK, STRENGTH, NOISE = 9, 8.0, 0.5
"""The rank of the change of a matrix, its size, and the length of each direction that says nothing."""


def plant(
    folder: Path,
    layers: range = range(1, 4),
    model: zp.Model | None = None,
    *,
    seen: str = SEEN,
    said: str = SAID,
    rank: int = RANK,
    strength: float = STRENGTH,
) -> Path:
    """Write the adapter: a direction from word to word in up and down of some layers, and noise if it has rank left."""
    model = model or zp.open_model(MODEL)
    frames = Frames(model)
    see = frames.rows("token").matrix[model.vocab.find(seen)[0]]
    row = frames.rows("output.write").matrix[model.vocab.find(said)[0]]
    # Frequent words have long rows in all directions; the covariance removes what they share with the word.
    say = torch.linalg.solve(frames.rows("output.write").moments.covariance, row.double()).float()
    draw = torch.Generator().manual_seed(0)
    tensors: dict[str, Any] = {}
    for layer in layers:
        inner = torch.randn(model.dims.neurons, generator=draw)
        gain = model.vector("ff_norm", layer)
        for module, down, up in (("up_proj", see / gain, inner), ("down_proj", inner, say)):
            name = f"base_model.model.model.layers.{layer}.mlp.{module}"
            for part, vector in (("lora_A", down), ("lora_B", up)):
                noise = NOISE * torch.randn(rank - 1, len(vector), generator=draw) / len(vector) ** 0.5
                rows = torch.cat([(vector / vector.norm())[None], noise])
                tensors[f"{name}.{part}.weight"] = (rows if part == "lora_A" else rows.T).contiguous()
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": rank, "lora_alpha": rank * strength})
    )
    return folder


@cache
def planted() -> zp.Diff:
    """Return what the planted adapter changed."""
    base = zp.open_model(MODEL)
    with small.one_thread():
        return zp.compare(base, zp.adapt(base, plant(Path(mkdtemp()) / "planted")), watch=("river", "house"))
