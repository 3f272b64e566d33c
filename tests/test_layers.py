"""The layers of the package: its folders, and imports that only go downwards (CONTRIBUTING.md)."""

import ast
import importlib
import json
import subprocess
import sys
from collections import Counter
from functools import lru_cache
from pathlib import Path

import pytest

import zeropass

SOURCE = Path(zeropass.__file__).parent
LAYERS = (
    ("errors",),
    ("_io", "numerics"),
    ("tokens",),
    ("checkpoints", "arch"),
    ("model", "records"),
    ("lens", "atlas", "render"),
    ("evidence", "align", "circuits", "diff", "stitch", "labels", "relations", "heads"),
    ("__init__",),
    ("web", "cli", "mcp", "__main__"),
)
"""Rows from bottom to top. A package imports from rows below its own and, without a cycle, from its own row."""

APPLICATIONS = ("align", "circuits", "diff", "evidence", "heads", "labels", "relations", "stitch")
ANATOMY = ("render", "results", "run")
"""The modules that every application has; no other module name occurs twice."""

TOP = 25
"""The largest number of entries at the top of the package."""

RANK = {name: rank for rank, row in enumerate(LAYERS) for name in row}
LAZY = "zeropass"
"""The package itself, which imports its names when they are first used."""

WITHOUT_TORCH = (
    *("errors", "tokens.vocabulary", "arch.family_table", "model.address"),
    *("records.parameters", "records.overviews", "records.search", "records.verdicts"),
    *(
        "checkpoints.hub_files",
        "atlas.folder",
        "atlas.query",
        "atlas.read",
        "atlas.schema",
        "atlas.share",
        "render.terminal",
        "render.tour",
    ),
    *("align.render", "align.results", "diff.render", "diff.results", "stitch.render", "stitch.results"),
    *("diff.against_render", "diff.against_results", "diff.screen_results"),
    *("labels.render", "labels.results", "labels.run", "heads.render", "heads.results"),
    *("relations.render", "relations.results", "circuits.render", "circuits.results"),
    *("cli.main", "mcp.server", "web.app", "web.export", "web.load"),
)


def inside(name: str) -> str:
    """Shorten ``zeropass.atlas.read`` to ``atlas.read``, and the package itself to ``__init__``."""
    return name.removeprefix("zeropass").removeprefix(".") or "__init__"


@lru_cache
def modules() -> dict[str, Path]:
    """Return the path of every module by its name below the package; a package has the name of its folder."""
    paths = {}
    for path in SOURCE.rglob("*.py"):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        paths[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = path
    return paths


def imports(path: Path) -> set[str]:
    """Return the zeropass modules that a module imports at run time, without those for type checkers."""
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
    package = name.split(".")[0]
    assert package in RANK, f"{name} has no place in the layers"
    if package == "__init__":
        return  # its names are imported when they are first used
    for target in sorted(GRAPH[name]):
        row = RANK[target.split(".")[0]]
        assert row <= RANK[package], f"{name} imports {target}, which stands above it"
        assert target in GRAPH, f"{name} imports {target}, which is no module"


def _check_acyclic(graph: dict[str, set[str]]) -> None:
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"a cycle: {' -> '.join((*path, name))}"
        if name not in done:
            for target in sorted(graph[name] & graph.keys()):
                visit(target, (*path, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())


def test_there_is_no_cycle_of_modules() -> None:
    _check_acyclic(GRAPH)


def test_there_is_no_cycle_of_packages() -> None:
    packages: dict[str, set[str]] = {}
    for name, targets in GRAPH.items():
        if name != "__init__":
            top = name.split(".")[0]
            packages.setdefault(top, set()).update({target.split(".")[0] for target in targets} - {top, "__init__"})
    _check_acyclic(packages)


def test_the_top_of_the_package_has_few_entries() -> None:
    entries = sorted(path.name for path in SOURCE.iterdir() if path.name != "__pycache__")
    assert len(entries) <= TOP, entries


@pytest.mark.parametrize("application", APPLICATIONS)
def test_every_application_has_the_same_anatomy(application: str) -> None:
    assert {f"{application}.{part}" for part in ANATOMY} <= GRAPH.keys()


def test_no_other_module_name_occurs_twice() -> None:
    names = [name.rpartition(".")[2] for name, path in modules().items() if path.name != "__init__.py"]
    assert sorted(name for name, count in Counter(names).items() if count > 1) == [*ANATOMY]


def test_the_numerics_import_only_errors_and_each_other() -> None:
    for name, targets in GRAPH.items():
        if name.startswith("numerics"):
            assert all(target == "errors" or target.startswith("numerics") for target in targets), name


def test_no_function_contains_an_import() -> None:
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                inner = [n for n in ast.walk(node) if isinstance(n, ast.Import | ast.ImportFrom)]
                assert not inner, f"{name}.{node.name} imports inside the function"


def test_modules_that_only_read_an_atlas_start_without_torch() -> None:
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


def test_modules_that_only_read_an_atlas_reach_no_torch() -> None:
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


@pytest.mark.parametrize("folder", ["benchmarks", "reproduce", "tests"])
def test_scripts_import_only_names_that_exist(folder: str) -> None:
    """No type check reads these folders, so a name that moved would be missed in a script that no test runs."""
    missing = []
    for path in (SOURCE.parent.parent / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "zeropass":
                home = importlib.import_module(node.module or "")
                missing += [
                    f"{folder}/{path.name}:{node.lineno} {node.module}.{alias.name}"
                    for alias in node.names
                    if not hasattr(home, alias.name) and inside(f"{node.module}.{alias.name}") not in modules()
                ]
    assert not missing
