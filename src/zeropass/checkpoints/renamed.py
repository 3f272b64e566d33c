"""Tensor names that differ from those of the architecture: old names, and names with the prefix of a wrapper."""

from collections.abc import Callable, Collection, Mapping

from zeropass.checkpoints.base import Bools, Float32, TensorSource

__all__ = ["Renamed", "today", "with_today_names", "without_wrapper"]

_OLD = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
"""The old names of a LayerNorm's gain and shift, gamma and beta, that the first BERT models have."""

WRAPPERS = (
    "_orig_mod.",  # torch.compile
    "module.",  # DataParallel, DistributedDataParallel, DeepSpeed
    "_fsdp_wrapped_module.",
    "_checkpoint_wrapped_module.",
    "_forward_module.",  # Lightning Fabric
    "model.",  # modules with an attribute of this name, such as those of Lightning
    "base_model.",  # PEFT, after merging
)
"""The prefixes of tensor names in a model that was saved inside a wrapper."""


class Renamed:
    """A source whose tensors have new names (new name to the file's name); all else comes from the source."""

    def __init__(self, source: TensorSource, names: Mapping[str, str]) -> None:
        self.path: str = source.path
        self._source, self._names = source, names

    def names(self) -> list[str]:
        """Return the new names, in the order of the file(s)."""
        return list(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor, rows first."""
        return self._source.shape(self._names.get(name, name))

    def dtype(self, name: str) -> str:
        """Return the name of the stored type."""
        return self._source.dtype(self._names.get(name, name))

    def rows(
        self,
        name: str,
        start: int = 0,
        stop: int | None = None,
        columns: slice | None = None,
        spare: Bools | None = None,
    ) -> Float32:
        """Return rows of a tensor as float32 (`TensorSource.rows`)."""
        return self._source.rows(self._names.get(name, name), start, stop, columns, spare)


def with_today_names(source: TensorSource) -> TensorSource:
    """Return the source, renamed if it has old names, unless that would give two tensors the same name."""
    names = source.names()
    renamed = {today(name): name for name in names}
    return source if renamed.keys() == set(names) or len(renamed) < len(names) else Renamed(source, renamed)


def without_wrapper(source: TensorSource, fits: Callable[[Collection[str]], bool]) -> tuple[TensorSource, str]:
    """Strip the prefixes of wrappers from all names.

    Nothing is stripped if the names fit as they are, if they do not all have the same prefix, or if the stripped names
    would not fit either.

    Args:
        source: The tensors.
        fits: Tells whether names are those of a model.

    Returns:
        The source with plain names, and the prefix that was stripped (empty if none was).
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
    """Return the present name of a tensor."""
    for old, new in _OLD.items():
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name
