"""The jobs of a build on a Ray cluster: one task each. Ray does all the scheduling, and runs again what a machine lost.

A worker reads the weights from where the model's name leads it, the rows of the tokens and the plan from the atlas's
folder, and writes its job's files there: both have to be storage that all machines share.
"""

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zeropass._io.progress import Progress, silent
from zeropass.atlas.build import build
from zeropass.atlas.jobs import Runner
from zeropass.atlas.plan import sweep
from zeropass.atlas.schema import PLAN, Job, Options
from zeropass.errors import BadAtlas, BadModel, BadOption, MissingExtra, ZeropassError
from zeropass.model.model import Model, open_model

try:
    import ray
    from ray.exceptions import RayError, RayTaskError
except ImportError as error:
    raise MissingExtra("Ray is an extra: pip install 'zeropass[ray]'.") from error

__all__ = ["build_on_cluster"]

RAY = "ray"

RETRIES = 20
"""How often a job is run again when its worker dies; each time it begins anew."""


@dataclass(frozen=True, eq=False)
class _Work:
    """What a worker needs to know of a build. ``size``: bytes of the weight files, so that others are noticed."""

    model: str
    size: int
    out: Path
    options: Options
    jobs: list[Job]
    kept: Tensor
    device: str
    threads: int


def build_on_cluster(model: Model, out: Path, options: Options, progress: Progress = silent, engine: str = RAY) -> bool:
    """`build` with its jobs on Ray: the same bytes. ``engine``: ``ray`` (here, or where RAY_ADDRESS says), ``ray://…``.

    Raises what a job raised, with the machine's name, BadAtlas for a job that was lost again and again, BadOption for
    a cluster that is none or cannot be reached, and what `build` raises.
    """
    if engine != RAY and not engine.startswith(f"{RAY}://"):
        raise BadOption(f"There is no engine {engine!r}; engines are local, ray and ray://address.")
    return build(model, out, options, progress, partial(_on_ray, engine))


def _on_ray(engine: str, runner: Runner, todo: list[Job], told: Callable[[str, int], None]) -> None:
    if not todo:
        return
    model = runner.model
    work = _Work(
        _found_anywhere(model.name),
        model.size,
        runner.out.resolve(),
        runner.options,
        runner.jobs,
        runner.kept.cpu(),
        str(model.device),
        torch.get_num_threads(),
    )
    told("cluster", 0)
    with _connected(engine):
        shared, task = ray.put(work), ray.remote(_run).options(max_retries=RETRIES)
        waiting = {task.remote(shared, runner.jobs.index(job)): job for job in todo}
        while waiting:
            (ready, *_), _ = ray.wait(list(waiting), num_returns=1)
            job = waiting.pop(ready)
            _result(ready, job, runner.out)
            told(job.name, len(todo) - len(waiting))
    sweep(runner.out)  # of workers that died


def _result(ready: Any, job: Job, out: Path) -> None:
    """Raise what a task raised as the error that it was."""
    try:
        ray.get(ready)
    except RayTaskError as error:
        if isinstance(error.cause, ZeropassError):
            raise error.cause from None
        raise
    except RayError as error:
        raise BadAtlas(
            f"{out}: job {job.name} was lost on the cluster {RETRIES} times ({type(error).__name__}); what is done is "
            "kept: build again to go on."
        ) from error


@contextmanager
def _connected(engine: str) -> Iterator[None]:
    """A connection to the cluster, closed again unless it was open before."""
    if ray.is_initialized():
        yield
        return
    address = engine if engine.startswith("ray://") else None
    try:
        ray.init(address=address, log_to_driver=False, configure_logging=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadOption(f"--engine {engine}: the cluster cannot be reached ({reason}).") from error
    try:
        yield
    finally:
        ray.shutdown()


def _found_anywhere(name: str) -> str:
    """A model's name as another machine finds it: a path from the root; demos and hub ids as they are."""
    path, mark, stack = name.rpartition("#") if name.endswith(("#encoder", "#decoder")) else (name, "", "")
    return f"{Path(path).expanduser().resolve()}{mark}{stack}" if Path(path).expanduser().exists() else name


_runners: dict[tuple[str, Path], Runner] = {}
"""The worker's own runner, kept from job to job of one build."""


def _run(work: _Work, number: int) -> None:
    """One job, on a worker."""
    try:
        runner = _runner(work)
        job = runner.jobs[number]
        if not runner.mark(job).exists():
            runner.spaces.keep_only(runner.spaces_of(job))
            runner.run(job)
    except ZeropassError as error:
        raise type(error)(f"On {platform.node()}: {error}") from error


def _runner(work: _Work) -> Runner:
    key = work.model, work.out
    if key not in _runners:
        if not (work.out / PLAN).exists():
            raise BadAtlas(f"{work.out} is not there; --out must be storage that all machines of the cluster share.")
        torch.set_num_threads(work.threads)
        try:
            model = open_model(work.model, work.device)
        except ZeropassError as error:
            raise type(error)(f"{error} All machines of the cluster must see the weights under one name.") from error
        if model.size != work.size:
            raise BadModel(f"{work.model}: other weights are here ({model.size} bytes) than there ({work.size}).")
        _runners.clear()
        _runners[key] = Runner(model, work.out, work.options, work.jobs, work.kept.to(model.device))
    return _runners[key]
