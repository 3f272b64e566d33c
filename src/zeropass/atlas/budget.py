"""The memory that a build takes, computed from sizes before it begins.

What is left of ``--memory`` may hold rows of tokens. In bytes, with V tokens to show, a stream of width d, k entries in
a list and heads of width d_h:

    process   400 MB + 500 for each token of the vocabulary: Python, torch, the tokenizer
    making    the matrices of the first block, 5 activations of a block of tokens, 4 matrices of 8 d²
    running   index     V (8 (k + 32) + 12) for each type of list
              threads   40 MB + 12 kB d for each thread, and one more that writes: what the allocator keeps
              maps      if head maps are built, for each of 128 columns of heads (or of one head's if these are more):
                        4 V for the scores, and 4 V for the factors of a chunk of key/value heads
              and, for the job that takes the most:
              moments   12 d² + 4096 d for each space of rows in use: what turns vectors, and a sample
              lens      10 d² + 40 V, if there is one: a map as it is stored, and in full precision; the factors of the
                        tokens in a relative frame, and the bounds of rows that are multiplied by them
              coherence 20 MB: the rows of the first tokens of some lists, and copies
              finds     96 k for each list, and the same for the job before, whose lists are written meanwhile
              vectors   4 n d for each set, and for the parameters that features are compared with; and the larger of
              reading   3 times the largest set: read, folded, scaled
              using     as much again for all sets, scaled, and the larger of
                        survey    40 d² while rows are prepared; 2 n (16 · 512 + 16 d) for each thread that surveys,
                                  n = 2²⁰ / d, 1024 at most
                        factor    4 · 4 V d_h while a factor is computed

The least memory is process + the larger of making and running. A space held in memory takes 4 V d for its rows and V d
for their quantized form (4 V d where that is multiplied as float32); both are mapped from a file if the space does not
fit. Without numba nothing is quantized: a block of scores, 4 · 512 V, and 4600 V while an index is merged replace the
survey.
"""

import ctypes
import re
from contextlib import suppress
from itertools import accumulate
from operator import or_

import torch

from zeropass.arch.roles import MAP_ROLES
from zeropass.atlas.jobs import COLUMNS, JUDGED, Runner, needed_roles
from zeropass.atlas.plan import list_frames, vector_roles
from zeropass.atlas.schema import Job
from zeropass.errors import BadOption
from zeropass.model.model import Model
from zeropass.numerics.top_k import SAMPLE, SCORES, passing_size

__all__ = ["least", "parse_size", "return_freed_memory", "room_for_rows"]

MERGING = 4600
"""Bytes for each token while an index is merged, as measured: a few copies of the keys of 128 vectors."""

RETURNED = 1 << 20
"""Size in bytes from which a freed block goes back to the system at once."""

KEPT = 40 * 10**6
"""Bytes that the allocator retains for each thread, as measured."""

TOKENS = 512
"""Number of tokens that pass through the first block at once."""

_UNITS = {"MB": 10**6, "GB": 10**9, "TB": 10**12, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def parse_size(text: str) -> int:
    """Return the bytes of a size such as ``4GB``, ``3500MB`` or ``1.5GiB``; raise BadOption for anything else.

    Example:
        >>> import zeropass as zp
        >>> zp.parse_size("4GB")
        4000000000
    """
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,6})?) ?([MGT]I?B)", text.strip().upper())
    if match is None:
        raise BadOption(f"--memory {text!r} is not a size; it looks like 4GB, 3500MB or 1.5GiB.")
    return int(float(match[1]) * _UNITS[match[2]])


def return_freed_memory() -> None:
    """Make glibc return blocks to the system when they are freed; do nothing with another C library.

    Once a block of up to 32 MB has been freed, glibc keeps such blocks in a heap for each thread, and these heaps
    fragment: half a GB of 4 GB is lost after one layer. Fresh blocks take longer to fill, about a twentieth of a build.
    """
    with suppress(OSError, AttributeError):  # Another C library, or one without this function.
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, RETURNED)


_MMAP_THRESHOLD = -3
"""``M_MMAP_THRESHOLD`` of malloc.h."""


def room_for_rows(runner: Runner, memory: int) -> int:
    """Return how many bytes of rows a build may hold in memory.

    Args:
        runner: The build.
        memory: Bytes that the build may take in all.

    Raises:
        BadOption: The build takes more than that even if it holds no rows, or it does not run on the processor.
    """
    if runner.model.device.type != "cpu":
        raise BadOption(f"--memory is for builds on the processor, not on {runner.model.device}.")
    needed = least(runner)
    if memory < needed:
        raise BadOption(
            f"--memory {memory / 1e6:,.0f}MB is too little for {runner.model.name}; with these options it takes "
            f"{-(-needed // 10**6)}MB at least."
        )
    return memory - needed


def least(runner: Runner) -> int:
    """Return the bytes that a build takes if it holds no rows, by the sums above."""
    process = 400 * 10**6 + 500 * runner.model.dims.vocab
    return process + max(_making_memory(runner.model), _running_memory(runner))


def _making_memory(model: Model) -> int:
    """Return the bytes that the first block takes while the rows of the tokens are computed."""
    dims = model.dims.at(0)
    heads, neurons = dims.heads + dims.kv_heads, sum(dims.mlps.sizes(0))
    block = dims.d * (heads * max(dims.head_dim, dims.value_dim) + len(model.family.ff_roles) * neurons)
    return 4 * block + 5 * 4 * TOKENS * (neurons + dims.d) + 4 * 8 * dims.d**2


def _running_memory(runner: Runner) -> int:
    """Return the bytes that the jobs take: what they share, and what the largest job takes."""
    tokens, d, jobs = len(runner.kept), runner.model.dims.d, runner.jobs
    list_types = {(runner.facts(layer, role).side, frame) for layer, role, frame in runner.bases}
    index = tokens * len(list_types) * (8 * (runner.options.k + 32) + 12)
    survey = passing_size(d) or tokens * (4 * SCORES + MERGING)
    head, maps = (
        max(map(runner.model.dims.most, ("head_dim", "value_dim"))),
        any(set(MAP_ROLES) & set(job.roles) for job in jobs),
    )
    columns = max(COLUMNS // head, 1) * head if maps else 0
    threads = (torch.get_num_threads() + 1) * (KEPT + 12_000 * d)
    using = max(survey, 4 * 4 * tokens * head if maps else 0)
    job_sizes = [
        (12 * d + SAMPLE) * d * spaces + _job_memory(runner, job, using)
        for job, spaces in zip(jobs, _spaces_at_once(runner), strict=True)
    ]
    return index + threads + 2 * 4 * columns * tokens + max(job_sizes, default=0)


def _spaces_at_once(runner: Runner) -> list[int]:
    """Return for each job how many spaces of rows are in use: by it or a job before, and by it or a job after."""
    uses = [frozenset(runner.spaces_of(job)) for job in runner.jobs]
    so_far, to_come = (list(accumulate(order, or_)) for order in (uses, reversed(uses)))
    return [len(before & after) for before, after in zip(so_far, reversed(to_come), strict=True)]


def _job_memory(runner: Runner, job: Job, using: int) -> int:
    """Return the bytes of a job's vectors, of what uses them (``using``), and of the lists of two jobs in a row."""
    model, options = runner.model, runner.options
    facts = {role: runner.facts(runner.model.layer_of(role, job.layer), role) for role in needed_roles(job)}
    sizes = [4 * model.dims.d * (each.count + each.compared) for each in facts.values()]
    lens = 10 * model.dims.d**2 + 40 * model.dims.vocab if runner.lens else 0
    lists = [facts[role].count * len(list_frames(facts[role], options)) for role in vector_roles(job)]
    return lens + 20 * JUDGED + sum(sizes) + max(3 * max(sizes), sum(sizes) + using) + 96 * options.k * sum(lists)
