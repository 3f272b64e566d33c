"""The command about the cache: what is there, and how it is removed."""

import json
from pathlib import Path

import pytest

from commands import Run


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ZEROPASS_CACHE", str(tmp_path))
    (tmp_path / "rows" / "1-a").mkdir(parents=True)
    (tmp_path / "rows" / "1-a" / "token.npy").write_bytes(bytes(2_000_000))
    (tmp_path / "lenses").mkdir()
    return tmp_path


def test_the_cache_is_measured_and_cleared(cache: Path, run: Run) -> None:
    code, out, err = run("cache")
    assert (code, err) == (0, "")
    assert out.startswith(str(cache))
    assert "rows            2.0 MB  rows and judgements" in out
    assert json.loads(run("cache", "--json")[1])["bytes"] == {
        **dict.fromkeys(
            ("lenses", "heads", "evidence", "proofs", "thresholds", "labels", "demo", "text", "atlases", "onnx"), 0
        ),
        "rows": 2_000_000,
    }
    assert run("cache", "--clear", "rows")[1] == "rows: 2.0 MB removed.\n"
    assert not (cache / "rows").exists()
    assert (cache / "lenses").exists()
    assert json.loads(run("cache", "--clear", "rows", "--json")[1]) == {"removed": "rows", "bytes": 0}


@pytest.mark.parametrize("name", ["..", "", "row", "rows/1-a", str(Path.home())])
def test_nothing_but_folders_of_the_cache_is_removed(name: str, cache: Path, run: Run) -> None:
    code, out, err = run("cache", "--clear", name)
    assert (code, out) == (2, "")
    assert "The cache has no" in " ".join(err.split())
    assert (cache / "rows" / "1-a" / "token.npy").exists()


def test_a_user_without_a_home_is_told_so(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("ZEROPASS_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", staticmethod(homeless))
    code, _, err = run("cache")
    assert code == 2
    assert "no home folder" in " ".join(err.split())
