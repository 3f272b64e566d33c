"""Run the jobs of a build on a Ray cluster, one task each.

Ray schedules the tasks, and runs those again that a machine lost. A worker reads the weights under the model's name,
and the rows of the tokens and the plan from the folder of the atlas, where it also writes the files of its job. So
weights and folder must be in storage that all machines share.
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

from zeropass._io.progress import Progress
from zeropass.atlas.build import build
from zeropass.atlas.jobs import Runner
from zeropass.atlas.plan import sweep
from zeropass.atlas.schema import LENS, PLAN, Job, Options
from zeropass.errors import BadAtlas, BadModel, BadOption, MissingExtra, ZeropassError
from zeropass.model.adapted import Adapted
from zeropass.model.lens_maps import LensMaps, read_lens
from zeropass.model.opening import ModelLike, open_model

try:
    import ray
    from ray.exceptions import RayError, RayTaskError
except ImportError as _error:
    raise MissingExtra("Ray is an extra: pip install 'zeropass[ray]'.") from _error

__all__ = ["build_on_cluster"]

RAY = "ray"

RETRIES = 20
"""Number of times that a job is run again, from its beginning, after its worker has died."""


@dataclass(frozen=True, eq=False)
class _Work:
    """The facts of a build that a worker needs.

    Attributes:
        size: Bytes of the weight files, by which a worker notices that it has others.
        has_lens: True if lists are made through the lens in the folder of the atlas.
    """

    model: str
    size: int
    out: Path
    options: Options
    jobs: list[Job]
    kept: Tensor
    views: dict[str, Tensor]
    device: str
    threads: int
    has_lens: bool


def build_on_cluster(
    model: ModelLike,
    out: str | Path,
    options: Options | None = None,
    progress: Progress | bool = True,
    engine: str = RAY,
    *,
    lens: str | Path | LensMaps | None = "auto",
) -> bool:
    """Build an atlas as `build` does, to the same bytes, with its jobs on Ray.

    Args:
        model: The model, or its name, under which all machines find its weights.
        out: Folder of the atlas, shared by all machines.
        options: What the atlas shall hold; everything usual if not given.
        progress: True for a bar in a notebook or on a terminal, False for none; or a function that is called with the
            stage, the step and the number of steps.
        engine: ``ray`` (on this machine, or where RAY_ADDRESS says) or ``ray://…``.
        lens: The lens to make lists through, as for `build`.

    Returns:
        False if the atlas was complete already.

    Raises:
        BadAtlas: A job was lost too often, or `build` raises it.
        BadOption: There is no such engine, the model is in memory, the cluster cannot be reached, or `build` raises it.
        ZeropassError: A job raised it; the message names the machine.
    """
    model, out = open_model(model), Path(out)
    if isinstance(model, Adapted):
        raise BadOption(f"{model.name}: the machines of a cluster open a model by name; merge its adapter and save it.")
    if model.files.path is None:
        raise BadOption(f"{model.name}: the machines of a cluster open a model by name; save it, and give the folder.")
    if engine != RAY and not engine.startswith(f"{RAY}://"):
        raise BadOption(f"There is no engine {engine!r}; engines are local, ray and ray://address.")
    return build(model, out, options, progress, partial(_on_ray, engine), lens=lens)


def _on_ray(engine: str, runner: Runner, todo: list[Job], report: Callable[[str, int], None]) -> None:
    """Run jobs on a cluster, as `build.run_in_process` runs them in this process."""
    if not todo:
        return
    model = runner.model
    work = _Work(
        model=_shared_name(model.name),
        size=model.size,
        out=runner.out.resolve(),
        options=runner.options,
        jobs=runner.jobs,
        kept=runner.kept.cpu(),
        views={name: mask.cpu() for name, mask in runner.views.items()},
        device=str(model.device),
        threads=torch.get_num_threads(),
        has_lens=runner.lens is not None,
    )
    report("cluster", 0)
    with _connected(engine):
        shared, task = ray.put(work), ray.remote(_run).options(max_retries=RETRIES)
        waiting = {task.remote(shared, runner.jobs.index(job)): job for job in todo}
        while waiting:
            (ready, *_), _ = ray.wait(list(waiting), num_returns=1)
            job = waiting.pop(ready)
            _result(ready, job, runner.out)
            report(job.name, len(todo) - len(waiting))
    sweep(runner.out)  # Workers that died left files behind.


def _result(ready: Any, job: Job, out: Path) -> None:
    """Raise the error of a task under its own type, or BadAtlas for a task that was lost."""
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
    """Connect to the cluster, and disconnect afterwards unless there was a connection before."""
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


def _shared_name(name: str) -> str:
    """Return a model's name as other machines find it: an absolute path; demos and hub ids unchanged."""
    path, mark, stack = name.rpartition("#") if name.endswith(("#encoder", "#decoder")) else (name, "", "")
    return f"{Path(path).expanduser().resolve()}{mark}{stack}" if Path(path).expanduser().exists() else name


_runners: dict[tuple[str, Path], Runner] = {}
"""The runner of this worker, kept between the jobs of one build."""


def _run(work: _Work, number: int) -> None:
    """Run one job on a worker, unless it is done."""
    try:
        runner = _runner(work)
        job = runner.jobs[number]
        if not runner.mark(job).exists():
            runner.spaces.keep_only(runner.spaces_of(job))
            runner.run(job)
    except ZeropassError as error:
        raise type(error)(f"On {platform.node()}: {error}") from error


def _runner(work: _Work) -> Runner:
    """Return the runner of a build on this worker; raise BadAtlas or BadModel if folder or weights are not shared."""
    key = work.model, work.out
    if key not in _runners:
        if not (work.out / PLAN).exists():
            raise BadAtlas(f"{work.out} is not there; --out must be storage that all machines of the cluster share.")
        torch.set_num_threads(work.threads)
        try:
            model = open_model(work.model, device=work.device)
        except ZeropassError as error:
            raise type(error)(f"{error} All machines of the cluster must see the weights under one name.") from error
        if model.size != work.size:
            raise BadModel(
                f"{work.model}: its weights are others on this machine ({model.size} bytes) than where the build began "
                f"({work.size})."
            )
        _runners.clear()
        lens = read_lens(work.out / LENS, model) if work.has_lens else None
        views = {name: mask.to(model.device) for name, mask in work.views.items()}
        _runners[key] = Runner(model, work.out, work.options, work.jobs, work.kept.to(model.device), lens, views)
    return _runners[key]
