"""JSON from untrusted files: what Python's parser accepts and zeropass refuses."""

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
def test_valid_json_is_read_unchanged(value: object) -> None:
    assert parse_json(json.dumps(value)) == value
    assert parse_json(json.dumps(value).encode()) == value


def test_the_huge_limit_that_transformers_writes_is_read() -> None:
    assert parse_json('{"model_max_length": 1000000000000000019884624838656}')["model_max_length"] == int(1e30)


def test_constants_that_have_a_meaning_are_read() -> None:
    assert parse_json("[0.0, Infinity]", {"Infinity": "endless"}) == [0.0, "endless"]
    with pytest.raises(ValueError, match="-Infinity is no number"):
        parse_json("-Infinity", {"Infinity": "endless"})


@pytest.mark.parametrize(
    ("text", "message"),
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
def test_bad_numbers_and_bad_syntax_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_json(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('["a", {"\\ud800": 1}]', "surrogates not allowed"),
        ('{"a": "\\udfff"}', "surrogates not allowed"),
        ("[" * 102 + "]" * 102, "nested too deeply"),
        ('{"a":' * 102 + "1" + "}" * 102, "nested too deeply"),
    ],
)
def test_lone_surrogates_and_deep_nesting_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_json(text)


def test_a_hundred_levels_of_nesting_are_read() -> None:
    assert parse_json("[" * 100 + "]" * 100)
