"""Fixtures that several test files share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import small
import zeropass as zp
from zeropass.sources.demo import fetch_demo

REAL = {"smollm2_path", "minilm_path", "real_atlas"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as ``real`` every test that uses real weights."""
    for item in items:
        if REAL & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.real)


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """SmolLM2-135M-Instruct, one GGUF file."""
    return fetch_demo("smollm2-135m")


@pytest.fixture(scope="session")
def minilm_path() -> Path:
    """all-MiniLM-L6-v2, a folder with safetensors."""
    return fetch_demo("minilm-l6")


@pytest.fixture(scope="session")
def real_atlas(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An atlas of the layers of SmolLM2 that the README speaks of, all roles."""
    folder = tmp_path_factory.mktemp("smollm2") / "atlas"
    zp.build(zp.open_model(str(smollm2_path)), folder, zp.Options(layers=(26, 30)))
    return folder


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Matrices of tiny models lose more to waiting for threads than they gain."""
    with small.one_thread():
        yield
