"""Models of a Hugging Face hub: only the files that zeropass reads are fetched, into the hub's own cache.

The settings of huggingface_hub apply: ``HF_HOME`` and ``HF_HUB_CACHE`` (where), ``HF_ENDPOINT`` (from which
server), ``HF_HUB_OFFLINE`` (only from the cache), ``HF_TOKEN`` (for gated models).
"""

import re
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from zeropass._io.untrusted import read_json
from zeropass.checkpoints.demo import MODEL_FORMS
from zeropass.checkpoints.weight_files import no_config, no_weights, read_index, weight_names
from zeropass.errors import BadModel, NotFetched
from zeropass.tokens.tokenizer_files import TOKENIZER_FILES, other_vocabularies

__all__ = ["fetch_hub"]

REPO_ID = re.compile(r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*", re.ASCII)
REVISION = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*", re.ASCII)

TEXT_FILES = ["config.json", *TOKENIZER_FILES]


def fetch_hub(repo_id: str, revision: str | None = None) -> Path:
    """Folder with the configuration, tokenizer and weights of a model on the hub.

    Of the weights those are fetched that would be read in a folder of these files (`weight_names`), and no others.
    What the cache has is not fetched again.

    Raises BadModel for what is no hub id and for a model without weights that are read, NotFetched if there is no such
    model or revision, if it is gated, if the connection breaks, or if the cache does not have it while offline.
    """
    named = repo_id if revision is None else f"{repo_id}@{revision}"
    if not REPO_ID.fullmatch(repo_id) or not (revision is None or REVISION.fullmatch(revision)):
        raise BadModel(f"{named!r} is no hub id. {MODEL_FORMS}")
    folder = _snapshot(repo_id, revision, TEXT_FILES)
    listed = _listed(repo_id, revision)
    names = [file.name for file in folder.iterdir()] if listed is None else listed
    if "config.json" not in names:
        raise no_config(named, names)
    choice = weight_names(named, names, read_json(folder / "config.json"))
    if choice is None and listed is None:
        raise NotFetched(
            f"The weights of {named} are not in the hub's cache, and the hub cannot be reached or HF_HUB_OFFLINE is "
            "set."
        )
    if choice is None:
        raise no_weights(named, names)
    if listed is None:
        return folder
    texts = [*TEXT_FILES, *other_vocabularies(names)]
    if choice.index:
        index = _snapshot(repo_id, revision, [*texts, choice.index]) / choice.index
        return _snapshot(repo_id, revision, [*texts, choice.index, *sorted(set(read_index(index).values()))])
    return _snapshot(repo_id, revision, [*texts, *choice.files])


def _listed(repo_id: str, revision: str | None) -> list[str] | None:
    """Names of the files of a model on the hub; None where it cannot be asked, and the cache has to do."""
    try:
        return HfApi().list_repo_files(repo_id, revision=revision)
    except Exception:  # releases of the hub's client differ in their network library and its errors
        return None


def _snapshot(repo_id: str, revision: str | None, patterns: list[str]) -> Path:
    named = repo_id if revision is None else f"{repo_id}@{revision}"
    try:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=patterns))
    except HFValidationError as error:
        raise BadModel(f"{named!r} is no hub id: {_first_line(error)} {MODEL_FORMS}") from error
    except GatedRepoError as error:
        raise NotFetched(
            f"{named} is gated: accept its terms on the hub, then log in (hf auth login, or HF_TOKEN)."
        ) from error
    except RevisionNotFoundError as error:
        raise NotFetched(f"{repo_id} has no revision {revision!r} on the hub.") from error
    except RepositoryNotFoundError as error:
        raise NotFetched(
            f"There is no model {named} on the hub, or it is private (then log in), and no such local folder."
        ) from error
    except LocalEntryNotFoundError as error:
        raise NotFetched(
            f"{named} is not, or not wholly, in the hub's cache, and the hub cannot be reached or "
            f"HF_HUB_OFFLINE is set: {_first_line(error)}"
        ) from error
    except Exception as error:  # releases of the hub's client differ in their network library and its errors
        raise NotFetched(
            f"Fetching {named} from the hub broke off ({_first_line(error)}); "
            "try again: files that arrived whole are kept."
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0]
