"""Builds stopped at any moment, which continue to the bytes of an undisturbed one; and damage, which is reported."""

import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import small
import zeropass as zp
from builds import ARGUMENTS, ENVIRONMENT, OPTIONS, contents
from zeropass.atlas import plan, tables
from zeropass.atlas.schema import MANIFEST, PLAN
from zeropass.errors import BadAtlas, BadModel, BadOption

KILLING = Path(__file__).parents[1] / "killing.py"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.llama(tmp_path_factory.mktemp("resume") / "model", biases=True)


@pytest.fixture(scope="module")
def finished(model: Path) -> Path:
    """Build an atlas undisturbed, by the command, so that other runs of the command compare like with like."""
    out = model.parent / "finished"
    done = command(model, out)
    assert done.returncode == 0, done.stderr
    assert not list(out.rglob("*.part"))
    assert not (out / "scratch").exists()
    return out


@pytest.fixture
def damaged(finished: Path, tmp_path: Path) -> Path:
    """Copy the atlas to a folder that a test may damage."""
    return Path(shutil.copytree(finished, tmp_path / "damaged"))


def command(model: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(_line(model, out, *more), capture_output=True, text=True, env=ENVIRONMENT, timeout=300)


def _line(model: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "zeropass", "build", str(model), "--out", str(out), *ARGUMENTS, *more]


def build(model: Path, out: Path, options: zp.Options = OPTIONS, progress: Any = lambda *_: None) -> bool:
    with small.one_thread():
        return zp.build(zp.open_model(str(model)), out, options, progress)


# --- Stopped builds ------------------------------------------------------------------------------------------


def test_a_build_stopped_before_any_step_continues(model: Path, finished: Path, tmp_path: Path) -> None:
    out, step = tmp_path / "out", 0
    while True:

        def progress(_what: str, done: int, _total: int, stop: int = step) -> None:
            if done == stop:
                raise KeyboardInterrupt

        try:
            build(model, out, progress=progress)
        except KeyboardInterrupt:
            assert not list(out.rglob("*.part"))
            if (out / MANIFEST).exists():  # the last step only reports the end
                break
            with pytest.raises(BadAtlas, match="continues"):
                zp.open_atlas(out)
            step += 1
    assert step > 10
    assert contents(out) == contents(finished)


def test_a_build_stopped_at_any_file_continues(
    model: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Die at random renames into place, and leave a half-written file, as kill -9 does."""
    rename, draw = Path.replace, random.Random(0)

    def dying(self: Path, target: Path) -> Path:
        if draw.random() < 0.2:
            Path(target).with_name(f".{Path(target).name}.999.part").write_bytes(b"half")
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", dying)
    out, deaths = tmp_path / "out", 0
    while not (out / MANIFEST).exists():
        try:
            build(model, out)
        except KeyboardInterrupt:
            deaths += 1
    assert deaths > 5
    assert contents(out) == contents(finished)


@pytest.mark.parametrize("last", [False, True])
def test_a_build_killed_while_it_clears_up_is_complete(
    last: bool, model: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Die while the notes are removed: the atlas is complete, and the next build removes the rest."""

    def dying(folder: Path, **_: object) -> None:
        notes = sorted(folder.iterdir())
        assert any(note.match("*.index.parquet") for note in notes)
        notes[-1 if last else 0].unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(plan.shutil, "rmtree", dying)
        build(model, tmp_path / "out")
    assert (tmp_path / "out" / "scratch").is_dir()
    assert not build(model, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(finished)


def test_a_build_killed_at_fifty_random_moments_continues(tmp_path: Path) -> None:
    """Kill fresh and continued builds, from the plan to the manifest (killing.py)."""
    model, kills = small.llama(tmp_path / "model", layers=1), 50
    arguments = [sys.executable, str(KILLING), str(model), str(tmp_path / "out"), str(kills)]
    done = subprocess.run(arguments, capture_output=True, text=True, env=ENVIRONMENT, timeout=300)
    assert done.returncode == 0, done.stderr
    states = [[int(files) for files in line.split()] for line in done.stdout.splitlines()]
    assert sum(map(len, states)) == kills
    assert len({files for counts in states for files in counts}) > 3  # it died at many places
    assert build(model, tmp_path / "undisturbed")
    expected = contents(tmp_path / "undisturbed")
    for number in range(len(states)):
        assert contents(tmp_path / "out" / str(number)) == expected


def test_a_build_killed_while_it_writes_a_file_continues(model: Path, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert _signalled(model, out, signal.SIGKILL, 5).returncode == -signal.SIGKILL
    assert list(out.rglob("*.part"))
    assert build(model, out)
    assert contents(out) == contents(finished)
    again = command(model, out)
    assert again.returncode == 0
    assert "complete already" in again.stdout


SIGNALLING = """
import os, signal, time
import zeropass.cli.main
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell starts with it ignored
from zeropass.atlas import schema
rename, count = schema.Path.replace, 0
def signalled(self, target):
    global count
    count += 1
    if count == {file}:
        os.kill(os.getpid(), {how})
        time.sleep(10)
    return rename(self, target)
schema.Path.replace = signalled
zeropass.cli.main.main()
"""
"""A program that runs the command and sends itself a signal while it writes the n-th file."""


def _signalled(model: Path, out: Path, how: signal.Signals, file: int) -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, "-c", SIGNALLING.format(file=file, how=int(how)), *_line(model, out)[3:]]
    return subprocess.run(arguments, capture_output=True, text=True, env=ENVIRONMENT, timeout=300)


def test_ctrl_c_says_that_the_build_continues(model: Path, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = _signalled(model, out, signal.SIGINT, 12)
    assert done.returncode == 130, done.stderr
    assert "continues" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(out.rglob("*.part"))
    assert build(model, out)
    assert contents(out) == contents(finished)


# --- A full disk ---------------------------------------------------------------------------------------------


def test_a_full_disk_names_the_file_and_the_build_continues(model: Path, finished: Path, tmp_path: Path) -> None:
    """Let a limit on file sizes stand for a full disk: the real write fails, in NumPy, in Arrow and in Python."""
    out, messages = tmp_path / "out", []
    for limit in (100, 2_000):
        done = subprocess.run(
            _line(model, out),
            capture_output=True,
            text=True,
            env=ENVIRONMENT,
            preexec_fn=lambda limit=limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        )
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
        assert "could not be written" in done.stderr
        assert "continues" in done.stderr
        assert not list(out.rglob("*.part"))
        messages.append(done.stderr)
    assert "plan.json" in messages[0]
    assert "rows" in messages[1]
    assert build(model, out)
    assert contents(out) == contents(finished)


@pytest.mark.parametrize("stem", ["L1.gate", "L1.v+o+vo", "hits", "parameters", "tokens"])
def test_a_disk_that_fills_up_within_a_table_is_reported(
    model: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stem: str
) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    class Writer(tables.pq.ParquetWriter):  # type: ignore[misc]
        def __init__(self, where: Path, *args: Any, **kwargs: Any) -> None:
            super().__init__(where, *args, **kwargs)
            self.file = where.name

        def write_table(self, *args: Any, **kwargs: Any) -> None:
            if f".{stem}.parquet" in self.file:
                raise full
            super().write_table(*args, **kwargs)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(tables.pq, "ParquetWriter", Writer)
        with pytest.raises(BadAtlas, match=rf"{stem.replace('+', '.')}\.parquet could not be written \(No space left"):
            build(model, out)
    assert not list(out.rglob("*.part"))
    assert build(model, out)
    assert contents(out) == contents(finished)


# --- Folders that cannot be used -----------------------------------------------------------------------------


def test_a_folder_that_holds_something_else_is_left_alone(model: Path, tmp_path: Path) -> None:
    for name in ("thesis.txt", "film.part", ".hidden.part"):
        folder = tmp_path / name.strip(".")
        folder.mkdir()
        (folder / name).write_text("precious")
        with pytest.raises(BadAtlas, match="does not hold an atlas; give another --out"):
            build(model, folder)
        assert [p.name for p in folder.iterdir()] == [name]
        assert (folder / name).read_text() == "precious"


def test_a_file_in_the_place_of_the_folder_is_left_alone(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(BadAtlas, match="is a file"):
        build(model, tmp_path / "file")
    with pytest.raises(BadAtlas, match="cannot be made"):
        build(model, tmp_path / "file" / "below")
    assert (tmp_path / "file").read_text() == "precious"


def test_an_empty_folder_is_used(model: Path, tmp_path: Path) -> None:
    options = zp.Options(k=3, layers=(2, 3), roles=("gate",))
    assert build(model, tmp_path, options)
    assert not build(model, tmp_path, options)


@pytest.mark.parametrize(
    ("options", "message"),
    [(zp.Options(k=7, pairs=5), "k 6 instead of 7"), (zp.Options(k=6, pairs=5, tokens="words"), "tokens 'default'")],
)
def test_an_atlas_with_other_options_is_left_alone(
    model: Path, damaged: Path, options: zp.Options, message: str
) -> None:
    before = contents(damaged)
    with pytest.raises(BadAtlas, match=message):
        build(model, damaged, options)
    assert contents(damaged) == before


def test_an_atlas_whose_plan_lacks_the_checksum_is_accepted(model: Path, damaged: Path) -> None:
    plan = json.loads((damaged / PLAN).read_text())
    del plan["sha256"]  # as earlier versions wrote it
    (damaged / PLAN).write_text(json.dumps(plan))
    assert not build(model, damaged)


def test_an_atlas_of_another_model_is_left_alone(damaged: Path, tmp_path: Path) -> None:
    before = contents(damaged)
    other = small.llama(tmp_path / "other", seed=1, biases=True)
    with pytest.raises(BadAtlas, match="other weights"):
        build(other, damaged)
    with pytest.raises(BadAtlas, match="holds another atlas"):
        build(small.gpt2(tmp_path / "gpt2"), damaged)
    assert contents(damaged) == before


def test_a_folder_without_an_atlas_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadAtlas, match="zeropass build"):
        zp.open_atlas(tmp_path / "nothing")
    with pytest.raises(BadAtlas, match="not an atlas"):
        zp.open_atlas(tmp_path)


def test_an_incomplete_build_is_refused(finished: Path, damaged: Path) -> None:
    (damaged / MANIFEST).unlink()
    with pytest.raises(BadAtlas, match="not complete"):
        zp.open_atlas(damaged)


def test_nan_weights_are_named_and_nothing_is_half_valid(tmp_path: Path) -> None:
    model = small.llama(tmp_path / "m", layers=2)
    small.spoil(model, "model.layers.1.mlp.up_proj.weight", float("nan"))
    out = tmp_path / "out"
    with pytest.raises(BadModel, match=r"layers\.1\.mlp\.up_proj"):
        build(model, out)
    with pytest.raises(BadAtlas, match="not complete"):
        zp.open_atlas(out)


# --- Damaged atlases -----------------------------------------------------------------------------------------


def ask(folder: Path) -> None:
    """Ask an atlas everything that it answers."""
    atlas = zp.open_atlas(folder)
    atlas.info()
    atlas["L1.ff.2"]
    atlas["L1.attn.2"]
    atlas["L1.attn.2.k.1"]
    atlas.explain("L1.ff.2", k=30, tokens="words")
    atlas.find(" babade", k=5)
    atlas.find(["babade", " badefi"])
    atlas.find("not a word")  # by its pieces
    with pytest.raises(zp.ZeropassError):
        atlas.find(like="not a word*")
    atlas.strongest(["gate"], (0, 3), frame="token")
    atlas.head_maps(1, "vo")


FILES = ["tokens.parquet", "parameters.parquet", "hits.parquet", "manifest.json", "rows/token.npy"]
FILES += ["lists/L1.gate.parquet", "pairs/L1.qk.parquet", "vectors/L1.gate.npy"]


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _noise(path: Path) -> None:
    path.write_bytes(random.Random(0).randbytes(5000))


def test_the_undamaged_atlas_answers(finished: Path) -> None:
    ask(finished)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", [_cut, _empty, _noise, Path.unlink])
def test_a_damaged_file_is_named(damaged: Path, name: str, harm: Callable[[Path], None]) -> None:
    harm(damaged / name)
    with pytest.raises(BadAtlas) as caught:
        ask(damaged)
    message = str(caught.value)
    assert Path(name).name in message or (harm, name) == (Path.unlink, MANIFEST)
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    "array", [np.zeros((3, 3), np.float32), np.zeros((600, 32)), np.zeros(5, np.float32), np.array([{}], object)]
)
@pytest.mark.parametrize("name", ["rows/token.npy", "vectors/L1.gate.npy"])
def test_an_array_of_another_shape_is_named(damaged: Path, name: str, array: np.ndarray) -> None:
    np.save(damaged / name, array, allow_pickle=True)
    with pytest.raises(BadAtlas, match=Path(name).name):
        ask(damaged)


def change(value: Any, path: str, new: Any) -> None:
    *parts, last = path.split(".")
    for part in parts:
        value = value[part]
    if new is None:
        del value[last]
    else:
        value[last] = new


@pytest.mark.parametrize(
    ("path", "new"),
    [
        ("schema", 1),
        ("schema", "1"),
        ("schema", None),
        ("model", None),
        ("model", []),
        ("model.heads", "four"),
        ("model.heads", 3),
        ("model.kv_heads", 0),
        ("model.layers", -3),
        ("model.vocabulary", 5),
        ("model.d", True),
        ("model.ff_roles", ["nose"]),
        ("model.ff_roles", [[]]),
        ("model.name", 7),
        ("options", None),
        ("options.k", "x"),
        ("options.tokens", "some"),
        ("options.layers", [1]),
        ("options.layers", "all"),
        ("options.roles", "gate"),
        ("tokens_hidden", None),
        ("tokens_hidden.words", {"why": "x"}),
        ("token_kind", None),
        ("token_kind", "runes"),
        ("uncased", 3),
        ("split_note", None),
    ],
)
def test_a_tampered_manifest_is_refused(damaged: Path, path: str, new: Any) -> None:
    manifest = json.loads((damaged / MANIFEST).read_text())
    change(manifest, path, new)
    (damaged / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BadAtlas):
        ask(damaged)


@pytest.mark.parametrize("text", ["[]", "null", "{", '"x"', "[" * 100_000, "\x00"])
def test_a_manifest_that_is_no_object_is_refused(damaged: Path, text: str) -> None:
    for name in (MANIFEST, PLAN):
        (damaged / name).write_text(text)
    with pytest.raises(BadAtlas, match="manifest"):
        zp.open_atlas(damaged)


def test_a_damaged_plan_or_mark_is_named_when_a_build_continues(model: Path, tmp_path: Path) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if done == total - 1:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    options = zp.Options(k=3, layers=(1, 2), roles=("gate", "up"))
    with pytest.raises(KeyboardInterrupt):
        build(model, out, options, stop)
    for name in ("scratch/L1.gate.parquet", "scratch/L1.gate.index.parquet", "rows/token.npy", PLAN):
        undamaged = (out / name).read_bytes()
        _cut(out / name)
        if name.startswith("rows"):
            (out / "scratch" / "L1.gate.parquet").unlink()
        with pytest.raises(BadAtlas, match=Path(name).name):
            build(model, out, options)
        (out / name).write_bytes(undamaged)
    assert build(model, out, options)


def test_a_build_needs_a_frame(model: Path, tmp_path: Path) -> None:
    with pytest.raises(BadOption):
        build(model, tmp_path / "out", zp.Options(frames=()))
