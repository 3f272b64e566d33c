"""Models of a Hugging Face hub: only the files that zeropass reads are fetched, into the hub's own cache.

The settings of huggingface_hub apply: ``HF_HOME`` and ``HF_HUB_CACHE`` (where), ``HF_ENDPOINT`` (from which
server), ``HF_HUB_OFFLINE`` (only from the cache), ``HF_TOKEN`` (for gated models).
"""

import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from zeropass.errors import BadModel, NotFetched
from zeropass.sources.demo import MODEL_FORMS
from zeropass.sources.tokenizers import TOKENIZER_FILES, other_vocabularies

__all__ = ["fetch_hub"]

REPO_ID = re.compile(r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*", re.ASCII)
REVISION = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*", re.ASCII)

TEXT_FILES = ["config.json", *TOKENIZER_FILES]
SAFETENSORS = ["model.safetensors", "model.safetensors.index.json", "model*-of-*.safetensors"]
PYTORCH = ["pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model*-of-*.bin"]


def fetch_hub(repo_id: str, revision: str | None = None) -> Path:
    """Folder with the configuration, tokenizer and weights of a model on the hub.

    Weights are the safetensors files, or PyTorch's .bin files if the model has no safetensors.
    What the cache has is not fetched again.

    Raises BadModel for what is no hub id, NotFetched if there is no such model or revision, if it is gated,
    if the connection breaks, or if the cache does not have it while offline.
    """
    if not REPO_ID.fullmatch(repo_id) or not (revision is None or REVISION.fullmatch(revision)):
        given = repo_id if revision is None else f"{repo_id}@{revision}"
        raise BadModel(f"{given!r} is no hub id. {MODEL_FORMS}")
    folder = _snapshot(repo_id, revision, TEXT_FILES + SAFETENSORS)
    if not any(folder.glob("*.safetensors")):
        folder = _snapshot(repo_id, revision, TEXT_FILES + PYTORCH)
    if others := other_vocabularies(file.name for file in folder.glob("*")):
        folder = _snapshot(repo_id, revision, others)
    return folder


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
