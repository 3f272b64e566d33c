"""The sign of singular directions: one rule wherever they are shown, whatever library computes them."""

import html
import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import small
import zeropass as zp
from commands import Run
from serving import contexts_of, serving
from zeropass.numerics.factored import Factored, one_sign
from zeropass.tokens.shown import shown_text

HEADS = tuple(f"L1.attn.{head}.{kind}" for head in range(3) for kind in ("qk", "vo"))


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> small.Built:
    return small.built(request.param, tmp_path_factory)


@pytest.fixture(scope="module")
def web(built: small.Built) -> Iterator[httpx.Client]:
    with serving(contexts_of(built.atlas.path, built.folder)) as address, httpx.Client(base_url=address) as client:
        yield client


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def signed(matrix: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the directions of a full matrix in float64, with the largest entry of each left one positive."""
    u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
    left, right = u[:, :k], vt[:k].T
    signs = torch.stack([column[column.abs().argmax()].sign() for column in left.T])
    return left * signs, right * signs


@given(st.integers(0, 2**31), st.integers(2, 40), st.integers(2, 40), st.integers(1, 6))
@settings(max_examples=60)
def test_the_largest_entry_of_a_left_direction_is_positive(seed: int, m: int, n: int, r: int) -> None:
    k = min(m, n, r)
    product = Factored(draw(m, r, seed=seed).double(), draw(n, r, seed=seed + 1).double())
    directions = product.svd()
    left, right = signed(product.left @ product.right.T, k)
    sizes = directions.left.abs().topk(2, dim=0).values
    clear = ~directions.close & (sizes[0] > 1.01 * sizes[1])
    torch.testing.assert_close(directions.left[:, clear], left[:, clear], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(directions.right[:, clear], right[:, clear], rtol=1e-6, atol=1e-6)


@given(st.integers(0, 2**31))
@settings(max_examples=30)
def test_signs_do_not_depend_on_the_library(seed: int) -> None:
    product = Factored(draw(30, 5, seed=seed), draw(20, 5, seed=seed + 1))
    expected, true = product.svd(), torch.linalg.svd
    turn = draw(5, seed=seed + 2).sign().double()

    def turned(*arguments: Any, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
        u, values, vt = true(*arguments, **options)
        return u * turn, values, turn[:, None] * vt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.linalg, "svd", turned)
        directions = product.svd()
    assert torch.equal(directions.left, expected.left)
    assert torch.equal(directions.right, expected.right)


def test_ties_are_broken_by_position_and_not_by_rounding() -> None:
    column = torch.tensor([0.1, -0.5, 0.5, -0.2], dtype=torch.float64)
    for rounding in (-1e-9, 0.0, 1e-9):
        both = torch.stack([column, column + torch.tensor([0, 0, rounding, 0]), -column], 1)
        assert one_sign(both).tolist() == [-1, -1, 1]
    assert one_sign(torch.zeros(4, 2)).tolist() == [1, 1]
    assert one_sign(torch.zeros(0, 2)).tolist() == [1, 1]
    assert one_sign(torch.tensor([[0.5], [-0.6]])).tolist() == [-1]


def poles(record: Any) -> list[tuple[list[str], ...]]:
    """Return the first tokens of the four poles of each direction whose value is not close to another."""
    sides = ("left", "left_bottom", "right", "right_bottom")
    clear = [direction for direction in record["directions"] if not direction["close"]]
    return [tuple([token["token"] for token in direction[side][:3]] for side in sides) for direction in clear]


@pytest.mark.parametrize("address", HEADS)
def test_command_line_lens_page_and_json_agree(
    built: small.Built,
    web: httpx.Client,
    run: Run,
    address: str,
) -> None:
    expected = poles(built.lens.svd(address).to_json())
    assert expected or "qk" in address
    assert poles(run.json("explain", built.folder, address, "--svd")) == expected
    assert poles(json.loads(web.get(f"/svd/{address}.json").text)) == expected
    assert poles(zp.lens_of(built.atlas, str(built.folder)).svd(address).to_json()) == expected
    sections = re.findall(r"<section class=\"list\">(.*?)</section>", web.get(f"/svd/{address}").text, re.S)
    shown = [
        tuple(
            [re.sub("<[^>]+>", "", chip) for chip in re.findall(r'<a class="chip"[^>]*>(.*?)</a>', side)[:3]]
            for pole in re.findall(r'<div class="pole">(.*?)</div>', section, re.S)
            for side in pole.split("<b>→</b>")
        )
        for section in sections
        if "≈" not in section
    ]
    texts = [tuple([shown_text(token) for token in side] for side in direction) for direction in expected]
    ordered = [(left, right, bottom, below) for left, bottom, right, below in texts]
    assert [tuple([html.unescape(t) for t in side] for side in direction) for direction in shown] == ordered


def test_plus_is_the_pole_of_the_most_extreme_left_token(built: small.Built) -> None:
    for address in HEADS:
        product = built.lens.head_map(address).svd(None)
        for number, direction in enumerate(built.lens.svd(address, tokens="all").directions):
            column = product.left[:, number]
            if not direction.close:
                assert int(column.abs().argmax()) == direction.left[0].id
