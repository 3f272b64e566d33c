"""Fixtures that several test files share."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import settings
from transformers import PretrainedConfig

import small
import zeropass as zp
from commands import Run
from zeropass.checkpoints import kept_proofs
from zeropass.checkpoints.demo import fetch_demo
from zeropass.model import kept_rows, lens_maps
from zeropass.records import verdicts

settings.register_profile("patient", deadline=None)  # a busy machine is not a bug
settings.register_profile("ci", deadline=None, derandomize=True)  # a commit that has passed passes again
settings.load_profile("patient")

MOST_KEPT = kept_rows.MOST
"""The bytes of rows that a user's cache keeps."""

REAL = {"smollm2_path", "minilm_path", "real_atlas"}

FIRST = ("test_browser", "test_evidence", "test_readme", "test_stitch", "test_align", "test_cluster", "test_real_atlas")
FIRST += ("test_tutorials", "test_hub_atlas", "test_resume", "test_devices", "test_server")
FIRST += ("test_fuzz", "test_golden", "test_memory", "test_every_family", "test_keys", "test_researcher", "test_site")
"""The slowest files. Two workers take a file each, so long files must start early."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test that uses real weights as ``real``, and move the slowest files to the front."""
    for item in items:
        if REAL & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.real)
    rank = {name: n for n, name in enumerate(FIRST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


@pytest.fixture(autouse=True, scope="session")
def no_kept_lens() -> Iterator[None]:
    """Leave out the lenses that this user has made: tests expect lists of the weights alone."""

    def kept_lens(_model: zp.Model) -> None:
        """Find no lens."""

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lens_maps, "kept_lens", kept_lens)
        yield


@pytest.fixture(autouse=True, scope="session")
def no_kept_proof() -> Iterator[None]:
    """Leave out the proofs that this user has made."""

    def known_proof(*_arguments: object) -> None:
        """Find no proof."""

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kept_proofs, "known_proof", known_proof)
        yield


@pytest.fixture(autouse=True, scope="session")
def no_kept_rows() -> Iterator[None]:
    """Let every test compute what it tests: no table is small enough to be kept."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kept_rows, "MOST", 0)
        yield


@contextmanager
def alone(factory: pytest.TempPathFactory, name: str) -> Iterator[Path]:
    """Yield a path that all workers of a run share, locked so that only the first of them makes its contents."""
    base = factory.getbasetemp()
    path = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield path


@pytest.fixture(scope="module")
def kept_real_rows(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the rows of real models for all workers of a run, as a user's cache does, where tests prove something else.

    What is kept is what would be computed, bit for bit (`tests/model/test_kept_rows.py`).
    """
    with alone(tmp_path_factory, "rows") as folder:
        pass  # each file of it is written at once, so that nobody has to wait
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kept_rows, "MOST", MOST_KEPT)
        patch.setattr(kept_rows, "rows_folder", lambda: folder)
        yield


@pytest.fixture(scope="session")
def smollm2_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of SmolLM2-135M-Instruct, one GGUF file."""
    with alone(tmp_path_factory, "demo"):
        return fetch_demo("smollm2-135m")


@pytest.fixture(scope="session")
def minilm_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of all-MiniLM-L6-v2, a folder with safetensors."""
    with alone(tmp_path_factory, "demo"):
        return fetch_demo("minilm-l6")


@pytest.fixture(scope="session")
def real_atlas(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of an atlas of all roles in the layers of SmolLM2 that the README uses."""
    with alone(tmp_path_factory, "smollm2") as folder:
        zp.build(zp.open_model(str(smollm2_path)), folder, zp.Options(layers=(26, 30)))
        return folder


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Run with one thread: products of tiny matrices lose more by waiting for threads than they gain."""
    with small.one_thread():
        yield


@pytest.fixture(scope="module")
def unprinted_configs() -> Iterator[None]:
    """Leave out the text of each configuration that transformers makes for its log, which nobody reads."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PretrainedConfig, "__repr__", object.__repr__)
        yield


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a callable that runs the command line in this process."""
    monkeypatch.setenv("COLUMNS", "120")
    return Run(monkeypatch, capsys)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the path of an empty cache; the package has no verdicts either."""
    monkeypatch.setenv("ZEROPASS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(verdicts, "SHIPPED", tmp_path / "shipped")
    return tmp_path / "cache"
