"""Parameters in sequence, whose records are made when they are asked for."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from zeropass._io.short_repr import one_line
from zeropass.arch.frame_names import Frame
from zeropass.errors import BadOption
from zeropass.records.panels import AsFigures, Panel
from zeropass.records.parameters import Records
from zeropass.records.tabular import AsTable, Row

__all__ = ["Parameters"]

Strengths = Callable[[Sequence[str], str | None], Sequence[float]]
"""A function that returns for addresses how telling the lists of each are, in a frame or in all usual ones."""


class Parameters(Sequence[Records], AsTable, AsFigures):
    """Parameters by address: their records are made when they are asked for, and a slice is of this class again.

    Args:
        addresses: The addresses, in order.
        explain: Makes the records of an address.
        strengths: Measures how telling the lists of addresses are; None where that has no meaning.

    Attributes:
        addresses: The addresses, in order.

    Example:
        >>> import zeropass as zp
        >>> neurons = zp.load("models/first").neurons(1, role="gate")
        >>> neurons[:3], neurons[3]
        (Parameters(3: L1.ff.0.gate … L1.ff.2.gate), Records(L1.ff.3.gate token, L1.ff.3.gate output))
        >>> neurons.strongest(2).addresses
        ('L1.ff.342.gate', 'L1.ff.457.gate')
    """

    def __init__(
        self, addresses: Sequence[str], explain: Callable[[str], Records], strengths: Strengths | None = None
    ) -> None:
        self.addresses: tuple[str, ...] = tuple(addresses)
        self._explain, self._strengths = explain, strengths

    def __len__(self) -> int:
        return len(self.addresses)

    def __getitem__(self, at: Any) -> Any:
        return self._of(self.addresses[at]) if isinstance(at, slice) else self._explain(self.addresses[at])

    def __repr__(self) -> str:
        ends = dict.fromkeys((*self.addresses[:1], *self.addresses[-1:]))
        return one_line(f"Parameters({len(self)}{': ' if ends else ''}{' … '.join(ends)})")

    def strongest(self, k: int = 10, *, frame: Frame | None = None) -> "Parameters":
        """Return the k parameters with the most telling lists, best first, as an atlas orders them.

        Args:
            k: The number of parameters.
            frame: The frame of the lists; all usual ones if not given.

        Raises:
            BadOption: For head maps, which have pairs and no lists, and for a frame without lists.
        """
        if self._strengths is None:
            raise BadOption(f"{self.addresses[0]} … are head maps: they have pairs, and no lists to compare.")
        strengths = self._strengths(self.addresses, frame)
        order = sorted(range(len(self)), key=lambda place: (-strengths[place], place))
        return self._of([self.addresses[place] for place in order[:k]])

    def table_rows(self) -> Iterator[Row]:
        """Yield the rows of all records, which are made one parameter after the other."""
        for records in self:
            yield from records.table_rows()

    def panels(self) -> Iterator[Panel]:
        """Yield the panels of all records, which are made one parameter after the other."""
        for records in self:
            yield from records.panels()

    def _of(self, addresses: Sequence[str]) -> "Parameters":
        return Parameters(addresses, self._explain, self._strengths)
