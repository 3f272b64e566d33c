"""The forward pass of `blocks` goes on where a cache left off; test_every_proof.py compares it with transformers."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tiny import TOKENS, error, save
from zeropass.errors import CannotRun
from zeropass.model.blocks import Block, caches, embedded, require_forward
from zeropass.model.frames import Frames
from zeropass.model.model import Model
from zeropass.model.opening import open_model
from zeropass.model.positions import adds_positions
from zoo import DECODERS, NOT_RUN, OF_AUDIO, PARTLY_RUN, ZOO, tiny_model

TOLERANCE = 1e-4
LENGTH = 12
FIRST = 2
"""The first token id of a text: RoBERTa gives id 1, its padding, no position."""

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning"),
    pytest.mark.usefixtures("one_thread"),
]


def passed(model: Model, ids: Tensor) -> list[Tensor]:
    """Return the stream before block 0 and behind every block."""
    states = [embedded(model, ids)]
    for layer, cache in enumerate(caches(model)):
        states.append(Block(model, layer)(states[-1], cache, ids=ids))
    return states


@pytest.fixture(params=sorted(set(ZOO) - set(NOT_RUN)))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@torch.no_grad()
def test_a_cache_continues(family: str, tmp_path: Path) -> None:
    model = open_model(str(save(tiny_model(family), tmp_path / family)))
    if not model.family.causal:
        return
    ids = torch.randint(FIRST, TOKENS, (2, LENGTH), generator=torch.Generator().manual_seed(2))
    kept = caches(model)
    parts = []
    for start, stop in ((0, 5), (5, 6), (6, LENGTH)):
        x = embedded(model, ids[:, start:stop], start)
        for layer, cache in enumerate(kept):
            x = Block(model, layer)(x, cache, ids=ids[:, start:stop])
        parts.append(x)
    assert error(torch.cat(parts, 1), passed(model, ids)[-1]) < TOLERANCE


@torch.no_grad()
def test_a_token_alone_is_a_text_of_one_token(family: str, tmp_path: Path) -> None:
    model = open_model(str(save(tiny_model(family), tmp_path / family)))
    if adds_positions(model):
        return
    ids = torch.arange(1, TOKENS)
    assert error(Frames(model).carried()[1:TOKENS], passed(model, ids[:, None])[1][:, 0, : model.dims.d]) < TOLERANCE


@pytest.mark.parametrize("name", PARTLY_RUN)
def test_what_computes_more_for_a_long_text_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(CannotRun, match="sums of its blocks"):
        require_forward(open_model(save(tiny_model(name), tmp_path / name)))


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_that_reads_an_encoder_is_refused(name: str, tmp_path: Path) -> None:
    folder = save(tiny_model(name), tmp_path / name)
    model = open_model(str(folder) if name in OF_AUDIO else f"{folder}#decoder")
    with pytest.raises(CannotRun, match="an encoder's output" if name in OF_AUDIO else "an encoder's text"):
        require_forward(model)
