"""Fixtures of the tests of records."""

import pytest

import small


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> small.Built:
    return small.built("llama", tmp_path_factory)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> small.Built:
    return small.built("hostile", tmp_path_factory)
