"""Records from JSON: the output of `asdict` is restored, and anything else is refused with its place."""

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

import pytest

from zeropass._io.typed_json import from_json
from zeropass.records.parameters import Certificate, Hidden, PairRecord, PairScore, Token, TokenScore, VectorRecord


@dataclass(frozen=True)
class Part:
    name: str
    sizes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Whole:
    parts: tuple[Part, ...]
    both: tuple[int, float]
    kind: Literal["a", "b"]
    lists: tuple[VectorRecord | PairRecord, ...]
    maybe: float | None
    about: dict[str, Any]
    flag: bool = False


HIDDEN = Hidden("default", 3, 58, {"special": 3})
SCORE = TokenScore(3, " a", 1.5, -2.0)
LISTS = (
    VectorRecord("L0.ff.1", "gate", "read", "token", 1.0, (SCORE,), (), 0.0, 1.0, HIDDEN),
    PairRecord(
        "L0.attn.1",
        "vo",
        0,
        "token",
        (PairScore(Token(1, "a"), Token(2, "b"), 2.0),),
        Certificate(1.0, None, True),
        HIDDEN,
    ),
)
WHOLE = Whole((Part("x", (1, 2)), Part("y")), (1, 2.5), "b", LISTS, None, {"any": [1, None]}, True)


def stored() -> Any:
    return json.loads(json.dumps(asdict(WHOLE)))


def test_a_record_survives_a_round_trip() -> None:
    assert from_json(Whole, stored()) == WHOLE
    assert from_json(Whole, stored() | {"both": [1, 2]}).both == (1, 2.0)
    assert type(from_json(Whole, stored() | {"both": [1, 2]}).both[1]) is float
    assert not from_json(Whole, {key: value for key, value in stored().items() if key != "flag"}).flag


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parts": None}, r"it\.parts is None"),
        ({"parts": [{"sizes": []}]}, r"it\.parts\[0\] lacks 'name'"),
        ({"parts": [{"name": "x", "sizes": [True]}]}, r"it\.parts\[0\]\.sizes\[0\] is True, which is not int"),
        ({"parts": [{"name": "x", "sizes": [1.0]}]}, r"sizes\[0\] is 1\.0"),
        ({"parts": [{"name": "x", "size": []}]}, r"has 'size', which Part does not know"),
        ({"both": [1]}, r"it\.both has 1 entries instead of 2"),
        ({"both": [1, float("nan")]}, r"it\.both\[1\] is nan, which is not float"),
        ({"both": [1, float("inf")]}, r"it\.both\[1\] is inf"),
        ({"both": [1, 1.7e308]}, r"it\.both\[1\] is 1\.7e\+308"),
        ({"both": [1, "2"]}, r"it\.both\[1\] is a str"),
        ({"kind": "c"}, r"it\.kind is a str, which is not 'a' or 'b'"),
        ({"kind": []}, r"it\.kind is a list"),
        ({"lists": [{"address": "x"}]}, r"it\.lists\[0\] lacks 'role'"),
        ({"lists": [3]}, r"it\.lists\[0\] is 3, which is not an object of PairRecord"),
        ({"lists": [None]}, r"it\.lists\[0\] is None"),
        ({"maybe": "x"}, r"it\.maybe is a str"),
        ({"about": []}, r"it\.about is a list"),
        ({"flag": 1}, r"it\.flag is 1, which is not bool"),
    ],
)
def test_a_wrong_value_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_json(Whole, stored() | change)


@pytest.mark.parametrize("value", [None, 3, "x", [], {}])
def test_a_value_that_is_no_record_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="it "):
        from_json(Whole, value)
