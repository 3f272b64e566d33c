"""Run the tutorials of docs/tutorials and keep their output; with names, only these.

    python reproduce/tutorials.py read-a-model

`make tutorials` runs them all: a minute and a half on two cores.
"""

import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).parent.parent / "docs" / "tutorials"


def executed(path: Path) -> NotebookNode:
    """Return a notebook with the output of a new run, in its folder and with nothing that differs between two runs.

    Raises:
        CellExecutionError: If a cell fails.
    """
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(path.parent)}})
    client.execute(env={**os.environ, "PYTHONWARNINGS": "ignore:IProgress not found"})  # tqdm, without ipywidgets
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # the times of the run
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not _is_finished_bar(output)]
    notebook.metadata["language_info"] = {"name": "python"}  # not the version of Python that it ran on
    return notebook


def _is_finished_bar(output: NotebookNode) -> bool:
    """Tell whether an output is what a bar of progress leaves: a display that is empty."""
    return output.output_type == "display_data" and not any(output.data.values())


def main() -> None:
    """Run and write them."""
    for path in [FOLDER / f"{name}.ipynb" for name in sys.argv[1:]] or sorted(FOLDER.glob("*.ipynb")):
        nbformat.write(executed(path), path)
        print(path)


if __name__ == "__main__":
    main()
