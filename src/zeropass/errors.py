"""Every error that zeropass raises on purpose; the message says what was found and what would be right.

ZeropassError
├── BadModel            a file of a model is missing, damaged, unsafe or at odds with its configuration
│   ├── UnknownFamily   the architecture is not in the table (never guessed)
│   └── BadWeights      a tensor is missing, has another shape, or holds NaN or infinite values
├── NotFetched          a model or file could not be downloaded, or is not in the cache while offline
├── BadAddress          not an address, or out of the model's range
├── UnknownWord         text that is not one token of the vocabulary
├── BadOption           an option or argument has a value that cannot be used
├── BadAtlas            a folder is not an atlas, not complete, or of another version
├── CannotRun           the model cannot be run here (only evidence and stitching run one)
└── MissingExtra        a command needs an extra of the package that is not installed

The command line prints the message of any of them and exits with code 2.
"""

from collections.abc import Iterable, Sequence

__all__ = [
    "BadAddress",
    "BadAtlas",
    "BadModel",
    "BadOption",
    "BadWeights",
    "CannotRun",
    "MissingExtra",
    "NotFetched",
    "UnknownFamily",
    "UnknownWord",
    "ZeropassError",
    "in_short",
]


def in_short(parts: Iterable[str]) -> str:
    """Return the first three parts of a message with commas between them, and how many more there are."""
    parts = list(parts)
    return ", ".join(parts[:3]) + (f" and {len(parts) - 3} more" if len(parts) > 3 else "")


class ZeropassError(Exception):
    """Base of all errors that zeropass raises on purpose."""


class BadModel(ZeropassError):
    """A file of a model is missing, damaged, unsafe or at odds with its configuration."""


class UnknownFamily(BadModel):
    """The model's architecture is not in the table of families."""


class BadWeights(BadModel):
    """A tensor is missing, has another shape than configured, or holds NaN or infinite values."""


class NotFetched(ZeropassError):
    """A model or a file could not be downloaded, or is not in the cache while offline."""


class BadAddress(ZeropassError):
    """Not an address, or an address out of the model's range."""


class UnknownWord(ZeropassError):
    """Text that is not a single token of the vocabulary.

    ``text`` is what was asked for, ``suggestions`` are texts like it that are tokens, ``pieces`` the ids of the tokens
    that the tokenizer splits it into; empty where that is not known.
    """

    def __init__(
        self, message: str, text: str = "", suggestions: Sequence[str] = (), pieces: Sequence[int] = ()
    ) -> None:
        super().__init__(message)
        self.text, self.suggestions, self.pieces = text, tuple(suggestions), tuple(pieces)


class BadOption(ZeropassError):
    """An option or argument has a value that cannot be used."""


class BadAtlas(ZeropassError):
    """A folder is not an atlas, not complete, damaged, or of another version."""


class CannotRun(ZeropassError):
    """The model cannot be run here: transformers does not know it, or runs something else than what was read."""


class MissingExtra(ZeropassError):
    """A command needs an extra of the package, such as ``zeropass[run]``, that is not installed."""
