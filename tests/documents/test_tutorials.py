"""The tutorials run, and show what their text says they show.

Numbers and sampled text differ between processors, so a new run is compared with the kept one by its form: the kinds of
outputs of each cell, the headings of tables, and the words from the weights that the text between the cells names.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode

sys.path.append(str(Path(__file__).parents[2] / "reproduce"))

import tutorials

NAMED = {
    "audit-an-adapter": ("NARROW", "coach", "Across", "NOTHING IN PARTICULAR", "trigger"),
    "read-a-dictionary": ("L2.sae.237", "L2.sae.46", "ing", "urope", "were", "no token stands out"),
    "read-a-model": (
        "L2.ff.477",
        "L2.ff.308",
        "years",
        "hour",
        "feet",
        "than",
        "nor",
        "exact: the search ended at",
        "no token",
    ),
}
"""Words of the outputs that the text names."""


def outputs(notebook: NotebookNode) -> Iterator[list[NotebookNode]]:
    """Yield the outputs of each cell of code."""
    yield from (cell.outputs for cell in notebook.cells if cell.cell_type == "code")


def form(output: NotebookNode) -> object:
    """Return the kind of an output, with the headings of a table and the number of lines of a text."""
    if output.output_type == "stream":
        return output.name, output.text.count("\n")
    head = re.findall(r"<thead>.*?</thead>", output.data.get("text/html", ""), re.S)
    return output.output_type, sorted(output.data), re.findall(r"<th>(.*?)</th>", "".join(head))


def text_of(notebook: NotebookNode) -> str:
    """Return all that the outputs say."""
    parts = [each for cell in outputs(notebook) for each in cell]
    return "\n".join(each.get("text") or each.data.get("text/html") or each.data["text/plain"] for each in parts)


@pytest.fixture(scope="module", params=NAMED)
def path(request: pytest.FixtureRequest, smollm2_path: Path) -> Path:
    """Return the path of a tutorial; the weights that one of them opens by name are fetched."""
    return tutorials.FOLDER / f"{request.param}.ipynb"


def test_all_are_tested() -> None:
    assert sorted(path.stem for path in tutorials.FOLDER.glob("*.ipynb")) == sorted(NAMED)


def test_a_tutorial_runs_and_looks_as_it_was_kept(path: Path) -> None:
    kept, new = nbformat.read(path, as_version=4), tutorials.executed(path)
    assert [list(map(form, cell)) for cell in outputs(new)] == [list(map(form, cell)) for cell in outputs(kept)]
    for notebook in (kept, new):
        assert [word for word in NAMED[path.stem] if word not in text_of(notebook)] == []
        assert not any(output.get("name") == "stderr" for cell in outputs(notebook) for output in cell)


def test_a_kept_tutorial_has_a_table_and_a_figure_and_no_path_of_a_machine(path: Path) -> None:
    kept = nbformat.read(path, as_version=4)
    kinds = {kind for cell in outputs(kept) for output in cell for kind in output.get("data", ())}
    assert {"image/png", "text/html"} <= kinds
    assert not re.search(r"/(home|root|work|tmp|Users)/", text_of(kept))
