"""Names of tensors that are not those of a record: old ones, and those that a wrapper around the model gave them."""

from collections.abc import Callable, Collection, Mapping

from zeropass.checkpoints.base import Bools, Float32, TensorSource

__all__ = ["Renamed", "today", "with_today_names", "without_wrapper"]

_OLD = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
"""The first BERTs call the gain and the shift of a LayerNorm gamma and beta."""

WRAPPERS = (
    "_orig_mod.",  # torch.compile
    "module.",  # DataParallel, DistributedDataParallel, DeepSpeed
    "_fsdp_wrapped_module.",
    "_checkpoint_wrapped_module.",
    "_forward_module.",  # Lightning Fabric
    "model.",  # modules that keep their model under this name, as those of Lightning do
    "base_model.",  # PEFT's, when merged
)
"""What stands before the names of a model that was saved with what it was wrapped in."""


class Renamed:
    """A source whose tensors answer to other names (new name -> the file's); everything else is the source's own."""

    def __init__(self, source: TensorSource, names: Mapping[str, str]) -> None:
        self.path, self._source, self._names = source.path, source, names

    def names(self) -> list[str]:
        """The new names, in the order of the file(s)."""
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
    renamed = {today(name): name for name in names}
    return source if renamed.keys() == set(names) or len(renamed) < len(names) else Renamed(source, renamed)


def without_wrapper(source: TensorSource, fits: Callable[[Collection[str]], bool]) -> tuple[TensorSource, str]:
    """Strip from all names what wrappers put before them.

    Nothing is stripped where the names fit as they are, where not all of them have the same wrapper, and where what is
    left would not fit either.

    Args:
        source: the tensors.
        fits: says whether names are those of a model.

    Returns:
        The source with plain names, and what was stripped (``""``: nothing).
    """
    names = source.names()
    wrapper = ""
    while names and not fits({name.removeprefix(wrapper) for name in names}):
        inner = next((inner for inner in WRAPPERS if all(name.startswith(wrapper + inner) for name in names)), None)
        if inner is None:
            return source, ""
        wrapper += inner
    return (Renamed(source, {name.removeprefix(wrapper): name for name in names}), wrapper) if wrapper else (source, "")


def today(name: str) -> str:
    """Today's name of a tensor."""
    for old, new in _OLD.items():
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name
