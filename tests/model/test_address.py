"""Addresses: each is parsed back from its own text, and nothing else is an address."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zeropass.errors import BadAddress
from zeropass.model.address import Address, canonical_role, parse, part_of_layer, with_roles

NUMBERS = st.integers(0, 10**9 - 1)
GATED = ("gate", "up", "value")


@given(NUMBERS, NUMBERS, st.sampled_from(["", "gate", "up", "key", "value"]))
def test_neurons_are_parsed(layer: int, neuron: int, role: str) -> None:
    address = parse(f"L{layer}.ff.{neuron}" + (f".{role}" if role else ""))
    assert address == Address(layer, "ff", index=neuron, role=role)
    assert str(address) == f"L{layer}.ff.{neuron}"


@given(NUMBERS, NUMBERS, st.sampled_from(["", "qk", "vo"]))
def test_heads_are_parsed(layer: int, head: int, role: str) -> None:
    address = parse(f"L{layer}.attn.{head}" + (f".{role}" if role else ""))
    assert address == Address(layer, "attn", head=head, role=role)
    assert str(address) == f"L{layer}.attn.{head}"


@pytest.mark.parametrize("part", ["attn", "cross"])
def test_ov_is_another_name_of_vo(part: str) -> None:
    assert parse(f"L3.{part}.2.ov") == parse(f"L3.{part}.2.vo")
    assert [canonical_role(role) for role in ("ov", "cross_ov", "vo", "o", "qk", "over")] == [
        *("vo", "cross_vo", "vo", "o", "qk", "over")
    ]


@given(NUMBERS, NUMBERS, st.sampled_from("qkvo"), NUMBERS)
def test_vectors_of_a_head_are_parsed(layer: int, head: int, role: str, index: int) -> None:
    text = f"L{layer}.attn.{head}.{role}.{index}"
    assert parse(text) == Address(layer, "attn", head=head, index=index, role=role)
    assert str(parse(text)) == text


LONE = ("L3.ff.bias", "L3.ff.norm", "L0.attn.bias", "L0.attn.norm", "L1.attn.2.q.bias", "L1.attn.2.v.bias")
OUTSIDE = ("final.norm", "embed.norm", "pos.17", "type.0", "classifier.1", "mlm_norm.0")


@pytest.mark.parametrize("text", [*LONE, *OUTSIDE])
def test_single_vectors_and_those_outside_the_blocks_are_parsed(text: str) -> None:
    address = parse(text)
    assert str(address) == text
    assert parse(str(address)) == address
    assert (address.layer == -1) == (text in OUTSIDE)
    assert address.role
    assert with_roles(address, GATED) == [address]


def test_surrounding_space_is_ignored() -> None:
    assert parse("  L1.ff.2\n") == parse("L1.ff.2")


@pytest.mark.parametrize("text", ["L1.ff.2.gate", "L1.attn.2.vo", *LONE, *OUTSIDE])
def test_case_is_ignored(text: str) -> None:
    assert parse(text.lower()) == parse(text.upper()) == parse(text)


def test_a_layer_or_a_part_of_it_is_no_address() -> None:
    assert [part_of_layer(text) for text in ("L3", " l3.FF ", "L3.attn")] == [(3, ""), (3, "ff"), (3, "attn")]
    assert [part_of_layer(text) for text in ("L", "L3.", "L3.mixer", "L3.ff.1", "3", "pos.1")] == [None] * 6


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "L",
        "L1",
        "L1.ff",
        "L1.ff.",
        "L1.ff.-1",
        "L-1.ff.1",
        "L1.ff.1.qk",
        "L1.ff.1.gate.2",
        "L1.ff.1.5",
        "1.ff.1",
        "L1.attn.0.key",
        "L1.attn.0.q",
        "L1.attn.0.k.bias",
        "L1.attn.0.o.bias",
        "L1.attn.0.q.-1",
        "L1.attn.qk",
        "L1.mlp.3",
        "final.norm.1",
        "pos",
        "pos.-1",
        "../etc.1",
        "a/b.1",
        "pos.1\n.2",
        "L1.ff.١",
        "L1.ff.1\x00",
        "L1.ff." + "9" * 10,
        "L" + "9" * 10_000 + ".ff.1",
        "\x1b[31m",
    ],
)
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(BadAddress):
        parse(text)


@given(st.text(max_size=30))
def test_any_text_is_an_address_or_refused(text: str) -> None:
    try:
        address = parse(text)
    except BadAddress as error:
        assert "address" in str(error) or "matrix" in str(error) or "bias" in str(error)
    else:
        assert parse(str(address)).with_role(address.role) == address


def test_the_message_shows_what_an_address_looks_like() -> None:
    with pytest.raises(BadAddress, match=r"L26\.ff\.1189\.gate"):
        parse("gate of neuron 5")
    with pytest.raises(BadAddress, match=r"L1\.attn\.0\.q\.0"):
        parse("L1.attn.0.q")


def test_an_address_without_a_role_stands_for_all_of_them() -> None:
    assert [a.role for a in with_roles(parse("L1.ff.2"), GATED)] == list(GATED)
    assert [a.role for a in with_roles(parse("L1.attn.2"), GATED)] == ["qk", "vo"]
    assert [a.role for a in with_roles(parse("L1.attn.2.k.3"), GATED)] == ["k"]


def test_a_role_that_neurons_lack_is_refused_with_those_they_have() -> None:
    with pytest.raises(BadAddress, match="gate, up, value"):
        with_roles(parse("L1.ff.2.key"), GATED)
