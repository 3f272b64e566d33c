"""Records read back from JSON, with every field of a saved file checked against its type before it is used."""

from dataclasses import MISSING, fields, is_dataclass
from functools import lru_cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

__all__ = ["from_json"]

Record = TypeVar("Record")

LARGEST = 1e100
"""The largest number that is accepted; saved numbers come from float32. Sums and squares up to it do not overflow."""


def from_json(record_type: type[Record], value: Any, name: str = "it") -> Record:
    """Return a record of a dataclass from its `dataclasses.asdict` after a round trip through JSON.

    Fields may be other records, tuples, dictionaries with text keys, literals, unions, numbers and texts. A field with
    a default may be missing.

    Args:
        record_type: The dataclass.
        value: The parsed JSON.
        name: The name of the value in messages.

    Raises:
        ValueError: For a missing or unknown field, a wrong type, NaN, or a number beyond `LARGEST`; it names the place.
    """
    return _typed(record_type, value, name)  # type: ignore[no-any-return]


def _typed(expected: Any, value: Any, name: str) -> Any:
    origin, arguments = get_origin(expected), get_args(expected)
    if expected is Any:
        return value
    if is_dataclass(expected):
        return _record(expected, value, name)
    if origin in (Union, UnionType):
        return _union(arguments, value, name)
    if origin is Literal:
        return value if value in arguments else _wrong(" or ".join(map(repr, arguments)), value, name)
    if origin is tuple and isinstance(value, list | tuple):
        return _tuple(arguments, value, name)
    if origin is dict and isinstance(value, dict):
        return {key: _typed(arguments[1], inner, f"{name}.{key}") for key, inner in value.items()}
    if expected is float and type(value) in (int, float) and abs(value) <= LARGEST:
        return float(value)
    if expected in (int, str, bool, dict, NoneType) and type(value) is expected:
        return value
    return _wrong(str(getattr(expected, "__name__", expected)), value, name)


def _record(record_type: Any, value: Any, name: str) -> Any:
    if not isinstance(value, dict):
        return _wrong(f"an object of {record_type.__name__}", value, name)
    types, known_fields = _hints(record_type), {field.name: field for field in fields(record_type)}
    if unknown := sorted(value.keys() - known_fields.keys()):
        raise ValueError(f"{name} has {unknown[0]!r}, which {record_type.__name__} does not know")
    for key, field in known_fields.items():
        if key not in value and field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{name} lacks {key!r}")
    return record_type(**{key: _typed(types[key], inner, f"{name}.{key}") for key, inner in value.items()})


@lru_cache
def _hints(record_type: Any) -> dict[str, Any]:
    return get_type_hints(record_type)


def _tuple(types: tuple[Any, ...], value: Any, name: str) -> tuple[Any, ...]:
    if len(types) == 2 and types[1] is Ellipsis:
        return tuple(_typed(types[0], inner, f"{name}[{i}]") for i, inner in enumerate(value))
    if len(types) != len(value):
        raise ValueError(f"{name} has {len(value)} entries instead of {len(types)}")
    return tuple(
        _typed(member_type, inner, f"{name}[{i}]")
        for i, (member_type, inner) in enumerate(zip(types, value, strict=True))
    )


def _union(types: tuple[Any, ...], value: Any, name: str) -> Any:
    """Return the value as the first of several types that it fits; if it fits none, raise the error of the last one."""
    if value is None and NoneType in types:
        return None
    types = tuple(member_type for member_type in types if member_type is not NoneType)
    for member_type in types[:-1]:
        try:
            return _typed(member_type, value, name)
        except ValueError:
            continue
    return _typed(types[-1], value, name)


def _wrong(expected: str, value: Any, name: str) -> Any:
    description = repr(value) if isinstance(value, int | float | bool | NoneType) else f"a {type(value).__name__}"
    raise ValueError(f"{name} is {description[:60]}, which is not {expected}")
