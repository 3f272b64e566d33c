"""The callback by which long work reports how far it is."""

from collections.abc import Callable

__all__ = ["Progress", "silent"]

Progress = Callable[[str, int, int], None]
"""Is called with what is being done, how many steps of it are done, and how many there are."""


def silent(_what: str, _done: int, _total: int) -> None:
    """Report nothing."""
