"""Results as tables: plain rows, one observation each, which pandas takes. No torch, and no pandas until asked."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, overload

if TYPE_CHECKING:
    import pandas

    from zeropass.records.parameters import TokenScore

__all__ = ["POLES", "AsTable", "Row", "Several", "plain_fields", "token_rows"]

Row = dict[str, Any]
"""One row of a table: column name to value."""

POLES = ("+", "−")
"""The signs of the two poles of a list."""

Item = TypeVar("Item")


class AsTable:
    """A result that converts to a table."""

    def table_rows(self) -> Iterator[Row]:
        """Yield the rows of the table."""
        raise NotImplementedError

    def to_pandas(self) -> "pandas.DataFrame":
        """Return the rows as a data frame of pandas.

        Raises:
            MissingExtra: If pandas is not installed.
        """
        frame: pandas.DataFrame = import_module("zeropass.records.pandas_tables").data_frame(list(self.table_rows()))
        return frame


class Several(Generic[Item]):
    """A dataclass that is a sequence of one of its fields, named by ``_ITEMS``; a slice of it is of its own class."""

    _ITEMS = ""

    def __len__(self) -> int:
        return len(self._items)

    def __bool__(self) -> bool:
        return True  # as any other result; its length says whether it is empty

    def __iter__(self) -> Iterator[Item]:
        return iter(self._items)

    @overload
    def __getitem__(self, at: int) -> Item: ...

    @overload
    def __getitem__(self, at: slice) -> Self: ...

    def __getitem__(self, at: int | slice) -> Item | Self:
        if isinstance(at, slice):
            return replace(self, **{self._ITEMS: self._items[at]})  # type: ignore[type-var]
        return self._items[at]

    @property
    def _items(self) -> Sequence[Item]:
        items: Sequence[Item] = getattr(self, self._ITEMS)
        return items


def plain_fields(value: Any, *left_out: str) -> Row:
    """Return the fields of a dataclass that are texts, numbers or truth values, or None."""
    shown = {f.name: getattr(value, f.name) for f in fields(value) if f.name not in left_out}
    return {name: field for name, field in shown.items() if field is None or isinstance(field, str | int | float)}


def token_rows(place: Row, top: Iterable["TokenScore"], bottom: Iterable["TokenScore"]) -> Iterator[Row]:
    """Yield a row for each token of both poles of a list, after the columns that all of them share."""
    for pole, tokens in zip(POLES, (top, bottom), strict=True):
        for rank, token in enumerate(tokens):
            yield {**place, "pole": pole, "rank": rank, **plain_fields(token)}
