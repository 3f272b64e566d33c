"""The settings of the documentation site, which `make docs` builds."""

import re
import sys
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

import zeropass

sys.path.append(str(Path(__file__).parent))  # for the extension that lists the commands

project = "zeropass"
author = "The zeropass authors"
project_copyright = f"{author}, Apache-2.0"
version = release = zeropass.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "command_reference"]
exclude_patterns = ["**/.ipynb_checkpoints"]

# Pages are written for GitHub as well: its anchors of headings, and no syntax that it would show as text.
myst_heading_anchors = 4
highlight_language = "text"
suppress_warnings = ["misc.highlighting_failure"]  # blocks of code leave lines out with "…"
nb_execution_mode = "off"  # tutorials are shown as `make tutorials` left them

# A name in single backticks is a link if it is in the reference; docstrings name much that is not.
default_role = "py:obj"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True, "exclude-members": "table_rows, panel, panels"}
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88

html_theme = "furo"
html_title = f"zeropass {version}"
html_copy_source = False
html_static_path, html_css_files = ["_static"], ["site.css"]


def _keep_text(_app: Sphinx, what: str, _name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    """Keep what Sphinx would take as markup: a colon in the first line of a property, and the bars of |z|."""
    lines[:] = [re.sub(r"\|(?=\w)", r"\|", line) for line in lines]
    if what in ("property", "attribute"):
        lines.insert(0, "")


def _without_fields(_app: Sphinx, what: str, _name: str, of: Any, *_arguments: Any) -> tuple[str, None] | None:
    """Leave out how results are made, which no reader does: their fields are listed below the name."""
    is_result = re.fullmatch(r"zeropass\.(records\..*|.*\.results)", getattr(of, "__module__", ""))
    return ("", None) if what == "class" and is_result else None


def setup(app: Sphinx) -> None:
    """Change docstrings before they are read as Google's, and signatures."""
    app.connect("autodoc-process-docstring", _keep_text, priority=400)
    app.connect("autodoc-process-signature", _without_fields)
