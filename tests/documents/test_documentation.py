"""The documentation site builds without a warning, holds every page, public name and command, and needs no network."""

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from sphinx.util.inventory import InventoryFile

import zeropass as zp
from zeropass.cli.commands import COMMANDS, loaded

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
RECORDS = ("parameters", "search", "overviews", "verdicts", "sequences")
RESULTS = (
    "zeropass.errors",
    *(f"zeropass.records.{name}" for name in RECORDS),
    *(f"zeropass.{name}.results" for name in ("align", "circuits", "diff", "evidence", "labels", "stitch")),
)
"""The modules of what public functions return and raise."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a new build."""
    folder = tmp_path_factory.mktemp("site")
    options = ("--quiet", "--fail-on-warning", "--keep-going", "--doctree-dir", str(folder / "doctrees"))
    line = [sys.executable, "-m", "sphinx", *options, str(DOCS), str(folder / "html")]
    result = subprocess.run(line, capture_output=True, text=True, timeout=300)
    assert (result.returncode, result.stderr) == (0, "")
    return folder / "html"


def test_every_page_is_reached_from_the_first(site: Path) -> None:
    sidebar = (site / "index.html").read_text(encoding="utf-8").split('class="sidebar-tree"')[1].split("</aside>")[0]
    pages = {path.relative_to(DOCS).with_suffix(".html") for path in (*DOCS.rglob("*.md"), *DOCS.rglob("*.ipynb"))}
    assert {Path(link) for link in re.findall(r'href="([^"#]+)"', sidebar)} == pages - {Path("index.html")}


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    names = InventoryFile.loads((site / "objects.inv").read_bytes(), uri="").data
    listed = {name for kind in ("py:class", "py:exception", "py:function") for name in names[kind]}
    assert {f"zeropass.{name}" for name in zp.__all__} - listed == {"zeropass.__version__"}


def test_every_result_and_error_is_in_the_reference(site: Path) -> None:
    names = InventoryFile.loads((site / "objects.inv").read_bytes(), uri="").data
    listed = {name.rsplit(".", 1)[-1] for kind in ("py:class", "py:exception") for name in names[kind]}
    modules = [import_module(name) for name in RESULTS]
    classes = {name for module in modules for name in module.__all__ if isinstance(getattr(module, name), type)}
    assert len(classes) > 50
    assert classes - listed == {"AsJson"}  # its method is there


def test_every_command_and_option_is_in_the_reference(site: Path) -> None:
    sections = (site / "commands.html").read_text(encoding="utf-8").split("<section id=")
    texts = {section.split('"')[1]: section for section in sections[1:]}
    for name in COMMANDS:
        for parameter in loaded(name).params:
            for option in parameter.opts if parameter.param_type_name == "option" else ():
                assert option in texts[name], f"{name} {option}"


def test_the_site_needs_no_network(site: Path) -> None:
    tag = re.compile(r"""<(?:script|link|img|iframe|source)\b[^>]*?(?:src|href)=["'](?:https?:)?//""")
    style = re.compile(r"""(?:url\(|@import)\s*["']?(?:https?:)?//""")
    pages, sheets = list(site.rglob("*.html")), list(site.rglob("*.css"))
    assert len(pages) > 30
    assert sheets
    assert [path.name for path in pages if tag.search(path.read_text(encoding="utf-8"))] == []
    assert [path.name for path in (*pages, *sheets) if style.search(path.read_text(encoding="utf-8"))] == []


def test_the_citation_matches_the_package() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == zp.__version__
    assert citation["message"]
    assert citation["title"].startswith("zeropass")
    assert citation["authors"] == [{"name": "The zeropass authors"}]
    (paper,) = citation["references"]
    assert [author["family-names"] for author in paper["authors"]] == ["Dar", "Geva", "Gupta", "Berant"]
    assert paper["url"] == "https://arxiv.org/abs/2209.02535"
