"""JSON that anybody may have written: what Python's parser lets through and we do not."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zeropass._io.parse import parse_json

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**40), 10**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


@given(plain)
def test_what_json_can_say_is_read_as_it_is(value: object) -> None:
    assert parse_json(json.dumps(value)) == value
    assert parse_json(json.dumps(value).encode()) == value


def test_a_limit_that_transformers_writes_is_read() -> None:
    assert parse_json('{"model_max_length": 1000000000000000019884624838656}')["model_max_length"] == int(1e30)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("NaN", "NaN is no number"),
        ('{"a": [-Infinity]}', "-Infinity is no number"),
        ("1e999", "1e999 is no number"),
        ("-1e400", "-1e400 is no number"),
        ("1" + "0" * 400, "has 401 digits"),
        ("-" + "9" * 5000, "has 5001 digits"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("'x'", "Expecting value"),
    ],
)
def test_what_no_number_can_be_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_json(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('["a", {"\\ud800": 1}]', "surrogates not allowed"),
        ('{"a": "\\udfff"}', "surrogates not allowed"),
        ("[" * 102 + "]" * 102, "nested too deeply"),
        ('{"a":' * 102 + "1" + "}" * 102, "nested too deeply"),
    ],
)
def test_what_could_not_be_written_or_walked_through_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_json(text)


def test_objects_may_be_as_deep_as_any_file_has_them() -> None:
    assert parse_json("[" * 100 + "]" * 100)
