"""What `zeropass diff` costs on SmolLM2-135M: an adapter, a whole fine-tune, and the atlas of a change, layer by layer.

Beside it the time of reading all weights of the base once, which nothing can do without. The whole fine-tune is a copy
of the model in float16, every block matrix moved by a thousandth of its size; it is written for the measurement.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

import zeropass as zp
from machine import machine

ROOT = Path(__file__).parent.parent
MOVED = 1e-3


def moved_copy(model: zp.Model, folder: Path) -> Path:
    """A folder as transformers has it, with all block matrices a little moved."""
    folder.mkdir()
    layout = next(layout for layout in model.family.layouts if layout.format == "hf")
    draw = torch.Generator().manual_seed(0)
    tensors = {}
    for what, stored in layout.tensors.items():
        for layer in range(model.dims.layers if "{layer}" in stored.name else 1):
            if not model.has(what):
                continue
            values = model.vector(what, layer) if model.is_vector(what) else model.matrix(what, layer)
            if "{layer}" in stored.name and values.ndim == 2:
                values = values + MOVED * values.std() * torch.randn(values.shape, generator=draw)
            name = stored.name.format(layer=layer)
            tensors[f"model.{name}"] = (values.T if stored.transpose else values).half().contiguous()
    save_file(tensors, folder / "model.safetensors")
    dims = model.dims
    settings = {
        "model_type": "llama",
        "num_hidden_layers": dims.layers,
        "hidden_size": dims.d,
        "num_attention_heads": dims.heads,
        "num_key_value_heads": dims.kv_heads,
        "head_dim": dims.head_dim,
        "intermediate_size": dims.neurons,
        "vocab_size": dims.vocab,
        "rms_norm_eps": dims.eps,
        "hidden_act": dims.activation,
        "tie_word_embeddings": dims.tied,
        "rope_theta": dims.rope.theta if dims.rope else 10000.0,
    }
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "tokenizer.json").write_text(model.vocab.to_tokenizer_json(), encoding="utf-8")
    return folder


def cost(*arguments: str) -> tuple[float, float]:
    """Seconds and peak resident megabytes of a command; of all children so far, so the cheaper goes first."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "zeropass.cli", *arguments], check=True, capture_output=True)
    return time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=2, help="layers of the atlas that is timed")
    layers = parser.parse_args().layers
    model = zp.open_model("smollm2-135m")
    started = time.perf_counter()
    for layer in range(model.dims.layers):
        for role in ("gate", "up", "value", "q", "k", "v", "o"):
            model.matrix(role, layer)
    bare = time.perf_counter() - started
    print(f"zeropass diff on SmolLM2-135M ({machine()})\n")
    print("| what | seconds | times reading the base's blocks | peak, MB |")
    print("|---|---:|---:|---:|")
    coach = ["--adapter", str(ROOT / "models" / "tunes" / "coach")]
    with tempfile.TemporaryDirectory(prefix="zeropass-bench-") as folder:
        tuned = moved_copy(model, Path(folder) / "tuned")
        model.forget()
        atlas = ["--build", "--layers", f"0:{layers}", "--out", str(Path(folder) / "out")]
        for what, arguments in (
            ("an adapter (rank 1, all matrices)", coach),
            ("a whole fine-tune (float16)", [str(tuned)]),
            (f"an adapter, with the atlas of {layers} layers", [*coach, *atlas]),
        ):
            seconds, peak = cost("diff", "smollm2-135m", *arguments)
            print(f"| {what} | {seconds:.1f} | {seconds / bare:.1f} | {peak:,.0f} |", flush=True)
    print()


if __name__ == "__main__":
    main()
