"""Build an atlas: plan the jobs, run them, and write the tables over all of them.

Every job writes its files atomically and its mark in ``scratch`` last. A build that was stopped at any moment
continues with the first job that has no mark, and ends with the same bytes.
"""

from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch

from zeropass._io.progress import Progress, callback, shows_progress
from zeropass.atlas import schema
from zeropass.atlas.budget import return_freed_memory, room_for_rows
from zeropass.atlas.features import FeatureRunner, dictionary_facts, plan_features
from zeropass.atlas.jobs import Runner
from zeropass.atlas.plan import clear, identity, plan_jobs, prepare, resolve
from zeropass.atlas.schema import Job, Options, atlas_file, read_json, write_json
from zeropass.atlas.tables import write_all_coherence, write_parameters, write_token_index, write_tokens
from zeropass.errors import BadOption
from zeropass.model.dictionaries import Dictionary, open_dictionary
from zeropass.model.identity import values_sha256
from zeropass.model.lens_maps import LensMaps, chosen_lens, copy_lens
from zeropass.model.model import Model
from zeropass.model.opening import ModelLike, open_model
from zeropass.numerics.parallel import ahead, behind, side_by_side
from zeropass.numerics.quantize import full_precision
from zeropass.tokens.shown import VIEWS
from zeropass.tokens.undertrained import Judgement

__all__ = ["RunJobs", "build", "carry_out", "kept_tokens", "run_in_process"]


RunJobs = Callable[[Runner, list[Job], Callable[[str, int], None]], None]
"""A function that runs jobs: `run_in_process`, or one that runs them on a cluster."""


def run_in_process(runner: Runner, todo: list[Job], report: Callable[[str, int], None]) -> None:
    """Run jobs in this process: one on each core, unless memory is limited or a GPU does the work.

    Args:
        runner: The build.
        todo: The jobs to run.
        report: Called with the name of each job that starts, and how many started before it.
    """
    in_order = runner.spaces.room is not None or runner.model.device.type != "cpu"
    (_run_in_order if in_order else _run_in_parallel)(runner, todo, report)


def _run_in_parallel(runner: Runner, todo: list[Job], report: Callable[[str, int], None]) -> None:
    """Run one job on each core, so that no job has to wait for another thread's product or file."""
    uses, lock, started = {job: runner.spaces_of(job) for job in todo}, Lock(), count()

    def run(job: Job) -> None:
        with lock:
            report(job.name, next(started))
        runner.run(job)
        with lock:
            del uses[job]
            runner.spaces.keep_only(set().union(*uses.values()))

    side_by_side(run, todo)


def _run_in_order(runner: Runner, todo: list[Job], report: Callable[[str, int], None]) -> None:
    """Run one job at a time; write its results while the next one runs, and on a GPU read one job ahead."""
    uses = [runner.spaces_of(job) for job in todo]
    # A GPU would be idle while the processor reads; where memory is limited, hold the vectors of one job only.
    reads = (ahead if runner.model.device.type != "cpu" else map)(runner.sets, todo)
    with behind() as submit:
        for step, job in enumerate(todo):
            report(job.name, step)
            runner.spaces.keep_only(set().union(*uses[step:]))
            submit(partial(runner.write, runner.compute(job, next(reads))))


@shows_progress
def build(
    model: ModelLike,
    out: str | Path,
    options: Options | None = None,
    progress: Progress | bool = True,
    run: RunJobs = run_in_process,
    *,
    memory: int | None = None,
    lens: str | Path | LensMaps | None = "auto",
    features: str | Path | Dictionary | None = None,
) -> bool:
    """Build the atlas of a model or of a dictionary of features, or continue a build that was stopped.

    Args:
        model: The model, or its name.
        out: Folder of the atlas.
        options: What the atlas shall hold; everything usual if not given.
        progress: True for a bar in a notebook or on a terminal, False for none; or a function that is called with the
            stage, the step and the number of steps.
        run: Runs the jobs; in this process by default.
        memory: Bytes that the build may take (`budget`); they do not change the atlas.
        lens: The lens to make lists through, as in `load`: by default the one that is kept for these weights.
        features: A dictionary to list instead of the model's parameters: its folder or hub id, or an opened one.

    Returns:
        False if the atlas was complete already.

    Raises:
        BadAtlas: The folder holds something else or cannot be written.
        BadDictionary: The dictionary cannot be read, or does not fit the model.
        BadLens: The lens cannot be read, or is one of other weights.
        BadOption: A role, layer or frame does not exist, or the build takes more than ``memory``.

    Example:
        >>> import tempfile
        >>> import zeropass as zp
        >>> folder = tempfile.mkdtemp()
        >>> options = zp.Options(k=10, layers=(1, 2), roles=("gate",))
        >>> zp.build(zp.open_model("models/first"), folder, options)
        True
        >>> zp.open_atlas(folder).layers
        (1, 2)
    """
    report = callback(progress)
    model, out = open_model(model), Path(out)
    options, maps = resolve(options or Options(), chosen_lens(model, lens), model.name)
    make_runner: Callable[..., Runner] = partial(Runner, model, out)
    facts: dict[str, Any] = {}
    if features is None:
        jobs = plan_jobs(model, options)
    else:
        dictionary = features if isinstance(features, Dictionary) else open_dictionary(model, features)
        options, jobs = plan_features(dictionary, options)
        make_runner = partial(FeatureRunner, dictionary, out)
        facts = {"dictionary": dictionary_facts(dictionary, jobs)}
    room = None
    # Nothing is written before this check, so which tokens are hidden is not known yet: all are counted.
    if memory is not None:
        room = room_for_rows(make_runner(options, jobs, torch.arange(model.dims.vocab), maps), memory)
        return_freed_memory()
    if not prepare(out, identity(model, options, maps) | facts):
        return False
    if maps is not None:
        copy_lens(maps, out / schema.LENS)
    judgement = model.judgement
    views: dict[str, torch.Tensor] = {
        view: torch.from_numpy(model.vocab.mask(view, *judgement)).to(model.device) for view in VIEWS
    }
    runner = make_runner(options, jobs, kept_tokens(model, options, judgement), maps, views)
    runner.spaces.room = room
    carry_out(runner, judgement, report, run)
    return True


@full_precision()
def carry_out(runner: Runner, judgement: Judgement, progress: Progress, run: RunJobs = run_in_process) -> None:
    """Run all jobs that are not done, in a folder that `prepare` has prepared, and finish the atlas."""
    jobs = runner.jobs
    spaces = sorted(set().union(*(runner.stored_spaces(job) for job in jobs)))
    total = len(spaces) + len(jobs) + 1
    for step, space in enumerate(spaces):
        progress(f"rows {space}", step, total)
        runner.spaces.write(runner.frames, space)
    runner.frames.model.forget()
    todo = [job for job in jobs if not runner.mark(job).exists()]
    done = total - 1 - len(todo)
    run(runner, todo, lambda name, step: progress(name, done + step, total))
    progress("tables", total - 1, total)
    runner.spaces.keep_only(set())
    _finish(runner, judgement)
    progress("done", total, total)


def kept_tokens(model: Model, options: Options, judgement: Judgement) -> torch.Tensor:
    """Return the ids of the tokens that the lists may show; raise BadOption for a view that hides them all."""
    ids = torch.from_numpy(np.flatnonzero(model.vocab.mask(options.tokens, *judgement))).to(model.device)
    if len(ids) == 0:
        raise BadOption(f"--tokens {options.tokens} hides every token of this vocabulary.")
    return ids


def _finish(runner: Runner, judgement: Judgement) -> None:
    """Write the tables over all jobs, then the manifest, which makes the atlas complete."""
    out, model = runner.out, runner.model
    index_files = dict.fromkeys(runner.index(layer, role) for layer, role, _ in runner.bases)
    writes: list[Callable[[], int | None]] = [
        partial(write_token_index, out / schema.TOKEN_INDEX, runner.indexes, runner.kept),
        partial(write_tokens, out / schema.TOKENS, model.vocab, judgement),
        partial(write_parameters, out / schema.PARAMETERS, index_files),
        partial(write_all_coherence, out / schema.COHERENCE, [runner.coherence_part(job) for job in runner.jobs]),
    ]
    _, _, lists, _ = side_by_side(lambda write: write(), writes)
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
    sets = dict.fromkeys((layer, role) for layer, role, _ in runner.bases)
    if bare := [schema.file_name(layer, role) for layer, role in sets if runner.facts(layer, role).bare]:
        manifest |= {"bare": bare}
    if "change" not in manifest:  # The values of a change are in no model.
        manifest |= {"title": model.title, "values_sha256": values_sha256(model), "record": model.record_key}
    write_json(out / schema.MANIFEST, manifest)
    clear(out)
