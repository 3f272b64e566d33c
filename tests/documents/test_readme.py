"""The commands and Python blocks of the README and of some pages of docs/ run on real weights.

Links have targets, and the map in CONTRIBUTING.md matches the folders.
"""

import re
import shlex
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

import zeropass as zp
from commands import Run
from test_layers import LAYERS
from zeropass.model import lens_maps

pytestmark = pytest.mark.usefixtures("kept_real_rows")

ROOT = Path(__file__).parents[2]
README, CONTRIBUTING, USAGE = (ROOT / name for name in ("README.md", "CONTRIBUTING.md", "docs/usage.md"))
GUIDES = ("quickstart", "for-researchers", "for-auditors", "for-students", "concepts")
PAGES = (README, USAGE, *(ROOT / "docs" / f"{name}.md" for name in (*GUIDES, "atlas", "audit", "python", "stitching")))
LINKED = (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")))
MAKE_TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
LONGEST_README = 150
"""The largest number of lines of the README."""


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """Return the text of all fenced blocks of a language."""
    fence = re.compile(rf"^```{language}\n(.*?)^```", re.M | re.S)
    return [text for page in PAGES for text in fence.findall(read(page))]


LINES = [line for text in blocks("console") for line in text.splitlines()]
COMMANDS = list(dict.fromkeys(line[2:] for line in LINES if line.startswith("$ ")))
# A longer command covers a shorter one: `zeropass diff … --build` also tests `zeropass diff …`.
TRIED = [line for line in COMMANDS if not any(longer.startswith(f"{line} --") for longer in COMMANDS)]
PRINTED = re.findall(r"^```python\n(.*?)^```\n\n```text\n(.*?)^```", read(README), re.M | re.S)


@pytest.fixture(scope="module")
def folder(real_atlas: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a working folder in which the paths of the pages exist; its atlas has the layers of their examples."""
    path = tmp_path_factory.mktemp("readme")
    (path / "demo").mkdir()
    (path / "demo" / "smollm2-135m").symlink_to(real_atlas)
    (path / "models").symlink_to(ROOT / "models")
    return path


def test_the_pages_have_commands() -> None:
    assert sum(command.startswith("zeropass ") for command in COMMANDS) >= 5
    assert {"make demo", "make test"} <= set(COMMANDS)
    assert len(PRINTED) == 1


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make ")])
def test_make_targets_exist(command: str) -> None:
    assert command.split()[1] in MAKE_TARGETS


@pytest.mark.real
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("command", [c for c in TRIED if c.startswith("zeropass ") and " build " not in c])
def test_commands_run(command: str, folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    arguments = shlex.split(command)[1:]
    if arguments[0] == "serve":
        serve(arguments)
        return
    code, out, err = run(*arguments)
    assert code == 0, err
    assert out.strip()


@pytest.fixture(scope="module")
def short_lens(smollm2_path: Path) -> zp.LensMaps:
    """Return a lens of the demo model from a quarter of the usual text, which takes less time to write."""
    return zp.calibrate(zp.open_model(str(smollm2_path)), tokens=1536)


@pytest.mark.real
def test_the_lists_in_the_readme_are_those_printed(
    short_lens: zp.LensMaps, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the weights alone say is the same; most of what stands out is near the top through another lens."""
    ((command, printed),) = re.findall(
        r"^\$ zeropass (show [^\n]*)\n```\n\n```text\n(.*?)^```", read(README), re.M | re.S
    )
    monkeypatch.setattr(lens_maps, "kept_lens", lambda _model: short_lens)
    monkeypatch.setenv("COLUMNS", "104")
    lists, expected = poles(run(*shlex.split(command), "-k", "300")[1]), poles(printed)
    assert list(lists) == list(expected)
    for (role, verb, sign), tokens in expected.items():
        longer = list(lists[role, verb, sign].items())
        if verb == "is about to say":
            assert dict(longer[: len(tokens)]) == tokens
        elif next(iter(tokens.values())) > 5:
            assert len(tokens.keys() & dict(longer).keys()) > len(tokens) / 2


def poles(text: str) -> dict[tuple[str, str, str], dict[str, float]]:
    """Return the tokens of each pole of printed lists, with their z, by role, verb and sign."""
    lists: dict[tuple[str, str, str], dict[str, float]] = {}
    list_of = r"^L\S+ (\w+)  (sees|is about to say|writes distinctively|writes)\b.*\n(?:(?!L\d)\S.*\n)?((?:  .*\n)+)"
    for role, verb, body in re.findall(list_of, text, re.M):
        for sign, pole in re.findall(r"^  ([+−]) ((?:.*\n)(?:    .*\n)*)", body, re.M):
            entries = [entry.rsplit(" ", 1) for entry in re.split(r"\s{2,}|\n\s*", pole.strip())]
            lists[role, verb, sign] = {token: float(z) for token, z in entries}
    return lists


def serve(arguments: list[str]) -> None:
    """Start a server, request its first page, and terminate it."""
    line = [sys.executable, "-m", "zeropass", *arguments, "--port", "0"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        with urllib.request.urlopen(server.stdout.readline().split()[0], timeout=60) as page:
            assert b"zeropass" in page.read()
        server.terminate()
        server.wait(60)


@pytest.mark.real
@pytest.mark.usefixtures("one_thread")
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("code", blocks("python"))
def test_python_runs(
    code: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    exec(compile(code, "a page", "exec"), {"__name__": "__main__"})
    out = capsys.readouterr().out
    assert out == dict(PRINTED).get(code, out)


# --- Links and lengths of pages ---------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub names them."""
    text = re.sub(r"^```.*?^```", "", read(page), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_have_targets(page: Path) -> None:
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", read(page), flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name} links to {link}"
        assert target.is_relative_to(ROOT), f"{page.name} links to {link}"
        assert not anchor or anchor in anchors(target), f"{page.name} links to {link}"


def test_the_readme_is_short() -> None:
    assert len(read(README).splitlines()) < LONGEST_README


def test_the_map_of_the_code_matches_the_folders() -> None:
    lines = re.findall(r"^[├└]── (\S+)", read(CONTRIBUTING), re.M)
    source = ROOT / "src" / "zeropass"
    names = [path.name for path in source.iterdir() if path.is_dir() or path.suffix == ".py"]
    assert sorted(line.rstrip("/") for line in lines) == sorted(name for name in names if name != "__pycache__")
    ranks = {name: rank for rank, row in enumerate(LAYERS) for name in row}
    order = [ranks[line.rstrip("/").removesuffix(".py")] for line in lines]
    assert order == sorted(order)


def test_every_path_in_contributing_exists() -> None:
    paths = re.findall(r"`((?:src|tests|docs|models|reproduce|benchmarks)/[^`\s]*|Makefile)`", read(CONTRIBUTING))
    assert len(paths) > 40
    assert [path for path in paths if "NAME" not in path and not (ROOT / path).exists()] == []


def sources(path: str) -> str:
    """Return the text of a file, or of all files of a folder."""
    files = (
        [ROOT / path] if (ROOT / path).is_file() else [file for file in (ROOT / path).rglob("*.*") if file.is_file()]
    )
    return "\n".join(read(file) for file in files if file.suffix in (".py", ".html"))


def test_every_constant_class_and_private_name_in_contributing_stands_in_a_file_of_its_row() -> None:
    """The rows of tables name the files that one touches, then what in them."""
    names = 0
    for row in re.findall(r"^\| `(?:src|tests)/.*", read(CONTRIBUTING), re.M):
        text = "".join(map(sources, re.findall(r"`((?:src|tests)/[^`]*)`", row)))
        for name in re.findall(r"`((?:_|[A-Z])\w+)`", row.replace("`Makefile`", "")):
            names += 1
            assert re.search(rf"\b{name}\b", text), row
    assert names > 40
