"""Old names of tensors: the first BERTs call the gain and the shift of a LayerNorm gamma and beta."""

from zeropass.sources.base import Bools, Float32, TensorSource

__all__ = ["Renamed", "with_today_names"]

_OLD = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


class Renamed:
    """A source whose tensors answer to today's names; everything else is that of the source itself."""

    def __init__(self, source: TensorSource) -> None:
        self.path, self._source = source.path, source
        self._names = {_today(name): name for name in source.names()}

    def names(self) -> list[str]:
        """Today's names, in the order of the file(s)."""
        return list(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, rows first."""
        return self._source.shape(self._names.get(name, name))

    def dtype(self, name: str) -> str:
        """Name of the stored type."""
        return self._source.dtype(self._names.get(name, name))

    def rows(
        self,
        name: str,
        start: int = 0,
        stop: int | None = None,
        columns: slice | None = None,
        spare: Bools | None = None,
    ) -> Float32:
        """Rows ``start:stop`` (and, of a matrix, ``columns``) as float32."""
        return self._source.rows(self._names.get(name, name), start, stop, columns, spare)


def with_today_names(source: TensorSource) -> TensorSource:
    """The source itself, or renamed where it has old names. A file with both an old and a new one keeps them apart."""
    names = source.names()
    today = {_today(name) for name in names}
    return source if today == set(names) or len(today) < len(names) else Renamed(source)


def _today(name: str) -> str:
    for old, new in _OLD.items():
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name
