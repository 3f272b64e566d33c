"""The questions to every tool that reads weights, and its answers: from a process of its own, a line of JSON for each.

All questions are in the paper's frame, which any tool supports: raw products, nothing folded, every token shown. This
module runs in the environments of all tools, so it needs only torch and the standard library.
"""

import json
import resource
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

TOKENS, PAIRS = 20, 100
NEURON = (26, 1189)
LAYERS = range(24, 30)
HEADS = tuple((layer, layer % 9) for layer in range(0, 30, 6))
NAMES = ("neuron", "values", "vo", "qk")
"""The questions in order, the cheapest first: it times the first answer."""

Best = tuple[Tensor, Tensor]
"""Ids and scores, best first."""


class Way(Protocol):
    """A tool with an open model."""

    def neuron(self, layer: int, row: int) -> Best:
        """Return the tokens (1, TOKENS) that a feed-forward value vector promotes most: the top of ``U v``."""

    def values(self, layers: range) -> Best:
        """Return the same (n, TOKENS) for all value vectors of some layers."""

    def pairs(self, circuit: str, layer: int, head: int) -> Best:
        """Return ids (2, PAIRS) and scores (PAIRS,) of the top entries of ``E W_V W_O Uᵀ`` or ``E W_Q W_Kᵀ Eᵀ``."""


def answer(way: Way, name: str) -> Iterable[Best]:
    """Answer one question with lists of ids and scores, where a pair is one id."""
    if name == "neuron":
        return [way.neuron(*NEURON)]
    if name == "values":
        return [way.values(LAYERS)]
    maps = [way.pairs(name, layer, head) for layer, head in HEADS]
    return [((left << 32) + right, scores) for (left, right), scores in maps]


def serve(opened: Callable[[Path], Way], names: Iterable[str] = NAMES) -> None:
    """Open the model that the command line names and answer; without a model, which times the imports, return.

    A second argument names the last question.
    """
    if len(sys.argv) < 2:
        return
    torch.set_grad_enabled(False)
    way = opened(Path(sys.argv[1]))
    for name in names:
        forget_peak()
        started, before = time.perf_counter(), time.process_time()
        best = list(answer(way, name))
        seconds, busy = time.perf_counter() - started, time.process_time() - before
        ids, scores = ([row for part in side for row in _rows(part)] for side in zip(*best, strict=True))
        record = {"name": name, "seconds": seconds, "busy": busy, "peak": peak_mb(), "ids": ids, "scores": scores}
        print(json.dumps(record), flush=True)
        if sys.argv[2:] == [name]:
            return


def _rows(part: Tensor) -> list[list[float]]:
    rows: list[list[float]] = part.reshape(-1, part.shape[-1]).tolist()
    return rows


def forget_peak() -> None:
    """Set the high-water mark of memory to what is resident now (Linux; elsewhere the mark only rises)."""
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5", encoding="ascii")


def peak_mb() -> float:
    """Return the peak of resident memory since `forget_peak`, in MB."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    lines = status.read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def best_rows(blocks: Iterable[Tensor], k: int) -> Best:
    """Return ids (2, k) and scores (k,) of the largest entries of a matrix given in blocks of rows."""
    best, left, right, start = torch.empty(0), torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.long), 0
    for block in blocks:
        scores, columns = block.topk(k, dim=1)
        rows = torch.arange(start, start + len(block))[:, None].expand_as(columns)
        best, order = torch.cat((best, scores.flatten())).topk(k)
        left, right = torch.cat((left, rows.flatten()))[order], torch.cat((right, columns.flatten()))[order]
        start += len(block)
    return torch.stack((left, right)), best
