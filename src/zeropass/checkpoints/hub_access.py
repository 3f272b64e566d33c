"""The hub's answers as errors of zeropass. No torch."""

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from zeropass._io.progress import is_watched
from zeropass.errors import NotFetched, ZeropassError

__all__ = ["fetching", "first_line", "status_of", "watched_bars"]


_REASONS = {
    401: "was refused: log in (hf auth login, or HF_TOKEN)",
    403: "was refused: you may not read it",
    429: "was refused: it asks to wait; try again later, files that arrived whole are kept",
}
"""The meaning of the status of an answer to a reader."""


@contextmanager
def fetching(repo_id: str, revision: str | None, kind: str) -> Iterator[None]:
    """Raise NotFetched, with the reason in words, if the hub does not give what is fetched from it.

    Args:
        repo_id: The hub id, ``owner/name``.
        revision: A branch, tag or commit; None for the default branch.
        kind: ``model``, ``space`` or ``dataset``.
    """
    label = repo_id if revision is None else f"{repo_id}@{revision}"
    try:
        yield
    except (ZeropassError, HFValidationError):
        raise
    except GatedRepoError as error:
        raise NotFetched(
            f"{label} is gated: accept its terms on the hub, then log in (hf auth login, or HF_TOKEN)."
        ) from error
    except RevisionNotFoundError as error:
        raise NotFetched(f"{repo_id} has no revision {revision!r} on the hub.") from error
    except RepositoryNotFoundError as error:
        local = "" if kind == "dataset" else ", and no such local folder"
        raise NotFetched(f"There is no {kind} {label} on the hub, or it is private (then log in){local}.") from error
    except LocalEntryNotFoundError as error:
        raise NotFetched(
            f"{label} is not, or not wholly, in the hub's cache, and the hub cannot be reached or "
            f"HF_HUB_OFFLINE is set: {first_line(error)}"
        ) from error
    except Exception as error:  # releases of huggingface_hub differ in their network library and its errors
        broken = f"broke off ({first_line(error)}); try again: files that arrived whole are kept"
        reason = _REASONS.get(status_of(error), broken)
        raise NotFetched(f"Fetching {label} from the hub {reason}.") from error


def status_of(error: BaseException) -> int:
    """Return the status of the hub's answer that an error is about; 0 if it is about none."""
    response = getattr(error, "response", None)
    return int(getattr(response, "status_code", 0))


@contextmanager
def watched_bars() -> Iterator[None]:
    """Let the hub's client show its progress bars where somebody watches: in a log they would be thousands of lines."""
    if is_watched() or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message."""
    return (str(error).strip() or repr(error)).splitlines()[0]
