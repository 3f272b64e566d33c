"""Builds an atlas: first a list of jobs, then the jobs, then the tables over all of them.

Every job writes its files whole or not at all, and its mark in ``scratch`` last: a build that was stopped
at any moment continues with the first job that has no mark, and ends with the same bytes.
"""

from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from threading import Lock

import numpy as np
import torch

from zeropass._io.progress import Progress, silent
from zeropass.atlas import schema
from zeropass.atlas.budget import give_back, room_for_rows
from zeropass.atlas.jobs import Runner
from zeropass.atlas.plan import clear, identity, plan_jobs, prepare
from zeropass.atlas.schema import Job, Options, atlas_file, read_json, write_json
from zeropass.atlas.tables import write_parameters, write_token_index, write_tokens
from zeropass.errors import BadOption
from zeropass.model.identity import values_sha256
from zeropass.model.model import Model
from zeropass.numerics.parallel import ahead, behind, side_by_side
from zeropass.numerics.quantize import full_precision
from zeropass.tokens.undertrained import Judgement
from zeropass.tokens.vocabulary import VIEWS

__all__ = ["RunJobs", "build", "carry_out", "here", "kept_tokens"]


RunJobs = Callable[[Runner, list[Job], Callable[[str, int], None]], None]
"""Carries jobs out: `here`, or on a cluster."""


def here(runner: Runner, todo: list[Job], told: Callable[[str, int], None]) -> None:
    """Run jobs in this process: one on each core, unless memory is short or a GPU does the work.

    ``told`` hears the name of each that begins, and how many were begun before.
    """
    alone = runner.spaces.room is not None or runner.model.device.type != "cpu"
    (_one_by_one if alone else _side_by_side)(runner, todo, told)


def _side_by_side(runner: Runner, todo: list[Job], told: Callable[[str, int], None]) -> None:
    """A job that has a core to itself waits for no other thread, be it for a product or for a file."""
    uses, lock, begun = {job: runner.spaces_of(job) for job in todo}, Lock(), count()

    def run(job: Job) -> None:
        with lock:
            told(job.name, next(begun))
        runner.run(job)
        with lock:
            del uses[job]
            runner.spaces.keep_only(set().union(*uses.values()))

    side_by_side(run, todo)


def _one_by_one(runner: Runner, todo: list[Job], told: Callable[[str, int], None]) -> None:
    """What a job found is written while the next is at work, and on a GPU the one after that is read."""
    uses = [runner.spaces_of(job) for job in todo]
    # A GPU has nothing to do while the processor reads; with little memory one job's vectors are enough.
    reads = (ahead if runner.model.device.type != "cpu" else map)(runner.sets, todo)
    with behind() as take:
        for step, job in enumerate(todo):
            told(job.name, step)
            runner.spaces.keep_only(set().union(*uses[step:]))
            take(partial(runner.write, runner.look(job, next(reads))))


def build(
    model: Model,
    out: Path,
    options: Options,
    progress: Progress = silent,
    run: RunJobs = here,
    *,
    memory: int | None = None,
) -> bool:
    """Build the atlas of a model in ``out``, or continue one; False if it was complete already.

    ``run``: what carries the jobs out, this process unless told otherwise. ``memory``: bytes to
    get along with (`budget`); the atlas is the same.
    Raises BadAtlas if the folder holds something else or cannot be written, BadOption for roles, layers
    or frames that do not exist, and for less memory than the build takes.
    """
    jobs, room = plan_jobs(model, options), None
    if memory is not None:  # before anything is written, and so before it is known which tokens are hidden
        room = room_for_rows(Runner(model, out, options, jobs, torch.arange(model.dims.vocab)), memory)
        give_back()
    if not prepare(out, identity(model, options)):
        return False
    judgement = model.judgement
    runner = Runner(model, out, options, jobs, kept_tokens(model, options, judgement))
    runner.spaces.room = room
    carry_out(runner, judgement, progress, run)
    return True


@full_precision()
def carry_out(runner: Runner, judgement: Judgement, progress: Progress, run: RunJobs = here) -> None:
    """Run all jobs that are not done, in a folder that `prepare` made ready, and finish the atlas."""
    jobs = runner.jobs
    spaces = sorted(set().union(*(runner.spaces_of(job) for job in jobs)))
    total = len(spaces) + len(jobs) + 1
    for step, space in enumerate(spaces):
        progress(f"rows {space}", step, total)
        runner.spaces.write(runner.frames, space)
    runner.frames.model.forget()
    todo = [job for job in jobs if not runner.mark(job).exists()]
    begun = total - 1 - len(todo)
    run(runner, todo, lambda name, step: progress(name, begun + step, total))
    progress("tables", total - 1, total)
    runner.spaces.keep_only(set())
    _finish(runner, judgement)
    progress("done", total, total)


def kept_tokens(model: Model, options: Options, judgement: Judgement) -> torch.Tensor:
    """Ids of the tokens that the lists may show; BadOption for a view that hides them all."""
    kept = torch.from_numpy(np.flatnonzero(model.vocab.mask(options.tokens, *judgement))).to(model.device)
    if len(kept) == 0:
        raise BadOption(f"--tokens {options.tokens} hides every token of this vocabulary.")
    return kept


def _finish(runner: Runner, judgement: Judgement) -> None:
    """The tables over all jobs, and the manifest, which makes the atlas complete."""
    out, model = runner.out, runner.model
    parts = dict.fromkeys(runner.index(layer, role) for layer, role, _ in runner.bases)
    writes: list[Callable[[], int | None]] = [
        partial(write_token_index, out / schema.TOKEN_INDEX, runner.indexes, runner.kept),
        partial(write_tokens, out / schema.TOKENS, model.vocab, judgement),
        partial(write_parameters, out / schema.PARAMETERS, parts),
    ]
    _, _, lists = side_by_side(lambda write: write(), writes)
    with atlas_file(out / schema.TOKENIZER) as temporary:
        temporary.write_text(model.vocab.to_tokenizer_json(), encoding="utf-8")
    manifest = read_json(out / schema.PLAN) | {
        "lists": lists,
        "tokens_shown": len(runner.kept),
        "tokens_hidden": {view: model.vocab.hidden(view, *judgement) for view in VIEWS},
        "token_kind": model.vocab.kind,
        "uncased": model.vocab.uncased,
        "split_note": model.vocab.split_note,
    }
    if "change" not in manifest:  # of which no one model holds the values
        manifest |= {"title": model.title, "values_sha256": values_sha256(model)}
    write_json(out / schema.MANIFEST, manifest)
    clear(out)
