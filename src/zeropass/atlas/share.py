"""Push an atlas to a dataset repository of a hub, with a card that says what it is."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from safetensors import SafetensorError, safe_open

from zeropass._io.parse import load_json
from zeropass._io.short_repr import ShortRepr
from zeropass.arch.frame_names import ALL_FRAMES, LENS_FACTS, LENS_MAPS, judge_space, space_of
from zeropass.arch.roles import MAP_ROLES, SELF_MAPS, Side
from zeropass.atlas.card import UNKNOWN, card, is_edited
from zeropass.atlas.read import Atlas, open_atlas
from zeropass.atlas.schema import (
    COHERENCE,
    LENS,
    MANIFEST,
    PARAMETERS,
    PLAN,
    SCHEMA_VERSION,
    TOKEN_INDEX,
    TOKENIZER,
    TOKENS,
    factor_file,
    file_name,
    layers_with,
    lists_file,
    pairs_file,
    read_json,
    safe_name,
    vector_file,
)
from zeropass.checkpoints.hub_access import first_line, status_of, watched_bars
from zeropass.checkpoints.hub_address import DATASETS, REPO_ID
from zeropass.errors import BadAtlas, BadOption, NotPushed, ZeropassError, in_short

__all__ = ["Push", "push_atlas"]

CARD = "README.md"
LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*", re.ASCII)


@dataclass(frozen=True, repr=False)
class Push(ShortRepr):
    """The result of a push, carried out or only checked.

    Attributes:
        address: The address that `open_atlas` opens.
        commit: The commit that holds it; empty if nothing was pushed.
        files: The number of files of the atlas.
        bytes: Their size.
        card: The text of the card.
        kept_card: True if the hub has a card that was edited there, which stays.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> import zeropass as zp
        >>> options = zp.Options(k=10, layers=(1, 2), roles=("gate",))
        >>> with TemporaryDirectory() as folder:
        ...     fresh = zp.build(zp.open_model("models/first"), folder, options)
        ...     push = zp.push_atlas(folder, "owner/first-atlas", dry_run=True)
        >>> print(push.card.split("---")[2].strip().splitlines()[0])
        # Atlas of `models/first`
    """

    address: str
    commit: str
    files: int
    bytes: int
    card: str
    kept_card: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return a dict that json.dumps accepts."""
        return asdict(self)


def push_atlas(
    folder: str | Path, repo_id: str, *, private: bool = False, license_id: str = UNKNOWN, dry_run: bool = False
) -> Push:
    """Push an atlas to a dataset repository of a hub, which is made if it is missing, with a card.

    All changes are one commit: a reader sees the atlas as it was, or the new one. Files that the hub has are not sent
    again, so a push that was stopped continues. Files of an earlier atlas that this one lacks are removed from the
    repository; its other files stay, and so does a card that was edited.

    Args:
        folder: The folder of a complete atlas.
        repo_id: The hub id, ``owner/name``.
        private: Whether a new repository is private.
        license_id: The licence of the model's weights, as hubs name it: ``apache-2.0``.
        dry_run: Check the atlas and write the card, but send nothing.

    Raises:
        BadAtlas: The folder is not a complete atlas, is damaged, or has files that do not belong to one.
        BadOption: The hub id or licence cannot be one, or a private repository is asked for and it is public.
        NotPushed: The hub refuses, or cannot be reached.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> import zeropass as zp
        >>> options = zp.Options(k=10, layers=(1, 2), roles=("gate",))
        >>> with TemporaryDirectory() as folder:
        ...     fresh = zp.build(zp.open_model("models/first"), folder, options)
        ...     push = zp.push_atlas(folder, "owner/first-atlas", dry_run=True)
        >>> push.address, push.commit, push.files
        ('hf://datasets/owner/first-atlas', '', 15)
    """
    repo_id = repo_id.removeprefix(DATASETS)
    if not REPO_ID.fullmatch(repo_id):
        raise BadOption(f"{repo_id!r} is no hub id of a dataset; one looks like owner/name.")
    if not LICENSE.fullmatch(license_id):
        raise BadOption(f"{license_id!r} is no licence that a hub knows; one looks like apache-2.0 or unknown.")
    atlas, path = open_atlas(folder), Path(folder)
    if not isinstance(atlas.path, Path):
        raise BadAtlas(f"{folder} is on the hub already; push takes a folder on this machine.")
    files = checked_files(atlas, path)
    push = Push(
        address=f"{DATASETS}{repo_id}",
        commit="",
        files=len(files),
        bytes=sum((path / file).stat().st_size for file in files),
        card=card(atlas, repo_id, license_id),
    )
    return push if dry_run else _pushed(push, path, files, repo_id, private)


def _pushed(push: Push, folder: Path, files: list[str], repo_id: str, private: bool) -> Push:
    """Push the checked files of an atlas and its card."""
    api = HfApi()
    with _pushing(repo_id):
        api.create_repo(repo_id, repo_type="dataset", private=private or None, exist_ok=True)
        remote = api.dataset_info(repo_id)
        if private and not remote.private:
            raise BadOption(
                f"{repo_id} is there already, and public: make it private on the hub, or leave out private."
            )
        names = {entry.rfilename for entry in remote.siblings or ()}
        kept_card = CARD in names and is_edited(_text_of(api, repo_id, CARD))
        operations: list[Any] = [CommitOperationAdd(file, str(folder / file)) for file in files]
        if not kept_card:
            operations.append(CommitOperationAdd(CARD, push.card.encode()))
        operations += [CommitOperationDelete(name) for name in sorted(names - set(files)) if _of_an_atlas(name)]
        message = f"Atlas of {push.files} files, schema {SCHEMA_VERSION}"
        commit = api.create_commit(
            repo_id, operations, commit_message=message, repo_type="dataset", parent_commit=remote.sha
        )
    return replace(push, commit=commit.oid, kept_card=kept_card)


def _text_of(api: HfApi, repo_id: str, name: str) -> str:
    """Return the text of a file of a dataset."""
    return Path(api.hf_hub_download(repo_id, name, repo_type="dataset")).read_text("utf-8", "replace")


_LOG_IN = "log in with a token that may write (hf auth login, or HF_TOKEN)"

_REASONS = {
    401: f"the hub does not know you: {_LOG_IN}",
    403: f"you may not write there: {_LOG_IN}, or choose another owner",
    404: "there is no such owner, or you may not see it",
    412: "it was changed in the meantime; push again",
    413: "the hub takes no files of this size",
    429: "the hub asks to wait; push again later, what arrived is kept",
}
"""The meaning of the status of an answer to a push."""


@contextmanager
def _pushing(repo_id: str) -> Iterator[None]:
    """Raise NotPushed, with the reason in words, if the hub does not take a push."""
    try:
        with watched_bars():
            yield
    except ZeropassError:
        raise
    except HFValidationError as error:
        raise BadOption(f"{repo_id!r} is no hub id of a dataset: {first_line(error)}") from error
    except RepositoryNotFoundError as error:
        raise NotPushed(f"The hub gives you no dataset {repo_id}: {_LOG_IN}.") from error
    except Exception as error:  # releases of huggingface_hub differ in their network library and its errors
        cause = error.__cause__ if isinstance(error.__cause__, HfHubHTTPError) else error  # an upload wraps its error
        broken = f"it broke off ({first_line(cause)}); push again, what arrived is kept"
        raise NotPushed(f"{repo_id} was not pushed: {_REASONS.get(status_of(cause), broken)}.") from error


_TOP = (MANIFEST, PLAN, TOKENS, TOKENIZER, PARAMETERS, TOKEN_INDEX, COHERENCE)


def _of_an_atlas(name: str) -> bool:
    """Tell whether a file of a repository has a place where those of an atlas are."""
    return name in _TOP or name.startswith(("rows/", "vectors/", "lists/", "pairs/", f"{LENS}/"))


def checked_files(atlas: Atlas, folder: Path) -> list[str]:
    """Return the names of all files of an atlas, after a check of each that is as quick as opening it.

    Raises:
        BadAtlas: A file is missing, damaged, or does not belong to the atlas.
    """
    required, allowed = _belonging(atlas)
    present = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise BadAtlas(f"{path} is a link, a device or a pipe; an atlas has files and folders only.")
        if path.is_file():
            present[name] = path
    if unknown := [name for name in present if name not in allowed]:
        raise BadAtlas(f"{folder} has files that do not belong to its atlas: {in_short(unknown)}; move them elsewhere.")
    if missing := sorted(required - set(present)):
        raise BadAtlas(f"{folder} lacks {in_short(missing)}; delete it and build it again.")
    _check(atlas, present)
    return sorted(present)


def _belonging(atlas: Atlas) -> tuple[set[str], set[str]]:
    """Return the names of the files that an atlas must have, and of all that it may have."""
    names, spaces = set(_TOP), {atlas.space(run) for run in atlas.runs}
    for run in atlas.runs:
        names.add(lists_file(file_name(run.layer, run.role)))
        names.add(f"vectors/{vector_file(run.layer, run.role, run.frame)}")
        if atlas.is_relative(run):
            names.add(f"vectors/{factor_file(run.layer, run.role, run.frame)}")
    if atlas.lens:
        names |= {f"{LENS}/{LENS_FACTS}", f"{LENS}/{LENS_MAPS}"}
    wanted = atlas.options.get("roles") or SELF_MAPS
    attending = layers_with("attention", atlas.model, range(*atlas.layers))
    maps = {role: {pairs_file(layer, role) for layer in attending} for role in MAP_ROLES}
    if not (atlas.is_change or atlas.is_dictionary):  # a change has maps of heads that changed, a dictionary has none
        names |= {file for role in SELF_MAPS if role in wanted for file in maps[role]}
    others = set().union(*maps.values())
    sides: tuple[Side, ...] = ("read", "write")
    for frame, side, layer, bare in product(ALL_FRAMES, sides, (0, atlas.model["layers"]), (False, True)):
        with suppress(BadOption):  # not every frame has both sides
            others |= _rows(space_of(frame, side, layer, bare))
    names |= {file for space in spaces for file in _rows(space)}
    return names, names | others | {file for side in sides for file in _rows(judge_space(side))}


def _rows(space: str) -> set[str]:
    """Return the names of the files of a space."""
    return {f"rows/{safe_name(space)}.npy", f"rows/{safe_name(space)}.moments.npy"}


def _check(atlas: Atlas, present: Mapping[str, Path]) -> None:
    """Raise BadAtlas, naming the file, for one that cannot be read or has another size than it should."""
    counts = {PARAMETERS: atlas.manifest["lists"], TOKENS: atlas.model["vocabulary"]}
    for run in atlas.runs:
        file = lists_file(file_name(run.layer, run.role))
        counts[file] = counts.get(file, 0) + run.count
        atlas.vectors(run)
        atlas.factors(run)
    for name, path in present.items():
        try:
            if name.endswith(".parquet"):
                rows = pq.read_metadata(path).num_rows
                if rows != counts.get(name, rows):
                    raise BadAtlas(f"{path} has {rows} rows instead of {counts[name]}; build it again.")
            elif name.endswith(".moments.npy"):
                atlas.moments(path.name.removesuffix(".moments.npy"))
            elif name.startswith("rows/"):
                atlas.rows(path.stem)
            elif name.endswith(".safetensors"):
                with safe_open(path, framework="np"):
                    pass
            elif name == TOKENIZER:
                load_json(path)
            elif name.endswith(".json"):
                read_json(path)
        except (OSError, ValueError, pa.ArrowException, SafetensorError) as error:
            raise BadAtlas(f"{path} cannot be read ({first_line(error)}); build it again.") from error
