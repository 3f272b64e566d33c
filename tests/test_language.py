"""The rules of style in CONTRIBUTING.md that ruff cannot check: names, docstrings, and records built by keyword."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import zeropass

SOURCE = Path(zeropass.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))

METAPHORS = {"desk", "shelf", "book", "books", "patience", "sieve", "hit", "hits", "whole", "beside", "listen"}
METAPHORS |= {"listening", "hear", "heard", "kinds", "near", "chance"}
STORED = {"Hit", "hits", "kinds", "chance", "_hit_table"}
"""Names that are stored in files and JSON, and code named after them: the results of a search, the chance of a
change, the kinds of lists that verdicts are about."""
STORED |= {"whole"}
"""A value in the records of families and adapters: queries normed over all heads, or a tensor that is replaced."""

VAGUE = ("What", "Whether", "Which", "How", "Where", "Who", "Why")
ARTICLES = ("A", "An", "The", "All", "One", "Some", "Its", "This", "These", "It")


def named(tree: ast.AST) -> Iterator[str]:
    """Yield every name that a module defines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def words(name: str) -> set[str]:
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_names_are_not_metaphors(path: Path) -> None:
    names = {path.stem, *named(ast.parse(path.read_text(encoding="utf-8")))} - STORED
    assert sorted(name for name in names if words(name) & METAPHORS) == []


def is_property(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any("property" in ast.unparse(decorator) for decorator in node.decorator_list)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_docstrings_begin_with_a_verb(path: Path) -> None:
    wrong = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
            continue
        first = (ast.get_docstring(node) or "-").split()[0].rstrip(",:")
        verb = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not is_property(node)
        if first in VAGUE or (verb and first in ARTICLES):
            wrong.append(f"{getattr(node, 'name', 'the module')}: {first} …")
    assert wrong == []


VAGUE_NAMES = {"found", "one", "said", "told"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_variables_are_named_after_what_they_hold(path: Path) -> None:
    names = set(named(ast.parse(path.read_text(encoding="utf-8"))))
    assert sorted(names & VAGUE_NAMES) == []


def described(tree: ast.AST) -> Iterator[str]:
    """Yield the texts that stand as statements: docstrings, and what describes constants and fields."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.value.value


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_description_begins_with_a_question(path: Path) -> None:
    texts = described(ast.parse(path.read_text(encoding="utf-8")))
    assert [text for text in texts if text.split()[0].rstrip(",:") in VAGUE] == []


BY_KEYWORD = ("records", "web", "align", "diff", "evidence", "labels", "stitch")
"""The folders whose dataclasses are built by keyword: records, pages and the results of applications have many values
of the same type, so that two in the wrong order would go unnoticed."""


def dataclasses_of(tree: ast.Module) -> Iterator[str]:
    """Yield the names of the dataclasses of a module."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(made) for made in node.decorator_list):
            yield node.name


RECORDS = {
    name
    for folder in BY_KEYWORD
    for path in (SOURCE / folder).rglob("*.py")
    for name in dataclasses_of(ast.parse(path.read_text(encoding="utf-8")))
}


def constructions(tree: ast.Module) -> Iterator[ast.Call]:
    """Yield the calls that build a record."""
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    foreign = {name.name for node in imports if not f"{node.module}".startswith("zeropass") for name in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).removeprefix("zp.") in RECORDS - foreign:
            yield node
        elif isinstance(node, ast.ClassDef) and node.name in RECORDS:
            calls = (call for call in ast.walk(node) if isinstance(call, ast.Call))
            yield from (call for call in calls if ast.unparse(call.func) == "cls")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_records_with_more_than_three_values_are_built_by_keyword(path: Path) -> None:
    calls = constructions(ast.parse(path.read_text(encoding="utf-8")))
    assert [f"line {call.lineno}: {ast.unparse(call.func)}" for call in calls if len(call.args) > 3] == []
