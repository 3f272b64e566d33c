"""The closed Jacobians of `mean_field` are those of autograd wherever means are over one state, in every family."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tiny import TOKENS, error, save
from zeropass.model.blocks import ACTIVATIONS, Block, embedded
from zeropass.model.mean_field import BlockMeans, final_slope, slope
from zeropass.model.mixers import MixerState, mixed, mixed_with_slopes
from zeropass.model.opening import open_model
from zeropass.numerics.projection import normed
from zoo import NOT_RUN, UNEVEN, WITHOUT_LENS, ZOO, tiny_model

TOLERANCE = 1e-4
FAMILIES = sorted({*ZOO} - {*NOT_RUN, *UNEVEN, *WITHOUT_LENS})

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning"),
    pytest.mark.usefixtures("one_thread"),
]


class Fixed(Block):
    """A block whose attention weights and router do not change with the state."""

    share: Tensor

    def _routed(self, y: Tensor) -> Tensor:
        return self.share


def fixed_pass(block: Fixed, diagonal: Tensor, others: Tensor, state: MixerState, x: Tensor) -> Tensor:
    """Pass one state (d,) through a block in which it attends to itself with given weights (heads,).

    A mixer goes on from a state, and a gradient takes the path through its channels (`mixers`).
    """

    def attend(y: Tensor) -> Tensor:
        values = block._of_queries(block._values(y)).reshape(len(diagonal), -1)
        mixed = (diagonal[:, None] * values + others).flatten()[None]
        return block._written(block._let_through(mixed, y, None), "o")

    def mix(y: Tensor) -> Tensor:
        return block._mix(y[None], replace(state), None)[0]

    return block._run(x[None], {"attn": attend, "mixer": mix}, None, {}, None)[0]


@torch.no_grad()
def attention(block: Fixed, seen: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the attention of the second token to itself, by head, and what heads attended to at the first."""
    q, k = (block.heads(seen[f"rotated.{role}"], role) for role in "qk")
    diagonal = block.weights(q, k, torch.arange(2))[0, :, 1, 1]
    values = block._of_queries(block._values(seen["attn"][:, 1])).reshape(len(diagonal), -1)
    mixed = seen.get("attended", seen["o.in"])[0, 1].reshape(len(diagonal), -1)
    return diagonal, mixed - diagonal[:, None] * values


@torch.no_grad()
def first_state(block: Fixed, seen: dict[str, Tensor]) -> MixerState:
    """Return what a mixer keeps of the first token."""
    state = MixerState()
    if "mixer" in seen:
        block._mix(seen["mixer"][:, :1], state, None)
    return state


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
        block.__dict__["share"] = seen["router"][:, 1] if "router" in seen else torch.ones(())
        fixed = (*(attention(block, seen) if "o.in" in seen else (torch.empty(0),) * 2), first_state(block, seen))
        state = states[0, 1].clone()
        passed = fixed_pass(block, *fixed, state)
        assert error(passed, following[0, 1]) < TOLERANCE
        true = torch.autograd.functional.jacobian(lambda x: fixed_pass(block, *fixed, x), state)  # noqa: B023
        whole = means.jacobians().whole(torch.eye(model.dims.d))
        assert error(whole.T, true) < TOLERANCE, layer
        states = following


@pytest.mark.parametrize("name", ["qwen3_5", "lfm2", "bamba", "jamba"])
@torch.no_grad()
def test_slopes_of_a_mixer_are_those_of_differences(name: str, tmp_path: Path) -> None:
    """An input of a channel, changed at one position: with an eps this large, lengths in norms are constants."""
    model = open_model(str(save(tiny_model(name), tmp_path / name)))
    model, step = replace(model, dims=replace(model.dims, eps=1e5)), 1e-2
    rows = model.rows("mixer_in")
    inputs = torch.randn(1, 4, rows, generator=torch.Generator().manual_seed(5))
    _, slopes = mixed_with_slopes(model, 0, inputs, MixerState())
    changed = inputs.repeat(2 * rows, 1, 1)
    changed[:, -1] += step * torch.cat((torch.eye(rows), -torch.eye(rows)))
    above, below = mixed(model, 0, changed, MixerState())[:, -1].chunk(2)
    true, reached = (above - below).sum(-1) / (2 * step), slopes[0, -1] != 0
    assert error(slopes[0, -1, reached], true[reached]) < 1e-2
    parts = {"delta": 2, "convolution": 3, "mamba2": 2, "mamba": 2}[model.family.mixer or ""]
    assert int(reached.sum()) == parts * model.rows("mixer_out")


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
