"""Builds and lenses of models that are larger than the memory allowed: their cost, and how it grows with the shape.

    python benchmarks/memory.py [--limit 4GB] [--folder DIR] [--only llama-7b,gemma-2b,curve,lens] [--layers A:B]
                                [--roles ROLES] [--keep]

Models of random weights are written to a folder (sharded safetensors in bfloat16, about 6 GB each). The command builds
some of their layers under the limit (``--memory``), in a cgroup of that much memory where one can be made. The peak of
resident memory is measured either way; the run fails where it exceeds the limit.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from machine import machine
from zeropass.atlas.budget import parse_size

CGROUPS = Path("/sys/fs/cgroup")
EVERY = 0.02
"""Seconds between two readings of resident memory."""


@dataclass(frozen=True)
class Shape:
    """The dimensions and the family of a model."""

    family: str
    layers: int
    d: int
    neurons: int
    vocab: int
    heads: int
    kv_heads: int
    head_dim: int

    @property
    def config(self) -> dict[str, object]:
        """The contents of config.json."""
        return {
            "model_type": self.family,
            "num_hidden_layers": self.layers,
            "hidden_size": self.d,
            "intermediate_size": self.neurons,
            "vocab_size": self.vocab,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "tie_word_embeddings": self.family == "gemma2",
            "torch_dtype": "bfloat16",
        } | (_GEMMA if self.family == "gemma2" else {"hidden_act": "silu"})


_GEMMA = {
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "sliding_window": 4096,
}

LARGE = {
    "llama-7b": (Shape("llama", 12, 4096, 11_008, 32_000, 32, 32, 128), "0:2"),
    "gemma-2b": (Shape("gemma2", 26, 2304, 9_216, 256_000, 8, 4, 256), "0:2"),
}
"""Shapes, with the number of layers in their files, and the layers that are built."""

SMALL = Shape("llama", 2, 512, 1024, 8192, 8, 8, 64)
DOUBLED = {"d": 512, "neurons": 1024, "vocab": 32_768, "layers": 2}
"""The dimensions that are doubled twice, and their first values. With few tokens, fixed costs would dominate."""

DEEP = Shape("llama", 8, 1024, 4096, 8192, 16, 16, 64)
"""The shape whose lens is calibrated at this depth, at twice and at four times as many layers."""


# --- Models of random weights --------------------------------------------------------------------------------


def write_model(shape: Shape, folder: Path, seed: int = 0, device: torch.device | str = "cpu") -> int:
    """Write a model, drawn on a device, in one shard for each layer and one for the rest; return its size in bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = torch.Generator(device).manual_seed(seed)
    index: dict[str, str] = {}
    for number, tensors in enumerate(_shards(shape, rng)):
        name = f"model-{number:05}-of-{shape.layers + 1:05}.safetensors"
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / name)
        index |= dict.fromkeys(tensors, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (folder / "config.json").write_text(json.dumps(shape.config))
    (folder / "tokenizer.json").write_text(_tokenizer(shape.vocab))
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _shards(shape: Shape, rng: torch.Generator) -> Iterator[dict[str, Tensor]]:
    def matrix(rows: int, columns: int) -> Tensor:
        return (torch.randn(rows, columns, generator=rng, device=rng.device) * columns**-0.5).bfloat16()

    def heads(count: int) -> Tensor:
        """Draw vectors of heads that decay within each head as 1 / i: a flat head has no clear top pairs."""
        decay = 1 / torch.arange(1, shape.head_dim + 1, device=rng.device)
        return matrix(count * shape.head_dim, shape.d) * decay.repeat(count)[:, None].bfloat16()

    def gain() -> Tensor:
        return ((shape.family != "gemma2") + 0.1 * torch.randn(shape.d, generator=rng, device=rng.device)).bfloat16()

    sizes = (0.3 * torch.randn(shape.vocab, 1, generator=rng, device=rng.device)).exp().bfloat16()
    outer = {"model.embed_tokens.weight": matrix(shape.vocab, shape.d) * sizes, "model.norm.weight": gain()}
    yield outer if shape.family == "gemma2" else outer | {"lm_head.weight": matrix(shape.vocab, shape.d) * sizes}
    norms = ["input_layernorm", "post_attention_layernorm"]
    norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"] if shape.family == "gemma2" else []
    for layer in range(shape.layers):
        tensors = {f"{name}.weight": gain() for name in norms}
        for name, count in (("q", shape.heads), ("k", shape.kv_heads), ("v", shape.kv_heads)):
            tensors[f"self_attn.{name}_proj.weight"] = heads(count)
        tensors["self_attn.o_proj.weight"] = heads(shape.heads).T
        tensors["mlp.gate_proj.weight"] = matrix(shape.neurons, shape.d)
        tensors["mlp.up_proj.weight"] = matrix(shape.neurons, shape.d)
        tensors["mlp.down_proj.weight"] = matrix(shape.d, shape.neurons)
        yield {f"model.layers.{layer}.{name}": tensor for name, tensor in tensors.items()}


def _tokenizer(size: int) -> str:
    """Return a byte-level tokenizer of 256 bytes and then words of letters."""
    names = sorted(pre_tokenizers.ByteLevel.alphabet())
    names += ["Ġ" + _word(number) for number in range(size - len(names))]
    tokenizer = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    return tokenizer.to_str()


def _word(number: int) -> str:
    letters = ""
    for _ in range(4):
        number, at = divmod(number, 26)
        letters = chr(ord("a") + at) + letters
    return letters


# --- Measured processes --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Usage:
    """The resources of a process.

    Attributes:
        processor: Processor time, in seconds.
        resident: The peak of all resident pages, in MB.
        allocated: The peak of pages that the process allocated, in MB.
        files: The peak of pages of mapped files, in MB.
    """

    processor: float
    resident: float
    allocated: float
    files: float


def run(command: list[str], limit: int | None = None) -> Usage:
    """Run a command to its end, in a cgroup of ``limit`` bytes if one can be made; exit if it fails."""
    with _cgroup(limit) as cgroup:

        def confined() -> None:
            if cgroup is not None:
                (cgroup / "cgroup.procs").write_text(str(os.getpid()))

        peaks = dict.fromkeys(_PEAKS, 0)
        child = subprocess.Popen(command, preexec_fn=confined, stdout=subprocess.DEVNULL)
        finished = 0
        while not finished:
            for name, size in _resident(child.pid).items():
                peaks[name] = max(peaks[name], size)
            time.sleep(EVERY)
            finished, status, usage = os.wait4(child.pid, os.WNOHANG)
    if status:
        sys.exit(f"{' '.join(command)} failed with status {os.waitstatus_to_exitcode(status)}")
    return Usage(usage.ru_utime + usage.ru_stime, *(size / 1e6 for size in peaks.values()))


_PEAKS = ("VmHWM:", "RssAnon:", "RssFile:")


def _resident(process: int) -> dict[str, int]:
    """Return the resident bytes of a process: the peak so far, and those allocated and those of files now.

    `wait4` is of no use here: its count includes the parent's pages from before the command replaced them.
    """
    with suppress(OSError):
        fields = (line.split() for line in Path(f"/proc/{process}/status").read_text().splitlines())
        return {words[0]: int(words[1]) * 1024 for words in fields if words[0] in _PEAKS}
    return {}


@contextmanager
def _cgroup(limit: int | None) -> Iterator[Path | None]:
    """Make a cgroup (version 2) of ``limit`` bytes of memory without swap; yield None where none can be made."""
    group, controllers = CGROUPS / f"zeropass-{os.getpid()}", CGROUPS / "cgroup.subtree_control"
    created = None
    if limit and controllers.exists() and "memory" in controllers.read_text().split():
        with suppress(OSError):
            group.mkdir()
            (group / "memory.max").write_text(str(limit))
            (group / "memory.swap.max").write_text("0")
            created = group
    try:
        yield created
    finally:
        with suppress(OSError):
            group.rmdir()


def build(model: Path, out: Path, options: list[str]) -> list[str]:
    """Return the command that builds."""
    return [sys.executable, "-m", "zeropass", "build", str(model), "--out", str(out), "--lens", "none", *options]


# --- Tables --------------------------------------------------------------------------------------------------


def large(names: list[str], folder: Path, arguments: argparse.Namespace) -> None:
    """Build layers of the large models, each under the limit, and print their cost."""
    limit, size = arguments.limit, parse_size(arguments.limit)
    with _cgroup(size) as cgroup:
        print(f"Limit {limit}, {'held by a cgroup' if cgroup else 'measured: no cgroup can be made here'}.\n")
    print("| model | file | built | processor time | peak resident | of it allocated | of it mapped files |")
    print("|---|---:|---|---:|---:|---:|---:|")
    for name in names:
        shape, layers = LARGE[name]
        options = ["--layers", arguments.layers or layers, *(["--roles", arguments.roles] if arguments.roles else [])]
        model, out = folder / name, folder / f"{name}-atlas"
        total = sum(file.stat().st_size for file in model.glob("*.safetensors")) or write_model(shape, model)
        usage = run(build(model, out, ["--memory", limit, *options]), size)
        shutil.rmtree(out)
        if not arguments.keep:
            shutil.rmtree(model)
        peaks = f"{usage.resident:,.0f} MB | {usage.allocated:,.0f} MB | {usage.files:,.0f} MB"
        text = " ".join(options)
        print(f"| {name} | {total / 1e9:.1f} GB | `{text}` | {usage.processor:,.0f} s | {peaks} |", flush=True)
        if usage.resident * 1e6 > size:
            sys.exit(f"{name}: {usage.resident:,.0f} MB were resident, more than {limit}")
    print()


def curve(folder: Path) -> None:
    """Build small models of doubled dimensions, and print how processor time and the peak grow with each."""
    idle = run([sys.executable, "-c", "import zeropass.cli.main, zeropass.atlas.build"])
    first = _small(SMALL, folder, idle)
    print(f"Small models: {SMALL}; a Python that has loaded all of it ({idle.resident:,.0f} MB) is taken off.\n")
    print("| size | processor time at 1, 2, 4 times | growth | peak, MB | growth |")
    print("|---|---|---:|---|---:|")
    for name, start in DOUBLED.items():
        shapes = [replace(SMALL, **{name: start * factor}) for factor in (1, 2, 4)]
        usages = [first if shape == SMALL else _small(shape, folder, idle) for shape in shapes]
        times, peaks = [usage.processor for usage in usages], [usage.resident for usage in usages]
        time_cells = ", ".join(f"{seconds:.1f}" for seconds in times) + f" s | {_growth(times)}"
        peak_cells = ", ".join(f"{megabytes:,.0f}" for megabytes in peaks) + f" | {_growth(peaks)}"
        print(f"| {name} {start:,} | {time_cells} | {peak_cells} |", flush=True)
    print("\nGrowth: what the second doubling adds, over what the first adds. 2 is linear, 4 quadratic.\n")


def lens(folder: Path) -> None:
    """Calibrate models of doubled depth on random tokens, and print the peak beside the size of their weights."""
    print("| layers | weights in single precision | maps of the lens | processor time | peak resident |")
    print("|---:|---:|---:|---:|---:|")
    for factor in (1, 2, 4):
        model, out = folder / "deep", folder / "deep-lens"
        size = write_model(replace(DEEP, layers=DEEP.layers * factor), model)
        options = ["--source", "random", "--tokens", "1024", "--out", str(out)]
        usage = run([sys.executable, "-m", "zeropass", "calibrate", str(model), *options])
        sizes = f"{2 * size / 1e6:,.0f} MB | {(out / 'lens.safetensors').stat().st_size / 1e6:,.0f} MB"
        print(f"| {DEEP.layers * factor} | {sizes} | {usage.processor:,.0f} s | {usage.resident:,.0f} MB |", flush=True)
        shutil.rmtree(model)
        shutil.rmtree(out)
    print()


def _small(shape: Shape, folder: Path, idle: Usage) -> Usage:
    model, out = folder / "small", folder / "small-atlas"
    write_model(shape, model)
    usage = run(build(model, out, []))
    shutil.rmtree(model)
    shutil.rmtree(out)
    return replace(usage, processor=usage.processor - idle.processor, resident=usage.resident - idle.resident)


def _growth(values: list[float]) -> str:
    """Return what the second doubling adds over what the first added; a dash if it is below a tenth of the total."""
    first, second = (b - a for a, b in pairwise(values))
    return "–" if second < 0.1 * values[-1] or first <= 0 else f"{second / first:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", default="4GB", help="what a build of a large model may take")
    parser.add_argument("--folder", type=Path, help="where to write the models (12 GB); a temporary folder otherwise")
    parser.add_argument("--only", default="llama-7b,gemma-2b,curve,lens")
    parser.add_argument("--layers", help="build these layers of the large models, A:B, and not the usual ones")
    parser.add_argument("--roles", help="build only these roles of the large models; all otherwise, which takes long")
    parser.add_argument("--keep", action="store_true", help="keep the models, and use those that are there")
    options = parser.parse_args()
    parts = options.only.split(",")
    folder = (
        Path(tempfile.mkdtemp(prefix="zeropass-memory-", dir=options.folder)) if not options.keep else options.folder
    )
    print(f"Larger than memory ({machine()})\n")
    try:
        if names := [name for name in LARGE if name in parts]:
            large(names, folder, options)
        if "curve" in parts:
            curve(folder)
        if "lens" in parts:
            lens(folder)
    finally:
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
