"""Records from what JSON made of them: every field of a saved file is checked against its type before it is used."""

from dataclasses import MISSING, fields, is_dataclass
from functools import lru_cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

__all__ = ["from_json"]

Record = TypeVar("Record")

LARGEST = 1e100
"""No number that was saved is larger: they come from float32. Sums and squares of such ones do not overflow."""


def from_json(kind: type[Record], value: Any, name: str = "it") -> Record:
    """Return the record of a dataclass from its `dataclasses.asdict`, after a round through JSON.

    Fields may be other records, tuples, dictionaries by text, literals, unions, numbers and texts. A field that has a
    default may be missing; one that the record does not have is an error, and so is a number beyond `LARGEST`, or none.
    Raises ValueError, naming the place.
    """
    return _typed(kind, value, name)  # type: ignore[no-any-return]


def _typed(kind: Any, value: Any, name: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if is_dataclass(kind):
        return _record(kind, value, name)
    if origin in (Union, UnionType):
        return _one_of(arguments, value, name)
    if origin is Literal:
        return value if value in arguments else _wrong(" or ".join(map(repr, arguments)), value, name)
    if origin is tuple and isinstance(value, list | tuple):
        return _tuple(arguments, value, name)
    if origin is dict and isinstance(value, dict):
        return {key: _typed(arguments[1], inner, f"{name}.{key}") for key, inner in value.items()}
    if kind is float and type(value) in (int, float) and abs(value) <= LARGEST:
        return float(value)
    if kind in (int, str, bool, dict, NoneType) and type(value) is kind:
        return value
    return _wrong(str(getattr(kind, "__name__", kind)), value, name)


def _record(kind: Any, value: Any, name: str) -> Any:
    if not isinstance(value, dict):
        return _wrong(f"an object of {kind.__name__}", value, name)
    types, own = _hints(kind), {field.name: field for field in fields(kind)}
    if unknown := sorted(value.keys() - own.keys()):
        raise ValueError(f"{name} has {unknown[0]!r}, which {kind.__name__} does not know")
    for key, field in own.items():
        if key not in value and field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{name} lacks {key!r}")
    return kind(**{key: _typed(types[key], inner, f"{name}.{key}") for key, inner in value.items()})


@lru_cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _tuple(kinds: tuple[Any, ...], value: Any, name: str) -> tuple[Any, ...]:
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        return tuple(_typed(kinds[0], inner, f"{name}[{n}]") for n, inner in enumerate(value))
    if len(kinds) != len(value):
        raise ValueError(f"{name} has {len(value)} entries instead of {len(kinds)}")
    return tuple(_typed(kind, inner, f"{name}[{n}]") for n, (kind, inner) in enumerate(zip(kinds, value, strict=True)))


def _one_of(kinds: tuple[Any, ...], value: Any, name: str) -> Any:
    """The first of several types that the value fits; of records that none fits, the error is the last one's."""
    if value is None and NoneType in kinds:
        return None
    kinds = tuple(kind for kind in kinds if kind is not NoneType)
    for kind in kinds[:-1]:
        try:
            return _typed(kind, value, name)
        except ValueError:
            continue
    return _typed(kinds[-1], value, name)


def _wrong(wanted: str, value: Any, name: str) -> Any:
    shown = repr(value) if isinstance(value, int | float | bool | NoneType) else f"a {type(value).__name__}"
    raise ValueError(f"{name} is {shown[:60]}, which is not {wanted}")
