"""The closed Jacobians of `mean_field` are those of autograd wherever means are over one state, in every family."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tiny import TOKENS, error, save
from zeropass.model.blocks import ACTIVATIONS, Block, embedded
from zeropass.model.mean_field import BlockMeans, final_slope, slope
from zeropass.model.opening import open_model
from zeropass.numerics.projection import normed
from zoo import NOT_RUN, ZOO, tiny_model

TOLERANCE = 1e-4
FAMILIES = sorted({*ZOO} - {*NOT_RUN, "qwen3_5-full"})

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning"),
    pytest.mark.usefixtures("one_thread"),
]


class Fixed(Block):
    """A block whose attention weights and router do not change with the state."""

    share: Tensor

    def _routed(self, y: Tensor) -> Tensor:
        return self.share


def fixed_pass(block: Fixed, diagonal: Tensor, others: Tensor, x: Tensor) -> Tensor:
    """Pass one state (d,) through a block in which it attends to itself with given weights (heads,)."""

    def attend(y: Tensor) -> Tensor:
        values = block._of_queries(block._values(y)).reshape(len(diagonal), -1)
        return block._written((diagonal[:, None] * values + others).flatten()[None], "o")

    return block._run(x[None], {"attn": attend}, None, {})[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_jacobian_of_one_state_is_that_of_autograd(family: str, tmp_path: Path) -> None:
    model = open_model(str(save(tiny_model(family), tmp_path / family)))
    if model.dims.clip is not None:
        pytest.skip("clipped values have a slope of zero, which the closed form leaves out")
    ids = torch.randint(2, TOKENS, (1, 2), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        states = embedded(model, ids)
    for layer in range(model.dims.layers):
        block, seen = Fixed(model, layer), {}
        means = BlockMeans(block)

        def record(name: str, values: Tensor, means: BlockMeans = means, seen: dict[str, Tensor] = seen) -> None:
            seen[name] = values
            means.record(name, values)

        with torch.no_grad():
            following = Block(model, layer)(states, record=record)
        diagonal = means._means["diagonal"].value
        block.__dict__["share"] = seen["router"][:, 1] if "router" in seen else torch.ones(())
        values = block._of_queries(block._values(seen["attn"][:, 1])).reshape(len(diagonal), -1)
        others = seen["o.in"][0, 1].reshape(len(diagonal), -1) - diagonal[:, None] * values
        state = states[0, 1].clone()
        passed = fixed_pass(block, diagonal, others, state)
        assert error(passed, following[0, 1]) < TOLERANCE
        true = torch.autograd.functional.jacobian(lambda x: fixed_pass(block, diagonal, others, x), state)  # noqa: B023
        whole = means.jacobians().whole(torch.eye(model.dims.d))
        assert error(whole.T, true) < TOLERANCE, layer
        states = following


@pytest.mark.parametrize("norm", ["gpt2", "llama"])
def test_the_slope_of_the_final_norm(norm: str, tmp_path: Path) -> None:
    model = open_model(str(save(tiny_model(norm), tmp_path / norm)))
    state = torch.randn(model.dims.d, generator=torch.Generator().manual_seed(4))
    true = torch.autograd.functional.jacobian(lambda x: normed(x, model.family.norm, model.dims.eps), state)
    closed = final_slope(model, state[None])
    assert error(closed.T / closed.norm(), true / true.norm()) < TOLERANCE


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_the_slope_of_an_activation(name: str) -> None:
    x = torch.linspace(-3, 3, 13, dtype=torch.float64) + 0.01
    step = 1e-6
    difference = (ACTIVATIONS[name](x + step) - ACTIVATIONS[name](x - step)) / (2 * step)
    assert error(slope(ACTIVATIONS[name], x), difference) < 1e-6
