"""Every example in a docstring of zeropass runs, and prints what the docstring says."""

import doctest
import pkgutil
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

import zeropass

ROOT = Path(__file__).parents[2]
LEFT_OUT = ("zeropass.__main__", "zeropass.numerics.triton_kernels")
"""The entry of the command line, and a module that needs Triton."""


def source(module: str) -> str:
    """Return the source of a module without importing it."""
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).read_text(encoding="utf-8")


NAMES = ("zeropass", *(module.name for module in pkgutil.walk_packages(zeropass.__path__, "zeropass.")))
MODULES = [name for name in NAMES if name not in LEFT_OUT and ">>> " in source(name)]


def examples(module: str) -> list[doctest.DocTest]:
    """Return the docstrings of a module that have examples."""
    return [test for test in doctest.DocTestFinder().find(import_module(module)) if test.examples]


@pytest.mark.parametrize("module", MODULES)
def test_examples_run(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    runner, report = doctest.DocTestRunner(), []
    for test in examples(module):
        runner.run(test, out=report.append)
    assert runner.tries
    assert not runner.failures, "".join(report)


WITHOUT = {
    "__version__",  # a text
    *("align_models", "read_alignment", "Alignment"),  # aligning the smallest two models takes half a minute
    "build_on_cluster",  # needs a cluster
    *("serve", "serve_mcp"),  # run until Ctrl-C
}
"""Public names without an example of their own."""


@pytest.mark.parametrize("name", sorted(set(zeropass.__all__) - WITHOUT))
def test_exported_names_have_examples(name: str) -> None:
    module = getattr(zeropass, name).__module__
    assert f"{module}.{name}" in {test.name for test in examples(module)}
