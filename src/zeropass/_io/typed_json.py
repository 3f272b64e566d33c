"""Records read back from JSON, with every field of a saved file checked against its type before it is used."""

from dataclasses import MISSING, fields, is_dataclass
from functools import lru_cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

__all__ = ["from_json", "json_schema"]

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


def json_schema(record_type: type, title: str) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of what `dataclasses.asdict` of a record becomes in JSON.

    Args:
        record_type: The dataclass.
        title: The title of the schema.
    """
    definitions: dict[str, Any] = {}
    top = _schema(record_type, definitions)
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title}
    return head | top | {"$defs": dict(sorted(definitions.items()))}


_PLAIN = {float: "number", int: "integer", str: "string", bool: "boolean", dict: "object", NoneType: "null"}


def _schema(expected: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a type; those of records go to ``definitions``."""
    origin, arguments = get_origin(expected), get_args(expected)
    if expected is Any:
        return {}
    if is_dataclass(expected):
        return _record_schema(expected, definitions)
    if origin in (Union, UnionType):
        return {"anyOf": [_schema(argument, definitions) for argument in arguments]}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is tuple and arguments[1:] == (Ellipsis,):
        return {"type": "array", "items": _schema(arguments[0], definitions)}
    if origin is tuple:
        entries = [_schema(argument, definitions) for argument in arguments]
        return {"type": "array", "prefixItems": entries, "minItems": len(entries), "maxItems": len(entries)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema(arguments[1], definitions)}
    return {"type": _PLAIN[expected]}


def _record_schema(record_type: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    """Return a reference to the schema of a record: every field is written, and no other."""
    name = record_type.__name__
    if name not in definitions:
        definitions[name] = {}  # a record may hold itself
        properties = {key: _schema(value, definitions) for key, value in _field_types(record_type).items()}
        definitions[name] = {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }
        if lines := (record_type.__doc__ or "").strip().splitlines():
            definitions[name] |= {"description": lines[0]}
    return {"$ref": f"#/$defs/{name}"}


def _field_types(record_type: Any) -> dict[str, Any]:
    return {field.name: _hints(record_type)[field.name] for field in fields(record_type)}
