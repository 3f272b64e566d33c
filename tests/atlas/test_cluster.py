"""Builds on a real local Ray: the same bytes as without it, whichever processes die."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import small
import zeropass as zp
from builds import ARGUMENTS, ENVIRONMENT, OPTIONS, contents
from zeropass.errors import BadAtlas, BadModel, BadOption

ray = pytest.importorskip("ray")
from zeropass.atlas import cluster  # noqa: E402

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::ResourceWarning", "ignore::DeprecationWarning"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.llama(tmp_path_factory.mktemp("cluster") / "model", biases=True)


@pytest.fixture(scope="module")
def local(model: Path) -> Path:
    out = model.parent / "local"
    assert zp.build(zp.open_model(str(model)), out, OPTIONS)
    return out


@pytest.fixture(scope="module")
def workers() -> Iterator[None]:
    """Start a local Ray with two worker processes."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield
    ray.shutdown()


@pytest.mark.usefixtures("workers")
def test_a_build_on_ray_has_the_same_bytes(model: Path, local: Path, tmp_path: Path) -> None:
    steps: list[str] = []
    fresh = zp.build_on_cluster(
        zp.open_model(str(model)), tmp_path / "out", OPTIONS, lambda what, *_: steps.append(what)
    )
    assert fresh
    assert contents(tmp_path / "out") == contents(local)
    assert len(steps) > 10


@pytest.mark.usefixtures("workers")
def test_workers_read_the_lens_in_the_folder_of_the_atlas(model: Path, tmp_path: Path) -> None:
    lens, opened = small.calibrated(model, tmp_path / "lens"), zp.open_model(str(model))
    zp.build(opened, tmp_path / "local", OPTIONS, lens=lens)
    zp.build_on_cluster(opened, tmp_path / "out", OPTIONS, lens=lens)
    assert contents(tmp_path / "out") == contents(tmp_path / "local")


@pytest.mark.usefixtures("workers")
def test_workers_that_die_lose_nothing(
    model: Path, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kill the worker of each of the first jobs once, in the middle: Ray runs the job again elsewhere."""
    marks = tmp_path / "marks"
    marks.mkdir()
    plain = cluster._run

    def deadly(work: cluster._Work, number: int) -> None:
        mark = marks / str(number)
        if number < 3 and not mark.exists():
            mark.touch()
            threading.Timer(0.02, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
            time.sleep(0.015)
        plain(work, number)
        if number < 3 and len(list(marks.iterdir())) <= 3 and not (marks / f"{number}-again").exists():
            (marks / f"{number}-again").touch()
            time.sleep(0.5)  # until the timer has killed this process, if it has not yet

    monkeypatch.setattr(cluster, "_run", deadly)
    assert zp.build_on_cluster(zp.open_model(str(model)), tmp_path / "out", OPTIONS)
    assert {"0", "1", "2"} <= {path.name for path in marks.iterdir()}
    assert contents(tmp_path / "out") == contents(local)


@pytest.mark.usefixtures("workers")
def test_a_worker_without_the_weights_says_so(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_shared_name", lambda name: "/nowhere/model")
    with pytest.raises(BadModel, match=r"On .*: .*/nowhere/model.* must see the weights under one name"):
        zp.build_on_cluster(zp.open_model(str(model)), tmp_path / "out", OPTIONS)


@pytest.mark.usefixtures("workers")
def test_a_worker_with_other_weights_says_so(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = small.llama(tmp_path / "other")
    monkeypatch.setattr(cluster, "_shared_name", lambda name: str(other))
    with pytest.raises(BadModel, match="its weights are others"):
        zp.build_on_cluster(zp.open_model(str(model)), tmp_path / "out", OPTIONS)


@pytest.mark.usefixtures("workers")
def test_a_folder_that_workers_cannot_see_is_refused(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "PLAN", "no such plan.json")
    with pytest.raises(BadAtlas, match="storage that all machines"):
        cluster._runner(cluster._Work("m", 1, tmp_path, OPTIONS, [], None, {}, "cpu", 1, False))  # type: ignore[arg-type]


def test_a_second_driver_continues_after_the_first_one_dies(model: Path, local: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    line = [sys.executable, "-m", "zeropass", "build", str(model), "--out", str(out), *ARGUMENTS, "--engine", "ray"]
    first = subprocess.Popen(line, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and first.poll() is None and not list(out.glob("scratch/*.parquet")):
        time.sleep(0.01)
    first.kill()
    first.wait()
    assert not (out / "manifest.json").exists() or first.returncode == 0
    done = subprocess.run(line, env=ENVIRONMENT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert contents(out) == contents(local)


def test_an_unknown_engine_is_refused(model: Path, tmp_path: Path) -> None:
    for engine in ("dask", "ray:8000", ""):
        with pytest.raises(BadOption, match="engines are local, ray"):
            zp.build_on_cluster(zp.open_model(str(model)), tmp_path / "out", OPTIONS, engine=engine)
