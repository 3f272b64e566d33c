"""Imports go one way: from the bottom of design.md's layout to its top (design.md §5)."""

import ast
import json
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import pytest

import zeropass

SOURCE = Path(zeropass.__file__).parent
LAYERS = (
    ("errors",),
    ("numerics",),
    ("_io",),
    ("tokens",),
    ("checkpoints",),
    ("arch",),
    ("model",),
    ("records",),
    ("lens",),
    ("atlas",),
    ("render",),
    ("evidence", "align", "diff", "stitch"),
    ("__init__",),
    ("web",),
    ("cli",),
    ("__main__",),
)
"""From the bottom to the top; a module or package imports from its own row or from rows before it."""

RANK = {name: rank for rank, row in enumerate(LAYERS) for name in row}
LAZY = "zeropass"
"""The package itself imports its names when they are first used; only the command line may go through it."""

WITHOUT_TORCH = (
    *(
        "atlas.read",
        "atlas.folder",
        "atlas.schema",
        "records.parameters",
        "render.terminal",
        "render.tour",
        "cli.main",
        "tokens.vocabulary",
        "model.address",
        "errors",
    ),
    "arch.family_table",
    "records.verdicts",
    "align.results",
    "diff.results",
    "diff.render",
    "stitch.results",
    "stitch.render",
    *("web.app", "web.export", "web.load"),
)


def inside(name: str) -> str:
    """``zeropass.atlas.read`` as ``atlas.read``; the package itself as ``__init__``."""
    return name.removeprefix("zeropass").removeprefix(".") or "__init__"


@lru_cache
def modules() -> dict[str, Path]:
    """Every module by its name below the package; packages by their own name."""
    found = {}
    for path in SOURCE.rglob("*.py"):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = path
    return found


def imports(path: Path) -> set[str]:
    """zeropass modules that a module imports when it runs; what only type checkers see is left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    branches = [n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)]
    typed = {id(node) for branch in branches for node in ast.walk(branch)}
    names: list[str] = []
    for node in ast.walk(tree):
        if id(node) in typed:
            continue
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names += [name if inside(name) in modules() else str(node.module) for name in inner]
    return {name for name in names if name.split(".")[0] == "zeropass"}


GRAPH = {name: {inside(target) for target in imports(path)} for name, path in modules().items()}


@pytest.mark.parametrize("name", sorted(GRAPH))
def test_a_module_imports_nothing_above_it(name: str) -> None:
    own = name.split(".")[0]
    assert own in RANK, f"{name} has no place in the layers"
    if own == "__init__":
        return  # its names are looked up when they are used
    for target in sorted(GRAPH[name]):
        row = RANK[target.split(".")[0]]
        assert row <= RANK[own], f"{name} imports {target}, which stands above it"
        assert target in GRAPH, f"{name} imports {target}, which is no module"


def test_there_is_no_cycle() -> None:
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"a cycle: {' -> '.join((*path, name))}"
        if name not in done:
            for target in sorted(GRAPH[name] & GRAPH.keys()):
                visit(target, (*path, name))
            done.add(name)

    for name in sorted(GRAPH):
        visit(name, ())


def test_the_numerics_know_tensors_and_nothing_else() -> None:
    for name, targets in GRAPH.items():
        if name.startswith("numerics"):
            assert all(target == "errors" or target.startswith("numerics") for target in targets), name


def test_no_import_hides_in_a_function() -> None:
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                inner = [n for n in ast.walk(node) if isinstance(n, ast.Import | ast.ImportFrom)]
                assert not inner, f"{name}.{node.name} imports inside the function"


def test_what_only_reads_an_atlas_starts_without_torch() -> None:
    code = (
        "import importlib, json, sys\n"
        f"for name in {WITHOUT_TORCH!r}:\n"
        "    importlib.import_module('zeropass.' + name)\n"
        "    assert 'torch' not in sys.modules, name\n"
        "print(json.dumps(sorted(m for m in sys.modules if m.split('.')[0] == 'transformers')))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []


def test_no_torch_is_reachable_from_them_by_imports() -> None:
    for start in WITHOUT_TORCH:
        seen, todo = set(), [start]
        while todo:
            name = todo.pop()
            if name in seen or name in (LAZY, "__init__"):
                continue
            seen.add(name)
            text = modules()[name].read_text(encoding="utf-8")
            assert "\nimport torch" not in text, f"{start} reaches torch through {name}"
            assert "\nfrom torch" not in text, f"{start} reaches torch through {name}"
            todo += GRAPH[name] & GRAPH.keys()
