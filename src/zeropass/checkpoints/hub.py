"""Models and what belongs to them on a Hugging Face hub: only files that are read are fetched, into the hub's cache.

The settings of huggingface_hub apply: ``HF_HOME`` and ``HF_HUB_CACHE`` (the cache), ``HF_ENDPOINT`` (the server),
``HF_HUB_OFFLINE`` (the cache only), ``HF_TOKEN`` (access to gated models).
"""

import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HFValidationError, HTTPError  # type: ignore[attr-defined]

from zeropass._io.untrusted import read_json
from zeropass.checkpoints.demo import MODEL_FORMS
from zeropass.checkpoints.dictionary_files import DICTIONARY_FILES
from zeropass.checkpoints.hub_access import fetching, first_line, watched_bars
from zeropass.checkpoints.hub_address import REPO_ID, REVISION
from zeropass.checkpoints.quantised import SEPARATE
from zeropass.checkpoints.weight_files import no_config, no_weights, read_index, weight_names
from zeropass.errors import BadDictionary, BadLens, BadModel, NotFetched, ZeropassError
from zeropass.tokens.tokenizer_files import TOKENIZER_FILES, other_vocabularies

__all__ = ["fetch_adapter", "fetch_dictionary", "fetch_hub", "fetch_lens", "is_lens_id"]

LENS_ID = re.compile(r"(spaces/)?([\w-][\w.-]*/[\w-][\w.-]*)((?:/[\w-][\w.-]*)*)(?:@(.+))?", re.ASCII)
"""The hub id of a lens: a repository, which may be a Space, a path in it, and a revision."""

TEXT_FILES = ["config.json", SEPARATE, *TOKENIZER_FILES]
ADAPTER_FILES = ["adapter_config.json", "adapter_model.safetensors"]
LENS_FILES = ["lens.json", "lens.safetensors", "config.json", "params.pt", "lens.pt"]


def fetch_hub(repo_id: str, revision: str | None = None) -> Path:
    """Return a folder with the configuration, tokenizer and weights of a model on the hub.

    Only those weights are fetched that would be read from a folder of the model's files (`weight_names`). Files in the
    cache are not fetched again.

    Args:
        repo_id: The hub id, ``owner/name``.
        revision: A branch, tag or commit; None for the default branch.

    Raises:
        BadModel: For an invalid hub id, and for a model without weights that zeropass reads.
        NotFetched: If there is no such model or revision, if it is gated, if the connection breaks, or if it is not in
            the cache while offline.
    """
    label = repo_id if revision is None else f"{repo_id}@{revision}"
    if not REPO_ID.fullmatch(repo_id) or not (revision is None or REVISION.fullmatch(revision)):
        raise BadModel(f"{label!r} is no hub id. {MODEL_FORMS}")
    folder = _snapshot(repo_id, revision, TEXT_FILES)
    listed, reason = _list_files(repo_id, revision)
    names = [file.name for file in folder.iterdir()] if listed is None else listed
    if "config.json" not in names:
        raise no_config(label, names)
    choice = weight_names(label, names, read_json(folder / "config.json"))
    if choice is None and listed is None:
        raise NotFetched(
            f"The weights of {label} are not in the hub's cache, and the hub cannot be reached or HF_HUB_OFFLINE is "
            f"set: {reason}"
        )
    if choice is None:
        raise no_weights(label, names)
    if listed is None:
        return folder
    texts = [*TEXT_FILES, *other_vocabularies(names)]
    if choice.index:
        index = _snapshot(repo_id, revision, [*texts, choice.index]) / choice.index
        return _snapshot(repo_id, revision, [*texts, choice.index, *sorted(set(read_index(index).values()))])
    return _snapshot(repo_id, revision, [*texts, *choice.files])


def fetch_adapter(name: str) -> Path:
    """Return the local folder of an adapter on the hub, after fetching what the cache lacks.

    Args:
        name: ``owner/name``, with the path of a folder in the repository and ``@revision`` if need be. Only the
            configuration and the tensors are fetched.

    Raises:
        BadModel: If it is no hub id, or there is no adapter.
        NotFetched: As for a model (`fetch_hub`).
    """
    match = LENS_ID.fullmatch(name)
    listed = _list_files(match[2], match[4])[0] if match else None
    if match and listed is not None and f"{match[3]}/{ADAPTER_FILES[0]}".removeprefix("/") not in listed:
        raise BadModel(f"{name} holds no adapter on the hub: it has no {ADAPTER_FILES[0]}.")
    return _fetch_part(name, ADAPTER_FILES, "adapter", BadModel)


def is_lens_id(name: str) -> bool:
    """Tell whether a name that is no path can be the hub id of a lens, or of what else is fetched like one."""
    return LENS_ID.fullmatch(name) is not None


def fetch_lens(name: str) -> Path:
    """Return the local path of a lens on the hub, a file or a folder, after fetching what the cache lacks.

    Args:
        name: ``owner/name``, behind ``spaces/`` for a Space, with the path of a file or folder in the repository and
            ``@revision`` if need be, as in ``spaces/AlignmentResearch/tuned-lens/lens/gpt2`` or
            ``neuronpedia/jacobian-lens/qwen3-4b/lens.pt``. Of a folder only the files of lenses are fetched.

    Raises:
        BadLens: If the repository holds no such file or folder of a lens.
        NotFetched: As for a model (`fetch_hub`).
    """
    return _fetch_part(name, LENS_FILES, "lens", BadLens)


def fetch_dictionary(name: str) -> Path:
    """Return the local folder of a dictionary of features on the hub, after fetching what the cache lacks.

    Args:
        name: ``owner/name`` with the path of a folder in the repository and ``@revision`` if need be, as in
            ``google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71``. Only the files of dictionaries are
            fetched.

    Raises:
        BadDictionary: If the repository holds no such folder of a dictionary.
        NotFetched: As for a model (`fetch_hub`).
    """
    return _fetch_part(name, DICTIONARY_FILES, "dictionary", BadDictionary)


def _fetch_part(name: str, files: Sequence[str], what: str, failure: type[ZeropassError]) -> Path:
    """Return a file or folder of a repository, after fetching those files of it that the cache lacks.

    Args:
        name: Its hub id, with the path in the repository.
        files: Patterns of files, of a folder.
        what: What it should hold, for messages.
        failure: The error to raise if it holds none of the files.
    """
    match = LENS_ID.fullmatch(name)
    if match is None or not (match[4] is None or REVISION.fullmatch(match[4])):
        raise failure(f"{name!r} is no hub id of a {what}; one looks like owner/name/path@revision.")
    place = match[3].removeprefix("/")
    patterns = [place] if place.endswith(".pt") else [f"{place}/{file}".removeprefix("/") for file in files]
    path = _snapshot(match[2], match[4], patterns, "space" if match[1] else "model") / place
    if not path.exists():
        raise failure(
            f"Of {match[1] or ''}{match[2]} there is no {what} {place!r} on the hub, or in its cache if offline."
        )
    return path


def _list_files(repo_id: str, revision: str | None) -> tuple[list[str] | None, str]:
    """Return the names of a model's files on the hub; None, and the reason, if it cannot be reached or refuses."""
    try:
        return HfApi().list_repo_files(repo_id, revision=revision), ""
    except (OSError, HTTPError) as error:  # requests derives its errors from the first, httpx from its HTTPError
        return None, first_line(error)
    except Exception as error:
        raise NotFetched(f"The hub's list of the files of {repo_id} cannot be read: {first_line(error)}") from error


def _snapshot(repo_id: str, revision: str | None, patterns: list[str], kind: str = "model") -> Path:
    """Fetch the files of a repository that match some patterns, and return their folder."""
    try:
        with fetching(repo_id, revision, kind), watched_bars():
            return Path(snapshot_download(repo_id, repo_type=kind, revision=revision, allow_patterns=patterns))
    except HFValidationError as error:
        label = repo_id if revision is None else f"{repo_id}@{revision}"
        raise BadModel(f"{label!r} is no hub id: {first_line(error)} {MODEL_FORMS}") from error
