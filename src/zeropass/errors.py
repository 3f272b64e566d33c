"""The errors that zeropass raises on purpose; each message says what is wrong and what would be right.

ZeropassError
├── BadModel            a model file is missing, damaged, unsafe or at odds with its configuration
│   ├── UnknownFamily   the architecture is not in the table (never guessed)
│   └── BadWeights      a tensor is missing, has another shape, or holds NaN or infinite values
├── NotFetched          a model or file could not be downloaded, or is not in the cache while offline
├── NotPushed           a hub did not take an atlas
├── BadAddress          a text is not an address, or the address is out of the model's range (KeyError, ValueError)
├── UnknownWord         a text is not a single token of the vocabulary (KeyError)
├── BadOption           an option or argument has a value that cannot be used (ValueError)
├── BadAtlas            a folder is not an atlas, or is incomplete, damaged or of another version
├── BadLens            a lens is missing, damaged, or made for other weights
├── BadDictionary      a dictionary of features is missing, of an unknown kind, or made for another model
├── CannotRun           the model cannot be run here (only evidence and stitching run models)
└── MissingExtra        a command needs an extra of the package that is not installed

For any of these errors the command line prints the message and exits with code 2.
"""

from collections.abc import Iterable, Sequence

__all__ = [
    "BadAddress",
    "BadAtlas",
    "BadDictionary",
    "BadLens",
    "BadModel",
    "BadOption",
    "BadWeights",
    "CannotRun",
    "MissingExtra",
    "NotFetched",
    "NotPushed",
    "UnknownFamily",
    "UnknownWord",
    "ZeropassError",
    "in_short",
]


def in_short(parts: Iterable[str]) -> str:
    """Return the first three parts of a message, separated by commas, and the number of further parts."""
    parts = list(parts)
    return ", ".join(parts[:3]) + (f" and {len(parts) - 3} more" if len(parts) > 3 else "")


class ZeropassError(Exception):
    """The base class of all errors that zeropass raises on purpose.

    Example:
        >>> import zeropass as zp
        >>> try:
        ...     zp.parse("L1.nonsense")
        ... except zp.ZeropassError as error:
        ...     print(type(error).__name__)
        BadAddress
    """

    def __str__(self) -> str:
        return Exception.__str__(self)  # KeyError, a base of some, would quote the message


class BadModel(ZeropassError):
    """A model file that is missing, damaged, unsafe or at odds with its configuration."""


class UnknownFamily(BadModel):
    """An architecture that is not in the table of families."""


class BadWeights(BadModel):
    """A tensor that is missing, has another shape than configured, or holds NaN or infinite values."""


class NotFetched(ZeropassError):
    """A model or file that could not be downloaded, or is not in the cache while offline."""


class NotPushed(ZeropassError):
    """An atlas that a hub did not take."""


class BadAddress(ZeropassError, KeyError, ValueError):
    """A text that is not an address, or an address out of the model's range."""


class UnknownWord(ZeropassError, KeyError):
    """A text that is not a single token of the vocabulary.

    Attributes:
        text: The text that was looked up.
        suggestions: Similar texts that are tokens.
        pieces: Ids of the tokens that the tokenizer splits the text into; empty if unknown.
    """

    def __init__(
        self, message: str, text: str = "", suggestions: Sequence[str] = (), pieces: Sequence[int] = ()
    ) -> None:
        super().__init__(message)
        self.text: str = text
        self.suggestions: tuple[str, ...] = tuple(suggestions)
        self.pieces: tuple[int, ...] = tuple(pieces)


class BadOption(ZeropassError, ValueError):
    """An option or argument with a value that cannot be used."""


class BadAtlas(ZeropassError):
    """A folder that is not an atlas, or is incomplete, damaged or of another version."""


class BadLens(ZeropassError):
    """A lens that is missing, damaged, or made for other weights."""


class BadDictionary(ZeropassError):
    """A dictionary of features that is missing, of an unknown kind, or made for another model."""


class CannotRun(ZeropassError):
    """A model that cannot be run here: transformers does not know it, or runs something other than what was read."""


class MissingExtra(ZeropassError):
    """An extra of the package, such as ``zeropass[run]``, that a command needs and that is not installed."""
