"""The files of a dataset on the hub, read like those of a folder: parts of a file over HTTP ranges, or the whole file.

A dataset is read at one commit, so that what changes on the hub is never mixed with what was read before. Parts are
kept in the cache of zeropass, whole files in that of the hub; the settings of huggingface_hub apply, as for models.
"""

import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any, BinaryIO, ClassVar, cast

import numpy as np
from huggingface_hub import HfApi, constants, hf_hub_download, hf_hub_url, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HFValidationError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    build_hf_headers,
    hf_raise_for_status,
    http_backoff,
)

from zeropass._io.atomic import atomic_write, make_folder, write_json
from zeropass._io.parse import load_json, parse_json
from zeropass.checkpoints.demo import cache_folder
from zeropass.checkpoints.hub_access import fetching, watched_bars
from zeropass.checkpoints.hub_address import DATASETS, REPO_ID, REVISION
from zeropass.errors import BadAtlas, NotFetched

__all__ = ["HubPath", "open_dataset"]

_AT_ONCE = 8
"""Requests at a time, as many as huggingface_hub makes for whole files."""

_HEAD = 1024
"""The bytes in which the header of an array of an atlas ends."""

_LONGEST_HEADER = 16 << 20
"""The most bytes of the header of a file of safetensors."""

_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)*", re.ASCII)
"""The names of files that are read; a dataset's other files, such as ``.gitattributes``, are left alone."""


@dataclass(frozen=True)
class Dataset:
    """A dataset on the hub at one commit.

    Attributes:
        repo_id: Its hub id, ``owner/name``.
        commit: The commit.
        sizes: Bytes of each of its files.
    """

    repo_id: str
    commit: str
    sizes: Mapping[str, int] = field(compare=False, repr=False)

    def fetching(self) -> Any:
        """Return the context in which errors of the hub are those of zeropass."""
        return fetching(self.repo_id, self.commit, "dataset")


@dataclass(frozen=True)
class HubPath:
    """A file or folder of a dataset on the hub, with the methods of `pathlib.Path` that readers of an atlas use.

    As a path on this machine (``os.fspath``) it is a whole copy, which is fetched first; `open` fetches parts.

    Attributes:
        BLOCK: Bytes of a part that is fetched and kept. Rows that are read one by one lie far apart, and a request
            takes longer than the transfer of so many.
        dataset: The dataset.
        name: The path in it; empty for all of it.
    """

    BLOCK: ClassVar[int] = 1 << 16

    dataset: Dataset
    name: str = ""

    def __truediv__(self, name: str) -> "HubPath":
        return HubPath(self.dataset, f"{self.name}/{name}" if self.name else name)

    def __str__(self) -> str:
        return f"{DATASETS}{self.dataset.repo_id}@{self.dataset.commit}" + (f"/{self.name}" if self.name else "")

    def __fspath__(self) -> str:
        return self._copied() if self.is_file() else self._copied_folder()

    def _copied(self) -> str:
        """Return the path of a whole copy of a file, after fetching it if there is none."""
        dataset = self.dataset
        with dataset.fetching(), watched_bars():
            copy = hf_hub_download(dataset.repo_id, self.name, repo_type="dataset", revision=dataset.commit)
        if (size := Path(copy).stat().st_size) != self.size:
            raise NotFetched(f"{self} came with {size} bytes; the hub's list of files says {self.size}.")
        return copy

    def _copied_folder(self) -> str:
        """Return the path of a whole copy of a folder."""
        files = list(self.rglob("*"))
        if not files:
            raise NotFetched(f"{self} does not exist.")
        self.fetch(files)
        copies = [(Path(file), len(file.relative_to(self).parts)) for file in files]
        return str(copies[0][0].parents[copies[0][1] - 1])

    def fetch(self, files: Iterable["HubPath"]) -> None:
        """Fetch several whole files of the dataset at once, those that are not here."""
        missing = [file.name for file in files if file.copy is None]
        if missing:
            dataset = self.dataset
            with dataset.fetching(), watched_bars():
                snapshot_download(dataset.repo_id, repo_type="dataset", revision=dataset.commit, allow_patterns=missing)

    @property
    def size(self) -> int:
        """The bytes of a file."""
        return self.dataset.sizes[self.name]

    @property
    def copy(self) -> Path | None:
        """The whole copy of a file on this machine, if there is one already."""
        place = {"repo_id": self.dataset.repo_id, "filename": self.name, "revision": self.dataset.commit}
        copy = try_to_load_from_cache(**place, repo_type="dataset")
        return Path(copy) if isinstance(copy, str) and Path(copy).stat().st_size == self.size else None

    def is_file(self) -> bool:
        """Tell whether this is a file of the dataset."""
        return self.name in self.dataset.sizes

    def is_dir(self) -> bool:
        """Tell whether this is a folder of the dataset."""
        return not self.name or any(name.startswith(f"{self.name}/") for name in self.dataset.sizes)

    def exists(self) -> bool:
        """Tell whether the dataset has this file or folder."""
        return self.is_file() or self.is_dir()

    def stat(self) -> SimpleNamespace:
        """Return the size of a file; at one commit it never changes."""
        return SimpleNamespace(st_size=self.size, st_mtime_ns=0)

    def relative_to(self, folder: "HubPath") -> PurePosixPath:
        """Return the path in a folder."""
        return PurePosixPath(self.name).relative_to(folder.name)

    def rglob(self, pattern: str) -> Iterator["HubPath"]:
        """Yield all files of a folder whose last parts match a pattern."""
        for name in self.dataset.sizes:
            if PurePosixPath(name).is_relative_to(self.name) and PurePosixPath(name).match(pattern):
                yield HubPath(self.dataset, name)

    def glob(self, pattern: str) -> Iterator["HubPath"]:
        """Yield the files of a folder that match a pattern, which has as many parts as their paths in it."""
        depth = len(PurePosixPath(pattern).parts)
        return (path for path in self.rglob(pattern) if len(path.relative_to(self).parts) == depth)

    def read_text(self, encoding: str) -> str:
        """Return the text of a file."""
        return Path(self).read_text(encoding)

    def open(self) -> BinaryIO:
        """Return a file to read bytes from: the whole copy if there is one, or else one that fetches what is read."""
        return self.copy.open("rb") if self.copy else cast(BinaryIO, _RemoteFile(self))

    def read_parts(self, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return the bytes of some spans (first, stop) of a file, after fetching the blocks that the cache lacks.

        Raises:
            NotFetched: With the reason, if the hub does not give them, or gives something else.
        """
        wanted = sorted({i for first, stop in spans for i in range(first // self.BLOCK, -(-stop // self.BLOCK))})
        blocks = {i: block for i in wanted if (block := self._kept_block(i)) is not None}
        missing = enumerate(i for i in wanted if i not in blocks)
        groups = [[i for _, i in group] for _, group in groupby(missing, key=lambda entry: entry[1] - entry[0])]
        if groups:
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                for fetched in pool.map(self._fetch_blocks, groups):
                    blocks |= fetched
        return [self._cut(blocks, first, stop) for first, stop in spans]

    def in_parts(self, size: int) -> bool:
        """Tell whether to fetch parts that have so many bytes, and not all of a file: it is large, and not here."""
        return 2 * size < self.size and self.copy is None

    def read_array_header(self) -> tuple[tuple[tuple[int, ...], np.dtype[Any]], int]:
        """Return shape and type of an array of NumPy, and the place of its first row.

        Raises:
            ValueError: It is none, or not one whose rows lie one after the other.
        """
        (head,) = self.read_parts([(0, min(self.size, _HEAD))])
        file = io.BytesIO(head)
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("its format has another version")
        shape, by_columns, dtype = np.lib.format.read_array_header_1_0(file)
        if by_columns:
            raise ValueError("it is stored by columns")
        return (shape, dtype), file.tell()

    def read_tensor(self, name: str) -> bytes:
        """Return a safetensors file that holds only one of the tensors of this one.

        Raises:
            ValueError, KeyError, TypeError: It is none, or has no such tensor.
        """
        (head,) = self.read_parts([(0, min(self.size, 8))])
        stop = 8 + int.from_bytes(head, "little")
        if not 8 < stop <= min(self.size, _LONGEST_HEADER):
            raise ValueError("its header has no length that can be")
        (header,) = self.read_parts([(8, stop)])
        entry = parse_json(header)[name]
        first, last = entry["data_offsets"]
        if not 0 <= first <= last <= self.size - stop:
            raise ValueError(f"{name} lies outside")
        (content,) = self.read_parts([(stop + first, stop + last)])
        text = json.dumps({name: entry | {"data_offsets": [0, last - first]}}).encode()
        return len(text).to_bytes(8, "little") + text + content

    def _cut(self, blocks: Mapping[int, bytes], first: int, stop: int) -> bytes:
        """Return the bytes of a span from the blocks that it lies in."""
        start, end = first // self.BLOCK, -(-stop // self.BLOCK)
        joined = b"".join(blocks[i] for i in range(start, end))
        return joined[first - start * self.BLOCK : stop - start * self.BLOCK]

    def _fetch_blocks(self, blocks: Sequence[int]) -> dict[int, bytes]:
        """Fetch adjacent blocks with one request, and keep them."""
        first, stop = blocks[0] * self.BLOCK, min(self.size, (blocks[-1] + 1) * self.BLOCK)
        content = self._request(first, stop)
        fetched = {i: content[(i - blocks[0]) * self.BLOCK : (i - blocks[0] + 1) * self.BLOCK] for i in blocks}
        for i, block in fetched.items():
            self._keep_block(i, block)
        return fetched

    def _keep_block(self, i: int, block: bytes) -> None:
        path = self._block_path(i)
        make_folder(path.parent, NotFetched)
        with atomic_write(path, NotFetched) as temporary:
            temporary.write_bytes(block)

    def _request(self, first: int, stop: int) -> bytes:
        """Return the bytes of a span from the hub; raise NotFetched for an answer that is anything else."""
        dataset = self.dataset
        url = hf_hub_url(dataset.repo_id, self.name, repo_type="dataset", revision=dataset.commit)
        headers = build_hf_headers() | {"Range": f"bytes={first}-{stop - 1}", "Accept-Encoding": "identity"}
        with dataset.fetching():
            answer = http_backoff("GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)
            hf_raise_for_status(answer)
        if answer.status_code != 206:
            raise NotFetched(
                f"{self}: the server answers a request for a part with status {answer.status_code}, not with the part; "
                "download the dataset and open its folder instead."
            )
        part = f"bytes {first}-{stop - 1}/{self.size}"
        if answer.headers.get("Content-Range") != part or len(answer.content) != stop - first:
            raise NotFetched(
                f"{self}: the server sent {len(answer.content)} bytes as {answer.headers.get('Content-Range')!r}; "
                f"{part!r} was asked for. Try again."
            )
        return bytes(answer.content)

    def _kept_block(self, i: int) -> bytes | None:
        """Return a block from the cache, if it is there completely."""
        try:
            block = self._block_path(i).read_bytes()
        except OSError:
            return None
        return block if len(block) == min(self.BLOCK, self.size - i * self.BLOCK) else None

    def _block_path(self, i: int) -> Path:
        return _kept_folder(self.dataset.repo_id, self.dataset.commit) / "parts" / self.name / str(i)


class _RemoteFile(io.RawIOBase):
    """A file on the hub of which only what is read is fetched."""

    def __init__(self, path: HubPath) -> None:
        self.path, self._place = path, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self.path.size}[whence]
        self._place = max(0, start + offset)
        return self._place

    def readinto(self, buffer: Any) -> int:
        stop = min(self._place + len(buffer), self.path.size)
        if stop <= self._place:
            return 0
        (content,) = self.path.read_parts([(self._place, stop)])
        buffer[: len(content)] = content
        self._place = stop
        return len(content)


def open_dataset(address: str) -> HubPath:
    """Return the folder of a dataset on the hub, at the commit that a revision stands for now.

    Args:
        address: ``hf://datasets/owner/name``, with ``@revision`` if need be.

    Raises:
        BadAtlas: It is no such address, or the dataset has no manifest of an atlas.
        NotFetched: The hub does not give it, or it is not in the cache while offline.
    """
    repo_id, at, given = address.removeprefix(DATASETS).rstrip("/").partition("@")
    revision = given if at else None
    if not (address.startswith(DATASETS) and REPO_ID.fullmatch(repo_id) and (not at or REVISION.fullmatch(given))):
        raise BadAtlas(f"{address!r} is no atlas on the hub; one looks like {DATASETS}owner/name@revision.")
    try:
        with fetching(repo_id, revision, "dataset"), watched_bars():
            manifest = _manifest(repo_id, revision)
    except HFValidationError as error:
        raise BadAtlas(f"{address!r} is no atlas on the hub: {error}") from error
    commit = manifest.parent.name
    return HubPath(Dataset(repo_id, commit, _sizes(repo_id, commit)))


def _manifest(repo_id: str, revision: str | None) -> Path:
    """Return a copy of the manifest, in the folder of a commit in the hub's cache."""
    try:
        return Path(hf_hub_download(repo_id, "manifest.json", repo_type="dataset", revision=revision))
    except EntryNotFoundError as error:
        if isinstance(error, FileNotFoundError):  # the hub cannot be reached, and the cache does not have it
            raise
        raise BadAtlas(f"{DATASETS}{repo_id} is not an atlas (it has no manifest.json).") from error


def _sizes(repo_id: str, commit: str) -> dict[str, int]:
    """Return the bytes of each file of a dataset at a commit, which are kept with its parts."""
    path = _kept_folder(repo_id, commit) / "sizes.json"
    with suppress(OSError, ValueError, AttributeError):
        return _plain(load_json(path).items())
    with fetching(repo_id, commit, "dataset"):
        tree = HfApi().list_repo_tree(repo_id, recursive=True, revision=commit, repo_type="dataset")
        sizes = _plain((entry.path, entry.size) for entry in tree if isinstance(entry, RepoFile))
    make_folder(path.parent, NotFetched)
    write_json(path, sizes, NotFetched)
    return sizes


def _plain(sizes: Iterable[tuple[str, Any]]) -> dict[str, int]:
    """Return the files that are read: those with a plain name and a size."""
    return {name: size for name, size in sizes if _NAME.fullmatch(name) and type(size) is int and size >= 0}


def _kept_folder(repo_id: str, commit: str) -> Path:
    return cache_folder() / "atlases" / repo_id.replace("/", "--") / commit
