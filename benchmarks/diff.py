"""The cost of `zeropass diff` on SmolLM2-135M-Instruct (Q4_1): an adapter, a fine-tune, and the atlas of a change.

The unit is the time of reading all weights of the base once, which no comparison can avoid. The full fine-tune is a
copy of the model in float16, written for the run, with noise of a thousandth of its deviation in every block matrix.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor

import zeropass as zp
from copies import write_folder
from machine import called, machine
from recorded import Ratio, add_record, report

ROOT = Path(__file__).parent.parent
NOISE = 1e-3


def moved_copy(model: zp.Model, folder: Path) -> Path:
    """Write a folder as transformers has it, with a little noise in all block matrices."""
    rng = torch.Generator().manual_seed(0)

    def add_noise(values: Tensor) -> Tensor:
        return values + NOISE * values.std() * torch.randn(values.shape, generator=rng)

    return write_folder(model, folder, torch.float16, add_noise)


def cost(*arguments: str) -> tuple[float, float]:
    """Return the seconds and peak resident MB of a command.

    The peak is that of all children so far, so the cheaper command goes first.
    """
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "zeropass", *arguments], check=True, capture_output=True)
    return time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=2, help="layers of the atlas that is timed")
    add_record(parser)
    options = parser.parse_args()
    layers = options.layers
    model = zp.open_model("smollm2-135m")
    started = time.perf_counter()
    for layer in range(model.dims.layers):
        for role in ("gate", "up", "value", "q", "k", "v", "o"):
            model.matrix(role, layer)
    bare = time.perf_counter() - started
    print(f"zeropass diff on {called('smollm2-135m')} ({machine()})\n")
    print("| what | seconds | times reading the base's blocks | peak, MB |")
    print("|---|---:|---:|---:|")
    coach = ["--adapter", str(ROOT / "models" / "tunes" / "coach")]
    ratios = []
    with tempfile.TemporaryDirectory(prefix="zeropass-bench-") as folder:
        tuned = moved_copy(model, Path(folder) / "tuned")
        model.forget()
        atlas = ["--build", "--layers", f"0:{layers}", "--out", str(Path(folder) / "out")]
        for label, arguments in (
            ("an adapter (rank 1, all matrices)", coach),
            ("a whole fine-tune (float16)", [str(tuned)]),
            (f"an adapter, with the atlas of {layers} layers", [*coach, *atlas]),
        ):
            seconds, peak = cost("diff", "smollm2-135m", *arguments)
            print(f"| {label} | {seconds:.1f} | {seconds / bare:.1f} | {peak:,.0f} |", flush=True)
            ratios.append(Ratio(f"diff of smollm2-135m: {label}", seconds / bare, "readings of the base", "less"))
    print()
    report(ratios, options.record)


if __name__ == "__main__":
    main()
