"""What a build takes in memory, told from sizes before it begins; what is left of ``--memory`` may hold rows of tokens.

In bytes, with V tokens to show, a stream d wide, k entries a list and heads d_h wide:

    process   400 MB + 500 a token of the vocabulary: Python, torch, the tokenizer
    making    the first block's matrices, 5 activations of a block of tokens, 4 matrices of 8 d²
    running   index      V (8 (k + 32) + 12) a kind of list
              threads   40 MB and 12 kB d each, and for one that writes: what the allocator keeps of moments of vectors
              maps      if maps of heads are built, of columns of heads, 128 or those of one head if they are more:
                        4 V each for their scores, and for the factors of a chunk of key/value heads
              and of the job that takes the most
              moments   12 d² + 4096 d a space of rows that was used and will be: what turns vectors, and a sample
              finds     96 k a list, and those of the job before, which are written meanwhile
              vectors   4 n d of each set, and the larger of
              reading   3 times the largest set: read, folded, scaled
              using     as much again for all sets, scaled, and the larger of
                        looking   40 d² while rows are made ready; 2 n (16 · 512 + 16 d) for each thread that looks,
                                  n = 2²⁰ / d, 1024 at most
                        factor    4 · 4 V d_h while one is made

The least is process + the larger of making and running. Each space that is held takes 4 V d, and V d as whole numbers
(4 V d where these are multiplied as float32); of one that does not fit both are mapped from a file. Without numba
nothing is rounded, and a block of scores, 4 · 512 V, and 4600 V while index are merged stand in the place of looking.
"""

import ctypes
import re
from contextlib import suppress
from itertools import accumulate
from operator import or_

import torch

from zeropass.arch.spec import MAP_ROLES
from zeropass.atlas.jobs import COLUMNS, Runner, needed_roles
from zeropass.atlas.plan import list_frames, vector_roles
from zeropass.atlas.schema import Job
from zeropass.errors import BadOption
from zeropass.model.model import Model
from zeropass.model.vectors import count_of, kind_of
from zeropass.numerics.top_k import SAMPLE, SCORES, passing_size

__all__ = ["give_back", "least", "parse_size", "room_for_rows"]

MERGING = 4600
"""Bytes a token while index are merged, as measured: some copies of the keys of 128 vectors."""

RETURNED = 1 << 20
"""Bytes from which on a block that is freed goes back to the system at once."""

KEPT = 40 * 10**6
"""Bytes that the allocator keeps for each thread, as measured."""

TOKENS = 512
"""Tokens that go through the first block at once."""

_UNITS = {"MB": 10**6, "GB": 10**9, "TB": 10**12, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def parse_size(text: str) -> int:
    """Bytes of a size such as ``4GB``, ``3500MB`` or ``1.5GiB``; BadOption for anything else."""
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,6})?) ?([MGT]I?B)", text.strip().upper())
    if found is None:
        raise BadOption(f"--memory {text!r} is not a size; it looks like 4GB, 3500MB or 1.5GiB.")
    return int(float(found[1]) * _UNITS[found[2]])


def give_back() -> None:
    """Have glibc give blocks back to the system when they are freed; elsewhere the allocator does as it likes.

    It keeps blocks of up to 32 MB once one of these has been freed, in a heap for each thread, which fall to pieces: of
    4 GB, half a GB after a layer. Fresh blocks take longer to fill, about a twentieth of a build.
    """
    with suppress(OSError, AttributeError):  # no such C library, or no such function in it
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, RETURNED)


_MMAP_THRESHOLD = -3
"""M_MMAP_THRESHOLD of malloc.h."""


def room_for_rows(runner: Runner, memory: int) -> int:
    """How many bytes of rows a build may hold, of all the memory that it may take.

    Raises BadOption, with the least that would do, for less than a build takes without any.
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
    """The memory of a build that holds no rows, in bytes, by the sums above."""
    process = 400 * 10**6 + 500 * runner.model.dims.vocab
    return process + max(_making(runner.model), _running(runner))


def _making(model: Model) -> int:
    dims, heads = model.dims, model.dims.heads + model.dims.kv_heads
    block = dims.d * (heads * dims.head_dim + len(model.family.ff_roles) * dims.neurons)
    return 4 * block + 5 * 4 * TOKENS * (dims.neurons + dims.d) + 4 * 8 * dims.d**2


def _running(runner: Runner) -> int:
    tokens, d, jobs = len(runner.kept), runner.model.dims.d, runner.jobs
    kinds = {(kind_of(runner.model, layer, role)[0], frame) for layer, role, frame in runner.bases}
    index = tokens * len(kinds) * (8 * (runner.options.k + 32) + 12)
    looking = passing_size(d) or tokens * (4 * SCORES + MERGING)
    head, maps = runner.model.dims.head_dim, any(set(MAP_ROLES) & set(job.roles) for job in jobs)
    columns = max(COLUMNS // head, 1) * head if maps else 0
    threads = (torch.get_num_threads() + 1) * (KEPT + 12_000 * d)
    using = max(looking, 4 * 4 * tokens * head if maps else 0)
    own = [
        (12 * d + SAMPLE) * d * spaces + _own(runner, job, using)
        for job, spaces in zip(jobs, _spaces_at_once(runner), strict=True)
    ]
    return index + threads + 2 * 4 * columns * tokens + max(own, default=0)


def _spaces_at_once(runner: Runner) -> list[int]:
    """How many spaces of rows each job finds or makes, and some job from then on uses."""
    uses = [frozenset(runner.spaces_of(job)) for job in runner.jobs]
    so_far, to_come = (list(accumulate(some, or_)) for some in (uses, reversed(uses)))
    return [len(before & after) for before, after in zip(so_far, reversed(to_come), strict=True)]


def _own(runner: Runner, job: Job, using: int) -> int:
    """Vectors of a job and what takes part in ``using`` them; and its lists, and those of the one before."""
    model, options, layer = runner.model, runner.options, job.layer
    sizes = [4 * model.dims.d * count_of(model, layer, role) for role in needed_roles(job)]
    lists = [count_of(model, layer, role) * len(list_frames(model, options, layer, role)) for role in vector_roles(job)]
    return sum(sizes) + max(3 * max(sizes), sum(sizes) + using) + 96 * options.k * sum(lists)
